"""Networks against those of diffusers: the same weights give the same predictions."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention as TheirAttention
from torch import Tensor, nn

from paperlib.models import UNet
from paperlib.models.unet import Attention, ResidualBlock
from paperlib.models.uvit import TransformerBlock

DOWN = {False: "ResnetDownsampleBlock2D", True: "AttnDownBlock2D"}
UP = {False: "ResnetUpsampleBlock2D", True: "AttnUpBlock2D"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "attention below": {"channels": 128, "multipliers": (1, 2), "blocks": 2, "attention": (4,), "head_channels": 64},
    "three levels": {"channels": 128, "multipliers": (1, 1, 2), "blocks": 1, "attention": (8, 2), "head_channels": 32},
}
"""128 channels at least everywhere, so that every norm has diffusers' 32 groups."""


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """The same module in float64, with random parameters everywhere."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05, generator=generator)
    return network


def ours(options: dict[str, Any]) -> UNet:
    network = randomised(UNet(image_shape=(3, 8, 8), num_classes=0, sigma_data=0.5, **options))
    assert isinstance(network, UNet)
    return network


def theirs(options: dict[str, Any]) -> UNet2DModel:
    """diffusers' U-Net of the same structure; its time embedding says nothing, its class embedding is the condition."""
    sizes = [8 // 2**level for level in range(len(options["multipliers"]))]
    attends = [size in options["attention"] for size in sizes]
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=tuple(options["channels"] * multiplier for multiplier in options["multipliers"]),
        layers_per_block=options["blocks"],
        down_block_types=tuple(DOWN[attend] for attend in attends),
        up_block_types=tuple(UP[attend] for attend in reversed(attends)),
        attention_head_dim=options["head_channels"],
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32,
        class_embed_type="identity",
        num_class_embeds=1,
    ).double()
    for parameter in network.time_embedding.parameters():
        nn.init.zeros_(parameter)
    return network.eval()


def copy(source: nn.Module, target: nn.Module) -> None:
    """Weights of one layer into another of the same kind."""
    target.load_state_dict(source.state_dict())


def copy_block(source: ResidualBlock, target: nn.Module) -> None:
    copy(source.norm_in, target.norm1)
    copy(source.conv_in, target.conv1)
    copy(source.modulation, target.time_emb_proj)
    copy(source.conv_out, target.conv2)  # their second norm keeps scale 1 and shift 0; ours has none
    if isinstance(source.skip, nn.Conv2d):
        copy(source.skip, target.conv_shortcut)


def copy_attention(source: Attention, target: nn.Module) -> None:
    copy(source.norm, target.group_norm)
    copy_queries_keys_values(source.qkv, target)
    copy(source.out, target.to_out[0])


def copy_queries_keys_values(source: nn.Linear, target: nn.Module) -> None:
    for layer, weight, bias in zip(
        (target.to_q, target.to_k, target.to_v), source.weight.chunk(3), source.bias.chunk(3), strict=True
    ):
        layer.load_state_dict({"weight": weight, "bias": bias})


def their_blocks(network: UNet2DModel, side: str) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """Residual blocks of a side and what attention follows each, in the order of use."""
    for level in getattr(network, f"{side}_blocks"):
        attentions = getattr(level, "attentions", [None] * len(level.resnets))
        yield from zip(level.resnets, attentions, strict=True)
        samplers: Iterable[nn.Module] = getattr(level, f"{side}samplers") or []
        yield from ((sampler, None) for sampler in samplers)
        if getattr(level, "resnet_up", None) is not None:  # AttnUpBlock2D names its own differently
            yield level.resnet_up, None


def copy_network(source: UNet, target: UNet2DModel) -> None:
    middle = target.mid_block
    stages = chain(source.down, source.middle, source.up)
    blocks = chain(
        their_blocks(target, "down"),
        zip(middle.resnets, [*middle.attentions, None], strict=True),
        their_blocks(target, "up"),
    )
    for stage, (block, attention) in zip(stages, blocks, strict=True):
        copy_block(stage.block, block)
        assert (attention is None) == isinstance(stage.attention, nn.Identity)
        if attention is not None:
            copy_attention(stage.attention, attention)
    copy(source.inward, target.conv_in)
    copy(source.outward[0], target.conv_norm_out)
    copy(source.outward[2], target.conv_out)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_unet_predicts_what_that_of_diffusers_does(name: str) -> None:
    options = CONFIGURATIONS[name]
    source, target = ours(options), theirs(options)
    copy_network(source, target)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    condition = torch.randn(2, 4 * options["channels"], generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = target(x, 0, class_labels=condition).sample
        output = source.body(x, nn.functional.silu(condition))  # diffusers applies SiLU in every block
    assert output.std() > 1e-3
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("width", "head_channels"), [(32, 8), (24, 24)])
def test_the_transformer_block_is_made_of_what_diffusers_has(width: int, head_channels: int) -> None:
    """Attention with normalised queries and keys, and the perceptron; scale and shift, which are ours, written out."""
    block = randomised(TransformerBlock(width, head_channels, condition_width=16))
    assert isinstance(block, TransformerBlock)
    attention = TheirAttention(
        width, heads=width // head_channels, dim_head=head_channels, bias=True, qk_norm="rms_norm"
    ).double()
    copy_queries_keys_values(block.qkv, attention)
    copy(block.norm_query, attention.norm_q)
    copy(block.norm_key, attention.norm_k)
    attention.norm_q.eps = attention.norm_k.eps = torch.finfo(torch.float64).eps  # what torch's default is
    copy(block.out, attention.to_out[0])
    perceptron = FeedForward(width, mult=4, activation_fn="gelu-approximate").double()
    copy(block.perceptron[0], perceptron.net[0].proj)
    copy(block.perceptron[3], perceptron.net[2])
    generator = torch.Generator().manual_seed(1)
    x, condition = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 6, width), (2, 16)))

    def normalised(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return nn.functional.layer_norm(tokens, (width,)) * (1 + scale[:, None]) + shift[:, None]

    with torch.no_grad():
        modulation = block.modulation(condition).chunk(4, dim=1)
        expected = x + attention(normalised(x, *modulation[:2]))
        expected = expected + perceptron(normalised(expected, *modulation[2:]))
        torch.testing.assert_close(block(x, condition), expected, rtol=1e-10, atol=1e-10)
