"""Files are written whole or not at all, and what goes wrong is explained."""

import errno
import os
from pathlib import Path

import pytest
from helpers import listing

from paperlib import files


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in ("old", "λ"):
        files.write_text(path, text)
    assert path.read_text(encoding="utf-8") == "λ"
    assert listing(path.parent) == ["file"]


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    """Libraries that write pictures and arrays go by it."""
    with files.replacing(tmp_path / "table.npz") as temporary:
        assert (temporary.suffix, temporary.parent) == (".npz", tmp_path)
        temporary.write_text("")


@pytest.mark.parametrize("when", ["pathlib.Path.mkdir", "pathlib.Path.write_bytes", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "chmod"), (errno.EROFS, "choose a folder")],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, number: int, remedy: str
) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(when, fail)
        with pytest.raises(files.UnwritableError, match=f"{path}.*{remedy}") as caught:
            files.write_bytes(path, b"new")
    assert caught.value.errno == number
    assert listing(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OSError(errno.EIO, "a broken disk")])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")

    def interrupted() -> None:
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)) as caught:
        interrupted()
    assert not isinstance(caught.value, files.UnwritableError)
    assert listing(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for path in (tmp_path / "taken" / "file", tmp_path / "taken" / "deeper" / "file"):
        with pytest.raises(files.UnwritableError, match="choose another folder"):
            files.write_bytes(path, b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(files.UnwritableError, match="chmod"):
        files.write_bytes(tmp_path / "file", b"")
