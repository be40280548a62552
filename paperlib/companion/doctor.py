"""``paperlib doctor``: whether this machine and this environment can run the companion."""

import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

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
    looks: list[Callable[[], Finding]] = [_python, _torch, _accelerator, _memory, _disk, _writable, _lock]
    return [look() for look in looks]


def _python() -> Finding:
    version = platform.python_version_tuple()
    good = (int(version[0]), int(version[1])) >= (3, 11)
    return Finding("Python", platform.python_version(), good, "use Python 3.11 or newer")


def _torch() -> Finding:
    return Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _accelerator() -> Finding:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("processor", "; ".join([f"{provenance.cpu()}, {provenance.cores()} cores", *names]))


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    return Finding(
        "memory", f"{free / 2**30:.1f} GB free", free > 3 * 2**30, "free some: the notebooks take up to 3 GB"
    )


def _disk() -> Finding:
    free = shutil.disk_usage(paths.root()).free
    remedy = f"free some: results and caches take up to {NEEDED_DISK / 2**30:.0f} GB"
    return Finding("disk", f"{free / 2**30:.1f} GB free", free > NEEDED_DISK, remedy)


def _writable() -> Finding:
    folder = paths.root()
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding("checkout", f"{folder} can be written")
    except OSError as error:
        return Finding(
            "checkout", f"{folder}: {error.strerror}", False, "make it writable, or use a checkout of your own"
        )


def _lock() -> Finding:
    text = (paths.root() / "requirements.lock").read_text(encoding="utf-8")
    different = [
        f"{name} {have} instead of {version}"
        for name, version in pins(text).items()
        if (have := provenance.installed(name)) and have.partition("+")[0] != version
    ]
    found = "; ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")
    remedy = "run `make clean` and try again, or accept that numbers may differ in their last digits"
    return Finding("requirements.lock", found or "installed versions are those of the lock", not different, remedy)


def pins(lock: str) -> dict[str, str]:
    """Version by package of a lock, the lines whose marker excludes this Python or platform left out."""
    stated = [Requirement(line.rstrip(" \\")) for line in lock.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    applying = [one for one in stated if one.marker is None or one.marker.evaluate()]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in applying}
