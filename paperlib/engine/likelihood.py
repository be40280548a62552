r"""Likelihood of images in bits a dimension: by the ELBO, and by the probability-flow equation.

**The ELBO** bounds −log P(x) by three terms (:mod:`paperlib.elbo`),

.. math:: -\log P(x) \le KL(q(z_{\lambda_{min}}|x) \,\|\, N(0, I))
          + \tfrac12 \int_{\lambda_{min}}^{\lambda_{max}} E_\epsilon\|\hat\epsilon - \epsilon\|^2\, d\lambda
          + E_\epsilon[-\log P(x|z_{\lambda_{max}})].

Of these only the second is estimated: the first and the third are sums over pixels of a function of their value, in
closed form the one and by quadrature the other.  The levels of all draws of all images together are of low discrepancy,
and those of one image are stratified.  Data that are real numbers have a density, and :func:`real_elbo`.

**The probability flow** of a network is an ordinary differential equation, in VP scaling

.. math:: \frac{dz}{d\lambda} = \tfrac12\sigma\,(\sigma z - \hat\epsilon(z; \lambda)), \qquad
          \frac{d \log p_\lambda(z)}{d\lambda} = -\nabla\cdot\frac{dz}{d\lambda}
          = -\tfrac12\sigma\left(\sigma D - \nabla\cdot\hat\epsilon\right),

which carries N(0, I) at λ_min to a density at λ_max (Song et al. 2021, Equation 39).  A density becomes a probability
of integers by *dequantisation*, of which there are two kinds here, see :data:`Dequantisation`.

Everything is in nats an example, in float64, until :func:`paperlib.elbo.bits_per_dim`.  What is drawn depends on the
seed and the number of the example.  A standard error is one over examples: how much another set of images of this size
would differ, the noise of the draws included.  Results of two networks with the same seed are paired.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from paperlib import elbo
from paperlib.adaptive import AdaptiveSchedule
from paperlib.checks import (
    at_least_float32,
    require_finite,
    require_finite_at,
    require_positive,
    require_range,
    require_same_shape,
    require_within,
)
from paperlib.engine.data import ImageData, scale
from paperlib.engine.randomness import noise, seed_of, seeded
from paperlib.objectives import Network, WeightedLoss, low_discrepancy_time
from paperlib.oracles import LOG_2PI
from paperlib.predictions import Prediction
from paperlib.process import alpha, diffuse, sigma
from paperlib.schedules import NoiseSchedule
from paperlib.weightings import ELBO

Dequantisation = Literal["uniform", "variational"]
"""How integers become real numbers for a density.

"uniform": x + u, u uniform over the width of a level; the density is that of z/α.  It wants λ_max no higher than where
the noise of the process is as wide as a level: a network that has been taught cleaner images knows that x is on a grid,
and gives next to nothing to what is between.

"variational": the noise of the forward process itself, z ~ q(z|x) at λ_max, which costs its entropy, and the
discretised decoder of the ELBO.  The bound is then the ELBO with E log q(z|x)/p(z) for its first two terms.
"""

Divergence = Literal["exact", "hutchinson"]
"""∇·ε̂ by one backward pass a dimension, or by one in all, as e·∇(ε̂·e) with random signs e, which has the same mean."""

EXACT_DIMENSIONS = 64
"""Dimensions up to which the divergence is exact unless something else is asked for."""


# A mean and its error ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean over examples and its standard error."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """Of ``values`` (N,); the error of a single one is not known, NaN."""
        error = values.double().std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(values.double().mean().item(), error)

    @classmethod
    def bits(cls, nats: Tensor, dim: int) -> "Mean":
        """Of ``nats`` (N,), each of ``dim`` dimensions, in bits a dimension."""
        return cls.of(elbo.bits_per_dim(nats, dim))


# By the ELBO ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LevelBins:
    """What the levels of noise contribute to −ELBO, averaged over the images; in nats.

    Attributes:
        edges: of the bins, log-SNR, shape (K + 1,).
        nats: the part of the diffusion term in each bin, shape (K,); they add up to it.
        standard_error: of ``nats``, over examples, shape (K,).
        path_kl: L(λ; x) at the edges, from the prior term on, shape (K + 1,).
        path_kl_error: its standard error, shape (K + 1,).
    """

    edges: Tensor
    nats: Tensor
    standard_error: Tensor
    path_kl: Tensor
    path_kl_error: Tensor


@dataclass(frozen=True, eq=False)
class ImageElbo:
    """−ELBO of each example of a set, and the draws that it was estimated from.

    Attributes:
        terms: in nats, each of shape (N,), float64.
        logsnr: the level of each draw, shape (N, draws).
        eps_error: ‖ε̂ − ε‖² there, shape (N, draws).
        loss: ½‖ε̂ − ε‖²/p there, whose mean over draws is the diffusion term, shape (N, draws).
        ends: of the range of log-SNR.
        dim: D, dimensions of an example.
    """

    terms: elbo.ElboTerms
    logsnr: Tensor
    eps_error: Tensor
    loss: Tensor
    ends: tuple[float, float]
    dim: int

    @property
    def bits(self) -> Mean:
        """−ELBO in bits a dimension."""
        return Mean.bits(self.terms.total, self.dim)

    def by_level(self, bins: int = 20) -> LevelBins:
        """The diffusion term in ``bins`` of equal width, and L(λ; x) between them."""
        edges = torch.linspace(*self.ends, bins + 1, dtype=torch.float64)
        share = self.loss.new_zeros(len(self.loss), bins)
        share.scatter_add_(1, torch.bucketize(self.logsnr, edges[1:-1]), self.loss / self.loss.shape[1])
        path = torch.cat([torch.zeros_like(share[:, :1]), share.cumsum(1)], 1) + self.terms.prior_kl[:, None]
        root = math.sqrt(len(share))
        return LevelBins(edges, share.mean(0), share.std(0) / root, path.mean(0), path.std(0) / root)

    def terms_until(self, logsnr_max: float, data: ImageData) -> elbo.ElboTerms:
        """The terms of the bound that decodes from ``logsnr_max`` already, from the draws below it.

        Args:
            logsnr_max: within the range.
            data: the images that this is of.
        """
        require_within("logsnr_max", torch.tensor(float(logsnr_max)), *self.ends)
        kept = torch.where(self.logsnr <= logsnr_max, self.loss, 0.0).mean(1)
        return elbo.ElboTerms(self.terms.prior_kl, kept, reconstruction(data, logsnr_max))

    def schedule(self, bins: int = 100) -> AdaptiveSchedule:
        """A schedule of ``bins`` that draws levels where the error was: for a second, tighter estimate."""
        learned = AdaptiveSchedule(*self.ends, bins=bins)
        for logsnr, error in zip(self.logsnr.split(32), self.eps_error.split(32), strict=True):  # images at once
            learned.update(logsnr.flatten(), error.flatten())
        return learned


def image_elbo(
    network: Network,
    prediction: Prediction,
    data: ImageData,
    schedule: NoiseSchedule,
    *,
    draws: int = 8,
    conditional: bool = True,
    seed: int = 0,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ImageElbo:
    """−ELBO of every image of a set.

    Args:
        network: ``network(z, logsnr, label=…)``, or ``network(z, logsnr)`` where it is not conditional; in evaluation
            mode.
        prediction: what it predicts.
        data: the images, integers.
        schedule: how levels are drawn, any; its ends are those of the bound.
        draws: levels and noises for each image.
        conditional: whether the network is told the labels: P(x|label) instead of P(x).
        seed: of levels and noise.
        batch_size: images at once.
        dtype: what the network is given.
        device: where the network is.

    Raises:
        TypeError: for data that are not known to be integers, and a network that returns something else than a tensor.
        ValueError: for numbers out of range, and a network that returns NaN, naming the level.
    """
    _require_integers(data)
    (low, high), dim = schedule.ends, data.images[0].numel()
    prior = _over_pixels(data, elbo.prior_kl(_values(data.levels)[:, None], low))
    batch = partial(_batch, data, device=device, dtype=dtype, conditional=conditional)
    loss = WeightedLoss(ELBO(), schedule, prediction)
    return _bound(network, loss, batch, prior, reconstruction(data, high), dim, draws, seed, batch_size)


def real_elbo(
    network: Network,
    prediction: Prediction,
    x: Tensor,
    schedule: NoiseSchedule,
    *,
    label: Tensor | None = None,
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> ImageElbo:
    r"""A bound on −log p(x), a *density*, of data that are real numbers: latents, or anything else without a grid.

    The decoder is Gaussian, :math:`p(x|z) = N(z/\alpha, e^{-\lambda_{max}})`, the posterior of x with a flat prior, as
    the decoder of integers is; the third term is :math:`\tfrac D2(\log 2\pi e - \lambda_{max})`, whatever x is.  The
    bound is tight as λ_max → ∞ where p(x) is smooth.  A density has units: scaling x by c adds D log c to the bound,
    and ``bits`` are those of the density, not of integers.

    ``x`` (N, *) is finite, and the network is given its type; ``label`` int64 (N,) is for p(x|label), None for p(x).
    Other arguments, and errors, as in :func:`image_elbo`; TypeError for anything but a floating-point tensor.
    """
    require_finite("x", x)

    def batch(examples: range) -> tuple[Tensor, dict[str, Any]]:
        part = slice(examples.start, examples.stop)
        return x[part].to(device), {} if label is None else {"label": label[part].to(device)}

    (low, high), dim = schedule.ends, x[0].numel()
    decoder = torch.full((len(x),), 0.5 * dim * (LOG_2PI + 1 - high), dtype=torch.float64)
    loss = WeightedLoss(ELBO(), schedule, prediction)
    prior = elbo.prior_kl(x.cpu().double(), low)
    return _bound(network, loss, batch, prior, decoder, dim, draws, seed, batch_size)


def _bound(
    network: Network,
    weighted: WeightedLoss,
    batch: Callable[[range], tuple[Tensor, dict[str, Any]]],
    prior: Tensor,
    decoder: Tensor,
    dim: int,
    draws: int,
    seed: int,
    batch_size: int,
) -> ImageElbo:
    """Estimate the diffusion term between two others (N,), of the examples that ``batch`` gives."""
    require_positive("draws", draws)
    offset = low_discrepancy_time(len(prior), generator=seeded(seed, "likelihood", "levels"), dtype=torch.float64)
    stream = seed_of(seed, "likelihood", "noise")

    def evaluate(examples: range) -> Tensor:
        x, conditioning = batch(examples)
        rows = []
        for draw in range(draws):
            t = ((offset[examples.start : examples.stop] + draw) / draws).to(x.device, at_least_float32(x.dtype))
            eps = noise(stream, draw, examples, x.shape[1:], device=x.device, dtype=x.dtype)
            found = weighted(network, x, t=t, eps=eps, **conditioning)
            require_finite_at("the error of ε̂", found.eps_error[:, None], found.logsnr)
            rows.append(torch.stack([found.logsnr, found.eps_error, found.loss], 1))
        return torch.stack(rows, 2).double()

    found = _in_batches(evaluate, len(prior), batch_size)
    logsnr, eps_error, loss = (found[:, index].contiguous() for index in range(3))
    terms = elbo.ElboTerms(prior, loss.mean(1), decoder)
    return ImageElbo(terms, logsnr, eps_error, loss, weighted.schedule.ends, dim)


@lru_cache(maxsize=32)
def expected_reconstruction(levels: int, logsnr_max: float) -> Tensor:
    """E_ε[−log P(v|z)] of a pixel of each value 0 … levels − 1, in nats, by quadrature; shape (levels,), float64.

    The decoder is that of :func:`paperlib.elbo.reconstruction`.  What is returned is kept, and not to be changed.
    """
    eps = elbo.Noise.quadrature(1)
    value = _values(levels).repeat_interleave(len(eps.eps))
    nats = elbo.reconstruction(value[:, None], eps.eps.repeat(levels, 1), logsnr_max, levels)
    return eps.mean(nats.reshape(levels, -1))


def reconstruction(data: ImageData, logsnr_max: float) -> Tensor:
    """E_ε[−log P(x|z)] of every image, in nats, shape (N,)."""
    return _over_pixels(data, expected_reconstruction(data.levels, logsnr_max))


def _over_pixels(data: ImageData, table: Tensor) -> Tensor:
    """Sum over the pixels of every image of what ``table`` (levels,) says of their value, shape (N,)."""
    values = data.images.flatten(1).cpu()
    at_once = max(1, 2**20 // values.shape[1])  # indices take eight bytes a value
    return torch.cat([table[piece.long()].sum(1) for piece in values.split(at_once)])


def _values(levels: int) -> Tensor:
    """All values of a pixel, in [−1, 1], shape (levels,), float64."""
    return scale(torch.arange(levels), levels, torch.float64)


# By the probability flow ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FlowDensity:
    """What the probability flow says of points z at λ_max.

    Attributes:
        log_prob: log-density of each, in nats, shape (B,), float64.
        latent: where each came from at λ_min, the shape of z.
        evaluations: how often the network was evaluated.
    """

    log_prob: Tensor
    latent: Tensor
    evaluations: int


def flow_density(
    network: Network,
    prediction: Prediction,
    z: Tensor,
    ends: tuple[float, float],
    *,
    probe: Tensor | None = None,
    tolerance: float = 1e-5,
    dtype: torch.dtype = torch.float32,
    **conditioning: Any,
) -> FlowDensity:
    """Log-density of points at λ_max under the probability flow from N(0, I) at λ_min.

    Solved by Dormand and Prince's method of order five in float64, whatever type the network takes.

    Args:
        network: ``network(z, logsnr, **conditioning)``, differentiable, each example by itself.
        prediction: what it predicts.
        z: points at λ_max, VP, shape (B, *).
        ends: (λ_min, λ_max).
        probe: signs for Hutchinson's estimate of the divergence, the shape of ``z``; None for the exact one.
        tolerance: error allowed to a step, relative and absolute; at least ten times the rounding of ``dtype``.
        dtype: what the network is given.
        conditioning: passed to the network, for example ``label``.

    Raises:
        TypeError: when the network returns something else than a tensor.
        ValueError: for a network that cannot be differentiated by z or returns NaN, naming the level; for a tolerance
            that the rounding of ``dtype`` does not let steps meet.
    """
    from torchdiffeq import odeint

    require_range(*ends)
    require_positive("tolerance", tolerance)
    if tolerance < (least := 10 * torch.finfo(dtype).eps):
        raise ValueError(f"tolerance must be at least {least:.1e} for a network in {dtype}, got {tolerance}.")
    evaluations, one, none = 0, z.new_ones((), dtype=torch.float64), z.new_zeros((), dtype=torch.float64)

    @torch.enable_grad()
    def slope(logsnr: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += 1
        here, level = state[0].detach(), logsnr.to(dtype).expand(len(z))
        inner = here.to(dtype).requires_grad_()
        output = network(inner, level, **conditioning)
        require_same_shape("output", output, "z", inner)
        require_finite_at("output", output, level)
        of_z, of_output = prediction.to_eps(none, one, logsnr), prediction.to_eps(one, none, logsnr)
        eps_hat = of_z * here + of_output * output.detach().double()
        divergence = of_z * here[0].numel() + of_output * _divergence(output, inner, probe)
        spread = sigma(logsnr)
        velocity = 0.5 * spread * (spread * here - eps_hat)
        return velocity, -0.5 * spread * (spread * here[0].numel() - divergence)

    start = z.double(), torch.zeros(len(z), dtype=torch.float64, device=z.device)
    span = torch.tensor(ends[::-1], dtype=torch.float64, device=z.device)
    with torch.no_grad():
        latent, gained = (end[-1] for end in odeint(slope, start, span, rtol=tolerance, atol=tolerance))
    normal = -0.5 * (latent.square() + LOG_2PI).flatten(1).sum(1)
    return FlowDensity(normal - gained, latent, evaluations)


def _divergence(output: Tensor, z: Tensor, probe: Tensor | None) -> Tensor:
    """∇·output of each example, (B,), float64: Σ e·∇(output·e) over the unit vectors e, or for one ``probe`` e.

    Raises:
        ValueError: when no gradient reaches z.
    """
    along = torch.eye(z[0].numel()).reshape(-1, *z.shape[1:]) if probe is None else probe[None]
    total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for e in along.to(output):
        weight, gradient = e.expand_as(output), None
        if output.requires_grad:
            (gradient,) = torch.autograd.grad(output, z, weight, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "the likelihood by the flow needs the gradient of the network's output by z, and there is none: the "
                "network must not run under torch.no_grad() or detach z. The ELBO (image_elbo) needs no gradient."
            )
        total += (gradient * weight).double().flatten(1).sum(1)
    return total


@dataclass(frozen=True, eq=False)
class ImageFlow:
    """−log P of each image of a set by the probability flow, a bound on it in expectation over the dequantisation.

    Attributes:
        nats: shape (N,), float64.
        dim: D, dimensions of an image.
        divergence: how it was computed.
        evaluations: of the network for an image and draw, at most.
    """

    nats: Tensor
    dim: int
    divergence: Divergence
    evaluations: int

    @property
    def bits(self) -> Mean:
        """In bits a dimension."""
        return Mean.bits(self.nats, self.dim)


def image_flow(
    network: Network,
    prediction: Prediction,
    data: ImageData,
    ends: tuple[float, float],
    *,
    dequantisation: Dequantisation = "variational",
    divergence: Divergence | None = None,
    draws: int = 1,
    conditional: bool = True,
    seed: int = 0,
    batch_size: int = 256,
    tolerance: float = 1e-5,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ImageFlow:
    """−log P of every image of a set by the probability flow.

    Arguments as in :func:`image_elbo` and :func:`flow_density`, and

    Args:
        ends: (λ_min, λ_max): from N(0, I) at the one to the density at the other.
        dequantisation: see :data:`Dequantisation`.
        divergence: see :data:`Divergence`; None is exact up to :data:`EXACT_DIMENSIONS`.
        draws: dequantisations, and probes, for each image.
        batch_size: images at once; their steps are the same.

    Raises:
        TypeError: for data that are not known to be integers.
        ValueError: for numbers out of range or unknown names.
    """
    _require_integers(data)
    require_positive("draws", draws)
    dim = data.images[0].numel()
    chosen: Divergence = divergence or ("exact" if dim <= EXACT_DIMENSIONS else "hutchinson")
    for name, value, choices in (
        ("divergence", chosen, Divergence),
        ("dequantisation", dequantisation, Dequantisation),
    ):
        if value not in get_args(choices):
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(get_args(choices))}.")
    make = _uniform if dequantisation == "uniform" else _variational
    streams = {name: seed_of(seed, "likelihood", name) for name in ("dequantisation", "probe")}

    def drawn(name: str, draw: int, examples: range) -> Tensor:
        return noise(streams[name], draw, examples, data.image_shape, device=device, dtype=torch.float64)

    def evaluate(examples: range) -> Tensor:
        x, conditioning = _batch(data, examples, device, torch.float64, conditional)
        rows = []
        for draw in range(draws):
            z, nats = make(x, drawn("dequantisation", draw, examples), ends[1], data.levels)
            probe = torch.where(drawn("probe", draw, examples) > 0, 1.0, -1.0).double() if chosen != "exact" else None
            found = flow_density(
                network, prediction, z, ends, probe=probe, tolerance=tolerance, dtype=dtype, **conditioning
            )
            rows.append(torch.stack([nats - found.log_prob, torch.full_like(nats, found.evaluations)], 1))
        return torch.stack(rows, 2)

    nats, evaluations = _in_batches(evaluate, len(data), batch_size).unbind(1)
    total = nats.mean(1) + (reconstruction(data, ends[1]) if dequantisation == "variational" else 0.0)
    return ImageFlow(total, dim, chosen, int(evaluations.max()))


def _uniform(x: Tensor, normal: Tensor, logsnr_max: float, levels: int) -> tuple[Tensor, Tensor]:
    """z = α (x + u), and what to add to −log p(z): the volumes of a level and of the scaling by α, in nats."""
    width, level = 2 / (levels - 1), torch.tensor(logsnr_max, dtype=torch.float64, device=x.device)
    uniform = torch.special.ndtr(normal) - 0.5
    each = elbo.scaling_bits(levels) * math.log(2) - torch.log(alpha(level))
    return alpha(level) * (x + width * uniform), (each * x[0].numel()).expand(len(x))


def _variational(x: Tensor, eps: Tensor, logsnr_max: float, levels: int) -> tuple[Tensor, Tensor]:
    """z ~ q(z|x), and log q(z|x), in nats; the decoder is left to the caller."""
    level, dim = torch.tensor(logsnr_max, dtype=torch.float64, device=x.device), x[0].numel()
    excess = 0.5 * (dim - eps.square().flatten(1).sum(1))  # of mean zero; varies with log p(z), which it cancels
    return diffuse(x, eps, level), excess - elbo.conditional_entropy(dim, level)


# What they share -----------------------------------------------------------------------------------------------------


def _in_batches(evaluate: Callable[[range], Tensor], size: int, batch_size: int) -> Tensor:
    """``evaluate(examples)``, (B, *), of all examples, (N, *), on the CPU."""
    require_positive("batch_size", batch_size)
    starts = range(0, size, batch_size)
    with torch.no_grad():
        return torch.cat([evaluate(range(start, min(start + batch_size, size))).cpu() for start in starts])


def _batch(
    data: ImageData, examples: range, device: torch.device | str, dtype: torch.dtype, conditional: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Images, scaled, and what the network is told of them."""
    x = scale(data.images[examples.start : examples.stop].to(device), data.levels, dtype)
    label = data.labels[examples.start : examples.stop].to(device)
    return x, {"label": label} if conditional else {}


def _require_integers(data: ImageData) -> None:
    if not isinstance(data, ImageData):
        raise TypeError(
            f"a likelihood in bits a dimension is one of integers; data must be an ImageData, which holds them, got "
            f"{type(data).__name__}. Real numbers go through data.to_uint8(x, levels) first."
        )
