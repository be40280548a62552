"""The forward process: VP coefficients, other scalings and coordinates of noise, the posterior of one step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperlib import process

LEVELS = torch.linspace(-30, 30, 241, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 3e-6)])
def test_coefficients_are_variance_preserving_and_have_the_level_in_their_name(
    dtype: torch.dtype, tolerance: float
) -> None:
    level = LEVELS.to(dtype)
    alpha, sigma = process.alpha(level), process.sigma(level)
    assert alpha.dtype == sigma.dtype == dtype
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), atol=tolerance, rtol=0)
    # the square: α/σ alone, which some code calls the SNR, would give λ/2
    assert torch.allclose(torch.log(alpha**2 / sigma**2), level, atol=10 * tolerance, rtol=tolerance)
    assert (alpha > 0).all()
    assert (sigma > 0).all()


def test_more_log_snr_is_more_signal() -> None:
    assert (process.alpha(LEVELS[LEVELS < 15]).diff() > 0).all()
    assert (process.sigma(LEVELS[LEVELS > -15]).diff() < 0).all()


def test_diffuse_has_the_moments_of_q() -> None:
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    level = torch.tensor(0.7, dtype=torch.float64)
    z = process.diffuse(torch.full_like(eps, 1.5), eps, level)
    assert z.mean().item() == pytest.approx(1.5 * process.alpha(level).item(), abs=0.01)
    assert z.var().item() == pytest.approx(process.sigma(level).item() ** 2, rel=0.02)


def test_one_level_an_example() -> None:
    x, eps, level = torch.zeros(3, 2, 2, 1), torch.ones(3, 2, 2, 1), torch.tensor([-4.0, 0.0, 4.0])
    assert torch.equal(process.diffuse(x, eps, level)[:, 0, 0, 0], process.sigma(level))


@pytest.mark.parametrize("shape", [(2,), (3, 1), (4,)])
def test_levels_that_do_not_fit_the_batch_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a level has shape \(\) or \(B,\)"):
        process.diffuse(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(shape))


def test_bad_data_are_refused() -> None:
    x, level = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"eps has shape \(2, 2\), but x has \(3, 2\)"):
        process.diffuse(x, torch.zeros(2, 2), level)
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch.uint8.*\.float\(\)"):
        process.diffuse(x.to(torch.uint8), x, level)
    with pytest.raises(TypeError, match=r"logsnr must be a torch\.Tensor, got float"):
        process.diffuse(x, x, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma_data must be a positive number, got 0"):
        process.input_scale(level, 0)


@pytest.mark.parametrize(
    ("to_other", "from_other", "signal", "noise"),
    [
        (process.to_ve, process.from_ve, lambda _: 1.0, lambda level: math.exp(-level / 2)),
        (
            process.to_flow,
            process.from_flow,
            lambda level: 1 - 1 / (1 + math.exp(level / 2)),
            lambda level: 1 / (1 + math.exp(level / 2)),
        ),
    ],
    ids=["VE", "flow matching"],
)
def test_other_scalings(to_other, from_other, signal, noise) -> None:  # noqa: ANN001
    x, eps = torch.tensor([[1.3]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    for value in (-12.0, -1.0, 0.0, 3.0, 12.0):
        level = torch.tensor([value], dtype=torch.float64)
        z = process.diffuse(x, eps, level)
        assert torch.allclose(to_other(z, level), signal(value) * x + noise(value) * eps, rtol=1e-12)
        assert torch.allclose(from_other(to_other(z, level), level), z, rtol=1e-14)


@pytest.mark.parametrize(
    ("to_other", "from_other"),
    [
        (process.sigma_ve_from_logsnr, process.logsnr_from_sigma_ve),
        (process.alphas_cumprod_from_logsnr, process.logsnr_from_alphas_cumprod),
        (process.flow_time_from_logsnr, process.logsnr_from_flow_time),
    ],
)
def test_coordinates_of_noise_return(to_other, from_other) -> None:  # noqa: ANN001
    level = torch.linspace(-12, 12, 97, dtype=torch.float64)
    assert torch.allclose(from_other(to_other(level)), level, atol=1e-10, rtol=0)


def test_coordinates_of_noise_are_what_their_names_say() -> None:
    alpha, sigma = process.alpha(LEVELS), process.sigma(LEVELS)
    assert torch.allclose(process.sigma_ve_from_logsnr(LEVELS), sigma / alpha, rtol=1e-12)
    assert torch.allclose(process.snr_from_logsnr(LEVELS), alpha**2 / sigma**2, rtol=1e-12)
    assert torch.allclose(process.alphas_cumprod_from_logsnr(LEVELS), alpha**2, rtol=1e-12)
    assert torch.allclose(process.flow_time_from_logsnr(LEVELS), sigma / (alpha + sigma), rtol=1e-12)


@given(st.floats(-12, 12), st.floats(-12, 12), st.floats(0.05, 3))
def test_posterior_is_bayes_rule(first: float, second: float, x: float) -> None:
    """q(z_s | x) q(z_t | z_s) is a Gaussian in (z_s, z_t); its conditional is made here by hand."""
    level, next_level = sorted((first, second))
    t, s = torch.tensor(level, dtype=torch.float64), torch.tensor(next_level, dtype=torch.float64)
    ratio = process.alpha(t) / process.alpha(s)
    added = -(process.sigma(t) ** 2) * torch.expm1(t - s)  # variance of z_t given z_s
    z, data = torch.tensor([[0.8]], dtype=torch.float64), torch.tensor([[x]], dtype=torch.float64)
    mean, std = process.posterior(z, data, t, s)

    gain = ratio * process.sigma(s) ** 2 / process.sigma(t) ** 2
    assert torch.allclose(mean, process.alpha(s) * data + gain * (z - process.alpha(t) * data), atol=1e-9)
    assert torch.allclose(std**2, added * process.sigma(s) ** 2 / process.sigma(t) ** 2, atol=1e-9)


def test_posterior_of_no_step_is_where_one_stands() -> None:
    z, x, level = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([-5.0, -1.0, 2.0, 9.0])
    mean, std = process.posterior(z, x, level, level)
    assert torch.allclose(mean, z)
    assert not std.any()


def test_posterior_of_a_noisier_level_is_refused() -> None:
    z, level = torch.zeros(2, 3), torch.tensor([-1.0, 2.0])
    with pytest.raises(ValueError, match="logsnr_next must not be below logsnr; were the two exchanged"):
        process.posterior(z, z, level, level - torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 0.75, 2.0])
def test_input_scale_gives_unit_variance(sigma_data: float) -> None:
    variance = process.alpha(LEVELS) ** 2 * sigma_data**2 + process.sigma(LEVELS) ** 2
    assert torch.allclose(process.input_scale(LEVELS, sigma_data) ** 2 * variance, torch.ones_like(LEVELS))
