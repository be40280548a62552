"""Comparisons of trained networks over seeds: ratios within a seed, trends, rank correlations, with their intervals.

The repeats are seeds of *training*: an interval says how much another set of training runs would differ.  Runs of one
seed share initialisation, batches and noise, so differences are taken within a seed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from paperlib.companion.claims import Verdict


@dataclass(frozen=True)
class Ratio:
    """How many times larger one arm is than another.

    Attributes:
        value: geometric mean over seeds of the ratio within a seed.
        low: lower end of its interval.
        high: upper end.
        p: of a two-sided paired t test on the logarithms; 1 where there is only one seed, which tests nothing.
        seeds: how many seeds both arms have.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 1 out."""
        return self.low > 1 or self.high < 1

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired_ratio(arm: pd.Series, other: pd.Series, confidence: float = 0.95) -> Ratio:
    """The ratio of two arms, values indexed by seed, over the seeds that both have.

    The interval is Student's, of the mean difference of logarithms; with one seed it is all numbers.

    Raises:
        ValueError: when no seed is shared, or a value is not positive.
    """
    both = pd.concat([arm, other], axis=1, join="inner")
    if both.empty or not (both > 0).all(axis=None):
        raise ValueError(
            f"a ratio within a seed needs positive values of a common seed; got seeds {sorted(arm.index)} and "
            f"{sorted(other.index)}, smallest value {min(arm.min(), other.min())}."
        )
    log = np.log((both.iloc[:, 0] / both.iloc[:, 1]).to_numpy())
    if len(log) == 1:
        return Ratio(float(np.exp(log[0])), 0.0, np.inf, 1.0, 1)
    if np.ptp(log) == 0:  # no spread at all, as between equal runs
        same = float(np.exp(log[0]))
        return Ratio(same, same, same, float(same == 1), len(log))
    test = stats.ttest_1samp(log, 0)
    low, high = np.exp(test.confidence_interval(confidence))
    return Ratio(float(np.exp(log.mean())), float(low), float(high), float(test.pvalue), len(log))


def verdict(ratio: Ratio, low: float = 0.0, high: float = np.inf) -> Verdict:
    """HELD where the whole interval lies in [low, high], NOT HELD where none of it does, INCONCLUSIVE otherwise."""
    if low <= ratio.low and ratio.high <= high:
        return Verdict.HELD
    return Verdict.NOT_HELD if ratio.low > high or ratio.high < low else Verdict.INCONCLUSIVE


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """That of a statement about several: NOT HELD if one is, HELD if all are."""
    return min(verdicts, key=list(Verdict).index)


def seeds_to_decide(
    ratio: Ratio, low: float = 0.0, high: float = np.inf, confidence: float = 0.95, most: int = 1000
) -> int | None:
    """How many seeds give a :func:`verdict` if value and spread stay what they are; None where ``most`` do not."""
    seeds = np.arange(max(2, ratio.seeds), most + 1)
    reach = np.log(ratio.high / ratio.value) * _reach(seeds, confidence) / _reach(ratio.seeds, confidence)
    lows, highs = ratio.value * np.exp(-reach), ratio.value * np.exp(reach)
    decided = ((lows >= low) & (highs <= high)) | (lows > high) | (highs < low)
    return int(seeds[decided.argmax()]) if decided.any() else None


def _reach(seeds: np.ndarray | int, confidence: float) -> np.ndarray:
    """Half the width of Student's interval of a mean, in standard deviations."""
    return stats.t.ppf(0.5 + confidence / 2, np.subtract(seeds, 1)) / np.sqrt(seeds)


def mean_interval(values: pd.Series, confidence: float = 0.95) -> tuple[float, float]:
    """Mean over seeds and half the width of Student's interval, NaN for one seed."""
    count = values.count()
    if count < 2:
        return float(values.mean()), np.nan
    return float(values.mean()), float(_reach(count, confidence) * values.std())


def holm(p: Iterable[float]) -> np.ndarray:
    """P values of several comparisons, corrected by Holm's method: no greater chance of a false one among all."""
    values = np.asarray(list(p), dtype=float)
    order = values.argsort()
    stepped = np.maximum.accumulate((len(values) - np.arange(len(values))) * values[order])
    corrected = np.empty_like(values)
    corrected[order] = stepped.clip(max=1)
    return corrected


def trend(table: pd.DataFrame) -> float:
    """p of Page's test that values rise along the columns, seeds being the rows; complete rows only.

    With seeds for judges and arms for treatments: the null is that all orders of the columns are equally likely.
    """
    return float(stats.page_trend_test(table.dropna().to_numpy(), method="exact").pvalue)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation and its interval over seeds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def rank_correlation(table: pd.DataFrame, first: str, second: str, confidence: float = 0.95) -> RankCorrelation:
    """How alike two columns rank the runs; the interval is that of the bootstrap over *seeds*.

    Runs of one seed are not independent, so seeds are drawn with replacement, all runs of a seed together: every draw
    of as many seeds as there are, or 3,000 of them where there are more.

    Args:
        table: a row a run, with a column ``seed``.
        first: one column.
        second: the other.
        confidence: of the interval.
    """
    parts = [part[[first, second]].to_numpy() for _, part in table.groupby("seed")]
    generator = np.random.default_rng(0)
    count = len(parts)
    every = count**count <= 3125
    draws = product(range(count), repeat=count) if every else generator.integers(count, size=(3000, count))
    drawn = [_spearman(np.concatenate([parts[number] for number in draw])) for draw in draws]
    low, high = np.nanquantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return RankCorrelation(_spearman(np.concatenate(parts)), float(low), float(high))


def _spearman(pairs: np.ndarray) -> float:
    return float(np.corrcoef(stats.rankdata(pairs, axis=0).T)[0, 1])


def smoothed_loss(losses: pd.Series, window: int = 100) -> pd.Series:
    """Training loss over the last ``window`` steps, by step, from equally spaced lines of a log; NaN before."""
    spacing = int(np.diff(losses.index).max())
    return losses.rolling(max(1, window // spacing)).mean()


def steps_to(losses: pd.Series, goal: float, window: int = 100) -> float:
    """The first logged step at which the smoothed training loss has reached ``goal``; NaN if it never does."""
    below = smoothed_loss(losses, window) <= goal
    return float(losses.index.to_numpy()[below.to_numpy().argmax()]) if below.any() else np.nan


def steps_to_common_loss(losses: pd.DataFrame, window: int = 100) -> pd.Series:
    """Steps until each column has come down to the worst final loss among them: so that every one gets there.

    Args:
        losses: training loss by step, an arm a column; the arms share their objective, not their schedule.
        window: steps over which the loss is averaged.
    """
    last = losses.apply(smoothed_loss, window=window).iloc[-1]
    return losses.apply(steps_to, goal=last.max(), window=window)


def still_falling(history: Sequence[Mapping[str, float]]) -> float:
    """By how much the smoothed loss fell over the last quarter of training, relative to what it was.

    1 − (mean over the last eighth of the log) / (mean over the eighth that ends where the last quarter begins).  It
    is about 0 once a run has converged.

    Args:
        history: lines of a log, at equal distances, each with its ``loss``.

    Raises:
        ValueError: for a log of fewer than four lines.
    """
    quarter, eighth = len(history) // 4, max(1, len(history) // 8)
    if quarter < 1:
        raise ValueError(f"a log of {len(history)} lines has no last quarter; log at least 4 times: lower log_every.")
    loss = [line["loss"] for line in history]
    return 1 - float(np.mean(loss[-eighth:]) / np.mean(loss[:-quarter][-eighth:]))
