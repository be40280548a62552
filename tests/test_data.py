"""Images: the data sets and their splits, scaling and its inverse, what is said of them, refusals."""

import io
import json
import math
import struct
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import COLLECTION, encode, noise, real_images, write_shards
from PIL import Image

from paperlib.engine import data
from paperlib.engine.decode import Crop


def images(size: int = 4, levels: int = 17) -> data.ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(levels, (size, 2, 3, 5), generator=generator, dtype=torch.uint8)
    return data.ImageData("random", pixels, torch.arange(size) % 3, levels, 0.5)


def shared_images(first: data.ImageData, second: data.ImageData) -> list[tuple[int, int]]:
    """Pairs (i, j) of images that are equal in every pixel, i in ``first``, j in ``second``, whatever their labels."""
    places: dict[bytes, list[int]] = {}
    for i, image in enumerate(first.images.numpy()):
        places.setdefault(image.tobytes(), []).append(i)
    others = enumerate(second.images.numpy())
    return [(i, j) for j, image in others for i in places.get(image.tobytes(), [])]


def test_the_digits_are_split_into_disjoint_parts_that_make_up_the_whole() -> None:
    from sklearn.datasets import load_digits

    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train), len(test)) == (1500, 297)
    assert train.image_shape == test.image_shape == (1, 8, 8)
    assert train.num_classes == test.num_classes == 10
    everything = torch.cat([train.images, test.images]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797
    original = torch.from_numpy(load_digits().data).to(torch.uint8)
    assert torch.equal(everything.unique(dim=0), original.unique(dim=0))


def test_each_digit_keeps_its_label() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    label_of = {bytes(image.astype("uint8")): label for image, label in zip(digits.data, digits.target, strict=True)}
    for split in ("train", "test"):
        part = data.load("digits", split)
        found = [label_of[image.numpy().tobytes()] for image in part.images]
        assert found == part.labels.tolist()


def test_the_digits_have_the_standard_deviation_that_networks_are_told() -> None:
    train = data.load("digits", "train")
    assert train.scaled().std().item() == pytest.approx(train.sigma_data, abs=0.01)
    assert train.scaled().min() == -1
    assert train.scaled().max() == 1


def test_digits_that_have_changed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DIGITS_TRAIN", 1499)
    with pytest.raises(RuntimeError, match="digits/test has hash"):
        data.load("digits", "test")


@given(st.integers(2, 256), st.sampled_from([torch.float32, torch.float64]))
def test_every_level_comes_back_from_its_real_number(levels: int, dtype: torch.dtype) -> None:
    values = torch.arange(levels).to(torch.uint8)
    x = data.scale(values, levels, dtype)
    assert x.dtype == dtype
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.equal(data.to_uint8(x, levels), values)
    nudge = 0.49 * 2 / (levels - 1)
    assert torch.equal(data.to_uint8(x + nudge, levels), values)
    assert torch.equal(data.to_uint8(x - nudge, levels), values)


def test_what_lies_outside_is_clamped() -> None:
    assert data.to_uint8(torch.tensor([-7.0, 1.2, 900.0]), 17).tolist() == [0, 16, 16]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_images_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="x has 1 value"):
        data.to_uint8(torch.tensor([0.0, bad]), 17)


def test_the_hash_changes_with_every_part_of_the_data() -> None:
    original = images()
    pixel, label, shape = original.images.clone(), original.labels.clone(), original.images.reshape(4, 3, 2, 5)
    pixel[3, 1, 2, 4] ^= 1
    label[0] = 2
    variants = [(original.images, original.labels), (pixel, original.labels), (original.images, label)]
    variants.append((shape, original.labels))
    hashes = {data.ImageData("other", a, b, 18, 0.5).sha256 for a, b in variants}
    assert len(hashes) == 4
    assert original.sha256 in hashes  # whatever its name


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(4, 1, 8, 8)}, TypeError, "to_uint8"),
        (
            {"images": np.zeros((4, 1, 8, 8), np.uint8)},
            TypeError,
            "images must be a tensor, got ndarray; use torch.from",
        ),
        ({"labels": torch.zeros(4)}, TypeError, "labels must be torch.int64, got torch.float32; use labels.long()"),
        ({"images": torch.zeros(4, 8, 8, dtype=torch.uint8)}, ValueError, r"shape \(N, C, H, W\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels \(N,\)"),
        ({"images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "labels": torch.arange(0)}, ValueError, "N ≥ 1"),
        (
            {"images": torch.zeros(4, 8, 8, 3, dtype=torch.uint8)},
            ValueError,
            r"look like \(N, H, W, C\).*permute\(0, 3",
        ),
        ({"images": torch.zeros(4, 32, 32, 1, dtype=torch.uint8)}, ValueError, r"\(4, 32, 32, 1\) look like"),
        ({"levels": 3}, ValueError, "pixels must lie in 0 … levels − 1 = 2, got 16"),
        ({"levels": 1}, ValueError, "pixels must lie"),
        ({"labels": torch.tensor([0, -1, 0, 1])}, ValueError, "labels must be 0 or more, got -1"),
        ({"sigma_data": -1.0}, ValueError, "sigma_data"),
        ({"classes": 2}, ValueError, "labels of 2 classes must be less, or 0 for none; got 2"),
        ({"classes": 0}, ValueError, "labels of 0 classes must be less, or 0 for none; got 2"),
    ],
)
def test_data_that_do_not_fit_are_refused(change: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        data.ImageData(**(vars(images()) | change))


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown data set 'mnist'; choose one of digits"):
        data.load("mnist", "train")
    with pytest.raises(ValueError, match="unknown split 'valid'; choose train or test"):
        data.load("digits", "valid")  # type: ignore[arg-type]


# What is said of the data --------------------------------------------------------------------------------------------


def test_a_hash_that_is_known_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = images()
    known = replace(original).known_as("0123")
    assert (known.sha256, known.provenance()["sha256"]) == ("0123", "0123")
    part = replace(known, images=original.images[:2], labels=original.labels[:2])
    assert part.sha256 == replace(original, images=part.images, labels=part.labels).sha256 != "0123", "its own"
    monkeypatch.setitem(data.DATASETS, "known", data.DataSet(lambda split, root: known, known.image_shape, 3))
    monkeypatch.setattr(data, "pixels_sha256", None)
    assert data.load("known", "train").sha256 == "0123", "whatever load says of it besides"


def test_files_of_8_bits_are_not_read_to_look_for_greater_values(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = images().images
    monkeypatch.setattr(torch.Tensor, "max", None)
    data.ImageData("many gigabytes", pixels, torch.zeros(4, dtype=torch.int64), 256, 0.5)


@pytest.mark.parametrize("split", ["train", "test"])
def test_provenance_is_plain_and_complete(split: data.Split) -> None:
    digits = data.load("digits", split)
    said = json.loads(json.dumps(digits.provenance()))
    assert (said["name"], said["images"], said["shape"], said["levels"]) == (digits.name, len(digits), [1, 8, 8], 17)
    assert said["sha256"] == data.DIGITS_SHA256[split]
    assert all(said[part] for part in ("licence", "preprocessing", "source"))
    assert said["caution"] == ""


def test_images_of_two_splits_that_are_equal_are_found() -> None:
    first, second = images(), images(6)
    other = second.images.clone()
    other[:4] ^= 1
    other[1], other[5] = first.images[3], first.images[0]
    second = replace(second, images=other, levels=256)
    assert shared_images(first, second) == [(3, 1), (0, 5)]
    assert shared_images(first, first) == [(index, index) for index in range(4)]


# A folder of one's own -----------------------------------------------------------------------------------------------


def test_a_part_of_a_set_has_the_classes_of_the_whole() -> None:
    whole = replace(images(), classes=7)
    part = replace(whole, images=whole.images[:1], labels=whole.labels[:1])
    assert (images().num_classes, whole.num_classes, part.num_classes) == (3, 7, 7)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures with classes in "labelled", without in "plain"."""
    for number, pixels in enumerate(noise(6, 10)):
        for folder in (tmp_path / "labelled/train" / "ba"[number % 2], tmp_path / "plain/train"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(encode(pixels))
    return tmp_path


def test_a_folder_of_pictures_is_a_data_set(folders: Path) -> None:
    pixels = noise(6, 10).transpose(0, 3, 1, 2)
    labelled = data.load_folder("train", folders / "labelled", size=10, crop="none")
    assert (labelled.labels.tolist(), labelled.num_classes) == ([0, 0, 0, 1, 1, 1], 2)
    assert np.array_equal(labelled.images.numpy(), pixels[[1, 3, 5, 0, 2, 4]])
    assert (labelled.name, labelled.preprocessing) == ("labelled/train", "none: 10×10 as decoded")
    assert str(folders) not in json.dumps(labelled.provenance())
    other = folders / "labelled/test/b/one.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(encode(noise(1, 10)[0]))
    test = data.load_folder("test", folders / "labelled", size=10)
    assert (test.labels.tolist(), test.num_classes) == ([1], 2), "a split that lacks a class numbers them alike"
    plain = data.load_folder("train", str(folders / "plain"), size=5)
    assert (plain.labels.tolist(), plain.num_classes, plain.image_shape) == ([0] * 6, 0, (3, 5, 5))


def test_what_lies_beside_pictures_is_no_class(folders: Path) -> None:
    train = folders / "labelled/train"
    for beside in (".git/branches", "originals/2023", "train/.ipynb_checkpoints"):
        (folders / "labelled" / beside).mkdir(parents=True)
        (folders / "labelled" / beside / "one.png").write_bytes(encode(noise(1, 10)[0]))
    (train / "._0.png").write_bytes(b"what a Mac leaves")
    (folders / "elsewhere").mkdir()
    (train / "b").rename(folders / "elsewhere/b")
    (train / "b").symlink_to(folders / "elsewhere/b")
    found = data.load_folder("train", folders / "labelled", size=10)
    assert (found.labels.tolist(), found.num_classes, found.caution) == ([0, 0, 0, 1, 1, 1], 2, "")
    assert "smaller than 20×20, hence enlarged: 6" in data.load_folder("train", folders / "plain", size=20).caution


def sixteen_bits() -> bytes:
    """A PNG in colour, every value 1023 of 65535, which PIL opens as one of 8 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(8 * (b"\0" + struct.pack(">H", 1023) * 24))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_that_are_more_than_their_pixels_are_refused(folders: Path) -> None:
    picture, one = Image.fromarray(noise(1, 8)[0]), folders / "plain/train/0.png"
    with pytest.raises(ValueError, match="has mode RGB, with 16 bits a value; only 8-bit pictures"):
        Crop("none", 8)(Image.open(io.BytesIO(sixteen_bits())))
    one.write_bytes(sixteen_bits())
    with pytest.raises(ValueError, match=r"0\.png cannot be read: .*16 bits a value"):
        data.load_folder("train", folders / "plain", size=8)
    clear = picture.copy()
    clear.putalpha(Image.new("L", (8, 8), 254))
    clear.save(one)
    with pytest.raises(ValueError, match=r"0\.png cannot be read: it is transparent in places"):
        data.load_folder("train", folders / "plain", size=8)
    one.unlink()
    picture.save(one.with_suffix(".gif"), save_all=True, append_images=[Image.new("RGB", (8, 8))])
    with pytest.raises(ValueError, match=r"0\.gif cannot be read: it has 2 frames"):
        data.load_folder("train", folders / "plain", size=8)


def test_pictures_stand_upright_and_opaque_ones_are_read(folders: Path) -> None:
    picture, train = Image.fromarray(noise(1, 8)[0]), folders / "plain/train"
    for path in train.iterdir():
        path.unlink()
    turned = picture.getexif()
    turned[0x0112] = 6  # "turn it to the right", as a telephone writes
    picture.save(train / "0.png", exif=turned)
    opaque = picture.copy()
    opaque.putalpha(255)
    opaque.save(train / "1.png")
    first, second = data.load_folder("train", folders / "plain", size=8, crop="none").images.numpy()
    plain = np.asarray(picture).transpose(2, 0, 1)
    assert np.array_equal(second, plain)
    assert np.array_equal(first, np.rot90(plain, -1, axes=(1, 2)))


def test_images_without_labels_are_what_a_network_without_classes_sees(folders: Path) -> None:
    from paperlib import models

    plain = data.load_folder("train", folders / "plain", size=8)
    network = models.build("mlp", image_shape=plain.image_shape, num_classes=plain.num_classes, sigma_data=0.5, width=8)
    z, logsnr = plain.scaled(), torch.zeros(6)
    assert torch.equal(network(z, logsnr, plain.labels), network(z, logsnr))


def test_folders_that_cannot_be_read_are_named(folders: Path) -> None:
    with pytest.raises(
        data.MissingDataError, match=r"there is no picture in .*plain/test; put those of the test split"
    ):
        data.load_folder("test", folders / "plain", size=8)
    with pytest.raises(ValueError, match=r"plain/train/0\.png cannot be read: the picture is 10×10, not 8×8"):
        data.load_folder("train", folders / "plain", size=8, crop="none")
    (folders / "labelled/train/beside.png").write_bytes(encode(noise(1, 10)[0]))
    with pytest.raises(ValueError, match=r"pictures beside the folders of classes; move .*train/beside\.png"):
        data.load_folder("train", folders / "labelled", size=8)


def test_parquet_files_of_ones_own_are_a_data_set_by_their_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    write_shards(tmp_path / "noise", [encode(pixels) for pixels in noise(12)], [0] * 12)
    own = data.DataSet(partial(data.load_collection, collection=COLLECTION, crop=Crop("none", 8)), (3, 8, 8), 7)
    monkeypatch.setitem(data.DATASETS, "mine", own)
    found = data.load("mine", "train", tmp_path / "noise")
    assert (found.name, found.num_classes, found.licence, found.caution) == ("mine/train", 7, "none needed", "")
    assert np.array_equal(found.images.numpy(), noise(12).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("labelled", [True, False])
def test_arrays_of_ones_own_are_a_data_set(monkeypatch: pytest.MonkeyPatch, labelled: bool) -> None:
    def mine(split: data.Split, root: Path | str | None) -> data.ImageData:
        return data.ImageData("", images().images, torch.arange(4) if labelled else None)

    own = data.DataSet(mine, (2, 3, 5), 4 * labelled, sigma_data=0.3)
    monkeypatch.setitem(data.DATASETS, "mine", own)
    found = data.load("mine", "test")
    assert (found.name, found.num_classes, found.image_shape) == ("mine/test", 4 * labelled, (2, 3, 5))
    assert (found.levels, found.sigma_data) == (256, 0.3)
    assert found.labels.tolist() == ([0, 1, 2, 3] if labelled else [0, 0, 0, 0])


@pytest.mark.parametrize("stated", [((2, 3, 4), 3), ((2, 3, 5), 0)])
def test_images_that_are_not_what_their_entry_says_are_refused(
    monkeypatch: pytest.MonkeyPatch, stated: tuple[tuple[int, int, int], int]
) -> None:
    monkeypatch.setitem(data.DATASETS, "mine", data.DataSet(lambda split, root: images(), *stated))
    with pytest.raises(ValueError, match=r"mine/train has images \(2, 3, 5\) of 3 classes, and its entry"):
        data.load("mine", "train")


# CIFAR-10 and ImageNet, made up --------------------------------------------------------------------------------------


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders cifar10 and imagenet of a few pictures of noise, and an empty cache."""
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    small = [encode(pixels) for pixels in noise(6, 32)]
    large = [encode(pixels, "JPEG") for pixels in noise(4, 70)]
    for split in ("train", "test"):
        write_shards(tmp_path / "cifar10", small, [0, 9, 1, 2, 3, 4], 2, split, image="img")
    for split in ("train", "validation"):
        write_shards(tmp_path / "imagenet", large, [0, 999, 5, 6], 2, split)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("name", "size"), [("cifar10", 32), ("cifar10-16", 16), ("cifar10-8", 8)])
def test_cifar10_and_its_reductions_have_names_and_cautions(
    made_up: Path, split: data.Split, name: str, size: int
) -> None:
    found, original = data.load(name, split), noise(6, 32).transpose(0, 3, 1, 2)
    boxes = original.reshape(6, 3, size, 32 // size, size, 32 // size).mean((3, 5))
    assert np.array_equal(found.images.numpy(), np.rint(boxes))  # numpy rounds halves to even as well
    assert found.labels.tolist() == [0, 9, 1, 2, 3, 4]
    assert (found.name, found.levels, found.sigma_data, found.num_classes) == (f"{name}/{split}", 256, 0.5, 10)
    assert found.caution.startswith("6 of the ")
    assert "unknown variant of CIFAR-10" in found.caution
    assert ("reduced to" in found.caution) == (size < 32)
    assert found.sha256 == data.ImageData("", found.images, found.labels, 256, 0.5).sha256


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_is_read_from_the_binary_version_of_its_author(tmp_path: Path, split: data.Split) -> None:
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if split == "train" else ["test_batch.bin"]
    records = np.zeros((10_000, 3073), np.uint8)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number, name in enumerate(names):
        records[7, 0], records[7, 1 + 1024 * 2 + 32 * 3 + 4] = number, 100 + number  # blue, row 3, column 4
        records.tofile(folder / name)
    found = data.load("cifar10", split, tmp_path)
    rows = torch.arange(len(names)) * 10_000 + 7
    assert (found.name, len(found), found.num_classes) == (f"cifar10/{split}", 10_000 * len(names), 10)
    assert found.images[rows, 2, 3, 4].tolist() == [100 + number for number in range(len(names))]
    assert found.labels[rows].tolist() == list(range(len(names)))
    assert (found.images.count_nonzero(), found.labels.count_nonzero()) == (len(names), len(names) - 1)
    assert found.caution.startswith("unknown variant of CIFAR-10")


@pytest.mark.parametrize("fault", ["missing", "cut", "pickle", "twice"])
def test_another_binary_version_of_cifar10_is_refused_and_pickles_with_it(tmp_path: Path, fault: str) -> None:
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    files = dict.fromkeys(names, 30730000) | {"test_batch.bin": 30_730_000}
    if fault == "missing":
        del files["data_batch_3.bin"]
    elif fault == "cut":
        files["data_batch_3.bin"] -= 1
    elif fault == "pickle":
        files = {name.removesuffix(".bin"): 1 for name in names}
    else:
        files["copy/data_batch_3.bin"] = 30_730_000
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(data.MissingDataError, match=r"data_batch_5\.bin, each once.*are pickles, which are code"):
        data.load("cifar10", "train", tmp_path)


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_imagenet_comes_in_every_size(made_up: Path, size: int) -> None:
    found = data.load(f"imagenet{size}", "test")
    assert found.image_shape == (3, size, size)
    assert found.num_classes == 1000
    assert f"{size}×{size}" in found.preprocessing
    assert "ADM" in found.preprocessing
    assert found.caution.startswith("4 of the 50,000 images of ImageNet")
    assert ("hence enlarged: 4" in found.caution) == (size > 70)


def test_the_sample_of_imagenet_is_one_file_in_two_parts_without_classes(made_up: Path) -> None:
    pixels = noise(10, 32)
    write_shards(made_up / "imagenet-sample", [encode(picture) for picture in pixels], range(10))
    parts = {split: data.load("imagenet-sample", split) for split in ("train", "test")}
    for split, kept in (("train", [0, 1, 2, 3, 5, 6, 7, 8]), ("test", [4, 9])):
        found = parts[split]
        assert np.array_equal(found.images.numpy(), pixels[kept].transpose(0, 3, 1, 2))
        assert (found.name, found.num_classes, found.labels.count_nonzero()) == (f"imagenet-sample/{split}", 0, 0)
        assert "memorisation" in found.caution
        assert found.sha256 == data.ImageData("", found.images, found.labels).sha256
    assert parts["train"].sha256 != parts["test"].sha256


@pytest.mark.parametrize("base", [True, False])
def test_without_the_sample_of_imagenet_it_is_said_how_to_make_it(
    made_up: Path, monkeypatch: pytest.MonkeyPatch, base: bool
) -> None:
    if not base:
        monkeypatch.delenv("PAPERLIB_DATA")
    with pytest.raises(
        data.MissingDataError, match=r"not on the hub.*ILSVRC/imagenet-1k into a train\.parquet.*set PAPERLIB_DATA"
    ):
        data.load("imagenet-sample", "train")


def test_what_is_said_of_the_data_names_no_folder_of_this_machine(made_up: Path) -> None:
    for name in ("cifar10", "imagenet64"):
        said = json.dumps(data.load(name, "train").provenance())
        assert str(made_up) not in said
        assert "train-00000-of-00002.parquet" in said


def test_a_root_may_be_given_and_the_cache_is_verified(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_up / "cifar10"
    monkeypatch.delenv("PAPERLIB_DATA")
    data.load("cifar10", "train", folder)
    (images,) = made_up.glob("cache/cifar10-train-*/images.npy")
    images.write_bytes(images.read_bytes()[:-1] + b"\x00")
    with pytest.warns(UserWarning, match="its hash differs"):
        found = data.load("cifar10", "train", folder)
    assert np.array_equal(found.images.numpy(), noise(6, 32).transpose(0, 3, 1, 2))


# CIFAR-10 itself -----------------------------------------------------------------------------------------------------

REDUCED = {
    ("cifar10-16", "train"): "a045df026fd3e172eda0fe6ad5c6f1f252334d059c9ddb8e7de7e6ade94f6e98",
    ("cifar10-16", "test"): "ebcc6bf4e962309a78a2377ea9aa5c322968409285ef17f6abf6fd507e5cf947",
    ("cifar10-8", "train"): "a2ad438532406cc30f5c02653bb99cfde8335a67584c11072cb2164f5f5e3bfc",
    ("cifar10-8", "test"): "4db942046680775511e7fb2f83d2b971f0b18cb7587b794f825435a9d16edf1c",
}
"""Hashes of the reductions of the copy that was re-encoded as JPEG."""


@pytest.fixture(scope="module")
def cifar10() -> dict[str, data.ImageData]:
    """Both splits of whatever copy there is."""
    return {split: data.load("cifar10", split, real_images() / "cifar10") for split in ("train", "test")}


def test_cifar10_is_whole(cifar10: dict[str, data.ImageData]) -> None:
    assert {split: len(part) for split, part in cifar10.items()} == {"train": 50_000, "test": 10_000}
    for part in cifar10.values():
        assert (part.images.dtype, part.image_shape) == (torch.uint8, (3, 32, 32))
        assert part.labels.bincount().tolist() == [len(part) // 10] * 10
        assert len(part.images[:1000].unique()) == 256
        assert part.images.float().std().item() * 2 / 255 == pytest.approx(part.sigma_data, abs=0.01)


def test_no_image_of_cifar10_is_in_both_splits(cifar10: dict[str, data.ImageData]) -> None:
    assert shared_images(cifar10["train"], cifar10["test"]) == []


def test_the_copy_that_was_re_encoded_is_recognised(cifar10: dict[str, data.ImageData]) -> None:
    known = [part.sha256 in data.CIFAR10_VARIANTS for part in cifar10.values()]
    if not all(known):
        pytest.skip(f"another copy of CIFAR-10, or another JPEG decoder: {cifar10['test'].caution}")
    assert {part.caution for part in cifar10.values()} == {data.JPEG_CAUTION}
    for (name, split), digest in REDUCED.items():
        assert data.load(name, split, real_images() / "cifar10").sha256 == digest  # type: ignore[arg-type]
