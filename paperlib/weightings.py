r"""Weightings w(λ): what a diffusion loss pays attention to.

.. math:: L_w(x) = \tfrac12 \int_{\lambda_{min}}^{\lambda_{max}} w(\lambda)\,
          E_\epsilon\|\hat\epsilon(z_\lambda; \lambda) - \epsilon\|^2 \, d\lambda.

w multiplies the error of **ε**, whatever the network predicts, and matters up to a constant (Section 2, Equation 4 and
Table 1 of the paper).  A weighting states log w(λ); everything else follows from that.  Where w is non-increasing in λ
("monotone"), the loss is the ELBO of data with Gaussian noise added (Section 3), at the noise levels of
:mod:`paperlib.augmentation`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.augmentation import ROUNDING, Augmentation
from paperlib.checks import (
    NotNegative,
    Positive,
    at_least_float32,
    numbers,
    outside,
    require_no_nan,
    require_parameters,
    table,
)
from paperlib.quadrature import both_sides
from paperlib.registry import Registry
from paperlib.schedules import SHIFTS, log_normal, log_sech
from paperlib.tables import interpolate

BAND = 3.0
"""Standard errors that a measured weight may be off."""

Verdict = Literal["monotone", "within error", "not monotone"]


def majorant(values: Tensor) -> Tensor:
    """The smallest non-increasing row nowhere below ``values`` (N,), by rising λ: the largest of each and all later."""
    return values.flip(0).cummax(0).values.flip(0)


def runs(inside: Tensor) -> list[tuple[int, int]]:
    """Where ``inside`` (N,) is true without a gap: the first index of each run, and that behind its last."""
    turns = F.pad(inside.int(), (1, 1)).diff()
    first, end = ((turns == turn).nonzero().flatten().tolist() for turn in (1, -1))
    return list(zip(first, end, strict=True))


class Weighting(ABC):
    """A non-negative function of log-SNR.  ``logsnr`` may have any shape; the result has it too."""

    @abstractmethod
    def log(self, logsnr: Tensor) -> Tensor:
        """log w(λ); −∞ where w vanishes."""

    def __call__(self, logsnr: Tensor) -> Tensor:
        """w(λ)."""
        return self.log(logsnr).exp()

    def __post_init__(self) -> None:
        require_parameters(self)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where w is known to have steps or kinks, in nats."""
        return ()

    @property
    def ends(self) -> tuple[float, float] | None:
        """The range of log-SNR of its schedule or its table; None for a formula."""
        return None

    def log_error(self, logsnr: Tensor) -> Tensor:
        """Standard error of log w(λ): zero unless w was measured."""
        return torch.zeros_like(logsnr)

    def is_monotonic(
        self, logsnr_min: float | None = None, logsnr_max: float | None = None, *, tolerance: float = ROUNDING
    ) -> bool:
        """Whether :meth:`monotonicity` is "monotone".  (Table 1, column monotone)"""
        return self.monotonicity(logsnr_min, logsnr_max, tolerance=tolerance) == "monotone"

    def monotonicity(
        self, logsnr_min: float | None = None, logsnr_max: float | None = None, *, tolerance: float = ROUNDING
    ) -> Verdict:
        """Whether w is non-increasing in λ, decided in float64 on a grid of 8,192 cells and both sides of every break.

        (Table 1, column monotone)

        Args:
            logsnr_min, logsnr_max: the range, in nats; None for that of :attr:`ends`.
            tolerance: how much log w may rise in all from one level to any later one.

        Returns:
            "monotone" where w falls throughout; "within error" where a *measured* w rises, but some non-increasing
            function lies within three standard errors of it everywhere; else "not monotone".

        Raises:
            ValueError: for a range that is none, or needed and not given; for a w that is NaN.
        """
        if logsnr_min is None or logsnr_max is None:
            if self.ends is None:
                raise ValueError(
                    f"{self} has no range of its own; give logsnr_min and logsnr_max, for example -12, 12."
                )
            logsnr_min = self.ends[0] if logsnr_min is None else logsnr_min
            logsnr_max = self.ends[1] if logsnr_max is None else logsnr_max
        grid = both_sides(logsnr_min, logsnr_max, 8192, self.breaks)
        log_w = self.log(grid)
        require_no_nan(str(self), log_w, grid)

        def rises(band: Tensor) -> bool:
            """Whether no non-increasing function stays within ``band`` of log w; infinities compare."""
            return bool((log_w - band > (log_w + band).cummin(0).values + tolerance).any())

        if not rises(torch.zeros_like(grid)):
            return "monotone"
        return "not monotone" if rises(BAND * self.log_error(grid)) else "within error"

    def highest(self, logsnr_min: float, logsnr_max: float) -> float:
        """λ in the range at which w is largest, in nats, to six decimals: a maximum is no sharper in float64."""
        low, high = logsnr_min, logsnr_max
        for _ in range(3):  # the range, then twice the surroundings of its best point
            grid = torch.linspace(low, high, 20_001, dtype=torch.float64)
            best = int(self.log(grid).argmax())
            low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, len(grid) - 1)].item()
        return round(grid[best].item(), 6) + 0.0  # −0.0 is 0

    def dips(self, logsnr_min: float, logsnr_max: float) -> tuple[tuple[float, float], ...]:
        """Intervals of the range, in nats, ascending, where w is smaller than at some cleaner level; none if monotone.

        Each ends at a peak of w, to six decimals, and begins at ``logsnr_min`` or where w is as large as at that peak,
        to 1/8,192 of the range.
        """
        grid = both_sides(logsnr_min, logsnr_max, 8192, self.breaks)
        log_w = self.log(grid)
        return tuple(
            (
                logsnr_min if first == 0 else grid[first].item(),
                self.highest(grid[max(end - 2, first)].item(), grid[min(end + 2, len(grid) - 1)].item()),
            )
            for first, end in runs(log_w < majorant(log_w) - ROUNDING)
        )

    def shifted(self, shift: float) -> "Weighting":
        """w(λ − shift), in nats; :func:`paperlib.schedules.image_size_shift` has those of larger images."""
        return Shifted(self, shift)


@dataclass(frozen=True)
class Shifted(Weighting):
    """w(λ − shift).  (Section 5, high resolutions)"""

    base: Weighting
    shift: float

    def log(self, logsnr: Tensor) -> Tensor:
        return self.base.log(logsnr - self.shift)

    @property
    def breaks(self) -> tuple[float, ...]:
        return tuple(b + self.shift for b in self.base.breaks)

    @property
    def ends(self) -> tuple[float, float] | None:
        ends = self.base.ends
        return ends and (ends[0] + self.shift, ends[1] + self.shift)

    def log_error(self, logsnr: Tensor) -> Tensor:
        return self.base.log_error(logsnr - self.shift)


@dataclass(frozen=True)
class Custom(Weighting):
    """A weighting from a function of log-SNR that returns log w, tried once on levels from −20 to 20.

    Args:
        log_weight: log w(λ), the shape of λ; −∞ where w is zero.
        breaks: where w has steps or kinks, in nats, if that is known.

    Raises:
        TypeError: when it is no function, or returns no floating-point tensor.
        ValueError: when it returns another shape, NaN, or what looks like w instead of log w.
    """

    log_weight: Callable[[Tensor], Tensor]
    breaks: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.log_weight, Weighting | type) or not callable(self.log_weight):
            raise TypeError(f"log_weight must be a function that returns log w, got {self.log_weight!r}.")
        levels = torch.linspace(-20, 20, 321, dtype=torch.float64)
        value = self.log_weight(levels)
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            raise TypeError(f"log_weight must return a floating-point tensor, got {getattr(value, 'dtype', value)!r}.")
        if value.shape != levels.shape:
            raise ValueError(f"log_weight must keep the shape of its levels, {len(levels)}; got {tuple(value.shape)}.")
        require_no_nan("log_weight", value, levels)
        finite = value[value.isfinite()]
        if len(finite) == 0:
            raise ValueError("log_weight is infinite at every log-SNR from -20 to 20.")
        fades = 0 <= finite.min() < 1e-3 * finite.max() <= 1e-3 and len(finite.unique()) > 20
        if finite.max() > 700 or fades:  # w would overflow, or be one but for a factor that fades smoothly
            raise ValueError(
                f"log_weight looks like w, not log w: its values go from {finite.min().item():.3g} to "
                f"{finite.max().item():.3g}. Return the logarithm; if it is one, subtract a constant: w is the same."
            )

    def log(self, logsnr: Tensor) -> Tensor:
        return self.log_weight(logsnr)


@dataclass(frozen=True)
class Tabulated(Weighting):
    """A weighting from its values at some levels, log w linear between them; zero outside.

    Args:
        logsnr: levels in ascending order, in nats, two at least; a sequence or a tensor, as the others.
        w: the weight at each, positive.
        error: standard error of each ``w``, where it was measured.

    Raises:
        ValueError: for levels that do not ascend, or values that do not fit them.
    """

    logsnr: Sequence[float]
    w: Sequence[float]
    error: Sequence[float] | None = None

    def __post_init__(self) -> None:
        logsnr, w = table("logsnr", self.logsnr, "w", self.w)
        error = None if self.error is None else numbers("error", self.error)
        if min(w) <= 0 or (error is not None and (len(error) != len(w) or min(error) < 0)):
            raise ValueError("w must be positive, and error one value for each w, none of them negative.")
        vars(self).update(logsnr=logsnr, w=w, error=error)

    def _interpolated(self, values: Tensor, logsnr: Tensor) -> Tensor:
        at = torch.tensor(self.logsnr, dtype=torch.float64)
        return interpolate(logsnr.double(), at, values).to(at_least_float32(logsnr.dtype))

    def log(self, logsnr: Tensor) -> Tensor:
        log_w = torch.tensor(self.w, dtype=torch.float64).log()
        return torch.where(outside(logsnr, *self.ends), -math.inf, self._interpolated(log_w, logsnr))

    def log_error(self, logsnr: Tensor) -> Tensor:
        if self.error is None:
            return super().log_error(logsnr)
        error, w = torch.tensor([self.error, self.w], dtype=torch.float64)
        return self._interpolated(error / w, logsnr)

    @property
    def breaks(self) -> tuple[float, ...]:
        return tuple(self.logsnr)

    @property
    def ends(self) -> tuple[float, float]:
        return self.logsnr[0], self.logsnr[-1]


@dataclass(frozen=True)
class Binned(Weighting):
    """A weighting that is constant in bins, zero outside.

    Args:
        edges: of the bins in ascending order, in nats, one more than bins; a sequence or a tensor.
        w: the weight in each bin, not negative.

    Raises:
        ValueError: for edges that do not ascend, or values that do not fit them.
    """

    edges: Sequence[float]
    w: Sequence[float]

    def __post_init__(self) -> None:
        edges, w = table("edges", self.edges, "w", self.w, spare=1)
        if min(w) < 0:
            raise ValueError(f"w must not be negative, got {min(w)}.")
        vars(self).update(edges=edges, w=w)

    def log(self, logsnr: Tensor) -> Tensor:
        inner, w = (
            torch.tensor(values, dtype=torch.float64, device=logsnr.device) for values in (self.edges[1:-1], self.w)
        )
        log_w = w.log()[torch.searchsorted(inner, logsnr.double(), right=True)]
        return torch.where(outside(logsnr, *self.ends), -math.inf, log_w).to(at_least_float32(logsnr.dtype))

    @property
    def breaks(self) -> tuple[float, ...]:
        return tuple(self.edges)

    @property
    def ends(self) -> tuple[float, float]:
        return self.edges[0], self.edges[-1]


# Table 1 -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ELBO(Weighting):
    """w = 1: the evidence lower bound.  (Table 1, ELBO; Kingma et al. 2021; Song et al. 2021; monotone)"""

    def log(self, logsnr: Tensor) -> Tensor:
        return torch.zeros_like(logsnr)


class OfCosine(Weighting):
    """A weight h(λ) of the ε error under the cosine schedule, w = sech(λ/2) h(λ); a subclass states h."""

    @abstractmethod
    def log_eps(self, logsnr: Tensor) -> Tensor:
        """log h(λ), the shape of ``logsnr``."""

    def log(self, logsnr: Tensor) -> Tensor:
        return log_sech(logsnr / 2) + self.log_eps(logsnr)


@dataclass(frozen=True)
class IDDPM(OfCosine):
    """ε-MSE under the cosine schedule, w = sech(λ/2).  (Table 1, IDDPM; Nichol & Dhariwal 2021; peak at 0)"""

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return torch.zeros_like(logsnr)


@dataclass(frozen=True)
class EDM(Weighting):
    r"""F-MSE under log-normal σ: :math:`w = N(\lambda; -2 p_{mean}, (2 p_{std})^2)\,(e^{-\lambda} + s^2)`.

    (Table 1, EDM; Karras et al. 2022; with the defaults N(λ; 2.4, 2.4²)(e^{−λ} + 0.5²), not monotone, peak −3.3078.)

    Args:
        p_mean: mean of log σ_VE in training.
        p_std: standard deviation of log σ_VE in training.
        sigma_data: s, the standard deviation of the data that the F-prediction assumes.
    """

    p_mean: float = -1.2
    p_std: Positive = 1.2
    sigma_data: Positive = 0.5

    def log(self, logsnr: Tensor) -> Tensor:
        floor = torch.full_like(logsnr, 2 * math.log(self.sigma_data))
        return log_normal(logsnr + 2 * self.p_mean, 2 * self.p_std) + torch.logaddexp(-logsnr, floor)

    @cached_property
    def peak(self) -> float:
        """λ* at which w is largest: the fixed point of the derivative, by bisection around the best grid point."""
        mean, std = -2 * self.p_mean, 2 * self.p_std
        grid = torch.linspace(mean - 2 * std**2, mean + std**2, 4097, dtype=torch.float64)
        best, step = grid[EDM.log(self, grid).argmax()].item(), (grid[1] - grid[0]).item()
        low, high = best - step, best + step
        for _ in range(80):
            middle = (low + high) / 2
            slope = (mean - middle) / std**2 - 1 / (1 + self.sigma_data**2 * math.exp(middle))
            low, high = (middle, high) if slope > 0 else (low, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class VCosine(Weighting):
    r"""v-MSE under the cosine schedule and flow matching with uniform t on the OT path: :math:`w = e^{-\lambda/2}`.

    (Table 1, v-prediction; Salimans & Ho 2022.)  (Table 1, flow matching; Lipman et al. 2023; monotone)
    """

    def log(self, logsnr: Tensor) -> Tensor:
        return -logsnr / 2


FlowMatchingOT = VCosine
"""Flow matching's name for it."""


@dataclass(frozen=True)
class InDI(Weighting):
    r"""x-MSE with uniform t on the OT path, :math:`w = e^{-\lambda} sech^2(\lambda/4)`.

    (Table 1, InDI; Delbracio & Milanfar 2023; monotone)
    """

    def log(self, logsnr: Tensor) -> Tensor:
        return -logsnr + 2 * log_sech(logsnr / 4)


@dataclass(frozen=True)
class P2(OfCosine):
    r"""Perception-prioritised: :math:`w = sech(\lambda/2)/(k + e^\lambda)^\gamma`, cosine schedule.

    (Table 1, P2; Choi et al. 2022; γ ≥ 0, and 0 is the plain ε error)
    """

    gamma: NotNegative = 1.0
    k: Positive = 1.0

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return -self.gamma * torch.logaddexp(torch.full_like(logsnr, math.log(self.k)), logsnr)


@dataclass(frozen=True)
class MinSNR(OfCosine):
    r"""x-MSE · min(SNR, γ) under the cosine schedule: :math:`w = sech(\lambda/2)\min(1, \gamma e^{-\lambda})`.

    (Table 1, Min-SNR; Hang et al. 2023; SNR is α²/σ², and this formula belongs to the x error, not to the v error.)
    """

    gamma: Positive = 5.0

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return (math.log(self.gamma) - logsnr).clamp(max=0)

    @property
    def breaks(self) -> tuple[float, ...]:
        return (math.log(self.gamma),)


# The paper's own -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sigmoid(Weighting):
    r"""Sigmoid weighting, w(λ) = sigmoid(bias − λ).  (Section 5, sigmoid weighting; monotone)

    The noise augmentation that it implies is logistic in log-SNR, centred at ``bias`` (nats) with scale 1.
    """

    bias: float = 2.0

    def log(self, logsnr: Tensor) -> Tensor:
        return F.logsigmoid(self.bias - logsnr)


@dataclass(frozen=True)
class EDMMonotonic(EDM):
    """EDM's weighting, held at its maximum for λ below the peak λ* (−3.3078 with the defaults).

    (Section 5, EDM-monotonic; monotone)

    Raises:
        ValueError: where EDM's weighting has a second peak above its highest one (as for σ_data = 1.1): held below
            the one, it would still rise to the other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_monotonic(self.peak, -2 * self.p_mean):  # above its mean it falls
            raise ValueError(
                f"with p_mean={self.p_mean}, p_std={self.p_std} and sigma_data={self.sigma_data} EDM's weighting has "
                f"two peaks and cannot be made monotone by holding it below the higher one; change sigma_data."
            )

    def log(self, logsnr: Tensor) -> Tensor:
        return super().log(logsnr.clamp(min=self.peak))

    @property
    def breaks(self) -> tuple[float, ...]:
        return (self.peak,)


# Beyond the paper ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class XCosine(OfCosine):
    r"""x-MSE under the cosine schedule, :math:`w = e^{-\lambda} sech(\lambda/2)`.  (monotone)"""

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return -logsnr


@dataclass(frozen=True)
class SD3LogitNormal(Weighting):
    r"""Flow matching, logit-normal t: :math:`w = N(\lambda; -2m, (2s)^2)(1 + e^{-\lambda/2})^2`.

    (Section 2, objectives outside Table 1; Esser et al. 2024; not monotone, peak at −3.38 for m = 0, s = 1.)
    """

    mean: float = 0.0
    std: Positive = 1.0

    def log(self, logsnr: Tensor) -> Tensor:
        return log_normal(logsnr + 2 * self.mean, 2 * self.std) - 2 * F.logsigmoid(logsnr / 2)


@dataclass(frozen=True)
class SD3CosMap(OfCosine):
    r"""Flow matching, t from "cosmap": :math:`w = sech(\lambda/2)(1 + e^{-\lambda/2})^2`.  (Esser et al. 2024)"""

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return -2 * F.logsigmoid(logsnr / 2)


@dataclass(frozen=True)
class SoftMinSNR(OfCosine):
    r"""x-MSE · γ SNR/(SNR + γ), cosine schedule: :math:`w = sech(\lambda/2)\,\gamma/(e^\lambda + \gamma)`.

    (Crowson et al. 2024, *Hourglass Diffusion Transformers*.)
    """

    gamma: Positive = 4.0

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return F.logsigmoid(math.log(self.gamma) - logsnr)


@dataclass(frozen=True)
class Debiased(OfCosine):
    r"""ε-MSE/√SNR, cosine schedule, :math:`w = sech(\lambda/2)\,e^{-\lambda/2}`.  (Yu et al. 2024; monotone)"""

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return -logsnr / 2


EDM2 = partial(EDM, p_mean=-0.4, p_std=1.0)
"""EDM's weighting with the levels of EDM2.  (Karras et al. 2024)"""


# Names ---------------------------------------------------------------------------------------------------------------

TABLE_1: dict[str, Weighting] = {
    "ELBO": ELBO(),
    "IDDPM": IDDPM(),
    "EDM": EDM(),
    "v-prediction, cosine": VCosine(),
    "Flow matching, OT": FlowMatchingOT(),
    "InDI": InDI(),
    "P2": P2(),
    "Min-SNR": MinSNR(),
}
"""The rows of the paper's Table 1."""

WEIGHTINGS: Registry[Weighting] = Registry(
    "weighting",
    Weighting,
    {
        "elbo": ELBO,
        "iddpm": IDDPM,
        "edm": EDM,
        "v_cosine": VCosine,
        "flow_matching_ot": FlowMatchingOT,
        "indi": InDI,
        "p2": P2,
        "min_snr": MinSNR,
        "sigmoid": Sigmoid,
        "edm_monotonic": EDMMonotonic,
        "x_cosine": XCosine,
        "sd3_logit_normal": SD3LogitNormal,
        "sd3_cosmap": SD3CosMap,
        "soft_min_snr": SoftMinSNR,
        "debiased": Debiased,
        "edm2": EDM2,
    },
    SHIFTS,
)
"""Every weighting by name."""

register, get = WEIGHTINGS.register, WEIGHTINGS.make
"""See :class:`paperlib.registry.Registry`; any weighting also takes :data:`paperlib.schedules.SHIFTS`."""


# The density and the point mass of p_w --------------------------------------------------------------------------------


def augmentation_density(weighting: Weighting, logsnr: Tensor, logsnr_min: float, logsnr_max: float) -> Tensor:
    """The density of :class:`Augmentation`: all of p_w but its point masses, on clean data and at steps of w."""
    return Augmentation(weighting, logsnr_min, logsnr_max).density(logsnr)


def clean_mass(weighting: Weighting, logsnr_min: float, logsnr_max: float) -> float:
    """The point mass of :class:`Augmentation` on clean data (t = 0)."""
    return Augmentation(weighting, logsnr_min, logsnr_max).clean_mass
