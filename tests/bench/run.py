"""Run every benchmark and write ``results/bench/bench.json`` and ``bench.md``: ``make bench``, on a machine at rest.

Each file ``bench_*.py`` runs in a process of its own, one after the other, with the threads that it states in its
first lines as ``THREADS`` (default 2).  With names as arguments only those run, and the rows of the others are kept.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

from paperlib import files
from paperlib.companion import paths, provenance

HERE = Path(__file__).parent
COLUMNS = ["name", "value", "unit", "target", "met", "peers", "commit"]


def measure(path: Path, commit: str) -> list[dict[str, Any]]:
    """The rows of one benchmark, with what they are rows of."""
    threads = re.search(r"^THREADS = (\d+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    here = {"PYTHONPATH": str(HERE.parents[1])}  # where tools are
    environment = {**os.environ, **here, "OMP_NUM_THREADS": threads[1] if threads else "2"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        print(f"— {path.stem}", flush=True)
        subprocess.run([sys.executable, path, "--json", output], env=environment, check=True)
        return [
            {**row, "file": path.name, "commit": commit[:7]} for row in json.loads(output.read_text(encoding="utf-8"))
        ]


def table(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """The rows as Markdown, with the machine that the last of them were measured on."""
    lines = [[_cell(row[column]) for column in COLUMNS] for row in rows]
    missed = sum(row["met"] is False for row in rows)
    machine = f"{where['cpu']}, {where['cores']} cores, no GPU, torch {where['packages']['torch']}"
    heading = f"Measured on {machine}, at the commit beside each row; {missed} targets missed."
    return f"{heading}\n\n{tabulate(lines, COLUMNS, tablefmt='github', disable_numparse=True)}\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:.4g}" for name, number in value.items())
    return "" if value is None else str(value).replace("|", r"\|")


def main(names: list[str]) -> None:
    """Run all, or those named, and write the result."""
    folder = paths.root() / "results" / "bench"
    found = sorted(HERE.glob("bench_*.py"))
    chosen = [path for path in found if not names or path.stem in names]
    if len(chosen) < len(names):
        raise SystemExit(f"unknown benchmark among {names}; there are {', '.join(path.stem for path in found)}.")
    earlier = folder / "bench.json"
    known = json.loads(earlier.read_text(encoding="utf-8")) if names and earlier.is_file() else []
    rows = {path.name: [row for row in known if row["file"] == path.name] for path in found}
    where = provenance.surroundings()
    rows |= {path.name: measure(path, where["commit"]) for path in chosen}
    every = [row for path in found for row in rows[path.name]]
    files.write_text(folder / "bench.json", json.dumps(every, indent=1, ensure_ascii=False) + "\n")
    files.write_text(folder / "bench.md", table(every, where))
    files.write_text(folder / provenance.MANIFEST, json.dumps(where, indent=1, ensure_ascii=False) + "\n")
    print(f"results/bench/bench.json: {len(every)} rows")


if __name__ == "__main__":
    main(sys.argv[1:])
