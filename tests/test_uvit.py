"""The U-ViT and its parts: folding, wavelets, where dropout acts."""

import pytest
import torch
from torch import Tensor

from paperlib.models import UViT
from paperlib.models.folding import Folding, fold, inverse_wavelet, unfold, wavelet
from paperlib.models.unet import ResidualBlock
from paperlib.models.uvit import TransformerBlock

SHAPES = [(1, 1, 2, 2), (2, 3, 8, 4), (1, 2, 16, 16)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("folding", ["patch", "wavelet"])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_folding_is_linear_and_comes_back(folding: Folding, factor: int) -> None:
    x, y = normal(2, 3, 8, 16), normal(2, 3, 8, 16, seed=1)
    folded = fold(x, factor, folding)
    assert folded.shape == (2, 3 * factor**2, 8 // factor, 16 // factor)
    torch.testing.assert_close(unfold(folded, factor, folding), x)
    torch.testing.assert_close(fold(2 * x - y, factor, folding), 2 * folded - fold(y, factor, folding))


@pytest.mark.parametrize("shape", SHAPES)
def test_wavelet_bands_are_convolutions_with_the_filters_of_jpeg_2000(shape: tuple[int, ...]) -> None:
    """Low (−1, 2, 6, 2, −1)/8 at even samples, high (−1, 2, −1)/2 at odd ones, the image mirrored at its ends."""
    x = normal(*shape)
    low, high = torch.tensor([-1.0, 2, 6, 2, -1]) / 8, torch.tensor([-1.0, 2, -1]) / 2
    for number, (rows, columns) in enumerate([(low, low), (low, high), (high, low), (high, high)]):
        band = filtered(filtered(x, columns.double(), 3), rows.double(), 2)
        torch.testing.assert_close(wavelet(x).chunk(4, dim=1)[number], band)


def filtered(x: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Every second sample of the convolution along a dimension, from the first for five taps, the second for three."""
    size, reach, start = x.shape[dim], len(taps) // 2, int(len(taps) == 3)
    places = torch.arange(-reach, size + reach).abs()
    places = torch.where(places >= size, 2 * (size - 1) - places, places).abs()  # a b c d continues as c b a
    windows = x.index_select(dim, places).unfold(dim, len(taps), 1)
    return (windows * taps).sum(-1).index_select(dim, torch.arange(start, size, 2))


def test_wavelets_put_smooth_images_into_one_band() -> None:
    slope = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    bands = wavelet(slope + slope.mT)
    assert bands[:, 1:, :-1, :-1].abs().max() < 1e-12, "but for the last row and column"
    torch.testing.assert_close(bands[0, 0, 1:-1, 1:-1], (slope + slope.mT)[0, 0, 2:-2:2, 2:-2:2])
    torch.testing.assert_close(inverse_wavelet(bands), slope + slope.mT)


def test_dropout_is_left_to_the_transformer() -> None:
    network = UViT(image_shape=(3, 16, 16), num_classes=0, sigma_data=0.5, channels=8, multipliers=(1, 4), dropout=0.2)
    rates = {
        type(block): {module.p for module in block.modules() if isinstance(module, torch.nn.Dropout)}
        for block in network.modules()
        if isinstance(block, ResidualBlock | TransformerBlock)
    }
    assert rates == {ResidualBlock: {0.0}, TransformerBlock: {0.2}}


def test_the_transformer_works_at_16_pixels_in_all_presets() -> None:
    """However large the picture, so that its cost is the same."""
    from paperlib.models import build

    for size in (128, 256, 512):
        with torch.device("meta"):
            network = build(f"uvit_imagenet{size}", image_shape=(3, size, size), num_classes=1000, sigma_data=0.5)
        assert network.positions.shape == (16 * 16, 2048)


def test_a_token_knows_its_place() -> None:
    """Without positions, swapping patches would swap the prediction, but for what convolutions see at the border."""
    network = UViT(image_shape=(1, 8, 8), num_classes=0, sigma_data=0.5, channels=16, patch=4, head_channels=8).double()
    x, condition = normal(1, 16, 2, 2), normal(1, 128, seed=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    swapped = network._transform(x.flip(3), condition).flip(3)
    assert not torch.allclose(network._transform(x, condition), swapped)
    torch.nn.init.zeros_(network.positions)
    torch.testing.assert_close(network._transform(x, condition), network._transform(x.flip(3), condition).flip(3))
