"""Profiles: one set of experiments at one scale, ``profiles/NAME.yaml``.

A profile holds what the experiments share (data, network, training, sampling) and, for every notebook, its parameters,
its threads and the notebooks whose results it reads.  It is checked whole before anything runs: an unknown key, a wrong
type, an impossible value, an unknown weighting is refused with file and line.
"""

import dataclasses
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)
from torch import Tensor

from paperlib import models, objectives, predictions, schedules
from paperlib.companion import documents, paths
from paperlib.engine import data, sampling
from paperlib.engine.recipe import TrainingConfig
from paperlib.schedules import NoiseSchedule

LARGEST_LOGSNR, LARGEST_OPTION, LARGEST_NETWORK = 100, 100_000, 10**12
"""What no schedule, no option and no network of a profile goes beyond: nats, a number, parameters."""
LARGEST_IN_RECIPE = {"learning_rate": 10, "weight_decay": 10, "batch_size": 10**7, "workers": 1000}
"""The same of numbers of a recipe, of others 10⁹."""
Value = bool | int | float | str | list[int] | list[float] | list[str]
"""What a parameter may be: what a notebook can state as a literal."""

Count = Annotated[int, Field(gt=0, le=10**12)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Label = Annotated[str, Field(pattern=r"^\w+$")]
"""What names a weighting or a schedule: it becomes part of a path."""


class Section(BaseModel):
    """Strict base of every section: no unknown keys, no conversions, no changes afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Choice(Section):
    """A noise schedule as :func:`paperlib.schedules.get` takes it: its name, and its own parameters beside it."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    name: str

    @model_validator(mode="after")
    def _can_be_made(self) -> "Choice":
        if max(map(abs, ends := self.make().ends)) > LARGEST_LOGSNR:
            raise ValueError(f"log-SNR must lie within ±{LARGEST_LOGSNR} nats, got {ends}; float32 ends at ±88.")
        return self

    def make(self) -> NoiseSchedule:
        """A fresh schedule: an adaptive one has its state."""
        return schedules.get(self.model_dump())


def _known(lookup: Callable[[Any], object]) -> AfterValidator:
    """Accept what ``lookup`` takes; its error, which lists the choices, becomes that of the line."""

    def check(said: Any) -> Any:
        try:
            lookup(said)
        except TypeError as error:  # which would not become the error of its line
            raise ValueError(str(error)) from None
        return said

    return AfterValidator(check)


_load = lru_cache(maxsize=4)(data.load)

WeightingChoice = Annotated[dict[str, Any], _known(objectives.weighting)]
"""A weighting as :func:`paperlib.objectives.weighting` takes it."""
PredictionName = Annotated[str, _known(predictions.get)]
Samplers = Annotated[list[Annotated[str, _known(sampling.get)]], Field(min_length=1)]


class Data(Section):
    """The data set.  ``root`` is the folder of those that are not packaged."""

    name: Annotated[str, _known(data.DATASETS.__getitem__)]
    root: Path | None = Field(default=None, strict=False)

    def load(self, split: data.Split) -> data.ImageData:
        """A split of it; kept, because a profile's runs ask for it again and again."""
        return _load(self.name, split, self.root)


class Model(Section):
    """The network, what it predicts, and the options of its constructor."""

    name: Annotated[str, _known(models.option_names)]
    prediction: PredictionName = "v"
    options: dict[str, Value] = {}

    @model_validator(mode="after")
    def _taken(self) -> "Model":
        known = models.option_names(self.name)
        for option, value in self.options.items():
            if option not in known:
                raise ValueError(f"{self.name} has no option {option!r}; its parameters are {', '.join(known)}.")
            # so many blocks would be made one by one
            if any(isinstance(n, int) and n > LARGEST_OPTION for n in (value if isinstance(value, list) else [value])):
                raise ValueError(f"option {option!r} must be at most {LARGEST_OPTION:,}, got {value}.")
        return self

    def build(self, images: data.DataSet | data.ImageData, seed: int) -> models.ConditionedNetwork:
        """A freshly initialised network for images of this shape, number of classes and σ_data."""
        known: dict[str, Any] = {name: getattr(images, name) for name in ("image_shape", "num_classes", "sigma_data")}
        return models.build(self.name, seed=seed, **known, **dict[str, Any](self.options))


class Block(Section):
    """A product of weightings, predictions and schedules, by their labels in ``training``, over its seeds."""

    weightings: list[str] = Field(min_length=1)
    predictions: list[PredictionName] = Field(min_length=1)
    schedules: list[str] = Field(min_length=1)


def _field(field: dataclasses.Field[Any]) -> Any:
    """A field of :class:`TrainingConfig` for pydantic: a value that it refuses is refused in its own line."""

    def check(value: Any) -> Any:
        TrainingConfig(**{"steps": 1, field.name: value})
        largest = LARGEST_IN_RECIPE.get(field.name, 10**9)
        if isinstance(value, int | float) and value > largest:
            raise ValueError(f"{field.name} must be at most {largest:,}, got {value:,}.")
        return value

    listed = get_origin(field.type) is tuple  # YAML has lists alone
    return Annotated[field.type, *([Field(strict=False)] if listed else []), AfterValidator(check)]


_FIELDS: Any = {one.name: (_field(one), None) for one in dataclasses.fields(TrainingConfig) if one.name != "seed"}
_Some = create_model("_Some", __base__=Section, **_FIELDS)  # a profile has several seeds
_Whole = create_model("_Whole", __base__=_Some, steps=_FIELDS["steps"][0])

Changes = Annotated[
    dict[str, Any], BeforeValidator(lambda stated: _Some.model_validate(stated).model_dump(exclude_unset=True))
]
"""Some fields of the library's :class:`TrainingConfig`, by its types and bounds."""
Recipe = Annotated[
    TrainingConfig,
    BeforeValidator(lambda stated: TrainingConfig(**_Whole.model_validate(stated).model_dump(exclude_unset=True))),
]
"""All that have no default, and no others than its fields."""


class Training(Section):
    """Equal budget for every run: its ``recipe``.

    The grid of a profile is weightings × seeds, all under ``schedule``.  ``ablation`` adds further runs: products of
    weightings, predictions and the ``schedules`` that are named for it.
    """

    schedule: Choice
    weightings: dict[Label, WeightingChoice] = Field(min_length=1)
    schedules: dict[Label, Choice] = {}
    ablation: list[Block] = []
    seeds: list[Seed] = Field(min_length=1)
    recipe: Recipe

    @model_validator(mode="after")
    def _consistent(self) -> "Training":
        _require_fit(self.recipe)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ from one another, got {self.seeds}.")
        for block in self.ablation:
            for label in block.weightings:
                require_known("ablation: no weighting", label, self.weightings)
            for label in block.schedules:
                require_known("ablation: no schedule", label, self.schedules)
        return self


def require_known(what: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known, with those that are."""
    if name not in known:
        raise ValueError(f"{what} {name!r}; choose one of {', '.join(known) or '(there are none)'}.")


def _require_fit(recipe: TrainingConfig) -> None:
    if recipe.warmup_steps > recipe.steps:
        raise ValueError(f"warmup_steps ({recipe.warmup_steps}) must not exceed steps ({recipe.steps}).")
    recipe.micro_batch(processes=1)


class Pictures(Section):
    """One larger network whose samples are shown; what its recipe does not state is as in ``training``."""

    model: Model
    weighting: str
    seed: Seed = 0
    recipe: Changes


class Sampling(Section):
    """How samples are drawn for pictures and for evaluation."""

    schedule: Choice
    samplers: Samplers
    steps: Count
    count: Count
    batch_size: Count = 500
    guidance: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    seed: Seed = 0

    def levels(self) -> Tensor:
        """The log-SNR that a sampler walks through, increasing; shape (steps + 1,)."""
        return sampling.levels(self.schedule.make(), self.steps)


class Launch(Section):
    """How the workflow trains: one job an arm, all its seeds, outside the notebook.  It changes no result.

    Args:
        before: the notebook that waits for all jobs, the first that needs the networks.
        threads: processor threads of a job.
        gpus: GPUs of a job on one machine, one process each under ``torchrun``; 0 trains in one process.
        engine: "ddp" or "fsdp"; "auto" is DDP where there are several processes.
        hours: what a cluster's queue is told, at the most.
    """

    before: str
    threads: Count = 1
    gpus: int = Field(default=0, ge=0)
    engine: Literal["auto", "ddp", "fsdp"] = "auto"
    hours: Count = 24


class Notebook(Section):
    """One notebook: its parameters, the notebooks it reads from, its threads, and how long a cell may take."""

    parameters: dict[str, Value] = {}
    upstream: list[str] = []
    threads: Count = 1
    cell_timeout: Count = 3600


class Profile(Section):
    """One scale of the experiments."""

    name: str
    description: str
    data: Data
    model: Model
    training: Training
    pictures: Pictures | None = None
    sampling: Sampling
    launch: Launch | None = None
    notebooks: dict[Annotated[str, Field(pattern=r"^\w[\w-]*$")], Notebook] = Field(min_length=1)

    @model_validator(mode="after")
    def _pictures_fit(self) -> "Profile":
        if self.pictures:
            require_known("pictures: no weighting", self.pictures.weighting, self.training.weightings)
            _require_fit(self.pictures_recipe)
        return self

    @model_validator(mode="after")
    def _networks_can_be_built(self) -> "Profile":
        """Without their numbers, which costs milliseconds at any size."""
        for model in (self.model, *([self.pictures.model] if self.pictures else [])):
            try:
                with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # of tensors without elements
                    network = model.build(data.DATASETS[self.data.name], seed=0)
            except (TypeError, RuntimeError, ValueError, ZeroDivisionError) as error:
                raise ValueError(f"model: {model.name} cannot be built with {model.options}: {error}") from None
            sizes = [parameter.numel() for parameter in network.parameters()]
            if not all(sizes) or sum(sizes) > LARGEST_NETWORK:
                raise ValueError(f"model: {model.name} would have {sum(sizes):.0e} parameters with {model.options}.")
        return self

    @model_validator(mode="after")
    def _notebooks_are_there(self) -> "Profile":
        names = list(self.notebooks)
        if self.launch and self.launch.before not in names:
            raise ValueError(
                f"launch: notebook {self.launch.before!r} is to wait for the training, and the profile has only "
                f"{', '.join(names)}; add it, or name another one with 'before'."
            )
        for position, (name, notebook) in enumerate(self.notebooks.items()):
            if "profile" in notebook.parameters:
                raise ValueError(f"notebook {name}: the parameter 'profile' is set by the run; remove it.")
            for upstream in notebook.upstream:
                if upstream not in names[:position]:
                    raise ValueError(
                        f"notebook {name} reads from {upstream!r}, which is not one of the notebooks before it: "
                        f"{', '.join(names[:position]) or 'there are none'}."
                    )
        return self

    @property
    def pictures_recipe(self) -> TrainingConfig:
        """The recipe of the network for pictures: the shared one, with what its section states."""
        return replace(self.training.recipe, **(self.pictures.recipe if self.pictures else {}))

    def notebook(self, name: str) -> dict[str, Value]:
        """The parameters of a notebook, ``profile`` included; ValueError for one that the profile does not have."""
        return {"profile": self.name, **self.section(name).parameters}

    def section(self, name: str) -> Notebook:
        """Everything that the profile says of one notebook; ValueError for an unknown one."""
        require_known(f"profile {self.name!r} has no notebook", name, self.notebooks)
        return self.notebooks[name]

    @property
    def shared(self) -> dict[str, Any]:
        """What all notebooks share, as plain values: data, model, training, sampling."""
        return self.model_dump(mode="json", include={"data", "model", "training", "pictures", "sampling"})


def names() -> list[str]:
    """The profiles of this checkout."""
    return sorted(path.stem for path in (paths.root() / "profiles").glob("*.yaml"))


def path(name: str) -> Path:
    """The file of a profile; ValueError for a name that is none, naming those there are."""
    require_known("unknown profile", name, names())
    return paths.root() / "profiles" / f"{name}.yaml"


def load(name: str) -> Profile:
    """Read and check ``profiles/NAME.yaml``.

    Raises:
        ValueError: for an unknown profile, and for one that is wrong, with ``file:line`` of every mistake.
    """
    profile = documents.load(path(name), Profile)
    if profile.name != name:
        raise documents.DocumentError(
            f"{path(name)}:1: name is {profile.name!r}; it must be that of the file, {name!r}."
        )
    return profile
