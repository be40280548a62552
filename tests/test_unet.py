"""The U-Net and its parts: attention, resampling, modulated norms."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from paperlib.models.conditioning import scale_shift
from paperlib.models.unet import Attention, UNet, group_norm, modulated, resample

SHAPES = [(1, 4, 2, 2), (3, 8, 4, 6), (2, 12, 8, 8)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("attention", "layers"),
    # one in the middle, and at a chosen resolution one after each of 2 blocks down and 3 up
    [((), 1), ((8,), 6), ((8, 16), 11), ((32,), 6), ((7,), 1)],
)
def test_attention_stands_at_the_chosen_resolutions(attention: tuple[int, ...], layers: int) -> None:
    network = UNet(
        image_shape=(3, 32, 32),
        num_classes=0,
        sigma_data=0.5,
        channels=8,
        multipliers=(1, 2, 2),
        attention=attention,
        head_channels=8,
    )
    assert sum(isinstance(module, Attention) for module in network.modules()) == layers


def test_attention_is_softmax_attention() -> None:
    attention = Attention(8, head_channels=4).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    x = torch.randn(2, 8, 3, 2, generator=generator, dtype=torch.float64)
    q, k, v = attention.qkv(attention.norm(x).flatten(2).mT).mT.chunk(3, dim=1)
    heads = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        weight = torch.softmax(q[:, rows].mT @ k[:, rows] / math.sqrt(4), dim=-1)
        heads.append((weight @ v[:, rows].mT).mT)
    expected = x + attention.out(torch.cat(heads, dim=1).mT).mT.reshape(x.shape)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_resampling_repeats_and_averages(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x = normal(*shape).to(memory_format=layout)
    torch.testing.assert_close(resample(x, "up"), interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(resample(x, "down"), avg_pool2d(x, 2))
    torch.testing.assert_close(resample(resample(x, "up"), "down"), x)
    assert resample(x, None) is x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_modulated_norm_is_the_norm_scaled_and_shifted(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    """Values and all gradients."""
    batch, channels = shape[:2]
    x = normal(*shape).to(memory_format=layout).requires_grad_()
    modulation = normal(batch, 2 * channels, seed=1).requires_grad_()
    norm, upstream = group_norm(channels, affine=False), normal(*shape, seed=2)
    ours, expected = modulated(norm, x, modulation), scale_shift(norm(x), modulation)
    torch.testing.assert_close(ours, expected)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, modulation), upstream),
        torch.autograd.grad(expected, (x, modulation), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_network_is_the_same_in_either_layout(layout: torch.memory_format) -> None:
    network = UNet(image_shape=(3, 8, 8), num_classes=3, sigma_data=0.5, channels=16, head_channels=8).double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = 0.2 * normal(*parameter.shape, seed=seed)
    z, logsnr = normal(4, 3, 8, 8), torch.linspace(-5, 5, 4, dtype=torch.float64)
    expected = network(z, logsnr)
    network.to(memory_format=layout)
    torch.testing.assert_close(network(z.to(memory_format=layout), logsnr), expected)


def test_attention_is_at_the_height_after_folding() -> None:
    network = UNet(image_shape=(3, 32, 32), num_classes=0, sigma_data=0.5, patch=2, attention=(16,))
    assert sum(isinstance(module, Attention) for module in network.modules()) == 1 + 5
