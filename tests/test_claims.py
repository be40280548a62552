"""Claims: verdicts, falsifiers, the records they leave, and that claims.yaml and the notebooks agree."""

import json
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from helpers import record as record_text
from hypothesis import given
from hypothesis import strategies as st

from paperlib import files
from paperlib.companion import claims, documents
from paperlib.companion.claims import Verdict, relative_error

ENTRY = """\
- id: C1
  place: Section 2
  statement: both sides agree
  notebook: 03_invariance
  cell: invariance
  kind: identity
  tolerance: 1.0e-8
  why: float64
  falsifier: other end points
"""


@pytest.fixture
def claim(tmp_path: Path) -> claims.Test:
    (tmp_path / "claims.yaml").write_text(ENTRY)
    return claims.Test(claims.load(tmp_path / "claims.yaml")["C1"], tmp_path / "claims" / "C1.json")


def record(claim: claims.Test) -> dict:
    return json.loads(claim.path.read_text())


def test_a_claim_that_holds_and_whose_falsifier_fails_passes(
    claim: claims.Test, capsys: pytest.CaptureFixture[str]
) -> None:
    claim.check(torch.ones(3), np.ones(3) + 3e-9, "three numbers")
    claim.falsify(1.0, 1.1, "other end points")
    assert capsys.readouterr().out.splitlines() == [
        "C1 PASS: relative error ≤ 1e-08 (three numbers)",
        "C1 falsifier fails, as it must: relative error ≤ 1e-08 (other end points)",
    ]
    assert claim.verdict == Verdict.PASS
    assert record(claim)["verdict"] == "PASS"
    assert record(claim)["checks"][0]["value"] == pytest.approx(3e-9)


def test_a_failed_check_is_recorded_then_raised(claim: claims.Test) -> None:
    with pytest.raises(AssertionError, match=r"C1 FAIL: .* The value is 0\.5"):
        claim.check(1.0, 2.0, "both sides")
    assert record(claim)["verdict"] == "FAIL"


def test_a_falsifier_that_passes_makes_the_claim_vacuous(claim: claims.Test) -> None:
    claim.check(1.0, 1.0)
    with pytest.raises(AssertionError, match="VACUOUS"):
        claim.falsify(1.0, 1.0, "no difference")
    assert record(claim)["verdict"] == "VACUOUS"


def test_lines_do_not_depend_on_the_margin(claim: claims.Test, capsys: pytest.CaptureFixture[str]) -> None:
    claim.check(1.0, 1 + 1e-9, "a")
    first = capsys.readouterr().out
    claim.check(1.0, 1 + 4e-9, "a")
    assert capsys.readouterr().out == first
    assert len(record(claim)["checks"]) == 1, "the same comparison again replaces the earlier outcome"


@pytest.mark.parametrize(
    ("check", "falsify", "good", "bad"),
    [
        ("check_below", "falsify_below", ([1.0, 2.0], 2.0, "x"), ([1.0, 2.1], 2.0, "x")),
        ("check_within", "falsify_within", ([1.0, 2.0], 1.0, 2.0, "x"), ([0.9, 2.0], 1.0, 2.0, "x")),
        ("check_true", "falsify_true", (torch.tensor(True), "x"), (False, "x")),
    ],
)
def test_other_comparisons(claim: claims.Test, check: str, falsify: str, good: tuple, bad: tuple) -> None:
    getattr(claim, check)(*good)
    getattr(claim, falsify)(*bad)
    assert claim.verdict == Verdict.PASS
    with pytest.raises(AssertionError):
        getattr(claim, falsify)(*good)
    with pytest.raises(AssertionError):
        getattr(claim, check)(*bad)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_never_passes(claim: claims.Test, value: float) -> None:
    for check in (
        lambda: claim.check(value, value),
        lambda: claim.check_below([1.0, math.nan], 2.0),
        lambda: claim.check_within([1.0, value], 0.0, 2.0),
    ):
        with pytest.raises(AssertionError):
            check()


def test_a_falsifier_that_is_not_a_number_shows_nothing(claim: claims.Test) -> None:
    with pytest.raises(ValueError, match="shows nothing"):
        claim.falsify(math.nan, 1.0)
    claim.falsify(math.inf, 1.0)
    assert float(record(claim)["falsifiers"][0]["value"]) == math.inf


def test_nothing_compared_is_no_agreement(claim: claims.Test) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        claim.check([], [])
    with pytest.raises(ValueError, match="nothing to compare"):
        claim.check_below([], 1.0)


def test_remarks_are_the_verdict_unless_something_failed(claim: claims.Test) -> None:
    assert claim.verdict == Verdict.NOT_RUN
    claim.not_run("needs ImageNet")
    assert record(claim)["verdict"] == "NOT RUN AT THIS SCALE"
    claim.decide(Verdict.INCONCLUSIVE, "two of three")
    claim.check(1.0, 1.0)
    assert claim.verdict == Verdict.INCONCLUSIVE
    claim.decide(Verdict.HELD, "three of three")
    assert (record(claim)["verdict"], record(claim)["remarks"]) == ("HELD", {"HELD": "three of three"})
    with pytest.raises(AssertionError):
        claim.check(1.0, 2.0)
    assert claim.verdict == Verdict.FAIL


# How clear the outcome was -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "arguments", "margin"),
    [
        ("check", (1.0, 1.0 + 1e-10), 100),
        ("check_below", ([0.5, 2.0], 4.0), 2),
        ("check_below", ([-5.0, -1.0], 4.0), 4 / claims.ROUNDING),
        ("check_below", (0, 0), None),
        ("check_within", ([5.0, 5.5, 4.9], 4.0, 6.0), 2),
        ("check_within", ([30.0, 20.0], 10.0, math.inf), 2),
        ("check_within", ([30.0, 20.0], 0.0, math.inf), None),
        ("check_true", (True,), None),
    ],
)
def test_the_margin_is_the_factor_by_which_the_limit_was_kept(
    claim: claims.Test, check: str, arguments: tuple, margin: float | None
) -> None:
    getattr(claim, check)(*arguments, what="this")
    found = claims.Record.read(claim.path)
    assert found.margin == (None if margin is None else pytest.approx(margin, rel=1e-5))
    assert found.tightest == (None if margin is None else "this")
    assert found.missed is None


@pytest.mark.parametrize(
    ("falsify", "arguments", "missed"),
    [
        ("falsify", (1.0, 0.5), 0.5e8),
        ("falsify", (1.0, math.inf), math.inf),
        ("falsify_below", ([1.0, 12.0], 4.0), 3),
        ("falsify_within", ([5.0, 9.0], 4.0, 6.0), 4),
        ("falsify_within", (0.5, 10.0, math.inf), 20),
        ("falsify_true", (False,), None),
    ],
)
def test_a_falsifier_misses_by_a_factor_of_the_limit(
    claim: claims.Test, falsify: str, arguments: tuple, missed: float | None
) -> None:
    getattr(claim, falsify)(*arguments, what="broken")
    found = claims.Record.read(claim.path)
    assert found.missed == (None if missed is None else pytest.approx(missed))
    assert found.misses == {"broken": found.missed}
    assert found.margin is None


def test_the_tightest_check_and_the_weakest_falsifier_count(claim: claims.Test) -> None:
    claim.check(1.0, 1.0, "exact")
    claim.check_below(3.0, 4.0, "close")
    claim.check_true(True, "yes")
    claim.falsify(1.0, 2.0, "far")
    claim.falsify_below(6.0, 4.0, "not so far")
    claim.decide(Verdict.NOT_HELD, "half of it")
    found = claims.Record.read(claim.path)
    assert (found.verdict, found.tightest) == ("NOT HELD", "close")
    assert (found.margin, found.missed) == (pytest.approx(4 / 3), pytest.approx(1.5))
    assert found.remarks == {"NOT HELD": "half of it"}


@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
def test_a_margin_is_above_one_exactly_when_the_check_holds(value: float, limit: float) -> None:
    outcome = claims.Test._below(None, value, limit, "")  # type: ignore[arg-type]
    assert outcome.used is not None
    assert (outcome.used <= 1) == outcome.holds


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"PASS"', '"FAIL"', "the verdict is FAIL, and what is recorded amounts to PASS"),
        ('"holds": true', '"holds": false', "the verdict is PASS, and what is recorded amounts to FAIL"),
        ('"holds": false', '"holds": true', "amounts to VACUOUS"),
        ('"remarks": {}', '"remarks": {"NOT HELD": "half"}', "amounts to NOT HELD"),
        ('"used": 0.5', '"used": "half"', "checks.0.used"),
        ('"place": "here", ', "", "place: missing"),
        ("}", "", "is not a record of a claim"),
    ],
)
def test_a_record_that_was_tampered_with_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "C1.json"
    path.write_text(record_text("C1", "PASS"))
    assert claims.Record.read(path).verdict == "PASS"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(files.DamagedFileError, match=re.escape(says)) as caught:
        claims.Record.read(path)
    assert str(path) in str(caught.value)


def test_a_verdict_without_checks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "C1.json"
    path.write_text('{"id": "C1", "verdict": "PASS"}')
    with pytest.raises(files.DamagedFileError, match="checks: missing"):
        claims.Record.read(path)


def test_factors_as_they_are_shown() -> None:
    assert [claims.factor(value) for value in (None, 1.04, 99.9, 1234.0, 4e7, math.inf)] == [
        *("–", "×1.0", "×99.9", "×1e+03", "×4e+07", "×∞")
    ]


# Comparing and reading -----------------------------------------------------------------------------------------------


@given(st.floats(-1e300, 1e300), st.floats(1e-12, 0.5))
def test_relative_error_is_symmetric_and_free_of_scale(value: float, error: float) -> None:
    other = value * (1 - error)
    measured = relative_error(value, other)
    assert measured == relative_error(other, value)
    if abs(value) > 1e-200:
        assert measured == pytest.approx(error, abs=1e-15, rel=1e-3)


def test_relative_error_to_a_scale() -> None:
    assert relative_error([0.0, 1.0], [1e-9, 1.0], scale=1.0) == pytest.approx(1e-9)
    assert relative_error([0.0, 1.0], [1e-9, 1.0]) == 1.0
    assert relative_error(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="shape"):
        relative_error([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("kind: identity", "kind: theorem", "kind"),
        ("cell: invariance", "sell: invariance", "sell: unknown key"),
        ("tolerance: 1.0e-8", "tolerance: 1e-8", "YAML wants"),
        ("  why: float64\n", "", "why: missing"),
        ("notebook: 03_invariance", "notebook: invariance", "notebook"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "claims.yaml").write_text(ENTRY.replace(old, new))
    with pytest.raises(documents.DocumentError, match=re.escape(says)) as caught:
        claims.load(tmp_path / "claims.yaml")
    assert re.search(r"claims\.yaml:\d+: ", str(caught.value))


def test_an_id_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "claims.yaml").write_text(ENTRY + ENTRY)
    with pytest.raises(documents.DocumentError, match="more than once: C1"):
        claims.load(tmp_path / "claims.yaml")


# The claims of this checkout -----------------------------------------------------------------------------------------


def code_cells(repository: Path) -> list[tuple[str, nbformat.NotebookNode]]:
    """Every code cell of every notebook, with the notebook's name."""
    paths = sorted((repository / "notebooks").glob("[0-9]*.ipynb"))
    return [
        (path.stem, cell)
        for path in paths
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    ]


def test_claims_and_cells_belong_together_one_to_one(repository: Path) -> None:
    """Each claim is tested in one cell, the one that it names, and each cell that tests has one claim, a listed one."""
    stated = {claim.id: (claim.notebook, claim.cell) for claim in claims.load(repository / "claims.yaml").values()}
    assert len(set(stated.values())) == len(stated), "two claims name the same cell"
    found: dict[str, tuple[str, str]] = {}
    for name, cell in code_cells(repository):
        tested = re.findall(r"run\.claim\(\s*\"([^\"]+)\"", cell.source)
        assert len(tested) <= 1, f"one claim a cell: {name} has {tested} in one"
        for identifier in tested:
            assert identifier in stated, f"{name} tests {identifier}, which claims.yaml does not list"
            assert identifier not in found, f"{identifier} is tested twice"
            tags = [tag for tag in cell.metadata.get("tags", []) if tag not in {"nbval-ignore-output", "hide-input"}]
            assert len(tags) == 1, f"{name}, {identifier}: the cell needs one tag of its own, it has {tags}"
            found[identifier] = (name, tags[0])
    assert found == stated
    tags = [(name, tag) for name, cell in code_cells(repository) for tag in cell.metadata.get("tags", [])]
    assert all(tags.count(place) == 1 for place in stated.values()), "a tag of a claim stands in several cells"


def test_every_claim_has_one_falsifier_and_every_falsifier_one_claim(repository: Path) -> None:
    known = claims.load(repository / "claims.yaml").values()
    texts = [claim.falsifier for claim in known]
    assert not {text for text in texts if texts.count(text) > 1}, "a falsifier says what is broken in *this* check"
    cells = {(name, tag): cell.source for name, cell in code_cells(repository) for tag in cell.metadata.get("tags", [])}
    for claim in known:
        source = cells[claim.notebook, claim.cell]
        assert "falsify" in source or (claim.kind == "experiment" and ".not_run(" in source), claim.id


def test_every_claim_has_a_check_and_a_falsifier_in_its_notebook(repository: Path) -> None:
    for claim in claims.load(repository / "claims.yaml").values():
        notebook = nbformat.read(repository / "notebooks" / f"{claim.notebook}.ipynb", as_version=4)
        outputs = "".join(
            output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
        )
        verdicts = "|".join(Verdict)
        assert re.search(rf"^{claim.id} ({verdicts})", outputs, flags=re.M), f"{claim.id} is not checked"
        if claim.kind != "experiment":
            assert re.search(rf"^{claim.id} falsifier fails, as it must", outputs, flags=re.M), (
                f"{claim.id}: no falsifier"
            )


# What rests on what --------------------------------------------------------------------------------------------------


def test_what_rests_on_a_fallen_claim_is_named(claims_file: Path) -> None:
    known = claims.load(claims_file)
    assert claims.unsupported(known, {"C1": "FAIL", "C2": "PASS", "C3": "PASS"}) == {
        "C1": [],
        "C2": ["C1"],
        "C3": ["C1"],  # through C2
    }
    assert claims.unsupported(known, {"C1": "PASS", "C2": "VACUOUS"})["C3"] == ["C2"]
    assert not any(claims.unsupported(known, {"C1": "NOT HELD"}).values())


def test_a_required_claim_stands_above(claims_file: Path) -> None:
    text = claims_file.read_text(encoding="utf-8").replace("requires: [C1]", "requires: [C3]")
    claims_file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="C2 requires C3, which must stand above it"):
        claims.load(claims_file)


@pytest.fixture
def claims_file(tmp_path: Path) -> Path:
    path = tmp_path / "claims.yaml"
    entry = "- {{id: {}, place: p, statement: s, notebook: 01_a, cell: c, kind: check, why: w, falsifier: f{}}}\n"
    needs = {"C1": "", "C2": ", requires: [C1]", "C3": ", requires: [C2]"}
    path.write_text("".join(entry.format(*item) for item in needs.items()), encoding="utf-8")
    return path
