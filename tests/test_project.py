"""The project's own files agree with one another and with nobody's machine."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from paperlib.companion.doctor import pins


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock(repository: Path) -> str:
    return (repository / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[Path]:
    """Files of the repository; outside git, what is not hidden."""
    if not shutil.which("git") or not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.splitlines() if (path := repository / name).is_file()]


def make(repository: Path, *arguments: str) -> str:
    if not shutil.which("make"):
        pytest.skip("no make, as in the image")
    return subprocess.run(["make", *arguments], cwd=repository, capture_output=True, text=True, check=True).stdout


# Makefile and CI -----------------------------------------------------------------------------------------------------

TARGETS = {"reproduce", "test", "quick", "lab", "bench", "site", "clean", "lock", "help"}


def test_make_help_lists_every_target(repository: Path) -> None:
    shown = make(repository, "help")
    declared = re.search(r"^\.PHONY: (.*)$", (repository / "Makefile").read_text(), flags=re.MULTILINE)
    assert declared is not None
    listed = set(re.findall(r"^make (\w+) ", shown, flags=re.MULTILINE))
    assert listed == set(declared[1].split())
    assert listed >= TARGETS
    assert make(repository) == shown, "make alone shows the same"


@pytest.mark.parametrize("target", sorted(TARGETS - {"help", "clean", "lock"}))
def test_a_target_sets_up_what_it_needs(repository: Path, tmp_path: Path, target: str) -> None:
    planned = make(repository, "--dry-run", target, f"VENV={tmp_path / 'venv'}")
    assert planned.index("-m venv") < planned.index("--require-hashes -r requirements.lock") < planned.index("-e .")
    ready = tmp_path / "venv" / "ready"
    ready.parent.mkdir()
    ready.touch()
    assert "-m venv" not in make(repository, "--dry-run", target, f"VENV={tmp_path / 'venv'}")


def test_continuous_integration_runs_the_test_command_of_the_readme(repository: Path) -> None:
    commands = (repository / ".ci" / "run").read_text().splitlines()
    assert commands[-1] == "exec make test"
    readme = (repository / "README.md").read_text()
    if len(readme.splitlines()) > 5:
        assert re.search(r"^make test\b", readme, flags=re.MULTILINE)
        assert re.search(r"^make reproduce\b", readme, flags=re.MULTILINE)


def test_make_test_runs_tests_and_notebooks(repository: Path) -> None:
    assert re.search(r"pytest .*--nbval .*tests notebooks", make(repository, "--dry-run", "test"))


# Lock and environments -----------------------------------------------------------------------------------------------


def requirements(project: dict) -> list[Requirement]:
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for text in [*project["dependencies"], *(text for extra in extras for text in extra)]]


def test_the_lock_pins_everything_with_hashes(lock: str) -> None:
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in lock.splitlines() if not line.startswith("#")))
    for entry in filter(None, entries):
        assert re.match(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_the_lock_covers_what_the_project_needs(project: dict, lock: str) -> None:
    pinned = pins(lock)
    for requirement in requirements(project):
        name = canonicalize_name(requirement.name)
        if name == project["name"]:
            continue
        assert name in pinned, f"{name} is not in requirements.lock; run make lock"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} excludes the {pinned[name]} of the lock"


def test_the_lock_and_the_project_name_no_host(lock: str, repository: Path) -> None:
    assert "://" not in lock
    assert "index-url" not in (repository / "pyproject.toml").read_text()


def test_the_bounds_admit_other_machines(project: dict) -> None:
    torch = next(Requirement(text) for text in project["dependencies"] if text.startswith("torch"))
    assert {"2.6.0", "2.9.1"} <= set(torch.specifier.filter(["2.6.0", "2.9.1"]))


def test_the_conda_environment_is_python_and_the_lock(repository: Path, project: dict) -> None:
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    *packages, from_pip = environment["dependencies"]
    assert from_pip == {"pip": ["-r requirements.lock"]}
    python = next(package.partition("=")[2] for package in packages if package.startswith("python="))
    assert Requirement(f"python{project['requires-python']}").specifier.contains(python)
    assert {package.partition("=")[0] for package in packages} == {"python", "pip"}


def test_the_container_installs_the_lock_and_runs_as_nobody_special(repository: Path) -> None:
    dockerfile = (repository / "Dockerfile").read_text()
    build, final = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]
    assert "ARG BASE=python:3.11-slim\n" in dockerfile
    assert build.startswith("${BASE} AS build\n")
    assert final.startswith("${BASE}\n")
    assert "--require-hashes -r requirements.lock" in build
    assert not re.search(r"pip|gcc|build-essential", final)
    assert re.findall(r"^USER (.*)$", final, flags=re.MULTILINE)[-1] == "1000"
    assert 'ENTRYPOINT ["tini", "--", "tools/container"]\nCMD ["reproduce", "tiny"]' in final


def test_the_image_lacks_git_and_what_git_ignores(repository: Path) -> None:
    """A pattern without a slash holds in every folder for git, with ``**/`` before it for Docker."""
    ignored = (line.rstrip("/") for line in (repository / ".gitignore").read_text().splitlines())
    there = (repository / ".dockerignore").read_text().splitlines()
    assert there == [".git", *(line if "/" in line else f"**/{line}" for line in ignored)]


def container(repository: Path, folder: Path, *given: str) -> subprocess.CompletedProcess[str]:
    """What the image starts, in a folder that is the whole image."""
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    command = [repository / "tools" / "container", *given]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("given", "runs"),
    [
        (["reproduce", "tiny"], "paperlib reproduce tiny"),
        (["lab"], "jupyter lab --ip=0.0.0.0 --port=8888 --no-browser --notebook-dir=notebooks"),
        (["test"], "python -m pytest -p no:cacheprovider tests"),
        (["test", "-m", "not slow"], "python -m pytest -p no:cacheprovider -m not slow"),
    ],
)
def test_what_follows_the_images_name(repository: Path, tmp_path: Path, given: list[str], runs: str) -> None:
    """With commands that say how they were called in place of the real ones."""
    for name in ("paperlib", "jupyter", "python"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    done = container(repository, tmp_path, *given)
    assert done.stdout.strip() == runs


def test_what_is_kept_between_runs_lies_in_the_mounted_folder(repository: Path, tmp_path: Path) -> None:
    """As the image is laid out, with an empty folder mounted."""
    links = re.search(r"ln -s (.*) \.", (repository / "Dockerfile").read_text())
    assert links is not None
    for target in links[1].split():
        (tmp_path / Path(target).name).symlink_to(target)
    (tmp_path / "results" / "local").mkdir(parents=True)
    container(repository, tmp_path, "doctor")
    for name in (".cache", ".snakemake"):
        (tmp_path / name / "kept").touch()
        assert (tmp_path / "results" / "local" / name / "kept").is_file()


def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    done = container(repository, tmp_path, "reproduce", "tiny")
    assert done.returncode == 1
    assert re.search(r"user \d+ cannot write results/local: make the mounted folder first", done.stderr)


# Citation and words --------------------------------------------------------------------------------------------------


def test_the_citation_names_the_paper(repository: Path, project: dict) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    (paper,) = citation["references"]
    assert paper["title"] == "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation"
    assert [author["family-names"] for author in paper["authors"]] == ["Kingma", "Gao"]
    assert paper["year"] == 2023
    assert paper["identifiers"][0]["value"] == "arXiv:2303.00848"


def test_the_version_is_stated_once(project: dict) -> None:
    import paperlib

    assert paperlib.__version__ == project["version"]


def test_no_file_names_a_place_on_a_machine(tracked: list[Path]) -> None:
    places = re.compile(rb"(?<![\w.~])/(?:home|root|Users|work|mnt)/\w")
    for path in tracked:
        if path.suffix not in {".png", ".npz", ".safetensors"} and path.name != Path(__file__).name:
            found = places.search(path.read_bytes())
            assert not found, f"{path}: {found and found.group()!r}"


def test_the_ends_of_lines_are_those_of_the_repository_on_every_machine(repository: Path, tracked: list[Path]) -> None:
    """Whatever core.autocrlf says there."""
    names = "\n".join(path.relative_to(repository).as_posix() for path in tracked)
    command = ["git", "check-attr", "--stdin", "text", "eol"]
    done = subprocess.run(command, cwd=repository, input=names, capture_output=True, text=True, check=True)
    said: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.rsplit(": ", 2)
        said.setdefault(name, []).append(value)
    assert [name for name, (text, eol) in said.items() if text != "unset" and eol != "lf"] == []


def test_files_that_are_made_are_not_tracked(tracked: list[Path], repository: Path) -> None:
    for path in tracked:
        parts = path.relative_to(repository).parts
        assert not {".venv", ".cache", "__pycache__", ".snakemake", "_build", "interactive"} & set(parts), path
        assert path.stat().st_size < 3_000_000, path


def test_what_tests_share_is_not_in_a_file_whose_name_the_notebooks_use(repository: Path) -> None:
    """``make test`` collects both folders, and imports the first ``conftest`` that it meets: that of the notebooks."""
    for path in (repository / "tests").rglob("*.py"):
        assert not re.search(r"^(from|import) conftest\b", path.read_text(), flags=re.MULTILINE), path


def test_the_command_is_installed() -> None:
    for command in ([Path(sys.executable).with_name("paperlib")], [sys.executable, "-m", "paperlib"]):
        assert b"reproduce" in subprocess.run([*command, "--help"], capture_output=True, check=True).stdout


def test_without_the_companions_packages_the_command_says_what_to_install(repository: Path) -> None:
    """As after ``pip install .`` alone: torch and NumPy are there, and the theory."""
    blocked = ("matplotlib", "pandas", "papermill", "psutil", "pydantic", "scipy", "sklearn", "tabulate", "yaml")
    hide = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    for code, status, says in (
        ("from paperlib.companion.cli import main; main(['--help'])", 0, "reproduce"),
        ("from paperlib.companion.cli import main; sys.exit(main(['reproduce', 'tiny']))", 1, "[companion]'"),
        ("import paperlib; print(paperlib.weightings.Sigmoid())", 0, "Sigmoid"),
    ):
        command = [sys.executable, "-c", hide + code]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert says in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("repository_url", ["", "https://example.org/somebody/companion"])
def test_the_page_of_a_package_index_has_no_link_into_a_checkout(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository_url: str
) -> None:
    """The metadata of a wheel that is built from the sdist: what an index shows."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    monkeypatch.setenv("PAPERLIB_REPOSITORY", repository_url)
    (sdist,) = SdistBuilder(str(repository)).build(directory=str(tmp_path))
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (wheel,) = WheelBuilder(str(unpacked)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        page = archive.read(name).decode()
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert all(link.startswith("https://") for link in links)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page)
    if repository_url:
        assert pictures
        for path in pictures:
            assert (repository / path.removeprefix(f"{repository_url}/raw/main/")).is_file()
        assert f"[0 A tour in fifteen minutes]({repository_url}/blob/main/notebooks/00_tour.ipynb)" in page
    else:
        assert not pictures
        assert "* 0 A tour in fifteen minutes\n" in page
