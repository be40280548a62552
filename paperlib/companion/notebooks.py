"""Notebooks as files: where they lie, what they contain, their parameters, and what their results depend on.

Read as the JSON that they are, because this is loaded with every workflow and nbformat takes a second to import.

A result depends on the cells of its notebook and on the code of the files that these import, directly or through one
another.  Digests are taken over the syntax tree without docstrings, so that a comment re-runs nothing.
"""

import ast
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from paperlib import files
from paperlib.companion import documents, paths, profiles, provenance

PACKAGE = Path(__file__).parents[1]

Count = Annotated[int, Field(ge=1, le=10**9)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
TYPES: dict[str, Any] = {
    **{"bool": bool, "int": Count, "float": Positive, "str": Name},
    **{"list[int]": list[Count], "list[float]": list[Positive], "list[str]": list[Name]},
}
"""Types that a parameter may be annotated with, and what it may be."""
LIMITS: dict[str, Any] = {
    **dict.fromkeys(("seed", "image"), profiles.Seed),
    # From noise to data: where a range leaves out the peak of a weighting, what is said of it is not there to be seen.
    "logsnr_min": Annotated[float, Field(ge=-profiles.LARGEST_LOGSNR, le=-5)],
    "logsnr_max": Annotated[float, Field(ge=5, le=profiles.LARGEST_LOGSNR)],
    **dict.fromkeys(("narrow", "wide"), Annotated[Positive, Field(le=profiles.LARGEST_LOGSNR)]),
    **dict.fromkeys(("confidence", "recognised", "untrained_share"), Share),
    "points": Annotated[Count, Field(ge=2)],
    "samplers": profiles.Samplers,
}
"""What a parameter of this name may be, in whichever notebook."""
RISING = ("narrow", "wide"), ("early_steps", "train_steps")
"""Parameters of which the first must be below the second."""


def names() -> list[str]:
    """The notebooks of this checkout, in reading order."""
    return sorted(path.stem for path in (paths.root() / "notebooks").glob("[0-9]*.ipynb"))


def path(name: str) -> Path:
    """The file of a notebook; ValueError for a name that is none, naming those there are."""
    profiles.require_known("unknown notebook", name, names())
    return paths.root() / "notebooks" / f"{name}.ipynb"


def fingerprint(directory: Path) -> str:
    """What a result amounts to: a digest of its output hashes, whatever its times and machine."""
    return files.json_sha256(provenance.read(directory)["outputs"])


def cells(notebook: Path) -> list[tuple[str, str]]:
    """Kind and source of every cell; DamagedFileError for a file that is no notebook."""
    try:
        content: dict[str, Any] = json.loads(notebook.read_bytes())
        return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise files.damaged(notebook, "a notebook") from error


def python(source: str) -> str:
    """Cell source without the lines that are IPython's."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


# Parameters ----------------------------------------------------------------------------------------------------------


def declared(notebook: Path) -> dict[str, tuple[str, str]]:
    """Annotation and default, as source text, of every parameter: ``points: int = 401``, one a line.

    Raises:
        ValueError: for a parameter without one of the annotations of :data:`TYPES`.
    """
    import papermill  # slow, and the workflow does not need it

    cells(notebook)  # which says of a damaged file what papermill does not
    found = {}
    for name, parameter in papermill.inspect_notebook(str(notebook)).items():
        annotation = found[name] = parameter["inferred_type_name"], parameter["default"]
        if annotation[0] not in TYPES:
            raise ValueError(
                f"{notebook.name}: parameter {name!r} is annotated {annotation[0]}; choose one of {', '.join(TYPES)}."
            )
    return found


def parameters(notebook: Path, given: dict[str, Any], assignments: Iterable[str] = ()) -> dict[str, Any]:
    """All parameters of a notebook: those given, checked, and the defaults of the others.

    papermill itself only logs a misspelt parameter and runs on with the default.

    Args:
        notebook: its file.
        given: values by name.
        assignments: further ones as text, such as "points=101".

    Raises:
        ValueError: naming every parameter that the notebook does not have, whose type is another or whose value is not
            one of :data:`TYPES` and :data:`LIMITS`, and for text that is no assignment.
    """
    known, given, problems = declared(notebook), dict(given), []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} is no assignment; write name=value.")
        given[name] = _literal(text, known.get(name, ("str", ""))[0])
    for name, value in given.items():
        if name not in known:
            problems.append(f"there is no parameter {name!r}; it has {', '.join(known) or 'none'}.")
            continue
        kind, _ = known[name]
        try:
            TypeAdapter(LIMITS.get(name, TYPES[kind]), config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            if any(one["type"].endswith("_type") for one in error.errors()):
                problems.append(f"parameter {name!r} must be {kind}, got {value!r} ({type(value).__name__}).")
            else:
                problems += [f"parameter {name!r}: {documents.explain(one)}" for one in error.errors()]
    values = {name: ast.literal_eval(default) for name, (_, default) in known.items()} | given
    if not problems:
        rising = [(low, high) for low, high in RISING if {low, high} <= known.keys() and values[low] >= values[high]]
        problems = [f"{low} ({values[low]}) must be below {high} ({values[high]})." for low, high in rising]
    if problems:
        raise ValueError("\n".join(f"{notebook.name}: {problem}" for problem in problems))
    return values


def _literal(text: str, annotation: str) -> Any:
    """The value that text stands for; text that is none stays text, and its type is refused."""
    try:
        return text if annotation == "str" else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# What a result depends on --------------------------------------------------------------------------------------------


def source_digest(notebook: Path) -> str:
    """SHA-256 of the sources and kinds of a notebook's cells; outputs and counts do not matter."""
    return files.json_sha256(cells(notebook))


def library_files(notebook: Path) -> list[Path]:
    """The files of the library and those beside the notebooks that a notebook imports, directly or not."""
    code = "\n".join(python(source) for kind, source in cells(notebook) if kind == "code")
    return dependencies(code, notebook.parent)


def dependencies(source: str, beside: Path | None = None) -> list[Path]:
    """The files of the library, and those in the folder ``beside``, that Python ``source`` imports, directly or not.

    Imports inside functions count; ``import paperlib`` alone brings the package's own ``__init__``.
    """
    found: set[Path] = set()
    pending = [source]
    while pending:
        for module in _modules(pending.pop()):
            folder = PACKAGE.parent if module.split(".")[0] == PACKAGE.name else beside
            for file in _files(folder, module.split(".")) - found if folder else ():
                found.add(file)
                pending.append(file.read_text(encoding="utf-8"))
    return sorted(found)


@cache
def _modules(source: str) -> frozenset[str]:
    """Names of the modules that Python ``source`` imports, or may: ``from a import b`` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def _files(folder: Path, parts: list[str]) -> set[Path]:
    """The file of a module and the ``__init__`` files on the way to it; nothing for a name that is no module."""
    packages = [folder.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return {file for file in (*packages, folder.joinpath(*parts).with_suffix(".py")) if file.is_file()}


def digest(code: Iterable[Path]) -> str:
    """SHA-256 over the code of Python files, docstrings and comments left out."""
    return files.json_sha256("".join(file.name + _code(file.read_text(encoding="utf-8")) for file in sorted(code)))


@cache
def _code(text: str) -> str:
    """The code of ``text`` without comments, layout and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def reads(files: Iterable[Path]) -> list[str]:
    """Patterns of the files that Python files read besides code: the strings of a constant ``READS`` in them."""
    found: set[str] = set()
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "READS":
                found |= set(ast.literal_eval(node.value))
    return sorted(found)
