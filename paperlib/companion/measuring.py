r"""What is measured of trained networks: the same things in the same way for every run of a profile, one row a run.

The errors of ε̂ by level of noise carry most of it.  With Gauss–Legendre nodes in panels over the range of log-SNR they
give every weighted loss, :math:`\tfrac12\int w\,e\,d\lambda`, and −ELBO for a decoder at any edge of a panel.  Noise is
shared by all runs, so that differences between runs are sharper than the numbers themselves.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import pandas as pd
import torch
from torch import Tensor

from paperlib import elbo, files, quadrature
from paperlib.adaptive import AdaptiveSchedule
from paperlib.companion import assessment, paths, profiles
from paperlib.companion.experiments import Experiment, some
from paperlib.engine import evaluation, features, likelihood, training
from paperlib.engine.data import ImageData, Split, to_uint8
from paperlib.engine.gradients import gradient_noise
from paperlib.models import ConditionedNetwork
from paperlib.objectives import WeightedLoss
from paperlib.schedules import NoiseSchedule

if TYPE_CHECKING:
    from paperlib.companion.run import Run

SPLITS: tuple[Split, ...] = ("train", "test")

VERSION = 1
"""Number of the computation that turns a run into a row.  To be raised, by hand, by whoever changes it:
tests/test_fingerprints.py fails until then, and says how."""


@dataclass(frozen=True)
class Panels:
    """Gauss–Legendre nodes in panels of equal width.

    Attributes:
        edges: of the panels, log-SNR, shape (P + 1,).
        nodes: where the error is measured, shape (P · order,).
        widths: their weights in an integral over log-SNR, shape (P · order,).
    """

    edges: Tensor
    nodes: Tensor
    widths: Tensor

    @classmethod
    def over(cls, ends: tuple[float, float], panels: int, order: int = 2) -> "Panels":
        """``panels`` of them over a range of log-SNR."""
        edges = torch.linspace(*ends, panels + 1, dtype=torch.float64)
        return cls(edges, *quadrature.panel_nodes(edges, order))

    def up_to_edges(self, values: Tensor) -> Tensor:
        """∫ from the lowest edge to each edge, of values at the nodes, shape (*, P · order); shape (*, P + 1)."""
        panels = (values * self.widths).unflatten(-1, (len(self.edges) - 1, -1)).sum(-1)
        return torch.nn.functional.pad(panels.cumsum(-1), (1, 0))

    def bound(self, errors: Tensor, images: ImageData) -> Tensor:
        """−ELBO with a decoder at each edge, in nats, the mean over ``images``; from errors (*, P · order)."""
        x = images.scaled(torch.float64)
        prior = elbo.prior_kl(x, self.edges[0].item()).mean()
        decoded = [likelihood.reconstruction(images, level).mean() for level in self.edges.tolist()]
        return prior + 0.5 * self.up_to_edges(errors) + torch.stack(decoded)


@dataclass(frozen=True)
class Protocol:
    """How every run is measured.

    Attributes:
        panels: of log-SNR, with two nodes each.
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


# One run -------------------------------------------------------------------------------------------------------------


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
    row = {**identity(one), "seconds": card["seconds"], "importance": loss.largest_importance()[1]}
    row |= _distances(one, network) | _gradients(one, network, loss, how)
    losses = {str(line["step"]): line["loss"] for line in training.read_log(one.found() / training.LOG)}
    return Measured(row, errors, losses, _density(loss.schedule))


def identity(one: Experiment) -> dict[str, Any]:
    """The columns that say which run it is."""
    return {
        "run": one.name,
        "weighting": one.weighting,
        "prediction": one.predicts or one.profile.model.prediction,
        "schedule": one.schedule or one.profile.training.schedule.name,
        "seed": one.seed,
    }


def learned(loss: WeightedLoss, card: Mapping[str, Any]) -> WeightedLoss:
    """The loss with the schedule as the run left it, which only an adaptive one has learned."""
    if isinstance(loss.schedule, AdaptiveSchedule):
        training.relearn(loss.schedule, card["learned_schedule"])
    return loss


def panels(one: Experiment, how: Protocol) -> Panels:
    """The nodes for a run: over the range of log-SNR that it was trained on."""
    return Panels.over(one.loss.schedule.ends, how.panels)


def _distances(one: Experiment, network: ConditionedNetwork) -> dict[str, float]:
    """By each sampler of the profile: Fréchet and kernel distance to both splits; precision and recall of the test."""
    settings, train = one.profile.sampling, one.data("train")
    wanted = train.labels[torch.arange(settings.count) % len(train)]
    judge, found = features.classifier_of(one.profile.data.name), dict[str, float]()
    for sampler in settings.samplers:
        batches = assessment.drawing(settings, sampler).samples(network, one.prediction, wanted)
        seen = judge(torch.cat([to_uint8(batch, train.levels) for batch in batches]))
        compared = {split: evaluation.compare(seen, reference(one.profile.data, split)) for split in SPLITS}
        for split, numbers in compared.items():
            found |= {f"{name}_{sampler}_{split}": getattr(numbers, name) for name in ("frechet", "kid")}
        found |= {f"{name}_{sampler}": getattr(compared["test"], name) for name in ("precision", "recall")}
    return found


@lru_cache(maxsize=4)
def _reference(name: str, root: Path | None, split: Split) -> evaluation.Reference:
    return evaluation.Reference.of(profiles.Data(name=name, root=root).load(split), features.classifier_of(name))


def reference(data: profiles.Data, split: Split) -> evaluation.Reference:
    """A split as its classifier sees it; kept, because every run is compared with it."""
    return _reference(data.name, data.root, split)


def _gradients(
    one: Experiment, network: ConditionedNetwork, loss: WeightedLoss, how: Protocol
) -> dict[str, float | None]:
    """tr Cov g and ‖E g‖² under the schedule of the run; for one that was learned, also under the others there are."""
    schedules = {"own": loss.schedule}
    if isinstance(loss.schedule, AdaptiveSchedule):
        stated = one.profile.training.schedules.items()
        others = {label: choice.make() for label, choice in stated}
        schedules |= {label: made for label, made in others.items() if not isinstance(made, AdaptiveSchedule)}
    found, size = dict[str, float | None](), one.config.batch_size
    for label, schedule in schedules.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # w/p is a column of the row
            under = WeightedLoss(loss.weighting, schedule, loss.prediction)
        noise = gradient_noise(network, under, one.data("train"), batch_size=size, batches=how.batches, seed=how.seed)
        found |= {f"gradient_trace_{label}": noise.trace, f"gradient_squared_{label}": noise.squared_mean}
    return found


def _density(schedule: NoiseSchedule) -> list[float]:
    """p(λ) in the middle of each bin of an adaptive schedule."""
    if not isinstance(schedule, AdaptiveSchedule):
        return []
    edges = torch.linspace(*schedule.ends, schedule.bins + 1, dtype=torch.float64)
    return schedule.density((edges[1:] + edges[:-1]) / 2).tolist()


# All runs ------------------------------------------------------------------------------------------------------------


def measure_all(run: "Run", experiments: Sequence[Experiment], how: Protocol, processes: int) -> list[Measured]:
    """:func:`measure` for many runs, several at a time, one thread each; what was measured already is kept.

    A run that is not there is left out: the rows say which ones are.

    Raises:
        FileNotFoundError: when there is none at all, saying what to run.
    """
    there = [one for one in experiments if one.find() is not None] or [one for one in experiments[:1] if one.found()]
    jobs = (joblib.delayed(_measured)(one, how, run.cache / "measured") for one in there)
    found = joblib.Parallel(n_jobs=processes, return_as="generator")(jobs)
    return [_told(one, number, len(there)) for number, one in enumerate(found, 1)]


def _told(measured: Measured, number: int, of: int) -> Measured:
    print(f"{number} of {of}: {measured.row['run']}", flush=True)
    return measured


def _measured(one: Experiment, how: Protocol, folder: Path) -> Measured:
    """What a process of :func:`measure_all` does: look it up, or measure it and write it down."""
    torch.set_num_threads(1)
    path = folder / f"{key(one, how)}.json"
    if not path.is_file():
        files.write_text(path, json.dumps(asdict(measure(one, how))))
    return Measured(**json.loads(path.read_text(encoding="utf-8")))


def key(one: Experiment, how: Protocol) -> str:
    """What a measurement depends on: run, data, protocol, the profile's sampling, the number of the computation."""
    sampling, data = one.profile.sampling.model_dump(mode="json"), [one.data(split).sha256 for split in SPLITS]
    whole = [VERSION, one.key.key, data, asdict(how), sampling]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


# Tables --------------------------------------------------------------------------------------------------------------

INDICES = {"measured": [0], "errors": [0, 1], "losses": [0], "densities": [0]}
"""Tables, and which of their columns are the index."""


def frames(run: "Run", experiments: Sequence[Experiment], how: Protocol, processes: int) -> dict[str, pd.DataFrame]:
    """What :func:`measure_all` finds, as tables that are also written to ``tables/`` of the notebook's results.

    Of a run whose network is not here, what came with the checkout is kept, provided that its :func:`key` is the same.
    A reader who opens the notebook gets the tables as they came.

    Args:
        run: the notebook's.
        experiments: the runs to measure.
        how: the protocol.
        processes: how many are measured at once.

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
