"""The audit: of descriptions by formulas of their own, of schedulers by their own noising, of code by measurement."""

import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import pytest
import torch
from helpers import REPOSITORY
from losses import published
from torch import Tensor

import paperlib
from paperlib import loss_weights, models, objectives, predictions, recipes, schedules, weightings
from paperlib.auditing import Audit, audit, report, result
from paperlib.companion import cli
from paperlib.engine import data
from paperlib.engine.likelihood import Mean, image_elbo
from paperlib.models import weights
from paperlib.objectives import PublishedLoss
from paperlib.oracles import Gaussian, ShrunkGaussian
from paperlib.quadrature import both_sides
from paperlib.schedules import LinearLogSNR
from paperlib.tables import StepTable
from paperlib.weightings import Custom
from tools import moving as page_that_moves

DRAWS = 300_000
"""Few: bands of a few per cent where most of the draws are."""
SAID = {"prediction": "v", "schedule": {"name": "cosine", "logsnr_min": -12, "logsnr_max": 12}}


# Descriptions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "draws"), [("edm", 0.0087), ("sd3", 0.0457), ("ddpm", 0.651)])
def test_a_degree_beside_the_verdict(recipe: str, draws: float) -> None:
    """The shares of draws below the peak are those of the normal and of the table: one "no" would hide them."""
    found = paperlib.audit(recipe)
    assert found.monotonic is False
    assert found.below_peak is not None
    assert found.below_peak.logsnr == recipes.peak(recipes.get(recipe).loss)
    assert found.below_peak.draws == pytest.approx(draws, abs=5e-4 if recipe != "ddpm" else 3e-3)
    assert 0 < found.below_peak.loss < 0.1


@pytest.mark.parametrize(
    ("w", "verdict"),
    [([1.0, 1.01, 0.9, 0.5, 0.1], "within error"), ([1, 0.99, 0.9, 0.5, 0.1], "monotone"), ([1, 2, 1, 1, 1], "not")],
)
@pytest.mark.parametrize("divided_out", [False, True])
def test_a_weighting_with_errors(w: list[float], verdict: str, divided_out: bool) -> None:
    """The audit says what the weighting says of itself, alone or as a loss, and has its band."""
    given = weightings.Tabulated([-4.0, -2.0, 0.0, 2.0, 4.0], w, [0.02] * 5)
    loss = PublishedLoss(predictions.V, schedules.Cosine(-4, 4), loss_weights.DividedOut(given))
    found = audit(loss if divided_out else given)
    assert given.monotonicity().startswith(verdict)
    assert found.monotonic is {"within error": None, "monotone": True, "not": False}[verdict]
    assert found.verdict.startswith({"within error": "not decided", "monotone": "monotone:", "not": "not mon"}[verdict])
    assert found.band is not None
    expected = 3 * found.weighting * given.log_error(found.logsnr)
    torch.testing.assert_close(found.band, expected)


TWO_HUMPS = [
    {"prediction": "flow", "schedule": {"name": "mode", **recipes.ENDS}},  # of Stable Diffusion 3
    {"prediction": "flow", "schedule": {"name": "flow_matching_ot", "flow_shift": 0.05, **recipes.ENDS}},
    {
        "prediction": "v",
        "schedule": {"name": "histogram", "edges": [-6, -4, -2, 0, 2, 4], "heights": [1, 40, 2, 30, 3]},
    },
]


@pytest.mark.parametrize("said", [*TWO_HUMPS, "edm", "ddpm"])
def test_a_dip_is_where_w_is_below_its_majorant(said: Any) -> None:
    """Wherever that is: at the noisy end, or between two humps; shares and corrections are those of the dip."""
    found = audit(said)
    assert found.monotonic is False
    assert found.below_peak is not None
    below = found.weighting < found.majorant - 1e-9
    inside = torch.zeros_like(below)
    for first, last in found.below_peak.dips:
        inside |= (found.logsnr > first) & (found.logsnr < last)
    assert (below != inside).double().mean() < 2e-3, "but for a cell at each end"
    assert found.below_peak.draws == pytest.approx((found.draws * found.width)[below].sum().item(), abs=5e-3)
    assert found.below_peak.loss == pytest.approx((found.effort * found.width)[below].sum().item(), abs=6e-3)
    assert found.below_peak.logsnr == found.below_peak.dips[-1][1]
    rows = found.corrections()
    assert len(rows) == 5 * len(found.below_peak.dips)
    for level, _, _, factor in rows:
        cell = (found.logsnr - level).abs().argmin()
        assert below[cell]
        assert factor == pytest.approx((found.majorant / found.weighting)[cell].item(), rel=0.05)
        assert factor < 1000
    assert (said in TWO_HUMPS) is ("[{:.2f}, {:.2f}]".format(*found.below_peak.dips[0]) in found.verdict)
    assert (said in TWO_HUMPS) is ("its weight is smaller for λ in [" in report.page([found]))


@pytest.mark.parametrize("said", TWO_HUMPS[:2])
def test_a_measured_dip(said: Any) -> None:
    """Between two humps that are as high as in the description; where it ends, by the band."""
    schedule = schedules.get(said["schedule"])

    def loss(model: Callable[..., Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
        level = schedule.logsnr(torch.rand(len(x), generator=generator, dtype=torch.float64)).to(x)
        t = torch.sigmoid(-level / 2)[:, None, None, None]
        noise = torch.randn(x.shape, generator=generator).to(x)
        return ((model((1 - t) * x + t * noise, t) - (noise - x)) ** 2).mean()

    described, found = audit(said).below_peak, audit(loss, draws=DRAWS).below_peak
    assert described is not None
    assert found is not None
    assert found.within is not None
    assert found.within[0] <= described.logsnr <= found.within[1]
    (dip,), (meant,) = found.dips, described.dips
    assert dip == pytest.approx(meant, abs=0.7)
    assert found.draws == pytest.approx(described.draws, abs=0.08)
    assert found.loss == pytest.approx(described.loss, abs=0.08)


def test_a_name_means_one_thing() -> None:
    """A recipe and a weighting of one name are one objective: which of the two it was, nobody would see."""
    for name in recipes.RECIPES.keys() & weightings.WEIGHTINGS.keys():
        low, high = recipes.get(name).loss.schedule.ends
        weighting = {"name": name}
        assert audit(weighting, logsnr_min=low, logsnr_max=high, expect=recipes.get(name)).agrees, name


def test_the_peak_of_a_weighting_alone_is_no_level_of_the_grid() -> None:
    found = audit(weightings.EDM())
    assert found.below_peak is not None
    assert found.below_peak.logsnr == pytest.approx(weightings.EDM().peak, abs=1e-6)
    assert found.below_peak.draws is None


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_the_measure_adds_up(recipe: str) -> None:
    """∫ p_w + clean mass = w(λ_min)/max w; its negative part is how far w rises, the rest how far it falls."""
    found = audit(recipe)
    weighting = recipes.get(recipe).loss.weighting
    inside = both_sides(*found.ends, 8192, weighting.breaks)
    rising = (weighting.log(inside) - weighting.log(inside).max()).exp().diff().clamp(min=0).sum().item()
    total = (found.augmentation_density * found.width).sum().item() + sum(mass for _, mass in found.atoms)
    first = found.weighting[0] + found.augmentation_density[0] * found.width[0] / 2
    assert total + found.clean_mass == pytest.approx(first.item(), abs=2e-3)
    assert found.negative_mass == pytest.approx(rising, abs=1e-4)
    assert found.monotonic is (found.negative_mass == 0) is (found.below_peak is None)
    assert found.draws is not None
    assert (found.draws * found.width).sum() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("recipe", ["edm", "ddpm", "laplace", "rectified_flow"])
def test_made_monotone(recipe: str) -> None:
    found = audit(recipe)
    for w in (found.majorant, found.nearest):
        assert (w.diff() <= 1e-12).all()
    assert (found.majorant >= found.weighting).all()
    assert (found.majorant[:-1] <= torch.maximum(found.weighting[:-1], found.majorant[1:])).all(), "the smallest one"
    if found.monotonic:
        torch.testing.assert_close(found.nearest, found.weighting)
    residual = (found.weighting - found.nearest) * found.width
    assert residual.sum() == pytest.approx(0, abs=1e-9), "a projection onto a cone that holds the constants"
    assert (residual * found.nearest).sum() == pytest.approx(0, abs=1e-9), "and itself"
    assert weightings.Weighting.is_monotonic(found.monotonised())


def test_edm_made_monotone_is_edm_monotonic() -> None:
    found = audit("edm")
    torch.testing.assert_close(
        found.majorant, weightings.EDMMonotonic()(found.logsnr) / weightings.EDMMonotonic()(found.logsnr).max(),
        atol=1e-4, rtol=0,
    )  # fmt: skip


def test_a_step_of_w_is_a_point_mass() -> None:
    found = audit(weightings.Binned((-2, 0, 2), (1.0, 0.25)))
    assert found.atoms == ((pytest.approx(0, abs=1e-9), pytest.approx(0.75)),)
    assert found.clean_mass == pytest.approx(0.25)
    assert found.monotonic


@pytest.mark.parametrize("recipe", ["edm", "sd3", "ddpm"])
def test_the_correction_makes_any_loss_monotone(recipe: str) -> None:
    """It multiplies the loss weight, whatever that was, and the objective is the majorant."""
    loss = recipes.get(recipe).loss
    factor = audit(recipe).correction()
    c = Custom(lambda level: loss.c.log(level) + factor.log(level.clamp(*factor.ends)) - 2, breaks=factor.breaks)
    corrected = audit(PublishedLoss(loss.prediction, loss.schedule, c))
    below = corrected.logsnr < recipes.peak(loss) - 0.05
    w = corrected.weighting[below]
    assert (w / w.max()).min() > 0.99, "flat below the peak"
    rows = audit(recipe).corrections()
    assert len(rows) == 5
    for level, sigma, t, value in rows:
        assert sigma == pytest.approx(math.exp(-level / 2))
        assert t / (1 - t) == pytest.approx(sigma)
        peak = torch.tensor([recipes.peak(loss), level], dtype=torch.float64)
        expected = loss.weighting(peak)
        assert value == pytest.approx((expected[0] / expected[1]).item(), rel=1e-3)


def test_what_was_meant() -> None:
    assert audit(SAID, expect=weightings.VCosine()).agrees
    wrong = audit({**SAID, "loss_weight": "min_snr"}, expect=SAID)
    assert wrong.agrees is False
    assert wrong.ratio is not None
    assert wrong.ratio.max() > 1.5
    assert "V, Cosine" not in str(wrong)
    assert "v, cosine: ANOTHER OBJECTIVE" in str(wrong)
    assert "It is not the objective that was meant, v, cosine." in report.page([wrong])
    assert "v, cosine: the same objective" in str(audit(SAID, expect=SAID))
    loss = objectives.get({**SAID, "loss_weight": "min_snr"})
    assert audit(loss).name == "v, cosine, MinSNR"
    assert "w of v, cosine, from a factor" in report.page([wrong])
    shorter = audit({**SAID, "loss_weight": "min_snr"}, expect="min_snr_v")
    assert shorter.ratio is not None
    inside = shorter.logsnr[shorter.ratio.isfinite()]
    assert inside[[0, -1]].tolist() == pytest.approx(list(audit("min_snr_v").ends), abs=0.02)
    assert shorter.ratio[shorter.ratio.isfinite()].max() < 10, "a cell in which the expected one ends is not compared"


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ((-12, 12), (-1, 1), False),
        ((-12, 12), (-5, 12), False),
        ((-12, 12), (-12, 4), False),
        ((-12, 12), (-13, 13), True),  # where next to nothing of the loss is
        ((-12, 12), (-12, 12), True),
    ],
)
def test_the_range_is_a_part_of_the_objective(one: Any, other: Any, agree: bool) -> None:
    """By the theorem all that is left of the schedule; whichever of the two has the wider one."""
    said = [
        {"prediction": "eps", "schedule": {"name": "cosine", "logsnr_min": low, "logsnr_max": high}}
        for low, high in (one, other)
    ]
    for what, meant in (said, said[::-1]):
        found = audit(what, expect=meant)
        assert found.agrees is agree
        ends = [meant["schedule"][end] for end in recipes.ENDS]
        assert ("its range    [{:.3f}, {:.3f}]".format(*ends) in str(found)) is (one != other)


def test_draws_in_proportion_to_the_loss_cannot_be_improved() -> None:
    found = audit("rectified_flow")
    edges = torch.cat([found.logsnr[:1] - 1e-9, (found.logsnr[1:] + found.logsnr[:-1]) / 2, found.logsnr[-1:] + 1e-9])
    best = {"name": "histogram", "edges": edges.tolist(), "heights": found.effort.tolist()}
    same = {
        "prediction": "flow",
        "schedule": best,
        "loss_weight": {"name": "divided_out", "weighting": "flow_matching_ot"},
    }
    assert found.saving is not None
    assert found.saving > 1.2
    assert audit(same).saving == pytest.approx(1, abs=0.02)


def test_as_data() -> None:
    found = audit("sd3", expect="edm")
    data = json.loads(json.dumps(found.json(), allow_nan=False))
    assert data == found.json(), "plain values already"
    for key in ("name", "logsnr", "weighting", "monotonic", "augmentation_density", "clean_mass", "below_peak"):
        held = getattr(found, key)
        assert data[key] == (
            held.tolist() if isinstance(held, Tensor) else result.plain(held) if key == "below_peak" else held
        )
    assert data["stationary"] is data["quadratic"] is None, "not measured"


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = "--prediction v --schedule cosine logsnr_min=-12 logsnr_max=12 --loss-weight min_snr gamma=5"
    assert cli.main(["audit", *words.split(), "--html", str(tmp_path / "a.html")]) == 0
    assert "not monotone: peak at λ = " in capsys.readouterr().out
    assert (tmp_path / "a.html").stat().st_size > 1000
    assert cli.main(["audit", "--recipe", "sd3", "edm", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["sd3", "edm"]
    for wrong, says in (
        ([], "nothing to audit"),
        (["--recipe", "sd4"], "'sd4' is no recipe, weighting or file. Did you mean sd3? The recipes are stable_"),
        (["--recipe", "edm", "--expect", "sigmoyd"], "Did you mean sigmoid?"),
        (["--recipe", "edm", "--prediction", "v", "--loss-weight", "p2"], "leave out --prediction, --loss-weight, or"),
        (["--weights", "a", "--data", "digits", "--schedule", "ddpm"], "leave out --schedule, or"),
        (["--prediction", "v"], "prediction, schedule and"),
        (["--scheduler", "x.pkl"], "no such file: x.pkl"),
        (["--recipe", "edm", "--expect", "x.json"], "no such file: x.json"),
        (["--scheduler", str(tmp_path)], f"no such file: {tmp_path}/scheduler_config.json"),
    ):
        assert cli.main(["audit", *wrong]) == 1
        said = capsys.readouterr().err
        assert says in said
        assert ("recipes are" in said) is ("is no recipe" in said)


def test_a_description_in_few_words(capsys: pytest.CaptureFixture[str]) -> None:
    """An end that a schedule needs is that of the recipes, and it is said; one that it has, or was given, stays."""
    words = "audit --json --prediction v --schedule cosine --loss-weight min-snr --gamma 5"
    assert cli.main(words.split()) == 0
    short = json.loads(capsys.readouterr().out)[0]
    whole = {"name": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0}
    full = audit({"prediction": "v", "schedule": whole, "loss_weight": {"name": "min_snr", "gamma": 5}})
    assert short["weighting"] == full.weighting.tolist()
    assert short["logsnr"] == full.logsnr.tolist()
    for schedule, taken in (
        ("cosine", "logsnr_min = -20, logsnr_max = 20"),
        ({"name": "cosine", "logsnr_max": 9.0}, "logsnr_min = -20"),
        ("linear_beta", "logsnr_max = 20"),
        ("edm_training", "logsnr_min = -20, logsnr_max = 20"),
        ("edm_sampling", None),
        ("ddpm", None),
        (whole, None),
    ):
        found = audit({"prediction": "eps", "schedule": schedule})
        said = [note for note in found.notes if "no range was given" in note]
        assert said == ([f"no range was given: {taken} taken"] if taken else [])
        assert taken is None or found.logsnr.max() > 8.9
        assert "logsnr_min" in found.code() or "cosine" not in str(schedule)
    assert cli.main(["audit", "--prediction", "v", "--schedule", "cosine", "--gamma", "5"]) == 1
    assert "--gamma is a parameter of --loss-weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("logit_normal std=0", "std must be a positive number, got 0"),
        ("edm_training p_std=-1", "p_std must be a positive number, got -1"),
        ("cosine shifted=", "cosine: shifted must be a finite number, got None"),
        ("cosine shifted=abc", "cosine: shifted must be a finite number, got 'abc'"),
        ("cosine image-size=abc", "cosine: image_size must be a finite number, got 'abc'"),
        ("linear_beta beta_max=2000", "beta_max (2000) must be above beta_min (0.1), and at most 1000"),
        ("ddpm number=10.5", "number must be a positive whole number, got 10.5"),
        ("cosine logsnr_min=3 logsnr_max=-3", "logsnr_min (3.0) must be below logsnr_max (-3.0)"),
        ("cosine sift=1", "unexpected keyword argument 'sift'"),
        ("Cosine", "Did you mean cosine?"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "--prediction", "eps", "--schedule", *words.split()]) == 1
    shown = capsys.readouterr().err
    assert says in shown
    assert "Traceback" not in shown


def test_a_hyphen_is_an_underscore_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--prediction F sigma-data=0.75 --schedule edm-training p-mean=-0.4 --expect sd3-dreambooth --json"
    cli.main(["audit", *words.split()])
    found = json.loads(capsys.readouterr().out)[0]
    schedule = {"name": "edm_training", "p_mean": -0.4}
    same = audit({"prediction": {"name": "F", "sigma_data": 0.75}, "schedule": schedule})
    assert found["weighting"] == same.weighting.tolist()
    assert found["expected"] == "sd3_dreambooth"
    assert cli.main(["audit", "--recipe", "v-cosine", "stable-audio"]) == 0


@pytest.mark.parametrize(("name", "meant"), [("SD3", "sd3"), ("EDM", "edm"), ("Sigmoyd", "sigmoid")])
def test_capitals_do_not_hide_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean .*{meant}"):
        audit(name)
    with pytest.raises(ValueError, match="Did you mean v"):
        audit({**SAID, "prediction": "V"})


def test_what_is_no_loss_is_told_what_it_lacks() -> None:
    """A network without its data, one of this library and any other; a class."""
    own = models.build("mlp", image_shape=(1, 4, 4), num_classes=2, sigma_data=0.5, width=8, hidden=8, blocks=1)
    for network in (own, torch.nn.Linear(3, 3)):
        with pytest.raises(TypeError, match=f"{type(network).__name__} is a network.*give data="):
            audit(network)
    with pytest.raises(TypeError, match=r"make an object of it, Cosine\(…\)"):
        audit(schedules.Cosine)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_another_objective_is_a_failure_for_the_shell(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "--recipe", "edm", *more, "--expect", "edm"]) == 0
    assert cli.main(["audit", "--recipe", "edm", "sd3", *more, "--expect", "edm"]) == 1
    shown = capsys.readouterr()
    assert ("ANOTHER OBJECTIVE" in shown.out) is (not more)
    assert shown.err == ""
    with pytest.raises(SystemExit, match="0"):
        cli.main(["audit", "--help"])
    assert "Exit code: 1 where --expect finds another objective" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (Custom(lambda level: torch.where(level < 3, 0.0, -math.inf) + torch.where(level > 30, math.nan, 0.0)), None),
        (
            {"prediction": "eps", "schedule": {"name": "discrete", "betas": [0.1, 0.0, 0.1]}},
            "decrease from step to step",
        ),
        ({"prediction": "eps", "schedule": {"name": "ddpm", "zero_terminal": True}}, "says nothing of x"),
        (3, "nothing to audit in 3"),
    ],
)
def test_what_cannot_be_shown_is_said(what: Any, says: str | None) -> None:
    if says is None:
        with pytest.raises(ValueError, match="NaN or infinite at log-SNR 30"):
            audit(what, logsnr_max=40.0)
    else:
        with pytest.raises((ValueError, TypeError), match=says):
            audit(what)


# Schedulers of diffusers ---------------------------------------------------------------------------------------------


def in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same loss as most code trains by it."""
    return lambda model, x, generator: loss(model, x.float(), generator)


def ddpm_noising(scheduler: Any) -> Callable[..., Tensor]:
    """Training as the scripts of diffusers do it, by the scheduler's own functions."""

    def loss(model: Callable[..., Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(x.shape, generator=generator).to(x)
        index = torch.randint(0, scheduler.config.num_train_timesteps, (len(x),), generator=generator)
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(x, noise, index)
        return ((model(scheduler.add_noise(x, noise, index), index) - target) ** 2).mean()

    return loss


def flow_noising(scheduler: Any) -> Callable[..., Tensor]:
    def loss(model: Callable[..., Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(x.shape, generator=generator).to(x)
        index = (torch.rand(len(x), generator=generator) * scheduler.config.num_train_timesteps).long()
        t = scheduler.timesteps[index]
        return ((model(scheduler.scale_noise(x, t, noise), t) - (noise - x)) ** 2).mean()

    return loss


def schedulers() -> list[tuple[Any, Callable[[Any], Callable[..., Tensor]]]]:
    import diffusers

    return [
        (diffusers.DDPMScheduler(), ddpm_noising),
        (diffusers.DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"), ddpm_noising),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), flow_noising),
    ]


def stepped(loss: PublishedLoss) -> Custom:
    """w of a table as it is drawn: each step spread over what is nearest to it, weighed as at the step."""
    assert isinstance(loss.schedule, StepTable)
    steps = loss.schedule.levels[loss.schedule.levels.isfinite()].flip(0)
    between = (steps[1:] + steps[:-1]) / 2
    width = torch.cat([steps[:1], between, steps[-1:]]).diff()
    width[[0, -1]] *= 2  # half of the first and of the last lies outside
    log_w = loss.prediction.log_mse_factor(steps) - width.log()

    def log(level: Tensor) -> Tensor:
        inside = (level >= steps[0]) & (level <= steps[-1])
        return torch.where(inside, log_w[torch.searchsorted(between, level.double())], -math.inf)

    return Custom(log)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("index", range(3))
def test_a_scheduler_is_what_its_own_noising_measures(index: int, single: bool) -> None:
    scheduler, noising = schedulers()[index]
    described = audit(scheduler)
    loss, _, _ = paperlib.auditing.schedulers.loss(scheduler)
    measured = audit((in_float32 if single else lambda own: own)(noising(scheduler)), draws=DRAWS)
    assert measured.prediction == ("eps", "v", "flow")[index]
    assert measured.stationary
    assert measured.quadratic
    assert measured.band is not None
    for meant, bins in ((stepped(loss), slice(None)), (loss.weighting, slice(1, -1))):  # at the steps; between them
        ratio = result.compared(measured, "", meant).ratio
        assert ratio is not None
        assert ((ratio - 1).abs() <= 0.02 + measured.band / measured.weighting)[bins].all()
    assert measured.ends == pytest.approx(described.ends, abs=1e-3)
    assert described.monotonic is (index > 0)


def test_configurations(tmp_path: Path) -> None:
    import diffusers

    scheduler = diffusers.DDPMScheduler(num_train_timesteps=400, rescale_betas_zero_snr=True, prediction_type="sample")
    scheduler.save_pretrained(tmp_path / "scheduler")
    for path in (tmp_path, tmp_path / "scheduler", str(tmp_path / "scheduler" / "scheduler_config.json")):
        found = audit(path)
        assert found.name == "DDPMScheduler"
        assert found.prediction == "x"
        assert any("0.0025 of the draws are noise alone" in note for note in found.notes)
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    stepped = audit(dynamic, mu=math.log(3)).logsnr[-1].item()
    assert stepped == pytest.approx(audit(schedulers()[2][0]).logsnr[-1].item(), abs=1e-4), (
        "dynamic by log 3, static by 3"
    )
    with pytest.raises(ValueError, match="is of a dynamic shift, which DDPMScheduler here has not"):
        audit(tmp_path, mu=1.0)


FLOWS: list[tuple[str, dict[str, Any]]] = [
    *[(f"FlowMatch{kind}Scheduler", {"shift": 3.0}) for kind in ("EulerDiscrete", "HeunDiscrete", "LCM")],
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    *[
        (kind, {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0})
        for kind in ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler")
    ],
]


@pytest.mark.parametrize(("kind", "options"), FLOWS)
def test_a_flow_scheduler_that_has_sampled_is_what_it_was(kind: str, options: dict[str, Any]) -> None:
    """Its levels are those of training, i/T shifted once, not the grid that it samples on."""
    import diffusers

    scheduler = getattr(diffusers, kind)(**options)
    dynamic = {"mu": math.log(3)} if "use_dynamic_shifting" in options else {}
    before = audit(scheduler, **dynamic)
    if kind.startswith("FlowMatch") and not dynamic:
        own = torch.logit(1 - scheduler.sigmas.double()) * 2
        assert before.ends == pytest.approx((own[own.isfinite()].min().item(), own.max().item()), abs=1e-3)
    scheduler.set_timesteps(20, **dynamic)
    after = audit(scheduler, **dynamic)
    assert after.ends == before.ends
    assert after.notes == before.notes
    assert before.prediction == "flow"
    assert any("0.001 of the draws are noise alone" in note for note in before.notes)
    assert any("shift by 3" in note for note in before.notes)
    assert audit(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), expect=after).agrees


def test_a_dynamic_shift_that_nothing_states() -> None:
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="states no max_shift: say mu="):
        audit(scheduler)
    assert audit(scheduler, mu=math.log(3), expect=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)).agrees


@pytest.mark.parametrize("table", [{}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}])
@pytest.mark.parametrize("kind", ["EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_zero_terminal_snr_is_that_whatever_a_sampler_writes_for_it(kind: str, table: dict[str, Any]) -> None:
    import diffusers

    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", **table}
    found = audit(getattr(diffusers, f"{kind}Scheduler")(**options), expect=diffusers.DDIMScheduler(**options))
    assert found.agrees
    assert any("0.001 of the draws are noise alone" in note for note in found.notes)


def test_what_a_scheduler_states_is_not_overridden(tmp_path: Path) -> None:
    """A prediction that is stated can be said again, not contradicted; what is supposed gives way, and is told."""
    import diffusers

    stated = diffusers.DDPMScheduler(prediction_type="v_prediction")
    stated.save_pretrained(tmp_path)
    for what in (stated, tmp_path):
        assert audit(what, prediction="v", expect=what).agrees
        with pytest.raises(ValueError, match="states prediction_type 'v_prediction', which contradicts prediction eps"):
            audit(what, prediction="eps")
    for supposed, usual in (
        (diffusers.DDPMScheduler(), "eps"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "flow"),
    ):
        assert audit(supposed).prediction == usual
        found = audit(supposed, prediction="x")
        assert found.prediction == "x"
        assert f"the network predicts x, as you say; the scheduler states nothing, and {usual} is usual" in str(found)
    (tmp_path / "bare.json").write_text('{"_class_name": "DDPMScheduler", "num_train_timesteps": 100}')
    assert audit(tmp_path / "bare.json", prediction="v").prediction == "v"
    assert "errors to be unweighted" in str(audit(stated))
    assert "unweighted" not in str(audit(stated, loss_weight="min_snr"))
    assert "only the prediction is taken" in str(audit(stated, schedule={"name": "ddpm", "logsnr_min": -8}))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.pkl", "import os", "may run code"),
        ("a.json", "{not json", "is not JSON"),
        ("b.json", "[1]", "names no _class_name"),
        ("c.json", '{"_class_name": "UNet2DModel"}', "UNet2DModel, which is no scheduler"),
        ("d.json", '{"_class_name": "os.system"}', "os.system, which is no scheduler"),
        ("e.json", '{"_class_name": "EDMEulerScheduler"}', "not which levels training draws"),
        ("f.json", '{"_class_name": "DDPMScheduler", "num_train_timesteps": "many"}', "does not make a DDPMScheduler"),
        ("g.json", '{"_class_name": "DDPMScheduler", "beta_start": null}', "does not make a DDPMScheduler"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says):
        audit(tmp_path / name)


@pytest.mark.parametrize("kind", ["VPSchedule", "RectifiedSchedule", "VESchedule", "CosineSchedule"])
def test_a_schedule_of_azula(kind: str) -> None:
    """Its levels, times uniform, are what its own noising draws: the density is that of the levels."""
    from azula import noise

    schedule = getattr(noise, kind)()
    with pytest.raises(ValueError, match="say prediction="):
        audit(schedule)
    found = audit(schedule, prediction="eps")
    assert found.name == kind
    alpha, sigma = schedule(torch.rand(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    levels = 2 * (alpha / sigma).log()
    edges = torch.linspace(*found.ends, 9, dtype=torch.float64)
    share = torch.histogram(levels, edges).hist / len(levels)
    assert found.draws is not None
    place = torch.bucketize(found.logsnr, edges[1:-1])
    expected = torch.bincount(place, found.draws * found.width, minlength=8)
    assert ((share - expected).abs() < 2e-3 + 0.02 * expected).all()
    assert audit(schedule, prediction="eps", expect=found).agrees


def test_a_schedule_of_flow_matching() -> None:
    """An object that gives α and σ of t, data at t = 1; the velocity unless something else is said."""

    class CondOTScheduler:
        __module__ = "flow_matching.path.scheduler.scheduler"

        def __call__(self, t: Tensor) -> Any:
            return SimpleNamespace(alpha_t=t, sigma_t=1 - t)

    found = audit(CondOTScheduler(), expect="rectified_flow")
    assert found.agrees
    assert found.prediction == "flow"


def test_anything_can_be_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert audit("stable_diffusion", expect=scheduler).agrees
    scheduler.save_pretrained(tmp_path)
    assert audit("stable_diffusion", expect=tmp_path).agrees
    assert audit("stable_diffusion", expect=audit(scheduler)).agrees
    assert audit("stable_diffusion", expect=diffusers.DDPMScheduler()).agrees is False
    assert audit("edm", expect=audit("edm")).agrees
    assert audit("rectified_flow", expect=measured("rectified_flow")).expected == "rectified_flow"
    assert audit("edm", expect=measured("rectified_flow")).agrees is False
    (tmp_path / "edm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert audit("edm", expect="edm").agrees, "a name is a name, whatever lies in the folder"


def test_edm_schedulers_need_a_schedule() -> None:
    import diffusers

    found = audit(diffusers.EDMEulerScheduler(), schedule={"name": "edm_training", **recipes.ENDS}, expect="edm")
    assert found.agrees


# Code ----------------------------------------------------------------------------------------------------------------


@cache
def measured(name: str, single: bool = False) -> Audit:
    loss, w, _ = published.EXPECTED[name]
    loss = in_float32(loss) if single else loss
    return audit(loss, expect=Custom(lambda level: w(level.double()).log()), draws=DRAWS)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", published.EXPECTED)
def test_a_loss_is_measured_as_it_was_meant(name: str, single: bool) -> None:
    found = measured(name, single)
    assert not single or found.monotonic is measured(name).monotonic
    assert found.stationary
    assert found.quadratic
    assert found.isotropic
    assert found.prediction == published.EXPECTED[name][2]
    assert found.ratio is not None
    assert found.band is not None
    off = ((found.ratio - 1).abs() * found.weighting - found.band) / found.weighting
    assert off[found.ratio.isfinite()].max() < 0.02


@pytest.mark.parametrize(
    ("name", "monotonic"),
    [("rectified_flow", True), ("sd3", False), ("edm", False), ("ddpm_eps", False), ("sd3_shift_twice", False)],
)
def test_a_measured_verdict(name: str, monotonic: bool) -> None:
    assert measured(name).monotonic in (monotonic, None) if monotonic else measured(name).monotonic is False


@pytest.mark.parametrize(
    ("name", "peak"), [("edm", -3.3078), ("sd3", recipes.peak(recipes.get("sd3").loss)), ("min_snr_v", None)]
)
def test_a_measured_peak_lies_where_it_is_said_to(name: str, peak: float | None) -> None:
    """Within the bins that the band leaves open, and the shares below it are those of a formula."""
    below, described = measured(name).below_peak, audit(name).below_peak
    assert below is not None
    assert below.within is not None
    assert described is not None
    low, high = below.within
    assert low <= (described.logsnr if peak is None else peak) <= high
    assert low < below.logsnr < high
    assert high - low < 3.5
    assert f"{low:.2f} … {high:.2f}" in str(measured(name))


@pytest.mark.parametrize(
    ("mistaken", "meant"),
    [
        ("sd3_shift_twice", "sd3"),
        ("min_snr_v_with_the_weight_of_eps", "min_snr_v"),
        ("min_snr_eps_of_alpha_over_sigma", "min_snr_v"),
    ],
)
def test_another_objective_is_told(mistaken: str, meant: str) -> None:
    w = published.EXPECTED[meant][1]
    found = audit(published.EXPECTED[mistaken][0], expect=Custom(lambda level: w(level.double()).log()), draws=DRAWS)
    assert found.stationary
    assert found.quadratic
    assert found.agrees is False


def test_a_target_that_does_not_fit() -> None:
    found = audit(published.target_that_does_not_fit, draws=DRAWS)
    assert found.stationary is False
    assert found.prediction is None
    assert "the target does not fit" in str(found)
    assert found.monotonic is not False, "of its w there is nothing to say"
    assert found.verdict.startswith("the exact model is not stationary")
    assert "This loss is not the ELBO of any data: the exact model is not stationary" in report.section(found)
    assert "is the ELBO of data" not in report.section(found)


@pytest.mark.parametrize("name", ["target_of_flipped_data", "target_of_other_channels"])
def test_a_target_of_other_data(name: str) -> None:
    """On data of one point there is nothing to see."""
    found = audit(getattr(published, name), draws=8192)
    assert found.quadratic
    assert found.stationary is False
    assert "The target is made of other data than z" in str(found)
    assert "along" in str(found)


@pytest.mark.parametrize("form", [in_float32, lambda loss: loss])
def test_scalings_of_their_own(form: Any) -> None:
    """Right losses whose noise is known by its size alone are right; an index says which examples share a level."""
    found = audit(form(published.smld), name="smld", draws=100_000)
    assert found.stationary
    assert found.prediction == "eps"
    assert found.monotonic is not False, "log σ uniform: w is constant"
    assert found.ends == pytest.approx((-2 * math.log(50), -2 * math.log(0.01)), abs=0.05)
    found = audit(form(published.sub_vp), name="sub-VP", draws=100_000)
    assert found.stationary
    assert found.prediction == "eps"
    assert found.monotonic is not True


@pytest.mark.parametrize("form", [in_float32, lambda loss: loss])
@pytest.mark.parametrize("scale", [0.18215, 0.5, 3.0])
@pytest.mark.parametrize("name", ["rectified_flow", "min_snr_v", "ddpm_eps"])
def test_data_that_a_loss_multiplies_first(form: Any, scale: float, name: str) -> None:
    """Levels, weighting and prediction are those of the data that it noises, and the factor is said."""
    loss, w, prediction = published.EXPECTED[name]
    meant = Custom(lambda level: w(level.double()).log())
    scaled = form(lambda model, x, generator: loss(model, scale * x, generator))
    found = audit(scaled, name=name, draws=50_000, expect=meant)
    assert found.agrees
    assert found.stationary
    assert found.prediction == prediction
    assert any(f"multiplies its data by {scale:g} first" in note for note in found.notes)


@pytest.mark.parametrize("form", [in_float32, lambda loss: loss])
@pytest.mark.parametrize("name", ["rectified_flow", "edm", "ddpm_eps", "min_snr_v"])
def test_data_that_a_loss_moves_first(form: Any, name: str) -> None:
    loss = published.EXPECTED[name][0]
    with pytest.raises(ValueError, match=r"moves its data before it noises them, x → s \(x -0\.5\)"):
        audit(form(lambda model, x, generator: loss(model, 2 * x - 1, generator)))


def test_a_learned_uncertainty_is_told() -> None:
    """What it leads to is the density of the draws over the error, whatever weight there is."""
    found = audit(published.edm2, draws=DRAWS, output=lambda out, u: (out, u), expect="edm2_latent")
    assert found.agrees
    assert found.stationary
    assert found.learns
    assert "learned uncertainty: the error is divided by e^u" in str(found)
    described = audit("edm2_latent")
    for one in (found, described):
        settled = torch.exp(-0.5 * ((one.logsnr - 0.8) / 2) ** 2) / result.reference_error(one.logsnr)
        assert one.settled is not None
        off = (one.settled * settled.max() / settled - 1).abs()
        assert (off[one.draws > 0.2 * one.draws.max()] < (0.15 if one is found else 1e-2)).all()  # type: ignore[operator]
    assert audit("edm").settled is None


@pytest.mark.parametrize("divides", [True, False])
def test_an_uncertainty_inside_the_loss(divides: bool) -> None:
    loss = published.Kendall(divides)
    with torch.no_grad():
        loss.log_variance.copy_(torch.linspace(-1, 1, 10))
    before = loss.log_variance.detach().clone()
    found = audit(loss, draws=8192)
    assert found.learns is divides
    assert torch.equal(loss.log_variance, before)
    assert loss.log_variance.grad is None
    assert ("which does not divide the error" in str(found)) is not divides


@pytest.mark.parametrize(("name", "costs"), [("huber", 2.0), ("stopped_weight", 1.0)])
def test_what_is_no_squared_error(name: str, costs: float) -> None:
    found = audit(getattr(published, name), draws=DRAWS)
    assert found.stationary
    assert found.quadratic is False
    assert f"costs {costs:.1f}" in str(found)


def test_channels_that_count_more() -> None:
    found = audit(published.first_channel_doubled, draws=DRAWS)
    assert found.quadratic
    assert found.isotropic is False
    assert "one-channel errors 2 times as much" in str(found)
    assert found.verdict.startswith("errors of different shapes count differently")


def test_what_the_model_is_told_is_found_out() -> None:
    assert "told flow time, larger for more noise" in str(measured("rectified_flow"))
    assert "told 1000 × flow time" in str(measured("sd3"))
    assert "VE, a = 1; the model is told σ of VE" in str(measured("edm"))
    assert "told an index, larger for more noise" in str(measured("ddpm_eps"))


def flow(model: Callable[..., Any], x: Tensor, generator: torch.Generator, take: Callable[[Any], Tensor]) -> Tensor:
    t = torch.rand(len(x), 1, 1, 1, generator=generator).to(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    return ((take(model((1 - t) * x + t * noise, t.flatten())) - (noise - x)) ** 2).mean()


def test_an_output_object() -> None:
    def loss(model: Callable[..., Any], x: Tensor, generator: torch.Generator) -> Tensor:
        return flow(model, x, generator, lambda out: out.sample)

    with pytest.raises(ValueError, match="say what your model returns, such as output="):
        audit(loss, draws=DRAWS)
    found = audit(loss, draws=DRAWS, output=lambda out: SimpleNamespace(sample=out))
    assert found.stationary


def unseeded(model: Callable[..., Any], x: Tensor, generator: torch.Generator) -> Tensor:
    return flow(model, x, torch.Generator().manual_seed(torch.seed() % 2**31), lambda out: out)


def nan_weight(model: Callable[..., Any], x: Tensor, generator: torch.Generator) -> Tensor:
    t = torch.rand(len(x), 1, 1, 1, generator=generator).to(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    return (torch.log(t - 0.5) * (model((1 - t) * x + t * noise, t) - (noise - x)) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (unseeded, "under one seed the loss draws other noise"),
        (nan_weight, "NaN or infinite at log-SNR"),
        (lambda model, x, generator: x.mean(), "called the model 0 times"),
        (lambda model, x, generator: (model(x) + model(x)).mean(), "called the model 2 times"),
        (lambda model, x, generator: model(x[:, :1]).mean(), "calls the model with"),
        (lambda model, x, generator: model(x).detach().mean(), "depends on the model's output"),
        (lambda model, x, generator: model(x) @ torch.ones(7), "the loss failed on data of shape"),
        (lambda model, x, generator: -flow(model, x, generator, lambda out: out), "its weight is negative"),
    ],
)
def test_code_that_cannot_be_measured_is_told(loss: Callable[..., Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        audit(loss, draws=DRAWS)


def weighed(cost: Callable[[Tensor, Tensor], Tensor], model: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """Flow matching with a cost of the error and the time."""
    t = torch.rand(len(x), 1, 1, 1, generator=generator).to(x)
    noise = torch.randn(x.shape, generator=generator).to(x)
    return cost(model((1 - t) * x + t * noise, t) - (noise - x), t).mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_called_that(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"calls the model with {dtype}, .* float32 for the audit"):
        audit(lambda model, x, generator: published.rectified_flow(model, x.to(dtype), generator))


def test_the_shape_that_is_said_is_the_shape_of_the_data() -> None:
    def loss(model: Callable[..., Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
        assert x.shape[1:] == (1, 10, 12), "digits alone"
        return published.rectified_flow(model, x, generator)

    assert audit(loss, shape=(1, 10, 12), draws=8192).prediction == "flow"
    with pytest.raises(ValueError, match=r"on data of shape \(256, 3, 32, 32\): AssertionError: digits alone"):
        audit(loss)


@pytest.mark.parametrize("inside", [lambda t: t < 0.5, lambda t: t > 0.5, lambda t: (t > 0.2) & (t < 0.5)])
@pytest.mark.parametrize("form", [in_float32, lambda loss: loss])
def test_a_weight_that_is_zero_on_a_part_of_the_range(inside: Any, form: Any) -> None:
    found = audit(form(partial(weighed, lambda error, t: inside(t) * error**2)), name="part", draws=50_000)
    assert found.stationary
    assert found.quadratic
    assert found.isotropic
    assert found.prediction == "flow"
    t = torch.sigmoid(-found.logsnr / 2)
    meant = inside(t) * torch.exp(-found.logsnr / 2)
    meant, off = meant / meant.max(), found.width > 1
    edge = (inside(torch.sigmoid(-found.edges / 2)).int().diff() != 0) | off  # in a bin where it ends
    found.json()
    assert ((found.weighting == 0) == (meant == 0))[~edge].all()
    assert all(factor > 1 for *_, factor in found.corrections())


@pytest.mark.parametrize("form", [in_float32, lambda loss: loss])
def test_an_absolute_error_is_no_squared_one(form: Any) -> None:
    """Its gradient at the exact model is the sign of a rounding error."""
    one = partial(weighed, lambda error, t: error.abs())

    def eps(model: Callable[..., Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.rand(len(x), 1, 1, 1, generator=generator).to(x)
        noise = torch.randn(x.shape, generator=generator).to(x)
        return (model(t.cos() * x + t.sin() * noise, t) - noise).abs().mean()

    for loss in (one, eps):
        try:
            said = audit(form(loss), name="one", draws=8192).verdict
        except ValueError as error:
            said = str(error)
        assert "not a weighted squared error" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_callable_is_measured_in_a_gigabyte() -> None:
    """With as many draws as there are if nothing is said; half of it is torch itself."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); import memory, paperlib; from losses import published\n"
        "paperlib.audit(published.edm); print(memory.peak())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert int(shown.stdout) < 1_000_000


def test_the_state_of_the_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    audit(published.rectified_flow, draws=8192)
    assert torch.equal(before, torch.get_rng_state())


def test_schedules_stay_as_they_are() -> None:
    """A dictionary that is audited is not changed."""
    said = {**SAID, "name": "mine"}
    assert audit(said).name == "mine"
    assert said == {**SAID, "name": "mine"}
    assert schedules.get(said["schedule"]) == schedules.Cosine(-12, 12)


# Trained networks ----------------------------------------------------------------------------------------------------


def test_a_network_by_closed_forms() -> None:
    """The exact denoiser of a Gaussian, and one that is shrunk, whose excess is (1 − κ)² D/(1 + e^λ s)."""
    dim, variance, ends = 16, 0.25, {"logsnr_min": -8.0, "logsnr_max": 8.0}
    oracle = Gaussian.isotropic(dim, variance)
    x = oracle.sample(2000, torch.Generator().manual_seed(1))
    shrunk = ShrunkGaussian(oracle, 0.8)
    found = audit(shrunk, data=x, prediction="eps", oracle=oracle, images=2000, draws=24, **ends)
    exact = audit(oracle, data=x, prediction="eps", images=2000, draws=24, **ends)

    def signal(level: Tensor) -> Tensor:
        return variance * level.exp()

    fine = torch.linspace(-8, 8, 24 * 64 + 1, dtype=torch.float64)
    fine = (fine[1:] + fine[:-1]) / 2
    u = signal(fine)
    for (error, spread), expected in (
        (exact.error(), u / (1 + u)),
        (found.error(), u / (1 + u) + 0.04 / (1 + u)),
        (found.error(found.gap), 0.04 / (1 + u)),
    ):
        assert ((error - expected.reshape(24, 64).mean(1)).abs() < 4 * spread + 1e-12).all()
    start = 0.5 * dim * torch.log1p(signal(fine[:1] * 0 - 8)).item()
    for name, weighting in weightings.TABLE_1.items():
        rate = weighting(fine) / weighting(torch.tensor(-8.0, dtype=torch.float64)) * dim * u / (1 + u)
        path = exact.weighted[name].path_kl
        prior = exact.bound.terms.prior_kl.mean().item()
        assert path.value == pytest.approx(prior + (0.5 * rate.mean() * 16).item(), abs=4 * path.standard_error)
        assert exact.weighted[name].monotonic is weighting.is_monotonic(-8, 8)
    assert str(exact).count("E_pw[L] of") == len({id(weighted) for weighted in exact.weighted.values()})
    assert "E_pw[L] of v-prediction, cosine or Flow matching, OT " in str(exact), "one weighting, said once"
    assert start < 0.01
    assert list(exact.bounds) == [8, 6, 4, 2]
    for top, bits in exact.bounds.items():
        path = 0.5 * dim * (u / (1 + u))[fine < top].sum().item() * 16 / len(fine)
        nats = prior + path + 0.5 * dim * (math.log(2 * math.pi) + 1 - top)
        assert bits.value * dim * math.log(2) == pytest.approx(nats, abs=4 * bits.standard_error * dim)
    nats = exact.bounds[8.0].value * dim * math.log(2)  # a bound on the entropy of x, tight for many nats
    entropy = oracle.entropy(torch.tensor([60.0], dtype=torch.float64)).item()
    assert nats == pytest.approx(entropy, abs=4 * exact.bounds[8.0].standard_error * dim + 0.05)
    square = (dim**2 + 2 * dim) * (u / (1 + u)) ** 2
    mean = (dim * u / (1 + u)).mean() * 16
    p = exact.weighted["ELBO"]
    saving = (16 * 16 * square.mean() - mean**2) / ((square.sqrt().mean() * 16) ** 2 - mean**2)
    assert p.saving == pytest.approx(saving.item(), rel=0.05)
    best = 0.99 * square.sqrt() / (16 * square.sqrt().mean()) + 0.01 / 16
    assert list(p.schedule.heights) == pytest.approx(best.reshape(24, 64).mean(1).tolist(), rel=0.1)


def test_a_network_on_images(capsys: pytest.CaptureFixture[str], tmp_path: Path, repository: Path) -> None:
    """−ELBO is that of the likelihood; a card says what the network predicts, and the schedule it was trained by."""
    file = repository / "results/tiny/07_train/runs/sigmoid-seed0/weights.safetensors"
    assert cli.main(["audit", "--weights", str(file), "--data", "digits", "--html", str(tmp_path / "a.html")]) == 0
    shown = capsys.readouterr().out
    assert "v on 256 of digits/test" in shown
    assert "E_pw[L] of Sigmoid(bias=2.0)" in shown
    assert "levels drawn by Cosine(logsnr_min=-10.0, logsnr_max=10.0" in shown
    assert "two standard errors" in (tmp_path / "a.html").read_text()
    network, prediction = weights.load(file)
    images = data.load("digits", "test")
    some = replace(images, images=images.images[:32], labels=images.labels[:32])
    found = audit(network, data=images, prediction=prediction, images=32, draws=8, logsnr_min=-10, logsnr_max=10)
    same = image_elbo(network, prediction, some, LinearLogSNR(-10, 10), draws=8)
    assert found.bounds[10.0].value == same.bits.value
    assert found.bounds[6.0].value == Mean.bits(same.terms_until(6.0, some).total, 64).value
    assert json.loads(json.dumps(found.json(), allow_nan=False))["bits_per_dim"][0][1] == same.bits.value
    made: dict[str, Any] = {}
    exec(found.code(), made)
    assert made["schedule"].ends == (-10, 10)
    torch.testing.assert_close(made["factor"], 1 / made["schedule"].density(made["logsnr"]))
    for wrong in ([], ["--data", "digits"]):
        assert cli.main(["audit", *(wrong or ["--weights", str(file)])]) == 1
        assert "give both" in capsys.readouterr().err
    with pytest.raises(ValueError, match="oracle="):
        audit(network, data="digits", prediction=prediction, expect="edm")
    with pytest.raises(TypeError, match="ImageData"):
        audit(network, data=3, prediction=prediction)


class OfTime:
    """A schedule as azula's are."""

    __module__ = "azula.noise"

    def __init__(self, scales: Callable[[Tensor], Any]) -> None:
        self.scales = scales

    def __call__(self, t: Tensor) -> Any:
        return self.scales(t)


@pytest.mark.parametrize(
    ("scales", "says"),
    [
        (lambda t: None, "expected α and σ of t, got NoneType"),
        (lambda t: (1 + 0 * t, 1 + 0 * t), "decrease from step to step"),
        (lambda t: (1 - t, (6 * t).sin().abs() + 0.1), "decrease from step to step"),
        (lambda t: (1 - t, (t - 0.5).clamp(min=0)), "has λ = inf at t = "),
        (lambda t: (1 - t, (t - 0.5).sqrt()), "has λ = nan at t = "),
    ],
)
def test_functions_of_time_that_are_no_schedule(scales: Callable[[Tensor], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        audit(OfTime(scales), prediction="eps")


@pytest.mark.parametrize(
    ("network", "options", "says"),
    [
        (lambda z, level: SimpleNamespace(sample=z), {}, "take the tensor alone"),
        (lambda z, level: z[:, :2], {}, r"output has shape \(8, 2\), but z has \(8, 4\)"),
        (lambda z, level: torch.where(level[:, None] > 3, math.nan, 0.0) * z, {}, "NaN or infinite for .* at log-SNR"),
        (lambda z, level: z, {"data": "mnist"}, "unknown data set 'mnist'"),
        (lambda z, level: z, {"data": "digits/valid"}, "unknown split 'valid'"),
        (lambda z, level: z, {"data": torch.ones(8, 4) / 0}, "NaN or infinite; clean the data"),
        (lambda z, level: z, {"data": torch.ones(8, 4).long()}, "must be a floating-point tensor"),
        (lambda z, level: z, {"logsnr_min": 4.0, "logsnr_max": -4.0}, "must be below logsnr_max"),
        (lambda z, level: z, {"prediction": "velocity"}, "unknown prediction 'velocity'"),
        (lambda z, level: z, {"images": 0}, "images must be a positive whole number, got 0"),
        (lambda z, level: z, {"draws": 2.5}, r"draws must be a positive whole number, got 2\.5"),
        (lambda z, level: z, {"data": torch.zeros(0, 4)}, "the number of examples must be a positive whole number"),
        (lambda z, level: z, {"data": torch.zeros(2, 4), "draws": 1}, "2 levels leave some of 24 bins without any"),
        (
            lambda z, level: z,
            {"trained_by": schedules.Cosine(-6.0, 6.0), "logsnr_min": -10.0, "logsnr_max": 10.0},
            r"trained_by draws levels in \[-6, 6\] and cannot be compared on \[-10, 10\]",
        ),
    ],
)
def test_networks_that_cannot_be_audited_are_told(network: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        audit(network, **{"data": torch.randn(8, 4), "prediction": "eps"} | options)


def test_a_file_that_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(ValueError, match="is not weights with a card"):
        audit(tmp_path / "a.pt", data="digits")


# The report ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["sd3"], ["rectified_flow", "edm", "ddpm"]])
def test_the_page_needs_nothing_else(names: list[str]) -> None:
    from html.parser import HTMLParser

    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.seen: list[tuple[str, dict[str, str | None]]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.append((tag, dict(attrs)))
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.append((tag, dict(attrs)))

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    text = report.page([audit(name) for name in names])
    read = Page()
    read.feed(text)
    assert not read.open
    assert len(text) < 1_000_000
    assert "http" not in text
    assert ",nan" not in text
    assert not [tag for tag, _ in read.seen if tag in ("script", "link", "iframe")]
    sources = [attributes["src"] for tag, attributes in read.seen if tag == "img"]
    assert len(sources) == 10 * len(names)
    assert all(source is not None and source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(name in text for name in names)


def test_the_photographs_lie_at_the_quantiles() -> None:
    """p_w of the sigmoid weighting is logistic about its bias."""
    found = audit(weightings.Sigmoid(2.0))
    expected = [2 + math.log(p / (1 - p)) for p in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert report.quantiles(found) == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_a_page_of_every_recipe() -> None:
    assert len(report.page([audit(name) for name in recipes.RECIPES])) < 1_000_000


def test_a_picture_does_not_import_scikit_learn() -> None:
    """Which takes longer than everything else; its photographs are read as files."""
    code = "import sys, paperlib; paperlib.audit('sd3')._repr_html_(); print('sklearn' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert shown.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("edm", {}),
        ("sd3_logit_normal", {"logsnr_min": -9.0}),
        ({**SAID, "loss_weight": "min_snr"}, {}),
        ({"name": "sd3_logit_normal", "std": 1.5}, {"logsnr_max": 11.0}),
        ("rectified_flow", {}),
        (SAID, {}),
    ],
)
def test_code_is_copied_and_runs(what: Any, options: dict[str, float]) -> None:
    found = audit(what, **options)
    text = report.page([found])
    assert 'onclick="navigator.clipboard.writeText(this.nextElementSibling.textContent)"' in text
    assert ("multiply the loss of each example" in text) is not found.monotonic
    made: dict[str, Any] = {}
    exec(found.code(), made)
    torch.testing.assert_close(made["found"].weighting, found.weighting, rtol=0, atol=0)
    assert ("weighting" in made) is ("factor" in made) is not found.monotonic, "nothing to be made monotone"
    if not found.monotonic:
        assert made["weighting"].is_monotonic()
        below = torch.tensor([*found.ends, found.ends[1] - 1e-6], dtype=torch.float64)
        assert (made["factor"](below) >= 1).all(), "to the ends of the range"
        assert made["found"].monotonised("nearest").is_monotonic()


def test_code_of_a_file_reads_it_again(tmp_path: Path) -> None:
    import diffusers

    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    found = audit(tmp_path, loss_weight={"name": "min_snr", "gamma": 3})
    made: dict[str, Any] = {}
    exec(found.code(), made)
    torch.testing.assert_close(made["found"].weighting, found.weighting, rtol=0, atol=0)


def test_pictures_say_what_is_in_them() -> None:
    """A band where there is one, names where there are several curves, and how far it hangs on where levels end."""
    band, several, end = "95 % band", "</span> draws", "where the range is cut"
    shown = report.section(audit("edm"))
    assert band not in shown
    assert several in shown
    assert end not in shown
    assert "nearest in ∫(·)²dλ on [-20, 20], on which its height depends" in shown
    assert band in report.section(measured("sd3"))
    shown = report.section(audit("rectified_flow"))
    assert end in shown
    assert "made monotone" not in shown.lower()
    curve = re.search(r'<polyline points="([^"]*)"', shown)
    assert curve
    highest = min(float(point.split(",")[1]) for point in curve[1].split())
    assert highest == pytest.approx(report.LINE / 2), "over the largest w that is shown"


@pytest.mark.skipif(browser.PROGRAM is None, reason="no browser")
@pytest.mark.slow
def test_a_report_on_a_telephone(tmp_path: Path) -> None:
    """Nothing is wider than the window, words can be read, photographs of a level are in a column; dark is dark."""
    file = tmp_path / "report.html"
    file.write_text(report.page([replace(measured("sd3"), name="a_name_without_any_blank_" * 3)]), encoding="utf-8")
    script = """({
        wide: document.documentElement.scrollWidth, seen: document.documentElement.clientWidth,
        text: Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)),
        columns: new Set([...document.querySelectorAll('img')].map(i => i.getBoundingClientRect().left)).size})"""
    with browser.Browser(tmp_path / "user") as window:
        seen = window.visit(f"file://{file}", "document.fonts.ready.then(() => 1)", script, (390, 1300)).found
        for found in seen.values():
            assert found["wide"] == found["seen"]
            assert found["text"] > 9
            assert found["columns"] == 5
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        window.call("Emulation.setEmulatedMedia", features=dark)
        colour = "getComputedStyle(document.querySelector('h1')).color"
        assert window.evaluate(colour) == "rgb(255, 255, 255)"


# The page that moves -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving() -> str:
    return page_that_moves.page()


@pytest.mark.slow
def test_the_page_that_moves_is_small(moving: str) -> None:
    assert len(moving.encode()) < 400_000
    assert "http" not in moving
    assert "NaN" not in moving


@pytest.mark.slow
@pytest.mark.skipif(browser.PROGRAM is None, reason="no browser")
@pytest.mark.parametrize(
    ("address", "event", "verdict"),
    [
        ("sigmoid=-1.5", "", "sigmoid, k = -1.5: monotone"),
        ("recipe=edm", "k=3", "sigmoid, k = 3: monotone"),
        ("sigmoid=0", "recipe=edm", "edm: not monotone: peak at λ = -3.308, below it 0.9% of the draws"),
        ("loss=v,cosine", "", "v,cosine: monotone"),
        ("loss=v,cosine", "schedule=laplace", "v,laplace: not monotone"),
    ],
)
def test_the_page_that_moves(moving: str, tmp_path: Path, address: str, event: str, verdict: str) -> None:
    """Its address and its controls, in a browser; the curves are those of formulas."""
    file = tmp_path / "page.html"
    name, _, value = event.partition("=")
    script = f"at('{name}').value = '{value}'; at('{name}').dispatchEvent(new Event('input'));" if event else ""
    file.write_text(moving.replace("</script>", script + "</script>"), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom")
    command = [browser.PROGRAM or "", *flags, f"--user-data-dir={tmp_path / 'user'}", f"file://{file}#{address}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    assert f'<strong id="verdict">{verdict}' in shown

    def curve(name: str) -> Tensor:
        points = re.search(rf'<polyline id="{name}" points="([^"]*)"', shown)
        assert points
        heights = [float(point.split(",")[1]) for point in points[1].split()]
        return (165 - torch.tensor(heights, dtype=torch.float64)) / 150

    level = page_that_moves.LEVELS
    w = weightings.EDM()(level)
    if verdict.startswith("sigmoid"):
        k = -1.5 if "-1.5" in verdict else 3
        w = torch.sigmoid(k - level)
        density = torch.sigmoid(k - level) * torch.sigmoid(level - k)
        torch.testing.assert_close(curve("density"), density / density.max(), atol=5e-3, rtol=0)
        effort = w * result.reference_error(level)
        torch.testing.assert_close(curve("effort"), effort / effort.max(), atol=1e-2, rtol=0)
    elif verdict.startswith("v,cosine"):
        w = torch.exp(-(level + 20) / 2)
    elif verdict.startswith("v,laplace"):
        w = torch.exp(-2 * level.abs()) * (1 + torch.exp(-level))
    torch.testing.assert_close(curve("w"), w / (1 if verdict.startswith("v,cosine") else w.max()), atol=2e-2, rtol=0)
    assert shown.count("data:image/jpeg;base64,") >= 3


def test_in_a_notebook() -> None:
    shown = measured("sd3")._repr_html_()
    assert "not the ELBO of any noisy data" in shown
    assert "<svg" in shown
