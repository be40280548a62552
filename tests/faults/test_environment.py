"""What a reader's environment says of fonts, kernels, homes and languages does not reach the results."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from helpers import NotebookWriter

from faults.conftest import ELSEWHERE, Note, functions
from paperlib.companion import cli, doctor, documents, figures, paths, profiles, provenance, runner, workflow

DRAWS = """\
import matplotlib.pyplot as plt
import pandas as pd
from paperlib import companion

run = companion.start("01_first", profile)
figure, ax = plt.subplots()
ax.plot([0, points])
ax.set_xlabel("λ (nats)")
run.figure(figure, "line", data=pd.DataFrame({"λ": [0, points]}), caption="Wie σ fällt.")
print("λ", open(run.directory / "figures" / "line.txt").encoding)"""


@pytest.mark.slow
def test_a_hostile_environment_gives_the_same_result(
    checkout: Path, write_notebook: NotebookWriter, became: Note
) -> None:
    """All at once: another kernelspec, backend and matplotlibrc, no home, no language, another order of hashes."""
    write_notebook("01_first", DRAWS)
    expected = provenance.hashes(runner.run(runner.plan(profiles.load("small"), "01_first")))
    shutil.rmtree(paths.local("small"))
    spec = checkout / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "", "language": "python"}))
    (checkout / "matplotlibrc").write_text("text.usetex: True\nfigure.dpi: 10\nsavefig.format: pdf\naxes.grid: False\n")
    hostile = {
        "HOME": "/nonexistent/home",
        "JUPYTER_PATH": str(checkout / "jupyter"),
        "LC_ALL": "C",
        "MATPLOTLIBRC": str(checkout / "matplotlibrc"),
        "MPLBACKEND": "TkAgg",
        "PYTHONHASHSEED": "5",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    command = [
        sys.executable,
        "-m",
        "paperlib",
        "run",
        "01",
        "--profile",
        "small",
        "--output",
        "results/local/small/01_first",
    ]
    done = subprocess.run(command, cwd=checkout, env=os.environ | hostile, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = provenance.hashes(paths.local("small", "01_first"))
    pictures = {name for name in expected if name.startswith("figures/")}
    assert {name: found[name] for name in pictures} == {name: expected[name] for name in pictures}
    assert not Path("/nonexistent").exists()
    assert (checkout / ".cache" / "home").is_dir()
    for what in (
        "a matplotlibrc of the reader's own (usetex, dpi, format)",
        "MPLBACKEND=TkAgg, a kernelspec that starts something else",
        "locale C, another hash seed",
    ):
        became(what, "figures and tables are the same bytes")
    became("HOME that is not there or cannot be written, as for an unknown user", "caches go below `.cache/home`")


def test_defaults_come_before_our_style() -> None:
    with mpl.rc_context({"text.usetex": True, "savefig.format": "pdf", "axes.facecolor": "red", "font.size": 30}):
        figures.use_style()
        assert not mpl.rcParams["text.usetex"]
        assert mpl.rcParams["axes.facecolor"] == mpl.rcParamsDefault["axes.facecolor"]
        assert mpl.rcParams["font.size"] == 9


@pytest.mark.parametrize("home", ["/nonexistent", None])
def test_a_user_without_a_home_gets_one_below_the_cache(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    if home:
        monkeypatch.setenv("HOME", home)
    else:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # the user has no entry either
    assert paths.home() is None
    assert not doctor._home().good
    paths.settle()
    assert os.environ["HOME"] == str(checkout / ".cache" / "home")
    assert Path(os.environ["HOME"]).is_dir()


def test_a_home_that_can_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths.settle()
    assert os.environ["HOME"] == str(tmp_path)


def test_a_result_depends_on_what_its_notebook_reads_and_on_nothing_else(
    checkout: Path, write_notebook: NotebookWriter, became: Note
) -> None:
    stated = "place: here, statement: so, cell: a, kind: check, why: so, falsifier: not so"
    ledger, lock, table = checkout / "claims.yaml", paths.lock(), checkout / "results" / "paper" / "table1.csv"
    ledger.write_text(
        f"- {{id: C1, notebook: 01_first, tolerance: 1.0e-9, {stated}}}\n"
        f"- {{id: C2, notebook: 02_second, tolerance: 1.0e-6, {stated}}}\n"
    )
    table.parent.mkdir(parents=True)
    table.write_text("1\n")
    beside = write_notebook("01_first", "import shared").with_name("shared.py")
    beside.write_text('READS = ("results/paper/*.csv",)\n')
    before = workflow.dependencies(profiles.load("small"), "01_first")

    def changed() -> set[str]:
        now = workflow.dependencies(profiles.load("small"), "01_first")
        assert now.keys() == before.keys()
        return {what for what, digest in now.items() if digest != before[what]}

    for path, old, new, what in (
        (ledger, "1.0e-9", "1.0e-30", {"claims"}),
        (ledger, "1.0e-6", "1.0e-30", set()),  # another notebook's
        (lock, "", "torch==0\n", {"files"}),
        (table, "1", "2", {"files"}),
        (beside, "", "# why\n", set()),
        (beside, "paper/*", "other/*", {"library", "files"}),
        (checkout / "profiles" / "small.yaml", "points: 3", "points: 4", {"values"}),
    ):
        kept = path.read_text()
        path.write_text(kept.replace(old, new, 1))
        assert changed() == what, (path.name, new)
        path.write_text(kept)
    (table.parent / "table2.csv").write_text("1\n")
    assert changed() == {"files"}
    became("a tolerance in claims.yaml, the lock, a published table changed", "the notebooks that read it run again")


@pytest.mark.slow
def test_the_same_checkout_under_another_interpreter_has_nothing_to_run_again(
    checkout: Path, repository: Path, write_notebook: NotebookWriter, monkeypatch: pytest.MonkeyPatch, became: Note
) -> None:
    shutil.copy(repository / "Snakefile", checkout)
    for name in ("01_first", "02_second"):
        write_notebook(name, parameters='profile: str = "small"\npoints: int = 2')
    profile = profiles.load("small")
    assert workflow.reproduce(profile, cores=1, only="01_first") == 0
    made = provenance.read(paths.local("small", "01_first"))
    other = checkout / "another" / "python"
    other.parent.mkdir()
    other.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    other.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(other))
    assert workflow.reproduce(profile, cores=1, only="01_first") == 0
    assert provenance.read(paths.local("small", "01_first")) == made
    became("the same checkout with its environment under another path", "nothing runs again")


def test_the_module_of_the_command_line_is_the_command(repository: Path, became: Note) -> None:
    command = [sys.executable, "-m", "paperlib.companion.cli"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: paperlib" in done.stderr
    became("`python -m paperlib.companion.cli`", "is the command")


def test_aliases_that_stand_for_millions_of_values_are_refused(checkout: Path, became: Note) -> None:
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)]
    path = checkout / "profiles" / "small.yaml"
    path.write_text("\n".join(["a0: &a0 [1]", *levels]))
    with pytest.raises(documents.DocumentError, match=r"small\.yaml:2: not valid YAML: an alias or a tag; write out"):
        profiles.load("small")
    became("YAML with aliases nested 9 × 9, with tags, with 3,000 brackets", "refused with file and line")


def test_doctor_says_what_would_go_wrong(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], became: Note
) -> None:
    def shown() -> dict[str, str]:
        cli.main(["doctor"])
        lines = capsys.readouterr().out.splitlines()
        return {line[4:24].strip(): line[:3].strip() + " " + line[25:] for line in lines}

    spec = checkout / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "", "language": "python"}))
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("JUPYTER_PATH", str(checkout / "jupyter"))
    monkeypatch.setenv("PAPERLIB_DATA", str(checkout / "typo"))
    network = checkout / "results" / "small" / "07_train" / "runs" / "a" / "weights.safetensors"
    network.parent.mkdir(parents=True)
    network.write_text("version https://git-lfs.github.com/spec/v1\n")
    folder = paths.published("small", "01_first")
    folder.mkdir(parents=True)
    (folder / "tables").mkdir()
    for table, runs in (("runs", "a,240\nb,60\n"), ("measured", "b,60\nc,120.0\n")):
        (folder / "tables" / f"{table}.csv").write_text(f"run,seconds\n{runs}")
    (folder / "tables" / "other.csv").write_text("weighting,seconds\na,9000\n")
    provenance.write(folder, {"notebook": "01_first", "seconds": 120.0, "peak_memory_bytes": 2**60})
    (checkout / "profiles" / "bad.yaml").write_text("name: bad")
    found = shown()
    assert found["home"].endswith(".cache/home, as yours cannot be written")
    assert found["kernel python3"].startswith("NO /bin/false")
    assert found["commit"].startswith("NO unknown")
    assert "typo, which is no folder" in found["data"]
    assert found["data"].startswith("NO ")
    assert "weights.safetensors is not weights" in found["weights"]
    assert found["profile small"].startswith(
        "NO 1 of 2 notebooks: 2 minutes one after the other, and 7 of training, one network after the other ("
    )
    assert found["profile bad"].startswith("NO cannot be read")
    became(
        "`doctor` without home, commit, data, whole weights, memory, or with another kernelspec",
        "a line each, with the remedy",
    )


def test_every_fault_that_is_tried_elsewhere_is(repository: Path) -> None:
    for _, _, test in ELSEWHERE:
        path, _, name = test.partition("::")
        assert name in functions(repository / path), test
