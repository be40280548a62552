"""The same trajectories by other people's samplers, diffusers and azula, for the same noise at the same levels.

Their conventions are mapped to ours, and back, by the functions of :mod:`paperlib.process` alone.  Where their code
permits it is run in float64, and the two agree to rounding; where it casts to float32, to that.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import predictions, process
from paperlib.engine import sampling
from paperlib.oracles import Gaussian

VARIANCES = torch.tensor([0.04, 0.3, 1.0, 4.0], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
ORACLE = Gaussian(MEAN, torch.diag(VARIANCES))
DENOISE = sampling.NetworkDenoiser(ORACLE, predictions.EPS)
STEPS = 25


def noise(seed: int = 0) -> Tensor:
    return torch.randn((16, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eps_hat(z: Tensor, level: Tensor) -> Tensor:
    return ORACLE(z, level.expand(len(z)))


def trajectory(name: str, z: Tensor, levels: Tensor, **options: Any) -> list[Tensor]:
    """z at every level, and the sample."""
    seen: list[Tensor] = []
    final = sampling.get(name)(DENOISE, z, levels, callback=lambda index, logsnr, z, x_hat: seen.append(z), **options)
    return [*seen, final]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.double(), rtol=tolerance, atol=tolerance)


# diffusers: DDIM and DDPM, in float64 --------------------------------------------------------------------------------


def in_double(scheduler: Any) -> tuple[Any, Tensor]:
    """A scheduler of diffusers whose ᾱ are float64, and its levels from the noisiest on."""
    scheduler.set_timesteps(STEPS)
    scheduler.one = scheduler.one.double() if hasattr(scheduler, "one") else None
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas_cumprod = (1 - scheduler.betas).cumprod(0)
    return scheduler, process.logsnr_from_alphas_cumprod(scheduler.alphas_cumprod[scheduler.timesteps])


def walk(scheduler: Any, levels: Tensor, z: Tensor, **options: Any) -> list[Tensor]:
    """z before every step of theirs, and after the last."""
    seen = [z]
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        z = scheduler.step(eps_hat(z, level), t, z, **options).prev_sample
        seen.append(z)
    return seen


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim_is_that_of_diffusers(beta_schedule: str, eta: float) -> None:
    from diffusers import DDIMScheduler

    scheduler, levels = in_double(DDIMScheduler(beta_schedule=beta_schedule, clip_sample=False))
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    theirs = walk(scheduler, levels, noise(), eta=eta, generator=generators[0])
    ours = trajectory("ddim", noise(), levels, eta=eta, generator=generators[1])
    assert_same(ours, theirs, 1e-10)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_ddpm_is_that_of_diffusers(beta_schedule: str) -> None:
    from diffusers import DDPMScheduler

    scheduler, levels = in_double(
        DDPMScheduler(beta_schedule=beta_schedule, clip_sample=False, variance_type="fixed_small")
    )
    theirs = walk(scheduler, levels, noise(), generator=torch.Generator().manual_seed(5))
    ours = trajectory("ddpm", noise(), levels, generator=torch.Generator().manual_seed(5))
    assert_same(ours, theirs, 1e-10)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_ddim_inversion_is_that_of_diffusers(beta_schedule: str) -> None:
    """Theirs starts at ᾱ of step 0 of 1000 and goes up."""
    from diffusers import DDIMInverseScheduler

    scheduler = DDIMInverseScheduler(beta_schedule=beta_schedule, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(STEPS)
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas_cumprod = (1 - scheduler.betas).cumprod(0)
    scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    kept = torch.cat([scheduler.initial_alpha_cumprod[None], scheduler.alphas_cumprod[scheduler.timesteps[1:]]])
    levels = process.logsnr_from_alphas_cumprod(kept)
    z, theirs = noise(), []
    for t, level in zip(scheduler.timesteps[1:], levels[:-1], strict=True):
        theirs.append(z)
        z = scheduler.step(eps_hat(z, level), t, z).prev_sample
    ours: list[Tensor] = []
    final = sampling.ddim_inversion(
        DENOISE, noise(), levels.flip(0), callback=lambda index, logsnr, z, x_hat: ours.append(z)
    )
    assert_same([*ours, final], [*theirs, z], 1e-10)


# diffusers: samplers in σ_VE -----------------------------------------------------------------------------------------


def ve_levels(scheduler: Any) -> Tensor:
    """Its levels, each once; it ends with σ = 0, where ours return x̂."""
    return process.logsnr_from_sigma_ve(scheduler.sigmas[:-1].double()).unique()


@pytest.mark.parametrize("karras", [True, False])
def test_ddim_is_the_euler_method_of_diffusers(karras: bool) -> None:
    """Theirs casts to float32."""
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(use_karras_sigmas=karras)
    scheduler.set_timesteps(STEPS)
    levels, sample, theirs = ve_levels(scheduler), process.to_ve(noise(), ve_levels(scheduler)[0]), []
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        theirs.append(process.from_ve(sample.double(), level))
        model_output = eps_hat(scheduler.scale_model_input(sample, t).double(), level)
        sample = scheduler.step(model_output, t, sample).prev_sample
    assert_same(trajectory("ddim", noise(), levels), [*theirs, sample], 1e-4)


def test_heun_is_that_of_diffusers() -> None:
    from diffusers import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = scheduler.sigmas.double()
    levels, theirs = ve_levels(scheduler), []
    sample = process.to_ve(noise(), levels[0])
    for index, (t, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True)):
        level = process.logsnr_from_sigma_ve(sigma)
        if index % 2 == 0:  # every other evaluation is that of the corrector
            theirs.append(process.from_ve(sample, level))
        model_output = eps_hat(scheduler.scale_model_input(sample, t), level)
        sample = scheduler.step(model_output, t, sample).prev_sample
    assert_same(trajectory("heun", noise(), levels), [*theirs, sample], 1e-10)


def dpm_solver(steps: int) -> tuple[Any, Tensor]:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", use_karras_sigmas=True
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    return scheduler, ve_levels(scheduler)


def test_dpmpp_2m_is_that_of_diffusers() -> None:
    """The whole of theirs, which casts to float32."""
    scheduler, levels = dpm_solver(STEPS)
    theirs = walk(scheduler, levels, noise())
    assert_same(trajectory("dpmpp_2m", noise(), levels), theirs, 2e-5)


def test_steps_of_dpmpp_2m_are_those_of_diffusers() -> None:
    """Its two kinds of step, without the cast."""
    scheduler, levels = dpm_solver(STEPS)
    sample, before, theirs = noise(), None, []
    for index, level in enumerate(levels):
        scheduler._step_index = index
        theirs.append(sample)
        x_hat = scheduler.convert_model_output(eps_hat(sample, level), sample=sample)
        if before is None or index == len(levels) - 1:
            sample = scheduler.dpm_solver_first_order_update(x_hat, sample=sample)
        else:
            sample = scheduler.multistep_dpm_solver_second_order_update([before, x_hat], sample=sample)
        before = x_hat
    assert_same(trajectory("dpmpp_2m", noise(), levels), [*theirs, sample], 1e-10)


# azula, in float64 and in three scalings of z ------------------------------------------------------------------------

Scaling = Callable[[Tensor, Tensor], Tensor]


def unchanged(z: Tensor, logsnr: Tensor) -> Tensor:
    return z


def azula_scalings() -> dict[str, tuple[Any, Callable[[Tensor], Tensor], Scaling, Scaling]]:
    """Schedule of azula, λ from its time, z from its x_t, and back."""
    from azula import noise as theirs

    ve, cosine = theirs.VESchedule(0.02, 40.0), theirs.CosineSchedule(1e-3, sigma_min=0.0)
    flow = theirs.RectifiedSchedule(alpha_min=0.0, sigma_min=0.0)
    return {
        "VE": (ve, lambda t: process.logsnr_from_sigma_ve(ve.sigma(t)), process.from_ve, process.to_ve),
        "flow": (flow, process.logsnr_from_flow_time, process.from_flow, process.to_flow),
        "VP": (
            cosine,
            lambda t: process.logsnr_from_alphas_cumprod(cosine.alpha(t) ** 2),
            unchanged,
            unchanged,
        ),
    }


def azula_walk(name: str, scaling: str, **options: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    """z at every level of theirs, the levels, and where it started."""
    from azula import denoise, sample

    schedule, logsnr_of, from_theirs, to_theirs = azula_scalings()[scaling]

    class Exact(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> denoise.DiracPosterior:
            logsnr = logsnr_of(t)
            return denoise.DiracPosterior(ORACLE.denoise(from_theirs(x_t, logsnr), logsnr.expand(len(x_t))))

    sampler = getattr(sample, name)(
        Exact(), start=0.99, stop=0.01, steps=STEPS, silent=True, dtype=torch.float64, **options
    )
    levels = logsnr_of(sampler.timesteps)
    x_t, seen = to_theirs(noise(), levels[0]), [noise()]
    torch.manual_seed(3)
    for t, s, level in zip(sampler.timesteps[:-1], sampler.timesteps[1:], levels[1:], strict=True):
        x_t = sampler.step(x_t, t, s)
        seen.append(from_theirs(x_t, level))
    return seen, levels, noise()


@pytest.mark.parametrize("scaling", ["VE", "flow", "VP"])
@pytest.mark.parametrize(
    ("ours", "options", "theirs", "their_options"),
    [
        ("ddim", {}, "EulerSampler", {}),
        ("ddim", {"eta": 0.6}, "DDIMSampler", {"eta": 0.36}),  # their η is the square of Song's
        ("ddpm", {}, "DDPMSampler", {}),
        ("heun", {}, "HeunSampler", {}),
    ],
)
def test_trajectories_are_those_of_azula(
    ours: str, options: dict[str, Any], theirs: str, their_options: dict[str, Any], scaling: str
) -> None:
    expected, levels, z = azula_walk(theirs, scaling, **their_options)
    torch.manual_seed(3)
    found = trajectory(ours, z, levels, **options)
    assert_same(found[:-1], expected, 1e-9)
