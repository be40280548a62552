"""Oracles: three ways to the same denoiser, densities that are densities, and wrong models that are wrong as stated."""

import math

import pytest
import torch
from torch import Tensor

from paperlib import elbo, oracles, process, quadrature

F64 = torch.float64
LEVELS = torch.linspace(-12, 12, 25, dtype=F64)


def random_gaussian(dim: int = 3, seed: int = 0) -> oracles.Gaussian:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=F64)
    return oracles.Gaussian(torch.randn(dim, generator=generator, dtype=F64), root @ root.mT / dim)


def random_mixture(dim: int = 2, count: int = 3) -> oracles.GaussianMixture:
    parts = [random_gaussian(dim, seed) for seed in range(count)]
    weights = torch.arange(1, count + 1, dtype=F64)
    means, covariances = (torch.stack([getattr(part, name) for part in parts]) for name in ("mean", "covariance"))
    return oracles.GaussianMixture(weights / weights.sum(), means, covariances)


def random_empirical(count: int = 7) -> oracles.Empirical:
    images = torch.rand(count, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64) * 2 - 1
    return oracles.Empirical(images, chunk=3)


ORACLES = {"gaussian": random_gaussian(), "mixture": random_mixture(), "empirical": random_empirical()}


def noisy(oracle: oracles.Oracle, logsnr: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = oracle.sample(len(logsnr), generator)
    return process.diffuse(x, torch.randn(x.shape, generator=generator, dtype=F64), logsnr)


@pytest.mark.parametrize("oracle", ORACLES.values(), ids=ORACLES)
def test_score_is_the_gradient_of_the_density(oracle: oracles.Oracle) -> None:
    z = noisy(oracle, LEVELS).requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_prob(z, LEVELS).sum(), z)
    torch.testing.assert_close(oracle.score(z, LEVELS), gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("oracle", ORACLES.values(), ids=ORACLES)
def test_denoiser_and_noise_make_up_z(oracle: oracles.Oracle) -> None:
    z = noisy(oracle, LEVELS)
    torch.testing.assert_close(process.diffuse(oracle.denoise(z, LEVELS), oracle(z, LEVELS), LEVELS), z)


@pytest.mark.parametrize("oracle", ORACLES.values(), ids=ORACLES)
def test_one_level_for_all_and_a_label_are_accepted(oracle: oracles.Oracle) -> None:
    z, level = noisy(oracle, LEVELS), torch.tensor(0.5, dtype=F64)
    label = torch.zeros(len(z), dtype=torch.int64)
    torch.testing.assert_close(oracle(z, level, label=label), oracle(z, level.expand(len(z))))
    torch.testing.assert_close(oracle.log_prob(z, level), oracle.log_prob(z, level.expand(len(z))))


def test_denoiser_is_the_posterior_mean_by_quadrature() -> None:
    """E[x | z] = ∫ x q(z|x) q(x) dx / q(z), in one dimension, for the mixture as for the Gaussian that it contains."""
    mixture = oracles.GaussianMixture.isotropic(torch.tensor([[-1.0], [0.6]], dtype=F64), 0.1)
    x, width = quadrature.panel_nodes(torch.linspace(-8, 8, 201, dtype=F64))
    prior = mixture.log_prob(x[:, None], torch.tensor(60.0, dtype=F64))  # clean data
    for level in (-3.0, 0.0, 2.5):
        logsnr = torch.tensor(level, dtype=F64)
        a, s = process.alpha(logsnr), process.sigma(logsnr)
        for z in (-0.7, 0.1, 1.3):
            joint = prior - 0.5 * ((z - a * x) / s) ** 2 - torch.log(s * math.sqrt(2 * math.pi)) + torch.log(width)
            expected = (joint.softmax(0) * x).sum()
            point = torch.tensor([[z]], dtype=F64)
            assert mixture.denoise(point, logsnr).item() == pytest.approx(expected.item(), rel=1e-10)
            assert mixture.log_prob(point, logsnr).item() == pytest.approx(joint.logsumexp(0).item(), rel=1e-10)


def test_mixture_of_one_is_the_gaussian() -> None:
    gaussian = random_gaussian()
    mixture = oracles.GaussianMixture(torch.ones(1, dtype=F64), gaussian.mean[None], gaussian.covariance[None])
    z = noisy(gaussian, LEVELS)
    torch.testing.assert_close(mixture(z, LEVELS), gaussian(z, LEVELS))
    torch.testing.assert_close(mixture.denoise(z, LEVELS), gaussian.denoise(z, LEVELS))
    torch.testing.assert_close(mixture.log_prob(z, LEVELS), gaussian.log_prob(z, LEVELS))


def test_empirical_is_the_mixture_of_very_narrow_gaussians() -> None:
    images = random_empirical().images
    z, levels = noisy(random_empirical(), LEVELS[:19]), LEVELS[:19]
    narrow = oracles.GaussianMixture.isotropic(images.flatten(1), 1e-12)
    torch.testing.assert_close(
        random_empirical()(z, levels).flatten(1), narrow(z.flatten(1), levels), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        random_empirical().log_prob(z, levels), narrow.log_prob(z.flatten(1), levels), atol=1e-6, rtol=0
    )


def test_samples_have_the_stated_moments() -> None:
    for oracle in (random_gaussian(), random_mixture()):
        x = oracle.sample(100_000, torch.Generator().manual_seed(3))
        level = torch.tensor(-60.0, dtype=F64)  # a denoiser that sees only noise predicts the mean
        expected = oracle.denoise(torch.zeros(1, x.shape[1], dtype=F64), level)[0]
        assert ((x.mean(0) - expected).abs() < 4 * x.std(0) / math.sqrt(len(x))).all()


def test_gaussian_error_at_x_averages_to_that_of_the_data() -> None:
    gaussian = random_gaussian()
    x = gaussian.sample(20_000, torch.Generator().manual_seed(2))
    each = torch.stack([gaussian.eps_error_at(row, LEVELS) for row in x[:4000]])
    standard_error = each.std(0) / math.sqrt(len(each))
    assert ((each.mean(0) - gaussian.eps_error(LEVELS)).abs() < 4 * standard_error + 1e-12).all()


def test_gaussian_error_at_x_by_monte_carlo() -> None:
    """Within 4 standard errors at 20,000 draws, for an x that is not from the model's data."""
    gaussian, x = random_gaussian(), torch.tensor([2.0, -1.0, 0.5], dtype=F64)
    noise = elbo.Noise.monte_carlo((3,), 20_000, torch.Generator().manual_seed(1))
    values = elbo.eps_errors(gaussian, x, LEVELS, noise)
    error = (noise.mean(values) - gaussian.eps_error_at(x, LEVELS)).abs()
    assert (error < 4 * noise.standard_error(values)).all()


def test_gaussian_closed_forms_fit_together() -> None:
    """E_x KL(q(z|x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ p(z)), I = H(z) − H(z|x); dI/dλ = ½ E‖ε̂ − ε‖²."""
    data, model = random_gaussian(seed=0), random_gaussian(seed=1)
    values, vectors = torch.linalg.eigh(data.covariance)
    offsets = vectors.mT * values.sqrt()[:, None] * math.sqrt(3)  # an exact cubature for quadratics
    points = torch.cat([data.mean + offsets, data.mean - offsets])
    average = torch.stack([model.kl(x, LEVELS) for x in points]).mean(0)
    diffused, modelled = (
        torch.distributions.MultivariateNormal(
            process.alpha(LEVELS)[:, None] * one.mean,
            torch.sigmoid(LEVELS)[:, None, None] * one.covariance
            + torch.sigmoid(-LEVELS)[:, None, None] * torch.eye(3, dtype=F64),
        )
        for one in (data, model)
    )
    missed = torch.distributions.kl_divergence(diffused, modelled)
    torch.testing.assert_close(data.entropy(LEVELS), diffused.entropy())
    level = LEVELS.clone().requires_grad_()
    information = data.entropy(level) - elbo.conditional_entropy(3, level)
    torch.testing.assert_close(average, information + missed)
    (slope,) = torch.autograd.grad(information.sum(), level)
    torch.testing.assert_close(slope, 0.5 * data.eps_error(LEVELS))


def test_gaussian_entropy_is_minus_the_mean_log_density() -> None:
    gaussian, level = random_gaussian(), torch.full((50_000,), 0.7, dtype=F64)
    surprise = -gaussian.log_prob(noisy(gaussian, level), level)
    entropy = gaussian.entropy(level[:1]).item()
    assert abs(surprise.mean().item() - entropy) < 4 * surprise.std().item() / math.sqrt(len(level))


# The finite set ------------------------------------------------------------------------------------------------------


def test_empirical_agrees_with_the_sum_over_all_images() -> None:
    oracle = random_empirical()
    z = noisy(oracle, LEVELS)
    a, s = process.expand(process.alpha(LEVELS), z), process.expand(process.sigma(LEVELS), z)
    distance = ((z - a * oracle.images[:, None]) / s).square().flatten(2).sum(2).mT
    posterior = (-0.5 * distance).softmax(1)
    torch.testing.assert_close(oracle.log_posterior(z, LEVELS).exp(), posterior, rtol=1e-7, atol=1e-12)
    expected = torch.einsum("bn,nchw->bchw", posterior, oracle.images)
    torch.testing.assert_close(oracle.denoise(z, LEVELS), expected, rtol=1e-7, atol=1e-12)


def test_empirical_in_single_precision_keeps_its_accuracy() -> None:
    """Images and z of float32, levels where the exponents are of the order of 10⁶."""
    images = torch.rand(50, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    oracle, exact = oracles.Empirical(images), oracles.Empirical(images.double())
    levels = torch.tensor([-4.0, -1.0, 2.0, 8.0, 12.0])
    z = process.diffuse(images[:5], torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)), levels)
    answer = oracle.denoise(z, levels)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.double(), exact.denoise(z.double(), levels.double()), rtol=1e-5, atol=1e-6)


def test_empirical_error_in_three_ways() -> None:
    """‖ε̂ − ε‖², the posterior variance, and the slope of I(x; z) = log N − posterior entropy have the same mean."""
    oracle, size = random_empirical(), 40_000
    generator = torch.Generator().manual_seed(4)
    x = oracle.sample(size, generator)
    eps = torch.randn(x.shape, generator=generator, dtype=F64)
    level = torch.full((size,), 0.8, dtype=F64)
    z = process.diffuse(x, eps, level)
    sampled, conditional = (oracle(z, level) - eps).square().flatten(1).sum(1), oracle.posterior_error(z, level)
    assert conditional.var() < sampled.var()
    difference = sampled - conditional
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(size)
    step = 1e-3
    up, down = (oracle.posterior_entropy(process.diffuse(x, eps, level + d), level + d) for d in (step, -step))
    slope = (down - up) / (2 * step) - 0.5 * conditional
    assert abs(slope.mean()) < 4 * slope.std() / math.sqrt(size)


def test_total_variance_is_the_error_of_a_denoiser_that_sees_only_noise() -> None:
    oracle = random_empirical()
    level = torch.tensor([-40.0], dtype=F64)
    error = oracle.posterior_error(torch.zeros(1, 1, 2, 3, dtype=F64), level)
    assert error.item() / math.exp(-40) == pytest.approx(oracle.total_variance, rel=1e-6)
    assert oracle.total_variance == pytest.approx(oracle.images.var(0, correction=0).sum().item())


def test_empirical_never_makes_a_tensor_of_every_pair_and_pixel() -> None:
    images = torch.rand(300, 64, generator=torch.Generator().manual_seed(0))
    oracle, z = oracles.Empirical(images, chunk=50), torch.randn(40, 64)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Largest():
        oracle(z, torch.zeros(40))
    assert largest <= max(40 * 300, 300 * 64)


# Wrong models --------------------------------------------------------------------------------------------------------


def test_displaced_mixture_is_exact_for_other_data() -> None:
    mixture = random_mixture()
    offset = torch.tensor([0.4, -0.3], dtype=F64)
    z = noisy(mixture, LEVELS)
    moved = z + process.expand(process.alpha(LEVELS), z) * offset
    torch.testing.assert_close(mixture.displaced(offset)(moved, LEVELS), mixture(z, LEVELS))


def test_shrunk_denoiser_generates_the_stated_variance() -> None:
    """20,000 steps of ancestral sampling, whose variance is a recursion; the limit is the closed form."""
    gaussian, factor = oracles.Gaussian.isotropic(1, 0.7), 0.8
    model = oracles.ShrunkGaussian(gaussian, factor)
    one = torch.ones(1, 1, dtype=F64)
    levels = torch.linspace(-8, 6, 20_001, dtype=F64)
    variance = model.variance(levels[:1], -8.0)[0, 0]
    assert variance.item() == pytest.approx((torch.sigmoid(levels[0]) * 0.7 + torch.sigmoid(-levels[0])).item())
    slope = (one - 0) * model(torch.ones(20_001, 1, dtype=F64), levels)  # ε̂ is linear in z
    x_hat = (1 - process.sigma(levels)[:, None] * slope) / process.alpha(levels)[:, None]
    mean, std = process.posterior(torch.ones(20_000, 1, dtype=F64), x_hat[:-1], levels[:-1], levels[1:])
    for gain, noise in zip(mean[:, 0].tolist(), std.flatten().tolist(), strict=True):
        variance = gain**2 * variance + noise**2
    assert variance.item() == pytest.approx(model.variance(levels[-1:], -8.0).item(), rel=2e-3)


def test_shrunk_by_one_is_the_oracle() -> None:
    gaussian, x = random_gaussian(), torch.tensor([1.0, 0.0, -1.0], dtype=F64)
    model = oracles.ShrunkGaussian(gaussian, 1.0)
    torch.testing.assert_close(model.eps_error_at(x, LEVELS), gaussian.eps_error_at(x, LEVELS))
    torch.testing.assert_close(model.marginal_kl(x, LEVELS, -12.0), gaussian.kl(x, LEVELS))


def test_shrunk_error_by_quadrature() -> None:
    model = oracles.ShrunkGaussian(oracles.Gaussian.isotropic(1, 1.7), 0.9)
    x = torch.tensor([0.9], dtype=F64)
    by_quadrature = elbo.eps_error(model, x, elbo.Noise.quadrature(1))(LEVELS)
    torch.testing.assert_close(by_quadrature, model.eps_error_at(x, LEVELS), rtol=1e-11, atol=1e-13)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    eye = torch.eye(2, dtype=F64)
    with pytest.raises(ValueError, match="weights must be positive and add up to one"):
        oracles.GaussianMixture(torch.tensor([0.5, 0.4]), torch.zeros(2, 2), eye.float().expand(2, 2, 2))
    with pytest.raises(ValueError, match="covariance has a negative eigenvalue"):
        oracles.GaussianMixture(torch.ones(1), torch.zeros(1, 2), -torch.eye(2)[None])
    for means, covariances in ((torch.zeros(2), eye[None]), (torch.zeros(2, 2), eye.expand(2, 2, 2))):
        with pytest.raises(ValueError, match=r"means has shape \(K, D\)"):
            oracles.GaussianMixture(torch.ones(1), means, covariances.float())
    with pytest.raises(ValueError, match="covariance must be symmetric"):
        oracles.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"NaN or infinite"):
        oracles.Empirical(torch.full((2, 3), math.nan))
    with pytest.raises(TypeError, match="must be a floating-point tensor"):
        oracles.Empirical(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"z holds examples of shape \(4,\), the set \(3,\)"):
        oracles.Empirical(torch.zeros(2, 3))(torch.zeros(1, 4), torch.zeros(1))
    with pytest.raises(ValueError, match="no closed form"):
        oracles.ShrunkGaussian(oracles.Gaussian.isotropic(1, 1.0), 0.5).variance(torch.zeros(1), -5.0)
