"""Which ingredient makes a network learn faster: one exchanged at a time, held-out loss after equal CPU time, over seeds.

The harness is that of ``bench_equal_time.py`` at one thread and one learning rate, 2e-3, which all contestants chose
there.  Between our U-Net and azula's lie the block (its norm, how many, what scales its branch), the arrangement
(patches or pixels) and the condition; each is exchanged in ours while everything else stays.  So are some of
the transformer that the profile ``cifar10-cpu`` trains.  What is reported is the ratio of losses to that of
the unchanged network, the geometric mean over seeds, with Student's interval.

``BENCH_MINUTES`` (default 2) is how long each trains, ``BENCH_SEEDS`` (default 3) how often.
"""

import math
import os
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from azula.nn.layers import LayerNorm
from bench import Row, main
from bench_equal_time import BATCH, race
from contestants import CIFAR, CONTESTANTS, OURS, Azula
from scipy import stats
from torch import Tensor, nn

from paperlib import models
from paperlib.companion import profiles
from paperlib.models import ConditionedNetwork, unet, uvit
from paperlib.models.conditioning import exactly, scale_shift
from paperlib.models.folding import fold, unfold

THREADS = 1
MINUTES = float(os.environ.get("BENCH_MINUTES", "2"))
SEEDS = int(os.environ.get("BENCH_SEEDS", "3"))
RATE = 2e-3
TRANSFORMER = profiles.load("cifar10-cpu").model.options


class LayerNormed(unet.ResidualBlock):
    """Our block with azula's norm, over the channels of each position."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.norm_in = self.norm_out = LayerNorm(dim=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv_in(unet.resample(nn.functional.silu(self.norm_in(x)), self.how))
        h = scale_shift(self.norm_out(h), exactly(self.modulation, condition))
        return self.skip(unet.resample(x, self.how)) + self.conv_out(nn.functional.silu(h))


class Gated(unet.ResidualBlock):
    """Our block whose branch is scaled by the condition, by little at first, in place of a last layer of zeros."""

    def __init__(self, channels_in: int, channels_out: int, condition_width: int, *args, **options) -> None:
        super().__init__(channels_in, channels_out, condition_width, *args, **options)
        self.conv_out.reset_parameters()
        self.gate = nn.Linear(condition_width, channels_out)
        self.gate.weight.data.mul_(1e-2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv_in(unet.resample(nn.functional.silu(self.norm_in(x)), self.how))
        h = unet.modulated(self.norm_out, h, exactly(self.modulation, condition))
        gate = exactly(self.gate, condition)[..., None, None]
        return self.skip(unet.resample(x, self.how)) + gate * self.conv_out(nn.functional.silu(h))


class OneNorm(unet.ResidualBlock):
    """Our block with a single norm, modulated, before the first convolution."""

    def __init__(self, channels_in: int, channels_out: int, condition_width: int, *args, **options) -> None:
        super().__init__(channels_in, channels_out, condition_width, *args, **options)
        self.norm_in, self.norm_out = unet.group_norm(channels_in, affine=False), nn.Identity()
        self.modulation = nn.Linear(condition_width, 2 * channels_in)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = unet.modulated(self.norm_in, x, exactly(self.modulation, condition))
        h = nn.functional.silu(self.conv_in(unet.resample(h, self.how)))
        return self.skip(unet.resample(x, self.how)) + self.conv_out(h)


class AsAzula(Gated):
    """azula's block: one layer norm, modulated, before the first convolution, and a gate."""

    def __init__(self, channels_in: int, channels_out: int, condition_width: int, *args, **options) -> None:
        super().__init__(channels_in, channels_out, condition_width, *args, **options)
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


class Folded(Azula):
    """azula's U-Net on patches of 2 × 2, as ours is."""

    def __init__(self, channels: tuple[int, ...], blocks: tuple[int, ...], patch: int = 2) -> None:
        super().__init__(channels, blocks)
        self.patch = patch
        self.inner.descent[0][0] = nn.Conv2d(3 * patch**2, channels[0], 3, padding=1)
        self.inner.ascent[-1][-1] = nn.Conv2d(channels[0], 3 * patch**2, 3, padding=1)

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        return unfold(self.inner(fold(x, self.patch), condition), self.patch)


def ours(block: type[unet.ResidualBlock] = unet.ResidualBlock, **options) -> ConditionedNetwork:
    """Our U-Net with another block or other options."""
    with patch.object(unet, "ResidualBlock", block):
        return models.build("unet", **CIFAR, **OURS | options)


def transformer(
    block: type[nn.Module] = uvit.TransformerBlock, residual: type[nn.Module] = unet.ResidualBlock, **options
) -> ConditionedNetwork:
    """The profile's transformer with another block or other options."""
    with patch.object(uvit, "TransformerBlock", block), patch.object(uvit, "ResidualBlock", residual):
        return models.build("uvit", **CIFAR, **TRANSFORMER | options)


def without_attention(network: ConditionedNetwork) -> ConditionedNetwork:
    """The same, its middle a convolution alone."""
    network.middle[0].attention = nn.Identity()
    return network


def with_output(network: ConditionedNetwork) -> ConditionedNetwork:
    """The same, its last layer initialised as any other and not at zero."""
    network.outward[-1].reset_parameters()
    return network


def in_bfloat16(network: ConditionedNetwork) -> ConditionedNetwork:
    """The same, computed under automatic mixed precision, when it is measured too."""
    network.body = torch.autocast("cpu", torch.bfloat16)(network.body)
    return network


VARIANTS: dict[str, tuple[str, Callable[[], ConditionedNetwork]]] = {
    "U-Net": ("", ours),
    "layer norm": ("U-Net", lambda: ours(LayerNormed)),
    "gates": ("U-Net", lambda: ours(Gated)),
    "one norm": ("U-Net", lambda: ours(OneNorm)),
    "azula's block": ("U-Net", lambda: ours(AsAzula)),
    "no attention": ("U-Net", lambda: without_attention(ours())),
    "output not at zero": ("U-Net", lambda: with_output(ours())),
    "bfloat16": ("U-Net", lambda: in_bfloat16(ours())),
    "azula": ("U-Net", CONTESTANTS["azula"]),
    "azula on patches": ("U-Net", lambda: Folded((96, 160), (2, 1))),
    "transformer": ("U-Net", transformer),
    "gates everywhere": ("transformer", lambda: transformer(GatedTransformer, Gated)),
    "a third level": ("transformer", lambda: transformer(multipliers=(1, 1, 2))),
    "transformer in bfloat16": ("transformer", lambda: in_bfloat16(transformer())),
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


def ratio(values: list[float], others: list[float]) -> tuple[float, float, float]:
    """Geometric mean of the ratios, paired by seed, and the ends of its 95 % interval."""
    logs = torch.tensor(values).log() - torch.tensor(others).log()
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std().item() / math.sqrt(len(logs))
    mean = logs.mean().item()
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def rows() -> Iterator[Row]:
    """For each variant the ratio of its loss to that of the unchanged network, and its interval."""
    torch.set_num_threads(THREADS)
    found = losses()
    for name, (unchanged, _) in VARIANTS.items():
        if unchanged:
            mean, low, high = ratio(*([loss for loss, _ in found[each]] for each in (name, unchanged)))
            seen, usual = (sum(images for _, images in found[each]) for each in (name, unchanged))
            title = f"held-out loss after {MINUTES:g} minutes of CPU time, {SEEDS} seeds: {name} / {unchanged}"
            yield Row(title, mean, "×", peers={"interval from": low, "to": high, "ratio of images seen": seen / usual})


if __name__ == "__main__":
    main(rows)
