"""Distances between sets of features: closed forms, definitions written out, clean-fid."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from feature_rows import draw
from torch import Tensor

from paperlib.engine import metrics
from paperlib.engine.metrics import Moments, inception_score

# Fréchet distance ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("rows", "columns"), [(40, 2), (400, 24), (900, 64)])
def test_the_frechet_distance_is_that_of_clean_fid(rows: int, columns: int) -> None:
    from cleanfid.fid import frechet_distance

    a, b = draw(rows, columns, 0), draw(rows + 10, columns, 1, scale=1.3)
    theirs = frechet_distance(*(f(x.numpy()) for x in (a, b) for f in (lambda v: v.mean(0), lambda v: np.cov(v.T))))
    ours = metrics.frechet_distance(Moments.of(a), Moments.of(b))
    assert ours == pytest.approx(theirs, rel=1e-6)


def moments(mean: Tensor, covariance: Tensor, count: int = 10_000) -> Moments:
    return Moments(mean.double(), covariance.double(), count)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_those_of_the_rows(offset: float, dtype: torch.dtype) -> None:
    rows = (draw(300, 5) + offset).to(dtype)
    found = Moments.of(rows)
    assert found.count == 300
    torch.testing.assert_close(found.mean, rows.double().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.covariance, (rows.double() - offset).T.cov(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([[0.0, math.nan]]), "features has 1 value"),
        (torch.zeros(3), "features must have shape"),
        (torch.zeros(0, 3), "features must have shape"),
        (torch.zeros(1, 3), "at least 2 samples, got 1"),
    ],
)
def test_features_without_moments_are_refused(rows: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Moments.of(rows)


def test_moments_that_do_not_fit_each_other_are_refused() -> None:
    known = Moments.of(draw(50, 4))
    with pytest.raises(ValueError, match=r"shapes \(4,\) and \(3, 3\)"):
        Moments(known.mean, known.covariance[1:, 1:], 50)
    with pytest.raises(ValueError, match="covariance has 1 value"):
        Moments(torch.zeros(1), torch.tensor([[math.nan]]), 50)


def test_the_frechet_distance_of_commuting_covariances_is_in_closed_form() -> None:
    """‖μ − μ'‖² + ‖√s − √s'‖², variances of zero included."""
    rotation = torch.linalg.qr(draw(5, 5)).Q
    first, second = torch.tensor([0.0, 0.0, 1.0, 4.0, 1e-6]), torch.tensor([9.0, 0.0, 0.25, 4.0, 1e6])
    a, b = (rotation @ torch.diag(s.double()) @ rotation.T for s in (first, second))
    shift = torch.tensor([1.0, 0, 0, 0, 2])
    expected = 5.0 + (first.double().sqrt() - second.double().sqrt()).square().sum().item()
    for pair in ((moments(shift, a), moments(0 * shift, b)), (moments(0 * shift, b), moments(shift, a))):
        assert metrics.frechet_distance(*pair) == pytest.approx(expected, rel=1e-7)


def test_the_frechet_distance_of_singular_covariances_is_exact() -> None:
    """Rank 3 in 40 dimensions, where the product's other eigenvalues are rounding errors."""
    basis = draw(3, 40)
    one = Moments.of(draw(500, 3, 1) @ basis)
    shifted = Moments(one.mean + 1, one.covariance, one.count)
    assert metrics.frechet_distance(one, one) == pytest.approx(0, abs=1e-9 * one.covariance.trace().item())
    assert metrics.frechet_distance(one, shifted) == pytest.approx(40, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*samples are few")
@pytest.mark.parametrize(("first", "second", "columns"), [(20, 30, 64), (30, 200, 64), (200, 30, 64), (90, 80, 40)])
def test_the_trace_of_the_root_is_the_nuclear_norm_of_the_inner_products(first: int, second: int, columns: int) -> None:
    """tr (A B)^½ = ‖X Yᵀ‖_* / √((N−1)(M−1)) for centred rows: no covariance, no root, any rank."""
    a, b = draw(first, columns, 0), draw(second, columns, 1)
    x, y = a - a.mean(0), b - b.mean(0)
    trace = torch.linalg.svdvals(x @ y.T).sum() / math.sqrt((first - 1) * (second - 1))
    spread = x.square().sum() / (first - 1) + y.square().sum() / (second - 1)
    expected = (a.mean(0) - b.mean(0)).square().sum() + spread - 2 * trace
    found = metrics.frechet_distance(Moments.of(a), Moments.of(b))
    assert found == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_on_singular_covariances_a_general_matrix_root_loses_digits_that_ours_keeps() -> None:
    """B = 2.25 A of rank 60 in 128 dimensions: the distance is tr A / 4, and that of A to itself zero."""
    from cleanfid.fid import frechet_distance

    covariance, mean = (draw(500, 60) @ draw(60, 128, 1)).T.cov() / 100, torch.zeros(128, dtype=torch.float64)
    for factor in (1.0, 1.5):
        pair = (moments(mean, covariance), moments(mean, covariance * factor**2))
        exact = (1 - factor) ** 2 * covariance.trace().item()
        theirs = frechet_distance(*(f(one).numpy() for one in pair for f in (lambda s: s.mean, lambda s: s.covariance)))
        ours = abs(metrics.frechet_distance(*pair) - exact)
        assert ours < 1e-10 * covariance.trace()
        assert abs(theirs - exact) > 100 * ours


def test_the_frechet_distance_is_symmetric_and_grows_with_the_difference() -> None:
    a = Moments.of(draw(500, 8))
    others = [Moments.of(draw(500, 8) * (1 + 0.2 * step)) for step in range(4)]
    distances = [metrics.frechet_distance(a, other) for other in others]
    assert distances[0] == pytest.approx(0, abs=1e-9)
    assert distances == sorted(distances)
    assert metrics.frechet_distance(others[2], a) == pytest.approx(distances[2], rel=1e-9)


def test_few_samples_are_warned_of() -> None:
    enough, few = Moments.of(draw(40, 4)), Moments.of(draw(39, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.frechet_distance(enough, enough)
    for pair in ((enough, few), (few, enough)):
        with pytest.warns(UserWarning, match="39 samples are few for 4 features: below 40"):
            metrics.frechet_distance(*pair)


def test_statistics_of_different_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 4 features"):
        metrics.frechet_distance(Moments.of(draw(50, 3)), Moments.of(draw(50, 4)))


# Kernel distance -----------------------------------------------------------------------------------------------------


def test_kid_is_that_of_clean_fid() -> None:
    from cleanfid.fid import kernel_distance

    a, b = draw(120, 6, 0, 0.5), draw(120, 6, 1, 0.5)
    theirs = kernel_distance(a.numpy(), b.numpy(), num_subsets=1, max_subset_size=120)
    assert metrics.kid(a, b).value == pytest.approx(theirs, rel=1e-9)


def test_kid_is_unbiased_and_its_standard_error_is_that_of_repetitions() -> None:
    for shift, low in ((0.0, 0.5), (0.6, 0.7)):
        generator = torch.Generator().manual_seed(0)
        pairs = [torch.randn(2, 150, 4, generator=generator, dtype=torch.float64) for _ in range(120)]
        results = [metrics.kid(a, b + shift) for a, b in pairs]
        values = torch.tensor([result.value for result in results])
        errors = torch.tensor([result.error for result in results])
        if shift == 0:
            assert abs(values.mean() / values.std() * math.sqrt(120)) < 4
            assert (values < 0).any()
        else:
            assert values.mean() > 3 * errors.mean()
        assert low < values.std() / errors.square().mean().sqrt() < 1.35


def test_kid_takes_sets_of_different_sizes() -> None:
    a, b = draw(60, 3, 0), draw(171, 3, 0)
    kernel = lambda x, y: (x @ y.T / 3 + 1) ** 3  # noqa: E731
    within = [(kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    expected = sum(within) - 2 * kernel(a, b).mean()
    assert metrics.kid(a, b).value == pytest.approx(expected.item(), rel=1e-10)
    assert metrics.kid(b, a).value == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize(("first", "second"), [(60, 171), (200, 64)])
def test_kid_is_the_same_in_any_tiles(monkeypatch: pytest.MonkeyPatch, first: int, second: int) -> None:
    a, b = draw(first, 5, 0), draw(second, 5, 1)
    whole = metrics.kid(a, b)
    monkeypatch.setattr(metrics, "TILE", 64)
    assert metrics.kid(a, b) == pytest.approx(whole, rel=1e-10)


def test_the_usual_subsets_vary_around_kid() -> None:
    """clean-fid's mean over 100 random subsets of 50 estimates the same number."""
    from cleanfid.fid import kernel_distance

    a, b = 0.5 * draw(400, 6, 0), 0.5 * draw(300, 6, 0) + 0.1
    np.random.seed(0)  # noqa: NPY002 - clean-fid draws from the global one
    single = [kernel_distance(a.numpy(), b.numpy(), num_subsets=1, max_subset_size=50) for _ in range(200)]
    error = np.std(single) / math.sqrt(len(single))
    assert metrics.kid(a, b).value == pytest.approx(np.mean(single), abs=4 * error)


# Precision and recall ------------------------------------------------------------------------------------------------


def brute_force(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    def share(points: np.ndarray, centres: np.ndarray) -> float:
        radii = [np.sort([np.linalg.norm(c - other) for other in centres])[k] for c in centres]  # [0] is itself
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return float(np.mean(inside))

    return share(fake.numpy(), real.numpy()), share(real.numpy(), fake.numpy())


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_follow_their_definition(k: int) -> None:
    real, fake = draw(50, 3, 0), 0.8 * draw(40, 3, 0) + 0.9
    result = metrics.precision_recall(real, fake, k)
    assert result == pytest.approx(brute_force(real, fake, k))
    assert 0.05 < result.precision < 0.99
    assert metrics.precision_recall(fake, real, k) == pytest.approx(result[::-1])


@pytest.mark.parametrize("columns", [3, 200])
def test_precision_and_recall_are_the_same_in_any_tiles(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    real, fake = draw(230, columns, 0), 0.9 * draw(150, columns, 0) + 0.05
    whole = metrics.precision_recall(real, fake)
    assert 0.05 < min(whole) < 0.99
    monkeypatch.setattr(metrics, "TILE", 64)
    assert metrics.precision_recall(real, fake) == whole


def test_precision_falls_for_foreign_samples_and_recall_for_missing_ones() -> None:
    left, right = draw(200, 2), draw(200, 2) + 1000
    both = torch.cat([left, right])
    assert metrics.precision_recall(both, both) == (1, 1)
    assert metrics.precision_recall(left, right) == (0, 0)
    assert metrics.precision_recall(both, left) == (1, 0.5)
    assert metrics.precision_recall(left, both) == (0.5, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.kid(draw(30, 3), draw(30, 4)), "real has 3 features and fake 4"),
        (lambda: metrics.kid(draw(30, 3), draw(19, 3)), "fake has 19 rows; at least 20"),
        (lambda: metrics.kid(draw(30, 3) * math.nan, draw(30, 3)), "real has 90 value"),
        (lambda: metrics.precision_recall(draw(3, 3), draw(30, 3)), "real has 3 rows; at least 4"),
        (lambda: metrics.precision_recall(draw(30, 3), draw(30, 3), k=0), "k must be at least 1"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# The Inception Score -------------------------------------------------------------------------------------------------


def probabilities(rows: int, classes: int, sharpness: float = 3.0) -> Tensor:
    return (sharpness * draw(rows, classes, seed=3)).softmax(1)


def test_the_score_follows_its_definition() -> None:
    """One part: exp of the mean of KL(p(y|x) ‖ p(y)), by scipy."""
    from scipy.special import rel_entr

    p = probabilities(200, 5)
    score = inception_score(p, splits=1)
    assert score.value == pytest.approx(np.exp(rel_entr(p.numpy(), p.numpy().mean(0)).sum(1).mean()), rel=1e-12)
    assert score.error == 0


def test_the_score_is_one_for_equal_rows_and_the_number_of_classes_for_certain_ones() -> None:
    for rows, expected in ((torch.full((500, 4), 0.25), 1.0), (torch.eye(4).repeat(2500, 1), 4.0)):
        assert inception_score(rows).value == pytest.approx(expected, rel=3e-3)  # classes fall into parts at random


def test_the_score_is_the_mean_over_equal_parts() -> None:
    """Two kinds of rows whose parts are told by their marginals: 123 rows in five parts of 24 or 25."""
    rows = torch.eye(123, dtype=torch.float64)
    score = inception_score(rows, splits=5)  # of n rows that are all different, the score of a part is n
    assert score.value == pytest.approx(123 / 5, rel=1e-12)
    assert score.error == pytest.approx(math.sqrt(0.24), rel=1e-9)


def test_images_that_come_by_class_make_the_same_score() -> None:
    """The parts are random: each sees every class."""
    rows = torch.eye(10).repeat_interleave(200, 0)
    shuffled = rows[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    assert all(inception_score(each).value > 9.5 for each in (rows, shuffled))


@pytest.mark.parametrize("rows", [torch.full((30, 4), 0.3), torch.tensor([[1.5, -0.5]]).repeat(10, 1)])
def test_what_is_no_probability_is_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="add up to 1 in every row"):
        inception_score(rows)


def test_there_is_no_score_where_a_part_would_have_no_row() -> None:
    with pytest.raises(ValueError, match="probabilities has 2 rows; at least 3"):
        inception_score(probabilities(2, 4), splits=3)
    assert inception_score(probabilities(3, 4), splits=3).value > 0
