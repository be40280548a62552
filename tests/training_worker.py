"""Training in real processes, for tests: started by ``torchrun``, or forked here and killed.

    torchrun --nproc-per-node 2 tests/training_worker.py together FOLDER
    torchrun --nproc-per-node 2 --max-restarts 1 tests/training_worker.py restarted FOLDER
    python tests/training_worker.py killed FOLDER

The runs that several processes share are listed in :data:`RUNS`; the tests do the same ones alone and compare.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paperlib import models, predictions, schedules, weightings
from paperlib.adaptive import AdaptiveSchedule
from paperlib.engine import checkpoint, data, training
from paperlib.engine.training import Trainer, TrainingConfig, TrainingDivergedError, TrainingInterrupted
from paperlib.models import ConditionedNetwork
from paperlib.objectives import WeightedLoss

CONFIG = TrainingConfig(
    steps=12,
    batch_size=32,
    warmup_steps=3,
    ema_decays=(0.6, 0.9),
    checkpoint_every=100,
    log_every=1,
    horizontal_flip=True,
    weights_precision="fp32",
)
STOP = 5
"""Step after which a run that is interrupted is interrupted."""


@dataclass(frozen=True)
class Trial:
    """A run that is done by one process and by two.

    Args:
        model: name of its network.
        engine: of the two processes.
        changes: to :data:`CONFIG`.
        adaptive: whether its schedule is adaptive.
    """

    model: str
    engine: training.EngineName
    changes: dict[str, Any]
    adaptive: bool = False

    @property
    def config(self) -> TrainingConfig:
        """Its recipe."""
        return replace(CONFIG, **self.changes)

    def train(self, directory: Path, **options: Any) -> training.TrainResult:
        """Train it."""
        return training.train(
            network(self.model), loss(self.adaptive), DIGITS, self.config, directory, progress=False, **options
        )


RUNS = {
    "mlp-ddp": Trial("mlp", "ddp", {}),
    "mlp-fsdp": Trial("mlp", "fsdp", {}),
    "unet-ddp": Trial("unet", "ddp", {"steps": 6}),
    "unet-fsdp": Trial("unet", "fsdp", {"steps": 6}),
    "accumulated-ddp": Trial("mlp", "ddp", {"accumulate": 2}),
    "accumulated-fsdp": Trial("mlp", "fsdp", {"accumulate": 4}),
    "adaptive-ddp": Trial("mlp", "ddp", {}, adaptive=True),
    "uvit-fsdp": Trial("uvit", "fsdp", {"steps": 6}),
    "bf16-uvit-fsdp": Trial("uvit", "fsdp", {"precision": "bf16", "steps": 6}),
    "bf16-ddp": Trial("unet", "ddp", {"precision": "bf16", "steps": 6}),
    "bf16-fsdp": Trial("unet", "fsdp", {"precision": "bf16", "steps": 6}),
}
DIGITS = data.load("digits", "train")


def network(name: str = "mlp", seed: int = 0) -> ConditionedNetwork:
    """A small network without dropout."""
    options: dict[str, dict[str, Any]] = {
        "mlp": {"width": 16, "hidden": 24, "blocks": 2},
        "unet": {"channels": 8, "blocks": 1, "head_channels": 8},
        "uvit": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "transformer_blocks": 2, "head_channels": 8},
    }
    return models.build(name, image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, seed=seed, **options[name])


def loss(adaptive: bool = False) -> WeightedLoss:
    """A weighted loss, with a schedule of its own."""
    schedule = AdaptiveSchedule(-10, 10, decay=0.9) if adaptive else schedules.Cosine(-10, 10)
    return WeightedLoss(weightings.Sigmoid(2.0), schedule, predictions.V)


def before_step(step: int, action: Callable[[], object]) -> None:
    """Do something in this process just before the step with this number, once."""
    advance, pending = Trainer.advance, [action]

    def advance_after(trainer: Trainer) -> None:
        if pending and trainer.step == step:
            pending.pop()()
        advance(trainer)

    Trainer.advance = advance_after  # type: ignore[method-assign]


# Two processes -------------------------------------------------------------------------------------------------------


def together(folder: Path) -> None:
    """All that two processes do together, in one start; what they note goes to notes-<rank>.json."""
    notes: dict[str, Any] = {"rank": (rank := int(os.environ["RANK"]))}
    for name, trial in RUNS.items():
        trial.train(folder / name, engine=trial.engine)
    for engine in ("ddp", "fsdp"):
        RUNS[f"mlp-{engine}"].train(folder / f"begun-alone-{engine}", engine=engine)
        notes[f"stopped {engine}"] = _stopped(RUNS[f"mlp-{engine}"], folder / f"begun-together-{engine}", engine, rank)
    notes["diverged"] = _diverged(folder / "diverged", rank)
    notes["unequal"] = _unequal(folder / "unequal", rank)
    (folder / f"notes-{rank}.json").write_text(json.dumps(notes))


def _stopped(trial: Trial, directory: Path, engine: training.EngineName, rank: int) -> list[object]:
    """The second process alone is asked to stop; both must."""
    if rank == 1:
        before_step(STOP - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        trial.train(directory, engine=engine)
    except TrainingInterrupted as stop:
        return [stop.path.name, stop.step, stop.signal]
    return []


def _diverged(directory: Path, rank: int) -> dict[str, Any]:
    """The loss of one image of the second process is not a number; both must stop, and say which."""
    broken = network()
    if rank == 1:

        def spoil(module: object, arguments: object, output: torch.Tensor) -> torch.Tensor:
            return output.index_fill(0, torch.tensor([3]), float("nan"))

        broken.register_forward_hook(spoil)
    try:
        training.train(broken, loss(), DIGITS, CONFIG, directory, progress=False)
    except TrainingDivergedError as error:
        return error.record
    return {}


def _unequal(directory: Path, rank: int) -> str:
    """The networks of the processes differ."""
    try:
        training.train(network(seed=rank), loss(), DIGITS, CONFIG, directory, progress=False)
    except ValueError as error:
        return str(error)
    return ""


def restarted(folder: Path) -> None:
    """The second process is killed once; ``torchrun`` starts both again, and they go on by themselves.

    The first is there first, and must not take what the dead one left in torchrun's store for the second.
    """
    first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_start and os.environ["RANK"] == "1":
        before_step(8, lambda: os.kill(os.getpid(), signal.SIGKILL))
    trial = replace(RUNS["mlp-ddp"], changes={"checkpoint_every": 3})
    if not first_start:
        found = checkpoint.newest_state(folder / "run" / "states")
        (folder / f"found-{os.environ['RANK']}").write_text(str(found and found[0]))
        time.sleep(2.0 * int(os.environ["RANK"]))
    trial.train(folder / "run")


# A process that is killed ---------------------------------------------------------------------------------------------


def killed(folder: Path, kills: int = 8) -> None:
    """One run undisturbed, one killed at random moments, one asked to stop by both signals.

    Processes are forked from one that has torch loaded and has not computed anything.
    """
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # which imports for seconds
    config = replace(CONFIG, steps=300, checkpoint_every=7)
    dice, record = random.Random(0), []
    _fork(folder / "whole", config)
    for _ in range(kills):
        status = _fork(folder / "killed", config, signal.SIGKILL, dice.randint(1, 20), dice.uniform(0, 0.015))
        kept = checkpoint.states(folder / "killed" / "states")
        record.append({"status": status, "kept": int(kept[-1].name[5:]) if kept else 0})
    record.append({"status": _fork(folder / "killed", config)})
    config = replace(config, checkpoint_every=1000)  # all states are those of signals
    asked = [_fork(folder / "asked", config, number, 20) for number in (signal.SIGTERM, signal.SIGINT)]
    asked.append(_fork(folder / "asked", config))
    begun = {name: _beginnings(folder / name) for name in ("killed", "asked")}
    (folder / "record.json").write_text(json.dumps({"killed": record, "asked": asked, "begun": begun}))


def _fork(directory: Path, config: TrainingConfig, number: int = 0, steps: int = 0, delay: float = 0.0) -> int:
    """Train in a forked process and send it a signal so many steps and seconds after it began; its exit status."""
    before = len(_beginnings(directory))
    process = os.fork()
    if process == 0:
        os._exit(_child(directory, config))
    if number:
        _wait(process, lambda: len(_beginnings(directory)) > before)
        _wait(process, lambda: _steps(directory) >= _beginnings(directory)[-1] + steps)
        time.sleep(delay)
        os.kill(process, number)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _child(directory: Path, config: TrainingConfig) -> int:
    """Train, noting the step at which it begins; 0 when finished, 128 + signal when stopped, 2 for a warning."""
    warnings.simplefilter("error")
    try:
        _note_beginning(directory)
        training.train(network(), loss(), DIGITS, config, directory, progress=False)
    except TrainingInterrupted as stop:
        return 128 + stop.signal
    except Exception as error:
        print(repr(error), file=sys.stderr, flush=True)
        return 2
    return 0


def _beginnings(directory: Path) -> list[int]:
    """The steps at which training in a folder began, each time that it did."""
    noted = directory.with_name(f"{directory.name}-begun.txt")
    return [int(line) for line in noted.read_text().split()] if noted.exists() else []


def _note_beginning(directory: Path) -> None:
    """Have the step at which training begins added to a file beside the run."""
    advance, noted = Trainer.advance, directory.with_name(f"{directory.name}-begun.txt")

    def advance_noting(trainer: Trainer) -> None:
        with noted.open("a") as file:
            file.write(f"{trainer.step}\n")
        Trainer.advance = advance  # type: ignore[method-assign]
        advance(trainer)

    Trainer.advance = advance_noting  # type: ignore[method-assign]


def _steps(directory: Path) -> int:
    """Steps done, as the log has it."""
    return len((directory / "log.jsonl").read_text().splitlines())


def _wait(process: int, condition: Callable[[], bool]) -> None:
    """Return when the condition holds, or the process has ended."""
    while not condition() and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)


if __name__ == "__main__":
    {"together": together, "restarted": restarted, "killed": killed}[sys.argv[1]](Path(sys.argv[2]))
