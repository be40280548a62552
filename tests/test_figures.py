"""Pictures as they are drawn: values, colours, what lies outside."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from paperlib.companion import figures
from paperlib.engine import data


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_has_its_colours_last_and_its_values_between_zero_and_one(channels: int) -> None:
    x = torch.linspace(-3, 3, channels * 20, dtype=torch.float64).reshape(channels, 4, 5)
    shown = figures.picture(x, reach=2.0)
    assert shown.shape == ((4, 5) if channels == 1 else (4, 5, 3))
    assert shown.min() == 0
    assert shown.max() == 1
    restored = (shown if channels == 3 else shown[..., None]).transpose(2, 0, 1) * 4 - 2
    np.testing.assert_allclose(restored, x.clamp(-2, 2).numpy(), atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_every_image_in_its_place_and_white_between(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 17, (7, channels, 4, 5), dtype=np.uint8)
    _, ax = plt.subplots()
    figures.image_grid(images, 3, ax, "seven of nine")
    shown = np.atleast_3d(ax.images[0].get_array())
    assert shown.shape == (14, 17, channels)
    white = np.full((2, *images.shape[1:]), images.max())
    for number, image in enumerate(np.concatenate([images, white])):
        row, column = divmod(number, 3)
        np.testing.assert_array_equal(shown[5 * row :, 6 * column :][:4, :5], image.transpose(1, 2, 0))
    assert (shown[4::5] == images.max()).all()
    assert (shown[:, 5::6] == images.max()).all()


def test_scaled_images_may_be_the_first_few() -> None:
    images = data.load("digits", "test")
    assert torch.equal(images.scaled(first=7), images.scaled()[:7])
    assert len(images.scaled(first=10_000)) == len(images)
