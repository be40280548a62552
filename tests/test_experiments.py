"""The experiments of a profile: what is trained, what is paired, what is not trained again."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from paperlib import companion, predictions, weightings
from paperlib.adaptive import AdaptiveSchedule
from paperlib.companion import experiments, paths, profiles
from paperlib.companion.run import Run
from paperlib.engine import training
from paperlib.files import DamagedFileError
from paperlib.models import weights
from tools import readme


@pytest.fixture
def profile(checkout: Path) -> profiles.Profile:
    """Two weightings, two seeds, twenty steps, and a network for pictures."""
    path = checkout / "profiles" / "small.yaml"
    text = path.read_text().replace("seeds: [0]", "seeds: [0, 1]")
    text = text.replace("  seeds:", "    edm: {name: edm}\n  seeds:")
    pictures = (
        "pictures: {model: {name: mlp, options: {width: 32}}, weighting: edm, "
        "recipe: {steps: 3, batch_size: 4, ema_decays: [0.9, 0.5]}}\n"
    )
    path.write_text(text.replace("sampling:", pictures + "sampling:"))
    (checkout / "notebooks" / "07_train.py").touch()
    return profiles.load("small")


@pytest.fixture
def run(profile: profiles.Profile) -> Run:
    return companion.start("07_train", "small")


def test_the_grid_is_balanced_and_paired(profile: profiles.Profile) -> None:
    grid = list(experiments.grid(profile))
    assert [one.name for one in grid] == ["sigmoid-seed0", "edm-seed0", "sigmoid-seed1", "edm-seed1"]
    first, second, other, _ = (torch.cat([p.flatten() for p in one.network().parameters()]) for one in grid)
    assert torch.equal(first, second), "runs of one seed start from the same weights"
    assert not torch.equal(first, other), "runs of two seeds do not"
    assert grid[0].config == grid[1].config
    assert grid[0].loss.weighting != grid[1].loss.weighting


def test_an_ablation_adds_what_the_grid_does_not_have(profile: profiles.Profile) -> None:
    shared = profile.training.schedule
    adaptive = profiles.Choice(name="adaptive", logsnr_min=-12.0, logsnr_max=12.0)
    block = profiles.Block(weightings=["edm"], predictions=["v", "eps"], schedules=["as_grid", "adaptive"])
    training = profile.training.model_copy(
        update={"schedules": {"as_grid": shared, "adaptive": adaptive}, "ablation": [block, block]}
    )
    added = list(experiments.ablation(profile.model_copy(update={"training": training})))
    assert [one.name for one in added if one.seed == 1] == [
        "edm-v-adaptive-seed1",
        "edm-eps-as_grid-seed1",
        "edm-eps-adaptive-seed1",
    ]
    assert len({one.name for one in added}) == len(added) == 6
    learned = added[0].loss
    assert isinstance(learned.schedule, AdaptiveSchedule)
    assert learned.weighting == weightings.EDM()
    assert learned.prediction == predictions.V
    assert added[1].loss.prediction == predictions.EPS
    assert added[0].loss.schedule is not learned.schedule, "each run learns a schedule of its own"


def test_the_network_for_pictures_has_its_own_size_and_budget(profile: profiles.Profile) -> None:
    pictures = experiments.pictures(profile)
    assert pictures.name == "pictures"
    assert (pictures.config.steps, pictures.config.batch_size) == (3, 4)
    assert pictures.config.grad_clip == profile.training.recipe.grad_clip
    assert pictures.network().config["width"] == 32


def test_without_a_network_for_pictures_those_of_the_grid_are_shown(profile: profiles.Profile) -> None:
    assert experiments.shown(profile) == [experiments.pictures(profile)]
    plain = profile.model_copy(update={"pictures": None})
    assert [one.name for one in experiments.shown(plain)] == ["sigmoid-seed0", "edm-seed0"]


def test_a_single_seed_is_said_to_have_no_interval(profile: profiles.Profile) -> None:
    assert experiments.repeats(profile, 0.9) == "mean and 90% interval over 2 training seeds"
    single = profile.training.model_copy(update={"seeds": [3]})
    assert "no interval" in experiments.repeats(profile.model_copy(update={"training": single}))


def test_some_images_keep_what_must_be_said_of_them(profile: profiles.Profile) -> None:
    whole = replace(profile.data.load("test"), caution="handle with care")
    part = experiments.some(whole, 5)
    assert torch.equal(part.images, whole.images[:5])
    assert torch.equal(part.labels, whole.labels[:5])
    assert (part.name, part.caution) == (whole.name, whole.caution)
    assert part.sha256 != whole.sha256
    assert experiments.some(whole, len(whole) + 1).sha256 == whole.sha256


def test_unknown_names_list_the_choices(profile: profiles.Profile) -> None:
    with pytest.raises(ValueError, match=r"no weighting 'nonesuch'.*sigmoid, edm"):
        experiments.weighting(profile, "nonesuch")
    with pytest.raises(ValueError, match="no section 'pictures'"):
        experiments.pictures(profile.model_copy(update={"pictures": None}))


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    profile: profiles.Profile, run: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    grid = list(experiments.grid(profile))[:2]
    together = experiments.train_all(run, grid, processes=2)
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)  # as in each process: the order of sums depends on it
    for one in grid:
        alone = training.train(one.network(), one.loss, one.data("train"), one.config, tmp_path / one.name)
        assert weights.read_card(alone.weights)["weights_sha256"] == together[one.name].card["weights_sha256"]
        assert training.finished_card(run.directory / "runs" / one.name, one.key) == together[one.name].card


def train_never(*_: object) -> None:
    raise InterruptedError


def test_what_is_finished_is_not_trained_again_whoever_trained_it(
    profile: profiles.Profile, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = experiments.pictures(profile)
    assert one.find() is None
    experiments.train([one])
    assert one.find() == one.folder == paths.runs("small") / f"pictures-{one.key.course[:12]}"
    monkeypatch.setattr(training.Trainer, "advance", train_never)
    result = experiments.train_once(run, one)
    assert result.card == one.card()
    assert torch.equal(*(net.state_dict()["outward.1.weight"] for net in (one.load(), result.network)))


def publish(run: Run, one: experiments.Experiment) -> Path:
    """Put a run among those that came with the checkout, and remove it from where it was trained."""
    experiments.train_once(run, one)
    published = paths.published("small", "07_train") / "runs" / one.name
    published.parent.mkdir(parents=True, exist_ok=True)
    (run.directory / "runs" / one.name).rename(published)
    shutil.rmtree(one.folder)
    return published


def test_weights_are_those_of_the_profile_as_it_is_or_none(profile: profiles.Profile, run: Run) -> None:
    """A fresh clone whose profile is edited must not evaluate the committed weights."""
    one = experiments.pictures(profile)
    published = publish(run, one)
    assert one.find() == published
    one.load()
    assert one.find(published=False) is None, "a headless run makes its own"
    assert profile.pictures is not None
    edited = profile.pictures.model_copy(update={"recipe": profile.pictures.recipe | {"learning_rate": 0.1}})
    other = experiments.pictures(profile.model_copy(update={"pictures": edited}))
    with pytest.raises(
        FileNotFoundError,
        match=r"no finished run pictures .*other configurations: results/small/07_train/runs/pictures\. "
        r"Run: paperlib train small --pictures",
    ):
        other.load()
    other.train(progress=False)
    assert other.find() == other.folder != one.folder
    assert one.find() == published, "the old weights are still those of the old profile"
    one.train(progress=False)
    assert one.find() == one.folder, "what was trained here comes first"


def test_published_weights_are_checked_whole(profile: profiles.Profile, run: Run) -> None:
    one = experiments.pictures(profile)
    (publish(run, one) / "weights-0.5.safetensors").write_bytes(b"")
    with pytest.raises(DamagedFileError, match=r"weights-0\.5"):
        one.load()


def test_more_steps_go_on_in_the_same_folder_and_another_recipe_has_one_of_its_own(profile: profiles.Profile) -> None:
    one = experiments.pictures(profile)

    def with_recipe(**changes: object) -> experiments.Experiment:
        assert profile.pictures is not None
        changed = profile.pictures.model_copy(update={"recipe": profile.pictures.recipe | changes})
        return experiments.pictures(profile.model_copy(update={"pictures": changed}))

    for housekeeping in ({"log_every": 1}, {"checkpoint_every": 7}, {"keep_states": 1}, {"workers": 2}):
        assert with_recipe(**housekeeping).key == one.key
    assert (
        with_recipe(steps=4).key != one.key == training.run_key(one.network(), one.loss, one.data("train"), one.config)
    )
    assert with_recipe(steps=4).folder == one.folder
    assert with_recipe(batch_size=8).folder != one.folder


# README --------------------------------------------------------------------------------------------------------------


def test_the_pages_say_what_the_committed_results_say(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_ROOT", str(repository))
    parts = set[str]()
    for page, typed in zip(readme.PAGES, ((" PASS", " FAIL"), ("| R2 | ", "| R2 | typed")), strict=True):
        text = (repository / page).read_text(encoding="utf-8")
        parts |= {*re.findall(r"<!-- begin: (\w+) -->", text)}
        assert text == readme.fill(text, profiles.load("tiny")), "run: make readme"
        assert text.replace(*typed) != text
        assert readme.fill(text.replace(*typed), profiles.load("tiny")) == text, "what is typed does not stay"
    assert parts == set(readme.PARTS)


def test_the_readme_is_short(repository: Path) -> None:
    """Nine hundred words beside its tables."""
    text = re.sub(r"<!--.*?-->|^\|.*$", "", (repository / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert 400 < len(text.split()) <= 900


def test_an_unknown_part_is_refused(profile: profiles.Profile) -> None:
    with pytest.raises(ValueError, match="asks for a part 'nonesuch'"):
        readme.fill("<!-- begin: nonesuch -->\n<!-- end -->", profile)


def test_the_pictures_of_the_readme_are_results(repository: Path) -> None:
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", (repository / "README.md").read_text(encoding="utf-8")):
        assert name.startswith("results/")
        assert (repository / name).is_file()
