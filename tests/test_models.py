"""Networks: shapes, conditioning, initialisation, gradients, refusals."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import models, process
from paperlib.engine.data import DATASETS
from paperlib.models import PRESETS, ConditionedNetwork, conditioning

CLASSES = 5
NETWORKS: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "mlp": ("mlp", (1, 4, 4), {"width": 24, "hidden": 16, "blocks": 2}),
    "mlp, colour": ("mlp", (3, 2, 5), {"width": 8, "hidden": 40, "blocks": 1, "condition_width": 12}),
    "unet": ("unet", (1, 8, 8), {"channels": 16, "blocks": 1, "head_channels": 8}),
    "unet, three resolutions": (
        "unet",
        (3, 8, 4),
        {"channels": 8, "multipliers": (1, 2, 2), "blocks": 2, "attention": (8, 4), "head_channels": 4},
    ),
    "unet, one resolution": (
        "unet",
        (2, 5, 7),
        {"channels": 8, "multipliers": (1,), "attention": (), "head_channels": 8},
    ),
    "unet, patches": ("unet", (1, 8, 8), {"channels": 8, "blocks": 1, "head_channels": 8, "patch": 2}),
    "uvit": (
        "uvit",
        (3, 8, 16),
        {"channels": 8, "multipliers": (1, 2), "blocks": 2, "transformer_blocks": 2, "head_channels": 8},
    ),
    "uvit, wavelets": (
        "uvit",
        (1, 16, 8),
        {"channels": 8, "multipliers": (1, 1), "blocks": 1, "patch": 4, "folding": "wavelet", "head_channels": 4},
    ),
    "uvit, no convolutions": (
        "uvit",
        (3, 8, 8),
        {"channels": 16, "transformer_blocks": 3, "patch": 2, "head_channels": 8, "condition_width": 24},
    ),
}
every_network = pytest.mark.parametrize("case", NETWORKS, ids=list(NETWORKS))


def make(case: str, seed: int | None = 0, sigma_data: float = 0.75, **more: Any) -> ConditionedNetwork:
    name, shape, options = NETWORKS[case]
    options = options | more
    return models.build(
        name, image_shape=shape, num_classes=CLASSES, sigma_data=sigma_data, seed=seed, **options
    ).double()


def stirred(case: str, **more: Any) -> ConditionedNetwork:
    """The network with random weights everywhere, also where it starts at zero."""
    network, generator = make(case, **more), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


def batch(network: ConditionedNetwork, size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(size, *network.image_shape, generator=generator, dtype=torch.float64)
    logsnr = torch.linspace(-12, 12, size, dtype=torch.float64)
    return z, logsnr, torch.arange(size) % CLASSES


def of_preset(name: str, **options: Any) -> ConditionedNetwork:
    """The network of a preset, for the data that it is named after."""
    known = DATASETS[{"cifar": "cifar10"}.get(data := name.split("_")[1], data)]
    return models.build(name, image_shape=known.image_shape, num_classes=known.num_classes, sigma_data=0.5, **options)


def count(parameters: Iterable[Tensor]) -> int:
    """How many numbers there are in them."""
    return sum(parameter.numel() for parameter in parameters)


def shapes(network: ConditionedNetwork) -> dict[str, torch.Size]:
    """The shape of every parameter."""
    return {name: parameter.shape for name, parameter in network.named_parameters()}


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


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_options_and_those_beside_go_first(preset: str) -> None:
    options = PRESETS[preset].keywords
    with torch.device("meta"):
        network = of_preset(preset)
        other = of_preset(preset, channels=2 * options["channels"])
        again = models.build(**other.config)
    assert models.MODELS[network.config["name"]] is type(network) is PRESETS[preset].func
    assert options.items() <= network.config.items()
    assert other.config == network.config | {"channels": 2 * options["channels"]}
    assert shapes(again) == shapes(other) != shapes(network)


def test_options_have_names() -> None:
    assert models.option_names("adm_cifar10") == models.option_names("unet")
    assert {"channels", "multipliers", "attention", "dropout"} <= set(models.option_names("unet"))
    assert not {"image_shape", "num_classes", "sigma_data"} & set(models.option_names("mlp"))
    with pytest.raises(ValueError, match=r"choose one of mlp, unet, uvit, adm_cifar10"):
        models.option_names("resnet")


@pytest.mark.parametrize("preset", PRESETS)
def test_nearly_all_parameters_lie_in_units_that_can_be_sharded_each(preset: str) -> None:
    with torch.device("meta"):
        network = of_preset(preset)
    units = [set(unit.parameters()) for unit in network.sharding_units()]
    sharded = set[torch.nn.Parameter]().union(*units)
    assert sum(map(len, units)) == len(sharded), "no parameter twice"
    assert sharded <= set(network.parameters())
    share = count(sharded) / count(network.parameters())
    assert share > (0.99 if count(network.parameters()) > 1e7 else 0.85)
    assert all(units), "no unit is empty"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_on_the_meta_device(preset: str) -> None:
    with torch.device("meta"):
        network = of_preset(preset)
        z = torch.empty(2, *network.image_shape)
    assert network.body(z, z.new_empty(2, network.conditioning.level[-1].out_features)).shape == z.shape


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("adm_cifar10", 55_700_000),
        ("adm_imagenet64", 296_000_000),
        *[(f"uvit_imagenet{size}", 2_000_000_000) for size in (128, 256, 512)],
    ],
)
def test_parameters_beside_the_published_number(preset: str, published: int) -> None:
    with torch.device("meta"):
        ours = count(of_preset(preset).parameters())
    print(f"{preset}: {ours:,} parameters, published {published:,}: {ours / published - 1:+.2%}")
    assert ours == pytest.approx(published, rel=0.01 if preset.startswith("adm") else 0.1)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.endswith(("small", "digits", "cpu"))])
def test_presets_for_a_cpu_are_small(preset: str) -> None:
    with torch.device("meta"):
        assert count(of_preset(preset).parameters()) <= 1.5e6


@pytest.mark.parametrize("case", ["unet", "uvit", "uvit, no convolutions"])
def test_dropout_acts_in_training_alone(case: str) -> None:
    network, without = stirred(case, dropout=0.3), stirred(case)
    arguments = batch(network)
    assert not torch.equal(network(*arguments), network(*arguments))
    network.eval()
    assert torch.equal(network(*arguments), without(*arguments))
    assert torch.equal(without(*arguments), without(*arguments)), "nor anywhere where it is not asked for"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_features_of_the_level_are_exact_in_whatever_type_it_comes(dtype: torch.dtype) -> None:
    logsnr = torch.linspace(-15, 15, 301, dtype=dtype)
    features = conditioning.logsnr_features(logsnr)
    assert features.dtype == torch.promote_types(dtype, torch.float32)
    frequencies = torch.logspace(-5, 1, 16, base=2, dtype=torch.float64)
    phase = logsnr.double()[:, None] * frequencies
    expected = torch.cat([phase.cos(), phase.sin()], dim=1)
    torch.testing.assert_close(features.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["autocast", "parameters"])
@every_network
def test_bfloat16_changes_the_prediction_by_two_per_cent_at_most(case: str, how: str) -> None:
    network = stirred(case).float()
    for parameter in network.parameters():
        parameter.data *= 0.5  # weights of usual size: at 0.2 the modulations alone multiply rounding errors
    z, logsnr, label = batch(network)
    z, logsnr = z.float(), logsnr.float()
    exact = network(z, logsnr, label)
    if how == "parameters":
        network.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        output = network(z, logsnr, label)
    assert output.dtype == exact.dtype == torch.float32
    error = (output - exact).norm() / exact.norm()
    print(f"{case}, {how}: {error:.2%}")
    assert 0 < error < 0.02


@pytest.mark.parametrize("mixed", [False, True])
def test_on_a_cpu_attention_is_rounded_once_in_whatever_type_it_comes(mixed: bool) -> None:
    """Also under autocast, which would round what it is given and what it makes of it."""
    query, key, value = torch.randn(3, 4, 2, 16, 8, generator=torch.Generator().manual_seed(0))
    exact = ((query @ key.mT / 8**0.5).softmax(-1) @ value.bfloat16().float()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        attended = conditioning.attend(query, key, value.bfloat16())
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended, exact, rtol=2**-8, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mlp", "unet", "uvit, wavelets"])
def test_a_network_compiles_to_a_single_graph(case: str) -> None:
    network = stirred(case)
    arguments = batch(network)
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), network(*arguments), rtol=1e-8, atol=1e-8)


def test_networks_for_digits_are_as_small_as_their_weights_must_be() -> None:
    for name, most in (("mlp", 0.6e6), ("unet", 1.4e6)):
        network = models.build(name, image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75)
        assert 0.2e6 < sum(parameter.numel() for parameter in network.parameters()) <= most


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "resnet"}, ValueError, "unknown model 'resnet'; choose one of mlp, unet"),
        ({"depth": 3}, TypeError, "depth"),
        ({"name": "vit_cifar_small", "depth": 3}, TypeError, "depth"),
        ({"patch": 3}, ValueError, "power of two"),
        ({"multipliers": ()}, ValueError, "one multiplier"),
        ({"dropout": 1.5}, ValueError, "dropout"),
        ({"blocks": (1, 2, 1)}, ValueError, "blocks must be a positive number, got"),
        ({"blocks": 0}, ValueError, "blocks must be a positive number, got 0"),
        ({"name": "uvit", "patch": 16}, ValueError, "divisible by 16, got 8 × 8"),
        ({"name": "uvit", "folding": "fourier"}, ValueError, "folding must be 'patch' or 'wavelet', got 'fourier'"),
        ({"name": "uvit", "head_channels": 48}, ValueError, "head_channels"),
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
