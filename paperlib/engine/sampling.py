r"""Samplers: from noise to data along decreasing levels of noise.

All of them take a *denoiser* x̂(z, λ), an estimate of the data at z, and levels :math:`\lambda_0 < \dots < \lambda_N`
of log-SNR, from any schedule, not only the one of training.  They start from ``z`` at λ₀, VP, and return x̂ at λ_N.

In VE scaling, :math:`\bar z = z/\alpha` and :math:`\bar\sigma = e^{-\lambda/2}`, the probability-flow equation is

.. math:: \frac{d\bar z}{d\bar\sigma} = \frac{\bar z - \hat x(\bar z, \bar\sigma)}{\bar\sigma}

(Karras et al. 2022, Equation 1).  While x̂ stands still its solution from λ_t to λ_s, in VP scaling again, is

.. math:: z_s = \frac{\sigma_s}{\sigma_t} z_t + \alpha_s\left(1 - e^{-h/2}\right)\hat x,
          \qquad h = \lambda_s - \lambda_t,

and the deterministic samplers differ in what they put for x̂ alone: DDIM (Euler's method, order one) takes x̂ at z_t;
DPM-Solver++(2M) extrapolates from the last two x̂, and Heun's method mixes the x̂ of both ends, each of order two.  DDPM
draws z_s from the posterior q(z_s | z_t, x̂) instead.

Every step is linear in z, in x̂ and in the noise, with coefficients that depend on the levels alone: they are computed
once a run, in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paperlib.checks import require_finite, require_same_shape
from paperlib.predictions import Prediction
from paperlib.process import alpha, expand, logsnr_from_sigma_ve, posterior, sigma, sigma_ve_from_logsnr
from paperlib.schedules import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""x̂ from z, VP, shape (B, *), and logsnr, shape (B,)."""

Callback = Callable[[int, Tensor, Tensor, Tensor], None]
"""Called once a level with its number, logsnr (), z and x̂ (B, *), for pictures and traces."""

EVERYWHERE = (-math.inf, math.inf)
"""All levels of log-SNR."""


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


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """The denoiser that a network is; made by :func:`denoiser`."""

    network: Callable[..., Tensor]
    prediction: Prediction
    label: Tensor | None = None
    guidance: float = 1.0
    interval: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        if self.guidance != 1 and self.label is None:
            raise ValueError(f"guidance {self.guidance} needs labels to guide to; pass label, or guidance=1.")
        if not self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval must be (lowest, highest) log-SNR, got {self.interval}.")

    def __call__(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """x̂, the shape of ``z``, each example at a level of its own, ``logsnr`` (B,)."""
        guided, output = self._is_guided(logsnr), self._labelled(z, logsnr)
        if guided.any():
            output = torch.where(expand(guided, z), self._extrapolated(output, z, logsnr), output)
        return self.prediction.to_x(output, z, logsnr)

    def plan(self, levels: Tensor) -> list[tuple[float, float, bool]]:
        """What :meth:`follow` needs at each of ``levels`` (E,): x̂ = a·output + b·z, and whether there is guidance."""
        one, none = torch.ones_like(levels), torch.zeros_like(levels)
        of_output = self.prediction.to_x(one, none, levels)
        of_z = self.prediction.to_x(none, one, levels)
        return list(zip(of_output.tolist(), of_z.tolist(), self._is_guided(levels).tolist(), strict=True))

    def follow(self, step: tuple[float, float, bool], z: Tensor, logsnr: Tensor) -> Tensor:
        """x̂ where all examples share a level that was planned."""
        of_output, of_z, guided = step
        output = self._labelled(z, logsnr)
        if guided:
            output = self._extrapolated(output, z, logsnr)
        require_same_shape("output", output, "z", z)
        return torch.add(z * of_z, output, alpha=of_output)

    def _is_guided(self, logsnr: Tensor) -> Tensor:
        low, high = self.interval
        return (logsnr >= low) & (logsnr <= high) & (self.guidance != 1)

    def _labelled(self, z: Tensor, logsnr: Tensor) -> Tensor:
        return self.network(z, logsnr) if self.label is None else self.network(z, logsnr, self.label)

    def _extrapolated(self, output: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
        """The output with guidance; x̂ is linear in it, so either may be extrapolated."""
        return torch.lerp(self.network(z, logsnr), output, self.guidance)


def denoiser(
    network: Callable[..., Tensor],
    prediction: Prediction,
    label: Tensor | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = EVERYWHERE,
) -> NetworkDenoiser:
    r"""The denoiser that a network is, with classifier-free guidance.

    :math:`\hat x = \hat x_{null} + g\,(\hat x_{label} - \hat x_{null})`  (Section 5, guidance; Ho & Salimans 2022.)
    Guidance may be left to an interval of levels: at high noise it takes away variety, at low noise it does nothing
    (Kynkäänniemi et al. 2024).

    Args:
        network: ``network(z, logsnr, label)``, or ``network(z, logsnr)`` where no label is given.
        prediction: what the network predicts.
        label: classes, int64 (B,), or None for the null class.
        guidance: g; 1 is no guidance and costs one evaluation of the network, else each level costs two.
        interval: lowest and highest log-SNR with guidance, −2 log σ_hi and −2 log σ_lo in the terms of EDM; outside it
            g is 1.

    Raises:
        ValueError: when guidance is asked for without a label, or the interval is reversed.
    """
    return NetworkDenoiser(network, prediction, label, guidance, interval)


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


# Samplers of one evaluation a level ----------------------------------------------------------------------------------


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
    grid = _grid(z, levels)
    one, none = torch.ones_like(grid[1:]), torch.zeros_like(grid[1:])
    keep, std = posterior(one, none, grid[:-1], grid[1:])  # linear in z and x̂: its coefficients are its values at one
    pull, _ = posterior(none, one, grid[:-1], grid[1:])
    return _walk(denoise, z, grid, (keep, pull, none, std), generator, callback)


def ddim(
    denoise: Denoiser,
    z: Tensor,
    levels: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    r"""DDIM: Euler's method, one evaluation a level, with fresh noise where η > 0.  (Song et al. 2021, Equation 12.)

    :math:`z_s = \alpha_s\hat x + \sqrt{\sigma_s^2 - \varsigma^2}\,\hat\epsilon + \varsigma\,noise`, :math:`\varsigma =
    \eta\,\sigma_s\sqrt{1 - e^{-h}}`.  Arguments as in :func:`ddpm`, and

    Args:
        eta: η in [0, 1]: 0 is deterministic, and nothing is drawn from ``generator``; 1 is :func:`ddpm`.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    grid = _grid(z, levels)
    share = -(eta**2) * torch.expm1(-grid.diff())  # of the variance σ_s², made of fresh noise
    decay = -grid.diff() / 2 + torch.log1p(-share) / 2
    keep = alpha(grid[1:]) / alpha(grid[:-1]) * decay.exp()
    pull, std = -alpha(grid[1:]) * torch.expm1(decay), sigma(grid[1:]) * share.sqrt()
    return _walk(denoise, z, grid, (keep, pull, torch.zeros_like(std), std), generator, callback)


def dpmpp_2m(
    denoise: Denoiser,
    z: Tensor,
    levels: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""DPM-Solver++(2M): order two at one evaluation a level.  (Lu et al. 2022, Algorithm 2.)

    The exact step of a constant x̂, with :math:`\hat x_i + \frac{h_i}{2h_{i-1}}(\hat x_i - \hat x_{i-1})` for it; the
    first step takes x̂ alone.  Arguments as in :func:`ddpm`; nothing is drawn from ``generator``.
    """
    grid = _grid(z, levels)
    keep, pull = _still(grid[:-1], grid[1:])
    step, beyond = grid.diff(), torch.zeros_like(pull)
    beyond[1:] = step[1:] / (2 * step[:-1])
    rows = keep, pull * (1 + beyond), -pull * beyond, torch.zeros_like(pull)
    return _walk(denoise, z, grid, rows, generator, callback)


@torch.no_grad()
def _walk(
    denoise: Denoiser,
    z: Tensor,
    grid: Tensor,
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    generator: torch.Generator | None,
    callback: Callback | None,
) -> Tensor:
    """z ← keep z + now x̂ + before x̂_before + std noise, one value of each of ``rows`` a step; then x̂ at the end."""
    evaluate = _Evaluations(denoise, grid, z, callback)
    x_before = z  # its coefficient is zero in the first step
    for index, (keep, now, before, std) in enumerate(torch.stack(rows, 1).tolist()):
        x_hat = evaluate(index, z, index)
        z = (z * keep).add_(x_hat, alpha=now)
        if before:
            z.add_(x_before, alpha=before)
        if std:
            z.add_(_noise(z, generator), alpha=std)
        x_before = x_hat
    return evaluate(len(grid) - 1, z, len(grid) - 1)


# Heun's method -------------------------------------------------------------------------------------------------------


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
    churn_range: tuple[float, float] = EVERYWHERE,
) -> Tensor:
    r"""EDM's sampler: Heun's method, two evaluations a step, with fresh noise where ``churn`` > 0.

    (Karras et al. 2022, Algorithms 1 and 2.)  Written like the others it is the exact step of a constant x̂, with
    :math:`(1 - u)\hat x + u \hat x'`, :math:`u = \tfrac12 e^{h/2}`, for it; x̂′ is taken where the step with x̂ alone
    arrives.  Their last step, to no noise at all, is the x̂ at the last level that every sampler here returns; no noise
    is added for it.  Arguments as in :func:`ddpm`, and

    Args:
        churn: S_churn, noise added in total; a step raises its level by min(churn/(N + 1), √2 − 1).
        churn_noise: S_noise, factor on the added noise.
        churn_range: log-SNR between which noise is added, −2 log S_max to −2 log S_min.
    """
    if not (churn >= 0 and churn_noise > 0):
        raise ValueError(f"churn must be 0 or more and churn_noise positive, got {churn} and {churn_noise}.")
    grid = _grid(z, levels)
    churned = (grid >= churn_range[0]) & (grid <= churn_range[1])
    growth = min(churn / len(grid), math.sqrt(2) - 1) * churned[:-1].double()
    start, lift, std = _raise_noise(grid[:-1], growth, churn_noise)
    keep, pull = _still(start, grid[1:])
    correct = pull * torch.exp((grid[1:] - start) / 2) / 2
    evaluate = _Evaluations(denoise, torch.cat([torch.stack([start, grid[1:]], 1).flatten(), grid[-1:]]), z, callback)
    for index, (up, noise, stay, move, turn) in enumerate(torch.stack([lift, std, keep, pull, correct], 1).tolist()):
        if noise:
            z = (z * up).add_(_noise(z, generator), alpha=noise)
        x_hat = evaluate(2 * index, z, index)
        euler = (z * stay).add_(x_hat, alpha=move)
        x_next = evaluate(2 * index + 1, euler)
        z = torch.add(euler, x_next, alpha=turn).sub_(x_hat, alpha=turn)
    return evaluate(2 * len(growth), z, len(growth))


def _raise_noise(logsnr: Tensor, growth: Tensor, noise_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Levels at which σ̄ is (1 + growth) σ̄, and the factors of z and of noise that take z there; each (N,).

    (Algorithm 2, lines 5 and 6, in VP scaling.)
    """
    sigma_ve = sigma_ve_from_logsnr(logsnr)
    raised = torch.where(growth > 0, logsnr_from_sigma_ve((1 + growth) * sigma_ve), logsnr)
    added = noise_scale * sigma_ve * (growth * (2 + growth)).sqrt()
    return raised, alpha(raised) / alpha(logsnr), alpha(raised) * added


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}


def get(name: str) -> Sampler:
    """A sampler by its name in :data:`SAMPLERS`.

    Raises:
        ValueError: for an unknown name; the message lists the choices.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


# What they share -----------------------------------------------------------------------------------------------------


class _Evaluations:
    """A denoiser at levels that are known beforehand, each for the whole batch; tells the callback of those numbered.

    Args:
        denoise: the denoiser; of a :class:`NetworkDenoiser`, what depends on the levels alone is computed here.
        levels: where it will be evaluated, shape (E,), float64.
        z: what it will be evaluated on, for its shape, type and place.
        callback: see :data:`Callback`.
    """

    def __init__(self, denoise: Denoiser, levels: Tensor, z: Tensor, callback: Callback | None) -> None:
        self.denoise, self.callback = denoise, callback
        self.levels = levels.to(z).unbind()
        self.batches = [level.expand(len(z)) for level in self.levels]
        self.plan = denoise.plan(levels) if isinstance(denoise, NetworkDenoiser) else None

    def __call__(self, position: int, z: Tensor, index: int | None = None) -> Tensor:
        """x̂ at the level of ``position``; ``index`` is the number that the callback is told, None for no call."""
        x_hat = self._x_hat(position, z)
        require_same_shape("x̂", x_hat, "z", z)
        if self.callback is not None and index is not None:
            self.callback(index, self.levels[position], z, x_hat)
        return x_hat

    def _x_hat(self, position: int, z: Tensor) -> Tensor:
        if self.plan is None:
            return self.denoise(z, self.batches[position])
        assert isinstance(self.denoise, NetworkDenoiser)
        return self.denoise.follow(self.plan[position], z, self.batches[position])


def _still(logsnr: Tensor, logsnr_next: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of z and x̂ in the probability flow while x̂ stands still, see above; each (N,)."""
    pull = -alpha(logsnr_next) * torch.expm1((logsnr - logsnr_next) / 2)
    return sigma(logsnr_next) / sigma(logsnr), pull


def _grid(z: Tensor, levels: Tensor) -> Tensor:
    """The levels, checked, in float64 and where numbers are cheap."""
    require_finite("z", z)
    require_finite("levels", levels)
    if levels.ndim != 1 or len(levels) < 2 or not (levels.diff() > 0).all():
        raise ValueError(
            f"levels must be increasing log-SNR, shape (N + 1,), N ≥ 1, from sampling.levels(schedule, N); got shape "
            f"{tuple(levels.shape)} from {levels.flatten()[0].item():g} to {levels.flatten()[-1].item():g}."
        )
    return levels.double().cpu()


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
