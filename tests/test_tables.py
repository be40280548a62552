"""Tables: levels in use, timesteps, zero terminal SNR, histograms; scipy and diffusers beside."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from paperlib import predictions, process, schedules, weightings
from paperlib.loss_weights import Debiased, MinSNR
from paperlib.objectives import PublishedLoss
from paperlib.tables import DDPM, Histogram, ScaledLinear, StepTable

F64 = torch.float64
CHAINS: dict[str, StepTable] = {
    "DDPM": DDPM(),
    "scaled linear": ScaledLinear(),
    "DDPM, zero terminal SNR": DDPM(zero_terminal=True),
    "scaled linear, zero terminal SNR": ScaledLinear(zero_terminal=True),
    "DDPM, 50 steps": DDPM(beta_start=2e-3, beta_end=0.4, number=50),
    "three steps": StepTable(alphas_cumprod=[0.9, 0.5, 0.1]),
    "from β": StepTable(betas=[0.1, 0.3, 0.3, 0.8]),
}
every_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)


@pytest.mark.parametrize(
    ("chain", "first", "last"), [(DDPM(), 9.210, -10.118), (ScaledLinear(), 7.069, -5.364)], ids=["DDPM", "SD"]
)
def test_the_levels_in_use(chain: StepTable, first: float, last: float) -> None:
    assert chain.ends == pytest.approx((last, first), abs=5e-4)
    assert len(chain.levels) == 1000


@pytest.mark.parametrize(
    ("chain", "options"),
    [
        (DDPM(), {"beta_start": 1e-4, "beta_end": 0.02}),
        (ScaledLinear(), {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
        (DDPM(zero_terminal=True), {"beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True}),
        (
            ScaledLinear(zero_terminal=True),
            {
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "rescale_betas_zero_snr": True,
            },
        ),
    ],
    ids=["DDPM", "SD", "DDPM, zero terminal SNR", "SD, zero terminal SNR"],
)
def test_tables_are_those_of_diffusers(chain: StepTable, options: dict[str, Any]) -> None:
    """Theirs are float32 products: 1 − ᾱ of the first steps has four digits there."""
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(num_train_timesteps=1000, **options).alphas_cumprod.double()
    ours = process.alphas_cumprod_from_logsnr(chain.levels)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose((1 - ours).numpy(), (1 - theirs).numpy(), rtol=2e-3)


def test_betas_and_their_products_are_one_table() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    by_beta, by_product = StepTable(betas=betas), StepTable(alphas_cumprod=(1 - betas).cumprod(0))
    assert torch.allclose(by_beta.levels, by_product.levels, atol=1e-9)
    assert torch.equal(by_beta.levels, DDPM().levels)
    assert by_beta == StepTable(betas=betas.tolist())
    assert hash(by_beta) == hash(StepTable(betas=betas.tolist()))
    assert pickle.loads(pickle.dumps(by_beta)) == by_beta


@every_chain
def test_every_interval_is_drawn_equally_often(chain: StepTable) -> None:
    finite = chain.levels[chain.levels.isfinite()]
    t = torch.linspace(0, 1, len(finite), dtype=F64)
    assert torch.allclose(chain.time(finite), t, atol=1e-12)
    assert torch.allclose(chain.logsnr(t), finite, atol=1e-9)


@every_chain
def test_timesteps_come_back(chain: StepTable) -> None:
    index = torch.arange(len(chain.levels))
    level = chain.levels[index]
    assert torch.allclose(chain.timestep(level), index.double(), atol=1e-6)
    assert torch.equal(chain.logsnr_at(index), level.float())
    assert torch.equal(chain.timestep(chain.logsnr_at(index)).round().long(), index)
    assert chain.timestep(level[1].half()).dtype == torch.float32
    between = (level[:-2] + level[1:-1]) / 2
    assert ((chain.timestep(between) > index[:-2]) & (chain.timestep(between) < index[1:-1])).all()


@pytest.mark.parametrize("chain", list(CHAINS.values())[:-1], ids=list(CHAINS)[:-1])  # ours never lets p be zero
def test_the_curve_between_the_steps_is_that_of_scipy(chain: StepTable) -> None:
    finite = chain.levels[chain.levels.isfinite()].flip(0)
    step = torch.arange(len(finite), 0, -1, dtype=F64)
    quantiles = len(finite) if len(finite) < len(chain.levels) else 2 * len(finite)
    curve = PchipInterpolator(finite.numpy(), torch.logit(step / (quantiles + 1)).numpy())
    level = torch.linspace(*chain.ends, 4001, dtype=F64)
    t = torch.sigmoid(torch.from_numpy(curve(level.numpy())))
    ours = (chain.time(level) * (len(finite) - 1) + 1) / (quantiles + 1)
    assert torch.allclose(ours, t, atol=1e-12)


@pytest.mark.parametrize("name", ["v", "x", "flow", "F"])
@pytest.mark.parametrize("chain", list(CHAINS.values())[:4], ids=list(CHAINS)[:4])
def test_tables_make_no_steps_in_a_smooth_weighting(chain: StepTable, name: str) -> None:
    """Under linear β all four are monotone; a density that jumped from step to step would say otherwise."""
    w = PublishedLoss(predictions.get(name), chain).weighting
    assert w.is_monotonic()


def test_steps_that_are_none_are_refused() -> None:
    for index in (torch.tensor([-1]), torch.tensor([1000]), torch.tensor([0.5])):
        with pytest.raises(IndexError, match="whole numbers from 0 to 999"):
            DDPM().logsnr_at(index)
    for level in (9.3, -10.2, math.nan, -math.inf):
        with pytest.raises(ValueError, match=r"logsnr must lie in \[-10.1\d+, 9.2\d+\]"):
            DDPM().timestep(torch.tensor([0.0, level]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "alphas_cumprod or betas, one of the two"),
        ({"betas": [0.1, 0.2, 0.3], "alphas_cumprod": [0.9, 0.5, 0.1]}, "one of the two"),
        ({"alphas_cumprod": [0.5, 0.9, 0.1]}, "decrease from step to step"),
        ({"alphas_cumprod": [0.9, 0.0, 0.0]}, "finite"),
        ({"alphas_cumprod": [1.0, 0.5, 0.1]}, "finite"),
        ({"alphas_cumprod": [0.9, 0.1]}, "three or more"),
        ({"betas": [0.1, math.nan, 0.1]}, "betas must be a row of finite numbers, got nan at index 1"),
        ({"betas": [[0.1, 0.1, 0.1]]}, "betas must be a row"),
    ],
)
def test_tables_that_are_none_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepTable(**parameters)
    with pytest.raises(ValueError, match="0 < beta_start ≤ beta_end < 1"):
        DDPM(beta_end=1.0)
    for name in ("number", "power"):
        with pytest.raises(ValueError, match=f"{name} must be a positive (whole )?number, got 0"):
            DDPM(**{name: 0})


# Zero terminal SNR ----------------------------------------------------------------------------------------------------

ZERO = DDPM(zero_terminal=True)


def network(z: Tensor, logsnr: Tensor) -> Tensor:
    return torch.tanh(z) + 0.3


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    x, eps = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    return x, eps


def test_the_last_level_is_a_term_of_its_own() -> None:
    assert ZERO.levels[-1] == -math.inf
    assert ZERO.terminal_mass == ZERO.shifted(1.0).terminal_mass == 1e-3
    assert ZERO.ends[0] == ZERO.levels[-2]
    assert DDPM().terminal_mass == DDPM(-9, 9, zero_terminal=True).terminal_mass == 0
    assert schedules.Cosine(-9, 9).terminal_mass == 0


@pytest.mark.parametrize("name", ["v", "x", "flow", "F"])
def test_at_the_last_level_the_error_is_that_of_the_data(name: str, batch: tuple[Tensor, Tensor]) -> None:
    """It is the limit of the loss at falling λ, and never NaN."""
    x, eps = batch
    prediction = predictions.get(name)
    loss = PublishedLoss(prediction, ZERO)
    found = loss.terminal(network, x, eps)
    assert found.isfinite().all()
    level = torch.tensor(-80.0, dtype=F64)
    expected = (network(eps, level) - prediction.target(x, eps, level)).square().sum(1)
    assert torch.allclose(found, expected, rtol=1e-12)
    told = []
    loss.terminal(lambda z, logsnr: told.append((z, logsnr)) or z, x, eps)
    assert torch.equal(told[0][0], eps)
    assert (told[0][1] == -math.inf).all()


def test_the_whole_loss_is_that_of_all_steps(batch: tuple[Tensor, Tensor]) -> None:
    """Uniform steps of a chain of four: the finite ones and the last, with the shares that are stated."""
    x, eps = batch
    chain = StepTable(alphas_cumprod=[0.9, 0.5, 0.1, 0.0])
    loss = PublishedLoss(predictions.V, chain)
    rows = [loss(network, x, chain.time(level).expand(len(x)), eps).mean() for level in chain.levels[:3]]
    last = loss.terminal(network, x, eps).mean()
    assert chain.terminal_mass == 0.25
    alpha = chain.levels.sigmoid().sqrt()
    target = [a * eps - (1 - a**2).sqrt() * x for a in alpha]
    z = [a * x + (1 - a**2).sqrt() * eps for a in alpha]
    steps = torch.stack([(network(one, None) - v).square().sum(1).mean() for one, v in zip(z, target, strict=True)])
    assert torch.allclose((1 - chain.terminal_mass) * sum(rows) / 3 + chain.terminal_mass * last, steps.mean())


def test_min_snr_counts_nothing_where_there_is_no_signal(batch: tuple[Tensor, Tensor]) -> None:
    assert not PublishedLoss(predictions.V, ZERO, MinSNR()).terminal(network, *batch).any()
    with pytest.raises(ValueError, match=r"Debiased\(\) has no finite value at λ = −∞"):
        PublishedLoss(predictions.V, ZERO, Debiased()).terminal(network, *batch)


@pytest.mark.parametrize("name", ["eps", "score"])
def test_what_says_nothing_of_the_data_is_refused(name: str, batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"draws λ = −∞, where z is noise alone and .* predict x, v, flow or F"):
        PublishedLoss(predictions.get(name), ZERO)
    finite = PublishedLoss(predictions.get(name), DDPM(-19.0, None, zero_terminal=True))
    with pytest.raises(ValueError, match="has no term at λ = −∞"):
        finite.terminal(network, *batch)


# Histograms ----------------------------------------------------------------------------------------------------------


def test_a_histogram_has_its_heights() -> None:
    schedule = Histogram(edges=[-4, 0, 1, 6], heights=[1, 4, 2])
    assert schedule.ends == (-4, 6)
    assert schedule.breaks == (0, 1)
    level = torch.tensor([-2.0, 0.5, 3.0], dtype=F64)
    assert torch.allclose(schedule.density(level), torch.tensor([1, 4, 2], dtype=F64) / 18)
    assert torch.allclose(
        schedule.time(torch.tensor([0.0, 1.0], dtype=F64)), torch.tensor([14 / 18, 10 / 18], dtype=F64)
    )
    assert schedule == schedules.get("histogram", edges=[-4, 0, 1, 6], heights=[1, 4, 2])


def test_samples_give_back_their_distribution() -> None:
    expected = schedules.Normal(-8, 8, mean=1.0, std=1.5)
    t = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    schedule = Histogram.from_samples(expected.logsnr(t).reshape(400, -1), bins=100)
    level = torch.linspace(-2, 4, 61, dtype=F64)
    assert (schedule.time(level) - expected.time(level)).abs().max() < 1e-3
    width = torch.tensor(schedule.edges, dtype=F64).diff()
    assert torch.allclose(torch.tensor(schedule.heights, dtype=F64) * width, torch.ones(100, dtype=F64))


@pytest.mark.parametrize(
    ("edges", "heights", "message"),
    [
        ([0, 1, 2], [1], "2 ascending levels, 2 for 1 heights; got 3"),
        ([0], [], "2 ascending levels, 1 for 0 heights; got 1"),
        ([0, 2, 1], [1, 1], "edges must be at least 2 ascending levels"),
        ([0, 1, 2], [1, 0], "must be positive, got 0.0; merge the bin"),
        ([0, 1, math.inf], [1, 1], "edges must be a row of finite numbers"),
    ],
)
def test_histograms_that_are_none_are_refused(edges: list[float], heights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Histogram(edges=edges, heights=heights)


def test_samples_that_are_too_few_or_equal_are_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and the number of samples, 3, got 3"):
        Histogram.from_samples(torch.zeros(3), bins=3)
    with pytest.raises(ValueError, match="ascending levels, 4 for 3 heights; got 4, or equal ones"):
        Histogram.from_samples(torch.zeros(30), bins=3)


def test_a_weighting_of_a_table_is_a_weighting() -> None:
    level = torch.linspace(*DDPM().ends, 101, dtype=F64)
    w = PublishedLoss(predictions.EPS, DDPM()).weighting
    assert isinstance(w, weightings.Weighting)
    assert torch.allclose(w(level), DDPM().density(level), rtol=1e-12)
