"""Files written whole or not at all: under a temporary name beside their own, renamed when they are complete.

A crash, a full disk or a killed process leaves what was there before.  Everything that the project writes goes through
:func:`replacing`.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run again",
    errno.EDQUOT: "the disk quota is used up: free some space and run again",
    errno.EROFS: "the file system is read-only: choose a folder on one that can be written",
    errno.EACCES: "no permission: make the folder writable (chmod u+w), or choose a folder of your own",
    errno.EPERM: "no permission: make the folder writable (chmod u+w), or choose a folder of your own",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder",
    errno.EEXIST: "a part of the path is a file, not a folder: choose another folder",
}
"""What to do about an error of the system, by its number."""


class UnwritableError(OSError):
    """A file or folder that cannot be written, with the remedy."""


class BusyError(RuntimeError):
    """Another process is at the same work."""


class DamagedFileError(ValueError):
    """A file that is truncated, corrupt or of another kind; the message names it."""


def damaged(
    path: str | Path, wanted: str, why: str = "it is truncated, corrupt or of another kind."
) -> DamagedFileError:
    """The error for a file that is not what it should be."""
    return DamagedFileError(f"{path} is not {wanted}: {why} Delete or replace it.")


@contextmanager
def explained(path: str | Path, hint: str = "") -> Iterator[None]:
    """Give errors of a full or read-only disk a remedy, and a hint; other errors pass unchanged.

    Raises:
        UnwritableError: naming ``path`` and what to do.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, UnwritableError) or error.errno not in REMEDIES:
            raise
        remedy = f"cannot write {path}: {REMEDIES[error.errno]}. {hint}"
        raise UnwritableError(error.errno, remedy.rstrip()) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, with its suffix; renamed to it when the block ends well, else removed.

    Raises:
        UnwritableError: when the folder cannot be made or written, or the disk is full; naming ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush(path: str | Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_sha256(value: object) -> str:
    """SHA-256 of what JSON holds, in hex, however its names are ordered."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary name and rename the file to ``path``."""
    with replacing(path) as temporary:
        write(temporary)


@contextmanager
def held(lock: Path, refusal: str | None = None, *, hint: str = "") -> Iterator[IO[str]]:
    """Hold the file ``lock``, for this process and those that it hands the stream to; wait for others to let go of it.

    It is free when the last of them has ended, however that was, and on whichever machine of a shared disk.

    Raises:
        BusyError: instead of waiting, with ``refusal``, where there is one.
        UnwritableError: when it cannot be written, with ``hint``.
    """
    with explained(lock, hint):
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if refusal is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(refusal) from None
        yield stream


def replace_directory(new: Path, old: Path) -> None:
    """Put ``new`` where ``old`` is, which is set aside meanwhile and comes back if that fails, or by :func:`restore`.

    Nobody else may be at ``old`` at the same time: whoever calls this holds a lock on it.
    """
    near, aside = old.with_name(f".{old.name}.new"), _aside(old)
    with explained(old):
        old.parent.mkdir(parents=True, exist_ok=True)
        restore(old)
        shutil.rmtree(near, ignore_errors=True)
        shutil.move(new, near)  # a rename, except between file systems
        if old.exists():
            old.rename(aside)
        try:
            near.rename(old)
        except OSError:
            restore(old)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def restore(directory: Path) -> None:
    """Bring back a folder that was set aside for a new one by a process that did not live to put that in place."""
    if (aside := _aside(directory)).exists():
        if directory.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(directory)


def _aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")
