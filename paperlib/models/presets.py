"""Networks with a name: the models, published architectures and small ones for a CPU.

A preset is a model with options.  What differs from the published network is said beside each; the tests print the
numbers of parameters side by side.
"""

import inspect
from functools import partial
from typing import Any

import torch

from paperlib.models.conditioning import ConditionedNetwork
from paperlib.models.mlp import MLP
from paperlib.models.unet import UNet
from paperlib.models.uvit import UViT
from paperlib.registry import Registry

PRESETS = {
    # Of the size of DDPM++ (Song et al. 2021), with which EDM trained (Karras et al. 2022: 55.7 million parameters).
    # In structure it is IDDPM's network for CIFAR-10 (Nichol & Dhariwal 2021: 128 channels times 1, 2, 2, 2, three
    # blocks, 64-channel heads) with ADM's blocks that halve and double, where IDDPM has plain convolutions, and
    # attention at 16 × 16 and in the middle alone, as in DDPM++.  DDPM++ has 256 channels everywhere, four blocks, a
    # single head, shifts without scales, and a factor 1/√2 at every sum.  Dropout is EDM's.
    "adm_cifar10": partial(
        UNet,
        channels=128,
        multipliers=(1, 2, 2, 2),
        blocks=3,
        attention=(16,),
        head_channels=64,
        dropout=0.13,
    ),
    # ADM at 64 × 64 (Dhariwal & Nichol 2021, Table 11, 296 million parameters).  Ours does not predict variances, so
    # that its last convolution has half the channels, and knows the null class.
    "adm_imagenet64": partial(
        UNet,
        channels=192,
        multipliers=(1, 2, 3, 4),
        blocks=3,
        attention=(32, 16, 8),
        head_channels=64,
        dropout=0.1,
    ),
    "unet_cifar_small": partial(UNet, channels=32, multipliers=(1, 2, 2), blocks=1, attention=(8,)),
    # Simple diffusion's U-ViT, the transformer at 16 × 16; what of it is ours is said in paperlib/models/uvit.py.
    **{
        f"uvit_imagenet{size}": partial(
            UViT,
            channels=128,
            multipliers=(1, 2, 4, 16),
            blocks=2,
            transformer_blocks=36,
            head_channels=128,
            patch=patch,
            folding="wavelet",
            dropout=0.2,
            condition_width=1024,
        )
        for size, patch in ((128, 1), (256, 2), (512, 4))
    },
    "vit_cifar_small": partial(UViT, channels=128, transformer_blocks=5, patch=4, condition_width=64),
}
"""Presets by name."""

MODELS: Registry[Any] = Registry("model", ConditionedNetwork, {"mlp": MLP, "unet": UNet, "uvit": UViT, **PRESETS})
"""Everything that :func:`build` knows, by name: classes of networks, and presets.  ``register`` adds one."""

register = MODELS.register


def build(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    sigma_data: float,
    seed: int | None = None,
    **options: Any,
) -> ConditionedNetwork:
    """A freshly initialised network.  Arguments as in :class:`ConditionedNetwork`, and

    Args:
        name: one of :data:`MODELS`.
        seed: seed of the initialisation, which then leaves the global generator as it was; None draws from that one.
        options: what else the network takes, for example ``width``; they go before those of a preset.

    Returns:
        The network; ``network.config`` holds the arguments that build it again, those of a preset written out,
        and ``network.initial_seed`` the seed.

    Raises:
        ValueError: for an unknown name; the message lists the choices.
        TypeError: for an option that the network does not take.
    """
    model = MODELS[name]
    if isinstance(model, partial):
        options, model = {**model.keywords, **options}, model.func
        name = next((known for known, entry in MODELS.items() if entry is model), name)
    shape: dict[str, Any] = {"image_shape": image_shape, "num_classes": num_classes, "sigma_data": sigma_data}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = model(**shape, **options)
    network.config, network.initial_seed = {"name": name, **shape, **options}, seed
    return network


def option_names(name: str) -> list[str]:
    """What the model or preset takes besides the shape of the data and ``sigma_data``.

    Raises:
        ValueError: for an unknown name; the message lists the choices.
    """
    taken = inspect.signature(MODELS[name]).parameters
    return [option for option in taken if option not in ("image_shape", "num_classes", "sigma_data")]
