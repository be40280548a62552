r"""The evidence lower bound: L(t; x), the bound in its three terms, and the weighted loss as ELBOs of noisy data.

With :math:`L(t; x) = KL(q(z_{t..1} \mid x) \,\|\, p(z_{t..1}))` and the error of a network at x,
:math:`e(\lambda) = E_\epsilon\|\hat\epsilon - \epsilon\|^2`, the Theorem and its Corollary (Section 3) say

.. math::
    \frac{d}{dt} L(t; x) &= \tfrac12 f'(t)\, e(\lambda_t), \\
    L_w(x) &= -\int_0^1 \frac{dL}{dt}\, w(\lambda_t)\, dt
            = w(\lambda_{min}) \left\{ \int L(\lambda; x)\, dp_w(\lambda) - L(\lambda_{min}; x) \right\},

where p_w is :class:`paperlib.augmentation.Augmentation`, of mass one.  Because
:math:`L(t; x) = -E_q[ELBO_t(z_t)] - H(q(z_t \mid x))`, a monotone w makes this the ELBO of data with Gaussian noise
added, its level drawn from p_w; the entropy and L(λ_min; x) do not depend on the network.

L is a function of log-SNR here: levels are (N,), and so is what a function of them returns.  Everything is in nats an
example; :func:`bits_per_dim` is the only conversion.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from paperlib import predictions, process
from paperlib.augmentation import Augmentation
from paperlib.checks import at_least_float32, require_finite, require_positive, require_within
from paperlib.objectives import Network
from paperlib.oracles import LOG_2PI, Oracle
from paperlib.predictions import Prediction
from paperlib.quadrature import LevelFunction, antiderivative, integrate, panel_nodes
from paperlib.schedules import NoiseSchedule
from paperlib.weightings import Weighting

ROWS, ELEMENTS = 16384, 2**20
"""Noisy examples, and values in them, that are evaluated at a time."""


# Expectations over ε -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """A finite set of ε that stands for N(0, I): E f(ε) ≈ Σ weight · f(eps), ``eps`` (Q, *) and ``weight`` (Q,)."""

    eps: Tensor
    weight: Tensor

    @classmethod
    def quadrature(cls, dim: int, panels: int = 32, order: int = 16) -> "Noise":
        """Gauss–Legendre panels on [−9, 9]^dim: exact to about 1e-13 for smooth functions, dim 1 or 2.

        (Not Gauss–Hermite nodes: the posterior of a mixture may turn over within a small range of ε.)
        """
        if dim not in (1, 2):
            raise ValueError(f"quadrature over ε is for 1 or 2 dimensions, got {dim}; use Noise.monte_carlo.")
        points, width = panel_nodes(torch.linspace(-9, 9, panels + 1, dtype=torch.float64), order)
        density = width * torch.exp(-0.5 * points**2) / math.sqrt(2 * math.pi)
        if dim == 1:
            return cls(points[:, None], density)
        return cls(torch.cartesian_prod(points, points), torch.outer(density, density).flatten())

    @classmethod
    def monte_carlo(cls, shape: tuple[int, ...], size: int, generator: torch.Generator | None = None) -> "Noise":
        """``size`` independent draws of ε of one example's ``shape``, float64."""
        eps = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
        return cls(eps, torch.full((size,), 1 / size, dtype=torch.float64))

    def mean(self, values: Tensor) -> Tensor:
        """Expectation of values (*, Q); shape (*)."""
        return values @ self.weight

    def standard_error(self, values: Tensor) -> Tensor:
        """Standard error of :meth:`mean`, for Monte Carlo; shape (*)."""
        return values.std(-1) / math.sqrt(values.shape[-1])


def rows(dim: int) -> int:
    """How many noisy examples of ``dim`` values are evaluated at a time."""
    return max(2, min(ROWS, ELEMENTS // dim))


def _at_levels(value: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, logsnr: Tensor, noise: Noise) -> Tensor:
    """``value(z, λ, ε)``, (B, *), (B,), (B, *) to (B,), at every pair of a level and an ε; shape (N, Q).

    ``x`` is one example, shape (*), or one for each ε, shape (Q, *).  A piece of the pairs is evaluated at a time.
    """
    data, count = x.expand_as(noise.eps), len(noise.eps)
    pieces = []
    for level in logsnr.split(max(1, rows(noise.eps[0].numel()) // count)):
        eps = noise.eps.repeat(len(level), *[1] * (noise.eps.ndim - 1))
        repeated = data.repeat(len(level), *[1] * (data.ndim - 1))
        each = level.repeat_interleave(count)
        pieces.append(value(process.diffuse(repeated, eps, each), each, eps).reshape(len(level), count))
    return torch.cat(pieces)


@torch.no_grad()
def eps_errors(
    network: Network, x: Tensor, logsnr: Tensor, noise: Noise, prediction: Prediction = predictions.EPS
) -> Tensor:
    """‖ε̂ − ε‖² at every level and every ε, shape (N, Q), for ``noise.mean`` and ``noise.standard_error``.

    ``x`` is one example, shape (*), or one for each ε, shape (Q, *); ``logsnr`` (N,).
    """
    require_finite("x", x)

    def error(z: Tensor, level: Tensor, eps: Tensor) -> Tensor:
        eps_hat = prediction.to_eps(network(z, level), z, level)
        return (eps_hat - eps).square().flatten(1).sum(1)

    return _at_levels(error, x, logsnr, noise)


def eps_error(network: Network, x: Tensor, noise: Noise) -> LevelFunction:
    """e(λ) = E_ε‖ε̂ − ε‖² of a network of ε as a function of levels; arguments as in :func:`eps_errors`."""
    return lambda logsnr: noise.mean(eps_errors(network, x, logsnr, noise))


def marginal_kls(oracle: Oracle, x: Tensor, logsnr: Tensor, noise: Noise) -> Tensor:
    r"""log q(z|x) − log p(z) at every level and every ε, whose mean is :math:`KL(q(z_\lambda|x) \| p(z_\lambda))`.

    For an oracle, of whatever data, this is L(t; x).  Shapes as in :func:`eps_errors`.  (Section 3, the inequality)
    """
    dim = noise.eps[0].numel()

    def log_ratio(z: Tensor, level: Tensor, eps: Tensor) -> Tensor:
        own = -0.5 * (eps.square().flatten(1).sum(1) + dim * (LOG_2PI + F.logsigmoid(-level)))
        return own - oracle.log_prob(z, level)

    return _at_levels(log_ratio, x, logsnr, noise)


def marginal_kl(oracle: Oracle, x: Tensor, noise: Noise) -> LevelFunction:
    """KL(q(z_λ|x) ‖ p(z_λ)) of an oracle as a function of levels; arguments as in :func:`marginal_kls`."""
    return lambda logsnr: noise.mean(marginal_kls(oracle, x, logsnr, noise))


# L(t; x) -------------------------------------------------------------------------------------------------------------


def path_kl(
    eps_error: LevelFunction,
    logsnr_min: float,
    logsnr_max: float,
    prior_kl: Tensor | float = 0.0,
    panel_width: float = 0.5,
    order: int = 16,
) -> LevelFunction:
    r"""L(t; x) by its integral, :math:`L(\lambda_{min}; x) + \tfrac12\int_{\lambda_{min}}^{\lambda} e\,d\lambda'`.

    The error is evaluated once, so any number of levels costs nothing more.  ``prior_kl`` is L(λ_min; x), in nats;
    ``panel_width`` and ``order`` are those of :func:`paperlib.quadrature.antiderivative`.
    (Section 3, the path KL; Section 3, the Theorem)
    """
    gained = antiderivative(eps_error, logsnr_min, logsnr_max, panel_width, order)
    return lambda logsnr: prior_kl + 0.5 * gained(logsnr)


def path_kl_rate(eps_error: LevelFunction, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    r"""dL/dt = :math:`\tfrac12 f'(t)\,e(\lambda_t)`, with :math:`f'(t) = -1/p(\lambda_t)`; shape of ``t``, (N,).

    (Section 3, the Theorem)
    """
    logsnr = schedule.logsnr(t)
    return -0.5 * eps_error(logsnr) / schedule.density(logsnr)


def conditional_entropy(dim: int, logsnr: Tensor) -> Tensor:
    r"""H(q(z_λ|x)) = :math:`\tfrac D2 \log(2\pi e\sigma^2)`, in nats, shape of ``logsnr``.

    (Section 3, the ELBO of noisy data)
    """
    return 0.5 * dim * (LOG_2PI + 1 + F.logsigmoid(-logsnr))


def discrete_bound(eps_error: LevelFunction, schedule: NoiseSchedule, steps: int) -> Tensor:
    r"""Diffusion term with T steps, :math:`\tfrac12 \sum_i \mathrm{expm1}(\lambda_s - \lambda_t)\,e(\lambda_t)`.

    Here t = i/T and s = (i − 1)/T.  It is the exact KL of T steps of ancestral sampling and falls to the integral.

    (Appendix, discrete time; Kingma et al. 2021, Section 3.3)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    levels = schedule.logsnr(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    return 0.5 * (torch.expm1(-levels.diff()) * eps_error(levels[1:])).sum()


# The sampler as a model of noisy data --------------------------------------------------------------------------------


def logsnr_of_noisy_data(logsnr: Tensor, data_logsnr: Tensor) -> Tensor:
    r"""log-SNR of z_λ when z_λ', λ' ≥ λ, is what counts as data: to it too the process is a VP one.

    :math:`\lambda - \log\alpha_{\lambda'}^2 - \log(1 - e^{\lambda - \lambda'})`; λ' = ∞ is clean data, where it is λ.
    """
    return logsnr - F.logsigmoid(data_logsnr) - torch.log(-torch.expm1(logsnr - data_logsnr))


@dataclass(frozen=True, eq=False)
class Chain:
    r"""The sampler of T ancestral steps, every one of them Gaussian, as a model of data at any of its own levels.

    At :math:`\lambda_0 = \lambda_{max} > \dots > \lambda_T = \lambda_{min}` it has :math:`p(z_T) = N(0, I)` and
    :math:`p(z_{i-1}|z_i) = q(z_{i-1}|z_i, \hat x)`.  Its bound on :math:`y = z_j` is that of any such model,

    .. math:: -ELBO_j(y) = KL(q(z_T|y) \| p(z_T)) + \sum_{i=j+2}^T E\,KL(q(z_{i-1}|z_i, y) \| p(z_{i-1}|z_i))
              - E \log p(y|z_{j+1}),

    and knows nothing of the image that y was made from.  (Section 3, the ELBO of noisy data; Appendix, discrete time)

    Args:
        network: ``network(z, logsnr)``, returning what ``prediction`` says.
        levels: λ_0 … λ_T, decreasing, float64, shape (T + 1,).
        prediction: what the network predicts.
    """

    network: Network
    levels: Tensor
    prediction: Prediction = predictions.EPS

    def transition(self, z: Tensor, step: Tensor) -> Normal:
        """p(z_{i−1} | z_i) of the sampler at ``z`` (B, *), for steps i of 1 … T, (B,)."""
        t, s = self.levels[step], self.levels[step - 1]
        return Normal(*process.posterior(z, self.prediction.to_x(self.network(z, t), z, t), t, s))

    def term(self, y: Tensor, data_logsnr: Tensor, step: Tensor, eps: Tensor) -> Tensor:
        """Term i of −ELBO(y), in nats, shape (B,): a draw of z_i from y, and the exact KL there.

        Args:
            y: the data, noisy or not, shape (B, *).
            data_logsnr: level of the noise in ``y``, one of :attr:`levels`, shape (B,); infinite for clean data, whose
                terms are KL(q(z_{i−1}|z_i, x) ‖ p(z_{i−1}|z_i)).
            step: i, each beyond the level of ``y``, int64, shape (B,).
            eps: ε of the draw, the shape of ``y``.
        """
        t, s = (logsnr_of_noisy_data(self.levels[i], data_logsnr) for i in (step, step - 1))
        z = process.diffuse(y, eps, t)
        model = self.transition(z, step)
        mean, std = process.posterior(z, y, t, s)
        last = std == 0  # z_{i−1} is y itself
        kl = kl_divergence(Normal(mean, torch.where(last, model.scale, std)), model)
        return torch.where(last, -model.log_prob(y), kl).flatten(1).sum(1)

    def masses(self, weighting: Weighting) -> Tensor:
        """p_w on λ_0 … λ_{T−1}, shape (T,), adding up to one: its mass between two levels goes to the cleaner one.

        With these the corollary is exact at any T: the average of −ELBO_j is the sum of KL terms times w(λ_i)/w(λ_T),
        but for what no network changes.  (Section 3, the distribution of noise levels)
        """
        w = weighting(self.levels[1:]) / weighting(self.levels[-1:])
        return w.diff(prepend=w.new_zeros(1))


# The corollary -------------------------------------------------------------------------------------------------------


def weighted_loss(eps_error: LevelFunction, weighting: Weighting, logsnr_min: float, logsnr_max: float) -> Tensor:
    r"""L_w(x) by its definition, :math:`\tfrac12 \int w(\lambda)\,e(\lambda)\,d\lambda`, in nats.

    (Section 2, Equation 4)
    """
    return integrate(
        lambda logsnr: 0.5 * weighting(logsnr) * eps_error(logsnr), logsnr_min, logsnr_max, weighting.breaks
    )


def augmented_loss(path_kl: LevelFunction, weighting: Weighting, logsnr_min: float, logsnr_max: float) -> Tensor:
    """L_w(x) as ELBOs of noisy data, the other side of the corollary, for any w.  (Section 3, the Corollary)

    L(λ; x), in nats, is :func:`path_kl`, a closed form, or :func:`marginal_kl`.
    """
    augmentation = Augmentation(weighting, logsnr_min, logsnr_max)
    start = torch.tensor([logsnr_min], dtype=torch.float64)
    return augmentation.scale * (augmentation.integral(path_kl) - path_kl(start)[0])


# The bound in three terms --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ElboTerms:
    """−ELBO(x) of each example, in its three terms, each of shape (B,), in nats.

    (Section 2, the ELBO as a weighted loss)

    Attributes:
        prior_kl: KL(q(z_1|x) ‖ N(0, I)).
        diffusion: L_1(x), the weighted loss with w = 1, or an estimate of it (:mod:`paperlib.engine.likelihood`).
        reconstruction: −E log p(x|z_0), with the discretised decoder.
    """

    prior_kl: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """−ELBO(x), in nats, shape (B,)."""
        return self.prior_kl + self.diffusion + self.reconstruction


def prior_kl(x: Tensor, logsnr_min: float) -> Tensor:
    r"""KL(q(z_1|x) ‖ N(0, I)), :math:`\tfrac12 \sum [\alpha^2 x^2 - \alpha^2 - \log\sigma^2]`, in nats; shape (B,)."""
    level = torch.tensor(logsnr_min, dtype=torch.float64, device=x.device)
    excess = -torch.sigmoid(level) - F.logsigmoid(-level)
    return (0.5 * (torch.sigmoid(level) * x.double().square() + excess).flatten(1).sum(1)).to(at_least_float32(x.dtype))


def reconstruction(x: Tensor, eps: Tensor, logsnr_max: float, levels: int) -> Tensor:
    r"""−log p(x|z_0) at :math:`z_0 = \alpha x + \sigma\epsilon`, for data of ``levels`` values v in [−1, 1].

    The decoder is discretised, :math:`p(x_i = v \mid z_{0,i}) \propto \exp(-(z_{0,i} - \alpha v)^2 / 2\sigma^2)`: the
    posterior of a pixel with a flat prior, needing no network.  (Kingma et al. 2021, Section 3.3)  ``x`` and ``eps``
    are (B, *); nats of each example, (B,).  ValueError when a value of ``x`` is not on the grid.
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}.")
    values = torch.linspace(-1, 1, levels, dtype=torch.float64, device=x.device)
    index = ((x.double() + 1) * (levels - 1) / 2).round().long()
    require_within("x", x, -1.0 - 1e-6, 1.0 + 1e-6)
    index = index.clamp(0, levels - 1)
    if (values[index] - x).abs().max() > 1e-2 / levels:
        raise ValueError(
            f"x must hold values of the grid of {levels} levels in [-1, 1]; scale it as 2 v/(levels-1) - 1."
        )
    noisy = values[index] + math.exp(-logsnr_max / 2) * eps.double()
    nats = [
        F.cross_entropy(-0.5 * math.exp(logsnr_max) * (piece[:, None] - values) ** 2, target, reduction="none")
        for piece, target in zip(noisy.flatten().split(ROWS), index.flatten().split(ROWS), strict=True)
    ]
    return torch.cat(nats).reshape(x.shape).flatten(1).sum(1).to(at_least_float32(x.dtype))


# Units ---------------------------------------------------------------------------------------------------------------


def bits_per_dim(nats: Tensor, dim: int) -> Tensor:
    """Nats of an example to bits a dimension, nats / (D log 2); shape of ``nats``.

    A *density* of data scaled to [−1, 1] also needs :func:`scaling_bits`; the discretised decoder does not.
    """
    require_positive("dim", dim)
    return nats / (dim * math.log(2))


def scaling_bits(levels: int) -> float:
    """Bits a dimension that make −log of a density of data in [−1, 1] count whole levels, log2((levels − 1)/2)."""
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}.")
    return math.log2((levels - 1) / 2)
