"""Distances between sets of features, the features themselves, and the evaluation made of them."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from paperlib import models, predictions, schedules
from paperlib.engine import checkpoints, data, evaluation, features, metrics, sampling
from paperlib.engine.metrics import FeatureStatistics

TRAIN, TEST = data.load("digits", "train"), data.load("digits", "test")


def draw(rows: int, columns: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Correlated features around a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mean = torch.randn(columns, generator=generator, dtype=torch.float64)
    return mean + scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mixing


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


# Fréchet distance ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("rows", "columns"), [(40, 2), (400, 24), (900, 64)])
def test_the_frechet_distance_is_that_of_clean_fid(rows: int, columns: int) -> None:
    from cleanfid.fid import frechet_distance

    a, b = draw(rows, columns, 0), draw(rows + 10, columns, 1, scale=1.3)
    theirs = frechet_distance(*(f(x.numpy()) for x in (a, b) for f in (lambda v: v.mean(0), lambda v: np.cov(v.T))))
    ours = metrics.frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert ours == pytest.approx(theirs, rel=1e-6)


def moments(mean: Tensor, covariance: Tensor, count: int = 10_000) -> FeatureStatistics:
    return FeatureStatistics(count, mean.double(), covariance.double() * (count - 1))


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
    one = FeatureStatistics.of(draw(500, 3, 1) @ basis)
    shifted = FeatureStatistics(one.count, one.mean + 1, one.scatter)
    assert metrics.frechet_distance(one, one) == pytest.approx(0, abs=1e-9 * one.covariance.trace().item())
    assert metrics.frechet_distance(one, shifted) == pytest.approx(40, rel=1e-6)


def test_the_frechet_distance_is_symmetric_and_grows_with_the_difference() -> None:
    a = FeatureStatistics.of(draw(500, 8))
    others = [FeatureStatistics.of(draw(500, 8) * (1 + 0.2 * step)) for step in range(4)]
    distances = [metrics.frechet_distance(a, other) for other in others]
    assert distances[0] == pytest.approx(0, abs=1e-9)
    assert distances == sorted(distances)
    assert metrics.frechet_distance(others[2], a) == pytest.approx(distances[2], rel=1e-9)


def test_few_samples_are_warned_of() -> None:
    enough, few = FeatureStatistics.of(draw(40, 4)), FeatureStatistics.of(draw(39, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.frechet_distance(enough, enough)
    for pair in ((enough, few), (few, enough)):
        with pytest.warns(UserWarning, match="39 samples are few for 4 features: below 40"):
            metrics.frechet_distance(*pair)


def test_statistics_of_different_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 4 features"):
        metrics.frechet_distance(FeatureStatistics.of(draw(50, 3)), FeatureStatistics.of(draw(50, 4)))


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
        errors = torch.tensor([result.standard_error for result in results])
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
        (lambda: metrics.kid(draw(30, 3), draw(30, 3), blocks=1), "blocks must be at least 2"),
        (lambda: metrics.kid(draw(30, 3) * math.nan, draw(30, 3)), "real has 90 value"),
        (lambda: metrics.precision_recall(draw(3, 3), draw(30, 3)), "real has 3 rows; at least 4"),
        (lambda: metrics.precision_recall(draw(30, 3), draw(30, 3), k=0), "k must be at least 1"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# The digits classifier -----------------------------------------------------------------------------------------------


def test_the_packaged_classifier_is_named_for_what_it_is() -> None:
    judge = features.digits_classifier()
    assert judge.name == f"digits classifier {features.DIGITS_WEIGHTS_SHA256[:6]}"
    assert "not FID" in judge.card["name"]
    assert judge.card["trained_on"]["sha256"] == TRAIN.sha256
    assert not judge.training


def test_the_accuracy_on_its_card_is_the_one_that_it_has() -> None:
    judge = features.digits_classifier()
    for split, least in ((TRAIN, 0.99), (TEST, 0.97)):
        accuracy = (judge.classify(split.images) == split.labels).double().mean().item()
        stated = judge.card[f"{split.name.removeprefix('digits/')}_accuracy"]
        assert accuracy == pytest.approx(stated, abs=1.5 / len(split))
        assert accuracy > least


def test_features_are_standardised_and_enough_samples_come_to_each() -> None:
    seen = features.digits_classifier()(TRAIN.images)
    assert seen.mean(0).abs().max() < 1e-3
    assert (seen.std(0) - 1).abs().max() < 0.02
    assert len(TEST) >= metrics.SAMPLES_PER_FEATURE * seen.shape[1]


def test_features_do_not_depend_on_the_batch() -> None:
    judge = features.digits_classifier()
    parts = torch.cat([judge(part) for part in TEST.images.split(100)])
    torch.testing.assert_close(parts, judge(TEST.images), rtol=1e-4, atol=1e-5)


def test_training_the_classifier_again_gives_a_good_classifier() -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    card = features.train_digits_classifier(steps=300).card
    assert torch.equal(torch.random.get_rng_state(), state)
    assert card["test_accuracy"] > 0.9


def test_classifier_weights_other_than_those_known_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = features.train_digits_classifier(steps=1)
    checkpoints.save_weights(tmp_path / "assets" / "digits_classifier.safetensors", other, other.card)
    monkeypatch.setattr(features, "files", lambda package: tmp_path)
    with pytest.raises(checkpoints.DamagedFileError, match="distances would not be comparable"):
        features.digits_classifier.__wrapped__()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8), TypeError, "to_uint8"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), ValueError, "shape"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ValueError, "shape"),
        (torch.full((2, 1, 8, 8), 255, dtype=torch.uint8), ValueError, "17 levels"),
    ],
)
def test_images_that_the_classifier_cannot_see_are_refused(images: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        features.digits_classifier()(images)


def test_the_wheel_holds_the_classifier(repository: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    included = [file.distribution_path for file in WheelBuilder(str(repository)).recurse_included_files()]
    assert "paperlib/engine/assets/digits_classifier.safetensors" in included


# Evaluation ----------------------------------------------------------------------------------------------------------


def small_network() -> models.ConditionedNetwork:
    network = models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, seed=0, width=16, blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return network


LEVELS = sampling.levels(schedules.Cosine(-8, 8), 4)


def samples(**options: object) -> list[Tensor]:
    arguments = {"labels": TRAIN.labels[:50], "levels": LEVELS, "batch_size": 20} | options
    return list(evaluation.generate(small_network(), predictions.V, **arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_samples_come_in_batches_and_depend_on_their_seed(sampler: str) -> None:
    batches, again, other = (samples(sampler=sampler, seed=seed) for seed in (0, 0, 1))
    assert [tuple(batch.shape) for batch in batches] == [(20, 1, 8, 8), (20, 1, 8, 8), (10, 1, 8, 8)]
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0], other[0])
    same_labels = samples(sampler=sampler, labels=torch.zeros(40, dtype=torch.int64))
    assert not torch.equal(*same_labels)


def test_samples_depend_on_labels_guidance_and_the_options_of_the_sampler() -> None:
    plain = samples()[0]
    variants = [
        samples(guidance=2.0),
        samples(labels=TRAIN.labels[50:100]),
        samples(churn=10.0),
        samples(sampler="ddim"),
    ]
    assert all(not torch.equal(plain, variant[0]) for variant in variants)
    null = torch.full((50,), 10)
    assert torch.equal(samples(guidance=0.0)[0], samples(labels=null)[0])


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'plms'; choose one of ddpm, ddim, heun"):
        samples(sampler="plms")


def test_an_evaluation_says_what_was_compared_with_what() -> None:
    judge = features.digits_classifier()
    reference = evaluation.Reference.of(TRAIN, judge)
    seen = evaluation.gather(TEST.scaled().split(100), judge, TEST.levels)
    torch.testing.assert_close(seen.reservoir.rows, judge(TEST.images), rtol=1e-4, atol=1e-5)
    real = evaluation.compare(seen, reference)
    assert (real.samples, real.network) == (297, judge.name)
    assert real.reference == f"digits/train {TRAIN.sha256[:6]}"
    assert 0 < real.frechet < 2
    assert abs(real.kid) < 4 * real.kid_error
    assert min(real.precision, real.recall) > 0.8
    noise = evaluation.compare(evaluation.gather(samples() * 6, judge, 17).reservoir.rows, reference)
    assert noise.frechet > 10 * real.frechet
    assert noise.kid > 0.1
    assert noise.recall < 0.5


def test_errors_by_level_are_those_of_a_network_that_predicts_zero() -> None:
    """v̂ = 0 means ε̂ = σ z, whose error is α²σ²‖x‖² + α⁴ D on average."""
    network = models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, width=8)
    levels = torch.tensor([-6.0, 0.0, 1.0, 6.0], dtype=torch.float64)
    found = evaluation.errors_by_level(network, predictions.V, TEST, levels, draws=8)
    signal, norm = torch.sigmoid(levels), TEST.scaled(torch.float64).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(found, signal * (1 - signal) * norm + signal**2 * 64, rtol=0.01, atol=0.05)
    again = evaluation.errors_by_level(network, predictions.V, TEST, levels[1:2], draws=8)
    assert torch.equal(again, found[1:2])


def test_the_nearest_training_image_is_found() -> None:
    order = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0))[:300]
    train = TRAIN.scaled()
    changed = train[order].clone()
    changed[:, 0, 3, 3] += 0.01
    index, distance = evaluation.nearest(train, changed, batch_size=70)
    assert torch.equal(index, order)
    torch.testing.assert_close(distance, torch.full_like(distance, 0.01), rtol=1e-4, atol=1e-6)


def test_images_of_different_shapes_have_no_nearest() -> None:
    with pytest.raises(ValueError, match="first sample has shape"):
        evaluation.nearest(torch.zeros(3, 1, 8, 8), torch.zeros(3, 64))
