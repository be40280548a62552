"""The theorem, the corollary, the terms of the bound and their units.

Identities are held in float64 by three routes where there are three: symbols, quadrature against closed form, and Monte
Carlo within four standard errors.
"""

import math
from itertools import pairwise

import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paperlib import elbo, objectives, oracles, quadrature, schedules, weightings

F64 = torch.float64
LOW, HIGH = -12.0, 12.0
LEVELS = torch.linspace(LOW, HIGH, 49, dtype=F64)
START = torch.tensor([LOW], dtype=F64)
DATA = oracles.Gaussian.isotropic(1, 1.7)
X = torch.tensor([0.9], dtype=F64)
ALL_WEIGHTINGS = {
    **weightings.TABLE_1,
    **{name: make() for name, make in weightings.WEIGHTINGS.items() if name not in ("elbo", "iddpm", "edm")},
}


def error(logsnr: Tensor) -> Tensor:
    return DATA.eps_error_at(X, logsnr)


def kl(logsnr: Tensor) -> Tensor:
    return DATA.kl(X, logsnr)


def mixture() -> oracles.GaussianMixture:
    return oracles.GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=F64),
        torch.tensor([[-1.0], [0.8]], dtype=F64),
        torch.tensor([[[0.04]], [[0.2]]], dtype=F64),
    )


# The theorem ---------------------------------------------------------------------------------------------------------


def test_theorem_by_symbols() -> None:
    """d/dλ KL(N(αx, σ²) ‖ N(0, α²S + σ²)) = ½ E_ε(ε̂ − ε)², for any x and S."""
    u, s, x = sp.symbols("u S x", positive=True)  # u = e^λ
    divergence = (sp.log(1 + u * s) + (u * x**2 - u * s) / (1 + u * s)) / 2
    eps_error = ((u * s) ** 2 + u * x**2) / (1 + u * s) ** 2
    assert sp.simplify(u * sp.diff(divergence, u) - eps_error / 2) == 0


def test_theorem_by_differentiation() -> None:
    for schedule in (schedules.Cosine(-10, 10), schedules.EDMSampling(), schedules.LinearBeta(-10, 10)):
        t = torch.linspace(0.02, 0.98, 25, dtype=F64)
        step = 1e-5
        slope = (kl(schedule.logsnr(t + step)) - kl(schedule.logsnr(t - step))) / (2 * step)
        rate = elbo.path_kl_rate(error, schedule, t)
        assert (rate < 0).all()
        torch.testing.assert_close(rate, slope, rtol=1e-5, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 20), st.floats(-4, 4), st.floats(-20, -2), st.floats(2, 20))
def test_path_kl_is_the_closed_form(variance: float, x: float, low: float, high: float) -> None:
    data, point = oracles.Gaussian.isotropic(1, variance), torch.tensor([x], dtype=F64)
    levels = torch.linspace(low, high, 37, dtype=F64)
    by_integral = elbo.path_kl(lambda logsnr: data.eps_error_at(point, logsnr), low, high, data.kl(point, levels[:1]))
    torch.testing.assert_close(by_integral(levels), data.kl(point, levels), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 0.35, -2.0])
def test_integral_and_density_agree_on_right_and_wrong_models(offset: float) -> None:
    """A displaced mixture is exact for other data: its path KL is the KL of the marginals, without any gap."""
    model = mixture().displaced(torch.tensor([offset], dtype=F64))
    noise = elbo.Noise.quadrature(1)
    marginal = elbo.marginal_kl(model, X, noise)
    path = elbo.path_kl(elbo.eps_error(model, X, noise), LOW, HIGH, marginal(START))
    torch.testing.assert_close(path(LEVELS), marginal(LEVELS), rtol=1e-9, atol=1e-11)


def test_integral_and_density_agree_in_two_dimensions() -> None:
    model = oracles.GaussianMixture.isotropic(torch.tensor([[-1.0, 0.2], [0.8, -0.5], [0.1, 1.0]], dtype=F64), 0.3)
    x, noise = torch.tensor([0.3, -0.4], dtype=F64), elbo.Noise.quadrature(2, panels=8, order=12)
    levels = torch.tensor([-2.0, 1.0], dtype=F64)
    marginal = elbo.marginal_kl(model, x, noise)(levels)
    path = elbo.path_kl(elbo.eps_error(model, x, noise), -2.0, 1.0, marginal[0], panel_width=1.0, order=8)
    torch.testing.assert_close(path(levels), marginal, rtol=1e-7, atol=0)


def test_integral_and_density_agree_on_images_by_monte_carlo() -> None:
    """An image that is not in the model's set; the same ε on both sides, so the difference has a small error."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, 1, 4, 4, generator=generator, dtype=F64) * 2 - 1
    model, x = oracles.Empirical(images[1:]), images[0]
    noise = elbo.Noise.monte_carlo((1, 4, 4), 400, generator)
    nodes, width = quadrature.panel_nodes(torch.linspace(-8, 4, 13, dtype=F64), 8)
    ends = elbo.marginal_kls(model, x, torch.tensor([-8.0, 4.0], dtype=F64), noise)
    integral = 0.5 * width @ elbo.eps_errors(model, x, nodes, noise)
    difference = ends[1] - ends[0] - integral
    assert abs(difference.mean()) < 4 * noise.standard_error(difference)
    assert noise.standard_error(difference) < 0.02 * integral.mean()


def test_gap_is_strict_for_a_denoiser_that_is_no_posterior_mean() -> None:
    for factor in (0.8, 0.95, 1.1):
        model = oracles.ShrunkGaussian(DATA, factor)
        path = elbo.path_kl(lambda logsnr, m=model: m.eps_error_at(X, logsnr), LOW, HIGH, kl(START))
        gap = path(LEVELS) - model.marginal_kl(X, LEVELS, LOW)
        assert abs(gap[0].item()) < 1e-12
        assert (gap[3:] > 1e-7).all()


# The corollary -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ALL_WEIGHTINGS.values(), ids=ALL_WEIGHTINGS)
def test_corollary_for_every_weighting(weighting: weightings.Weighting) -> None:
    """Both sides to 1e-8, the signed ones included, on a range that is not symmetric."""
    low, high = -8.7, 12.4
    weighted = elbo.weighted_loss(error, weighting, low, high)
    torch.testing.assert_close(elbo.augmented_loss(kl, weighting, low, high), weighted, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["EDM", "Min-SNR", "ELBO"])
def test_corollary_on_a_wrong_model(name: str) -> None:
    model, noise = mixture().displaced(torch.tensor([0.5], dtype=F64)), elbo.Noise.quadrature(1)
    e = elbo.eps_error(model, X, noise)
    weighting = weightings.TABLE_1[name]
    weighted = elbo.weighted_loss(e, weighting, LOW, HIGH)
    by_density = elbo.augmented_loss(elbo.marginal_kl(model, X, noise), weighting, LOW, HIGH)
    by_integral = elbo.augmented_loss(elbo.path_kl(e, LOW, HIGH), weighting, LOW, HIGH)
    torch.testing.assert_close(by_density, weighted, rtol=1e-8, atol=0)
    torch.testing.assert_close(by_integral, weighted, rtol=1e-8, atol=0)


def test_corollary_fails_without_the_point_mass() -> None:
    weighting = weightings.VCosine()
    broken = elbo.augmented_loss(lambda logsnr: kl(logsnr) * (logsnr < HIGH), weighting, LOW, HIGH)
    assert abs(broken / elbo.weighted_loss(error, weighting, LOW, HIGH) - 1) > 1e-6


@pytest.mark.parametrize("weighting", ALL_WEIGHTINGS.values(), ids=ALL_WEIGHTINGS)
def test_total_mass_is_one_and_negative_exactly_where_not_monotone(weighting: weightings.Weighting) -> None:
    mass = quadrature.integrate(lambda lam: weightings.augmentation_density(weighting, lam, LOW, HIGH), LOW, HIGH)
    negative = weightings.Augmentation(weighting, LOW, HIGH).negative_mass
    total = mass.item() + weightings.clean_mass(weighting, LOW, HIGH)
    assert abs(total - 1) < 1e-9 * (1 + negative)
    assert (negative > 1e-9) == (not weighting.is_monotonic(LOW, HIGH))


def test_reference_masses() -> None:
    assert weightings.Augmentation(weightings.IDDPM(), LOW, HIGH).negative_mass == pytest.approx(200.7, abs=0.05)
    assert weightings.Augmentation(weightings.EDM(), LOW, HIGH).negative_mass == pytest.approx(656.8, abs=0.05)
    masses = [weightings.clean_mass(weightings.Sigmoid(k), LOW, HIGH) for k in range(1, 6)]
    assert masses == pytest.approx([1.7e-5, 4.5e-5, 1.2e-4, 3.4e-4, 9.1e-4], rel=0.03)
    assert weightings.clean_mass(weightings.EDMMonotonic(), LOW, HIGH) == pytest.approx(5.1e-5, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(st.floats(-6, 6), st.floats(-15, -8), st.floats(8, 15))
def test_augmentation_level_inverts_the_survival_function(bias: float, low: float, high: float) -> None:
    weighting = weightings.Sigmoid(bias)
    levels = torch.linspace(low, high, 33, dtype=F64)
    upper = weighting(levels) / weighting(levels[:1])
    found = weightings.Augmentation(weighting, low, high).level(upper)
    again = weighting(found) / weighting(levels[:1])
    torch.testing.assert_close(again, upper, rtol=1e-9, atol=1e-12)


def test_augmentation_level_is_clean_below_the_point_mass() -> None:
    upper = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    assert weightings.Augmentation(weightings.ELBO(), LOW, HIGH).level(upper).tolist() == pytest.approx([HIGH] * 3)
    with pytest.raises(ValueError, match="is not monotone"):
        weightings.Augmentation(weightings.EDM(), LOW, HIGH).level(upper)


# Discrete time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "nats"), [(10, 22.572), (100, 6.7174), (1000, 6.0701), (10_000, 6.0102)])
def test_discrete_bound_reference(steps: int, nats: float) -> None:
    bound = elbo.discrete_bound(error, schedules.LinearLogSNR(LOW, HIGH), steps)
    assert bound.item() == pytest.approx(nats, abs=0.5 * 10 ** (-3 if steps == 10 else -4))


def test_discrete_bound_falls_to_the_integral() -> None:
    schedule, limit = schedules.LinearLogSNR(LOW, HIGH), elbo.weighted_loss(error, weightings.ELBO(), LOW, HIGH)
    assert limit.item() == pytest.approx(6.00355, abs=5e-6)
    excess = torch.stack([elbo.discrete_bound(error, schedule, steps) - limit for steps in (1000, 2000, 4000)])
    torch.testing.assert_close(excess[:2] / excess[1:], torch.full((2,), 2.0, dtype=F64), rtol=5e-3, atol=0)


def test_discrete_bound_is_the_kl_of_the_steps() -> None:
    """T = 3 by hand: KL between q(z_s|z_t, x) and the model's q(z_s|z_t, x̂), plus what is left at λ_max."""
    from paperlib.process import diffuse, posterior

    schedule, noise = schedules.Cosine(-6, 6), elbo.Noise.quadrature(1)
    levels = schedule.logsnr(torch.linspace(1, 0, 4, dtype=F64))
    total = 0.0
    for level, following in pairwise(levels):
        z = diffuse(X.expand_as(noise.eps), noise.eps, level)
        right, std = posterior(z, X.expand_as(z), level, following)
        guess, _ = posterior(z, DATA.denoise(z, level), level, following)
        total += noise.mean(0.5 * ((right - guess) / std).square().sum(1)).item()
    assert elbo.discrete_bound(error, schedule, 3).item() == pytest.approx(total, rel=1e-10)


# I-MMSE --------------------------------------------------------------------------------------------------------------


def two_points() -> oracles.Empirical:
    return oracles.Empirical(torch.tensor([[-1.0], [1.0]], dtype=F64))


def information(oracle: oracles.Empirical, low: float, high: float, tail: float) -> float:
    noise = elbo.Noise.quadrature(1)
    each = [elbo.eps_error(oracle, x, noise) for x in oracle.images]
    average = elbo.path_kl(lambda lam: torch.stack([e(lam) for e in each]).mean(0), low, high, tail)
    return average(torch.tensor([high], dtype=F64)).item()


def test_error_of_two_points_integrates_to_log_two() -> None:
    oracle, low = two_points(), -25.0
    assert oracle.total_variance == 1
    tail = 0.5 * math.exp(low) * oracle.total_variance
    assert information(oracle, low, 8.0, tail) == pytest.approx(0.69314718056, abs=1e-10)


def test_error_of_two_points_misses_log_two_when_broken() -> None:
    assert abs(information(two_points(), -6.0, 8.0, 0.0) - math.log(2)) > 1e-3
    doubled = oracles.Empirical(torch.tensor([[-1.0], [1.0], [1.0]], dtype=F64))
    assert abs(information(doubled, -25.0, 8.0, 0.0) - math.log(3)) > 0.1


# The three terms -----------------------------------------------------------------------------------------------------


def test_prior_term_is_the_gaussian_kl() -> None:
    x, low = torch.tensor([[0.3, -1.0], [0.0, 1.0]], dtype=F64), -3.0
    a2, s2 = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
    expected = 0.5 * (a2 * x**2 + s2 - 1 - math.log(s2)).sum(1)
    torch.testing.assert_close(elbo.prior_kl(x, low), expected)


def test_decoder_sums_to_one_over_the_levels() -> None:
    eps, high, levels = torch.tensor([[0.7]], dtype=F64), 3.0, 5
    values = torch.linspace(-1, 1, levels, dtype=F64)
    z_over_alpha = values[2] + math.exp(-high / 2) * eps
    probability = [
        math.exp(-elbo.reconstruction(v.reshape(1, 1), (z_over_alpha - v) * math.exp(high / 2), high, levels).item())
        for v in values
    ]
    assert sum(probability) == pytest.approx(1)


def test_decoder_of_two_levels_is_a_logistic_function() -> None:
    """p(x = 1 | z) = sigmoid(2 e^λ z/α), from the two Gaussians at ±1."""
    eps, high = torch.linspace(-3, 3, 13, dtype=F64)[:, None], 0.4
    z_over_alpha = 1 + math.exp(-high / 2) * eps
    expected = torch.nn.functional.softplus(-2 * math.exp(high) * z_over_alpha)[:, 0]
    torch.testing.assert_close(elbo.reconstruction(torch.ones_like(eps), eps, high, 2), expected)


def test_decoder_at_the_ends() -> None:
    """Almost clean: nothing is lost.  Almost noise: the decoder knows nothing and pays log levels a dimension."""
    x = torch.linspace(-1, 1, 17, dtype=F64).reshape(1, -1)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert elbo.reconstruction(x, eps, 14.0, 17).item() < 1e-9
    assert elbo.reconstruction(x, eps, -20.0, 17).item() == pytest.approx(17 * math.log(17), rel=1e-3)


def test_units() -> None:
    assert elbo.bits_per_dim(torch.tensor(64 * 8 * math.log(2)), 64).item() == pytest.approx(8)
    assert elbo.scaling_bits(256) == pytest.approx(6.9944, abs=1e-4)
    # a uniform density on one level's width costs nothing once the width is counted
    width = 2 / 255
    assert elbo.bits_per_dim(torch.tensor(math.log(width)), 1).item() + elbo.scaling_bits(256) == pytest.approx(
        0, abs=1e-6
    )


# Expectations and integrals -------------------------------------------------------------------------------------------


def test_noise_quadrature_has_the_moments_of_a_normal() -> None:
    for dim in (1, 2):
        noise = elbo.Noise.quadrature(dim)
        for power, moment in ((0, 1), (1, 0), (2, 1), (4, 3), (6, 15)):
            assert noise.mean(noise.eps[:, 0] ** power).item() == pytest.approx(moment, abs=1e-10)
    with pytest.raises(ValueError, match=r"use Noise.monte_carlo"):
        elbo.Noise.quadrature(3)


def test_weighted_loss_agrees_with_the_quadrature_in_time() -> None:
    schedule = schedules.Cosine(LOW, HIGH)
    for weighting in (weightings.ELBO(), weightings.Sigmoid(2.0), weightings.IDDPM()):
        in_time = objectives.weighted_loss_by_quadrature(error, weighting, schedule)
        torch.testing.assert_close(elbo.weighted_loss(error, weighting, LOW, HIGH), in_time, rtol=1e-10, atol=0)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        elbo.discrete_bound(error, schedules.Cosine(-5, 5), 0)
    with pytest.raises(ValueError, match="must be below"):
        elbo.path_kl(error, 3.0, -3.0)
    with pytest.raises(ValueError, match="grid of 17 levels"):
        elbo.reconstruction(torch.full((1, 4), 0.03), torch.zeros(1, 4), 8.0, 17)
    with pytest.raises(ValueError, match="logsnr must lie in"):
        elbo.path_kl(error, -3.0, 3.0)(torch.tensor([4.0], dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nats_of_images_in_half_precision_keep_their_digits(dtype: torch.dtype) -> None:
    """They are sums over all dimensions, larger than half precision can count."""
    x = torch.ones(2, 200_000, dtype=dtype)
    eps = torch.zeros_like(x)
    prior = elbo.prior_kl(x, 0.0)
    torch.testing.assert_close(prior, elbo.prior_kl(x.double(), 0.0).float())
    nats = elbo.reconstruction(x, eps, -60.0, 2)
    torch.testing.assert_close(nats, torch.full((2,), 200_000 * math.log(2)))
