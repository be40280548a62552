"""Claims: what the paper states, how it was tested here, and whether the test could have failed.

``claims.yaml`` lists them: place in the paper, statement, the notebook and cell that test it, tolerance, falsifier.  A
notebook tests one with ``run.claim("C1")``, whose checks print one line each and are recorded, with their margins, in
``claims/C1.json``.  Lines carry no digits that vary from run to run: margins go to the record.

Every check has a *falsifier*, the same comparison on a broken assumption, which must fail.  One that does not fail
shows that the check could not have found anything, and makes the claim VACUOUS.

How clear the outcome was is told by factors of the limit.  The *margin* of a claim is that of its tightest check,
limit / value: 1 at the limit, 1000 when the value is a thousandth of what was allowed.  By how much a falsifier
*missed* is value / limit, and the one that missed by least counts.  Where a check has no scale (yes or no, a count that
must be zero, an interval from 0 to infinity) there is neither.
"""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from paperlib import files
from paperlib.companion import documents, paths

Kind = Literal["identity", "inequality", "statistic", "experiment", "erratum", "check"]


class Verdict(StrEnum):
    """What came of a claim, the worst first; the middle three are those of an experiment."""

    FAIL = "FAIL"
    VACUOUS = "VACUOUS"
    NOT_HELD = "NOT HELD"
    INCONCLUSIVE = "INCONCLUSIVE"
    HELD = "HELD"
    NOT_RUN = "NOT RUN AT THIS SCALE"
    PASS = "PASS"


class Claim(BaseModel):
    """One entry of ``claims.yaml``."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    id: str = Field(pattern=r"^[A-Z]\d+[a-z]?$")
    place: str = Field(min_length=1)
    statement: str = Field(min_length=1)
    notebook: str = Field(pattern=r"^\d\d_[a-z_0-9]+$")
    cell: str = Field(min_length=1)
    kind: Kind
    tolerance: float | None = Field(default=None, gt=0)
    why: str = Field(min_length=1)
    falsifier: str = Field(min_length=1)
    requires: list[str] = []


def _by_id(entries: list[Claim] | None) -> dict[str, Claim]:
    """Each claim below those that it requires."""
    known: dict[str, Claim] = {}
    for entry in entries or []:
        if entry.id in known:
            raise ValueError(f"given more than once: {entry.id}.")
        if missing := set(entry.requires) - known.keys():
            raise ValueError(f"{entry.id} requires {', '.join(sorted(missing))}, which must stand above it.")
        known[entry.id] = entry
    return known


def load(path: Path | None = None) -> dict[str, Claim]:
    """The claims by id, in the order of the file (default: ``claims.yaml`` of the checkout).

    Raises:
        DocumentError: a ValueError with file and line of every mistake.
    """
    stated: Any = Annotated[list[Claim] | None, AfterValidator(_by_id)]
    return documents.load(path or paths.root() / "claims.yaml", stated)


def unsupported(known: dict[str, Claim], verdicts: dict[str, str]) -> dict[str, list[str]]:
    """For every claim the ones it rests on, directly or not, that failed or are vacuous: by id, none for most."""
    fallen: dict[str, list[str]] = {}
    for claim in known.values():  # what it requires stands above it
        below = {one for need in claim.requires for one in fallen[need]}
        below |= {need for need in claim.requires if verdicts.get(need) in (Verdict.FAIL, Verdict.VACUOUS)}
        fallen[claim.id] = [one for one in known if one in below]
    return fallen


# Testing -------------------------------------------------------------------------------------------------------------


ROUNDING = 2.0**-52
"""The least error that a margin counts: one of zero is a rounding error that happened to be none."""


@dataclass(frozen=True)
class Outcome:
    """One comparison: what was compared, the limit it had to keep, the value it had, and whether it held.

    ``used`` is the share of the limit that the value takes, below 1 where it holds and above where not; None where the
    comparison has no scale.
    """

    what: str
    measure: str
    limit: float | str | None
    value: float | None
    holds: bool
    used: float | None = None

    @property
    def statement(self) -> str:
        """What was asked of the value, such as "at most 4"; empty for yes or no."""
        limit = self.limit if isinstance(self.limit, str) else "" if self.limit is None else f"{self.limit:g}"
        return f"{self.measure} {limit}".strip()

    @property
    def shown(self) -> str:
        """The value to two digits, or yes or no."""
        return ("yes" if self.holds else "no") if self.value is None else f"{self.value:.2g}"


class Record(BaseModel):
    """What a notebook leaves about a claim, ``claims/<id>.json``: the checks, the falsifiers, and the verdict of them.

    A record whose verdict does not follow from its checks, falsifiers and remarks is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")
    id: str
    verdict: str
    statement: str
    place: str
    tolerance: float | None
    checks: list[Outcome]
    falsifiers: list[Outcome]
    remarks: dict[str, str]

    @model_validator(mode="after")
    def _follows(self) -> "Record":
        if self.verdict != (due := _verdict(self.checks, self.falsifiers, self.remarks)):
            raise ValueError(f"the verdict is {self.verdict}, and what is recorded amounts to {due}.")
        return self

    @classmethod
    def absent(cls, verdict: str) -> "Record":
        """What stands for a record that is not there."""
        return cls.model_construct(verdict=verdict, checks=[], falsifiers=[], remarks={})

    @classmethod
    def read(cls, path: Path) -> "Record":
        """The record in a file; DamagedFileError where it is none."""
        return documents.stated(path, cls, "a record of a claim")

    @property
    def tightest(self) -> str | None:
        """What the tightest check compared; None where no check has a scale."""
        return self._tightest.what if self._tightest else None

    @property
    def margin(self) -> float | None:
        """limit / value of the tightest check."""
        return 1 / self._tightest.used if self._tightest and self._tightest.used else None

    @property
    def misses(self) -> dict[str, float | None]:
        """Each falsifier by what it broke, with value / limit, the factor by which it missed."""
        return {outcome.what: outcome.used for outcome in self.falsifiers}

    @property
    def missed(self) -> float | None:
        """value / limit of the falsifier that missed by least; infinite where all did."""
        return min((miss for miss in self.misses.values() if miss is not None), default=None)

    @property
    def _tightest(self) -> Outcome | None:
        return max((one for one in self.checks if one.used is not None), key=lambda one: one.used or 0, default=None)


def records(directory: Path) -> dict[str, Record]:
    """What a result says about each claim that its notebook tests, by id; DamagedFileError for what is no record."""
    return {path.stem: Record.read(path) for path in sorted((directory / "claims").glob("*.json"))}


def _verdict(checks: Collection[Outcome], falsifiers: Collection[Outcome], remarks: Collection[str]) -> Verdict:
    """What checks, falsifiers and remarks amount to."""
    if not all(outcome.holds for outcome in checks):
        return Verdict.FAIL
    if any(outcome.holds for outcome in falsifiers):
        return Verdict.VACUOUS
    remarked = next(map(Verdict, remarks), None)
    return remarked or (Verdict.PASS if checks else Verdict.NOT_RUN)


@dataclass
class Test:
    """A claim being tested in a notebook; made by ``run.claim``.

    ``check…`` states what must hold, ``falsify…`` what must not.  Each prints one line, records itself, and raises
    AssertionError when the claim fails or the falsifier does not.
    """

    claim: Claim
    path: Path
    checks: dict[str, Outcome] = field(default_factory=dict)
    falsifiers: dict[str, Outcome] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)

    def check(self, lhs: Any, rhs: Any, what: str = "", *, tolerance: float | None = None, scale: Any = None) -> None:
        """Both sides agree: the largest relative error keeps the tolerance.

        Args:
            lhs: number, array or tensor.
            rhs: the other side, of a shape that broadcasts.
            what: what was compared, for the line; the same text again replaces the earlier outcome.
            tolerance: instead of that of ``claims.yaml``.
            scale: what errors are relative to; by default the larger of the two sides, element by element.
        """
        self._record(self.checks, self._agreement(lhs, rhs, what, tolerance, scale))

    def falsify(self, lhs: Any, rhs: Any, what: str = "", *, tolerance: float | None = None, scale: Any = None) -> None:
        """The comparison of :meth:`check` on a broken assumption; it must fail."""
        self._record(self.falsifiers, self._agreement(lhs, rhs, what, tolerance, scale))

    def check_below(self, value: Any, limit: float, what: str = "") -> None:
        """Every value is at most ``limit``, a number that is stated and not measured."""
        self._record(self.checks, self._below(value, limit, what))

    def falsify_below(self, value: Any, limit: float, what: str = "") -> None:
        """The comparison of :meth:`check_below` on a broken assumption; it must fail."""
        self._record(self.falsifiers, self._below(value, limit, what))

    def check_within(self, value: Any, low: float, high: float, what: str = "") -> None:
        """Every value lies in [low, high], an interval that is stated and not measured."""
        self._record(self.checks, self._within(value, low, high, what))

    def falsify_within(self, value: Any, low: float, high: float, what: str = "") -> None:
        """The comparison of :meth:`check_within` on a broken assumption; it must fail."""
        self._record(self.falsifiers, self._within(value, low, high, what))

    def check_true(self, condition: Any, what: str) -> None:
        """A statement that is simply true or not."""
        self._record(self.checks, Outcome(what, "", None, None, bool(condition)))

    def falsify_true(self, condition: Any, what: str) -> None:
        """A statement that would hold only if the assumption were not broken; it must be false."""
        self._record(self.falsifiers, Outcome(what, "", None, None, bool(condition)))

    def decide(self, verdict: Verdict, reason: str) -> None:
        """What thresholds stated before the runs make of an experiment, HELD, NOT HELD or INCONCLUSIVE, and why."""
        self.remarks = {verdict.value: reason}
        self._write()
        print(f"{self.claim.id} {verdict}: {reason}")

    def not_run(self, reason: str) -> None:
        """Nothing of the claim can be tested at this scale; says why."""
        self.decide(Verdict.NOT_RUN, reason)

    @property
    def verdict(self) -> Verdict:
        """What came of it so far."""
        return _verdict(self.checks.values(), self.falsifiers.values(), self.remarks)

    def _agreement(self, lhs: Any, rhs: Any, what: str, tolerance: float | None, scale: Any) -> Outcome:
        limit = self.claim.tolerance if tolerance is None else tolerance
        if limit is None:
            raise ValueError(f"claim {self.claim.id} has no tolerance; give it one in claims.yaml, or pass tolerance=…")
        error = relative_error(lhs, rhs, scale)
        return Outcome(what, "relative error ≤", limit, error, error <= limit, _share(error, limit))

    def _below(self, value: Any, limit: float, what: str) -> Outcome:
        largest = float(np.max(_array(value)))
        return Outcome(what, "at most", limit, largest, largest <= limit, _share(largest, limit))

    def _within(self, value: Any, low: float, high: float, what: str) -> Outcome:
        values = _array(value).ravel()
        inside = (values >= low) & (values <= high)
        used = _share_of_interval(values, low, high)
        worst = int(inside.argmin() if used is None else used.argmax())
        share = None if used is None else float(used[worst])
        return Outcome(what, "within", f"[{low:g}, {high:g}]", float(values[worst]), bool(inside.all()), share)

    def _record(self, outcomes: dict[str, Outcome], outcome: Outcome) -> None:
        falsifier = outcomes is self.falsifiers
        if falsifier and outcome.value is not None and math.isnan(outcome.value):
            raise ValueError(f"{self.claim.id}: the falsifier is not a number, which shows nothing; make it a number.")
        outcomes[f"{outcome.measure} {outcome.limit} {outcome.what}"] = outcome
        self._write()
        print(line := self._line(outcome, falsifier))
        if outcome.holds == falsifier:
            value = "" if outcome.value is None else f" The value is {outcome.value:.6g}."
            remedy = "break the assumption harder, or sharpen the check" if falsifier else f"see {self.path}"
            raise AssertionError(f"{line}.{value} Claim: {self.claim.statement} ({self.claim.place}); {remedy}.")

    def _line(self, outcome: Outcome, falsifier: bool) -> str:
        statement = outcome.statement
        detail = f"{statement} ({outcome.what})" if statement and outcome.what else statement or outcome.what
        if falsifier:
            state = "does NOT fail: the check is VACUOUS" if outcome.holds else "fails, as it must"
            return f"{self.claim.id} falsifier {state}: {detail}"
        return f"{self.claim.id} {Verdict.PASS if outcome.holds else Verdict.FAIL}: {detail}"

    def _write(self) -> None:
        stated = self.claim.model_dump(include={"id", "statement", "place", "tolerance"})
        checks, falsifiers = ([asdict(one) for one in made.values()] for made in (self.checks, self.falsifiers))
        made = {**stated, "checks": checks, "falsifiers": falsifiers, "remarks": self.remarks}
        record = Record.model_validate({**made, "verdict": self.verdict.value})
        files.write_text(self.path, record.model_dump_json(indent=1) + "\n")


def _share(value: float, limit: float) -> float | None:
    """``value`` over ``limit``; None for a limit of zero, which has no inside."""
    return max(value, ROUNDING) / limit if limit > 0 else None


def _share_of_interval(values: np.ndarray, low: float, high: float) -> np.ndarray | None:
    """Distance from the middle over half the width; low / value for [low, ∞), low > 0; None without such a scale."""
    if math.isfinite(low) and math.isfinite(high):
        return np.abs(values - (low + high) / 2) / ((high - low) / 2)
    return low / np.maximum(values, ROUNDING) if low > 0 else None


def factor(value: float | None) -> str:
    """A margin or a miss as tables show it: ×3.2, ×4e+07, – where there is none."""
    if value is None:
        return "–"
    return "×∞" if math.isinf(value) else f"×{value:.1f}" if 0.1 <= value < 100 else f"×{value:.0e}"


def relative_error(lhs: Any, rhs: Any, scale: Any = None) -> float:
    """max |lhs − rhs| / scale; NaN where a value is not a number, infinite where one is infinite.

    Args:
        lhs: number, array or tensor.
        rhs: the other side, of a shape that broadcasts; ValueError if it does not.
        scale: what errors are relative to; None takes max(|lhs|, |rhs|), element by element.
    """
    left, right = np.broadcast_arrays(_array(lhs), _array(rhs))
    if np.isnan(left).any() or np.isnan(right).any():
        return math.nan
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return math.inf
    size = np.maximum(np.abs(left), np.abs(right)) if scale is None else np.abs(_array(scale))
    error = np.abs(left - right)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(error == 0, 0.0, error / size)
    return float(relative.max())


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    array = np.asarray(value, dtype=np.float64)
    if array.size == 0:
        raise ValueError("nothing to compare: the values are empty.")
    return array
