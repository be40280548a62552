"""Runs that are killed with −9, and runs beside one another."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import NotebookWriter, listing

from faults.conftest import Note
from paperlib import files
from paperlib.companion import crate, notebooks, paths, profiles, provenance, runner, workflow
from paperlib.engine import training

FIRST = """\
import os, time
from pathlib import Path

folder = Path(os.environ["PAPERLIB_OUTPUT"])
for number in range(20):
    (folder / f"{number}.txt").write_text(str(points) * 1000)
    time.sleep(0.02)"""
SECOND = """\
import os
from pathlib import Path

folder = Path(os.environ["PAPERLIB_OUTPUT"])
(folder / "copy.txt").write_text((folder.parent / "01_first" / "3.txt").read_text())"""


@pytest.fixture
def workplace(checkout: Path, repository: Path, write_notebook: NotebookWriter) -> Path:
    """A checkout with two notebooks, the second of which reads the first."""
    shutil.copy(repository / "Snakefile", checkout)
    write_notebook("01_first", FIRST)
    write_notebook("02_second", SECOND, parameters='profile: str = "small"')
    return checkout


def fork(work: Callable[[], object]) -> int:
    """Do it in a forked process, which has imported all; its number."""
    if process := os.fork():
        return process
    os.setsid()
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def ended(process: int) -> int:
    """Its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def make() -> None:
    """The first notebook, as ``paperlib run`` does it."""
    runner.run(runner.plan(profiles.load("small"), "01_first"))


def whole() -> bool:
    """Whether every result that is in place is whole."""
    folders = [paths.local("small", name) for name in ("01_first", "02_second")]
    return all(provenance.verify(folder) == [] for folder in folders if folder.exists())


@pytest.mark.slow
def test_a_notebook_that_is_killed_at_10_random_moments_leaves_whole_results(workplace: Path, became: Note) -> None:
    dice, place = random.Random(14), paths.local("small", "01_first")
    began = time.monotonic()
    assert ended(fork(make)) == 0
    lasts, made = time.monotonic() - began, 0
    for kill in range(10):
        before = provenance.read(place)["started"] if place.exists() else ""
        process = fork(make)
        time.sleep(dice.uniform(0, lasts))
        (os.kill if kill % 2 else os.killpg)(process, signal.SIGKILL)
        assert ended(process) in (0, -signal.SIGKILL)
        files.restore(place)
        assert whole()
        assert place.exists(), "an earlier result is never lost"
        made += provenance.read(place)["started"] != before
    assert made < 10, "some were killed before the end"
    assert ended(fork(make)) == 0
    assert whole()
    assert listing(place.parent) == ["01_first"]
    became(
        "a notebook's run killed −9 at 10 random moments, alone or with its kernel",
        "the earlier result or the new one is in place, whole; the next run clears away what was left",
    )


@pytest.mark.slow
def test_reproduce_that_is_killed_at_10_random_moments_goes_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], became: Note
) -> None:
    """Every second time alone, its children running on and holding the lock; else with all, as when a machine stops."""
    dice = random.Random(3)
    command = [sys.executable, "-m", "paperlib", "reproduce", "small", "--cores", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = workplace / ".cache" / "small" / "snakemake.log"
    refused = 0
    for kill in range(10):
        started.unlink(missing_ok=True)
        process = subprocess.Popen(command, cwd=workplace, **quiet)  # type: ignore[call-overload]
        while not started.exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 8))
        children = _stopped(process)
        process.kill()
        process.wait()
        if kill % 2 == 0 and children:
            refused += 1
            with pytest.raises(files.BusyError):
                workflow.reproduce(profiles.load("small"), cores=1)
        for child in children:
            child.kill() if kill % 2 else child.resume()
        psutil.wait_procs(children, timeout=120)
        for name in ("01_first", "02_second"):
            files.restore(paths.local("small", name))
        assert whole()
    assert refused, "some were killed while their children ran"
    (workplace / "dry").mkdir()
    (workplace / "dry" / "config.yaml").write_text("dry-run: true\n")
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(workplace / "dry"))
    capfd.readouterr()
    assert workflow.reproduce(profiles.load("small"), cores=1) == 0
    assert "manifests will name no commit: git knows none" in capfd.readouterr().err
    assert whole()
    assert crate.problems(paths.local("small")) == []
    assert listing(paths.local("small")) == ["01_first", "02_second", "ro-crate-metadata.json"]
    became(
        "`reproduce` killed −9 at 10 random moments, alone or with all its children",
        "a second one is refused as long as children run on; then the same command goes on",
    )
    became("SNAKEMAKE_PROFILE of the reader's own, which says dry-run", "ignored")
    became("git that knows no commit of the folder", "said at once, with the remedy; the manifest has null")


def _stopped(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Its children at this moment, held still until they are killed or resumed: none ends of itself meanwhile."""
    if process.poll() is not None:
        return []
    held = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.suspend()
            if child.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                held.append(child)
    return held


class Killed(BaseException):
    """Stands for the end of a process: nothing but ``finally`` runs after it."""


@pytest.mark.parametrize("operation", range(8))
def test_a_folder_whose_replacement_is_cut_short_is_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, became: Note, operation: int
) -> None:
    """The process ends before each of the file operations in turn."""
    new, old = tmp_path / "new", tmp_path / "home" / "result"
    for folder, text in ((old, "old"), (new, "new")):
        folder.mkdir(parents=True)
        (folder / "a").write_text(text)
    left = [operation]

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for module, name in ((os, "rename"), (shutil, "rmtree"), (Path, "rename"), (Path, "mkdir")):
            patched.setattr(module, name, counted(getattr(module, name)))
        with contextlib.suppress(Killed):
            files.replace_directory(new, old)
    files.restore(old)
    found = (old / "a").read_text()
    assert found in ("old", "new")
    replacement = tmp_path / "again"
    replacement.mkdir()
    (replacement / "a").write_text("newer")
    files.replace_directory(replacement, old)
    assert (old / "a").read_text() == "newer"
    assert listing(old.parent) == ["result"]
    if operation == 0:
        became("killed before any of the renames that put a result in place", "the old one or the new one, whole")


def test_two_runs_of_one_result_do_not_meet(workplace: Path, became: Note) -> None:
    job = runner.plan(profiles.load("small"), "01_first")
    make()
    kept = provenance.read(job.destination)
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with runner._workplace(job) as directory:
            inside.set()
            done.wait(60)
            assert directory.is_dir(), "nobody takes it away"

    first = threading.Thread(target=hold)
    first.start()
    inside.wait(60)
    try:
        with pytest.raises(files.BusyError, match="results/local/small/01_first is being made by another process"):
            make()
        elsewhere = runner.plan(profiles.load("small"), "01_first", destination=workplace / "elsewhere")
        with runner._workplace(elsewhere):
            pass
    finally:
        done.set()
        first.join()
    assert provenance.read(job.destination) == kept
    became("two runs of one notebook at once", "the second is refused, and may go to another folder")


def test_what_another_machine_holds_is_not_cleared_away(workplace: Path, became: Note) -> None:
    """The holder is known by its lock, not by a number of a process, which means nothing elsewhere."""
    job = runner.plan(profiles.load("small"), "01_first")
    lock = next(iter(_locks(job)))
    live = job.destination.parent / ".01_first.4194999.part"
    live.mkdir(parents=True)
    with files.held(lock, ""):
        with pytest.raises(files.BusyError):
            make()
        assert live.is_dir()
    with runner._workplace(job):
        assert not live.exists()
    became("a run of another machine on a shared disk", "its folder is left alone as long as it holds the lock")


def _locks(job: runner.Job) -> list[Path]:
    with runner._workplace(job):
        return sorted(paths.cache("small", job.notebook).glob("*.lock"))


def test_a_stamp_without_its_result_is_forgotten(workplace: Path) -> None:
    """Killed between the renames: the notebook runs again, and finds the earlier result restored."""
    make()
    place = paths.local("small", "01_first")
    files.write_text(workplace / workflow.stamp("small", "01_first"), notebooks.fingerprint(place) + "\n")
    assert workflow.finished("small", "01_first")
    place.rename(place.with_name(".01_first.old"))
    assert not workflow.finished("small", "01_first")
    make()
    assert listing(place.parent) == ["01_first"]


@pytest.mark.slow
def test_training_that_is_killed_at_12_more_random_moments(tmp_path: Path, became: Note) -> None:
    """With the 8 of tests/test_interruption.py, 20; here the whole process group, and states at every third step."""
    import training_worker as worker

    worker.torch.set_num_threads(1)
    config = worker.replace(worker.CONFIG, steps=150, checkpoint_every=3, keep_states=1)

    def train(folder: Path) -> None:
        training.train(worker.network(), worker.loss(), worker.DIGITS, config, folder, progress=False)

    began = time.monotonic()
    assert ended(fork(lambda: train(tmp_path / "whole"))) == 0
    lasts, dice = time.monotonic() - began, random.Random(7)
    for _ in range(12):
        process = fork(lambda: train(tmp_path / "killed"))
        time.sleep(dice.uniform(0, lasts / 2))
        os.killpg(process, signal.SIGKILL)
        assert ended(process) in (0, -signal.SIGKILL)
    assert ended(fork(lambda: train(tmp_path / "killed"))) == 0
    logs = [training.read_log(tmp_path / one / training.LOG) for one in ("whole", "killed")]
    assert [{**line, "seconds": 0} for line in logs[0]] == [{**line, "seconds": 0} for line in logs[1]]
    cards = [training.weights.read_card(tmp_path / one / training.WEIGHTS) for one in ("whole", "killed")]
    assert cards[0]["weights_sha256"] == cards[1]["weights_sha256"]
    became("training killed −9 at 12 random moments, with a single state kept", "the same weights and log, to the bit")
