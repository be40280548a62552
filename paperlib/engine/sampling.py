r"""Samplers: from noise to data along decreasing levels of noise, and back.

All of them take a *denoiser* x̂(z, λ), an estimate of the data at z, and levels :math:`\lambda_0 < \dots < \lambda_N`
of log-SNR, from any schedule, not only the one of training.  They start from ``z`` at λ₀, VP, in general N(0, I), and
return x̂ at λ_N.

In VE scaling, :math:`\bar z = z/\alpha` and :math:`\bar\sigma = e^{-\lambda/2}`, the probability-flow equation is

.. math:: \frac{d\bar z}{d\bar\sigma} = \frac{\bar z - \hat x(\bar z, \bar\sigma)}{\bar\sigma}

(Karras et al. 2022, Equation 1).  DDIM is Euler's method for it, :func:`heun` is Heun's, DPM-Solver++(2M) a multistep
method.  DDPM draws z_s from the posterior q(z_s | z_t, x̂) instead.  A step goes from t to s, the less noisy of the two.

A network is anything called as ``network(z, logsnr, label=…)``, see :mod:`paperlib.objectives`.  Coefficients are
computed in double precision, once a step; z keeps its type.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import FunctionType

import torch
from torch import Tensor

from paperlib.checks import require_finite, require_finite_at, require_same_shape
from paperlib.objectives import Network
from paperlib.predictions import Prediction
from paperlib.process import alpha, sigma
from paperlib.registry import Registry
from paperlib.schedules import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""x̂ from z, VP, shape (B, *), and logsnr, shape (B,)."""

Callback = Callable[[int, Tensor, Tensor, Tensor], None]
"""Called once a level with its number, logsnr (), z and x̂ (B, *), for pictures and traces."""


# Denoiser and levels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    r"""The denoiser that a network is, with classifier-free guidance.

    :math:`\hat x = \hat x_{null} + g\,(\hat x_{label} - \hat x_{null})`  (Section 5, guidance; Ho & Salimans 2022.)

    Args:
        network: ``network(z, logsnr, label=…)``, or ``network(z, logsnr)`` where no label is given.
        prediction: what the network predicts.
        label: classes, int64 (B,), or None for the null class.
        guidance: g; 1 is no guidance and costs one evaluation of the network, else each level costs two.

    Raises:
        TypeError: when called, for a network that returns something else than a tensor.
        ValueError: when guidance is not finite, or is asked for without a label or classes; when called, for a label or
            an output that does not fit the batch: nothing is broadcast.
    """

    network: Network
    prediction: Prediction
    label: Tensor | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, 1 for none; got {self.guidance}.")
        if self.guidance != 1 and (self.label is None or getattr(self.network, "num_classes", None) == 0):
            raise ValueError(f"guidance {self.guidance} needs classes to guide to; pass label, or guidance=1.")

    def __call__(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """x̂, the shape of ``z``, each example at a level of its own, ``logsnr`` (B,)."""
        return self.prediction.to_x(self._output(z, logsnr), z, logsnr)

    def at(self, level: float, z: Tensor, logsnr: Tensor) -> Tensor:
        """x̂ where all examples are at one ``level``, which ``logsnr`` (B,) repeats: the same for less work."""
        of_output, of_z = _x_coefficients(self.prediction, level)
        return torch.add(of_z * z, self._output(z, logsnr), alpha=of_output)

    def _output(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """The network's output; x̂ is linear in it, so with guidance either may be extrapolated."""
        if self.label is None:
            output = self.network(z, logsnr)
        elif self.label.shape == z.shape[:1]:
            output = self.network(z, logsnr, label=self.label)
        else:
            raise ValueError(f"label must have shape ({len(z)},), one an example, got {tuple(self.label.shape)}.")
        require_same_shape("output", output, "z", z)
        if self.guidance == 1:
            return output
        null = self.network(z, logsnr)
        require_same_shape("output without a label", null, "z", z)
        return torch.lerp(null, output, self.guidance)


def _x_coefficients(prediction: Prediction, level: float) -> tuple[float, float]:
    """(a, b) of x̂ = a·output + b·z."""
    one, none, logsnr = torch.tensor([[1.0], [0.0], [level]], dtype=torch.float64)
    return prediction.to_x(one, none, logsnr).item(), prediction.to_x(none, one, logsnr).item()


def levels(schedule: NoiseSchedule, steps: int) -> Tensor:
    """``steps`` + 1 levels of log-SNR from the noisiest to the cleanest end, at equal distances in the schedule's t.

    Returns:
        Shape (steps + 1,), increasing, float64.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    return schedule.logsnr(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


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
    r"""Ancestral sampling: z_s ~ q(z_s | z_t, x̂), one evaluation a level.  (Ho et al. 2020, Algorithm 2.)

    The mean is :math:`\alpha_s((1 - c)\,z_t/\alpha_t + c\,\hat x)`, the standard deviation :math:`\sqrt c\,\sigma_s`,
    with :math:`c = 1 - e^{\lambda_t - \lambda_s}` (:func:`paperlib.process.posterior`).

    Args:
        denoise: the denoiser, a :class:`NetworkDenoiser` or any other.
        z: noise at ``levels[0]``, VP, shape (B, *).
        levels: increasing log-SNR, shape (N + 1,).
        generator: source of the noise that is added.
        callback: see :data:`Callback`.

    Returns:
        x̂ at the last level, the shape of ``z``.

    Raises:
        TypeError: when the denoiser returns something else than a tensor.
        ValueError: for z or levels that are not finite, levels that do not increase, and an x̂ of another shape or with
            NaN or infinities, naming the level.
    """
    estimate = _Estimates(denoise, z, levels, callback)
    for t, s in pairwise(estimate.levels):
        c = -math.expm1(t.logsnr - s.logsnr)
        mean = (1 - c) * s.alpha / t.alpha * z + c * s.alpha * estimate(z, t)
        z = mean + math.sqrt(c) * s.sigma * _noise(z, generator)
    return estimate(z, estimate.levels[-1])


@torch.no_grad()
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
    \eta\,\sigma_s\sqrt{1 - e^{\lambda_t - \lambda_s}}`.  Arguments as in :func:`ddpm`, and

    Args:
        eta: η in [0, 1]: 0 is deterministic, and nothing is drawn from ``generator``; 1 is :func:`ddpm`.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    estimate = _Estimates(denoise, z, levels, callback)
    for t, s in pairwise(estimate.levels):
        x_hat = estimate(z, t)
        fresh = eta * s.sigma * math.sqrt(-math.expm1(t.logsnr - s.logsnr))
        kept = math.sqrt(s.sigma**2 - fresh**2) / t.sigma  # ε̂ = (z − α_t x̂)/σ_t, put in
        z = kept * z + (s.alpha - kept * t.alpha) * x_hat
        if fresh:
            z = z + fresh * _noise(z, generator)
    return estimate(z, estimate.levels[-1])


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoiser,
    z: Tensor,
    levels: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    r"""DPM-Solver++(2M): order two at one evaluation a level.  (Lu et al. 2022, Algorithm 2.)

    :math:`z_s = \frac{\sigma_s}{\sigma_t} z_t + \alpha_s(1 - e^{-h/2})\,D`, :math:`h = \lambda_s - \lambda_t`, with
    :math:`D = \hat x + \frac{h}{2h'}(\hat x - \hat x')`, where h′ and x̂′ are those of the step before; D is x̂ in the
    first step.  (Their λ is half of ours.)  Arguments as in :func:`ddpm`; nothing is drawn from ``generator``.
    """
    estimate = _Estimates(denoise, z, levels, callback)
    before: tuple[Tensor, float] | None = None
    for t, s in pairwise(estimate.levels):
        x_hat, h = estimate(z, t), s.logsnr - t.logsnr
        d = x_hat
        if before is not None:
            x_before, h_before = before
            d = torch.lerp(x_before, x_hat, 1 + h / (2 * h_before))
        z = s.sigma / t.sigma * z - s.alpha * math.expm1(-h / 2) * d
        before = x_hat, h
    return estimate(z, estimate.levels[-1])


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
    r"""EDM's sampler: Heun's method, two evaluations a step, with fresh noise where ``churn`` > 0.

    With the slope :math:`d = (\bar z - \hat x)/\bar\sigma` Euler's step is :math:`\bar z' = \bar z_t + (\bar\sigma_s -
    \bar\sigma_t)\,d`, DDIM's; Heun's takes the mean of d and d′, the slope there: :math:`\bar z_s = \bar z' + \tfrac12
    (\bar\sigma_s - \bar\sigma_t)(d' - d)`, where :math:`d' - d = -(\hat x' - \hat x)/\bar\sigma_s`.  (Karras et al.
    2022, Algorithms 1 and 2.)  Their last step, to no noise at all, is the x̂ at the last level that every sampler here
    returns; no noise is added for it.  Arguments as in :func:`ddpm`, and

    Args:
        churn: S_churn, noise added in total; a step raises its level by min(churn/(N + 1), √2 − 1).
        churn_noise: S_noise, factor on the added noise.
        churn_range: log-SNR between which noise is added, −2 log S_max to −2 log S_min.
    """
    if not (churn >= 0 and churn_noise > 0):
        raise ValueError(f"churn must be 0 or more and churn_noise positive, got {churn} and {churn_noise}.")
    estimate = _Estimates(denoise, z, levels, callback)
    gamma = min(churn / len(levels), math.sqrt(2) - 1)
    for t, s in pairwise(estimate.levels):
        if gamma > 0 and churn_range[0] <= t.logsnr <= churn_range[1]:
            raised = _Level.of(t.index, t.logsnr - 2 * math.log(1 + gamma))
            added = churn_noise * math.sqrt(raised.sigma_ve**2 - t.sigma_ve**2)
            z, t = raised.alpha * (z / t.alpha + added * _noise(z, generator)), raised
        kept = s.sigma / t.sigma
        x_hat = estimate(z, t)
        euler = kept * z + (s.alpha - kept * t.alpha) * x_hat
        x_next = estimate(euler, s, told=False)
        z = euler + s.alpha * (t.sigma_ve - s.sigma_ve) / (2 * s.sigma_ve) * (x_next - x_hat)
    return estimate(z, estimate.levels[-1])


SAMPLERS: Registry[Callable[..., Tensor]] = Registry(
    "sampler", FunctionType, {"ddpm": ddpm, "ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}
)
"""By name; all are called as :func:`ddpm` is, some take more."""

register, get = SAMPLERS.register, SAMPLERS.__getitem__
"""See :class:`paperlib.registry.Registry`."""


# Back to noise -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def ddim_inversion(denoise: Denoiser, z: Tensor, levels: Tensor, *, callback: Callback | None = None) -> Tensor:
    r"""DDIM backwards: the noise at λ₀ from which :func:`ddim` comes back to ``z`` at λ_N, about.

    :math:`z_t = \alpha_t\hat x + \sigma_t\hat\epsilon`, with x̂ and ε̂ at z_s: Euler's method of the same equation, one
    evaluation a step, so that the way there and back misses z by an error that vanishes as 1/N; guidance makes it
    less exact.  (Song et al. 2021, Section 4.3.)  Arguments as in :func:`ddim`, but ``z`` (B, *) is at the *last*
    level, α x for images x that are free of noise, and is returned at ``levels[0]``, where the callback is not called.
    """
    estimate = _Estimates(denoise, z, levels, callback)
    for s, t in pairwise(reversed(estimate.levels)):
        x_hat = estimate(z, s)
        eps_hat = (z - s.alpha * x_hat) / s.sigma
        z = t.alpha * x_hat + t.sigma * eps_hat
    return z


# What they share -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    """A level of noise with its coefficients, as floats: number, log-SNR, α, σ, and σ/α."""

    index: int
    logsnr: float
    alpha: float
    sigma: float

    @classmethod
    def of(cls, index: int, logsnr: float) -> "_Level":
        level = torch.tensor(logsnr, dtype=torch.float64)
        return cls(index, logsnr, alpha(level).item(), sigma(level).item())

    @property
    def sigma_ve(self) -> float:
        return self.sigma / self.alpha


class _Estimates:
    """x̂ of a whole batch at one level, checked; tells the callback.

    Attributes:
        levels: checked, from the noisiest to the cleanest.
    """

    def __init__(self, denoise: Denoiser, z: Tensor, levels: Tensor, callback: Callback | None) -> None:
        require_finite("z", z)
        require_finite("levels", levels)
        if levels.ndim != 1 or len(levels) < 2 or not (levels.diff() > 0).all():
            raise ValueError(
                f"levels must be increasing log-SNR, shape (N + 1,), N ≥ 1, from sampling.levels(schedule, N); got "
                f"shape {tuple(levels.shape)} from {levels.flatten()[0].item():g} to {levels.flatten()[-1].item():g}."
            )
        self.denoise, self.callback = denoise, callback
        self.levels = [_Level.of(index, logsnr) for index, logsnr in enumerate(levels.tolist())]

    def __call__(self, z: Tensor, level: _Level, told: bool = True) -> Tensor:
        """x̂ of ``z`` at a level; the callback is not ``told`` of a second look at one."""
        logsnr = torch.full((len(z),), level.logsnr, dtype=torch.promote_types(z.dtype, torch.float32), device=z.device)
        if isinstance(self.denoise, NetworkDenoiser):
            x_hat = self.denoise.at(level.logsnr, z, logsnr)
        else:
            x_hat = self.denoise(z, logsnr)
        require_same_shape("x̂", x_hat, "z", z)
        require_finite_at("x̂", x_hat, logsnr)
        x_hat = x_hat.to(z.dtype)
        if told and self.callback is not None:
            self.callback(level.index, logsnr[0], z, x_hat)
        return x_hat


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
