r"""Two sets of results side by side, such as what is published and what a run here gave.

Claims are compared by verdict and margin, tables and the data of figures number by number.  Of a column (or an array)
the largest difference decides:

========= ==============================================================================================
identical every number is the same
rounding  differences below :data:`ROUNDING` of the largest number of the column
interval  differences that other seeds make as well, by ``intervals.json`` of the published results
outside   anything else, a number or a file that only one side has included
========= ==============================================================================================

``intervals.json`` (``python -m tools.repeat`` makes it) comes from n runs of the whole profile under other
seeds: s, the standard deviation over the runs, pooled over the R numbers of a column.  Two runs differ by more than
:math:`\sqrt2\, t_{1 - 0.025/R,\, R(n-1)}\, s` in one column of twenty when nothing but the seeds differs.  Columns
of times are not compared.
"""

import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from pydantic import BaseModel, PositiveInt
from pydantic_core import to_json
from scipy import stats
from tabulate import tabulate

from paperlib import files
from paperlib.companion import claims, documents, paths, provenance

ROUNDING = 1e-5
"""Difference, relative to the largest number of a column, that the arithmetic of another processor makes."""
NOTHING = 1e-11
"""Numbers this small are rounding errors themselves."""
WORDS = {
    "identical": "identical",
    "rounding": "the same up to rounding",
    "interval": "within what other seeds change",
    "outside": "outside",
}
STATES = tuple(WORDS)
TIMES = re.compile(r"second|minute|hour|\btime\b|duration", re.IGNORECASE)
NUMBER = re.compile(r"[-+−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
INTERVALS = "intervals.json"
MISSING = claims.Record.absent("–")
ONLY = ("only the first has it", "only the second has it")


@dataclass(frozen=True)
class Column:
    """A column of a table or an array: the words around its numbers, and the numbers, flat."""

    words: tuple[str, ...]
    numbers: np.ndarray

    @classmethod
    def of(cls, values: Any) -> "Column":
        """Of numbers as they are; of text, such as "0.99 [0.96, 1.02]", words and numbers apart."""
        array = np.asarray(values)
        if array.dtype.kind in "biuf":
            return cls((str(array.shape),), array.astype(np.float64).ravel())
        texts = [str(value) for value in array.ravel()]
        found = [float(match.replace("−", "-").replace(",", "")) for text in texts for match in NUMBER.findall(text)]
        return cls((str(array.shape), *(NUMBER.sub("#", text) for text in texts)), np.array(found))


def columns(path: Path) -> dict[str, Column]:
    """The columns of a CSV file or the arrays of an NPZ file, without those that state times.

    DamagedFileError for any other file.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        else:
            table = pd.read_csv(path)
            found = {str(name): table[name].to_numpy() for name in table}
    except (ValueError, EOFError, BadZipFile) as error:
        raise files.damaged(path, "a table or the data of a figure") from error
    return {name: Column.of(values) for name, values in found.items() if not TIMES.search(name)}


def spread(runs: list[Column]) -> float | None:
    """s, the standard deviation of a column over runs, pooled over its numbers; None where the words differ."""
    if len({run.words for run in runs}) > 1:
        return None
    values = np.stack([run.numbers for run in runs])
    with np.errstate(invalid="ignore"):
        return float(np.sqrt(np.nanmean(np.nanvar(values, axis=0, ddof=1)))) if values.size else 0.0


@dataclass(frozen=True)
class Difference:
    """How a column differs, and where most."""

    file: str
    column: str
    state: str
    largest: str = ""


def _compare(file: str, name: str, one: Column, other: Column, interval: dict[str, Any] | None) -> Difference:
    """One column against another; ``interval`` has ``spread`` and ``runs``, where there is one."""
    if one.words != other.words:
        if interval and interval["spread"] is None:
            return Difference(file, name, "interval", "words differ, as they do between seeds")
        return Difference(file, name, "outside", "words or shape differ")
    same = (one.numbers == other.numbers) | (np.isnan(one.numbers) & np.isnan(other.numbers))
    if same.all():
        return Difference(file, name, "identical")
    apart = np.where(same, 0.0, np.abs(one.numbers - other.numbers))
    worst = int(np.argmax(np.nan_to_num(apart, nan=math.inf)))
    largest = f"{one.numbers[worst]:.6g} → {other.numbers[worst]:.6g}"
    if apart[worst] <= ROUNDING * np.nanmax(np.abs(one.numbers)) + NOTHING:
        return Difference(file, name, "rounding", largest)
    if interval and interval["spread"]:
        count = len(one.numbers)
        allowed = math.sqrt(2) * stats.t.ppf(1 - 0.025 / count, count * (interval["runs"] - 1)) * interval["spread"]
        largest += f" (allowed ±{allowed:.2g})"
        if apart[worst] <= allowed:
            return Difference(file, name, "interval", largest)
    return Difference(file, name, "outside", largest)


def folders(results: Path) -> dict[str, Path]:
    """The notebooks in a folder of results, by name; it may be that of a single one."""
    if (results / paths.MANIFEST).is_file():
        return {provenance.read(results).get("notebook", results.name): results}
    return {path.name: path for path in sorted(results.glob("[0-9]*")) if path.is_dir()}


def data(notebooks: Mapping[str, Path]) -> dict[str, Path]:
    """Tables and data of figures of some results, by ``notebook/figures/name.csv``."""
    found = [
        (n, path) for n, one in notebooks.items() for kind in ("tables", "figures") for path in one.glob(kind + "/*")
    ]
    return {
        f"{name}/{path.parent.name}/{path.name}": path
        for name, path in sorted(found)
        if path.suffix in (".csv", ".npz")
    }


def _differences(
    one: Mapping[str, Path], other: Mapping[str, Path], stated: "Intervals | None"
) -> Iterator[Difference]:
    for name in sorted(one.keys() ^ other.keys()):
        yield Difference(name, "", "outside", ONLY[name in other])
    common = sorted(one.keys() & other.keys())
    left, right = (data({name: side[name] for name in common}) for side in (one, other))
    for file in sorted(left.keys() ^ right.keys()):
        yield Difference(file, "", "outside", ONLY[file in right])
    for file in sorted(left.keys() & right.keys()):
        ours, theirs = columns(left[file]), columns(right[file])
        for name in sorted(ours.keys() ^ theirs.keys()):
            yield Difference(file, name, "outside", ONLY[name in theirs])
        for name in (name for name in ours if name in theirs):
            known = stated.spread.get(file, {}) if stated else {}
            interval = {"spread": known[name], "runs": stated.runs} if stated and name in known else None
            yield _compare(file, name, ours[name], theirs[name], interval)


@dataclass(frozen=True)
class Claim:
    """A claim on both sides: verdicts and margins, – where a side does not have it."""

    id: str
    verdicts: tuple[str, str]
    margins: tuple[float | None, float | None]
    statement: str


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        sides: what is compared with what.
        settings: how the runs themselves differ, by what: parameters, commit, versions, processor.
        claims: those that either side tests.
        differences: one a column of every table and figure, and one for what a single side has.
    """

    sides: tuple[str, str]
    settings: dict[str, tuple[Any, Any]]
    claims: list[Claim]
    differences: list[Difference]

    @property
    def outside(self) -> list[Difference]:
        """What no interval covers, another verdict included."""
        verdicts = [
            Difference(f"claim {one.id}", "verdict", "outside", " → ".join(one.verdicts))
            for one in self.claims
            if len({*one.verdicts, MISSING.verdict}) == 3
        ]
        return [*verdicts, *(one for one in self.differences if one.state == "outside")]

    @property
    def files(self) -> dict[str, list[str]]:
        """Files by the state of their worst column."""
        worst: dict[str, int] = defaultdict(int)
        for one in self.differences:
            worst[one.file] = max(worst[one.file], STATES.index(one.state))
        return {state: [file for file in sorted(worst) if worst[file] == n] for n, state in enumerate(STATES)}

    def _table(self, form: str, widths: list[int | None] | None = None) -> str:
        columns = ["claim", "first", "margin", "second", "margin", "what is claimed"]
        rows = []
        for one in self.claims:
            (then, now), (before, after) = one.verdicts, map(claims.factor, one.margins)
            rows.append([one.id, then, before, now, after, one.statement])
        return tabulate(rows, columns, tablefmt=form, maxcolwidths=widths)

    def text(self) -> str:
        """For a terminal: every claim, the files by their worst column, and what is outside with its difference."""
        lines = [f"first: {self.sides[0]}", f"second: {self.sides[1]}"]
        lines += [f"       {what}: {' → '.join(map(str, both))}" for what, both in self.settings.items()]
        lines += ["", self._table("simple", [None, 11, None, 11, None, 56]), "", "Tables and data of figures:"]
        for state, found in self.files.items():
            lines.append(f"{len(found):4} {WORDS[state]}")
            lines += _wrapped(found) if state != "outside" else []
        lines += [f"       {one.file} {one.column}: {one.largest}" for one in self.outside]
        return "\n".join([*lines, ""])

    def json(self) -> str:
        """Everything as data."""
        content = {**asdict(self), "outside": list(map(asdict, self.outside)), "files": self.files}
        return to_json(content, indent=1, inf_nan_mode="strings").decode() + "\n"

    def html(self) -> str:
        """A page that needs nothing else: settings, claims, and every column that is not identical, the worst first."""
        settings = tabulate([[what, *both] for what, both in self.settings.items()], ["", *self.sides], tablefmt="html")
        settings = settings if self.settings else "<p>In nothing that their manifests state.</p>"
        shown = sorted(self.differences, key=lambda one: -STATES.index(one.state))
        rows = [[WORDS[one.state], one.file, one.column, one.largest] for one in shown if one.state != "identical"]
        counts = ", ".join(f"{len(found)} {WORDS[state]}" for state, found in self.files.items())
        table = tabulate(rows, ["", "file", "column", "largest difference"], tablefmt="html")
        return PAGE.format(*map(escape, self.sides), settings, self._table("html"), escape(counts), table)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{0} and {1}</title><style>
:root {{ color-scheme: light dark; font: 1rem/1.4 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-x: auto; }}
td, th {{ padding: .1rem .8rem .1rem 0; text-align: left; vertical-align: top; }}
</style></head><body><h1>Two sets of results</h1><p>First: <code>{0}</code>; second: <code>{1}</code>.</p>
<h2>How the runs differ</h2>{2}<h2>Claims</h2>{3}
<h2>Tables and data of figures</h2><p>{4}.</p>{5}</body></html>
"""


def _wrapped(files: list[str]) -> list[str]:
    """Files, sorted, by notebook and kind, several a line."""
    lines = []
    for notebook, those in groupby(map(Path, files), lambda file: file.parts[0]):
        kinds = groupby(those, lambda file: file.parts[1])
        text = "; ".join(f"{kind} {', '.join(file.stem for file in some)}" for kind, some in kinds)
        lines += textwrap.wrap(f"{notebook}: {text}", 100, initial_indent=" " * 5, subsequent_indent=" " * 9)
    return lines


def _settings(folder: Path) -> dict[str, Any]:
    """What may explain a difference of a result from another run of its notebook."""
    if not (folder / paths.MANIFEST).is_file():
        return {}
    stated = provenance.read(folder)
    parameters = {f"parameter {name}": value for name, value in stated.get("parameters", {}).items()}
    return {**parameters, **{name: stated.get(name) for name in ("profile", "commit", "dirty", "python", "cpu")}}


def results(one: Path, other: Path, only: Iterable[str] | None = None) -> Comparison:
    """Compare two folders of results, each of a profile or of one notebook.

    Args:
        one: such as ``results/tiny``; ``intervals.json`` of it, or of the published results of its profile, says how
            far trained numbers move.
        other: such as ``results/local/tiny``.
        only: notebooks to compare; of one that the first does not have only the claims are shown.

    Raises:
        ValueError: for folders that hold no results, or none of a common notebook.
    """
    first, second = folders(one), folders(other)
    names = {*(first.keys() | second.keys() if only is None else only)}
    if any((side / paths.MANIFEST).is_file() for side in (one, other)):
        names &= first.keys() & second.keys()
    if only is None and not (first and second and names):
        raise ValueError(
            f"nothing to compare: {one} holds {', '.join(first) or 'no results'}, "
            f"{other} holds {', '.join(second) or 'no results'}."
        )
    first, second = ({name: side[name] for name in sorted(names & side.keys())} for side in (first, second))
    settings: dict[str, tuple[Any, Any]] = {}
    for name in first.keys() & second.keys():
        before, after = _settings(first[name]), _settings(second[name])
        settings |= {
            what: (before[what], after[what]) for what in before if what in after and before[what] != after[what]
        }
    known, tested = claims.load(), []
    for name in sorted(names):
        then, now = (claims.records(side[name]) if name in side else {} for side in (first, second))
        for identifier in sorted(then.keys() | now.keys()):
            left, right = (side.get(identifier, MISSING) for side in (then, now))
            statement = known[identifier].statement if identifier in known else ""
            tested.append(Claim(identifier, (left.verdict, right.verdict), (left.margin, right.margin), statement))
    pair = (first, second) if only is None else (first, {name: second[name] for name in second if name in first})
    return Comparison((paths.shown(one), paths.shown(other)), settings, tested, [*_differences(*pair, intervals(one))])


class Intervals(BaseModel):
    """What ``intervals.json`` states, as far as it is read here: s of every column of a file, over so many runs."""

    runs: PositiveInt
    spread: dict[str, dict[str, float | None]]


def intervals(folder: Path) -> Intervals | None:
    """How far numbers move between seeds, where it is known for these results or for their profile."""
    profiles = [provenance.read(folder).get("profile", "")] if (folder / paths.MANIFEST).is_file() else []
    for home in (folder, folder.parent, *map(paths.published, profiles)):
        if (home / INTERVALS).is_file():
            return documents.stated(home / INTERVALS, Intervals, "how far numbers move")
    return None
