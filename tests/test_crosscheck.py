"""The same quantities by other people's code: scipy's distributions, sympy's algebra, diffusers, azula."""

import math
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
from scipy import stats
from torch import Tensor

from paperlib import loss_weights, objectives, predictions, process, schedules, weightings
from paperlib.schedules import TruncatedSchedule

F64 = torch.float64
GRID = torch.linspace(-12, 12, 201, dtype=F64)

# scipy: a schedule is a distribution of λ -----------------------------------------------------------------------------


def truncated_normal(mean: float, std: float, low: float, high: float) -> Any:
    return stats.truncnorm((low - mean) / std, (high - mean) / std, loc=mean, scale=std)


@pytest.mark.parametrize("ends", [(-15.0, 15.0), (-8.7, 12.4), (-14.0, -5.0), (6.0, 14.0), (1.0, 1.5)])
@pytest.mark.parametrize(
    ("family", "distribution"),
    [
        (schedules.Cosine, stats.hypsecant(scale=2)),
        (lambda low, high: schedules.Cosine(low, high, shift=1.5), stats.hypsecant(loc=3, scale=2)),
        (schedules.FlowMatchingOT, stats.logistic(scale=2)),
        (schedules.EDMTraining, lambda low, high: truncated_normal(2.4, 2.4, low, high)),
        (
            lambda low, high: schedules.LogitNormal(low, high, mean=0.5, std=1.2),
            lambda low, high: truncated_normal(-1, 2.4, low, high),
        ),
        (schedules.LinearLogSNR, lambda low, high: stats.uniform(low, high - low)),
        (lambda low, high: schedules.Laplace(low, high, mean=1, scale=2), stats.laplace(loc=1, scale=2)),
        (lambda low, high: schedules.Cauchy(low, high, median=-1, scale=2), stats.cauchy(loc=-1, scale=2)),
        (lambda low, high: schedules.FlowMatchingOT(low, high).shifted(1.5), stats.logistic(loc=1.5, scale=2)),
    ],
    ids=[
        "cosine",
        "cosine, shifted",
        "flow matching",
        "EDM training",
        "logit-normal",
        "linear log-SNR",
        "Laplace",
        "Cauchy",
        "flow matching, shifted",
    ],
)
def test_schedules_are_the_distributions_of_scipy(family: Any, distribution: Any, ends: tuple[float, float]) -> None:
    schedule = family(*ends)
    level = np.linspace(*ends, 101)
    if callable(distribution):  # truncated already
        frozen = distribution(*ends)
        density, survival = frozen.pdf(level), frozen.sf(level)
    else:
        sf, cdf = distribution.sf, distribution.cdf
        in_upper_tail = distribution.cdf(ends[0]) > 0.5
        mass = sf(ends[0]) - sf(ends[1]) if in_upper_tail else cdf(ends[1]) - cdf(ends[0])
        above = sf(level) - sf(ends[1]) if in_upper_tail else cdf(ends[1]) - cdf(level)
        density, survival = distribution.pdf(level) / mass, above / mass
    np.testing.assert_allclose(schedule.density(torch.from_numpy(level)).numpy(), density, rtol=1e-9)
    np.testing.assert_allclose(schedule.time(torch.from_numpy(level)).numpy(), survival, atol=1e-10)


@pytest.mark.parametrize(("a", "b"), [(1.5, 1.0), (0.3, 8.0), (8.0, 0.5), (20.0, 20.0), (0.4, 0.4), (1.0, 1.0)])
def test_beta_times_are_those_of_scipy(a: float, b: float) -> None:
    level = torch.linspace(-14, 14, 281, dtype=F64)
    schedule, flow_time = schedules.Beta(-15, 15, a=a, b=b), torch.sigmoid(-level / 2).numpy()
    ends = stats.beta.cdf(torch.sigmoid(torch.tensor([7.5, -7.5], dtype=F64)).numpy(), a, b)
    expected = (stats.beta.cdf(flow_time, a, b) - ends[1]) / (ends[0] - ends[1])
    np.testing.assert_allclose(schedule.time(level).numpy(), expected, atol=1e-11)
    slope = stats.beta.pdf(flow_time, a, b) * flow_time * (1 - flow_time) / 2
    np.testing.assert_allclose(schedule.density(level).numpy(), slope / (ends[0] - ends[1]), rtol=1e-9)


# sympy: Table 1 from the definitions, without p(λ) or k(λ) of ours ----------------------------------------------------

LEVEL = sp.Symbol("lambda", real=True)
ALPHA, SIGMA = 1 / sp.sqrt(1 + sp.exp(-LEVEL)), 1 / sp.sqrt(1 + sp.exp(LEVEL))
COSINE_TIME = 2 / sp.pi * sp.atan(sp.exp(-LEVEL / 2))
FLOW_TIME = 1 / (1 + sp.exp(LEVEL / 2))
EDM_TIME = (1 - sp.erf((LEVEL - sp.Rational(12, 5)) / (sp.Rational(12, 5) * sp.sqrt(2)))) / 2
HALF = sp.Rational(1, 2)


def factor(target: Any) -> Any:
    """k(λ): the square of d target / d ε at fixed z, with x = (z − σ ε)/α."""
    z, eps = sp.symbols("z epsilon")
    return sp.diff(target((z - SIGMA * eps) / ALPHA, eps, z), eps) ** 2


def f_target(x: Any, eps: Any, z: Any) -> Any:
    noise = sp.exp(-LEVEL)
    skip, out = HALF**2 / (noise + HALF**2), HALF * sp.sqrt(noise) / sp.sqrt(noise + HALF**2)
    return (x - skip * z / ALPHA) / out


def sech(value: Any) -> Any:
    return 1 / sp.cosh(value)


SNR = sp.exp(LEVEL)
NORMAL = sp.exp(-((LEVEL - sp.Rational(12, 5)) ** 2) / (2 * sp.Rational(12, 5) ** 2))
SYMBOLIC: dict[str, tuple[Any, Any, Any, Any]] = {
    # time, target, c(λ), w(λ) as printed; Min-SNR on either side of its kink
    "ELBO": (COSINE_TIME, lambda x, eps, z: eps, -1 / sp.diff(COSINE_TIME, LEVEL), sp.Integer(1)),
    "IDDPM": (COSINE_TIME, lambda x, eps, z: eps, 1, sech(LEVEL / 2)),
    "EDM": (EDM_TIME, f_target, 1, NORMAL * (1 / SNR + HALF**2)),
    "v-prediction, cosine": (COSINE_TIME, lambda x, eps, z: ALPHA * eps - SIGMA * x, 1, sp.exp(-LEVEL / 2)),
    "Flow matching, OT": (FLOW_TIME, lambda x, eps, z: eps - x, 1, sp.exp(-LEVEL / 2)),
    "InDI": (FLOW_TIME, lambda x, eps, z: x, 1, sp.exp(-LEVEL) * sech(LEVEL / 4) ** 2),
    "P2": (COSINE_TIME, lambda x, eps, z: eps, 1 / (1 + SNR), sech(LEVEL / 2) / (1 + SNR)),
    "Min-SNR": (COSINE_TIME, lambda x, eps, z: x, sp.Min(SNR, 5), sech(LEVEL / 2) * sp.Min(1, 5 / SNR)),
}
POINTS = [sp.Rational(value, 7) for value in (-60, -33, -8, 1, 10, 12, 29, 61)]


@pytest.mark.parametrize("name", SYMBOLIC)
def test_table_1_by_sympy(name: str) -> None:
    """p c k over the printed w is the same number at every level, to thirty digits; ours is the printed w."""
    time, target, loss_weight, printed = SYMBOLIC[name]
    implied = -sp.diff(time, LEVEL) * loss_weight * factor(target)
    ratios = [sp.N((implied / printed).subs(LEVEL, point), 40) for point in POINTS]
    assert all(abs(ratio / ratios[0] - 1) < sp.Float(10) ** -30 for ratio in ratios)

    exact = np.array([float(sp.N(printed.subs(LEVEL, point), 20)) for point in POINTS])
    ours = weightings.TABLE_1[name](torch.tensor([float(point) for point in POINTS], dtype=F64)).numpy()
    np.testing.assert_allclose(ours / exact, ours[0] / exact[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("eps", lambda x, eps, z: eps),
        ("x", lambda x, eps, z: x),
        ("score", lambda x, eps, z: -eps / SIGMA),
        ("v", lambda x, eps, z: ALPHA * eps - SIGMA * x),
        ("flow", lambda x, eps, z: eps - x),
        ("F", f_target),
    ],
)
def test_mse_factors_by_sympy(name: str, target: Any) -> None:
    symbolic = factor(target)
    exact = [float(sp.N(symbolic.subs(LEVEL, point), 20)) for point in POINTS]
    ours = predictions.get(name).mse_factor(torch.tensor([float(point) for point in POINTS], dtype=F64))
    np.testing.assert_allclose(ours.numpy(), exact, rtol=1e-12)


def test_printed_monotone_column_by_sympy() -> None:
    """The slope of log w, derived by sympy, is negative throughout; the erratum: FM-OT and InDI belong here too."""
    for name in ("v-prediction, cosine", "Flow matching, OT", "InDI"):
        slope = sp.lambdify(LEVEL, sp.diff(sp.log(SYMBOLIC[name][3]), LEVEL))
        assert all(slope(value) < 0 for value in np.linspace(-30, 30, 601))


# diffusers ------------------------------------------------------------------------------------------------------------


def test_edm_sampling_levels_are_those_of_diffusers() -> None:
    from diffusers import EDMEulerScheduler

    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    theirs.set_timesteps(33)
    t = torch.linspace(1, 0, 33, dtype=F64)
    ours = process.sigma_ve_from_logsnr(schedules.EDMSampling().logsnr(t))
    np.testing.assert_allclose(ours.numpy(), theirs.sigmas[:33].double().numpy(), rtol=1e-5)


def discrete_ddpm(steps: int = 1000) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=steps, beta_start=0.1 / steps, beta_end=20.0 / steps)


def test_ddpm_betas_tend_to_linear_beta() -> None:
    schedule = schedules.LinearBeta(None, 30)
    errors = []
    for steps in (1000, 10_000):
        level = process.logsnr_from_alphas_cumprod(discrete_ddpm(steps).alphas_cumprod.double())
        t = torch.arange(1, steps + 1, dtype=F64) / steps
        inside = level > schedule.ends[0]
        errors.append((schedule.time(level[inside]) - t[inside]).abs().max().item())
    assert errors[0] < 5e-3
    assert errors[1] < errors[0] / 5  # of first order in 1/steps


def test_snr_is_that_of_diffusers() -> None:
    from diffusers.training_utils import compute_snr

    scheduler, index = discrete_ddpm(), torch.tensor([0, 100, 500, 999])
    level = process.logsnr_from_alphas_cumprod(scheduler.alphas_cumprod.double())[index]
    np.testing.assert_allclose(
        process.snr_from_logsnr(level).numpy(), compute_snr(scheduler, index).double().numpy(), rtol=1e-3
    )


def random_images(size: int = 4) -> tuple[Tensor, Tensor, Tensor, Any, Tensor]:
    """x, ε, the index of each example in the chain of diffusers, its scheduler, and λ."""
    scheduler, index = discrete_ddpm(), torch.tensor([3, 200, 600, 999])
    x, eps = torch.randn(2, size, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, eps, index, scheduler, process.logsnr_from_alphas_cumprod(scheduler.alphas_cumprod[index].double())


def test_diffuse_and_v_are_those_of_diffusers() -> None:
    x, eps, index, scheduler, level = random_images()
    z = process.diffuse(x.double(), eps.double(), level)
    torch.testing.assert_close(z.float(), scheduler.add_noise(x, eps, index), rtol=1e-4, atol=1e-4)
    velocity = predictions.V.target(x.double(), eps.double(), level)
    torch.testing.assert_close(velocity.float(), scheduler.get_velocity(x, eps, index), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x")])
def test_x_from_an_output_is_that_of_diffusers(theirs: str, ours: str) -> None:
    from diffusers import DDPMScheduler

    x, eps, index, scheduler, level = random_images()
    scheduler = DDPMScheduler.from_config(scheduler.config, prediction_type=theirs, clip_sample=False)
    z = scheduler.add_noise(x, eps, index)
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    x_hat = predictions.get(ours).to_x(output.double(), z.double(), level).float()
    for row, step in enumerate(index.tolist()):
        expected = scheduler.step(output[row], step, z[row]).pred_original_sample
        torch.testing.assert_close(x_hat[row], expected, rtol=1e-3, atol=1e-3)


def test_one_ancestral_step_is_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    x, eps, _, scheduler, _ = random_images()
    scheduler = DDPMScheduler.from_config(scheduler.config, clip_sample=False, variance_type="fixed_small")
    levels = process.logsnr_from_alphas_cumprod(scheduler.alphas_cumprod.double())
    for step in (10, 300, 999):
        z = scheduler.add_noise(x, eps, torch.full((4,), step)).double()
        x_hat = predictions.EPS.to_x(eps.double(), z, levels[step])
        mean, std = process.posterior(z, x_hat, levels[step], levels[step - 1])
        theirs = scheduler.step(eps, step, z.float(), generator=torch.Generator().manual_seed(3)).prev_sample
        noise = torch.randn(eps.shape, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close((mean + std * noise).float(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("prediction", "plus_one"), [("eps", 0.0), ("v", 1.0)])
def test_min_snr_is_that_of_diffusers_training_scripts(prediction: str, plus_one: float) -> None:
    """They weigh the ε error by min(SNR, γ)/SNR and the v error by min(SNR, γ)/(SNR + 1)."""
    cosine, gamma = schedules.Cosine(-12, 12), 5.0
    published = weightings.Custom(
        lambda level: torch.log(level.exp().clamp(max=gamma) / (level.exp() + plus_one)),
    )
    implied = objectives.PublishedLoss(predictions.get(prediction), cosine, published).weighting
    ours = objectives.PublishedLoss(predictions.get(prediction), cosine, loss_weights.MinSNR(gamma)).weighting
    torch.testing.assert_close(ours(GRID), implied(GRID), rtol=1e-10, atol=0)
    level = torch.linspace(-12, 12, 201, dtype=F64)
    ratio = implied(level) / weightings.MinSNR(gamma)(level)
    torch.testing.assert_close(ratio, ratio[:1].expand(201), rtol=1e-10, atol=0)


def test_flow_shift_is_that_of_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    for shift in (1.0, 3.0, 7.0):
        sigmas = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.double()[1:]  # the first is noise alone
        t = torch.arange(999, 0, -1, dtype=F64) / 1000
        level = schedules.FlowMatchingOT(-80, 80).shifted(schedules.flow_shift(shift)).logsnr(t)
        np.testing.assert_allclose(process.flow_time_from_logsnr(level).numpy(), sigmas.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "schedule"),
    [("logit_normal", schedules.LogitNormal(-60, 60, mean=0.4, std=1.3)), ("mode", schedules.Mode(-60, 60, scale=1.1))],
    ids=["logit-normal", "mode"],
)
def test_flow_times_are_drawn_as_in_diffusers(scheme: str, schedule: TruncatedSchedule) -> None:
    """Quantiles of 200,000 of their draws; a quantile of probability q has a standard error of √(q(1−q)/n) in q."""
    from diffusers.training_utils import compute_density_for_timestep_sampling

    drawn = compute_density_for_timestep_sampling(
        scheme, 200_000, logit_mean=0.4, logit_std=1.3, mode_scale=1.1, generator=torch.Generator().manual_seed(0)
    )
    q = torch.linspace(0.02, 0.98, 49, dtype=F64)
    level = process.logsnr_from_flow_time(torch.quantile(drawn.double(), q))
    assert ((schedule.time(level) - q).abs() < 5 * (q * (1 - q) / 200_000).sqrt()).all()


# azula ----------------------------------------------------------------------------------------------------------------


def azula_schedules() -> dict[str, tuple[Any, TruncatedSchedule, float]]:
    from azula import noise

    end = 2 * math.log(1e-3)
    floor = 1e-3
    cosine_low = 2 * math.log(floor / math.sqrt(1 - floor**2))
    return {
        "VE is linear in log-SNR": (
            noise.VESchedule(0.002, 80.0),
            schedules.LinearLogSNR(-2 * math.log(80), -2 * math.log(0.002)),
            1e-12,
        ),
        # with equal floors α + σ is constant, hence flow matching's time linear in theirs
        "rectified is flow matching": (
            noise.RectifiedSchedule(alpha_min=floor, sigma_min=floor),
            schedules.FlowMatchingOT(end, -end),
            1e-12,
        ),
        # theirs reaches λ = ∞ at t = 0, ours is cut at 30: 2e-7 of the time
        "cosine": (noise.CosineSchedule(floor, 0.0), schedules.Cosine(cosine_low, 30), 1e-6),
        "VP is linear β from zero": (
            noise.VPSchedule(floor, 0.0),
            schedules.LinearBeta(None, 30, beta_min=1e-9, beta_max=-4 * math.log(floor)),
            1e-6,
        ),
    }


@pytest.mark.parametrize(
    "name", ["VE is linear in log-SNR", "rectified is flow matching", "cosine", "VP is linear β from zero"]
)
def test_schedules_are_those_of_azula(name: str) -> None:
    theirs, ours, tolerance = azula_schedules()[name]
    t = torch.linspace(0.01, 0.99, 99, dtype=F64)
    alpha, sigma = theirs(t)
    level = 2 * torch.log(alpha / sigma)  # their SNR is α/σ
    torch.testing.assert_close(ours.time(level), t, atol=tolerance, rtol=0)


def test_alpha_and_sigma_are_those_of_azula() -> None:
    """Theirs, on the cosine schedule without a floor, are variance preserving as ours are."""
    theirs, ours, _ = azula_schedules()["cosine"]
    t = torch.linspace(0.01, 0.99, 99, dtype=F64)
    alpha, sigma = theirs(t)
    level = ours.logsnr(t)
    torch.testing.assert_close(process.alpha(level), alpha, atol=1e-6, rtol=0)
    torch.testing.assert_close(process.sigma(level), sigma, atol=1e-6, rtol=0)
