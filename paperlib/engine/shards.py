"""Encoded images in the columns of the public Hugging Face copies: from parquet files on a disk, or from the hub.

Both come as streams, files through ``pyarrow`` and the hub through ``datasets``: no more than one file of a set lies in
memory, however many there are, and nothing is copied to the disk.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from paperlib import DISTRIBUTION

if TYPE_CHECKING:
    from datasets import IterableDataset

Split = Literal["train", "test"]

DATA_VARIABLE = "PAPERLIB_DATA"
"""Environment variable that names the folder in which each collection has its own."""


class Encoded(TypedDict):
    """An image as it lies in the image column: the content of its file, and the file's name if it is known."""

    bytes: bytes
    path: str | None


class MissingDataError(FileNotFoundError):
    """Images that are neither on the disk nor to be had from the hub; the message says how to get them."""


@dataclass(frozen=True)
class Collection:
    """A published set of images.

    Args:
        title: its name in prose.
        folder: its folder below ``$PAPERLIB_DATA``.
        hub: its identifier on the Hugging Face hub.
        image_column: the column ``{bytes, path}`` of the encoded image; labels are in ``label``.
        splits: what the published copy calls our splits.
        counts: how many images each has.
        classes: how many classes.
        licence: under which terms it may be used.
        gated: whether the hub gives it only to those who have accepted its terms.
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


CIFAR10 = Collection(
    title="CIFAR-10",
    folder="cifar10",
    hub="uoft-cs/cifar10",
    image_column="img",
    splits={"train": "train", "test": "test"},
    counts={"train": 50_000, "test": 10_000},
    classes=10,
    licence="no formal licence; made available for research by A. Krizhevsky (2009)",
)
IMAGENET = Collection(
    title="ImageNet",
    folder="imagenet",
    hub="ILSVRC/imagenet-1k",
    image_column="image",
    splits={"train": "train", "test": "validation"},
    counts={"train": 1_281_167, "test": 50_000},
    classes=1000,
    licence="ImageNet terms of access: non-commercial research and education only",
    gated=True,
)


@dataclass(frozen=True)
class Source:
    """One split of a collection, found: ``files`` on the disk, or on the hub where there are none."""

    collection: Collection
    split: Split
    files: tuple[Path, ...] = ()

    @property
    def identity(self) -> str:
        """What distinguishes it from other sources: the files' names, sizes and times of change; or the hub's name."""
        if not self.files:
            return f"hub {self.collection.hub} {self.split}"
        facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return f"{self.collection.folder} {self.split} {facts}"

    @property
    def description(self) -> str:
        """For people: where it comes from, without the folders of this machine."""
        if not self.files:
            return f"{self.collection.hub} on the Hugging Face hub"
        last = f" … {self.files[-1].name}" if len(self.files) > 1 else ""
        return f"{self.files[0].name}{last} in the columns of {self.collection.hub}"


def find(collection: Collection, split: Split, root: Path | str | None = None) -> Source:
    """Where a split of a collection is: ``root``, else ``$PAPERLIB_DATA/<folder>`` if there is one, else the hub.

    Files are ``<split>.parquet`` or ``<split>-*.parquet``, in the folder or below it, as the hub lays them out.

    Raises:
        MissingDataError: when the folder has no file of this split, or ``$PAPERLIB_DATA`` is no folder.
    """
    if root is None and (base := os.environ.get(DATA_VARIABLE)):
        configured = Path(base).expanduser()
        if not configured.is_dir():
            raise MissingDataError(f"{DATA_VARIABLE} is {base}, which is no folder; name one that exists, or unset it.")
        root = configured / collection.folder
        if not root.is_dir():
            root = None
    if root is None:
        return Source(collection, split)
    folder = Path(root).expanduser()
    name = collection.splits[split]
    files = sorted({*folder.rglob(f"{name}.parquet"), *folder.rglob(f"{name}-*.parquet")})
    if not files:
        raise MissingDataError(f"{folder} has no {name}.parquet or {name}-*.parquet. {_remedy(collection)}")
    return Source(collection, split, tuple(files))


def count(source: Source) -> int:
    """How many images a source has: what its files say, or what is known of the published set.

    Raises:
        MissingDataError: for a file that is no parquet file, or not the whole of one, naming it.
    """
    if not source.files:
        return source.collection.counts[source.split]
    return sum(_rows(path) for path in source.files)


def _rows(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return parquet.read_metadata(path).num_rows
    except pyarrow.ArrowException as error:
        pointer = path.read_bytes()[:7] == b"version"
        remedy = "is a pointer of git-lfs: run `git lfs pull` in its folder" if pointer else "is cut short or damaged"
        raise MissingDataError(f"{path} {remedy}, or fetch it again ({error}).") from error


def stream(source: Source, batch_size: int) -> Iterator[tuple[list[Encoded], list[int]]]:
    """Encoded images and labels, up to ``batch_size`` at a time, in the order of the files.

    Raises:
        MissingDataError: when they cannot be had.
        ValueError: when the files lack a column.
    """
    column = source.collection.image_column
    for batch in _of_files(source, batch_size) if source.files else _open(source).iter(batch_size=batch_size):
        yield batch[column], batch["label"]


def _of_files(source: Source, batch_size: int) -> Iterator[dict[str, Any]]:
    """The columns of the files, a batch at a time; batches end with their file."""
    import pyarrow.parquet as parquet

    columns = [source.collection.image_column, "label"]
    for path in source.files:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            _require_columns(source, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size, columns=columns):
                yield batch.to_pydict()


def _open(source: Source) -> "IterableDataset":
    """The split as ``datasets`` streams it from the hub, images still encoded."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{source.collection.title} is read with the package datasets; pip install '{DISTRIBUTION}[datasets]'."
        ) from error

    collection = source.collection
    try:
        found = datasets.load_dataset(path=collection.hub, split=collection.splits[source.split], streaming=True)
    except Exception as error:  # offline, gated, not found, no such repository: each library below has its own
        raise MissingDataError(
            f"{collection.title} ({source.split}) cannot be read from {source.description}: {error} "
            f"{_remedy(collection)}"
        ) from error
    _require_columns(source, found.column_names or list(next(iter(found))))
    return found.cast_column(collection.image_column, datasets.Image(decode=False))


def _require_columns(source: Source, columns: list[str]) -> None:
    column = source.collection.image_column
    if missing := {column, "label"} - set(columns):
        raise ValueError(
            f"{source.description}: the columns must be {column} and label, found {', '.join(columns)} and no "
            f"{', '.join(sorted(missing))}."
        )


def _remedy(collection: Collection) -> str:
    accept = f"accept its terms at https://huggingface.co/datasets/{collection.hub}, log in (hf auth login) and " * (
        collection.gated
    )
    return (
        f"To have {collection.title}: {accept}run `hf download {collection.hub} --repo-type dataset --local-dir "
        f"DIR/{collection.folder}` on a machine with a connection, and set {DATA_VARIABLE} to DIR here."
    )
