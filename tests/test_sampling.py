"""Samplers against the closed form of a Gaussian, published algorithms written out, and diffusers' schedulers."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import predictions, process, schedules
from paperlib.engine import sampling
from paperlib.oracles import Gaussian

VARIANCES = torch.tensor([0.04, 0.3, 1.0, 4.0], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
ORACLE = Gaussian(MEAN, torch.diag(VARIANCES))
DENOISE = sampling.denoiser(ORACLE, predictions.EPS)
SCHEDULE = schedules.Cosine(-10, 10)


def noise(size: int = 16, seed: int = 0) -> Tensor:
    return sampling.prior((size, 4), torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_flow(z: Tensor, low: float, high: float) -> Tensor:
    """Where the probability-flow equation takes z from λ = low to high, and the denoiser from there.

    In VE scaling z̄ − mean grows as the standard deviation of z̄, √(s + σ̄²).
    """
    start, end = math.exp(-low), math.exp(-high)  # σ̄²
    alpha = math.sqrt(1 / (1 + start))
    grown = MEAN + (z / alpha - MEAN) * ((VARIANCES + end) / (VARIANCES + start)).sqrt()
    return MEAN + VARIANCES / (VARIANCES + end) * (grown - MEAN)


def record(calls: list[tuple[int, float]]) -> sampling.Callback:
    return lambda index, logsnr, z, x_hat: calls.append((index, logsnr.item()))


# Closed form ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [SCHEDULE, schedules.EDMSampling(), schedules.FlowMatchingOT(-9, 9)], ids=str)
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2)])
def test_the_order_of_convergence_is_that_of_the_method(
    name: str, order: int, schedule: schedules.NoiseSchedule
) -> None:
    z = noise()
    exact = exact_flow(z, *schedule.ends)
    errors = [
        (sampling.SAMPLERS[name](DENOISE, z, sampling.levels(schedule, steps)) - exact).abs().max().item()
        for steps in (250, 500, 1000)
    ]
    rates = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert rates == pytest.approx([order, order], abs=0.12)


def ancestral_variance(levels: Tensor) -> Tensor:
    """Variance of ancestral samples in each dimension: z stays Gaussian, and z_s = m z_t + n x̂ + std ε, x̂ = k z."""
    denoise = sampling.denoiser(Gaussian(0 * MEAN, torch.diag(VARIANCES)), predictions.EPS)
    variance = one = torch.ones(1, 4, dtype=torch.float64)
    for level, following in pairwise(levels):
        mean, std = process.posterior(one, denoise(one, level[None]), level, following)
        variance = mean**2 * variance + std**2
    return (denoise(one, levels[-1:]) ** 2 * variance)[0]


def test_ancestral_samples_have_the_variance_of_their_recursion() -> None:
    levels = sampling.levels(SCHEDULE, 6)
    x = sampling.ddpm(DENOISE, noise(60_000), levels, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(x.var(0), ancestral_variance(levels), rtol=0.03, atol=0)
    assert ((x.mean(0) - MEAN) / (x.var(0) / len(x)).sqrt()).abs().max() < 5


def test_the_variance_of_ancestral_samples_converges_to_that_of_the_data() -> None:
    levels = [sampling.levels(schedules.Cosine(-16, 16), steps) for steps in (6, 400, 800, 1600)]
    errors = [(ancestral_variance(grid) / VARIANCES - 1).abs().max().item() for grid in levels]
    assert errors[0] > 0.1
    assert errors[-1] < 0.02
    assert [math.log2(a / b) for a, b in pairwise(errors[1:])] == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("options", [{"churn": 40.0}, {"churn": 1e6, "churn_range": (-4.0, 4.0)}], ids=str)
def test_samples_with_churn_have_the_distribution_of_the_data(options: dict[str, Any]) -> None:
    levels, generator = sampling.levels(SCHEDULE, 120), torch.Generator().manual_seed(1)
    x = sampling.heun(DENOISE, noise(8_000), levels, generator=generator, **options)
    assert ((x.mean(0) - MEAN) / (VARIANCES / len(x)).sqrt()).abs().max() < 5
    torch.testing.assert_close(x.var(0), VARIANCES, rtol=0.1, atol=0)


@pytest.mark.parametrize("prediction", predictions.PREDICTIONS.values(), ids=predictions.PREDICTIONS)
def test_a_sampler_does_not_see_what_the_network_predicts(prediction: predictions.Prediction) -> None:
    def network(z: Tensor, logsnr: Tensor) -> Tensor:
        return predictions.EPS.convert(ORACLE(z, logsnr), z, logsnr, prediction)

    levels = sampling.levels(SCHEDULE, 12)
    expected = sampling.heun(DENOISE, noise(), levels)
    found = sampling.heun(sampling.denoiser(network, prediction), noise(), levels)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# Published algorithms ------------------------------------------------------------------------------------------------


def edm_algorithm_2(
    denoise: Callable[[Tensor, float], Tensor],
    x: Tensor,
    sigmas: list[float],
    generator: torch.Generator,
    s_churn: float,
    s_min: float,
    s_max: float,
    s_noise: float,
) -> Tensor:
    """Karras et al. 2022, Algorithm 2, line by line; ``sigmas`` end with zero."""
    steps = len(sigmas) - 1
    for t, t_next in pairwise(sigmas):
        gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        t_hat = t + gamma * t
        if gamma > 0:
            eps = s_noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + math.sqrt(t_hat**2 - t**2) * eps
        d = (x - denoise(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if t_next != 0:
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t_hat) * (d + d_next) / 2
        x = x_next
    return x


@pytest.mark.parametrize("s_churn", [0.0, 4.0, 1000.0])
def test_heun_is_the_algorithm_of_edm(s_churn: float) -> None:
    def denoise(z_ve: Tensor, sigma: float) -> Tensor:
        return MEAN + VARIANCES / (VARIANCES + sigma**2) * (z_ve - MEAN)

    levels, s_min, s_max = sampling.levels(schedules.EDMSampling(), 17), 0.05, 50.0
    sigmas = [math.exp(-level / 2) for level in levels.tolist()]
    z = noise()
    expected = edm_algorithm_2(
        denoise,
        process.to_ve(z, levels[0]),
        [*sigmas, 0.0],
        torch.Generator().manual_seed(3),
        s_churn,
        s_min,
        s_max,
        1.003,
    )
    found = sampling.heun(
        DENOISE,
        z,
        levels,
        generator=torch.Generator().manual_seed(3),
        churn=s_churn,
        churn_noise=1.003,
        churn_range=(-2 * math.log(s_max), -2 * math.log(s_min)),
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def diffusers_levels(scheduler: Any) -> Tensor:
    return process.logsnr_from_alphas_cumprod(scheduler.alphas_cumprod[scheduler.timesteps].double())


def test_ddim_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(25)
    levels, trajectory = diffusers_levels(scheduler), []
    theirs = noise()
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        trajectory.append(theirs)
        theirs = scheduler.step(ORACLE(theirs, level.expand(len(theirs))), t, theirs).prev_sample
    ours: list[Tensor] = []
    final = sampling.ddim(DENOISE, noise(), levels, callback=lambda index, logsnr, z, x_hat: ours.append(z))
    for mine, other in zip(ours, trajectory, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)  # their coefficients are float32
    torch.testing.assert_close(final, theirs, rtol=1e-5, atol=1e-5)


def test_ddpm_is_that_of_diffusers_for_the_same_noise() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(25)
    levels, generator, theirs = diffusers_levels(scheduler), torch.Generator().manual_seed(5), noise()
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        eps_hat = ORACLE(theirs, level.expand(len(theirs)))
        theirs = scheduler.step(eps_hat, t, theirs, generator=generator).prev_sample
    ours = sampling.ddpm(DENOISE, noise(), levels, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "theirs"), [("ddim", "EulerDiscreteScheduler"), ("heun", "HeunDiscreteScheduler")])
def test_steps_in_sigma_are_those_of_diffusers(name: str, theirs: str) -> None:
    import diffusers

    scheduler = getattr(diffusers, theirs)(use_karras_sigmas=True)
    scheduler.set_timesteps(15)
    sigmas = scheduler.sigmas.double()
    levels = process.logsnr_from_sigma_ve(sigmas[:-1]).unique()
    z = noise()
    sample = process.to_ve(z, levels[0])
    for t, sigma in zip(scheduler.timesteps, sigmas[:-1], strict=True):
        level = process.logsnr_from_sigma_ve(sigma).expand(len(z))
        eps_hat = ORACLE(scheduler.scale_model_input(sample, t).double(), level)
        sample = scheduler.step(eps_hat, t, sample).prev_sample.double()
    torch.testing.assert_close(sampling.SAMPLERS[name](DENOISE, z, levels), sample, rtol=1e-4, atol=1e-4)


# Guidance ------------------------------------------------------------------------------------------------------------


def conditional(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
    """A network for two classes at ±2, and their equal mixture's Gaussian stand-in for the null class."""
    centre = torch.zeros(len(z), dtype=z.dtype) if label is None else (4.0 * label - 2)
    a, s = process.expand(process.alpha(logsnr), z), process.expand(process.sigma(logsnr), z)
    return s * (z - a * centre[:, None]) / (a**2 + s**2)


LABEL = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance_extrapolates_from_the_null_class(guidance: float) -> None:
    z, logsnr = noise(4), torch.linspace(-3, 3, 4, dtype=torch.float64)
    x_label = sampling.denoiser(conditional, predictions.EPS, LABEL)(z, logsnr)
    x_null = sampling.denoiser(conditional, predictions.EPS)(z, logsnr)
    guided = sampling.denoiser(conditional, predictions.EPS, LABEL, guidance)(z, logsnr)
    torch.testing.assert_close(guided, x_null + guidance * (x_label - x_null))
    assert (x_label - x_null).abs().min() > 0.01


def test_guidance_moves_samples_away_from_the_other_class() -> None:
    levels = sampling.levels(SCHEDULE, 40)
    means = [
        sampling.ddim(sampling.denoiser(conditional, predictions.EPS, LABEL, guidance), noise(4), levels).mean(1)
        for guidance in (0.0, 1.0, 2.0)
    ]
    sign = 2.0 * LABEL - 1
    assert (sign * (means[1] - means[0]) > 1).all()
    assert (sign * (means[2] - means[1]) > 1).all()


def test_no_guidance_costs_one_evaluation() -> None:
    calls: list[Tensor | None] = []

    def network(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        calls.append(label)
        return z

    for guidance, expected in ((1.0, 1), (1.5, 2)):
        calls.clear()
        sampling.denoiser(network, predictions.X, LABEL, guidance)(noise(4), torch.zeros(4, dtype=torch.float64))
        assert len(calls) == expected


# What samplers share -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_the_callback_sees_every_level_once(name: str) -> None:
    calls: list[tuple[int, float]] = []
    levels = sampling.levels(SCHEDULE, 9)
    sampling.SAMPLERS[name](DENOISE, noise(), levels, callback=record(calls))
    assert [index for index, _ in calls] == list(range(10))
    assert [level for _, level in calls] == pytest.approx(levels.tolist())


@pytest.mark.parametrize(("name", "evaluations"), [("ddpm", 10), ("ddim", 10), ("heun", 19)])
def test_the_number_of_evaluations(name: str, evaluations: int) -> None:
    calls = 0

    def counted(z: Tensor, logsnr: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert logsnr.shape == (len(z),)
        return DENOISE(z, logsnr)

    sampling.SAMPLERS[name](counted, noise(), sampling.levels(SCHEDULE, 9))
    assert calls == evaluations


@pytest.mark.parametrize(
    ("name", "options"), [("ddim", {}), ("heun", {}), ("heun", {"churn": 9.0, "churn_range": (20, 30)})]
)
def test_deterministic_samplers_draw_nothing(name: str, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    torch.random.manual_seed(0)
    everywhere = torch.random.get_rng_state()
    sampling.SAMPLERS[name](DENOISE, noise(), sampling.levels(SCHEDULE, 5), generator=generator, **options)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.random.get_rng_state(), everywhere)


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_single_precision_gives_the_same_samples(name: str) -> None:
    levels, oracle = sampling.levels(SCHEDULE, 30), Gaussian(MEAN.float(), torch.diag(VARIANCES).float())
    sampler = sampling.SAMPLERS[name]
    z, extra = noise().float(), {} if name != "ddpm" else {"generator": torch.Generator().manual_seed(0)}
    single = sampler(sampling.denoiser(oracle, predictions.EPS), z, levels, **extra)
    assert single.dtype == torch.float32
    if name != "ddpm":  # generators draw other numbers in double precision
        torch.testing.assert_close(single.double(), sampler(DENOISE, z.double(), levels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 5, 5)])
def test_samples_have_the_shape_of_the_noise(shape: tuple[int, ...]) -> None:
    for sampler in sampling.SAMPLERS.values():
        assert sampler(lambda z, logsnr: 0.5 * z, sampling.prior(shape), sampling.levels(SCHEDULE, 2)).shape == shape


def test_levels_run_from_the_noisiest_to_the_cleanest_end() -> None:
    for schedule in (SCHEDULE, schedules.EDMSampling(), schedules.LinearLogSNR(-4, 7)):
        levels = sampling.levels(schedule, 13)
        assert (levels[0].item(), levels[-1].item()) == schedule.ends
        assert (levels.diff() > 0).all()
        assert len(levels) == 14
        assert levels.dtype == torch.float64


def test_the_levels_of_edm_are_its_own() -> None:
    steps = torch.arange(18, dtype=torch.float64) / 17
    rho = 80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    torch.testing.assert_close(sampling.levels(schedules.EDMSampling(), 17), -2 * torch.log(rho**7))


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sampling.SAMPLERS)
@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (torch.tensor([3.0]), "levels must be increasing"),
        (torch.tensor([3.0, 2.0]), "levels must be increasing .* from 3 to 2"),
        (torch.tensor([2.0, 2.0]), "levels must be increasing"),
        (torch.zeros(2, 2), "levels must be increasing"),
        (torch.tensor([0.0, math.nan]), "levels has 1 value"),
        (torch.tensor([-math.inf, 0.0]), "levels has 1 value"),
    ],
)
def test_levels_that_do_not_increase_are_refused(name: str, levels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling.SAMPLERS[name](DENOISE, noise(), levels)


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_noise_that_is_not_finite_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="z has 1 value"):
        sampling.SAMPLERS[name](DENOISE, torch.tensor([[0.0, math.nan]]), torch.tensor([0.0, 1.0]))


def test_other_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'euler'; choose one of ddpm, ddim, heun"):
        sampling.get("euler")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        sampling.levels(SCHEDULE, 0)
    with pytest.raises(ValueError, match=r"guidance 2\.0 needs labels"):
        sampling.denoiser(conditional, predictions.EPS, guidance=2.0)
    for options in ({"churn": -1.0}, {"churn_noise": 0.0}, {"churn": math.nan}):
        with pytest.raises(ValueError, match="churn must be 0 or more"):
            sampling.heun(DENOISE, noise(), sampling.levels(SCHEDULE, 2), **options)
