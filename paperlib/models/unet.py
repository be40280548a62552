"""The U-Net of ADM (Dhariwal & Nichol 2021), in whatever size its arguments say.

Residual blocks scaled and shifted by level and class, which also halve and double the resolution (as in BigGAN),
self-attention at chosen resolutions, skip connections from every block of the way down to its mirror on the way up.
Residual branches and the output start at zero.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, interpolate

from paperlib.checks import require_positive
from paperlib.models.conditioning import ConditionedNetwork, attend, exactly, scale_shift, zero_initialised
from paperlib.models.folding import fold, require_foldable, unfold

Resample = Literal["up", "down"] | None


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group normalisation in 32 groups, fewer where that would leave a group less than four channels."""
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 4))), channels, affine=affine)


def resample(x: Tensor, how: Resample) -> Tensor:
    """Double the resolution by repetition, halve it by averages, or neither."""
    if how is None:
        return x
    if x.device.type != "cpu":
        return interpolate(x, scale_factor=2, mode="nearest") if how == "up" else avg_pool2d(x, 2)
    # a convolution of each channel takes a quarter of the time of what is made for it
    square = x.new_full((x.shape[1], 1, 2, 2), 1.0 if how == "up" else 0.25)
    return (conv_transpose2d if how == "up" else conv2d)(x, square, stride=2, groups=x.shape[1])


def modulated(norm: nn.GroupNorm, x: Tensor, modulation: Tensor) -> Tensor:
    """``scale_shift(norm(x), modulation)``, in a single pass over ``x`` where its channels lie one after the other.

    Group normalisation scales and shifts by channel.  Taken as one example of B · C channels, a batch has its own scale
    and shift for every channel of every example.

    Args:
        norm: a group normalisation without parameters.
        x: (B, C, H, W).
        modulation: scale and shift, (B, 2 C).
    """
    if not x.is_contiguous():
        return scale_shift(norm(x), modulation)
    scale, shift = modulation.chunk(2, dim=1)
    groups, together = len(x) * norm.num_groups, x.reshape(1, -1, *x.shape[2:])
    return nn.functional.group_norm(together, groups, (1 + scale).flatten(), shift.flatten(), norm.eps).reshape(x.shape)


class ResidualBlock(nn.Module):
    """Two convolutions, the second on features scaled and shifted by the condition, beside a skip connection.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        condition_width: length of the vector that scale and shift are made of.
        how: ``"up"`` doubles the resolution, ``"down"`` halves it.
        dropout: probability with which the second convolution is kept from seeing a feature, in training.
    """

    def __init__(
        self, channels_in: int, channels_out: int, condition_width: int, how: Resample = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.how: Resample = how
        self.norm_in = group_norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(condition_width, 2 * channels_out)
        self.norm_out = group_norm(channels_out, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero_initialised(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` (B, channels_in, H, W) to (B, channels_out, H', W')."""
        h = self.conv_in(resample(nn.functional.silu(self.norm_in(x)), self.how))
        h = modulated(self.norm_out, h, exactly(self.modulation, condition))
        return self.skip(resample(x, self.how)) + self.conv_out(self.dropout(nn.functional.silu(h)))


class Attention(nn.Module):
    """Multi-head self-attention over the positions of an image, beside a skip connection.

    Args:
        channels: channels of input and output, a multiple of ``head_channels``.
        head_channels: channels of one head.
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if channels % head_channels:
            raise ValueError(f"head_channels ({head_channels}) must divide the channels of attention ({channels}).")
        self.heads = channels // head_channels
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_initialised(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W), and so the result."""
        tokens = self.norm(x).flatten(2).mT
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(attended).mT.reshape(x.shape)


class Stage(nn.Module):
    """A residual block, and attention after it where wanted: the unit that skip connections join.

    Args:
        block: the residual block.
        attention: what follows it, or None.
    """

    def __init__(self, block: ResidualBlock, attention: Attention | None = None) -> None:
        super().__init__()
        self.block = block
        self.attention = nn.Identity() if attention is None else attention

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.attention(self.block(x, condition))


class UNet(ConditionedNetwork):
    """ADM's U-Net.  Its output starts at zero.  Arguments as in :class:`ConditionedNetwork`, and

    Args:
        image_shape: (C, H, W) of the data; H and W divisible by patch · 2^(len(multipliers) − 1).
        channels: channels at the highest resolution.
        multipliers: channels at each resolution, each half the one before, in multiples of ``channels``.
        blocks: residual blocks at each resolution on the way down; one more on the way up.
        attention: heights of the feature maps at which every block attends; the middle always does.
        head_channels: channels of one attention head.
        condition_width: length of the vector that carries level and class; 4 · channels when None, as in ADM.
        dropout: probability of dropout in every residual block, in training.
        patch: side of the square of pixels that is folded into one before and unfolded after; 1 in ADM.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        sigma_data: float,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (4,),
        head_channels: int = 32,
        condition_width: int | None = None,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        width = 4 * channels if condition_width is None else condition_width
        super().__init__(image_shape, num_classes, sigma_data, width)
        require_foldable(image_shape, patch, len(multipliers))
        self.patch, folded = patch, image_shape[0] * patch**2
        sizes = [image_shape[1] // (patch * 2**level) for level in range(len(multipliers))]
        widths = [channels * multiplier for multiplier in multipliers]
        require_positive("blocks", blocks)

        def stage(channels_in: int, channels_out: int, size: int = 0, how: Resample = None) -> Stage:
            block = ResidualBlock(channels_in, channels_out, width, how, dropout)
            return Stage(block, Attention(channels_out, head_channels) if size in attention else None)

        self.inward = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.down, skips = nn.ModuleList(), [widths[0]]  # and the channels of each skip connection
        for level in range(len(widths)):
            if level > 0:
                self.down.append(stage(skips[-1], skips[-1], how="down"))
                skips.append(skips[-1])
            for _ in range(blocks):
                self.down.append(stage(skips[-1], widths[level], sizes[level]))
                skips.append(widths[level])
        last = widths[-1]
        first, second = (ResidualBlock(last, last, width, dropout=dropout) for _ in range(2))
        self.middle = nn.ModuleList([Stage(first, Attention(last, head_channels)), Stage(second)])
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(last + skips.pop(), widths[level], sizes[level]))
                last = widths[level]
            if level > 0:
                self.up.append(stage(last, last, how="up"))
        self.outward = nn.Sequential(
            group_norm(widths[0]), nn.SiLU(), zero_initialised(nn.Conv2d(widths[0], folded, 3, padding=1))
        )

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.inward(fold(x, self.patch))
        skips = [h]
        for stage in self.down:
            h = stage(h, condition)
            skips.append(h)
        for stage in self.middle:
            h = stage(h, condition)
        for stage in self.up:  # all but those that double the resolution take the skip that was made last
            joined = h if stage.block.how else torch.cat([h, skips.pop()], dim=1)  # type: ignore[union-attr]
            h = stage(joined, condition)
        return unfold(exactly(self.outward, h), self.patch)

    def sharding_units(self) -> list[nn.Module]:
        return [*self.down, *self.middle, *self.up]
