"""Images as they are trained on: integers in memory, one fixed split, a hash that says which.

:func:`load` knows the data sets by name.  Values stay the integers that they were; :meth:`ImageData.scaled` is the one
place where they become real numbers, and :func:`to_uint8` its inverse.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from paperlib.checks import require_finite, require_positive

Split = Literal["train", "test"]

DIGITS_TRAIN = 1500
"""Images of scikit-learn's digits that are trained on; the other 297 are the test split."""
DIGITS_SHA256 = {
    "train": "12dd450059872083e51aca94e01edf572eb0c1e3ca2b5ae8ddf73c743d320c5e",
    "test": "fbcd3a942bc89d129ef1eeeda01b67b192938e82ef730b4114951b7c9c00ef9b",
}
"""Hashes of the two splits: no change of a library can mix them unnoticed."""


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
    """A split of a data set, whole in memory.

    Args:
        name: data set and split, for example "digits/train".
        images: uint8, shape (N, C, H, W), values below ``levels``.
        labels: int64, shape (N,), from 0.
        levels: number of values that a pixel can take, 256 for 8-bit images.
        sigma_data: the standard deviation of the scaled data that networks and F-prediction are told.

    Raises:
        TypeError: for other dtypes.
        ValueError: for shapes that do not fit, values out of range, or no images.
    """

    name: str
    images: Tensor
    labels: Tensor
    levels: int
    sigma_data: float

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.labels.dtype != torch.int64:
            raise TypeError(
                f"images must be uint8 and labels int64, got {self.images.dtype} and {self.labels.dtype}; "
                f"real-valued images go through to_uint8(x, levels) first."
            )
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1] or not len(self.images):
            raise ValueError(
                f"images must have shape (N, C, H, W) and labels (N,), N ≥ 1; got {tuple(self.images.shape)} and "
                f"{tuple(self.labels.shape)}."
            )
        require_positive("sigma_data", self.sigma_data)
        if not 2 <= self.levels <= 256 or self.images.max() >= self.levels:
            raise ValueError(f"pixels must lie in 0 … levels − 1 = {self.levels - 1}, got {self.images.max().item()}.")
        if self.labels.min() < 0:
            raise ValueError(f"labels must be 0 or more, got {self.labels.min().item()}.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @cached_property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1

    @cached_property
    def sha256(self) -> str:
        """Hash of shape, images and labels."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def scaled(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All images in [−1, 1], shape (N, C, H, W)."""
        return scale(self.images, self.levels, dtype)


def load(name: str, split: Split, root: Path | None = None) -> ImageData:
    """A data set by name.

    Args:
        name: one of :data:`DATASETS`.
        split: "train" or "test", disjoint and always the same.
        root: folder of the files, for data sets that do not come with a package.

    Raises:
        ValueError: for an unknown name or split; the message lists the choices.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}.")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; choose train or test.")
    return DATASETS[name](split, root)


def load_digits(split: Split, root: Path | None = None) -> ImageData:
    """Handwritten digits, 8×8, 17 levels of grey: the test set of Alpaydin & Kaynak (1998), as in scikit-learn.

    Nothing is downloaded.  ``root`` is not used.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # takes seconds to import

    digits = sklearn_digits()
    order = _hashed_order("digits", len(digits.target))
    keep = order[:DIGITS_TRAIN] if split == "train" else order[DIGITS_TRAIN:]
    images = torch.from_numpy(digits.images).to(torch.uint8)[keep, None]
    labels = torch.from_numpy(digits.target).to(torch.int64)[keep]
    data = ImageData(f"digits/{split}", images, labels, levels=17, sigma_data=0.75)
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


DATASETS: dict[str, Callable[[Split, Path | None], ImageData]] = {"digits": load_digits}
