"""From a profile to Snakemake's graph of notebooks, and from its outcome to the table at the end.

Snakemake decides what has to run and in which order; the rules are in the ``Snakefile``.  Each result is represented
by a *stamp*, ``.cache/<profile>/<notebook>/done``, which holds the digest of its outputs.
"""

import fcntl
import hashlib
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from paperlib.companion import claims, files, notebooks, paths, profiles, provenance, sources
from paperlib.companion.claims import Verdict
from paperlib.engine import training


def stamp(profile: str, notebook: str) -> str:
    """Where the stamp of a result is, relative to the checkout."""
    return f".cache/{profile}/{notebook}/done"


def training_stamp(profile: str, arm: str) -> str:
    """The stamp of an arm that is trained, relative to the checkout."""
    return (paths.runs(profile) / f"{arm}.trained").relative_to(files.root()).as_posix()


def training_command(profile: profiles.Profile, arm: str) -> str:
    """The command that trains one arm as ``launch`` of the profile says."""
    if profile.launch is None:
        raise ValueError(f"profile {profile.name!r} has no section 'launch'; add one, or let the notebook train.")
    launch = profile.launch
    paperlib = Path(sys.executable).with_name("paperlib")
    command = [str(paperlib), "train", profile.name, "--arm", arm, "--engine", launch.engine]
    if launch.gpus:
        torchrun = Path(sys.executable).with_name("torchrun")
        command = [str(torchrun), "--standalone", f"--nproc-per-node={launch.gpus}", "--no-python", *command]
    return shlex.join(command)


def dependencies(profile: profiles.Profile, notebook: str) -> dict[str, str]:
    """Digests of everything but its upstream that a result depends on; Snakemake runs a notebook when one changes."""
    path = notebooks.path(notebook)
    return {
        "cells": notebooks.source_digest(path),
        "library": sources.digest(notebooks.library_files(path)),
        "values": _digest({"parameters": profile.notebook(notebook), "shared": profile.shared}),
    }


def training_dependencies(profile: profiles.Profile) -> dict[str, str]:
    """The same of a training job, which no notebook has a part in."""
    return {"version": str(training.VERSION), "values": _digest(profile.shared)}


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def reproduce(profile: profiles.Profile, cores: int, only: str | None = None) -> int:
    """Run what has to be run, then print the table.

    Args:
        profile: the profile.
        cores: cores to use; notebooks that do not depend on one another run side by side.
        only: one notebook, with what it reads from.

    Returns:
        Exit code: 0 when every notebook ran and no claim failed, 1 otherwise.

    Raises:
        ValueError: before anything runs, for a notebook or parameter that does not fit.
        RuntimeError: when the same profile is being reproduced by another process.
    """
    from paperlib.companion import runner  # papermill takes seconds to import, and the Snakefile does not need it

    print(f"{profile.name}: {profile.description}; {len(profile.notebooks)} notebooks, {cores} cores", flush=True)
    for name in profile.notebooks:
        runner.plan(profile, name)
    names = list(profile.notebooks) if only is None else [only]
    for name in names:
        profile.section(name)
    with _sole(profile.name):
        _forget_missing(profile)
        for name in profile.notebooks:
            shutil.rmtree(notebooks.failed_path(profile.name, name), ignore_errors=True)
        code = _snakemake(profile, cores, [stamp(profile.name, name) for name in names])
    print(report(profile), flush=True)
    failed = any(row.failed for row in overview(profile))
    return 1 if code or failed else 0


def _snakemake(profile: profiles.Profile, cores: int, targets: list[str]) -> int:
    """Run Snakemake on the targets.  Its own talk goes to a log, shown only if it, and not a notebook, failed."""
    command = [sys.executable, "-m", "snakemake", *targets, "--config", f"profile={profile.name}"]
    options = ["--cores", str(cores), "--nolock", "--rerun-incomplete"]
    log = files.root() / ".cache" / profile.name / "snakemake.log"
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run([*command, *options], cwd=files.root(), stderr=stream, check=False).returncode
    if code and not any(notebooks.failed_path(profile.name, name).is_dir() for name in profile.notebooks):
        print(log.read_text(encoding="utf-8"), file=sys.stderr)
    return code


def _forget_missing(profile: profiles.Profile) -> None:
    """Remove the stamps of results that are gone or are no longer those that were stamped."""
    for name in profile.notebooks:
        if not finished(profile.name, name):
            (files.root() / stamp(profile.name, name)).unlink(missing_ok=True)


def finished(profile: str, notebook: str) -> bool:
    """Whether the result is there and is the one that was stamped."""
    path, result = files.root() / stamp(profile, notebook), notebooks.result_path(profile, notebook)
    if not (path.is_file() and (result / provenance.MANIFEST).is_file()):
        return False
    return path.read_text().strip() == notebooks.fingerprint(result)


@contextmanager
def _sole(profile: str) -> Iterator[None]:
    """Hold the profile for this process; the system lets go of it when the process ends, however it ends."""
    path = files.root() / ".cache" / profile / "lock"
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"profile {profile!r} is being reproduced by another process; wait for it.") from None
        yield


# The table at the end ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One notebook in the table: what came of it and where to look."""

    notebook: str
    state: str
    verdicts: dict[str, str]
    seconds: float | None
    folder: Path | None

    @property
    def failed(self) -> bool:
        """Whether the notebook or one of its claims failed."""
        return self.state == "failed" or any(
            verdict in (Verdict.FAIL, Verdict.VACUOUS) for verdict in self.verdicts.values()
        )


def overview(profile: profiles.Profile) -> list[Row]:
    """A row for every notebook of the profile, from what lies in the folders."""
    return [_row(profile, name) for name in profile.notebooks]


def recorded(profile: profiles.Profile) -> list[Row]:
    """A row for every notebook that has a finished result, whether it was made here or came with the checkout."""
    found = [(name, notebooks.result_path(profile.name, name)) for name in profile.notebooks]
    return [
        Row(name, "done", verdicts(result), provenance.read(result)["seconds"], result)
        for name, result in found
        if (result / provenance.MANIFEST).is_file()
    ]


def _row(profile: profiles.Profile, name: str) -> Row:
    result, failed = notebooks.result_path(profile.name, name), notebooks.failed_path(profile.name, name)
    if finished(profile.name, name):
        return Row(name, "done", verdicts(result), provenance.read(result)["seconds"], result)
    if failed.is_dir():
        return Row(name, "failed", verdicts(failed), None, failed)
    return Row(name, "not run", {}, None, None)


def verdicts(directory: Path) -> dict[str, str]:
    """Verdict by claim, from the records in a result."""
    return {identifier: record.verdict for identifier, record in records(directory).items()}


def records(directory: Path) -> dict[str, claims.Record]:
    """What a result says about each claim that its notebook tests, by id."""
    return {path.stem: claims.Record.read(path) for path in sorted((directory / "claims").glob("*.json"))}


def report(profile: profiles.Profile) -> str:
    """The table at the end of a run: every notebook, its claims, its time, and where to look."""
    rows = overview(profile)
    table = [
        [row.notebook, row.state, summary(row.verdicts), row.seconds, _relative(row.folder) if row.folder else ""]
        for row in rows
    ]
    notebooks = tabulate(table, ["notebook", "state", "claims", "seconds", "where to look"], floatfmt=".1f")
    known = claims.load()
    checked = [
        [identifier, verdict, known[identifier].statement if identifier in known else "", row.notebook]
        for row in rows
        for identifier, verdict in row.verdicts.items()
    ]
    listing = tabulate(
        checked, ["claim", "verdict", "what was checked", "notebook"], maxcolwidths=[None, None, 70, None]
    )
    return "\n\n".join(["", notebooks, *([listing] if checked else []), ""])


def summary(found: dict[str, str]) -> str:
    counts = {verdict: list(found.values()).count(verdict) for verdict in Verdict}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "–"


def _relative(path: Path) -> str:
    return path.relative_to(files.root()).as_posix()


UNTESTED = claims.Record("NOT RUN", None, None, None, {}, {})
"""Stands for the record of a claim whose notebook has no result at this profile."""


def ledger(profile: profiles.Profile) -> list[dict[str, Any]]:
    """Every claim of ``claims.yaml`` as plain values, with what the results of this profile say of it.

    A claim whose notebook this profile does not have is taken from the profile that has it: the ablation is one of the
    profile "digits", and of no other.

    Beside what the file states, an entry has the ``profile`` that it is from, ``verdict`` and ``remarks``; ``margin``,
    the factor by which the ``tightest`` check stayed inside its limit; ``missed``, the factor by which the weakest
    falsifier missed it, and ``falsifiers``, that factor for each.  A factor is None where there is none, or where it is
    infinite.
    """
    known = claims.load().values()
    where = {notebook: _where(profile, notebook) for notebook in {claim.notebook for claim in known}}
    found = {notebook: records(notebooks.result_path(name, notebook)) for notebook, name in where.items()}
    return [
        {
            "profile": where[claim.notebook],
            **claim.model_dump(),
            **_clarity(found[claim.notebook].get(claim.id, UNTESTED)),
        }
        for claim in known
    ]


def _where(profile: profiles.Profile, notebook: str) -> str:
    """The profile whose result of a notebook counts: this one, unless only another has the notebook."""
    if notebook in profile.notebooks:
        return profile.name
    return next((name for name in profiles.names() if notebook in profiles.load(name).notebooks), profile.name)


def _clarity(record: claims.Record) -> dict[str, Any]:
    return {
        **asdict(record),
        "margin": _finite(record.margin),
        "missed": _finite(record.missed),
        "falsifiers": {what: _finite(miss) for what, miss in record.falsifiers.items()},
    }


def _finite(value: float | None) -> float | None:
    """The value for JSON, which has no infinity."""
    return value if value is not None and math.isfinite(value) else None
