r"""Loss weights c(λ): what published codes multiply their squared error by.

.. math:: E_{\lambda \sim p}\, c(\lambda)\,\|\text{target} - \text{prediction}\|^2, \qquad
          w(\lambda) \propto p(\lambda)\, c(\lambda)\, k(\lambda).

Some are a function of λ, whatever the target: any :class:`~paperlib.weightings.Weighting` will do,
:class:`~paperlib.weightings.Custom` for a function of one's own.  Others, each a :class:`LossWeight`, are stated for
the ε error, h(λ), and translated for other targets, c = h/k: min(SNR, γ) of the x error is min(SNR, γ)/SNR of the ε
error and min(SNR, γ)/(SNR + 1) of the v error.

SNR is α²/σ² = exp(λ), t = sigmoid(−λ/2) is the time of flow matching, where it is σ of z = (1 − t) x + t ε.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib import weightings
from paperlib.checks import NotNegative, Positive, Row, table
from paperlib.predictions import Prediction
from paperlib.registry import Registry
from paperlib.schedules import NoiseSchedule
from paperlib.tables import interpolate
from paperlib.weightings import OfCosine, Weighting

# Of the ε error, whatever is predicted -------------------------------------------------------------------------------


class LossWeight(ABC):
    """A loss weight stated as that of the ε error, h(λ) = c(λ) k(λ): the same objective under every prediction."""

    @abstractmethod
    def log_eps(self, logsnr: Tensor, schedule: NoiseSchedule) -> Tensor:
        """log h(λ), with levels drawn by that schedule."""

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where h is known to have steps or kinks that the schedule has not, in nats."""
        return ()

    def log_error(self, logsnr: Tensor) -> Tensor:
        """Standard error of log h(λ): zero unless h was measured."""
        return torch.zeros_like(logsnr)


@dataclass(frozen=True)
class Translated(Weighting):
    """c(λ) = h(λ)/k(λ) of the error of that prediction's target, with levels drawn by that schedule."""

    weight: LossWeight
    prediction: Prediction
    schedule: NoiseSchedule

    def log(self, logsnr: Tensor) -> Tensor:
        return self.weight.log_eps(logsnr, self.schedule) - self.prediction.log_mse_factor(logsnr)

    @property
    def breaks(self) -> tuple[float, ...]:
        return self.weight.breaks

    def log_error(self, logsnr: Tensor) -> Tensor:
        return self.weight.log_error(logsnr)


class OfWeighting(LossWeight):
    """An h that is made of a weighting, and has its kinks and its errors."""

    weighting: Weighting

    @property
    def breaks(self) -> tuple[float, ...]:
        return self.weighting.breaks

    def log_error(self, logsnr: Tensor) -> Tensor:
        return self.weighting.log_error(logsnr)


@dataclass(frozen=True)
class OfEps(OfWeighting):
    """The h of a weighting that is known by its name under the cosine schedule, under any schedule."""

    weighting: OfCosine

    def log_eps(self, logsnr: Tensor, schedule: NoiseSchedule) -> Tensor:
        return self.weighting.log_eps(logsnr)


def MinSNR(gamma: Positive = 5.0) -> OfEps:
    """Min-SNR-γ: min(SNR, γ) of the x error, min(SNR, γ)/SNR of ε, min(SNR, γ)/(SNR + 1) of v.  (Hang et al. 2023)"""
    return OfEps(weightings.MinSNR(gamma))


def SoftMinSNR(gamma: Positive = 4.0) -> OfEps:
    """γ SNR/(SNR + γ) of the x error, hence γ/(SNR + γ) of ε.  (Crowson et al. 2024)"""
    return OfEps(weightings.SoftMinSNR(gamma))


def P2(gamma: NotNegative = 1.0, k: Positive = 1.0) -> OfEps:
    """Perception-prioritised: 1/(k + SNR)^γ of the ε error; γ = 0 is the plain ε error.  (Choi et al. 2022)"""
    return OfEps(weightings.P2(gamma, k))


@dataclass(frozen=True)
class LearnedUncertainty(LossWeight):
    r"""EDM2's learned u(σ): the loss :math:`e^{-u}\,k E + u` is least at :math:`e^u = k E`, so c = 1/(k E), w ∝ p/E.

    (Karras et al. 2024.)  E(λ) is the network's own ε error: the weighting moves while the network learns, and this
    class is one moment of it, u at its optimum.

    Args:
        eps_error: E(λ) = E‖ε̂ − ε‖², positive, for each of the levels that it is given.
    """

    eps_error: Callable[[Tensor], Tensor]

    @classmethod
    def from_table(cls, logsnr: Row, eps_error: Row) -> "LearnedUncertainty":
        """u from E at some levels in nats, ascending, (N,) each; log E is linear between them, constant outside."""
        levels, errors = table("logsnr", logsnr, "eps_error", eps_error)
        if min(errors) <= 0:
            raise ValueError(f"eps_error must be positive, got {min(errors)}.")
        at, log_error = torch.tensor(levels, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64).log()
        low, high = levels[0], levels[-1]
        return cls(lambda level: interpolate(level.double().clamp(low, high), at, log_error).exp().to(level.dtype))

    def log_eps(self, logsnr: Tensor, schedule: NoiseSchedule) -> Tensor:
        return -self.eps_error(logsnr).log()


@dataclass(frozen=True)
class DividedOut(OfWeighting):
    """The schedule divided out, h = w/p: the loss has the weighting w, however it is predicted and drawn.

    (Section 2, importance sampling; the losses of VDM and SiD2.)
    """

    weighting: Weighting

    def log_eps(self, logsnr: Tensor, schedule: NoiseSchedule) -> Tensor:
        log_p = schedule.log_density(logsnr)  # a level that is never drawn counts nothing
        return torch.where(torch.isneginf(log_p), -torch.inf, self.weighting.log(logsnr) - log_p)


# Functions of λ, of whatever error the loss is made of ---------------------------------------------------------------


@dataclass(frozen=True)
class Constant(Weighting):
    """c(λ) = value."""

    value: Positive = 1.0

    def log(self, logsnr: Tensor) -> Tensor:
        return torch.full_like(logsnr, math.log(self.value))


@dataclass(frozen=True)
class Debiased(Weighting):
    r"""1/√SNR, :math:`c = e^{-\lambda/2}`: with the ε error w = p e^{−λ/2}.  (Yu et al. 2024)

    Codes that say "debiased" under v multiply by 1/(SNR + 1) instead, :class:`DebiasedV`: another objective.
    """

    def log(self, logsnr: Tensor) -> Tensor:
        return -logsnr / 2


@dataclass(frozen=True)
class DebiasedV(Weighting):
    r"""1/(SNR + 1): with the v error w = p e^{−λ}, as of the plain x error, and not what :class:`Debiased` makes."""

    def log(self, logsnr: Tensor) -> Tensor:
        return F.logsigmoid(-logsnr)


@dataclass(frozen=True)
class CosMap(Weighting):
    r"""Cosmap as a weight: :math:`c = 2 / (\pi\,(1 - 2t + 2t^2))`.  (Esser et al. 2024)"""

    def log(self, logsnr: Tensor) -> Tensor:
        both = torch.sigmoid(logsnr / 2) * torch.sigmoid(-logsnr / 2)
        return math.log(2 / math.pi) - torch.log1p(-2 * both)


@dataclass(frozen=True)
class SigmaSqrt(Weighting):
    r"""What training scripts call sigma_sqrt: :math:`c = t^{-2}`, t being σ of flow matching."""

    def log(self, logsnr: Tensor) -> Tensor:
        return -2 * F.logsigmoid(-logsnr / 2)


@dataclass(frozen=True)
class Bell(Weighting):
    r"""A bell in flow time that vanishes at both ends: :math:`c = e^{-2(t - 1/2)^2} - e^{-1/2}`."""

    def log(self, logsnr: Tensor) -> Tensor:
        both = torch.sigmoid(logsnr / 2) * torch.sigmoid(-logsnr / 2)  # −2(t − ½)² = 2 t (1 − t) − ½
        return torch.log(torch.expm1(2 * both)) - 0.5


# Names ---------------------------------------------------------------------------------------------------------------

LOSS_WEIGHTS: Registry[LossWeight | Weighting] = Registry(
    "loss weight",
    (LossWeight, Weighting),
    {
        "min_snr": MinSNR,
        "soft_min_snr": SoftMinSNR,
        "p2": P2,
        "learned_uncertainty": LearnedUncertainty.from_table,
        "divided_out": lambda weighting: DividedOut(weightings.get(weighting)),
        "constant": Constant,
        "debiased": Debiased,
        "debiased_v": DebiasedV,
        "cosmap": CosMap,
        "sigma_sqrt": SigmaSqrt,
        "bell": Bell,
    },
)
"""Every loss weight by name."""

register, get = LOSS_WEIGHTS.register, LOSS_WEIGHTS.make
"""See :class:`paperlib.registry.Registry`."""
