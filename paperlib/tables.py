r"""Noise schedules that are tables: histograms of λ, and the levels of a chain of discrete steps.

How a table becomes a density is a convention, which each class states.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib.checks import Row, at_least_float32, numbers, require_positive, require_within, table
from paperlib.schedules import TruncatedSchedule, register, solve


def _piece(x: Tensor, at: Tensor) -> Tensor:
    """Which interval of ``at``, increasing, each x lies in; the first or last for what lies outside."""
    return torch.searchsorted(at, x.detach().contiguous(), right=True).clamp(1, len(at) - 1) - 1


def interpolate(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """The piecewise linear function through (``at``, ``values``), ``at`` increasing, its end pieces prolonged."""
    at, values = at.to(x.device), values.to(x.device)
    piece, slope = _piece(x, at), values.diff() / at.diff()
    return values[piece] + slope[piece] * (x - at[piece])


@register("histogram")
@dataclass(frozen=True)
class Histogram(TruncatedSchedule):
    """A density that was measured or drawn by hand: piecewise constant between ``edges``, t(λ) piecewise linear.

    Args:
        edges: levels in nats, increasing, N + 1 of them.
        heights: p between the edges up to a constant, N of them, positive: where p is zero no level is ever drawn.
    """

    edges: Row = field(kw_only=True)
    heights: Row = field(kw_only=True)

    def __post_init__(self) -> None:
        edges, heights = table("edges", self.edges, "heights", self.heights, spare=1)
        if min(heights) <= 0:
            raise ValueError(f"heights must be positive, got {min(heights)}; merge the bin with a neighbour.")
        vars(self).update(edges=edges, heights=heights)
        super().__post_init__()

    @classmethod
    def from_samples(cls, logsnr: Tensor, bins: int = 64) -> "Histogram":
        """The density of drawn levels (nats, any shape), in ``bins`` that hold equally many of them: none is empty."""
        if not 1 <= bins < logsnr.numel():
            raise ValueError(f"bins must lie between 1 and the number of samples, {logsnr.numel()}, got {bins}.")
        edges = torch.quantile(logsnr.detach().double().flatten(), torch.linspace(0, 1, bins + 1, dtype=torch.float64))
        return cls(edges=edges, heights=1 / edges.diff().clamp(min=torch.finfo(torch.float64).tiny))

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edges, probability below and above each, and log p between them."""
        edges, heights = (torch.tensor(row, dtype=torch.float64) for row in (self.edges, self.heights))
        mass = heights * edges.diff() / (heights * edges.diff()).sum()
        none = mass.new_zeros(1)
        below, above = torch.cat([none, mass.cumsum(0)]), torch.cat([none, mass.flip(0).cumsum(0)]).flip(0)
        return edges, below, above, (mass / edges.diff()).log()

    @property
    def support(self) -> tuple[float, float]:
        return float(self.edges[0]), float(self.edges[-1])

    @property
    def breaks(self) -> tuple[float, ...]:
        return tuple(map(float, self.edges[1:-1]))

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        edges, below, above, _ = self._knots
        return interpolate(logsnr, edges, above), interpolate(logsnr, edges, below)

    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        edges, below, above, _ = self._knots
        from_above = interpolate(upper, above.flip(0), edges.flip(0))
        return torch.where(upper < lower, from_above, interpolate(lower, below, edges))

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        edges, _, _, log_density = (knot.to(logsnr.device) for knot in self._knots)
        return log_density[_piece(logsnr, edges)] + 0 * logsnr  # 0 · λ keeps the graph whole, and NaN what it is


@register("discrete")
@dataclass(frozen=True, repr=False)
class StepTable(TruncatedSchedule):
    """The levels of a chain of T steps, λ₀ > λ₁ > … > λ_{T−1}, drawn uniformly; of ᾱ or of β, one of the two.

    **Between the steps**: step i is the quantile t = (i + 1)/(N + 1), and logit t the monotone cubic of λ through them
    (PCHIP; Fritsch & Butland 1984), so that p is continuous and weightings get no steps that only the table would have.
    N is T − 1 where the chain ends in noise alone; where it stops before, it counts as the first half of one, N = 2T,
    so that p keeps its trend.  Other conventions move the peak of a weighting by about 0.01 nats.

    **Zero terminal SNR**: the last level may be λ = −∞.  There is no density there: it is a term of its own, with the
    share ``terminal_mass`` of the draws (:meth:`paperlib.objectives.PublishedLoss.terminal`), and the range ends at the
    step before.

    Args:
        alphas_cumprod: ᾱ = α², from the least noisy step on.
        betas: β of each step; ᾱ is the running product of 1 − β.
    """

    alphas_cumprod: Row | None = None
    betas: Row | None = None

    def __post_init__(self) -> None:
        if (self.alphas_cumprod is None) == (self.betas is None):
            raise ValueError("a table takes alphas_cumprod or betas, one of the two.")
        name = "betas" if self.alphas_cumprod is None else "alphas_cumprod"
        vars(self)[name] = numbers(name, getattr(self, name))
        levels = self.levels
        if len(levels) < 3 or not levels[:-1].isfinite().all() or not (levels.diff() < 0).all():
            raise ValueError(
                f"the levels of a table are finite (the last may be −∞) and decrease from step "
                f"to step, three or more of them, as ᾱ does; got {levels[:3].tolist()} … {levels[-2:].tolist()}."
            )
        super().__post_init__()

    def __repr__(self) -> str:
        """Without its numbers, of which there are a thousand."""
        return f"StepTable({len(self.levels)} steps, λ from {self.ends[0]:.6g} to {self.ends[1]:.6g})"

    @cached_property
    def levels(self) -> Tensor:
        """λ of every step, in nats, decreasing, shape (T,), float64."""
        if self.betas is None:
            return torch.logit(torch.tensor(self.alphas_cumprod, dtype=torch.float64))
        log_product = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0)
        return log_product - torch.log(-torch.expm1(log_product))  # with the digits of a small 1 − ᾱ

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor, Tensor]:
        """Levels, increasing, and logit t and its slope at each."""
        edges = self._finite.flip(0)
        index = torch.arange(len(edges), dtype=torch.float64)
        logit = torch.log(len(edges) - index) - torch.log(self._quantiles - len(edges) + index + 1)
        width, secant = edges.diff(), logit.diff() / edges.diff()
        before, after = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
        slope = torch.cat([secant[:1], (before + after) / (before / secant[:-1] + after / secant[1:]), secant[-1:]])
        for end, inner in ((0, 1), (-1, -2)):  # prolonged from the two nearest intervals, and still falling
            share = width[end] / (width[end] + width[inner])
            slope[end] = torch.clamp(
                (1 + share) * secant[end] - share * secant[inner], 3 * secant[end], 0.1 * secant[end]
            )
        return edges, logit, slope

    @property
    def _quantiles(self) -> int:
        """N of the convention."""
        return len(self._finite) if math.isinf(self.levels[-1]) else 2 * len(self.levels)

    @property
    def _finite(self) -> Tensor:
        return self.levels[self.levels.isfinite()]

    @property
    def support(self) -> tuple[float, float]:
        return self._finite[-1].item(), self._finite[0].item()

    def _logit(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """logit t and its slope: the cubic of each interval from values and slopes at its ends."""
        edges, logit, slope = (knot.to(logsnr.device) for knot in self._knots)
        low = _piece(logsnr, edges)
        width = edges[low + 1] - edges[low]
        s, rise = (logsnr - edges[low]) / width, logit[low + 1] - logit[low]
        d0, d1 = slope[low], slope[low + 1]
        value = logit[low] + s**2 * (3 - 2 * s) * rise + width * s * (1 - s) * ((1 - s) * d0 - s * d1)
        return value, 6 * s * (1 - s) * rise / width + (1 - s) * (1 - 3 * s) * d0 + s * (3 * s - 2) * d1

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        logit, _ = self._logit(logsnr)
        return torch.sigmoid(logit), torch.sigmoid(-logit)

    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        def rising(logsnr: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = self._logit(logsnr)
            return -value, -slope

        edges, logit, _ = (knot.to(upper.device) for knot in self._knots)
        target = lower.log() - upper.log()
        low = _piece(target, -logit)
        start = interpolate(target.detach(), -logit, edges)
        return solve(rising, target, start, edges[low], edges[low + 1], steps=12)

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        logit, slope = self._logit(logsnr)
        return F.logsigmoid(logit) + F.logsigmoid(-logit) + (-slope).log()

    @property
    def terminal_mass(self) -> float:
        """1/T where the last level is λ = −∞ and no other ``logsnr_min`` was stated; else 0."""
        ends_there = self.logsnr_min is None and math.isinf(self.levels[-1])
        return 1 / len(self.levels) if ends_there else 0.0

    def logsnr_at(self, index: Tensor) -> Tensor:
        """λ of whole steps, 0 being the least noisy; integers of any shape, IndexError for steps that are not there."""
        if index.is_floating_point() or (index < 0).any() or (index >= len(self.levels)).any():
            raise IndexError(f"steps are whole numbers from 0 to {len(self.levels) - 1}, got {index}.")
        return self.levels.to(index.device)[index].to(torch.get_default_dtype())

    def timestep(self, logsnr: Tensor) -> Tensor:
        """The step of each level, with a fraction between the steps: what networks of integer timesteps are told.

        Round it where they want whole numbers; float32 at least.  ValueError for levels outside the table.
        """
        noise, (low, high) = torch.isneginf(logsnr) & math.isinf(self.levels[-1]), self.support
        slack = 1e-5 * max(1.0, abs(low), abs(high))
        level = torch.where(noise, low, logsnr.double())
        require_within("logsnr", level, low - slack, high + slack)
        last = len(self._finite) - 1
        inside = self._tails(level.clamp(low, high))[0] * (self._quantiles + 1) - 1
        return torch.where(noise, last + 1.0, inside.clamp(0, last)).to(at_least_float32(logsnr.dtype))


@register("ddpm")
def DDPM(
    logsnr_min: float | None = None,
    logsnr_max: float | None = None,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    number: int = 1000,
    zero_terminal: bool = False,
    power: float = 1.0,
) -> StepTable:
    """DDPM's own table, β linear in the step; λ from 9.210 to −10.118, not those of
    :class:`paperlib.schedules.LinearBeta`.

    (Ho et al. 2020.)

    Args:
        logsnr_min, logsnr_max: as of :class:`paperlib.schedules.TruncatedSchedule`.
        beta_start, beta_end: β of the first and of the last step.
        number: T, number of steps.
        zero_terminal: move and stretch α so that it ends at zero.  (Lin et al. 2024.)
        power: β is that power of something linear in the step.
    """
    require_positive("number", number, whole=True)
    require_positive("power", power)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"0 < beta_start ≤ beta_end < 1, got {beta_start} and {beta_end}.")
    betas = torch.linspace(beta_start ** (1 / power), beta_end ** (1 / power), number, dtype=torch.float64) ** power
    if not zero_terminal:
        return StepTable(logsnr_min, logsnr_max, betas=betas)
    alpha = (0.5 * torch.log1p(-betas).cumsum(0)).exp()
    return StepTable(
        logsnr_min, logsnr_max, alphas_cumprod=((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    )


ScaledLinear = register("scaled_linear")(partial(DDPM, beta_start=0.00085, beta_end=0.012, power=2.0))
"""Stable Diffusion's table, √β linear in the step; λ from 7.069 to −5.364.  (Rombach et al. 2022)"""
