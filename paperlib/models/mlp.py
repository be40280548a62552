"""A residual multilayer perceptron: the smallest network that learns small images."""

from torch import Tensor, nn

from paperlib.models.conditioning import ConditionedNetwork, exactly, scale_shift, zero_initialised


class MLPBlock(nn.Module):
    """h + W₂ SiLU(W₁ (norm(h) · (1 + scale) + shift)); W₂ starts at zero.

    Args:
        width: length of h.
        hidden: length of the hidden layer.
        condition_width: length of the vector that scale and shift are made of.
    """

    def __init__(self, width: int, hidden: int, condition_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(condition_width, 2 * width)
        self.branch = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), zero_initialised(nn.Linear(hidden, width)))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """``h`` (B, width), ``condition`` (B, condition_width); returns (B, width)."""
        return h + self.branch(scale_shift(self.norm(h), self.modulation(condition)))


class MLP(ConditionedNetwork):
    """A residual MLP on flattened images, conditioned in every block.  Its output starts at zero.

    Arguments as in :class:`ConditionedNetwork`, and

    Args:
        width: length of the residual stream.
        hidden: length of the hidden layers.
        blocks: number of residual blocks.
        condition_width: length of the vector that carries level and class.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        sigma_data: float,
        width: int = 256,
        hidden: int = 256,
        blocks: int = 3,
        condition_width: int = 64,
    ) -> None:
        super().__init__(image_shape, num_classes, sigma_data, condition_width)
        pixels = image_shape[0] * image_shape[1] * image_shape[2]
        self.inward = nn.Linear(pixels, width)
        self.blocks = nn.ModuleList(MLPBlock(width, hidden, condition_width) for _ in range(blocks))
        self.outward = nn.Sequential(nn.LayerNorm(width), zero_initialised(nn.Linear(width, pixels)))

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.inward(x.flatten(1))
        for block in self.blocks:
            h = block(h, condition)
        return exactly(self.outward, h).reshape(x.shape)

    def sharding_units(self) -> list[nn.Module]:
        return list(self.blocks)
