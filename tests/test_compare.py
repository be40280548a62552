"""Published results and a run made here: kept apart, compared, and exchanged only on purpose."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import FACTS, NotebookWriter, listing, record
from matplotlib import pyplot
from PIL import Image

from paperlib import files
from paperlib.companion import compare, crate, notebooks, paths, profiles, provenance, workflow
from tools import pictures, publish, repeat

NUMBERS = np.array([1.0, 20.0, 300.0])


def results(folder: Path, numbers: np.ndarray, verdict: str = "PASS") -> Path:
    """Results of one notebook: a table, an array, a claim, an SVG and the notebook."""
    notebook = folder / "01_first"
    for name in ("tables", "figures", "claims"):
        (notebook / name).mkdir(parents=True)
    table = {
        "name": ["a", "b", "c"],
        "value": numbers,
        "text": [f"{x:.3f} [0, 1]" for x in numbers],
        "seconds": numbers,
    }
    pd.DataFrame(table).to_csv(notebook / "tables" / "table.csv", index=False)
    np.savez(notebook / "figures" / "array.npz", x=numbers.reshape(1, 3))
    (notebook / "claims" / "C1.json").write_text(record("C1", verdict))
    for name in ("figures/a.svg", "01_first.ipynb"):
        (notebook / name).write_text("")
    pyplot.imsave(notebook / "figures" / "a.png", np.tile(numbers, (40, 20)))
    return folder


def states(published: Path, here: Path) -> dict[str, str]:
    found = compare.results(published, here, ["01_first"]).differences
    return {f"{one.file.rpartition('/')[2]} {one.column}": one.state for one in found}


def test_the_same_results_are_identical_and_times_do_not_count(tmp_path: Path) -> None:
    one, other = results(tmp_path / "a", NUMBERS), results(tmp_path / "b", NUMBERS)
    table = other / "01_first" / "tables" / "table.csv"
    pd.read_csv(table).assign(seconds=[7.0, 8.0, 9.0]).to_csv(table, index=False)
    assert set(states(one, other).values()) == {"identical"}
    assert len(states(one, other)) == 4


def test_a_table_and_a_figure_of_one_name_are_told_apart(tmp_path: Path) -> None:
    sides = [results(tmp_path / one, NUMBERS) for one in "ab"]
    for side in sides:
        np.savez(side / "01_first" / "figures" / "table.npz", x=NUMBERS)
    said = compare.results(*sides, ["01_first"]).text()
    assert "   3 identical\n     01_first: figures array, table; tables table\n" in said


@pytest.mark.parametrize(("factor", "state"), [(1 + 0.5e-5, "rounding"), (1 + 2e-5, "outside"), (math.nan, "outside")])
def test_without_intervals_only_rounding_is_allowed(tmp_path: Path, factor: float, state: str) -> None:
    one, other = results(tmp_path / "a", NUMBERS), results(tmp_path / "b", NUMBERS * np.array([1, 1, factor]))
    assert states(one, other)["table.csv value"] == state
    assert states(one, other)["array.npz x"] == state


def test_rounding_errors_are_not_compared_with_one_another(tmp_path: Path) -> None:
    one, other = results(tmp_path / "a", NUMBERS * 0), results(tmp_path / "b", NUMBERS * 1e-15)
    assert states(one, other)["array.npz x"] == "rounding"


def test_what_only_one_side_has_is_outside(tmp_path: Path) -> None:
    one, other = results(tmp_path / "a", NUMBERS), results(tmp_path / "b", NUMBERS)
    (other / "01_first" / "figures" / "array.npz").unlink()
    (other / "01_first" / "tables" / "new.csv").write_text("x\n1\n")
    found = compare.results(one, other, ["01_first"])
    assert {(item.file.rpartition("/")[2], item.largest) for item in found.outside} == {
        ("array.npz", "only the first has it"),
        ("new.csv", "only the second has it"),
    }


def test_a_trained_number_may_move_as_far_as_other_seeds_move_it(tmp_path: Path) -> None:
    """Of 400 pairs of runs that differ by noise alone, one in twenty leaves its interval; a shift of it leaves it."""
    generator = np.random.default_rng(0)
    draws = generator.normal(NUMBERS, 2.0, size=(3, 3))
    spread = compare.spread([compare.Column.of(run) for run in draws])
    assert spread == pytest.approx(np.sqrt(draws.var(axis=0, ddof=1).mean()))
    outside = []
    for _ in range(400):
        runs = [compare.Column.of(generator.normal(NUMBERS, 2.0)) for _ in range(5)]
        interval = {"spread": compare.spread(runs[:3]), "runs": 3}
        outside.append(compare._compare("", "", runs[3], runs[4], interval).state == "outside")
    assert 0.02 < np.mean(outside) < 0.09
    far = compare.Column.of(NUMBERS + 40)
    assert compare._compare("", "", compare.Column.of(NUMBERS), far, {"spread": 2.0, "runs": 3}).state == "outside"


def test_intervals_are_read_from_the_published_results(tmp_path: Path) -> None:
    one, other = results(tmp_path / "a", NUMBERS), results(tmp_path / "b", NUMBERS + 0.5)
    known = {"01_first/tables/table.csv": {"value": 1.0, "text": 1.0}}
    (one / compare.INTERVALS).write_text(json.dumps({"runs": 3, "spread": known}))
    assert states(one, other) == {
        "table.csv name": "identical",
        "table.csv value": "interval",
        "table.csv text": "interval",
        "array.npz x": "outside",
    }


def test_the_screen_names_every_claim_every_file_and_the_largest_difference(checkout: Path, tmp_path: Path) -> None:
    one = results(tmp_path / "a", NUMBERS)
    shown = compare.results(one, results(tmp_path / "b", NUMBERS * 1.5, "FAIL"), ["01_first"]).text()
    assert [line.split() for line in shown.splitlines() if line.startswith("C1")] == [
        ["C1", "PASS", "×2.0", "FAIL", "×2.0"]
    ]
    assert "table.csv value: 300 → 450" in shown
    assert "array.npz x: 300 → 450" in shown
    alone = compare.results(tmp_path / "none", one, ["01_first"])
    assert [line.split() for line in alone.text().splitlines() if line.startswith("C1")] == [
        ["C1", "–", "–", "PASS", "×2.0"]
    ]
    assert alone.differences == []


def test_a_repetition_has_other_seeds_and_nothing_else(checkout: Path, write_notebook: NotebookWriter) -> None:
    write_notebook("01_first", parameters='profile: str = "small"\npoints: int = 2\nseed: int = 5')
    write_notebook("02_second", parameters='profile: str = "small"')
    before, after = yaml.safe_load(profiles.path("small").read_text()), repeat.reseed("small", 1000)
    assert after["training"]["seeds"] == [1000]
    assert after["sampling"]["seed"] == 1000
    assert after["notebooks"]["01_first"]["parameters"] == {"points": 3, "seed": 1005}
    for section in ("training", "sampling"):
        for key in ("seeds", "seed"):
            before[section].pop(key, None)
            after[section].pop(key, None)
    assert {key: after[key] for key in after if key != "notebooks"} == {
        key: before[key] for key in before if key != "notebooks"
    }


def test_intervals_are_of_what_all_repetitions_have(checkout: Path, write_notebook: NotebookWriter) -> None:
    for name in ("01_first", "02_second"):
        write_notebook(name)
    folders = [checkout / f"run{number}" for number in range(3)]
    for number, folder in enumerate(folders):
        results(folder / "results" / "local" / "small", NUMBERS + number)
        provenance.write(folder / "results" / "local" / "small" / "01_first", {})
    found = repeat.intervals(folders, "small")
    assert found["not finished"] == {"02_second": 3}
    assert found["spread"]["01_first/tables/table.csv"] == pytest.approx(
        {"name": 0.0, "value": 1.0, "text": 1 / 3**0.5}
    )
    assert found["spread"]["01_first/figures/array.npz"] == {"x": pytest.approx(1.0)}


# Publishing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(checkout: Path, write_notebook: NotebookWriter) -> Path:
    """A checkout where both notebooks of "small" have a result; the second is at home at another profile."""
    stated = "place: here, statement: so, cell: a, kind: check, why: so, falsifier: not so"
    (checkout / "claims.yaml").write_text(f"- {{id: C1, notebook: 01_first, {stated}}}")
    write_notebook("01_first")
    write_notebook("02_second", parameters='profile: str = "other"')
    for name in ("01_first", "02_second"):
        folder = results(paths.local("small"), NUMBERS) if name == "01_first" else paths.local("small", name)
        folder.mkdir(parents=True, exist_ok=True)
        (paths.local("small", name) / f"{name}.ipynb").write_text('{"cells": []}')
        provenance.write(paths.local("small", name), {"notebook": name, "profile": "small", **FACTS})
        stamp = checkout / workflow.stamp("small", name)
        stamp.parent.mkdir(parents=True)
        stamp.write_text(notebooks.fingerprint(paths.local("small", name)) + "\n")
    return checkout


def test_what_is_published_is_light_and_verifies(ran: Path) -> None:
    (ran / "results" / "small" / "00_gone").mkdir(parents=True)
    (ran / "results" / "small" / compare.INTERVALS).write_text("{}")
    target = publish.publish(profiles.load("small"))
    assert listing(target) == ["01_first", "02_second", compare.INTERVALS, crate.METADATA]
    assert crate.problems(target) == []
    assert listing(target / "01_first") == ["claims", "figures", "manifest.json", "tables"]
    assert listing(target / "01_first" / "figures") == ["a.png", "array.npz"]
    assert listing(target / "02_second") == ["02_second.ipynb", "manifest.json"]
    assert provenance.verify(target / "01_first") == []
    assert (paths.local("small", "01_first") / "figures" / "a.svg").is_file(), "the run keeps all of it"


def test_of_further_seeds_the_weights_stay_behind(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = paths.local("small", "01_first")
    for seed in (0, 1):
        for name in ("weights.safetensors", "log.jsonl"):
            files.write_text(folder / "runs" / f"sigmoid-seed{seed}" / name, "")
    manifest = provenance.read(folder)
    files.write_text(folder / "manifest.json", json.dumps({**manifest, "outputs": provenance.hashes(folder)}))
    stamp = ran / workflow.stamp("small", "01_first")
    stamp.write_text(notebooks.fingerprint(folder) + "\n")

    def published() -> list[str]:
        target = publish.publish(profiles.load("small")) / "01_first"
        assert provenance.verify(target) == []
        return sorted(str(path.relative_to(target / "runs")) for path in (target / "runs").glob("*/*"))

    logs = ["sigmoid-seed0/log.jsonl", "sigmoid-seed1/log.jsonl"]
    assert published() == sorted([*logs, "sigmoid-seed0/weights.safetensors", "sigmoid-seed1/weights.safetensors"])
    monkeypatch.setitem(publish.WEIGHTS, "small", ("sigmoid-seed0",))
    assert published() == sorted([*logs, "sigmoid-seed0/weights.safetensors"])
    monkeypatch.setitem(publish.WEIGHTS, "small", ())
    assert published() == logs


def test_what_failed_or_is_not_of_a_commit_is_not_published(ran: Path) -> None:
    claim = paths.local("small", "01_first") / "claims" / "C1.json"
    good = claim.read_text()
    for spoil, says in (
        (lambda: claim.write_text(record("C1", "FAIL")), "01_first: a claim failed"),
        (lambda: claim.write_text(good + " "), "C1.json: changed"),
        (lambda: shutil.rmtree(paths.local("small", "02_second")), "02_second: not run"),
    ):
        spoil()
        with pytest.raises(ValueError, match=says):
            publish.publish(profiles.load("small"))
        assert not paths.published("small").exists()


def test_results_of_uncommitted_code_are_not_published(ran: Path) -> None:
    folder = paths.local("small", "02_second")
    manifest = provenance.read(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "dirty": True}))
    with pytest.raises(ValueError, match="02_second: made from uncommitted changes"):
        publish.publish(profiles.load("small"))


def test_a_reader_sees_the_own_run_and_a_test_what_is_published(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish.publish(profiles.load("small"))
    assert paths.result("small", "01_first") == paths.local("small", "01_first")
    monkeypatch.setenv(paths.PUBLISHED_VARIABLE, "1")
    assert paths.result("small", "01_first") == paths.published("small", "01_first")
    assert paths.result("small", "03_none") is None


@pytest.mark.parametrize("colours", [3, 40_000])
def test_a_packed_picture_is_the_same_to_the_eye(colours: int) -> None:
    """A plot gets fewer colours; a photograph keeps every one of its pixels."""
    values = np.random.default_rng(0).integers(0, colours, size=(200, 200))
    shades = np.stack([values % 256, values // 256, 255 - values % 256], -1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.dstack([shades, np.full_like(values, 255, dtype=np.uint8)])).save(stream, format="PNG")
    small = pictures.packed(stream.getvalue())
    assert len(small) < len(stream.getvalue())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(small)).convert("RGB")), shades)
    assert (Image.open(io.BytesIO(small)).mode == "P") == (colours == 3)


def test_a_colour_of_the_legend_alone_stays_what_it_is() -> None:
    """A line that another covers is seen in the legend alone: a hundred and fifty pixels in a million."""
    shade, blue, orange = np.linspace(0, 1, 700)[:, None], np.array([0, 114, 178]), np.array([230, 159, 0])
    pixels = np.full((700, 1400, 3), 255.0)
    for column, colour in ((200, blue), (500, orange), (800, np.zeros(3))):
        pixels[:, column : column + 60] = (255 * shade + colour * (1 - shade))[:, None]  # as antialiasing does
    pixels[20:25, 20:50] = vermilion = np.array([213, 94, 0])
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, format="PNG")
    packed = pictures.packed(stream.getvalue())
    small = Image.open(io.BytesIO(packed))
    assert small.mode == "P"
    assert pictures.packed(packed) == packed, "errors do not add up"
    assert (
        np.abs(np.asarray(small.convert("RGB"), dtype=int)[20:25, 20:50] - vermilion).max() <= pictures.SEEN["largest"]
    )


# This checkout -------------------------------------------------------------------------------------------------------

LARGEST = {
    "tiny": 24.5e6,
    "cifar10-cpu": 21e6,
    "cifar10-long": 2e6,
    "digits": 1.5e6,
    "cifar10-gpu": 10e6,
    "imagenet-smoke": 4.5e6,
    "resolution8": 1.5e6,
    "resolution32": 4.5e6,
}
"""Bytes that the published results of a profile may have."""


def test_published_results_are_light(repository: Path) -> None:
    for folder in sorted((repository / "results").iterdir()):
        if folder.is_dir() and folder.name not in ("local", "interactive"):
            files = [path for path in folder.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            assert size <= LARGEST.get(folder.name, 1e6), f"{folder.name}: {size / 1e6:.1f} MB"
            assert not [path for path in files if path.suffix == ".svg"], folder.name


@pytest.mark.slow
def test_a_clone_in_any_folder_reproduces_and_stays_clean(repository: Path, tmp_path: Path) -> None:
    """In "ä b/companion" two notebooks run, nothing tracked changes, and the tests that look at files are green."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    clone = tmp_path / "ä b" / "companion"
    for name in filter(None, listed.stdout.split("\0")):
        if (repository / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, clone / name)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=clone, check=True)
    hidden = ("PAPERLIB_OUTPUT", "PAPERLIB_ROOT", paths.PUBLISHED_VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"PYTHONPATH": str(clone)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for name in ("01_schedules", "02_objectives"):
        shown = run("paperlib", "reproduce", "tiny", "--only", name)
        assert f"results/local/tiny/{name}" in shown
        assert re.search(r"^first: results/tiny\nsecond: results/local/tiny$", shown, re.MULTILINE)
    tests = ("equations", "project", "claims", "notebooks", "literature", "cli", "profiles")
    run("pytest", "-q", "-m", "not slow", *(f"tests/test_{name}.py" for name in tests))
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert changed.stdout == ""


def test_every_published_number_has_an_interval(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a reader on another machine is told that something is outside."""
    monkeypatch.setenv("PAPERLIB_ROOT", str(repository))
    assert publish.without_interval("tiny") == []
    for name in ("profiles", "claims.yaml", "results/tiny/01_schedules"):
        (shutil.copytree if (repository / name).is_dir() else shutil.copy)(repository / name, tmp_path / name)
    known = json.loads((repository / "results" / "tiny" / "intervals.json").read_text())
    del known["spread"]["01_schedules/figures/fig2_schedules.csv"]["p(λ)"]
    (tmp_path / "results" / "tiny" / "intervals.json").write_text(json.dumps(known))
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    assert publish.without_interval("tiny") == ["01_schedules/figures/fig2_schedules.csv p(λ)"]
