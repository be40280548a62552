"""YAML files checked against a pydantic model, with errors that name file and line.

Unknown keys, wrong types and duplicate keys are refused; so is a number that YAML reads as text (``1e-3``: it wants
``1.0e-3``), which would otherwise travel on as a string.  An alias (``*name``), which stands for another value, and a
tag (``!name``) are refused: ten lines of aliases can stand for millions of values.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from paperlib import files

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class DocumentError(ValueError):
    """A YAML file that cannot be used; the message has one ``file:line: what is wrong`` a line."""


class _Loader(yaml.SafeLoader):
    """Plain values alone; a key that is given twice is an error, not the last of them."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            problem = "an alias or a tag; write out the value"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

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
    tree, data = read(path.read_bytes(), path)
    try:
        return TypeAdapter(model).validate_python(data)
    except ValidationError as error:
        problems = [f"{path}:{_line(tree, one['loc'])}: {explain(one)}" for one in error.errors()]
        raise DocumentError("\n".join(problems)) from None


def read(text: str | bytes, where: str | Path) -> tuple[yaml.Node | None, Any]:
    """The nodes of a YAML document and its plain values; DocumentError, naming ``where`` it is from, for any other."""
    try:
        loader = _Loader(text.decode() if isinstance(text, bytes) else text)
        tree = loader.get_single_node()
        return tree, None if tree is None else loader.construct_document(tree)
    except RecursionError:
        raise DocumentError(f"{where}:1: not valid YAML: nested too deeply.") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter of impossible dates and of bytes that are no text
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise DocumentError(f"{where}:{mark.line + 1 if mark else 1}: not valid YAML: {what}.") from None


def stated(path: Path, model: type[M], what: str) -> M:
    """What a JSON file says, as a pydantic model; DamagedFileError where it is not ``what`` it should be."""
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise files.damaged(path, what, " ".join(map(explain, error.errors()))) from None


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


def explain(problem: Any) -> str:
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
