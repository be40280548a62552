"""Pictures decoded once, into a file of 8-bit integers that is mapped into memory from then on.

A folder of the cache holds one split in one preprocessing::

    images.npy    uint8, shape (N, 3, size, size)
    labels.npy    int64, shape (N,)
    index.json    what they are: key, shapes, hashes of the pixels and of the encoded pictures, versions of the decoders

It is made under a temporary name and renamed when it is whole; processes that want the same one wait for the first.
Decoding streams: besides the mapped file, a few batches lie in memory.
"""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from paperlib.engine import shards
from paperlib.engine.crops import Crop
from paperlib.engine.prefetch import ordered
from paperlib.engine.shards import Encoded, Source
from paperlib.files import UnwritableError, explained, flush

CACHE_VARIABLE = "PAPERLIB_CACHE"
"""Environment variable that names the folder of decoded images."""

FORMAT = 1
"""Raised when the same source and preprocessing give other files."""

HASHED = 2**30
"""Bytes of images up to which they are hashed at every reading; larger ones when their file was touched since."""

BATCH = 16
"""Pictures decoded by a thread at a time; twice as many for every thread lie in memory."""


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
        verify: hash the cached images anew also where they are larger than :data:`HASHED`, which reads all of them.
        workers: threads that decode; as many as there are processors when None.
        progress: show a bar while decoding; on terminals only when None.

    Raises:
        MissingDataError: when they are not cached and the source cannot be read.
        OSError: when the cache cannot be written or lacks room.
        ValueError: when a picture cannot be decoded.
    """
    key = hashlib.sha256(f"{FORMAT} {source.identity} {crop}".encode()).hexdigest()
    folder = cache_folder() / f"{source.collection.folder}-{source.split}-{crop.name}{crop.size}-{key[:16]}"
    with suppress(DamagedCacheError):
        return read(folder, key, verify=verify)  # needs no lock, hence no right to write
    with _locked(folder):
        if folder.exists():
            try:
                return read(folder, key, verify=verify)  # another process made it meanwhile
            except DamagedCacheError as error:
                warnings.warn(f"{error} It is made anew.", stacklevel=3)
        _make(folder, key, source, crop, workers or os.cpu_count() or 1, progress)
        return read(folder, key)


def read(folder: Path, key: str | None = None, *, verify: bool = False) -> Decoded:
    """Map a folder of the cache, and see that it holds what its index says.

    Sizes are checked and hashes made anew; that of images above :data:`HASHED` bytes only when their file was touched
    since it was made, or on demand.

    Raises:
        DamagedCacheError: when it is half written, foreign (another ``key``), or differs from its index.
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        images, labels = np.load(folder / "images.npy", mmap_mode="c"), np.load(folder / "labels.npy")
        described = (index["format"], index["shape"], index["shape"][:1], index["labels_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(f"{folder} is not a whole folder of decoded images ({error}).") from error
    found = (FORMAT, list(images.shape), list(labels.shape), hashlib.sha256(labels.tobytes()).hexdigest())
    longer = (folder / "images.npy").stat().st_size != images.offset + images.nbytes
    if found != described or longer or (images.dtype, labels.dtype) != (np.uint8, np.int64):
        raise DamagedCacheError(f"{folder} does not hold the images that its index describes.")
    if key is not None and index.get("key") != key:
        raise DamagedCacheError(f"{folder} was made from another source or in another way.")
    content = Decoded(torch.from_numpy(images), torch.from_numpy(labels), index)
    touched = (folder / "images.npy").stat().st_mtime_ns != index.get("modified")
    hashed = verify or touched or images.nbytes <= HASHED
    if hashed and _file_sha256(folder / "images.npy", images.offset, images.shape, labels) != index["sha256"]:
        raise DamagedCacheError(f"{folder} has been changed since it was made: its hash differs.")
    return content


def _file_sha256(path: Path, offset: int, shape: tuple[int, ...], labels: NDArray[np.int64]) -> str:
    """``images.pixels_sha256`` of images in a file, which are read past the mapping: what is mapped stays in memory."""
    digest = hashlib.sha256(str(shape).encode())
    with path.open("rb") as file:
        file.seek(offset)
        while part := file.read(2**20):
            digest.update(part)
    digest.update(labels.tobytes())
    return digest.hexdigest()


# Making it -----------------------------------------------------------------------------------------------------------


class _Squares(NamedTuple):
    """A batch of decoded pictures."""

    pixels: bytes
    labels: list[int]
    encoded: bytes
    """The hash of each picture as it was encoded, and its label."""
    enlarged: int
    """How many were smaller than what was made of them."""


def _make(folder: Path, key: str, source: Source, crop: Crop, workers: int, progress: bool | None) -> None:
    shape = (shards.count(source), 3, crop.size, crop.size)
    batches = ordered(partial(_decode, crop=crop), shards.stream(source, BATCH), workers)
    bar = tqdm(total=shape[0], unit="image", desc=f"decoding {source.collection.title}", disable=_hidden(progress))
    with _whole_folder(folder) as part, bar:
        with _remedied(folder):
            _require_room(part, math.prod(shape))
        labels, facts = _write(part / "images.npy", shape, batches, bar)
        if len(labels) != shape[0]:
            raise ValueError(f"{source.description} announces {shape[0]:,} images and has {len(labels):,}.")
        _require_labels(labels, source)
        index = {
            "format": FORMAT,
            "key": key,
            "shape": list(shape),
            "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
            "modified": (part / "images.npy").stat().st_mtime_ns,
            **facts,
            "source": source.description,
            "preprocessing": crop.description,
            "versions": _versions(),
        }
        with _remedied(folder):
            np.save(part / "labels.npy", labels)
            (part / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")


def _write(
    path: Path, shape: tuple[int, ...], batches: Iterable[_Squares], bar: "tqdm[Any]"
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Append the squares to a file in numpy's format; their labels, and what there is to say of both."""
    labels, enlarged = [], 0
    pixels, encoded = hashlib.sha256(str(shape).encode()), hashlib.sha256()
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for batch in batches:
            with _remedied(path.parent):
                file.write(batch.pixels)
            pixels.update(batch.pixels)
            encoded.update(batch.encoded)
            labels += batch.labels
            enlarged += batch.enlarged
            bar.update(len(batch.labels))
    numbers = np.array(labels, np.int64)
    pixels.update(numbers.tobytes())
    facts = {"sha256": pixels.hexdigest(), "encoded_sha256": encoded.hexdigest(), "enlarged": enlarged}
    return numbers, facts


def _decode(batch: tuple[list[Encoded], list[int]], crop: Crop) -> _Squares:
    """A batch as it is stored.

    Raises:
        ValueError: naming the picture that cannot be read.
    """
    from PIL import Image

    squares, digests, enlarged = [], [], 0
    for encoded, label in zip(*batch, strict=True):
        if encoded is None or encoded["bytes"] is None:
            raise ValueError(
                f"a picture of class {label} has no bytes, only the path {encoded and encoded['path']!r}: the files "
                f"must hold the content of the pictures. Write them anew with it, as `datasets` does by embedding."
            )
        digest = hashlib.sha256(encoded["bytes"] + str(label).encode()).digest()
        try:
            with Image.open(io.BytesIO(encoded["bytes"])) as image:
                squares.append(crop(image).tobytes())
                enlarged += min(image.size) < crop.size
        except (OSError, ValueError) as error:
            name = encoded["path"] or f"with hash {digest.hex()[:12]}"
            raise ValueError(f"the picture {name} of class {label} cannot be read: {error}") from error
        digests.append(digest)
    return _Squares(b"".join(squares), batch[1], b"".join(digests), enlarged)


def _require_labels(labels: NDArray[np.int64], source: Source) -> None:
    classes = source.collection.classes
    if labels.size == 0 or not 0 <= labels.min() <= labels.max() < classes:
        found = f"{labels.min()} to {labels.max()}" if labels.size else "no images"
        raise ValueError(f"{source.description}: labels must lie in 0 … {classes - 1}, found {found}.")


def _hidden(progress: bool | None) -> bool | None:
    """The same for tqdm, which takes None for "unless on a terminal"."""
    return None if progress is None else not progress


def _versions() -> dict[str, str]:
    """What decoded the pictures: other versions may differ in the last bit of a JPEG."""
    import PIL
    from PIL import features

    return {"pillow": PIL.__version__, "libjpeg": str(features.version("jpg")), "numpy": np.__version__}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that was killed is free."""
    from filelock import FileLock

    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    with _remedied(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
        for path in part.iterdir():
            flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free", str(folder))


@contextmanager
def _remedied(folder: Path) -> Iterator[None]:
    """Say where else decoded images can go when ``folder`` cannot be written."""
    try:
        with explained(folder):
            yield
    except UnwritableError as error:
        detail = f" ({error.__cause__.strerror})" if isinstance(error.__cause__, OSError) else ""
        raise UnwritableError(
            error.errno, f"{error.strerror}{detail} {CACHE_VARIABLE} names the folder of decoded images."
        ) from error
