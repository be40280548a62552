"""Functions that several test files call; not in conftest.py, whose name the notebooks use as well."""

import json
from collections.abc import Callable
from pathlib import Path

import nbformat

REPOSITORY = Path(__file__).parents[1]
"""The checkout under test."""

NotebookWriter = Callable[..., Path]
"""``write_notebook(name, *cells, parameters=…)``, the path of the notebook that it wrote."""


FACTS = {"parameters": {}, "data": None, "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "source_sha256": ""}
"""What a run states of itself, as far as others read it."""


def listing(folder: Path) -> list[str]:
    """Names of what lies in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def record(identifier: str, verdict: str) -> str:
    """The record of a claim with one check, margin 2, and one falsifier, such that the verdict follows."""
    outcome = {"what": "a", "measure": "at most", "limit": 1.0, "value": 0.5, "used": 0.5}
    content = {
        "id": identifier,
        "verdict": verdict,
        "statement": "it holds",
        "place": "here",
        "tolerance": None,
        "checks": [{**outcome, "holds": verdict != "FAIL"}],
        "falsifiers": [{**outcome, "used": 9.0, "holds": verdict == "VACUOUS"}],
        "remarks": {verdict: "why"} if verdict not in ("PASS", "FAIL", "VACUOUS") else {},
    }
    return json.dumps(content)


PROFILE = """\
name: small
description: for tests
data: {name: digits}
model: {name: mlp}
training:
  schedule: {name: cosine, logsnr_min: -12.0, logsnr_max: 12.0}
  weightings:
    sigmoid: {name: sigmoid, bias: 2.0}
  seeds: [0]
  recipe:
    steps: 20
    batch_size: 8
    learning_rate: 1.0e-3
    warmup_steps: 0
    ema_decays: [0.999]
sampling:
  schedule: {name: edm_sampling}
  samplers: [heun]
  steps: 4
  count: 8
notebooks:
  01_first:
    parameters: {points: 3}
  02_second:
    upstream: [01_first]
"""
"""A profile with two notebooks, the second of which reads the first."""


def notebook(*cells: str, parameters: str = 'profile: str = "small"\npoints: int = 2') -> nbformat.NotebookNode:
    """A notebook of a typed parameters cell and code cells; a cell that begins with ``# `` is Markdown."""
    node = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    )
    node.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    for cell in cells:
        make = nbformat.v4.new_markdown_cell if cell.startswith("# ") else nbformat.v4.new_code_cell
        node.cells.append(make(cell))
    return node
