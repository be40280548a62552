"""From a profile to Snakemake's graph of notebooks, and from its outcome to the table at the end.

Snakemake decides what has to run and in which order; the rules are in the ``Snakefile``.  Each result is represented
by a *stamp*, ``.cache/<profile>/<notebook>/done``, which holds the digest of its outputs.
"""

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tabulate import tabulate

from paperlib import files
from paperlib.companion import claims, notebooks, paths, profiles, provenance
from paperlib.companion.claims import Verdict
from paperlib.engine import recipe
from paperlib.engine.interruption import Interrupted, StopSignals

READS = ("claims.yaml",)
"""Files of the checkout that whoever imports this module depends on (:func:`notebooks.reads`)."""


def stamp(profile: str, notebook: str) -> str:
    """Where the stamp of a result is, relative to the checkout."""
    return f".cache/{profile}/{notebook}/done"


def training_stamp(profile: str, arm: str) -> str:
    """The stamp of an arm that is trained, relative to the checkout."""
    return paths.shown(paths.runs(profile) / f"{arm}.trained")


def training_command(profile: profiles.Profile, arm: str) -> str:
    """What Python is called with to train one arm as ``launch`` of the profile says."""
    if profile.launch is None:
        raise ValueError(f"profile {profile.name!r} has no section 'launch'; add one, or let the notebook train.")
    launch = profile.launch
    command = ["-m", "paperlib", "train", profile.name, "--arm", arm, "--engine", launch.engine]
    if launch.gpus:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={launch.gpus}", *command]
    return shlex.join(command)


def dependencies(profile: profiles.Profile, notebook: str) -> dict[str, str]:
    """Digests of everything but its upstream that a result depends on; Snakemake runs a notebook when one changes."""
    path = notebooks.path(notebook)
    library = notebooks.library_files(path)
    stated = [claim.model_dump() for claim in claims.load().values() if claim.notebook == notebook]
    read = [file for pattern in notebooks.reads(library) for file in sorted(paths.root().glob(pattern))]
    return {
        "cells": notebooks.source_digest(path),
        "library": notebooks.digest(library),
        "values": files.json_sha256({"parameters": profile.notebook(notebook), "shared": profile.shared}),
        "claims": files.json_sha256(stated),
        "files": files.json_sha256({paths.shown(file): provenance.sha256(file) for file in [paths.lock(), *read]}),
    }


def training_dependencies(profile: profiles.Profile) -> dict[str, str]:
    """The same of a training job, which no notebook has a part in."""
    return {"version": str(recipe.VERSION), "values": files.json_sha256(profile.shared)}


def reproduce(profile: profiles.Profile, cores: int, only: str | None = None, strict: bool = False) -> int:
    """Run what has to be run, print the table, and compare with what is published.

    Args:
        profile: the profile.
        cores: cores to use; notebooks that do not depend on one another run side by side.
        only: one notebook, with what it reads from.
        strict: whether a number outside its interval (:mod:`paperlib.companion.compare`) is a failure too.

    Returns:
        Exit code: 0 when every notebook ran and no claim failed, 1 otherwise.

    Raises:
        ValueError: before anything runs, for a notebook or parameter that does not fit.
        MissingDataError: likewise, for data that are not there.
        BusyError: when the same profile is being reproduced by another process.
    """
    from paperlib.companion import compare, crate, runner  # slow to import, and the Snakefile needs neither

    print(f"{profile.name}: {profile.description}; {len(profile.notebooks)} notebooks, {cores} cores", flush=True)
    for name in profile.notebooks:
        runner.plan(profile, name)
    names = list(profile.notebooks) if only is None else [only]
    for name in names:
        profile.section(name)
    profile.data.load("test")
    busy = f"profile {profile.name!r} is being reproduced by another process; wait for it."
    if provenance.revision(paths.root())["commit"] is None:
        print(f"manifests will name no commit: {provenance.UNKNOWN_COMMIT}", file=sys.stderr)
    with files.held(paths.cache(profile.name) / "lock", busy) as lock:
        _forget_missing(profile)
        for name in profile.notebooks:
            shutil.rmtree(paths.failed(profile.name, name), ignore_errors=True)
        code = _snakemake(profile, cores, [stamp(profile.name, name) for name in names], lock)
        if any((paths.local(profile.name, name) / paths.MANIFEST).is_file() for name in profile.notebooks):
            crate.write(paths.local(profile.name))
    print(report(profile), flush=True)
    rows = overview(profile)
    made = [row.notebook for row in rows if row.state == "done"]
    published, here = paths.published(profile.name), paths.local(profile.name)
    compared = compare.results(published, here, made)
    print(compared.text(), flush=True)
    failed = any(row.failed for row in rows) or not {*names} <= {*made}
    return 1 if code or failed or (strict and compared.outside) else 0


def _snakemake(profile: profiles.Profile, cores: int, targets: list[str], lock: IO[str]) -> int:
    """Run Snakemake on the targets.  Its own talk goes to a log, shown only if it, and not a notebook, failed."""
    command = [sys.executable, "-m", "snakemake", *targets, "--config", f"profile={profile.name}"]
    options = ["--cores", str(cores), "--nolock", "--rerun-incomplete"]
    log = paths.cache(profile.name) / "snakemake.log"
    # Not a parameter of the rules: the same checkout under another interpreter has nothing to run again.
    environment = {**os.environ, "PAPERLIB_PYTHON": sys.executable}
    environment.pop("SNAKEMAKE_PROFILE", None)  # a reader's own, which may say dry-run
    with log.open("w", encoding="utf-8") as stream:
        # The lock goes with it: should this process be killed, nobody starts beside what is still running.
        process = subprocess.Popen(
            [*command, *options],
            cwd=paths.root(),
            env=environment,
            stderr=stream,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
        with StopSignals(patient=True, tell=lambda: _end(process)) as signals:
            code = process.wait()
    if signals.received:
        raise Interrupted("stopped; what was finished is kept, and the same command goes on.", signals.received)
    if code and not any(paths.failed(profile.name, name).is_dir() for name in profile.notebooks):
        print(log.read_text(encoding="utf-8"), file=sys.stderr)
    return code


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the whole session of a process to end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def _forget_missing(profile: profiles.Profile) -> None:
    """Remove the stamps of results that are gone or are no longer those that were stamped."""
    for name in profile.notebooks:
        if not finished(profile.name, name):
            (paths.root() / stamp(profile.name, name)).unlink(missing_ok=True)


def finished(profile: str, notebook: str) -> bool:
    """Whether the reader's own result is there and is the one that was stamped."""
    path, result = paths.root() / stamp(profile, notebook), paths.local(profile, notebook)
    if not (path.is_file() and (result / provenance.MANIFEST).is_file()):
        return False
    return path.read_text().strip() == notebooks.fingerprint(result)


# The table at the end ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One notebook in the table: what came of it and where to look."""

    notebook: str
    state: str
    folder: Path | None = None
    verdicts: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the notebook or one of its claims failed."""
        return self.state == "failed" or not {*self.verdicts.values()}.isdisjoint({Verdict.FAIL, Verdict.VACUOUS})


def overview(profile: profiles.Profile) -> list[Row]:
    """A row for every notebook of the profile, from what lies in the folders."""
    rows = []
    for name in profile.notebooks:
        here, failed = paths.local(profile.name, name), paths.failed(profile.name, name)
        if finished(profile.name, name):
            rows.append(Row(name, "done", here, verdicts(here), provenance.read(here).get("seconds")))
        elif failed.is_dir():
            rows.append(Row(name, "failed", failed, verdicts(failed)))
        else:
            rows.append(Row(name, "not run"))
    return rows


def verdicts(directory: Path) -> dict[str, str]:
    """Verdict by claim, from the records in a result."""
    return {identifier: record.verdict for identifier, record in claims.records(directory).items()}


def report(profile: profiles.Profile) -> str:
    """The first table at the end of a run: every notebook, its claims, its time, and where to look."""
    table = [
        [row.notebook, row.state, summary(row.verdicts), row.seconds, paths.shown(row.folder) if row.folder else ""]
        for row in overview(profile)
    ]
    return "\n" + tabulate(table, ["notebook", "state", "claims", "seconds", "where to look"], floatfmt=".1f") + "\n"


def summary(found: dict[str, str]) -> str:
    """How many claims have which verdict, the worst first."""
    counts = {verdict: list(found.values()).count(verdict) for verdict in Verdict}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "–"


UNTESTED = claims.Record.absent("NOT RUN")
"""Stands for the record of a claim whose notebook has no result at this profile."""


def ledger(profile: profiles.Profile) -> list[dict[str, Any]]:
    """Every claim of ``claims.yaml`` as plain values, with what the results of this profile say of it.

    The results are those of :func:`paths.result`.  A claim whose notebook this profile does not have, or has not run,
    is NOT RUN here, whatever another profile says of it.

    Beside what the file states, an entry has ``verdict`` and ``remarks``; ``margin``, the factor by which the
    ``tightest`` check stayed inside its limit; ``missed``, the factor by which the weakest falsifier missed it, and
    ``falsifiers``, that factor for each.  A factor is None where there is none, or where it is infinite.
    ``unsupported`` names what the claim rests on and has fallen.
    """
    known = claims.load()
    entries = [_entry(claim, paths.result(profile.name, claim.notebook)) for claim in known.values()]
    fallen = claims.unsupported(known, {entry["id"]: entry["verdict"] for entry in entries})
    return [{**entry, "unsupported": fallen[entry["id"]]} for entry in entries]


def published_ledger(first: str) -> list[dict[str, Any]]:
    """Every claim as in :func:`ledger`, as it is published, with the ``profile`` whose results it is from.

    That is the profile ``first`` where it has the claim's notebook, else the first one with published results of it.
    """
    entries = []
    for claim in claims.load().values():
        folders = {name: paths.published(name, claim.notebook) for name in [first, *profiles.names()]}
        where = next((name for name, folder in folders.items() if (folder / paths.MANIFEST).is_file()), first)
        entries.append({"profile": where, **_entry(claim, folders[where])})
    return entries


def _entry(claim: claims.Claim, folder: Path | None) -> dict[str, Any]:
    path = folder / "claims" / f"{claim.id}.json" if folder else None
    record = claims.Record.read(path) if path and path.is_file() else UNTESTED
    return {
        **claim.model_dump(),
        "verdict": record.verdict,
        "margin": _finite(record.margin),
        "tightest": record.tightest,
        "missed": _finite(record.missed),
        "falsifiers": {what: _finite(miss) for what, miss in record.misses.items()},
        "remarks": record.remarks,
    }


def _finite(value: float | None) -> float | None:
    """The value for JSON, which has no infinity."""
    return value if value is not None and math.isfinite(value) else None
