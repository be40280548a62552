"""The covariance of the gradient: against its definition, and what a schedule may and may not change."""

import math

import pytest
import torch

from paperlib import models, objectives, predictions, schedules, weightings
from paperlib.engine import data, evaluation, randomness
from paperlib.engine.recipe import loss_scale

ENDS = (-6.0, 6.0)


@pytest.fixture(scope="module")
def digits() -> data.ImageData:
    return data.load("digits", "train")


@pytest.fixture
def network() -> models.ConditionedNetwork:
    made = models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, width=16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():  # the last layer starts at zero
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return made


def loss_under(schedule: schedules.NoiseSchedule) -> objectives.WeightedLoss:
    return objectives.WeightedLoss(weightings.Sigmoid(2.0), schedule, predictions.V)


def test_it_is_the_covariance_of_the_gradients(network: models.ConditionedNetwork, digits: data.ImageData) -> None:
    loss = loss_under(schedules.LinearLogSNR(*ENDS))
    found = evaluation.gradient_noise(network, loss, digits, batch_size=16, batches=12, seed=3)
    rows = []
    for number in range(12):
        network.zero_grad()
        index = torch.randint(len(digits), (16,), generator=randomness.seeded(3, "gradient", number))
        t = objectives.low_discrepancy_time(16, generator=randomness.seeded(3, "step", number))
        eps = randomness.noise(3, number, range(16), (1, 8, 8))
        loss(network, digits.scaled()[index], t=t, eps=eps, label=digits.labels[index]).mean().backward()
        rows.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]).double())
    rows = torch.stack(rows) / loss_scale(loss, 64)
    assert found.trace == pytest.approx(rows.var(0).sum().item(), rel=1e-5)
    off_diagonal = (rows @ rows.T).fill_diagonal_(0).sum().item() / (12 * 11)  # E g·g' of different batches
    assert found.squared_mean == pytest.approx(off_diagonal, rel=1e-4)


def test_the_schedule_changes_the_covariance_and_not_the_mean(
    network: models.ConditionedNetwork, digits: data.ImageData
) -> None:
    """The mean over all batches of ∇L is that of another schedule."""
    under = {
        name: [
            evaluation.gradient_noise(network, loss_under(schedule), digits, batch_size=64, batches=48, seed=seed)
            for seed in range(4)
        ]
        for name, schedule in {
            "linear": schedules.LinearLogSNR(*ENDS),
            "edm": schedules.EDMTraining(*ENDS),
        }.items()
    }
    means = {name: torch.tensor([noise.squared_mean for noise in found]).double() for name, found in under.items()}
    traces = {name: torch.tensor([noise.trace for noise in found]).double() for name, found in under.items()}
    gap = (means["linear"].mean() - means["edm"].mean()).abs()
    error = math.sqrt(sum(values.var().item() for values in means.values()) / 4)
    assert gap < 4 * error, "L_w does not depend on the schedule"
    assert error < 0.2 * means["linear"].mean(), "and the comparison could see it"
    assert traces["linear"].mean() > 1.3 * traces["edm"].mean()


def test_larger_batches_are_less_noisy(network: models.ConditionedNetwork, digits: data.ImageData) -> None:
    loss = loss_under(schedules.LinearLogSNR(*ENDS))
    small, large = (evaluation.gradient_noise(network, loss, digits, batch_size=size, batches=64) for size in (16, 64))
    assert 3 < small.trace / large.trace < 8, "at least in proportion: times are of low discrepancy"


def test_one_gradient_has_no_covariance(network: models.ConditionedNetwork, digits: data.ImageData) -> None:
    with pytest.raises(ValueError, match="batches must be 2 or more"):
        evaluation.gradient_noise(network, loss_under(schedules.Cosine(*ENDS)), digits, batch_size=4, batches=1)
