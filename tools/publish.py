"""What a maintainer's run made becomes what the checkout states: ``python -m tools.publish PROFILE``.

A published result is light: SVG files stay behind (each figure keeps its PNG, packed, and its data), so do tables as
Markdown that nobody could read (their CSV is kept), the executed notebook where ``notebooks/`` holds it executed at the
same profile, and weights of which :data:`WEIGHTS` says so.  Its manifest is that of the run, with the hashes of what is
published.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from paperlib import files
from paperlib.companion import compare, crate, notebooks, paths, profiles, provenance, workflow
from tools import pictures

READABLE = 50_000
"""Bytes of a table as Markdown beyond which it is left out."""
WEIGHTS: dict[str, tuple[str, ...]] = {
    "cifar10-cpu": ("sigmoid-seed0", "elbo-seed0"),
    "cifar10-long": (),
    "resolution8": (),
    "resolution32": (),
}
"""The runs of a profile whose weights are published; all of them where it says nothing.  Of the others the card and the
log are."""


def publish(profile: profiles.Profile) -> Path:
    """Replace the published results of a profile by those that ``paperlib reproduce`` made here.

    ``intervals.json`` stays: ``tools/repeat.py`` makes it anew.

    Returns:
        The folder of the published results.

    Raises:
        ValueError: when a notebook has no finished result, a claim failed, or a result was made from a checkout with
            uncommitted changes, naming them all; nothing is changed then.
    """
    rows = workflow.overview(profile)
    problems = [problem for row in rows for problem in _problems(row)]
    if problems:
        raise ValueError(
            f"{profile.name} cannot be published:\n" + "\n".join(problems) + f"\nrun: paperlib reproduce {profile.name}"
        )
    target = paths.published(profile.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{profile.name}.") as name:
        folder = Path(name) / profile.name
        for row in rows:
            assert row.folder is not None
            home = notebooks.parameters(notebooks.path(row.notebook), {}).get("profile")
            _light(row.folder, folder / row.notebook, home != profile.name, WEIGHTS.get(profile.name))
        crate.write(folder)
        if (target / compare.INTERVALS).is_file():
            shutil.copy(target / compare.INTERVALS, folder)
        files.replace_directory(folder, target)
    return target


def _problems(row: workflow.Row) -> list[str]:
    """What keeps the result of a notebook from being published."""
    if row.state != "done" or row.folder is None:
        return [f"{row.notebook}: {row.state}"]
    failed = [f"{row.notebook}: a claim failed"] if row.failed else []
    dirty = [f"{row.notebook}: made from uncommitted changes"] if provenance.read(row.folder).get("dirty") else []
    return [*failed, *dirty, *provenance.problems(row.folder)]


def _light(result: Path, target: Path, executed: bool, weighted: tuple[str, ...] | None) -> None:
    """Copy what is published of a result; ``executed``: its notebook too; ``weighted``: the runs with their weights."""
    left_out = shutil.ignore_patterns("*.svg", *([] if executed else ["*.ipynb"]))
    shutil.copytree(result, target, ignore=left_out)
    for path in target.glob("runs/*/*.safetensors"):
        if weighted is not None and path.parent.name not in weighted:
            path.unlink()
    for path in target.rglob("*.md"):
        if path.stat().st_size > READABLE:
            path.unlink()
    for path in (*target.rglob("*.png"), *target.glob("*.ipynb")):
        pictures.pack(path)
    for path in target.glob("*.ipynb"):  # a warning says in which file
        files.write_text(path, path.read_text(encoding="utf-8").replace(f"{paths.root()}/", ""))
    manifest = provenance.read(target)
    manifest["outputs"] = provenance.hashes(target)
    files.write_text(target / paths.MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def without_interval(profile: str) -> list[str]:
    """Columns of the published data of which ``intervals.json`` says nothing; none where there is no such file."""
    folder = paths.published(profile)
    if (known := compare.intervals(folder)) is None:
        return []
    spread, found = known.spread, compare.data(compare.folders(folder))
    return [
        f"{file} {name}" for file in found for name in compare.columns(found[file]) if name not in spread.get(file, ())
    ]


if __name__ == "__main__":
    print(f"published: {paths.shown(publish(profiles.load(sys.argv[1])))}")
    if missing := without_interval(sys.argv[1]):
        print(f"no interval yet (python -m tools.repeat {sys.argv[1]} --times 3):", *missing, sep="\n  ")
