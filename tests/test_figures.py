"""Pictures as they are drawn: values, colours, what lies outside."""

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


def test_scaled_images_may_be_the_first_few() -> None:
    images = data.load("digits", "test")
    assert torch.equal(images.scaled(first=7), images.scaled()[:7])
    assert len(images.scaled(first=10_000)) == len(images)
