"""Features for tests of what is made of them."""

import torch
from torch import Tensor


def draw(rows: int, columns: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Correlated features around a mean, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mean = torch.randn(columns, generator=generator, dtype=torch.float64)
    return mean + scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mixing
