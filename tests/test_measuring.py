"""What is measured of a run: quadrature over levels, −ELBO at any decoder, one row a run, nothing measured twice."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate

from paperlib import companion, schedules
from paperlib.companion import experiments, measuring, profiles
from paperlib.companion.run import Run
from paperlib.engine import data, evaluation, likelihood, training

pytestmark = pytest.mark.filterwarnings("ignore:40 samples are few")
HOW = measuring.Protocol(panels=4, draws=1, images=40, batches=2)


@pytest.fixture
def profile(checkout: Path) -> profiles.Profile:
    """A run under the shared schedule, and one of an ablation under an adaptive one."""
    path = checkout / "profiles" / "small.yaml"
    added = (
        "  schedules: {plain: {name: cosine, logsnr_min: -12.0, logsnr_max: 12.0}, "
        "learned: {name: adaptive, logsnr_min: -12.0, logsnr_max: 12.0}}\n"
        "  ablation: [{weightings: [sigmoid], predictions: [eps], schedules: [learned]}]\n  seeds:"
    )
    text = path.read_text().replace("  seeds:", added).replace("samplers: [heun]", "samplers: [heun, ddpm]")
    path.write_text(text.replace("count: 8", "count: 40"))
    (checkout / "notebooks" / "10_ablation.py").touch()
    return profiles.load("small")


@pytest.fixture
def trained(profile: profiles.Profile) -> None:
    for one in all_of(profile):
        one.train(progress=False)


@pytest.fixture
def run(profile: profiles.Profile) -> Run:
    return companion.start("10_ablation", "small")


def all_of(profile: profiles.Profile) -> list[experiments.Experiment]:
    return [*experiments.grid(profile), *experiments.ablation(profile)]


def test_panels_integrate_cubics_exactly_up_to_every_edge() -> None:
    panels = measuring.Panels.over((-3.0, 5.0), 6)
    for coefficients in torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        values = sum(c * panels.nodes**power for power, c in enumerate(coefficients))
        primitive = sum(c * panels.edges ** (power + 1) / (power + 1) for power, c in enumerate(coefficients))
        assert torch.allclose(panels.up_to_edges(values), primitive - primitive[0], atol=1e-10)


def test_panels_integrate_error_curves() -> None:
    """A curve like those of networks, with the panels that are used."""
    panels = measuring.Panels.over((-10.0, 10.0), measuring.Protocol().panels)
    whole = panels.up_to_edges(64 * torch.sigmoid(panels.nodes - 1) ** 1.5)[-1].item()
    exact = integrate.quad(lambda lam: 64 / (1 + math.exp(1 - lam)) ** 1.5, -10, 10)[0]
    assert whole == pytest.approx(exact, rel=1e-4)


def test_the_bound_is_that_of_the_likelihood(profile: profiles.Profile) -> None:
    """By quadrature from the errors, and by Monte Carlo over levels, for decoders at several levels."""
    one = next(experiments.grid(profile))
    network, images = one.network().eval(), experiments.some(one.data("test"), 200)
    panels = measuring.Panels.over((-12.0, 12.0), 24)
    errors = evaluation.errors_by_level(network, one.prediction, images, panels.nodes, draws=4)
    bound = panels.bound(errors, images)
    drawn = likelihood.image_elbo(network, one.prediction, images, schedules.LinearLogSNR(-12.0, 12.0), draws=32)
    for edge in (8, 14, 20, 24):
        terms = drawn.terms_until(panels.edges[edge].item(), images).total
        mean = likelihood.Mean.of(terms)
        assert abs(bound[edge].item() - mean.value) < 4 * mean.standard_error + 0.01 * mean.value
    assert abs(bound[14].item() - bound[20].item()) > 10, "where the decoder takes over matters, and is seen"


def test_a_row_says_what_the_run_was_and_how_good_it_is(profile: profiles.Profile, trained: None) -> None:
    shared, added = (measuring.measure(one, HOW) for one in all_of(profile))
    assert [shared.row[name] for name in ("weighting", "prediction", "schedule", "seed")] == [
        "sigmoid",
        "v",
        "cosine",
        0,
    ]
    assert [added.row[name] for name in ("run", "prediction", "schedule")] == [
        "sigmoid-eps-learned-seed0",
        "eps",
        "learned",
    ]
    for row in (shared.row, added.row):
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
        assert row["frechet_heun_test"] > 0
        assert row["frechet_heun_test"] != row["frechet_ddpm_test"]
        assert row["frechet_heun_test"] != row["frechet_heun_train"]
    assert set(added.row) - set(shared.row) == {"gradient_trace_plain", "gradient_squared_plain"}
    assert list(shared.losses) == ["20"]
    assert len(shared.errors["test"]) == 2 * HOW.panels
    assert shared.errors["test"] != shared.errors["train"]


def test_a_distance_is_that_of_the_evaluation(profile: profiles.Profile, trained: None) -> None:
    one = next(experiments.grid(profile))
    row = measuring.measure(one, HOW).row
    reference = measuring.reference(profile.data, "test")
    floor = evaluation.floor(one.data("train"), reference, 40)
    assert row["frechet_heun_test"] > 3 * floor.frechet, "a network of 20 steps is far from the data"
    again = measuring.measure(one, replace(HOW, seed=1)).row
    assert again["frechet_heun_test"] == row["frechet_heun_test"], "samples have a seed of their own"
    assert again["gradient_trace_own"] != row["gradient_trace_own"]


def test_a_learned_schedule_is_the_one_that_the_run_had(profile: profiles.Profile, trained: None) -> None:
    one = all_of(profile)[1]
    card = one.card()
    relearned = measuring.learned(one.loss, card).schedule
    assert relearned.state_dict()["average"].tolist() == card["learned_schedule"]["average"]
    measured = measuring.measure(one, HOW)
    width = 24 / len(measured.density)
    assert sum(measured.density) * width == pytest.approx(1)
    assert max(measured.density) > 1.02 * min(measured.density), "20 steps have taught it something"


def test_nothing_is_measured_twice(
    profile: profiles.Profile, trained: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = all_of(profile)
    first = measuring.measure_all(run, every, HOW, processes=1)
    assert [one.row["run"] for one in first] == [one.name for one in every]

    def refuse(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(measuring, "measure", refuse)
    assert measuring.measure_all(run, every, HOW, processes=1) == first
    with pytest.raises(InterruptedError):
        measuring.measure_all(run, every, replace(HOW, draws=2), processes=1)


def test_a_measurement_is_known_by_all_that_it_depends_on(
    profile: profiles.Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, another = next(iter(experiments.grid(profile))), next(iter(experiments.ablation(profile)))
    sampling = profile.sampling.model_copy(update={"steps": profile.sampling.steps + 1})
    elsewhere = replace(one, profile=profile.model_copy(update={"sampling": sampling}))
    keys = [measuring.key(found, HOW) for found in (one, another, elsewhere)]
    keys += [measuring.key(one, replace(HOW, panels=5)), measuring.key(one, replace(HOW, images=41))]
    with monkeypatch.context() as patched:
        patched.setattr(measuring, "VERSION", measuring.VERSION + 1)
        keys.append(measuring.key(one, HOW))
    load = profiles.Data.load
    monkeypatch.setattr(
        profiles.Data, "load", lambda self, split: experiments.some(load(self, split), 200 if split == "test" else 1500)
    )
    keys.append(measuring.key(one, HOW))
    assert len({*keys}) == 7, "each is another measurement"


def test_an_array_is_kept_until_what_it_depends_on_changes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make() -> np.ndarray:
        made.append(len(made))
        return np.full(3, made[-1])

    def value(*what: object) -> int:
        return int(measuring.kept(run, what, make)[0])

    assert [value("run", 1.0), value("run", 1.0), value("run", 2.0), value("run", 1.0)] == [0, 0, 1, 0]
    monkeypatch.setattr(measuring, "VERSION", measuring.VERSION + 1)
    assert value("run", 1.0) == 2, "another computation"

    def broken() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measuring.kept(run, ["new"], broken)
    assert value("new") == 3, "nothing half-made is kept"


def test_a_run_that_is_not_there_is_left_out(profile: profiles.Profile, trained: None, run: Run) -> None:
    shutil.rmtree(all_of(profile)[0].folder)
    found = measuring.measure_all(run, all_of(profile), HOW, processes=1)
    assert [one.row["schedule"] for one in found] == ["learned"]


def test_a_network_and_its_file_have_one_hash(profile: profiles.Profile, trained: None) -> None:
    one = next(experiments.grid(profile))
    (named,), (stored,) = (
        list(measuring.networks(profile, *where)) for where in ([[one]], [[], one.found() / training.WEIGHTS])
    )
    assert named.sha256 == stored.sha256
    assert named.prediction == stored.prediction
    for mine, theirs in zip(named.network.parameters(), stored.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_only_as_many_images_as_there_are(profile: profiles.Profile) -> None:
    one = next(experiments.grid(profile))
    assert len(experiments.some(one.data("test"), 10**6)) == len(data.load("digits", "test"))
    assert len(experiments.some(one.data("train"), 7)) == 7
