"""``paperlib doctor``: whether this machine and this environment can run the companion."""

import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from paperlib.companion import paths, provenance

NEEDED_DISK = 2 * 2**30
"""Bytes that results, caches and checkpoints of the small profiles may take."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, whether it will do, and what to do if not."""

    what: str
    found: str
    good: bool = True
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything; nothing is changed."""
    folder = paths.root()
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(folder).free
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    recent, written, locked = sys.version_info >= (3, 11), _unwritable(folder), _unlike_the_lock(folder)
    named = "; ".join(locked[:5]) + (f" and {len(locked) - 5} more" if len(locked) > 5 else "")
    return [
        Finding("Python", platform.python_version(), recent, "use Python 3.11 or newer"),
        Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        Finding("processor", "; ".join([f"{provenance.cpu()}, {provenance.cores()} cores", *gpus])),
        Finding("memory", f"{_size(memory)} free", memory > 3 * 2**30, "free some: the notebooks take up to 3 GB"),
        Finding(
            "disk",
            f"{_size(disk)} free",
            disk > NEEDED_DISK,
            f"free some: results and caches take {_size(NEEDED_DISK)}",
        ),
        Finding(
            "checkout",
            f"{folder}: {written or 'can be written'}",
            not written,
            "make it writable, or use a checkout of your own",
        ),
        Finding(
            "requirements.lock",
            named or "installed versions are those of the lock",
            not locked,
            "run `make clean` and try again, or accept that numbers may differ in their last digits",
        ),
    ]


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GB"


def _unwritable(folder: Path) -> str:
    """Why a folder cannot be written; nothing where it can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or "cannot be written"


def _unlike_the_lock(folder: Path) -> list[str]:
    """Installed packages of another version than the lock's."""
    stated = pins((folder / "requirements.lock").read_text(encoding="utf-8"))
    found = {name: provenance.installed(name) for name in stated}
    return [
        f"{name} {have} instead of {stated[name]}"
        for name, have in found.items()
        if have and have.partition("+")[0] != stated[name]
    ]


def pins(lock: str) -> dict[str, str]:
    """Version by package of a lock, the lines whose marker excludes this Python or platform left out."""
    stated = [Requirement(line.rstrip(" \\")) for line in lock.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    applying = [one for one in stated if one.marker is None or one.marker.evaluate()]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in applying}
