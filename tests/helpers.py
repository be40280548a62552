"""Functions that several test files call; not in conftest.py, whose name the notebooks use as well."""

from collections.abc import Callable
from pathlib import Path

NotebookWriter = Callable[..., Path]
"""``write_notebook(name, *cells, parameters=…)``, the path of the notebook that it wrote."""


def listing(folder: Path) -> list[str]:
    """Names of what lies in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())
