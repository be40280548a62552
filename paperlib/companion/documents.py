"""YAML files checked against a pydantic model, with errors that name file and line.

Unknown keys, wrong types and duplicate keys are refused; so is a number that YAML reads as text (``1e-3``: it wants
``1.0e-3``), which would otherwise travel on as a string.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class DocumentError(ValueError):
    """A YAML file that cannot be used; the message has one ``file:line: what is wrong`` a line."""


def load(path: Path, model: type[T]) -> T:
    """Read ``path`` and check it against ``model`` (a pydantic model or any annotation of one).

    Raises:
        FileNotFoundError: when there is no such file.
        DocumentError: naming file and line of everything that is wrong.
    """
    tree = _parse(path)
    data = yaml.safe_load(path.read_text(encoding="utf-8")) if tree is not None else None
    try:
        return TypeAdapter(model).validate_python(data)
    except ValidationError as error:
        lines = [
            f"{path}:{_line(tree, problem['loc'])}: {_where(problem['loc'])}{_explain(problem)}"
            for problem in error.errors()
        ]
        raise DocumentError("\n".join(lines)) from None


def _parse(path: Path) -> yaml.Node | None:
    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DocumentError(f"{path}:{line}: not valid YAML: {error.problem}.") from None
    _refuse_duplicates(path, tree)
    return tree


def _refuse_duplicates(path: Path, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(path, item)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise DocumentError(f"{path}:{line}: {key.value!r} is already given in line {seen[key.value]}.")
            seen[key.value] = line
            _refuse_duplicates(path, value)


def _line(tree: yaml.Node | None, location: Sequence[int | str]) -> int:
    """Line of the deepest node that ``location`` reaches; of the key, where the value is the wrong one."""
    line = 1
    node = tree
    for step in location:
        if isinstance(node, yaml.MappingNode):
            match = [(key, value) for key, value in node.value if key.value == str(step)]
            if not match:
                break
            line, node = match[0][0].start_mark.line + 1, match[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
    return line


def _where(location: Sequence[int | str]) -> str:
    return ".".join(map(str, location)) + ": " if location else ""


def _explain(problem: Any) -> str:
    """What is wrong and what to do, in the words of this project."""
    given = problem.get("input")
    match problem["type"]:
        case "extra_forbidden":
            return "unknown key; remove it or correct its spelling."
        case "missing":
            return "missing; add it."
        case "value_error":
            return str(problem["ctx"]["error"])
        case "float_type" | "int_type" | "float_parsing" if isinstance(given, str):
            return f"expected a number, got the text {given!r}; YAML wants 1.0e-3 where Python takes 1e-3."
    return f"{problem['msg'][0].lower()}{problem['msg'][1:]}, got {given!r}."
