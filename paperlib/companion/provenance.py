"""Where a result came from: ``manifest.json`` beside it, and the check that it is still that result."""

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt

from paperlib import files
from paperlib.companion import claims, documents, paths
from paperlib.companion.paths import MANIFEST
from paperlib.files import file_sha256 as sha256

PACKAGES = [
    *("diffusion-objectives", "numpy", "scipy", "torch", "torchvision", "scikit-learn", "clean-fid"),
    *("safetensors", "pandas"),
    *("matplotlib", "sympy", "pydantic", "papermill", "nbclient", "ipykernel", "jupytext", "snakemake"),
]
"""Packages whose versions a manifest states; all others follow from the hash of the lock."""


COMMIT_VARIABLE = "PAPERLIB_COMMIT"
"""What an image without git was built from."""
UNKNOWN_COMMIT = (
    f"git knows none of this folder (`git log` says why; where another user owns it, git config --global --add "
    f"safe.directory FOLDER helps); or set {COMMIT_VARIABLE}."
)
"""What to do about it."""


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file under ``directory`` by its relative path, the manifest left out."""
    found = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    return {path.relative_to(directory).as_posix(): sha256(path) for path in found}


def write(directory: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of a result: ``facts`` of the run, where it ran, and the hash of every output."""
    content = {**facts, **surroundings(), "outputs": hashes(directory)}
    files.write_text(directory / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


class Manifest(BaseModel):
    """What every manifest states, and, where they are facts of a run, what these must be."""

    model_config = ConfigDict(extra="allow")
    notebook: str = ""
    profile: str = ""
    parameters: dict[str, Any] = {}
    data: dict[str, dict[str, Any]] | None = None
    started: str = ""
    seconds: NonNegativeFloat = 0.0
    peak_memory_bytes: PositiveInt = 1
    source_sha256: str = ""
    cpu: str = ""
    commit: str | None
    dirty: bool | None
    lock_sha256: str | None
    python: str
    packages: dict[str, str]
    cores: PositiveInt
    outputs: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a finished result.

    Raises:
        FileNotFoundError: where there is none.
        DamagedFileError: where it is not what :func:`write` writes.
    """
    return documents.stated(directory / MANIFEST, Manifest, "a manifest").model_dump(exclude_unset=True)


def manifests(results: Path) -> dict[str, dict[str, Any]]:
    """The manifests of the finished results in the folder of a profile, by notebook."""
    return {path.parent.name: read(path.parent) for path in sorted(results.glob(f"*/{MANIFEST}"))}


def verify(directory: Path) -> list[str]:
    """What has changed under ``directory`` since its manifest was written, a sentence a file; empty if nothing."""
    stated, actual = read(directory)["outputs"], hashes(directory)
    changed = sorted(name for name in stated.keys() & actual.keys() if stated[name] != actual[name])
    return [
        *(f"{directory / name}: missing" for name in sorted(stated.keys() - actual.keys())),
        *(f"{directory / name}: not in the manifest" for name in sorted(actual.keys() - stated.keys())),
        *(f"{directory / name}: changed (SHA-256 {actual[name][:12]}…, not {stated[name][:12]}…)" for name in changed),
    ]


def problems(directory: Path) -> list[str]:
    """What is wrong with a result, a line a problem; empty if nothing.

    Besides :func:`verify`: the manifest is there and is one; there is a record for every claim that ``claims.yaml`` has
    for the notebook and no other, and the verdict of each follows from its checks.
    """
    if not (directory / MANIFEST).is_file():
        return [f"{directory / MANIFEST}: missing; nothing says where this result is from"]
    try:
        found, notebook = verify(directory), read(directory).get("notebook")
    except files.DamagedFileError as error:
        return [str(error)]
    due = {one.id for one in claims.load().values() if one.notebook == notebook}
    records = {path.stem: path for path in sorted((directory / "claims").glob("*.json"))}
    for name in sorted(due ^ records.keys()):
        what = "missing, and claims.yaml has it" if name in due else "not a claim of this notebook"
        found.append(f"{directory / 'claims' / name}.json: {what}")
    for path in records.values():
        try:
            claims.Record.read(path)
        except files.DamagedFileError as error:
            found.append(str(error))
    return found


def surroundings() -> dict[str, Any]:
    """Commit, lock, versions and hardware of this process."""
    return {
        **revision(paths.root()),
        "lock_sha256": sha256(paths.lock()) if paths.lock().is_file() else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "cpu": cpu(),
        "cores": cores(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def revision(checkout: Path) -> dict[str, Any]:
    """The commit of a checkout and whether anything but results differs from it.

    Outside git: what ``$PAPERLIB_COMMIT`` says, as an image was built with it, and nothing of differences.
    """
    commit = _git(checkout, "rev-parse", "HEAD")
    if not commit:
        return {"commit": os.environ.get(COMMIT_VARIABLE) or None, "dirty": None}
    changes = _git(checkout, "status", "--porcelain", "--", ".", ":(exclude)results")
    return {"commit": commit, "dirty": bool(changes)}


def _git(checkout: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def installed(package: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu() -> str:
    """The processor by name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
