"""Crops: squares that others compute too, 8 bits in and 8 bits out, refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pictures import noise
from PIL import Image

from paperlib.engine.data import box_mean
from paperlib.engine.decode import CROPS, Crop

SIDES = st.integers(1, 70)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def halved(pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Means over 2×2 pixels in integers, along rows and then along columns, halves upwards both times."""
    rows = (pixels[:, 0::2] + pixels[:, 1::2] + 1) // 2
    return (rows[0::2] + rows[1::2] + 1) // 2


@given(SIDES, SIDES, st.integers(1, 40), st.sampled_from(["adm", "area"]))
def test_squares_have_the_size_that_was_asked_for(height: int, width: int, size: int, name: str) -> None:
    square = Crop(name, size)(picture(height, width))
    assert (square.shape, square.dtype) == ((3, size, size), np.uint8)


@given(SIDES, SIDES, st.integers(1, 40), st.sampled_from(["adm", "area"]), st.integers(0, 255))
def test_a_flat_picture_stays_flat(height: int, width: int, size: int, name: str, value: int) -> None:
    flat = Image.fromarray(np.full((height, width, 3), value, np.uint8))
    assert (Crop(name, size)(flat) == value).all()


@pytest.mark.parametrize("name", ["adm", "area"])
@given(height=SIDES, width=SIDES, size=st.integers(1, 40))
def test_rows_and_columns_are_treated_alike(name: str, height: int, width: int, size: int) -> None:
    image = picture(height, width).point(lambda value: 64 + value // 2)  # bicubic clips extremes after each pass
    turned = Crop(name, size)(image.transpose(Image.Transpose.TRANSPOSE)).transpose(0, 2, 1)
    # rows and columns are resampled one after the other, each time rounded
    assert np.abs(turned.astype(int) - Crop(name, size)(image)).max() <= 4


@pytest.mark.parametrize("halvings", [0, 1, 2, 3])
def test_adm_halves_as_long_as_it_can(halvings: int) -> None:
    image = picture(6 << halvings, 6 << halvings)
    expected = np.asarray(image).astype(np.int64)
    for _ in range(halvings):
        expected = halved(expected)
    assert np.array_equal(Crop("adm", 6)(image), expected.transpose(2, 0, 1))


def test_adm_resamples_the_rest_bicubically_as_torch_does() -> None:
    image = picture(44, 60).point(lambda value: 64 + value // 2)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
    shrunk = F.interpolate(pixels, (24, round(60 * 24 / 44)), mode="bicubic", antialias=True, align_corners=False)
    left = (shrunk.shape[3] - 24) // 2
    assert np.abs(Crop("adm", 24)(image) - shrunk[0, :, :, left : left + 24].numpy()).max() < 2  # rounded twice


@pytest.mark.parametrize(("height", "width"), [(6, 11), (11, 6), (6, 6), (10, 6)])
def test_adm_cuts_the_middle_out_of_a_picture_of_that_height(height: int, width: int) -> None:
    image = picture(height, width)
    top, left = (height - 6) // 2, (width - 6) // 2
    expected = np.asarray(image)[top : top + 6, left : left + 6].transpose(2, 0, 1)
    assert np.array_equal(Crop("adm", 6)(image), expected)


@pytest.mark.parametrize(("factor", "extra"), [(1, 0), (2, 5), (3, 4), (5, 7)])
def test_area_is_the_mean_over_boxes_of_the_middle_square(factor: int, extra: int) -> None:
    image = picture(8 * factor, 8 * factor + extra)
    left = extra // 2
    square = torch.from_numpy(np.array(image))[:, left : left + 8 * factor].permute(2, 0, 1)
    means = F.adaptive_avg_pool2d(square.double(), 8).numpy()
    assert np.abs(Crop("area", 8)(image) - means).max() <= 1  # rounded twice


def test_the_two_ways_differ() -> None:
    image = picture(50, 61)
    assert not np.array_equal(Crop("adm", 16)(image), Crop("area", 16)(image))
    assert len({Crop(name, 16).description for name in CROPS}) == len(CROPS)


def test_all_levels_of_8_bits_pass_through() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    square = Crop("none", 16)(Image.fromarray(np.stack([levels, levels.T, levels[::-1]], -1)))
    assert np.array_equal(square, np.stack([levels, levels.T, levels[::-1]]))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_8_bit_picture_becomes_colour(mode: str) -> None:
    image = picture(9, 9).convert(mode)
    assert np.array_equal(Crop("none", 9)(image), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_pictures_of_more_bits_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"the picture has mode {mode}; only 8-bit"):
        Crop("none", 4)(Image.new(mode, (4, 4)))


def test_what_cannot_be_cropped_is_refused() -> None:
    with pytest.raises(ValueError, match="the picture is 5×4, not 4×4"):
        Crop("none", 4)(picture(4, 5))
    with pytest.raises(ValueError, match="unknown crop 'box'; choose one of none, adm, area"):
        Crop("box", 4)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        Crop("adm", 0)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_box_means_are_those_of_integers(factor: int, chunk: int) -> None:
    images = noise(7, 16).transpose(0, 3, 1, 2)
    boxes = images.astype(np.int64).reshape(7, 3, 16 // factor, factor, 16 // factor, factor).sum((3, 5))
    whole, rest = np.divmod(boxes, factor**2)
    up = (2 * rest > factor**2) | ((2 * rest == factor**2) & (whole % 2 == 1))  # halves to even
    assert np.array_equal(box_mean(torch.from_numpy(images), factor, chunk).numpy(), whole + up)


def test_halves_go_to_even_in_box_means() -> None:
    boxes = torch.tensor([[0, 0, 1, 1], [3, 3, 2, 2], [255, 255, 254, 254]], dtype=torch.uint8)
    assert box_mean(boxes.reshape(3, 1, 2, 2), 2).flatten().tolist() == [0, 2, 254]


@pytest.mark.parametrize("factor", [0, -2, 3, 5, 32, 512])
def test_factors_that_do_not_divide_are_refused(factor: int) -> None:
    with pytest.raises(ValueError, match=f"power of two up to 256 that divides 16 and 16, got {factor}"):
        box_mean(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), factor)
