"""One spelling: things by name, from dictionaries, and a user's own among them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from paperlib import adaptive, loss_weights, objectives, predictions, schedules, tables, weightings
from paperlib.companion import cli, experiments, figures, profiles
from paperlib.registry import Registry

COSINE = schedules.Cosine(-12, 12)
SAID = {
    "prediction": "v",
    "schedule": {"name": "cosine", "logsnr_min": -12, "logsnr_max": 12},
    "loss_weight": {"name": "min_snr", "gamma": 5},
}


def test_a_thing_is_a_name_a_dictionary_or_itself() -> None:
    for said in ("sigmoid", {"name": "sigmoid"}, weightings.Sigmoid()):
        assert weightings.get(said) == weightings.Sigmoid()
    assert weightings.get({"name": "sigmoid", "bias": 1.0}) == weightings.get("sigmoid", bias=1.0)
    assert schedules.get(SAID["schedule"]) == COSINE
    assert predictions.get({"name": "F", "sigma_data": 0.75}) == predictions.FPrediction(0.75)
    assert predictions.get("v") is predictions.get(predictions.V) is predictions.V
    assert loss_weights.get(SAID["loss_weight"]) == loss_weights.MinSNR(5)
    assert isinstance(schedules.get("adaptive", logsnr_min=-9, logsnr_max=9), adaptive.AdaptiveSchedule)
    assert schedules.get("ddpm") == tables.DDPM()


def test_a_whole_objective_is_a_dictionary() -> None:
    expected = objectives.PublishedLoss(predictions.V, COSINE, loss_weights.MinSNR(5))
    assert objectives.get(SAID) == objectives.get(expected) == expected
    assert objectives.get(yaml.safe_load(yaml.safe_dump(SAID))) == expected
    plain = {"prediction": "v", "schedule": COSINE}
    assert objectives.get(plain) == objectives.PublishedLoss(predictions.V, COSINE)
    assert objectives.weighting(SAID) == expected.weighting
    assert objectives.weighting({"name": "edm"}) == weightings.EDM()


def test_the_command_line_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.said(["cosine", "logsnr_min=-12", "logsnr_max=12"]) == SAID["schedule"]
    assert cli.said(["discrete", "betas=[0.1, 0.2, 0.3]"]) == {"name": "discrete", "betas": [0.1, 0.2, 0.3]}
    words = "--prediction v --schedule cosine logsnr_min=-12 logsnr_max=12 --loss-weight min_snr gamma=5"
    assert cli.main(["audit", *words.split()]) == 0
    shown = capsys.readouterr().out
    assert "[-12.000, 12.000] nats" in shown
    assert "not monotone: peak at λ = " in shown
    words = "--prediction v --schedule flow_matching_ot logsnr_min=-9 logsnr_max=9"
    assert cli.main(["audit", *words.split()]) == 0
    assert "verdict      monotone" in capsys.readouterr().out
    for wrong, says in (
        ("cosin", "unknown noise schedule 'cosin'; choose one of cosine"),
        ("cosin", ". Did you mean cosine?\n"),
        ("cosine 12", "expected PARAMETER=VALUE after cosine, got 12"),
        ("cosine logsnr_min=1e-3", "cosine: logsnr_min must be a finite number, got '1e-3'"),
        ("ddpm zero_terminal=true", "says nothing of x"),
    ):
        assert cli.main(["audit", "--prediction", "eps", "--schedule", *wrong.split()]) == 1
        assert says in capsys.readouterr().err


def test_the_command_line_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert "sd3_dreambooth" in shown
    assert "-6.197" in shown


def test_shifts_are_said_beside_any_schedule() -> None:
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    ends = {"logsnr_min": -12, "logsnr_max": 12}
    for said, nats in (
        ({"shifted": 1.5}, 1.5),
        ({"flow_shift": 3}, -2 * math.log(3)),
        ({"image_size": 128}, -math.log(4)),
    ):
        made = schedules.get({"name": "logit_normal", **ends, **said})
        assert torch.equal(made.logsnr(t), schedules.LogitNormal(**ends).shifted(nats).logsnr(t))
    level = torch.linspace(-8, 8, 17, dtype=torch.float64)
    for said, nats in (({"shifted": 1.0}, 1.0), ({"flow_shift": 3}, -2 * math.log(3)), ({"image_size": 64}, 0.0)):
        moved = weightings.get("sigmoid", **said)
        assert torch.equal(moved(level), weightings.Sigmoid()(level - nats))
    with pytest.raises(ValueError, match="AdaptiveSchedule follows the loss wherever that is"):
        schedules.get("adaptive", **ends, flow_shift=3)


@pytest.mark.parametrize(
    ("get", "said", "error", "message"),
    [
        (weightings.get, "sigmoyd", ValueError, "unknown weighting 'sigmoyd'; choose one of elbo, iddpm"),
        (predictions.get, "epsilon", ValueError, "unknown prediction 'epsilon'; choose one of eps, x, score"),
        (weightings.get, {"bias": 2}, TypeError, "a weighting is given by its name, .* got None; the names are elbo"),
        (weightings.get, weightings.Sigmoid, TypeError, r"got <class .*Sigmoid'>"),
        (schedules.get, lambda t: t, TypeError, "a noise schedule is given by its name"),
        (predictions.get, 3, TypeError, "a prediction is given by its name, .* got 3"),
        (weightings.get, {"name": "sigmoid", "k": 2}, ValueError, "sigmoid does not take these parameters: .*'k'"),
        (
            weightings.get,
            {"name": "sigmoid", "bias": "2"},
            ValueError,
            "sigmoid: bias must be a finite number, got '2'",
        ),
        (weightings.get, {"name": "sigmoid", "bias": math.nan}, ValueError, "bias must be a finite number, got nan"),
        (schedules.get, {"name": "cosine"}, ValueError, "has no native logsnr_min"),
        (objectives.get, "v", TypeError, "an objective is a dictionary of prediction, schedule and loss_weight"),
        (objectives.get, {"prediction": "v"}, ValueError, "an objective has prediction, schedule and"),
        (objectives.get, SAID | {"gamma": 5}, ValueError, "got prediction, schedule, loss_weight, gamma"),
    ],
)
def test_what_is_none_of_them_is_refused(get: Any, said: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get(said)


# One's own -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[None]:
    """A weighting, a schedule and a prediction of one's own, each by one decorator; forgotten afterwards."""
    registries: tuple[Registry[Any], ...] = (weightings.WEIGHTINGS, schedules.SCHEDULES, predictions.PREDICTIONS)
    before = [dict(registry) for registry in registries]

    @weightings.register("my_weighting")
    class Mine(weightings.Sigmoid):
        pass

    @schedules.register("my_schedule")
    def tilted(logsnr_min: float, logsnr_max: float, tilt: float = 1.0) -> schedules.NoiseSchedule:
        return schedules.Normal(logsnr_min, logsnr_max, mean=tilt, std=4.0)

    @predictions.register("my_prediction")
    class Twice(predictions.VPrediction):
        def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
            a, b = super().coefficients(logsnr)
            return 2 * a, 2 * b

        def _determinant(self, logsnr: Tensor) -> Tensor:
            return 2 * super()._determinant(logsnr)

    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


PUBLISHED = "{prediction: my_prediction, schedule: {name: ddpm}, loss_weight: {name: min_snr}}"


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("weighting", ["{name: my_weighting, bias: 1.0}", PUBLISHED])
def test_ones_own_is_validated_trained_drawn_and_said(
    checkout: Path, weighting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkout / "profiles" / "small.yaml"
    text = path.read_text().replace("sigmoid: {name: sigmoid, bias: 2.0}", f"mine: {weighting}")
    text = text.replace(
        "{name: cosine, logsnr_min: -12.0, logsnr_max: 12.0}", "{name: my_schedule, logsnr_min: -9.0, logsnr_max: 9.0}"
    )
    path.write_text(
        text.replace("{name: mlp}", "{name: mlp, prediction: my_prediction}").replace("steps: 20", "steps: 2")
    )
    (one,) = experiments.grid(profiles.load("small"))
    assert type(one.prediction).__name__ == "Twice"
    assert one.loss.schedule == schedules.Normal(-9, 9, mean=1.0, std=4.0)
    assert one.train(progress=False).weights.is_file()
    assert figures.line("mine") not in map(figures.line, figures.STYLES)
    assert figures.label("mine") == "mine"
    words = "--prediction my_prediction --schedule my_schedule logsnr_min=-9 logsnr_max=9 tilt=0"
    assert cli.main(["audit", *words.split()]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("my_prediction, my_schedule\n")
    assert "[-9.000, 9.000] nats" in shown
    assert "prediction   my_prediction" in shown


@pytest.mark.usefixtures("own")
def test_names_are_given_once_and_to_what_fits() -> None:
    assert "my_weighting" in weightings.WEIGHTINGS
    with pytest.raises(ValueError, match="there is a weighting 'my_weighting' already"):
        weightings.register("my_weighting")(weightings.EDM)
    with pytest.raises(TypeError, match="registered by its class or a function, got 3"):
        weightings.register("three")(3)
    weightings.register("wrong")(lambda: COSINE)
    with pytest.raises(TypeError, match="wrong is registered as a weighting, but makes Cosine"):
        weightings.get("wrong")


def test_a_package_brings_its_own_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_losses.py").write_text(
        "from paperlib import loss_weights, weightings\nloss_weights.register('theirs')(weightings.Sigmoid)\n"
    )
    installed = tmp_path / "their_losses-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: their-losses\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[paperlib]\nlosses = their_losses\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert loss_weights.get("theirs", bias=3.0) == weightings.Sigmoid(3.0)
    finally:
        loss_weights.LOSS_WEIGHTS.pop("theirs", None)


def test_names_without_a_style_differ_and_keep_theirs() -> None:
    names = [f"mine_{number}" for number in range(12)]
    first = [figures.line(name) for name in names]
    assert [figures.line(name) for name in names] == first
    assert len({str(line) for line in first}) == 12
    assert figures.colour("mine_0") == first[0]["color"]
    assert figures.label("mine_0") == "mine 0"
