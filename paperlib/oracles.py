r"""Oracles: data whose optimal denoiser is known exactly, behind the interface of a network.

An oracle is called as ``oracle(z, logsnr)`` and returns its prediction of ε, as a network of ``predictions.EPS``.  It
also knows its denoiser, its score and its density,

.. math:: \hat x = E[x \mid z_\lambda], \qquad \hat\epsilon = (z - \alpha\hat x)/\sigma, \qquad
          \nabla_z \log q(z_\lambda) = -\hat\epsilon/\sigma.

Given x from anywhere, an oracle of *other* data is still the exact time reversal of a forward chain, so that
(Section 3, the inequality: it is an equality here)

.. math:: L(t; x) = KL(q(z_{t..1} \mid x) \,\|\, p(z_{t..1})) = KL(q(z_t \mid x) \,\|\, p(z_t)),

which gives L(t; x) without its integral.  :class:`ShrunkGaussian` is a denoiser that is no posterior mean of anything:
only there is the inequality strict, and its gap has a closed form.

Shapes: ``z (B, *)``, ``logsnr ()`` or ``(B,)``.  Data live in float64 unless noted.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.checks import require_finite, require_positive
from paperlib.process import alpha, expand, sigma

LOG_2PI = math.log(2 * math.pi)
PIECE = 256
"""Posteriors over a finite set that are held at a time."""


class Oracle(ABC):
    """What every oracle offers.  ``label`` is accepted, as a network accepts it, and ignored."""

    @abstractmethod
    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """The optimal x̂ = E[x | z], shape of ``z``."""

    @abstractmethod
    def log_prob(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Log-density of z_λ, log q(z_λ), in nats, shape (B,)."""

    @abstractmethod
    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """``size`` draws of x, shape (size, *)."""

    def __call__(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """The optimal ε̂(z; λ) = E[ε | z], shape of ``z``."""
        return (z - expand(alpha(logsnr), z) * self.denoise(z, logsnr)) / expand(sigma(logsnr), z)

    def score(self, z: Tensor, logsnr: Tensor) -> Tensor:
        r"""Gradient of :meth:`log_prob`, :math:`\nabla_z \log q(z_\lambda) = -\hat\epsilon/\sigma`, shape of ``z``."""
        return -self(z, logsnr) / expand(sigma(logsnr), z)


# Gaussian ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gaussian(Oracle):
    r"""Data x ~ N(mean, covariance): everything in closed form.

    With the eigenvectors U and eigenvalues s of the covariance, z_λ has covariance
    :math:`U\,\mathrm{diag}(\alpha^2 s + \sigma^2)\,U^T`, and the optimal denoiser is
    :math:`\hat\epsilon = \sigma\,\mathrm{Cov}(z)^{-1}(z - \alpha\,mean)`.

    Args:
        mean: shape (D,), finite.
        covariance: shape (D, D), symmetric, positive semi-definite.

    Raises:
        ValueError: for shapes that do not fit, or a covariance that is none.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        require_finite("mean", self.mean)
        require_finite("covariance", self.covariance)
        dim = self.mean.numel()
        if self.mean.ndim != 1 or self.covariance.shape != (dim, dim):
            raise ValueError(
                f"mean has shape (D,) and covariance (D, D); got {tuple(self.mean.shape)} and "
                f"{tuple(self.covariance.shape)}."
            )
        if not torch.allclose(self.covariance, self.covariance.mT):
            raise ValueError("covariance must be symmetric; pass (C + C.T) / 2.")
        values, _ = self._spectrum
        if values.min() < -1e-9 * values.abs().max():
            raise ValueError(f"covariance has a negative eigenvalue, {values.min().item():g}.")

    @classmethod
    def isotropic(cls, dim: int, variance: float, dtype: torch.dtype = torch.float64) -> "Gaussian":
        """x ~ N(0, variance · I) in ``dim`` dimensions."""
        return cls(torch.zeros(dim, dtype=dtype), variance * torch.eye(dim, dtype=dtype))

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance)
        return values, vectors

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        like = self.mean
        noise = torch.randn(size, len(like), generator=generator, dtype=like.dtype, device=like.device)
        return self.coloured(noise)

    def coloured(self, noise: Tensor) -> Tensor:
        """Draws of x from standard normal ones, (B, D)."""
        values, vectors = self._spectrum
        return self.mean + (noise * values.clamp(min=0).sqrt()) @ vectors.mT

    def _rotated(self, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """z − α mean along the eigenvectors, and the variance of z along each; (B, D) and (B, D) or (D,)."""
        values, vectors = self._spectrum
        a, s = expand(alpha(logsnr), z), expand(sigma(logsnr), z)
        return (z - a * self.mean) @ vectors, a**2 * values + s**2

    def __call__(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        rotated, variance = self._rotated(z, logsnr)
        return expand(sigma(logsnr), z) * (rotated / variance) @ self._spectrum[1].mT

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        (values, vectors), (rotated, variance) = self._spectrum, self._rotated(z, logsnr)
        return self.mean + expand(alpha(logsnr), z) * (rotated * values / variance) @ vectors.mT

    def log_prob(self, z: Tensor, logsnr: Tensor) -> Tensor:
        rotated, variance = self._rotated(z, logsnr)
        return -0.5 * (rotated**2 / variance + torch.log(variance) + LOG_2PI).sum(1)

    # Closed forms, each a function of levels ``logsnr`` (N,), returning (N,) ------------------------------------------

    def _signal(self, logsnr: Tensor) -> Tensor:
        """Signal-to-noise ratio along each eigenvector, e^λ s; shape (N, D)."""
        return torch.exp(logsnr)[:, None] * self._spectrum[0].clamp(min=0)

    def _distance(self, x: Tensor, logsnr: Tensor) -> Tensor:
        """Squared distance of one ``x`` (D,) from the mean along each eigenvector, times e^λ; shape (N, D)."""
        return torch.exp(logsnr)[:, None] * ((x - self.mean) @ self._spectrum[1]) ** 2

    def eps_error(self, logsnr: Tensor) -> Tensor:
        r"""E‖ε̂ − ε‖² averaged over data and noise, :math:`\sum_i \alpha^2 s_i / (\alpha^2 s_i + \sigma^2)`."""
        signal = self._signal(logsnr)
        return (signal / (signal + 1)).sum(1)

    def eps_error_at(self, x: Tensor, logsnr: Tensor) -> Tensor:
        r"""E_ε‖ε̂ − ε‖² at one ``x`` (D,), wherever it is from: with :math:`u_i = e^\lambda s_i` and distances d_i,

        .. math:: \sum_i \frac{u_i^2 + e^\lambda d_i^2}{(1 + u_i)^2}.
        """
        signal = self._signal(logsnr)
        return ((signal**2 + self._distance(x, logsnr)) / (signal + 1) ** 2).sum(1)

    def kl(self, x: Tensor, logsnr: Tensor) -> Tensor:
        r"""L(t; x) of this model at one ``x`` (D,), :math:`KL(q(z|x) \| p(z))`, in nats.  (Section 3, the Theorem)

        .. math:: \tfrac12 \sum_i \left[\log(1 + u_i) + \frac{e^\lambda d_i^2 - u_i}{1 + u_i}\right].
        """
        signal = self._signal(logsnr)
        return 0.5 * (torch.log1p(signal) + (self._distance(x, logsnr) - signal) / (1 + signal)).sum(1)

    def entropy(self, logsnr: Tensor) -> Tensor:
        r"""Entropy of z_λ, :math:`\tfrac12\sum_i \log(2\pi e(\alpha^2 s_i + \sigma^2))`, in nats."""
        log_variance = F.logsigmoid(-logsnr)[:, None] + torch.log1p(self._signal(logsnr))
        return 0.5 * (LOG_2PI + 1 + log_variance).sum(1)

    def mutual_information(self, logsnr: Tensor) -> Tensor:
        r"""I(x; z_λ) = :math:`\tfrac12\sum_i \log(1 + u_i)`, in nats; its derivative is ½ of :meth:`eps_error`.

        (Section 3, the Theorem averaged over data)
        """
        return 0.5 * torch.log1p(self._signal(logsnr)).sum(1)


# Mixture -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GaussianMixture(Oracle):
    r"""Data from :math:`\sum_k \pi_k N(m_k, C_k)`: with the responsibilities r_k(z) of its components,

    .. math:: \hat\epsilon = \sum_k r_k \hat\epsilon_k, \qquad \hat x = \sum_k r_k \hat x_k.

    Args:
        weights: π, shape (K,), positive, adding up to one.
        means: shape (K, D).
        covariances: shape (K, D, D), each symmetric, positive semi-definite.

    Raises:
        ValueError: for shapes that do not fit, weights that are none, or a covariance that is none.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        require_finite("weights", self.weights)
        given = [tuple(part.shape) for part in (self.means, self.weights, self.covariances)]
        if self.means.ndim != 2 or given[1:] != [given[0][:1], given[0] + given[0][1:]]:
            raise ValueError(
                "means has shape (K, D), weights (K,) and covariances (K, D, D); got {}, {} and {}.".format(*given)
            )
        if not (self.weights > 0).all() or abs(self.weights.sum().item() - 1) > 1e-6:
            raise ValueError(f"weights must be positive and add up to one, got {self.weights.tolist()}.")
        _ = self.components

    @classmethod
    def isotropic(cls, means: Tensor, variance: float, weights: Tensor | None = None) -> "GaussianMixture":
        """Components of equal variance · I at ``means`` (K, D), of equal weight unless ``weights`` (K,) are given."""
        require_positive("variance", variance)
        count, dim = means.shape
        weights = torch.full((count,), 1 / count).to(means) if weights is None else weights
        return cls(weights, means, variance * torch.eye(dim).to(means).expand(count, dim, dim))

    @cached_property
    def components(self) -> list[Gaussian]:
        """N(m_k, C_k), K of them."""
        return [Gaussian(mean, covariance) for mean, covariance in zip(self.means, self.covariances, strict=True)]

    def displaced(self, offset: Tensor) -> "GaussianMixture":
        """The same mixture with its means moved by ``offset``, (D,) or (K, D): a wrong model, exact for other data."""
        return GaussianMixture(self.weights, self.means + offset, self.covariances)

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        like = self.means
        noise = torch.randn(size, like.shape[1], generator=generator, dtype=like.dtype, device=like.device)
        return torch.stack([one.coloured(noise) for one in self.components], 1)[torch.arange(size), chosen]

    def _log_joint(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """log π_k q_k(z), shape (B, K)."""
        return torch.stack([one.log_prob(z, logsnr) for one in self.components], 1) + torch.log(self.weights)

    def _mean(self, each: list[Tensor], z: Tensor, logsnr: Tensor) -> Tensor:
        """Σ r_k(z) each_k, of K tensors of the shape of ``z``."""
        return (self._log_joint(z, logsnr).softmax(1)[..., None] * torch.stack(each, 1)).sum(1)

    def log_prob(self, z: Tensor, logsnr: Tensor) -> Tensor:
        return torch.logsumexp(self._log_joint(z, logsnr), dim=1)

    def __call__(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        return self._mean([one(z, logsnr) for one in self.components], z, logsnr)

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        return self._mean([one.denoise(z, logsnr) for one in self.components], z, logsnr)


# A finite set of images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Empirical(Oracle):
    r"""The empirical distribution of a finite set of images: N points, each of probability 1/N.

    The posterior over the set is a softmax,

    .. math:: r_i(z) \propto \exp\left(-\frac{\|z - \alpha x_i\|^2}{2\sigma^2}\right)
              \propto \exp\left(\frac{\alpha\, z \cdot x_i - \tfrac12 \alpha^2 \|x_i\|^2}{\sigma^2}\right),
              \qquad \hat x = \sum_i r_i x_i,

    taken over chunks of the set, a piece of the batch at a time: memory is 256×N for the posterior and chunk×D for the
    images, never B×N×D.  Products are accumulated in float64: at high log-SNR the exponents are differences of large
    numbers.

    Args:
        images: shape (N, *), finite, floating point.
        chunk: images handled at a time.

    Raises:
        ValueError: for fewer than one image or values that are not finite.
    """

    images: Tensor
    chunk: int = 1024

    def __post_init__(self) -> None:
        require_finite("images", self.images)
        require_positive("chunk", self.chunk)
        if self.images.ndim < 2 or len(self.images) == 0:
            raise ValueError(f"images has shape (N, *) with N at least 1, got {tuple(self.images.shape)}.")

    @property
    def dim(self) -> int:
        """D, dimensions of an image."""
        return self.images[0].numel()

    def _chunks(self) -> Iterator[Tensor]:
        """The set in pieces of shape (≤ chunk, D), float64."""
        return (piece.flatten(1).double() for piece in self.images.split(self.chunk))

    @cached_property
    def _squares(self) -> Tensor:
        """‖x_i‖², shape (N,), float64."""
        return torch.cat([piece.square().sum(1) for piece in self._chunks()])

    @cached_property
    def total_variance(self) -> float:
        """tr Cov(x): the error of a denoiser that sees only noise."""
        mean = sum(piece.sum(0) for piece in self._chunks()) / len(self.images)
        return (self._squares.mean() - torch.as_tensor(mean).square().sum()).item()

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        chosen = torch.randint(len(self.images), (size,), generator=generator, device=self.images.device)
        return self.images[chosen]

    def _logits(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Log-posterior over the set up to a constant of each z, shape (B, N), float64."""
        flat, level = self._flatten(z), logsnr.double().reshape(-1, 1)
        scaled = flat * (alpha(level) * torch.exp(-F.logsigmoid(-level)))
        product = torch.cat([scaled @ piece.mT for piece in self._chunks()], dim=1)
        return product.addcmul_(torch.exp(level), self._squares, value=-0.5)  # in place: B×N is the large thing here

    def _flatten(self, z: Tensor) -> Tensor:
        if z.shape[1:] != self.images.shape[1:]:
            raise ValueError(f"z holds examples of shape {tuple(z.shape[1:])}, the set {tuple(self.images.shape[1:])}.")
        return z.flatten(1).double()

    def log_posterior(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """log r_i(z), which of the images it was, shape (B, N), float64."""
        return self._logits(z, logsnr).log_softmax(1)

    def _piecewise(self, take: Callable[[Tensor, Tensor], Tensor], z: Tensor, logsnr: Tensor) -> Tensor:
        """``take(z, logsnr)``, a piece of the batch at a time: its posterior stays in the processor's cache."""
        pieces = zip(z.split(PIECE), logsnr.expand(len(z)).split(PIECE), strict=True)
        return torch.cat([take(*piece) for piece in pieces])

    def posterior_entropy(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Entropy of which image it was, in nats, shape (B,)."""

        def entropy(z: Tensor, level: Tensor) -> Tensor:
            log_r = self.log_posterior(z, level)
            return -(log_r.exp() * log_r).sum(1)

        return self._piecewise(entropy, z, logsnr)

    def _mean(self, posterior: Tensor) -> Tensor:
        """Σ r_i x_i, shape (B, D), float64."""
        pieces = zip(posterior.split(self.chunk, dim=1), self._chunks(), strict=True)
        total = torch.zeros(len(posterior), self.dim, dtype=torch.float64, device=posterior.device)
        for weight, piece in pieces:
            total.addmm_(weight, piece)
        return total

    def denoise(self, z: Tensor, logsnr: Tensor) -> Tensor:
        mean = self._piecewise(lambda z, level: self._mean(self._logits(z, level).softmax(1)), z, logsnr)
        return mean.reshape(z.shape).to(z.dtype)

    def posterior_error(self, z: Tensor, logsnr: Tensor) -> Tensor:
        r"""E[‖ε − ε̂‖² | z] = :math:`e^\lambda\, tr\, Cov(x \mid z)`, shape (B,), float64."""

        def variance(z: Tensor, level: Tensor) -> Tensor:
            posterior = self._logits(z, level).softmax(1)
            return posterior @ self._squares - self._mean(posterior).square().sum(1)

        return torch.exp(logsnr.double()) * self._piecewise(variance, z, logsnr).clamp(min=0)

    def log_prob(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """Log-density of z_λ, in nats, shape (B,), float64."""
        level = logsnr.double()
        log_sigma2 = F.logsigmoid(-level)
        own = self._flatten(z).square().sum(1) * torch.exp(-log_sigma2)
        constant = math.log(len(self.images)) + 0.5 * self.dim * (LOG_2PI + log_sigma2)
        evidence = self._piecewise(lambda z, level: torch.logsumexp(self._logits(z, level), 1), z, logsnr)
        return evidence - 0.5 * own - constant


# A denoiser that is wrong --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ShrunkGaussian:
    r"""A denoiser that is the posterior mean of nothing, κ times the ε̂ of a Gaussian; κ = 1 leaves it as it is.

    In VE scaling, y = z/α and :math:`\nu = e^{-\lambda}`, the reverse process of a model with ε̂ is
    :math:`dy = -\sqrt\nu\,\hat\epsilon\,d\lambda + \sqrt\nu\,dW`.  With κ times the optimal ε̂ of N(m, s) it is linear,
    so y stays Gaussian with mean m and variance

    .. math:: \frac{dV}{d\nu} = \frac{2\kappa V}{s + \nu} - 1, \qquad
              V = (s + \nu)\left[a + (1 - a)\left(\frac{s + \nu}{s + \nu_1}\right)^{2\kappa - 1}\right], \quad
              a = \frac1{2\kappa - 1},

    if it starts from the marginal of the data at λ_min.  (Section 3, the inequality: it is strict here)
    """

    oracle: Gaussian
    factor: float

    def __call__(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """κ ε̂(z; λ), shape of ``z``."""
        return self.factor * self.oracle(z, logsnr)

    def eps_error_at(self, x: Tensor, logsnr: Tensor) -> Tensor:
        r"""E_ε‖κε̂ − ε‖² at one ``x`` (D,), at levels ``logsnr`` (N,); shape (N,)."""
        signal, distance = self.oracle._signal(logsnr), self.oracle._distance(x, logsnr)
        noise = (self.factor / (signal + 1) - 1) ** 2
        return (noise + self.factor**2 * distance / (signal + 1) ** 2).sum(1)

    def variance(self, logsnr: Tensor, logsnr_min: float) -> Tensor:
        """Variance of z_λ under the model along each eigenvector, at levels (N,), (N, D).  ValueError for κ = ½."""
        if self.factor == 0.5:
            raise ValueError("factor 0.5 has no closed form of this kind; take another, for example 0.51.")
        values, power = self.oracle._spectrum[0].clamp(min=0), 2 * self.factor - 1
        here = values + torch.exp(-logsnr)[:, None]
        start = values + math.exp(-logsnr_min)
        grown = here * (1 / power + (1 - 1 / power) * (here / start) ** power)
        return torch.sigmoid(logsnr)[:, None] * grown

    def marginal_kl(self, x: Tensor, logsnr: Tensor, logsnr_min: float) -> Tensor:
        """KL(q(z_λ|x) ‖ p(z_λ)) at one ``x`` (D,), at levels ``logsnr`` (N,), in nats; shape (N,)."""
        variance = self.variance(logsnr, logsnr_min)
        noise = torch.sigmoid(-logsnr)[:, None]
        distance = noise * self.oracle._distance(x, logsnr)  # α² d²
        ratio = noise / variance
        return 0.5 * (ratio - 1 - torch.log(ratio) + distance / variance).sum(1)
