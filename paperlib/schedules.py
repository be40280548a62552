r"""Noise schedules: how λ is drawn.

A noise schedule is a strictly decreasing map :math:`\lambda = f(t)` on t ∈ [0, 1], with :math:`f(0) = \lambda_{max}`
(almost clean) and :math:`f(1) = \lambda_{min}` (almost pure noise).  Drawing t ~ U(0, 1) draws λ with density
:math:`p(\lambda) = -dt/d\lambda` (Section 2 of the paper), so a schedule *is* a probability distribution over λ:

=================== ======================================
noise schedule      distribution of λ
=================== ======================================
t(λ)                survival function, P(Λ > λ)
f(t)                inverse survival function
p(λ)                density
=================== ======================================

The cosine schedule is a hyperbolic secant distribution, EDM's a normal one, that of flow matching a logistic one.
Every subclass states these three for its whole support; the base class truncates them to [logsnr_min, logsnr_max] so
that the end points hold exactly and the density integrates to one on the range.

What a loss optimises does not depend on the schedule, only on its end points; the variance of its estimate does.
Schedules are evaluated in float64 and returned in the dtype of their argument, at least float32: a level in half
precision would be off by up to ±0.03 nats, a time by enough to lose the noisy end.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.checks import (
    at_least_float32,
    end_slack,
    outside,
    require_floating,
    require_levels,
    require_positive,
    require_range,
    require_within,
)

NARROWEST = 1e-6
"""Narrowest range, in nats, on which the probability of a schedule still has ten digits to divide by."""


class NoiseSchedule(ABC):
    """What every noise schedule offers: ``logsnr(t)``, ``time(logsnr)``, ``density(logsnr)`` and its two ends."""

    logsnr_min: float | None
    logsnr_max: float | None

    @property
    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """(logsnr_min, logsnr_max), in nats."""

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where the density has steps or kinks between its ends, in nats."""
        return ()

    @abstractmethod
    def logsnr(self, t: Tensor) -> Tensor:
        """λ = f(t), decreasing.  ``t`` in [0, 1], any shape; ValueError outside it or on NaN."""

    @abstractmethod
    def time(self, logsnr: Tensor) -> Tensor:
        """t = f⁻¹(λ).  ``logsnr`` within the range, any shape; ValueError outside it or on NaN."""

    @abstractmethod
    def log_density(self, logsnr: Tensor) -> Tensor:
        """log p(λ); −∞ outside the range."""

    def density(self, logsnr: Tensor) -> Tensor:
        """p(λ) = −dt/dλ, in 1/nats; integrates to one over the range and vanishes outside it.

        (Section 2, noise schedules)
        """
        return self.log_density(logsnr).exp()


@dataclass(frozen=True)
class TruncatedSchedule(NoiseSchedule):
    """A distribution over λ, cut to [logsnr_min, logsnr_max].

    Args:
        logsnr_min: f(1), in nats; None takes the lower end of the support, where there is one.
        logsnr_max: f(0), in nats; None takes the upper end of the support, where there is one.

    Raises:
        ValueError: for a range that is empty, reversed, narrower than 1e-6 nats, unbounded or outside the support.
    """

    logsnr_min: float | None = None
    logsnr_max: float | None = None

    def __post_init__(self) -> None:
        require_range(*self.ends)
        native_low, native_high = self.support
        low, high = self.ends
        if high - low < NARROWEST:
            raise ValueError(
                f"the log-SNR range [{low}, {high}] is narrower than {NARROWEST:g} nats and cannot be normalised in "
                f"float64; choose a wider one."
            )
        slack = end_slack(low, high, torch.float32)  # a native end may have been through float32
        if low < native_low - slack or high > native_high + slack:
            raise ValueError(
                f"{type(self).__name__} lives on log-SNR in [{native_low:.4f}, {native_high:.4f}]; the range "
                f"[{low}, {high}] reaches outside. Narrow it, or pass None for the native end."
            )
        _ = self._tails  # kept from here on: torch.compile cannot trace the first look at a cached property
        if not self._mass > 0:
            raise ValueError(
                f"{type(self).__name__} has no probability on [{low}, {high}] in float64; choose a wider range."
            )

    # What a subclass states, for the whole support -------------------------------------------------------------------

    @property
    def support(self) -> tuple[float, float]:
        """The log-SNR range on which the schedule is defined before truncation."""
        return -math.inf, math.inf

    @abstractmethod
    def _sf(self, logsnr: Tensor) -> Tensor:
        """Survival function P(Λ > λ), accurate where it is small: the untruncated t."""

    @abstractmethod
    def _cdf(self, logsnr: Tensor) -> Tensor:
        """Distribution function P(Λ ≤ λ), accurate where it is small: the untruncated 1 − t."""

    @abstractmethod
    def _isf(self, upper: Tensor, lower: Tensor) -> Tensor:
        """λ from the untruncated t (``upper``) and 1 − t (``lower``), both given so that neither tail loses digits."""

    @abstractmethod
    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        """Log-density before truncation."""

    # Truncation ------------------------------------------------------------------------------------------------------

    @cached_property
    def ends(self) -> tuple[float, float]:
        low = self.support[0] if self.logsnr_min is None else float(self.logsnr_min)
        high = self.support[1] if self.logsnr_max is None else float(self.logsnr_max)
        for name, value in (("logsnr_min", low), ("logsnr_max", high)):
            if math.isinf(value):
                raise ValueError(f"{type(self).__name__} has no native {name}; pass a number, for example ±15.")
        return low, high

    @cached_property
    def _tails(self) -> tuple[float, float]:
        """Probability above logsnr_max and below logsnr_min, both lost to truncation."""
        low, high = torch.tensor(self.ends, dtype=torch.float64)
        return self._sf(high).item(), self._cdf(low).item()

    @cached_property
    def _mass(self) -> float:
        """Probability of the range, computed in the tail that holds it."""
        ends = torch.tensor(self.ends, dtype=torch.float64)
        (above_low, above_high), (below_low, below_high) = self._sf(ends).tolist(), self._cdf(ends).tolist()
        if above_low < 0.5:
            return above_low - above_high
        if below_high < 0.5:
            return below_high - below_low
        return 1 - below_low - above_high

    def logsnr(self, t: Tensor) -> Tensor:
        require_within("t", t, 0.0, 1.0)
        (low, high), (above, below) = self.ends, self._tails
        u = t.double()
        inner = self._isf(above + u * self._mass, below + (1 - u) * self._mass).clamp(low, high)
        inner = torch.where(u == 0, high, torch.where(u == 1, low, inner))
        return inner.to(at_least_float32(t.dtype))

    def time(self, logsnr: Tensor) -> Tensor:
        low, high = self.ends
        require_levels("logsnr", logsnr, low, high)
        level, (above, below) = logsnr.double().clamp(low, high), self._tails
        from_above = (self._sf(level) - above) / self._mass
        from_below = 1 - (self._cdf(level) - below) / self._mass
        return torch.where(self._sf(level) < 0.5, from_above, from_below).clamp(0, 1).to(at_least_float32(logsnr.dtype))

    def log_density(self, logsnr: Tensor) -> Tensor:
        low, high = self.ends
        require_floating("logsnr", logsnr)
        inner = self._log_pdf(logsnr.double().clamp(low, high)) - math.log(self._mass)
        return torch.where(outside(logsnr, low, high), -math.inf, inner).to(at_least_float32(logsnr.dtype))


def log_sech(x: Tensor) -> Tensor:
    """log sech(x), smooth and without overflow: the density of the cosine schedule and half of all weightings."""
    return math.log(2) + 0.5 * (F.logsigmoid(2 * x) + F.logsigmoid(-2 * x))


@dataclass(frozen=True)
class Cosine(TruncatedSchedule):
    r"""Cosine schedule, optionally shifted: :math:`f(t) = -2 \log\tan(\pi t/2) + 2s`, :math:`p = sech(λ/2 - s)/2π`.

    (Nichol & Dhariwal 2021; the shift is Hoogeboom et al. 2023, *simple diffusion*.)
    (Table of noise schedules, cosine)

    Args:
        logsnr_min: f(1), in nats.
        logsnr_max: f(0), in nats.
        shift: s = log(64/d) for d×d images; 0 is the plain cosine schedule.
    """

    shift: float = 0.0

    @classmethod
    def for_image_size(cls, logsnr_min: float, logsnr_max: float, size: int) -> "Cosine":
        """The shifted schedule for ``size`` × ``size`` images, s = log(64/size)."""
        require_positive("size", size)
        return cls(logsnr_min, logsnr_max, shift=math.log(64 / size))

    def _sf(self, logsnr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(self.shift - logsnr / 2))

    def _cdf(self, logsnr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(logsnr / 2 - self.shift))

    def _isf(self, upper: Tensor, lower: Tensor) -> Tensor:
        # tan(πu/2) = sin(πu/2) / sin(π(1−u)/2)
        half = math.pi / 2
        return 2 * (torch.log(torch.sin(half * lower)) - torch.log(torch.sin(half * upper)) + self.shift)

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        return log_sech(logsnr / 2 - self.shift) - math.log(2 * math.pi)


@dataclass(frozen=True)
class FlowMatchingOT(TruncatedSchedule):
    r"""Uniform time on the optimal-transport path: :math:`f(t) = 2\log((1-t)/t)`, :math:`p = sech^2(λ/4)/8`.

    (Table of noise schedules, flow matching; Lipman et al. 2023; InDI, Delbracio & Milanfar 2023.)  A logistic
    distribution of scale 2.
    """

    def _sf(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr / 2)

    def _cdf(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(logsnr / 2)

    def _isf(self, upper: Tensor, lower: Tensor) -> Tensor:
        return 2 * (torch.log(lower) - torch.log(upper))

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        return 2 * log_sech(logsnr / 4) - math.log(8)


def _normal_cdf(x: Tensor) -> Tensor:
    """Φ(x); torch.special.ndtr is 1 + erf, which has no digits left below −8."""
    return 0.5 * torch.special.erfc(-x / math.sqrt(2))


class _NormalSchedule(TruncatedSchedule):
    """λ ~ N(mean, std²); what EDM's training schedule and the logit-normal one share."""

    @property
    @abstractmethod
    def logsnr_mean(self) -> float:
        """Mean of λ, in nats, before truncation."""

    @property
    @abstractmethod
    def logsnr_std(self) -> float:
        """Standard deviation of λ, in nats, before truncation."""

    def _standard(self, logsnr: Tensor) -> Tensor:
        return (logsnr - self.logsnr_mean) / self.logsnr_std

    def _sf(self, logsnr: Tensor) -> Tensor:
        return _normal_cdf(-self._standard(logsnr))

    def _cdf(self, logsnr: Tensor) -> Tensor:
        return _normal_cdf(self._standard(logsnr))

    def _isf(self, upper: Tensor, lower: Tensor) -> Tensor:
        # the inverse of the smaller tail alone: that of the larger is infinite where it rounds to one
        below_mean = torch.special.ndtri(torch.where(upper < lower, upper, lower))
        return self.logsnr_mean + self.logsnr_std * torch.where(upper < lower, -below_mean, below_mean)

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        return -0.5 * self._standard(logsnr) ** 2 - math.log(self.logsnr_std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class EDMTraining(_NormalSchedule):
    r"""EDM's log-normal training schedule: :math:`f(t) = F^{-1}(1-t)`, F the normal distribution with density p.

    log σ_VE ~ N(p_mean, p_std²), hence :math:`p(\lambda) = N(\lambda; -2 p_{mean}, (2 p_{std})^2)`, by default
    N(λ; 2.4, 2.4²).  (Karras et al. 2022, Table 1; Table of noise schedules, EDM (training); Erratum 1)
    The paper prints −F⁻¹(t; 2.4, 2.4²), which has mean −2.4: the sign of the mean is wrong there (notebook 01).

    Args:
        logsnr_min: f(1), in nats.
        logsnr_max: f(0), in nats.
        p_mean: mean of log σ_VE.
        p_std: standard deviation of log σ_VE.
    """

    p_mean: float = -1.2
    p_std: float = 1.2

    def __post_init__(self) -> None:
        require_positive("p_std", self.p_std)
        super().__post_init__()

    @property
    def logsnr_mean(self) -> float:
        return -2 * self.p_mean

    @property
    def logsnr_std(self) -> float:
        return 2 * self.p_std


@dataclass(frozen=True)
class LogitNormal(_NormalSchedule):
    r"""Logit-normal flow time: logit(t) ~ N(mean, std²) and λ = −2 logit(t), so :math:`p = N(λ; -2m, (2s)^2)`.

    (Esser et al. 2024, *Stable Diffusion 3*.)

    Args:
        logsnr_min: f(1), in nats.
        logsnr_max: f(0), in nats.
        mean: m, mean of logit(t).
        std: s, standard deviation of logit(t).
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        require_positive("std", self.std)
        super().__post_init__()

    @property
    def logsnr_mean(self) -> float:
        return -2 * self.mean

    @property
    def logsnr_std(self) -> float:
        return 2 * self.std


@dataclass(frozen=True)
class EDMSampling(TruncatedSchedule):
    r"""EDM's sampling schedule, linear in :math:`\sigma_{VE}^{1/ρ}`.

    :math:`f(t) = -2ρ\log(\sigma_{max}^{1/ρ} + (1-t)(\sigma_{min}^{1/ρ} - \sigma_{max}^{1/ρ}))`,
    :math:`p(\lambda) = e^{-\lambda/2ρ} / (2ρ(\sigma_{max}^{1/ρ} - \sigma_{min}^{1/ρ}))` on
    [−2 log σ_max, −2 log σ_min] = [−8.764, 12.429].  (Karras et al. 2022, Equation 5; Table of noise schedules,
    EDM (sampling))

    Args:
        logsnr_min: f(1), in nats; None for −2 log σ_max.
        logsnr_max: f(0), in nats; None for −2 log σ_min.
        rho: ρ, how much the steps gather near the data.
        sigma_min: smallest noise level σ_VE.
        sigma_max: largest noise level σ_VE.
    """

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        for name in ("rho", "sigma_min", "sigma_max"):
            require_positive(name, getattr(self, name))
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max}).")
        super().__post_init__()

    @property
    def support(self) -> tuple[float, float]:
        return -2 * math.log(self.sigma_max), -2 * math.log(self.sigma_min)

    @cached_property
    def _root_ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def _sf(self, logsnr: Tensor) -> Tensor:
        least, most = self._root_ends
        return (torch.exp(-logsnr / (2 * self.rho)) - least) / (most - least)

    def _cdf(self, logsnr: Tensor) -> Tensor:
        least, most = self._root_ends
        return (most - torch.exp(-logsnr / (2 * self.rho))) / (most - least)

    def _isf(self, upper: Tensor, lower: Tensor) -> Tensor:
        least, most = self._root_ends
        return -2 * self.rho * torch.log(least + upper * (most - least))

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        least, most = self._root_ends
        return -logsnr / (2 * self.rho) - math.log(2 * self.rho * (most - least))


@dataclass(frozen=True)
class LinearLogSNR(TruncatedSchedule):
    r"""Linear in log-SNR: :math:`f(t) = \lambda_{max} + t(\lambda_{min} - \lambda_{max})`, p uniform.  (VDM, 2021.)"""

    def _sf(self, logsnr: Tensor) -> Tensor:
        low, high = self.ends
        return (high - logsnr) / (high - low)

    def _cdf(self, logsnr: Tensor) -> Tensor:
        low, high = self.ends
        return (logsnr - low) / (high - low)

    def _isf(self, upper: Tensor, lower: Tensor) -> Tensor:
        low, high = self.ends
        return low * upper + high * lower

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        low, high = self.ends
        return 0 * logsnr - math.log(high - low)


@dataclass(frozen=True)
class LinearBeta(TruncatedSchedule):
    r"""DDPM's linear β in continuous time: :math:`f(t) = -\log(\mathrm{expm1}(β_{min}t + ½(β_{max}-β_{min})t^2))`.

    (Ho et al. 2020; Song et al. 2021.)  Defined for λ ≥ −log expm1((β_min + β_max)/2) = −10.05, unbounded above.

    Args:
        logsnr_min: f(1), in nats; None for the native end, −10.05.
        logsnr_max: f(0), in nats.
        beta_min: β at t = 0.
        beta_max: β at t = 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require_positive("beta_min", self.beta_min)
        if not self.beta_max > self.beta_min:
            raise ValueError(f"beta_max ({self.beta_max}) must be above beta_min ({self.beta_min}).")
        super().__post_init__()

    @property
    def support(self) -> tuple[float, float]:
        return -math.log(math.expm1((self.beta_min + self.beta_max) / 2)), math.inf

    def _sf(self, logsnr: Tensor) -> Tensor:
        # the positive root of ½ slope t² + β_min t = B, in the form without cancellation
        slope, integral = self.beta_max - self.beta_min, F.softplus(-logsnr, threshold=700)
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))

    def _cdf(self, logsnr: Tensor) -> Tensor:
        # 1 − t in the form without cancellation: what is left of ∫β at λ, log(1 + e^−λ₀) − log(1 + e^−λ)
        low, slope = self.support[0], self.beta_max - self.beta_min
        level = logsnr.clamp(low, 600)
        left = torch.log1p(torch.sigmoid(-level) * torch.expm1(level - low))
        return 2 * left / (self.beta_max + torch.sqrt(self.beta_max**2 - 2 * slope * left))

    def _isf(self, upper: Tensor, lower: Tensor) -> Tensor:
        integral = upper * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * upper)
        return -torch.log(torch.expm1(integral))

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        beta = self.beta_min + (self.beta_max - self.beta_min) * self._sf(logsnr)
        return F.logsigmoid(-logsnr) - torch.log(beta)


SCHEDULES: dict[str, type[TruncatedSchedule]] = {
    "cosine": Cosine,
    "edm_training": EDMTraining,
    "edm_sampling": EDMSampling,
    "flow_matching_ot": FlowMatchingOT,
    "linear_logsnr": LinearLogSNR,
    "linear_beta": LinearBeta,
    "logit_normal": LogitNormal,
}


def get(name: str, **parameters: Any) -> TruncatedSchedule:
    """A schedule by its name in :data:`SCHEDULES`; ValueError, naming the choices, for an unknown one."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown noise schedule {name!r}; choose one of {', '.join(SCHEDULES)}.")
    return SCHEDULES[name](**parameters)
