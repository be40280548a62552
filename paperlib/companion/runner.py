"""Run one notebook headlessly, through papermill, and keep what it made with its provenance.

The notebook writes to a folder under a temporary name, which replaces the earlier result only when it is whole.  A
failing cell leaves the earlier result as it was; what the failed run had made so far goes to
``.cache/<profile>/<notebook>/failed``.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import zmq
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from paperlib import files
from paperlib.companion import notebooks, paths, profiles, provenance
from paperlib.companion.run import OUTPUT_VARIABLE
from paperlib.companion.screen import Screen, clock
from paperlib.engine.data import MissingDataError

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookFailure(RuntimeError):
    """A notebook that did not run through; the message names notebook, cell and error."""


@dataclass(frozen=True)
class Job:
    """One notebook to run: at which profile, with which parameters, into which folder, with how many threads."""

    profile: profiles.Profile
    notebook: str
    values: dict[str, Any]
    destination: Path
    threads: int = 1

    @property
    def path(self) -> Path:
        """The notebook's file."""
        return notebooks.path(self.notebook)

    @property
    def failed(self) -> Path:
        """Where a failed run leaves what it made."""
        return paths.failed(self.profile.name, self.notebook)


def plan(
    profile: profiles.Profile,
    notebook: str,
    threads: int | None = None,
    assignments: Iterable[str] = (),
    destination: Path | None = None,
) -> Job:
    """The job of one notebook, its parameters checked against its own, which hold where the profile does not name it.

    Args:
        profile: the profile.
        notebook: name of the notebook, without suffix.
        threads: of torch and of the numeric libraries in the notebook, instead of those that the profile states.
        assignments: parameters instead of the profile's, such as "points=101".
        destination: the folder of the result (``results/local``).

    Raises:
        ValueError: for an unknown notebook, one that is not in step with its .py, for parameters that do not fit
            (:func:`notebooks.parameters`), and for a destination that is there and no earlier result.
    """
    _require_in_step(notebooks.path(notebook))
    if notebook not in profile.notebooks:
        profile = profile.model_copy(update={"notebooks": {**profile.notebooks, notebook: profiles.Notebook()}})
    values = notebooks.parameters(notebooks.path(notebook), profile.notebook(notebook), assignments)
    if values["profile"] != profile.name:
        raise ValueError(f"{notebook} runs at the profile {profile.name!r}; choose another one with --profile.")
    target = destination or paths.local(profile.name, notebook)
    ours = target in (home(profile.name, notebook) for home in (paths.local, paths.interactive))
    if target.exists() and not (ours or (target / paths.MANIFEST).is_file()):
        raise ValueError(f"{target} is there and is no result, which a new one may replace; name another folder.")
    return Job(profile, notebook, values, target, threads or profile.section(notebook).threads)


def _require_in_step(path: Path) -> None:
    """Refuse a notebook whose paired .py was edited, or the other way round: the edit would not run."""
    if not (text := path.with_suffix(".py")).is_file():
        return
    sides = ([(cell.cell_type, cell.source.rstrip()) for cell in jupytext.read(file).cells] for file in (path, text))
    for number, (one, other) in enumerate(zip_longest(*sides), 1):
        if one != other:
            raise ValueError(
                f"{path.name} and {text.name} differ, first in cell {number}; keep the one you edited with "
                f"jupytext --sync {paths.shown(path)}"
            )


def run(job: Job) -> Path:
    """Run the notebook and put its result in place.

    Returns:
        The folder of the result.

    Raises:
        FileNotFoundError: when a notebook that it reads from has no result yet.
        NotebookFailure: when a cell fails, takes too long, or the kernel dies.
        UnwritableError: when the results cannot be written, naming the folder and the remedy.
        BusyError: when another process is at the same result.
    """
    upstream = _upstream(job)
    screen = Screen(job.notebook, len(notebooks.cells(job.path)))
    with files.explained(job.destination), _workplace(job) as directory:
        started = datetime.now(UTC)
        with screen:
            notebook = _execute(job, directory, screen)
        _save(notebook, directory / f"{job.notebook}.ipynb")
        provenance.write(directory, _facts(job, upstream, started, screen))
        files.replace_directory(directory, job.destination)
        screen.say(f"done, peak memory {screen.memory / 2**20:.0f} MB → {paths.shown(job.destination)}")
    return job.destination


def _upstream(job: Job) -> dict[str, str]:
    """Fingerprints of the results that the notebook reads, by notebook."""
    found = {}
    for name in job.profile.section(job.notebook).upstream:
        if (folder := paths.result(job.profile.name, name)) is None:
            raise FileNotFoundError(
                f"{job.notebook} reads the results of {name}, which has none; "
                f"run: paperlib reproduce {job.profile.name} --only {name}"
            )
        found[name] = notebooks.fingerprint(folder)
    return found


@contextmanager
def _workplace(job: Job) -> Iterator[Path]:
    """A folder beside the destination, held by this process; what one that was killed left there is put in order."""
    parent, name = job.destination.parent, job.destination.name
    lock = paths.cache(job.profile.name, job.notebook) / f"{files.json_sha256(str(job.destination))[:8]}.lock"
    busy = f"{paths.shown(job.destination)} is being made by another process; wait for it, or name another --output."
    with files.held(lock, busy):
        files.restore(job.destination)
        for left in (job.failed, *parent.glob(f".{name}.*.part")):
            shutil.rmtree(left, ignore_errors=True)
        directory = parent / f".{name}.{os.getpid()}.part"  # a kernel of the one that was killed may not know it yet
        directory.mkdir(parents=True)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _execute(job: Job, directory: Path, screen: Screen) -> NotebookNode:
    """Run all cells; a failure keeps the folder as ``job.failed`` and says where and what."""
    try:
        return papermill.execute_notebook(
            job.path,
            directory / f"{job.notebook}.ipynb",
            parameters=job.values,
            progress_bar=False,
            cwd=job.path.parent,
            execution_timeout=job.profile.section(job.notebook).cell_timeout,
            kernel_manager_class=_kernel(_environment(job, directory)),
            on_cell_start=screen.begin,
            on_cell_executed=screen.end,
            stdout_file=screen,
            stderr_file=screen,
            coalesce_streams=True,
        )
    except (PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        files.replace_directory(directory, job.failed)
        raise NotebookFailure(
            f"{job.notebook} failed in cell {screen.cell} of {screen.cells} ({screen.title or 'no title'}) "
            f"after {clock(screen.elapsed)}.\n{_explain(error)}\n"
            f"As far as it came: {paths.shown(job.failed)}/{job.notebook}.ipynb; earlier results are untouched."
        ) from None


def _explain(error: Exception) -> str:
    if isinstance(error, PapermillExecutionError):
        trace = ANSI.sub("", "\n".join(error.traceback)).strip().splitlines()
        return "\n".join([*trace[-25:-1], f"{error.ename}: {error.evalue}"])
    if isinstance(error, CellTimeoutError):
        return f"CellTimeoutError: {str(error).splitlines()[0]} Raise cell_timeout in the profile if it needs longer."
    return f"DeadKernelError: {error}. The process was killed, most often for want of memory."


def _environment(job: Job, directory: Path) -> dict[str, str]:
    """Variables of the kernel, besides those of this process."""
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(job.threads)),
        # Threads that spin while they wait lose a factor of ten and more as soon as anything else runs on the machine.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # a reader's own may show nothing
        OUTPUT_VARIABLE: str(directory),
        paths.ROOT_VARIABLE: str(paths.root()),
        paths.PUBLISHED_VARIABLE: "",
    }


def _kernel(environment: dict[str, str]) -> type[AsyncKernelManager]:
    """Kernels of this very interpreter, whatever kernelspec of the notebook's name the machine has.

    What is said with them is encrypted where ZeroMQ was built with CURVE, as its wheels are.
    """
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    literal = {name: value.replace("$", "$$") for name, value in environment.items()}  # it is a template
    encrypts = {"supported_encryption": "curve"}
    spec = KernelSpec(argv=argv, display_name="Python 3", language="python", env=literal, metadata=encrypts)
    encryption = "auto" if zmq.has("curve") else "disabled"
    members = {"kernel_spec": property(lambda self: spec), "transport_encryption": encryption}
    return type("Kernel", (AsyncKernelManager,), members)


def _save(notebook: NotebookNode, path: Path) -> None:
    """The executed notebook, without papermill's times: the manifest has them."""
    for holder in [notebook, *notebook.cells]:
        for key in ("papermill", "execution", "widgets"):
            holder.metadata.pop(key, None)
    files.write_whole(path, lambda temporary: nbformat.write(notebook, temporary))


def _facts(job: Job, upstream: dict[str, str], started: datetime, screen: Screen) -> dict[str, Any]:
    return {
        "notebook": job.notebook,
        "profile": job.profile.name,
        "parameters": job.values,
        "shared": job.profile.shared,
        "data": _data(job),
        "seeds": {
            **{name: value for name, value in job.values.items() if "seed" in name},
            "training": job.profile.training.seeds,
            "sampling": job.profile.sampling.seed,
        },
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(screen.elapsed, 1),
        "cell_seconds": screen.seconds,
        "peak_memory_bytes": screen.memory,
        "threads": job.threads,
        "source_sha256": notebooks.source_digest(job.path),
        "library_sha256": notebooks.digest(notebooks.library_files(job.path)),
        "upstream": upstream,
    }


def _data(job: Job) -> dict[str, Any] | None:
    """Which images the profile has, with their hashes and what must be said beside numbers measured on them.

    None where they are not there, which only a notebook that needs none survives.
    """
    try:
        return {split: job.profile.data.load(split).provenance() for split in ("train", "test")}
    except MissingDataError:
        return None
