"""Losses as published codes compute them, written from those sources alone, and the weighting that each was meant for.

Nothing of the library is used here: an expected w is a formula of λ, up to a constant, stated before any measurement.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Model = Callable[..., Any]
Weight = Callable[[Tensor], Tensor]


def rectified_flow(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Liu et al. 2023: uniform t, velocity."""
    t = torch.rand(len(x), generator=generator).to(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    s = t[:, None, None, None]
    return ((model((1 - s) * x + s * noise, t) - (noise - x)) ** 2).mean()


def sd3(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Esser et al. 2024: t logit-normal(0, 1), velocity; the network is told 1000 t."""
    t = torch.randn(len(x), generator=generator).to(x).sigmoid()
    noise = torch.randn(x.shape, generator=generator).to(x)
    s = t[:, None, None, None]
    return ((model((1 - s) * x + s * noise, timestep=1000 * t) - (noise - x)) ** 2).mean()


def sd3_shift_twice(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """The same with a shift by 3 that is applied to the times, and to the times of a table that has it already."""
    t = torch.randn(len(x), generator=generator).to(x).sigmoid()
    for _ in range(2):
        t = 3 * t / (1 + 2 * t)
    noise = torch.randn(x.shape, generator=generator).to(x)
    s = t[:, None, None, None]
    return ((model((1 - s) * x + s * noise, 1000 * t) - (noise - x)) ** 2).mean()


def edm(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Karras et al. 2022, Section 5: log σ ~ N(−1.2, 1.2²), weight (σ² + σ_d²)/(σ σ_d)², a denoiser; summed."""
    sigma = (torch.randn(len(x), generator=generator).to(x) * 1.2 - 1.2).exp()
    s = sigma[:, None, None, None]
    weight = (s**2 + 0.25) / (0.5 * s) ** 2
    noise = torch.randn(x.shape, generator=generator).to(x) * s
    return weight * (model(x + noise, sigma) - x) ** 2


def _table(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stable Diffusion's table: index, ᾱ of each example, noise, noisy images."""
    alphas_cumprod = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=x.dtype) ** 2, 0)
    index = torch.randint(0, 1000, (len(x),), generator=generator)
    bar = alphas_cumprod[index]
    noise = torch.randn(x.shape, generator=generator).to(x)
    wide = bar[:, None, None, None]
    return index, bar, noise, wide.sqrt() * x + (1 - wide).sqrt() * noise


def ddpm_eps(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Ho et al. 2020 on that table: ε, unweighted."""
    index, _, noise, z = _table(x, generator)
    return ((model(z, index) - noise) ** 2).mean()


def min_snr_v(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Hang et al. 2023, γ = 5, for v as in diffusers: min(SNR, γ)/(SNR + 1)."""
    index, bar, noise, z = _table(x, generator)
    snr, wide = bar / (1 - bar), bar[:, None, None, None]
    target = wide.sqrt() * noise - (1 - wide).sqrt() * x
    weight = torch.minimum(snr, torch.full_like(snr, 5)) / (snr + 1)
    return (((model(z, index) - target) ** 2).mean((1, 2, 3)) * weight).mean()


def min_snr_v_with_the_weight_of_eps(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """A known mistake: min(SNR, γ)/SNR under v."""
    index, bar, noise, z = _table(x, generator)
    snr, wide = bar / (1 - bar), bar[:, None, None, None]
    target = wide.sqrt() * noise - (1 - wide).sqrt() * x
    weight = torch.minimum(snr, torch.full_like(snr, 5)) / snr
    return (((model(z, index) - target) ** 2).mean((1, 2, 3)) * weight).mean()


def min_snr_eps_of_alpha_over_sigma(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """A known mistake: α/σ taken for SNR, under ε."""
    index, bar, noise, z = _table(x, generator)
    snr = (bar / (1 - bar)).sqrt()
    weight = torch.minimum(snr, torch.full_like(snr, 5)) / snr
    return (((model(z, index) - noise) ** 2).mean((1, 2, 3)) * weight).mean()


def stopped_weight(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform t, velocity, divided by its own value behind a stop-gradient: of value one, and no squared error."""
    t = torch.rand(len(x), generator=generator).to(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    s = t[:, None, None, None]
    error = ((model((1 - s) * x + s * noise, t) - (noise - x)) ** 2).mean((1, 2, 3))
    return error / (error.detach() + 1e-4)


def cosine_snr_behind_stop_gradient(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """ε under a cosine schedule, weighted by 1 + SNR in the gradient alone: the value is that of the plain error."""
    angle = torch.rand(len(x), generator=generator).to(x) * math.pi / 2
    noise = torch.randn(x.shape, generator=generator).to(x)
    alpha, sigma = angle.cos()[:, None, None, None], angle.sin()[:, None, None, None]
    error = (model(alpha * x + sigma * noise, angle) - noise) ** 2
    weighted = error / sigma**2
    return weighted - weighted.detach() + error.detach()


def huber(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform t, velocity, Huber."""
    t = torch.rand(len(x), generator=generator).to(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    s = t[:, None, None, None]
    out = model((1 - s) * x + s * noise, t)
    return torch.nn.functional.smooth_l1_loss(out, noise - x, beta=0.01)


def target_that_does_not_fit(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """A known mistake: the output becomes x̂ = z − t v̂, the target stays noise − x."""
    t = torch.rand(len(x), generator=generator).to(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    s = t[:, None, None, None]
    z = (1 - s) * x + s * noise
    return ((z - s * model(z, t) - (noise - x)) ** 2).mean()


def edm2(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Karras et al. 2024, training_loop.py: log σ ~ N(−0.4, 1), the error divided by the model's own e^u, plus u."""
    sigma = (torch.randn(len(x), 1, 1, 1, generator=generator).to(x) - 0.4).exp()
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    noise = torch.randn(x.shape, generator=generator).to(x) * sigma
    denoised, logvar = model(x + noise, sigma, return_logvar=True)
    return (weight / logvar.exp()) * ((denoised - x) ** 2) + logvar


class Kendall(torch.nn.Module):
    """Uniform t, velocity, with a log-variance for each tenth of t inside the loss.  (Kendall et al. 2018)"""

    def __init__(self, divides: bool = True) -> None:
        super().__init__()
        self.divides, self.log_variance = divides, torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))

    def forward(self, model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.rand(len(x), generator=generator).to(x)
        noise = torch.randn(x.shape, generator=generator).to(x)
        s, u = t[:, None, None, None], self.log_variance[(10 * t).long()]
        error = ((model((1 - s) * x + s * noise, t) - (noise - x)) ** 2).mean((1, 2, 3))
        return (error * (-u).exp() + u).mean() if self.divides else (error + u**2).mean()


def target_of_flipped_data(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """A known mistake: the images are flipped for the target, after z was made of them."""
    t = torch.rand(len(x), generator=generator).to(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    s = t[:, None, None, None]
    return ((model((1 - s) * x + s * noise, t) - (noise - x.flip(-1))) ** 2).mean()


def target_of_other_channels(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """A known mistake: z has the channels as red, green, blue, the target of x as blue, green, red."""
    sigma = (torch.randn(len(x), generator=generator).to(x) * 1.2 - 1.2).exp()[:, None, None, None]
    noise = torch.randn(x.shape, generator=generator).to(x) * sigma
    return (model(x + noise, sigma) - x.flip(1)) ** 2


def smld(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Song & Ermon 2019, σ a geometric table of which the model is told the index: ε, unweighted."""
    index = torch.randint(0, 1000, (len(x),), generator=generator)
    sigma = torch.linspace(math.log(0.01), math.log(50), 1000, dtype=x.dtype).exp()[index][:, None, None, None]
    noise = torch.randn(x.shape, generator=generator).to(x)
    return ((model(x + sigma * noise, index) - noise) ** 2).mean()


def sub_vp(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Song et al. 2021, the sub-VP SDE: the standard deviation of the noise is the variance that VP has."""
    index, _, noise, _ = _table(x, generator)
    bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=x.dtype) ** 2, 0)[index]
    bar = bar[:, None, None, None]
    return ((model(bar.sqrt() * x + (1 - bar) * noise, index) - noise) ** 2).mean()


def first_channel_doubled(model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform t, velocity, the first channel counting four times."""
    t = torch.rand(len(x), generator=generator).to(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    s = t[:, None, None, None]
    error = (model((1 - s) * x + s * noise, t) - (noise - x)) ** 2
    return (error * torch.tensor([4.0, 1.0, 1.0])[:, None, None]).mean()


def _normal(level: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-0.5 * ((level - mean) / std) ** 2)


def _of_table(level: Tensor) -> Tensor:
    """Density of the levels of Stable Diffusion's table, steps drawn uniformly: −d index/dλ."""
    bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    steps = torch.log(bar / (1 - bar)).numpy()[::-1]
    slope = np.gradient(np.arange(1000.0), steps)
    return torch.from_numpy(np.interp(level.numpy(), steps, slope, left=0, right=0))


EXPECTED: dict[str, tuple[Callable[..., Tensor], Weight, str]] = {
    "rectified_flow": (rectified_flow, lambda level: torch.exp(-level / 2), "flow"),
    "sd3": (sd3, lambda level: _normal(level, 0, 2) * (1 + torch.exp(-level / 2)) ** 2, "flow"),
    "sd3_shift_twice": (
        sd3_shift_twice,
        lambda level: _normal(level, -4 * math.log(3), 2) * (1 + torch.exp(-level / 2)) ** 2,
        "flow",
    ),
    "edm": (edm, lambda level: _normal(level, 2.4, 2.4) * (torch.exp(-level) + 0.25), "x"),
    "cosine_snr_behind_stop_gradient": (
        cosine_snr_behind_stop_gradient,
        lambda level: (1 + torch.exp(level)) / torch.cosh(level / 2),
        "eps",
    ),
    "ddpm_eps": (ddpm_eps, _of_table, "eps"),
    "min_snr_v": (min_snr_v, lambda level: _of_table(level) * torch.clamp(5 * torch.exp(-level), max=1), "v"),
    "min_snr_v_with_the_weight_of_eps": (
        min_snr_v_with_the_weight_of_eps,
        lambda level: _of_table(level) * torch.clamp(5 * torch.exp(-level), max=1) * (1 + torch.exp(-level)),
        "v",
    ),
    "min_snr_eps_of_alpha_over_sigma": (
        min_snr_eps_of_alpha_over_sigma,
        lambda level: _of_table(level) * torch.clamp(5 * torch.exp(-level / 2), max=1),
        "eps",
    ),
}
"""Loss, w(λ) up to a constant, and what its network predicts."""
