"""Images as they are trained on: integers, one fixed split, a hash that says which; and the batches of a step.

:class:`ImageData` is a split in memory or in a mapped file.  Its values stay the integers that they were;
:func:`scale` is the one place where they become real numbers, and :func:`to_uint8` its inverse.

:func:`load` knows the data sets of the table :data:`DATASETS`: scikit-learn's digits, CIFAR-10 and its box means at
16×16 and 8×8, ImageNet at four sizes, cropped as for ADM, and a sample of 1,000 pictures of it without their classes.
One's own are one more entry, a folder of pictures, parquet files, or arrays from anywhere (docs/howto/data.md shows
one each); a package adds it for profiles and the command line too, see :mod:`paperlib.registry`.

:func:`batches` takes them to the device.  The order is a function of (seed, epoch), and a step's place in it of the
step alone: a run can begin anywhere, and any number of processes can share a batch by taking slices of its indices.
Nothing here keeps a position.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from paperlib.checks import require_finite, require_positive
from paperlib.engine.decode import (
    Collection,
    Crop,
    MissingDataError,
    Split,
    decoded,
    find,
    ordered,
    pixels_sha256,
    require_eight_bits,
)
from paperlib.engine.randomness import seeded
from paperlib.registry import Registry


def scale(images: Tensor, levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Integers 0 … levels − 1 to [−1, 1]: 2 v/(levels − 1) − 1.  Any shape."""
    return 2 * images.to(dtype) / (levels - 1) - 1


def to_uint8(x: Tensor, levels: int) -> Tensor:
    """Real numbers to the nearest integers 0 … levels − 1, the inverse of :func:`scale`; what lies outside is clamped.

    Raises:
        ValueError: for NaN and infinities.
    """
    require_finite("x", x)
    return ((x + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A split of a data set.

    Args:
        name: data set and split, for example "digits/train"; :func:`load` says so.
        images: uint8, shape (N, C, H, W), values below ``levels``; may be a mapped file.
        labels: int64, shape (N,), from 0; left out for images without: all 0, the null class of a network without.
        levels: number of values that a pixel can take, 256 for 8-bit images.
        sigma_data: the standard deviation of the scaled data that networks and F-prediction are told; 0.5 is that of
            photographs.
        licence: under which terms the images may be used.
        preprocessing: what was done to the pictures before they were these integers.
        caution: what must be said beside every number measured on them; empty where there is nothing.
        source: where they come from.
        classes: how many classes there are, which a part of a set may not show; one more than the largest label when
            None, 0 without labels.

    Raises:
        TypeError: for other dtypes.
        ValueError: for shapes that do not fit, values out of range, or no images.
    """

    name: str
    images: Tensor
    labels: Tensor = None  # type: ignore[assignment]  # a tensor from __post_init__ on
    levels: int = 256
    sigma_data: float = 0.5
    licence: str = ""
    preprocessing: str = ""
    caution: str = ""
    source: str = ""
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.labels is None:
            object.__setattr__(self, "labels", torch.zeros(len(self.images), dtype=torch.int64))
            object.__setattr__(self, "classes", 0)
        for what, values, dtype, remedy in (
            ("images", self.images, torch.uint8, "real-valued images go through to_uint8(x, levels) first"),
            ("labels", self.labels, torch.int64, "use labels.long()"),
        ):
            if not isinstance(values, Tensor):
                raise TypeError(f"{what} must be a tensor, got {type(values).__name__}; use torch.from_numpy.")
            if values.dtype != dtype:
                raise TypeError(f"{what} must be {dtype}, got {values.dtype}; {remedy}.")
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1] or not len(self.images):
            raise ValueError(
                f"images must have shape (N, C, H, W) and labels (N,), N ≥ 1; got {tuple(self.images.shape)} and "
                f"{tuple(self.labels.shape)}."
            )
        if self.images.shape[1] > 4 and self.images.shape[3] in (1, 3, 4):
            raise ValueError(
                f"images of shape {tuple(self.images.shape)} look like (N, H, W, C), and (N, C, H, W) is expected; use "
                f"images.permute(0, 3, 1, 2)."
            )
        require_positive("sigma_data", self.sigma_data)
        # All of uint8 lies below 256: files of many gigabytes need not be read for that.
        if not 2 <= self.levels <= 256 or (self.levels < 256 and self.images.max() >= self.levels):
            raise ValueError(f"pixels must lie in 0 … levels − 1 = {self.levels - 1}, got {self.images.max().item()}.")
        if self.labels.min() < 0:
            raise ValueError(f"labels must be 0 or more, got {self.labels.min().item()}.")
        if self.classes is not None and self.labels.max() >= max(1, self.classes):
            raise ValueError(f"labels of {self.classes} classes must be less, or 0 for none; got {self.labels.max()}.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @cached_property
    def num_classes(self) -> int:
        """Number of classes; 0 for images without labels."""
        return int(self.labels.max()) + 1 if self.classes is None else self.classes

    @cached_property
    def sha256(self) -> str:
        """Hash of shape, images and labels."""
        pixels = self.images.contiguous().cpu().flatten().numpy()
        return pixels_sha256(self.images.shape, [pixels], self.labels.contiguous().cpu().numpy())

    def known_as(self, sha256: str) -> "ImageData":
        """Itself, told its own hash, where that need not be computed; images made of it have to find out theirs."""
        vars(self)["sha256"] = sha256
        return self

    def scaled(self, dtype: torch.dtype = torch.float32, first: int | None = None) -> Tensor:
        """The images in [−1, 1], shape (N, C, H, W): all of them, or the ``first`` so many."""
        return scale(self.images[:first], self.levels, dtype)

    def provenance(self) -> dict[str, Any]:
        """What a manifest or a model card says of the data, as plain values."""
        return {
            "name": self.name,
            "images": len(self),
            "shape": list(self.image_shape),
            "levels": self.levels,
            "sha256": self.sha256,
            "licence": self.licence,
            "preprocessing": self.preprocessing,
            "caution": self.caution,
            "source": self.source,
        }


# Batches -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """The images in the order of epoch 0, 1, …: a permutation of 0 … size − 1, kept, and not to be changed."""
    return torch.randperm(size, generator=seeded(seed, "epoch", epoch))


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> Tensor:
    """Images of step 0, 1, …: the data in a new random order every epoch, epochs following on without a gap.

    Returns:
        Indices below ``size``, shape (batch_size,).

    Raises:
        ValueError: for a negative step, or no images.
    """
    if step < 0 or batch_size < 1 or size < 1:
        raise ValueError(
            f"step must be 0 or more, batch_size and size at least 1; got step {step}, batch_size {batch_size}, "
            f"size {size}."
        )
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // size, (last - 1) // size + 1)
    parts = [epoch_order(seed, epoch, size)[max(first - epoch * size, 0) : last - epoch * size] for epoch in epochs]
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one step, on the device.

    Attributes:
        index: which they are, int64, shape (B,).
        images: uint8, shape (B, C, H, W).
        labels: int64, shape (B,).
    """

    index: Tensor
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.index)


def batches(
    data: ImageData, indices: Iterable[Tensor], device: torch.device | str, workers: int = 0
) -> Iterator[Batch]:
    """The batches that ``indices`` name, one after another, on the device.

    Args:
        data: in memory, in a mapped file, or on the device already.
        indices: of each batch, shape (B,); in a run of several processes, the slices of this one.  Taken a few batches
            ahead where there are workers; may never end.
        device: where the batches go.
        workers: threads that read ahead, so that the disk and the copy to a GPU cost no time; 0 reads when asked.

    Raises:
        IndexError: for indices outside the data.
        ValueError: for a negative number of workers.
    """
    device = torch.device(device)
    pin = device.type == "cuda" and data.images.device.type == "cpu"

    def gather(index: Tensor) -> list[Tensor]:
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(data):
            raise IndexError(
                f"indices must lie in 0 … {len(data) - 1}, the images of {data.name}; got {int(index.min())} to "
                f"{int(index.max())}."
            )
        at = index.to(data.images.device, torch.int64)
        # index_select is ten times as fast as data.images[at]
        found = [at, data.images.index_select(0, at), data.labels.index_select(0, at.to(data.labels.device))]
        return [tensor.pin_memory() for tensor in found] if pin else found

    # from page-locked memory a GPU copies by itself, and nobody waits for it
    return (
        Batch(*(tensor.to(device, non_blocking=True) for tensor in found))
        for found in ordered(gather, indices, workers)
    )


# Data sets -----------------------------------------------------------------------------------------------------------

DIGITS_TRAIN = 1500
"""Images of scikit-learn's digits that are trained on; the other 297 are the test split."""
DIGITS_SHA256 = {
    "train": "12dd450059872083e51aca94e01edf572eb0c1e3ca2b5ae8ddf73c743d320c5e",
    "test": "fbcd3a942bc89d129ef1eeeda01b67b192938e82ef730b4114951b7c9c00ef9b",
}
"""Hashes of the two splits: no change of a library can mix them unnoticed."""

JPEG_CAUTION = "JPEG re-encoded (quality 75): bits/dim and FID are not comparable with published CIFAR-10 figures"
CIFAR10_VARIANTS = {
    "a0f32c1ff4c2aa530e3970edb62878a1a62b4daac49c67f274e225b82f83cc66": JPEG_CAUTION,
    "9e794f67993ae7399fe08faea1461d0a55b5a78a4f76b50df93141033672b1a2": JPEG_CAUTION,
}
"""Known copies of CIFAR-10, by the hash of their pixels, and what must be said of them."""

CIFAR10 = Collection(
    title="CIFAR-10",
    folder="cifar10",
    hub="uoft-cs/cifar10",
    image_column="img",
    splits={"train": "train", "test": "test"},
    counts={"train": 50_000, "test": 10_000},
    classes=10,
    licence="no formal licence; made available for research by A. Krizhevsky (2009)",
    revision="0b2714987fa478483af9968de7c934580d0bb9a2",
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
    revision="49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
)
IMAGENET_SAMPLE = replace(
    IMAGENET,
    title="the sample of ImageNet",
    folder="imagenet-sample",
    splits={"train": "train", "test": "train"},
    counts={"train": 1000, "test": 1000},
    classes=0,
    made=f"write a picture of each class of {IMAGENET.hub} into a train.parquet (docs/howto/data.md has the lines)",
)


@dataclass(frozen=True)
class DataSet:
    """An entry of :data:`DATASETS`: how a data set is read, and what a network is built for without its files.

    Args:
        read: ``read(split, root)`` makes the images.
        image_shape: (C, H, W).
        num_classes: number of classes; 0 for images without labels.
        sigma_data: standard deviation of the scaled data, as networks and F-prediction are told; it holds, whatever
            the images that are read say of themselves.
    """

    read: Callable[[Split, Path | str | None], ImageData]
    image_shape: tuple[int, int, int]
    num_classes: int
    sigma_data: float = 0.5


def load(name: str, split: Split, root: Path | str | None = None) -> ImageData:
    """A data set by name.

    Args:
        name: one of :data:`DATASETS`.
        split: "train" or "test", disjoint and always the same; ImageNet's test split is its validation set.
        root: folder of the files, for data sets that do not come with a package; when None,
            ``$PAPERLIB_DATA/cifar10`` or ``$PAPERLIB_DATA/imagenet`` if there is one, else the Hugging Face hub.

    Raises:
        MissingDataError: when the files are not there; the message says what to fetch and where to put it.
        ValueError: for an unknown name or split, with the choices; for images that are not what the table says.
    """
    known = DATASETS[name]
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; choose train or test.")
    found = known.read(split, root)
    data = replace(found, name=f"{name}/{split}", sigma_data=known.sigma_data)
    if "sha256" in vars(found):  # which neither of these changes
        data.known_as(found.sha256)
    if (data.image_shape, data.num_classes) != (known.image_shape, known.num_classes):
        raise ValueError(
            f"{data.name} has images {data.image_shape} of {data.num_classes} classes, and its entry in DATASETS says "
            f"{known.image_shape} of {known.num_classes}; correct one of them."
        )
    return data


def load_digits(split: Split, root: Path | str | None = None) -> ImageData:
    """Handwritten digits, 8×8, 17 levels of grey: the test set of Alpaydin & Kaynak (1998), as in scikit-learn.

    Nothing is downloaded.  ``root`` is not used.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # takes seconds to import

    digits = sklearn_digits()
    # in the order of hashes, a shuffle that no library can change
    order = sorted(range(len(digits.target)), key=lambda i: hashlib.sha256(f"digits {i}".encode()).digest())
    keep = order[:DIGITS_TRAIN] if split == "train" else order[DIGITS_TRAIN:]
    data = ImageData(
        name=f"digits/{split}",
        images=torch.from_numpy(digits.images).to(torch.uint8)[keep, None],
        labels=torch.from_numpy(digits.target).to(torch.int64)[keep],
        levels=17,
        licence="CC BY 4.0 (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository)",
        preprocessing="counts of ink in 4×4 boxes of 32×32 bitmaps, as published",
        source="scikit-learn",
    )
    if data.sha256 != DIGITS_SHA256[split]:
        raise RuntimeError(
            f"{data.name} has hash {data.sha256[:12]}, results were made with {DIGITS_SHA256[split][:12]}: "
            f"scikit-learn's digits have changed; install the scikit-learn of requirements.lock."
        )
    return data


def load_cifar10(split: Split, root: Path | str | None = None, *, size: int = 32) -> ImageData:
    """CIFAR-10 (A. Krizhevsky, 2009).  What copy it is, its ``caution`` says.

    A smaller ``size`` is a data set of its own: means over squares, rounded to 8 bits.
    """
    folder = CIFAR10.located(root)
    if folder and (files := sorted(folder.rglob("*_batch*"))):
        data = _binary_cifar10(split, files)
    else:
        data = load_collection(split, root, collection=CIFAR10, crop=Crop("none", 32))
    unknown = (
        f"unknown variant of CIFAR-10 (hash {data.sha256[:12]}): make sure that its pixels are the original ones "
        f"before comparing with published figures"
    )
    caution = "; ".join(filter(None, [data.caution, CIFAR10_VARIANTS.get(data.sha256, unknown)]))
    if size == 32:
        return replace(data, caution=caution).known_as(data.sha256)
    return replace(
        data,
        images=box_mean(data.images, 32 // size),
        preprocessing=f"means over {32 // size}×{32 // size} pixels, rounded to 8 bits, halves to even",
        caution=f"{caution}; reduced to {size}×{size}, which no published figure is for",
    )


def _binary_cifar10(split: Split, files: list[Path]) -> ImageData:
    """The binary version of its author: 10,000 images a file, a byte for the label and 3,072 for the pixels of each."""
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if split == "train" else ["test_batch.bin"]
    found = [path for path in files if path.name in names]
    if [path.name for path in found] != names or any(path.stat().st_size != 10_000 * 3073 for path in found):
        raise MissingDataError(
            f"{files[0].parent} must hold {', '.join(names)}, each once and of 30,730,000 bytes, and has "
            f"{', '.join(path.name for path in files)}.  Batches without .bin are pickles, which are code and are not "
            f"read.  Put the files of https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz there."
        )
    rows = torch.from_numpy(np.concatenate([np.fromfile(path, np.uint8) for path in found]).reshape(-1, 3073))
    return ImageData(
        name=f"cifar10/{split}",
        images=rows[:, 1:].reshape(-1, 3, 32, 32),
        labels=rows[:, 0].long(),
        licence=CIFAR10.licence,
        preprocessing="32×32 as published",
        source="the binary version of its author",
        classes=CIFAR10.classes,
    )


def load_collection(split: Split, root: Path | str | None = None, *, collection: Collection, crop: Crop) -> ImageData:
    """A split of a collection of parquet files, one's own too, with all that its source and its decoding say of it."""
    found = decoded(find(collection, split, root), crop)
    cautions = []
    if len(found.labels) != collection.counts[split]:
        cautions.append(f"{len(found.labels):,} of the {collection.counts[split]:,} images of {collection.title}")
    if found.index["enlarged"]:
        cautions.append(f"pictures smaller than {crop.size}×{crop.size}, hence enlarged: {found.index['enlarged']:,}")
    return ImageData(
        name=f"{collection.folder}/{split}",
        images=found.images,
        labels=found.labels,
        licence=collection.licence,
        preprocessing=found.index["preprocessing"],
        caution="; ".join(cautions),
        source=f"{found.index['source']}, encoded images {found.index['encoded_sha256'][:12]}",
        classes=collection.classes,
    ).known_as(found.index["sha256"])


def load_imagenet_sample(split: Split, root: Path | str | None = None) -> ImageData:
    """A thousand pictures of ImageNet, one of each class, at 32×32; every fifth is the test split.

    They come without classes: a class would name its only picture.
    """
    data = load_collection("train", root, collection=IMAGENET_SAMPLE, crop=Crop("adm", 32))
    few = "So few pictures show that everything runs, and memorisation; they show nothing about generalisation"
    chosen = (torch.arange(len(data)) % 5 == 4) == (split == "test")
    return replace(
        data,
        images=data.images[chosen],
        labels=data.labels[chosen],
        caution="; ".join(filter(None, [data.caution, few])),
    )


def load_folder(split: Split, root: Path | str | None = None, *, size: int, crop: str = "area") -> ImageData:
    """Images of one's own: the files in ``root/<split>``, or in a folder below it for every class of the two splits.

    They are decoded at every load, in the order of their names, turned as their camera says, and held in memory.
    Links are followed; what is hidden, by a name that begins with a dot, is none of them.

    Args:
        split: the folder "train" or "test".
        root: where it is.
        size: side of the squares that are made of the pictures.
        crop: how, one of :data:`paperlib.engine.decode.CROPS`.

    Raises:
        MissingDataError: when there is no such folder, or no picture in it.
        ValueError: for a picture that cannot be read, or is transparent or moves, naming it; for pictures both in
            classes and beside them.
    """
    square = Crop(crop, size)
    folder = Path(root or ".").expanduser() / split
    splits = {name: _pictures(folder.with_name(name)) for name in {"train", "test", split}}
    if not (paths := splits[split]):
        raise MissingDataError(f"there is no picture in {folder}; put those of the {split} split there.")
    labelled = [path.parent != folder for path in paths]
    if any(labelled) != all(labelled):
        raise ValueError(f"{folder} has pictures beside the folders of classes; move {paths[labelled.index(False)]}.")
    inside = [path.relative_to(folder.parent).parts[1:] for found in splits.values() for path in found]
    classes = sorted({parts[0] for parts in inside if len(parts) > 1})
    squares, enlarged = [], 0
    for path in paths:
        try:
            with Image.open(path) as image:
                squares.append(torch.from_numpy(square(_still(image))))
                enlarged += min(image.size) < size
        except (OSError, ValueError) as error:
            raise ValueError(f"the picture {path} cannot be read: {error}") from error
    return ImageData(
        name=f"{folder.parent.name}/{split}",
        images=torch.stack(squares),
        labels=torch.tensor([classes.index(path.relative_to(folder).parts[0]) if classes else 0 for path in paths]),
        preprocessing=square.description,
        caution=f"pictures smaller than {size}×{size}, hence enlarged: {enlarged:,}" if enlarged else "",
        source=f"{len(paths):,} files of a folder",
        classes=len(classes),
    )


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and below, in the order of their names."""
    known, found = set(Image.registered_extensions()), []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if Path(name).suffix.lower() in known and name[0] != "."]
    return sorted(found)


def _still(image: Image.Image) -> Image.Image:
    """The picture upright; ValueError where there is more to it than the colours of its pixels, in 8 bits."""
    require_eight_bits(image)
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"it has {image.n_frames} frames; keep one of them.")  # type: ignore[attr-defined]
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
        raise ValueError("it is transparent in places; lay it over a background first.")
    return ImageOps.exif_transpose(image)


def box_mean(images: Tensor, factor: int, chunk: int = 1024) -> Tensor:
    """Means over squares of ``factor`` × ``factor`` pixels, rounded to the nearest integer, halves to even.

    uint8, shape (N, C, H, W), to uint8, (N, C, H/factor, W/factor), ``chunk`` images at a time.  Sums of integers, and
    their division by a power of two, are exact in float32.

    Raises:
        ValueError: for a factor that does not divide, or is no power of two up to 256.
    """
    height, width = images.shape[-2:]
    if not 1 <= factor <= 256 or factor & (factor - 1) or height % factor or width % factor:
        raise ValueError(f"factor must be a power of two up to 256 that divides {height} and {width}, got {factor}.")
    means = (F.avg_pool2d(part.float(), factor) for part in images.split(chunk))
    return torch.cat([mean.round().to(torch.uint8) for mean in means])


DATASETS: Registry[DataSet] = Registry(
    "data set",
    DataSet,
    {
        "digits": DataSet(load_digits, (1, 8, 8), 10, sigma_data=0.75),
        "cifar10": DataSet(load_cifar10, (3, 32, 32), 10),
        "cifar10-16": DataSet(partial(load_cifar10, size=16), (3, 16, 16), 10),
        "cifar10-8": DataSet(partial(load_cifar10, size=8), (3, 8, 8), 10),
        "imagenet-sample": DataSet(load_imagenet_sample, (3, 32, 32), 0),
        **{
            f"imagenet{size}": DataSet(
                partial(load_collection, collection=IMAGENET, crop=Crop("adm", size)), (3, size, size), 1000
            )
            for size in (64, 128, 256, 512)
        },
    },
)
"""All data sets by name.  One entry more is a data set more, for profiles, costs and the command line."""
