"""What ``paperlib sample`` and ``paperlib evaluate`` do with networks of a profile and with files of weights."""

import csv
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from paperlib import models, objectives, predictions, schedules, weightings
from paperlib.companion import cli, measuring, profiles
from paperlib.engine import data, recipe, training
from paperlib.models import weights


@pytest.fixture
def profile(checkout: Path) -> profiles.Profile:
    return profiles.load("small")


def written(path: Path, prediction: predictions.Prediction, size: int = 8, width: int = 16) -> Path:
    """A file of weights as training leaves it, of another width than the profile's network."""
    network = models.build(
        "mlp", image_shape=(1, size, size), num_classes=10, sigma_data=0.75, seed=0, width=width, blocks=1
    )
    loss = objectives.WeightedLoss(weightings.ELBO(), schedules.Cosine(-8, 8), prediction)
    images = data.load("digits", "train")
    card = recipe.describe(network, loss, images, training.TrainingConfig(steps=1))
    weights.save_weights(path, network, card)
    return path


@pytest.mark.parametrize("name", ["eps", "v", "x", "flow", "F"])
def test_a_file_of_weights_says_what_its_network_is(profile: profiles.Profile, tmp_path: Path, name: str) -> None:
    wanted = predictions.get(name, **({"sigma_data": 0.75} if name == "F" else {}))
    found = measuring.stored(written(tmp_path / "mine.safetensors", wanted), profile)
    assert found.prediction == wanted
    assert (found.name, found.network.config["width"], found.network.training) == ("mine", 16, False)
    assert found.sha256 == weights.read_card(tmp_path / "mine.safetensors")["weights_sha256"]


def test_the_card_that_training_writes_is_enough(profile: profiles.Profile, tmp_path: Path) -> None:
    from paperlib.companion import experiments

    one = next(iter(experiments.grid(profile)))
    described = recipe.describe(one.network(), one.loss, one.data("train"), one.config)
    path = tmp_path / one.name / training.WEIGHTS
    weights.save_weights(path, one.network(), described)
    found = measuring.stored(path, profile)
    assert found.name == one.name
    assert found.prediction == one.prediction
    for mine, theirs in zip(found.network.parameters(), one.network().parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_files_that_do_not_fit_are_refused(profile: profiles.Profile, tmp_path: Path) -> None:
    large = written(tmp_path / "large.safetensors", predictions.V, size=16)
    with pytest.raises(ValueError, match=r"shape \(1, 16, 16\), profile 'small' has \(1, 8, 8\).*digits/train"):
        measuring.stored(large, profile)
    bare = tmp_path / "bare.safetensors"
    weights.save_weights(bare, torch.nn.Linear(2, 2), {"name": "somebody's"})
    with pytest.raises(ValueError, match="does not describe a network and a prediction"):
        measuring.stored(bare, profile)
    network = models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, width=16, blocks=1)
    weights.save_weights(bare, network, {"network": network.config, "loss": {"prediction": {"name": "Unknown"}}})
    with pytest.raises(ValueError, match=r"KeyError: 'Unknown'"):
        measuring.stored(bare, profile)


def test_networks_that_are_not_trained_are_missed_at_once(profile: profiles.Profile, tmp_path: Path) -> None:
    from paperlib.companion import experiments

    with pytest.raises(FileNotFoundError, match="sigmoid-seed0"):
        measuring.networks(profile, list(experiments.grid(profile)))


def test_samples_stand_beside_their_nearest_training_images(profile: profiles.Profile, tmp_path: Path) -> None:
    one = measuring.stored(written(tmp_path / "a.safetensors", predictions.V), profile)
    sheet = measuring.sample(one, profile, "heun", 20, 1.0)
    assert sheet.images.shape == sheet.nearest.shape == (20, 1, 8, 8)
    train = profile.data.load("train")
    copies = (train.images[None] == sheet.nearest[:, None]).flatten(2).all(2).any(1)
    assert copies.all()
    difference = (sheet.images.double() - sheet.nearest.double()) * 2 / 16
    torch.testing.assert_close(sheet.distance, difference.flatten(1).norm(dim=1), rtol=1e-6, atol=1e-6)
    assert sheet.caption.startswith("20 samples of a by heun, 9 evaluations each, guidance 1, seed 0; median distance")
    assert (sheet.real > 0).all()


def test_guidance_is_refused_where_no_class_was_ever_left_out(profile: profiles.Profile, tmp_path: Path) -> None:
    one = measuring.stored(written(tmp_path / "a.safetensors", predictions.V), profile)
    for dropout, fits in ((0.1, True), (0.0, False)):
        trained = replace(one, card={**one.card, "training": {"label_dropout": dropout}})
        with nullcontext() if fits else pytest.raises(ValueError, match="a was trained always told one: ask for"):
            assert len(measuring.sample(trained, profile, "ddpm", 2, 1.5).images) == 2
        assert len(measuring.sample(trained, profile, "ddpm", 2, 1.0).images) == 2


def test_the_commands_take_a_file_of_weights(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(written(tmp_path / "mine.safetensors", predictions.V))
    assert cli.main(["sample", "small", "--weights", path, "--count", "10"]) == 0
    assert (checkout / "results/interactive/small/samples/mine-heun.npz").is_file()
    output = tmp_path / "numbers.csv"
    arguments = ["--weights", path, "--count", "300", "--sampler", "ddim", "--output", str(output)]
    assert cli.main(["evaluate", "small", *arguments]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^mine ddim +digits/test \w{6} +300 ", shown, re.MULTILINE)
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in rows] == ["real images", "real images", "mine", "mine"]
    assert {row["reference"].split("/")[1][:4] for row in rows} == {"test", "trai"}
    assert float(rows[2]["frechet"]) > 3 * float(rows[0]["frechet"])
    assert rows[2]["checkpoint_sha256"] == weights.read_card(Path(path))["weights_sha256"]
    assert rows[2]["evaluations"] == "5"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "none.safetensors"], "there is no file none.safetensors"),
        (["--samples", "none.npz"], "none.npz is no folder of pictures and no .npz of images"),
        (
            ["--samples", "some.npz", "--sampler", "ddim"],
            "with some.npz there is nothing to choose: leave out --sampler.",
        ),
        (["--samples", "a", "--guidance", "3", "--seed", "7"], "nothing to choose: leave out --seed, --guidance."),
        (["--weights", "a", "--weighting", "edm"], "with a there is nothing to choose: leave out --weighting."),
        (["--resize", "clean"], "clean is for Inception; ask for it with --features inception"),
        (["--inception", "inception-2015-12-05.pt"], "ask for it with --features inception"),
        (["--features", "inception", "--inception", "none.pt"], "there is no file none.pt; download https://"),
    ],
)
def test_wrong_use_is_explained(
    checkout: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert cli.main(["evaluate", "small", *arguments]) == 1
    assert says in capsys.readouterr().err


# Samples from elsewhere ----------------------------------------------------------------------------------------------


def put(folder: Path, form: str, images: np.ndarray) -> Path:
    """Grey images (N, 8, 8) as somebody else would hand them over."""
    if form == "npy":
        np.save(folder / "theirs.npy", images)
        return folder / "theirs.npy"
    arrays = {"images": images[:, None], "arr_0": images[..., None], "mine": images}
    if form in arrays:
        named = {form: arrays[form]} | ({"label": np.zeros(3)} if form != "mine" else {})
        np.savez(folder / "theirs.npz", **named)
        return folder / "theirs.npz"
    (folder / "theirs").mkdir()
    for number, one in enumerate(images):
        Image.fromarray(one).save(folder / "theirs" / f"{number:04}.png")
    return folder / "theirs"


@pytest.mark.parametrize("form", ["images", "arr_0", "mine", "npy", "folder"])
def test_samples_from_elsewhere_are_evaluated_as_they_are(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """The test split in a disguise is what real images are."""
    test, output = data.load("digits", "test"), tmp_path / "numbers.csv"
    path = put(tmp_path, form, test.images[:, 0].numpy())
    assert cli.main(["evaluate", "small", "--samples", str(path), "--count", "297", "--output", str(output)]) == 0
    assert f"297 samples of {path.name}; against 1,500 images, digits/train" in capsys.readouterr().out
    found = pd.read_csv(output).set_index(["checkpoint", "reference"]).frechet
    (train,) = {name for name in found.index.levels[1] if "train" in name}
    assert found["samples", train] == pytest.approx(found["real images", train], rel=1e-6)


GREY = np.zeros((4, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    ("form", "images", "count", "says"),
    [
        ("images", GREY, 5, r"holds 4 images, and 5 are wanted: .*--count 4"),
        ("folder", GREY, 3, r"holds 4 images, and 3 are wanted"),
        ("mine", GREY.astype(np.float32), 4, r"holds images \(1, 8, 8\) of float32; those of digits/test are"),
        ("mine", np.zeros((4, 9, 9), dtype=np.uint8), 4, r"holds images \(1, 9, 9\) of uint8"),
        ("folder", np.zeros((4, 8, 8, 4), dtype=np.uint8), 4, "0000.png has mode RGBA; convert it"),
        ("mine", GREY.astype(object), 4, "is no folder of pictures and no .npz of images"),
        ("folder", GREY[:0], 4, "is no folder of pictures and no .npz of images"),
        ("images", GREY + 17, 4, "pixels must lie in 0 … levels − 1 = 16, got 17"),
    ],
)
def test_samples_from_elsewhere_that_do_not_fit_are_refused(
    tmp_path: Path, form: str, images: np.ndarray, count: int, says: str
) -> None:
    path = put(tmp_path, form, images)
    with pytest.raises(ValueError, match=says):
        measuring.samples_in(path, data.load("digits", "test"), count)


def test_files_that_hold_no_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", one=GREY, other=GREY)
    np.savez(tmp_path / "both.npz", images=GREY, arr_0=GREY)
    (tmp_path / "text.npz").write_text("images")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0000.png").write_text("not a picture")
    for name in ("two.npz", "both.npz", "text.npz", "pictures", "none"):
        with pytest.raises(ValueError, match=rf"{name} is no folder of pictures and no \.npz of images"):
            measuring.samples_in(tmp_path / name, data.load("digits", "test"), 4)


def test_protocols_are_numbered_below_the_table(profile: profiles.Profile, tmp_path: Path) -> None:
    from paperlib.engine import features

    one = measuring.stored(written(tmp_path / "a.safetensors", predictions.V), profile)
    evaluated = measuring.evaluate([one], profile, features.classifier_of("digits"), ["ddim", "heun"], 280)
    lines = measuring.table(evaluated).splitlines()
    notes = [line for line in lines if line.startswith("[")]
    assert len(evaluated) == 6
    assert [note[:3] for note in notes] == ["[1]", "[2]", "[3]", "[4]", "[5]", "[6]"]
    assert "280 real images" in notes[0]
    assert "280 samples by ddim, 5 evaluations each" in notes[2]
    assert "280 samples by heun, 9 evaluations each" in notes[5]
    assert f"seed 0 in batches of {profile.sampling.batch_size}; against" in notes[5]
    assert lines[-7].endswith("[6]")
