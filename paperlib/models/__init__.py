"""Networks, conditioned on log-SNR and class, by name.

Every network is called as ``network(z, logsnr, label)``, see :class:`paperlib.models.conditioning.ConditionedNetwork`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from paperlib.models.conditioning import ConditionedNetwork
from paperlib.models.mlp import MLP
from paperlib.models.presets import PRESETS, Preset
from paperlib.models.unet import UNet
from paperlib.models.uvit import UViT

MODELS: dict[str, type[ConditionedNetwork]] = {"mlp": MLP, "unet": UNet, "uvit": UViT}
"""Models by name; :data:`PRESETS` are these with options."""


def build(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    sigma_data: float,
    seed: int | None = None,
    **options: Any,
) -> ConditionedNetwork:
    """A freshly initialised network.

    Args:
        name: one of :data:`MODELS` or :data:`PRESETS`.
        image_shape: (C, H, W) of the data.
        num_classes: number of classes; 0 for data without.
        sigma_data: standard deviation of the data, for the scale of the input.
        seed: seed of the initialisation, which then leaves the global generator as it was; None draws from that one.
        options: what else the network takes, for example ``width``; they go before those of a preset.

    Returns:
        The network; ``network.config`` holds the arguments that build it again, those of a preset written out,
        and ``network.initial_seed`` the seed.

    Raises:
        ValueError: for an unknown name; the message lists the choices.
        TypeError: for an option that the network does not take.
    """
    model, options = resolve(name, options)
    shape: dict[str, Any] = {"image_shape": image_shape, "num_classes": num_classes, "sigma_data": sigma_data}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = MODELS[model](**shape, **options)
    network.config, network.initial_seed = {"name": model, **shape, **options}, seed
    return network


def resolve(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model behind a name, and all options: those of the preset, and over them ``options``.

    Raises:
        ValueError: for an unknown name; the message lists the choices.
    """
    if name in PRESETS:
        return PRESETS[name].model, {**PRESETS[name].options, **options}
    if name in MODELS:
        return name, dict(options)
    raise ValueError(f"unknown model {name!r}; choose one of {', '.join([*MODELS, *PRESETS])}.")


def option_names(name: str) -> list[str]:
    """What the model or preset takes besides the shape of the data and ``sigma_data``.

    Raises:
        ValueError: for an unknown name; the message lists the choices.
    """
    taken = inspect.signature(MODELS[resolve(name, {})[0]]).parameters
    return [option for option in taken if option not in ("image_shape", "num_classes", "sigma_data")]


__all__ = [
    "MLP",
    "MODELS",
    "PRESETS",
    "ConditionedNetwork",
    "Preset",
    "UNet",
    "UViT",
    "build",
    "option_names",
    "resolve",
]
