"""The typed parameters cell of a notebook: reading it, and checking values against it.

papermill itself only logs a misspelt parameter and runs on with the default, so names and types are checked here before
anything runs.  Each parameter is stated on one line, ``points: int = 401``.
"""

import ast
from pathlib import Path
from typing import Any

import papermill
from pydantic import ConfigDict, TypeAdapter, ValidationError

TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list[int]": list[int],
    "list[float]": list[float],
    "list[str]": list[str],
}
"""Types that a parameter may be annotated with."""


def declared(notebook: Path) -> dict[str, tuple[str, str]]:
    """Name, annotation and default (as source text) of every parameter of a notebook.

    Raises:
        ValueError: for a parameter without one of the annotations of :data:`TYPES`.
    """
    found = {}
    for name, parameter in papermill.inspect_notebook(str(notebook)).items():
        annotation = parameter["inferred_type_name"]
        if annotation not in TYPES:
            raise ValueError(
                f"{notebook.name}: parameter {name!r} is annotated {annotation}; choose one of {', '.join(TYPES)}."
            )
        found[name] = (annotation, parameter["default"])
    return found


def check(notebook: Path, given: dict[str, Any]) -> dict[str, Any]:
    """All parameters of the notebook: those given, checked, and the defaults of the others.

    Raises:
        ValueError: naming every parameter that the notebook does not have, or whose type is another.
    """
    known = declared(notebook)
    problems = [_problem(known, name, value) for name, value in given.items()]
    if any(problems):
        raise ValueError("\n".join(f"{notebook.name}: {problem}" for problem in problems if problem))
    return {name: ast.literal_eval(default) for name, (_, default) in known.items()} | given


def parse(notebook: Path, assignments: list[str]) -> dict[str, Any]:
    """``["points=101", "profile=tiny"]`` as values of the types that the notebook declares.

    Raises:
        ValueError: for text that is no assignment, or no literal of the declared type.
    """
    known = declared(notebook)
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} is no assignment; write name=value.")
        annotation = known.get(name, ("str", ""))[0]
        values[name] = text if annotation == "str" else _literal(name, text, annotation)
    return values


def _literal(name: str, text: str, annotation: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"parameter {name!r} must be {annotation}, got {text!r}.") from None


def _problem(known: dict[str, tuple[str, str]], name: str, value: Any) -> str:
    if name not in known:
        return f"there is no parameter {name!r}; it has {', '.join(known) or 'none'}."
    annotation = known[name][0]
    try:
        TypeAdapter(TYPES[annotation], config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return f"parameter {name!r} must be {annotation}, got {value!r} ({type(value).__name__})."
    return ""
