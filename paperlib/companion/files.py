"""Where things lie in a checkout, and how they are written: under a temporary name, renamed when whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from paperlib.engine.files import UnwritableError, explained, replacing, write_text

__all__ = [
    "ROOT_VARIABLE",
    "UnwritableError",
    "explained",
    "replace_directory",
    "replacing",
    "root",
    "write_text",
    "write_whole",
]

ROOT_VARIABLE = "PAPERLIB_ROOT"
"""Environment variable that names the checkout when neither the working directory nor the package lies in it."""


def root() -> Path:
    """The checkout: $PAPERLIB_ROOT, else the nearest folder above the working directory or the package that is one.

    Raises:
        FileNotFoundError: when there is none; the companion, unlike the library, needs profiles and notebooks.
    """
    named = os.environ.get(ROOT_VARIABLE)
    starts = [Path(named)] if named else [Path.cwd(), Path(__file__).parent]
    for start in starts:
        for folder in [start, *start.parents] if not named else [start]:
            if (folder / "profiles").is_dir() and (folder / "claims.yaml").is_file():
                return folder.resolve()
    raise FileNotFoundError(
        f"no checkout of the companion (a folder with profiles/ and claims.yaml) at {' or '.join(map(str, starts))}; "
        f"change into it, or set {ROOT_VARIABLE} to it."
    )


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary name and rename the file to ``path``."""
    with replacing(path) as temporary:
        write(temporary)


def replace_directory(new: Path, old: Path) -> None:
    """Put ``new`` where ``old`` is, which is set aside meanwhile and comes back if that fails."""
    aside = old.with_name(f".{old.name}.{os.getpid()}.old")
    with explained(old):
        old.parent.mkdir(parents=True, exist_ok=True)
        if old.exists():
            old.rename(aside)
        try:
            shutil.move(new, old)  # a rename, except between file systems
        except OSError:
            if aside.exists():
                shutil.rmtree(old, ignore_errors=True)
                aside.rename(old)
            raise
        shutil.rmtree(aside, ignore_errors=True)
