"""The Gaussian oracle: samples, its denoiser is the best there is, and the error that it states is the one it makes."""

import pytest
import torch
from torch import Tensor

from paperlib import process
from paperlib.oracles import Gaussian

F64 = torch.float64
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=F64)
COVARIANCE = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.5, -0.2], [0.0, -0.2, 0.25]], dtype=F64)
ORACLE = Gaussian(MEAN, COVARIANCE)


def noisy(level: float, size: int = 100_000) -> tuple[Tensor, Tensor, Tensor]:
    """ε, z and the level of each example."""
    generator = torch.Generator().manual_seed(0)
    x = ORACLE.sample(size, generator)
    eps = torch.randn(x.shape, generator=generator, dtype=F64)
    logsnr = torch.full((size,), level, dtype=F64)
    return eps, process.diffuse(x, eps, logsnr), logsnr


def test_samples_have_the_moments() -> None:
    x = ORACLE.sample(200_000, torch.Generator().manual_seed(0))
    assert torch.allclose(x.mean(0), MEAN, atol=0.01)
    assert torch.allclose(x.T.cov(), COVARIANCE, atol=0.01)


@pytest.mark.parametrize("level", [-9.0, -2.0, 0.0, 3.0, 9.0])
def test_denoiser_is_the_linear_regression_of_noise_on_z(level: float) -> None:
    """E[ε | z] = Cov(ε, z) Cov(z)⁻¹ (z − E z), with the covariances written out and inverted directly."""
    _, z, logsnr = noisy(level, size=50)
    alpha, sigma = process.alpha(logsnr[0]), process.sigma(logsnr[0])
    covariance = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=F64)
    expected = sigma * torch.linalg.solve(covariance, (z - alpha * MEAN).T).T
    assert torch.allclose(ORACLE(z, logsnr), expected, atol=1e-9)


@pytest.mark.parametrize("level", [-6.0, -2.0, 0.0, 3.0, 8.0])
def test_the_stated_error_is_the_measured_one(level: float) -> None:
    eps, z, logsnr = noisy(level)
    error = (ORACLE(z, logsnr) - eps).square().sum(1)
    stated = ORACLE.eps_error(logsnr[:1]).item()
    assert abs(error.mean().item() - stated) < 4.5 * error.std().item() / len(error) ** 0.5


@pytest.mark.parametrize("level", [-3.0, 0.0, 3.0])
def test_nothing_nearby_does_better(level: float) -> None:
    eps, z, logsnr = noisy(level)
    best = ORACLE(z, logsnr)
    error = (best - eps).square().sum(1).mean()
    for other in (1.02 * best, 0.98 * best, best + 0.02, best + 0.02 * z):
        assert (other - eps).square().sum(1).mean() > error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_extreme_levels(dtype: torch.dtype) -> None:
    oracle = Gaussian.isotropic(3, 0.25, dtype)
    level = torch.linspace(-30, 30, 61, dtype=dtype)
    z = torch.ones(61, 3, dtype=dtype)
    assert oracle(z, level).dtype == dtype
    assert torch.isfinite(oracle(z, level)).all()
    error = oracle.eps_error(level)
    assert (error.diff() >= 0).all()
    assert 0 < error[0] < 1e-11
    assert error[-1].item() == pytest.approx(3)


def test_a_singular_covariance_is_data_on_a_plane() -> None:
    oracle = Gaussian(torch.zeros(2, dtype=F64), torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=F64))
    x = oracle.sample(100)
    assert torch.allclose(x[:, 0], x[:, 1])
    assert torch.isfinite(oracle(x, torch.full((100,), 30.0, dtype=F64))).all()


def test_bad_moments_are_refused() -> None:
    eye = torch.eye(2, dtype=F64)
    with pytest.raises(ValueError, match=r"mean has shape \(D,\) and covariance \(D, D\); got \(3,\) and \(2, 2\)"):
        Gaussian(MEAN, eye)
    with pytest.raises(ValueError, match="covariance must be symmetric"):
        Gaussian(MEAN[:2], eye + torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=F64))
    with pytest.raises(ValueError, match="negative eigenvalue"):
        Gaussian(MEAN[:2], eye - 2 * torch.ones(2, 2, dtype=F64))
    with pytest.raises(ValueError, match=r"mean has 1 value\(s\) that are NaN"):
        Gaussian(torch.tensor([0.0, torch.nan], dtype=F64), eye)
