"""Costs of networks: FLOPs and memory against what can be counted by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pictures import real_images
from torch import nn

from paperlib import models
from paperlib.companion import profiles
from paperlib.engine import data
from tools import costs

SHAPE = {"image_shape": (1, 8, 8), "num_classes": 10, "sigma_data": 0.75}


@pytest.mark.parametrize(("width", "hidden", "blocks"), [(32, 64, 1), (48, 24, 3)])
def test_flops_of_a_perceptron_are_those_of_its_matrices(width: int, hidden: int, blocks: int) -> None:
    network = models.build("mlp", **SHAPE, width=width, hidden=hidden, blocks=blocks, condition_width=16)
    matrices = 2 * 64 * width + blocks * (2 * width * hidden + 16 * 2 * width)
    conditioning = 16 * 32 + 16 * 16  # the two layers of the embedding of log-SNR
    assert costs.network_cost(network).forward_flops == 2 * (matrices + conditioning)


@pytest.mark.parametrize(("name", "apart"), [("mlp", 0.0), ("unet", 0.1)])
def test_the_meta_device_counts_what_a_real_one_does(name: str, apart: float) -> None:
    """But for what networks do in another way on a CPU: the U-Net resamples there by convolutions, which count."""
    with torch.device("meta"):
        there = costs.network_cost(models.build(name, **SHAPE))
    here = costs.network_cost(network := models.build(name, **SHAPE))
    assert here.parameters == there.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert here.forward_flops == pytest.approx(there.forward_flops, rel=0.2 * apart)
    assert here.activation_bytes == pytest.approx(there.activation_bytes, rel=apart)


def test_activations_are_those_that_autograd_keeps() -> None:
    """A matrix keeps its input, SiLU its own, and weights are not counted: by hand, for one block of a perceptron."""
    network = models.build("mlp", **SHAPE, width=32, hidden=32, blocks=1, condition_width=16)
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    def total(batch: int) -> int:
        kept.clear()
        x, condition = torch.zeros(batch, 1, 8, 8), torch.zeros(batch, 16)
        condition = nn.functional.silu(network.conditioning.level(torch.zeros(batch, 32)))
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network.body(x, condition)
        own = {parameter.data_ptr() for parameter in network.parameters()}
        return sum(
            {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t.data_ptr() not in own
            }.values()
        )

    measured = costs.network_cost(network).activation_bytes
    assert abs(measured - (total(2) - total(1))) <= 4 * (32 + 16 + 16), "but for the embedding of log-SNR"
    assert measured > 4 * 32 * 4


def test_days_and_bytes() -> None:
    cost = costs.NetworkCost(parameters=10**9, forward_flops=10**12, activation_bytes=10**8)
    assert cost.gpu_days(10**6) == pytest.approx(3e18 / (0.25 * 989e12) / 86400)
    alone = cost.training_bytes(images=8)
    assert alone == 5 * 4e9 + 8e8, "weights, gradients, two moments, one average, in float32"
    assert cost.training_bytes(images=8, averages=2, shards=4) == 6e9 + 8e8
    assert cost.training_bytes(images=8, activation_bytes=2) == 5 * 4e9 + 4e8


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10-16"])
def test_what_is_known_of_data_without_their_files_is_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "digits":
        monkeypatch.setenv("PAPERLIB_DATA", str(real_images()))
    found = data.load(name, "test")
    known = data.DATASETS[name]
    assert (found.image_shape, found.num_classes, found.sigma_data) == (
        known.image_shape,
        known.num_classes,
        known.sigma_data,
    )


def test_one_entry_is_a_data_set_for_loading_profiles_and_costs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(split: str, root: Path | None = None, **options: Any) -> data.ImageData:
        return data.ImageData(f"mine/{split}", torch.zeros(3, 2, 8, 8, dtype=torch.uint8), torch.arange(3), 256, 0.5)

    monkeypatch.setitem(data.DATASETS, "mine", data.DataSet(mine, (2, 8, 8), 3))
    path = checkout / "profiles" / "small.yaml"
    path.write_text(path.read_text().replace("name: digits", "name: mine"))
    profile = profiles.load("small")
    assert profile.data.load("train").image_shape == (2, 8, 8)
    assert costs.network(profile).image_shape == (2, 8, 8)
    assert costs.row(profile)["parameters"] > 0


# The table of the profiles -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return costs.table().set_index("profile")


def test_every_profile_fits_its_gpus(table: pd.DataFrame) -> None:
    wanting = table[table.gpus > 0]
    assert len(wanting) >= 4
    assert (wanting.memory * 1e9 < 0.9 * 80e9).all(), wanting.memory


def test_the_numbers_follow_from_one_another(table: pd.DataFrame) -> None:
    paper = table.loc["imagenet64"]
    assert paper.parameters == pytest.approx(296, rel=0.01), "the paper's U-Net"
    flops = 3 * paper.gflops * 1e9 * paper.images * 1e6
    assert paper.gpu_days == pytest.approx(flops / (0.25 * 989e12) / 86400)
    assert paper.days == paper.gpu_days / paper.gpus
    assert table[table.gpus == 0].gpu_days.isna().all(), "a profile without GPUs has no GPU-days"


def test_the_committed_table_is_the_one_that_is_measured(table: pd.DataFrame, repository: Path) -> None:
    written = pd.read_csv(repository / "results" / "costs.csv").set_index("profile")
    pd.testing.assert_frame_equal(written, table, check_dtype=False, rtol=1e-5)
    text = costs.markdown(table.reset_index())
    assert (repository / "docs" / "costs.md").read_text(encoding="utf-8") == text, "run: make readme"
