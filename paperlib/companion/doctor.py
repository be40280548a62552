"""``paperlib doctor``: what would go wrong on this machine and in this environment, before it does."""

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from paperlib import files
from paperlib.companion import paths, profiles, provenance
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
    least, ours = f"free some: {_size(NEEDED)} at least", "make it writable, or use a checkout of your own"
    commit = provenance.revision(folder)["commit"]
    return [
        Finding("Python", platform.python_version(), sys.version_info >= (3, 11), "use Python 3.11 or newer"),
        Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        Finding("processor", f"{provenance.cpu()}, {provenance.cores()} cores"),
        _gpus(),
        Finding("memory", f"{_size(memory)} free", memory > NEEDED, least),
        Finding("disk", f"{_size(disk)} free", disk > NEEDED, least),
        Finding("checkout", str(folder), os.access(folder, os.W_OK), ours),
        _lock(),
        _home(),
        _kernel(),
        Finding("commit", commit or "unknown", commit is not None, provenance.UNKNOWN_COMMIT),
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
    results = paths.published(name)
    try:
        stated, runs = profiles.load(name), [*provenance.manifests(results).values()]
        trained = _training(results) / 60
    except ValueError as error:
        return Finding(what, "cannot be read", False, str(error))
    if not runs:
        return Finding(what, "no results are published; docs/costs.md has an estimate")
    taken = max(run.get("peak_memory_bytes", 0) for run in runs)
    size = sum(path.stat().st_size for path in results.rglob("*") if path.is_file())
    minutes = sum(run.get("seconds", 0) for run in runs) / 60
    found = (
        f"{len(runs)} of {len(stated.notebooks)} notebooks: {minutes:.0f} minutes one after the other, and "
        f"{trained:.0f} of training, one network after the other ({runs[0].get('cpu')}), up to {_size(taken)} of "
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


def _lock() -> Finding:
    """Whether what is installed is of the versions that the lock has."""
    stated = pins(paths.lock().read_text(encoding="utf-8"))
    installed = {name: version for name in stated if (version := provenance.installed(name))}
    others = [name for name, version in installed.items() if version.partition("+")[0] != stated[name]]
    named = "; ".join(f"{name} {installed[name]} instead of {stated[name]}" for name in others[:5])
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    remedy = "run `make clean` and try again, or accept that numbers may differ in their last digits"
    found = f"{named}{more}" if others else "installed versions are those of the lock"
    return Finding("requirements.lock", found, not others, remedy)


def pins(lock: str) -> dict[str, str]:
    """Version by package of a lock, the lines whose marker excludes this Python or platform left out."""
    stated = [Requirement(line.rstrip(" \\")) for line in lock.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    applying = [one for one in stated if one.marker is None or one.marker.evaluate()]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in applying}
