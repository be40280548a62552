"""Networks: shapes, conditioning, initialisation, gradients, refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import models, process
from paperlib.models import ConditionedNetwork
from paperlib.models.unet import Attention, UNet

CLASSES = 5
NETWORKS: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "mlp": ("mlp", (1, 4, 4), {"width": 24, "hidden": 16, "blocks": 2}),
    "mlp, colour": ("mlp", (3, 2, 5), {"width": 8, "hidden": 40, "blocks": 1, "condition_width": 12}),
    "unet": ("unet", (1, 8, 8), {"channels": 16, "blocks": 1, "head_channels": 8}),
    "unet, three resolutions": (
        "unet",
        (3, 8, 4),
        {"channels": 8, "multipliers": (1, 2, 2), "attention": (8, 4), "head_channels": 4},
    ),
    "unet, one resolution": (
        "unet",
        (2, 5, 7),
        {"channels": 8, "multipliers": (1,), "attention": (), "head_channels": 8},
    ),
}
every_network = pytest.mark.parametrize("case", NETWORKS, ids=list(NETWORKS))


def make(case: str, seed: int | None = 0, sigma_data: float = 0.75) -> ConditionedNetwork:
    name, shape, options = NETWORKS[case]
    return models.build(
        name, image_shape=shape, num_classes=CLASSES, sigma_data=sigma_data, seed=seed, **options
    ).double()


def stirred(case: str) -> ConditionedNetwork:
    """The network with random weights everywhere, also where it starts at zero."""
    network, generator = make(case), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


def batch(network: ConditionedNetwork, size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(size, *network.image_shape, generator=generator, dtype=torch.float64)
    logsnr = torch.linspace(-12, 12, size, dtype=torch.float64)
    return z, logsnr, torch.arange(size) % CLASSES


@every_network
def test_the_prediction_has_the_shape_of_z_flattened_or_not(case: str) -> None:
    network = stirred(case)
    z, logsnr, label = batch(network)
    output = network(z, logsnr, label)
    assert output.shape == z.shape
    assert torch.equal(network(z.flatten(1), logsnr, label), output.flatten(1))


@every_network
def test_the_output_starts_at_zero(case: str) -> None:
    network = make(case)
    assert not network(*batch(network)).any()


@every_network
def test_every_parameter_receives_a_gradient(case: str) -> None:
    network = stirred(case)
    z, logsnr, label = batch(network)
    label[0] = CLASSES  # the null class is trained too
    network(z, logsnr, label).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@every_network
def test_level_and_class_change_the_prediction_of_their_own_example_alone(case: str) -> None:
    network = stirred(case)
    z, logsnr, label = batch(network)
    before = network(z, logsnr, label)
    other_level, other_label = logsnr.clone(), label.clone()
    other_level[2] += 0.5
    other_label[4] = (label[4] + 1) % CLASSES
    changed = (network(z, other_level, other_label) - before).flatten(1).abs().amax(1) > 1e-6
    assert changed.tolist() == [False, False, True, False, True, False]


@every_network
def test_an_example_does_not_depend_on_its_batch(case: str) -> None:
    network = stirred(case)
    z, logsnr, label = batch(network)
    one_by_one = [network(z[i : i + 1], logsnr[i : i + 1], label[i : i + 1]) for i in range(len(z))]
    torch.testing.assert_close(torch.cat(one_by_one), network(z, logsnr, label), rtol=1e-10, atol=1e-10)


@every_network
def test_no_label_is_the_null_class(case: str) -> None:
    network = stirred(case)
    z, logsnr, label = batch(network)
    null = torch.full_like(label, CLASSES)
    assert torch.equal(network(z, logsnr), network(z, logsnr, null))
    assert not torch.allclose(network(z, logsnr), network(z, logsnr, label))


@pytest.mark.parametrize("sigma_data", [0.25, 0.75, 1.0, 3.0])
def test_the_body_sees_inputs_of_unit_variance(sigma_data: float, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make("unet", sigma_data=sigma_data)
    seen: list[Tensor] = []
    monkeypatch.setattr(network, "body", lambda x, condition: seen.append(x) or x)
    generator = torch.Generator().manual_seed(0)
    x = sigma_data * torch.randn(4000, 1, 8, 8, generator=generator, dtype=torch.float64)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for level in (-12.0, -2.0, 0.0, 3.0, 12.0):
        logsnr = torch.full((len(x),), level, dtype=torch.float64)
        network(process.diffuse(x, eps, logsnr), logsnr)
        assert seen[-1].std().item() == pytest.approx(1, abs=0.01)


@every_network
def test_a_seed_fixes_the_initialisation_and_leaves_the_global_generator_alone(case: str) -> None:
    state = torch.random.get_rng_state()
    first, same, other = (make(case, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@every_network
def test_the_configuration_builds_the_network_again(case: str) -> None:
    network = make(case)
    again = models.build(**network.config, seed=0).double()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_networks_for_digits_are_as_small_as_their_weights_must_be() -> None:
    for name, most in (("mlp", 0.6e6), ("unet", 1.4e6)):
        network = models.build(name, image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75)
        assert 0.2e6 < sum(parameter.numel() for parameter in network.parameters()) <= most


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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "resnet"}, ValueError, "unknown model 'resnet'; choose one of mlp, unet"),
        ({"depth": 3}, TypeError, "depth"),
        ({"image_shape": (8, 8)}, ValueError, "image_shape must be"),
        ({"image_shape": (1, 0, 8)}, ValueError, "image_shape must be"),
        ({"image_shape": (1, 9, 8)}, ValueError, "divisible by 2, got 9 × 8"),
        ({"num_classes": -1}, ValueError, "num_classes"),
        ({"sigma_data": 0.0}, ValueError, "sigma_data"),
        ({"sigma_data": math.nan}, ValueError, "sigma_data"),
        ({"head_channels": 48}, ValueError, "head_channels"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(change: dict[str, Any], error: type, message: str) -> None:
    arguments = {"name": "unet", "image_shape": (1, 8, 8), "num_classes": 3, "sigma_data": 0.5} | change
    with pytest.raises(error, match=message):
        models.build(**arguments)


@every_network
@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("z", torch.zeros(6, 11), ValueError, "z must have shape"),
        ("z", torch.zeros(6, 4, 9, 9), ValueError, "z must have shape"),
        ("z", torch.zeros(6, 16, dtype=torch.int64), TypeError, "z must be a floating-point"),
        ("logsnr", torch.tensor(0.0), ValueError, "one level an example"),
        ("logsnr", torch.zeros(5), ValueError, "one level an example"),
        ("logsnr", torch.zeros(6, dtype=torch.int64), TypeError, "logsnr must be a floating-point"),
        ("label", torch.zeros(6), ValueError, "label must be int64"),
        ("label", torch.zeros(5, dtype=torch.int64), ValueError, "label must be int64"),
        ("label", torch.full((6,), -1), ValueError, "got -1"),
        ("label", torch.full((6,), CLASSES + 1), ValueError, "null class"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    case: str, argument: str, value: Tensor, error: type, message: str
) -> None:
    network = make(case)
    arguments = dict(zip(("z", "logsnr", "label"), batch(network), strict=True)) | {argument: value}
    with pytest.raises(error, match=message):
        network(**arguments)
