r"""Objectives: what a published loss weighs, and the weighted loss that we train with.

A loss of the literature, ":math:`E_{\lambda \sim p}\, c(\lambda)\,\|target - prediction\|^2`", is a weighted loss with

.. math:: w(\lambda) \propto p(\lambda)\, c(\lambda)\, k(\lambda),

k being the factor of the prediction: :class:`PublishedLoss` (Table 1).  In the other direction :class:`WeightedLoss`
holds w fixed under any schedule:

.. math:: L_w(x) = \tfrac12 E_{\lambda \sim p,\, \epsilon}\left[\frac{w(\lambda)}{p(\lambda)}
          \|\hat\epsilon - \epsilon\|^2\right]
          = \tfrac12 \int w(\lambda)\, E_\epsilon\|\hat\epsilon - \epsilon\|^2 \, d\lambda.

The second form does not contain p: the objective depends on the schedule through its end points alone (Equation 4 of
the paper), the variance of its estimate on all of p.

A *network* is anything called as ``network(z, logsnr, label=None)``, or with whatever conditioning it is given *by
name*: z (B, *) is VP, logsnr (B,) in nats, label int64 (B,) with None for the null class.  It returns its prediction, a
tensor of the shape of z.
Losses are per example, in nats, summed (not averaged) over the dimensions of the data.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paperlib import loss_weights, predictions, schedules, weightings
from paperlib.checks import (
    at_least_float32,
    require_finite,
    require_instance,
    require_levels,
    require_no_nan,
    require_same_shape,
)
from paperlib.loss_weights import LossWeight
from paperlib.predictions import Prediction
from paperlib.process import diffuse
from paperlib.quadrature import LevelFunction, edges_between, panel_nodes
from paperlib.schedules import NoiseSchedule
from paperlib.weightings import ELBO, Weighting

Network = Callable[..., Tensor]
"""See above: ``network(z, logsnr, **conditioning)``, one prediction an example."""

LEVEL_WEIGHT_LIMIT = 1e4
"""A level that counts this many times its average spoils the Monte Carlo estimate: :class:`WeightedLoss` warns."""

PREDICTION_REMEDY = "take one of paperlib.predictions, for example predictions.V or predictions.get('v')"
SCHEDULE_REMEDY = "take one of paperlib.schedules, for example schedules.Cosine(-12.0, 12.0)"
WEIGHTING_REMEDY = "take one of paperlib.weightings, or wrap a function that returns log w in weightings.Custom(…)"
LOSS_WEIGHT_REMEDY = "take one of paperlib.loss_weights, such as loss_weights.MinSNR(5), or weightings.Custom(log_c)"


# From a published loss to its weighting ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImpliedWeighting(Weighting):
    """w(λ) = p(λ) c(λ) k(λ) of a published loss; zero outside the range of its schedule.  (Table 1)"""

    prediction: Prediction
    schedule: NoiseSchedule
    loss_weight: Weighting

    def log(self, logsnr: Tensor) -> Tensor:
        log_k = self.prediction.log_mse_factor(logsnr)
        return self.schedule.log_density(logsnr) + log_k + self.loss_weight.log(logsnr)

    @property
    def breaks(self) -> tuple[float, ...]:
        return (*self.ends, *self.schedule.breaks, *self.loss_weight.breaks)

    @property
    def ends(self) -> tuple[float, float]:
        return self.schedule.ends

    def log_error(self, logsnr: Tensor) -> Tensor:
        return self.loss_weight.log_error(logsnr)


@dataclass(frozen=True)
class PublishedLoss:
    r"""Somebody's loss: :math:`E_{t \sim U}\, c(\lambda_t)\,\|target - prediction\|^2`.  (Table 1, weightings)

    ``PublishedLoss(predictions.V, schedules.Cosine(-12, 12), loss_weights.MinSNR(5))``; from names, :func:`get`.

    Args:
        prediction: what the network predicts.
        schedule: how λ is drawn in training.
        loss_weight: c(λ), a weighting or one of :mod:`paperlib.loss_weights`; None for a plain mean squared error.

    Raises:
        TypeError: for anything else in their place, a name or a bare function among it.
        ValueError: for a schedule that draws λ = −∞ with a prediction that says nothing of x there (ε, score).
    """

    prediction: Prediction
    schedule: NoiseSchedule
    loss_weight: Weighting | LossWeight | None = None

    def __post_init__(self) -> None:
        require_instance("prediction", self.prediction, Prediction, PREDICTION_REMEDY)
        require_instance("schedule", self.schedule, NoiseSchedule, SCHEDULE_REMEDY)
        if self.loss_weight is not None:
            require_instance("loss_weight", self.loss_weight, Weighting | LossWeight, LOSS_WEIGHT_REMEDY)
        if self.schedule.terminal_mass and not self._sees_data_in_noise:
            raise ValueError(
                f"the schedule draws λ = −∞, where z is noise alone and {type(self.prediction).__name__} says nothing "
                f"of x; predict x, v, flow or F, or state logsnr_min to leave that level out."
            )

    @property
    def _sees_data_in_noise(self) -> bool:
        a, _ = self.prediction.coefficients(torch.tensor(-torch.inf, dtype=torch.float64))
        return bool(a.isfinite() and a != 0)

    @property
    def c(self) -> Weighting:
        """c(λ) for this prediction and schedule; one for a plain mean squared error."""
        if isinstance(self.loss_weight, LossWeight):
            return loss_weights.Translated(self.loss_weight, self.prediction, self.schedule)
        return self.loss_weight or loss_weights.Constant()

    @property
    def weighting(self) -> ImpliedWeighting:
        """The weighting of the ε error that this loss amounts to, up to a constant; without the term at λ = −∞."""
        return ImpliedWeighting(self.prediction, self.schedule, self.c)

    def __call__(self, network: Network, x: Tensor, t: Tensor, eps: Tensor, **conditioning: Any) -> Tensor:
        """The loss at the times ``t`` (B,) and noise ``eps`` (B, *), shape (B,); of all levels but λ = −∞."""
        require_finite("x", x)
        _require_one_each("t", "time", t, x)
        return self._at(self.schedule.logsnr(t), network, x, eps, **conditioning)

    def terminal(self, network: Network, x: Tensor, eps: Tensor, **conditioning: Any) -> Tensor:
        """The loss at λ = −∞, where z is ε, shape (B,).

        The loss as published is (1 − m) E_t[loss(…, t)] + m E[terminal(…)], m = ``schedule.terminal_mass``.
        """
        require_finite("x", x)
        if not self._sees_data_in_noise:
            raise ValueError(f"{type(self.prediction).__name__} has no term at λ = −∞: it says nothing of x there.")
        level = x.new_full((len(x),), -torch.inf, dtype=at_least_float32(x.dtype))
        if not self.c(level).isfinite().all():
            raise ValueError(f"{self.loss_weight} has no finite value at λ = −∞; leave that level out (logsnr_min).")
        return self._at(level, network, x, eps, **conditioning)

    def _at(self, logsnr: Tensor, network: Network, x: Tensor, eps: Tensor, **conditioning: Any) -> Tensor:
        dtype = x.dtype
        x, eps = (value.to(at_least_float32(value.dtype)) for value in (x, eps))
        output = network(diffuse(x, eps, logsnr).to(dtype), logsnr, **conditioning)
        require_same_shape("output", output, "x", x)
        return self.c(logsnr) * (output - self.prediction.target(x, eps, logsnr)).square().flatten(1).sum(1)


def get(said: Mapping[str, Any] | PublishedLoss) -> PublishedLoss:
    """A loss from a plain dictionary.

    ``{"prediction": "v", "schedule": {"name": "cosine", "logsnr_min": -12, "logsnr_max": 12}, "loss_weight":
    {"name": "min_snr", "gamma": 5}}``; each part as ``get`` of its module takes it, ``loss_weight`` may be left out.

    Raises:
        TypeError, ValueError: for parts that are missing or unknown, and as :meth:`paperlib.registry.Registry.make`.
    """
    if isinstance(said, PublishedLoss):
        return said
    if not isinstance(said, Mapping):
        raise TypeError(f"an objective is a dictionary of prediction, schedule and loss_weight, got {said!r}.")
    if {*said, "loss_weight"} != {"prediction", "schedule", "loss_weight"}:
        raise ValueError(
            f"an objective has prediction, schedule and, where it is no plain error, loss_weight; got "
            f"{', '.join(map(str, said))}."
        )
    prediction, schedule = predictions.get(said["prediction"]), schedules.get(said["schedule"])
    weight = said.get("loss_weight")
    return PublishedLoss(prediction, schedule, None if weight is None else loss_weights.get(weight))


def weighting(said: Mapping[str, Any] | str | Weighting) -> Weighting:
    """A weighting from ``{name: sigmoid}``, or from a loss, ``{prediction: v, schedule: {name: ddpm}}``."""
    if isinstance(said, Mapping) and "prediction" in said:
        return get(said).weighting
    return weightings.get(said)


def table_1(logsnr_min: float, logsnr_max: float, sigma_data: float = 0.5) -> dict[str, PublishedLoss]:
    """The objectives of Table 1 as they were published, by the names of :data:`paperlib.weightings.TABLE_1`.

    Every schedule is cut to [logsnr_min, logsnr_max], in nats; ``sigma_data`` is that of EDM's F-prediction.
    """
    cosine = schedules.Cosine(logsnr_min, logsnr_max)
    flow = schedules.FlowMatchingOT(logsnr_min, logsnr_max)
    edm = schedules.EDMTraining(logsnr_min, logsnr_max)
    return {
        "ELBO": PublishedLoss(predictions.EPS, cosine, loss_weights.DividedOut(ELBO())),
        "IDDPM": PublishedLoss(predictions.EPS, cosine),
        "EDM": PublishedLoss(predictions.FPrediction(sigma_data), edm),
        "v-prediction, cosine": PublishedLoss(predictions.V, cosine),
        "Flow matching, OT": PublishedLoss(predictions.FLOW, flow),
        "InDI": PublishedLoss(predictions.X, flow),
        "P2": PublishedLoss(predictions.EPS, cosine, loss_weights.P2()),
        "Min-SNR": PublishedLoss(predictions.X, cosine, loss_weights.MinSNR()),
    }


# The weighted loss ---------------------------------------------------------------------------------------------------


def low_discrepancy_time(
    size: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Times in [0, 1), one in each of ``size`` equal intervals: u₀ + i/size mod 1, u₀ ~ U(0, 1), in random order.

    Each alone is U(0, 1); together they lower the variance of a batch.  (Kingma et al. 2021, Appendix I.1.)
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    start = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    order = torch.randperm(size, generator=generator, device=device)
    t = (start + order.double() / size) % 1
    return t.to(dtype).clamp(max=1 - torch.finfo(dtype).eps)


@dataclass(frozen=True)
class LossParts:
    """A weighted loss and what it is made of; every field has shape (B,).

    Attributes:
        loss: ½ (w/p) ‖ε̂ − ε‖², in nats; its mean over t and ε is L_w(x).
        eps_error: ‖ε̂ − ε‖², summed over the dimensions of the data.
        weighted_error: w ‖ε̂ − ε‖², not divided by p: what an adaptive schedule keeps track of.
        logsnr: the level of each example, in nats.
        importance: w/p at that level.
    """

    loss: Tensor
    eps_error: Tensor
    weighted_error: Tensor
    logsnr: Tensor
    importance: Tensor

    def mean(self) -> Tensor:
        """The scalar to minimise."""
        return self.loss.mean()


@dataclass(frozen=True)
class WeightedLoss:
    r"""The weighted loss :math:`L_w`, w held fixed under any schedule.  (Section 2, Equation 4)

    Warns when made, naming the level, where w/p exceeds 10⁴ times its average.

    Args:
        weighting: w, which multiplies the ε error whatever the network predicts.
        schedule: how λ is drawn; it changes the variance of the estimate, not its mean.
        prediction: what the network predicts.
    """

    weighting: Weighting
    schedule: NoiseSchedule
    prediction: Prediction

    def __post_init__(self) -> None:
        require_instance("weighting", self.weighting, Weighting, WEIGHTING_REMEDY)
        require_instance("schedule", self.schedule, NoiseSchedule, SCHEDULE_REMEDY)
        require_instance("prediction", self.prediction, Prediction, PREDICTION_REMEDY)
        level, ratio = self.largest_importance()
        if ratio > LEVEL_WEIGHT_LIMIT:
            warnings.warn(
                f"w/p at log-SNR {level:.2f} is {ratio:.1e} times its average: the loss estimate would hang on a few "
                f"examples there. Use a schedule with more mass at that level, or a narrower range.",
                stacklevel=3,
            )

    def largest_importance(self) -> tuple[float, float]:
        """The level where w/p is largest, and how many times its average under the schedule it is there.

        (Section 2, importance sampling)
        """
        low, high = self.schedule.ends
        grid = torch.linspace(low, high, 2001, dtype=torch.float64)
        log_w = self.weighting.log(grid)
        require_no_nan(str(self.weighting), log_w, grid)
        log_average = torch.logsumexp(log_w, 0) + math.log((high - low) / len(grid))  # E_p[w/p] = ∫ w dλ
        log_ratio = log_w - self.schedule.log_density(grid) - log_average
        worst = log_ratio.nan_to_num(-torch.inf, torch.inf, -torch.inf).argmax()
        return grid[worst].item(), log_ratio[worst].exp().item()

    def __call__(
        self,
        network: Network,
        x: Tensor,
        *,
        t: Tensor | None = None,
        logsnr: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        **conditioning: Any,
    ) -> LossParts:
        """The loss of a batch.  The network is given z in the dtype of ``x``; λ and the loss are float32 at least.

        Args:
            network: see :mod:`paperlib.objectives`; it is given ``conditioning``, for example ``label``, by name.
            x: data, shape (B, *), finite.
            t: times in [0, 1], shape (B,); drawn with low discrepancy when None.
            logsnr: levels instead of times, shape (B,), drawn by the caller from the schedule's density.
            eps: standard normal noise, the shape of ``x``; drawn when None.
            generator: source of what is drawn.

        Raises:
            TypeError: for data or levels that are no floating-point tensors.
            ValueError: for data that are not finite, times or levels outside their range, both of them, or shapes that
                do not fit.
        """
        require_finite("x", x)
        dtype = at_least_float32(x.dtype)
        if t is not None and logsnr is not None:
            raise ValueError("give either t or logsnr, not both: the one follows from the other.")
        for name, what, given in (("t", "time", t), ("logsnr", "level", logsnr)):
            if given is not None:
                _require_one_each(name, what, given, x)
        if logsnr is None:
            if t is None:
                t = low_discrepancy_time(len(x), generator=generator, device=x.device, dtype=dtype)
            logsnr = self.schedule.logsnr(t)
        else:
            require_levels("logsnr", logsnr, *self.schedule.ends)
            logsnr = logsnr.to(at_least_float32(logsnr.dtype))
        if eps is None:
            eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=dtype)
        z = diffuse(x.to(dtype), eps.to(at_least_float32(eps.dtype)), logsnr)
        eps_hat = self.prediction.to_eps(network(z.to(x.dtype), logsnr, **conditioning), z, logsnr)
        eps_error = (eps_hat - eps).square().flatten(1).sum(1)
        log_w = self.weighting.log(logsnr)
        importance = torch.exp(log_w - self.schedule.log_density(logsnr))
        return LossParts(0.5 * importance * eps_error, eps_error, log_w.exp() * eps_error, logsnr, importance)


def _require_one_each(name: str, what: str, given: Tensor, x: Tensor) -> None:
    if given.shape != x.shape[:1]:
        raise ValueError(f"{name} must have one {what} an example, shape ({len(x)},), got {tuple(given.shape)}.")


# Quadrature ----------------------------------------------------------------------------------------------------------


def time_quadrature(schedule: NoiseSchedule, panels: int = 64, order: int = 16) -> tuple[Tensor, Tensor]:
    """Times and weights for integrals over t ∈ [0, 1], Gauss–Legendre panels of ``order`` nodes; (N,) each, float64.

    The ``panels`` end at the times of equally spaced log-SNR, and of the schedule's breaks, so that none hides a range
    of levels that passes in an instant of t.
    """
    low, high = schedule.ends
    edges = edges_between(low, high, panels, schedule.breaks)
    return panel_nodes(schedule.time(edges.flip(0)), order)


def weighted_loss_by_quadrature(
    eps_error: LevelFunction, weighting: Weighting, schedule: NoiseSchedule, panels: int = 64
) -> Tensor:
    r"""L_w from a known error per level: :math:`½ \int_0^1 w(\lambda_t)\,(-d\lambda/dt)\, e(\lambda_t)\, dt`.

    (Section 2, Equation 4)

    e(λ) = E_ε‖ε̂ − ε‖² maps levels (N,) to (N,); ``panels`` are those of :func:`time_quadrature`.
    A scalar, in nats, whatever the schedule in whose t it is taken.
    """
    t, weight = time_quadrature(schedule, panels)
    logsnr = schedule.logsnr(t)
    integrand = torch.exp(weighting.log(logsnr) - schedule.log_density(logsnr)) * eps_error(logsnr)
    return 0.5 * (weight * integrand).sum()
