"""What ``paperlib train``, ``sample`` and ``evaluate`` do: the experiments of a profile, outside the notebooks.

Training goes to the folder in which notebook 08 looks when the training notebook has no finished result.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from paperlib import schedules
from paperlib.companion import experiments, files, notebooks, profiles, provenance
from paperlib.companion.experiments import Experiment
from paperlib.engine import evaluation, sampling
from paperlib.engine.data import to_uint8
from paperlib.engine.features import FeatureNetwork, digits_classifier

FEATURES: dict[str, Callable[[], FeatureNetwork]] = {"digits": digits_classifier}
"""The feature network in which samples of a data set are compared."""


def select(
    profile: profiles.Profile,
    weighting: str | None = None,
    seed: int | None = None,
    pictures: bool = False,
    arm: str | None = None,
) -> list[Experiment]:
    """The experiments of a profile, all or those of one weighting, one seed; or the larger network for pictures.

    ``arm`` names one arm of grid or ablation instead, all its seeds (:func:`experiments.arms`).

    Raises:
        ValueError: when there is none, naming the weightings and seeds there are.
    """
    if pictures:
        return [experiments.pictures(profile)]
    if arm is not None:
        known = experiments.arms(profile)
        if arm not in known:
            raise ValueError(f"profile {profile.name!r} has no arm {arm!r}; it has {', '.join(known)}.")
        return [one for one in known[arm] if seed in (None, one.seed)]
    chosen = [
        one for one in experiments.grid(profile) if weighting in (None, one.weighting) and seed in (None, one.seed)
    ]
    if not chosen:
        raise ValueError(
            f"profile {profile.name!r} trains no network with weighting {weighting!r} and seed {seed}; it has "
            f"{', '.join(profile.training.weightings)} and seeds {', '.join(map(str, profile.training.seeds))}."
        )
    return chosen


def trained(profile: profiles.Profile) -> Path:
    """The folder of trained networks: that of the finished notebook, else that of ``paperlib train``."""
    finished = notebooks.result_path(profile.name, notebooks.TRAINING)
    return finished / "runs" if (finished / provenance.MANIFEST).is_file() else interactive(profile)


def interactive(profile: profiles.Profile) -> Path:
    """The folder in which ``paperlib train`` leaves its networks."""
    return files.root() / "results" / "interactive" / profile.name / notebooks.TRAINING / "runs"


def train(chosen: list[Experiment], engine: str = "auto") -> None:
    """Train, go on with what was interrupted, pass over what is finished; a folder an experiment.

    It happens in the cache in which the training notebook looks too; what is finished is copied to
    :func:`interactive`.  Under ``torchrun`` every process calls this, and the first one speaks and copies.
    """
    first = os.environ.get("RANK", "0") == "0"
    for one in chosen:
        work = notebooks.cache_path(one.profile.name, notebooks.TRAINING) / one.name
        if first:
            print(f"{one.name}: {one.config.steps} steps of {one.config.batch_size} images", flush=True)
        with files.explained(work):
            result = one.train(work, progress=first, engine=engine)
        if first:
            kept = interactive(one.profile) / one.name
            experiments.keep(work, kept)
            print(f"{one.name}: {result.seconds:.0f} s of training → {kept}", flush=True)


def sample(one: Experiment, runs: Path, sampler: str, count: int, guidance: float, seed: int) -> tuple[Tensor, Tensor]:
    """Samples, one class after the other.

    Returns:
        The images, uint8 (count, C, H, W) with the grey levels of the data, and their labels, int64 (count,).
    """
    images = one.data("train")
    labels = torch.arange(count) % images.num_classes
    batches = _generate(one, runs, labels, sampler, guidance, seed)
    return torch.cat([to_uint8(batch.cpu(), images.levels) for batch in batches]), labels


def save(images: Tensor, labels: Tensor, path: Path) -> None:
    """Write samples as a sheet, ``path``, and as data, the same name ending in ``.npz``."""
    from paperlib.companion import figures

    figure = figures.image_grid(images, columns=10)
    files.write_whole(path, lambda temporary: figure.savefig(temporary, dpi=200))
    arrays = {"images": images.numpy(), "labels": labels.numpy()}
    files.write_whole(path.with_suffix(".npz"), lambda temporary: np.savez_compressed(temporary, **arrays))  # type: ignore[arg-type]


def evaluate(chosen: list[Experiment], runs: Path, samplers: list[str], count: int, seed: int) -> str:
    """A table: every network and sampler against the test split, and real images as the floor.

    Raises:
        ValueError: for data without a feature network.
    """
    network = _features(chosen[0].profile.data.name)
    real, held_out = chosen[0].data("train"), chosen[0].data("test")
    reference = evaluation.Reference.of(held_out, network)
    rows = [["real training images", "–", *_numbers(evaluation.compare(network(real.images), reference))]]
    labels = real.labels[torch.arange(count) % len(real.labels)]
    for one in chosen:
        for sampler in samplers:
            batches = _generate(one, runs, labels, sampler, 1.0, seed)
            found = evaluation.compare(evaluation.features_of(batches, network, real.levels), reference)
            rows.append([one.name, sampler, *_numbers(found)])
            print(f"{one.name}, {sampler}: Fréchet distance {found.frechet:.3f}", flush=True)
    header = ["network", "sampler", "samples", "Fréchet distance", "KID", "±", "precision", "recall"]
    table = tabulate(rows, header, floatfmt=".4f")
    return f"{table}\nagainst {held_out.name}, {reference.sha256[:6]}, in the features of the {network.name}; not FID"


def _generate(
    one: Experiment, runs: Path, labels: Tensor, sampler: str, guidance: float, seed: int
) -> Iterator[Tensor]:
    sampling.get(sampler)  # refused before a network is looked for
    settings = one.profile.sampling
    schedule = schedules.get(settings.schedule.name, **settings.schedule.parameters)
    levels = sampling.levels(schedule, settings.steps)
    options = {"sampler": sampler, "guidance": guidance, "seed": seed, "batch_size": settings.batch_size}
    return evaluation.generate(one.load(runs), one.prediction, labels, levels, **options)  # type: ignore[arg-type]


def _features(name: str) -> FeatureNetwork:
    if name not in FEATURES:
        raise ValueError(f"no feature network for {name!r} images; there is one for {', '.join(FEATURES)}.")
    return FEATURES[name]()


def _numbers(found: evaluation.Evaluation) -> list[str | int | float]:
    return [found.samples, found.frechet, found.kid, found.kid_error, found.precision, found.recall]
