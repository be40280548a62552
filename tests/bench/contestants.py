"""The networks that are raced: ours, and those of diffusers and azula in the same harness.

Each peer is given what ours has: the input in unit variance, the embedding of log-SNR and class, and the null class;
only what lies between differs.  All have the same parameters and the same FLOPs of a forward pass, to a tenth, which
:func:`costs` makes sure of.  The peers are U-Nets of three levels whose widths double.
"""

from collections.abc import Callable
from typing import Any

import azula.nn.unet
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from paperlib import models
from paperlib.models import ConditionedNetwork
from tools.costs import NetworkCost, network_cost

CIFAR: dict[str, Any] = {"image_shape": (3, 32, 32), "num_classes": 10, "sigma_data": 0.5}
TOLERANCE = 0.1
OURS: dict[str, Any] = {
    "channels": 96,
    "multipliers": (1, 1),
    "blocks": 1,
    "attention": (),
    "patch": 2,
    "condition_width": 64,
}
"""Our U-Net: on patches of 2 × 2, since wide maps of fewer pixels keep a CPU busier than narrow ones of more."""


class Azula(ConditionedNetwork):
    """azula's U-Net: convolutional blocks with one norm each, modulated and gated by the condition.

    Args:
        channels: channels of each resolution.
        blocks: blocks of each resolution, down and again up.
        norm: "layer", its default, or "group".
        condition_width: length of the vector that carries level and class.
    """

    def __init__(
        self, channels: tuple[int, ...], blocks: tuple[int, ...], norm: str = "layer", condition_width: int = 128
    ) -> None:
        super().__init__(**CIFAR, condition_width=condition_width)
        self.inner = azula.nn.unet.UNet(
            3, 3, hid_channels=channels, hid_blocks=blocks, mod_features=condition_width, norm=norm
        )

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.inner(x, condition)

    def sharding_units(self) -> list[nn.Module]:
        return []


class Diffusers(ConditionedNetwork):
    """diffusers' U-Net, with scale and shift as ours has.

    Args:
        channels: channels of each resolution.
        layers: residual blocks of each resolution, one more on the way up.
        attention: whether each resolution attends.
    """

    def __init__(self, channels: tuple[int, ...], layers: int, attention: tuple[bool, ...]) -> None:
        super().__init__(**CIFAR, condition_width=4 * channels[0])
        self.inner = UNet2DModel(
            sample_size=32,
            block_out_channels=channels,
            layers_per_block=layers,
            down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in attention),
            up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)),
            attention_head_dim=16,
            norm_num_groups=8,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
            num_class_embeds=1,
        )

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.inner(x, 0, class_labels=condition).sample

    def sharding_units(self) -> list[nn.Module]:
        return []


CONTESTANTS: dict[str, Callable[[], ConditionedNetwork]] = {
    "paperlib": lambda: models.build("unet", **CIFAR, **OURS),
    "azula": lambda: Azula((32, 64, 128), (2, 2, 2)),
    "azula, group norm": lambda: Azula((32, 64, 128), (2, 2, 2), norm="group"),
    "diffusers": lambda: Diffusers((32, 56, 112), 1, (False, False, True)),
}
"""Ours and the peers, azula's with its own norm and with ours."""


def costs() -> dict[str, NetworkCost]:
    """What each costs.

    Raises:
        AssertionError: when parameters or forward FLOPs differ from ours by more than a tenth.
    """
    with torch.device("meta"):
        found = {name: network_cost(make()) for name, make in CONTESTANTS.items()}
    for name, cost in found.items():
        for what in ("parameters", "forward_flops"):
            ratio = getattr(cost, what) / getattr(found["paperlib"], what)
            assert abs(ratio - 1) <= TOLERANCE, f"{name} has {ratio:.2f} times our {what}"
    return found
