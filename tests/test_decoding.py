"""Decoded images: what the pictures say, made once, whole or not at all, refused when damaged."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import listing
from pictures import COLLECTION, encode, noise, real_images, write_shards
from PIL import Image

from paperlib.engine import decode
from paperlib.engine.data import IMAGENET, ImageData
from paperlib.engine.decode import Crop, Decoded, MissingDataError, Source, decoded, find
from paperlib.files import DamagedFileError, UnwritableError

PIXELS = noise(12)
LABELS = [number % 7 for number in range(12)]
NONE = Crop("none", 8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Twelve pictures of noise in three files."""
    write_shards(tmp_path / "noise", [encode(pixels) for pixels in PIXELS], LABELS, 3)
    return find(COLLECTION, "train", tmp_path / "noise")


def folder_of(cache: Path) -> Path:
    """The one folder of decoded images in the cache."""
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def unreadable(*_: Any) -> Any:
    raise AssertionError("the source was read again")


def equal(found: Decoded) -> bool:
    return np.array_equal(found.images.numpy(), PIXELS.transpose(0, 3, 1, 2)) and found.labels.tolist() == LABELS


# What is decoded -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_every_picture_and_label_arrives_in_its_place(
    source: Source, workers: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "BATCH", batch)
    found = decoded(source, NONE, workers=workers)
    assert (found.images.dtype, found.labels.dtype) == (torch.uint8, torch.int64)
    assert equal(found)
    assert found.index["sha256"] == ImageData("", found.images, found.labels, 256, 0.5).sha256


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
def test_photographs_are_what_others_decode(tmp_path: Path) -> None:
    import torchvision

    contents = [encode(pixels, "JPEG") for pixels in noise(6, 32)]
    write_shards(tmp_path / "jpeg", contents, [0] * 6)
    found = decoded(find(COLLECTION, "train", tmp_path / "jpeg"), Crop("none", 32))
    for content, image in zip(contents, found.images, strict=True):
        other = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        assert (image.int() - other.int()).abs().max() <= 2  # two builds of the decoder


def test_the_index_says_what_the_images_are(source: Source, cache: Path) -> None:
    index = json.loads((folder_of_made(source, cache) / "index.json").read_text())
    assert index["shape"] == [12, 3, 8, 8]
    assert index["preprocessing"] == "none: 8×8 as decoded"
    assert index["source"] == source.description
    assert set(index["versions"]) == {"pillow", "libjpeg", "numpy"}


def folder_of_made(source: Source, cache: Path) -> Path:
    decoded(source, NONE)
    return folder_of(cache)


def test_the_hash_of_the_encoded_pictures_knows_neither_files_nor_crops(source: Source, tmp_path: Path) -> None:
    contents = [encode(pixels) for pixels in PIXELS]
    write_shards(tmp_path / "one", contents, LABELS)
    write_shards(tmp_path / "swapped", contents, [1, 0, *LABELS[2:]])
    others = [find(COLLECTION, "train", tmp_path / name) for name in ("one", "swapped")]
    hashes = [decoded(each, NONE).index["encoded_sha256"] for each in (source, *others)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert decoded(source, Crop("area", 4)).index["encoded_sha256"] == hashes[0]


def test_pictures_that_had_to_be_enlarged_are_counted(tmp_path: Path) -> None:
    contents = [encode(noise(1, size)[0]) for size in (5, 8, 16, 7, 9)]
    write_shards(tmp_path / "sizes", contents, [0] * 5)
    found = decoded(find(COLLECTION, "train", tmp_path / "sizes"), Crop("area", 8))
    assert found.index["enlarged"] == 2


@pytest.mark.parametrize("bad", [-1, 7])
def test_labels_outside_the_classes_are_refused(tmp_path: Path, cache: Path, bad: int) -> None:
    write_shards(tmp_path / "labels", [encode(pixels) for pixels in PIXELS], [*LABELS[:-1], bad])
    with pytest.raises(ValueError, match=r"labels must lie in 0 … 6, found"):
        decoded(find(COLLECTION, "train", tmp_path / "labels"), NONE)
    assert not any(path.is_dir() for path in cache.iterdir())


def test_a_picture_that_cannot_be_read_is_named_and_nothing_is_kept(tmp_path: Path, cache: Path) -> None:
    contents = [encode(pixels) for pixels in PIXELS]
    contents[7] = contents[7][:60]
    write_shards(tmp_path / "broken", contents, LABELS)
    with pytest.raises(ValueError, match=r"the picture 7\.png of class 0 cannot be read"):
        decoded(find(COLLECTION, "train", tmp_path / "broken"), NONE)
    assert not any(path.is_dir() for path in cache.iterdir())


@pytest.mark.parametrize("announced", [11, 13])
def test_another_number_of_images_than_announced_is_refused(
    source: Source, announced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = replace(source, collection=replace(COLLECTION, counts={"train": 13, "test": 5}))
    monkeypatch.setattr(Source, "count", lambda source: announced)
    with pytest.raises(ValueError, match=f"announces {announced} images and has 12"):
        decoded(source, NONE)


def test_more_images_than_were_published_are_refused(tmp_path: Path, cache: Path) -> None:
    write_shards(tmp_path / "twice", [encode(pixels) for pixels in PIXELS] * 2, LABELS * 2, 6)
    with pytest.raises(ValueError, match="has 24 images, more than the 12 of Noise: keep one copy of each"):
        decoded(find(COLLECTION, "train", tmp_path / "twice"), NONE)
    assert not any(path.is_dir() for path in cache.iterdir())


# Once ----------------------------------------------------------------------------------------------------------------


def test_what_is_cached_is_read_from_the_cache(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded(source, NONE)
    monkeypatch.setattr(Source, "stream", unreadable)
    monkeypatch.setattr(decode, "held", unreadable)  # a cache that others keep may be read-only
    assert equal(decoded(source, NONE))


def test_opening_a_large_cache_does_not_hash_the_images(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded(source, NONE)
    monkeypatch.setattr(decode, "HASHED", 0)
    monkeypatch.setattr(decode, "pixels_sha256", unreadable)
    assert equal(decoded(source, NONE))


def test_other_files_and_other_crops_have_folders_of_their_own(source: Source, cache: Path) -> None:
    sizes = {tuple(decoded(source, crop).images.shape) for crop in (NONE, Crop("area", 4), Crop("adm", 4))}
    assert sizes == {(12, 3, 8, 8), (12, 3, 4, 4)}
    os.utime(source.files[0], (1, 1))
    assert equal(decoded(source, NONE))
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 4


def test_of_two_who_want_the_same_one_makes_it(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = [], decode._make

    def slowly(*arguments: Any) -> None:
        made.append(1)
        time.sleep(0.2)
        make(*arguments)

    monkeypatch.setattr(decode, "_make", slowly)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: decoded(source, NONE), range(3)))
    assert len(made) == 1
    assert all(map(equal, found))


def test_a_change_of_the_images_never_reaches_the_file(source: Source) -> None:
    decoded(source, NONE).images.zero_()
    assert equal(decoded(source, NONE))


# Damage --------------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def change_last(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(**changes: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def other_type(path: Path) -> None:
    np.save(path, np.load(path).astype(np.int32))


DAMAGE = [
    ("images.npy", cut),
    ("images.npy", lengthen),
    ("images.npy", Path.unlink),
    ("images.npy", other_type),
    ("labels.npy", cut),
    ("labels.npy", change_last),
    ("labels.npy", Path.unlink),
    ("index.json", cut),
    ("index.json", Path.unlink),
    ("index.json", lambda path: path.write_text("[]")),
    ("index.json", edit(key="of something else")),
    ("index.json", edit(format=0)),
    ("index.json", edit(shape=[12, 3, 8, 7])),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_damaged_images_are_refused_and_made_anew(
    source: Source, cache: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = folder_of_made(source, cache)
    key = json.loads((folder / "index.json").read_text())["key"]
    damage(folder / name)
    with pytest.raises(DamagedFileError, match=folder.name):
        decode.read(folder, key)
    with pytest.warns(UserWarning, match="is made anew"):
        assert equal(decoded(source, NONE))
    assert equal(decoded(source, NONE))


@pytest.mark.parametrize("hashed", [decode.HASHED, 0])
def test_a_changed_pixel_is_found(source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch, hashed: int) -> None:
    """Also in a file that is too large to be hashed at every reading: it was touched."""
    monkeypatch.setattr(decode, "HASHED", hashed)
    change_last(folder_of_made(source, cache) / "images.npy")
    with pytest.warns(UserWarning, match="its hash differs. It is made anew"):
        assert equal(decoded(source, NONE))
    assert equal(decoded(source, NONE))


@pytest.mark.parametrize(("hashed", "found"), [(0, False), (10_000, True)])
def test_small_files_are_hashed_at_every_reading(
    source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch, hashed: int, found: bool
) -> None:
    """Which finds a pixel that was changed behind the back of the file system."""
    monkeypatch.setattr(decode, "HASHED", hashed)
    images = folder_of_made(source, cache) / "images.npy"
    before = images.stat()
    change_last(images)
    os.utime(images, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.warns(UserWarning, match="its hash differs") if found else nullcontext():
        assert equal(decoded(source, NONE)) == found


def test_rows_without_the_content_of_pictures_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "paths", [None] * 4, [3, 2, 1, 0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"a picture of class 3 has no bytes, only the path '0\.png'"):
        decoded(find(COLLECTION, "train", tmp_path / "paths"), NONE)
    write_shards(tmp_path / "labels", [encode(PIXELS[0])], [None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"the picture 0\.png has no label; fill the column"):
        decoded(find(COLLECTION, "train", tmp_path / "labels"), NONE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is cut short or damaged"),
        (lambda whole: b"", "is cut short or damaged"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 7\n", "run `git lfs pull`"),
    ],
    ids=["cut", "empty", "pointer"],
)
def test_files_that_are_not_whole_are_named(tmp_path: Path, content: Callable[[bytes], bytes], message: str) -> None:
    paths = write_shards(tmp_path / "noise", [encode(pixels) for pixels in PIXELS], LABELS, 3)
    paths[1].write_bytes(content(paths[1].read_bytes()))
    with pytest.raises(MissingDataError, match=f"{paths[1].name} .*{message}"):
        decoded(find(COLLECTION, "train", tmp_path / "noise"), NONE)


def test_a_disk_without_room_is_refused_before_the_work(
    source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=12 * 3 * 64 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(Source, "stream", lambda *_: iter([]))
    with pytest.raises(UnwritableError, match=r"0\.0 GB are needed.*PAPERLIB_CACHE names the folder"):
        decoded(source, NONE)
    assert not any(path.is_dir() for path in cache.iterdir())


def test_a_cache_that_cannot_be_made_is_named(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UnwritableError, match=r"a part of the path is a file.*PAPERLIB_CACHE"):
        decoded(source, NONE)


def test_errors_of_the_source_are_not_blamed_on_the_cache(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied", "train.parquet")
        yield

    monkeypatch.setattr(Source, "stream", denied)
    with pytest.raises(PermissionError, match=r"train\.parquet") as caught:
        decoded(source, NONE)
    assert not isinstance(caught.value, UnwritableError)


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "empty", [], [])
    with pytest.raises((ValueError, MissingDataError)):
        decoded(find(COLLECTION, "train", tmp_path / "empty"), NONE)


KILLED = """
import time
from pathlib import Path
from paperlib.engine import decode
from paperlib.engine.decode import Crop, find
from pictures import COLLECTION
quickly = decode._decode
decode.BATCH = 2
decode._decode = lambda batch, crop: (time.sleep(0.3), quickly(batch, crop))[1]
decode.decoded(find(COLLECTION, "train", Path("noise")), Crop("none", 8), workers=1)
"""


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_not_taken_for_whole(source: Source, cache: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment)
    while process.poll() is None and not list(cache.glob("*/images.npy")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert folder_of(cache)
    with pytest.warns(UserWarning, match=r"not a whole folder.*index\.json.*It is made anew"):
        assert equal(decoded(source, NONE))
    assert listing(folder_of(cache)) == ["images.npy", "index.json", "labels.npy"]


# Real photographs ----------------------------------------------------------------------------------------------------

PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from memory import peak
from paperlib.engine.data import IMAGENET
from paperlib.engine.decode import Crop, decoded, find
source = find(IMAGENET, "train", Path(sys.argv[1]))
next(source.stream(16))  # libraries are loaded by now
before = peak()
decoded(source, Crop("area", 256), workers=2)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_memory_that_decoding_takes_is_bounded(cache: Path) -> None:
    """A thousand photographs, 197 MB when decoded."""
    images, beside = real_images("imagenet-sample") / "imagenet-sample", Path(__file__).parent
    arguments = [sys.executable, "-c", PEAK, str(images), str(beside)]
    kilobytes = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert (folder_of(cache) / "images.npy").stat().st_size > 196_000_000
    assert kilobytes < 140_000


@pytest.mark.slow
@pytest.mark.parametrize("crop", [Crop("adm", 64), Crop("area", 128)])
def test_photographs_are_decoded_as_one_by_one(crop: Crop) -> None:
    import pyarrow.parquet as parquet

    source = find(IMAGENET, "train", real_images("imagenet-sample") / "imagenet-sample")
    found = decoded(source, crop)
    table = parquet.read_table(source.files[0])
    assert found.labels.tolist() == table["label"].to_pylist()
    assert torch.equal(found.labels.sort().values, torch.arange(1000))
    for row in range(0, 1000, 37):
        image = Image.open(io.BytesIO(table["image"][row]["bytes"].as_py()))
        assert np.array_equal(found.images[row].numpy(), crop(image))
    assert len(found.images.unique()) == 256
