"""The runner: parameters checked, results whole, failures named, progress shown; the workflow runs what has changed."""

import contextlib
import errno
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import psutil
import pytest
import yaml
from helpers import REPOSITORY, NotebookWriter, listing, record

from paperlib import files
from paperlib.companion import (
    cli,
    compare,
    crate,
    experiments,
    notebooks,
    paths,
    profiles,
    provenance,
    runner,
    workflow,
)
from paperlib.companion.claims import Verdict
from paperlib.companion.screen import Screen
from paperlib.engine import data, training
from paperlib.models import weights

WRITES = """\
import os
from pathlib import Path

folder = Path(os.environ["PAPERLIB_OUTPUT"])
(folder / "points.txt").write_text(str(points))
print("wrote", points, "with", os.environ["OMP_NUM_THREADS"], "threads")"""


def run(notebook: str, **changes: object) -> Path:
    job = runner.plan(profiles.load("small"), notebook)
    return runner.run(replace(job, **changes))  # type: ignore[arg-type]


# Parameters ----------------------------------------------------------------------------------------------------------

TYPED = """\
profile: str = "small"
points: int = 2  # how many
width: float = 1.5
labels: list[str] = ["a", "b"]
seeds: list[int] = [0, 1]
quick: bool = False"""


def test_the_parameters_cell_is_read(write_notebook: NotebookWriter) -> None:
    path = write_notebook("01_first", parameters=TYPED)
    assert {name: annotation for name, (annotation, _) in notebooks.declared(path).items()} == {
        "profile": "str",
        "points": "int",
        "width": "float",
        "labels": "list[str]",
        "seeds": "list[int]",
        "quick": "bool",
    }
    assert notebooks.parameters(path, {"points": 5}) == {
        "profile": "small",
        "points": 5,
        "width": 1.5,
        "labels": ["a", "b"],
        "seeds": [0, 1],
        "quick": False,
    }


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pionts": 3}, "there is no parameter 'pionts'; it has profile, points, width"),
        ({"points": "3"}, "parameter 'points' must be int, got '3' (str)"),
        ({"points": 3.0}, "parameter 'points' must be int"),
        ({"points": True}, "parameter 'points' must be int"),
        ({"width": "1e-3"}, "parameter 'width' must be float, got '1e-3' (str)"),
        ({"labels": "a"}, "parameter 'labels' must be list[str]"),
        ({"seeds": [0, "x"]}, "parameter 'seeds' must be list[int]"),
        ({"quick": 1}, "parameter 'quick' must be bool"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused(write_notebook: NotebookWriter, given: dict, says: str) -> None:
    path = write_notebook("01_first", parameters=TYPED)
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        notebooks.parameters(path, given)
    assert str(caught.value).startswith("01_first.ipynb: ")


def test_a_whole_number_is_a_float(write_notebook: NotebookWriter) -> None:
    assert notebooks.parameters(write_notebook("01_first", parameters=TYPED), {"width": 2})["width"] == 2


def test_parameters_from_the_command_line(write_notebook: NotebookWriter) -> None:
    path = write_notebook("01_first", parameters=TYPED)
    given = ["points=7", "width=1e-3", "labels=['x']", "profile=other=1", "quick=True"]
    assert notebooks.parameters(path, {"points": 3}, given) == {
        "seeds": [0, 1],
        "points": 7,
        "width": 1e-3,
        "labels": ["x"],
        "profile": "other=1",
        "quick": True,
    }
    with pytest.raises(ValueError, match="no assignment"):
        notebooks.parameters(path, {}, ["points"])
    with pytest.raises(ValueError, match="must be int, got 'many'"):
        notebooks.parameters(path, {}, ["points=many"])


IMPOSSIBLE = {
    "int": [-1, 10**30, 1.5, math.nan, "many"],
    "float": [math.nan, math.inf, -math.inf, -1e30, "1e-3"],
    "str": [3, "", None],
    "list[str]": [[], ["euler"], "heun", [1]],
}
"""By type, what no parameter of any notebook may be."""


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_impossible_parameters_of_every_notebook_are_refused_before_it_runs(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """Each parameter by its name; what is stated in the notebook itself is possible."""
    monkeypatch.setenv("PAPERLIB_ROOT", str(REPOSITORY))
    profile = profiles.load("tiny")

    def plan(**given: object) -> runner.Job:
        section = profiles.Notebook.model_construct(parameters=given)
        return runner.plan(profile.model_copy(update={"notebooks": {path.stem: section}}), path.stem)

    stated, declared = plan().values, notebooks.declared(path)
    monkeypatch.setattr(notebooks, "declared", lambda _: declared)  # the files are as they were
    monkeypatch.setattr(runner, "_require_in_step", lambda _: None)
    for name, (kind, _) in declared.items():
        zero = [0] if kind in ("int", "float") and name not in ("seed", "image") else []
        reversed_range = [stated[{"min": "logsnr_max", "max": "logsnr_min"}[name[7:]]]] if "logsnr" in name else []
        for value in (*IMPOSSIBLE[kind], *zero, *reversed_range):
            with pytest.raises(ValueError, match=rf"{path.stem}\.ipynb: parameter '{name}'.* got |unknown sampler"):
                plan(**{name: value})
    rising = [pair for pair in notebooks.RISING if {*pair} <= declared.keys()]
    for low, high in rising:
        for given in ({low: stated[high]}, {high: stated[low]}, {low: stated[high], high: stated[low]}):
            with pytest.raises(ValueError, match=rf"{low} \(.*\) must be below {high} \("):
                plan(**given)
    with pytest.raises(ValueError, match="choose another one with --profile"):
        runner.plan(profile, path.stem, assignments=["profile=digits"])


def test_every_limit_is_that_of_a_parameter(repository: Path) -> None:
    files = sorted((repository / "notebooks").glob("[0-9]*.ipynb"))
    known = [{*notebooks.declared(path)} for path in files]
    assert {*notebooks.LIMITS} <= {*notebooks.TYPES}.union(*known)
    assert all(any({*pair} <= one for one in known) for pair in notebooks.RISING)


def test_a_parameter_without_a_type_is_refused(write_notebook: NotebookWriter) -> None:
    with pytest.raises(ValueError, match="parameter 'points' is annotated None; choose one of bool, int"):
        notebooks.declared(write_notebook("01_first", parameters="points = 3"))


def test_an_unknown_notebook_is_refused(write_notebook: NotebookWriter) -> None:
    write_notebook("01_first")
    with pytest.raises(ValueError, match="unknown notebook '09_none'; choose one of 01_first"):
        notebooks.path("09_none")


# One notebook --------------------------------------------------------------------------------------------------------


def test_a_notebook_is_run_and_its_result_kept_with_its_provenance(
    checkout: Path, write_notebook: NotebookWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_notebook("01_first", "# A title", WRITES)
    before = path.read_bytes()
    result = run("01_first", threads=1)
    assert result == checkout / "results" / "local" / "small" / "01_first"
    assert listing(result) == ["01_first.ipynb", "manifest.json", "points.txt"]
    assert (result / "points.txt").read_text() == "3", "the profile's parameter, not the notebook's own"
    assert listing(result.parent) == ["01_first"], "nothing temporary stays"
    assert path.read_bytes() == before

    manifest = provenance.read(result)
    assert manifest["parameters"] == {"profile": "small", "points": 3}
    assert manifest["data"]["test"] == data.load("digits", "test").provenance()
    assert manifest["seeds"]["training"] == [0]
    assert manifest["threads"] == 1
    assert manifest["seconds"] > 0
    assert manifest["peak_memory_bytes"] > 2**24
    assert provenance.verify(result) == []

    executed = nbformat.read(result / "01_first.ipynb", as_version=4)
    assert "papermill" not in json.dumps(executed.metadata)
    assert all("papermill" not in cell.metadata for cell in executed.cells)

    shown = capsys.readouterr().out
    assert "01_first  cell 3/3  A title" in shown
    assert "| wrote 3 with 1 threads" in shown


def test_the_kernel_is_this_interpreter_and_shows_pictures_whatever_the_machine_says(
    checkout: Path, write_notebook: NotebookWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = checkout / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(checkout / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    says = """\
import sys
import matplotlib.pyplot as plt
from ipykernel.kernelapp import IPKernelApp
plt.plot([1])
print(sys.executable, "in secret" if IPKernelApp.instance().curve_secretkey else "for all to hear")"""
    write_notebook("01_first", says)
    executed = nbformat.read(run("01_first") / "01_first.ipynb", as_version=4)
    outputs = executed.cells[-1].outputs
    assert f"{sys.executable} in secret" in "".join(output.get("text", "") for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_a_notebook_that_is_not_in_step_with_its_text_is_not_run(write_notebook: NotebookWriter) -> None:
    path = write_notebook("01_first", "print(points)")
    text = jupytext.writes(nbformat.read(path, as_version=4), fmt="py:percent")
    path.with_suffix(".py").write_text(text)
    runner.plan(profiles.load("small"), "01_first")
    path.with_suffix(".py").write_text(text.replace("print(points)", "print(points + 1)"))
    with pytest.raises(ValueError, match=r"01_first\.ipynb and 01_first\.py differ, first in cell 2; keep"):
        runner.plan(profiles.load("small"), "01_first")


def test_a_failing_cell_is_named_and_leaves_the_earlier_result(checkout: Path, write_notebook: NotebookWriter) -> None:
    write_notebook("01_first", WRITES)
    result = run("01_first")
    kept = provenance.read(result)
    write_notebook("01_first", "# The check", WRITES, "raise ValueError('the two sides differ')", "after = 1")
    with pytest.raises(runner.NotebookFailure) as caught:
        run("01_first")
    message = str(caught.value)
    assert "01_first failed in cell 4 of 5 (The check)" in message
    assert "ValueError: the two sides differ" in message
    assert "\x1b" not in message
    assert provenance.read(result) == kept
    assert listing(result.parent) == ["01_first"]
    failed = checkout / ".cache" / "small" / "01_first" / "failed"
    assert (failed / "points.txt").is_file()
    assert (failed / "01_first.ipynb").is_file()
    write_notebook("01_first", WRITES)
    run("01_first")
    assert not failed.exists()


def test_a_cell_that_takes_too_long_is_stopped(checkout: Path, write_notebook: NotebookWriter) -> None:
    file = checkout / "profiles" / "small.yaml"
    file.write_text(file.read_text().replace("parameters: {points: 3}", "cell_timeout: 1"))
    write_notebook("01_first", "import time; time.sleep(60)")
    with pytest.raises(runner.NotebookFailure, match=r"in cell 2 of 2(.|\n)*CellTimeoutError(.|\n)*cell_timeout"):
        run("01_first")
    assert not (checkout / "results" / "local" / "small" / "01_first").exists()


def test_a_kernel_that_dies_is_reported(write_notebook: NotebookWriter) -> None:
    write_notebook("01_first", "import os; os._exit(9)")
    with pytest.raises(runner.NotebookFailure, match=r"in cell 2 of 2(.|\n)*DeadKernelError(.|\n)*memory"):
        run("01_first")


def test_a_notebook_whose_upstream_has_no_result_is_not_run(write_notebook: NotebookWriter) -> None:
    write_notebook("02_second")
    with pytest.raises(FileNotFoundError, match="run: paperlib reproduce small --only 01_first"):
        run("02_second")


def test_left_overs_of_a_killed_run_are_cleared_away(checkout: Path, write_notebook: NotebookWriter) -> None:
    left = checkout / "results" / "local" / "small" / ".01_first.4194999.part"
    left.mkdir(parents=True)
    write_notebook("01_first", "pass")
    run("01_first")
    assert not left.exists()


def test_a_results_folder_that_cannot_be_written_is_named(
    checkout: Path, write_notebook: NotebookWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notebook("01_first", "pass")
    results = checkout / "results" / "local" / "small"
    results.mkdir(parents=True)
    results.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(results, os.W_OK):
        pytest.skip("this user may write to any folder")
    with pytest.raises(OSError, match="make the folder writable"):
        run("01_first")


def test_a_disk_that_fills_up_is_named_and_nothing_half_written_stays(
    checkout: Path, write_notebook: NotebookWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_notebook("01_first", "pass")
    monkeypatch.setattr("papermill.execute.write_ipynb", full)
    with pytest.raises(files.UnwritableError, match="small/01_first: the disk is full: free some space"):
        run("01_first")
    assert listing(checkout / "results" / "local" / "small") == []


def test_a_results_folder_that_is_a_file_is_named(checkout: Path, write_notebook: NotebookWriter) -> None:
    write_notebook("01_first", "pass")
    (checkout / "results").write_text("in the way")
    with pytest.raises(OSError, match="results"):
        run("01_first")
    assert (checkout / "results").read_text() == "in the way"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "notebook"),
    [
        (".", ["notebooks/01_first.ipynb", "out.ipynb", "--cwd", "notebooks"]),
        ("notebooks", ["01_first.ipynb", "o.ipynb"]),
    ],
)
def test_papermill_alone_runs_a_notebook(
    checkout: Path, write_notebook: NotebookWriter, monkeypatch: pytest.MonkeyPatch, folder: str, notebook: list[str]
) -> None:
    """From the root and from notebooks/, without anything in the environment that says where the checkout is."""
    monkeypatch.delenv("PAPERLIB_ROOT")
    path = write_notebook("01_first", "import beside", "from paperlib import companion", USES_THE_RUN)
    path.with_name("beside.py").touch()
    command = [sys.executable, "-m", "papermill", *notebook, "-p", "points", "7"]
    done = subprocess.run(command, cwd=checkout / folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = checkout / "results" / "interactive" / "small" / "01_first"
    assert (result / "tables" / "points.csv").read_text() == "points\n7\n"
    assert nbformat.read(checkout / folder / notebook[1], as_version=4).metadata.papermill.exception is None


USES_THE_RUN = """\
import pandas as pd

run = companion.start("01_first", profile)
run.table(pd.DataFrame({"points": [points]}), "points")"""


# What a notebook uses ------------------------------------------------------------------------------------------------


def test_a_run_writes_figures_tables_and_claims(
    checkout: Path, write_notebook: NotebookWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.pyplot as plt
    import numpy as np
    import pandas as pd

    from paperlib import companion

    write_notebook("01_first")
    session = companion.start("01_first", "small")
    assert session.directory == checkout / "results" / "interactive" / "small" / "01_first"
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    session.figure(figure, "line", data=pd.DataFrame({"x": [0, 1]}), caption="A line.")
    session.figure(figure, "arrays", data={"x": np.arange(3)})
    plt.close(figure)
    session.table(pd.DataFrame({"x": [1.5]}), "numbers", caption="One number.")
    made = {path.relative_to(session.directory).as_posix() for path in session.directory.rglob("*") if path.is_file()}
    assert {f"figures/line.{suffix}" for suffix in ("svg", "png", "csv")} <= made
    assert "figures/arrays.npz" in made
    assert {"tables/numbers.csv", "tables/numbers.md"} <= made
    assert (session.directory / "figures" / "line.csv").read_text() == "x\n0\n1\n"
    assert "One number." in (session.directory / "tables" / "numbers.md").read_text()
    first = (session.directory / "figures" / "line.svg").read_bytes()
    session.figure(figure, "line")
    assert (session.directory / "figures" / "line.svg").read_bytes() == first, "the same picture is the same bytes"
    with pytest.raises(ValueError, match="no claim 'C99'"):
        session.claim("C99")
    with pytest.raises(FileNotFoundError, match="paperlib reproduce small --only 02_second"):
        session.upstream("02_second")


def test_the_evidence_of_a_run_has_every_comparison(checkout: Path, write_notebook: NotebookWriter) -> None:
    from paperlib import companion

    write_notebook("01_first")
    entry = "{place: p, statement: s, notebook: 01_first, cell: c, kind: check, tolerance: 0.1, why: w, falsifier: f, "
    (checkout / "claims.yaml").write_text("".join(f"- {entry}id: {name}}}\n" for name in ("C1", "C2", "C3")))
    session = companion.start("01_first", "small")
    session.claim("C2").check_true(True, "yes or no")
    session.claim("C1").check(1.0, 1.05, "both sides")
    session.claim("C1").falsify_below(7.0, 4.0, "broken")
    session.claim("C2").falsify_true(False, "broken too")
    reason = "a ratio of 1.3 where at most 1.1 was asked, in words that no line of 50 characters holds"
    session.claim("C3").decide(Verdict.NOT_HELD, reason)
    session.claim("C3").falsify_below(7.0, 4.0, "broken")
    assert session.evidence().reset_index().to_numpy().tolist() == [
        ["C2", "yes or no", "", "yes", ""],
        ["C2", "broken too", "", "", "no"],
        ["C1", "both sides", "relative error ≤ 0.1", "0.048", ""],
        ["C1", "broken", "at most 4", "", "7"],
        ["C3", reason, "", "NOT HELD", ""],
        ["C3", "broken", "at most 4", "", "7"],
    ]
    assert reason in session.evidence()._repr_html_(), "a notebook shows it uncut"


@pytest.mark.parametrize(
    ("notebook", "profile", "says"), [("09_none", "small", "notebook"), ("01_first", "x", "profile")]
)
def test_a_run_of_something_unknown_is_refused(
    write_notebook: NotebookWriter, notebook: str, profile: str, says: str
) -> None:
    from paperlib import companion

    write_notebook("01_first")
    with pytest.raises(ValueError, match=f"unknown {says}"):
        companion.start(notebook, profile)


def test_finished_results_are_for_readers_and_not_for_headless_runs(
    checkout: Path, write_notebook: NotebookWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paperlib import companion

    write_notebook("01_first")
    finished = checkout / "results" / "small" / "01_first"
    finished.mkdir(parents=True)
    provenance.write(finished, {})
    assert companion.start("01_first", "small").finished == finished
    assert companion.start("01_first", "small").upstream("01_first") == finished
    monkeypatch.setenv("PAPERLIB_OUTPUT", str(checkout / "elsewhere"))
    assert companion.start("01_first", "small").finished is None


# The screen ----------------------------------------------------------------------------------------------------------


def test_progress_bars_become_lines_and_silence_is_broken() -> None:
    text = io.StringIO()
    cells = [nbformat.v4.new_markdown_cell("# A\n\n## Training"), nbformat.v4.new_code_cell("train()")]
    with Screen("01_first", 5, patience=1.0, stream=text) as screen:
        for number, cell in enumerate(cells):
            screen.begin(cell, number)
        for part in ("10%\r20%\r30%", "\r100%\n", "done"):
            screen.write(part)
            screen.flush()
        screen.end()
        deadline = time.monotonic() + 10
        while "running for" not in text.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    lines = [line.split("  ", 1)[1] for line in text.getvalue().splitlines()]
    assert lines[:3] == ["cell 2/5  Training", "| 100%", "| done"]
    assert lines[3].startswith("cell 2/5  Training … running for 0:0")


def test_a_progress_bar_of_hours_is_not_kept() -> None:
    """Only its last refresh is: a million of them fill no memory, and are not looked through again and again."""
    with Screen("01_first", 1, stream=(text := io.StringIO())) as screen:
        for step in range(10_000):
            screen.write(f"\r{step:5} of 9999")
            assert len(screen._pending) < 100
        screen.write("\r")
        screen.end()
    assert text.getvalue().rstrip().endswith("| 9999 of 9999")


def test_peak_memory_includes_child_processes() -> None:
    with Screen("01_first", 1, stream=io.StringIO()) as alone:
        pass
    hold = "b = bytearray(300_000_000); b[::4096] = b[::4096]; import time; time.sleep(2)"
    with Screen("01_first", 1, stream=io.StringIO()) as both:
        subprocess.run([sys.executable, "-c", hold], check=True)
    assert both.memory > alone.memory + 280_000_000
    assert alone.memory > 10_000_000


# The workflow --------------------------------------------------------------------------------------------------------

READS = """\
import os
from pathlib import Path

root = Path(os.environ["PAPERLIB_ROOT"])
text = (root / "results" / "local" / profile / "01_first" / "points.txt").read_text()
(Path(os.environ["PAPERLIB_OUTPUT"]) / "copy.txt").write_text(text)"""


@pytest.fixture
def workplace(checkout: Path, repository: Path, write_notebook: NotebookWriter) -> Path:
    shutil.copy(repository / "Snakefile", checkout)
    write_notebook("01_first", WRITES)
    write_notebook("02_second", READS, parameters='profile: str = "small"')
    return checkout


def reproduce(only: str | None = None) -> tuple[int, set[str]]:
    """Exit code of a run, and the notebooks that it ran."""
    profile = profiles.load("small")
    before = {name: _modified(name) for name in profile.notebooks}
    with contextlib.redirect_stdout(io.StringIO()):
        code = workflow.reproduce(profile, cores=2, only=only)
    return code, {name for name in profile.notebooks if _modified(name) != before[name]}


def _modified(notebook: str) -> int:
    manifest = paths.local("small", notebook) / "manifest.json"
    return manifest.stat().st_mtime_ns if manifest.is_file() else 0


@pytest.mark.slow
def test_what_has_changed_runs_again_and_what_was_finished_is_kept(
    workplace: Path, write_notebook: NotebookWriter, capfd: pytest.CaptureFixture[str]
) -> None:
    profile = profiles.load("small")
    write_notebook("02_second", "# Check", "assert False, 'C1 FAIL'", parameters='profile: str = "small"')
    assert workflow.reproduce(profile, cores=1) == 1
    shown = capfd.readouterr().out
    assert "02_second failed in cell 3 of 3 (Check)" in shown
    assert "AssertionError: C1 FAIL" in shown
    assert [row.state for row in workflow.overview(profile)] == ["done", "failed"]

    first = workplace / "notebooks" / "01_first.ipynb"
    node = nbformat.read(first, as_version=4)
    node.cells[1].outputs = [nbformat.v4.new_output("stream", text="an output that was saved is no change")]
    nbformat.write(node, first)
    write_notebook("02_second", READS, parameters='profile: str = "small"')
    assert reproduce() == (0, {"02_second"})
    assert reproduce() == (0, set())

    file = workplace / "profiles" / "small.yaml"
    file.write_text(file.read_text().replace("points: 3", "points: 4"))
    assert reproduce() == (0, {"01_first", "02_second"})
    assert (workplace / "results" / "local" / "small" / "02_second" / "copy.txt").read_text() == "4"


@pytest.mark.slow
def test_a_profile_that_says_how_is_trained_by_jobs_before_its_notebook(
    workplace: Path, write_notebook: NotebookWriter
) -> None:
    file = workplace / "profiles" / "small.yaml"
    file.write_text(
        file.read_text().replace("notebooks:\n", "launch: {before: 07_train}\nnotebooks:\n  07_train: {}\n")
    )
    first = "from paperlib import companion\nrun = companion.start('07_train', profile)"
    there = "from paperlib.companion import experiments, profiles\none = next(experiments.grid(profiles.load(profile)))"
    write_notebook("07_train", first, f"{there}\nassert one.find(published=False)", parameters='profile: str = "small"')
    kept = next(experiments.grid(profiles.load("small"))).folder / training.WEIGHTS

    assert reproduce("07_train") == (0, {"07_train"})
    before = kept.stat().st_mtime_ns
    assert reproduce("07_train") == (0, set())
    assert kept.stat().st_mtime_ns == before, "trained once"
    file.write_text(file.read_text().replace("steps: 20", "steps: 21"))
    assert reproduce("07_train") == (0, {"07_train"})
    assert weights.read_card(kept)["training"]["steps"] == 21


def test_a_job_is_started_as_its_profile_says(checkout: Path) -> None:
    profile = profiles.load("small")
    with pytest.raises(ValueError, match="has no section 'launch'"):
        workflow.training_command(profile, "sigmoid")
    alone = profile.model_copy(update={"launch": profiles.Launch(before="01_first")})
    stated = shlex.split(workflow.training_command(alone, "sigmoid"))
    assert stated[:6] == ["-m", "paperlib", "train", "small", "--arm", "sigmoid"]
    many = profile.model_copy(update={"launch": profiles.Launch(before="01_first", gpus=8, engine="fsdp")})
    arguments = shlex.split(workflow.training_command(many, "sigmoid"))
    assert arguments[:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8", "-m", "paperlib"]
    assert arguments[-2:] == ["--engine", "fsdp"]


def test_a_stamp_goes_with_its_result(workplace: Path) -> None:
    profile, folder = profiles.load("small"), paths.local("small", "01_first")
    stamp = workplace / workflow.stamp("small", "01_first")
    for spoil in (lambda: shutil.rmtree(folder), lambda: provenance.write(folder, {})):
        folder.mkdir(parents=True, exist_ok=True)
        provenance.write(folder, {})
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(notebooks.fingerprint(folder) + "\n")
        workflow._forget_missing(profile)
        assert stamp.exists()
        (folder / "new").touch()
        spoil()
        workflow._forget_missing(profile)
        assert not stamp.exists()


def test_parameters_are_checked_before_anything_runs(workplace: Path) -> None:
    file = workplace / "profiles" / "small.yaml"
    file.write_text(file.read_text().replace("points: 3", "pionts: 3"))
    with pytest.raises(ValueError, match=r"01_first\.ipynb: there is no parameter 'pionts'; it has profile, points"):
        workflow.reproduce(profiles.load("small"), cores=1)
    assert not (workplace / "results").exists()


def test_data_are_looked_for_before_anything_runs(workplace: Path) -> None:
    file = workplace / "profiles" / "small.yaml"
    stated = yaml.safe_load(file.read_text())
    stated["data"] = {"name": "cifar10", "root": str(workplace / "nowhere")}
    file.write_text(yaml.safe_dump(stated))
    with pytest.raises(data.MissingDataError, match="nowhere"):
        workflow.reproduce(profiles.load("small"), cores=1)
    assert not (workplace / "results").exists()


def test_one_profile_is_reproduced_once_at_a_time(workplace: Path) -> None:
    profile = profiles.load("small")
    with (
        files.held(paths.cache("small") / "lock", ""),
        pytest.raises(files.BusyError, match="being reproduced by another process"),
    ):
        workflow.reproduce(profile, cores=1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["reproduce", "small", "--cores", "1"], "the same command goes on"),
        (["run", "01_first", "--profile", "small"], "what was finished is kept"),
    ],
    ids=["reproduce", "run"],
)
def test_a_run_that_is_asked_to_stop_leaves_nobody_behind(
    workplace: Path, write_notebook: NotebookWriter, number: signal.Signals, words: list[str], says: str
) -> None:
    started = workplace / "started"
    write_notebook(
        "01_first",
        f"import os, pathlib, time; pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(600)",
    )
    command = [sys.executable, "-m", "paperlib", *words]
    heard = partial(signal.signal, number, signal.SIG_DFL)  # what a script starts with & ignores Ctrl-C
    process = subprocess.Popen(
        command, cwd=workplace, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    deadline = time.monotonic() + 90
    while not (started.is_file() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = psutil.Process(int(started.read_text()))
    children = [kernel, *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert says in message
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    with files.held(paths.cache("small") / "lock", "somebody holds it still"):
        pass


def finished(workplace: Path, name: str, verdict: str) -> None:
    """A notebook that has run, with the verdict on one claim."""
    folder = paths.local("small", name)
    (folder / "claims").mkdir(parents=True)
    (folder / "claims" / "C1.json").write_text(record("C1", verdict))
    provenance.write(folder, {"seconds": 1.0})
    stamp = workplace / workflow.stamp("small", name)
    stamp.parent.mkdir(parents=True)
    stamp.write_text(notebooks.fingerprint(folder) + "\n")


def test_a_failed_claim_fails_the_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles.load("small")
    for name, verdict in (("01_first", "PASS"), ("02_second", "VACUOUS")):
        finished(workplace, name, verdict)
    assert [row.failed for row in workflow.overview(profile)] == [False, True]
    table = workflow.report(profile)
    assert "1 PASS" in table
    assert "1 VACUOUS" in table
    monkeypatch.setattr(workflow, "_snakemake", lambda *_: 0)
    monkeypatch.setattr(crate, "write", lambda _: None)
    assert workflow.reproduce(profile, cores=1) == 1


@pytest.mark.parametrize(("snakemake", "outside", "plain", "strict"), [(0, 0, 0, 0), (0, 1, 0, 1), (1, 0, 1, 1)])
def test_the_exit_code_of_reproduce(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, snakemake: int, outside: int, plain: int, strict: int
) -> None:
    for name in ("01_first", "02_second"):
        finished(workplace, name, "PASS")
    monkeypatch.setattr(workflow, "_snakemake", lambda *_: snakemake)
    monkeypatch.setattr(crate, "write", lambda _: None)
    compared = compare.results
    monkeypatch.setattr(
        compare, "results", lambda *_: SimpleNamespace(text=compared(*_).text, outside=["a table"] * outside)
    )
    assert cli.main(["reproduce", "small", "--cores", "1"]) == plain
    assert cli.main(["reproduce", "small", "--cores", "1", "--strict"]) == strict
