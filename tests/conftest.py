"""What several test files share."""

import sys
from pathlib import Path

import nbformat
import pytest
from helpers import PROFILE, REPOSITORY, NotebookWriter, notebook
from hypothesis import HealthCheck, settings

sys.path += [str(REPOSITORY), str(REPOSITORY / "notebooks")]  # tools/, and what the notebooks share

# A busy machine is no failure, and every run sees the same examples.
settings.register_profile("reproducible", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("reproducible")


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
    for variable in ("PAPERLIB_COMMIT", "PAPERLIB_OUTPUT", "PAPERLIB_READ_PUBLISHED"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def write_notebook(checkout: Path) -> NotebookWriter:
    """``write_notebook(name, *cells, parameters=…)`` puts a notebook into the checkout."""

    def write(name: str, *cells: str, **options: str) -> Path:
        path = checkout / "notebooks" / f"{name}.ipynb"
        nbformat.write(notebook(*cells, **options), path)
        return path

    return write
