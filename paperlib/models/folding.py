r"""Pixels folded into channels and back: p × p of them, so that a network has fewer, deeper pixels to work on.

Either a rearrangement, with which a convolution of stride p is meant, or the 5/3 wavelet transform in both directions,
log₂ p times over: linear and invertible, its bands being the channels.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

Folding = Literal["patch", "wavelet"]


def wavelet(x: Tensor) -> Tensor:
    """The 5/3 wavelet transform in both directions: (B, C, H, W) to (B, 4 C, H/2, W/2), bands outermost.

    By lifting (Le Gall & Tabatabai 1988; JPEG 2000 without its rounding): high = odd − (its two even neighbours) / 2,
    low = even + (its two high neighbours) / 4, mirrored at the ends.
    """
    for dim in (3, 2):
        even, odd = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
        high = odd - (even + _next(even, dim)) / 2
        x = torch.cat([even + (_previous(high, dim) + high) / 4, high], dim=1)
    return x


def inverse_wavelet(bands: Tensor) -> Tensor:
    """What :func:`wavelet` transformed: (B, 4 C, H/2, W/2) to (B, C, H, W)."""
    for dim in (2, 3):
        low, high = bands.chunk(2, dim=1)
        even = low - (_previous(high, dim) + high) / 4
        odd = high + (even + _next(even, dim)) / 2
        bands = torch.stack([even, odd], dim=dim + 1).flatten(dim, dim + 1)
    return bands


def _next(x: Tensor, dim: int) -> Tensor:
    """Each element's right neighbour, the last one's being itself."""
    size = x.shape[dim]
    return torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 1, 1)], dim)


def _previous(x: Tensor, dim: int) -> Tensor:
    """Each element's left neighbour, the first one's being itself."""
    return torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, x.shape[dim] - 1)], dim)


def fold(x: Tensor, factor: int, folding: Folding = "patch") -> Tensor:
    """Pixels into channels: (B, C, H, W) to (B, factor² C, H/factor, W/factor)."""
    if folding == "patch":
        return pixel_unshuffle(x, factor)
    return x if factor == 1 else fold(wavelet(x), factor // 2, folding)


def unfold(x: Tensor, factor: int, folding: Folding = "patch") -> Tensor:
    """The inverse of :func:`fold`."""
    if folding == "patch":
        return pixel_shuffle(x, factor)
    return x if factor == 1 else inverse_wavelet(unfold(x, factor // 2, folding))


def require_foldable(
    image_shape: tuple[int, int, int], factor: int, levels: int, folding: Folding = "patch"
) -> tuple[int, int]:
    """Height and width at the lowest of ``levels``, each at half the resolution of the one before, after folding.

    Raises:
        ValueError: where folding and levels do not divide the image, or are none.
    """
    if folding not in ("patch", "wavelet"):
        raise ValueError(f"folding must be 'patch' or 'wavelet', got {folding!r}.")
    if levels < 1 or factor < 1 or factor & (factor - 1):
        raise ValueError(f"patch must be a power of two, and one multiplier given at least: {factor} and {levels}.")
    divisor = factor * 2 ** (levels - 1)
    _, height, width = image_shape
    if height % divisor or width % divisor:
        raise ValueError(
            f"{levels} resolutions of patches of {factor} need height and width divisible by {divisor}, got {height} × "
            f"{width}; give fewer multipliers, or smaller patches."
        )
    return height // divisor, width // divisor
