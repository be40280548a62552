"""Samples and what they are compared with: streamed, beside their protocol, beside the floor."""

import csv
import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from feature_rows import draw
from torch import Tensor

from paperlib import models, predictions, schedules
from paperlib.engine import data, evaluation, features, sampling
from paperlib.engine.evaluation import Drawing, Reference
from paperlib.engine.metrics import Moments, kid

TRAIN, TEST = data.load("digits", "train"), data.load("digits", "test")


def small_network() -> models.ConditionedNetwork:
    network = models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, seed=0, width=16, blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return network


LEVELS = sampling.levels(schedules.Cosine(-8, 8), 4)


def samples(labels: Tensor = TRAIN.labels[:50], sampler: str = "heun", **options: Any) -> list[Tensor]:
    drawing = Drawing(sampler, LEVELS, **{"batch_size": 20} | options)
    return list(drawing.samples(small_network(), predictions.V, labels))


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_samples_come_in_batches_and_depend_on_their_seed(sampler: str) -> None:
    batches, again, other = (samples(sampler=sampler, seed=seed) for seed in (0, 0, 1))
    assert [tuple(batch.shape) for batch in batches] == [(20, 1, 8, 8), (20, 1, 8, 8), (10, 1, 8, 8)]
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0], other[0])
    same_labels = samples(sampler=sampler, labels=torch.zeros(40, dtype=torch.int64))
    assert not torch.equal(*same_labels)


def test_samples_depend_on_labels_guidance_and_the_sampler() -> None:
    plain = samples()[0]
    variants = [
        samples(guidance=2.0),
        samples(labels=TRAIN.labels[50:100]),
        samples(sampler="ddim"),
    ]
    assert all(not torch.equal(plain, variant[0]) for variant in variants)
    null = torch.full((50,), 10)
    assert torch.equal(samples(guidance=0.0)[0], samples(labels=null)[0])


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'plms'; choose one of ddpm, ddim, heun"):
        samples(sampler="plms")


def test_an_evaluation_says_what_was_compared_with_what() -> None:
    judge = features.classifier_of("digits")
    reference = evaluation.Reference.of(TRAIN, judge)
    seen = evaluation.see(TEST.scaled().split(100), judge, TEST.levels)
    torch.testing.assert_close(seen, judge(TEST.images), rtol=1e-4, atol=1e-5)
    real = evaluation.compare(seen, reference)
    assert (real.samples, real.network) == (297, judge.name)
    assert real.reference == f"digits/train {TRAIN.sha256[:6]}"
    assert 0 < real.frechet < 2
    assert abs(real.kid) < 4 * real.kid_error
    assert min(real.precision, real.recall) > 0.8
    noise = evaluation.compare(evaluation.see(samples() * 6, judge, 17), reference)
    assert noise.frechet > 10 * real.frechet
    assert noise.kid > 0.1
    assert noise.recall < 0.5


class Pixels:
    """A feature network that sees the mean of each row of pixels, and notes how many images it saw at once."""

    name, sha256, distance, levels, resize = "row means abc", "abc", "Fréchet distance, row means", 17, "none"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return images.double().mean((1, 3))

    def probabilities(self, features: Tensor) -> Tensor:
        return features.softmax(1)


def test_samples_are_streamed_and_the_result_is_that_of_all_at_once() -> None:
    """A batch is looked at before the next is made."""
    judge, made = Pixels(), []

    def batches() -> Iterator[Tensor]:
        for batch in TRAIN.scaled().split(64):
            assert len(made) == len(judge.batches)
            made.append(len(batch))
            yield batch

    streamed = evaluation.see(batches(), judge, 17)
    assert max(judge.batches) == 64
    reference = Reference.of(TEST, judge)
    all_at_once = evaluation.compare(judge(TRAIN.images), reference)
    assert evaluation.compare(streamed, reference).frechet == pytest.approx(all_at_once.frechet, rel=1e-9)
    assert all_at_once.samples == len(streamed) == 1500


def test_images_of_other_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="the images have 256 levels, row means abc sees 17"):
        evaluation.see([TRAIN.images], Pixels(), 256)


# What is said beside a number ----------------------------------------------------------------------------------------


def test_the_caption_holds_everything_that_a_number_depends_on() -> None:
    judge = features.classifier_of("digits")
    drawing = Drawing("heun", LEVELS, guidance=2.0, seed=7, batch_size=500)
    found = evaluation.compare(judge(TRAIN.images), Reference.of(TEST, judge), drawing)
    assert found.caption == (
        f"Fréchet distance, {judge.name}: 1,500 samples by heun, 9 evaluations each, guidance 2, seed 7 in "
        f"batches of 500; against 297 images, digits/test {TEST.sha256[:6]}; 28 features of the {judge.name}; "
        f"resizing: none."
    )
    real = evaluation.compare(judge(TRAIN.images), Reference.of(TEST, judge))
    assert ": 1,500 real images; against" in real.caption
    assert "evaluations" not in real.caption


def test_the_caption_says_of_how_many_pairs_a_distance_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """KID, precision and recall are of a choice of rows, where there are more images."""
    judge = Pixels()
    seen, whole = judge(TEST.images), Reference.of(TRAIN, judge)
    of_all = evaluation.compare(seen, whole)
    assert "recall" not in of_all.caption
    monkeypatch.setattr(evaluation, "PAIRS", 400)
    some = Reference.of(TRAIN, judge)
    assert "precision and recall from 297 and 400 of them" in evaluation.compare(seen, some).caption
    monkeypatch.setattr(evaluation, "PAIRS", 100)
    found = evaluation.compare(seen, some)
    assert "against 1,500 images, digits/train" in found.caption
    assert "; kernel distance, precision and recall from 100 and 400 of them; 8 features" in found.caption
    assert (found.row()["pair_samples"], found.row()["pair_reference_images"]) == (100, 400)
    assert found.frechet == of_all.frechet, "which is of all"
    assert found.kid == kid(some.pairs, evaluation._pairs(seen)).value
    assert "from 100 and 1,500" in evaluation.compare(seen, whole).caption


def test_the_choice_of_pairs_is_of_all_rows_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(6000.0)[:, None]
    assert evaluation._pairs(rows) is rows
    monkeypatch.setattr(evaluation, "PAIRS", 1500)
    chosen = evaluation._pairs(rows).flatten()
    assert len(chosen) == 1500
    assert (chosen.diff() > 0).all()
    thirds = torch.histc(chosen, 3, 0, 6000)  # a standard deviation of 16 around 500
    assert (thirds - 500).abs().max() < 64
    assert torch.equal(evaluation._pairs(rows).flatten(), chosen)


def test_a_network_that_does_not_say_the_shape_of_its_images_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Linear has no image_shape; set network.image_shape = \(C, H, W\)"):
        next(Drawing("heun", LEVELS).samples(torch.nn.Linear(2, 2), predictions.V, TRAIN.labels[:5]))


def test_a_caution_of_the_data_is_part_of_the_caption() -> None:
    careful = data.ImageData("x/test", TEST.images, TEST.labels, 17, 0.75, caution="re-encoded by somebody")
    found = evaluation.compare(draw(100, 8), Reference.of(careful, Pixels()))
    assert found.caption.endswith("; re-encoded by somebody.")
    assert found.row()["caution"] == "re-encoded by somebody"


@pytest.mark.filterwarnings("ignore:.*samples are few")
def test_an_evaluation_is_a_row_of_a_csv_file() -> None:
    judge = features.classifier_of("digits")
    seen = evaluation.see([TEST.images], judge, 17)
    row = evaluation.compare(seen, Reference.of(TRAIN, judge), Drawing("ddim", LEVELS), score=True).row()
    assert (row["sampler"], row["evaluations"], row["sampling_seed"], row["guidance"]) == ("ddim", 5, 0, 1.0)
    assert (row["reference_sha256"], row["network_sha256"]) == (TRAIN.sha256, judge.sha256)
    assert 5 < float(row["score"]) < 10
    assert math.isnan(evaluation.compare(seen, Reference.of(TRAIN, judge)).score), "where it is not asked for"
    assert math.isnan(evaluation.compare(seen[:9], Reference(judge, "", "", Moments.of(seen)), score=True).score)
    text = io.StringIO()
    writer = csv.DictWriter(text, row)
    writer.writeheader()
    writer.writerow(row)
    assert next(csv.DictReader(io.StringIO(text.getvalue()))) == {name: str(value) for name, value in row.items()}


@pytest.mark.parametrize(("sampler", "expected"), [("ddpm", 7), ("ddim", 7), ("dpmpp_2m", 7), ("heun", 13)])
def test_evaluations_are_counted_as_they_happen(sampler: str, expected: int) -> None:
    levels = sampling.levels(schedules.Cosine(-8, 8), 6)
    calls = 0

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * z

    sampling.get(sampler)(denoise, torch.randn(5, 2), levels, generator=torch.Generator().manual_seed(0))
    assert Drawing(sampler, levels).evaluations == calls == expected


def test_what_moments_alone_do_not_tell_is_not_a_number() -> None:
    known = Reference.of(TEST, Pixels())
    bare = Reference(Pixels(), "published", "123456789", known.moments)
    found = evaluation.compare(draw(100, 8), bare)
    assert found.frechet == pytest.approx(evaluation.compare(draw(100, 8), known).frechet)
    assert all(math.isnan(value) for value in (found.kid, found.kid_error, found.precision, found.recall, found.score))


# The floor -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*samples are few")
def test_the_floor_falls_with_the_number_of_images() -> None:
    """The bias of a Fréchet distance is about 1/N; KID has none."""
    judge = features.classifier_of("digits")
    reference = Reference.of(TEST, judge)
    floors = {
        count: [evaluation.floor(TRAIN, reference, count, seed) for seed in range(4)] for count in (60, 300, 1500)
    }
    means = {count: sum(found.frechet for found in some) / 4 for count, some in floors.items()}
    assert means[60] > 1.5 * means[300] > 1.5 * means[1500] > 0
    assert all(abs(found.kid) < 4 * found.kid_error for some in floors.values() for found in some)
    assert floors[60][0].frechet != floors[60][1].frechet
    assert floors[60][0] == evaluation.floor(TRAIN, reference, 60, 0)
    assert [found.samples for found in floors[60]] == [60] * 4


def test_the_floor_takes_what_there_is() -> None:
    judge = features.classifier_of("digits")
    found = evaluation.floor(TEST, Reference.of(TRAIN, judge), 10_000)
    assert found.samples == 297
    assert found.frechet == pytest.approx(evaluation.compare(judge(TEST.images), Reference.of(TRAIN, judge)).frechet)


def test_a_set_is_no_floor_of_itself() -> None:
    with pytest.raises(ValueError, match=r"digits/test is the reference\. Take the other split"):
        evaluation.floor(TEST, Reference.of(TEST, Pixels()), 100)


# Errors, neighbours --------------------------------------------------------------------------------------------------


def test_errors_by_level_are_those_of_a_network_that_predicts_zero() -> None:
    """v̂ = 0 means ε̂ = σ z, whose error is α²σ²‖x‖² + α⁴ D on average."""
    network = models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, width=8)
    levels = torch.tensor([-6.0, 0.0, 1.0, 6.0], dtype=torch.float64)
    found = evaluation.errors_by_level(network, predictions.V, TEST, levels, draws=8)
    signal, norm = torch.sigmoid(levels), TEST.scaled(torch.float64).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(found, signal * (1 - signal) * norm + signal**2 * 64, rtol=0.01, atol=0.05)
    again = evaluation.errors_by_level(network, predictions.V, TEST, levels[1:2], draws=8)
    assert torch.equal(again, found[1:2])


class Noted(torch.nn.Module):
    """A network that notes how it is called, and errs in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.calls: list[tuple[int, bool]] = []

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls.append((len(z), label is None))
        return (1.0 if self.training else 0.2) * z + (0.0 if label is None else 0.01 * label[:, None, None, None])


def test_errors_by_level_are_measured_in_batches_and_in_evaluation_mode() -> None:
    network, levels = Noted().eval(), torch.tensor([-1.0, 2.0])
    whole = evaluation.errors_by_level(network, predictions.V, TEST, levels, batch_size=10_000)
    parts = evaluation.errors_by_level(network.train(), predictions.V, TEST, levels, batch_size=100)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
    assert network.calls == [(297, False)] * 2 + [(size, False) for size in (100, 100, 97) for _ in range(2)]
    told_nothing = evaluation.errors_by_level(network, predictions.V, TEST, levels, conditional=False)
    assert network.calls[-1] == (297, True)
    assert not torch.allclose(told_nothing, whole)


def test_errors_by_level_name_the_level_of_a_nan() -> None:
    network = models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, width=8)
    next(iter(network.parameters())).data.fill_(math.nan)
    with pytest.raises(ValueError, match="ε̂ is NaN or infinite for 297 of 297 examples at log-SNR -2;"):
        evaluation.errors_by_level(network, predictions.V, TEST, torch.tensor([-2.0, 2.0]))


@pytest.mark.parametrize("tile", [5000, 256])
def test_the_nearest_training_image_is_found(tile: int) -> None:
    order = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0))[:300]
    train = TRAIN.scaled()
    changed = train[order].clone()
    changed[:, 0, 3, 3] += 0.01
    index, distance = evaluation.nearest(train, changed, batch_size=70, tile=tile)
    assert torch.equal(index, order)
    torch.testing.assert_close(distance, torch.full_like(distance, 0.01), rtol=1e-4, atol=1e-6)


def test_images_of_different_shapes_have_no_nearest() -> None:
    with pytest.raises(ValueError, match="first sample has shape"):
        evaluation.nearest(torch.zeros(3, 1, 8, 8), torch.zeros(3, 64))
