"""The command line: what it prints, its exit codes, and what it says to those who use it wrongly."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import NotebookWriter, listing, record

from paperlib.companion import (
    claims,
    cli,
    experiments,
    measuring,
    paths,
    profiles,
    provenance,
    runner,
    workflow,
)
from paperlib.companion.doctor import pins


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    listed = re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out, flags=re.MULTILINE)
    first = ["reproduce", "run", "train", "sample", "evaluate", "claims"]
    assert listed == [*first, "compare", "verify", "audit", "recipes", "doctor"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reproduce", "large"], "unknown profile 'large'; choose one of small"),
        (["reproduce", "small", "--only", "09_none"], "no notebook '09_none'; choose one of 01_first, 02_second"),
        (["run", "09_none", "--profile", "small"], "unknown notebook '09_none'; choose one of 01_first, 02_second"),
        (["run", "01_first", "--profile", "small", "-p", "pionts=3"], "no parameter 'pionts'"),
        (["run", "01_first", "--profile", "small", "-p", "points=many"], "'points' must be int, got 'many' (str)"),
        (["claims", "--profile", "large"], "unknown profile 'large'"),
        (["verify", "large"], "unknown profile 'large'"),
        (["train", "large"], "unknown profile 'large'"),
        (["train", "small", "--weighting", "edm"], "no network with --weighting edm; it has the arms sigmoid"),
        (["train", "small", "--pictures"], "has no section 'pictures'; add one"),
        (["sample", "small", "--seed", "7"], "no network with --seed 7; it has"),
        (["sample", "small", "--output", "a.jpg"], "--output must name a .png file, got a.jpg"),
        (["sample", "small", "--sampler", "euler"], "unknown sampler 'euler'; choose one of ddpm"),
        (["evaluate", "small", "--sampler", "euler"], "unknown sampler 'euler'; choose one of ddpm"),
    ],
)
def test_wrong_use_is_explained(
    write_notebook: NotebookWriter, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    for name in ("01_first", "02_second"):
        write_notebook(name)
    assert cli.main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"paperlib {arguments[0]}: ")
    assert says in message


@pytest.mark.parametrize("arguments", [["reproduce", "small", "--cores", "0"], ["review"], [], ["run", "a", "--x"]])
def test_what_is_no_command_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)


LOSS = ["--prediction", "v", "--schedule", "cosine", "logsnr_min=-10", "logsnr_max=10"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["claims", "--help"], ["claims"], ["claims", "--json"], ["recipes"], ["doctor"]),
        *(["audit", *LOSS], ["audit", "--json", *LOSS], ["verify", "tiny"], ["reproduce", "small"]),
        *(["compare", "tiny", "tiny"], ["train", "small"], ["run", "01_first", "--profile", "small"]),
    ],
    ids=" ".join,
)
def test_a_reader_who_has_seen_enough_ends_a_command_quietly(
    write_notebook: NotebookWriter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    repository: Path,
    arguments: list[str],
) -> None:
    """As `| head -1` does it, which closes the pipe.  A kernel that is cut off may complain; this process does not."""
    for name in ("01_first", "02_second"):
        write_notebook(name)
    if "small" not in arguments:
        monkeypatch.setenv("PAPERLIB_ROOT", str(repository))
        arguments = [
            str(repository / "results" / word) if word == "tiny" and "compare" in arguments else word
            for word in arguments
        ]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", pipe)
        assert cli.main(arguments) == 128 + signal.SIGPIPE
        pipe.write("what Python writes at its end")
    assert capsys.readouterr().err == ""


def test_one_notebook_with_another_parameter(
    checkout: Path, write_notebook: NotebookWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook("01_first", "print('points', points)")
    assert cli.main(["run", "01_first", "--profile", "small", "-p", "points=11"]) == 0
    assert "| points 11" in capsys.readouterr().out
    result = checkout / "results" / "interactive" / "small" / "01_first"
    assert provenance.read(result)["parameters"]["points"] == 11
    assert listing(checkout / "results") == ["interactive"], "finished results are not touched"


def test_what_is_said_arrives(checkout: Path, monkeypatch: pytest.MonkeyPatch, write_notebook: NotebookWriter) -> None:
    """Options of the commands whose work takes hours, at the function that does it."""
    write_notebook("01_first")
    arrived: dict[str, Any] = {}

    class ArrivedError(Exception):
        pass

    def listen(module: Any, name: str) -> None:
        def heard(*given: Any, **named: Any) -> None:
            arrived[name] = [*given, *named.values()]
            raise ArrivedError

        monkeypatch.setattr(module, name, heard)

    for module, name in ((experiments, "train"), (measuring, "sample"), (measuring, "evaluate"), (runner, "run")):
        listen(module, name)
    monkeypatch.setattr(measuring, "networks", lambda profile, chosen, weights: iter(chosen))
    for said in (
        "train small --weighting sigmoid --seed 0 --engine single",
        "sample small --seed 0 --sampler ddim --count 7 --guidance 1.5",
        "evaluate small --seed 0 --sampler ddim --count 9 --guidance 2.5",
        "run 1 --profile small --threads 3 -p points=5",
    ):
        with pytest.raises(ArrivedError):
            cli.main(said.split())
    chosen, engine = arrived["train"]
    assert ([(one.weighting, one.seed) for one in chosen], engine) == ([("sigmoid", 0)], "single")
    assert arrived["sample"][2:] == ["ddim", 7, 1.5]
    assert arrived["evaluate"][3:] == [["ddim"], 9, 2.5]
    (job,) = arrived["run"]
    assert (job.notebook, job.threads, job.values["points"]) == ("01_first", 3, 5)


def test_a_choice_of_networks_is_not_ignored(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "small", "--weighting", "sigmoid", "--seed", "7"]) == 1
    assert "trains no network with --weighting sigmoid, --seed 7; it has" in capsys.readouterr().err
    profile = checkout / "profiles" / "small.yaml"
    profile.write_text(
        profile.read_text() + "pictures: {model: {name: mlp, prediction: v}, weighting: sigmoid, recipe: {steps: 2}}\n"
    )
    for command in ("train", "sample"):
        assert cli.main([command, "small", "--pictures", "--seed", "7"]) == 1
        assert "is one alone: leave out --seed 7" in capsys.readouterr().err


def test_folders_that_variables_name_are_the_same_in_every_folder(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout.parent)
    monkeypatch.setenv("HOME", str(checkout))
    for variable, value in (("ROOT", checkout.name), ("DATA", "."), ("CACHE", "~/kept")):
        monkeypatch.setenv(f"PAPERLIB_{variable}", value)
    assert cli.main(["claims", "--profile", "small"]) == 0
    found = [os.environ[f"PAPERLIB_{variable}"] for variable in ("ROOT", "DATA", "CACHE")]
    assert found == [str(checkout), str(checkout.parent), str(checkout / "kept")]


def test_two_results_of_one_notebook_lie_side_by_side(
    checkout: Path, write_notebook: NotebookWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook("01_first", "print('points', points)")
    folders = [checkout / "out" / "five", checkout / "out" / "six"]
    for folder, points in zip(folders, (5, 6), strict=True):
        arguments = ["run", "01", "--profile", "small", "-p", f"points={points}", "--output", str(folder)]
        assert cli.main(arguments) == 0
    assert [provenance.read(folder)["parameters"]["points"] for folder in folders] == [5, 6]
    assert not (checkout / "results").exists()
    assert cli.main(["compare", *map(str, folders)]) == 0
    assert "parameter points: 5 → 6" in capsys.readouterr().out


def test_a_folder_that_is_no_result_is_not_replaced(
    checkout: Path, write_notebook: NotebookWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook("01_first")
    mine = checkout / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    (checkout / "results").mkdir()
    for target in (mine, mine / "letter.txt", checkout / "results"):
        assert cli.main(["run", "01_first", "--profile", "small", "--output", str(target)]) == 1
        assert "is no result, which a new one may replace" in capsys.readouterr().err
    assert (mine / "letter.txt").read_text() == "dear"


def test_a_failing_notebook_gives_a_failing_exit_code(
    write_notebook: NotebookWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook("01_first", "# Division", "1 / 0")
    assert cli.main(["run", "01_first", "--profile", "small"]) == 1
    message = capsys.readouterr().err
    assert "failed in cell 3 of 3 (Division)" in message
    assert "ZeroDivisionError: division by zero" in message


CLAIMS = """\
- {id: C1, place: here, statement: it holds, notebook: 01_first, cell: a, kind: check, why: so, falsifier: not so}
- {id: C2, place: here, statement: so too, notebook: 02_second, cell: a, kind: check, why: so, falsifier: not so,
   requires: [C1]}
"""


def test_the_ledger(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "claims.yaml").write_text(CLAIMS)
    records = checkout / "results" / "small" / "01_first" / "claims"
    records.mkdir(parents=True)
    (records.parent / "manifest.json").write_text("{}")
    test = claims.Test(claims.load()["C1"], records / "C1.json")
    test.check(1.0, 1.0 + 2e-9, "both sides", tolerance=1e-8)
    test.falsify(1.0, 1.5, "not so", tolerance=1e-8)
    capsys.readouterr()
    assert cli.main(["claims", "--profile", "small", "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert [(entry["id"], entry["verdict"]) for entry in ledger] == [("C1", "PASS"), ("C2", "NOT RUN")]
    assert [set(entry) for entry in ledger] == [set(ledger[0])] * 2
    assert ledger[0]["falsifier"] == "not so"
    assert ledger[0]["margin"] == pytest.approx(5)
    assert ledger[0]["missed"] == ledger[0]["falsifiers"]["not so"] == pytest.approx(1e8 / 3)
    assert ledger[1]["margin"] is ledger[1]["missed"] is None
    assert [entry["unsupported"] for entry in ledger] == [[], []]
    kept = test.path.read_text()
    with pytest.raises(AssertionError):
        test.check(1.0, 2.0, "neither side", tolerance=1e-8)
    assert [entry["unsupported"] for entry in workflow.ledger(profiles.load("small"))] == [[], ["C1"]]
    test.path.write_text(kept)
    capsys.readouterr()
    assert cli.main(["claims", "--profile", "small"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"C1 +PASS +×5\.0 +×3e\+07 +it holds +01_first", shown)
    assert re.search(r"C2 +NOT RUN +– +– +so too +02_second", shown)


def test_no_profile_shows_the_verdict_of_another(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (checkout / "profiles" / "small.yaml").read_text()
    other = text.replace("name: small", "name: other").replace("  01_first:", "  03_third: {}\n  01_first:")
    (checkout / "profiles" / "other.yaml").write_text(other)
    (checkout / "claims.yaml").write_text(CLAIMS.replace("notebook: 02_second", "notebook: 03_third"))
    folder = checkout / "results" / "other" / "03_third"
    (folder / "claims").mkdir(parents=True)
    claims.Test(claims.load()["C2"], folder / "claims" / "C2.json").decide(claims.Verdict.HELD, "only there")
    provenance.write(folder, {})
    capsys.readouterr()
    assert cli.main(["claims", "--profile", "small", "--json"]) == 0
    assert [entry["verdict"] for entry in json.loads(capsys.readouterr().out)] == ["NOT RUN", "NOT RUN"]
    assert {entry["verdict"] for entry in workflow.ledger(profiles.load("other"))} == {"NOT RUN", "HELD"}
    published = {entry["id"]: (entry["profile"], entry["verdict"]) for entry in workflow.published_ledger("small")}
    assert published == {"C1": ("small", "NOT RUN"), "C2": ("other", "HELD")}


def test_the_ledger_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["claims"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def published(checkout: Path) -> dict[str, Path]:
    """Two published results, by notebook, each with a claim."""
    (checkout / "claims.yaml").write_text(CLAIMS)
    folders = {}
    for identifier, name in (("C1", "01_first"), ("C2", "02_second")):
        folder = folders[name] = checkout / "results" / "small" / name
        (folder / "claims").mkdir(parents=True)
        (folder / "claims" / f"{identifier}.json").write_text(record(identifier, "PASS"))
        (folder / "a.csv").write_text("1\n")
        provenance.write(folder, {"notebook": name, "profile": "small"})
    return folders


def test_whole_results_verify(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify"]) == 1
    assert "there are no results of any profile" in capsys.readouterr().out
    published(checkout)
    assert cli.main(["verify"]) == 0
    assert capsys.readouterr().out == "2 results looked at, 0 problems.\n"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "a.csv").write_text("2\n"), "01_first/a.csv: changed"),
        (lambda folder: (folder / "manifest.json").unlink(), "01_first/manifest.json: missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "01_first/manifest.json is not a manifest: "),
        (lambda folder: (folder / "manifest.json").write_text('{"outputs": {}}'), "commit: missing"),
        (lambda folder: shutil.rmtree(folder), "01_first/manifest.json: missing"),
        (lambda folder: (folder / "claims" / "C1.json").write_text("[]"), "C1.json is not a record of a claim: "),
        (lambda folder: (folder / "claims" / "C1.json").unlink(), "C1.json: missing, and claims.yaml has it"),
        (lambda folder: (folder / "claims" / "C9.json").write_text(record("C9", "PASS")), "C9.json: not a claim of"),
    ],
)
def test_every_problem_of_a_result_is_a_line(
    checkout: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], says: str
) -> None:
    """One result is spoilt, and all others are looked at nonetheless."""
    folders = published(checkout)
    spoil(folders["01_first"])
    (folders["02_second"] / "b.csv").write_text("1\n")
    assert cli.main(["verify", "small"]) == 1
    *problems, last = capsys.readouterr().out.splitlines()
    assert any(says in line for line in problems)
    assert any("02_second/b.csv: not in the manifest" in line for line in problems)
    assert last == f"2 results looked at, {len(problems)} problems."


def test_a_manifest_made_to_fit_does_not_hide_a_record(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = published(checkout)["01_first"]
    (folder / "claims" / "C1.json").unlink()
    provenance.write(folder, {"notebook": "01_first", "profile": "small"})
    assert cli.main(["verify"]) == 1
    (folder / "claims" / "C1.json").write_text(record("C1", "PASS").replace('"PASS"', '"NOT HELD"'))
    provenance.write(folder, {"notebook": "01_first", "profile": "small"})
    assert cli.main(["verify"]) == 1
    first, second = (line for line in capsys.readouterr().out.splitlines() if "C1" in line)
    assert "missing, and claims.yaml has it" in first
    assert "the verdict is NOT HELD, and what is recorded amounts to PASS" in second


def test_any_two_results_are_compared(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (published(checkout)["01_first"], checkout / "elsewhere")
    shutil.copytree(first, second)
    (second / "tables").mkdir()
    (second / "tables" / "t.csv").write_text("x\n1\n")
    (second / "claims" / "C1.json").write_text(record("C1", "FAIL"))
    provenance.write(second, {"notebook": "01_first", "profile": "small", "parameters": {"points": 4}})
    provenance.write(first, {"notebook": "01_first", "profile": "small", "parameters": {"points": 3}})
    assert cli.main(["compare", str(first), str(first), "--strict"]) == 0
    capsys.readouterr()
    data, page = checkout / "out" / "a.json", checkout / "out" / "a.html"
    arguments = ["compare", str(first.parent), str(second), "--json", str(data), "--html", str(page)]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--strict"]) == 1
    shown = capsys.readouterr().out
    found = json.loads(data.read_text())
    assert found["settings"] == {"parameter points": [3, 4]}
    assert [(one["id"], one["verdicts"]) for one in found["claims"]] == [("C1", ["PASS", "FAIL"])]
    assert {(one["file"], one["largest"]) for one in found["outside"]} == {
        ("claim C1", "PASS → FAIL"),
        ("01_first/tables/t.csv", "only the second has it"),
    }
    for text in (shown, page.read_text()):
        assert all(says in text for says in ("parameter points", "it holds", "t.csv", "only the second has it"))
    assert not re.search(r"(?:src|href)=", page.read_text()), "it needs nothing else"
    assert cli.main(["compare", str(first), str(checkout / "profiles")]) == 1
    assert "profiles holds no results" in capsys.readouterr().err


def test_a_trained_network_is_expected_to_be_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "--weights", "w.safetensors", "--data", "digits", "--expect", "edm"]) == 1
    assert "--expect is for a loss" in capsys.readouterr().err


def test_the_doctor_looks_at_everything(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) in (0, 1)
    shown = capsys.readouterr().out
    for what in ("Python", "torch", "processor", "memory", "disk", "checkout", "requirements.lock"):
        assert re.search(rf"^(ok |NO ) {what}", shown, flags=re.MULTILINE), what
    assert not re.search(r"^NO  (Python|checkout|requirements\.lock)", shown, flags=re.MULTILINE)


def test_the_doctor_notices_another_version(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "requirements.lock").write_text("numpy==0.0.1 \\\n    --hash=sha256:00\n")
    assert cli.main(["doctor"]) == 1
    assert re.search(r"NO  requirements\.lock +numpy \S+ instead of 0\.0\.1", capsys.readouterr().out)


def test_pins_follow_the_markers_of_this_machine() -> None:
    lock = (
        '# made by\na-b==1.0 \\\n    --hash=x\n    # via c\nc==2 ; python_full_version < "3.0" \\\n'
        'c==3.1 ; python_full_version >= "3.0" \\\nD_e==3.0.post1 \\\n'
    )
    assert pins(lock) == {"a-b": "1.0", "c": "3.1", "d-e": "3.0.post1"}


@pytest.mark.slow
def test_train_sample_and_evaluate(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "small"]) == 0
    runs = paths.runs("small")
    assert [name.rpartition("-")[0] for name in listing(runs)] == ["sigmoid-seed0"]
    assert cli.main(["sample", "small", "--count", "20", "--output", str(checkout / "sheet.png")]) == 0
    assert (checkout / "sheet.png").read_bytes().startswith(b"\x89PNG")
    with np.load(checkout / "sheet.npz") as arrays:
        assert arrays["images"].shape == (20, 1, 8, 8)
        assert arrays["images"].max() <= 16
        assert arrays["labels"].tolist() == [*range(10), *range(10)]
    assert cli.main(["evaluate", "small", "--count", "300"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^real images +digits/test \w{6} +300 ", shown, re.MULTILINE)
    assert re.search(r"^sigmoid-seed0 heun +digits/train \w{6} +300 ", shown, re.MULTILINE)
    assert re.search(r"^\[3\] Fréchet distance, digits classifier \w{6}: 300 samples by heun", shown, re.MULTILINE)
    shutil.rmtree(runs)
    assert cli.main(["sample", "small"]) == 1
    assert "sigmoid-seed0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize("strength", ["nan", "inf", "-1", "much"])
def test_guidance_that_is_no_number_is_refused_where_it_is_given(
    capsys: pytest.CaptureFixture[str], command: str, strength: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "tiny", f"--guidance={strength}"])
    assert caught.value.code == 2
    assert f"--guidance: expected a number from 0, 1 for none; got {strength!r}" in capsys.readouterr().err
