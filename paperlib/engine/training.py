r"""Training on the weighted loss.

One step: a batch of images, low-discrepancy times and noise, the weighted loss :math:`L_w`, its gradient clipped, AdamW
with linear warm-up, and an exponential moving average (EMA) of the weights, which is what is saved and evaluated.

All that is random in step n is drawn from a generator seeded by (seed, n), and the order of the images by (seed,
epoch).  A run that was interrupted therefore goes on from its last state as if nothing had happened: on a CPU its
weights equal those of an uninterrupted run to the bit.

A folder holds one run::

    log.jsonl             a line for every `log_every` steps
    weights.safetensors   when the run is finished: the EMA weights and their card
    states/               until then: what it needs to go on
    failure.json          when the loss was not finite: step, levels and images
"""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from paperlib.checks import require_positive
from paperlib.engine import checkpoints
from paperlib.engine.data import ImageData, scale
from paperlib.models import ConditionedNetwork
from paperlib.objectives import LossParts, WeightedLoss

Precision = Literal["fp32", "bf16"]


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient was NaN or infinite.

    Args:
        record: step, loss, gradient norm, the log-SNR and index of each image whose loss was not finite, the batch.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        levels = ", ".join(f"{level:.2f}" for level in record["logsnr"][:4]) or "none (only the gradient)"
        super().__init__(
            f"step {record['step']}: loss {record['loss']}, gradient norm {record['grad_norm']}; not finite at log-SNR "
            f"{levels}. Lower the learning rate, or narrow the range of log-SNR. The record is in failure.json; states "
            f"written before are kept."
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Args:
        steps: optimiser steps.
        batch_size: images a step.
        learning_rate: of AdamW, after warm-up.
        weight_decay: of AdamW.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        ema_decay: decay of the moving average of the weights, a step.
        grad_clip: largest norm of the gradient (of the loss scaled to order one, see :func:`loss_scale`).
        label_dropout: probability with which a label is replaced by the null class.
        seed: of everything that training draws; the initialisation of the network has its own.
        precision: "fp32", or "bf16" for automatic mixed precision.
        weights_precision: type of the weights in the finished file.
        checkpoint_every: steps between states.
        keep_states: states to keep.
        log_every: steps between lines of the log.

    Raises:
        ValueError: for a value out of range.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 50
    ema_decay: float = 0.99
    grad_clip: float = 1.0
    label_dropout: float = 0.1
    seed: int = 0
    precision: Precision = "fp32"
    weights_precision: Precision = "bf16"
    checkpoint_every: int = 1000
    keep_states: int = 2
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "learning_rate",
            "grad_clip",
            "checkpoint_every",
            "keep_states",
            "log_every",
        ):
            require_positive(name, getattr(self, name))
        for name in ("weight_decay", "warmup_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)!r}.")
        for name in ("ema_decay", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}.")
        for name in ("precision", "weights_precision"):
            if getattr(self, name) not in ("fp32", "bf16"):
                raise ValueError(f"{name} must be fp32 or bf16, got {getattr(self, name)!r}.")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …"""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        network: the network that was given, holding the EMA weights of the finished file, in evaluation mode.
        history: the log, one dictionary a line: step, loss (nats), grad_norm, learning_rate, seconds.
        seconds: time spent in training, over all sessions of the run.
        weights: the finished file.
        card: what it says of itself.
    """

    network: ConditionedNetwork
    history: list[dict[str, float]]
    seconds: float
    weights: Path
    card: dict[str, Any] = field(repr=False)


# Randomness ----------------------------------------------------------------------------------------------------------


def seeded(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose seed is a hash of ``key``: streams for different keys have nothing to do with each other."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> Tensor:
    """Images of step 0, 1, …: the data in a new random order every epoch, epochs following on without a gap.

    Returns:
        Indices below ``size``, shape (batch_size,).
    """
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = range(int(position[0]) // size, int(position[-1]) // size + 1)
    order = torch.cat([torch.randperm(size, generator=seeded(seed, "epoch", epoch)) for epoch in epochs])
    return order[position - epochs[0] * size]


# What identifies a run -----------------------------------------------------------------------------------------------


def describe(
    network: ConditionedNetwork, loss: WeightedLoss, data: ImageData, config: TrainingConfig
) -> dict[str, Any]:
    """All that a run depends on, as plain values; the card of its weights begins with it.

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
        "training": asdict(config),
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


# The run -------------------------------------------------------------------------------------------------------------


class Trainer:
    """A run in memory: network, average, optimiser, and what happens in a step.

    Args:
        network: what is trained, in place; its device is where everything happens.
        loss: the weighted loss.
        data: what is trained on, kept on that device.
        config: how.

    Raises:
        ValueError: when network and data do not fit.
    """

    def __init__(
        self, network: ConditionedNetwork, loss: WeightedLoss, data: ImageData, config: TrainingConfig
    ) -> None:
        if network.image_shape != data.image_shape or network.num_classes not in (0, data.num_classes):
            raise ValueError(
                f"the network takes {network.image_shape} images of {network.num_classes} classes, "
                f"{data.name} has {data.image_shape} of {data.num_classes}."
            )
        self.network, self.loss, self.data, self.config = network, loss, data, config
        self.device = next(network.parameters()).device
        self.images, self.labels = data.images.to(self.device), data.labels.to(self.device)
        self.ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.optimiser = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scale = loss_scale(loss, data.images[0].numel())
        self.step, self.seconds, self.loss_sum, self.loss_count = 0, 0.0, 0.0, 0
        self.history: list[dict[str, float]] = []

    def advance(self) -> None:
        """Take one step.

        Raises:
            TrainingDivergedError: when loss or gradient is not finite; the weights are those before the step.
        """
        index, parts = self._evaluate()
        self.optimiser.zero_grad(set_to_none=True)
        (parts.mean() / self.scale).backward()
        grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip)
        loss = parts.mean().item()
        if not (torch.isfinite(parts.loss).all() and torch.isfinite(grad_norm)):
            raise TrainingDivergedError(self._failure(index, parts, grad_norm))
        self.optimiser.param_groups[0]["lr"] = self.config.learning_rate_at(self.step)
        self.optimiser.step()
        self.ema.update_parameters(self.network)
        self.step, self.loss_sum, self.loss_count = self.step + 1, self.loss_sum + loss, self.loss_count + 1
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            self._log(grad_norm.item())

    def _evaluate(self) -> tuple[Tensor, LossParts]:
        """The images of this step and the loss on them."""
        config = self.config
        index = batch_indices(config.seed, self.step, config.batch_size, len(self.data)).to(self.device)
        generator = seeded(config.seed, "step", self.step, device=self.device)
        x = scale(self.images[index], self.data.levels)
        label = self._drop_labels(self.labels[index], generator)
        return index, self.loss(self._predict, x, generator=generator, label=label)

    def _drop_labels(self, label: Tensor, generator: torch.Generator) -> Tensor | None:
        if self.network.num_classes == 0:
            return None
        drop = torch.rand(label.shape, generator=generator, device=self.device) < self.config.label_dropout
        return label.masked_fill(drop, self.network.num_classes)

    def _predict(self, z: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = self.network(z, logsnr, label)
        return output.float()

    def _log(self, grad_norm: float) -> None:
        self.history.append(
            {
                "step": self.step,
                "loss": self.loss_sum / self.loss_count,
                "grad_norm": grad_norm,
                "learning_rate": self.config.learning_rate_at(self.step - 1),
                "seconds": round(self.seconds, 3),
            }
        )
        self.loss_sum, self.loss_count = 0.0, 0

    def _failure(self, index: Tensor, parts: LossParts, grad_norm: Tensor) -> dict[str, Any]:
        """What is recorded of a step whose loss or gradient was not finite."""
        bad = ~torch.isfinite(parts.loss)
        return {
            "step": self.step,
            "loss": str(parts.mean().item()),
            "grad_norm": str(grad_norm.item()),
            "logsnr": parts.logsnr[bad].tolist(),
            "images": index[bad].tolist(),
            "batch": index.tolist(),
        }

    def state(self) -> dict[str, Any]:
        """All that the run needs to go on."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "history": self.history,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        for name in ("step", "seconds", "loss_sum", "loss_count"):
            setattr(self, name, state[name])
        self.history = list(state["history"])
        for name in ("network", "ema", "optimiser"):
            getattr(self, name).load_state_dict(state[name])


def train(
    network: ConditionedNetwork,
    loss: WeightedLoss,
    data: ImageData,
    config: TrainingConfig,
    directory: Path,
    *,
    card: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a network, or go on with a run that was interrupted, or return a run that is finished.

    Args:
        network: what is trained, in place.
        loss: the weighted loss.
        data: what is trained on.
        config: how.
        directory: the folder of this run alone.  A run of another configuration in it is started anew: its states are
            removed, its finished weights replaced when this run finishes.
        card: anything that the card of the weights shall say besides, for example a licence.
        progress: show a bar.

    Raises:
        TrainingDivergedError: when loss or gradient is NaN or infinite; states written before are kept.
        OSError: when the folder cannot be written.
        ValueError: when network, data and loss do not fit.
    """
    description = describe(network, loss, data, config)
    key = run_key(description)
    weights = directory / "weights.safetensors"
    if not _is_finished(weights, key):
        trainer = Trainer(network, loss, data, config)
        _resume(trainer, directory, key)
        _run(trainer, directory, key, progress)
        _finish(trainer, directory, {**(card or {}), **description, "key": key})
    final_card = checkpoints.load_weights(weights, network)
    history = read_log(directory / "log.jsonl")
    return TrainResult(network.eval(), history, final_card["seconds"], weights, final_card)


def _is_finished(weights: Path, key: str) -> bool:
    if not weights.exists():
        return False
    found = checkpoints.read_card(weights).get("key")
    if found != key:
        warnings.warn(
            f"{weights} is of another configuration (key {str(found)[:8]}, now {key[:8]}); it is replaced when this "
            f"run finishes.",
            stacklevel=3,
        )
    return found == key


def _resume(trainer: Trainer, directory: Path, key: str) -> None:
    """Restore the newest whole state of this run, and have the log end where it does."""
    state = checkpoints.latest_state(directory / "states")
    if state is not None and state["key"] == key:
        trainer.restore(state)
    else:
        _remove_states(directory)
    (directory / "failure.json").unlink(missing_ok=True)
    lines = "".join(json.dumps(entry) + "\n" for entry in trainer.history)
    checkpoints.write_bytes(directory / "log.jsonl", lines.encode())


def _run(trainer: Trainer, directory: Path, key: str, progress: bool) -> None:
    config, start = trainer.config, time.perf_counter() - trainer.seconds
    bar = tqdm(total=config.steps, initial=trainer.step, disable=not progress, unit="step", mininterval=1.0)
    trainer.network.train()
    with bar, (directory / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.step < config.steps:
            lines = len(trainer.history)
            try:
                trainer.advance()
            except TrainingDivergedError as error:
                checkpoints.write_bytes(directory / "failure.json", json.dumps(error.record, indent=1).encode())
                raise
            trainer.seconds = time.perf_counter() - start
            for entry in trainer.history[lines:]:
                log.write(json.dumps(entry) + "\n")
                log.flush()
                bar.set_postfix(loss=f"{entry['loss']:.4g}", refresh=False)
            bar.update()
            if trainer.step % config.checkpoint_every == 0 and trainer.step < config.steps:
                checkpoints.save_state(directory / "states", {"key": key, **trainer.state()}, config.keep_states)


def _finish(trainer: Trainer, directory: Path, card: dict[str, Any]) -> None:
    """Write the EMA weights, then remove the states, which nobody needs any more."""
    card |= {
        "weights": f"exponential moving average, decay {trainer.config.ema_decay}",
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "final_loss": trainer.history[-1]["loss"],
        "seconds": round(trainer.seconds, 3),
        "torch": torch.__version__,
    }
    dtype = torch.bfloat16 if trainer.config.weights_precision == "bf16" else None
    checkpoints.save_weights(directory / "weights.safetensors", trainer.ema.module, card, dtype)
    _remove_states(directory)


def _remove_states(directory: Path) -> None:
    for path in checkpoints.states(directory / "states"):
        path.unlink(missing_ok=True)


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log; an unfinished last line, which a killed process leaves, is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
