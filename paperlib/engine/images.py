"""A split of a data set: integers in memory or in a mapped file, and what has to be said of them.

Values stay the integers that they were; :func:`scale` is the one place where they become real numbers, and
:func:`to_uint8` its inverse.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from paperlib.checks import require_finite, require_positive


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


def pixels_sha256(images: Tensor, labels: Tensor) -> str:
    """Hash of shape, images and labels."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    for tensor in (images, labels):
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageData:
    """A split of a data set.

    Args:
        name: data set and split, for example "digits/train".
        images: uint8, shape (N, C, H, W), values below ``levels``; may be a mapped file.
        labels: int64, shape (N,), from 0; all 0 for images without labels, whose ``classes`` are 0.
        levels: number of values that a pixel can take, 256 for 8-bit images.
        sigma_data: the standard deviation of the scaled data that networks and F-prediction are told.
        licence: under which terms the images may be used.
        preprocessing: what was done to the pictures before they were these integers.
        caution: what must be said beside every number measured on them; empty where there is nothing.
        source: where they come from.
        digest: what :attr:`sha256` is, where it is known already, as for a mapped file.
        classes: how many classes there are, which a part of a set may not show; one more than the largest label when
            None.  0 is for images without labels: label 0 is then the null class of a network without classes.

    Raises:
        TypeError: for other dtypes.
        ValueError: for shapes that do not fit, values out of range, or no images.
    """

    name: str
    images: Tensor
    labels: Tensor
    levels: int
    sigma_data: float
    licence: str = ""
    preprocessing: str = ""
    caution: str = ""
    source: str = ""
    digest: str | None = field(default=None, repr=False)
    classes: int | None = None

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
        if self.images.shape[1] > 4 and self.images.shape[3] in (1, 3, 4):
            raise ValueError(
                f"images of shape {tuple(self.images.shape)} look like (N, H, W, C), and (N, C, H, W) is expected; use "
                f"images.permute(0, 3, 1, 2)."
            )
        require_positive("sigma_data", self.sigma_data)
        self._require_values()

    def _require_values(self) -> None:
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
        return self.digest or pixels_sha256(self.images, self.labels)

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


def shared_images(first: ImageData, second: ImageData) -> list[tuple[int, int]]:
    """Pairs (i, j) of images that are equal in every pixel, i in ``first`` and j in ``second``, whatever their labels.

    Two splits of a data set should have none.  Near-duplicates, of which CIFAR-10 has many, are not found.
    """
    places: dict[bytes, list[int]] = {}
    for i, image in enumerate(first.images.cpu().numpy()):
        places.setdefault(image.tobytes(), []).append(i)
    others = enumerate(second.images.cpu().numpy())
    return [(i, j) for j, image in others for i in places.get(image.tobytes(), [])]
