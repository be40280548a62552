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

Every subclass states these three for its whole support; the base class cuts them to [logsnr_min, logsnr_max], where
the end points hold exactly and the density integrates to one.  Any of them can be moved along λ: that is what
resolution shifts and the "shift" of flow matching do.

What a loss optimises does not depend on the schedule, only on its end points; the variance of its estimate does.
Schedules are evaluated in float64 and returned in the dtype of their argument, at least float32: a level in half
precision would be off by up to ±0.03 nats, a time by enough to lose the noisy end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.checks import (
    Positive,
    at_least_float32,
    end_slack,
    outside,
    require_floating,
    require_levels,
    require_parameters,
    require_positive,
    require_range,
    require_within,
)
from paperlib.registry import Registry

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
    def terminal_mass(self) -> float:
        """Share of the draws at λ = −∞, where z is noise alone; see :class:`paperlib.tables.StepTable`."""
        return 0.0

    @property
    def breaks(self) -> tuple[float, ...]:
        """Levels where p has a step or a kink, increasing, in nats."""
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
        """p(λ) = −dt/dλ, in 1/nats; zero outside the range.  (Section 2, noise schedules)"""
        return self.log_density(logsnr).exp()

    def shifted(self, nats: float) -> "NoiseSchedule":
        """The same distribution moved along λ, p(λ) → p(λ − nats).  Stated ends stay, native ones move.

        See :func:`flow_shift` and :func:`image_size_shift` for the nats of the shifts in use.
        """
        raise ValueError(f"{type(self).__name__} follows the loss wherever that is; it has no shift to be given.")


@dataclass(frozen=True)
class TruncatedSchedule(NoiseSchedule):
    """A distribution over λ, cut to [logsnr_min, logsnr_max].

    A subclass states three functions, for its whole support: ``_tails``, their inverse ``_level``, and ``_log_pdf``.

    Args:
        logsnr_min: f(1), in nats; None takes the lower end of the support, where there is one.
        logsnr_max: f(0), in nats; None takes the upper end of the support, where there is one.

    Raises:
        ValueError: for a range that is none, narrower than 1e-6 nats, unbounded or outside the support.
    """

    logsnr_min: float | None = None
    logsnr_max: float | None = None

    def __post_init__(self) -> None:
        require_parameters(self)
        require_range(*self.ends)
        (low, high), (native_low, native_high) = self.ends, self.support
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
        if not self._cut[2] > 0:  # torch.compile cannot trace the first look at it
            raise ValueError(
                f"{type(self).__name__} has no probability on [{low}, {high}] in float64; choose a wider range."
            )

    @property
    def support(self) -> tuple[float, float]:
        """The log-SNR range on which the schedule is defined before truncation."""
        return -math.inf, math.inf

    @abstractmethod
    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """P(Λ > λ) and P(Λ ≤ λ), the untruncated t and 1 − t, each accurate where it is small."""

    @abstractmethod
    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        """λ from its two tails, both given so that neither loses digits."""

    @abstractmethod
    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        """Log-density before truncation."""

    def shifted(self, nats: float) -> "TruncatedSchedule":
        return Shifted(self.logsnr_min, self.logsnr_max, base=self, nats=nats)

    @cached_property
    def ends(self) -> tuple[float, float]:
        low = self.support[0] if self.logsnr_min is None else float(self.logsnr_min)
        high = self.support[1] if self.logsnr_max is None else float(self.logsnr_max)
        for name, value in (("logsnr_min", low), ("logsnr_max", high)):
            if getattr(self, name) is None and math.isinf(value):
                raise ValueError(f"{type(self).__name__} has no native {name}; pass a number, for example ±15.")
            if math.isinf(value):
                raise ValueError(
                    f"{name} must be finite, got {value}. Zero terminal SNR, λ = −∞, is no end of a range but a level "
                    f"of its own: see paperlib.tables, DDPM(zero_terminal=True)."
                )
        return low, high

    @cached_property
    def _cut(self) -> tuple[float, float, float]:
        """Probability above logsnr_max, below logsnr_min, and between, which is computed in the tail that holds it."""
        ends = torch.tensor(self.ends, dtype=torch.float64)
        (above_low, above), (below, below_high) = (tail.tolist() for tail in self._tails(ends))
        if above_low < 0.5:
            return above, below, above_low - above
        return above, below, below_high - below if below_high < 0.5 else 1 - below - above

    def logsnr(self, t: Tensor) -> Tensor:
        require_within("t", t, 0.0, 1.0)
        (low, high), (above, below, mass), u = self.ends, self._cut, t.double()
        inner = self._level(above + u * mass, below + (1 - u) * mass).clamp(low, high)
        inner = torch.where(u == 0, high, torch.where(u == 1, low, inner))
        return inner.to(at_least_float32(t.dtype))

    def time(self, logsnr: Tensor) -> Tensor:
        require_levels("logsnr", logsnr, *self.ends)
        (upper, lower), (above, below, mass) = self._tails(logsnr.double().clamp(*self.ends)), self._cut
        t = torch.where(upper < 0.5, (upper - above) / mass, 1 - (lower - below) / mass)
        return t.clamp(0, 1).to(at_least_float32(logsnr.dtype))

    def log_density(self, logsnr: Tensor) -> Tensor:
        require_floating("logsnr", logsnr)
        inner = self._log_pdf(logsnr.double().clamp(*self.ends)) - math.log(self._cut[2])
        return torch.where(outside(logsnr, *self.ends), -math.inf, inner).to(at_least_float32(logsnr.dtype))


def log_sech(x: Tensor) -> Tensor:
    """log sech(x), smooth and without overflow: the density of the cosine schedule and half of all weightings."""
    return math.log(2) + 0.5 * (F.logsigmoid(2 * x) + F.logsigmoid(-2 * x))


@dataclass(frozen=True)
class Shifted(TruncatedSchedule):
    """Another schedule moved along λ by ``nats``; made by :meth:`TruncatedSchedule.shifted`."""

    base: TruncatedSchedule = field(kw_only=True)
    nats: float = field(kw_only=True)

    def __post_init__(self) -> None:
        if not math.isfinite(self.nats):
            raise ValueError(f"a shift is a finite number of nats, got {self.nats}.")
        super().__post_init__()

    @property
    def terminal_mass(self) -> float:
        return self.base.terminal_mass

    @property
    def breaks(self) -> tuple[float, ...]:
        return tuple(level + self.nats for level in self.base.breaks)

    @property
    def support(self) -> tuple[float, float]:
        low, high = self.base.support
        return low + self.nats, high + self.nats

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return self.base._tails(logsnr - self.nats)

    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        return self.base._level(upper, lower) + self.nats

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        return self.base._log_pdf(logsnr - self.nats)


def flow_shift(shift: float) -> float:
    r"""Nats of flow matching's shift s, t → s t/(1 + (s − 1) t): every level moves by −2 log s.

    (Esser et al. 2024; ``shift`` of diffusers' flow schedulers, s > 1 for more noise.)
    """
    require_positive("shift", shift)
    return -2 * math.log(shift)


def image_size_shift(size: float) -> float:
    """Nats by which the levels of ``size`` × ``size`` images lie from those of 64×64 ones, 2 log(64/size).

    (Section 5, high resolutions; Hoogeboom et al. 2023.)
    """
    require_positive("size", size)
    return 2 * math.log(64 / size)


# Distributions with a formula ----------------------------------------------------------------------------------------


class Symmetric(TruncatedSchedule):
    """A distribution that is the same on both sides of its centre: three functions of one tail state it."""

    @property
    def centre(self) -> float:
        """The median of λ before truncation, in nats."""
        return 0.0

    @abstractmethod
    def _tail(self, d: Tensor) -> Tensor:
        """P(Λ > centre + d), accurate where it is small."""

    @abstractmethod
    def _distance(self, tail: Tensor) -> Tensor:
        """d ≥ 0 from its tail, at most ½."""

    @abstractmethod
    def _log_height(self, d: Tensor) -> Tensor:
        """log p(centre + d)."""

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return self._tail(logsnr - self.centre), self._tail(self.centre - logsnr)

    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        distance = self._distance(torch.where(upper < lower, upper, lower))  # minimum halves the slope at the centre
        return self.centre + torch.where(upper < lower, distance, -distance)

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        return self._log_height(logsnr - self.centre)


@dataclass(frozen=True)
class Cosine(Symmetric):
    r"""Cosine schedule, optionally shifted: :math:`f(t) = -2 \log\tan(\pi t/2) + 2s`, :math:`p = sech(λ/2 - s)/2π`.

    (Nichol & Dhariwal 2021; the shift is Hoogeboom et al. 2023, *simple diffusion*.)
    (Table of noise schedules, cosine)

    Args:
        shift: s = log(64/d) for d×d images; 0 is the plain cosine schedule.
    """

    shift: float = 0.0

    @property
    def centre(self) -> float:
        return 2 * self.shift

    def _tail(self, d: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-d / 2))

    def _distance(self, tail: Tensor) -> Tensor:
        return -2 * torch.log(torch.tan(math.pi / 2 * tail))

    def _log_height(self, d: Tensor) -> Tensor:
        return log_sech(d / 2) - math.log(2 * math.pi)


@dataclass(frozen=True)
class FlowMatchingOT(Symmetric):
    r"""Uniform time on the optimal-transport path: :math:`f(t) = 2\log((1-t)/t)`, :math:`p = sech^2(λ/4)/8`.

    (Table of noise schedules, flow matching; Lipman et al. 2023; InDI, Delbracio & Milanfar 2023.)  A logistic
    distribution of scale 2.
    """

    def _tail(self, d: Tensor) -> Tensor:
        return torch.sigmoid(-d / 2)

    def _distance(self, tail: Tensor) -> Tensor:
        return -2 * torch.logit(tail)

    def _log_height(self, d: Tensor) -> Tensor:
        return 2 * log_sech(d / 4) - math.log(8)


def log_normal(d: Tensor, std: float) -> Tensor:
    """log N(d; 0, std²)."""
    return -0.5 * (d / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Normal(Symmetric):
    r"""A normal distribution of λ: :math:`f(t) = F^{-1}(1-t)`, F the distribution function of N(mean, std²)."""

    mean: float = 0.0
    std: Positive = 1.0

    @property
    def centre(self) -> float:
        return self.mean

    def _tail(self, d: Tensor) -> Tensor:
        return 0.5 * torch.special.erfc(d / self.std / math.sqrt(2))  # ndtr, 1 + erf, has no digits left below −8

    def _distance(self, tail: Tensor) -> Tensor:
        return -self.std * torch.special.ndtri(tail)

    def _log_height(self, d: Tensor) -> Tensor:
        return log_normal(d, self.std)


def EDMTraining(logsnr_min: float, logsnr_max: float, p_mean: float = -1.2, p_std: float = 1.2) -> Normal:
    r"""EDM's log-normal training schedule: :math:`f(t) = F^{-1}(1-t)`, F the normal distribution with density p.

    log σ_VE ~ N(p_mean, p_std²), hence :math:`p(\lambda) = N(\lambda; -2 p_{mean}, (2 p_{std})^2)`, by default
    N(λ; 2.4, 2.4²); the paper prints −F⁻¹(t; 2.4, 2.4²), which has mean −2.4.
    (Karras et al. 2022, Table 1; Table of noise schedules, EDM (training); Erratum 1)
    """
    require_positive("p_std", p_std)
    return Normal(logsnr_min, logsnr_max, mean=-2 * p_mean, std=2 * p_std)


EDM2Latent, EDM2Pixel = partial(EDMTraining, p_mean=-0.4, p_std=1.0), partial(EDMTraining, p_mean=-0.8, p_std=1.6)
"""EDM2's training schedules, for latents of 512×512 images and for 64×64 pixels.  (Karras et al. 2024)"""


def LogitNormal(logsnr_min: float, logsnr_max: float, mean: float = 0.0, std: float = 1.0) -> Normal:
    r"""Logit-normal flow time: logit(t) ~ N(mean, std²) and λ = −2 logit(t), so :math:`p = N(λ; -2m, (2s)^2)`.

    (Esser et al. 2024, *Stable Diffusion 3*.)
    """
    require_positive("std", std)
    return Normal(logsnr_min, logsnr_max, mean=-2 * mean, std=2 * std)


@dataclass(frozen=True)
class Laplace(Symmetric):
    r"""A Laplace distribution of λ, :math:`p = e^{-|\lambda - mean|/scale} / (2\,scale)`.

    (Hang et al. 2024, *Improved Noise Schedule for Diffusion Training*, with mean 0 and scale 0.5.)
    """

    mean: float = 0.0
    scale: Positive = 0.5

    @property
    def centre(self) -> float:
        return self.mean

    @property
    def breaks(self) -> tuple[float, ...]:
        return (self.mean,)

    def _tail(self, d: Tensor) -> Tensor:
        far = 0.5 * torch.exp(torch.where(d > 0, -d, d) / self.scale)  # |d| has no slope at 0
        return torch.where(d > 0, far, 1 - far)

    def _distance(self, tail: Tensor) -> Tensor:
        return -self.scale * torch.log(2 * tail)

    def _log_height(self, d: Tensor) -> Tensor:
        return -d.abs() / self.scale - math.log(2 * self.scale)


@dataclass(frozen=True)
class Cauchy(Symmetric):
    r"""A Cauchy distribution of λ, :math:`p = scale / (\pi\,(scale^2 + (\lambda - median)^2))`.

    (Hang et al. 2024, with median 0 and scale 1 by default.)
    """

    median: float = 0.0
    scale: Positive = 1.0

    @property
    def centre(self) -> float:
        return self.median

    def _tail(self, d: Tensor) -> Tensor:
        return torch.atan2(torch.full_like(d, self.scale), d) / math.pi

    def _distance(self, tail: Tensor) -> Tensor:
        return self.scale / torch.tan(math.pi * tail)

    def _log_height(self, d: Tensor) -> Tensor:
        return -torch.log1p((d / self.scale) ** 2) - math.log(math.pi * self.scale)


@dataclass(frozen=True)
class EDMSampling(TruncatedSchedule):
    r"""EDM's sampling schedule, linear in :math:`\sigma_{VE}^{1/ρ}`.

    :math:`f(t) = -2ρ\log(\sigma_{max}^{1/ρ} + (1-t)(\sigma_{min}^{1/ρ} - \sigma_{max}^{1/ρ}))`,
    :math:`p(\lambda) = e^{-\lambda/2ρ} / (2ρ(\sigma_{max}^{1/ρ} - \sigma_{min}^{1/ρ}))` on
    [−2 log σ_max, −2 log σ_min] = [−8.764, 12.429].  (Karras et al. 2022, Equation 5; Table of noise schedules,
    EDM (sampling))

    Args:
        rho: ρ, how much the steps gather near the data.
        sigma_min, sigma_max: smallest and largest noise level σ_VE.
    """

    rho: Positive = 7.0
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min ({self.sigma_min}) must be below sigma_max ({self.sigma_max}).")
        super().__post_init__()

    @property
    def support(self) -> tuple[float, float]:
        return -2 * math.log(self.sigma_max), -2 * math.log(self.sigma_min)

    @cached_property
    def _root_ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        (least, most), root = self._root_ends, torch.exp(-logsnr / (2 * self.rho))
        return (root - least) / (most - least), (most - root) / (most - least)

    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        least, most = self._root_ends
        return -2 * self.rho * torch.log(least + upper * (most - least))

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        least, most = self._root_ends
        return -logsnr / (2 * self.rho) - math.log(2 * self.rho * (most - least))


@dataclass(frozen=True)
class LinearLogSNR(TruncatedSchedule):
    r"""Linear in log-SNR: :math:`f(t) = \lambda_{max} + t(\lambda_{min} - \lambda_{max})`, p uniform.  (VDM, 2021.)"""

    def shifted(self, nats: float) -> "LinearLogSNR":
        """Itself: its ends are always stated, and between them p is the same everywhere."""
        return self

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.ends
        return (high - logsnr) / (high - low), (logsnr - low) / (high - low)

    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        low, high = self.ends
        return low * upper + high * lower

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        low, high = self.ends
        return 0 * logsnr - math.log(high - low)


@dataclass(frozen=True)
class LinearBeta(TruncatedSchedule):
    r"""DDPM's linear β in continuous time: :math:`f(t) = -\log(\mathrm{expm1}(β_{min}t + ½(β_{max}-β_{min})t^2))`.

    (Ho et al. 2020; Song et al. 2021.)  Defined for λ ≥ −log expm1((β_min + β_max)/2) = −10.05, unbounded above.
    """

    beta_min: Positive = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not self.beta_min < self.beta_max <= 1000:  # e^(β/2) is to be a number, where λ ends at −β/2
            raise ValueError(f"beta_max ({self.beta_max}) must be above beta_min ({self.beta_min}), and at most 1000.")
        super().__post_init__()

    @property
    def support(self) -> tuple[float, float]:
        return -math.log(math.expm1((self.beta_min + self.beta_max) / 2)), math.inf

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        # the positive root of ½ slope t² + β_min t = ∫β, and the same from t = 1 back, both without cancellation
        low, slope = self.support[0], self.beta_max - self.beta_min
        integral, level = F.softplus(-logsnr, threshold=700), logsnr.clamp(low, 600)
        left = torch.log1p(torch.sigmoid(-level) * torch.expm1(level - low))  # log(1 + e^−λ₀) − log(1 + e^−λ)
        t = 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))
        return t, 2 * left / (self.beta_max + torch.sqrt(self.beta_max**2 - 2 * slope * left))

    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        integral = upper * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * upper)
        return -torch.log(torch.expm1(integral))

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        beta = self.beta_min + (self.beta_max - self.beta_min) * self._tails(logsnr)[0]
        return F.logsigmoid(-logsnr) - torch.log(beta)


# Distributions of flow matching's own time ---------------------------------------------------------------------------


def solve(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    target: Tensor,
    start: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    steps: int,
) -> Tensor:
    """x in [low, high] at which an increasing ``function`` (value and slope at x) is ``target``: Newton from ``start``.

    A step that would leave the interval halves it instead.  The last step alone is on the graph, which gives x the
    gradient 1/slope.
    """
    with torch.no_grad():
        x, low, high = start, low + 0 * start, high + 0 * start
        for _ in range(steps):
            value, slope = function(x)
            low, high = torch.where(value < target, x, low), torch.where(value > target, x, high)
            newton = x + (target - value) / slope
            x = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        value, slope = function(x)
    return x + (target - value) / slope


@dataclass(frozen=True)
class Beta(TruncatedSchedule):
    r"""Flow time t ~ Beta(a, b), t = 1 being noise: :math:`p = t^a (1-t)^b / (2 B(a, b))` with t = sigmoid(−λ/2).

    Beta(1, 1) is :class:`FlowMatchingOT`; a larger a is more noise.
    """

    a: Positive = 1.0
    b: Positive = 1.0

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        # the incomplete beta function, by its series of positive terms where t ≤ ½
        near = logsnr >= 0
        a, b = logsnr.new_tensor(self.a), logsnr.new_tensor(self.b)
        p, q = torch.where(near, a, b), torch.where(near, b, a)
        small = torch.sigmoid(torch.where(near, -logsnr, logsnr) / 2)
        term = total = torch.ones_like(logsnr)
        for n in range(80 + 2 * math.ceil(self.a + self.b)):
            term = term * small * (p + q + n) / (p + 1 + n)
            total = total + term
        tail = 2 * self._log_pdf(logsnr).exp() / p * total
        return torch.where(near, tail, 1 - tail), torch.where(near, 1 - tail, tail)

    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        # the logarithm of a tail is concave, as log p is: Newton cannot overshoot twice
        up = upper < lower
        sign = torch.where(up, -1.0, 1.0)

        def log_tail(logsnr: Tensor) -> tuple[Tensor, Tensor]:
            tail = torch.where(up, *self._tails(logsnr))
            return sign * tail.log(), self._log_pdf(logsnr).exp() / tail

        target = sign * torch.minimum(upper, lower).log()
        centre = torch.full_like(upper, 2 * math.log(self.b / self.a)).clamp(*self.ends)
        return solve(log_tail, target, centre, *self.ends, steps=14)

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        log_beta = math.lgamma(self.a) + math.lgamma(self.b) - math.lgamma(self.a + self.b)
        return self.a * F.logsigmoid(-logsnr / 2) + self.b * F.logsigmoid(logsnr / 2) - log_beta - math.log(2)


@dataclass(frozen=True)
class Mode(TruncatedSchedule):
    r"""Mode sampling with heavy tails: flow time :math:`t = u + s\,(u - \sin^2(\pi u/2))`, u ~ U(0, 1).

    (Esser et al. 2024, *Stable Diffusion 3*, whose u runs from noise to data.)  s = 0 is :class:`FlowMatchingOT`.

    Args:
        scale: s in (−1, 2/(π − 2)); above zero t gathers at ½, below it at both ends.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 < self.scale < 2 / (math.pi - 2):
            raise ValueError(
                f"scale must lie in (−1, {2 / (math.pi - 2):.4f}), where t rises with u; got {self.scale}."
            )
        super().__post_init__()

    def _time(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """t and dt/du."""
        half = math.pi / 2 * u
        return u + self.scale * (u - half.sin() ** 2), 1 + self.scale * (1 - math.pi / 2 * (2 * half).sin())

    def _tails(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.sigmoid(torch.stack([-logsnr, logsnr]) / 2)  # 1 − t is the same function of 1 − u
        upper, lower = solve(self._time, t, t.detach(), 0.0, 1.0, steps=60)
        return upper, lower

    def _level(self, upper: Tensor, lower: Tensor) -> Tensor:
        return 2 * (self._time(lower)[0].log() - self._time(upper)[0].log())

    def _log_pdf(self, logsnr: Tensor) -> Tensor:
        return 2 * log_sech(logsnr / 4) - math.log(8) - self._time(self._tails(logsnr)[0])[1].log()


# Names ---------------------------------------------------------------------------------------------------------------

SHIFTS: dict[str, Callable[[float], float]] = {
    "shifted": float,
    "flow_shift": flow_shift,
    "image_size": image_size_shift,
}
"""Parameters that move any schedule or weighting along λ, and the nats of each."""

SCHEDULES: Registry[NoiseSchedule] = Registry(
    "noise schedule",
    NoiseSchedule,
    {
        "cosine": Cosine,
        "edm_training": EDMTraining,
        "edm_sampling": EDMSampling,
        "flow_matching_ot": FlowMatchingOT,
        "linear_logsnr": LinearLogSNR,
        "linear_beta": LinearBeta,
        "logit_normal": LogitNormal,
        "normal": Normal,
        "edm2_latent": EDM2Latent,
        "edm2_pixel": EDM2Pixel,
        "laplace": Laplace,
        "cauchy": Cauchy,
        "beta": Beta,
        "mode": Mode,
    },
    SHIFTS,
    modules=("paperlib.tables", "paperlib.adaptive"),
)
"""Every noise schedule by name; :mod:`paperlib.tables` and :mod:`paperlib.adaptive` add theirs."""

TABLE = ("cosine", "edm_training", "edm_sampling", "flow_matching_ot", "linear_logsnr", "linear_beta", "logit_normal")
"""The names of the schedules that the notebooks compare, on any range inside all their supports."""

register, get = SCHEDULES.register, SCHEDULES.make
"""See :class:`paperlib.registry.Registry`; any schedule also takes :data:`SHIFTS`."""
