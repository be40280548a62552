"""Run one notebook headlessly, through papermill, and keep what it made with its provenance.

The notebook writes to a folder under a temporary name, which replaces the earlier result only when it is whole.  A
failing cell leaves the earlier result as it was; what the failed run had made so far goes to
``.cache/<profile>/<notebook>/failed``.
"""

import argparse
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from paperlib import files
from paperlib.companion import notebooks, parameters, paths, profiles, provenance, sources
from paperlib.companion.run import OUTPUT_VARIABLE
from paperlib.companion.screen import Screen, clock, titles
from paperlib.engine.data import MissingDataError

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookFailure(RuntimeError):
    """A notebook that did not run through; the message names notebook, cell and error."""


@dataclass(frozen=True)
class Job:
    """One notebook to run.

    Args:
        profile: the profile.
        notebook: name of the notebook, without suffix.
        values: all its parameters.
        destination: the folder of the result.
        threads: threads for torch and for the numeric libraries in the notebook.
    """

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
    def section(self) -> profiles.Notebook:
        """What the profile says of the notebook."""
        return self.profile.section(self.notebook)

    @property
    def failed(self) -> Path:
        """Where a failed run leaves what it made."""
        return paths.failed(self.profile.name, self.notebook)


def plan(profile: profiles.Profile, notebook: str, threads: int | None = None) -> Job:
    """The job of one notebook, its parameters checked against its own, which hold where the profile does not name it.

    Raises:
        ValueError: for an unknown notebook, one that is not in step with its .py, and for parameters that its cell does
            not declare.
    """
    _require_in_step(notebooks.path(notebook))
    if notebook not in profile.notebooks:
        profile = profile.model_copy(update={"notebooks": {**profile.notebooks, notebook: profiles.Notebook()}})
    values = parameters.check(notebooks.path(notebook), dict(profile.notebook(notebook)))
    section = profile.section(notebook)
    return Job(profile, notebook, values, paths.local(profile.name, notebook), threads or section.threads)


def _require_in_step(path: Path) -> None:
    """Refuse a notebook whose paired .py was edited, or the other way round: the edit would not run."""
    if not (text := path.with_suffix(".py")).is_file():
        return
    pair = [[(kind, source.rstrip()) for kind, source in cells] for cells in (notebooks.cells(path), _percent(text))]
    if pair[0] != pair[1]:
        number = next((n for n, both in enumerate(zip(*pair, strict=False), 1) if both[0] != both[1]), len(pair[0]) + 1)
        raise ValueError(
            f"{path.name} and {text.name} differ, first in cell {number}; keep the one you edited with "
            f"jupytext --sync {paths.shown(path)}"
        )


def _percent(text: Path) -> list[tuple[str, str]]:
    """Kind and source of the cells of a .py in the percent format."""
    return [(cell.cell_type, cell.source) for cell in jupytext.read(text).cells]


def with_parameters(job: Job, assignments: list[str]) -> Job:
    """The job with other parameters (``["points=101"]``), its result in ``results/interactive``.

    Raises:
        ValueError: for text that is no assignment, an unknown parameter, a value of another type.
    """
    values = {**job.values, **parameters.parse(job.path, assignments)}
    destination = paths.interactive(job.profile.name, job.notebook)
    return replace(job, values=parameters.check(job.path, values), destination=destination)


def run(job: Job) -> Path:
    """Run the notebook and put its result in place.

    Returns:
        The folder of the result.

    Raises:
        FileNotFoundError: when a notebook that it reads from has no result yet.
        NotebookFailure: when a cell fails, takes too long, or the kernel dies.
        UnwritableError: when the results cannot be written, naming the folder and the remedy.
    """
    upstream = _upstream(job)
    shutil.rmtree(job.failed, ignore_errors=True)
    with files.explained(job.destination), _workplace(job) as directory, Screen(job.notebook) as screen:
        with provenance.PeakMemory() as memory:
            started = datetime.now(UTC)
            notebook = _execute(job, directory, screen)
        _save(notebook, directory / f"{job.notebook}.ipynb")
        provenance.write(directory, _facts(job, upstream, started, screen, memory.bytes))
        files.replace_directory(directory, job.destination)
        screen.say(f"done, peak memory {memory.bytes / 2**20:.0f} MB → {paths.shown(job.destination)}")
    return job.destination


def _upstream(job: Job) -> dict[str, str]:
    """Fingerprints of the results that the notebook reads, by notebook."""
    found = {name: paths.result(job.profile.name, name) for name in job.section.upstream}
    for name, folder in found.items():
        if folder is None:
            raise FileNotFoundError(
                f"{job.notebook} reads the results of {name}, which has none; "
                f"run: paperlib reproduce {job.profile.name} --only {name}"
            )
    return {name: notebooks.fingerprint(folder) for name, folder in found.items() if folder}


@contextmanager
def _workplace(job: Job) -> Iterator[Path]:
    """A folder of this process beside the destination; gone afterwards.  Those of dead processes are cleared away."""
    parent = job.destination.parent
    directory = parent / f".{job.notebook}.{os.getpid()}.part"
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f".{job.notebook}.*.part"):
        if not psutil.pid_exists(int(left.name.split(".")[-2])) or left == directory:
            shutil.rmtree(left)
    directory.mkdir()
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
            engine_name=_Engine.name,
            progress_bar=False,
            cwd=job.path.parent,
            execution_timeout=job.section.cell_timeout,
            screen=screen,
            environment=_environment(job, directory),
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
    threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # Threads that spin while they wait lose a factor of ten and more as soon as anything else runs on the machine.
    waiting = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # a reader's own may show nothing
    folders = {OUTPUT_VARIABLE: str(directory), paths.ROOT_VARIABLE: str(paths.root()), paths.PUBLISHED_VARIABLE: ""}
    return {**os.environ, **threads, **waiting, **backend, **folders}


def _save(notebook: NotebookNode, path: Path) -> None:
    """The executed notebook: progress bars as they ended, without papermill's times (the manifest has them)."""
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for holder in [notebook, *notebook.cells]:
        for key in ("papermill", "execution", "widgets"):
            holder.metadata.pop(key, None)
    files.write_whole(path, lambda temporary: nbformat.write(notebook, temporary))


def _facts(job: Job, upstream: dict[str, str], started: datetime, screen: Screen, peak: int) -> dict[str, Any]:
    return {
        "notebook": job.notebook,
        "profile": job.profile.name,
        "parameters": job.values,
        "shared": job.profile.shared,
        "data": _data(job),
        "seeds": _seeds(job),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(screen.elapsed, 1),
        "cell_seconds": screen.seconds,
        "peak_memory_bytes": peak,
        "threads": job.threads,
        "source_sha256": notebooks.source_digest(job.path),
        "library_sha256": sources.digest(notebooks.library_files(job.path)),
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


def _seeds(job: Job) -> dict[str, Any]:
    own = {name: value for name, value in job.values.items() if "seed" in name}
    return {**own, "training": job.profile.training.seeds, "sampling": job.profile.sampling.seed}


class _Client(PapermillNotebookClient):
    """papermill's client, telling a :class:`Screen` what happens."""

    def __init__(self, manager: Any, screen: Screen, **options: Any) -> None:
        super().__init__(manager, **options)
        self._screen = screen
        self._titles, self._numbers = titles(self.nb), _numbers(self.nb)

    def execute_cell(self, cell: NotebookNode, cell_index: int, *args: Any, **options: Any) -> NotebookNode:
        if cell.cell_type != "code":
            return super().execute_cell(cell, cell_index, *args, **options)
        self._screen.begin(self._numbers[cell_index], self._numbers[-1], self._titles[cell_index])
        try:
            return super().execute_cell(cell, cell_index, *args, **options)
        finally:
            self._screen.end()

    def process_message(self, *args: Any, **options: Any) -> Any:
        output = super().process_message(*args, **options)
        if output and output.output_type == "stream":
            self._screen.hear("".join(output.text))
        return output


def _numbers(notebook: NotebookNode) -> list[int]:
    """For every cell its number in the notebook as its author knows it: without the cell that papermill injects."""
    injected = ["injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells]
    return [position - sum(injected[:position]) for position in range(1, len(injected) + 1)]


class _Kernel(AsyncKernelManager):
    """A kernel of this very interpreter, whatever kernelspec of the notebook's name the machine has."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class _Engine(NBClientEngine):
    """papermill's engine with :class:`_Client`, and with an environment for the kernel alone."""

    name = "paperlib"

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        client = _Client(
            nb_man,
            options["screen"],
            kernel_name=kernel_name,
            kernel_manager_class=_Kernel,
            timeout=options["execution_timeout"],
            startup_timeout=options["start_timeout"],
        )
        return client.execute(env=options["environment"])


papermill_engines.register(_Engine.name, _Engine)


# One job of the workflow ---------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run one notebook of a profile and leave a stamp; what a rule of the Snakefile calls.

    Errors go to standard output with the rest: standard error belongs to Snakemake's log.
    """
    parser = argparse.ArgumentParser(prog="python -m paperlib.companion.runner", description=main.__doc__)
    parser.add_argument("profile")
    parser.add_argument("notebook")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--stamp", type=Path, required=True, help="written when the result is in place")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = run(plan(profiles.load(options.profile), options.notebook, options.threads))
        files.write_text(options.stamp, notebooks.fingerprint(result) + "\n")
    except (NotebookFailure, OSError, ValueError) as error:
        print(f"\n{error}\n", flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"\n{options.notebook}: interrupted; earlier results are untouched.", flush=True)
        return 130
    return 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
