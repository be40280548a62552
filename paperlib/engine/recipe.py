"""How a network is trained, as values: the recipe, and what a run is known by.

The *key* of a run is a hash of all that decides what comes of it: network, starting weights, loss, data, recipe, as
plain values, and :data:`VERSION`, the number of the computation.  What is at its default is left out, so that a new
field renames no run.  The *course* of a run is the same without the number of steps: a longer run goes on where a
shorter one of its course stopped.
"""

import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from paperlib import models
from paperlib.checks import NotNegative, NotNegativeInt, Positive, PositiveInt, require_parameters
from paperlib.engine.data import ImageData
from paperlib.files import json_sha256
from paperlib.models import ConditionedNetwork
from paperlib.models.weights import tensors_sha256
from paperlib.objectives import WeightedLoss

Precision = Literal["fp32", "bf16"]

VERSION = 1
"""Number of the computation that turns a configuration into weights.  To be raised, by hand, by whoever changes it or a
default of a recipe, loss or network: tests/test_fingerprints.py fails until then, and says how."""

HOUSEKEEPING = ("accumulate", "workers", "checkpoint_every", "keep_states", "extendable", "log_every")
"""Fields of a recipe that say how a machine gets through it, and not what comes of it."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Args:
        steps: optimiser steps.
        batch_size: images a step, over all processes and micro-batches.
        learning_rate: of AdamW, after warm-up.
        weight_decay: of AdamW; with none it is Adam.
        betas: of AdamW, the decays of the moments of the gradient.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        ema_decays: decays of the moving averages of the weights, a step; the first is the one that is evaluated.
        grad_clip: largest norm of the gradient (of the loss scaled to order one, see :func:`loss_scale`).
        label_dropout: probability with which a label is replaced by the null class.
        horizontal_flip: whether every second picture, by chance, is mirrored.
        accumulate: micro-batches that a process divides its part of a step into; the gradient is that of the whole.
        seed: of everything that training draws; the initialisation of the network has its own.
        precision: "fp32", or "bf16" for automatic mixed precision.
        weights_precision: type of the weights in the finished files.
        checkpoint_every: steps between states.
        keep_states: states to keep.
        extendable: whether the last state of a finished run is kept, so that more steps can go on from it.
        log_every: steps between lines of the log.
        workers: threads that fetch images ahead.

    Raises:
        ValueError: for a value out of range.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 128
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: NotNegativeInt = 50
    ema_decays: tuple[float, ...] = (0.99,)
    grad_clip: Positive = 1.0
    label_dropout: float = 0.1
    horizontal_flip: bool = False
    accumulate: PositiveInt = 1
    seed: NotNegativeInt = 0
    precision: Precision = "fp32"
    weights_precision: Precision = "bf16"
    checkpoint_every: PositiveInt = 1000
    keep_states: PositiveInt = 2
    extendable: bool = False
    log_every: PositiveInt = 50
    workers: NotNegativeInt = 0

    def __post_init__(self) -> None:
        require_parameters(self)
        for name in ("ema_decays", "betas", "label_dropout"):
            value = getattr(self, name)
            if not all(0 <= share < 1 for share in ([value] if isinstance(value, float | int) else value)):
                raise ValueError(f"{name} must lie in [0, 1), got {value!r}.")
        for name in ("precision", "weights_precision"):
            if getattr(self, name) not in get_args(Precision):
                raise ValueError(f"{name} must be fp32 or bf16, got {getattr(self, name)!r}.")
        if len(self.betas) != 2 or not self.ema_decays or len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(
                f"betas must be two numbers and ema_decays one or more different ones, got {self.betas!r} and "
                f"{self.ema_decays!r}."
            )

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …"""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))

    def micro_batch(self, processes: int) -> int:
        """Images of one micro-batch of one of so many processes.

        Raises:
            ValueError: when the batch does not divide.
        """
        size, rest = divmod(self.batch_size, processes * self.accumulate)
        if rest:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of processes × accumulate = {processes} × "
                f"{self.accumulate}: all micro-batches have the same size."
            )
        return size


def loss_scale(loss: WeightedLoss, dimensions: int) -> float:
    """½ D ∫ w dλ, the loss of a network that predicts ε = 0 and so has an error of D at every level.

    Dividing by it changes no optimum, and makes the clipping of gradients mean the same for every weighting.
    """
    grid = torch.linspace(*loss.schedule.ends, 4001, dtype=torch.float64)
    return 0.5 * dimensions * torch.trapezoid(loss.weighting(grid), grid).item()


# What a run is known by ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunKey:
    """What a run is known by, two hashes in hex: of everything, and of everything but the number of steps."""

    key: str
    course: str


def run_key(network: ConditionedNetwork, loss: WeightedLoss, data: ImageData, config: TrainingConfig) -> RunKey:
    """The key of a run from what it is given, before it begins; :data:`HOUSEKEEPING` and processes are no part of it.

    A network on the meta device stands for the one that :func:`models.build` makes elsewhere.

    Raises:
        ValueError: when a part cannot be told from another by plain values.
    """
    training = _stated(config, whole=False)
    course = {
        "version": VERSION,
        "network": _network(network),
        "loss": {part: _stated(getattr(loss, part), whole=False) for part in ("weighting", "schedule", "prediction")},
        "data": {"sha256": data.sha256, "levels": data.levels},
        "training": {name: value for name, value in training.items() if name not in (*HOUSEKEEPING, "steps")},
    }
    return RunKey(json_sha256([course, config.steps]), json_sha256(course))


def describe(
    network: ConditionedNetwork, loss: WeightedLoss, data: ImageData, config: TrainingConfig
) -> dict[str, Any]:
    """The configuration of a run for people and for :func:`weights.load`: plain values, none left out."""
    return {
        "network": getattr(network, "config", None) or {"name": type(network).__qualname__},
        "initial_seed": getattr(network, "initial_seed", None),
        "loss": {part: _stated(getattr(loss, part)) for part in ("weighting", "schedule", "prediction")},
        "data": {name: value for name, value in data.provenance().items() if value not in ("", None)},
        "training": {name: value for name, value in asdict(config).items() if name not in HOUSEKEEPING},
    }


def _stated(value: Any, whole: bool = True) -> Any:
    """A value as JSON holds it: of an object, the name of its class and what it was made with.

    Args:
        value: a number, a string, a tensor, a collection, or an object whose attributes are named as the parameters of
            its class.
        whole: also what is at its default.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and not whole else value
    if isinstance(value, Tensor | list | tuple):
        items = value.tolist() if isinstance(value, Tensor) else value
        return [_stated(item, whole) for item in items] if isinstance(items, list | tuple) else _stated(items, whole)
    if isinstance(value, Mapping):
        return {str(name): _stated(item, whole) for name, item in value.items()}
    made_of = {} if inspect.isroutine(value) else inspect.signature(type(value)).parameters
    if inspect.isroutine(value) or any(not hasattr(value, name) for name in made_of):
        raise ValueError(
            f"{value!r} cannot be told from another by the values that it is made of, so its run could not be found "
            f"again. Write it as a frozen dataclass with its formula, as those in paperlib.weightings are."
        )
    found = {name: _stated(getattr(value, name), whole) for name in made_of}
    if not whole:
        found = {name: item for name, item in found.items() if item != _default(made_of[name])} | _code({type(value)})
    return {"name": type(value).__name__, **found}


def _default(parameter: inspect.Parameter) -> Any:
    """The default of a parameter as :func:`_stated` has it; for one without, what equals nothing."""
    return object() if parameter.default is parameter.empty else _stated(parameter.default, whole=False)


def _network(network: nn.Module) -> dict[str, Any]:
    """What a network is, and how its weights begin: by the seed of :func:`models.build`, or their hash."""
    config = dict(getattr(network, "config", {}))
    if config:
        taken = inspect.signature(models.MODELS[config["name"]]).parameters
        stated = {name: _stated(value, whole=False) for name, value in config.items()}
        made = {name: value for name, value in stated.items() if name not in taken or value != _default(taken[name])}
    else:
        made = {"name": type(network).__qualname__, "modules": str(network), "holds": _held(network)}
    seed = getattr(network, "initial_seed", None)
    as_built = seed is not None and next(network.parameters()).is_meta
    if not as_built:
        weights = tensors_sha256(network.state_dict())
        as_built = seed is not None and weights == tensors_sha256(models.build(**config, seed=seed).state_dict())
    start = {"seed": seed} if as_built else {"weights": weights}
    return made | _code({type(module) for module in network.modules()}) | start


def _held(network: nn.Module) -> list[Any]:
    """What the modules of a network hold besides parameters and one another: plain values, and the hash of buffers."""
    found: list[Any] = [tensors_sha256(dict(network.named_buffers()))]
    for place, module in network.named_modules():
        for name, value in sorted(vars(module).items()):
            if name[0] != "_" and name != "training":
                with suppress(ValueError, TypeError):  # what is no plain value
                    found.append([place, name, _stated(value)])
    return found


def _code(classes: set[type]) -> dict[str, Any]:
    """What else tells classes from others: nothing for paperlib's own and torch's, see :data:`VERSION`.

    Of a user's class, and those that it inherits from, it is the attribute ``version``, or else a hash of its source.
    """
    found = {}
    known = {"paperlib", "torch", *sys.stdlib_module_names} - {"builtins"}  # where a class typed in would be
    for kind in {base for each in classes for base in each.__mro__} - {object}:
        if kind.__module__.split(".")[0] not in known:
            try:
                found[kind.__qualname__] = getattr(kind, "version", None) or json_sha256(inspect.getsource(kind))
            except (OSError, TypeError) as error:
                raise ValueError(
                    f"the source of {kind.__qualname__} cannot be read, so a run with it could not be told from one "
                    f"with another. Give the class an attribute: version = 1."
                ) from error
    return {"code": found} if found else {}
