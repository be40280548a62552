"""p_w as a measure: point masses at steps of w, kinks, tables and bins, zeros, and the verdict of what was measured."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from paperlib import elbo, objectives, oracles, predictions, schedules, weightings
from paperlib.adaptive import AdaptiveSchedule
from paperlib.augmentation import Augmentation
from paperlib.quadrature import LevelFunction
from paperlib.weightings import Binned, Custom, Tabulated, Weighting

F64 = torch.float64
LOW, HIGH = -10.0, 10.0
DATA, X = oracles.Gaussian.isotropic(1, 0.25), torch.tensor([0.3], dtype=F64)


def error(logsnr: Tensor) -> Tensor:
    return DATA.eps_error_at(X, logsnr)


def kl(logsnr: Tensor) -> Tensor:
    return DATA.kl(X, logsnr)


def step(at: float, log_factor: float, **known: tuple[float, ...]) -> Custom:
    """log w falls (or rises) by ``log_factor`` at a level."""
    return Custom(lambda logsnr: torch.where(logsnr < at, 0.0, -log_factor).to(logsnr.dtype), **known)


def learned() -> AdaptiveSchedule:
    schedule, generator = AdaptiveSchedule(LOW, HIGH, bins=50), torch.Generator().manual_seed(0)
    for _ in range(20):
        logsnr = schedule.logsnr(torch.rand(256, generator=generator, dtype=F64))
        schedule.update(logsnr, 0.01 + torch.exp(-0.1 * (logsnr - 2) ** 2))
    return schedule


NODES = torch.linspace(LOW, HIGH, 21, dtype=F64)
ODD = {
    "a step of 2 at 0": Custom(lambda logsnr: torch.where(logsnr < 0, math.log(2), 0.0).to(logsnr.dtype)),
    "a step up on a slope": Custom(lambda logsnr: -logsnr / 4 + (logsnr > 1.2345) * 1.0),
    "three steps and a kink": Custom(
        lambda logsnr: (logsnr < -7.77) * 0.5 - (logsnr > -7.5) * 0.25 + (logsnr > 3) * 0.1 - (logsnr - 5).clamp(min=0)
    ),
    "zero above 4.1": Custom(lambda logsnr: torch.where(logsnr < 4.1, -logsnr / 3, -torch.inf)),
    "falls to zero": Custom(lambda logsnr: torch.log((4.0 - logsnr).clamp(min=0))),
    "falls faster than floats do": Custom(lambda logsnr: -torch.exp(logsnr**3)),
    "tabulated": Tabulated(NODES, torch.sigmoid(2 - NODES)),
    "tabulated, signed": Tabulated(NODES, 1 / torch.cosh(NODES / 2)),
    "binned": Binned(NODES, torch.sigmoid(2 - NODES[:-1])),
    "binned, uneven, signed": Binned(
        torch.tensor([-10.0, -3.3, 0.1, 0.2, 10.0], dtype=F64), torch.tensor([1.0, 2.0, 0.5, 0.7])
    ),
    "v under a learned schedule": objectives.PublishedLoss(predictions.V, learned()).weighting,
    "Min-SNR, shifted": weightings.MinSNR().shifted(-1.1),
    "rounded to float32": Custom(lambda logsnr: torch.nn.functional.logsigmoid(2 - logsnr.float())),
}
every_odd_one = pytest.mark.parametrize("weighting", ODD.values(), ids=ODD)


@every_odd_one
def test_whatever_w_the_measure_adds_up_to_one(weighting: Weighting) -> None:
    measure = Augmentation(weighting, LOW, HIGH)
    assert measure.total == pytest.approx(1, abs=1e-6)
    assert (measure.negative_mass > 1e-6) == (not weighting.is_monotonic(LOW, HIGH, tolerance=1e-6))


@every_odd_one
def test_corollary_for_every_odd_weighting(weighting: Weighting) -> None:
    weighted = elbo.weighted_loss(error, weighting, LOW, HIGH)
    tolerance = 1e-6 if weighting is ODD["rounded to float32"] else 1e-9
    torch.testing.assert_close(elbo.augmented_loss(kl, weighting, LOW, HIGH), weighted, rtol=tolerance, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.floats(-9.9, 9.9), st.floats(-3, 3).filter(lambda size: abs(size) > 1e-3), st.booleans())
def test_a_step_is_a_point_mass_wherever_it_is(at: float, size: float, known: bool) -> None:
    measure = Augmentation(step(at, size, **({"breaks": (at,)} if known else {})), LOW, HIGH)
    (level,), (mass,) = (part.tolist() for part in measure.atoms)
    assert level == pytest.approx(at, abs=1e-12)
    assert mass == pytest.approx(1 - math.exp(-size), rel=1e-6)
    assert measure.clean_mass == pytest.approx(math.exp(-size), rel=1e-6)
    assert measure.negative_mass == pytest.approx(max(0.0, math.exp(-size) - 1), rel=1e-6)


def test_the_values_of_a_step_of_two() -> None:
    """log w = log 2 below 0: with a density alone the mass is ½ and the loss 3.98700."""
    falling, rising = ODD["a step of 2 at 0"], step(2.0, -math.log(2))
    assert Augmentation(falling, LOW, HIGH).total == pytest.approx(1)
    assert elbo.augmented_loss(kl, falling, LOW, HIGH).item() == pytest.approx(4.03457, abs=5e-6)
    assert elbo.weighted_loss(error, falling, LOW, HIGH).item() == pytest.approx(4.03457, abs=5e-6)
    assert Augmentation(rising, LOW, HIGH).negative_mass == pytest.approx(1, rel=1e-6)


def test_every_bin_of_a_learned_schedule_is_a_step() -> None:
    level, _ = Augmentation(ODD["v under a learned schedule"], LOW, HIGH).atoms
    torch.testing.assert_close(level, torch.linspace(LOW, HIGH, 51, dtype=F64)[1:-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "weighting",
    [
        weightings.MinSNR(3.0),
        weightings.MinSNR(3.0).shifted(-1.1),
        weightings.EDMMonotonic(),
        ODD["tabulated"].shifted(0.35),
        objectives.PublishedLoss(predictions.V, learned()).weighting,
        objectives.PublishedLoss(predictions.V, schedules.Cosine(-10, 10), ODD["binned"]).weighting,
    ],
    ids=str,
)
def test_an_integral_that_ends_its_panels_at_the_breaks_needs_no_halving(weighting: Weighting) -> None:
    calls = []

    def counted(logsnr: Tensor) -> Tensor:
        calls.append(len(logsnr))
        return error(logsnr)

    elbo.weighted_loss(counted, weighting, LOW + 0.5, HIGH - 0.5)
    assert len(calls) == 2


def test_smooth_weightings_have_no_atoms() -> None:
    for name in weightings.WEIGHTINGS:
        assert len(Augmentation(weightings.get(name), LOW, HIGH).atoms[0]) == 0, name


def test_steps_at_the_ends_belong_to_nobody() -> None:
    """∫ over a range does not see w at a point, so bins that begin or end there do not count."""
    binned = Binned(torch.tensor([-12.0, -4.0, 1.0, 5.0, 9.0], dtype=F64), torch.tensor([8.0, 4.0, 2.0, 1.0]))
    measure = Augmentation(binned, -4.0, 5.0)
    assert measure.atoms[0].tolist() == pytest.approx([1.0])
    assert (measure.scale, measure.clean_mass) == pytest.approx((4.0, 0.5))
    assert measure.total == pytest.approx(1)


def test_a_part_that_is_not_found_is_said() -> None:
    """A slope that autograd cannot see: density zero, no steps; the total would be the clean mass alone."""
    unseen = Custom(lambda logsnr: -logsnr.detach() / 4)
    with pytest.raises(ValueError, match=r"adds up to .*, not 1: .* give its steps and kinks as breaks"):
        _ = Augmentation(unseen, LOW, HIGH).total
    with pytest.raises(ValueError, match=r"not 1"):
        elbo.augmented_loss(kl, unseen, LOW, HIGH)


@pytest.mark.parametrize("bias", [-1.0, 2.0])
def test_drawn_levels_are_logistic_for_the_sigmoid(bias: float) -> None:
    levels = Augmentation(weightings.Sigmoid(bias), -20, 20).sample(4000, torch.Generator().manual_seed(0))
    assert stats.kstest(levels.numpy(), "logistic", args=(bias,)).pvalue > 1e-3


def test_drawn_levels_fall_on_the_atoms_as_often_as_they_weigh() -> None:
    measure = Augmentation(ODD["binned"], LOW, HIGH)
    level, mass = measure.atoms
    drawn = measure.sample(20_000, torch.Generator().manual_seed(0))
    share = torch.stack([((drawn - at).abs() < 1e-9).double().mean() for at in (*level, HIGH)])
    expected = torch.cat([mass, torch.tensor([measure.clean_mass])])
    assert ((share - expected).abs() < 4.5 * (expected / 20_000).sqrt() + 1e-9).all()
    with pytest.raises(ValueError, match="its p_w is no distribution"):
        Augmentation(weightings.EDM(), LOW, HIGH).sample(3)


def test_the_expectation_is_that_of_scipy() -> None:
    w = weightings.Sigmoid(2.0)
    moment = Augmentation(w, -12, 12).integral(lambda logsnr: logsnr**2).item()
    inner, _ = integrate.quad(lambda lam: lam**2 * stats.logistic.pdf(lam, 2), -12, 12, epsabs=1e-12, limit=200)
    clean = 144 * stats.logistic.sf(12, 2)
    assert moment == pytest.approx((inner + clean) / stats.logistic.sf(-12, 2), rel=1e-9)


# Zeros of w ----------------------------------------------------------------------------------------------------------


V = objectives.PublishedLoss(predictions.V, schedules.Cosine(-12, 12)).weighting
EPS = objectives.PublishedLoss(predictions.EPS, schedules.Cosine(-12, 12)).weighting


@pytest.mark.parametrize(
    ("ends", "falls"), [((), True), ((-12, 12), True), ((-12, 15), True), ((-15, 12), False), ((-15, 15), False)]
)
def test_zeros_are_compared_not_subtracted(ends: tuple[float, ...], falls: bool) -> None:
    assert V.is_monotonic(*ends) is falls


def test_a_weight_that_ends_has_its_last_mass_there() -> None:
    level, mass = Augmentation(V, -12, 15).atoms
    assert level.tolist() == pytest.approx([12.0])
    assert mass.tolist() == pytest.approx([math.exp(-12)])
    assert weightings.clean_mass(V, -12, 15) == 0


def test_a_weight_that_is_zero_or_infinite_where_it_is_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log w = -inf at logsnr_min \(-13\).*choose a range"):
        weightings.clean_mass(EPS, -13, 13)
    infinite = Custom(lambda logsnr: torch.where(logsnr > 9, torch.inf, 0.0))
    with pytest.raises(ValueError, match=r"inf at logsnr_max \(10\)"):
        weightings.clean_mass(infinite, -10, 10)


def test_formulas_have_no_range_of_their_own() -> None:
    with pytest.raises(ValueError, match="has no range of its own; give logsnr_min and logsnr_max"):
        weightings.IDDPM().is_monotonic()
    assert V.shifted(1.5).ends == (-10.5, 13.5)
    assert V.is_monotonic(-5)


# The verdict ---------------------------------------------------------------------------------------------------------


def test_tolerance_is_of_the_whole_rise() -> None:
    """A thousand small rises are one large one."""
    creeping = Custom(lambda logsnr: 1e-4 * logsnr)
    assert not creeping.is_monotonic(-10, 10, tolerance=1.9e-3)
    assert creeping.is_monotonic(-10, 10, tolerance=2.1e-3)


@given(st.integers(0, 2**31), st.floats(0.005, 0.05))
@settings(max_examples=30, deadline=None)
def test_noise_on_a_falling_weight_is_within_error(seed: int, relative: float) -> None:
    """Measured where w is flat, so that some value rises."""
    true = torch.cat([torch.ones(30, dtype=F64), torch.linspace(1, 0.1, 20, dtype=F64)])
    noise = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=F64).clamp(-2.9, 2.9)
    measured = Tabulated(torch.linspace(-9, 9, 50, dtype=F64), true * (1 + relative * noise), relative * true)
    assert measured.monotonicity() == "within error"
    assert not measured.is_monotonic()
    assert Tabulated(measured.logsnr, measured.w).monotonicity() == "not monotone"


def test_a_rise_beyond_the_error_is_no_noise() -> None:
    levels = torch.linspace(-9, 9, 50, dtype=F64)
    rising = 1 / torch.cosh(levels / 4)
    assert Tabulated(levels, rising, 0.02 * rising).monotonicity() == "not monotone"
    assert Tabulated(levels, rising, 0.02 * rising).shifted(1.0).monotonicity() == "not monotone"
    falling = torch.sigmoid(-levels)
    assert Tabulated(levels, falling, 0.5 * falling).monotonicity() == "monotone"


def test_the_error_of_a_measured_loss_weight_is_that_of_its_objective() -> None:
    levels = torch.linspace(-12, 12, 40, dtype=F64)
    noise = 1 + 0.02 * torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=F64)
    flat = (torch.sqrt(torch.exp(levels))) * noise  # v under cosine is e^{-λ/2}: flat together
    measured = Tabulated(levels, flat, 0.02 * flat)
    loss = objectives.PublishedLoss(predictions.V, schedules.Cosine(-12, 12), measured)
    assert loss.weighting.monotonicity() == "within error"


def test_a_weight_that_is_nan_is_said() -> None:
    class Broken(Weighting):
        def log(self, logsnr: Tensor) -> Tensor:
            return torch.where(logsnr > 5, torch.nan, 0.0)

    with pytest.raises(ValueError, match=r"is NaN at log-SNR 5\.0"):
        Broken().is_monotonic(-9, 9)
    with pytest.raises(ValueError, match=r"is NaN at log-SNR 5\.0"):
        objectives.WeightedLoss(Broken(), schedules.Cosine(-9, 9), predictions.EPS)


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_hold_their_values(dtype: torch.dtype) -> None:
    w = torch.sigmoid(2 - NODES)
    tabulated, binned = Tabulated(NODES, w), Binned(NODES, w[:-1])
    torch.testing.assert_close(tabulated(NODES.to(dtype)), w.to(dtype), rtol=1e-5, atol=0)
    middle = (NODES[1:] + NODES[:-1]) / 2
    torch.testing.assert_close(tabulated(middle), (w[1:] * w[:-1]).sqrt())
    torch.testing.assert_close(binned(middle.to(dtype)), w[:-1].to(dtype), rtol=1e-5, atol=0)
    for table in (tabulated, binned):
        assert table.log(NODES.to(dtype).reshape(3, 7)).dtype == dtype
        assert table(torch.tensor([-10.1, 10.1], dtype=dtype)).tolist() == [0, 0]
        assert table.ends == (LOW, HIGH)


@pytest.mark.parametrize(
    ("levels", "w", "message"),
    [
        ([0.0, 1.0, 1.0], [1.0, 1.0, 1.0], "ascending levels"),
        ([0.0, 1.0], [1.0, 1.0, 1.0], "ascending levels, 3 for 3 w; got 2"),
        ([0.0, 1.0], [1.0, 0.0], "must be positive"),
        ([0.0, math.nan], [1.0, 1.0], "logsnr must be a row of finite numbers"),
    ],
)
def test_tables_that_are_none_are_refused(levels: list[float], w: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tabulated(torch.tensor(levels), torch.tensor(w))


def test_tables_are_known_by_all_their_digits() -> None:
    """A run is known by the repr of its weighting: that of a tensor shows four digits and leaves out the middle."""
    w = torch.linspace(1, 0.5, 2000, dtype=F64)
    levels, other = torch.linspace(-9, 9, 2000, dtype=F64), w.clone()
    other[1000] *= 1 + 1e-15
    assert Tabulated(levels, w) == Tabulated(levels.tolist(), tuple(w.tolist())) != Tabulated(levels, other)
    assert repr(Tabulated(levels, w)) != repr(Tabulated(levels, other))
    assert eval(repr(Binned([-1.0, 1.0], [0.1 + 0.2]))) == Binned(torch.tensor([-1, 1]), [0.1 + 0.2])


def test_bins_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="edges must be at least 2 ascending levels, 3 for 2 w; got 2"):
        Binned(torch.tensor([0.0, 1.0]), torch.ones(2))
    with pytest.raises(ValueError, match="w must not be negative"):
        Binned(torch.tensor([0.0, 1.0]), -torch.ones(1))


# Custom --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weight",
    [
        lambda logsnr: torch.sigmoid(2 - logsnr),
        lambda logsnr: 1 / torch.cosh(logsnr / 2),
        lambda logsnr: torch.exp(-logsnr / 2),
        lambda logsnr: torch.clamp(5 * torch.exp(-logsnr), max=1),
        weightings.EDM().__call__,
    ],
    ids=["sigmoid", "sech", "exponential", "min-SNR", "EDM"],
)
def test_w_in_the_place_of_log_w_is_refused(weight: LevelFunction) -> None:
    with pytest.raises(ValueError, match="looks like w, not log w"):
        Custom(weight)
    assert isinstance(Custom(lambda logsnr: torch.log(weight(logsnr))), Custom)


@pytest.mark.parametrize(
    ("weight", "kind", "message"),
    [
        ("sigmoid", TypeError, "log_weight must be a function that returns log w, got 'sigmoid'"),
        (weightings.Sigmoid, TypeError, "must be a function that returns log w"),
        (weightings.Sigmoid(), TypeError, "must be a function that returns log w"),
        (lambda logsnr: 1.0, TypeError, "must return a floating-point tensor, got 1.0"),
        (lambda logsnr: logsnr.long(), TypeError, r"got torch\.int64"),
        (lambda logsnr: logsnr[:1], ValueError, r"must keep the shape of its levels, 321; got \(1,\)"),
        (lambda logsnr: torch.log(5 - logsnr), ValueError, r"NaN at log-SNR 5\.125; return -inf"),
        (lambda logsnr: logsnr * 0 - torch.inf, ValueError, "NaN|infinite at every"),
    ],
)
def test_what_is_no_log_weight_is_refused(weight: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Custom(weight)  # type: ignore[arg-type]
