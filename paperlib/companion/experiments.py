"""The experiments of a profile: which networks are trained, under which weightings and seeds, and where they lie.

A profile states them once; the training notebook, the notebooks that read its weights and ``paperlib train`` all get
them from here, and what they load is the run whose key is that of the profile as it is now.  Every run of the grid has
the same budget, and runs of one seed share their initialisation, their batches, their noise and their levels, so that
differences between weightings are differences of paired runs.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import joblib
import torch

from paperlib import files, objectives, predictions
from paperlib.companion import paths, profiles, provenance
from paperlib.engine import data, training
from paperlib.engine.parallel import EngineName
from paperlib.models import ConditionedNetwork, weights
from paperlib.objectives import WeightedLoss
from paperlib.predictions import Prediction
from paperlib.weightings import Weighting

if TYPE_CHECKING:
    from paperlib.companion.run import Run

T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """One training run of a profile.

    Args:
        profile: the profile.
        weighting: the label of its weighting in the profile.
        seed: seed of initialisation, batches, noise and levels.
        pictures: whether it is the larger network for pictures, not one of the grid.
        predicts: what the network predicts, where it is not what the profile's model predicts.
        schedule: the label of its noise schedule among the profile's ``schedules``, where it is not the shared one.
    """

    profile: profiles.Profile
    weighting: str
    seed: int
    pictures: bool = False
    predicts: str | None = None
    schedule: str | None = None

    @property
    def name(self) -> str:
        """The folder of the run, such as "sigmoid-seed0" or "sigmoid-eps-cosine-seed0"."""
        return self.arm if self.pictures else f"{self.arm}-seed{self.seed}"

    @property
    def arm(self) -> str:
        """What runs of several seeds have in common, such as "sigmoid" or "sigmoid-eps-cosine"."""
        if self.pictures:
            return "pictures"
        return "-".join(filter(None, (self.weighting, self.predicts, self.schedule)))

    @property
    def prediction(self) -> Prediction:
        """What the network predicts; F takes the σ_data of the data."""
        name = self.predicts or self._model.prediction
        return predictions.get(name, **({"sigma_data": self.data("train").sigma_data} if name == "F" else {}))

    @property
    def loss(self) -> WeightedLoss:
        """The weighted loss, under the schedule that all runs of the profile share, unless this one has its own."""
        shared = self.profile.training
        choice = shared.schedules[self.schedule] if self.schedule else shared.schedule
        return WeightedLoss(weighting(self.profile, self.weighting), choice.make(), self.prediction)

    @property
    def config(self) -> training.TrainingConfig:
        """The budget: that of the profile, or of its pictures."""
        recipe = self.profile.pictures_recipe if self.pictures else self.profile.training.recipe
        return replace(recipe, seed=self.seed)

    def data(self, split: data.Split) -> data.ImageData:
        """A split of the profile's data."""
        return self.profile.data.load(split)

    def network(self) -> ConditionedNetwork:
        """A freshly initialised network."""
        return self._model.build(self.data("train"), self.seed)

    # Its run ---------------------------------------------------------------------------------------------------------

    @cached_property
    def key(self) -> training.RunKey:
        """What its run is known by."""
        images = self.data("train")
        with torch.device("meta"):  # no numbers are needed
            network = self.network()
        return training.run_key(network, self.loss, images, self.config)

    @property
    def folder(self) -> Path:
        """Where it is trained: a folder for runs of this name that differ in nothing but their number of steps."""
        return paths.runs(self.profile.name) / f"{self.name}-{self.key.course[:12]}"

    def train(self, progress: bool = True, engine: EngineName = "auto") -> training.TrainResult:
        """Train it in its folder, go on there, or return what is finished there."""
        card = {"profile": self.profile.name, "run": self.name, **provenance.revision(paths.root())}
        network, images = self.network(), self.data("train")
        return training.train(
            network, self.loss, images, self.config, self.folder, card=card, progress=progress, engine=engine
        )

    def find(self, published: bool = True) -> Path | None:
        """The folder of its finished run: trained here, or else come with the checkout; None where neither is its own.

        What lies under its name and was trained otherwise, from an older state of the profile say, is not.
        """
        candidates = [self.folder, paths.published_runs(self.profile.name) / self.name][: 1 + published]
        return next((folder for folder in candidates if training.finished_card(folder, self.key)), None)

    def found(self) -> Path:
        """The same, or FileNotFoundError, which says what there is instead and what to run."""
        if (folder := self.find()) is not None:
            return folder
        here = sorted(paths.runs(self.profile.name).glob(f"{self.name}-*"))
        candidates = [*here, paths.published_runs(self.profile.name) / self.name]
        others = [paths.shown(path) for path in candidates if (path / training.WEIGHTS).is_file()]
        there = f"there are weights of other configurations: {', '.join(others)}" if others else "there are no weights"
        which = "--pictures" if self.pictures else f"--arm {self.arm} --seed {self.seed}"
        raise FileNotFoundError(
            f"no finished run {self.name} of profile {self.profile.name!r} as it is now (key {self.key.key[:12]}); "
            f"{there}. Run: paperlib train {self.profile.name} {which}"
        )

    def card(self) -> dict[str, Any]:
        """The card of its finished run; FileNotFoundError where there is none."""
        return weights.read_card(self.found() / training.WEIGHTS)

    def load(self) -> ConditionedNetwork:
        """The trained network, in evaluation mode; FileNotFoundError where there is none."""
        network = self.network()
        weights.load_weights(self.found() / training.WEIGHTS, network)
        return network.eval()

    @property
    def _model(self) -> profiles.Model:
        return self.profile.pictures.model if self.pictures and self.profile.pictures else self.profile.model


def weighting(profile: profiles.Profile, label: str) -> Weighting:
    """A weighting by its label in the profile; ValueError, naming the labels, for an unknown one."""
    profiles.require_known(f"profile {profile.name!r} has no weighting", label, profile.training.weightings)
    return objectives.weighting(profile.training.weightings[label])


def grid(profile: profiles.Profile) -> Iterator[Experiment]:
    """Weightings × seeds of a profile, a seed after the other, so that a shortened run is still balanced."""
    for seed in profile.training.seeds:
        for label in profile.training.weightings:
            yield Experiment(profile, label, seed)


def ablation(profile: profiles.Profile) -> Iterator[Experiment]:
    """The further runs of a profile, a seed after the other; one that the grid or an earlier block has is left out."""
    shared, default = profile.training, profile.model.prediction
    named = {(one.weighting, default, "", one.seed) for one in grid(profile)}
    for seed in shared.seeds:
        for block in shared.ablation:
            for label, predicts, schedule in product(block.weightings, block.predictions, block.schedules):
                choice = "" if shared.schedules[schedule] == shared.schedule else schedule
                if (label, predicts, choice, seed) not in named:
                    named.add((label, predicts, choice, seed))
                    yield Experiment(profile, label, seed, predicts=predicts, schedule=schedule)


def arms(profile: profiles.Profile) -> dict[str, list[Experiment]]:
    """All runs of a profile, grid and ablation, by their arm: the seeds of one arm are one job of the workflow."""
    found: dict[str, list[Experiment]] = {}
    for one in (*grid(profile), *ablation(profile)):
        found.setdefault(one.arm, []).append(one)
    return found


def pictures(profile: profiles.Profile) -> Experiment:
    """The larger network whose samples are shown; ValueError where the profile has none."""
    if profile.pictures is None:
        raise ValueError(f"profile {profile.name!r} has no section 'pictures'; add one.")
    return Experiment(profile, profile.pictures.weighting, profile.pictures.seed, pictures=True)


def select(
    profile: profiles.Profile,
    weighting: str | None = None,
    seed: int | None = None,
    larger: bool = False,
    arm: str | None = None,
) -> list[Experiment]:
    """The experiments of a profile: the grid, or one of its weightings; or one arm, ablation included; or one seed.

    ``larger`` asks for the network for pictures instead.

    Raises:
        ValueError: when there is none, naming the arms and seeds there are, and for ``larger`` with a choice.
    """
    asked = {"--weighting": weighting, "--seed": seed, "--arm": arm}
    said = ", ".join(f"{option} {value}" for option, value in asked.items() if value is not None)
    if larger:
        if said:
            raise ValueError(f"the network for pictures of profile {profile.name!r} is one alone: leave out {said}.")
        return [pictures(profile)]
    known = arms(profile)
    runs = grid(profile) if arm is None else known.get(arm, [])
    chosen = [one for one in runs if weighting in (None, one.weighting) and seed in (None, one.seed)]
    if not chosen:
        raise ValueError(
            f"profile {profile.name!r} trains no network with {said}; it has the arms {', '.join(known)} and the seeds "
            f"{', '.join(map(str, profile.training.seeds))}."
        )
    return chosen


def shown(profile: profiles.Profile) -> list[Experiment]:
    """The networks whose samples are shown: the larger one for pictures; without one, a first seed of every weighting.

    Those of the grid are paired, and with equal labels and noise so are their samples.
    """
    if profile.pictures is not None:
        return [pictures(profile)]
    return [one for one in grid(profile) if one.seed == profile.training.seeds[0]]


def repeats(profile: profiles.Profile, confidence: float = 0.95) -> str:
    """What a caption says of the repeats: an interval over training seeds, or that one seed has none."""
    seeds = len(profile.training.seeds)
    if seeds > 1:
        return f"mean and {confidence:.0%} interval over {seeds} training seeds"
    return "one training seed: no interval, and differences between single runs are not differences between weightings"


def some(images: data.ImageData, count: int) -> data.ImageData:
    """The first ``count`` images of a split, or all where there are no more; its name and caution stay."""
    return replace(images, images=images.images[:count], labels=images.labels[:count])


def train(chosen: list[Experiment], engine: EngineName = "auto") -> None:
    """Train, go on with what was interrupted, pass over what is finished; each in its :attr:`Experiment.folder`.

    A run that is asked to stop saves its state and raises
    :class:`paperlib.engine.interruption.TrainingInterrupted`.  Under ``torchrun`` every process calls this, and the
    first one speaks.
    """
    first = os.environ.get("RANK", "0") == "0"
    for one in chosen:
        if first:
            print(f"{one.name}: {one.config.steps} steps of {one.config.batch_size} images", flush=True)
        with files.explained(one.folder):
            result = one.train(progress=first, engine=engine)
        if first:
            print(f"{one.name}: {result.seconds:.0f} s of training → {one.folder}", flush=True)


def each(work: Callable[[Experiment], T], experiments: Sequence[Experiment], processes: int) -> list[T]:
    """``work`` of every experiment, several at a time, and a line as each is done.

    A process has one thread: networks of this size gain nothing from a second one, but two of them from a second core.
    """
    found: list[T] = []
    jobs = (joblib.delayed(_alone)(work, one) for one in experiments)
    for one, result in zip(experiments, joblib.Parallel(processes, return_as="generator")(jobs), strict=True):
        found.append(result)
        print(f"{len(found)} of {len(experiments)}: {one.name}", flush=True)
    return found


def _alone(work: Callable[[Experiment], T], one: Experiment) -> T:
    torch.set_num_threads(1)
    return work(one)


def train_all(run: "Run", experiments: Sequence[Experiment], processes: int) -> dict[str, training.TrainResult]:
    """Train many small networks, several at a time; results by name.

    What is finished is not trained again; for a reader who opens a notebook, that includes what came with the checkout.
    The runs are copied to ``runs/`` of the notebook's results, where they can be published with it.
    """
    missing = [one for one in experiments if one.find(published=not run.headless) is None]
    each(lambda one: one.train(progress=False).seconds, missing, processes)
    return {one.name: _kept(run, one) for one in experiments}


def train_once(run: "Run", experiment: Experiment) -> training.TrainResult:
    """The same for one network, with all threads and a bar."""
    if experiment.find(published=not run.headless) is None:
        experiment.train()
    return _kept(run, experiment)


def _kept(run: "Run", experiment: Experiment) -> training.TrainResult:
    """A finished run, copied to the results, the weights last: where they are, the copy is whole."""
    source, copy = experiment.found(), run.directory / "runs" / experiment.name
    card = experiment.card()
    for name in (*card["files"], training.WEIGHTS):
        files.write_whole(copy / name, partial(shutil.copyfile, source / name))
    history = training.read_log(source / training.LOG)
    return training.TrainResult(experiment.load(), history, card["seconds"], source / training.WEIGHTS, card)
