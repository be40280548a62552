r"""Measuring a loss that is given as code, ``loss(model, x, generator)``: nothing of what it says is believed.

The loss is called with models of our own.  Two clean inputs under one seed see the same noise, so that

.. math:: z(x=1) - z(x=0) = a, \qquad z(x=0) = b\,\epsilon:

signal and noise of every example, in whatever scaling and whatever the model is told.  The weighting is read from
**gradients**, since weights behind a stop-gradient do not show in values.  For a squared error, whose gradient at an
output F is 2c(F − T), the gradients at two outputs under one seed give c and the target T = A x + B ε without any
variance; an error of F is one of ε times (A b − B a)/a, so that

.. math:: w(\lambda) \propto p(\lambda)\, c\, \left(\frac{A b - B a}{a}\right)^2, \qquad \lambda = 2\log(a/b).

Only p(λ) is counted, in bins.  Before that, on data of one point, where the exact model is known: is it stationary, for
which prediction; does twice the error cost four times; do errors of three shapes cost the same.  Then on Gaussian data
off the centre, whose exact denoiser is known too: there the gradient is noise, and has nothing in common with what the
model knows, 1, z, x̂ and each channel.  A loss may hold a *learned uncertainty* u, an error divided by e^u: what it is
divided by, and that something keeps u from growing, is measured by moving u.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.auditing.result import Audit, BelowPeak
from paperlib.predictions import EPS, FLOW, PREDICTIONS, FPrediction, Prediction, V
from paperlib.process import expand
from paperlib.weightings import majorant, runs

Loss = Callable[[Callable[..., Any], Tensor, torch.Generator], Tensor]
"""``loss(model, x, generator)``: a scalar, or one value an example.  It draws its levels and noise from the generator
(or from torch's own, which is seeded too) and calls ``model(z, …)`` once with gradients.  x is what it noises, z =
a x + b ε, but for a constant factor: it does not move x to another range first."""

ERROR = 0.1
"""Size of a known error of the output, per dimension."""
TOLERANCE = 0.01
"""Relative gradient at the exact model, or disagreement of two weights, that counts as none."""
OTHER = 10**9
"""Added to a seed for data that share nothing with the noise of the loss."""
BATCH = 8192
BINS = 100
DEVIATIONS = 3.5
"""Standard errors of a band that holds in all bins at once with 95 %."""
LEAST = 400
"""Draws in a bin at least."""

ALIGNED = 2.0
"""How much of the gradient at the exact denoiser may lie along one direction, one being its share of all dimensions."""

Coefficients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(A, B) of a target A x + B ε, from signal a and noise b."""


def _said(prediction: Prediction, sign: float = 1.0) -> Coefficients:
    def coefficients(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        on_x, on_eps = prediction.coefficients(_level(a, b).clamp(-60, 60))
        return sign * on_x, sign * on_eps

    return coefficients


USUAL: dict[str, Coefficients] = {
    **{name: _said(prediction) for name, prediction in PREDICTIONS.items() if name not in ("score", "F")},
    "score": lambda a, b: (torch.zeros_like(b), -1 / b),  # of z in its own scaling
    "−flow (x − ε)": _said(FLOW, -1),
    "−v (σx − αε)": _said(V, -1),
    "−eps": _said(EPS, -1),
}
"""What a network may be meant to predict; F joins with the σ_data that is measured.  (Section 2, predictions)"""


SCALINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "VP, a² + b² = 1": lambda a, told: (1 - a**2).clamp(min=0).sqrt(),
    "flow, a + b = 1": lambda a, told: 1 - a,
    "c_in with σ_data ½": lambda a, told: (1 - a**2 / 4).clamp(min=0).sqrt(),
    "VE, a = 1, told σ": lambda a, told: told * a,
    "VE, a = 1, told log σ": lambda a, told: told.exp() * a,
    "VE, a = 1, told (log σ)/4": lambda a, told: (4 * told).exp() * a,
}
"""b of a scaling of z, from a and what the model is told; each is believed only where the noise seen agrees."""
UNKNOWN = "of its own"
"""A scaling that is none of these: b is the root mean square of the noise, known to 1/√(2 dim)."""


@dataclass(frozen=True)
class Seen:
    """What the models saw under one seed.

    Attributes:
        dark: z for x = 0, which is b ε, (B, *).
        a: signal of each example, (B,).
        told: what else the model was given, one number an example, (B,); NaN where there is none.
        gradient: of the loss where the output is zero and x = 0, (B, *).
        scaling: a name of :data:`SCALINGS` or :data:`UNKNOWN`.
    """

    dark: Tensor
    a: Tensor
    told: Tensor
    gradient: Tensor
    scaling: str = UNKNOWN

    def _off(self, scaling: str) -> Tensor:
        """How far its b lies from the root mean square of the noise, in standard errors of that, (B,)."""
        known = SCALINGS[scaling](self.a, self.told)
        return (known / _size(self.dark)).log() * math.sqrt(2 * self.dark[0].numel())

    def fits(self, scaling: str) -> bool:
        """Whether z may have that scaling."""
        if scaling.startswith("VE") and (self.a - 1).abs().max() > 1e-4:
            return False
        off = self._off(scaling)[self.inside]
        return off.abs().median().item() < 1.5 and (off.abs() < 6).double().mean().item() > 0.97

    @cached_property
    def b(self) -> Tensor:
        """Noise of each example, (B,); its root mean square where a is rounded to so near one that b is not."""
        rough = _size(self.dark)
        if self.scaling == UNKNOWN:
            return rough
        return torch.where(self._off(self.scaling).abs() < 8, SCALINGS[self.scaling](self.a, self.told), rough)

    @property
    def eps(self) -> Tensor:
        """ε, (B, *)."""
        return self.dark / expand(self.b, self.dark).clamp(min=1e-30)

    @property
    def inside(self) -> Tensor:
        """Which examples have a finite level, (B,)."""
        return (self.a.abs() > 1e-6) & (_size(self.dark) > 1e-6)

    def output(self, coefficients: Coefficients, x: Tensor | float, eps: Tensor | None = None) -> Tensor:
        """A x + B ε at these levels, (B, *); with its own ε, None, that of the exact model of data which are all x."""
        on_x, on_eps = coefficients(self.a, self.b)
        return expand(on_x, self.dark) * x + expand(on_eps, self.dark) * (self.eps if eps is None else eps)


class Called(NamedTuple):
    """What one call of the loss showed.

    Attributes:
        z: what the model was given, (B, *), in its own dtype.
        told: what it was given beside that, (B,); None where there is none.
        gradient: of the loss by the model's output, (B, *).
        total: the loss.
    """

    z: Tensor
    told: Tensor | None
    gradient: Tensor
    total: float


class Probe:
    """Calls of a loss with outputs that we choose.

    Args:
        loss: see :data:`Loss`.
        shape: of one example.
        batch: number of examples in a call.
        output: what the loss expects of a model, made of the tensor of its output, and of u (B, 1, …) where it takes
            two.
    """

    def __init__(self, loss: Loss, shape: tuple[int, ...], batch: int, output: Callable[..., Any]) -> None:
        self.loss, self.shape, self.batch, self.output = loss, shape, batch, output
        self.dtype = torch.float64
        needed = [one for one in inspect.signature(output).parameters.values() if one.default is one.empty]
        self.returns_u = len(needed) == 2
        self.own: list[Tensor] = []  # parameters of the loss itself, which a call finds

    def call(self, value: float | Tensor, seed: int, at: Callable[[Tensor], Tensor], u: float = 0.0) -> Called:
        """One call on x = value with the output ``at(z)`` and ``u``, which the loss's own parameters gain too."""
        calls: list[tuple[Tensor, tuple[Any, ...], Tensor]] = []

        def model(z: Tensor, *told: Any, **named: Any) -> Any:
            if not (isinstance(z, Tensor) and z.shape == (self.batch, *self.shape)):
                got = tuple(z.shape) if isinstance(z, Tensor) else z
                raise ValueError(f"the loss calls the model with {got!r} where the noisy data are expected first.")
            if torch.finfo(z.dtype).bits < 32:
                raise ValueError(
                    f"the loss calls the model with {z.dtype}, whose rounding hides what is to be measured: run it in "
                    f"float32 for the audit."
                )
            out = at(z.detach()).detach().to(z.dtype).requires_grad_(torch.is_grad_enabled())
            if out.requires_grad:
                calls.append((z.detach(), (*told, *named.values()), out))
            return self.output(out, *[z.new_full((len(z), *[1] * (z.ndim - 1)), u)] * self.returns_u)

        x = torch.as_tensor(value, dtype=self.dtype).expand(self.batch, *self.shape).clone()
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), _moved(self.own, u):
            torch.manual_seed(seed)
            try:
                total = self.loss(model, x, torch.Generator().manual_seed(seed))
            except AttributeError as error:
                raise ValueError(
                    f"the loss failed on what the model returned: {error}. A plain tensor is returned; say what your "
                    f"model returns, such as output=lambda out: SimpleNamespace(sample=out)."
                ) from error
        if len(calls) != 1:
            raise ValueError(f"the loss called the model {len(calls)} times with gradients; one call can be measured.")
        if not isinstance(total, Tensor) or not total.requires_grad:
            raise ValueError("the loss returned nothing that depends on the model's output by a gradient.")
        z, others, out = calls[0]
        self.own = [leaf for leaf in _leaves(total) if leaf is not out]
        (gradient,) = torch.autograd.grad(total.sum(), out, allow_unused=True)
        if gradient is None:
            raise ValueError("the gradient of the loss does not reach the model's output.")
        told = next((v for v in others if isinstance(v, Tensor) and v.numel() == self.batch), None)
        told = None if told is None else told.detach().flatten().double()
        return Called(z, told, gradient.double(), total.detach().double().sum().item())

    def seen(self, seed: int, scaling: str | None = None) -> Seen:
        """The same noise over x = 0 and x = 1, its scaling found where it is not given; ValueError for no a x + b ε."""
        dark, told, gradient, _ = self.call(0.0, seed, torch.zeros_like)
        dark = dark.double()
        gain = (self.call(1.0, seed, torch.zeros_like).z.double() - dark).flatten(1)
        a = gain.mean(1)
        if (gain - a[:, None]).abs().max() > 1e-3 * max(1.0, gain.abs().max().item()):
            raise ValueError(
                "z(x = 1) − z(x = 0) is not one number an example: the loss noises pixels differently, or draws its "
                "noise by the data."
            )
        seen = Seen(dark, a, a * math.nan if told is None else told, gradient)
        return replace(seen, scaling=scaling or next(filter(seen.fits, SCALINGS), UNKNOWN))


def measure(
    loss: Loss,
    *,
    name: str = "loss",
    shape: tuple[int, ...] | None = None,
    draws: int = 6_000_000,
    seed: int = 0,
    output: Callable[..., Any] = lambda out: out,
) -> Audit:
    """The audit of a loss by measuring it.

    Args:
        loss: ``loss(model, x, generator)``, see :data:`Loss`.
        name: what to call it.
        shape: of one example, channels first; by default what it is and of which scaling is seen on (3, 32, 32), and
            its draws are counted on (3, 4, 4), which is quicker.
        draws: examples drawn to count p(λ); the band of w is ± 3.5/√(draws in a bin).
        seed: of the first batch; each batch has one of its own.
        output: what the loss expects of a model, made of a tensor, for example an object with that as ``sample``; or of
            a tensor and the log-variance of a learned uncertainty, for example ``lambda out, u: (out, u)``.

    Raises:
        ValueError: for a loss that cannot be measured: that draws other noise under the same seed, that calls the model
            never or twice or in half precision, whose weights or gradients are NaN, that does not lead to the model's
            output, or that is neither a squared error nor stationary.
    """
    wide, narrow = Probe(loss, shape or (3, 32, 32), 256, output), Probe(loss, shape or (3, 4, 4), BATCH, output)
    double = False
    with suppress(Exception):  # which the next call raises
        double = wide.call(0.0, seed, torch.zeros_like).z.dtype == torch.float64
    if not double:  # float32 inside: the loss is no more general than that
        wide.dtype = narrow.dtype = torch.float32
    try:
        one, same = (wide.call(0.0, seed, torch.zeros_like).z for _ in range(2))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"the loss failed on data of shape {(wide.batch, *wide.shape)}: {type(error).__name__}: {error}. Say "
            f"shape=… where it takes other data, output=… where your model returns something else than a tensor of the "
            f"shape of z."
        ) from error
    if not torch.equal(one, same):
        raise ValueError("under one seed the loss draws other noise each time; let it draw from the generator.")
    first = wide.seen(seed)
    notes: tuple[str, ...] = ()
    _require_no_offset(first)
    if first.scaling == UNKNOWN and (scale := _scale(first)) is not None:
        wide.loss = narrow.loss = lambda model, x, generator: loss(model, x / scale, generator)
        first = wide.seen(seed)
        notes = (f"the loss multiplies its data by {scale:.6g} first: levels are those of what it noises.",)
    character, target = _character(wide, first, seed)
    if target is None and not character.quadratic:
        raise ValueError(
            "the loss is not a weighted squared error, and the exact model is stationary under no usual prediction: "
            "there is no weighting to measure. Put a squared error in the place of its own for the audit."
        )
    drawn = _drawn(narrow, target, character.quadratic, first.scaling, draws, seed)
    notes = (_convention(first), *notes, *character.notes)
    return _audit(name, *drawn, character._replace(notes=notes), torch.finfo(narrow.dtype).eps)


class Character(NamedTuple):
    """What kind of loss it is, as far as data of one point tell; see :class:`paperlib.auditing.result.Audit`."""

    prediction: str | None
    stationary: bool
    quadratic: bool
    isotropic: bool | None
    learns: bool | None
    notes: tuple[str, ...]


def _character(probe: Probe, seen: Seen, seed: int) -> tuple[Character, Coefficients | None]:
    """What kind it is, and the target A x + B ε of a usual prediction where one fits."""
    one, inside, notes = torch.ones_like(seen.dark), seen.inside, []
    if not inside.any():
        raise ValueError("the loss shows its model no level between noise alone and clean data.")

    def gradient(value: float, out: Tensor, u: float = 0.0) -> Tensor:
        return probe.call(value, seed, lambda z: out, u).gradient

    def weight(base: Tensor, form: Tensor, u: float = 0.0) -> Tensor:
        """c of each example: how the gradient along an error of this form grows with it."""
        grown = (gradient(0.0, base + form, u) - gradient(0.0, base, u)) * form
        return grown.flatten(1).sum(1) / (2 * form.square().flatten(1).sum(1))

    # Stationary: the gradient at the exact model, beside that of a known error.
    usual = USUAL | _f_prediction(probe, seen, seed, weight(0 * one, ERROR * one))
    size = {}
    rounding = 1e3 * torch.finfo(probe.dtype).eps * (seen.a / seen.b.clamp(min=1e-12)).abs()
    for label, coefficients in usual.items():
        share = []
        for value in (0.0, 1.0, -0.5):
            exact = seen.output(coefficients, value)
            before = gradient(value, exact)
            known = _size(gradient(value, exact + ERROR * one) - before).clamp(min=1e-300)
            share.append((_size(before) / known - rounding)[inside].quantile(0.95).item())
        size[label] = max(share)
    best = min(size, key=lambda label: size[label] if math.isfinite(size[label]) else math.inf)
    blurred = 3 / ERROR / math.sqrt(2 * seen.dark[0].numel()) if seen.scaling == UNKNOWN else 0.0
    stationary = size[best] < TOLERANCE + blurred
    if not stationary:
        notes.append(
            "the exact model is not stationary under any usual prediction: the target does not fit what the output "
            f"stands for (nearest is {best}, with {size[best]:.2g} of the gradient of an error of {ERROR:g}). w is "
            "that of a model which fits this target."
        )

    # Quadratic: twice the error costs four times; so its gradient doubles, and c stays.
    base = seen.output(usual[best], 0.0) if stationary else 0 * one
    c = weight(base, ERROR * one)
    _require_finite(c, seen)
    counts = inside & (c != 0)
    growth = (weight(base, 2 * ERROR * one) / c)[counts]
    quadratic = bool(((growth - 1).abs() < 2 * TOLERANCE).all())
    if not quadratic:
        notes.append(
            f"not a weighted squared error: twice the error costs {4 * growth.median():.2f} times, not 4, at errors of "
            f"{ERROR:g} a dimension; w is the local weighting there."
        )

    # Isotropic: errors of three shapes cost the same, constant ones, the highest frequency and one channel.
    waves, channel = one * (1 - 2 * (torch.arange(one.shape[-1]) % 2)), torch.zeros_like(one)
    channel[:, 0] = 1
    forms = {"high-frequency": waves, "one-channel": channel}
    shares = {label: (weight(base, ERROR * form) / c)[counts].median().item() for label, form in forms.items()}
    isotropic = all(abs(value - 1) < 2 * TOLERANCE for value in shares.values()) if quadratic else None
    if isotropic is False:
        told = " and ".join(f"{label} errors {value:.3g} times as much" for label, value in shares.items())
        notes.append(f"errors of different shapes count differently: {told} as constant ones, of which w is.")

    # Stationary on data that are no point too, where nothing of the gradient is known to the model.
    if stationary and isotropic is not False and (along := _aligned(probe, seen, seed, usual[best])):
        stationary = False
        notes.append(
            f"the exact denoiser of Gaussian data is not stationary under {best}: its gradient lies along "
            f"{', '.join(f'{label} ({share:.3g} times what chance gives)' for label, share in along.items())}. The "
            "target is made of other data than z: flipped, shuffled or changed in between. w is that of one point."
        )

    # A learned uncertainty: what the error is divided by, and what keeps that from growing.
    learns = None
    if probe.returns_u or probe.own:
        divided = (weight(base, ERROR * one, math.log(4)) / c)[counts]
        low, high = (probe.call(0.0, seed, lambda z: base, u).total for u in (0.0, math.log(4)))
        learns = bool(((4 * divided - 1).abs() < 2 * TOLERANCE).all()) and high > low
        notes.append(
            "learned uncertainty: the error is divided by e^u, which settles at the error itself; the weighting moves "
            "from w, at u = 0, to p(λ)/E(λ) as u learns, whatever weight and prediction there are beside it."
            if learns
            else "the loss has something to learn of its own, which does not divide the error by e^u; w is that of now."
        )
    named = best if stationary else None
    fits = usual[best] if size[best] < TOLERANCE + blurred else None
    return Character(named, stationary, quadratic, isotropic, learns, tuple(notes)), fits


def _aligned(probe: Probe, seen: Seen, seed: int, coefficients: Coefficients) -> dict[str, float]:
    """Directions along which the gradient at the exact denoiser of x ~ N(m, ¼) lies more than by chance."""
    shape = seen.dark.shape
    channels = torch.linspace(-0.5, 0.75, shape[1], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 2))
    own = torch.Generator().manual_seed(seed + OTHER)
    x = channels + torch.randn(shape, generator=own, dtype=torch.float64) / 2
    a, b = (expand(level, seen.dark) for level in (seen.a, seen.b.clamp(min=1e-30)))
    z = a * x + seen.dark
    x_hat = channels + a / (a**2 + 4 * b**2) * (z - a * channels)
    gradient = probe.call(x, seed, lambda _: seen.output(coefficients, x_hat, (z - a * x_hat) / b)).gradient

    def share(values: Tensor, direction: Tensor) -> float:
        values, direction = (part[seen.inside].flatten(1) for part in (values, direction))
        product = (values * direction).sum(1) ** 2 / values.square().sum(1).clamp(min=1e-300)
        return (product / direction.square().sum(1).clamp(min=1e-300)).mean().item() * values.shape[1]

    one = torch.ones_like(z)
    along = {"1": share(gradient, one)}
    if seen.scaling != UNKNOWN:  # where b is off by so much that its ε lies along both
        along |= {"z": share(gradient, z), "x̂": share(gradient, x_hat)}
    if len(shape) > 2:
        along |= {f"channel {i}": share(gradient[:, i], one[:, i]) for i in range(shape[1])}
    return {label: value for label, value in along.items() if value > ALIGNED}


def _require_no_offset(seen: Seen) -> None:
    """Refuse a loss in which z of x = 0 has a mean that goes with a: that of s (x + o), not of x."""
    a, dark = (values[seen.inside] for values in (seen.a, seen.dark.flatten(1)))
    noise = dark.std(1)
    mean, slope = dark.mean(1) / noise, a / noise
    offset = (mean * slope).sum() / slope.square().sum()
    error = (mean - offset * slope).square().mean().sqrt() / slope.square().sum().sqrt()
    if offset.abs() > 6 * error:
        raise ValueError(
            f"the loss moves its data before it noises them, x → s (x {offset.item():+.3g}): let it take data in the "
            f"form that it noises, and move them outside."
        )


def _scale(seen: Seen) -> float | None:
    """The constant s with which a/s is a known scaling, from levels with little noise; None where there is none."""
    b, dim = _size(seen.dark), seen.dark[0].numel()
    few = seen.inside & (b < 0.9)
    for scaling, signal, blur in (("VP, a² + b² = 1", (1 - b**2).sqrt(), b**2), ("flow, a + b = 1", 1 - b, b)):
        weight = ((signal / blur) ** 2)[few]  # over the variance of b, one in 2 dim
        scale = ((seen.a / signal)[few] * weight).sum() / weight.sum()
        error = 3 / (2 * dim * weight.sum()).sqrt()
        short = (float(f"{scale.item():.{digits}g}") for digits in range(1, 9))
        found = next((one for one in short if abs(one / scale - 1) < error), scale.item())
        if replace(seen, a=seen.a / found).fits(scaling):
            return found
    return None


def _f_prediction(probe: Probe, seen: Seen, seed: int, c: Tensor) -> dict[str, Coefficients]:
    """F with the σ_data that the target of a squared error shows: σ_data² = −(B/A) e^{−λ/2}."""
    on_x, on_eps = _target(probe, seen, seed, c)
    square = (-on_eps / on_x * seen.b / seen.a)[seen.inside & (c != 0)]
    if not (square > 0).all() or square.std() > 0.05 * square.mean():
        return {}
    sigma_data = float(f"{square.median().sqrt().item():.3g}")
    return {f"F (σ_data {sigma_data:g})": _said(FPrediction(sigma_data))}


def _target(probe: Probe, seen: Seen, seed: int, c: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B) of the target of a squared error: T = −gradient/2c where the output is zero."""
    light = probe.call(1.0, seed, torch.zeros_like).gradient
    dark, light = (-g / (2 * expand(c, g)) for g in (seen.gradient, light))
    eps = seen.eps
    on_eps = (dark * eps).flatten(1).mean(1) / eps.flatten(1).square().mean(1)
    return (light - dark).flatten(1).mean(1), on_eps


def _drawn(
    probe: Probe, target: Coefficients | None, quadratic: bool, scaling: str | None, draws: int, seed: int
) -> tuple[Tensor, Tensor, float, float]:
    """λ of every draw, and c k: how much an error of ε counts there; the share of draws at λ = ±∞; the error of a λ.

    Where the scaling is not known b of one example is blurred, and that of all examples of an index is less so; else
    there is no error.
    """
    blur = 0.0
    batches = range(seed + 1, seed + 1 + max(1, draws // probe.batch))
    # In one piece: many small ones keep the room of others between them.
    levels, gains = torch.empty(2, len(batches), probe.batch, dtype=torch.float64)
    told = torch.empty_like(levels) if scaling == UNKNOWN else None
    for i, batch in enumerate(batches):
        seen = probe.seen(batch, scaling)
        base, before = torch.zeros_like(seen.dark), seen.gradient
        if not quadratic and target is not None:
            base = seen.output(target, 0.0)
            before = probe.call(0.0, batch, lambda z, out=base: out).gradient  # type: ignore[misc]
        after = probe.call(0.0, batch, lambda z, out=base + ERROR: out).gradient  # type: ignore[misc]
        c = (after - before).flatten(1).mean(1) / (2 * ERROR)
        on_x, on_eps = _target(probe, seen, batch, c) if target is None else target(seen.a, seen.b)
        level, gain = _level(seen.a, seen.b), c * (on_x * seen.b / seen.a - on_eps) ** 2
        gain = torch.where(c == 0, 0.0, gain)  # where no target is seen either
        _require_finite(gain, seen)
        levels[i], gains[i] = torch.where(seen.inside, level, math.inf), gain
        if told is not None:
            told[i] = seen.told
    if told is not None and torch.equal(told, told.round()):
        place = told.unique(return_inverse=True)[1].flatten()
        count = torch.bincount(place)
        levels = (torch.bincount(place, levels.flatten()) / count)[place].reshape(levels.shape)
        blur = 2 / math.sqrt(2 * math.prod(probe.shape) * count.double().mean().item())
    inside = levels.isfinite()
    if inside.all():  # no copy of millions
        return levels.flatten(), gains.flatten(), 0.0, blur
    return levels[inside], gains[inside], (~inside).sum().item() / inside.numel(), blur


def _audit(
    name: str, levels: Tensor, gains: Tensor, outside: float, blur: float, character: Character, eps: float
) -> Audit:
    notes, total = character.notes, len(levels) / (1 - outside)
    if outside:
        notes += (f"{outside:.2g} of the draws are noise alone or clean (λ = ±∞): no part of w.",)
    if (gains < 0).any():
        raise ValueError(f"errors lower the loss at log-SNR {levels[gains < 0][0].item():.3g}: its weight is negative.")
    edges, share = _edges(levels, eps)
    share *= (levels >= edges[0]) & (levels <= edges[-1])
    place = torch.bucketize(levels, edges[1:-1])
    width, logsnr = edges.diff(), (edges[1:] + edges[:-1]) / 2
    count = torch.bincount(place, share, minlength=len(logsnr))
    mean, square = (torch.bincount(place, share * gains**power, minlength=len(logsnr)) / count for power in (1, 2))
    spread = (square / mean**2).nan_to_num(1)  # where w is zero
    w = mean * count / width / total
    w, band = w / w.max(), w / w.max() * DEVIATIONS * (spread.clamp(min=1) / count + (blur / width) ** 2).sqrt()
    falls = bool((w.diff() <= 0).all())
    least = majorant(w - band)  # as large w is, at some cleaner level, or larger
    surely = w + band < least
    found = Audit(
        name=name,
        logsnr=logsnr,
        weighting=w,
        width=width,
        draws=count / width / total,
        band=band,
        monotonic=False if surely.any() else True if falls else None,
        augmentation_density=-torch.gradient(w, spacing=(logsnr,))[0],
        clean_mass=w[-1].item(),
        below_peak=None,
        **character._replace(notes=notes)._asdict(),
    )
    if falls:
        return found
    lower = runs(w < found.majorant)
    dips = [(first, peak) for first, peak in lower if surely[first:peak].any()] or [(0, int(w.argmax()))]
    draws, loss = (
        sum(share[first:peak].sum().item() for first, peak in dips) for share in (count / total, found.effort * width)
    )
    first, peak = dips[-1]
    first += int(surely[first : peak + 1].int().argmax())
    likely = first + (w + band >= least[first])[first:].nonzero().flatten()
    return replace(
        found,
        below_peak=BelowPeak(
            logsnr[peak].item(),
            draws,
            loss,
            (edges[likely[0]].item(), edges[likely[-1] + 1].item()),
            tuple((edges[first].item(), logsnr[peak].item()) for first, peak in dips),
        ),
    )


def _edges(levels: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Edges of bins, and how much of each draw lies within them.

    Between the steps of a table, as many in each: half of its first and of its last step lies outside.  Else equal
    bins, but for those that hold too little.  Levels that differ by the rounding of z alone, to ``eps``, are one step.
    """
    ordered = torch.from_numpy(np.sort(levels.numpy()))  # torch sorts the places of millions, too
    # dλ = 2 da/(a b²) of VP, and 1/(a b²) = (1 + e^λ)^1.5 e^(−λ/2); in place, for there are millions
    rounding = F.softplus(ordered).mul_(1.5).sub_(ordered, alpha=0.5).exp_().mul_(eps).clamp_(min=1e-7)
    new = F.pad(ordered.diff() > rounding[1:], (1, 0), value=True)
    del rounding
    if not new[1:].any():
        raise ValueError(f"the loss draws one level alone, log-SNR {ordered[0].item():.3g}.")
    if new.sum() < len(levels) / 50:
        steps = ordered[new]
        every = math.ceil(len(steps) / 2 / BINS)
        between = ((steps[1:] + steps[:-1]) / 2)[every - 1 : 1 - every or None : every]
        place = torch.searchsorted(steps, levels, right=True)
        outer = (place == 1) | (place == len(steps))
        levels.clamp_(max=steps[-1])
        return torch.cat([steps[:1], between, steps[-1:]]), torch.where(outer, 0.5, 1.0).to(levels)
    rare = len(levels) // 10_000
    edges = torch.linspace(ordered[rare].item(), ordered[-1 - rare].item(), BINS + 1, dtype=torch.float64)
    below = torch.searchsorted(ordered, edges)
    kept = [0]
    for i in range(1, BINS + 1):
        if below[i] - below[kept[-1]] >= LEAST:
            kept.append(i)
    kept[-1] = BINS
    return edges[kept], torch.ones_like(levels)


def _convention(seen: Seen) -> str:
    """The scaling of z and what the model is told, in words."""
    scaling = f"what the model sees is a x + b ε, its scaling {seen.scaling.split(', told')[0]}"
    if seen.scaling == UNKNOWN:
        scaling += f" (levels are known to {2 / math.sqrt(2 * seen.dark[0].numel()):.2g} nats or worse)"
    if seen.told.isnan().all():
        return f"{scaling}; the model is told no level."
    a, b, told = (values[seen.inside] for values in (seen.a, seen.b, seen.told))
    level, t = _level(a, b), b / (a + b)
    known = {
        "σ of VE": b / a, "log σ of VE": -level / 2, "(log σ of VE)/4": -level / 8, "flow time": t,
        "1 − flow time": 1 - t, "1000 × flow time": 1000 * t, "log-SNR": level, "−log-SNR": -level,
        "log-SNR / 2": level / 2, "ᾱ": torch.sigmoid(level), "the angle of a cosine": torch.atan2(b, a),
    }  # fmt: skip
    off = {what: ((value - told).abs().mean() / told.std().clamp(min=1e-12)).item() for what, value in known.items()}
    best = min(off, key=lambda what: off[what])
    index = "an index" if torch.equal(told, told.round()) else "a level of its own"
    ranks = torch.stack([values.argsort().argsort().double() for values in (told, level)])
    order = torch.corrcoef(ranks)[0, 1]
    way = "more noise" if order < -0.99 else "less noise" if order > 0.99 else "neither more nor less noise"
    return f"{scaling}; the model is told {best if off[best] < 0.01 else index}, larger for {way}."


def _require_finite(weight: Tensor, seen: Seen) -> None:
    """Refuse weights (B,) that are NaN or infinite, naming the level."""
    if (bad := seen.inside & ~weight.isfinite()).any():
        level = _level(seen.a, seen.b)[bad][0].item()
        raise ValueError(f"the weight of the loss is NaN or infinite at log-SNR {level:.3g}.")


def _level(a: Tensor, b: Tensor) -> Tensor:
    return 2 * (a / b).abs().log()


def _size(values: Tensor) -> Tensor:
    """Root mean square of each example."""
    return values.flatten(1).square().mean(1).sqrt()


def _leaves(total: Tensor) -> list[Tensor]:
    """The tensors that ``total`` has a gradient by."""
    found, ahead, been = [], [total.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is not None and node not in been:
            been.add(node)
            ahead += [before for before, _ in node.next_functions]
            found += [node.variable] if hasattr(node, "variable") else []
    return found


@contextmanager
def _moved(parameters: list[Tensor], by: float) -> Iterator[None]:
    """All of them larger by so much, and afterwards what they were."""
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value + by)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
