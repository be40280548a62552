"""What a result depends on: which files of the library a notebook uses, and digests of their code.

A digest is taken over the syntax tree without docstrings, so that a comment or a docstring re-trains nothing.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def digest(files: Iterable[Path]) -> str:
    """SHA-256 over the code of Python files, docstrings and comments left out."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(file.name.encode())
        total.update(_code(file.read_text(encoding="utf-8")).encode())
    return total.hexdigest()


def reads(files: Iterable[Path]) -> list[str]:
    """Patterns of the files that Python files read besides code: the strings of a constant ``READS`` in them."""
    found: set[str] = set()
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "READS":
                found |= set(ast.literal_eval(node.value))
    return sorted(found)


@cache
def _code(text: str) -> str:
    """The code of ``text`` without comments, layout and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def dependencies(source: str) -> list[Path]:
    """The files of the library that Python ``source`` imports, directly or through one another.

    Imports inside functions count; ``import paperlib`` alone brings the package's own ``__init__``.
    """
    found: set[Path] = set()
    pending = [source]
    while pending:
        for file in _imported(pending.pop()) - found:
            found.add(file)
            pending.append(file.read_text(encoding="utf-8"))
    return sorted(found)


def modules(source: str) -> set[str]:
    """Names of the modules that Python ``source`` imports, or may: ``from a import b`` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@cache
def _imported(source: str) -> frozenset[Path]:
    ours = {module for module in modules(source) if module.split(".")[0] == PACKAGE.name}
    return frozenset(file for module in ours for file in _files(module))


def _files(module: str) -> set[Path]:
    """The file of a module and the ``__init__`` files on the way to it; nothing for a name that is no module."""
    parts = module.split(".")[1:]
    folders = [PACKAGE.joinpath(*parts[:depth]) / "__init__.py" for depth in range(len(parts) + 1)]
    candidates = [*folders, PACKAGE.joinpath(*parts).with_suffix(".py")] if parts else folders
    return {file for file in candidates if file.is_file()}
