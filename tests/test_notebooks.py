"""Notebook hygiene: what a reader, a headless run and nbval each rely on."""

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat import NotebookNode

from paperlib.companion import notebooks, profiles

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def home(path: Path) -> str:
    """The profile at which it is committed: tiny, but for the ablation, whose networks are those of another."""
    return "digits" if path.stem == "10_ablation" else "tiny"


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def test_it_has_one_parameters_cell_of_typed_literals(path: Path) -> None:
    cells = [cell for cell in code(path) if "parameters" in tags(cell)]
    assert len(cells) == 1
    statements = ast.parse(cells[0].source).body
    for statement in statements:
        assert isinstance(statement, ast.AnnAssign), "typed assignments only"
        assert statement.value is not None
        ast.literal_eval(statement.value)
        assert statement.lineno == statement.end_lineno, "one line each: papermill reads lines"
    declared = notebooks.declared(path)
    assert list(declared) == [ast.unparse(statement.target) for statement in statements]
    assert notebooks.parameters(path, {})["profile"] == home(path)


def test_its_parameters_are_those_of_every_profile_that_runs_it(path: Path) -> None:
    for name in profiles.names():
        profile = profiles.load(name)
        if path.stem in profile.notebooks:
            notebooks.parameters(path, profile.notebook(path.stem))


def test_its_profile_runs_it(path: Path) -> None:
    assert path.stem in profiles.load(home(path)).notebooks


def test_it_was_run_from_top_to_bottom(path: Path) -> None:
    counts = [cell.execution_count for cell in code(path)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_cell_failed(path: Path) -> None:
    assert not [output for cell in code(path) for output in cell.outputs if output.output_type == "error"]


def test_it_is_small(path: Path) -> None:
    assert path.stat().st_size < 1_000_000


def test_no_output_names_a_place_on_a_machine(path: Path) -> None:
    for cell in code(path):
        text = "".join(
            str(output.get("text", "")) + str({**output.get("data", {}), "image/png": ""}) for output in cell.outputs
        )
        assert not re.search(r"(?<![\w.])/(home|root|Users|tmp|work|mnt|opt|var|usr)/|[A-Z]:\\\\", text), cell.source


def test_it_is_in_step_with_its_text(path: Path) -> None:
    text = jupytext.read(path.with_suffix(".py"))
    assert [(cell.cell_type, cell.source, tags(cell)) for cell in text.cells] == [
        (cell.cell_type, cell.source, tags(cell)) for cell in read(path).cells
    ], f"run: jupytext --sync {path}"


def test_its_metadata_is_clean(path: Path) -> None:
    notebook = read(path)
    assert set(notebook.metadata) <= {"jupytext", "kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "lines_to_next_cell", "editable", "slideshow", "jupyter"}


def test_what_nbval_does_not_compare_asserts_something(path: Path) -> None:
    for cell in code(path):
        if "nbval-ignore-output" in tags(cell):
            asserts = any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(_plain(cell.source))))
            assert asserts or re.search(r"\.(check|falsify)\w*\(", cell.source), cell.source
        assert not {"nbval-skip", "raises-exception"} & set(tags(cell)), cell.source
        assert "NBVAL" not in cell.source, "say it with a tag"


def test_it_reads_as_an_essay(path: Path) -> None:
    """Text comes first, has a title, and there is about as much of it as of code."""
    notebook = read(path)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert len(texts) >= len(code(path)) / 2


def test_it_uses_the_run(path: Path) -> None:
    source = "\n".join(cell.source for cell in code(path))
    assert f'companion.start("{path.stem}", profile)' in source
    assert "run.claim(" in source


def test_what_is_folded_on_the_site_is_folded_in_jupyter(path: Path) -> None:
    for cell in code(path):
        assert ("hide-input" in tags(cell)) == cell.metadata.get("jupyter", {}).get("source_hidden", False), cell.source


def test_it_ends_with_its_evidence(path: Path) -> None:
    """A notebook that tests a claim ends with the table of all that it compared, a row or more for each claim."""
    tested = {name for cell in code(path) for name in re.findall(r'run\.claim\("(\w+)"\)', cell.source)}
    last = read(path).cells[-1]
    assert tested
    assert "run.evidence()" in last.source
    (table,) = (output.data["text/html"] for output in last.outputs)
    assert tested == set(re.findall(r"<tr>\s*<th>(\w+)</th>", table)) - {"claim"}


def _plain(source: str) -> str:
    """The source without lines that are IPython's."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
