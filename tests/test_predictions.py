"""Predictions: definitions, conversions that return, and k(λ), measured and against its closed form."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from paperlib import predictions, process
from paperlib.predictions import PREDICTIONS, FPrediction, Prediction

ALL: dict[str, Prediction] = {**PREDICTIONS, "F, σ_data 0.75": FPrediction(0.75), "F, σ_data 2": FPrediction(2.0)}
every_prediction = pytest.mark.parametrize("prediction", ALL.values(), ids=ALL)


def random_batch(extent: float, size: int = 4001, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, ε, λ over [−extent, extent], z, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, size, dim, generator=generator, dtype=torch.float64)
    level = torch.linspace(-extent, extent, size, dtype=torch.float64)
    return x, eps, level, process.diffuse(x, eps, level)


def largest(*values: Tensor) -> Tensor:
    """max(|·|, 1) of each example."""
    return torch.cat(values, 1).abs().amax(1).clamp(min=1)


@every_prediction
def test_data_and_noise_come_back_to_1e_12(prediction: Prediction) -> None:
    x, eps, level, z = random_batch(15)
    output, size = prediction.target(x, eps, level), largest(x, eps)
    assert ((prediction.to_x(output, z, level) - x).abs().amax(1) < 1e-12 * size).all()
    assert ((prediction.to_eps(output, z, level) - eps).abs().amax(1) < 1e-12 * size).all()


@every_prediction
def test_data_and_noise_come_back_as_well_as_the_map_allows(prediction: Prediction) -> None:
    """x from ε at λ = −30 divides rounding by α = 3e-7: the bound is the conditioning of the map."""
    x, eps, level, z = random_batch(30)
    output = prediction.target(x, eps, level)
    bound = 1e-13 * (1 + torch.exp(level.abs() / 2)) * largest(x, eps)
    assert ((prediction.to_x(output, z, level) - x).abs().amax(1) < bound).all()
    assert ((prediction.to_eps(output, z, level) - eps).abs().amax(1) < bound).all()


@pytest.mark.parametrize(("first", "second"), list(product(ALL, ALL)))
def test_conversions_return(first: str, second: str) -> None:
    a, b = ALL[first], ALL[second]
    x, eps, level, z = random_batch(30, size=601)
    output = a.target(x, eps, level)
    converted = a.convert(output, z, level, to=b)
    bound = 1e-13 * (1 + torch.exp(level.abs() / 2)) * largest(x, eps)
    expected = b.target(x, eps, level)
    assert ((converted - expected).abs().amax(1) < bound * largest(expected)).all()
    back = b.convert(converted, z, level, to=a)
    assert ((back - output).abs().amax(1) < bound * largest(output)).all()
    near = level.abs() <= 15
    assert ((back - output).abs().amax(1) < 1e-12 * largest(x, eps) * largest(output))[near].all()


@every_prediction
def test_wrong_outputs_are_converted_too(prediction: Prediction) -> None:
    """Any output, not a true target alone, is one (x̂, ε̂) that explains z."""
    x, _, level, z = random_batch(8)
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_hat, eps_hat = prediction.to_x(output, z, level), prediction.to_eps(output, z, level)
    scale = largest(x_hat, eps_hat)
    assert ((process.diffuse(x_hat, eps_hat, level) - z).abs().amax(1) < 1e-12 * scale).all()
    assert ((prediction.target(x_hat, eps_hat, level) - output).abs().amax(1) < 1e-11 * scale).all()


# Definitions, as Section 4 has them ----------------------------------------------------------------------------------


def test_targets_as_defined() -> None:
    x, eps, level, z = random_batch(10)
    alpha, sigma = process.alpha(level)[:, None], process.sigma(level)[:, None]
    flow_time = process.flow_time_from_logsnr(level)[:, None]
    assert torch.equal(predictions.EPS.target(x, eps, level), eps)
    assert torch.equal(predictions.X.target(x, eps, level), x)
    assert torch.allclose(predictions.SCORE.target(x, eps, level), (alpha * x - z) / sigma**2, rtol=1e-9, atol=1e-9)
    assert torch.allclose(predictions.V.target(x, eps, level), alpha * eps - sigma * x)
    velocity = predictions.FLOW.target(x, eps, level)
    assert torch.allclose(process.to_flow(z, level), x + flow_time * velocity, atol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 0.75, 1.3])
def test_f_prediction_is_karras_preconditioning(sigma_data: float) -> None:
    """D = c_skip z_VE + c_out F with EDM's own coefficients (Karras et al. 2022, Table 1)."""
    _, _, level, z = random_batch(10)
    output = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = process.sigma_ve_from_logsnr(level)[:, None]
    skip = sigma_data**2 / (noise**2 + sigma_data**2)
    out = noise * sigma_data / (noise**2 + sigma_data**2).sqrt()
    expected = skip * process.to_ve(z, level) + out * output
    assert torch.allclose(FPrediction(sigma_data).to_x(output, z, level), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma_data", [0.5, 0.75, 1.3])
def test_f_targets_have_unit_variance(sigma_data: float) -> None:
    """With α z in place of z/α, as the paper prints the skip term, the variance would reach 1.0625 for σ_data = ½."""
    for level in torch.linspace(-12, 12, 25, dtype=torch.float64):
        a, b = FPrediction(sigma_data).coefficients(level)
        assert (a * sigma_data).square().item() + b.square().item() == pytest.approx(1, abs=1e-12)


# k(λ) ----------------------------------------------------------------------------------------------------------------


CLOSED_FORMS = {
    "eps": lambda level: torch.ones_like(level),
    "x": lambda level: torch.exp(-level),
    "score": lambda level: 1 + torch.exp(level),
    "v": lambda level: 1 + torch.exp(-level),
    "flow": lambda level: (1 + torch.exp(-level / 2)) ** 2,
    "F": lambda level: 1 + torch.exp(-level) / 0.5**2,
    "F, σ_data 0.75": lambda level: 1 + torch.exp(-level) / 0.75**2,
    "F, σ_data 2": lambda level: 1 + torch.exp(-level) / 2.0**2,
}


@pytest.mark.parametrize("name", ALL)
def test_mse_factor_has_the_closed_form(name: str) -> None:
    level = torch.linspace(-30, 30, 601, dtype=torch.float64)
    expected = CLOSED_FORMS[name](level)
    assert torch.allclose(ALL[name].mse_factor(level), expected, rtol=1e-12)
    assert torch.allclose(ALL[name].log_mse_factor(level), expected.log(), atol=1e-12, rtol=0)
    single = ALL[name].log_mse_factor(level.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), expected.log(), atol=1e-5, rtol=0)


@every_prediction
def test_mse_factor_measured(prediction: Prediction) -> None:
    """‖target error‖²/‖ε error‖² of random outputs at the same z."""
    x, eps, level, z = random_batch(8)
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target_error = (output - prediction.target(x, eps, level)).square().sum(1)
    eps_error = (prediction.to_eps(output, z, level) - eps).square().sum(1)
    assert torch.allclose(target_error / eps_error, prediction.mse_factor(level), rtol=1e-9)


# float32, gradients, refusals ----------------------------------------------------------------------------------------


@every_prediction
def test_float32_is_kept_and_finite(prediction: Prediction) -> None:
    x, eps, level, _ = (value.float() for value in random_batch(30))
    z = process.diffuse(x, eps, level)
    output = prediction.target(x, eps, level).requires_grad_()
    bound = 3e-6 * (1 + torch.exp(level.abs() / 2)) * largest(x, eps)
    for value, truth in ((prediction.to_eps(output, z, level), eps), (prediction.to_x(output, z, level), x)):
        assert value.dtype == torch.float32
        assert ((value - truth).abs().amax(1) < bound).all()
        (slope,) = torch.autograd.grad(value.square().sum(), output, retain_graph=True)
        assert torch.isfinite(slope).all()


@every_prediction
def test_images_and_one_level_for_all(prediction: Prediction) -> None:
    x, eps = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    level = torch.tensor(1.5, dtype=torch.float64)
    z = process.diffuse(x, eps, level)
    each = level.expand(3)
    output = prediction.target(x, eps, level)
    assert torch.equal(output, prediction.target(x, eps, each))
    assert torch.equal(prediction.to_eps(output, z, level), prediction.to_eps(output, z, each))
    assert torch.allclose(prediction.to_x(output, z, level), x)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, level = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"eps has shape \(3, 1\), but x has \(3, 2\)"):
        predictions.V.target(x, torch.zeros(3, 1), level)
    for method in (predictions.V.to_eps, predictions.V.to_x):
        with pytest.raises(ValueError, match=r"output has shape \(2, 2\), but z has \(3, 2\)"):
            method(torch.zeros(2, 2), x, level)
        with pytest.raises(ValueError, match=r"a level has shape"):
            method(x, x, torch.zeros(2))


def test_names() -> None:
    assert predictions.get("v") == predictions.V
    assert predictions.get("F", sigma_data=0.75) == FPrediction(0.75)
    with pytest.raises(ValueError, match=r"unknown prediction 'epsilon'; choose one of eps, x, score, v, flow, F"):
        predictions.get("epsilon")
    for bad in (0.0, -1.0, math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match="sigma_data must be a positive number"):
            FPrediction(bad)  # type: ignore[arg-type]
