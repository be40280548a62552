"""Provenance: manifests say where a result came from, and notice when it has changed; files are whole or absent."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import NotebookWriter, listing

from paperlib import files
from paperlib.companion import notebooks, paths, provenance


@pytest.fixture
def result(checkout: Path) -> Path:
    folder = checkout / "results" / "small" / "01_first"
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "a.csv").write_text("1\n")
    (folder / "b.txt").write_text("two\n")
    provenance.write(folder, {"notebook": "01_first"})
    return folder


def test_a_manifest_says_where_the_result_came_from(result: Path) -> None:
    manifest = provenance.read(result)
    assert manifest["notebook"] == "01_first"
    assert set(manifest["outputs"]) == {"b.txt", "tables/a.csv"}
    assert manifest["outputs"]["b.txt"] == "27dd8ed44a83ff94d557f9fd0412ed5a8cbca69ea04922d88c01184a07300a5a"
    assert manifest["packages"]["torch"]
    assert len(manifest["lock_sha256"]) == 64
    assert {"commit", "dirty", "python", "platform", "cpu", "cores", "gpus"} <= set(manifest)


def test_an_untouched_result_verifies(result: Path) -> None:
    assert provenance.verify(result) == []


def test_every_change_is_noticed(result: Path) -> None:
    (result / "b.txt").write_text("TWO\n")
    (result / "tables" / "a.csv").unlink()
    (result / "c.txt").write_text("")
    assert [problem.rpartition("/")[2].partition(" (")[0] for problem in provenance.verify(result)] == [
        "a.csv: missing",
        "c.txt: not in the manifest",
        "b.txt: changed",
    ]


def test_commit_and_dirt(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(provenance.COMMIT_VARIABLE, raising=False)
    assert provenance.revision(checkout) == {"commit": None, "dirty": None}
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "0123abc")
    assert provenance.revision(checkout) == {"commit": "0123abc", "dirty": None}
    if not shutil.which("git"):
        pytest.skip("no git, as in the image")
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=checkout, env={**os.environ, **identity}, check=True)
    clean = provenance.revision(checkout)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (checkout / "results").mkdir()
    (checkout / "results" / "new.txt").write_text("a result is no change of the code")
    assert provenance.revision(checkout) == clean
    (checkout / "claims.yaml").write_text("# changed\n")
    assert provenance.revision(checkout) == {**clean, "dirty": True}


# Files are whole or absent -------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise KeyError("interrupted")

    with pytest.raises(KeyError):
        files.write_whole(target, half)
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["table.csv"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "make the folder writable")],
)
def test_a_disk_that_cannot_be_written_is_explained(tmp_path: Path, code: int, remedy: str) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(code, os.strerror(code), str(path))

    with pytest.raises(OSError, match=remedy) as caught:
        files.write_whole(tmp_path / "figure.svg", fail)
    assert caught.value.errno == code
    assert str(tmp_path / "figure.svg") in str(caught.value)
    assert listing(tmp_path) == []


def test_a_real_full_disk_is_explained() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OSError, match="disk is full"), files.explained(Path("/dev/full")):
        Path("/dev/full").write_text("x")


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    old, new = tmp_path / "result", tmp_path / "new"
    for folder, name in ((old, "a"), (new, "b")):
        folder.mkdir()
        (folder / name).write_text("")
    files.replace_directory(new, old)
    assert listing(tmp_path) == ["result"]
    assert listing(old) == ["b"]


def test_a_directory_that_cannot_be_replaced_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "result"
    old.mkdir()
    (old / "a").write_text("kept")
    with pytest.raises(FileNotFoundError):
        files.replace_directory(tmp_path / "absent", old)
    assert (old / "a").read_text() == "kept"
    assert listing(tmp_path) == ["result"]


def test_outside_a_checkout_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set PAPERLIB_ROOT"):
        paths.root()


# What a result depends on --------------------------------------------------------------------------------------------


def names(source: str) -> set[str]:
    return {file.relative_to(notebooks.PACKAGE).as_posix() for file in notebooks.dependencies(source)}


def test_dependencies_follow_imports() -> None:
    assert names("import json, torch") == set()
    assert {"__init__.py", "schedules.py", "checks.py"} <= names("from paperlib import schedules")
    assert "companion/run.py" in names("from paperlib import companion")
    assert "engine/training.py" in names("def f():\n    from paperlib.engine import training")
    assert "engine/training.py" not in names("from paperlib import companion")
    assert not {"companion/cli.py", "companion/runner.py"} & names("from paperlib import companion")


def test_what_lies_beside_the_notebooks_counts_and_files_that_are_read(
    checkout: Path, write_notebook: NotebookWriter
) -> None:
    path = write_notebook("01_first", "import shared\nfrom paperlib.companion import workflow")
    for name in ("shared", "other"):
        (path.parent / f"{name}.py").write_text("from paperlib import oracles\n")
    found = {file.name for file in notebooks.library_files(path)}
    assert {"shared.py", "oracles.py", "workflow.py"} <= found
    assert "other.py" not in found
    assert notebooks.reads(notebooks.library_files(path)) == ["claims.yaml"]


def test_a_digest_sees_code_and_not_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "PACKAGE", tmp_path / "paperlib")
    file = tmp_path / "paperlib" / "a.py"
    file.parent.mkdir()

    def digest(text: str) -> str:
        file.write_text(text)
        return notebooks.digest([file])

    first = digest('"""One."""\ndef f(x):\n    """Two."""\n    return x + 1\n')
    assert digest('"""Other."""\n# why\ndef f(x):\n    return x + 1\n') == first
    assert digest('"""One."""\ndef f(x):\n    """Two."""\n    return x + 2\n') != first


def test_a_manifest_is_plain_json(result: Path) -> None:
    assert json.loads((result / "manifest.json").read_text()) == provenance.read(result)
