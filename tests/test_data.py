"""Images: the digits and their split, scaling and its inverse, refusals."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperlib.engine import data


def images(size: int = 4, levels: int = 17) -> data.ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(levels, (size, 2, 3, 5), generator=generator, dtype=torch.uint8)
    return data.ImageData("random", pixels, torch.arange(size) % 3, levels, 0.5)


def test_the_digits_are_split_into_disjoint_parts_that_make_up_the_whole() -> None:
    from sklearn.datasets import load_digits

    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train), len(test)) == (1500, 297)
    assert train.image_shape == test.image_shape == (1, 8, 8)
    assert train.num_classes == test.num_classes == 10
    everything = torch.cat([train.images, test.images]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797
    original = torch.from_numpy(load_digits().data).to(torch.uint8)
    assert torch.equal(everything.unique(dim=0), original.unique(dim=0))


def test_each_digit_keeps_its_label() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    label_of = {bytes(image.astype("uint8")): label for image, label in zip(digits.data, digits.target, strict=True)}
    for split in ("train", "test"):
        part = data.load("digits", split)
        found = [label_of[image.numpy().tobytes()] for image in part.images]
        assert found == part.labels.tolist()


def test_the_digits_have_the_standard_deviation_that_networks_are_told() -> None:
    train = data.load("digits", "train")
    assert train.scaled().std().item() == pytest.approx(train.sigma_data, abs=0.01)
    assert train.scaled().min() == -1
    assert train.scaled().max() == 1


def test_digits_that_have_changed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_hashed_order", lambda name, size: torch.arange(size))
    with pytest.raises(RuntimeError, match="digits/test has hash"):
        data.load("digits", "test")


@given(st.integers(2, 256), st.sampled_from([torch.float32, torch.float64]))
def test_every_level_comes_back_from_its_real_number(levels: int, dtype: torch.dtype) -> None:
    values = torch.arange(levels).to(torch.uint8)
    x = data.scale(values, levels, dtype)
    assert x.dtype == dtype
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.equal(data.to_uint8(x, levels), values)
    nudge = 0.49 * 2 / (levels - 1)
    assert torch.equal(data.to_uint8(x + nudge, levels), values)
    assert torch.equal(data.to_uint8(x - nudge, levels), values)


def test_what_lies_outside_is_clamped() -> None:
    assert data.to_uint8(torch.tensor([-7.0, 1.2, 900.0]), 17).tolist() == [0, 16, 16]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_images_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="x has 1 value"):
        data.to_uint8(torch.tensor([0.0, bad]), 17)


def test_the_hash_changes_with_every_part_of_the_data() -> None:
    original = images()
    pixel, label, shape = original.images.clone(), original.labels.clone(), original.images.reshape(4, 3, 2, 5)
    pixel[3, 1, 2, 4] ^= 1
    label[0] = 2
    variants = [(original.images, original.labels), (pixel, original.labels), (original.images, label)]
    variants.append((shape, original.labels))
    hashes = {data.ImageData("other", a, b, 18, 0.5).sha256 for a, b in variants}
    assert len(hashes) == 4
    assert original.sha256 in hashes  # whatever its name


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(4, 1, 8, 8)}, TypeError, "to_uint8"),
        ({"labels": torch.zeros(4)}, TypeError, "labels int64"),
        ({"images": torch.zeros(4, 8, 8, dtype=torch.uint8)}, ValueError, r"shape \(N, C, H, W\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels \(N,\)"),
        ({"images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "labels": torch.arange(0)}, ValueError, "N ≥ 1"),
        ({"levels": 3}, ValueError, "pixels must lie in 0 … levels − 1 = 2, got 16"),
        ({"levels": 1}, ValueError, "pixels must lie"),
        ({"labels": torch.tensor([0, -1, 0, 1])}, ValueError, "labels must be 0 or more, got -1"),
        ({"sigma_data": -1.0}, ValueError, "sigma_data"),
    ],
)
def test_data_that_do_not_fit_are_refused(change: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        data.ImageData(**(vars(images()) | change))


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown data set 'mnist'; choose one of digits"):
        data.load("mnist", "train")
    with pytest.raises(ValueError, match="unknown split 'valid'; choose train or test"):
        data.load("digits", "valid")  # type: ignore[arg-type]
