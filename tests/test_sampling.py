"""Samplers against the closed form of a Gaussian and published algorithms written out.

Other people's samplers are in test_samplers_crosscheck.py.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import predictions, process, schedules
from paperlib.adaptive import AdaptiveSchedule
from paperlib.engine import sampling
from paperlib.engine.evaluation import Drawing
from paperlib.oracles import Gaussian

VARIANCES = torch.tensor([0.04, 0.3, 1.0, 4.0], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
ORACLE = Gaussian(MEAN, torch.diag(VARIANCES))
DENOISE = sampling.NetworkDenoiser(ORACLE, predictions.EPS)
SCHEDULE = schedules.Cosine(-10, 10)


def noise(size: int = 16, seed: int = 0) -> Tensor:
    return torch.randn((size, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
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


CENTRED = sampling.NetworkDenoiser(Gaussian(0 * MEAN, torch.diag(VARIANCES)), predictions.EPS)


def ancestral_variance(levels: Tensor) -> Tensor:
    """Variance of ancestral samples in each dimension: z stays Gaussian, and z_s = m z_t + n x̂ + std ε, x̂ = k z."""
    denoise = CENTRED
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


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_the_variance_of_ddim_samples_converges_for_every_eta(eta: float) -> None:
    """The recursion of :func:`ancestral_variance`, with Song's ς: z_s = α x̂ + √(σ² − ς²) ε̂ + ς noise."""
    one, errors = torch.ones(1, 4, dtype=torch.float64), []
    for steps in (400, 800, 1600):
        levels, variance = sampling.levels(schedules.Cosine(-16, 16), steps), torch.ones(1, 4, dtype=torch.float64)
        for level, following in pairwise(levels):
            x_hat = CENTRED(one, level[None])
            eps_hat = (one - process.alpha(level) * x_hat) / process.sigma(level)
            fresh = (eta * process.sigma(following)) ** 2 * -torch.expm1(level - following)
            mean = process.alpha(following) * x_hat + (process.sigma(following) ** 2 - fresh).sqrt() * eps_hat
            variance = mean**2 * variance + fresh
        expected = (CENTRED(one, levels[-1:]) ** 2 * variance)[0]
        errors.append((expected / VARIANCES - 1).abs().max().item())
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([1, 1], abs=0.15)


def test_ddim_with_all_its_noise_is_ddpm() -> None:
    levels = sampling.levels(SCHEDULE, 14)
    found, expected = (
        sampler(DENOISE, noise(), levels, generator=torch.Generator().manual_seed(2), **options)
        for sampler, options in ((sampling.ddim, {"eta": 1.0}), (sampling.ddpm, {}))
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"churn": 40.0}, {"churn": 1e6, "churn_range": (-4.0, 4.0)}], ids=str)
def test_samples_with_churn_have_the_distribution_of_the_data(options: dict[str, Any]) -> None:
    levels, generator = sampling.levels(SCHEDULE, 80), torch.Generator().manual_seed(1)
    x = sampling.heun(DENOISE, noise(5_000), levels, generator=generator, **options)
    assert ((x.mean(0) - MEAN) / (VARIANCES / len(x)).sqrt()).abs().max() < 5
    torch.testing.assert_close(x.var(0), VARIANCES, rtol=0.1, atol=0)


@pytest.mark.parametrize("prediction", predictions.PREDICTIONS.values(), ids=predictions.PREDICTIONS)
def test_a_sampler_does_not_see_what_the_network_predicts(prediction: predictions.Prediction) -> None:
    def network(z: Tensor, logsnr: Tensor) -> Tensor:
        return predictions.EPS.convert(ORACLE(z, logsnr), z, logsnr, prediction)

    levels = sampling.levels(SCHEDULE, 12)
    for sampler in (sampling.ddim, sampling.heun, sampling.dpmpp_2m):
        expected = sampler(DENOISE, noise(), levels)
        found = sampler(sampling.NetworkDenoiser(network, prediction), noise(), levels)
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


def dpm_solver_pp_2m(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, levels: Tensor) -> Tensor:
    """Lu et al. 2022 (DPM-Solver++), Algorithm 2, line by line; their λ is log(α/σ), half of ours."""
    lam, alphas, sigmas = levels / 2, process.alpha(levels), process.sigma(levels)
    outputs = [denoise(x, levels[0].expand(len(x)))]
    x = sigmas[1] / sigmas[0] * x - alphas[1] * (torch.exp(-(lam[1] - lam[0])) - 1) * outputs[0]
    for i in range(2, len(levels)):
        outputs.append(denoise(x, levels[i - 1].expand(len(x))))
        h, r = lam[i] - lam[i - 1], (lam[i - 1] - lam[i - 2]) / (lam[i] - lam[i - 1])
        d = (1 + 1 / (2 * r)) * outputs[i - 1] - 1 / (2 * r) * outputs[i - 2]
        x = sigmas[i] / sigmas[i - 1] * x - alphas[i] * (torch.exp(-h) - 1) * d
    return denoise(x, levels[-1].expand(len(x)))


@pytest.mark.parametrize("schedule", [SCHEDULE, schedules.EDMSampling(), schedules.LinearLogSNR(-9, 9)], ids=str)
def test_dpmpp_2m_is_the_algorithm_of_dpm_solver(schedule: schedules.NoiseSchedule) -> None:
    levels = sampling.levels(schedule, 11)
    expected = dpm_solver_pp_2m(DENOISE, noise(), levels)
    torch.testing.assert_close(sampling.dpmpp_2m(DENOISE, noise(), levels), expected, rtol=1e-10, atol=1e-10)


# Back to noise -------------------------------------------------------------------------------------------------------


def test_inversion_converges_to_the_noise_of_the_exact_flow() -> None:
    """Backwards z̄ − mean shrinks by the same factor; the error halves with the steps, and so does that of a return."""
    low, high = -8.0, 4.0
    start = noise()
    s, e = math.exp(-low), math.exp(-high)
    grown = MEAN + (start * math.sqrt(1 + s) - MEAN) * ((VARIANCES + e) / (VARIANCES + s)).sqrt()
    clean = grown / math.sqrt(1 + e)
    errors, returns = [], []
    for steps in (200, 400, 800):
        levels, seen = sampling.levels(schedules.LinearLogSNR(low, high), steps), []
        found = sampling.ddim_inversion(DENOISE, clean, levels)
        errors.append((found - start).abs().max().item())
        sampling.ddim(DENOISE, found, levels, callback=lambda index, logsnr, z, x_hat, seen=seen: seen.append(z))
        returns.append((seen[-1] - clean).abs().max().item())
    for found in (errors, returns):
        assert [math.log2(a / b) for a, b in pairwise(found)] == pytest.approx([1, 1], abs=0.12)


def test_inversion_walks_from_the_last_level_to_the_second() -> None:
    calls: list[tuple[int, float]] = []
    levels = sampling.levels(SCHEDULE, 5)
    sampling.ddim_inversion(DENOISE, noise(), levels, callback=record(calls))
    assert [index for index, _ in calls] == [5, 4, 3, 2, 1]
    assert [level for _, level in calls] == pytest.approx(levels.flip(0)[:-1].tolist())


# Guidance ------------------------------------------------------------------------------------------------------------


def conditional(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
    """A network for two classes at ±2, and their equal mixture's Gaussian stand-in for the null class."""
    centre = torch.zeros(len(z), dtype=z.dtype) if label is None else (4.0 * label - 2)
    a, s = process.expand(process.alpha(logsnr), z), process.expand(process.sigma(logsnr), z)
    return s * (z - a * centre[:, None]) / (a**2 + s**2)


LABEL = torch.tensor([0, 1, 1, 0])


def test_predictions_that_hold_something_are_told_apart() -> None:
    class Scaled(predictions.Prediction):
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full_like(logsnr, 1 / self.scale), torch.zeros_like(logsnr)

    z, logsnr = noise(4), torch.zeros(4, dtype=torch.float64)
    for scale in (1.0, 0.5):
        denoise = sampling.NetworkDenoiser(lambda z, logsnr: z, Scaled(scale))  # type: ignore[arg-type]
        torch.testing.assert_close(denoise.at(0.0, z, logsnr), scale * z)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance_extrapolates_from_the_null_class(guidance: float) -> None:
    z, logsnr = noise(4), torch.linspace(-3, 3, 4, dtype=torch.float64)
    x_label = sampling.NetworkDenoiser(conditional, predictions.EPS, LABEL)(z, logsnr)
    x_null = sampling.NetworkDenoiser(conditional, predictions.EPS)(z, logsnr)
    guided = sampling.NetworkDenoiser(conditional, predictions.EPS, LABEL, guidance)(z, logsnr)
    torch.testing.assert_close(guided, x_null + guidance * (x_label - x_null))
    assert (x_label - x_null).abs().min() > 0.01


def test_guidance_moves_samples_away_from_the_other_class() -> None:
    levels = sampling.levels(SCHEDULE, 40)
    means = [
        sampling.ddim(sampling.NetworkDenoiser(conditional, predictions.EPS, LABEL, guidance), noise(4), levels).mean(1)
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
        sampling.NetworkDenoiser(network, predictions.X, LABEL, guidance)(noise(4), torch.zeros(4, dtype=torch.float64))
        assert len(calls) == expected


# What samplers share -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_the_callback_sees_every_level_once(name: str) -> None:
    calls: list[tuple[int, float]] = []
    levels = sampling.levels(SCHEDULE, 9)
    sampling.SAMPLERS[name](DENOISE, noise(), levels, callback=record(calls))
    assert [index for index, _ in calls] == list(range(10))
    assert [level for _, level in calls] == pytest.approx(levels.tolist())


@pytest.mark.parametrize(("name", "evaluations"), [("ddpm", 10), ("ddim", 10), ("heun", 19), ("dpmpp_2m", 10)])
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
    ("name", "options"),
    [("ddim", {}), ("heun", {}), ("heun", {"churn": 9.0, "churn_range": (20, 30)}), ("dpmpp_2m", {})],
)
def test_deterministic_samplers_draw_nothing(name: str, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    torch.random.manual_seed(0)
    everywhere = torch.random.get_rng_state()
    sampling.SAMPLERS[name](DENOISE, noise(), sampling.levels(SCHEDULE, 5), generator=generator, **options)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.random.get_rng_state(), everywhere)


def test_a_sampler_draws_as_much_noise_as_it_adds() -> None:
    """One z a step that has noise, none for the last level, none outside the range of churn."""
    levels, z = torch.linspace(-4, 4, 9, dtype=torch.float64), noise()
    for sampler, options, draws in (
        (sampling.ddpm, {}, 8),
        (sampling.ddim, {"eta": 0.2}, 8),
        (sampling.heun, {"churn": 9.0}, 8),
        (sampling.heun, {"churn": 9.0, "churn_range": (-2.5, 1.5)}, 4),
    ):
        generator, other = (torch.Generator().manual_seed(0) for _ in range(2))
        sampler(DENOISE, z, levels, generator=generator, **options)
        for _ in range(draws):
            torch.randn(z.shape, generator=other, dtype=z.dtype)
        assert torch.equal(generator.get_state(), other.get_state())


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_a_network_and_a_plain_function_give_the_same_samples(name: str) -> None:
    """What is computed once a run for a network is computed at every call for a function."""
    levels = sampling.levels(schedules.FlowMatchingOT(-9, 9), 10)
    network = sampling.NetworkDenoiser(lambda z, logsnr: torch.tanh(z) * logsnr[:, None], predictions.FPrediction(0.7))
    found, expected = (
        sampling.SAMPLERS[name](denoise, noise(), levels, generator=torch.Generator().manual_seed(0))
        for denoise in (network, lambda z, logsnr: network(z, logsnr))
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_nothing_that_a_sampler_is_given_or_gives_is_changed_later(name: str) -> None:
    """Not the noise, and not what the callback was shown, even if the denoiser returns its argument."""
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    z, levels = noise(), sampling.levels(SCHEDULE, 5)
    start, grid = z.clone(), levels.clone()
    keep = lambda index, logsnr, z, x_hat: seen.append((z, z.clone(), x_hat, x_hat.clone()))  # noqa: E731
    sampling.SAMPLERS[name](lambda z, logsnr: z, z, levels, callback=keep)
    assert torch.equal(z, start)
    assert torch.equal(levels, grid)
    for one, copy, x_hat, its_copy in seen:
        assert torch.equal(one, copy)
        assert torch.equal(x_hat, its_copy)


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_single_precision_gives_the_same_samples(name: str) -> None:
    levels, oracle = sampling.levels(SCHEDULE, 30), Gaussian(MEAN.float(), torch.diag(VARIANCES).float())
    sampler = sampling.SAMPLERS[name]
    z, extra = noise().float(), {} if name != "ddpm" else {"generator": torch.Generator().manual_seed(0)}
    single = sampler(sampling.NetworkDenoiser(oracle, predictions.EPS), z, levels, **extra)
    assert single.dtype == torch.float32
    if name != "ddpm":  # generators draw other numbers in double precision
        torch.testing.assert_close(single.double(), sampler(DENOISE, z.double(), levels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 5, 5)])
def test_samples_have_the_shape_of_the_noise(shape: tuple[int, ...]) -> None:
    for sampler in sampling.SAMPLERS.values():
        assert sampler(lambda z, logsnr: 0.5 * z, torch.randn(shape), sampling.levels(SCHEDULE, 2)).shape == shape


def test_levels_run_from_the_noisiest_to_the_cleanest_end() -> None:
    learned = AdaptiveSchedule(-6, 5, bins=20)
    learned.update(torch.linspace(-6, 5, 50), torch.linspace(0.1, 4, 50))
    for schedule in (SCHEDULE, schedules.EDMSampling(), schedules.LinearLogSNR(-4, 7), learned):
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


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_a_denoiser_of_another_shape_is_refused(name: str) -> None:
    for denoise in (lambda z, logsnr: z[:, :1], sampling.NetworkDenoiser(lambda z, logsnr: z[:, :1], predictions.V)):
        with pytest.raises(ValueError, match=r"has shape \(16, 1\), but z has \(16, 4\)"):
            sampling.SAMPLERS[name](denoise, noise(), sampling.levels(SCHEDULE, 2))


@pytest.mark.parametrize("name", [*sampling.SAMPLERS, "ddim_inversion"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_fails_at_a_level_is_caught_there(name: str, bad: float) -> None:
    levels = torch.tensor([-4.0, -1.0, 2.0, 5.0])

    def network(z: Tensor, logsnr: Tensor) -> Tensor:
        output = 0.1 * z
        output[3, 1] = torch.where(logsnr[3] == 2, bad, 0.0)
        return output

    sampler = getattr(sampling, name)
    for denoise in (sampling.NetworkDenoiser(network, predictions.V), network):
        with pytest.raises(ValueError, match="x̂ is NaN or infinite for 1 of 16 examples at log-SNR 2; look at the"):
            sampler(denoise, noise(), levels)


@pytest.mark.parametrize("wrong", [lambda z: (z, z), lambda z: None, lambda z: {"sample": z}, lambda z: z.numpy()])
@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_what_is_no_tensor_is_refused_by_its_type(name: str, wrong: Callable[[Tensor], Any]) -> None:
    given = type(wrong(noise())).__name__
    for denoise in (sampling.NetworkDenoiser(lambda z, logsnr: wrong(z), predictions.V), lambda z, logsnr: wrong(z)):
        with pytest.raises(TypeError, match=f"must be a torch.Tensor, got {given}; of a tuple"):
            sampling.SAMPLERS[name](denoise, noise(), sampling.levels(SCHEDULE, 2))


@pytest.mark.parametrize("name", ["heun", "call"])
def test_a_batch_of_one_is_not_broadcast(name: str) -> None:
    """Not by the branch of the null class, not by a label."""

    def null_of_one(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        return z[:1] if label is None else z

    def run(denoise: Any) -> Tensor:
        if name == "call":
            return denoise(noise(4), torch.zeros(4, dtype=torch.float64))
        return sampling.heun(denoise, noise(4), sampling.levels(SCHEDULE, 2))

    with pytest.raises(ValueError, match=r"output without a label has shape \(1, 4\), but z has \(4, 4\)"):
        run(sampling.NetworkDenoiser(null_of_one, predictions.V, LABEL, 2.0))
    with pytest.raises(ValueError, match=r"label must have shape \(4,\), one an example, got \(1,\)"):
        run(sampling.NetworkDenoiser(conditional, predictions.V, LABEL[:1]))


@pytest.mark.parametrize("guidance", [math.nan, math.inf])
def test_guidance_that_is_no_number_is_refused(guidance: float) -> None:
    with pytest.raises(ValueError, match="guidance must be a finite number, 1 for none; got"):
        sampling.NetworkDenoiser(conditional, predictions.EPS, LABEL, guidance)


def test_a_network_is_told_the_label_by_its_name_and_the_level_in_single_precision() -> None:
    seen: list[torch.dtype] = []

    def network(z: Tensor, logsnr: Tensor, *, label: Tensor | None = None) -> Tensor:
        seen.append(logsnr.dtype)
        return 0.1 * z

    z = noise(4).bfloat16()
    x = sampling.heun(sampling.NetworkDenoiser(network, predictions.V, LABEL, 2.0), z, sampling.levels(SCHEDULE, 3))
    assert x.dtype == torch.bfloat16
    assert set(seen) == {torch.float32}


def test_other_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'euler'; choose one of ddpm, ddim, heun"):
        sampling.get("euler")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        sampling.levels(SCHEDULE, 0)
    with pytest.raises(ValueError, match=r"guidance 2\.0 needs classes"):
        sampling.NetworkDenoiser(conditional, predictions.EPS, guidance=2.0)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="eta must lie in"):
            sampling.ddim(DENOISE, noise(), sampling.levels(SCHEDULE, 2), eta=eta)
    for options in ({"churn": -1.0}, {"churn_noise": 0.0}, {"churn": math.nan}):
        with pytest.raises(ValueError, match="churn must be 0 or more"):
            sampling.heun(DENOISE, noise(), sampling.levels(SCHEDULE, 2), **options)


def test_a_sampler_of_ones_own_has_a_name() -> None:
    mine = partial(sampling.ddim, eta=0.5)
    assert sampling.register("mine")(mine) is sampling.get("mine") is mine
    assert Drawing("mine", sampling.levels(SCHEDULE, 9)).evaluations == 10
    del sampling.SAMPLERS["mine"]
    with pytest.raises(ValueError, match="there is a sampler 'ddpm' already"):
        sampling.register("ddpm")(sampling.ddim)
