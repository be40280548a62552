"""``paperlib doctor``: what would go wrong on this machine and in this environment, before it does."""

import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from paperlib import files
from paperlib.companion import paths, profiles, provenance, workflow
from paperlib.engine import data, decode, features
from paperlib.models import weights

NEEDED = 2 * 2**30
"""Bytes of memory that a notebook, and of the disk that results and caches take at the smallest profile."""


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
    recent, unwritable, locked = sys.version_info >= (3, 11), _unwritable(folder), _unlike_the_lock(folder)
    named = "; ".join(locked[:5]) + (f" and {len(locked) - 5} more" if len(locked) > 5 else "")
    least, place = f"free some: {_size(NEEDED)} at least", f"{folder}: {unwritable or 'can be written'}"
    relock = "run `make clean` and try again, or accept that numbers may differ in their last digits"
    return [
        Finding("Python", platform.python_version(), recent, "use Python 3.11 or newer"),
        Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        Finding("processor", f"{provenance.cpu()}, {provenance.cores()} cores"),
        _gpus(),
        Finding("memory", f"{_size(memory)} free", memory > NEEDED, least),
        Finding("disk", f"{_size(disk)} free", disk > NEEDED, least),
        Finding("checkout", place, not unwritable, "make it writable, or use a checkout of your own"),
        Finding("requirements.lock", named or "installed versions are those of the lock", not locked, relock),
        _home(),
        _kernel(),
        _commit(folder),
        _data(),
        _weights(),
        *(_profile(name, memory, disk) for name in profiles.names()),
    ]


def _gpus() -> Finding:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    unused = not names and Path("/proc/driver/nvidia/version").is_file()
    remedy = f"torch {torch.__version__} cannot use it (CUDA {torch.version.cuda}): update the driver"
    return Finding("GPU", "; ".join(names) or ("a driver of NVIDIA's" if unused else "none"), not unused, remedy)


def _home() -> Finding:
    """Where programs keep their caches; the command line has provided one where the user has none (:func:`settle`)."""
    if (home := paths.home()) is None:
        return Finding("home", "none that can be written", False, "set HOME to a folder of your own")
    ours = home == paths.cache("home")
    return Finding("home", f"{home}{', as yours cannot be written' * ours}")


def _kernel() -> Finding:
    """The kernel that JupyterLab starts; headless runs always take this interpreter."""
    try:
        found = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        found = "none"
    same = found.startswith("python") or Path(found).resolve() == Path(sys.executable).resolve()
    remedy = "JupyterLab would run notebooks by it: python -m ipykernel install --sys-prefix"
    return Finding("kernel python3", "this interpreter" if same else found, same, remedy)


def _commit(folder: Path) -> Finding:
    commit = provenance.revision(folder)["commit"]
    return Finding("commit", commit or "unknown", commit is not None, provenance.UNKNOWN_COMMIT)


def _data() -> Finding:
    """Where the data sets are that do not come with a package; nothing is decoded."""
    found = ["digits: packaged"]
    for collection in (data.CIFAR10, data.IMAGENET):
        try:
            folder = collection.located()
            if folder and not any(folder.rglob("*_batch*")):
                for split in collection.splits:
                    decode.find(collection, split).count()
            found.append(f"{collection.title}: {folder or 'from the hub, when asked for'}")
        except (data.MissingDataError, ValueError) as error:
            return Finding("data", f"{collection.title}: not whole", False, str(error))
    return Finding("data", "; ".join(found))


def _weights() -> Finding:
    """Whether the networks that came with the checkout can be read, and where Inception is."""
    runs = map(paths.published_runs, profiles.names())
    networks = [path for folder in runs for path in sorted(folder.glob("*/weights*.safetensors"))]
    for path in networks:
        try:
            weights.read_card(path)
        except files.DamagedFileError as error:
            return Finding("weights", f"{len(networks)} published files", False, str(error))
    inception = features.cache_folder() / "inception" / features.INCEPTION_FILE
    where = inception if inception.is_file() else "downloaded when asked for"
    return Finding("weights", f"{len(networks)} published files; Inception: {where}")


def _profile(name: str, memory: int, disk: int) -> Finding:
    """What a profile takes, from the manifests of its published results and their tables of training runs."""
    what = f"profile {name}"
    try:
        stated = profiles.load(name)
        rows = [provenance.read(row.folder) for row in workflow.recorded(stated) if row.folder]
        trained = _training(paths.published(name)) / 60
    except ValueError as error:
        return Finding(what, "cannot be read", False, str(error))
    if not rows:
        return Finding(what, "no results are published; docs/costs.md has an estimate")
    taken = max(row.get("peak_memory_bytes", 0) for row in rows)
    size = sum(path.stat().st_size for path in paths.published(name).rglob("*") if path.is_file())
    minutes = sum(row.get("seconds", 0) for row in rows) / 60
    found = (
        f"{len(rows)} of {len(stated.notebooks)} notebooks: {minutes:.0f} minutes one after the other, and "
        f"{trained:.0f} of training, one network after the other ({rows[0].get('cpu')}), up to {_size(taken)} of "
        f"memory each, {size / 2**20:.0f} MB of results"
    )
    return Finding(what, found, memory > taken and disk > size, "free memory or disk, or take a smaller profile")


def _training(results: Path) -> float:
    """Seconds that the networks in the tables of some results took, each of them once."""
    tables = [pd.read_csv(path) for path in sorted(results.glob("*/tables/*.csv"))]
    runs = [table[["run", "seconds"]] for table in tables if {"run", "seconds"} <= {*table}]
    return float(pd.concat(runs).drop_duplicates("run").seconds.astype(float).sum()) if runs else 0.0


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
