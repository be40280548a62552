"""One's own data set, network, weighting and notebook: each in one place, and used wherever those of paperlib are."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jupytext
import numpy as np
import pytest
import torch
from helpers import PROFILE, NotebookWriter, notebook
from pictures import COLLECTION, encode, noise, write_shards
from torch import Tensor, nn

from paperlib import models, weightings
from paperlib.companion import claims, cli, experiments, notebooks, profiles
from paperlib.engine import data
from paperlib.engine.decode import Crop
from paperlib.models import ConditionedNetwork, weights
from paperlib.registry import Registry


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What is registered is forgotten afterwards, and so is what is cached of it."""
    registries: tuple[Registry[Any], ...] = (data.DATASETS, models.MODELS, weightings.WEIGHTINGS)
    before = [dict(registry) for registry in registries]
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    yield
    profiles._load.cache_clear()
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def stated(checkout: Path, change: str) -> experiments.Experiment:
    """The one experiment of the small profile with another line, such as ``data: {name: mine}``, for two steps."""
    name, text = change.split(":")[0], PROFILE.replace("steps: 20", "steps: 2")
    (checkout / "profiles" / "small.yaml").write_text(re.sub(rf"\b{name}: {{.*", change, text))
    (one,) = experiments.grid(profiles.load("small"))
    return one


# A data set ----------------------------------------------------------------------------------------------------------


def arrays(split: data.Split, root: Path | None, labelled: bool) -> data.ImageData:
    """From a file of arrays."""
    with np.load(Path(root or "") / f"{split}.npz") as found:
        labels = torch.from_numpy(found["labels"]) if labelled else None
        return data.ImageData("arrays", torch.from_numpy(found["images"]), labels)


def write_arrays(folder: Path) -> None:
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", images=noise(12).transpose(0, 3, 1, 2), labels=np.arange(12) % 7)


def write_pictures(folder: Path, labelled: bool) -> None:
    for split in ("train", "test"):
        for number, pixels in enumerate(noise(12)):
            path = folder / split / (str(number % 7) if labelled else "") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels))


def write_parquet(folder: Path) -> None:
    for split in ("train", "validation"):
        write_shards(folder, [encode(pixels) for pixels in noise(12)], [number % 7 for number in range(12)], 2, split)


def write_binary(folder: Path) -> None:
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        with (folder / f"{name}.bin").open("wb") as file:
            file.truncate(10_000 * 3073)


SHAPE = (3, 8, 8)
PARQUET = partial(data.load_collection, collection=COLLECTION, crop=Crop("none", 8))
ENTRIES = {
    "arrays": (write_arrays, data.DataSet(partial(arrays, labelled=True), SHAPE, 7)),
    "arrays without labels": (write_arrays, data.DataSet(partial(arrays, labelled=False), SHAPE, 0)),
    "pictures": (partial(write_pictures, labelled=True), data.DataSet(partial(data.load_folder, size=8), SHAPE, 7)),
    "pictures without labels": (
        partial(write_pictures, labelled=False),
        data.DataSet(partial(data.load_folder, size=8), SHAPE, 0),
    ),
    "parquet": (write_parquet, data.DataSet(PARQUET, SHAPE, 7)),
    "binary batches": (write_binary, data.DataSet(partial(data.load_cifar10, size=8), SHAPE, 10)),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_data_set_is_one_entry(checkout: Path, entry: str, kind: type) -> None:
    write, known = ENTRIES[entry]
    (folder := checkout / "images").mkdir()
    write(folder)
    data.DATASETS["mine"] = known
    assert data.load("mine", "train", kind(folder)).name == "mine/train"
    one = stated(checkout, f"data: {{name: mine, root: {folder}}}")
    result = one.train(progress=False)
    assert (result.network.image_shape, result.network.num_classes) == (SHAPE, known.num_classes)
    assert result.card["data"]["name"] == "mine/train"
    with pytest.raises(ValueError, match=r"unknown data set 'nobody'; choose one of digits, .*, mine"):
        data.load("nobody", "train")


# A network -----------------------------------------------------------------------------------------------------------


class Line(ConditionedNetwork):
    """A matrix, and the level and class added to its result."""

    version = 1

    def __init__(
        self, *, image_shape: tuple[int, int, int], num_classes: int, sigma_data: float, width: int = 8
    ) -> None:
        super().__init__(image_shape, num_classes, sigma_data, condition_width=width)
        pixels = image_shape[0] * image_shape[1] * image_shape[2]
        self.inward, self.told = nn.Linear(pixels, pixels), nn.Linear(width, pixels)

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        return (self.inward(x.flatten(1)) + self.told(condition)).reshape(x.shape)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_network_is_one_class(checkout: Path, kind: type) -> None:
    models.register("line")(Line)
    result = stated(checkout, "model: {name: line, options: {width: 4}}").train(progress=False)
    assert isinstance(result.network, Line)
    found, _ = models.load(kind(result.weights))
    z, logsnr, label = torch.randn(3, 1, 8, 8), torch.zeros(3), torch.tensor([0, 9, 10])
    assert torch.equal(found(z, logsnr, label), result.network(z, logsnr, label))
    assert weights.read_card(kind(result.weights)) == weights.load_weights(kind(result.weights), found) == result.card
    with pytest.raises(ValueError, match="line has no option 'depth'; its parameters are width"):
        stated(checkout, "model: {name: line, options: {depth: 4}}")
    with pytest.raises(ValueError, match=r"unknown model 'nothing'; choose one of mlp, .*, line"):
        models.option_names("nothing")


# A weighting ---------------------------------------------------------------------------------------------------------


def test_a_weighting_is_one_class(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @weightings.register("flat")
    class Flat(weightings.ELBO):
        version = 1

    result = stated(checkout, "sigmoid: {name: flat}").train(progress=False)
    assert result.card["loss"]["weighting"] == {"name": "Flat"}
    assert isinstance(weightings.get("flat"), Flat)


def test_a_package_brings_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_things.py").write_text(
        "from functools import partial\n"
        "from paperlib import models\n"
        "from paperlib.engine.data import DATASETS, DataSet, load_folder\n"
        "DATASETS['theirs'] = DataSet(partial(load_folder, size=8), (3, 8, 8), 0)\n"
        "models.register('their_mlp')(models.MLP)\n"
    )
    installed = tmp_path / "their_things-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: their-things\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[paperlib]\nthings = their_things\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert profiles.Data(name="theirs").name == "theirs"
    assert "width" in models.option_names("their_mlp")


# A notebook ----------------------------------------------------------------------------------------------------------

CLAIM = """\
- id: X99
  place: "nowhere"
  statement: "one and one are two"
  notebook: 03_third
  cell: two
  kind: check
  why: "arithmetic"
  falsifier: "one and one are three"
"""


def test_a_notebook_is_its_two_files_and_its_claims(
    checkout: Path, write_notebook: NotebookWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_notebook("03_third", "1 + 1")
    jupytext.write(notebook("1 + 1"), path.with_suffix(".py"), fmt="py:percent")
    (checkout / "claims.yaml").write_text(CLAIM)
    assert notebooks.names() == ["03_third"]
    assert [claim.notebook for claim in claims.load().values()] == ["03_third"]
    assert cli.main(["claims", "--profile", "small", "--json"]) == 0
    assert [entry["id"] for entry in json.loads(capsys.readouterr().out)] == ["X99"]
    assert cli.main(["run", "03_third", "--profile", "small"]) == 0
