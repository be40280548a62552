r"""Integrals over log-SNR: Gauss–Legendre panels, laid here and nowhere else.

.. math:: \int f(\lambda)\,d\lambda \approx \sum_{panels} \sum_i \omega_i\, f(\lambda_i).

Panels end at the kinks and steps of f (its *breaks*) where those are known, and are halved towards them where not.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from paperlib.checks import end_slack, require_levels, require_range

LevelFunction = Callable[[Tensor], Tensor]
"""A function of log-SNR, shape (N,) to (N,), such as e(λ) or L(λ; x)."""

ORDER, TOLERANCE = 16, 1e-12
"""Nodes in a panel, and how much it may disagree with its halves, relative to the integral of |f|."""
MOST_PANELS = 4096
"""Panels that an integral may still have to halve: beyond it the integrand is noise, not a function with kinks."""


def panel_nodes(edges: Tensor, order: int = ORDER) -> tuple[Tensor, Tensor]:
    """Nodes and weights on the panels between ``edges`` (P + 1,), ascending; both of shape (P · order,), float64."""
    nodes, weights = (torch.from_numpy(a) for a in legendre.leggauss(order))
    half, middle = edges.diff()[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return (middle + half * nodes).flatten(), (half * weights).flatten()


def edges_between(low: float, high: float, panels: int, breaks: Sequence[float] = ()) -> Tensor:
    """Edges of ``panels`` equal panels over [low, high], and of those that ``breaks`` add; ascending, float64."""
    require_range(low, high)
    inner = torch.tensor([b for b in breaks if low < b < high], dtype=torch.float64)
    return torch.cat([torch.linspace(low, high, panels + 1, dtype=torch.float64), inner]).unique()


def both_sides(low: float, high: float, panels: int, breaks: Sequence[float] = ()) -> Tensor:
    """Levels within (low, high), ascending, float64: just inside either end of each panel of :func:`edges_between`."""
    gap = 8 * end_slack(low, high, torch.float64)
    edges = edges_between(low, high, panels, breaks)
    edges = edges[torch.nn.functional.pad(edges.diff() > 4 * gap, (1, 0), value=True)]  # a break beside a grid point
    return torch.stack([edges[:-1] + gap, edges[1:] - gap], 1).flatten()


def integrate(f: LevelFunction, low: float, high: float, breaks: Sequence[float] = ()) -> Tensor:
    """Integral of f over [low, high], halving the panels that do not yet agree with their halves; a scalar, float64.

    ``breaks`` are kinks or steps of f; those that are not stated are found by halving.  ValueError when the range is
    none, or f is not finite or too rough.
    """
    nodes, weights = (torch.from_numpy(a) for a in legendre.leggauss(ORDER))

    def each(pairs: Tensor) -> Tensor:
        """The integral over each panel, shape (P,), of panels given by their ends, (P, 2)."""
        half, middle = pairs.diff() / 2, pairs.mean(1, keepdim=True)
        return half[:, 0] * (f((middle + half * nodes).flatten()).reshape(len(pairs), ORDER).double() @ weights)

    pairs = edges_between(low, high, 32, breaks).unfold(0, 2, 1)
    coarse = each(pairs)
    scale, total = coarse.abs().sum(), torch.zeros((), dtype=torch.float64)
    for _ in range(60):
        halves = torch.stack([pairs[:, 0], pairs.mean(1), pairs[:, 1]], 1).unfold(1, 2, 1)
        fine = each(halves.flatten(0, 1)).reshape(-1, 2)
        if not torch.isfinite(fine).all():
            raise ValueError(f"the integrand has values that are NaN or infinite on [{low}, {high}].")
        rough = (fine.sum(1) - coarse).abs() > TOLERANCE * scale
        total = total + fine[~rough].sum()
        if not rough.any():
            return total
        if rough.sum() > MOST_PANELS:
            break
        pairs, coarse = halves[rough].flatten(0, 1), fine[rough].flatten()
    raise ValueError(f"the integral did not settle to {TOLERANCE:g} near log-SNR {pairs[0, 0].item():.6g}.")


def antiderivative(
    f: LevelFunction, low: float, high: float, panel_width: float = 0.5, order: int = 16
) -> LevelFunction:
    r"""λ ↦ :math:`\int_{low}^{\lambda} f` up to ``high``, for a smooth f, which is evaluated once.

    Its Legendre expansion, ``order`` nodes in panels of ``panel_width`` nats at most, is integrated term by term.
    """
    require_range(low, high)
    count = math.ceil((high - low) / panel_width)
    edges = torch.linspace(low, high, count + 1, dtype=torch.float64)
    width = (high - low) / count
    values = f(panel_nodes(edges, order)[0]).reshape(count, order).double()
    nodes, weights = legendre.leggauss(order)
    expansion = (np.arange(order) + 0.5) * weights[:, None] * legendre.legvander(nodes, order - 1)
    coefficients = values @ torch.from_numpy(legendre.legint(expansion, lbnd=-1, axis=1)) * width / 2
    # every Legendre polynomial is one at the right end, so the sum of its coefficients is the integral over a panel
    before = torch.nn.functional.pad(coefficients.sum(1).cumsum(0), (1, 0))

    def integral(logsnr: Tensor) -> Tensor:
        require_levels("logsnr", logsnr, low, high)
        position = (logsnr.double() - low) / width
        panel = position.floor().long().clamp(0, count - 1)
        basis = torch.from_numpy(legendre.legvander((2 * (position - panel) - 1).numpy(), order))
        return (before[panel] + (basis * coefficients[panel]).sum(-1)).to(logsnr.dtype)

    return integral
