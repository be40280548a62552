r"""Two sets of results side by side: what is published, and what a run here gave.

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

import json
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tabulate import tabulate

from paperlib.companion import claims

ROUNDING = 1e-5
"""Difference, relative to the largest number of a column, that the arithmetic of another processor makes."""
NOTHING = 1e-11
"""Numbers this small are rounding errors themselves."""
STATES = ("identical", "rounding", "interval", "outside")
TIMES = re.compile(r"second|minute|hour|\btime\b|duration", re.IGNORECASE)
NUMBER = re.compile(r"[-+−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
INTERVALS = "intervals.json"
MISSING = claims.Record("–", None, None, None, {}, {})


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
    """The columns of a CSV file or the arrays of an NPZ file, without those that state times."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    else:
        table = pd.read_csv(path)
        found = {str(name): table[name].to_numpy() for name in table}
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


def data(folder: Path, notebooks: Iterable[str]) -> dict[str, Path]:
    """Tables and data of figures of some notebooks, by ``notebook/figures/name.csv``."""
    found = [path for name in notebooks for kind in ("tables", "figures") for path in (folder / name / kind).glob("*")]
    return {path.relative_to(folder).as_posix(): path for path in sorted(found) if path.suffix in (".csv", ".npz")}


def _differences(ours: Path, theirs: Path, notebooks: list[str]) -> Iterator[Difference]:
    stated = json.loads((ours / INTERVALS).read_text(encoding="utf-8")) if (ours / INTERVALS).is_file() else {}
    one, other = data(ours, notebooks), data(theirs, notebooks)
    for file in sorted(one.keys() ^ other.keys()):
        yield Difference(file, "", "outside", "published only" if file in one else "not published")
    for file in sorted(one.keys() & other.keys()):
        left, right = columns(one[file]), columns(other[file])
        for name in sorted(left.keys() ^ right.keys()):
            yield Difference(file, name, "outside", "published only" if name in left else "not published")
        for name in (name for name in left if name in right):
            known = stated.get("spread", {}).get(file, {})
            interval = {"spread": known[name], "runs": stated["runs"]} if name in known else None
            yield _compare(file, name, left[name], right[name], interval)


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        claims: a row an id: verdict and margin here, verdict and margin there, and what is claimed.
        differences: one a column of every table and figure.
    """

    claims: list[list[str]]
    differences: list[Difference]

    @property
    def outside(self) -> list[Difference]:
        """What no interval covers."""
        return [one for one in self.differences if one.state == "outside"]

    def text(self) -> str:
        """For a terminal: every claim, the files by their worst column, and what is outside with its difference."""
        worst: dict[str, int] = defaultdict(int)
        for one in self.differences:
            worst[one.file] = max(worst[one.file], STATES.index(one.state))
        names = {"rounding": "the same up to rounding", "interval": "within what other seeds change"}
        columns = ["claim", "verdict", "margin", "published", "margin", "what is claimed"]
        lines = [tabulate(self.claims, columns, maxcolwidths=[None, 11, None, 11, None, 56]), ""]
        lines += ["Tables and data of figures, beside what is published:"]
        for number, state in enumerate(STATES):
            files = [file for file, found in sorted(worst.items()) if found == number]
            lines.append(f"{len(files):4} {names.get(state, state)}")
            lines += _wrapped(files) if state != "outside" else []
        lines += [f"       {one.file} {one.column}: {one.largest}" for one in self.outside]
        return "\n".join([*lines, ""])


def _wrapped(files: list[str]) -> list[str]:
    """Files by notebook, several a line."""
    by_notebook: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_notebook[file.partition("/")[0]].append(Path(file).stem)
    texts = [f"{notebook}: {', '.join(names)}" for notebook, names in by_notebook.items()]
    return [
        line for text in texts for line in textwrap.wrap(text, 100, initial_indent=" " * 5, subsequent_indent=" " * 9)
    ]


def results(published: Path, here: Path, notebooks: list[str]) -> Comparison:
    """Compare notebooks of two folders of results of one profile.

    Args:
        published: such as ``results/tiny``; its ``intervals.json`` says how far trained numbers move.
        here: such as ``results/local/tiny``.
        notebooks: names of those to compare; of one that is not published only the claims are shown.
    """
    known = claims.load()
    verdicts = []
    for name in notebooks:
        then, now = claims.records(published / name), claims.records(here / name)
        for identifier in sorted(then.keys() | now.keys()):
            pair = [side.get(identifier, MISSING) for side in (now, then)]
            shown = [text for one in pair for text in (one.verdict, claims.factor(one.margin))]
            verdicts.append([identifier, *shown, known[identifier].statement if identifier in known else ""])
    return Comparison(
        verdicts, list(_differences(published, here, [name for name in notebooks if (published / name).is_dir()]))
    )
