"""What several test files share."""

import sys
from pathlib import Path

import nbformat
import pytest
from helpers import NotebookWriter
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "notebooks")]  # tools/, and what the notebooks share

# A busy machine is no failure, and every run sees the same examples.
settings.register_profile("reproducible", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("reproducible")

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


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout under test."""
    return REPOSITORY


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own: the profile "small", no claims, no notebooks, an empty lock."""
    for folder in ("profiles", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "profiles" / "small.yaml").write_text(PROFILE)
    (tmp_path / "claims.yaml").write_text("# none\n")
    (tmp_path / "requirements.lock").write_text("")
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    for variable in ("PAPERLIB_OUTPUT", "PAPERLIB_READ_PUBLISHED"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


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


@pytest.fixture
def write_notebook(checkout: Path) -> NotebookWriter:
    """``write_notebook(name, *cells, parameters=…)`` puts a notebook into the checkout."""

    def write(name: str, *cells: str, **options: str) -> Path:
        path = checkout / "notebooks" / f"{name}.ipynb"
        nbformat.write(notebook(*cells, **options), path)
        return path

    return write
