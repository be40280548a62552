"""Loss on CIFAR-10 after equal CPU time: our network and those of azula and diffusers, matched, under our loss.

All see the same images, levels and noise in the same order, the weighted loss (sigmoid, k = 2, cosine schedule,
v-prediction), AdamW, the gradient clipped, a learning rate that falls to zero as the time runs out, no average of the
weights.  Each has the best of the same three rates, chosen in runs of a quarter of the time.  They take turns of a few
seconds, so that a machine that slows down slows all.  Time is that of the process, both threads counted.

``BENCH_MINUTES`` (default 4) is how long each trains.  The images come from ``$PAPERLIB_DATA/cifar10`` or the hub.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from bench import Row, main
from contestants import CONTESTANTS, costs
from torch import Tensor, nn

from paperlib import objectives, predictions, schedules, weightings
from paperlib.engine import data
from paperlib.engine.randomness import seeded
from paperlib.engine.recipe import loss_scale
from paperlib.models import ConditionedNetwork

THREADS = 2
MINUTES = float(os.environ.get("BENCH_MINUTES", "4"))
PILOT = 0.25
RATES = (5e-4, 1e-3, 2e-3)
BATCH, WARMUP_STEPS, TURN = 32, 50, 4.0
HELD_OUT = 2048
NAMES = ("paperlib", "azula", "diffusers")
LOSS = objectives.WeightedLoss(weightings.Sigmoid(2.0), schedules.Cosine(-12.0, 12.0), predictions.V)


class Run:
    """One network in training.

    Args:
        network: what is trained.
        rate: the learning rate after warm-up.
        seconds: how long, in time of the process.
        images: what is trained on.
        seed: of the order of the images, of levels and of noise.
    """

    def __init__(
        self, network: ConditionedNetwork, rate: float, seconds: float, images: data.ImageData, seed: int = 0
    ) -> None:
        self.network, self.rate, self.seconds, self.images, self.seed = network, rate, seconds, images, seed
        self.optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.0, fused=True)
        self.scale = loss_scale(LOSS, 3 * 32 * 32)
        self.step, self.used = 0, 0.0

    def turn(self) -> None:
        """Train for a few seconds."""
        start = now = time.process_time()
        while now - start < min(TURN, self.seconds - self.used):
            self._advance(1 - (self.used + now - start) / self.seconds)
            now = time.process_time()
        self.used += now - start

    def _advance(self, left: float) -> None:
        """One step, ``left`` being the share of the time that is left."""
        index = data.batch_indices(self.seed, self.step, BATCH, len(self.images))
        x, label = data.scale(self.images.images[index], self.images.levels), self.images.labels[index]
        loss = LOSS(self.network, x, generator=seeded(self.seed, "race", self.step), label=label).mean()
        self.optimiser.zero_grad(set_to_none=True)
        (loss / self.scale).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.step += 1
        self.optimiser.param_groups[0]["lr"] = self.rate * max(0.0, left) * min(1.0, self.step / WARMUP_STEPS)
        self.optimiser.step()

    @torch.no_grad()
    def held_out(self, x: Tensor, label: Tensor) -> float:
        """The loss on images that were not trained on, as a share of that of the prediction ε̂ = 0."""
        self.network.eval()
        generator = torch.Generator().manual_seed(0)
        parts = [
            LOSS(self.network, some, generator=generator, label=classes).loss
            for some, classes in zip(x.split(128), label.split(128), strict=True)
        ]
        return torch.cat(parts).mean().item() / self.scale


def race(
    entries: dict[tuple[str, float], float], make: Callable[[str], ConditionedNetwork], seed: int = 0
) -> dict[tuple[str, float], tuple[float, Run]]:
    """The held-out loss of each network and learning rate after so many seconds, and its run."""
    train, test = (data.load("cifar10", split) for split in ("train", "test"))
    runs = {}
    for (name, rate), seconds in entries.items():
        torch.manual_seed(seed)
        runs[name, rate] = Run(make(name), rate, seconds, train, seed)
    while any(run.used < run.seconds for run in runs.values()):
        for run in runs.values():
            run.turn()
    x, label = test.scaled(first=HELD_OUT), test.labels[:HELD_OUT]
    return {entry: (run.held_out(x, label), run) for entry, run in runs.items()}


def best_of(
    names: Sequence[str], rates: Sequence[float], make: Callable[[str], ConditionedNetwork]
) -> tuple[dict[str, float], dict[str, tuple[float, Run]]]:
    """The best learning rate of each, by shorter runs, and the race with it: held-out loss and run."""
    pilot = race({(name, rate): 60 * MINUTES * PILOT for name in names for rate in rates}, make)
    chosen = {name: min(rates, key=lambda rate: pilot[name, rate][0]) for name in names}
    final = race(dict.fromkeys(chosen.items(), 60 * MINUTES), make)
    return chosen, {name: result for (name, _), result in final.items()}


def rows() -> Iterator[Row]:
    """Held-out loss, the learning rate that each chose, and how many images each saw."""
    torch.set_num_threads(THREADS)
    costs()
    chosen, final = best_of(NAMES, RATES, lambda name: CONTESTANTS[name]())
    loss = {name: value for name, (value, _) in final.items()}
    peers = {name: loss[name] for name in NAMES[1:]}
    best = loss["paperlib"] < min(peers.values())
    title = f"CIFAR-10, held-out loss after {MINUTES:g} minutes of CPU time"
    yield Row(title, loss["paperlib"], "of ε̂ = 0", "lowest", best, peers)
    seen = {name: float(BATCH * run.step) for name, (_, run) in final.items()}
    yield Row("… images seen", seen["paperlib"], "images", peers={name: seen[name] for name in NAMES[1:]})
    yield Row("… learning rate, the best of three", chosen["paperlib"], "", peers={n: chosen[n] for n in NAMES[1:]})


if __name__ == "__main__":
    main(rows)
