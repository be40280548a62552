"""What is kept of features that pass by: the same whatever the batches, and what the whole set would give."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from feature_rows import draw
from torch import Tensor

from paperlib.engine.gathering import FeatureStatistics, Gathered, InceptionScore, Reservoir, Seen

# Statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64, 300])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_statistics_do_not_depend_on_the_batches(batch_size: int, offset: float) -> None:
    rows = draw(300, 5) + offset
    statistics = FeatureStatistics.of(rows.split(batch_size))
    assert statistics.count == 300
    torch.testing.assert_close(statistics.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics.covariance, (rows - offset).T.cov(), rtol=1e-8, atol=1e-8)


def test_statistics_of_parts_merge_to_those_of_the_whole() -> None:
    rows = draw(90, 4)
    whole, first = FeatureStatistics.of(rows), FeatureStatistics.of(rows[:20])
    first.merge(FeatureStatistics.of(rows[20:]))
    torch.testing.assert_close(first.covariance, whole.covariance)
    torch.testing.assert_close(first.mean, whole.mean)
    assert first.count == whole.count


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([[0.0, math.nan]]), "features has 1 value"),
        (torch.zeros(3), "features must have shape"),
        (torch.zeros(0, 3), "features must have shape"),
        (torch.zeros(2, 9), "batches have 4 and 9 features"),
    ],
)
def test_features_that_do_not_fit_are_refused(rows: Tensor, message: str) -> None:
    statistics = FeatureStatistics.of(draw(8, 4))
    with pytest.raises(ValueError, match=message):
        statistics.update(rows)


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        _ = FeatureStatistics.of(torch.zeros(1, 3)).covariance


def test_statistics_come_back_from_their_moments() -> None:
    statistics = FeatureStatistics.of(draw(50, 4))
    again = FeatureStatistics.from_moments(statistics.mean, statistics.covariance, statistics.count)
    torch.testing.assert_close(again.scatter, statistics.scatter, rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match=r"shapes \(4,\), \(3, 3\) and count 50"):
        FeatureStatistics.from_moments(statistics.mean, statistics.covariance[1:, 1:], 50)
    with pytest.raises(ValueError, match="covariance has 1 value"):
        FeatureStatistics.from_moments(torch.zeros(1), torch.tensor([[math.nan]]), 50)


# A bounded choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64, 300])
def test_the_choice_does_not_depend_on_the_batches(batch_size: int) -> None:
    rows = draw(300, 3)
    whole, parts = Reservoir(40), Reservoir(40)
    whole.update(rows)
    for batch in rows.split(batch_size):
        parts.update(batch)
        assert len(parts.rows) <= 40
    assert torch.equal(parts.rows, whole.rows)
    assert len(parts.rows) == 40


def test_all_rows_are_kept_in_their_order_where_there_is_room() -> None:
    rows, reservoir = draw(300, 3), Reservoir(300)
    for batch in rows.split(70):
        reservoir.update(batch)
    assert torch.equal(reservoir.rows, rows)


def test_every_row_is_as_likely_to_be_kept_and_the_order_stays() -> None:
    rows, kept = torch.arange(60.0)[:, None], torch.zeros(60)
    for seed in range(400):
        reservoir = Reservoir(15, seed)
        for batch in rows.split(8):
            reservoir.update(batch)
        assert all(a < b for a, b in pairwise(reservoir.rows.flatten().tolist()))
        kept[reservoir.rows.flatten().long()] += 1
    # Binomial(400, 1/4): a standard deviation of 8.7 around 100; 60 of them within 4.
    assert (kept - 100).abs().max() < 4 * math.sqrt(400 * 0.25 * 0.75)


# The Inception Score -------------------------------------------------------------------------------------------------


def probabilities(rows: int, classes: int, sharpness: float = 3.0) -> Tensor:
    return (sharpness * draw(rows, classes, seed=3)).softmax(1)


def test_the_score_follows_its_definition() -> None:
    """One part: exp of the mean of KL(p(y|x) ‖ p(y)), by scipy."""
    from scipy.special import rel_entr

    p = probabilities(200, 5).numpy()
    found = InceptionScore(splits=1)
    for batch in torch.from_numpy(p).split(33):
        found.update(batch)
    score = found.score()
    assert score is not None
    assert score.value == pytest.approx(np.exp(rel_entr(p, p.mean(0)).sum(1).mean()), rel=1e-12)
    assert score.deviation == 0


def test_the_score_is_one_for_equal_rows_and_the_number_of_classes_for_certain_ones() -> None:
    for rows, expected in ((torch.full((500, 4), 0.25), 1.0), (torch.eye(4).repeat(2500, 1), 4.0)):
        found = InceptionScore()
        found.update(rows)
        score = found.score()
        assert score is not None
        assert score.value == pytest.approx(expected, rel=3e-3)  # classes fall into parts at random


@pytest.mark.parametrize("batch_size", [1, 9, 64])
def test_the_parts_are_equal_and_do_not_depend_on_the_batches(batch_size: int) -> None:
    rows = probabilities(123, 4)
    whole, parts = InceptionScore(splits=5), InceptionScore(splits=5)
    whole.update(rows)
    for batch in rows.split(batch_size):
        parts.update(batch)
    assert parts.score() == pytest.approx(whole.score(), rel=1e-12)
    assert sorted(parts._count.tolist()) == [24, 24, 25, 25, 25]


def test_images_that_come_by_class_make_the_same_score() -> None:
    """The parts are random: each sees every class."""
    shuffled, ordered = InceptionScore(), InceptionScore()
    rows = torch.eye(10).repeat_interleave(200, 0)
    ordered.update(rows)
    shuffled.update(rows[torch.randperm(2000, generator=torch.Generator().manual_seed(0))])
    scores = [found.score() for found in (ordered, shuffled)]
    assert all(score is not None and score.value > 9.5 for score in scores)


@pytest.mark.parametrize("rows", [torch.full((3, 4), 0.3), torch.tensor([[1.5, -0.5]])])
def test_what_is_no_probability_is_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="add up to 1 in every row"):
        InceptionScore().update(rows)


def test_there_is_no_score_before_every_part_has_a_row() -> None:
    found = InceptionScore(splits=3)
    assert found.score() is None
    found.update(probabilities(2, 4))
    assert found.score() is None
    found.update(probabilities(1, 4))
    assert found.score() is not None


def test_what_is_gathered_is_bounded_and_is_of_everything() -> None:
    rows, p = draw(500, 3), probabilities(500, 4)
    gathered = Gathered(keep=50)
    for features, classes in zip(rows.split(90), p.split(90), strict=True):
        gathered.update(Seen(features, classes))
    torch.testing.assert_close(gathered.statistics.covariance, rows.T.cov())
    assert gathered.reservoir.rows.shape == (50, 3)
    assert gathered.classes.score() is not None
    without = Gathered()
    without.update(Seen(rows))
    assert without.classes.score() is None
