r"""Samplers: from noise to data along decreasing levels of noise.

All of them take a *denoiser* x̂(z, λ), an estimate of the data at z, and levels :math:`\lambda_0 < \dots < \lambda_N`
of log-SNR, from any schedule, not only the one of training.  They start from ``z`` at λ₀, VP, and return x̂ at λ_N.

In VE scaling, :math:`\bar z = z/\alpha` and :math:`\bar\sigma = e^{-\lambda/2}`, the probability-flow equation is

.. math:: \frac{d\bar z}{d\bar\sigma} = \frac{\bar z - \hat x(\bar z, \bar\sigma)}{\bar\sigma}

(Karras et al. 2022, Equation 1).  DDIM is Euler's method for it, order one; Heun's method is of order two.  DDPM draws
each z from the posterior q(z_s | z_t, x̂) instead.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from paperlib.checks import require_finite
from paperlib.predictions import Prediction
from paperlib.process import from_ve, logsnr_from_sigma_ve, posterior, sigma_ve_from_logsnr, to_ve
from paperlib.schedules import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""x̂ from z, VP, shape (B, *), and logsnr, shape (B,)."""

Callback = Callable[[int, Tensor, Tensor, Tensor], None]
"""Called once a level with its number, logsnr (), z and x̂ (B, *), for pictures and traces."""


class Sampler(Protocol):
    """What the samplers of :data:`SAMPLERS` have in common."""

    def __call__(
        self,
        denoise: Denoiser,
        z: Tensor,
        levels: Tensor,
        *,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """x, the shape of ``z``."""
        ...


# What a sampler starts from ------------------------------------------------------------------------------------------


def denoiser(
    network: Callable[..., Tensor], prediction: Prediction, label: Tensor | None = None, guidance: float = 1.0
) -> Denoiser:
    r"""The denoiser that a network is, with classifier-free guidance.

    :math:`\hat x = \hat x_{null} + g\,(\hat x_{label} - \hat x_{null})`  (Ho & Salimans 2022.)  Scaling x̂ − x̂_null or
    the prediction is the same thing, as they are linear in each other.

    Args:
        network: ``network(z, logsnr, label)``, or ``network(z, logsnr)`` where no label is given.
        prediction: what the network predicts.
        label: classes, int64 (B,), or None for the null class.
        guidance: g; 1 is no guidance and costs one evaluation of the network, else each level costs two.

    Raises:
        ValueError: when guidance is asked for without a label.
    """
    if guidance != 1 and label is None:
        raise ValueError(f"guidance {guidance} needs labels to guide to; pass label, or guidance=1.")

    def conditional(z: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        output = network(z, logsnr) if label is None else network(z, logsnr, label)
        return prediction.to_x(output, z, logsnr)

    def guided(z: Tensor, logsnr: Tensor) -> Tensor:
        x_hat = conditional(z, logsnr, label)
        if guidance == 1:
            return x_hat
        x_null = conditional(z, logsnr, None)
        return x_null + guidance * (x_hat - x_null)

    return guided


def levels(schedule: NoiseSchedule, steps: int) -> Tensor:
    """``steps`` + 1 levels of log-SNR from the noisiest to the cleanest end, at equal distances in the schedule's t.

    Returns:
        Shape (steps + 1,), increasing, float64.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    return schedule.logsnr(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def prior(
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """z at the noisiest level, N(0, I): what q(z) is there but for a signal of e^{λ_min}."""
    return torch.randn(shape, generator=generator, dtype=dtype, device=device)


# Samplers ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def ddpm(
    denoise: Denoiser,
    z: Tensor,
    levels: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling: z_s ~ q(z_s | z_t, x̂), one evaluation a level.  (Ho et al. 2020, Algorithm 2.)

    Args:
        denoise: the denoiser.
        z: noise at ``levels[0]``, VP, shape (B, *).
        levels: increasing log-SNR, shape (N + 1,).
        generator: source of the noise that is added.
        callback: see :data:`Callback`.

    Returns:
        x̂ at the last level, the shape of ``z``.
    """
    evaluate = _Evaluation(denoise, callback)
    grid = _grid(z, levels)
    for logsnr, following in pairwise(grid):
        mean, std = posterior(z, evaluate(z, logsnr), logsnr, following)
        z = mean + std * _noise(z, generator)
    return evaluate(z, grid[-1])


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    z: Tensor,
    levels: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""DDIM without noise (η = 0): Euler's method, one evaluation a level.  (Song et al. 2021.)

    :math:`\bar z_s = \hat x + (\bar\sigma_s/\bar\sigma_t)(\bar z_t - \hat x)`.  Arguments as in :func:`ddpm`; nothing
    is drawn from ``generator``.
    """
    evaluate = _Evaluation(denoise, callback)
    grid = _grid(z, levels)
    for logsnr, following in pairwise(grid):
        x_hat = evaluate(z, logsnr)
        shrink = torch.exp((logsnr - following) / 2)
        z = from_ve(x_hat + shrink * (to_ve(z, logsnr) - x_hat), following)
    return evaluate(z, grid[-1])


@torch.no_grad()
def heun(
    denoise: Denoiser,
    z: Tensor,
    levels: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    churn: float = 0.0,
    churn_noise: float = 1.0,
    churn_range: tuple[float, float] = (-math.inf, math.inf),
) -> Tensor:
    """EDM's sampler: Heun's method, two evaluations a step, with fresh noise where ``churn`` > 0.

    (Karras et al. 2022, Algorithms 1 and 2.)  Their last step, to no noise at all, is the x̂ at the last level that
    every sampler here returns; no noise is added for it.  Arguments as in :func:`ddpm`, and

    Args:
        churn: S_churn, noise added in total; a step raises its level by min(churn/(N + 1), √2 − 1).
        churn_noise: S_noise, factor on the added noise.
        churn_range: log-SNR between which noise is added, −2 log S_max to −2 log S_min.
    """
    if not (churn >= 0 and churn_noise > 0):
        raise ValueError(f"churn must be 0 or more and churn_noise positive, got {churn} and {churn_noise}.")
    evaluate = _Evaluation(denoise, callback)
    grid = _grid(z, levels)
    growth = min(churn / len(levels), math.sqrt(2) - 1)
    for level, following in pairwise(grid):
        z_ve, logsnr = to_ve(z, level), level
        if growth > 0 and churn_range[0] <= level <= churn_range[1]:
            z_ve, logsnr = _raise_noise(z_ve, level, growth, churn_noise * _noise(z, generator))
        sigma, sigma_next = sigma_ve_from_logsnr(logsnr), sigma_ve_from_logsnr(following)
        slope = (z_ve - evaluate(from_ve(z_ve, logsnr), logsnr)) / sigma
        euler = z_ve + (sigma_next - sigma) * slope
        slope_next = (euler - denoise(from_ve(euler, following), following.expand(len(z)))) / sigma_next
        z = from_ve(z_ve + (sigma_next - sigma) * (slope + slope_next) / 2, following)
    return evaluate(z, grid[-1])


def _raise_noise(z_ve: Tensor, logsnr: Tensor, growth: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Add noise so that σ̄ becomes (1 + growth) σ̄; the new z̄ and its log-SNR.  (Algorithm 2, lines 5 and 6)"""
    raised = (1 + growth) * sigma_ve_from_logsnr(logsnr)
    added = sigma_ve_from_logsnr(logsnr) * math.sqrt(growth * (2 + growth))
    return z_ve + added * noise, logsnr_from_sigma_ve(raised)


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "heun": heun}


def get(name: str) -> Sampler:
    """A sampler by its name in :data:`SAMPLERS`.

    Raises:
        ValueError: for an unknown name; the message lists the choices.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


class _Evaluation:
    """A denoiser that takes one level for the whole batch, and tells the callback of each."""

    def __init__(self, denoise: Denoiser, callback: Callback | None) -> None:
        self.denoise, self.callback, self.index = denoise, callback, 0

    def __call__(self, z: Tensor, logsnr: Tensor) -> Tensor:
        x_hat = self.denoise(z, logsnr.expand(len(z)))
        if self.callback is not None:
            self.callback(self.index, logsnr, z, x_hat)
        self.index += 1
        return x_hat


def _grid(z: Tensor, levels: Tensor) -> Tensor:
    """The levels in type and place of ``z``, checked."""
    require_finite("z", z)
    require_finite("levels", levels)
    if levels.ndim != 1 or len(levels) < 2 or not (levels.diff() > 0).all():
        raise ValueError(
            f"levels must be increasing log-SNR, shape (N + 1,), N ≥ 1, from sampling.levels(schedule, N); got shape "
            f"{tuple(levels.shape)} from {levels.flatten()[0].item():g} to {levels.flatten()[-1].item():g}."
        )
    return levels.to(z)


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
