"""Where things lie in a checkout, and how they are written: under a temporary name, renamed when whole."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT_VARIABLE = "PAPERLIB_ROOT"
"""Environment variable that names the checkout when neither the working directory nor the package lies in it."""


class UnwritableError(OSError):
    """A file or folder that cannot be written, with the remedy."""


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


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; renamed to it when the block ends well, removed when it does not.

    Raises:
        UnwritableError: when the folder cannot be written (read-only, full), naming it and the remedy.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Give errors of a full or read-only disk a remedy; other errors pass unchanged.

    Raises:
        UnwritableError: naming ``path`` and what to do.
    """
    remedies = {
        errno.ENOSPC: "the disk is full: free some space and run again",
        errno.EDQUOT: "the disk quota is used up: free some space and run again",
        errno.EROFS: "the file system is read-only: use a checkout on one that can be written",
        errno.EACCES: "no permission: make the folder writable (chmod u+w), or use a checkout of your own",
        errno.EPERM: "no permission: make the folder writable (chmod u+w), or use a checkout of your own",
    }
    try:
        yield
    except OSError as error:
        if isinstance(error, UnwritableError) or error.errno not in remedies:
            raise
        raise UnwritableError(error.errno, f"cannot write {path}: {remedies[error.errno]}.") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary name and rename the file to ``path``."""
    with whole(path) as temporary:
        write(temporary)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, UTF-8, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
