"""A run that is killed, or asked to stop, at any moment goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import training_worker as worker

from paperlib.engine import training
from paperlib.engine.interruption import StopSignals
from paperlib.models import weights

EVERY = 7
"""Steps between states in the runs of the worker."""


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of the worker's runs, and what it noted of them."""
    folder, script = tmp_path_factory.mktemp("killed"), Path(worker.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "killed", str(folder)],
        cwd=script.parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "record.json").read_text())


def finished(directory: Path) -> tuple[list[str], list[dict[str, float]]]:
    """Hashes of all weights of a run, and its log without the clock."""
    hashes = [weights.read_card(path)["weights_sha256"] for path in sorted(directory.glob("*.safetensors"))]
    log = training.read_log(directory / "log.jsonl")
    return hashes, [{name: value for name, value in entry.items() if name != "seconds"} for entry in log]


@pytest.mark.slow
def test_a_run_that_is_killed_many_times_equals_one_that_is_not_to_the_bit(
    record: tuple[Path, dict[str, Any]],
) -> None:
    folder, notes = record
    assert [entry["status"] for entry in notes["killed"]] == [-signal.SIGKILL] * 8 + [0]
    assert finished(folder / "killed") == finished(folder / "whole")
    assert len(finished(folder / "whole")[0]) == 2


@pytest.mark.slow
def test_a_kill_costs_only_the_steps_since_the_last_state(record: tuple[Path, dict[str, Any]]) -> None:
    _, notes = record
    begun = notes["begun"]["killed"]
    assert begun == [0, *(entry["kept"] for entry in notes["killed"][:-1])]
    assert begun == sorted(begun)
    assert len(set(begun)) > 3
    assert all(step % EVERY == 0 for step in begun)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_its_state_and_equals_one_that_is_not(
    record: tuple[Path, dict[str, Any]],
) -> None:
    folder, notes = record
    assert notes["asked"] == [128 + signal.SIGTERM, 128 + signal.SIGINT, 0]
    assert finished(folder / "asked") == finished(folder / "whole")
    first, second, third = notes["begun"]["asked"]
    assert first == 0
    assert second >= 20
    assert third >= second + 20


def test_signals_are_noted_and_handlers_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as signals:
        assert signals.received == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_ends_a_process_that_is_alone_and_not_one_of_many() -> None:
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    try:
        with StopSignals(patient=True):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pytest.fail("the second Ctrl-C was not waited for")


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    handlers: list[object] = []

    def enter() -> None:
        with StopSignals():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


def test_every_signal_is_passed_on_where_asked() -> None:
    told: list[int] = []
    with StopSignals(patient=True, tell=lambda: told.append(signals.received)) as signals:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert told == [signal.SIGINT, signal.SIGINT, signal.SIGTERM]
