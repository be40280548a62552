r"""Objectives: what a published loss weighs, and the weighted loss that we train with.

A loss of the literature, ":math:`E_{\lambda \sim p}\, c(\lambda)\,\|target - prediction\|^2`", is a weighted loss with

.. math:: w(\lambda) \propto p(\lambda)\, c(\lambda)\, k(\lambda),

k being the factor of the prediction (:mod:`paperlib.predictions`).  :class:`PublishedLoss` makes that w (Table 1).
In the other direction :class:`WeightedLoss` holds w fixed under any schedule:

.. math:: L_w(x) = \tfrac12 E_{\lambda \sim p,\, \epsilon}\left[\frac{w(\lambda)}{p(\lambda)}
          \|\hat\epsilon - \epsilon\|^2\right]
          = \tfrac12 \int w(\lambda)\, E_\epsilon\|\hat\epsilon - \epsilon\|^2 \, d\lambda.

The second form does not contain p: the objective depends on the schedule through its end points alone (Equation 4 of
the paper), while the variance of the first form does depend on p.

A *network* is anything called as ``network(z, logsnr, label=None)``, or with whatever conditioning it is given *by
name*: z (B, *) is VP, logsnr (B,) in nats, label int64 (B,) with None for the null class.  It returns its prediction, a
tensor of the shape of z.
Losses are per example, in nats, summed (not averaged) over the dimensions of the data.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from paperlib import predictions, schedules
from paperlib.checks import require_finite, require_same_shape, require_within
from paperlib.predictions import Prediction
from paperlib.process import diffuse
from paperlib.schedules import NoiseSchedule
from paperlib.weightings import Custom, Weighting

Network = Callable[..., Tensor]
"""See above: ``network(z, logsnr, **conditioning)``, one prediction an example."""

LEVEL_WEIGHT_LIMIT = 1e4
"""A level that counts this many times its average spoils the Monte Carlo estimate: :class:`WeightedLoss` warns."""


# From a published loss to its weighting ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImpliedWeighting(Weighting):
    """w(λ) = p(λ) c(λ) k(λ) of a published loss; zero outside the range of its schedule.  (Table 1)"""

    prediction: Prediction
    schedule: NoiseSchedule
    loss_weight: Weighting | None = None

    def log(self, logsnr: Tensor) -> Tensor:
        log_w = self.schedule.log_density(logsnr) + self.prediction.log_mse_factor(logsnr)
        return log_w if self.loss_weight is None else log_w + self.loss_weight.log(logsnr)


@dataclass(frozen=True)
class PublishedLoss:
    r"""Somebody's loss: :math:`E_{t \sim U}\, c(\lambda_t)\,\|target - prediction\|^2`.  (Table 1, weightings)

    Args:
        prediction: what the network predicts.
        schedule: how λ is drawn in training.
        loss_weight: c(λ); None for a plain mean squared error.
    """

    prediction: Prediction
    schedule: NoiseSchedule
    loss_weight: Weighting | None = None

    @property
    def weighting(self) -> ImpliedWeighting:
        """The weighting of the ε error that this loss amounts to, up to a constant."""
        return ImpliedWeighting(self.prediction, self.schedule, self.loss_weight)

    def __call__(self, network: Network, x: Tensor, t: Tensor, eps: Tensor, **conditioning: Any) -> Tensor:
        """The loss as published, one value an example, shape (B,), at the times ``t`` (B,) and noise ``eps``."""
        require_finite("x", x)
        _require_times(t, x)
        logsnr = self.schedule.logsnr(t)
        output = network(diffuse(x, eps, logsnr), logsnr, **conditioning)
        require_same_shape("output", output, "x", x)
        error = (output - self.prediction.target(x, eps, logsnr)).square().flatten(1).sum(1)
        return error if self.loss_weight is None else self.loss_weight(logsnr) * error


def table_1(logsnr_min: float, logsnr_max: float, sigma_data: float = 0.5) -> dict[str, PublishedLoss]:
    """The objectives of Table 1 as they were published, truncated to a range that all of them share.

    Args:
        logsnr_min: lower end of every schedule, in nats.
        logsnr_max: upper end of every schedule, in nats.
        sigma_data: standard deviation of the data, for EDM's F-prediction.

    Returns:
        Loss by the name of its row in :data:`paperlib.weightings.TABLE_1`.
    """
    cosine = schedules.Cosine(logsnr_min, logsnr_max)
    flow = schedules.FlowMatchingOT(logsnr_min, logsnr_max)
    edm = schedules.EDMTraining(logsnr_min, logsnr_max)
    importance = Custom(lambda logsnr: -cosine.log_density(logsnr))
    p2 = Custom(lambda logsnr: torch.nn.functional.logsigmoid(-logsnr))
    min_snr = Custom(lambda logsnr: logsnr.clamp(max=math.log(5)))
    return {
        "ELBO": PublishedLoss(predictions.EPS, cosine, importance),
        "IDDPM": PublishedLoss(predictions.EPS, cosine),
        "EDM": PublishedLoss(predictions.FPrediction(sigma_data), edm),
        "v-prediction, cosine": PublishedLoss(predictions.V, cosine),
        "Flow matching, OT": PublishedLoss(predictions.FLOW, flow),
        "InDI": PublishedLoss(predictions.X, flow),
        "P2": PublishedLoss(predictions.EPS, cosine, p2),
        "Min-SNR": PublishedLoss(predictions.X, cosine, min_snr),
    }


# The weighted loss ---------------------------------------------------------------------------------------------------


def low_discrepancy_time(
    size: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``size`` times, one in each of ``size`` equal intervals: u₀ + i/size mod 1, u₀ ~ U(0, 1), in random order.

    Each time alone is U(0, 1), so every average keeps its mean; together they cover [0, 1] evenly, which lowers the
    variance of a batch.  (Kingma et al. 2021, Appendix I.1.)  The order is random so that it says nothing of the data.

    Returns:
        Shape (size,), in [0, 1).
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

    Warns when made, naming the level, where w/p exceeds 10⁴ times its average: a few examples at that level would
    drown all others, and the Monte Carlo estimate could not be trusted.

    Args:
        weighting: w, which multiplies the ε error whatever the network predicts.
        schedule: how λ is drawn; it changes the variance of the estimate, not its mean.
        prediction: what the network predicts.
    """

    weighting: Weighting
    schedule: NoiseSchedule
    prediction: Prediction

    def __post_init__(self) -> None:
        level, ratio = self.largest_importance()
        if ratio > LEVEL_WEIGHT_LIMIT:
            warnings.warn(
                f"w/p at log-SNR {level:.2f} is {ratio:.1e} times its average: the loss estimate would hang on a few "
                f"examples there. Use a schedule with more mass at that level, or a narrower range.",
                stacklevel=3,
            )

    def largest_importance(self, points: int = 2001) -> tuple[float, float]:
        """The level where w/p is largest, and how many times its average under the schedule it is there.

        (Section 2, importance sampling)
        """
        low, high = self.schedule.ends
        grid = torch.linspace(low, high, points, dtype=torch.float64)
        log_w = self.weighting.log(grid)
        log_average = torch.logsumexp(log_w, 0) + math.log((high - low) / points)  # E_p[w/p] = ∫ w dλ
        log_ratio = log_w - self.schedule.log_density(grid) - log_average
        worst = log_ratio.nan_to_num(-torch.inf, torch.inf, -torch.inf).argmax()
        return grid[worst].item(), log_ratio[worst].exp().item()

    def __call__(
        self,
        network: Network,
        x: Tensor,
        *,
        t: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        **conditioning: Any,
    ) -> LossParts:
        """Evaluate the loss on a batch.

        Args:
            network: ``network(z, logsnr, **conditioning)``, returning its prediction, the shape of z.
            x: data, shape (B, *), finite.
            t: times in [0, 1], shape (B,); drawn with low discrepancy when None.
            eps: standard normal noise, the shape of ``x``; drawn when None.
            generator: source of what is drawn.
            conditioning: passed to the network, for example ``label``.

        Raises:
            ValueError: for data that are not finite, times outside [0, 1], shapes that do not fit.
        """
        require_finite("x", x)
        if t is None:
            t = low_discrepancy_time(len(x), generator=generator, device=x.device, dtype=x.dtype)
        if eps is None:
            eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        _require_times(t, x)
        logsnr = self.schedule.logsnr(t)
        z = diffuse(x, eps, logsnr)
        eps_hat = self.prediction.to_eps(network(z, logsnr, **conditioning), z, logsnr)
        eps_error = (eps_hat - eps).square().flatten(1).sum(1)
        log_w = self.weighting.log(logsnr)
        importance = torch.exp(log_w - self.schedule.log_density(logsnr))
        return LossParts(0.5 * importance * eps_error, eps_error, log_w.exp() * eps_error, logsnr, importance)


def _require_times(t: Tensor, x: Tensor) -> None:
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must have one time an example, shape ({len(x)},), got {tuple(t.shape)}.")


# Quadrature ----------------------------------------------------------------------------------------------------------


def time_quadrature(schedule: NoiseSchedule, panels: int = 64, order: int = 16) -> tuple[Tensor, Tensor]:
    """Nodes and weights for integrals over t ∈ [0, 1]: Gauss–Legendre panels.

    The panels end at the times of equally spaced log-SNR, so that none hides a range of levels that passes in an
    instant of t; within a panel the nodes are those of t.

    Args:
        schedule: the schedule whose time it is.
        panels: number of panels.
        order: nodes in each.

    Returns:
        Times and weights, each of shape (panels · order,), float64, adding up to one.
    """
    low, high = schedule.ends
    edges = schedule.time(torch.linspace(high, low, panels + 1, dtype=torch.float64))
    nodes, weights = (torch.from_numpy(a) for a in leggauss(order))
    half = (edges[1:] - edges[:-1])[:, None] / 2
    times = (edges[1:] + edges[:-1])[:, None] / 2 + half * nodes
    return times.flatten(), (half * weights).flatten()


def weighted_loss_by_quadrature(
    eps_error: Callable[[Tensor], Tensor],
    weighting: Weighting,
    schedule: NoiseSchedule,
    panels: int = 64,
    order: int = 16,
) -> Tensor:
    r"""L_w from a known error per level: :math:`½ \int_0^1 w(\lambda_t)\,(-d\lambda/dt)\, e(\lambda_t)\, dt`.

    (Section 2, Equation 4)

    Args:
        eps_error: e(λ) = E_ε‖ε̂ − ε‖² at each of the levels it is given, shape (N,) to (N,).
        weighting: w.
        schedule: the schedule in whose t the integral is taken; the result does not depend on it.
        panels: number of panels, see :func:`time_quadrature`.
        order: nodes in each panel.

    Returns:
        A scalar, in nats.
    """
    t, weight = time_quadrature(schedule, panels, order)
    require_within("t", t, 0.0, 1.0)
    logsnr = schedule.logsnr(t)
    integrand = torch.exp(weighting.log(logsnr) - schedule.log_density(logsnr)) * eps_error(logsnr)
    return 0.5 * (weight * integrand).sum()
