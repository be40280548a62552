"""The parts of README.md that are made from results: ``make readme``, or ``python -m tools.readme``.

A part stands between ``<!-- begin: NAME -->`` and ``<!-- end -->``.  Numbers there come from ``results/`` and carry
their provenance; the tests check that they are the ones that the committed results give.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

from paperlib import files
from paperlib.companion import paths, profiles, provenance, workflow
from paperlib.companion.claims import factor

PART = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def notebooks(profile: profiles.Profile) -> str:
    """Every notebook: its title, what came of its claims, and how long it took.

    One that this profile does not have is shown with the results of the profile that has it.
    """
    found = {row.notebook: (profile, row) for row in workflow.recorded(profile)}
    for name in profiles.names():
        other = profiles.load(name)
        found |= {row.notebook: (other, row) for row in workflow.recorded(other) if row.notebook not in found}
    rows = []
    for notebook, (where, row) in sorted(found.items()):
        link = f"[{_title(notebook)}](notebooks/{notebook}.ipynb)"
        rows.append([link + _at(where.name, profile), workflow.summary(row.verdicts), f"{row.seconds or 0:.0f} s"])
    return tabulate(rows, ["notebook", "claims and checks", "time"], tablefmt="github")


def predictions(profile: profiles.Profile) -> str:
    """What was expected of the ablation, and what came."""
    return _table("digits", "predictions_and_verdicts")


def photographs(profile: profiles.Profile) -> str:
    """Distances and bits a dimension on CIFAR-10."""
    return "\n\n".join(_table("cifar10-cpu", name) for name in ("weighting_by_sampler", "bits_by_weighting"))


def weightings(profile: profiles.Profile) -> str:
    """The table weighting × sampler."""
    return _table(profile.name, "weighting_by_sampler")


def claims(profile: profiles.Profile) -> str:
    """The ledger: every claim, its verdict and how clear it was, and where it is tested."""
    rows = [
        [
            entry["id"],
            entry["statement"].replace("|", r"\|"),
            entry["verdict"],
            factor(entry["margin"]),
            factor(entry["missed"]),
            f"[{entry['notebook']}](notebooks/{entry['notebook']}.ipynb)" + _at(entry["profile"], profile),
        ]
        for entry in workflow.published_ledger(profile.name)
    ]
    columns = ["id", "claim, in our words", "verdict", "margin", "falsifier misses by", "tested in"]
    return tabulate(rows, columns, tablefmt="github")


def source(profile: profiles.Profile) -> str:
    """Where the numbers come from: commits, machine, versions."""
    found = [provenance.read(row.folder) for row in workflow.recorded(profile) if row.folder]
    commits = ", ".join(sorted({manifest["commit"][:7] for manifest in found}))
    machines = ", ".join(sorted({f"{manifest['cpu']}, {manifest['cores']} cores" for manifest in found}))
    total = sum(manifest["seconds"] for manifest in found)
    peak = max(manifest["peak_memory_bytes"] for manifest in found) / 2**30
    return (
        f"Profile `{profile.name}` ({profile.description}), commit {commits}, torch {found[0]['packages']['torch']}, "
        f"{machines}, no GPU: {total / 60:.1f} minutes in all, peak memory {peak:.1f} GB. "
        f"Each folder of `results/{profile.name}/` has a `manifest.json` with the rest."
    )


PARTS: dict[str, Callable[[profiles.Profile], str]] = {
    "notebooks": notebooks,
    "weightings": weightings,
    "claims": claims,
    "predictions": predictions,
    "photographs": photographs,
    "source": source,
}


def fill(text: str, profile: profiles.Profile) -> str:
    """``text`` with every part made anew; ValueError for a part that nobody knows how to make."""

    def part(match: re.Match[str]) -> str:
        if match[2] not in PARTS:
            raise ValueError(f"README.md asks for a part {match[2]!r}; there are {', '.join(PARTS)}.")
        return f"{match[1]}{PARTS[match[2]](profile)}\n{match[3]}"

    return PART.sub(part, text)


def _at(where: str, profile: profiles.Profile) -> str:
    """What is said of a result that is not of the profile at hand."""
    return "" if where == profile.name else f" (profile `{where}`)"


def _title(notebook: str) -> str:
    """The heading of a notebook, without its number."""
    text = (paths.root() / "notebooks" / f"{notebook}.py").read_text(encoding="utf-8")
    heading = re.search(r"^# # (.*)$", text, re.MULTILINE)
    return heading[1] if heading else notebook


def _table(profile: str, name: str) -> str:
    """A published table as its notebook wrote it, its caption below."""
    (path,) = paths.published(profile).glob(f"*/tables/{name}.md")
    caption, _, table = path.read_text(encoding="utf-8").strip().partition("\n\n")
    return f"{table}\n\n*{caption}*"


def main() -> None:
    """Fill README.md of this checkout from the results of the profile tiny."""
    path: Path = paths.root() / "README.md"
    files.write_text(path, fill(path.read_text(encoding="utf-8"), profiles.load("tiny")))
    print(f"{path.name} filled from results/tiny", file=sys.stderr)


if __name__ == "__main__":
    main()
