"""Which ingredient makes a network learn faster: held-out loss after equal CPU time, one exchanged at a time.

The harness is that of ``bench_equal_time.py`` at one thread and one learning rate, 2e-3, which all contestants chose
there.  Our U-Net gets azula's block (one layer norm, modulated, before two convolutions, and a gate), and stands beside
azula's own; the transformer that the profile ``cifar10-cpu`` trains gets a third level, so that it works on 4 × 4
positions, and with it gates in place of last layers of zeros, bfloat16, EDM's preconditioning in place of
v-prediction (the same loss), or the initialisation of DiT in place of torch's.  Reported is the ratio of losses to the
network named, the geometric mean over seeds, with Student's interval.

``BENCH_MINUTES`` (default 2) is how long each trains, ``BENCH_SEEDS`` (default 3) how often; an hour.
"""

import os
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pandas as pd
import torch
from azula.nn.layers import LayerNorm
from bench import Row, main
from bench_equal_time import BATCH, race
from contestants import CIFAR, CONTESTANTS, OURS
from torch import Tensor, nn

from paperlib import models, predictions
from paperlib.companion import profiles
from paperlib.models import ConditionedNetwork, unet, uvit
from paperlib.models.conditioning import exactly, scale_shift
from tools.predictions import paired_ratio

THREADS = 1
MINUTES = float(os.environ.get("BENCH_MINUTES", "2"))
SEEDS = int(os.environ.get("BENCH_SEEDS", "3"))
RATE = 2e-3
TRANSFORMER = profiles.load("cifar10-cpu").model.options


class Gated(unet.ResidualBlock):
    """Our block whose branch is scaled by the condition, by little at first, in place of a last layer of zeros."""

    def __init__(
        self, channels_in: int, channels_out: int, condition_width: int, how: unet.Resample = None, dropout: float = 0.0
    ) -> None:
        super().__init__(channels_in, channels_out, condition_width, how, dropout)
        self.conv_out.reset_parameters()
        self.gate = nn.Linear(condition_width, channels_out)
        self.gate.weight.data.mul_(1e-2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv_in(unet.resample(nn.functional.silu(self.norm_in(x)), self.how))
        h = unet.modulated(self.norm_out, h, exactly(self.modulation, condition))
        gate = exactly(self.gate, condition)[..., None, None]
        return self.skip(unet.resample(x, self.how)) + gate * self.conv_out(nn.functional.silu(h))


class AsAzula(Gated):
    """azula's block: one layer norm, modulated, before the first convolution, and a gate."""

    def __init__(
        self, channels_in: int, channels_out: int, condition_width: int, how: unet.Resample = None, dropout: float = 0.0
    ) -> None:
        super().__init__(channels_in, channels_out, condition_width, how, dropout)
        self.norm_in, self.norm_out = LayerNorm(dim=1), nn.Identity()
        self.modulation = nn.Linear(condition_width, 2 * channels_in)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = scale_shift(self.norm_in(x), exactly(self.modulation, condition))
        h = self.conv_out(nn.functional.silu(self.conv_in(unet.resample(h, self.how))))
        return self.skip(unet.resample(x, self.how)) + exactly(self.gate, condition)[..., None, None] * h


class GatedTransformer(uvit.TransformerBlock):
    """Our transformer's block with gates in place of last layers of zeros, as DiT's."""

    def __init__(self, width: int, head_channels: int, condition_width: int, dropout: float = 0.0) -> None:
        super().__init__(width, head_channels, condition_width, dropout)
        self.out.reset_parameters()
        self.perceptron[-1].reset_parameters()
        self.gates = nn.Linear(condition_width, 2 * width)
        self.gates.weight.data.mul_(1e-2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, scale_hidden, shift_hidden = exactly(self.modulation, condition)[:, None].chunk(4, dim=-1)
        gate, gate_hidden = exactly(self.gates, condition)[:, None].chunk(2, dim=-1)
        x = x + gate * self._attend(torch.addcmul(shift, self.norm(x), 1 + scale))
        return x + gate_hidden * self.perceptron(torch.addcmul(shift_hidden, self.norm(x), 1 + scale_hidden))


def ours(block: type[unet.ResidualBlock] = unet.ResidualBlock, **options: object) -> ConditionedNetwork:
    """Our U-Net with another block or other options."""
    with patch.object(unet, "ResidualBlock", block):
        return models.build("unet", **CIFAR, **OURS | options)


def transformer(
    block: type[nn.Module] = uvit.TransformerBlock, residual: type[nn.Module] = unet.ResidualBlock, **options: object
) -> ConditionedNetwork:
    """The profile's transformer with another block or other options."""
    with patch.object(uvit, "TransformerBlock", block), patch.object(uvit, "ResidualBlock", residual):
        return models.build("uvit", **CIFAR, **TRANSFORMER | options)


def in_bfloat16(network: ConditionedNetwork) -> ConditionedNetwork:
    """The same, computed under automatic mixed precision, when it is measured too."""
    network.body = torch.autocast("cpu", torch.bfloat16)(network.body)
    return network


def preconditioned(network: ConditionedNetwork) -> ConditionedNetwork:
    """The same, its output being F of EDM (Karras et al. 2022), turned into v for the loss."""
    plain = network.forward

    def forward(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        return predictions.F.convert(plain(z, logsnr, label), z, logsnr, to=predictions.V)

    network.forward = forward  # type: ignore[method-assign]
    return network


def xavier(network: ConditionedNetwork) -> ConditionedNetwork:
    """The same with matrices drawn as Glorot & Bengio (2010), no biases, as DiT; what begins at zero still does."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.any():
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


THIRD = {"multipliers": (1, 1, 2)}
VARIANTS: dict[str, tuple[str, Callable[[], ConditionedNetwork]]] = {
    "U-Net": ("", ours),
    "azula's block": ("U-Net", lambda: ours(AsAzula)),
    "azula": ("U-Net", CONTESTANTS["azula"]),
    "transformer": ("U-Net", transformer),
    "a third level": ("transformer", lambda: transformer(**THIRD)),
    "a third level, gates": ("transformer", lambda: transformer(GatedTransformer, Gated, **THIRD)),
    "a third level, bfloat16": ("transformer", lambda: in_bfloat16(transformer(**THIRD))),
    "a third level, F-prediction": ("a third level", lambda: preconditioned(transformer(**THIRD))),
    "a third level, Xavier": ("a third level", lambda: xavier(transformer(**THIRD))),
}
"""Each with the name of the network that it is compared with."""


def losses() -> dict[str, list[tuple[float, int]]]:
    """Held-out loss and images seen of each variant, seed by seed."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in VARIANTS}
    for seed in range(SEEDS):
        entries = {(name, RATE): 60 * MINUTES for name in VARIANTS}
        for (name, _), (loss, run) in race(entries, lambda name: VARIANTS[name][1](), seed).items():
            found[name].append((loss, BATCH * run.step))
            print(f"  seed {seed}, {name}: {loss:.5f} after {BATCH * run.step} images", flush=True)
    return found


def rows() -> Iterator[Row]:
    """For each variant the ratio of its loss to that of the unchanged network, and its interval."""
    torch.set_num_threads(THREADS)
    found = losses()
    for name, (unchanged, _) in VARIANTS.items():
        if unchanged:
            times = paired_ratio(*(pd.Series([loss for loss, _ in found[each]]) for each in (name, unchanged)))
            seen, usual = (sum(images for _, images in found[each]) for each in (name, unchanged))
            title = f"held-out loss after {MINUTES:g} minutes of CPU time, {SEEDS} seeds: {name} / {unchanged}"
            interval = {"interval from": times.low, "to": times.high, "ratio of images seen": seen / usual}
            yield Row(title, times.value, "×", peers=interval)


if __name__ == "__main__":
    main(rows)
