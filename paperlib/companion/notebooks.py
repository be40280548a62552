"""Notebooks as files: where they and their results lie, and what they contain.

Read as the JSON that they are, because this is loaded with every workflow and nbformat takes a second to import.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from paperlib.companion import paths, provenance, sources

TRAINING = "07_train"
"""The notebook that trains."""


def names() -> list[str]:
    """The notebooks of this checkout, in reading order."""
    return sorted(path.stem for path in (paths.root() / "notebooks").glob("[0-9]*.ipynb"))


def path(name: str) -> Path:
    """The file of a notebook; ValueError for a name that is none, naming those there are."""
    if name not in names():
        raise ValueError(f"unknown notebook {name!r}; choose one of {', '.join(names()) or '(there are none)'}.")
    return paths.root() / "notebooks" / f"{name}.ipynb"


def cache_path(profile: str, notebook: str) -> Path:
    """A folder for what outlives a run of a notebook, which names it there by what it depends on."""
    return paths.cache(profile, notebook) / "kept"


def fingerprint(directory: Path) -> str:
    """What a result amounts to: a digest of its output hashes, whatever its times and machine."""
    outputs = provenance.read(directory)["outputs"]
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def cells(notebook: Path) -> list[tuple[str, str]]:
    """Kind and source of every cell."""
    content: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


def source_digest(notebook: Path) -> str:
    """SHA-256 of the sources and kinds of a notebook's cells; outputs and counts do not matter."""
    return hashlib.sha256(json.dumps(cells(notebook)).encode()).hexdigest()


def library_files(notebook: Path) -> list[Path]:
    """The files of the library and those beside the notebooks that a notebook imports, directly or not."""
    code = [python(source) for kind, source in cells(notebook) if kind == "code"]
    beside = {path.stem: path for path in notebook.parent.glob("[a-z]*.py")}
    shared = [beside[name] for name in sources.modules("\n".join(code)) if name in beside]
    code += [path.read_text(encoding="utf-8") for path in shared]
    return [*sources.dependencies("\n".join(code)), *shared]


def python(source: str) -> str:
    """Cell source without the lines that are IPython's."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
