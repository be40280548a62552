"""Feature networks: the packaged classifiers are what their cards say, and refuse what they cannot see."""

from pathlib import Path

import pytest
import torch
from pictures import real_images
from torch import Tensor

from paperlib.engine import data, features, metrics
from paperlib.files import DamagedFileError
from paperlib.models import weights
from tools import classifiers

TRAIN, TEST = data.load("digits", "train"), data.load("digits", "test")


# The digits classifier -----------------------------------------------------------------------------------------------


def test_the_packaged_classifier_is_named_for_what_it_is() -> None:
    judge = features.classifier_of("digits")
    assert judge.name == f"digits classifier {features.DigitsClassifier.sha256[:6]}"
    assert "not FID" in judge.card["name"]
    assert judge.card["trained_on"]["sha256"] == TRAIN.sha256
    assert not judge.training


def test_the_accuracy_on_its_card_is_the_one_that_it_has() -> None:
    judge = features.classifier_of("digits")
    for split, least in ((TRAIN, 0.99), (TEST, 0.97)):
        accuracy = (judge.classify(split.images) == split.labels).double().mean().item()
        stated = judge.card[f"{split.name.removeprefix('digits/')}_accuracy"]
        assert accuracy == pytest.approx(stated, abs=1.5 / len(split))
        assert accuracy > least


def test_features_are_standardised_and_enough_samples_come_to_each() -> None:
    seen = features.classifier_of("digits")(TRAIN.images)
    assert seen.mean(0).abs().max() < 1e-3
    assert (seen.std(0) - 1).abs().max() < 0.02
    assert len(TEST) >= metrics.SAMPLES_PER_FEATURE * seen.shape[1]


def test_features_do_not_depend_on_the_batch() -> None:
    judge = features.classifier_of("digits")
    parts = torch.cat([judge(part) for part in TEST.images.split(100)])
    torch.testing.assert_close(parts, judge(TEST.images), rtol=1e-4, atol=1e-5)


def test_training_the_classifier_again_gives_a_good_classifier() -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    card = classifiers.train_digits(steps=300).card
    assert torch.equal(torch.random.get_rng_state(), state)
    assert card["test_accuracy"] > 0.9


def test_classifier_weights_other_than_those_known_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = classifiers.train_digits(steps=1)
    weights.save_weights(tmp_path / "assets" / "digits_classifier.safetensors", other, other.card)
    monkeypatch.setattr(features, "files", lambda package: tmp_path)
    with pytest.raises(DamagedFileError, match="distances would not be comparable"):
        features.classifier_of.__wrapped__("digits")


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
        features.classifier_of("digits")(images)


# The classifier of CIFAR-10 ------------------------------------------------------------------------------------------


def noise(size: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def test_the_classifier_of_photographs_says_on_what_it_was_trained() -> None:
    judge = features.classifier_of("cifar10")
    assert judge.name == f"CIFAR-10 classifier {features.Cifar10Classifier.sha256[:6]}"
    assert judge.distance == f"Fréchet distance, {judge.name}"
    assert "not FID" in judge.card["name"]
    assert "JPEG re-encoded" in judge.card["caution"]
    assert 0.85 < judge.card["test_accuracy"] < judge.card["train_accuracy"]
    assert not any(parameter.requires_grad for parameter in judge.parameters())


@pytest.mark.parametrize("size", [8, 16, 32])
def test_photographs_give_64_features_and_10_probabilities(size: int) -> None:
    judge = features.classifier_of("cifar10")
    seen = judge(noise(size))
    assert seen.shape == (3, 64)
    probabilities = judge.probabilities(seen)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    torch.testing.assert_close(probabilities, judge.head(seen).softmax(1))
    assert torch.equal(judge.classify(noise(size)), probabilities.argmax(1))


def test_the_classifier_of_photographs_fits_into_the_package(repository: Path) -> None:
    path = repository / "paperlib" / "engine" / "assets" / "cifar10_classifier.safetensors"
    assert path.stat().st_size < 1_500_000
    assert len(weights.read_card(path)["caution"]) > 0


def test_the_accuracy_on_the_card_is_that_on_real_photographs() -> None:
    test = data.load("cifar10", "test", real_images() / "cifar10")
    judge = features.classifier_of("cifar10")
    accuracy = (judge.classify(test.images[:2000]) == test.labels[:2000]).double().mean().item()
    stated = judge.card["test_accuracy"]
    assert accuracy == pytest.approx(stated, abs=4 * (stated * (1 - stated) / 2000) ** 0.5)


def test_features_of_real_photographs_are_standardised() -> None:
    train = data.load("cifar10", "train", real_images() / "cifar10")
    seen = features.classifier_of("cifar10")(train.images[:3000])
    assert seen.mean(0).abs().max() < 0.1
    assert (seen.std(0) - 1).abs().max() < 0.1


@pytest.mark.slow
def test_training_on_photographs_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short training on little data is well above chance."""
    root = real_images() / "cifar10"
    whole = data.load

    def little(name: str, split: data.Split, root: Path | None = root) -> data.ImageData:
        images = whole(name, split, root)
        return data.ImageData(images.name, images.images[:1500], images.labels[:1500], 256, 0.5, caution=images.caution)

    monkeypatch.setattr(classifiers, "load", little)
    card = classifiers.train_cifar10(epochs=2, batch_size=100, root=root).card
    assert card["test_accuracy"] > 0.2
    assert card["trained_on"]["epochs"] == 2
    assert set(card["test_accuracy_by_size"]) == {"8", "16", "32"}


@pytest.mark.parametrize("seed", [0, 1])
def test_images_are_moved_and_mirrored_one_by_one(seed: int) -> None:
    """Every result is a window of its own padded image or of its mirror image; all displacements occur."""
    x = torch.arange(400 * 6 * 5.0).reshape(400, 1, 6, 5)
    moved = classifiers._mirrored_and_moved(x, 2, torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    windows = [padded[..., i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
    candidates = torch.stack([*windows, *(window.flip(-1) for window in windows)])
    hits = (candidates == moved).flatten(2).all(2)
    assert hits.any(0).all()
    assert hits.any(1).all()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 32, 32), TypeError, r"to_uint8\(x, levels=256\)"),
        (noise(64), ValueError, r"shape \(N, 3, 32, 32\)"),
        (noise(32)[:, :1], ValueError, "shape"),
    ],
)
def test_images_that_the_classifier_of_photographs_cannot_see_are_refused(
    images: Tensor, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        features.classifier_of("cifar10")(images)


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10-16", "cifar10-8"])
def test_data_have_the_classifier_that_sees_them(name: str) -> None:
    judge = features.classifier_of(name)
    assert judge.name.startswith(name.split("-")[0].replace("cifar", "CIFAR-"))


def test_data_without_a_classifier_are_sent_to_inception() -> None:
    with pytest.raises(ValueError, match=r"no packaged classifier sees 'imagenet64'.*digits, cifar10.*inception"):
        features.classifier_of("imagenet64")


def test_the_wheel_holds_the_classifiers(repository: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    included = [file.distribution_path for file in WheelBuilder(str(repository)).recurse_included_files()]
    for name in ("digits", "cifar10"):
        assert f"paperlib/engine/assets/{name}_classifier.safetensors" in included
