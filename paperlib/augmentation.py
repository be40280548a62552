r"""The augmentation distribution p_w: the noise levels at which a weighted loss takes the ELBO.

It is the measure of −w, relative to its value at the noisy end,

.. math:: p_w = -\frac{dw}{w(\lambda_{min})},

with a density where w is smooth, a point mass at each step of w, and w(λ_max)/w(λ_min) on clean data; together, one.
For a monotone w it is a probability distribution.  Where w rises it is negative (Section 3, weightings that are not
monotone) and the loss is the likelihood of no data: its ideal minimiser is still that of the ELBO, but moving error
across such levels to a noisier one lowers it, although the ELBO of the levels between gets worse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from paperlib.checks import at_least_float32, end_slack, outside, require_range, require_within
from paperlib.quadrature import LevelFunction, both_sides, integrate

ROUNDING = 1e-12
"""How much log w may rise without being said to: rounding in float64."""
STEP = 1e-6
"""Smallest relative step of w that counts where none is stated: below are those of a w that was rounded to float32."""


class Weight(Protocol):
    """What is asked of w here; a :class:`paperlib.weightings.Weighting` has it."""

    def log(self, logsnr: Tensor) -> Tensor: ...

    @property
    def breaks(self) -> Sequence[float]: ...

    def is_monotonic(self, logsnr_min: float, logsnr_max: float) -> bool: ...


@dataclass(frozen=True, eq=False)
class Augmentation:
    """p_w of a weighting on [logsnr_min, logsnr_max].  (Section 3, the distribution of noise levels)

    Args:
        weighting: w, positive and finite at logsnr_min.
        logsnr_min: lower end of the range, where w is taken to be one.
        logsnr_max: upper end of the range.

    Raises:
        ValueError: for a range that is none, or a w that is zero or infinite at logsnr_min, or infinite at logsnr_max.
    """

    weighting: Weight
    logsnr_min: float
    logsnr_max: float

    def __post_init__(self) -> None:
        require_range(self.logsnr_min, self.logsnr_max)
        low, high = self._log_ends
        if not math.isfinite(low) or not high < math.inf:
            raise ValueError(
                f"{self.weighting} has log w = {low} at logsnr_min ({self.logsnr_min}) and {high} at logsnr_max "
                f"({self.logsnr_max}): p_w = -dw/w(logsnr_min) needs a positive, finite w at the lower end and "
                f"a finite one at the upper; choose a range where it has them."
            )

    @cached_property
    def _log_ends(self) -> tuple[float, float]:
        """log w at the ends, seen from within."""
        gap = 8 * end_slack(self.logsnr_min, self.logsnr_max, torch.float64)
        ends = torch.tensor([self.logsnr_min + gap, self.logsnr_max - gap], dtype=torch.float64)
        low, high = self.weighting.log(ends).tolist()
        return low, high

    def _relative(self, logsnr: Tensor) -> Tensor:
        """w(λ)/w(λ_min), float64."""
        return torch.exp(self.weighting.log(logsnr.double()).double() - self._log_ends[0])

    def density(self, logsnr: Tensor) -> Tensor:
        """The density where w is smooth, in 1/nats, the shape of ``logsnr``; zero outside the range."""
        with torch.enable_grad():
            level = logsnr.detach().double().requires_grad_()
            relative = self._relative(level) + 0 * level  # which keeps the graph whole where w is constant
            (slope,) = torch.autograd.grad(relative.sum(), level)
        nothing = outside(logsnr, self.logsnr_min, self.logsnr_max) | (relative == 0)
        return torch.where(nothing, 0.0, -slope).to(at_least_float32(logsnr.dtype))

    @property
    def scale(self) -> float:
        """w(λ_min), by which p_w is divided."""
        return math.exp(self._log_ends[0])

    @property
    def clean_mass(self) -> float:
        """The point mass on clean data, w(λ_max)/w(λ_min)."""
        return math.exp(self._log_ends[1] - self._log_ends[0])

    @cached_property
    def _grid(self) -> Tensor:
        return both_sides(self.logsnr_min, self.logsnr_max, 4096, self.weighting.breaks)

    @cached_property
    def _steps(self) -> tuple[Tensor, Tensor]:
        """Levels and masses of the steps: where w differs by the same however near its two arguments come."""
        left, right = self._grid[:-1], self._grid[1:]
        before, after = self._relative(left), self._relative(right)
        least = torch.full_like(left, STEP)
        least[1::2] = 100 * ROUNDING  # across an edge of the grid, over a few rounding errors
        for _ in range(50):
            middle = (left + right) / 2
            inner = self._relative(middle)
            first = (before - inner).abs() >= (inner - after).abs()  # the half in which w differs more
            left, before = torch.where(first, left, middle), torch.where(first, before, inner)
            right, after = torch.where(first, middle, right), torch.where(first, inner, after)
            steep = (before - after).abs() > least * torch.maximum(before, after)
            left, right, before, after, least = (part[steep] for part in (left, right, before, after, least))
        return right, before - after

    def _smooth_integral(self, f: LevelFunction) -> Tensor:
        breaks = (*self.weighting.breaks, *self._steps[0].tolist())
        return integrate(f, self.logsnr_min, self.logsnr_max, breaks)

    @cached_property
    def total(self) -> float:
        """The mass of the whole measure, by quadrature of its density: one.  ValueError where a part was not found."""
        level, mass = self._steps
        total = self._smooth_integral(self.density).item() + mass.sum().item() + self.clean_mass
        if not abs(total - 1) < STEP * self._relative(self._grid).max():
            raise ValueError(
                f"p_w of {self.weighting} adds up to {total:.6g}, not 1: its density and clean data hold "
                f"{total - mass.sum().item():.6g}, its steps {mass.sum().item():.6g} at log-SNR {level.tolist()}. A "
                f"step was not found, or log w has no derivative; give its steps and kinks as breaks=… (Custom)."
            )
        return total

    @property
    def atoms(self) -> tuple[Tensor, Tensor]:
        """Levels of the steps of w, ascending, and the mass at each, positive where w falls; (K,) each.

        ValueError when the measure does not add up to one.
        """
        _ = self.total
        return self._steps

    def integral(self, f: LevelFunction) -> Tensor:
        r""":math:`\int f\,dp_w`, point masses included; a scalar, float64."""
        level, mass = self.atoms
        points = torch.cat([level, level.new_tensor([self.logsnr_max])])
        masses = torch.cat([mass, mass.new_tensor([self.clean_mass])])
        return self._smooth_integral(lambda logsnr: self.density(logsnr) * f(logsnr)) + masses @ f(points)

    @property
    def negative_mass(self) -> float:
        """Mass of the negative part, zero for a monotone w."""
        _, mass = self.atoms
        smooth = self._smooth_integral(lambda logsnr: (-self.density(logsnr)).clamp(min=0))
        return (smooth - mass.clamp(max=0).sum()).item()

    def level(self, upper: Tensor) -> Tensor:
        r"""The level above which p_w has the probability ``upper``, its inverse survival function.

        :math:`P(\Lambda \ge \lambda) = w(\lambda)/w(\lambda_{min})`, where logsnr_max stands for clean data.
        (Section 3, monotone weightings)  ValueError for a w that is not monotone, or probabilities outside [0, 1].
        """
        require_within("upper", upper, 0.0, 1.0)
        if not self.weighting.is_monotonic(self.logsnr_min, self.logsnr_max):
            ends = f"[{self.logsnr_min}, {self.logsnr_max}]"
            raise ValueError(f"{self.weighting} is not monotone on {ends}: its p_w is no distribution.")
        low, high = (torch.full_like(upper, end, dtype=torch.float64) for end in (self.logsnr_min, self.logsnr_max))
        target = torch.log(upper.double()) + self._log_ends[0]
        for _ in range(60):
            middle = (low + high) / 2
            above = self.weighting.log(middle) >= target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return ((low + high) / 2).to(at_least_float32(upper.dtype))

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """``size`` noise levels drawn from p_w, float64; errors as of :meth:`level`."""
        return self.level(torch.rand(size, generator=generator, dtype=torch.float64))
