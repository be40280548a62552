"""Things by name: one spelling for Python, YAML and the command line.

A schedule, weighting, prediction or loss weight is *said* as a name, ``"sigmoid"``, or as a plain dictionary of a name
and its parameters, ``{"name": "cosine", "logsnr_min": -12, "logsnr_max": 12}``.  One's own joins by one line,

.. code-block:: python

    @weightings.register("mine")
    class Mine(Weighting): ...

and can then be said wherever the others can.  A package does so by an entry point of the group ``paperlib`` that names
the module with that line: an unknown name makes them be imported.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from numbers import Real
from typing import Any, Generic, TypeVar

from paperlib.checks import NotNegative, Positive

NUMBERS = (int, float, float | None, Positive, NotNegative)
"""Annotations of parameters that are numbers."""

T = TypeVar("T")
Entry = TypeVar("Entry")


class Registry(dict[str, Any], Generic[T]):
    """What can be said by name: name → how to make it (a class or function), or the thing itself.

    Args:
        what: what messages call one of them.
        kind: the class of all of them, or several.
        entries: those there are from the start.
        shifts: parameters that all of them take beside their own, and the nats by which each moves the thing made.
        modules: modules whose import registers more; an unknown name makes them be imported.
    """

    def __init__(
        self,
        what: str,
        kind: type[Any] | tuple[type[Any], ...],
        entries: Mapping[str, Callable[..., T] | T],
        shifts: Mapping[str, Callable[[float], float]] | None = None,
        modules: tuple[str, ...] = (),
    ) -> None:
        super().__init__(entries)
        self.what, self.kind, self.shifts, self.modules = what, kind, shifts or {}, modules

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that adds a class, a function or an instance under ``name``; ValueError for a name in use."""

        def add(entry: Entry) -> Entry:
            if name in self:
                raise ValueError(f"there is a {self.what} {name!r} already; choose another name.")
            if not (callable(entry) or isinstance(entry, self.kind)):
                raise TypeError(f"a {self.what} is registered by its class or a function, got {entry!r}.")
            self[name] = entry
            return entry

        return add

    def make(self, said: T | str | Mapping[str, Any], **parameters: Any) -> T:
        """The thing that ``said`` names; one that is made already is returned as it is.

        Args:
            said: a name, a dictionary of ``name`` and parameters, or an instance.
            parameters: beside a name, what it is made with.

        Raises:
            TypeError: for anything else.
            ValueError: for an unknown name, with the choices, and for parameters that it does not take.
        """
        if isinstance(said, Mapping):
            parameters = {**said, **parameters}
            said = parameters.pop("name", None)
        elif isinstance(said, self.kind) and not parameters:
            return said
        if not isinstance(said, str):
            raise TypeError(
                f"a {self.what} is given by its name, a dictionary with a 'name', or an instance, got "
                f"{said!r}; the names are {', '.join(self)}."
            )
        moves = {name: parameters.pop(name) for name in self.shifts if name in parameters}
        for name, value in moves.items():
            _require_number(said, name, value)
        nats = [self.shifts[name](value) for name, value in moves.items()]
        made: Any = self._made(said, parameters)
        return made.shifted(sum(nats)) if nats else made

    def __missing__(self, name: str) -> Any:
        """What modules and packages register when they are asked; ValueError, with the choices, for what none does."""
        for module in self.modules:
            import_module(module)
        for plugin in entry_points(group="paperlib"):
            plugin.load()
        if name not in self:
            raise ValueError(f"unknown {self.what} {name!r}; choose one of {', '.join(self)}.{near(name, self)}")
        return self[name]

    def called(self, made: T) -> str:
        """The name that ``made``, or its class, has here; else that of its class."""
        names = (name for name, entry in self.items() if entry is type(made) or type(entry) is type(made))
        return next(names, type(made).__name__)

    def _made(self, name: str, parameters: dict[str, Any]) -> T:
        entry = self[name]
        if isinstance(entry, self.kind):
            if not parameters:
                return entry
            entry = type(entry)
        wanted = inspect.signature(entry).parameters
        for key, value in parameters.items():  # YAML and the command line deliver text
            if key in wanted and wanted[key].annotation in NUMBERS and value is not None:
                _require_number(name, key, value)
        try:
            made = entry(**parameters)
        except TypeError as error:
            raise ValueError(f"{name} does not take these parameters: {error}.") from error
        if not isinstance(made, self.kind):
            raise TypeError(f"{name} is registered as a {self.what}, but makes {made!r}.")
        return made


def _require_number(name: str, key: str, value: Any) -> None:
    if not (isinstance(value, Real) and math.isfinite(value)):
        raise ValueError(f"{name}: {key} must be a finite number, got {value!r} (YAML wants 1.0e-3, not 1e-3).")


def near(name: str, names: Iterable[str]) -> str:
    """ " Did you mean …?", where a name is like ``name`` but for its capitals; else nothing."""
    known = {one.lower(): one for one in names}
    found = [known[one] for one in get_close_matches(name.lower(), known)]
    return f" Did you mean {' or '.join(found)}?" if found else ""
