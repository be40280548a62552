"""Pictures in files to squares of 8-bit integers, decoded once and mapped into memory from then on.

:func:`find` says where a :class:`Collection` lies: in parquet files, read through ``pyarrow``, or on the Hugging Face
hub, through ``datasets``.  A :class:`Crop` makes squares of pictures.  :func:`decoded` keeps them, a folder of the
cache for one split in one crop::

    images.npy    uint8, shape (N, 3, size, size)
    labels.npy    int64, shape (N,)
    index.json    what they are: key, shapes, hashes of the pixels and of the encoded pictures, versions of the decoders

The index is written last, and without it nothing counts; processes that want the same one wait for the first.
Everything streams: besides the mapped file, a few batches lie in memory, and no more than one parquet file.
"""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import PIL
import PIL.features
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor
from tqdm import tqdm

from paperlib import DISTRIBUTION
from paperlib.checks import require_positive
from paperlib.files import DamagedFileError, UnwritableError, explained, flush, held, write_text

Split = Literal["train", "test"]
Item = TypeVar("Item")
Result = TypeVar("Result")

DATA_VARIABLE = "PAPERLIB_DATA"
"""Environment variable that names the folder in which each collection has its own."""
CACHE_VARIABLE = "PAPERLIB_CACHE"
"""Environment variable that names the folder of decoded images."""
HINT = f"{CACHE_VARIABLE} names the folder of decoded images."

FORMAT = 1
"""Raised when the same source and crop give other files."""
HASHED = 2**30
"""Bytes of images up to which they are hashed at every reading; larger ones when their file was touched since."""
BATCH = 16
"""Pictures decoded by a thread at a time; twice as many for every thread lie in memory."""


class MissingDataError(FileNotFoundError):
    """Images that are neither on the disk nor to be had from the hub; the message says how to get them."""


# Squares -------------------------------------------------------------------------------------------------------------


def _none(image: Image.Image, size: int) -> Image.Image:
    if image.size != (size, size):
        raise ValueError(f"the picture is {image.width}×{image.height}, not {size}×{size}.")
    return image


def _adm(image: Image.Image, size: int) -> Image.Image:
    # Dhariwal & Nichol (2021), guided-diffusion, center_crop_arr
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    ratio = size / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _area(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Resampling.BOX, box=(left, top, left + side, top + side))


CROPS: dict[str, tuple[Callable[[Image.Image, int], Image.Image], str]] = {
    "none": (_none, "none: {size}×{size} as decoded"),
    "adm": (
        _adm,
        "halved by 2×2 box means to below twice the size, bicubic, centre crop to {size}×{size} (as for ADM)",
    ),
    "area": (_area, "centre crop to a square, box-filter area means to {size}×{size}"),
}
"""The ways to make squares, each with its description."""

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of PIL that become 8-bit RGB without loss of precision."""


def require_eight_bits(image: Image.Image) -> None:
    """ValueError for pictures of more than 8 bits, also where PIL would halve their digits: 16-bit RGB has mode RGB."""
    stored = str(getattr(image, "tile", ""))  # what the decoder is told, until it has been used
    if image.mode not in EIGHT_BITS or ";16" in stored:
        depth = ", with 16 bits a value" if ";16" in stored else ""
        raise ValueError(
            f"the picture has mode {image.mode}{depth}; only 8-bit pictures ({', '.join(EIGHT_BITS)}) are read."
        )


@dataclass(frozen=True)
class Crop:
    """A way to make squares of ``size`` × ``size`` pixels, one of :data:`CROPS`.

    Raises:
        ValueError: for an unknown name, or a size below 1.
    """

    name: str
    size: int

    def __post_init__(self) -> None:
        if self.name not in CROPS:
            raise ValueError(f"unknown crop {self.name!r}; choose one of {', '.join(CROPS)}.")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}.")

    @property
    def description(self) -> str:
        """For people."""
        return CROPS[self.name][1].format(size=self.size)

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """The square, uint8, shape (3, size, size); no value passes through anything but the resampling itself.

        Raises:
            ValueError: for pictures of more than 8 bits, and where "none" finds another size.
        """
        require_eight_bits(image)
        square = np.asarray(CROPS[self.name][0](image.convert("RGB"), self.size))
        return np.ascontiguousarray(square.transpose(2, 0, 1))


# Sources -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collection:
    """A published set of images, as the Hugging Face hub has it.

    Args:
        title: its name in prose.
        folder: its folder below ``$PAPERLIB_DATA``.
        hub: its identifier on the hub.
        image_column: the column ``{bytes, path}`` of the encoded image.
        splits: what the published copy calls our splits.
        counts: how many images each has.
        classes: how many classes, numbered from 0 in the column ``label``; 0 where there is no such column.
        licence: under which terms it may be used.
        gated: whether the hub gives it only to those who have accepted its terms.
        revision: the commit of the copy on the hub; None takes the newest.
        made: how the files are made from that copy, where they are a part of it that nobody publishes.
    """

    title: str
    folder: str
    hub: str
    image_column: str
    splits: Mapping[Split, str]
    counts: Mapping[Split, int]
    classes: int
    licence: str
    gated: bool = False
    revision: str | None = None
    made: str = ""

    def located(self, root: Path | str | None = None) -> Path | None:
        """The folder of its files: ``root``, else ``$PAPERLIB_DATA/<folder>`` if there is one, else none: the hub.

        Raises:
            MissingDataError: when ``$PAPERLIB_DATA`` is no folder.
        """
        if root is not None:
            return Path(root).expanduser()
        if not (base := os.environ.get(DATA_VARIABLE)):
            return None
        if not Path(base).expanduser().is_dir():
            raise MissingDataError(f"{DATA_VARIABLE} is {base}, which is no folder; name one that exists, or unset it.")
        folder = Path(base).expanduser() / self.folder
        return folder if folder.is_dir() else None

    @property
    def remedy(self) -> str:
        """How to have its files."""
        if self.made:
            return f"To have {self.title}: {self.made}, as DIR/{self.folder}, and set {DATA_VARIABLE} to DIR."
        terms = f"accept its terms at https://huggingface.co/datasets/{self.hub}, log in (hf auth login) and "
        revision = f"--revision {self.revision} " if self.revision else ""
        return (
            f"To have {self.title}: {terms * self.gated}run `hf download {self.hub} {revision}--repo-type dataset "
            f"--local-dir DIR/{self.folder}` on a machine with a connection, and set {DATA_VARIABLE} to DIR here."
        )


@dataclass(frozen=True)
class Source:
    """One split of a collection, found: ``files`` on the disk, or on the hub where there are none."""

    collection: Collection
    split: Split
    files: tuple[Path, ...] = ()

    @property
    def identity(self) -> str:
        """What tells it from other sources: name, size and time of each file; or its name and revision on the hub."""
        if not self.files:
            return f"hub {self.collection.hub} {self.collection.revision} {self.split}"
        facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return f"{self.collection.folder} {self.split} {facts}"

    @property
    def description(self) -> str:
        """For people: where it comes from, without the folders of this machine."""
        if not self.files:
            revision = f", revision {self.collection.revision}" if self.collection.revision else ""
            return f"{self.collection.hub} on the Hugging Face hub{revision}"
        last = f" … {self.files[-1].name}" if len(self.files) > 1 else ""
        return f"{self.files[0].name}{last} in the columns of {self.collection.hub}"

    def count(self) -> int:
        """How many images its files say they have, or the published set has.

        Raises:
            MissingDataError: for a file that is no parquet file, or not the whole of one, naming it.
        """
        if not self.files:
            return self.collection.counts[self.split]
        import pyarrow
        import pyarrow.parquet as parquet

        count = 0
        for path in self.files:
            try:
                count += parquet.read_metadata(path).num_rows
            except pyarrow.ArrowException as error:
                pointer = path.read_bytes()[:7] == b"version"
                fault = "a pointer of git-lfs: run `git lfs pull` in its folder" if pointer else "cut short or damaged"
                raise MissingDataError(f"{path} is {fault}, or fetch it again ({error}).") from error
        return count

    def stream(self, batch_size: int) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
        """Encoded images ``{bytes, path}`` and labels, up to ``batch_size`` at a time, in the order of the files.

        Raises:
            MissingDataError: when they cannot be had.
            ValueError: when a column is missing.
        """
        for batch in self._from_files(batch_size) if self.files else self._from_hub(batch_size):
            images = batch[self.collection.image_column]
            yield images, batch["label"] if self.collection.classes else [0] * len(images)

    def _from_files(self, batch_size: int) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet as parquet

        for path in self.files:
            with parquet.ParquetFile(path, pre_buffer=False) as file:
                columns = self._columns(file.schema_arrow.names)
                for batch in file.iter_batches(batch_size, columns=columns):
                    yield batch.to_pydict()

    def _from_hub(self, batch_size: int) -> Iterator[dict[str, Any]]:
        collection = self.collection
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                f"{collection.title} is read with the package datasets; pip install '{DISTRIBUTION}[datasets]'."
            ) from error
        try:
            # No other option: each becomes part of the name under which `datasets` looks for a copy when offline.
            found = datasets.load_dataset(
                path=collection.hub, split=collection.splits[self.split], streaming=True, revision=collection.revision
            )
        except Exception as error:  # offline, gated, not found, no such repository: each library below has its own
            raise MissingDataError(
                f"{collection.title} ({self.split}) cannot be read from {self.description}: {error} {collection.remedy}"
            ) from error
        self._columns(found.column_names or list(next(iter(found))))
        yield from found.cast_column(collection.image_column, datasets.Image(decode=False)).iter(batch_size)

    def _columns(self, found: list[str]) -> list[str]:
        columns = [self.collection.image_column] + ["label"] * (self.collection.classes > 0)
        if missing := set(columns) - set(found):
            raise ValueError(
                f"{self.description}: the columns must be {' and '.join(columns)}, found {', '.join(found)} and no "
                f"{', '.join(sorted(missing))}."
            )
        return columns


def find(collection: Collection, split: Split, root: Path | str | None = None) -> Source:
    """A split of a collection, where :meth:`Collection.located` says.

    Files are ``<split>.parquet`` or ``<split>-*.parquet``, in the folder or one below it, as the hub lays them out.

    Raises:
        MissingDataError: when the folder has no file of this split, or not all of ``<split>-00000-of-00003.parquet`` …;
            when there is no folder of a collection that the hub does not have.
        ValueError: when they lie in several folders, as snapshots of the hub do.
    """
    folder, name = collection.located(root), collection.splits[split]
    if folder is None:
        if collection.made:
            raise MissingDataError(f"{collection.title} is not on the hub. {collection.remedy}")
        return Source(collection, split)
    files = sorted({*folder.rglob(f"{name}.parquet"), *folder.rglob(f"{name}-*.parquet")})
    if not files:
        raise MissingDataError(f"{folder} has no {name}.parquet or {name}-*.parquet. {collection.remedy}")
    if len(folders := sorted({str(path.parent) for path in files})) > 1:
        raise ValueError(
            f"the {name} files lie in several folders, which may be copies: {', '.join(folders)}; keep one."
        )
    expected = (f"{name}-{number:05d}-of-{len(files):05d}" for number in range(len(files)))
    whole = all(path.name.startswith(prefix) for path, prefix in zip(files, expected, strict=True))
    if not whole and any("-of-" in path.name for path in files):
        raise MissingDataError(
            f"{files[0].parent} must hold each of the {name} files once, numbered as {name}-00000-of-00003, and has "
            f"{', '.join(path.name for path in files)}. {collection.remedy}"
        )
    return Source(collection, split, tuple(files))


# The cache -----------------------------------------------------------------------------------------------------------


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
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/paperlib").expanduser()


def pixels_sha256(shape: Iterable[int], pixels: Iterable[Any], labels: Any) -> str:
    """What images are known by: the hash of their shape, their pixels, in parts of any size, and their labels."""
    digest = hashlib.sha256(str(tuple(shape)).encode())
    for part in chain(pixels, [labels]):
        digest.update(part)
    return digest.hexdigest()


def decoded(source: Source, crop: Crop, workers: int | None = None) -> Decoded:
    """The images of a source, from the cache, or decoded into it now.

    Args:
        source: where the pictures are.
        crop: how they become squares.
        workers: threads that decode; as many as there are processors when None.

    Raises:
        MissingDataError: when they are not cached and the source cannot be read.
        OSError: when the cache cannot be written or lacks room.
        ValueError: when a picture cannot be decoded.
    """
    key = hashlib.sha256(f"{FORMAT} {source.identity} {crop}".encode()).hexdigest()
    folder = cache_folder() / f"{source.collection.folder}-{source.split}-{crop.name}{crop.size}-{key[:16]}"
    with suppress(DamagedFileError):
        return read(folder, key)  # needs no lock, hence no right to write
    with held(folder.with_name(f"{folder.name}.lock"), hint=HINT):
        if folder.exists():
            try:
                return read(folder, key)  # another process made it meanwhile
            except DamagedFileError as error:
                warnings.warn(f"{error} It is made anew.", stacklevel=3)
            shutil.rmtree(folder)
        try:
            _make(folder, key, source, crop, workers or os.cpu_count() or 1)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return read(folder, key)


def read(folder: Path, key: str) -> Decoded:
    """Map a folder of the cache, and see that it holds what its index says.

    Sizes are checked and hashes made anew; that of images above :data:`HASHED` bytes only when their file was touched
    since it was made.

    Raises:
        DamagedFileError: when it is half written, foreign (another ``key``), or differs from its index.
    """
    path = folder / "images.npy"
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        images, labels = np.load(path, mmap_mode="c"), np.load(folder / "labels.npy")
        described = (index["format"], index["key"], index["shape"], index["labels_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{folder} is not a whole folder of decoded images ({error}).") from error
    found = (FORMAT, key, list(images.shape), hashlib.sha256(labels.tobytes()).hexdigest())
    if found != described or (images.dtype, labels.dtype) != (np.uint8, np.int64):
        raise DamagedFileError(f"{folder} does not hold the images that are wanted and that its index describes.")
    if images.nbytes <= HASHED or path.stat().st_mtime_ns != index.get("modified"):
        with path.open("rb") as file:  # past the mapping: what is read through it stays in memory
            file.seek(images.offset)
            sha256 = pixels_sha256(images.shape, iter(partial(file.read, 2**20), b""), labels)
        if sha256 != index["sha256"]:
            raise DamagedFileError(f"{folder} has been changed since it was made: its hash differs.")
    return Decoded(torch.from_numpy(images), torch.from_numpy(labels), index)


def _make(folder: Path, key: str, source: Source, crop: Crop, workers: int) -> None:
    collection, shape = source.collection, (source.count(), 3, crop.size, crop.size)
    if shape[0] > collection.counts[source.split]:
        raise ValueError(
            f"{source.description} has {shape[0]:,} images, more than the {collection.counts[source.split]:,} of "
            f"{collection.title}: keep one copy of each."
        )
    numbers: list[int] = []
    enlarged, pixels, encoded = 0, hashlib.sha256(str(shape).encode()), hashlib.sha256()
    folder.mkdir()
    bar = tqdm(total=shape[0], unit="image", desc=f"decoding {collection.title}", disable=None)  # but on a terminal
    with (folder / "images.npy").open("wb") as file, bar:
        if (free := shutil.disk_usage(folder).free) < (size := math.prod(shape)):
            needed = f"{size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
            raise UnwritableError(errno.ENOSPC, f"cannot write {folder}: {needed}. {HINT}")
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for batch in ordered(partial(_decode, crop=crop), source.stream(BATCH), workers):
            with explained(folder, HINT):
                file.write(batch.pixels)
                file.flush()
            pixels.update(batch.pixels)
            encoded.update(batch.encoded)
            numbers += batch.labels
            enlarged += batch.enlarged
            bar.update(len(batch.labels))
    labels, last = np.array(numbers, np.int64), max(1, collection.classes) - 1
    if len(labels) != shape[0]:
        raise ValueError(f"{source.description} announces {shape[0]:,} images and has {len(labels):,}.")
    if not len(labels) or not 0 <= labels.min() <= labels.max() <= last:
        found = f"{labels.min()} to {labels.max()}" if len(labels) else "no images"
        raise ValueError(f"{source.description}: labels must lie in 0 … {last}, found {found}.")
    pixels.update(labels.tobytes())
    with explained(folder, HINT):
        np.save(folder / "labels.npy", labels)
        for path in folder.iterdir():
            flush(path)
    index = {
        "format": FORMAT,
        "key": key,
        "shape": shape,
        "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
        "modified": (folder / "images.npy").stat().st_mtime_ns,
        "sha256": pixels.hexdigest(),
        "encoded_sha256": encoded.hexdigest(),
        "enlarged": enlarged,
        "source": source.description,
        "preprocessing": crop.description,
        # other versions may differ in the last bit of a JPEG
        "versions": {"pillow": PIL.__version__, "libjpeg": str(PIL.features.version("jpg")), "numpy": np.__version__},
    }
    write_text(folder / "index.json", json.dumps(index, indent=1, ensure_ascii=False))


class _Squares(NamedTuple):
    """A batch of decoded pictures; ``encoded`` are the hashes of each picture as it was encoded, and its label."""

    pixels: bytes
    labels: list[int]
    encoded: bytes
    enlarged: int


def _decode(batch: tuple[list[dict[str, Any]], list[int]], crop: Crop) -> _Squares:
    squares, digests, enlarged = [], [], 0
    for encoded, label in zip(*batch, strict=True):
        if encoded is None or encoded["bytes"] is None:
            raise ValueError(
                f"a picture of class {label} has no bytes, only the path {encoded and encoded['path']!r}: the files "
                f"must hold the content of the pictures. Write them anew with it, as `datasets` does by embedding."
            )
        if label is None:
            raise ValueError(f"the picture {encoded['path'] or len(digests)} has no label; fill the column, from 0.")
        digests.append(hashlib.sha256(encoded["bytes"] + str(label).encode()).digest())
        try:
            with Image.open(io.BytesIO(encoded["bytes"])) as image:
                squares.append(crop(image).tobytes())
                enlarged += min(image.size) < crop.size
        except (OSError, ValueError) as error:
            name = encoded["path"] or f"with hash {digests[-1].hex()[:12]}"
            raise ValueError(f"the picture {name} of class {label} cannot be read: {error}") from error
    return _Squares(b"".join(squares), batch[1], b"".join(digests), enlarged)


# Threads -------------------------------------------------------------------------------------------------------------


def ordered(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``map(function, items)``, done ahead by ``workers`` threads, its results in the order of the items.

    Threads, not processes: decoding, resizing and gathering of images let other threads run, and threads need no
    start-up, no copies between processes and no guard around the caller's main module.

    Args:
        function: safe to run in several threads.
        items: taken one by one, no sooner than needed; may never end.
        workers: threads; 0 does everything in the caller's.  Twice as many results lie finished or in work.

    Raises:
        ValueError: for a negative number of workers.
    """
    require_positive("workers", workers, or_zero=True)
    if workers == 0:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="paperlib") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
