r"""Weightings w(λ): what a diffusion loss pays attention to.

.. math:: L_w(x) = \tfrac12 \int_{\lambda_{min}}^{\lambda_{max}} w(\lambda)\,
          E_\epsilon\|\hat\epsilon(z_\lambda; \lambda) - \epsilon\|^2 \, d\lambda.

w multiplies the error of **ε**, whatever the network predicts, and matters up to a constant (Section 2, Equation 4 and
Table 1 of the paper).  A weighting states log w(λ); everything else follows from that.

Where w is non-increasing in λ ("monotone"), the loss is the ELBO of data with Gaussian noise added, the noise level
being drawn from a distribution (Section 3)

.. math:: p_w(\lambda) = -\frac{dw}{d\lambda} \Big/ w(\lambda_{min}), \qquad
          P(\lambda = \lambda_{max}) = w(\lambda_{max}) / w(\lambda_{min}),

which :func:`augmentation_density` and :func:`clean_mass` compute.  Where it is not, the same expressions are signed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.checks import outside, require_positive, require_range
from paperlib.registry import Registry
from paperlib.schedules import image_size_shift, log_sech


class Weighting(ABC):
    """A positive function of log-SNR.  ``logsnr`` may have any shape and dtype; the result has the same."""

    @abstractmethod
    def log(self, logsnr: Tensor) -> Tensor:
        """log w(λ)."""

    def __call__(self, logsnr: Tensor) -> Tensor:
        """w(λ)."""
        return self.log(logsnr).exp()

    def is_monotonic(self, logsnr_min: float, logsnr_max: float, points: int = 8193) -> bool:
        """Whether w is non-increasing in λ on the range, decided on a grid in float64 to a relative 1e-12.

        (Table 1, column monotone)
        """
        require_range(logsnr_min, logsnr_max)
        grid = torch.linspace(logsnr_min, logsnr_max, points, dtype=torch.float64)
        return bool((self.log(grid).diff() <= 1e-12).all())

    def shifted(self, shift: float) -> "Weighting":
        """w(λ − shift); for d×d images larger than 64, shift = 2 log(64/d)."""
        return Shifted(self, shift)

    def for_image_size(self, size: int) -> "Weighting":
        """The weighting that gives ``size`` × ``size`` images what this one gives 64×64: shift 2 log(64/size).

        (Section 5, high resolutions)
        """
        return self.shifted(image_size_shift(size))


@dataclass(frozen=True)
class Shifted(Weighting):
    """w(λ − shift).  (Section 5, high resolutions)"""

    base: Weighting
    shift: float

    def log(self, logsnr: Tensor) -> Tensor:
        return self.base.log(logsnr - self.shift)


@dataclass(frozen=True)
class Custom(Weighting):
    """A weighting from a function of log-SNR that returns log w."""

    log_weight: Callable[[Tensor], Tensor]

    def log(self, logsnr: Tensor) -> Tensor:
        return self.log_weight(logsnr)


# Table 1 -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ELBO(Weighting):
    """w = 1: the evidence lower bound.  (Table 1, ELBO; Kingma et al. 2021; Song et al. 2021; monotone)"""

    def log(self, logsnr: Tensor) -> Tensor:
        return torch.zeros_like(logsnr)


@dataclass(frozen=True)
class IDDPM(Weighting):
    """ε-MSE under the cosine schedule, w = sech(λ/2).  (Table 1, IDDPM; Nichol & Dhariwal 2021; peak at 0)"""

    def log(self, logsnr: Tensor) -> Tensor:
        return log_sech(logsnr / 2)


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
    p_std: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require_positive("p_std", self.p_std)
        require_positive("sigma_data", self.sigma_data)

    def log(self, logsnr: Tensor) -> Tensor:
        mean, std = -2 * self.p_mean, 2 * self.p_std
        log_normal = -0.5 * ((logsnr - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
        floor = torch.full_like(logsnr, 2 * math.log(self.sigma_data))
        return log_normal + torch.logaddexp(-logsnr, floor)

    @cached_property
    def peak(self) -> float:
        """λ* at which w is largest: the fixed point of the derivative, by bisection around the best grid point."""
        mean, std = -2 * self.p_mean, 2 * self.p_std
        grid = torch.linspace(mean - 2 * std**2, mean + std**2, 4097, dtype=torch.float64)
        best, step = grid[self.log(grid).argmax()].item(), (grid[1] - grid[0]).item()
        low, high = best - step, best + step
        for _ in range(80):
            middle = (low + high) / 2
            slope = (mean - middle) / std**2 - 1 / (1 + self.sigma_data**2 * math.exp(middle))
            low, high = (middle, high) if slope > 0 else (low, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class VCosine(Weighting):
    r"""v-MSE under the cosine schedule, :math:`w = e^{-\lambda/2}`.  (Table 1, v-prediction; Salimans & Ho 2022)"""

    def log(self, logsnr: Tensor) -> Tensor:
        return -logsnr / 2


@dataclass(frozen=True)
class FlowMatchingOT(Weighting):
    r"""Flow matching with the OT path, uniform t: :math:`w = e^{-\lambda/2}`.

    (Table 1, flow matching; Lipman et al. 2023; monotone)
    """

    def log(self, logsnr: Tensor) -> Tensor:
        return -logsnr / 2


@dataclass(frozen=True)
class InDI(Weighting):
    r"""x-MSE with uniform t on the OT path, :math:`w = e^{-\lambda} sech^2(\lambda/4)`.

    (Table 1, InDI; Delbracio & Milanfar 2023; monotone)
    """

    def log(self, logsnr: Tensor) -> Tensor:
        return -logsnr + 2 * log_sech(logsnr / 4)


@dataclass(frozen=True)
class P2(Weighting):
    r"""Perception-prioritised: :math:`w = sech(\lambda/2)/(k + e^\lambda)^\gamma`, cosine schedule.

    (Table 1, P2; Choi et al. 2022)

    Args:
        gamma: γ, how strongly high SNR is suppressed.
        k: stabilising constant of the original.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        require_positive("gamma", self.gamma)
        require_positive("k", self.k)

    def log(self, logsnr: Tensor) -> Tensor:
        floor = torch.full_like(logsnr, math.log(self.k))
        return log_sech(logsnr / 2) - self.gamma * torch.logaddexp(floor, logsnr)


@dataclass(frozen=True)
class MinSNR(Weighting):
    r"""x-MSE · min(SNR, γ) under the cosine schedule: :math:`w = sech(\lambda/2)\min(1, \gamma e^{-\lambda})`.

    (Table 1, Min-SNR; Hang et al. 2023; SNR is α²/σ², and this formula belongs to the x error, not to the v error.)
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        require_positive("gamma", self.gamma)

    def log(self, logsnr: Tensor) -> Tensor:
        return log_sech(logsnr / 2) + (math.log(self.gamma) - logsnr).clamp(max=0)


# The paper's own -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sigmoid(Weighting):
    r"""Sigmoid weighting, w(λ) = sigmoid(bias − λ).  (Section 5, sigmoid weighting; monotone)

    The noise augmentation that it implies is logistic in log-SNR, centred at ``bias`` with scale 1.

    Args:
        bias: k, log-SNR (nats) at which the weight has fallen to one half.
    """

    bias: float = 2.0

    def log(self, logsnr: Tensor) -> Tensor:
        return F.logsigmoid(self.bias - logsnr)


@dataclass(frozen=True)
class EDMMonotonic(Weighting):
    """EDM's weighting, held at its maximum for λ below the peak λ* (−3.3078 with the defaults).

    (Section 5, EDM-monotonic; monotone)

    Args:
        p_mean: as in :class:`EDM`.
        p_std: as in :class:`EDM`.
        sigma_data: as in :class:`EDM`.

    Raises:
        ValueError: where EDM's weighting has a second peak above its highest one (as for σ_data = 1.1): held below
            the one, it would still rise to the other.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        mean = -2 * self.p_mean  # the weighting falls above it
        if not self.edm.is_monotonic(self.edm.peak, mean):
            raise ValueError(
                f"with p_mean={self.p_mean}, p_std={self.p_std} and sigma_data={self.sigma_data} EDM's weighting has "
                f"two peaks and cannot be made monotone by holding it below the higher one; change sigma_data."
            )

    @cached_property
    def edm(self) -> EDM:
        """The weighting that is held."""
        return EDM(self.p_mean, self.p_std, self.sigma_data)

    def log(self, logsnr: Tensor) -> Tensor:
        return self.edm.log(logsnr.clamp(min=self.edm.peak))


# Beyond the paper ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class XCosine(Weighting):
    r"""x-MSE under the cosine schedule, :math:`w = e^{-\lambda} sech(\lambda/2)`.  (monotone)"""

    def log(self, logsnr: Tensor) -> Tensor:
        return -logsnr + log_sech(logsnr / 2)


@dataclass(frozen=True)
class SD3LogitNormal(Weighting):
    r"""Flow matching, logit-normal t: :math:`w = N(\lambda; -2m, (2s)^2)(1 + e^{-\lambda/2})^2`.

    (Section 2, objectives outside Table 1; Esser et al. 2024; not monotone, peak at −3.38 for m = 0, s = 1.)
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        require_positive("std", self.std)

    def log(self, logsnr: Tensor) -> Tensor:
        scale = 2 * self.std
        log_normal = -0.5 * ((logsnr + 2 * self.mean) / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))
        return log_normal - 2 * F.logsigmoid(logsnr / 2)


@dataclass(frozen=True)
class SD3CosMap(Weighting):
    r"""Flow matching, t from "cosmap": :math:`w = sech(\lambda/2)(1 + e^{-\lambda/2})^2`.  (Esser et al. 2024)

    Cosmap's density of t, 2/(π − 2πt + 2πt²), is that of the cosine schedule seen in flow matching's time.
    """

    def log(self, logsnr: Tensor) -> Tensor:
        return log_sech(logsnr / 2) - 2 * F.logsigmoid(logsnr / 2)


@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    r"""x-MSE · γ SNR/(SNR + γ), cosine schedule: :math:`w = sech(\lambda/2)\,\gamma/(e^\lambda + \gamma)`.

    (Crowson et al. 2024, *Hourglass Diffusion Transformers*.)
    """

    gamma: float = 4.0

    def __post_init__(self) -> None:
        require_positive("gamma", self.gamma)

    def log(self, logsnr: Tensor) -> Tensor:
        return log_sech(logsnr / 2) + F.logsigmoid(math.log(self.gamma) - logsnr)


@dataclass(frozen=True)
class Debiased(Weighting):
    r"""ε-MSE/√SNR, cosine schedule, :math:`w = sech(\lambda/2)\,e^{-\lambda/2}`.  (Yu et al. 2024; monotone)"""

    def log(self, logsnr: Tensor) -> Tensor:
        return log_sech(logsnr / 2) - logsnr / 2


@dataclass(frozen=True)
class EDM2(EDM):
    """EDM's weighting with the levels of EDM2, P_mean = −0.4 and P_std = 1.0.  (Karras et al. 2024)"""

    p_mean: float = -0.4
    p_std: float = 1.0


@dataclass(frozen=True)
class SiD2(Sigmoid):
    """Sigmoid weighting of *Simpler Diffusion*: the bias is lowered as the resolution grows.  (Hoogeboom et al. 2024)

    The published biases depend on the resolution and are not repeated here: pass yours.
    """

    bias: float = 0.0


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
        "sid2": SiD2,
    },
    changes={"image_size": Weighting.for_image_size, "shifted": Weighting.shifted},
)
"""Every weighting by name."""

register = WEIGHTINGS.register


def get(said: str | Mapping[str, Any] | Weighting, **parameters: Any) -> Weighting:
    """A weighting by its name in :data:`WEIGHTINGS`, or from a dictionary of ``name`` and parameters.

    Beside its own parameters any takes ``shifted`` (nats) and ``image_size`` (:meth:`Weighting.for_image_size`).
    Raises as :meth:`paperlib.registry.Registry.make`.
    """
    return WEIGHTINGS.make(said, **parameters)


# The augmentation distribution ---------------------------------------------------------------------------------------


def augmentation_density(weighting: Weighting, logsnr: Tensor, logsnr_min: float, logsnr_max: float) -> Tensor:
    r"""p_w over log-SNR, :math:`-w'(\lambda)/w(\lambda_{min})`: the noise levels at which the ELBO is taken.

    Together with :func:`clean_mass` it adds up to one.  Negative values mean noise levels that are *un*-learned: w is
    not monotone there.  (Section 3, the distribution of noise levels; Section 3, weightings that are not monotone)

    Args:
        weighting: w.
        logsnr: where to evaluate, any shape, within the range.
        logsnr_min: lower end of the range, where w is taken to be one.
        logsnr_max: upper end of the range.

    Returns:
        The density in 1/nats, the shape of ``logsnr``; zero outside the range.
    """
    require_range(logsnr_min, logsnr_max)
    with torch.enable_grad():
        level = logsnr.detach().double().requires_grad_()
        # 0 · level keeps the graph whole where w is constant
        relative = torch.exp(weighting.log(level) + 0 * level - _log_weight_at(weighting, logsnr_min))
        (slope,) = torch.autograd.grad(relative.sum(), level)
    return torch.where(outside(logsnr, logsnr_min, logsnr_max), 0.0, -slope).to(logsnr.dtype)


def clean_mass(weighting: Weighting, logsnr_min: float, logsnr_max: float) -> float:
    r"""The point mass of p_w on clean data (t = 0), :math:`w(\lambda_{max})/w(\lambda_{min})`.

    (Section 3, the distribution of noise levels)
    """
    require_range(logsnr_min, logsnr_max)
    return math.exp(_log_weight_at(weighting, logsnr_max) - _log_weight_at(weighting, logsnr_min))


def _log_weight_at(weighting: Weighting, logsnr: float) -> float:
    return weighting.log(torch.tensor(logsnr, dtype=torch.float64)).item()
