"""Intervals, trends and rank correlations over seeds, against definitions and against simulation."""

import numpy as np
import over_seeds
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paperlib.companion.claims import Verdict

positive = st.floats(0.01, 100)


def series(values: list[float]) -> pd.Series:
    return pd.Series(values, index=range(len(values)))


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=8))
def test_a_ratio_is_that_of_the_paired_t_test_on_logarithms(pairs: list[tuple[float, float]]) -> None:
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    ratio = over_seeds.paired_ratio(series(list(a)), series(list(b)))
    log = np.log(a) - np.log(b)
    assert ratio.value == pytest.approx(stats.gmean(a) / stats.gmean(b))
    if np.ptp(log) > 1e-9:
        reach = stats.t.ppf(0.975, len(a) - 1) * log.std(ddof=1) / np.sqrt(len(a))
        assert [ratio.low, ratio.high] == pytest.approx(np.exp([log.mean() - reach, log.mean() + reach]))
        assert ratio.differs == (ratio.p < 0.05)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """5 paired seeds whose own differences, between seeds, are ten times the noise within one."""
    generator = np.random.default_rng(0)
    covered = unpaired = 0
    widths = []
    for _ in range(400):
        seed = generator.normal(0, 1, 5)
        a, b = (np.exp(seed + mean + generator.normal(0, 0.1, 5)) for mean in (0.2, 0.0))
        found = over_seeds.paired_ratio(series(list(a)), series(list(b)))
        covered += found.low <= np.exp(0.2) <= found.high
        shuffled = over_seeds.paired_ratio(series(list(a)), series(list(generator.permutation(b))))
        unpaired += shuffled.differs
        widths.append(found.high / found.low)
    assert abs(covered / 400 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)
    assert np.median(widths) < 1.5
    assert unpaired / 400 < 0.2, "without pairing a difference of 20 % drowns in that between seeds"


def test_a_ratio_is_taken_over_shared_seeds_alone() -> None:
    a, b = pd.Series({0: 2.0, 1: 8.0, 2: 1e9}), pd.Series({1: 4.0, 0: 1.0, 7: 1e-9})
    assert over_seeds.paired_ratio(a, b) == over_seeds.Ratio(2.0, 2.0, 2.0, 0.0, 2)


def test_one_seed_tests_nothing() -> None:
    alone = over_seeds.paired_ratio(series([3.0]), series([1.0]))
    assert alone.seeds == 1
    assert not alone.differs
    assert alone.p == 1
    assert np.isnan(over_seeds.mean_interval(series([3.0]))[1])


@pytest.mark.parametrize(("a", "b"), [([1.0], []), ([0.0, 1.0], [1.0, 1.0])])
def test_what_has_no_ratio_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="positive values of a common seed"):
        over_seeds.paired_ratio(series(a), series(b))


def test_the_mean_interval_is_students() -> None:
    values = series([1.0, 2.0, 4.0, 7.0])
    mean, reach = over_seeds.mean_interval(values, 0.9)
    assert (mean - reach, mean + reach) == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(0.9))


def test_holm_on_the_example_of_the_definition() -> None:
    assert over_seeds.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferronis(p: list[float]) -> None:
    corrected = over_seeds.holm(p)
    assert (corrected >= np.array(p) - 1e-15).all()
    assert (corrected <= np.minimum(1, len(p) * np.array(p)) + 1e-15).all()
    assert list(np.argsort(p, kind="stable")) == sorted(range(len(p)), key=lambda i: (corrected[i], p[i]))


def test_a_trend_is_seen_whichever_way_it_goes_and_only_then() -> None:
    generator = np.random.default_rng(1)
    rising = pd.DataFrame(generator.normal(0, 1, (5, 5)) + 2 * np.arange(5))
    assert over_seeds.trend(rising) < 0.01
    assert over_seeds.trend(rising[rising.columns[::-1]]) > 0.9
    flat = [over_seeds.trend(pd.DataFrame(generator.normal(0, 1, (5, 5)))) < 0.05 for _ in range(200)]
    assert np.mean(flat) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


def test_rank_correlation_ranks_and_its_interval_resamples_seeds() -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(0, 1, (5, 20))
    shift = generator.normal(0, 3, (5, 1))  # seeds differ in y alone
    table = pd.DataFrame(
        {"seed": np.repeat(range(5), 20), "x": x.ravel(), "y": (x + shift).ravel(), "up": np.exp(5 * x).ravel()}
    )
    same = over_seeds.rank_correlation(table, "x", "up")
    assert [same.value, same.low, same.high] == pytest.approx([1, 1, 1])
    found = over_seeds.rank_correlation(table, "x", "y")
    assert found.value == pytest.approx(stats.spearmanr(table.x, table.y).statistic)
    assert found.low < found.value < found.high
    relabelled = over_seeds.rank_correlation(table.assign(seed=np.tile(range(5), 20)), "x", "y")
    assert relabelled.high - relabelled.low < found.high - found.low, "seeds are what is resampled"


def test_steps_to_a_common_loss() -> None:
    steps = np.arange(20, 1001, 20)
    fast, slow = pd.Series(1000 / steps, index=steps), pd.Series(2000 / steps, index=steps)
    found = over_seeds.steps_to_common_loss(pd.DataFrame({"fast": fast, "slow": slow}))
    assert found["slow"] == 1000, "the worst arm sets the goal, and reaches it at its end"
    goal = slow.iloc[-5:].mean()
    assert found["fast"] == next(step for step in steps[4:] if fast.loc[step - 80 : step].mean() <= goal)
    assert 500 < found["fast"] < 600
    assert np.isnan(over_seeds.steps_to(fast, 0.5))


def test_the_smoothed_loss_is_over_whole_windows() -> None:
    losses = pd.Series([4.0, 2.0, 6.0, 0.0], index=[50, 100, 150, 200])
    assert over_seeds.smoothed_loss(losses).tolist()[1:] == [3.0, 4.0, 3.0]
    assert np.isnan(over_seeds.smoothed_loss(losses).iloc[0])


@pytest.mark.parametrize("lines", [4, 7, 8, 16, 61])
def test_a_loss_that_halves_each_quarter_is_still_falling_by_half(lines: int) -> None:
    history = [{"loss": 3 * 0.5 ** (line / (lines // 4))} for line in range(lines)]
    assert over_seeds.still_falling(history) == pytest.approx(0.5)
    assert over_seeds.still_falling([{"loss": 2.0}] * lines) == 0
    with pytest.raises(ValueError, match="log of 3 lines has no last quarter"):
        over_seeds.still_falling(history[:3])


def ratio_of(mean: float, spread: float, seeds: int) -> over_seeds.Ratio:
    """A ratio whose logarithms have this mean and standard deviation exactly."""
    shape = np.arange(seeds) - (seeds - 1) / 2
    log = mean + spread * shape / shape.std(ddof=1)
    return over_seeds.paired_ratio(series(list(np.exp(log))), series([1.0] * seeds))


@pytest.mark.parametrize("limits", [(0.9, 1.1), (0.0, 1.1)])
@pytest.mark.parametrize(("value", "expected"), [(1.0, Verdict.HELD), (1.09, Verdict.INCONCLUSIVE), (1.3, "NOT HELD")])
def test_a_verdict_needs_the_whole_interval(limits: tuple[float, float], value: float, expected: str) -> None:
    assert over_seeds.verdict(ratio_of(np.log(value), 0.03, 5), *limits) == expected


def test_all_hold_or_one_does_not() -> None:
    assert over_seeds.all_of([Verdict.HELD, Verdict.HELD]) == Verdict.HELD
    assert over_seeds.all_of([Verdict.HELD, Verdict.INCONCLUSIVE]) == Verdict.INCONCLUSIVE
    assert over_seeds.all_of([Verdict.INCONCLUSIVE, Verdict.NOT_HELD, Verdict.HELD]) == Verdict.NOT_HELD


@pytest.mark.parametrize(("value", "spread"), [(1.04, 0.06), (1.2, 0.2), (0.97, 0.1)])
def test_so_many_seeds_decide_and_one_less_does_not(value: float, spread: float) -> None:
    """With the same mean and spread of the logarithms."""
    number = over_seeds.seeds_to_decide(ratio_of(np.log(value), spread, 5), 0.9, 1.1)
    assert number is not None
    assert number > 5
    decided = [over_seeds.verdict(ratio_of(np.log(value), spread, seeds), 0.9, 1.1) for seeds in (number - 1, number)]
    assert decided[0] == Verdict.INCONCLUSIVE != decided[1]
    assert over_seeds.seeds_to_decide(ratio_of(np.log(1.1), 0.1, 5), 0.9, 1.1) is None, "at the limit none do"
