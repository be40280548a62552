"""Hold the notebooks to their committed outputs, numbers within a tolerance.

nbval compares text exactly, while the last digits of a float differ between machines.  Here outputs are compared in two
parts: the text between the numbers exactly (spaces apart: columns move with the width of a number), and the numbers
within RTOL or ATOL.  Integers, and digits that belong to a name (``C1``, ``07_train``), must match exactly.

And when all cells have passed, what the notebooks wrote, the data of figures and tables, is held to what is published,
as `paperlib compare` does: most numbers stand in no output.

`tests/test_nbval_tolerance.py` sees to it that a wrong number fails.
"""

import math
import os
import re

import pytest
from nbval.plugin import IPyNbCell

from paperlib.companion import compare, paths, profiles

os.environ[paths.PUBLISHED_VARIABLE] = "1"  # kernels inherit it: what a reader has run here is not what was committed

RTOL = 1e-3
"""Three printed digits must agree: more are printed nowhere that rounding could not move the last of them."""

ATOL = 1e-9
"""Below this a printed number is rounding error around zero."""

NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w])")
WHOLE = re.compile(r"[-+−]?\d+")


class Output(str):
    """Text of an output that equals another when the words do, and the numbers nearly."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        if str.__eq__(self, other):
            return True
        (words, numbers), (other_words, other_numbers) = _split(self), _split(other)
        return words == other_words and all(map(_close, numbers, other_numbers))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _split(text: str) -> tuple[list[str], list[str]]:
    """The words around the numbers, with rules and runs of spaces shortened, and the numbers."""
    words = [re.sub(r"-{3,}", "--", re.sub(r"\s+", " ", part)).strip() for part in NUMBER.split(text)]
    return words, NUMBER.findall(text)


def _close(left: str, right: str) -> bool:
    if WHOLE.fullmatch(left) and WHOLE.fullmatch(right):
        return int(left.replace("−", "-")) == int(right.replace("−", "-"))
    return math.isclose(float(left.replace("−", "-")), float(right.replace("−", "-")), rel_tol=RTOL, abs_tol=ATOL)


def _sanitize_numbers(self: IPyNbCell, text: object) -> object:
    cleaned = _sanitize(self, text)
    return Output(cleaned) if isinstance(cleaned, str) else cleaned


_sanitize = IPyNbCell.sanitize
IPyNbCell.sanitize = _sanitize_numbers


def unlike_published(ran: set[str]) -> list[str]:
    """Columns of the data that some notebooks wrote which are not as published, nor within the spread of seeds.

    A file that a notebook did not write is none: it reads some tables where they are published.
    """
    found = []
    for profile in ("tiny", "digits"):
        names = ran & {*profiles.load(profile).notebooks}
        compared = compare.results(paths.published(profile), paths.interactive(profile), names)
        found += [f"{one.file} {one.column}: {one.largest}" for one in compared.outside if one.column]
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    chosen = session.config.option
    ran = {item.path.stem for item in session.items if isinstance(item, IPyNbCell)}
    if not ran or session.testsfailed or chosen.keyword or chosen.markexpr or chosen.collectonly:
        return  # of a notebook that ran in part, an earlier run's data may lie there
    if wrong := unlike_published(ran):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        report = session.config.pluginmanager.get_plugin("terminalreporter")
        report.write_line("\n".join(["", "not as published in results/:", *wrong]), red=True)
