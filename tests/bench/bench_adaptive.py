"""What an adaptive schedule costs a training step: its update, beside drawing the levels and one step of a network.

python tests/bench/bench_adaptive.py
"""

from collections.abc import Callable, Iterator

import torch
from bench import Row, in_turn, main

from paperlib import adaptive, models, objectives, predictions, schedules, weightings

BATCH, BINS, RANGE = 256, 100, (-12.0, 12.0)
LIMIT = 0.3
"""Milliseconds that an update may take."""
ROUNDS, CALLS = 30, 50


def rows() -> Iterator[Row]:
    """The update by itself, with levels and density, and its share of a training step of the digits' network."""
    schedule, fixed = adaptive.AdaptiveSchedule(*RANGE, bins=BINS), schedules.Cosine(*RANGE)
    generator = torch.Generator().manual_seed(0)
    t, error = (torch.rand(BATCH, generator=generator) for _ in range(2))
    logsnr = schedule.logsnr(t)
    times = in_turn(
        ROUNDS,
        update=_often(lambda: schedule.update(logsnr, error)),
        draw=_often(lambda: schedule.density(schedule.logsnr(t))),
        cosine=_often(lambda: fixed.density(fixed.logsnr(t))),
    )
    milliseconds = {name: 1e3 * seconds / CALLS for name, seconds in times.items()}
    step = 1e3 * in_turn(ROUNDS, step=_step())["step"]
    conditions = f"B = {BATCH}, {BINS} bins, {torch.get_num_threads()} threads"
    update = milliseconds["update"]
    yield Row(f"adaptive schedule, update, {conditions}", update, "ms", f"≤ {LIMIT} ms", update <= LIMIT)
    yield Row(
        f"adaptive schedule, levels and density, {conditions}",
        milliseconds["draw"],
        "ms",
        peers={"cosine": milliseconds["cosine"]},
    )
    yield Row(f"adaptive schedule, update, share of a step of the digits' network, {conditions}", update / step, "×")


def _often(call: Callable[[], object]) -> Callable[[], None]:
    """``CALLS`` calls: one alone is too short to be timed."""

    def calls() -> None:
        for _ in range(CALLS):
            call()

    return calls


def _step() -> Callable[[], object]:
    """A training step of the network of the digits: loss, gradient, Adam."""
    network = models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, seed=0)
    loss = objectives.WeightedLoss(weightings.Sigmoid(), schedules.Cosine(*RANGE), predictions.V)
    optimiser = torch.optim.Adam(network.parameters())
    x = torch.rand(BATCH, 1, 8, 8) * 2 - 1

    def step() -> None:
        optimiser.zero_grad()
        loss(network, x).mean().backward()
        optimiser.step()

    return step


if __name__ == "__main__":
    main(rows)
