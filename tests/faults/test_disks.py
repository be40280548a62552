"""Disks that are full or read-only, real ones: small file systems in memory, which only root may make."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import training_worker as worker
from helpers import NotebookWriter, listing

from faults.conftest import Note
from paperlib import files
from paperlib.companion import paths, profiles, provenance, runner
from paperlib.engine import training

Disk = Callable[[Path, str], None]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """``disk(folder, options)`` mounts one there, or mounts it anew with other options."""
    mounted: list[Path] = []

    def mount(folder: Path, options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        again = "remount," if folder in mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        with suppress(FileNotFoundError):
            if os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0:
                mounted.append(folder)
                return
        pytest.skip("only root may make a file system, and not everywhere")

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_notebook_on_a_full_or_read_only_disk(
    checkout: Path, write_notebook: NotebookWriter, disk: Disk, became: Note
) -> None:
    home = paths.local("small")
    disk(home, "size=1m")
    write_notebook(
        "01_first",
        "import os, pathlib",
        "pathlib.Path(os.environ['PAPERLIB_OUTPUT'], 'a').write_bytes(bytes(2**points))",
    )
    job = runner.plan(profiles.load("small"), "01_first", assignments=["points=10"])
    kept = provenance.hashes(runner.run(job))
    with pytest.raises(files.UnwritableError, match="small/01_first: the disk is full: free some space"):
        runner.run(runner.plan(profiles.load("small"), "01_first", assignments=["points=22"]))
    assert provenance.hashes(job.destination) == kept
    disk(home, "size=1m,ro")
    with pytest.raises(files.UnwritableError, match="the file system is read-only: choose a folder"):
        runner.run(job)
    assert provenance.hashes(job.destination) == kept
    disk(home, "size=1m,rw")
    runner.run(job)
    assert listing(home) == ["01_first"]
    became(
        "a disk that fills up while a notebook writes", "named, with the remedy; the earlier result stays; run again"
    )
    became("a read-only disk", "named, with the remedy; the earlier result stays")


def test_training_on_a_disk_that_fills_up_goes_on_where_there_is_room(tmp_path: Path, disk: Disk, became: Note) -> None:
    config = worker.replace(worker.CONFIG, steps=12, checkpoint_every=2)

    def train(folder: Path) -> training.TrainResult:
        return training.train(worker.network(), worker.loss(), worker.DIGITS, config, folder, progress=False)

    small = tmp_path / "small"
    disk(small, "size=200k")
    with pytest.raises(files.UnwritableError, match="the disk is full: free some space and run again"):
        train(small / "run")
    disk(small, "size=20m,ro")
    with pytest.raises(files.UnwritableError, match="the file system is read-only"):
        train(small / "run")
    disk(small, "size=20m,rw")
    assert train(small / "run").card["weights_sha256"] == train(tmp_path / "whole").card["weights_sha256"]
    became(
        "a disk that fills up or is read-only in training",
        "named, with the remedy; goes on, to the bit, once there is room",
    )
