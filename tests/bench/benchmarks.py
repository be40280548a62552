"""What every training step calls: drawing levels, weighing them, the loss around a network that does nothing.

make bench
"""

import subprocess
import sys

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from paperlib import objectives, predictions, schedules, weightings

BATCH = 256
RANGE = (-12.0, 12.0)
SCHEDULES = ["cosine", "edm_training", "flow_matching_ot", "linear_logsnr", "logit_normal"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_of_a_batch(benchmark: BenchmarkFixture, name: str) -> None:
    schedule = schedules.get(name, logsnr_min=RANGE[0], logsnr_max=RANGE[1])
    t = torch.rand(BATCH)
    logsnr = benchmark(schedule.logsnr, t)
    assert logsnr.shape == t.shape


@pytest.mark.parametrize("name", sorted(weightings.WEIGHTINGS))
def test_weights_of_a_batch(benchmark: BenchmarkFixture, name: str) -> None:
    logsnr = torch.empty(BATCH).uniform_(*RANGE)
    assert torch.isfinite(benchmark(weightings.get(name), logsnr)).all()


def test_loss_around_an_empty_network(benchmark: BenchmarkFixture) -> None:
    schedule = schedules.Cosine(*RANGE)
    loss = objectives.WeightedLoss(weightings.Sigmoid(), schedule, predictions.V)
    x = torch.rand(BATCH, 1, 8, 8) * 2 - 1
    benchmark(loss, lambda z, logsnr: z, x)


def test_import_of_the_library(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(subprocess.run, args=([sys.executable, "-c", "import paperlib"],), rounds=3)
