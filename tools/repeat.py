"""How far the numbers of a profile move when only its seeds are others: ``results/<profile>/intervals.json``.

    python -m tools.repeat tiny --times 3

Runs the whole profile so many times, each time with every seed (training, pictures, sampling, and parameters of
notebooks called ``seed`` or ``seeds``) moved by a thousand, in a checkout of its own under ``.cache/repeat``.  The
standard deviation of every column over these runs is what ``paperlib reproduce`` and ``paperlib compare`` judge by.
A run that fails a claim counts all the same, with the notebooks that it finished; the file says which.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from paperlib import files
from paperlib.companion import compare, notebooks, paths, profiles, provenance

STEP = 1000
LINKED = ("paperlib", "notebooks", "claims.yaml", "Snakefile", "requirements.lock", "docs", "pyproject.toml")


def moved(value: Any, by: int) -> Any:
    """A seed, or a list of seeds, ``by`` further on."""
    return [moved(one, by) for one in value] if isinstance(value, list) else value + by


def reseed(profile: str, by: int) -> dict[str, Any]:
    """The profile as plain values, every seed moved."""
    content = yaml.safe_load(profiles.path(profile).read_text(encoding="utf-8"))
    content["training"]["seeds"] = moved(content["training"]["seeds"], by)
    for section in ("pictures", "sampling"):
        if section in content:
            content[section]["seed"] = content[section].get("seed", 0) + by
    for name in content["notebooks"]:
        stated = notebooks.parameters(notebooks.path(name), profiles.load(profile).notebook(name))
        seeds = {key: moved(value, by) for key, value in stated.items() if key in ("seed", "seeds")}
        content["notebooks"][name].setdefault("parameters", {}).update(seeds)
    return content


def checkout(profile: str, number: int) -> Path:
    """A checkout beside this one, linked to it, with a profile of other seeds."""
    folder = paths.cache("repeat") / f"{profile}-{number}"
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    (folder / "results").mkdir(exist_ok=True)
    for name in LINKED:
        if not (folder / name).exists():
            (folder / name).symlink_to(paths.root() / name)
    for path in paths.root().glob("results/*"):
        if path.name not in ("local", "interactive", profile) and not (folder / "results" / path.name).exists():
            (folder / "results" / path.name).symlink_to(path)
    for name in profiles.names():
        shutil.copy(profiles.path(name), folder / "profiles")
    text = yaml.safe_dump(reseed(profile, STEP * number), allow_unicode=True, sort_keys=False)
    (folder / "profiles" / f"{profile}.yaml").write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, profile: str, cores: int) -> None:
    """Reproduce the profile in a checkout of its own."""
    environment = {**os.environ, paths.ROOT_VARIABLE: str(folder), "PYTHONPATH": str(paths.root())}
    command = [sys.executable, "-m", "paperlib", "reproduce", profile, "--cores", str(cores)]
    subprocess.run(command, cwd=folder, env=environment, check=False)


def intervals(folders: list[Path], profile: str) -> dict[str, Any]:
    """The spread of every column that all runs have, and what it is from."""
    results = [folder / "results" / "local" / profile for folder in folders]
    names = list(profiles.load(profile).notebooks)
    finished = {name: [(one / name / paths.MANIFEST).is_file() for one in results] for name in names}
    found = [compare.data({name: one / name for name in names}) for one in results]
    spreads: dict[str, dict[str, float | None]] = {}
    for file in sorted(set.intersection(*(set(one) for one in found))):
        runs = [compare.columns(one[file]) for one in found]
        common = [name for name in runs[0] if all(name in run for run in runs)]
        spreads[file] = {name: compare.spread([run[name] for run in runs]) for name in common}
    return {
        "runs": len(folders),
        "seeds moved by": [STEP * number for number in range(1, len(folders) + 1)],
        "not finished": {name: done.count(False) for name, done in finished.items() if not all(done)},
        **{key: provenance.surroundings()[key] for key in ("commit", "cpu", "cores")},
        "spread": spreads,
    }


def main() -> None:
    """Run, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--cores", type=int, default=provenance.cores())
    options = parser.parse_args()
    folders = [checkout(options.profile, number) for number in range(1, options.times + 1)]
    for folder in folders:
        run(folder, options.profile, options.cores)
    target = paths.published(options.profile) / compare.INTERVALS
    files.write_text(target, json.dumps(intervals(folders, options.profile), indent=1) + "\n")
    print(f"{paths.shown(target)} from {options.times} runs")


if __name__ == "__main__":
    main()
