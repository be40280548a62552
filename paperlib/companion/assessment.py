"""What ``paperlib sample`` and ``paperlib evaluate`` do with networks of a profile, or with any file of weights.

Every number is printed and written beside what it depends on (:class:`paperlib.engine.evaluation.Evaluation`): how many
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
from paperlib.engine.data import scale, to_uint8
from paperlib.engine.evaluation import Drawing, Evaluation, Reference
from paperlib.engine.features import FeatureNetwork, Inception, Mode, classifier_of
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


def drawing(settings: profiles.Sampling, sampler: str, guidance: float = 1.0) -> Drawing:
    """How a profile has samples drawn."""
    return Drawing(sampler, settings.levels(), guidance, seed=settings.seed, batch_size=settings.batch_size)


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
    how = drawing(profile.sampling, sampler, guidance)
    batches = how.samples(one.network, one.prediction, labels)
    images = torch.cat([to_uint8(batch.cpu(), train.levels) for batch in batches])
    index, distance = evaluation.nearest(train.scaled(), scale(images, train.levels))
    _, real = evaluation.nearest(train.scaled(), scale(test.images[:count], test.levels))
    caption = (
        f"{count} samples of {one.name} by {how.title}, {how.evaluations} evaluations each, guidance "
        f"{guidance:g}, seed {how.seed}; median distance to the nearest image of {train.name}: "
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


Judged = tuple[str, str, Evaluation]
"""Name of a network, or :data:`FLOOR`, hash of its weights, and how it compares with one reference."""


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
    judged: list[Judged] = [
        (FLOOR, "", evaluation.floor(other, reference, count))
        for other, reference in zip((train, test), references, strict=True)
    ]
    labels = train.labels[torch.arange(count) % len(train)]
    for one in networks:
        for sampler in samplers:
            how = drawing(profile.sampling, sampler, guidance)
            seen = evaluation.see(how.samples(one.network, one.prediction, labels), judge, train.levels)
            found = [evaluation.compare(seen, reference, how) for reference in references]
            judged += [(one.name, one.sha256, each) for each in found]
            print(f"{one.name}, {sampler}: {judge.distance} {found[0].frechet:.3f} to {test.name}", flush=True)
    return judged


def table(judged: list[Judged]) -> str:
    """Numbers for a terminal, with a line for each caption below."""
    captions = list(dict.fromkeys(found.caption for _, _, found in judged))
    header = ["", "against", "samples", "distance", "kernel distance", "±", "precision", "recall", "score", "protocol"]
    rows = [
        [
            f"{name} {found.sampler}".strip(),
            *(found.reference, found.samples, found.frechet, found.kid, found.kid_error),
            *(found.precision, found.recall, found.score, f"[{captions.index(found.caption) + 1}]"),
        ]
        for name, _, found in judged
    ]
    notes = [f"[{number}] {caption}" for number, caption in enumerate(captions, 1)]
    return "\n".join([tabulate(rows, header, floatfmt=".4f"), *notes])


def write(judged: list[Judged], path: Path) -> None:
    """Write a row an evaluation as CSV."""
    rows = [{"checkpoint": name, "checkpoint_sha256": sha256, **found.row()} for name, sha256, found in judged]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
