"""What ``paperlib sample`` and ``paperlib evaluate`` do with networks of a profile, or with any file of weights.

Every number is printed and written beside its protocol (:class:`paperlib.engine.evaluation.Protocol`): how many
samples, drawn how, compared with what, seen through what; and beside the floor, the same number for real images.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from paperlib import files
from paperlib.companion import profiles
from paperlib.companion.experiments import Experiment
from paperlib.engine import evaluation
from paperlib.engine.data import ImageData, scale, to_uint8
from paperlib.engine.evaluation import Drawn, Evaluation, Reference
from paperlib.engine.features import FeatureNetwork, classifier_of
from paperlib.engine.inception import Inception, Mode
from paperlib.engine.training import WEIGHTS
from paperlib.models import ConditionedNetwork, weights
from paperlib.predictions import Prediction

FLOOR = "real images"
"""What rows of the floor are called."""


# Networks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network, and what it predicts.

    Attributes:
        name: what tables call it.
        network: in evaluation mode, on the device that :func:`device` chooses.
        prediction: what it predicts.
        sha256: hash of its weights.
    """

    name: str
    network: ConditionedNetwork
    prediction: Prediction
    sha256: str


def device() -> torch.device:
    """Where networks are sampled: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def judge(data: str, inception: bool, weights: Path | None = None, mode: Mode = "clean") -> FeatureNetwork:
    """The feature network: Inception, whose weights are in a file or downloaded, or the packaged one for ``data``.

    Raises:
        ValueError: when there is no packaged one for these data, or options of Inception are given without it.
    """
    if inception:
        return Inception(weights, mode, device())
    if weights is not None:
        raise ValueError(f"{weights} is for Inception; ask for it with --features inception.")
    return classifier_of(data)


def networks(
    profile: profiles.Profile, chosen: Sequence[Experiment], weights: Path | None = None
) -> Iterator[Checkpoint]:
    """The network in a file of weights, or those of the chosen experiments, loaded one by one.

    Raises:
        FileNotFoundError: at once, when one of them has no weights.
    """
    if weights:
        return iter([stored(weights, profile)])
    for one in chosen:
        one.found()
    return map(trained, chosen)


def trained(one: Experiment) -> Checkpoint:
    """The network of an experiment."""
    network = one.load()
    digest = weights.tensors_sha256(network.state_dict())
    return Checkpoint(one.name, network.to(device()), one.prediction, digest)


def stored(path: Path, profile: profiles.Profile) -> Checkpoint:
    """The network in a file of weights, whatever profile trained it: its card says what it is.

    Raises:
        ValueError: when the card does not say, or the network is one for other images than the profile's.
    """
    network, prediction = weights.load(path)
    card, wanted = weights.read_card(path), profile.data.load("train").image_shape
    if network.image_shape != wanted:
        raise ValueError(
            f"{path} makes images of shape {network.image_shape}, profile {profile.name!r} has {wanted}: choose the "
            f"profile of its data, {card.get('data', {}).get('name', 'which the card does not name')}."
        )
    name = path.resolve().parent.name if path.name == WEIGHTS else path.stem
    return Checkpoint(name, network.to(device()), prediction, card["weights_sha256"])


def draw(
    network: ConditionedNetwork,
    prediction: Prediction,
    settings: profiles.Sampling,
    labels: Tensor,
    sampler: str,
    guidance: float = 1.0,
) -> tuple[Iterator[Tensor], Drawn]:
    """Batches of samples, with the settings of a profile, and how they are drawn."""
    levels = settings.levels()
    batches = evaluation.generate(
        network,
        prediction,
        labels,
        levels,
        sampler=sampler,
        guidance=guidance,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    drawn = Drawn.by(sampler, levels, guidance=guidance, seed=settings.seed, batch_size=settings.batch_size)
    return batches, drawn


# paperlib sample -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sheet:
    """Samples, one class after the other, and the nearest training image of each.

    Attributes:
        images: uint8 (N, C, H, W), with the levels of the data.
        labels: int64 (N,).
        nearest: training images, as ``images``.
        distance: from sample to training image, L2 over pixels in [−1, 1], float64 (N,).
        real: the same distance for as many test images, or all there are.
        caption: how they were drawn.
    """

    images: Tensor
    labels: Tensor
    nearest: Tensor
    distance: Tensor
    real: Tensor
    caption: str


def sample(one: Checkpoint, profile: profiles.Profile, sampler: str, count: int, guidance: float) -> Sheet:
    """Draw samples, and look up what they are nearest to."""
    train, test = profile.data.load("train"), profile.data.load("test")
    labels = torch.arange(count) % max(1, train.num_classes)
    batches, drawn = draw(one.network, one.prediction, profile.sampling, labels, sampler, guidance)
    images = torch.cat([to_uint8(batch.cpu(), train.levels) for batch in batches])
    index, distance = evaluation.nearest(train.scaled(), scale(images, train.levels))
    _, real = evaluation.nearest(train.scaled(), scale(test.images[:count], test.levels))
    caption = (
        f"{count} samples of {one.name} by {drawn.sampler}, {drawn.evaluations} evaluations each, guidance "
        f"{guidance:g}, seed {drawn.seed}; median distance to the nearest image of {train.name}: "
        f"{distance.median().item():.2f}, for test images {real.median().item():.2f}"
    )
    return Sheet(images, labels, train.images[index], distance, real, caption)


def save(sheet: Sheet, path: Path) -> None:
    """Write samples beside their nearest training images, ``path``, and as data, the same name ending in ``.npz``."""
    from matplotlib import pyplot

    from paperlib.companion import figures

    figures.use_style()
    height = figures.WIDTH / 2 * -(-len(sheet.images) // 10) / 10 + 0.3
    figure, axes = pyplot.subplots(1, 2, figsize=(figures.WIDTH, height))
    figures.image_grid(sheet.images, columns=10, ax=axes[0], title="samples")
    figures.image_grid(sheet.nearest, columns=10, ax=axes[1], title="nearest training images")
    files.write_whole(path, lambda temporary: figure.savefig(temporary, dpi=200))
    pyplot.close(figure)
    arrays = {name: value.numpy() for name, value in vars(sheet).items() if isinstance(value, Tensor)}
    files.write_whole(path.with_suffix(".npz"), lambda temporary: np.savez_compressed(temporary, **arrays))  # type: ignore[arg-type]


# paperlib evaluate ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A network, or the floor, against one reference."""

    name: str
    sha256: str
    found: Evaluation

    def row(self) -> dict[str, str | int | float]:
        """One row of a CSV file."""
        return {"checkpoint": self.name, "checkpoint_sha256": self.sha256, **self.found.row()}


def evaluate(
    networks: Iterable[Checkpoint],
    profile: profiles.Profile,
    judge: FeatureNetwork,
    samplers: list[str],
    count: int,
    guidance: float = 1.0,
) -> list[Judged]:
    """Every network and sampler against the test and the training split, after the floor of either.

    Labels are those of the training split.  Samples are streamed: they never lie in memory together.

    Args:
        networks: taken one by one, so that no two need be in memory.
        profile: gives data, schedule, steps and seed.
        judge: the feature network.
        samplers: by name.
        count: samples of each network by each sampler.
        guidance: strength of classifier-free guidance.
    """
    train, test = profile.data.load("train"), profile.data.load("test")
    references = [Reference.of(data, judge) for data in (test, train)]
    judged = _floors(references, (train, test), judge, count)
    labels = train.labels[torch.arange(count) % len(train)]
    for one in networks:
        for sampler in samplers:
            batches, drawn = draw(one.network, one.prediction, profile.sampling, labels, sampler, guidance)
            seen = evaluation.gather(batches, judge, train.levels)
            judged += [Judged(one.name, one.sha256, evaluation.compare(seen, to, drawn)) for to in references]
            print(f"{one.name}, {sampler}: {judge.distance} {judged[-2].found.frechet:.3f} to {test.name}", flush=True)
    return judged


def _floors(
    references: list[Reference], others: Iterable[ImageData], judge: FeatureNetwork, count: int
) -> list[Judged]:
    """Real images of the other split against each reference, as many as samples, if there are so many."""
    found = [
        evaluation.floor(other, reference, judge, count) for reference, other in zip(references, others, strict=True)
    ]
    return [Judged(FLOOR, "", evaluated) for evaluated in found]


def table(judged: list[Judged]) -> str:
    """Numbers for a terminal, with a line for each protocol below."""
    protocols = list(dict.fromkeys(one.found.protocol for one in judged))
    header = ["", "against", "samples", "distance", "kernel distance", "±", "precision", "recall", "score", "protocol"]
    rows = []
    for one in judged:
        found = one.found
        name = " ".join(filter(None, (one.name, found.protocol.sampler)))
        numbers = [found.frechet, found.kid, found.kid_error, found.precision, found.recall, found.score]
        rows.append([name, found.reference, found.samples, *numbers, f"[{protocols.index(found.protocol) + 1}]"])
    notes = [f"[{number}] {protocol.caption}" for number, protocol in enumerate(protocols, 1)]
    return "\n".join([tabulate(rows, header, floatfmt=".4f"), *notes])


def write(judged: list[Judged], path: Path) -> None:
    """Write a row an evaluation, numbers and protocol, as CSV."""
    text, rows = io.StringIO(), [one.row() for one in judged]
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
