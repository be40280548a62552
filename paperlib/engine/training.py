r"""Training on the weighted loss.

One step: a batch of images, low-discrepancy times and noise, the weighted loss :math:`L_w`, its gradient clipped, AdamW
with linear warm-up, and exponential moving averages (EMA) of the weights, which are what is saved and evaluated:

.. math:: \bar\theta_1 = \theta_1, \quad \bar\theta_n = \beta\,\bar\theta_{n-1} + (1 - \beta)\,\theta_n.

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
    other-1a2b3c4d/               what lay here of another run, or was finished before this one went on
"""

import json
import math
import os
import signal
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from paperlib.adaptive import AdaptiveSchedule
from paperlib.checks import at_least_float32
from paperlib.engine import checkpoint
from paperlib.engine.data import Batch, ImageData, batch_indices, batches, scale
from paperlib.engine.interruption import Interrupted, StopSignals, TrainingInterrupted
from paperlib.engine.parallel import Engine, EngineName, Group, choose, require_equal
from paperlib.engine.randomness import Draws, noise, seed_dropout
from paperlib.engine.recipe import RunKey, TrainingConfig, describe, loss_scale, run_key
from paperlib.files import BusyError, damaged, file_sha256, held, write_text
from paperlib.models import ConditionedNetwork, weights
from paperlib.objectives import LossParts, WeightedLoss

WEIGHTS, LOG, CARD, FAILURE, STATES = "weights.safetensors", "log.jsonl", "MODEL_CARD.md", "failure.json", "states"

COUNTED = ("step", "seconds", "loss_sum", "loss_count", "history")
"""What a run counts as it goes."""

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


class Trainer:
    """A run in memory: network, averages, optimiser, and what happens in a step.

    Args:
        network: what is trained, in place; its device is where everything happens, unless there are several processes.
        loss: the weighted loss.  An adaptive schedule in it starts anew, and learns.
        data: what is trained on.
        config: how.
        engine: "single", "ddp" or "fsdp", see :mod:`paperlib.engine.parallel`; "auto" is "ddp" under ``torchrun``.

    Raises:
        ValueError: when network and data do not fit, the batch does not divide, or parameters have two names.
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
        if network.image_shape != data.image_shape or network.num_classes not in (0, data.num_classes):
            raise ValueError(
                f"the network takes {network.image_shape} images of {network.num_classes} classes, "
                f"{data.name} has {data.image_shape} of {data.num_classes}."
            )
        name, group = choose(engine, next(network.parameters()).device)
        self.micro_batch = config.micro_batch(group.size)
        share = self.micro_batch * config.accumulate
        require_equal(network, group)
        self.network, self.loss, self.config, self.group = network, loss, config, group
        if group.device.type != "cpu" and data.images.nbytes <= RESIDENT_BYTES:
            images, labels = data.images.to(group.device), data.labels.to(group.device)
            data = replace(data, images=images, labels=labels).known_as(data.sha256)
        self.data, self.examples = data, range(group.rank * share, (group.rank + 1) * share)  # of the global batch
        self.engine = Engine(name, network, group, config.precision)
        self.adaptive = loss.schedule if isinstance(loss.schedule, AdaptiveSchedule) else None
        if self.adaptive is not None:  # what it learned elsewhere is no part of the run
            self.adaptive.load_state_dict(replace(self.adaptive).state_dict())
        self.parameters = dict(network.named_parameters())
        self.dtype = next(network.parameters()).dtype
        if shared := dict(network.named_parameters(remove_duplicate=False)).keys() - self.parameters.keys():
            raise ValueError(
                f"{', '.join(sorted(shared))}: these parameters are others by a second name, of which averages and "
                f"files would keep different values; call the one module from both places in forward instead."
            )
        self.averages = {  # finer than weights of bfloat16, of which a thousandth would change nothing
            decay: {name: _finely(parameter).clone() for name, parameter in self.parameters.items()}
            for decay in config.ema_decays
        }
        self.optimiser = torch.optim.AdamW(
            network.parameters(), config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=True
        )
        for parameter in network.parameters():  # as AdamW would at its first step, for a state to be read into
            self.optimiser.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=group.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.scale = loss_scale(loss, data.images[0].numel())
        self.step, self.seconds, self.loss_sum, self.loss_count = 0, 0.0, 0.0, 0
        self.history: list[dict[str, float]] = []
        self.signals, self.stop = StopSignals(patient=group.size > 1), 0
        self.batches = self._batches()

    def advance(self) -> None:
        """Take one step.

        Raises:
            TrainingDivergedError: when loss or gradient is not finite; the weights are those before the step.
        """
        config, device, batch = self.config, self.group.device, next(self.batches)
        draws = Draws.of(config.seed, self.step, config.batch_size, at_least_float32(self.dtype)).to(device)
        seed_dropout(config.seed, self.step, self.group.rank, device)
        self.optimiser.zero_grad(set_to_none=True)
        done: list[LossParts] = []
        for start in range(0, len(batch), self.micro_batch):
            here = slice(start, start + self.micro_batch)
            place = self.examples[here]  # in the global batch
            t, flip, drop = (drawn[place.start : place.stop] for drawn in draws)
            x, label = scale(batch.images[here], self.data.levels, self.dtype), None
            if config.horizontal_flip:
                x = torch.where(flip[:, None, None, None], x.flip(-1), x)
            if null := self.network.num_classes:
                label = batch.labels[here].masked_fill(drop < config.label_dropout, null)
            eps = noise(config.seed, self.step, place, x.shape[1:], device=device, dtype=self.dtype)
            with self.engine.accumulating(last=here.stop == len(batch)):
                parts = self.loss(self.engine.predict, x, t=t, eps=eps, label=label)
                (parts.mean() / (config.accumulate * self.scale)).backward()
            done.append(parts)
        parts = _joined(done)
        loss, grad_norm, self.stop = self._agree(parts.loss, self.engine.clip(config.grad_clip))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingDivergedError(self._failure(batch, parts, loss, grad_norm))

        if self.adaptive is not None:
            self.adaptive.update(parts.logsnr, parts.weighted_error, self.group.sum)
        self.optimiser.param_groups[0]["lr"] = config.learning_rate_at(self.step)
        self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            now = [_finely(tensor) for tensor in _local(self.parameters)]
            for decay, average in self.averages.items():  # each process averages what it holds
                update = get_ema_multi_avg_fn(decay if self.step > 1 else 0.0)
                update(_local(average), now, self.step)
        self._note(loss, grad_norm)

    def _batches(self) -> Iterator[Batch]:
        """The images of this process, from the step that is next."""
        config, mine = self.config, slice(self.examples.start, self.examples.stop)
        steps = range(self.step, config.steps)
        indices = (batch_indices(config.seed, step, config.batch_size, len(self.data))[mine] for step in steps)
        return batches(self.data, indices, self.group.device, config.workers)

    def _agree(self, loss: Tensor, grad_norm: Tensor) -> tuple[float, float, int]:
        """Mean loss (nats), norm of the gradient before clipping, and the signal to stop by (0 for none).

        Over all processes, in one exchange.
        """
        asked = [float(self.signals.received == number) for number in (signal.SIGTERM, signal.SIGINT)]
        mean = loss.double().sum() / self.config.batch_size
        told = torch.stack([mean, *(mean.new_full((), value) for value in asked)])
        loss_mean, terminated, interrupted, norm = torch.cat([self.group.sum(told), grad_norm.double()[None]]).tolist()
        stop = signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0
        return loss_mean, norm, int(stop)

    def _note(self, loss: float, grad_norm: float) -> None:
        """Have the log grow where a line is due."""
        self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
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

    def _failure(self, batch: Batch, parts: LossParts, loss: float, grad_norm: float) -> dict[str, Any]:
        """What is recorded of a step whose loss or gradient was not finite, from all processes."""
        bad = ~torch.isfinite(parts.loss)
        found = self.group.gather((parts.logsnr[bad].tolist(), batch.index[bad].tolist(), batch.index.tolist()))
        levels, images, whole = (list(chain(*part)) for part in zip(*found, strict=True))
        told = {"step": self.step, "loss": str(loss), "grad_norm": str(grad_norm)}
        return {**told, "logsnr": levels, "images": images, "batch": whole}

    # Its state -------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the run by name, themselves and no copies: a state is read into them."""
        found = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for decay, average in self.averages.items():
            found |= {f"average.{decay}.{name}": tensor for name, tensor in average.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimiser.state[parameter].items()
            found |= {f"optimiser.{moment}.{name}": tensor for moment, tensor in moments}
        return found

    def values(self) -> dict[str, Any]:
        """All else that the run needs to go on, as plain values."""
        return {name: getattr(self, name) for name in COUNTED} | {"schedule": self.learned_schedule()}

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
        checkpoint.load_tensors(path, self.tensors(), self.group)
        vars(self).update({name: values[name] for name in COUNTED})
        if self.adaptive is not None:
            self.adaptive.load_state_dict(values["schedule"])
        self.batches = self._batches()


def _finely(tensor: Tensor) -> Tensor:
    """The values in float32 at least, without their graph; itself where they are already."""
    return tensor.detach().to(at_least_float32(tensor.dtype))


def _local(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors, or of sharded ones the part that lies here."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach() for tensor in tensors.values()]


def _joined(parts: list[LossParts]) -> LossParts:
    """The parts of several micro-batches as those of one batch, without their graphs."""
    return LossParts(**{name: torch.cat([getattr(part, name).detach() for part in parts]) for name in vars(parts[0])})


# The run -------------------------------------------------------------------------------------------------------------


def train(
    network: ConditionedNetwork,
    loss: WeightedLoss,
    data: ImageData,
    config: TrainingConfig,
    directory: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
    progress: bool = True,
    engine: EngineName = "auto",
) -> TrainResult:
    """Train a network, or go on with a run that was interrupted, or return a run that is finished.

    A run that was begun goes on for as many steps as are now asked for; one that is finished, if it was
    ``extendable``.  What lies in the folder of another configuration is moved aside, and a warning says where to.
    Under ``torchrun`` every process calls this alike; the first one writes.  An adaptive schedule in ``loss`` holds
    what it learned in this run when the run is finished.  Arguments as in :class:`Trainer`, and

    Args:
        directory: the folder of this run alone, where all processes see it.
        card: anything that the card of the weights shall say besides, for example profile, commit and licence.
        progress: show a bar.

    Raises:
        TrainingDivergedError: when loss or gradient is NaN or infinite; states written before are kept.
        TrainingInterrupted: when SIGTERM or Ctrl-C ended it in good order; the same call goes on from there.
            Interrupted, when that was in the last step, and the run is finished.
        OSError: when the folder cannot be written.
        ValueError: when network, data and loss do not fit, or the batch does not divide among the processes; when
            others train in the folder of several processes (one process waits for them); for a card that JSON does not
            hold.
    """
    for name, value in (card or {}).items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(
                f"the card's entry {name!r} goes into a file as JSON ({error}); give it as text."
            ) from None
    directory, (_, group) = Path(directory), choose(engine, next(network.parameters()).device)
    key = group.broadcast(run_key(network, loss, data, config) if group.is_first else RunKey("", ""))
    if not group.broadcast(finished_card(directory, key)):
        with _held(directory, group):
            if not group.broadcast(finished_card(directory, key)):  # others may have finished it meanwhile
                described = {**(card or {}), **describe(network, loss, data, config), **vars(key)}
                trainer = Trainer(network, loss, data, config, engine=engine)
                with torch.random.fork_rng([group.device] if group.device.type == "cuda" else []):  # for dropout
                    _begin(trainer, directory, key)
                    _run(trainer, directory, key, progress)
                _finish(trainer, directory, described)
                if stop := max(group.gather(trainer.signals.received)):
                    raise Interrupted(f"stopped by {signal.Signals(stop).name} when {directory} was finished.", stop)
    final_card = weights.load_weights(directory / WEIGHTS, network)
    if isinstance(loss.schedule, AdaptiveSchedule):
        loss.schedule.load_state_dict(final_card["learned_schedule"])
    history = read_log(directory / LOG)
    return TrainResult(network.eval(), history, final_card["seconds"], directory / WEIGHTS, final_card)


def finished_card(directory: str | Path, key: RunKey) -> dict[str, Any] | None:
    """The card of a finished run; None where there is none, or only one of another configuration.

    Raises:
        DamagedFileError: when one of its files is damaged or gone, naming it.
    """
    directory = Path(directory)
    if not (directory / WEIGHTS).is_file():
        return None
    card = weights.read_card(directory / WEIGHTS)
    if card.get("key") != key.key:
        return None
    for name, digest in card["files"].items():
        if not (directory / name).is_file() or file_sha256(directory / name) != digest:
            raise damaged(directory / name, f"the file that the card of {WEIGHTS} names (its hash differs)")
    return card


@contextmanager
def _held(directory: Path, group: Group) -> Iterator[None]:
    """Hold the folder of a run; the system lets go of it when the process ends, however it ends."""
    lock, holder, refusal = directory / ".lock", directory / ".holder", ""
    with ExitStack() as stack:
        if group.is_first:
            try:
                stack.enter_context(held(lock, refusal))
            except BusyError:
                who = holder.read_text() if holder.exists() else "another process"
                refusal = f"{directory} is being trained by {who}"
                if group.size == 1:
                    warnings.warn(f"{refusal}; waiting for it.", stacklevel=4)
                    stack.enter_context(held(lock))
                    refusal = ""
        if refusal := group.broadcast(refusal):
            raise ValueError(f"{refusal}; wait for it.")
        if group.is_first:
            write_text(holder, f"process {os.getpid()} on {socket.gethostname()}")
            stack.callback(holder.unlink, missing_ok=True)
        yield


def _begin(trainer: Trainer, directory: Path, key: RunKey) -> None:
    """Go on from the newest whole state of this course, and have the log end where it does; else begin."""
    group, found = trainer.group, checkpoint.newest_state(directory / STATES, trainer.group)
    course, step = (found[1]["course"], found[1]["step"]) if found else ("", 0)
    goes_on = course == key.course and step <= trainer.config.steps
    if group.is_first:
        _set_aside(directory, course, goes_on)
    if found and goes_on:
        trainer.restore(*found)
    if group.is_first:
        (directory / FAILURE).unlink(missing_ok=True)
        _write_log(trainer, directory)
    group.wait()


def _set_aside(directory: Path, course: str, goes_on: bool) -> None:
    """Move out of the way what is finished, or of a run from which this one does not go on, and say where to."""
    if (directory / WEIGHTS).is_file():
        course = weights.read_card(directory / WEIGHTS).get("key", "")
    elif goes_on or not course:
        return
    names = (f"other-{course[:8]}" + "-again" * times for times in count())
    aside = next(directory / name for name in names if not (directory / name).exists())
    aside.mkdir()
    kept = (LOG, CARD, FAILURE) if goes_on else (LOG, CARD, FAILURE, STATES)
    for path in (*directory.glob("weights*.safetensors"), *(directory / name for name in kept)):
        if path.exists():
            path.rename(aside / path.name)
    warnings.warn(
        f"{directory} held a finished run from which this one goes on; it is in {aside.name} now."
        if goes_on
        else f"{directory} held a run of another configuration or number of steps from which this one cannot go on (a "
        f"finished run can be extended where it was trained with extendable=True); it is in {aside.name} now, and "
        f"this run begins at step 0.",
        stacklevel=4,
    )


def _run(trainer: Trainer, directory: Path, key: RunKey, progress: bool) -> None:
    """Take the steps that are left, with log and states."""
    config, group, start = trainer.config, trainer.group, time.perf_counter() - trainer.seconds
    hidden = not (progress and group.is_first)
    trainer.network.train()
    bar = tqdm(total=config.steps, initial=trainer.step, disable=hidden, unit="step", mininterval=1.0)
    with trainer.signals, bar:
        while trainer.step < config.steps:
            lines = len(trainer.history)
            try:
                trainer.advance()
            except TrainingDivergedError as error:
                if group.is_first:
                    write_text(directory / FAILURE, json.dumps(error.record, indent=1))
                raise
            trainer.seconds = time.perf_counter() - start
            for entry in trainer.history[lines:]:
                if group.is_first:
                    with (directory / LOG).open("a", encoding="utf-8") as log:
                        log.write(json.dumps(entry) + "\n")
                bar.set_postfix(loss=f"{entry['loss']:.4g}", refresh=False)
            bar.update()
            last = trainer.step == config.steps
            if config.extendable if last else trainer.stop or trainer.step % config.checkpoint_every == 0:
                values, keep = {"course": key.course, **trainer.values()}, config.keep_states
                path = checkpoint.save_state(directory / STATES, trainer.tensors(), values, keep=keep, group=group)
                if trainer.stop and not last:
                    raise TrainingInterrupted(path, trainer.step, trainer.stop)


def _finish(trainer: Trainer, directory: Path, card: dict[str, Any]) -> None:
    """Write the averages, the first one last: where it is, the run is whole, and its card has the hash of all else."""
    config, group = trainer.config, trainer.group
    card |= {
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "final_loss": trainer.history[-1]["loss"],
        "seconds": round(trainer.seconds, 3),
        "learned_schedule": trainer.learned_schedule(),
        "torch": torch.__version__,
        "engine": {
            "name": trainer.engine.name,
            "processes": group.size,
            "micro_batch": trainer.micro_batch,
            "device": group.device.type,
        },
    }
    decays = {f"weights-{decay}.safetensors": decay for decay in config.ema_decays[1:]}
    decays = {WEIGHTS: config.ema_decays[0], **decays}
    titles = {name: f"exponential moving average, decay {decay}" for name, decay in decays.items()}
    if group.is_first:
        _write_log(trainer, directory)
        weights.write_model_card(directory / CARD, card, titles)
    for name, decay in reversed(decays.items()):
        tensors = trainer.engine.whole({**trainer.network.state_dict(), **trainer.averages[decay]})
        if group.is_first:
            others = [LOG, CARD, *list(decays)[1:]] if name == WEIGHTS else []
            hashes = {other: file_sha256(directory / other) for other in others}
            own = {"weights": titles[name], "ema_decay": decay, "files": hashes}
            dtype = torch.bfloat16 if config.weights_precision == "bf16" else None
            weights.save_weights(directory / name, tensors, card | own, dtype)
    if group.is_first and not config.extendable:
        checkpoint.remove_states(directory / STATES)
    group.wait()


def _write_log(trainer: Trainer, directory: Path) -> None:
    write_text(directory / LOG, "".join(json.dumps(entry) + "\n" for entry in trainer.history))


def read_log(path: str | Path) -> list[dict[str, float]]:
    """The lines of a log; an unfinished last line, which a killed process leaves, is left out."""
    if not Path(path).exists():
        return []
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
