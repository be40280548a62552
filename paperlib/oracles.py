r"""Oracles: data whose optimal denoiser is known exactly, behind the interface of a network.

An oracle is called as ``oracle(z, logsnr)`` and returns its prediction of ε, so every loss, bound and sampler takes it
where it would take a network (with ``predictions.EPS``).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from paperlib.checks import require_finite
from paperlib.process import alpha, expand, sigma


@dataclass(frozen=True, eq=False)
class Gaussian:
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
        if self._spectrum[0].min() < -1e-9 * self._spectrum[0].abs().max():
            raise ValueError(f"covariance has a negative eigenvalue, {self._spectrum[0].min().item():g}.")

    @classmethod
    def isotropic(cls, dim: int, variance: float, dtype: torch.dtype = torch.float64) -> "Gaussian":
        """x ~ N(0, variance · I) in ``dim`` dimensions."""
        return cls(torch.zeros(dim, dtype=dtype), variance * torch.eye(dim, dtype=dtype))

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance)
        return values, vectors

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """``size`` draws of x, shape (size, D)."""
        values, vectors = self._spectrum
        noise = torch.randn(size, len(values), generator=generator, dtype=values.dtype, device=values.device)
        return self.mean + (noise * values.clamp(min=0).sqrt()) @ vectors.mT

    def __call__(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """The optimal ε̂(z; λ) = E[ε | z], shape of ``z`` (B, D)."""
        values, vectors = self._spectrum
        a, s = expand(alpha(logsnr), z), expand(sigma(logsnr), z)
        rotated = (z - a * self.mean) @ vectors
        return (s * rotated / (a**2 * values + s**2)) @ vectors.mT

    def eps_error(self, logsnr: Tensor) -> Tensor:
        r"""E‖ε̂ − ε‖² averaged over data and noise, :math:`\sum_i \alpha^2 s_i / (\alpha^2 s_i + \sigma^2)`.

        ``logsnr`` of shape (N,) gives (N,).
        """
        signal = torch.exp(logsnr)[:, None] * self._spectrum[0]
        return (signal / (signal + 1)).sum(1)
