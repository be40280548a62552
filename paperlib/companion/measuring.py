r"""What is made of trained networks: samples, distances to real images, and the same numbers of every run of a profile.

A distance is written beside what it depends on (:class:`paperlib.engine.evaluation.Evaluation`) and beside the floor,
the same number for real images.  The rest hangs on the errors of ε̂ by level of noise: with Gauss–Legendre nodes in
panels over the range of log-SNR they give every weighted loss, :math:`\tfrac12\int w\,e\,d\lambda`, and −ELBO for a
decoder at any edge of a panel.  Noise is shared by all runs, so differences between runs are sharper than the numbers.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate
from torch import Tensor

from paperlib import elbo, files, quadrature
from paperlib.adaptive import AdaptiveSchedule
from paperlib.companion import paths, profiles
from paperlib.companion.experiments import Experiment, each, some
from paperlib.engine import evaluation, features, likelihood, training
from paperlib.engine.data import ImageData, Split, to_uint8
from paperlib.engine.evaluation import Drawing, Reference
from paperlib.models import ConditionedNetwork, weights
from paperlib.objectives import WeightedLoss
from paperlib.predictions import Prediction

if TYPE_CHECKING:
    from paperlib.companion.run import Run

SPLITS: tuple[Split, ...] = ("train", "test")

VERSION = 1
"""Number of the computation that turns a run into a row.  To be raised, by hand, by whoever changes it:
tests/test_fingerprints.py fails until then, and says how."""


# Networks and their samples: paperlib sample -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network, in evaluation mode: what tables call it, what it predicts, the card of the weights on disk."""

    name: str
    network: ConditionedNetwork
    prediction: Prediction
    card: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Hash of the weights."""
        return self.card["weights_sha256"]

    def require_guidable(self, guidance: float) -> None:
        """ValueError where guidance is asked of a network that has not learned to do without the class."""
        dropped = self.card.get("training", {}).get("label_dropout", True)  # nobody knows of weights from elsewhere
        if guidance != 1 and not (self.network.num_classes and dropped):
            raise ValueError(
                f"guidance {guidance:g} is the difference that the class makes, and {self.name} was trained "
                f"{'always' if self.network.num_classes else 'never'} told one: ask for guidance 1, or train with "
                f"label_dropout above 0{'' if self.network.num_classes else ', on data with classes'}."
            )


def device() -> torch.device:
    """Where networks are sampled: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def networks(
    profile: profiles.Profile, chosen: Sequence[Experiment], weights: Path | None = None
) -> Iterator[Checkpoint]:
    """The network in a file of weights, or those of the chosen experiments, loaded one by one.

    Raises:
        FileNotFoundError: at once, when one of them has no weights.
    """
    if weights:
        return iter([stored(weights, profile)])
    cards = [one.card() for one in chosen]
    return (
        Checkpoint(one.name, one.load().to(device()), one.prediction, card)
        for one, card in zip(chosen, cards, strict=True)
    )


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
    name = path.resolve().parent.name if path.name == training.WEIGHTS else path.stem
    return Checkpoint(name, network.to(device()), prediction, card)


def drawing(settings: profiles.Sampling, sampler: str, guidance: float = 1.0) -> Drawing:
    """How a profile has samples drawn."""
    return Drawing(sampler, settings.levels(), guidance, seed=settings.seed, batch_size=settings.batch_size)


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

    def save(self, path: Path) -> None:
        """Write a picture, samples beside their nearest, and all of it as data, the same name ending in ``.npz``."""
        from matplotlib import pyplot

        from paperlib.companion import figures

        figures.use_style()
        height = figures.WIDTH / 2 * -(-len(self.images) // 10) / 10 + 0.3
        figure, axes = pyplot.subplots(1, 2, figsize=(figures.WIDTH, height))
        figures.image_grid(self.images, columns=10, ax=axes[0], title="samples")
        figures.image_grid(self.nearest, columns=10, ax=axes[1], title="nearest training images")
        files.write_whole(path, lambda temporary: figure.savefig(temporary, dpi=200))
        pyplot.close(figure)
        arrays: dict[str, Any] = {name: value.numpy() for name, value in vars(self).items() if name != "caption"}
        files.write_whole(path.with_suffix(".npz"), lambda temporary: np.savez_compressed(temporary, **arrays))


def sample(one: Checkpoint, profile: profiles.Profile, sampler: str, count: int, guidance: float) -> Sheet:
    """Draw samples, and look up what they are nearest to."""
    one.require_guidable(guidance)
    train, test = profile.data.load("train"), profile.data.load("test")
    labels = torch.arange(count) % max(1, train.num_classes)
    how = drawing(profile.sampling, sampler, guidance)
    batches = how.samples(one.network, one.prediction, labels)
    images = torch.cat([to_uint8(batch.cpu(), train.levels) for batch in batches])
    # of integers: ImageNet as real numbers would take 63 GB
    (index, distance), (_, real) = (evaluation.nearest(train.images, some) for some in (images, test.images[:count]))
    distance, real = (2 / (train.levels - 1) * each for each in (distance, real))
    caption = (
        f"{count} samples of {one.name} by {how.sampler}, {how.evaluations} evaluations each, guidance "
        f"{guidance:g}, seed {how.seed}; median distance to the nearest image of {train.name}: "
        f"{distance.median().item():.2f}, for test images {real.median().item():.2f}"
    )
    return Sheet(images, labels, train.images[index], distance, real, caption)


# Distances: paperlib evaluate ----------------------------------------------------------------------------------------


def samples_in(path: Path, like: ImageData, count: int) -> ImageData:
    """Samples that were drawn elsewhere; nothing is resized or converted.

    Args:
        path: a folder of pictures, an .npy, or an .npz whose array is its only one or is called ``images`` or
            ``arr_0``; uint8, (N, C, H, W), (N, H, W, C), or grey (N, H, W).
        like: the data whose shape and number of values they have.
        count: how many there must be.

    Raises:
        ValueError: for a path that is neither, and images of another number, shape or type.
    """
    try:
        pixels = np.stack([_pixels(one) for one in sorted(path.iterdir())]) if path.is_dir() else _array(path)
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} is no folder of pictures and no .npz of images: {error}.") from error
    if len(pixels) != count:
        raise ValueError(
            f"{path} holds {len(pixels):,} images, and {count:,} are wanted: distances depend on their number, and "
            f"compare with those of as many. For this number say --count {len(pixels)}."
        )
    channels, *size = like.image_shape
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[1:] == (*size, channels):
        pixels = np.moveaxis(pixels, 3, 1)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != like.image_shape:
        raise ValueError(
            f"{path} holds images {pixels.shape[1:]} of {pixels.dtype}; those of {like.name} are {like.image_shape} of "
            f"uint8."
        )
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    return ImageData(path.name, images, levels=like.levels, sigma_data=like.sigma_data)


def _pixels(path: Path) -> NDArray[Any]:
    """A picture, (H, W) or (H, W, 3)."""
    with Image.open(path) as picture:
        if picture.mode not in ("L", "RGB"):
            raise ValueError(f"{path.name} has mode {picture.mode}; convert it to RGB, or to L if the data are grey")
        return np.asarray(picture)


def _array(path: Path) -> NDArray[Any]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as arrays:
        named = [name for name in arrays.files if len(arrays.files) == 1 or name in ("images", "arr_0")]
        if len(named) != 1:
            raise ValueError(f"of its arrays ({', '.join(arrays.files)}) not one is called images or arr_0")
        return arrays[named[0]]


def evaluate(
    networks: Iterable[Checkpoint | ImageData],
    profile: profiles.Profile,
    judge: features.FeatureNetwork,
    samplers: Sequence[str],
    count: int,
    guidance: float = 1.0,
) -> pd.DataFrame:
    """Every network and sampler, or samples from elsewhere, against the test and the training split.

    Labels are those of the training split.  Networks are taken one by one, and ``count`` samples of each by each
    sampler are streamed: neither these nor those are in memory together.

    Returns:
        A row a comparison, the floors of both splits first: ``checkpoint`` and its hash, then
        :class:`~paperlib.engine.evaluation.Evaluation` with its caption.
    """
    train, test = profile.data.load("train"), profile.data.load("test")
    references, labels = [Reference.of(data, judge) for data in (test, train)], _labels(train, count)
    floors = map(evaluation.floor, (train, test), references, (count, count))
    found = [("real images", "", one) for one in floors]

    def judged(name: str, sha256: str, samples: Iterable[Tensor], how: Drawing | str) -> None:
        seen = evaluation.see(samples, judge, train.levels)
        to_test, to_train = (evaluation.compare(seen, reference, how, score=True) for reference in references)
        found.extend([(name, sha256, to_test), (name, sha256, to_train)])
        print(f"{name}, {to_test.sampler}: {judge.distance} {to_test.frechet:.3f} to {test.name}", flush=True)

    for one in networks:
        if isinstance(one, ImageData):
            judged("samples", one.sha256, one.images.split(evaluation.BATCH), one.name)
            continue
        one.require_guidable(guidance)
        for sampler in samplers:
            how = drawing(profile.sampling, sampler, guidance)
            judged(one.name, one.sha256, how.samples(one.network, one.prediction, labels), how)
    return pd.DataFrame(
        {"checkpoint": name, "checkpoint_sha256": sha256, **one.row(), "caption": one.caption}
        for name, sha256, one in found
    )


def _labels(train: ImageData, count: int) -> Tensor:
    """The classes of as many samples: those of the training split, again and again."""
    return train.labels[torch.arange(count) % len(train)]


def table(evaluated: pd.DataFrame) -> str:
    """Numbers for a terminal, with a line for each caption below."""
    captions = list(dict.fromkeys(evaluated.caption))
    columns = ["reference", "samples", "frechet", "kid", "kid_error", "precision", "recall", "score"]
    header = ["", "against", "samples", "distance", "kernel distance", "±", "precision", "recall", "score", "protocol"]
    rows = [
        [f"{row.checkpoint} {row.sampler}".strip(), *row[columns], f"[{captions.index(row.caption) + 1}]"]
        for _, row in evaluated.iterrows()
    ]
    notes = [f"[{number}] {caption}" for number, caption in enumerate(captions, 1)]
    return "\n".join([tabulate(rows, header, floatfmt=".4f"), *notes])


# One run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panels:
    """Gauss–Legendre nodes in P panels of equal width.

    Attributes:
        edges: of the panels, log-SNR, shape (P + 1,).
        nodes: where the error is measured, shape (2 P,).
        widths: their weights in an integral over log-SNR, shape (2 P,).
    """

    edges: Tensor
    nodes: Tensor
    widths: Tensor

    @classmethod
    def over(cls, ends: tuple[float, float], panels: int) -> "Panels":
        """``panels`` of them, with two nodes each, over a range of log-SNR."""
        edges = torch.linspace(*ends, panels + 1, dtype=torch.float64)
        return cls(edges, *quadrature.panel_nodes(edges, order=2))

    def up_to_edges(self, values: Tensor) -> Tensor:
        """∫ from the lowest edge to each edge, shape (*, P + 1), of values at the nodes, shape (*, 2 P)."""
        panels = (values * self.widths).unflatten(-1, (len(self.edges) - 1, -1)).sum(-1)
        return torch.nn.functional.pad(panels.cumsum(-1), (1, 0))

    def bound(self, errors: Tensor, images: ImageData) -> Tensor:
        """−ELBO with a decoder at each edge, in nats, the mean over ``images``; from errors (*, 2 P)."""
        x = images.scaled(torch.float64)
        prior = elbo.prior_kl(x, self.edges[0].item()).mean()
        decoded = [likelihood.reconstruction(images, level).mean() for level in self.edges.tolist()]
        return prior + 0.5 * self.up_to_edges(errors) + torch.stack(decoded)


@dataclass(frozen=True)
class Protocol:
    """How every run is measured.

    Attributes:
        panels: of log-SNR.
        draws: of noise for each image and node.
        images: of each split whose errors are measured, the first so many.
        batches: gradients from which their covariance is estimated.
        seed: of the noise in errors and gradients.
    """

    panels: int = 20
    draws: int = 4
    images: int = 600
    batches: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What was measured of one run.

    Attributes:
        row: one value a column: what the run was, distances, gradients.
        errors: E‖ε̂ − ε‖² at the nodes, by split.
        losses: mean training loss by the step up to which it was logged.
        density: p(λ) of the learned schedule in its bins; empty for any other schedule.
    """

    row: dict[str, Any]
    errors: dict[str, list[float]]
    losses: dict[str, float]
    density: list[float] = field(default_factory=list)


def measure(one: Experiment, how: Protocol) -> Measured:
    """Everything about one trained network, from its weights and its log.

    Raises:
        FileNotFoundError: when there are no weights of this run.
    """
    network, card = one.load(), one.card()
    loss = learned(one.loss, card)
    nodes = panels(one, how).nodes
    errors: dict[str, list[float]] = {
        split: evaluation.errors_by_level(
            network, one.prediction, some(one.data(split), how.images), nodes, draws=how.draws, seed=how.seed
        ).tolist()
        for split in SPLITS
    }
    row = {
        "run": one.name,
        "weighting": one.weighting,
        "prediction": one.predicts or one.profile.model.prediction,
        "schedule": one.schedule or one.profile.training.schedule.name,
        "seed": one.seed,
        "seconds": card["seconds"],
        "importance": loss.largest_importance()[1],
        **_distances(one, network),
        **_gradients(one, network, loss, how),
    }
    losses = {str(line["step"]): line["loss"] for line in training.read_log(one.found() / training.LOG)}
    return Measured(row, errors, losses, _density(loss.schedule))


def learned(loss: WeightedLoss, card: Mapping[str, Any]) -> WeightedLoss:
    """The loss with the schedule as the run left it, which only an adaptive one has learned."""
    if isinstance(loss.schedule, AdaptiveSchedule):
        loss.schedule.load_state_dict(card["learned_schedule"])
    return loss


def panels(one: Experiment, how: Protocol) -> Panels:
    """The nodes for a run: over the range of log-SNR that it was trained on."""
    return Panels.over(one.loss.schedule.ends, how.panels)


@lru_cache(maxsize=4)
def reference(data: profiles.Data, split: Split) -> Reference:
    """A split as its classifier sees it; kept, because every run is compared with it."""
    return Reference.of(data.load(split), features.classifier_of(data.name))


def _distances(one: Experiment, network: ConditionedNetwork) -> dict[str, float]:
    """By each sampler of the profile: Fréchet and kernel distance to both splits; precision and recall of the test."""
    settings, train = one.profile.sampling, one.data("train")
    judge, found = features.classifier_of(one.profile.data.name), dict[str, float]()
    for sampler in settings.samplers:
        samples = drawing(settings, sampler).samples(network, one.prediction, _labels(train, settings.count))
        seen = evaluation.see(samples, judge, train.levels)
        compared = {split: evaluation.compare(seen, reference(one.profile.data, split)) for split in SPLITS}
        for split, numbers in compared.items():
            found |= {f"{name}_{sampler}_{split}": getattr(numbers, name) for name in ("frechet", "kid")}
        found |= {f"{name}_{sampler}": getattr(compared["test"], name) for name in ("precision", "recall")}
    return found


def _gradients(one: Experiment, network: ConditionedNetwork, loss: WeightedLoss, how: Protocol) -> dict[str, float]:
    """tr Cov g and ‖E g‖² under the schedule of the run; for one that was learned, also under the others there are."""
    schedules = {"own": loss.schedule}
    if isinstance(loss.schedule, AdaptiveSchedule):
        others = {label: choice.make() for label, choice in one.profile.training.schedules.items()}
        schedules |= {label: made for label, made in others.items() if not isinstance(made, AdaptiveSchedule)}
    found, options = dict[str, float](), {"batch_size": one.config.batch_size, "batches": how.batches, "seed": how.seed}
    for label, schedule in schedules.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # w/p is a column of the row
            under = WeightedLoss(loss.weighting, schedule, loss.prediction)
        noise = evaluation.gradient_noise(network, under, one.data("train"), **options)
        found |= {f"gradient_trace_{label}": noise.trace, f"gradient_squared_{label}": noise.squared_mean}
    return found


def _density(schedule: object) -> list[float]:
    """p(λ) in the middle of each bin of an adaptive schedule."""
    if not isinstance(schedule, AdaptiveSchedule):
        return []
    edges = torch.linspace(*schedule.ends, schedule.bins + 1, dtype=torch.float64)
    return schedule.density((edges[1:] + edges[:-1]) / 2).tolist()


# All runs ------------------------------------------------------------------------------------------------------------


def measure_all(run: "Run", experiments: Sequence[Experiment], how: Protocol, processes: int) -> list[Measured]:
    """:func:`measure` for many runs, several at a time; what was measured already is kept.

    A run that is not there is left out: the rows say which ones are.

    Raises:
        FileNotFoundError: when there is none at all, saying what to run.
    """
    there = [one for one in experiments if one.find() is not None] or [one for one in experiments[:1] if one.found()]
    return each(partial(_measured, how=how, folder=run.cache / "measured"), there, processes)


def _measured(one: Experiment, how: Protocol, folder: Path) -> Measured:
    """Look it up, or measure it and write it down."""
    path = folder / f"{key(one, how)}.json"
    if not path.is_file():
        files.write_text(path, json.dumps(asdict(measure(one, how))))
    return Measured(**json.loads(path.read_text(encoding="utf-8")))


def key(one: Experiment, how: Protocol) -> str:
    """What a measurement depends on: run, data, protocol, the profile's sampling, the number of the computation."""
    sampling, data = one.profile.sampling.model_dump(mode="json"), [one.data(split).sha256 for split in SPLITS]
    whole = [VERSION, one.key.key, data, asdict(how), sampling]
    return files.json_sha256(whole)[:16]


def kept(run: "Run", what: Sequence[Any], make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """An array that is made once and outlives a run that is stopped; known by ``what`` it depends on and the number of
    the computation."""
    path = run.cache / f"{files.json_sha256([VERSION, *what])[:16]}.npy"
    if not path.is_file():
        files.write_whole(path, lambda temporary: np.save(temporary, make()))
    found: NDArray[Any] = np.load(path, allow_pickle=False)
    return found


# Tables --------------------------------------------------------------------------------------------------------------

INDICES = {"measured": [0], "errors": [0, 1], "losses": [0], "densities": [0]}
"""Tables, and which of their columns are the index."""


def frames(run: "Run", experiments: Sequence[Experiment], how: Protocol, processes: int) -> dict[str, pd.DataFrame]:
    """What :func:`measure_all` finds, as tables that are also written to ``tables/`` of the notebook's results.

    Of a run whose network is not here, what came with the checkout is kept, provided that its :func:`key` is the same.
    A reader who opens the notebook gets the tables as they came.

    Returns:
        ``measured``: :attr:`Measured.row` and the key by run; ``errors``: by run and split, a column a node;
        ``losses``: by step, a column a run; ``densities``: by bin, a column a run with an adaptive schedule.

    Raises:
        FileNotFoundError: when there are neither networks nor tables, saying what to run.
    """
    source = run.finished / "tables" if run.finished else run.directory / "tables"
    if run.finished is None:
        keys = {one.name: key(one, how) for one in experiments}
        found = _published(run, keys)
        if not found or any(one.find() for one in experiments):
            found |= {one.row["run"]: one for one in measure_all(run, experiments, how, processes)}
        for name, frame in _framed([found[name] for name in keys if name in found]).items():
            if name == "measured":
                frame["key"] = frame.index.map(keys)
            files.write_text(source / f"{name}.csv", frame.to_csv())
    return _read(source)


def _read(folder: Path) -> dict[str, pd.DataFrame]:
    return {
        name: pd.read_csv(folder / f"{name}.csv", index_col=index, float_precision="round_trip")
        for name, index in INDICES.items()
    }


def _published(run: "Run", keys: Mapping[str, str]) -> dict[str, Measured]:
    """What came with the checkout of the runs that have these keys."""
    folder = paths.published(run.profile, run.notebook) / "tables"
    if not (folder / "measured.csv").is_file():
        return {}
    tables = _read(folder)
    rows, errors, losses, densities = (tables[name] for name in INDICES)
    return {
        name: Measured(
            {"run": name, **rows.loc[name].drop("key")},
            {split: errors.loc[(name, split)].tolist() for split in SPLITS},
            {str(step): loss for step, loss in losses[name].items()},
            densities[name].tolist() if name in densities else [],
        )
        for name in rows.index
        if rows.key[name] == keys.get(name)
    }


def _framed(found: Sequence[Measured]) -> dict[str, pd.DataFrame]:
    by_run = {one.row["run"]: one for one in found}
    errors = {(name, split): values for name, one in by_run.items() for split, values in one.errors.items()}
    densities = {name: one.density for name, one in by_run.items() if one.density}
    losses = {name: {int(step): loss for step, loss in one.losses.items()} for name, one in by_run.items()}
    return {
        "measured": pd.DataFrame([one.row for one in found]).set_index("run"),
        "errors": pd.DataFrame(errors.values(), pd.MultiIndex.from_tuples(errors, names=["run", "split"])),
        "losses": pd.DataFrame(losses).rename_axis("step"),
        "densities": pd.DataFrame(densities).rename_axis("bin"),
    }
