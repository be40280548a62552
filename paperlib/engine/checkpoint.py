"""States of a run: all that it needs to go on, whole or not at all, on any number of processes.

A state is a folder::

    step_000001000/
        shard-00001-…safetensors   the tensors, or the part of them that the first process held; and so on
        state.json                 plain values (step, log, time, the key of the run, the adaptive schedule), size and
                                   hash of each shard, and the hash of all that

It is written under a temporary name and renamed when it is complete.  Tensors go through torch's distributed checkpoint
(DCP), which puts them together again for another number of processes, or another engine.  DCP's own format describes
them by a pickle, which can run anything when it is read; here it writes and reads safetensors instead, whose headers
hold the place of each part.  Nothing in a state is ever executed.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperlib.engine.parallel import ALONE, Group
from paperlib.files import DamagedFileError, damaged, explained, file_sha256, flush, json_sha256, write_text

FORMAT = "paperlib training state 4"
NAME = re.compile(r"step_(\d{9})")
STATE = "state.json"


def states(directory: Path) -> list[Path]:
    """The states in a folder, oldest first, whole or not."""
    return sorted(path for path in directory.glob("step_*") if path.is_dir() and NAME.fullmatch(path.name))


def remove_states(directory: Path) -> None:
    """Remove all states in a folder, and what an interrupted process left of one."""
    for path in (*states(directory), *directory.glob(".step_*")):
        shutil.rmtree(path, ignore_errors=True)


# Writing -------------------------------------------------------------------------------------------------------------


def save_state(
    directory: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, keep: int = 2, group: Group = ALONE
) -> Path:
    """Write a state and keep it and the ``keep`` − 1 before it; all processes of the group call it together.

    Args:
        directory: where states lie.
        tensors: by name; whole, or the part of this process.
        values: what JSON holds; ``values["step"]`` is the number of steps done.
        keep: states to keep; this one is, whatever is asked for.
        group: the processes.

    Raises:
        UnwritableError: when the folder cannot be written, naming it and the remedy.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    path = directory / f"step_{values['step']:09d}"
    part = directory / f".{path.name}.part"
    with explained(path), _plain_errors():
        if group.is_first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        group.wait()
        writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
        save(dict(tensors), storage_writer=writer, no_dist=group.size == 1)
        shards = group.gather({file.name: _facts(file) for file in part.glob(f"shard-{group.rank + 1:05d}-*")})
        if group.is_first:
            files = {name: facts for written in shards for name, facts in written.items()}
            state = {"format": FORMAT, "torch": torch.__version__, "processes": group.size, "files": files}
            state["values"] = dict(values)
            write_text(part / STATE, json.dumps(state | {"sha256": json_sha256(state)}, ensure_ascii=False))
            flush(part)
            _remove([path])
            part.rename(path)
            flush(directory)
            others = [state for state in states(directory) if state != path]
            _remove(others[: max(0, len(others) - keep + 1)])
    group.wait()
    return path


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


def _remove(paths: list[Path]) -> None:
    """Remove states: the name first, so that no half of one is ever taken for a state."""
    for path in paths:
        if path.exists():
            aside = path.with_name(f".{path.name}.old")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


# Reading -------------------------------------------------------------------------------------------------------------


def newest_state(directory: Path, group: Group = ALONE) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole state in a folder and its values; others are removed, with a warning that names them."""
    for path in reversed(group.broadcast(states(directory))):
        values, problem = dict[str, Any](), ""
        try:
            values = read_values(path, group.rank, group.size)
        except (DamagedFileError, FileNotFoundError) as error:
            problem = str(error)
        problems = [found for found in group.gather(problem) if found]
        if not problems:
            return path, values
        if group.is_first:
            _remove([path])
            warnings.warn(f"{problems[0]} Removed. Going back to the state before it.", stacklevel=2)
    return None


def read_values(path: Path, share: int = 0, shares: int = 1) -> dict[str, Any]:
    """The plain values of a state, once it is known to be whole.

    Args:
        path: its folder.
        share: which of its tensors' files to look into, for processes that divide the work.
        shares: into so many.

    Raises:
        FileNotFoundError: when there is no such state.
        DamagedFileError: when it is truncated, corrupt or not one that :func:`save_state` wrote.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no state {path}; see the folder for those that there are.")
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        whole = state.pop("sha256") == json_sha256(state) and state["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, "a training state") from error
    if not whole:
        raise damaged(path, f"a training state in the format {FORMAT!r}")
    if {file.name for file in path.iterdir()} != state["files"].keys() | {STATE}:
        raise damaged(path, "a training state with the files that it names")
    for name, facts in sorted(state["files"].items())[share::shares]:
        if _facts(path / name) != facts:
            raise damaged(path / name, "the part of a training state that it describes (its hash differs)")
    return state["values"]


def load_tensors(path: Path, tensors: Mapping[str, Tensor], group: Group = ALONE) -> None:
    """Read the tensors of a state into ``tensors``, in place; all processes of the group call it together.

    The state may have been written by another number of processes.  Call :func:`read_values` first.

    Raises:
        ValueError: when they are not the tensors of the state.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    try:
        with _plain_errors():
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)), no_dist=group.size == 1)
    except (AssertionError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} does not fit the run: {error}") from error


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors as they were, in whichever process, not as DCP wraps them; no advice on processes that are not there."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
