"""How a network is trained, as values: the recipe, and what a run is known by."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from paperlib.checks import require_positive
from paperlib.engine.data import ImageData
from paperlib.models import ConditionedNetwork
from paperlib.objectives import WeightedLoss

Precision = Literal["fp32", "bf16"]

HOUSEKEEPING = ("accumulate", "workers", "checkpoint_every", "keep_states")
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
        log_every: steps between lines of the log.
        workers: threads that fetch images ahead.

    Raises:
        ValueError: for a value out of range.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 50
    ema_decays: tuple[float, ...] = (0.99,)
    grad_clip: float = 1.0
    label_dropout: float = 0.1
    horizontal_flip: bool = False
    accumulate: int = 1
    seed: int = 0
    precision: Precision = "fp32"
    weights_precision: Precision = "bf16"
    checkpoint_every: int = 1000
    keep_states: int = 2
    log_every: int = 50
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "learning_rate", "grad_clip"):
            require_positive(name, getattr(self, name))
        for name in ("checkpoint_every", "keep_states", "log_every"):
            require_positive(name, getattr(self, name))
        for name in ("weight_decay", "warmup_steps", "seed", "workers"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)!r}.")
        for name in ("ema_decays", "betas", "label_dropout"):
            _require_shares(name, getattr(self, name))
        for name in ("precision", "weights_precision"):
            if getattr(self, name) not in ("fp32", "bf16"):
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


def _require_shares(name: str, value: float | tuple[float, ...]) -> None:
    """Refuse what lies outside [0, 1)."""
    for share in value if isinstance(value, tuple | list) else (value,):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value!r}.")


def describe(
    network: ConditionedNetwork, loss: WeightedLoss, data: ImageData, config: TrainingConfig
) -> dict[str, Any]:
    """All that a run depends on, as plain values; the card of its weights begins with it.

    The number of processes, micro-batches and states is not part of it: a run may go on with others.

    Raises:
        ValueError: when the loss cannot be told from another by its description.
    """
    parts = {name: repr(getattr(loss, name)) for name in ("weighting", "schedule", "prediction")}
    for name, text in parts.items():
        if " at 0x" in text:
            raise ValueError(
                f"the {name} {text} is known by its address in memory alone, so its run could not be found again. "
                f"Write it as a frozen dataclass with its formula, as those in paperlib.{name}s are."
            )
    return {
        "network": getattr(network, "config", None) or _shapes(network),
        "loss": parts,
        "data": {"name": data.name, "images": len(data), "sha256": data.sha256},
        "training": {name: value for name, value in asdict(config).items() if name not in HOUSEKEEPING},
    }


def _shapes(network: nn.Module) -> dict[str, Any]:
    """What there is to say of a network that :func:`paperlib.models.build` did not make."""
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    return {"name": type(network).__name__, "shapes": shapes}


def run_key(description: Mapping[str, Any]) -> str:
    """Hash of a description: two runs of the same key are the same run."""
    text = json.dumps(description, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def loss_scale(loss: WeightedLoss, dimensions: int, points: int = 4001) -> float:
    """½ D ∫ w dλ, the loss of a network that predicts ε = 0 and so has an error of D at every level.

    Dividing by it changes no optimum, and makes the clipping of gradients mean the same for every weighting.
    """
    grid = torch.linspace(*loss.schedule.ends, points, dtype=torch.float64)
    return 0.5 * dimensions * torch.trapezoid(loss.weighting(grid), grid).item()
