"""What the site adds to the files in docs/ and to the notebooks, which are written for code hosts: a Sphinx extension.

* a page for every module of the library, listed by tier;
* links between the index of equations, the API and the notebooks, both ways;
* words for every picture of a notebook: its caption;
* numbered equations of several lines.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from tools import equations

TIERS = {
    "Theory": "Pure functions and small values, in float32 and float64, that need torch alone.",
    "Practice": "Networks, data, training, sampling, likelihood and metrics, and the audit of a loss.",
    "Companion": "What notebooks and the command line use.",
}
PACKAGES = {"auditing": "Practice", "companion": "Companion", "engine": "Practice", "models": "Practice"}
"""The tier of each package; the modules beside them are theory."""

index = cache(equations.index)
places = cache(equations.load)


def modules(package: Path) -> list[str]:
    """Every module of a package by its full name, those that are run as programs left out."""
    found = [path.relative_to(package.parent) for path in package.rglob("*.py") if path.name != "__main__.py"]
    return sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in found)


def write_api(app: Sphinx) -> None:
    """Write ``docs/api``: a page a module, and ``index.md``, which lists them."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    tiers: dict[str, list[str]] = {tier: [] for tier in TIERS}
    for module in modules(Path(app.srcdir).parent / "paperlib"):
        tiers[PACKAGES.get(module.split(".")[1] if "." in module else "", "Theory")].append(module)
        page = f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n"
        (folder / f"{module}.md").write_text(page, encoding="utf-8")
    text = "# The library, module by module\n"
    for tier, names in tiers.items():
        table = "\n".join(f"   {name}" for name in names)
        text += f"\n## {tier}\n\n{TIERS[tier]}\n\n```{{eval-rst}}\n.. autosummary::\n\n{table}\n```\n"
    listed = "\n".join(name for names in tiers.values() for name in names)
    text += f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    (folder / "index.md").write_text(text, encoding="utf-8")


def link_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Complete the source of the index of equations, or of a notebook."""
    if page == "equations":
        text = re.sub(r"`([a-z]\w*(?:\.\w+)*)`", r"{py:obj}`\1 <paperlib.\1>`", source[0])
        source[0] = text.replace("](../notebooks/", "](notebooks/")
    elif page.startswith("notebooks/"):
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            describe(cell)
        name = page.removeprefix("notebooks/")
        computed = [
            f'<a href="../equations.html#{entry.place.anchor}">{entry.place.place}</a>'
            for entry in index().values()
            if entry.place.kind != "section" and any(cell.startswith(f"{name}, ") for cell in entry.cells)
        ]
        if computed:
            text = f"*Computed here, of the [index of equations](../equations.md): {'; '.join(computed)}.*"
            notebook["cells"].append({"cell_type": "markdown", "id": "places", "metadata": {}, "source": text})
        source[0] = json.dumps(notebook)


def describe(cell: dict[str, Any]) -> None:
    """Let the pictures of a cell say in words what its captions say."""
    captions = ["".join(output.get("data", {}).get("text/markdown", "")) for output in cell.get("outputs", [])]
    if words := " ".join(filter(None, captions)).strip("*"):
        cell["metadata"]["mystnb"] = {"image": {"alt": words}}


def number_lines(app: Sphinx, doctree: nodes.document) -> None:
    """Leave display mathematics with a number as it is: Sphinx puts several lines into ``split``, which takes none."""
    for block in doctree.findall(nodes.math_block):
        if "\\tag" in block.astext() and not block.get("no-wrap"):
            block["no-wrap"] = True
            block.children = [nodes.Text(f"\\[{block.astext()}\\]")]


def escape(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    r"""Docstrings are written for those who read code: shapes as (B, *), magnitudes as |x|.  Tell reStructuredText."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``|:\w+:`.*?`)", line)
        parts[::2] = [re.sub(r"(?<=[ (])\*(?=[),])|(?<!\\)\|", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "".join(parts)
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # a comment, or napoleon takes what stands before a colon for a type


def link_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Say where what a docstring cites stands in the index of equations."""
    if name.startswith("paperlib.companion"):
        return
    cited = equations.citations("\n".join(lines), places(), name)
    if shown := [places()[place] for place in cited if places()[place].kind != "section"]:
        links = "; ".join(f"`{place.place} <../equations.html#{place.anchor}>`__" for place in shown)
        lines += ["", f"In the index of equations: {links}.", ""]


def setup(app: Sphinx) -> None:
    """Docstrings are changed before napoleon reads their sections, at priority 500."""
    app.connect("builder-inited", write_api)
    app.connect("source-read", link_page)
    app.connect("doctree-read", number_lines)
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.connect("autodoc-process-docstring", link_docstring, priority=401)
