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


class _Loader(yaml.SafeLoader):
    """A key that is given twice is an error, not the last of them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in lines:
                problem = f"{key.value!r} is already given in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def load(path: Path, model: type[T]) -> T:
    """Read ``path`` and check it against ``model`` (a pydantic model or any annotation of one).

    Raises:
        FileNotFoundError: when there is no such file.
        DocumentError: naming file and line of everything that is wrong.
    """
    tree = None
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        tree = loader.get_single_node()
        data = None if tree is None else loader.construct_document(tree)
        return TypeAdapter(model).validate_python(data)
    except ValidationError as error:
        problems = [f"{path}:{_line(tree, one['loc'])}: {_explain(one)}" for one in error.errors()]
        raise DocumentError("\n".join(problems)) from None
    except (yaml.YAMLError, ValueError) as error:  # the latter of impossible dates and of bytes that are no text
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise DocumentError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {what}.") from None


def explained(error: ValidationError) -> str:
    """What pydantic refuses in a file without lines, in a sentence each."""
    return " ".join(map(_explain, error.errors()))


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


def _explain(problem: Any) -> str:
    """Where and what is wrong and what to do, in the words of this project."""
    given, where = problem.get("input"), ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "extra_forbidden":
            what = "unknown key; remove it or correct its spelling."
        case "missing":
            what = "missing; add it."
        case "value_error":
            what = str(problem["ctx"]["error"])
        case "float_type" | "int_type" | "float_parsing" if isinstance(given, str):
            what = f"expected a number, got the text {given!r}; YAML wants 1.0e-3 where Python takes 1e-3."
        case _:
            what = f"{problem['msg'][0].lower()}{problem['msg'][1:]}, got {given!r}."
    return f"{where}: {what}" if where else what
