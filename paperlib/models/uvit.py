r"""The U-ViT of simple diffusion (Hoogeboom, Heek & Salimans 2023): convolutions around a transformer, in pixel space.

The image is folded to fewer, deeper pixels (:mod:`paperlib.models.folding`).  Levels of residual convolutions halve the
resolution, as a U-Net's do; a transformer works at the lowest; and the levels come back, each block joined to its
mirror.  Nearly all parameters and computation lie in the transformer, where activations are small.  Dropout acts in the
transformer alone: at high resolutions it hurts.  Every block is scaled and shifted by level and class.  With no level
of convolutions it is a plain transformer on patches.

What comes from the paper, as a public review quotes it: 128 channels times 1, 2, 4 on three levels of two blocks, 1024
for the condition, 36 transformer blocks of 16 · 128 = 2048 channels at 16 × 16 with plain residual connections and
dropout 0.2, no folding at 128 × 128, one wavelet transform at 256 × 256, two (5/3) at 512 × 512, "2B" parameters.  What
is ours, since the paper's text was not at hand: ADM's residual block, average pooling or repetition with a 1 × 1
convolution between levels, as many joins as blocks, learned positions, normalised queries and keys, a hidden layer of
four times the width, and heads of 128 channels (the review says four heads, but 512 channels a head are more than fused
attention takes).
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from paperlib.models.conditioning import ConditionedNetwork, attend, exactly, zero_initialised
from paperlib.models.folding import Folding, fold, require_foldable, unfold
from paperlib.models.unet import ResidualBlock, group_norm, resample


class TransformerBlock(nn.Module):
    """Self-attention, then a perceptron, each beside a skip connection and on features scaled and shifted.

    Args:
        width: channels of a token, a multiple of ``head_channels``.
        head_channels: channels of one head.
        condition_width: length of the vector that scales and shifts are made of.
        dropout: probability of dropout at the hidden layer (of 4 · width) and at the end of both branches, in training.
    """

    def __init__(self, width: int, head_channels: int, condition_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % head_channels:
            raise ValueError(f"head_channels ({head_channels}) must divide the width of the transformer ({width}).")
        self.heads = width // head_channels
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(condition_width, 4 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_query, self.norm_key = nn.RMSNorm(head_channels), nn.RMSNorm(head_channels)
        self.out = zero_initialised(nn.Linear(width, width))
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            zero_initialised(nn.Linear(4 * width, width)),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` (B, N, width) with ``condition`` (B, condition_width), and so the result."""
        scale, shift, scale_hidden, shift_hidden = exactly(self.modulation, condition)[:, None].chunk(4, dim=-1)
        x = x + self.dropout(self._attend(torch.addcmul(shift, self.norm(x), 1 + scale)))
        return x + self.dropout(self.perceptron(torch.addcmul(shift_hidden, self.norm(x), 1 + scale_hidden)))

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(exactly(self.norm_query, q), exactly(self.norm_key, k), v)
        return self.out(attended.transpose(1, 2).flatten(2))


class Transition(nn.Module):
    """From one level to the next: a 1 × 1 convolution at the lower resolution, after averaging or before repetition.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        how: ``"up"`` doubles the resolution, ``"down"`` halves it.
    """

    def __init__(self, channels_in: int, channels_out: int, how: Literal["up", "down"]) -> None:
        super().__init__()
        self.how: Literal["up", "down"] = how
        self.conv = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) to (B, channels_out, H', W')."""
        return resample(self.conv(x), "up") if self.how == "up" else self.conv(resample(x, "down"))


class UViT(ConditionedNetwork):
    """Simple diffusion's U-ViT, or a plain transformer on patches.  Its output starts at zero.

    Arguments as in :class:`ConditionedNetwork`, and

    Args:
        image_shape: (C, H, W) of the data; H and W divisible by patch · 2^(len(multipliers) − 1).
        channels: unit of the widths.
        multipliers: width of each level in multiples of ``channels``, each level at half the resolution of the one
            before; the last is the transformer's, the others are levels of convolutions.
        blocks: residual blocks of each level of convolutions, on the way down and again on the way up.
        transformer_blocks: blocks of the transformer.
        head_channels: channels of one attention head.
        patch: side of the square of pixels that is folded into one, a power of two.
        folding: how: ``"patch"`` rearranges pixels, ``"wavelet"`` transforms them.
        dropout: probability of dropout in the transformer, in training.
        condition_width: length of the vector that carries level and class.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        sigma_data: float,
        channels: int = 128,
        multipliers: Sequence[int] = (1,),
        blocks: int = 2,
        transformer_blocks: int = 4,
        head_channels: int = 32,
        patch: int = 1,
        folding: Folding = "patch",
        dropout: float = 0.0,
        condition_width: int = 128,
    ) -> None:
        super().__init__(image_shape, num_classes, sigma_data, condition_width)
        self.patch, self.folding = patch, folding
        height, breadth = require_foldable(image_shape, patch, len(multipliers), folding)
        widths = [channels * multiplier for multiplier in multipliers]
        folded = image_shape[0] * patch**2
        self.inward = nn.Conv2d(folded, widths[0], 3, padding=1)
        down, up = list[nn.Module](), list[nn.Module]()  # which mirrors it
        for width, lower in pairwise(widths):
            down += [ResidualBlock(width, width, condition_width) for _ in range(blocks)]
            down.append(Transition(width, lower, "down"))
            back = [ResidualBlock(2 * width, width, condition_width) for _ in range(blocks)]
            up = [Transition(lower, width, "up"), *back, *up]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.positions = nn.Parameter(0.02 * torch.randn(height * breadth, widths[-1]))
        block = partial(TransformerBlock, widths[-1], head_channels, condition_width, dropout=dropout)
        self.transformer = nn.ModuleList(block() for _ in range(transformer_blocks))
        self.outward = nn.Sequential(
            group_norm(widths[0]), nn.SiLU(), zero_initialised(nn.Conv2d(widths[0], folded, 3, padding=1))
        )

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.inward(fold(x, self.patch, self.folding))
        skips = []
        for module in self.down:
            if isinstance(module, Transition):
                h = module(h)
            else:
                h = module(h, condition)
                skips.append(h)
        h = self._transform(h, condition)
        for module in self.up:
            h = module(h) if isinstance(module, Transition) else module(torch.cat([h, skips.pop()], dim=1), condition)
        return unfold(exactly(self.outward, h), self.patch, self.folding)

    def sharding_units(self) -> list[nn.Module]:
        return [*self.down, *self.transformer, *self.up]

    def _transform(self, h: Tensor, condition: Tensor) -> Tensor:
        """The transformer, on (B, C, H, W)."""
        tokens = h.flatten(2).mT + self.positions
        for block in self.transformer:
            tokens = block(tokens, condition)
        return tokens.mT.reshape(h.shape)
