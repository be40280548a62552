"""The index of equations: which place of the paper is computed by which function and which cell.

``docs/equations.yaml`` lists the places.  Docstrings of the library below the companion, the ``place`` of each claim
and the texts that code cells carry (captions, tables) cite them, word for word; this module collects who does, and
writes ``docs/equations.md``, and ``docs/equations.csv`` for the notebook of the claims:

    python -m tools.equations

A citation of a place that is not listed is an error, with the words that are wrong.  What is cited of other works,
"(Karras et al. 2022, Table 1)", is no citation of the paper: from an author and a year to the end of the clause nothing
counts.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from tabulate import tabulate

from paperlib import files
from paperlib.companion import claims, documents, notebooks, paths

OTHER_WORKS = re.compile(r"[A-Z][\w’'&-]+(?: et al\.|,? (?:& |and )?[A-Z][\w&, -]+?)?,? (?:19|20)\d\d[^();]*")
MENTION = re.compile(
    r"\b(?:Section|Equation|Eq\.|Table|Figure|Fig\.|Appendix|Erratum) (?:\d+(?:\.\d+)*|[A-Z]\b)(?:, the \w+)?"
)
"""What looks like a citation of the paper."""


class Place(BaseModel):
    """One place of the paper; see the head of ``docs/equations.yaml``."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    place: str = Field(min_length=1)
    what: str = Field(min_length=1)
    kind: Literal["section", "formula", "row", "figure", "table", "erratum", "experiment"]
    source: Literal["seen", "derived"]
    within: str | None = None
    also: list[str] = []

    @property
    def anchor(self) -> str:
        """Where the place stands on the page."""
        return slug(self.place)


@dataclass
class Entry:
    """A place, and who computes it."""

    place: Place
    functions: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)


def load(path: Path | None = None) -> dict[str, Place]:
    """The places by what they are called, in the order of the file.

    Raises:
        DocumentError: a ValueError with file and line of what is wrong; names given twice and unknown wholes included.
    """
    path = path or paths.root() / "docs" / "equations.yaml"
    found = documents.load(path, list[Place])
    names = [name for one in found for name in (one.place, *one.also)]
    twice = sorted({name for name in names if names.count(name) > 1})
    lost = sorted({one.within for one in found if one.within and one.within not in names})
    if twice or lost:
        raise documents.DocumentError(f"{path}:1: given twice: {twice or 'none'}; unknown wholes: {lost or 'none'}.")
    return {one.place: one for one in found}


def citations(text: str, places: dict[str, Place], where: str) -> list[str]:
    """The places that ``text`` cites, each once, in the order of the list.

    Raises:
        ValueError: for what looks like a citation of the paper and is no place of the list.
    """
    rest = OTHER_WORKS.sub("", re.sub(r"\s+", " ", text))
    found: set[str] = set()
    names = {name: one.place for one in places.values() for name in (one.place, *one.also)}
    for name in sorted(names, key=len, reverse=True):
        pattern = re.compile(rf"(?<!\w){re.escape(name)}(?!\w|\.\d)")
        if pattern.search(rest):
            found.add(names[name])
            rest = pattern.sub("", rest)
    if mention := MENTION.search(rest):
        raise ValueError(f"{where} cites {mention.group()!r}, which is not in docs/equations.yaml; correct or add it.")
    return [place for place in places if place in found]


# Who cites -----------------------------------------------------------------------------------------------------------


def docstrings(package: Path) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of every module, class, function and documented constant below the companion."""
    for path in sorted(package.rglob("*.py")):
        if "companion" not in path.relative_to(package).parts:
            module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield module, ast.get_docstring(tree) or ""
            yield from _within(tree, module)


def _within(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    body = getattr(node, "body", [])
    for child, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield f"{prefix}.{child.name}", ast.get_docstring(child) or ""
            yield from _within(child, f"{prefix}.{child.name}")
        elif isinstance(child, ast.AnnAssign | ast.Assign) and isinstance(after, ast.Expr):
            target = child.target if isinstance(child, ast.AnnAssign) else child.targets[0]
            yield f"{prefix}.{ast.unparse(target)}", _string(after.value)


def _string(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def cells() -> Iterator[tuple[str, str]]:
    """Every code cell of every notebook as "notebook, heading", and the texts that stand in its code."""
    for name in notebooks.names():
        heading = ""
        for kind, source in notebooks.cells(notebooks.path(name)):
            headings = re.findall(r"^#+ (.*)$", source, flags=re.MULTILINE) if kind == "markdown" else []
            heading = headings[-1] if headings else heading
            if kind == "code":
                yield f"{name}, {heading}", "\n".join(map(_string, ast.walk(ast.parse(notebooks.python(source)))))


def headings() -> dict[str, str]:
    """The heading under which each cell stands, and under which each claim is first named in its notebook."""
    found: dict[str, str] = {}
    known = claims.load()
    for cell, text in cells():
        notebook, _, heading = cell.partition(", ")
        for name in (heading, *known.keys() & text.splitlines()):
            found.setdefault(f"{notebook}, {name}", heading)
    return found


def index() -> dict[str, Entry]:
    """Every place with the functions and cells that compute it.

    Raises:
        ValueError: for a docstring, a claim or a cell that cites a place which is not listed.
    """
    places = load()
    entries = {name: Entry(place) for name, place in places.items()}
    for name, text in docstrings(paths.root() / "paperlib"):
        for place in citations(text, places, name):
            entries[place].functions.append(name)
    for claim in claims.load().values():
        for place in citations(claim.place, places, f"claim {claim.id}"):
            entries[place].cells.append(f"{claim.notebook}, {claim.id}")
    for cell, text in cells():
        for place in citations(text, places, f"a cell of {cell}"):
            entries[place].cells.append(cell)
    for entry in entries.values():
        if entry.place.within:
            entry.cells += entries[entry.place.within].cells
    return entries


# The page ------------------------------------------------------------------------------------------------------------


def coverage(entries: dict[str, Entry]) -> pd.DataFrame:
    """``docs/equations.csv``: a row a place, whether a function computes it and whether a cell does."""
    rows = [(name, one.place.kind, bool(one.functions), bool(one.cells)) for name, one in entries.items()]
    return pd.DataFrame(rows, columns=["place", "kind", "function", "cell"])


HEAD = """\
# Index of equations

Which function and which cell compute each place of the paper. Made by `python -m tools.equations` from
docstrings, claims and notebooks; not to be edited. The paper itself is not at hand here: *seen* places are quoted by
public sources, *derived* ones were derived for this companion, and only where they stand in the paper is recalled.
"""


def page(entries: dict[str, Entry] | None = None) -> str:
    """``docs/equations.md``: the coverage, the table, and what is computed nowhere."""
    entries = index() if entries is None else entries
    found = coverage(entries).query("kind != 'section'")
    summary = (
        f"Of {len(found)} places {found.function.sum()} have a function, {found.cell.sum()} a cell, "
        f"{(found.function & found.cell).sum()} both; {(~(found.function | found.cell)).sum()} have neither. (A cell "
        f"may say that its claim is not run at a scale.)"
    )
    under = headings()
    rows = [_row(entry, under) for entry in entries.values() if entry.place.kind != "section"]
    table = tabulate(rows, ["place", "what stands there", "source", "functions", "cells"], tablefmt="github")
    return f"{HEAD}\n{summary}\n\n{table}\n\n{_uncovered(entries)}"


def slug(heading: str) -> str:
    """The anchor that a heading has on the site and on code hosts."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _row(entry: Entry, under: dict[str, str]) -> list[str]:
    functions = [f"`{name.removeprefix('paperlib.')}`" for name in entry.functions]
    seen: dict[str, list[str]] = defaultdict(list)
    for cell in dict.fromkeys(entry.cells):
        notebook, _, where = cell.partition(", ")
        seen[notebook[:2]].append(f"[{where}](../notebooks/{notebook}.ipynb#{slug(under[cell])})")
    cells = [f"{notebook}: {', '.join(where)}" for notebook, where in sorted(seen.items())]
    place = entry.place
    name = f'<a id="{place.anchor}"></a>{place.place}'
    texts = (name, place.what, place.source, ", ".join(functions) or "–", "; ".join(cells) or "–")
    return [text.replace("|", r"\|") for text in texts]


def _uncovered(entries: dict[str, Entry]) -> str:
    counted = [entry for entry in entries.values() if entry.place.kind != "section"]
    without = {
        "No cell": [entry.place.place for entry in counted if not entry.cells],
        "A formula without a function": [
            entry.place.place for entry in counted if entry.place.kind in ("formula", "row") and not entry.functions
        ],
    }
    return "".join(f"{what}: {'; '.join(found) or 'none'}.\n" for what, found in without.items())


def main() -> None:
    """Write ``docs/equations.md`` of this checkout."""
    entries = index()
    files.write_text(paths.root() / "docs" / "equations.md", page(entries))
    files.write_text(paths.root() / "docs" / "equations.csv", coverage(entries).to_csv(index=False))


if __name__ == "__main__":
    main()
