"""Two processes train what one trains: the same curve, the same weights, whichever engine; and go on from one another.

Gloo on the CPU.  Processes are started twice in all: see ``training_worker.py`` for what they do.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import training_worker as worker
from torch import Tensor
from training_worker import DIGITS, RUNS, STOP

from paperlib.engine import checkpoint, data, parallel, training
from paperlib.engine.parallel import Group
from paperlib.engine.training import TrainingInterrupted
from paperlib.models import weights

pytestmark = pytest.mark.slow

Alone = Callable[[str], training.TrainResult]


def launch(task: str, folder: Path, *options: str) -> None:
    """Have two processes do a task of the worker."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "default"}
    script = Path(worker.__file__)
    done = subprocess.run(
        [*command, str(script), task, str(folder)],
        cwd=script.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def stop_alone(name: str, directory: Path) -> Path:
    """Begin a run in this process and stop it by Ctrl-C; the state."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training.Trainer, "advance", training.Trainer.advance)  # put back afterwards
        worker.before_step(STOP - 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(TrainingInterrupted) as stop:
            RUNS[name].train(directory)
    return stop.value.path


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done all of :data:`RUNS`, and gone on with what one had begun."""
    folder = tmp_path_factory.mktemp("together")
    for engine in ("ddp", "fsdp"):
        stop_alone(f"mlp-{engine}", folder / f"begun-alone-{engine}")
    launch("together", folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The same run by this process, done once."""
    folder = tmp_path_factory.mktemp("alone")

    def train(name: str) -> training.TrainResult:
        trial = RUNS[name]
        what = f"{trial.model}-{trial.adaptive}-{sorted((trial.changes | {'accumulate': 1}).items())}"
        return worker.Trial(trial.model, "single", trial.changes | {"accumulate": 1}, trial.adaptive).train(
            folder / what
        )

    return train


@pytest.fixture
def notes(together: Path) -> list[dict[str, Any]]:
    """What each process noted."""
    return [json.loads((together / f"notes-{rank}.json").read_text()) for rank in range(2)]


def weights_of(directory: Path, file: str = "weights.safetensors") -> dict[str, Tensor]:
    network = worker.network(weights.read_card(directory / file)["network"]["name"], seed=9)
    weights.load_weights(directory / file, network)
    return network.state_dict()


def assert_close(found: Path, wanted: Path, tolerance: float) -> None:
    """Both averages are close: as whole vectors, so that weights near zero need not be so to as many digits."""
    for file in ("weights.safetensors", "weights-0.9.safetensors"):
        a, b = (torch.cat([value.flatten() for value in weights_of(path, file).values()]) for path in (found, wanted))
        assert (a - b).norm() <= tolerance * b.norm()


def curve(directory: Path, name: str = "loss") -> list[float]:
    return [entry[name] for entry in training.read_log(directory / "log.jsonl")]


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("bf16")])
def test_two_processes_follow_the_curve_of_one(together: Path, alone: Alone, name: str) -> None:
    expected = alone(name)
    for quantity in ("loss", "grad_norm"):
        assert curve(together / name, quantity) == pytest.approx(curve(expected.weights.parent, quantity), rel=1e-6)
    assert_close(together / name, expected.weights.parent, 1e-6)
    assert weights.read_card(together / name / "weights.safetensors")["engine"]["processes"] == 2


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("bf16")])
def test_in_mixed_precision_two_processes_follow_the_curve_of_one_nearly(
    together: Path, alone: Alone, name: str
) -> None:
    expected = alone(name)
    assert curve(together / name) == pytest.approx(curve(expected.weights.parent), rel=5e-3)
    assert_close(together / name, expected.weights.parent, 1e-2)


def test_two_processes_hold_the_adaptive_schedule_of_one(together: Path, alone: Alone) -> None:
    found = weights.read_card(together / "adaptive-ddp" / "weights.safetensors")["learned_schedule"]
    expected = alone("adaptive-ddp").card["learned_schedule"]
    assert found["hits"] == expected["hits"]
    assert found["average"] == pytest.approx(expected["average"], rel=1e-6)
    assert len(set(found["average"])) > 50


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_go_on_from_a_state_of_one(together: Path, alone: Alone, engine: str) -> None:
    expected = alone("mlp-ddp").weights.parent
    assert curve(together / f"begun-alone-{engine}") == pytest.approx(curve(expected), rel=1e-6)
    assert curve(together / f"begun-alone-{engine}")[:STOP] == curve(expected)[:STOP]
    assert_close(together / f"begun-alone-{engine}", expected, 1e-6)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_one_process_goes_on_from_a_state_of_two(
    together: Path, alone: Alone, notes: list[dict[str, Any]], engine: str, tmp_path: Path
) -> None:
    """And both of the two stopped after the same step, though only the second was asked to."""
    assert [note[f"stopped {engine}"] for note in notes] == [[f"step_{STOP:09d}", STOP, signal.SIGTERM]] * 2
    begun = together / f"begun-together-{engine}"
    index = json.loads((checkpoint.states(begun / "states")[-1] / "state.json").read_text())
    assert index["processes"] == 2
    assert sum(name.startswith("shard-") for name in index["files"]) == 2
    prefix = curve(begun)
    assert len(prefix) == STOP
    RUNS["mlp-ddp"].train(begun)
    expected = alone("mlp-ddp").weights.parent
    assert curve(begun)[:STOP] == prefix
    assert curve(begun) == pytest.approx(curve(expected), rel=1e-6)
    assert_close(begun, expected, 1e-6)


def test_a_loss_that_is_not_finite_in_one_process_stops_both_and_is_recorded(
    together: Path, notes: list[dict[str, Any]]
) -> None:
    batch = data.batch_indices(0, 0, 32, len(DIGITS)).tolist()
    for note in notes:
        assert (note["diverged"]["step"], note["diverged"]["batch"]) == (0, batch)
        assert note["diverged"]["images"] == [batch[16 + 3]]  # the fourth of the second process
    assert json.loads((together / "diverged" / "failure.json").read_text()) == notes[0]["diverged"]


def test_networks_that_differ_between_processes_are_refused(notes: list[dict[str, Any]]) -> None:
    for note in notes:
        assert "build them with one seed" in note["unequal"]


def test_a_run_whose_process_is_killed_is_restarted_by_torchrun_and_goes_on(tmp_path: Path, alone: Alone) -> None:
    launch("restarted", tmp_path, "--max-restarts", "1")
    for rank in range(2):
        assert (tmp_path / f"found-{rank}").read_text().endswith("step_000000006")
    expected = alone("mlp-ddp").weights.parent
    assert curve(tmp_path / "run") == pytest.approx(curve(expected), rel=1e-6)
    assert_close(tmp_path / "run", expected, 1e-6)


# What needs no second process ----------------------------------------------------------------------------------------


def test_a_group_of_one_answers_at_once() -> None:
    group, value = Group(), torch.tensor([2.0])
    assert torch.equal(group.sum(value), torch.tensor([2.0]))
    assert (group.gather("a"), group.broadcast("b"), group.is_first, group.wait()) == (["a"], "b", True, None)


def test_engines_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    cpu = torch.device("cpu")
    assert parallel.choose("auto", cpu) == ("single", Group())
    with pytest.raises(ValueError, match="unknown engine 'dp'; choose one of auto, single, ddp, fsdp"):
        parallel.choose("dp", cpu)  # type: ignore[arg-type]
    for engine in ("ddp", "fsdp"):
        with pytest.raises(ValueError, match="start it with torchrun"):
            parallel.choose(engine, cpu)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "join", lambda: Group(1, 2))
    assert parallel.choose("auto", cpu) == ("ddp", Group(1, 2))
    assert parallel.choose("single", cpu) == ("single", Group())
