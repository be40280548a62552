"""Pictures to squares of a given side: the ways that the literature has, each with its name.

8-bit integers in, 8-bit integers out; no value passes through anything but the resampling itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of PIL that become 8-bit RGB without loss of precision."""


@dataclass(frozen=True)
class Crop:
    """A way to make squares.

    Args:
        name: of the way.
        size: side of the square, in pixels.
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
        return DESCRIPTIONS[self.name].format(size=self.size)

    def __call__(self, image: "Image") -> NDArray[np.uint8]:
        """The square, uint8, shape (3, size, size).

        Raises:
            ValueError: for pictures of more than 8 bits, and where "none" finds another size.
        """
        if image.mode not in EIGHT_BITS:
            raise ValueError(
                f"the picture has mode {image.mode}; only 8-bit pictures ({', '.join(EIGHT_BITS)}) are read."
            )
        square = np.asarray(CROPS[self.name](image.convert("RGB"), self.size))
        return np.ascontiguousarray(square.transpose(2, 0, 1))


def none(image: "Image", size: int) -> "Image":
    """The picture as it is, which must have the size already."""
    if image.size != (size, size):
        raise ValueError(f"the picture is {image.width}×{image.height}, not {size}×{size}.")
    return image


def adm(image: "Image", size: int) -> "Image":
    """As for ADM: halved by 2×2 means while the short side is 2·size or more, bicubic to size, the middle cut out.

    Source: Dhariwal & Nichol (2021), guided-diffusion, ``center_crop_arr``.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    ratio = size / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def area(image: "Image", size: int) -> "Image":
    """The largest square in the middle, each pixel the mean over its box (PIL's BOX filter)."""
    from PIL.Image import Resampling

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Resampling.BOX, box=(left, top, left + side, top + side))


CROPS: dict[str, Callable[["Image", int], "Image"]] = {"none": none, "adm": adm, "area": area}
DESCRIPTIONS = {
    "none": "none: {size}×{size} as decoded",
    "adm": "halved by 2×2 box means to below twice the size, bicubic, centre crop to {size}×{size} (as for ADM)",
    "area": "centre crop to a square, box-filter area means to {size}×{size}",
}


def box_mean(images: Tensor, factor: int, chunk: int = 1024) -> Tensor:
    """Means over squares of ``factor`` × ``factor`` pixels, rounded to the nearest integer, halves to even.

    Sums of integers, and their division by a power of two, are exact in float32.

    Args:
        images: uint8, shape (N, C, H, W).
        factor: a power of two up to 256 that divides H and W.
        chunk: images at a time.

    Returns:
        uint8, shape (N, C, H/factor, W/factor).

    Raises:
        ValueError: for a factor that does not divide, or is no power of two.
    """
    height, width = images.shape[-2:]
    if not 1 <= factor <= 256 or factor & (factor - 1) or height % factor or width % factor:
        raise ValueError(f"factor must be a power of two up to 256 that divides {height} and {width}, got {factor}.")
    means = (F.avg_pool2d(part.float(), factor) for part in images.split(chunk))
    return torch.cat([mean.round().to(torch.uint8) for mean in means])
