"""The index of equations: what is cited exists, and the committed page is what the citations give."""

import pkgutil
import re
from pathlib import Path

import pytest

from paperlib.companion import claims, documents
from tools import equations

LIST = """\
- {place: "Section 3, the Theorem", what: growth of L, kind: formula, source: seen, also: ["Theorem"]}
- {place: "Section 3, the Theorem averaged over data", what: I-MMSE, kind: formula, source: derived}
- {place: "Table 1", what: weightings, kind: table, source: seen}
- {place: "Table 1, EDM", what: a row, kind: row, source: seen, within: "Table 1"}
- {place: "Section 3", what: all of it, kind: section, source: seen}
"""


@pytest.fixture
def places(tmp_path: Path) -> dict[str, equations.Place]:
    (tmp_path / "equations.yaml").write_text(LIST)
    return equations.load(tmp_path / "equations.yaml")


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("Growth of L.  (Section 3, the Theorem)", ["Section 3, the Theorem"]),
        ("Growth of L.  (Section 3, the\n    Theorem)", ["Section 3, the Theorem"]),
        ("By the Theorem, twice: Theorem.", ["Section 3, the Theorem"]),
        (
            "(Section 3, the Theorem averaged over data; Guo, Shamai & Verdú 2005.)",
            ["Section 3, the Theorem averaged over data"],
        ),
        ("(Table 1, EDM; Karras et al. 2022, Table 7)", ["Table 1, EDM"]),
        ("(Kingma et al. 2021, Section 3.3; Table 1)", ["Table 1"]),
        ("(Nichol & Dhariwal 2021; the shift is Hoogeboom et al. 2023, Equation 9.)", []),
        ("As in Section 3 of the paper.", ["Section 3"]),
        ("Tables and theorems in general", []),
    ],
)
def test_citations_are_found_word_for_word(places: dict[str, equations.Place], text: str, cited: list[str]) -> None:
    assert equations.citations(text, places, "here") == cited


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("(Equation 99)", "Equation 99"),
        ("Table 11 of the paper", "Table 11"),
        ("(Section 3.3)", "Section 3.3"),
        ("(Section 4, the Theorem of no author)", "Section 4"),
        ("(Appendix Q)", "Appendix Q"),
        ("(Karras et al. 2022, Table 1; Figure 8)", "Figure 8"),
        ("Erratum 5", "Erratum 5"),
    ],
)
def test_a_citation_of_what_is_not_listed_is_refused(
    places: dict[str, equations.Place], text: str, unknown: str
) -> None:
    with pytest.raises(ValueError, match=rf"^paperlib\.x cites '{re.escape(unknown)}.*docs/equations\.yaml"):
        equations.citations(text, places, "paperlib.x")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('also: ["Theorem"]', 'also: ["Table 1"]', "given twice: \\['Table 1'\\]"),
        ('within: "Table 1"', 'within: "Table 2"', "unknown wholes: \\['Table 2'\\]"),
        ("kind: table", "kind: list", "kind"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "equations.yaml").write_text(LIST.replace(old, new))
    with pytest.raises(documents.DocumentError, match=says):
        equations.load(tmp_path / "equations.yaml")


SOURCE = '''\
"""Module."""
N: int = 1
"""Constant."""


class A:
    """Class."""

    def f(self):
        """Method."""
'''


def test_docstrings_of_functions_classes_and_constants_are_read(tmp_path: Path) -> None:
    package = tmp_path / "paperlib"
    (package / "companion").mkdir(parents=True)
    (package / "companion" / "cli.py").write_text('"""(Equation 99)"""\n')
    (package / "elbo.py").write_text(SOURCE)
    assert dict(equations.docstrings(package)) == {
        "paperlib.elbo": "Module.",
        "paperlib.elbo.N": "Constant.",
        "paperlib.elbo.A": "Class.",
        "paperlib.elbo.A.f": "Method.",
    }


# This checkout -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entries() -> dict[str, equations.Entry]:
    return equations.index()


def test_every_place_that_a_docstring_a_claim_or_a_cell_cites_is_listed(entries: dict[str, equations.Entry]) -> None:
    """`index` raises for one that is not."""
    assert entries["Section 3, the Theorem"].functions == [
        *("paperlib.elbo.path_kl", "paperlib.elbo.path_kl_rate", "paperlib.oracles.Gaussian.kl")
    ]
    assert "04_elbo_with_augmentation, C5" in entries["Section 3, the Theorem"].cells


def test_every_claim_of_the_paper_has_a_place_on_the_list(entries: dict[str, equations.Entry]) -> None:
    cited = {cell.rpartition(", ")[2] for entry in entries.values() for cell in entry.cells}
    assert {claim.id for claim in claims.load().values()} <= cited


def test_every_function_that_is_listed_exists(entries: dict[str, equations.Entry]) -> None:
    for entry in entries.values():
        for name in entry.functions:
            assert pkgutil.resolve_name(name) is not None


def test_the_committed_page_is_what_the_citations_give(repository: Path, entries: dict[str, equations.Entry]) -> None:
    committed = (repository / "docs" / "equations.md").read_text()
    assert committed == equations.page(entries), "run: make readme"


def test_most_formulas_are_computed_by_a_function_and_by_a_cell(
    repository: Path, entries: dict[str, equations.Entry]
) -> None:
    found = equations.coverage(entries)
    assert found.to_csv(index=False) == (repository / "docs" / "equations.csv").read_text(), "run: make readme"
    formulas = found[found.kind.isin(("formula", "row"))]
    assert (formulas.function & formulas.cell).mean() >= 0.85
