"""The pages of instructions: what they say to type works, block by block."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import REPOSITORY
from pictures import encode, noise, write_shards

from paperlib import models, weightings
from paperlib.companion import cli, experiments, profiles
from paperlib.engine import data
from paperlib.registry import Registry

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [*sorted(DOCS.glob("howto/*.md")), DOCS / "papermill.md", DOCS / "index.md"]


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Language and content of the blocks of code in these languages."""
    return [block for block in BLOCK.findall(page.read_text(encoding="utf-8")) if block[0] in languages]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the images that the pages speak of; what they register is forgotten afterwards."""
    registries: tuple[Registry[Any], ...] = (data.DATASETS, models.MODELS, weightings.WEIGHTINGS)
    before = [dict(registry) for registry in registries]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PAPERLIB_ROOT", str(REPOSITORY))
    pictures = [encode(pixels) for pixels in noise(12, 32)]
    for split, other in (("train", "train"), ("test", "validation")):
        for number, content in enumerate(pictures):
            path = tmp_path / "my/pictures" / split / str(number % 2) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        write_shards(tmp_path / "my/shards", pictures, [number % 2 for number in range(12)], 2, other)
        (tmp_path / "my/arrays").mkdir(exist_ok=True)
        arrays = {"images": noise(12, 32).transpose(0, 3, 1, 2), "labels": np.arange(12) % 2}
        np.savez(tmp_path / "my/arrays" / f"{split}.npz", **arrays)
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.slow
@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python", "sh")], ids=lambda page: page.stem)
def test_every_block_works(page: Path) -> None:
    names: dict[str, Any] = {}
    for language, text in blocks(page, "python", "sh"):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "paperlib"
            assert cli.main(arguments) == 0, line


def test_the_weighting_of_the_page_is_what_it_says() -> None:
    ((_, text), *_) = blocks(DOCS / "howto/weighting.md", "python")
    assert "# True" in text
    names: dict[str, Any] = {}
    try:
        exec(text, names)
        assert names["cliff"].is_monotonic(-12, 12)
    finally:
        del weightings.WEIGHTINGS["cliff"]


def test_the_container_is_called_as_the_dockerfile_says() -> None:
    said = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    for _, text in blocks(DOCS / "howto/container.md", "bash"):
        for line in text.splitlines():
            assert re.search(rf"^# +{re.escape(line)}( |$)", said, re.MULTILINE), line


def test_what_is_said_to_be_trained_on_a_cluster_can_be() -> None:
    text = "\n".join(text for _, text in blocks(DOCS / "scale.md", "bash")).replace("\\\n", " ")
    commands = re.findall(r"paperlib (train .*?)(?:  #|$)", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        options = cli._parser().parse_args(command.split())
        assert experiments.select(profiles.load(options.profile), options.weighting, None, False, None)
    for rule, profile in (("train_edm_monotonic", "imagenet64"),):
        assert f"--config profile={profile}" in text
        assert rule in text.split()
        assert rule.removeprefix("train_") in experiments.arms(profiles.load(profile))


def test_binder_installs_the_lock_and_not_the_container() -> None:
    folder = REPOSITORY / ".binder"
    environment = yaml.safe_load((folder / "environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    top = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert python in top["dependencies"]
    (requirement,) = pip["pip"]
    assert (folder / requirement.removeprefix("-r ")).resolve() == REPOSITORY / "requirements.lock"
    assert (folder / "postBuild").stat().st_mode & 0o111


def test_every_page_is_in_the_contents() -> None:
    listed = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    for page in DOCS.glob("howto/*.md"):
        assert f"howto/{page.stem}" in listed
