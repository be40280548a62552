"""The command line: what it prints, its exit codes, and what it says to those who use it wrongly."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import NotebookWriter, listing

from paperlib.companion import claims, cli, paths, profiles, provenance, workflow
from paperlib.companion.doctor import pins


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    listed = re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out, flags=re.MULTILINE)
    first = ["reproduce", "run", "train", "sample", "evaluate", "claims"]
    assert listed == [*first, "compare", "verify", "audit", "weighting", "recipes", "doctor"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reproduce", "large"], "unknown profile 'large'; choose one of small"),
        (["reproduce", "small", "--only", "09_none"], "no notebook '09_none'; choose one of 01_first, 02_second"),
        (["run", "09_none", "--profile", "small"], "unknown notebook '09_none'; choose one of 01_first, 02_second"),
        (["run", "01_first", "--profile", "small", "-p", "pionts=3"], "no parameter 'pionts'"),
        (["run", "01_first", "--profile", "small", "-p", "points=many"], "'points' must be int, got 'many'"),
        (["claims", "--profile", "large"], "unknown profile 'large'"),
        (["verify", "large"], "unknown profile 'large'"),
        (["train", "large"], "unknown profile 'large'"),
        (["train", "small", "--weighting", "edm"], "no network with weighting 'edm' and seed None; it has sigmoid"),
        (["train", "small", "--pictures"], "has no section 'pictures'; add one"),
        (["sample", "small", "--seed", "7"], "no network with weighting None and seed 7"),
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


def test_one_notebook_with_another_parameter(
    checkout: Path, write_notebook: NotebookWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_notebook("01_first", "print('points', points)")
    assert cli.main(["run", "01_first", "--profile", "small", "-p", "points=11"]) == 0
    assert "| points 11" in capsys.readouterr().out
    result = checkout / "results" / "interactive" / "small" / "01_first"
    assert provenance.read(result)["parameters"]["points"] == 11
    assert listing(checkout / "results") == ["interactive"], "finished results are not touched"


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
- {id: C2, place: here, statement: so too, notebook: 02_second, cell: a, kind: check, why: so, falsifier: not so}
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


def test_a_changed_result_does_not_verify(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkout / "results" / "small" / "01_first"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("1\n")
    provenance.write(folder, {})
    assert cli.main(["verify"]) == 0
    (folder / "a.csv").write_text("2\n")
    assert cli.main(["verify", "small"]) == 1
    assert "01_first/a.csv: changed" in capsys.readouterr().out


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
