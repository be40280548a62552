"""Pictures decoded once, into a file of 8-bit integers that is mapped into memory from then on.

A folder of the cache holds one split in one preprocessing::

    images.npy    uint8, shape (N, 3, size, size)
    labels.npy    int64, shape (N,)
    index.json    what they are: key, shapes, hashes of the pixels and of the encoded pictures, versions of the decoders

It is made under a temporary name and renamed when it is whole; processes that want the same one wait for the first.
Decoding streams: besides the mapped file, a few batches lie in memory.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from paperlib.engine import shards
from paperlib.engine.crops import Crop
from paperlib.engine.images import pixels_sha256
from paperlib.engine.prefetch import ordered
from paperlib.engine.shards import Source

CACHE_VARIABLE = "PAPERLIB_CACHE"
"""Environment variable that names the folder of decoded images."""

FORMAT = 1
"""Raised when the same source and preprocessing give other files."""

BATCH = 64
"""Pictures decoded by a thread at a time."""


class DamagedCacheError(ValueError):
    """Decoded images that are not whole, or not what their index says."""


@dataclass(frozen=True)
class Decoded:
    """What the cache holds of a split.

    Attributes:
        images: mapped, uint8, shape (N, 3, size, size); a change of them stays in memory and never reaches the file.
        labels: int64, shape (N,).
        index: the content of index.json.
    """

    images: Tensor
    labels: Tensor
    index: dict[str, Any]


def cache_folder() -> Path:
    """``$PAPERLIB_CACHE``, else ``~/.cache/paperlib``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "paperlib")


def decoded(
    source: Source, crop: Crop, *, verify: bool = False, workers: int | None = None, progress: bool | None = None
) -> Decoded:
    """The images of a source, from the cache, or decoded into it now.

    Args:
        source: where the pictures are.
        crop: how they become squares.
        verify: hash the cached images anew, which reads all of them.
        workers: threads that decode; as many as there are processors when None.
        progress: show a bar while decoding; on terminals only when None.

    Raises:
        MissingDataError: when they are not cached and the source cannot be read.
        OSError: when the cache cannot be written or lacks room.
        ValueError: when a picture cannot be decoded.
    """
    from filelock import FileLock

    key = hashlib.sha256(f"{FORMAT} {source.identity} {crop}".encode()).hexdigest()
    folder = cache_folder() / f"{source.collection.folder}-{source.split}-{crop.name}{crop.size}-{key[:16]}"
    with _remedied(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if folder.exists():
                try:
                    return read(folder, key, verify=verify)
                except DamagedCacheError as error:
                    tqdm.write(f"{error} It is made anew.")
            _make(folder, key, source, crop, workers or os.cpu_count() or 1, progress)
    return read(folder, key)


def read(folder: Path, key: str | None = None, *, verify: bool = False) -> Decoded:
    """Map a folder of the cache.  The sizes of the files are checked and the labels hashed; the images on demand.

    Raises:
        DamagedCacheError: when it is half written, foreign (another ``key``), or differs from its index.
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        images, labels = np.load(folder / "images.npy", mmap_mode="c"), np.load(folder / "labels.npy")
        fits = (index["format"], list(images.shape), list(labels.shape)) == (FORMAT, index["shape"], index["shape"][:1])
        same_labels = hashlib.sha256(labels.tobytes()).hexdigest() == index["labels_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(f"{folder} is not a whole folder of decoded images ({error}).") from error
    if not (fits and same_labels and images.dtype == np.uint8 and labels.dtype == np.int64):
        raise DamagedCacheError(f"{folder} does not hold the images that its index describes.")
    if key is not None and index.get("key") != key:
        raise DamagedCacheError(f"{folder} was made from another source or in another way.")
    found = Decoded(torch.from_numpy(images), torch.from_numpy(labels), index)
    if verify and pixels_sha256(found.images, found.labels) != index["sha256"]:
        raise DamagedCacheError(f"{folder} has been changed since it was made: its hash differs.")
    return found


# Making it -----------------------------------------------------------------------------------------------------------


def _make(folder: Path, key: str, source: Source, crop: Crop, workers: int, progress: bool | None) -> None:
    shape = (shards.count(source), 3, crop.size, crop.size)
    if not shape[0]:
        raise shards.MissingDataError(f"{source.description} has no images.")
    with _whole_folder(folder) as part:
        _require_room(part, int(np.prod(shape)))
        images = np.lib.format.open_memmap(part / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        labels = np.full(shape[0], -1, np.int64)
        encoded = hashlib.sha256()
        enlarged = _fill(images, labels, encoded, source, crop, workers, progress)
        images.flush()
        np.save(part / "labels.npy", labels)
        index = {
            "format": FORMAT,
            "key": key,
            "shape": list(shape),
            "sha256": pixels_sha256(torch.from_numpy(images), torch.from_numpy(labels)),
            "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
            "encoded_sha256": encoded.hexdigest(),
            "enlarged": enlarged,
            "source": source.description,
            "preprocessing": crop.description,
            "versions": _versions(),
        }
        (part / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")


def _fill(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    encoded: Any,
    source: Source,
    crop: Crop,
    workers: int,
    progress: bool | None,
) -> int:
    """Decode everything into ``images`` and ``labels``, hash the encoded pictures; how many had to be enlarged."""
    first = enlarged = 0
    batches = ordered(partial(_decode, crop=crop), shards.stream(source, BATCH), workers)
    disable = None if progress is None else not progress
    bar = tqdm(total=len(images), unit="image", desc=f"decoding {source.collection.title}", disable=disable)
    with bar:
        for squares, names, digests, small in batches:
            last = first + len(squares)
            if last > len(images):
                break
            images[first:last], labels[first:last] = squares, names
            encoded.update(digests)
            first, enlarged = last, enlarged + small
            bar.update(len(squares))
    if first != len(images):
        raise ValueError(f"{source.description} has not the {len(images)} images that it announces.")
    return enlarged


def _decode(batch: tuple[list[bytes], list[int]], crop: Crop) -> tuple[NDArray[np.uint8], list[int], bytes, int]:
    """Squares, labels, hashes of the encoded pictures, and how many had to be enlarged."""
    from PIL import Image

    contents, labels = batch
    squares, digests, enlarged = [], [], 0
    for content, label in zip(contents, labels, strict=True):
        digest = hashlib.sha256(content + str(label).encode()).digest()
        try:
            with Image.open(io.BytesIO(content)) as image:
                squares.append(crop(image))
                enlarged += min(image.size) < crop.size
        except (OSError, ValueError) as error:
            raise ValueError(
                f"a picture of class {label} (hash {digest.hex()[:12]}) cannot be read: {error}"
            ) from error
        digests.append(digest)
    return np.stack(squares), labels, b"".join(digests), enlarged


def _versions() -> dict[str, str]:
    """What decoded the pictures: other versions may differ in the last bit of a JPEG."""
    import PIL
    from PIL import features

    return {
        "pillow": PIL.__version__,
        "libjpeg": str(features.version("jpg")),
        "numpy": np.__version__,
    }


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder, which takes the name of ``folder`` when the block ends well and goes when it fails.

    The caller holds the lock: what lies under the temporary name is a remnant of a killed process.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"the decoded images take {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")


@contextmanager
def _remedied(folder: Path) -> Iterator[None]:
    """Give errors of a full or read-only disk the name of the folder and a remedy."""
    try:
        yield
    except shards.MissingDataError:
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}; nothing was kept. Set {CACHE_VARIABLE} to a folder with room and write access",
            str(folder),
        ) from error
