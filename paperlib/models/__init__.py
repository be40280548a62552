"""Networks, conditioned on log-SNR and class, by name.

Every network is called as ``network(z, logsnr, label)``, see :class:`paperlib.models.conditioning.ConditionedNetwork`.
"""

from typing import Any

import torch

from paperlib.models.conditioning import ConditionedNetwork
from paperlib.models.mlp import MLP
from paperlib.models.unet import UNet

MODELS: dict[str, type[ConditionedNetwork]] = {"mlp": MLP, "unet": UNet}


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
        name: one of :data:`MODELS`.
        image_shape: (C, H, W) of the data.
        num_classes: number of classes; 0 for data without.
        sigma_data: standard deviation of the data, for the scale of the input.
        seed: seed of the initialisation, which then leaves the global generator as it was; None draws from that one.
        options: what else the network takes, for example ``width``.

    Returns:
        The network; ``network.config`` holds the arguments that build it again.

    Raises:
        ValueError: for an unknown name; the message lists the choices.
        TypeError: for an option that the network does not take.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}.")
    shape: dict[str, Any] = {"image_shape": image_shape, "num_classes": num_classes, "sigma_data": sigma_data}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = MODELS[name](**shape, **options)
    network.config = {"name": name, **shape, **options}
    return network


__all__ = ["MLP", "MODELS", "ConditionedNetwork", "UNet", "build"]
