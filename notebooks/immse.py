"""What a noisy image tells of the image: I(x; z_λ) of a finite set, from the error of its exact denoiser (I-MMSE)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib import elbo, process
from paperlib.oracles import Empirical
from paperlib.quadrature import panel_nodes


@dataclass(frozen=True)
class Information:
    r"""I(x; z_λ) of a finite set of images.

    Attributes:
        logsnr: edges of the panels of the integral, shape (P + 1,).
        nats: I(x; z_λ) there, shape (P + 1,).
        standard_error: of ``nats``, shape (P + 1,).
        levels: nodes of the quadrature, shape (Q,).
        rate: :math:`\tfrac12 E\|\epsilon - \hat\epsilon^*\|^2` at the nodes, shape (Q,), in nats a nat of log-SNR.
        draws: how many posteriors were computed at each node, shape (Q,).
    """

    logsnr: Tensor
    nats: Tensor
    standard_error: Tensor
    levels: Tensor
    rate: Tensor
    draws: Tensor


def information(
    oracle: Empirical, edges: Tensor, draws: int, order: int = 3, generator: torch.Generator | None = None
) -> Information:
    r"""Mutual information of image and noisy image by I-MMSE, with its tail below the range.

    .. math:: I(x; z_\lambda) = \tfrac12 e^{\lambda_{min}} tr\,Cov(x)
              + \tfrac12 \int_{\lambda_{min}}^\lambda E\|\epsilon - \hat\epsilon^*\|^2\, d\lambda',
              \qquad I \to \log N.

    (Section 3, the Theorem averaged over data; Guo, Shamai & Verdú 2005.)  Three things keep the variance down: the
    error is its expectation given z, averaged over ε and −ε; a pilot of a twentieth of the draws finds its standard
    deviation at each level, and the others are shared out in proportion (Neyman), but for a tenth, spread evenly; and
    where there are draws enough, each image comes up equally often.

    Args:
        oracle: N distinct images.
        edges: panels of Gauss–Legendre quadrature over log-SNR, shape (P + 1,), float64.
        draws: posteriors to compute in all, about.
        order: nodes in a panel.
        generator: source of images and noise.
    """
    levels, widths = panel_nodes(edges, order)
    pilot = max(8, draws // (40 * len(levels)))  # of two, a standard deviation says nothing
    spread = torch.stack([_pair_errors(oracle, level, pilot, generator).std() for level in levels]) * widths
    share = 0.9 * spread / spread.sum() + 0.1 / len(levels)
    pairs = [_whole_passes(0.475 * draws * each, len(oracle.images)) for each in share.tolist()]
    errors = [_pair_errors(oracle, level, count, generator) for level, count in zip(levels, pairs, strict=True)]
    rate = 0.5 * torch.stack([error.mean() for error in errors])
    variance = 0.25 * torch.stack([_variance_of_mean(error, len(oracle.images)) for error in errors])
    tail = torch.full((1,), 0.5 * math.exp(edges[0].item()) * oracle.total_variance, dtype=torch.float64)
    gained, uncertain = (
        (factor * value).reshape(-1, order).sum(1) for factor, value in ((widths, rate), (widths**2, variance))
    )
    nats = torch.cat([tail, tail + gained.cumsum(0)])
    deviation = torch.cat([torch.zeros_like(tail), uncertain.cumsum(0).sqrt()])
    return Information(edges, nats, deviation, levels, rate, 2 * (torch.tensor(pairs) + pilot))


def _whole_passes(pairs: float, images: int) -> int:
    """A number of pairs: whole passes over the images from two on, at least two pairs."""
    return round(pairs / images) * images if pairs >= 2 * images else max(2, int(pairs))


def _pair_errors(oracle: Empirical, logsnr: Tensor, pairs: int, generator: torch.Generator | None) -> Tensor:
    """E[‖ε − ε̂*‖² | z] at one level, averaged over ε and −ε, pass after pass over the images; shape (pairs,)."""
    order = torch.randperm(len(oracle.images), generator=generator)
    values = []
    for index in order.repeat(-(-pairs // len(order)))[:pairs].split(elbo.rows(oracle.dim) // 2):
        x = oracle.images[index].double()
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        z = process.diffuse(torch.cat([x, x]), torch.cat([eps, -eps]), logsnr)
        values.append(oracle.posterior_error(z, logsnr).reshape(2, -1).mean(0))
    return torch.cat(values)


def _variance_of_mean(values: Tensor, images: int) -> Tensor:
    """Of values from :func:`_pair_errors`: of the noise alone, if all images come up equally often."""
    if len(values) >= 2 * images and len(values) % images == 0:
        return values.reshape(-1, images).var(0).mean() / len(values)
    return values.var() / len(values)
