"""Images as they are trained on, by name: integers, one fixed split, a hash that says which.

:func:`load` knows the data sets of :data:`DATASETS`.  The digits come with scikit-learn.  CIFAR-10 and ImageNet are
read from parquet files or from the Hugging Face hub (:mod:`paperlib.engine.shards`), decoded once and mapped into
memory from then on (:mod:`paperlib.engine.decoding`).  Training takes them in :func:`batches`.  Images of one's own are
one more entry of the table: a folder of pictures (:func:`load_folder`), parquet files (:func:`load_collection`), or any
function that makes an :class:`ImageData` of arrays.

=====================================  ===============================================================================
``digits``                             8×8, 17 levels of grey
``cifar10``                            32×32
``cifar10-16``, ``cifar10-8``          its box means over 2×2 and 4×4 pixels
``imagenet64`` … ``imagenet512``       halved and bicubic as for ADM, see :func:`paperlib.engine.crops.adm`
``imagenet64-area`` …                  means over boxes, see :func:`paperlib.engine.crops.area`
=====================================  ===============================================================================
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperlib.engine import shards
from paperlib.engine.batching import Batch, batch_indices, batches, epoch_order
from paperlib.engine.crops import Crop, box_mean
from paperlib.engine.decoding import decoded
from paperlib.engine.images import ImageData, scale, shared_images, to_uint8
from paperlib.engine.shards import Collection, MissingDataError, Split, find

__all__ = [
    "DATASETS",
    "Batch",
    "ImageData",
    "MissingDataError",
    "Split",
    "batch_indices",
    "batches",
    "epoch_order",
    "load",
    "scale",
    "shared_images",
    "to_uint8",
]

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

DIGITS_SIGMA, PHOTOGRAPHS_SIGMA = 0.75, 0.5
"""σ_data of the digits and of photographs, both on [−1, 1]."""

IMAGENET_SIZES = (64, 128, 256, 512)


def load(name: str, split: Split, root: Path | str | None = None, **options: Any) -> ImageData:
    """A data set by name.

    Args:
        name: one of :data:`DATASETS`.
        split: "train" or "test", disjoint and always the same; ImageNet's test split is its validation set.
        root: folder of the files, for data sets that do not come with a package; when None,
            ``$PAPERLIB_DATA/cifar10`` or ``$PAPERLIB_DATA/imagenet`` if there is one, else the Hugging Face hub.
        options: ``verify``, ``workers`` and ``progress`` of :func:`paperlib.engine.decoding.decoded`.

    Raises:
        MissingDataError: when the files are not there; the message says what to fetch and where to put it.
        ValueError: for an unknown name or split; the message lists the choices.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}.")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; choose train or test.")
    return DATASETS[name].load(split, root, **options)


# Digits --------------------------------------------------------------------------------------------------------------


def load_digits(split: Split, root: Path | str | None = None, **_: Any) -> ImageData:
    """Handwritten digits, 8×8, 17 levels of grey: the test set of Alpaydin & Kaynak (1998), as in scikit-learn.

    Nothing is downloaded.  ``root`` is not used.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # takes seconds to import

    digits = sklearn_digits()
    order = _hashed_order("digits", len(digits.target))
    keep = order[:DIGITS_TRAIN] if split == "train" else order[DIGITS_TRAIN:]
    data = ImageData(
        name=f"digits/{split}",
        images=torch.from_numpy(digits.images).to(torch.uint8)[keep, None],
        labels=torch.from_numpy(digits.target).to(torch.int64)[keep],
        levels=17,
        sigma_data=DIGITS_SIGMA,
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


def _hashed_order(name: str, size: int) -> Tensor:
    """0 … size − 1 in the order of the SHA-256 of "name index": a shuffle that no library can change."""
    order = sorted(range(size), key=lambda index: hashlib.sha256(f"{name} {index}".encode()).digest())
    return torch.tensor(order)


# Photographs ---------------------------------------------------------------------------------------------------------


def load_cifar10(split: Split, root: Path | str | None = None, **options: Any) -> ImageData:
    """CIFAR-10 (A. Krizhevsky, 2009), 32×32.  What copy it is, its ``caution`` says."""
    data = load_collection(split, root, name="cifar10", collection=shards.CIFAR10, crop=Crop("none", 32), **options)
    unknown = (
        f"unknown variant of CIFAR-10 (hash {data.sha256[:12]}): make sure that its pixels are the original ones "
        f"before comparing with published figures"
    )
    return replace(data, caution="; ".join(filter(None, [data.caution, CIFAR10_VARIANTS.get(data.sha256, unknown)])))


def load_reduced_cifar10(split: Split, root: Path | str | None = None, *, size: int, **options: Any) -> ImageData:
    """CIFAR-10 made smaller by means over squares, rounded to 8 bits: data sets of their own."""
    data = load_cifar10(split, root, **options)
    return replace(
        data,
        name=f"cifar10-{size}/{split}",
        images=box_mean(data.images, 32 // size),
        preprocessing=f"means over {32 // size}×{32 // size} pixels, rounded to 8 bits, halves to even",
        caution=f"{data.caution}; reduced to {size}×{size}, which no published figure is for",
        digest=None,
    )


def load_imagenet(split: Split, root: Path | str | None = None, *, size: int, crop: str, **options: Any) -> ImageData:
    """ImageNet (ILSVRC 2012), cropped and reduced in the way that ``preprocessing`` names."""
    name = _imagenet_name(size, crop)
    return load_collection(split, root, name=name, collection=shards.IMAGENET, crop=Crop(crop, size), **options)


def load_collection(
    split: Split, root: Path | str | None = None, *, name: str, collection: Collection, crop: Crop, **options: Any
) -> ImageData:
    """A split of a collection of parquet files, one's own too, with all that its source and its decoding say of it."""
    found = decoded(find(collection, split, root), crop, **options)
    cautions = []
    if len(found.labels) != collection.counts[split]:
        cautions.append(f"{len(found.labels):,} of the {collection.counts[split]:,} images of {collection.title}")
    if found.index["enlarged"]:
        cautions.append(f"pictures smaller than {crop.size}×{crop.size}, hence enlarged: {found.index['enlarged']:,}")
    return ImageData(
        name=f"{name}/{split}",
        images=found.images,
        labels=found.labels,
        levels=256,
        sigma_data=PHOTOGRAPHS_SIGMA,
        licence=collection.licence,
        preprocessing=found.index["preprocessing"],
        caution="; ".join(cautions),
        source=f"{found.index['source']}, encoded images {found.index['encoded_sha256'][:12]}",
        digest=found.index["sha256"],
        classes=collection.classes,
    )


def load_folder(
    split: Split, root: Path | str | None = None, *, size: int, crop: str = "area", licence: str = "", **_: Any
) -> ImageData:
    """Images of one's own: the files in ``root/<split>``, or in a folder below it for every class of the two splits.

    An entry ``DATASETS["mine"] = DataSet(partial(load_folder, size=64), (3, 64, 64), num_classes)`` makes a data set of
    them.  They are decoded at every load, in the order of their names, and held in memory.

    Args:
        split: the folder "train" or "test".
        root: where it is.
        size: side of the squares that are made of the pictures.
        crop: how, one of :data:`paperlib.engine.crops.CROPS`.
        licence: under which terms they may be used.

    Raises:
        MissingDataError: when there is no such folder, or no picture in it.
        ValueError: for a picture that cannot be read, naming it, or pictures both in classes and beside them.
    """
    from PIL import Image

    square = Crop(crop, size)
    folder = Path(root or ".").expanduser() / split
    known = set(Image.registered_extensions())
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known)
    if not paths:
        raise MissingDataError(f"there is no picture in {folder}; put those of the {split} split there.")
    labelled = [path.parent != folder for path in paths]
    if any(labelled) != all(labelled):
        raise ValueError(f"{folder} has pictures beside the folders of classes; move {paths[labelled.index(False)]}.")
    classes = sorted({path.name for path in folder.parent.glob("*/*") if path.is_dir()})  # those of both splits
    squares = []
    for path in paths:
        try:
            with Image.open(path) as image:
                squares.append(torch.from_numpy(square(image)))
        except (OSError, ValueError) as error:
            raise ValueError(f"the picture {path} cannot be read: {error}") from error
    return ImageData(
        name=f"{folder.parent.name}/{split}",
        images=torch.stack(squares),
        labels=torch.tensor([classes.index(path.relative_to(folder).parts[0]) if classes else 0 for path in paths]),
        levels=256,
        sigma_data=PHOTOGRAPHS_SIGMA,
        licence=licence,
        preprocessing=square.description,
        source=f"{len(paths):,} files of a folder",
        classes=len(classes),
    )


def _imagenet_name(size: int, crop: str) -> str:
    return f"imagenet{size}" + (f"-{crop}" if crop != "adm" else "")


@dataclass(frozen=True)
class DataSet:
    """An entry of :data:`DATASETS`: how a data set is loaded, and what a network is built for without its files.

    Attributes:
        load: ``load(split, root, **options)``, as :func:`load` is called.
        image_shape: (C, H, W).
        num_classes: number of classes.
        sigma_data: standard deviation of the scaled data, as networks and F-prediction are told.
    """

    load: Callable[..., ImageData]
    image_shape: tuple[int, int, int]
    num_classes: int
    sigma_data: float = PHOTOGRAPHS_SIGMA


DATASETS: dict[str, DataSet] = {
    "digits": DataSet(load_digits, (1, 8, 8), 10, DIGITS_SIGMA),
    "cifar10": DataSet(load_cifar10, (3, 32, 32), shards.CIFAR10.classes),
    **{
        f"cifar10-{size}": DataSet(partial(load_reduced_cifar10, size=size), (3, size, size), shards.CIFAR10.classes)
        for size in (16, 8)
    },
    **{
        _imagenet_name(size, crop): DataSet(
            partial(load_imagenet, size=size, crop=crop), (3, size, size), shards.IMAGENET.classes
        )
        for crop in ("adm", "area")
        for size in IMAGENET_SIZES
    },
}
"""All data sets by name.  One entry more is a data set more, for profiles, costs and the command line."""
