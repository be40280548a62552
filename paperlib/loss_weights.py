r"""Loss weights c(λ): what published codes multiply their squared error by.

.. math:: E_{\lambda \sim p}\, c(\lambda)\,\|\text{target} - \text{prediction}\|^2, \qquad
          w(\lambda) \propto p(\lambda)\, c(\lambda)\, k(\lambda).

A weight comes in three kinds.  Some are a function of λ, whatever the target: any
:class:`~paperlib.weightings.Weighting` will do, :class:`~paperlib.weightings.Custom` for a function of one's own.  Some
are stated for the ε error and translated for other targets, c = h/k, so that min(SNR, γ) of the x error is
min(SNR, γ)/SNR of the ε error and min(SNR, γ)/(SNR + 1) of the v error: :class:`EpsWeight`.  And one divides the
schedule out: :class:`DividedOut`.  The latter two are made into the first by ``under(prediction, schedule)``.

SNR is α²/σ² = exp(λ), t = sigmoid(−λ/2) is the time of flow matching, where it is σ of z = (1 − t) x + t ε.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib import weightings
from paperlib.checks import NotNegative, Positive, require_parameters
from paperlib.predictions import Prediction
from paperlib.registry import Registry
from paperlib.schedules import NoiseSchedule
from paperlib.tables import interpolate
from paperlib.weightings import Weighting


class LossWeight(ABC):
    """A loss weight that depends on what the network predicts or on how λ is drawn."""

    def __post_init__(self) -> None:
        require_parameters(self)

    @abstractmethod
    def under(self, prediction: Prediction, schedule: NoiseSchedule) -> Weighting:
        """c(λ) of the error of that prediction's target, with levels drawn by that schedule."""


@dataclass(frozen=True)
class Relative(Weighting):
    """c(λ) = h(λ)/k(λ), h being the weight of the ε error."""

    eps_weight: "EpsWeight"
    prediction: Prediction

    def log(self, logsnr: Tensor) -> Tensor:
        return self.eps_weight.log_eps(logsnr) - self.prediction.log_mse_factor(logsnr)


class EpsWeight(LossWeight):
    """A loss weight stated as that of the ε error, h(λ) = c(λ) k(λ): the same objective under every prediction."""

    @abstractmethod
    def log_eps(self, logsnr: Tensor) -> Tensor:
        """log h(λ)."""

    def under(self, prediction: Prediction, schedule: NoiseSchedule) -> Relative:
        return Relative(self, prediction)


# Of the ε error, whatever is predicted -------------------------------------------------------------------------------


@dataclass(frozen=True)
class MinSNR(EpsWeight):
    """Min-SNR-γ: min(SNR, γ) of the x error, min(SNR, γ)/SNR of ε, min(SNR, γ)/(SNR + 1) of v.  (Hang et al. 2023)"""

    gamma: Positive = 5.0

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return (math.log(self.gamma) - logsnr).clamp(max=0)


@dataclass(frozen=True)
class SoftMinSNR(EpsWeight):
    """γ SNR/(SNR + γ) of the x error, hence γ/(SNR + γ) of ε.  (Crowson et al. 2024)"""

    gamma: Positive = 4.0

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return F.logsigmoid(math.log(self.gamma) - logsnr)


@dataclass(frozen=True)
class P2(EpsWeight):
    """Perception-prioritised: 1/(k + SNR)^γ of the ε error; γ = 0 is the plain ε error.  (Choi et al. 2022)"""

    gamma: NotNegative = 1.0
    k: Positive = 1.0

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return -self.gamma * torch.logaddexp(torch.full_like(logsnr, math.log(self.k)), logsnr)


@dataclass(frozen=True)
class LearnedUncertainty(EpsWeight):
    r"""EDM2's learned u(σ): the loss :math:`e^{-u}\,k E + u` is least at :math:`e^u = k E`, so c = 1/(k E), w ∝ p/E.

    (Karras et al. 2024.)  E(λ) is the network's own ε error: the weighting moves while the network learns, and this
    class is one moment of it, u at its optimum.  Whatever is predicted, h = 1/E.

    Args:
        eps_error: E(λ) = E‖ε̂ − ε‖², positive, for each of the levels that it is given.
    """

    eps_error: Callable[[Tensor], Tensor]

    @classmethod
    def from_table(cls, logsnr: Sequence[float] | Tensor, eps_error: Sequence[float] | Tensor) -> "LearnedUncertainty":
        """u from E at some levels in nats, increasing, (N,) each; log E is linear between them, constant outside."""
        at, error = (torch.as_tensor(row, dtype=torch.float64) for row in (logsnr, eps_error))
        if at.shape != error.shape or at.ndim != 1 or len(at) < 2 or not (at.diff() > 0).all():
            raise ValueError("a table of errors has two levels or more, increasing, and one error for each.")
        if not (error.isfinite() & (error > 0)).all():
            raise ValueError(f"errors must be positive and finite, got {error.tolist()}.")
        return cls(partial(_from_table, at=at, log_error=error.log()))

    def log_eps(self, logsnr: Tensor) -> Tensor:
        return -self.eps_error(logsnr).log()


def _from_table(logsnr: Tensor, at: Tensor, log_error: Tensor) -> Tensor:
    return interpolate(logsnr.double().clamp(at[0], at[-1]), at, log_error).exp().to(logsnr.dtype)


# With the schedule divided out ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DividedOut(LossWeight):
    """c = w/(p k): the loss has the weighting w, or what ``weightings.get`` takes, however it is predicted and drawn.

    (Section 2, importance sampling; the losses of VDM and SiD2.)
    """

    weighting: Weighting | str | Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weighting", weightings.get(self.weighting))

    def under(self, prediction: Prediction, schedule: NoiseSchedule) -> Weighting:
        return Quotient(weightings.get(self.weighting), prediction, schedule)


@dataclass(frozen=True)
class Quotient(Weighting):
    """w(λ)/(p(λ) k(λ))."""

    weighting: Weighting
    prediction: Prediction
    schedule: NoiseSchedule

    def log(self, logsnr: Tensor) -> Tensor:
        log_p = self.schedule.log_density(logsnr)
        log_c = self.weighting.log(logsnr) - log_p - self.prediction.log_mse_factor(logsnr)
        return torch.where(torch.isneginf(log_p), -torch.inf, log_c)  # a level that is never drawn counts nothing


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
        "divided_out": DividedOut,
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
