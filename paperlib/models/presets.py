"""Networks with a name: the options of published architectures, and small ones for a CPU.

A preset says which model it is, what it was made for, and, where there is one, the published number of parameters.
What differs from the published network is said beside each; the tests print the counts side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Options under a name.

    Args:
        model: one of :data:`paperlib.models.MODELS`.
        options: what that model is built with.
        image_shape: (C, H, W) of the data that it was made for.
        num_classes: number of their classes.
        published: parameters of the published network that it follows; None where it is our own.
    """

    model: str
    options: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    num_classes: int
    published: int | None = None


def _uvit(size: int, patch: int) -> Preset:
    """Simple diffusion's U-ViT for ``size`` × ``size`` images: 2 billion parameters, the transformer at 16 × 16."""
    options = {
        "channels": 128,
        "multipliers": (1, 2, 4, 16),
        "blocks": 2,
        "transformer_blocks": 36,
        "head_channels": 128,
        "patch": patch,
        "folding": "wavelet",
        "dropout": 0.2,
        "condition_width": 1024,
    }
    return Preset("uvit", options, (3, size, size), 1000, published=2_000_000_000)


DIGITS, CIFAR = ((1, 8, 8), 10), ((3, 32, 32), 10)

PRESETS: dict[str, Preset] = {
    # Of the size of DDPM++ (Song et al. 2021), with which EDM trained (Karras et al. 2022: 55.7 million parameters).
    # In structure it is IDDPM's network for CIFAR-10 (Nichol & Dhariwal 2021: 128 channels times 1, 2, 2, 2, three
    # blocks, 64-channel heads) with ADM's blocks that halve and double, where IDDPM has plain convolutions, and
    # attention at 16 × 16 and in the middle alone, as in DDPM++.  DDPM++ has 256 channels everywhere, four blocks, a
    # single head, shifts without scales, and a factor 1/√2 at every sum.  Dropout is EDM's.
    "adm_cifar10": Preset(
        "unet",
        {
            "channels": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 3,
            "attention": (16,),
            "head_channels": 64,
            "dropout": 0.13,
        },
        *CIFAR,
        published=55_700_000,
    ),
    # ADM at 64 × 64 (Dhariwal & Nichol 2021, Table 11, 296 million parameters).  Ours does not predict variances, so
    # that its last convolution has half the channels, and knows the null class.
    "adm_imagenet64": Preset(
        "unet",
        {
            "channels": 192,
            "multipliers": (1, 2, 3, 4),
            "blocks": 3,
            "attention": (32, 16, 8),
            "head_channels": 64,
            "dropout": 0.1,
        },
        (3, 64, 64),
        1000,
        published=296_000_000,
    ),
    "unet_digits": Preset("unet", {"channels": 32, "blocks": 1, "attention": (4,)}, *DIGITS),
    "unet_cifar_small": Preset(
        "unet",
        {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (8,)},
        *CIFAR,
    ),
    # Simple diffusion's U-ViT; what of it is the paper's and what ours is said in paperlib/models/uvit.py.
    "uvit_imagenet128": _uvit(128, patch=1),
    "uvit_imagenet256": _uvit(256, patch=2),
    "uvit_imagenet512": _uvit(512, patch=4),
    "vit_digits": Preset(
        "uvit",
        {"channels": 128, "transformer_blocks": 4, "patch": 2, "condition_width": 64},
        *DIGITS,
    ),
    "vit_cifar_small": Preset(
        "uvit",
        {"channels": 128, "transformer_blocks": 5, "patch": 4, "condition_width": 64},
        *CIFAR,
    ),
}
"""Presets by name."""
