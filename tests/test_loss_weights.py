"""Loss weights c(λ): the formulas of public codes, under every prediction and schedule."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import loss_weights, objectives, predictions, process, schedules, tables, weightings
from paperlib.loss_weights import LOSS_WEIGHTS
from paperlib.objectives import PublishedLoss
from paperlib.predictions import PREDICTIONS

F64 = torch.float64
LEVEL = torch.linspace(-11.9, 11.9, 239, dtype=F64)
SNR, TIME = LEVEL.exp(), process.flow_time_from_logsnr(LEVEL)
COSINE = schedules.Cosine(-12, 12)


def c(weight: str, prediction: str = "v", **parameters: Any) -> Tensor:
    loss = PublishedLoss(predictions.get(prediction), COSINE, loss_weights.get(weight, **parameters))
    return loss.c(LEVEL)


@pytest.mark.parametrize(
    ("weight", "prediction", "parameters", "formula"),
    [
        ("min_snr", "eps", {"gamma": 5}, SNR.clamp(max=5) / SNR),
        ("min_snr", "v", {"gamma": 5}, SNR.clamp(max=5) / (SNR + 1)),
        ("min_snr", "x", {"gamma": 3}, SNR.clamp(max=3)),
        ("soft_min_snr", "x", {"gamma": 4}, 4 * SNR / (SNR + 4)),
        ("soft_min_snr", "eps", {"gamma": 4}, 4 / (SNR + 4)),
        ("p2", "eps", {"gamma": 0.5, "k": 2}, (2 + SNR) ** -0.5),
        ("p2", "eps", {"gamma": 0}, torch.ones_like(SNR)),
        ("constant", "v", {"value": 3}, torch.full_like(SNR, 3)),
        ("debiased", "eps", {}, SNR**-0.5),
        ("debiased_v", "v", {}, 1 / (SNR + 1)),
        ("cosmap", "flow", {}, 2 / (math.pi * (1 - 2 * TIME + 2 * TIME**2))),
        ("sigma_sqrt", "flow", {}, TIME**-2),
        ("bell", "flow", {}, torch.exp(-2 * (TIME - 0.5) ** 2) - math.exp(-0.5)),
    ],
)
def test_the_formulas(weight: str, prediction: str, parameters: dict[str, Any], formula: Tensor) -> None:
    ours = c(weight, prediction, **parameters)
    torch.testing.assert_close(ours / formula, (ours / formula)[:1].expand(239), rtol=1e-9, atol=0)
    if weight != "soft_min_snr":
        torch.testing.assert_close(ours, formula, rtol=1e-9, atol=1e-12)


STEEP = weightings.Binned([-12, 1.00001, 1.0002, 12], [1, 1.5, 0.5])
"""A step that no grid of levels sees, if it is not told of it."""


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_kinks_and_errors_of_a_weighting_are_those_of_the_loss(prediction: str) -> None:
    def weighting(weight: loss_weights.LossWeight) -> weightings.Weighting:
        return PublishedLoss(predictions.get(prediction), COSINE, weight).weighting

    assert math.log(5) in weighting(loss_weights.MinSNR(5)).breaks
    divided = weighting(loss_weights.DividedOut(STEEP))
    assert divided.monotonicity() == STEEP.monotonicity() == "not monotone"
    measured = weightings.Tabulated([-12, 0, 12], [1, 0.5, 0.3], [0.1, 0.2, 0.1])
    error = weighting(loss_weights.DividedOut(measured)).log_error(LEVEL)
    torch.testing.assert_close(error, measured.log_error(LEVEL))
    assert not weighting(loss_weights.MinSNR(5)).log_error(LEVEL).any()


def test_sd3_weights_are_those_of_diffusers() -> None:
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    for weight in ("sigma_sqrt", "cosmap"):
        theirs = compute_loss_weighting_for_sd3(weight, TIME).double()  # float32 on its way
        torch.testing.assert_close(c(weight, "flow"), theirs, rtol=1e-6, atol=0)


SCHEDULES = {
    "cosine": COSINE,
    "EDM": schedules.EDMTraining(-12, 12),
    "shifted flow": schedules.FlowMatchingOT(-12, 12).shifted(-2.0),
    "scaled linear": tables.ScaledLinear(),
}


@pytest.mark.parametrize(("prediction", "schedule"), list(product(PREDICTIONS, SCHEDULES)))
@pytest.mark.parametrize(
    ("weight", "of_eps"),
    [
        (loss_weights.MinSNR(5), lambda level: torch.minimum(torch.ones_like(level), 5 * torch.exp(-level))),
        (loss_weights.SoftMinSNR(4), lambda level: 4 / (level.exp() + 4)),
        (loss_weights.P2(0.7), lambda level: (1 + level.exp()) ** -0.7),
        (loss_weights.LearnedUncertainty(lambda level: 3 + level.sin()), lambda level: 1 / (3 + level.sin())),
    ],
    ids=["Min-SNR", "soft Min-SNR", "P2", "learned u"],
)
def test_weights_of_the_eps_error_are_one_objective_under_every_prediction(
    prediction: str, schedule: str, weight: loss_weights.LossWeight, of_eps: Callable[[Tensor], Tensor]
) -> None:
    drawn = SCHEDULES[schedule]
    level = torch.linspace(*drawn.ends, 101, dtype=F64)
    w = PublishedLoss(PREDICTIONS[prediction], drawn, weight).weighting(level)
    assert torch.allclose(w, drawn.density(level) * of_eps(level), rtol=1e-9)


@pytest.mark.parametrize(("prediction", "schedule"), list(product(PREDICTIONS, SCHEDULES)))
def test_a_schedule_that_is_divided_out_leaves_the_weighting(prediction: str, schedule: str) -> None:
    drawn = SCHEDULES[schedule]
    weight = loss_weights.get("divided_out", weighting={"name": "sigmoid", "bias": 1.0})
    level = torch.linspace(*drawn.ends, 101, dtype=F64)
    w = PublishedLoss(PREDICTIONS[prediction], drawn, weight).weighting
    assert torch.allclose(w(level), weightings.Sigmoid(1.0)(level), rtol=1e-9)
    assert not w(torch.tensor([-13.0, 13.0], dtype=F64)).any()


def test_debiased_is_two_objectives() -> None:
    """w = p e^{−λ/2} of ε, p e^{−λ} of v: what differs is no constant."""
    eps = PublishedLoss(predictions.EPS, COSINE, loss_weights.Debiased()).weighting
    v = PublishedLoss(predictions.V, COSINE, loss_weights.DebiasedV()).weighting
    assert torch.allclose(eps(LEVEL), COSINE.density(LEVEL) * torch.exp(-LEVEL / 2), rtol=1e-12)
    assert torch.allclose(v(LEVEL), COSINE.density(LEVEL) * torch.exp(-LEVEL), rtol=1e-12)


def test_the_learned_uncertainty_is_the_optimum_of_edm2s_loss() -> None:
    """e^{−u} k E + u is least in u at u = log(k E); the gradient of the network sees e^{−u} there."""

    def error(level: Tensor) -> Tensor:
        return 0.1 + torch.sigmoid(level)

    u = torch.zeros(239, dtype=F64, requires_grad=True)
    f_error = predictions.F.mse_factor(LEVEL) * error(LEVEL)
    optimiser = torch.optim.LBFGS([u], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (torch.exp(-u) * f_error + u).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    edm2 = schedules.EDM2Latent(-12, 12)
    loss = PublishedLoss(predictions.F, edm2, loss_weights.LearnedUncertainty(error))
    assert torch.allclose(loss.c(LEVEL), torch.exp(-u.detach()), rtol=1e-5)
    assert torch.allclose(loss.weighting(LEVEL), edm2.density(LEVEL) / error(LEVEL), rtol=1e-12)


def test_a_learned_uncertainty_from_a_table() -> None:
    at, error = torch.tensor([-4.0, 0.0, 4.0], dtype=F64), torch.tensor([1.0, 4.0, 16.0], dtype=F64)
    weight = loss_weights.LearnedUncertainty.from_table(at, error)
    level = torch.tensor([-9.0, -4.0, -2.0, 0.0, 2.0, 9.0], dtype=F64)
    assert torch.allclose(weight.log_eps(level, COSINE), -torch.tensor([1.0, 1, 2, 4, 8, 16], dtype=F64).log())
    for wrong in ((at.flip(0), error), (at[:2], error), (at[:1], error[:1]), (at, -error), (at, error / 0)):
        with pytest.raises(
            ValueError,
            match=r"logsnr must be at least 2 ascending levels|eps_error must be (positive|a row of finite numbers)",
        ):
            loss_weights.LearnedUncertainty.from_table(*wrong)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("min_snr", {"gamma": 0}, "gamma must be a positive number"),
        ("soft_min_snr", {"gamma": -1}, "gamma must be a positive number"),
        ("p2", {"gamma": -0.1}, "gamma must be a positive number or zero, got -0.1"),
        ("p2", {"gamma": "1e-3"}, "p2: gamma must be a finite number, got '1e-3'"),
        ("constant", {"value": 0}, "value must be a positive number"),
        ("min-snr", {}, "unknown loss weight 'min-snr'; choose one of min_snr, soft_min_snr, p2"),
        ("divided_out", {"weighting": "sigmoyd"}, "unknown weighting 'sigmoyd'; choose one of elbo"),
    ],
)
def test_weights_that_are_none_are_refused(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_weights.get(name, **parameters)


def test_every_weight_by_name_trains() -> None:
    made = {
        "learned_uncertainty": {"logsnr": [-1.0, 1.0], "eps_error": [2.0, 1.0]},
        "divided_out": {"weighting": "sigmoid"},
    }
    x, eps = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    for name in LOSS_WEIGHTS:
        said = {"prediction": "v", "schedule": COSINE, "loss_weight": {"name": name, **made.get(name, {})}}
        value = objectives.get(said)(lambda z, logsnr: 0 * z, x, torch.linspace(0, 1, 16), eps)
        assert value.shape == (16,)
        assert value.isfinite().all()
