"""What the benchmarks share: a row of the result, and timing two things in turn.

Times on a busy machine mean little; what is reported are ratios of medians, both sides measured in the same run, A B A
B …, so that a machine that slows down slows both.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Row:
    """One line of ``results/bench/bench.json``.

    Args:
        name: what was measured.
        value: the figure.
        unit: its unit; "×" for ratios.
        target: what it should reach, in words with the number, such as "≥ 1.25"; empty where there is none.
        met: whether it does; None where there is no target.
        peers: the same figure for others, by name.
    """

    name: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None
    peers: dict[str, float] | None = None


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turn(rounds: int, warmup: int = 1, **calls: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each call, measured in turn: first of all, second of all, …"""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup):
        for call in calls.values():
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: median(found) for name, found in times.items()}


def main(rows: Callable[[], Iterator[Row]]) -> None:
    """What a benchmark does when it is run by itself: print its rows; with ``--json FILE``, write them there too."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    found = []
    for row in rows():
        found.append(asdict(row))
        print(describe(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def describe(row: Row) -> str:
    """A row as a line of text."""
    verdict = "" if row.met is None else f" (target {row.target}: {'met' if row.met else 'MISSED'})"
    peers = "".join(f"; {name} {value:.4g}" for name, value in (row.peers or {}).items())
    return f"{row.name}: {row.value:.4g} {row.unit}{verdict}{peers}"
