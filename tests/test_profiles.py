"""Profiles: what is wrong is refused, with file and line, before anything runs."""

import math
import re
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from paperlib import objectives, weightings
from paperlib.companion import documents, profiles
from paperlib.engine.recipe import TrainingConfig


def spoil(checkout: Path, old: str, new: str) -> int:
    """Replace ``old`` by ``new`` in the profile, and say in which line (from 1) it stands."""
    file = checkout / "profiles" / "small.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def test_parameters_of_a_notebook(checkout: Path) -> None:
    profile = profiles.load("small")
    assert profile.notebook("01_first") == {"profile": "small", "points": 3}
    assert profile.section("02_second").upstream == ["01_first"]
    assert set(profile.shared) == set(profiles.Profile.model_fields) - {"name", "description", "launch", "notebooks"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("steps: 20", "stepz: 20", "training.recipe.stepz: unknown key"),
        ("steps: 20", "steps: twenty", "training.recipe.steps: expected a number, got the text 'twenty'"),
        ("steps: 20", "steps: 20.5", "training.recipe.steps"),
        ("steps: 20", "steps: true", "training.recipe.steps"),
        ("steps: 20", "steps: 0", "steps must be a positive number, got 0"),
        ("steps: 20", "steps: -5", "steps must be a positive number, got -5"),
        ("learning_rate: 1.0e-3", "learning_rate: 1e-3", "YAML wants 1.0e-3"),
        ("learning_rate: 1.0e-3", "learning_rate: .inf", "learning_rate must be a positive number, got inf"),
        ("learning_rate: 1.0e-3", "learning_rate: .nan", "learning_rate"),
        ("seeds: [0]", "seeds: []", "training.seeds"),
        ("seeds: [0]", "seeds: [0, a]", "training.seeds.1"),
        ("{name: sigmoid, bias: 2.0}", "{name: sigmoyd}", "unknown weighting 'sigmoyd'; choose one of elbo"),
        ("{name: sigmoid, bias: 2.0}", "{name: sigmoid, k: 2.0}", "sigmoid does not take these parameters"),
        ("logsnr_min: -12.0", "logsnr_min: 15.0", "logsnr_min (15.0) must be below logsnr_max (12.0)"),
        ("{name: edm_sampling}", "{name: edm_sampling, logsnr_min: -20.0}", "reaches outside"),
        ("{name: mlp}", "{name: mlp, prediction: w}", "unknown prediction"),
        ("{name: mlp}", "{name: mpl}", "unknown model 'mpl'; choose one of mlp"),
        ("{name: mlp}", "{name: mlp, options: {widht: 3}}", "mlp has no option 'widht'"),
        ("{name: digits}", "{name: digit}", "unknown data set 'digit'; choose one of digits"),
        ("[heun]", "[euler]", "unknown sampler 'euler'; choose one of ddpm"),
        ("ema_decays: [0.999]", "ema_decays: []", "training.recipe.ema_decays"),
        ("steps: 20", "steps: 20\n    betas: [0.9]", "training.recipe.betas"),
        ("steps: 20", "steps: 20\n    weight_decay: .inf", "weight_decay must be a positive number or zero, got inf"),
        ("steps: 20", "steps: 20\n    betas: 0.9", "training.recipe.betas"),
        ("steps: 20", "steps: 20\n    seed: 3", "training.recipe.seed: unknown key"),
        ("seeds: [0]", "seeds: [-1]", "training.seeds.0"),
        ("    sigmoid: {name", "    ../../sigmoid: {name", "training.weightings"),
        ("{name: sigmoid, bias: 2.0}", "{name: sigmoid, image_size: 0}", "size must be a positive number"),
        ("{name: cosine, logsnr_min: -12.0", "{name: adaptive, bins: 0, logsnr_min: -12.0", "bins must be at least 1"),
        ("logsnr_min: -12.0", "logsnr_min: -1.0e+308", "log-SNR must lie within ±100"),
        ("{name: mlp}", "{name: mlp, options: {blocks: 10000000}}", "option 'blocks' must be at most 100,000"),
        ("count: 8", "count: 99999999999999999999", "sampling.count"),
        ("{name: cosine, logsnr_min", "{name: adaptive, bins: 200000000, logsnr_min", "at most 10,000, got 200000000"),
        ("points: 3", "points: {a: 1}", "parameters.points"),
        ("steps: 20", "steps: 20\n    steps: 30", "'steps' is already given in line 11"),
        ("points: 3", "points: [3", "not valid YAML"),
    ],
)
def test_a_mistake_is_refused_with_file_and_line(checkout: Path, old: str, new: str, says: str) -> None:
    line = spoil(checkout, old, new)
    with pytest.raises(documents.DocumentError, match=re.escape(says)) as caught:
        profiles.load("small")
    reported = re.findall(r"^(.*?):(\d+): ", str(caught.value), flags=re.MULTILINE)
    assert {Path(file) for file, _ in reported} == {checkout / "profiles" / "small.yaml"}
    assert any(line <= int(number) <= line + 1 + new.count("\n") for _, number in reported)


NUMBERS = [name for name, kind in get_type_hints(TrainingConfig).items() if kind in (int, float) and name != "seed"]


@pytest.mark.parametrize("section", ["training", "pictures"])
@pytest.mark.parametrize("name", NUMBERS)
def test_absurd_numbers_of_a_recipe_are_refused_with_file_line_and_field(
    checkout: Path, name: str, section: str
) -> None:
    absurd = ["-1", "-1.0e+30", "1.0e+30", "9" * 40, ".nan", ".inf", "-.inf", "1e-3", "[]", "true"]
    absurd += [] if name in ("weight_decay", "warmup_steps", "workers", "label_dropout") else ["0"]
    path = checkout / "profiles" / "small.yaml"
    stated = path.read_text() + "pictures:\n  model: {name: mlp}\n  weighting: sigmoid\n  recipe:\n    steps: 20\n"
    path.write_text(stated)
    assert profiles.load("small").pictures is not None
    head, recipe, rest = stated.rpartition("recipe:\n") if section == "pictures" else stated.partition("recipe:\n")
    rest = re.sub(rf"^    {name}: .*\n", "", rest, count=1, flags=re.MULTILINE)
    line = (head + recipe).count("\n") + 1
    for given in absurd:
        path.write_text(f"{head}{recipe}    {name}: {given}\n{rest}")
        with pytest.raises(
            documents.DocumentError, match=rf"small\.yaml:{line}: {section}\.recipe\.{name}: .*(got|expected)"
        ):
            profiles.load("small")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("width: 0", "model: mlp would have 8e+03 parameters"),
        ("width: [1]", "model: mlp cannot be built with"),
        ("width: -3", "model: mlp cannot be built with"),
        ("width: 100000, hidden: 100000, blocks: 100", "model: mlp would have 2e+12 parameters"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(checkout: Path, options: str, says: str) -> None:
    spoil(checkout, "{name: mlp}", f"{{name: mlp, options: {{{options}}}}}")
    with pytest.raises(documents.DocumentError, match=rf"small\.yaml:1: {re.escape(says)}"):
        profiles.load("small")


def test_every_mistake_is_reported(checkout: Path) -> None:
    spoil(checkout, "steps: 20", "stepz: 20")
    spoil(checkout, "seeds: [0]", "seeds: 0")
    with pytest.raises(documents.DocumentError) as caught:
        profiles.load("small")
    assert {"recipe.stepz", "recipe.steps", "seeds"} <= set(re.findall(r"training\.([\w.]+): ", str(caught.value)))


def test_what_does_not_fit_together_is_refused(checkout: Path) -> None:
    spoil(checkout, "upstream: [01_first]", "upstream: [03_third]")
    with pytest.raises(
        ValueError, match="reads from '03_third', which is not one of the notebooks before it: 01_first"
    ):
        profiles.load("small")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("warmup_steps: 21", "warmup_steps (21) must not exceed steps (20)"),
        ("accumulate: 3", "batch_size (8) must be a multiple of processes × accumulate = 1 × 3"),
    ],
)
def test_a_recipe_that_does_not_fit_together_is_refused(checkout: Path, line: str, says: str) -> None:
    spoil(checkout, *(("warmup_steps: 0", line) if "warmup" in line else ("steps: 20", f"steps: 20\n    {line}")))
    with pytest.raises(ValueError, match=re.escape(says)):
        profiles.load("small")


SCHEDULE = "{name: flow_matching_ot, logsnr_min: -12.0, logsnr_max: 12.0}"
ABLATION = f"seeds: [0]\n  schedules: {{flow: {SCHEDULE}}}\n  ablation: "


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("{weightings: [edm], predictions: [v], schedules: [flow]}", "no weighting 'edm'; choose one of sigmoid"),
        ("{weightings: [sigmoid], predictions: [v], schedules: [cosine]}", "no schedule 'cosine'; choose one of flow"),
        ("{weightings: [sigmoid], predictions: [w], schedules: [flow]}", "unknown prediction 'w'"),
    ],
)
def test_an_ablation_names_what_the_profile_has(checkout: Path, block: str, says: str) -> None:
    spoil(checkout, "seeds: [0]", f"{ABLATION}[{block}]")
    with pytest.raises(ValueError, match=re.escape(says)):
        profiles.load("small")


def test_some_notebook_waits_for_the_training(checkout: Path) -> None:
    path = checkout / "profiles" / "small.yaml"
    text = path.read_text()
    path.write_text(text + "launch: {threads: 1}\n")
    with pytest.raises(ValueError, match=r"launch\.before: missing"):
        profiles.load("small")
    path.write_text(text + "launch: {before: 07_train}\n")
    with pytest.raises(ValueError, match=r"'07_train' is to wait for the training.*01_first, 02_second"):
        profiles.load("small")
    path.write_text(text + "launch: {before: 02_second}\n")
    assert profiles.load("small").launch == profiles.Launch(before="02_second")


def test_a_weighting_for_larger_images_is_shifted() -> None:
    level = torch.linspace(-8, 8, 17, dtype=torch.float64)
    shifted = weightings.get("sigmoid", image_size=256, bias=2.0)
    assert torch.equal(shifted(level), weightings.Sigmoid(2.0)(level + 2 * math.log(4)))
    assert weightings.get("sigmoid", bias=2.0) == weightings.Sigmoid(2.0)


@pytest.mark.parametrize("name", ["large", "../small", "small.yaml", ""])
def test_an_unknown_profile_is_refused_by_name(checkout: Path, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"unknown profile {name!r}; choose one of small")):
        profiles.load(name)


def test_an_unknown_notebook_is_refused_by_name(checkout: Path) -> None:
    with pytest.raises(ValueError, match="no notebook '09_none'; choose one of 01_first, 02_second"):
        profiles.load("small").notebook("09_none")


def test_a_profile_cannot_be_changed(checkout: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        profiles.load("small").training.seeds = [1]  # type: ignore[misc]


def test_an_empty_file_is_refused(checkout: Path) -> None:
    (checkout / "profiles" / "small.yaml").write_text("")
    with pytest.raises(documents.DocumentError, match=r"small\.yaml:1: "):
        profiles.load("small")


@pytest.mark.parametrize(
    "text",
    ["a: \x07", "? [a]\n: 1", "? {a: b}\n: 1", "a: !tag 1", "a: 2020-13-45", "a: *b", "\ta: 1", "a: &b 1\nc: *b"]
    + [f"a: !!{tag} x" for tag in ("bool", "timestamp", "int", "python/name:os.system")]
    + ["a: " + "[" * 3000, "a: " + "9" * 5000],
    ids=lambda text: text[:20],
)
def test_what_yaml_itself_refuses_is_an_error_of_the_file(checkout: Path, text: str) -> None:
    (checkout / "profiles" / "small.yaml").write_text(text)
    with pytest.raises(documents.DocumentError, match=r"small\.yaml:\d+: not valid YAML: "):
        profiles.load("small")


def test_bytes_that_are_no_text_are_an_error_of_the_file(checkout: Path) -> None:
    (checkout / "profiles" / "small.yaml").write_bytes(b"name: \xff")
    with pytest.raises(documents.DocumentError, match=r"small\.yaml:1: not valid YAML: "):
        profiles.load("small")


def test_every_profile_of_the_checkout_is_right(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_ROOT", str(repository))
    for name in profiles.names():
        assert profiles.load(name).name == name


@pytest.mark.parametrize("size", [8, 32])
def test_the_profiles_of_resolutions_differ_in_the_shift_alone(
    repository: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Every weighting of theirs has its shifted twin: what the one is at λ, the other is at λ + 2 log(64/size)."""
    monkeypatch.setenv("PAPERLIB_ROOT", str(repository))
    profile = profiles.load(f"resolution{size}")
    assert profile.data.name == {8: "cifar10-8", 32: "cifar10"}[size]
    stated = profile.training.weightings
    plain = [label for label in stated if not label.endswith("_shifted")]
    assert len(stated) == 2 * len(plain) == 4
    levels = torch.linspace(-8, 8, 33, dtype=torch.float64)
    for label in plain:
        here, there = (objectives.weighting(stated[name]) for name in (label, f"{label}_shifted"))
        torch.testing.assert_close(there.log(levels + 2 * math.log(64 / size)), here.log(levels))
