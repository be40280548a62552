"""Objectives: implied weightings against Table 1, the weighted loss, its variance, and time that covers [0, 1]."""

import math
import warnings
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paperlib import objectives, oracles, predictions, schedules, weightings
from paperlib.objectives import PublishedLoss, WeightedLoss
from paperlib.predictions import PREDICTIONS, Prediction
from paperlib.schedules import TruncatedSchedule
from paperlib.weightings import TABLE_1, Weighting

F64 = torch.float64
GAUSSIAN = oracles.Gaussian.isotropic(8, 0.25)


def grid(low: float, high: float, points: int = 801) -> Tensor:
    return torch.linspace(low, high, points, dtype=F64)


def oracle_network(prediction: Prediction, oracle: oracles.Gaussian = GAUSSIAN) -> objectives.Network:
    """The oracle behind another prediction."""
    return lambda z, logsnr: predictions.EPS.convert(oracle(z, logsnr), z, logsnr, to=prediction)


def crooked_network(z: Tensor, logsnr: Tensor) -> Tensor:
    """A smooth function that is no denoiser of anything."""
    return torch.sin(1.3 * z + 0.2 * logsnr.reshape(-1, *[1] * (z.ndim - 1))) - 0.4 * z.roll(1, -1)


def batch(size: int, seed: int = 0, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor]:
    """x of the Gaussian, ε, and times."""
    generator = torch.Generator().manual_seed(seed)
    x = GAUSSIAN.sample(size, generator)
    eps = torch.randn(x.shape, generator=generator, dtype=F64)
    t = objectives.low_discrepancy_time(size, generator=generator, dtype=F64)
    return x.to(dtype), eps.to(dtype), t.to(dtype)


def assert_equal_up_to_a_constant(first: Weighting, second: Weighting, level: Tensor) -> None:
    difference = first.log(level) - second.log(level)
    assert torch.isfinite(difference).all()
    assert (difference - difference[len(level) // 2]).abs().max() < 1e-10


# Table 1 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [(-8.7, 12.4), (-15.0, 15.0), (-30.0, 30.0), (-1.0, 2.0), (4.0, 28.0)])
@pytest.mark.parametrize("name", TABLE_1)
def test_published_losses_imply_table_1(name: str, ends: tuple[float, float]) -> None:
    implied = objectives.table_1(*ends)[name].weighting
    assert_equal_up_to_a_constant(implied, TABLE_1[name], grid(*ends))
    assert implied.is_monotonic(*ends) is TABLE_1[name].is_monotonic(*ends)


def test_table_1_has_the_same_rows_everywhere() -> None:
    assert objectives.table_1(-9, 9).keys() == TABLE_1.keys()


@pytest.mark.parametrize("name", schedules.TABLE)
def test_an_importance_weighted_eps_loss_is_the_elbo_under_any_schedule(name: str) -> None:
    schedule = schedules.get(name, logsnr_min=-8.7, logsnr_max=12.4)
    inverse_density = weightings.Custom(lambda level: -schedule.log_density(level))
    implied = PublishedLoss(predictions.EPS, schedule, inverse_density).weighting
    assert_equal_up_to_a_constant(implied, weightings.ELBO(), grid(-8.7, 12.4))


COSINE, FLOW = schedules.Cosine(-12, 12), schedules.FlowMatchingOT(-12, 12)
LOG_SNR = weightings.Custom(lambda level: level)


@pytest.mark.parametrize(
    ("loss", "weighting"),
    [
        (PublishedLoss(predictions.X, COSINE), weightings.XCosine()),
        (PublishedLoss(predictions.FLOW, schedules.LogitNormal(-12, 12)), weightings.SD3LogitNormal()),
        (PublishedLoss(predictions.FLOW, COSINE), weightings.SD3CosMap()),
        (PublishedLoss(predictions.EPS, COSINE, weightings.Custom(lambda level: -level / 2)), weightings.Debiased()),
        (
            PublishedLoss(
                predictions.X, COSINE, weightings.Custom(lambda level: level + torch.log(4 / (level.exp() + 4)))
            ),
            weightings.SoftMinSNR(4.0),
        ),
        (
            PublishedLoss(predictions.F, schedules.EDMTraining(-12, 12, p_mean=-0.4, p_std=1.0)),
            weightings.EDM2(),
        ),
        (PublishedLoss(predictions.X, COSINE, LOG_SNR), weightings.IDDPM()),
        # (1 + e^λ) e^{−λ} = 1 + e^{−λ}: the score error over SNR is the v error
        (PublishedLoss(predictions.SCORE, COSINE, weightings.Custom(lambda level: -level)), weightings.VCosine()),
    ],
    ids=["x cosine", "SD3", "SD3 cosmap", "debiased", "soft Min-SNR", "EDM2", "SNR-weighted x is ε", "score"],
)
def test_losses_beyond_the_paper(loss: PublishedLoss, weighting: Weighting) -> None:
    assert_equal_up_to_a_constant(loss.weighting, weighting, grid(-12, 12))


def test_min_snr_of_one_prediction_is_not_that_of_another() -> None:
    """min(SNR, γ) belongs to the x error: under v it is min(SNR, γ)/(SNR + 1), under ε min(SNR, γ)/SNR."""
    level, log_gamma = grid(-12, 12), math.log(5)
    clipped = {
        "x": lambda level: level.clamp(max=log_gamma),
        "v": lambda level: level.clamp(max=log_gamma) - torch.log1p(level.exp()),
        "eps": lambda level: level.clamp(max=log_gamma) - level,
    }
    for name, log_weight in clipped.items():
        loss = PublishedLoss(PREDICTIONS[name], COSINE, weightings.Custom(log_weight))
        assert_equal_up_to_a_constant(loss.weighting, weightings.MinSNR(5), level)
    wrong = PublishedLoss(predictions.V, COSINE, weightings.Custom(clipped["eps"])).weighting
    with pytest.raises(AssertionError):
        assert_equal_up_to_a_constant(wrong, weightings.MinSNR(5), level)


def test_implied_weighting_vanishes_outside_the_range() -> None:
    weighting = PublishedLoss(predictions.V, COSINE).weighting
    assert not weighting(torch.tensor([-12.5, 12.5])).any()


# The published loss is the weighted loss it implies -------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE_1)
def test_published_loss_is_the_implied_weighted_loss(name: str) -> None:
    """The same network, the same noise, two integrals: E_t of the loss as published = ∫ w ‖ε̂ − ε‖² dλ."""
    loss = objectives.table_1(-8.7, 12.4)[name]
    x, eps, _ = batch(1)

    def published(t: Tensor) -> Tensor:
        return loss(crooked_network, x.expand(len(t), -1), t, eps.expand(len(t), -1))

    uniform = schedules.LinearLogSNR(-8.7, 12.4)
    weighted = WeightedLoss(loss.weighting, uniform, loss.prediction)

    def weighted_at(t: Tensor) -> Tensor:
        return weighted(crooked_network, x.expand(len(t), -1), t=t, eps=eps.expand(len(t), -1)).loss

    # 2048 panels: Min-SNR has a kink
    t, weight = objectives.time_quadrature(loss.schedule, panels=2048, order=4)
    expected_t, expected_weight = objectives.time_quadrature(uniform, panels=2048, order=4)
    ours, theirs = (weight * published(t)).sum(), (expected_weight * weighted_at(expected_t)).sum()
    assert ours.item() == pytest.approx(2 * theirs.item(), rel=1e-7)


@pytest.mark.parametrize(("prediction", "schedule"), list(product(PREDICTIONS, schedules.TABLE)))
def test_published_loss_at_one_time(prediction: str, schedule: str) -> None:
    """½ c ‖target error‖² = ½ (w/p) ‖ε error‖² already at every single t."""
    x, eps, t = batch(64)
    noise = schedules.get(schedule, logsnr_min=-8.7, logsnr_max=12.4)
    published = PublishedLoss(PREDICTIONS[prediction], noise, weightings.Sigmoid())
    weighted = WeightedLoss(published.weighting, noise, PREDICTIONS[prediction])
    parts = weighted(crooked_network, x, t=t, eps=eps)
    assert torch.allclose(published(crooked_network, x, t, eps), 2 * parts.loss, rtol=1e-8)


# The weighted loss ----------------------------------------------------------------------------------------------------


def test_parts_agree_with_each_other() -> None:
    x, eps, t = batch(256)
    schedule, weighting = schedules.Cosine(-8, 8), weightings.EDM()
    parts = WeightedLoss(weighting, schedule, predictions.EPS)(GAUSSIAN, x, t=t, eps=eps)
    assert torch.equal(parts.logsnr, schedule.logsnr(t))
    assert torch.allclose(parts.importance, weighting(parts.logsnr) / schedule.density(parts.logsnr), rtol=1e-12)
    assert torch.allclose(parts.weighted_error, weighting(parts.logsnr) * parts.eps_error, rtol=1e-12)
    assert torch.allclose(parts.loss, 0.5 * parts.importance * parts.eps_error, rtol=1e-12)
    assert parts.mean() == parts.loss.mean()
    for part in (parts.loss, parts.eps_error, parts.weighted_error, parts.logsnr, parts.importance):
        assert part.shape == (256,)


def test_eps_error_is_summed_over_all_dimensions() -> None:
    x, eps = torch.zeros(3, 1, 4, 4), torch.ones(3, 1, 4, 4)
    loss = WeightedLoss(weightings.ELBO(), schedules.LinearLogSNR(-8, 8), predictions.EPS)
    parts = loss(lambda z, logsnr: torch.zeros_like(z), x, eps=eps)
    assert torch.equal(parts.eps_error, torch.full((3,), 16.0))
    assert torch.allclose(parts.loss, torch.full((3,), 0.5 * 16 * 16.0))  # ½ · (λmax − λmin) · 16


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_loss_is_the_same_whatever_the_network_predicts(name: str) -> None:
    x, eps, t = batch(256)
    schedule, weighting = schedules.Cosine(-8, 8), weightings.Sigmoid()
    expected = WeightedLoss(weighting, schedule, predictions.EPS)(GAUSSIAN, x, t=t, eps=eps)
    loss = WeightedLoss(weighting, schedule, PREDICTIONS[name])
    parts = loss(oracle_network(PREDICTIONS[name]), x, t=t, eps=eps)
    assert torch.allclose(parts.loss, expected.loss, rtol=1e-8)


EVEN: dict[str, TruncatedSchedule] = {
    "linear log-SNR": schedules.LinearLogSNR(-8, 8),
    "flow matching": schedules.FlowMatchingOT(-8, 8),
    "cosine": schedules.Cosine(-8, 8),
    "EDM training": schedules.EDMTraining(-8, 8, p_std=2.4),
    "EDM sampling": schedules.EDMSampling(-8, 8),
}
"""Schedules under which the Monte Carlo estimate on [−8, 8] can be trusted."""


@pytest.mark.parametrize("schedule", EVEN.values(), ids=EVEN)
@pytest.mark.parametrize("name", ["elbo", "sigmoid", "edm", "iddpm", "edm_monotonic"])
def test_the_mean_over_t_is_the_quadrature(name: str, schedule: TruncatedSchedule) -> None:
    weighting = weightings.get(name)
    x, eps, _ = batch(20_000)
    t = torch.rand(len(x), generator=torch.Generator().manual_seed(3), dtype=F64)
    parts = WeightedLoss(weighting, schedule, predictions.EPS)(GAUSSIAN, x, t=t, eps=eps)
    exact = objectives.weighted_loss_by_quadrature(GAUSSIAN.eps_error, weighting, schedule)
    error = parts.loss.std() / math.sqrt(len(x))
    assert (parts.mean() - exact).abs() < 4.5 * error
    assert error < 0.05 * exact


@pytest.mark.parametrize("name", TABLE_1)
def test_the_quadrature_does_not_see_the_schedule(name: str) -> None:
    values = [
        objectives.weighted_loss_by_quadrature(
            GAUSSIAN.eps_error, TABLE_1[name], schedules.get(schedule, logsnr_min=-8.7, logsnr_max=12.4), panels=256
        ).item()
        for schedule in schedules.TABLE
    ]
    # the kink of Min-SNR falls within a panel
    assert max(values) / min(values) - 1 < (1e-7 if name == "Min-SNR" else 1e-8)


def test_the_quadrature_sees_the_end_points() -> None:
    wide, narrow = (
        objectives.weighted_loss_by_quadrature(GAUSSIAN.eps_error, weightings.ELBO(), schedules.Cosine(-8, high))
        for high in (8.0, 8.1)
    )
    assert abs(wide.item() / narrow.item() - 1) > 1e-3


def test_the_elbo_of_a_gaussian_in_closed_form() -> None:
    """½ ∫ Σ α²s/(α²s + σ²) dλ = ½ Σ log(1 + s e^λ), between the ends."""
    expected = 0.5 * 8 * (math.log1p(0.25 * math.exp(12)) - math.log1p(0.25 * math.exp(-8)))
    value = objectives.weighted_loss_by_quadrature(GAUSSIAN.eps_error, weightings.ELBO(), schedules.Cosine(-8, 12))
    assert value.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", schedules.TABLE)
def test_quadrature_weights_are_a_distribution(name: str) -> None:
    t, weight = objectives.time_quadrature(schedules.get(name, logsnr_min=-8.7, logsnr_max=12.4))
    assert weight.sum().item() == pytest.approx(1, abs=1e-12)
    assert (weight * t).sum().item() == pytest.approx(0.5, abs=1e-12)
    assert (weight * t**2).sum().item() == pytest.approx(1 / 3, abs=1e-12)


# Its variance (Section 2: w = 1 on [−15, 15], N(0, ¼ I₆₄)) ------------------------------------------------------------


def std_of_one_example(schedule: TruncatedSchedule, dim: int = 64, variance: float = 0.25) -> tuple[float, float]:
    """Mean and standard deviation of ½ (1/p) ‖ε̂ − ε‖², by quadrature: ‖ε̂ − ε‖² is a multiple of χ²_dim."""
    level = torch.linspace(*schedule.ends, 200_001, dtype=F64)
    ratio = variance / (variance + torch.exp(-level))  # error of each dimension
    fourth = ratio**2 * dim * (dim + 2)
    mean = 0.5 * torch.trapezoid(ratio * dim, level)
    second = 0.25 * torch.trapezoid(fourth / schedule.density(level), level)
    return mean.item(), (second - mean**2).sqrt().item()


@pytest.mark.parametrize(
    ("family", "std"),
    [
        (schedules.LinearLogSNR, 445),
        (schedules.FlowMatchingOT, 2.7e3),
        (schedules.Cosine, 3.4e3),
        (schedules.EDMTraining, 5.3e4),
        (schedules.LogitNormal, 4.8e7),
    ],
)
def test_variance_depends_on_the_schedule(family: Callable[[float, float], TruncatedSchedule], std: float) -> None:
    mean, expected = std_of_one_example(family(-15, 15))
    assert mean == pytest.approx(435.6, abs=0.1)
    assert expected == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("schedule", [schedules.LinearLogSNR(-15, 15), schedules.FlowMatchingOT(-15, 15)], ids=str)
def test_variance_measured(schedule: TruncatedSchedule) -> None:
    oracle, size = oracles.Gaussian.isotropic(64, 0.25), 20_000
    generator = torch.Generator().manual_seed(5)
    t = torch.rand(size, generator=generator, dtype=F64)
    loss = WeightedLoss(weightings.ELBO(), schedule, predictions.EPS)
    value = loss(oracle, oracle.sample(size, generator), t=t, generator=generator).loss
    mean, std = std_of_one_example(schedule)
    squares = (value - mean) ** 2
    assert abs(value.mean().item() - mean) < 4.5 * std / math.sqrt(size)
    assert abs(squares.mean().item() - std**2) < 4.5 * squares.std().item() / math.sqrt(size)


def test_low_discrepancy_lowers_the_variance_of_a_batch() -> None:
    loss = WeightedLoss(weightings.ELBO(), schedules.LinearLogSNR(-10, 10), predictions.EPS)
    generator = torch.Generator().manual_seed(0)
    even, independent = [], []
    for _ in range(200):
        x = GAUSSIAN.sample(64, generator)
        even.append(loss(GAUSSIAN, x, generator=generator).mean())
        t = torch.rand(64, generator=generator, dtype=F64)
        independent.append(loss(GAUSSIAN, x, t=t, generator=generator).mean())
    assert torch.stack(even).std() < 0.6 * torch.stack(independent).std()


# The warning ----------------------------------------------------------------------------------------------------------


def test_warns_where_an_estimate_would_hang_on_few_examples() -> None:
    with pytest.warns(UserWarning, match=r"w/p at log-SNR -15\.00 is .*e\+\d\d times its average"):
        WeightedLoss(weightings.ELBO(), schedules.LogitNormal(-15, 15, mean=-1), predictions.EPS)
    with pytest.warns(UserWarning, match=r"w/p at log-SNR -15\.00"):
        WeightedLoss(weightings.ELBO(), schedules.EDMTraining(-15, 15), predictions.EPS)
    with pytest.warns(UserWarning, match=r"w/p at log-SNR 20\.00"):
        WeightedLoss(weightings.ELBO(), schedules.Cosine(-15, 20, shift=-3), predictions.EPS)


def test_the_level_that_it_names_is_the_worst() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = WeightedLoss(weightings.ELBO(), schedules.EDMTraining(-15, 15), predictions.EPS)
    level, ratio = loss.largest_importance()
    assert level == -15
    # E_p[w/p] = ∫ w dλ = 30
    assert ratio == pytest.approx(1 / loss.schedule.density(torch.tensor(-15.0, dtype=F64)).item() / 30, rel=1e-3)


@pytest.mark.parametrize("name", ["elbo", "sigmoid", "edm", "edm_monotonic", "iddpm", "p2"])
@pytest.mark.parametrize("family", [schedules.LinearLogSNR, schedules.Cosine, schedules.FlowMatchingOT])
def test_does_not_warn_without_need(name: str, family: Callable[[float, float], TruncatedSchedule]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WeightedLoss(weightings.get(name), family(-8.7, 12.4), predictions.V)


# Time -----------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 2**31))
def test_one_time_in_every_stratum(size: int, seed: int) -> None:
    t = objectives.low_discrepancy_time(size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    assert ((t >= 0) & (t < 1)).all()
    spacing = t.sort().values.diff()
    assert torch.allclose(spacing, torch.full_like(spacing, 1 / size), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_times_stay_below_one_when_rounded(dtype: torch.dtype) -> None:
    t = objectives.low_discrepancy_time(10_000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert t.dtype == dtype
    assert 0 <= t.min() <= t.max() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_time_alone_is_uniform(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.stack([objectives.low_discrepancy_time(4, generator=generator, dtype=dtype) for _ in range(4000)])
    assert t.dtype == dtype
    for column in t.T:
        counts = torch.histc(column, bins=8, min=0, max=1)
        assert ((counts - 500) ** 2 / 500).sum() < 30  # χ² with 7 degrees: 30 is passed once in 10⁴


def test_the_order_of_times_is_random() -> None:
    """In order, they would tie the noise level of an example to its place in a sorted batch."""
    generator = torch.Generator().manual_seed(0)
    t = torch.stack([objectives.low_discrepancy_time(4, generator=generator, dtype=F64) for _ in range(3000)])
    steps = ((t[:, 1] - t[:, 0]) % 1 * 4).round().long().bincount(minlength=4)
    assert steps[0] == 0
    assert ((steps[1:] - 1000).abs() < 130).all()


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        objectives.low_discrepancy_time(0)


# dtypes, seeds, gradients, compilation, refusals ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:w/p at log-SNR")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [(-8.7, 12.4), (-8.7, 8.1), (-15.1, 15.1), (-30.0, 30.0)])
def test_finite_at_the_very_ends(dtype: torch.dtype, ends: tuple[float, float]) -> None:
    """t = 0 and t = 1: an end point that float32 rounds outwards must not have density zero."""
    x, eps, _ = batch(2, dtype=dtype)
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    for schedule in (schedules.FlowMatchingOT(*ends), schedules.LinearLogSNR(*ends)):
        for prediction in PREDICTIONS.values():
            weight = torch.ones(8, dtype=dtype, requires_grad=True)
            loss = WeightedLoss(weightings.EDMMonotonic(), schedule, prediction)
            parts = loss(lambda z, logsnr, weight=weight: z * weight, x, t=t, eps=eps)
            assert torch.isfinite(parts.loss).all()
            assert parts.loss.dtype == dtype
            (slope,) = torch.autograd.grad(parts.mean(), weight)
            assert torch.isfinite(slope).all()


def of_no_dimension(name: str, dtype: torch.dtype, seed: int = 0, size: int = 40_000) -> tuple[Tensor, float, float]:
    """L_w of ε̂ = 0 in one dimension, by Monte Carlo: levels, mean, and its standard error."""
    loss = WeightedLoss(weightings.get(name), schedules.LinearLogSNR(-12, 12), predictions.EPS)
    x, generator = torch.zeros(size, 1, dtype=dtype), torch.Generator().manual_seed(seed)
    parts = loss(lambda z, logsnr: torch.zeros_like(z), x, generator=generator)
    assert all(part.dtype == torch.float32 for part in vars(parts).values())
    return parts.logsnr, parts.mean().item(), parts.loss.std().item() / math.sqrt(size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("name", "nats"), [("elbo", 12.0), ("sigmoid", 7.0), ("v_cosine", math.exp(6))])
def test_the_precision_of_the_data_does_not_move_the_loss(name: str, nats: float, dtype: torch.dtype) -> None:
    """½ ∫ w dλ on [−12, 12]."""
    levels, mean, standard_error = of_no_dimension(name, dtype)
    assert abs(mean - nats) < 4 * standard_error
    assert standard_error < 0.03 * nats
    assert -12 <= levels.min() < -11.99
    assert len(levels.unique()) > 39_000, "bfloat16 has few levels to draw from"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["eps", "v", "F"])
def test_networks_in_half_precision_see_their_dtype_and_levels_in_single(name: str, dtype: torch.dtype) -> None:
    """And what rounding z takes away is no error of ε: x̂ = 0 and ε̂ = z/σ agree with float64 to half's digits."""
    x, eps, t = (value.to(dtype) for value in batch(64))
    seen = []

    def network(z: Tensor, logsnr: Tensor) -> Tensor:
        seen.append((z.dtype, logsnr.dtype))
        return torch.zeros_like(z)

    loss = WeightedLoss(weightings.Sigmoid(), schedules.Cosine(-8, 8), PREDICTIONS[name])
    half = loss(network, x, t=t.float(), eps=eps)
    double = loss(network, x.double(), t=t.double(), eps=eps.double())
    assert seen == [(dtype, torch.float32), (torch.float64, torch.float64)]
    torch.testing.assert_close(half.loss.double(), double.loss, rtol=1e-4, atol=0)
    PublishedLoss(PREDICTIONS[name], schedules.Cosine(-8, 8))(network, x, t, eps)
    assert seen[-1] == (dtype, torch.float32)


def test_levels_may_be_given_in_the_place_of_times() -> None:
    x, eps, t = batch(64)
    loss = WeightedLoss(weightings.Sigmoid(), schedules.Cosine(-8, 8), predictions.EPS)
    by_time, by_level = loss(GAUSSIAN, x, t=t, eps=eps), loss(GAUSSIAN, x, logsnr=loss.schedule.logsnr(t), eps=eps)
    assert torch.equal(by_level.loss, by_time.loss)
    table = loss.schedule.logsnr((torch.arange(1000, dtype=F64) + 0.5) / 1000)
    index = torch.randint(1000, (64,), generator=torch.Generator().manual_seed(0))
    seen = []

    def of_integers(z: Tensor, logsnr: Tensor) -> Tensor:
        seen.append(torch.searchsorted(-table, -logsnr))
        return torch.zeros_like(z)

    parts = loss(of_integers, x, logsnr=table[index], eps=eps)
    assert torch.equal(seen[0], index)
    assert torch.allclose(parts.importance, loss.weighting(table[index]) / loss.schedule.density(table[index]))
    with pytest.raises(ValueError, match="give either t or logsnr, not both"):
        loss(GAUSSIAN, x, t=t, logsnr=table[index])
    with pytest.raises(ValueError, match=r"logsnr must lie in \[-8, 8\], got 8\.1"):
        loss(GAUSSIAN, x, logsnr=torch.full((64,), 8.1))
    with pytest.raises(ValueError, match=r"logsnr must have one level an example, shape \(64,\), got \(3,\)"):
        loss(GAUSSIAN, x, logsnr=table[:3])
    with pytest.raises(TypeError, match=r"logsnr must be a floating-point tensor, got torch\.int64"):
        loss(GAUSSIAN, x, logsnr=index)


def test_what_is_drawn_follows_the_generator() -> None:
    loss = WeightedLoss(weightings.Sigmoid(), schedules.Cosine(-8, 8), predictions.EPS)
    x = batch(16)[0]
    first, second, other = (loss(GAUSSIAN, x, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first.loss, second.loss)
    assert not torch.equal(first.loss, other.loss)


def test_conditioning_reaches_the_network() -> None:
    seen = {}

    def network(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        seen["label"] = label
        return torch.zeros_like(z)

    label = torch.arange(4)
    x, eps, t = batch(4)
    WeightedLoss(weightings.ELBO(), COSINE, predictions.EPS)(network, x, label=label)
    assert seen.pop("label") is label
    PublishedLoss(predictions.EPS, COSINE)(network, x, t, eps, label=label)
    assert seen["label"] is label


@pytest.mark.parametrize("schedule", schedules.TABLE)
def test_the_loss_compiles_as_one_graph(schedule: str) -> None:
    torch.compiler.reset()
    noise = schedules.get(schedule, logsnr_min=-8, logsnr_max=8)
    loss = WeightedLoss(weightings.EDMMonotonic(), noise, predictions.V)
    x, eps, t = batch(16, dtype=torch.float32)

    def value(t: Tensor) -> Tensor:
        return loss(crooked_network, x, t=t, eps=eps).mean()

    compiled = torch.compile(value, fullgraph=True, backend="eager")
    assert compiled(t).item() == pytest.approx(value(t).item(), rel=1e-6)


GOOD: dict[str, object] = {"weighting": weightings.ELBO(), "schedule": COSINE, "prediction": predictions.EPS}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "weighting",
            "sigmoid",
            r"weighting must be a Weighting, got 'sigmoid' \(str\); take one of paperlib.weightings",
        ),
        ("weighting", lambda logsnr: -logsnr, r"wrap a function that returns log w in weightings.Custom"),
        ("weighting", weightings.Sigmoid, r"weighting must be a Weighting.*make an object of it, Sigmoid\(…\)"),
        ("schedule", "cosine", r"schedule must be a NoiseSchedule, got 'cosine'.*schedules.Cosine"),
        ("schedule", schedules.Cosine, r"make an object of it, Cosine\(…\)"),
        ("prediction", "v", r"prediction must be a Prediction, got 'v'.*predictions\.V"),
        ("prediction", predictions.VPrediction, r"make an object of it, VPrediction\(…\)"),
    ],
)
def test_wrong_types_are_refused_where_they_are_given(name: str, given: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        WeightedLoss(**{**GOOD, name: given})  # type: ignore[arg-type]
    published = {"loss_weight" if key == "weighting" else key: value for key, value in {**GOOD, name: given}.items()}
    if name == "weighting":
        message = r"loss_weight must be a Weighting or LossWeight.*(loss_weights\.MinSNR|make an object of it, Sigmoid)"
    with pytest.raises(TypeError, match=message):
        PublishedLoss(**published)  # type: ignore[arg-type]


def test_bad_input_is_refused() -> None:
    loss = WeightedLoss(weightings.ELBO(), COSINE, predictions.EPS)
    x, eps, t = batch(4)
    broken = x.clone()
    broken[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"x has 1 value\(s\) that are NaN or infinite; clean the data"):
        loss(GAUSSIAN, broken)
    with pytest.raises(ValueError, match=r"x has 1 value\(s\) that are NaN"):
        PublishedLoss(predictions.EPS, COSINE)(GAUSSIAN, broken, t, eps)
    with pytest.raises(ValueError, match=r"t must have one time an example, shape \(4,\), got \(3,\)"):
        loss(GAUSSIAN, x, t=t[:3])
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
        loss(GAUSSIAN, x, t=t + 1.5 - t)
    with pytest.raises(ValueError, match=r"eps has shape \(4, 3\), but x has \(4, 8\)"):
        loss(GAUSSIAN, x, eps=eps[:, :3])
    with pytest.raises(ValueError, match=r"output has shape \(4, 3\), but z has \(4, 8\)"):
        loss(lambda z, logsnr: z[:, :3], x)
    for wrong in ((x, x), None, {"sample": x}):
        with pytest.raises(TypeError, match=f"output must be a torch.Tensor, got {type(wrong).__name__}; of a tuple"):
            loss(lambda z, logsnr, wrong=wrong: wrong, x)
        with pytest.raises(TypeError, match=f"output must be a torch.Tensor, got {type(wrong).__name__}; of a tuple"):
            PublishedLoss(predictions.V, COSINE)(lambda z, logsnr, wrong=wrong: wrong, x, t, eps)


def test_images_that_are_integers_get_the_advice_to_scale_them() -> None:
    """Not .float() alone, with which one would train on 0 … 255."""
    x, eps, t = batch(4)
    pixels = (x.abs() * 100).to(torch.uint8)
    for call in (
        lambda given: WeightedLoss(weightings.ELBO(), COSINE, predictions.EPS)(GAUSSIAN, given),
        lambda given: PublishedLoss(predictions.EPS, COSINE)(GAUSSIAN, given, t, eps),
    ):
        with pytest.raises(TypeError, match=r"got torch\.uint8; scale pixels .*\[-1, 1\].*\.float\(\) alone leaves"):
            call(pixels)
        with pytest.raises(TypeError, match=r"got torch\.int64; convert numbers with \.float\(\), but scale pixels"):
            call(pixels.long())


def test_a_published_loss_broadcasts_nothing() -> None:
    """Neither a time nor an output of a batch of one."""
    x, eps, t = batch(4)
    loss = PublishedLoss(predictions.V, COSINE)
    with pytest.raises(ValueError, match=r"t must have one time an example, shape \(4,\), got \(1,\)"):
        loss(GAUSSIAN, x, t[:1], eps)
    with pytest.raises(ValueError, match=r"output has shape \(1, 8\), but x has \(4, 8\)"):
        loss(lambda z, logsnr: z[:1], x, t, eps)
    with pytest.raises(ValueError, match=r"eps has shape \(1, 8\), but x has \(4, 8\)"):
        loss(GAUSSIAN, x, t, eps[:1])
