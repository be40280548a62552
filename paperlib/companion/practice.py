"""What ``paperlib train`` does: the experiments of a profile, outside the notebooks."""

import os

from paperlib.companion import experiments, files, profiles
from paperlib.companion.experiments import Experiment
from paperlib.engine.parallel import EngineName


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
