"""Which small network CIFAR-10 on a CPU is trained with: held-out loss after equal CPU time, below 1.5 million weights.

The harness is that of ``bench_equal_time.py``: the same images, levels and noise for all, turns of a few seconds, the
best of two learning rates, chosen in runs of a quarter of the time.  ``BENCH_MINUTES`` is how long each trains.
"""

from collections.abc import Iterator

import torch
from bench import Row, main
from bench_equal_time import BATCH, MINUTES, best_of
from contestants import CIFAR, OURS

from paperlib import models
from paperlib.companion import profiles
from paperlib.models import ConditionedNetwork, presets

THREADS = 2
LIMIT = 1_500_000
RATES = (1e-3, 2e-3)
TAKEN = "transformer in a U-Net, patches of 2"
OPTIONS = {
    TAKEN: ("uvit", profiles.load("cifar10-cpu").model.options),
    "transformer, patches of 4": ("uvit", presets.PRESETS["vit_cifar_small"].keywords),
    "U-Net, patches of 2": ("unet", OURS | {"channels": 64}),
    "U-Net, pixels": ("unet", presets.PRESETS["unet_cifar_small"].keywords),
}


def weights(network: ConditionedNetwork) -> int:
    """How many a network has."""
    return sum(weight.numel() for weight in network.parameters())


def make(name: str) -> ConditionedNetwork:
    """A contestant.

    Raises:
        ValueError: when it has more weights than a committed network may.
    """
    model, options = OPTIONS[name]
    network = models.build(model, **CIFAR, **options)
    if (count := weights(network)) > LIMIT:
        raise ValueError(f"{name} has {count} weights, more than {LIMIT}; make it narrower.")
    return network


def rows() -> Iterator[Row]:
    """Held-out loss, images seen, learning rate and size of each; the one that the profile takes should be lowest."""
    torch.set_num_threads(THREADS)
    rates, final = best_of(list(OPTIONS), RATES, make)
    loss = {name: value for name, (value, _) in final.items()}
    title = f"small networks on CIFAR-10, held-out loss after {MINUTES:g} minutes of CPU time: {TAKEN}"
    yield _row(title, loss, "of ε̂ = 0", "lowest", loss[TAKEN] <= min(loss.values()))
    yield _row("… images seen", {name: float(BATCH * run.step) for name, (_, run) in final.items()}, "images")
    yield _row("… learning rate, the best of two", rates, "")
    yield _row("… weights", {name: float(weights(run.network)) for name, (_, run) in final.items()}, "")


def _row(name: str, values: dict[str, float], unit: str, target: str = "", met: bool | None = None) -> Row:
    return Row(name, values[TAKEN], unit, target, met, {other: values[other] for other in values if other != TAKEN})


if __name__ == "__main__":
    main(rows)
