r"""Training on the weighted loss.

One step: a batch of images, low-discrepancy times and noise, the weighted loss :math:`L_w`, its gradient clipped, AdamW
with linear warm-up, and exponential moving averages (EMA) of the weights, which are what is saved and evaluated.

All that is random in step n follows from (seed, n) and the place of an example in the batch, and the order of the
images from (seed, epoch): see :mod:`paperlib.engine.randomness`.  A run that was interrupted therefore goes on from its
last state as if nothing had happened: on a CPU its weights equal those of an uninterrupted run to the bit.  And N
processes with a batch of B/N each follow one process with B, up to the order in which floating-point numbers are added,
as long as the network itself draws nothing (dropout).

A folder holds one run::

    log.jsonl                     a line for every `log_every` steps
    weights.safetensors           when the run is finished: the weights of the first average, and their card
    weights-0.9999.safetensors    those of each further one, by its decay
    MODEL_CARD.md                 the card for people
    states/                       until then: what it needs to go on
    failure.json                  when the loss was not finite: step, levels and images
"""

import json
import math
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from paperlib.adaptive import AdaptiveSchedule
from paperlib.checks import at_least_float32
from paperlib.engine import checkpoints, states
from paperlib.engine.averages import MovingAverages
from paperlib.engine.batching import Batch, batch_indices, batches
from paperlib.engine.distributed import Group
from paperlib.engine.files import write_text
from paperlib.engine.images import ImageData, scale
from paperlib.engine.interruption import StopSignals, TrainingInterrupted
from paperlib.engine.parallel import EngineName, Single, choose, require_equal
from paperlib.engine.randomness import Draws, noise, seed_dropout, seeded
from paperlib.engine.recipe import TrainingConfig, describe, loss_scale, run_key
from paperlib.models import ConditionedNetwork
from paperlib.objectives import LossParts, WeightedLoss

__all__ = [
    "TrainResult",
    "Trainer",
    "TrainingConfig",
    "TrainingDivergedError",
    "TrainingInterrupted",
    "batch_indices",
    "describe",
    "loss_scale",
    "read_log",
    "run_key",
    "seeded",
    "train",
]

WEIGHTS, LOG, CARD, FAILURE = "weights.safetensors", "log.jsonl", "MODEL_CARD.md", "failure.json"

RESIDENT_BYTES = 2**30
"""Data up to this size are kept on the GPU."""


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
class TrainResult:
    """A finished run.

    Attributes:
        network: the network that was given, holding the EMA weights of the finished file, in evaluation mode.  One that
            FSDP has just trained is still sharded: all processes must call it together.
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


@dataclass(frozen=True)
class Report:
    """What all processes agree on after the backward pass of a step.

    Attributes:
        loss: mean over the global batch, in nats.
        grad_norm: of the gradient of the scaled loss, before clipping.
        stop: the signal by which any of them was asked to stop; 0 for none.
    """

    loss: float
    grad_norm: float
    stop: int

    @property
    def is_finite(self) -> bool:
        """Whether the step may be taken."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Trainer:
    """A run in memory: network, averages, optimiser, and what happens in a step.

    Args:
        network: what is trained, in place; its device is where everything happens, unless there are several processes.
        loss: the weighted loss.  An adaptive schedule in it starts anew, and learns.
        data: what is trained on.
        config: how.
        engine: on how many processes, see :mod:`paperlib.engine.parallel`.

    Raises:
        ValueError: when network and data do not fit, or the batch does not divide.
    """

    def __init__(
        self,
        network: ConditionedNetwork,
        loss: WeightedLoss,
        data: ImageData,
        config: TrainingConfig,
        *,
        engine: EngineName = "auto",
    ) -> None:
        _require_fit(network, data)
        make, group = choose(engine, next(network.parameters()).device)
        self.micro_batch = config.micro_batch(group.size)
        require_equal(network, group)
        self.loss, self.data, self.config, self.group = loss, _resident(data, group.device), config, group
        self.engine: Single = make(_moved(network, make, group), group, config.precision)
        self.network = network
        self.adaptive = _restarted(loss.schedule) if isinstance(loss.schedule, AdaptiveSchedule) else None
        self.dtype = next(network.parameters()).dtype
        self.averages = MovingAverages(dict(network.named_parameters()), config.ema_decays)
        self.optimiser = torch.optim.AdamW(
            network.parameters(), config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.scale = loss_scale(loss, data.images[0].numel())
        self.step, self.seconds, self.loss_sum, self.loss_count = 0, 0.0, 0.0, 0
        self.history: list[dict[str, float]] = []
        self.signals = StopSignals(patient=group.size > 1)
        self.stop = 0
        self._stream: Iterator[Batch] | None = None

    # A step ----------------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Take one step.

        Raises:
            TrainingDivergedError: when loss or gradient is not finite; the weights are those before the step.
        """
        batch = self._fetch()
        parts = self._backward(batch)
        report = self._agree(parts.loss, self.engine.clip(self.config.grad_clip))
        if not report.is_finite:
            raise TrainingDivergedError(self._failure(batch, parts, report))
        self.optimiser.param_groups[0]["lr"] = self.config.learning_rate_at(self.step)
        self.optimiser.step()
        self.step += 1
        self.averages.update(self.step)
        if self.adaptive is not None:
            self.adaptive.update(parts.logsnr, parts.weighted_error, self.group.sum)
        self.loss_sum, self.loss_count, self.stop = self.loss_sum + report.loss, self.loss_count + 1, report.stop
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            self._log(report.grad_norm)

    def _fetch(self) -> Batch:
        """The images of this process in this step."""
        if self._stream is None:
            steps = range(self.step, self.config.steps)
            indices = (self._indices(step)[self._examples.start : self._examples.stop] for step in steps)
            self._stream = batches(self.data, indices, self.group.device, self.config.workers)
        return next(self._stream)

    def _indices(self, step: int) -> Tensor:
        return batch_indices(self.config.seed, step, self.config.batch_size, len(self.data))

    @property
    def _examples(self) -> range:
        """The part of the global batch that is this process's."""
        share = self.micro_batch * self.config.accumulate
        return range(self.group.rank * share, (self.group.rank + 1) * share)

    def _backward(self, batch: Batch) -> LossParts:
        """Accumulate the gradient of the mean over the global batch, divided by :func:`loss_scale`."""
        config, size, done = self.config, self.micro_batch, list[LossParts]()
        draws = Draws.of(config.seed, self.step, config.batch_size, at_least_float32(self.dtype))
        seed_dropout(config.seed, self.step, self.group.rank, self.group.device)
        self.optimiser.zero_grad(set_to_none=True)
        for start in range(0, len(batch), size):
            examples = self._examples[start : start + size]
            with self.engine.accumulating(last=start + size == len(batch)):
                parts = self._evaluate(
                    batch.images[start : start + size], batch.labels[start : start + size], examples, draws
                )
                (parts.mean() / (config.accumulate * self.scale)).backward()
            done.append(_detached(parts))
        return done[0] if len(done) == 1 else _joined(done)

    def _evaluate(self, images: Tensor, labels: Tensor, examples: range, draws: Draws) -> LossParts:
        """The loss of a micro-batch: the ``examples`` of the global batch."""
        device, part = self.group.device, slice(examples.start, examples.stop)
        x = scale(images, self.data.levels, self.dtype)
        if self.config.horizontal_flip:
            x = torch.where(draws.flip[part].to(device)[:, None, None, None], x.flip(-1), x)
        eps = noise(self.config.seed, self.step, examples, x.shape[1:], device=device, dtype=self.dtype)
        label = None
        if self.network.num_classes:
            dropped = (draws.drop[part] < self.config.label_dropout).to(device)
            label = labels.masked_fill(dropped, self.network.num_classes)
        return self.loss(self.engine.predict, x, t=draws.t[part].to(device), eps=eps, label=label)

    def _agree(self, loss: Tensor, grad_norm: Tensor) -> Report:
        """Loss, gradient and signals over all processes: the one exchange of a step besides gradients, one wait."""
        asked = [float(self.signals.received == number) for number in (signal.SIGTERM, signal.SIGINT)]
        mean = loss.double().sum() / self.config.batch_size
        told = torch.cat([mean[None], torch.tensor(asked, dtype=torch.float64).to(mean.device)])
        found = torch.cat([self.group.sum(told), grad_norm.double()[None]]).tolist()
        stop = signal.SIGTERM if found[1] else signal.SIGINT if found[2] else 0
        return Report(loss=found[0], grad_norm=found[3], stop=int(stop))

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

    def _failure(self, batch: Batch, parts: LossParts, report: Report) -> dict[str, Any]:
        """What is recorded of a step whose loss or gradient was not finite, from all processes."""
        bad = ~torch.isfinite(parts.loss)
        found = self.group.gather((parts.logsnr[bad].tolist(), batch.index[bad].tolist()))
        return {
            "step": self.step,
            "loss": str(report.loss),
            "grad_norm": str(report.grad_norm),
            "logsnr": [level for levels, _ in found for level in levels],
            "images": [image for _, images in found for image in images],
            "batch": self._indices(self.step).tolist(),
        }

    # Its state -------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the run by name, themselves and no copies: a state is read into them."""
        self._prepare_optimiser()
        found = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for decay, average in self.averages.values.items():
            found |= {f"average.{decay}.{name}": tensor for name, tensor in average.items()}
        for name, parameter in self.network.named_parameters():
            moments = self.optimiser.state[parameter].items()
            found |= {f"optimiser.{moment}.{name}": tensor for moment, tensor in moments}
        return found

    def values(self) -> dict[str, Any]:
        """All else that the run needs to go on, as plain values."""
        names = ("step", "seconds", "loss_sum", "loss_count", "history")
        return {name: getattr(self, name) for name in names} | {"schedule": self.learned_schedule()}

    def learned_schedule(self) -> dict[str, list[float]] | None:
        """The state of an adaptive schedule as plain values; None for any other."""
        if self.adaptive is None:
            return None
        return {name: tensor.tolist() for name, tensor in self.adaptive.state_dict().items()}

    def restore(self, path: Path, values: Mapping[str, Any]) -> None:
        """Go back to a state, in all processes together.

        Raises:
            ValueError: when it is of another network.
        """
        states.load_tensors(path, self.tensors(), self.group)
        for name in ("step", "seconds", "loss_sum", "loss_count"):
            setattr(self, name, values[name])
        self.history = list(values["history"])
        if self.adaptive is not None:
            _relearn(self.adaptive, values["schedule"])
        self._stream = None

    def _prepare_optimiser(self) -> None:
        """Have the optimiser make its moments, which it does in a step: one of no length, over no gradient."""
        if self.optimiser.state:
            return
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimiser.param_groups[0]["lr"] = 0.0
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def _require_fit(network: ConditionedNetwork, data: ImageData) -> None:
    if network.image_shape != data.image_shape or network.num_classes not in (0, data.num_classes):
        raise ValueError(
            f"the network takes {network.image_shape} images of {network.num_classes} classes, "
            f"{data.name} has {data.image_shape} of {data.num_classes}."
        )


def _resident(data: ImageData, device: torch.device) -> ImageData:
    """The data, on the GPU where they are small."""
    if device.type == "cpu" or data.images.nbytes > RESIDENT_BYTES:
        return data
    return replace(data, images=data.images.to(device), labels=data.labels.to(device), digest=data.sha256)


def _moved(network: ConditionedNetwork, engine: type[Single], group: Group) -> ConditionedNetwork:
    """The network on its device; one that is to be sharded moves block by block, when that happens."""
    return network if engine.name == "fsdp" else network.to(group.device)


def _restarted(schedule: AdaptiveSchedule) -> AdaptiveSchedule:
    """The schedule, having forgotten everything: what it learned elsewhere is not part of a run's description."""
    fresh = AdaptiveSchedule(*schedule.ends, schedule.bins, schedule.decay, schedule.floor, schedule.moment)
    schedule.load_state_dict(fresh.state_dict())
    return schedule


def _relearn(schedule: AdaptiveSchedule, learned: Mapping[str, list[float]]) -> None:
    schedule.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in learned.items()})


def _detached(parts: LossParts) -> LossParts:
    return LossParts(**{name: tensor.detach() for name, tensor in vars(parts).items()})


def _joined(parts: list[LossParts]) -> LossParts:
    """The parts of several micro-batches as those of one batch."""
    return LossParts(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


# The run -------------------------------------------------------------------------------------------------------------


def train(
    network: ConditionedNetwork,
    loss: WeightedLoss,
    data: ImageData,
    config: TrainingConfig,
    directory: Path,
    *,
    card: Mapping[str, Any] | None = None,
    progress: bool = True,
    engine: EngineName = "auto",
) -> TrainResult:
    """Train a network, or go on with a run that was interrupted, or return a run that is finished.

    Under ``torchrun`` every process calls it alike; the first one writes.

    Args:
        network: what is trained, in place.
        loss: the weighted loss; an adaptive schedule in it holds what it learned in this run when the run is finished.
        data: what is trained on.
        config: how.
        directory: the folder of this run alone, where all processes see it.  A run of another configuration in it is
            started anew: its states are removed, its finished weights replaced when this run finishes.
        card: anything that the card of the weights shall say besides, for example profile, commit and licence.
        progress: show a bar.
        engine: "single", "ddp" or "fsdp", see :mod:`paperlib.engine.parallel`; "auto" is "ddp" under ``torchrun``.

    Raises:
        TrainingDivergedError: when loss or gradient is NaN or infinite; states written before are kept.
        TrainingInterrupted: when SIGTERM or Ctrl-C ended it in good order; the same call goes on from there.
        OSError: when the folder cannot be written.
        ValueError: when network, data and loss do not fit, or the batch does not divide among the processes.
    """
    description = describe(network, loss, data, config)
    key = run_key(description)
    weights = directory / WEIGHTS
    _, group = choose(engine, next(network.parameters()).device)
    if not group.broadcast(group.is_first and _is_finished(weights, key)):
        trainer = Trainer(network, loss, data, config, engine=engine)
        with _own_generator(group.device):
            _resume(trainer, directory, key)
            _run(trainer, directory, key, progress)
        _finish(trainer, directory, {**(card or {}), **description, "key": key})
    final_card = checkpoints.load_weights(weights, network)
    if isinstance(loss.schedule, AdaptiveSchedule):
        _relearn(loss.schedule, final_card["learned_schedule"])
    history = read_log(directory / LOG)
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


@contextmanager
def _own_generator(device: torch.device) -> Iterator[None]:
    """Leave torch's own generator as it was: dropout draws from it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _resume(trainer: Trainer, directory: Path, key: str) -> None:
    """Restore the newest whole state of this run, and have the log end where it does."""
    group, folder = trainer.group, directory / "states"
    path = states.newest_state(folder, group)
    values = group.broadcast(states.read_values(path) if path and group.is_first else None)
    if path is not None and values is not None and values["key"] == key:
        trainer.restore(path, values)
    elif group.is_first:
        states.remove_states(folder)
    if group.is_first:
        (directory / FAILURE).unlink(missing_ok=True)
        write_text(directory / LOG, "".join(json.dumps(entry) + "\n" for entry in trainer.history))
    group.wait()


def _run(trainer: Trainer, directory: Path, key: str, progress: bool) -> None:
    """Take the steps that are left, with log and states."""
    config, start = trainer.config, time.perf_counter() - trainer.seconds
    shown = progress and trainer.group.is_first
    bar = tqdm(total=config.steps, initial=trainer.step, disable=not shown, unit="step", mininterval=1.0)
    trainer.network.train()
    with trainer.signals, bar:
        while trainer.step < config.steps:
            lines = len(trainer.history)
            _advance(trainer, directory)
            trainer.seconds = time.perf_counter() - start
            for entry in trainer.history[lines:]:
                _append(trainer, directory, entry)
                bar.set_postfix(loss=f"{entry['loss']:.4g}", refresh=False)
            bar.update()
            _keep_state(trainer, directory, key)


def _advance(trainer: Trainer, directory: Path) -> None:
    try:
        trainer.advance()
    except TrainingDivergedError as error:
        if trainer.group.is_first:
            write_text(directory / FAILURE, json.dumps(error.record, indent=1))
        raise


def _append(trainer: Trainer, directory: Path, entry: Mapping[str, float]) -> None:
    if trainer.group.is_first:
        with (directory / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")


def _keep_state(trainer: Trainer, directory: Path, key: str) -> None:
    """Write a state where one is due, or the run is asked to stop."""
    config = trainer.config
    if trainer.step == config.steps or not (trainer.stop or trainer.step % config.checkpoint_every == 0):
        return
    values = {"key": key, **trainer.values()}
    path = states.save_state(
        directory / "states", trainer.tensors(), values, keep=config.keep_states, group=trainer.group
    )
    if trainer.stop:
        raise TrainingInterrupted(path, trainer.step, trainer.stop)


def _finish(trainer: Trainer, directory: Path, card: dict[str, Any]) -> None:
    """Write the averages, the first one last: where it is, the run is whole.  Then nobody needs the states any more."""
    provenance = {name: value for name, value in trainer.data.provenance().items() if value not in ("", None)}
    card |= {
        "data": {**card["data"], **provenance},
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "final_loss": trainer.history[-1]["loss"],
        "seconds": round(trainer.seconds, 3),
        "learned_schedule": trainer.learned_schedule(),
        "torch": torch.__version__,
        "engine": {
            "name": trainer.engine.name,
            "processes": trainer.group.size,
            "micro_batch": trainer.micro_batch,
            "device": trainer.group.device.type,
        },
    }
    files = {_file_name(trainer.config, decay): _average_name(decay) for decay in trainer.config.ema_decays}
    if trainer.group.is_first:
        checkpoints.write_model_card(directory / CARD, card, files)
    for decay in reversed(trainer.config.ema_decays):
        own = {"weights": _average_name(decay), "ema_decay": decay}
        _write_average(trainer, decay, directory / _file_name(trainer.config, decay), card | own)
    if trainer.group.is_first:
        states.remove_states(directory / "states")
    trainer.group.wait()


def _file_name(config: TrainingConfig, decay: float) -> str:
    return WEIGHTS if decay == config.ema_decays[0] else f"weights-{decay}.safetensors"


def _average_name(decay: float) -> str:
    return f"exponential moving average, decay {decay}"


def _write_average(trainer: Trainer, decay: float, path: Path, card: Mapping[str, Any]) -> None:
    tensors = trainer.engine.whole({**trainer.network.state_dict(), **trainer.averages.values[decay]})
    if trainer.group.is_first:
        dtype = torch.bfloat16 if trainer.config.weights_precision == "bf16" else None
        checkpoints.save_weights(path, tensors, card, dtype)


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log; an unfinished last line, which a killed process leaves, is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
