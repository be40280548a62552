"""Recipes in use: verdicts and peaks, by formulas of their own and as recorded."""

import pytest
import torch

from paperlib import objectives, recipes, schedules
from paperlib.recipes import RECIPES

PEAKS: dict[str, float | None] = {
    "rectified_flow": None,
    "rectified_flow_shift_3": None,
    "rectified_flow_shift_5": None,
    "rectified_flow_shift_7": None,
    "rectified_flow_shift_12": None,
    "sd3": -3.376,
    "sd3_dreambooth": -6.197,
    "flux_256": -4.642,  # stationary: −(λ + 1)/4 = e^{−λ/2}/(1 + e^{−λ/2})
    "flux_4096": -6.121,
    "ltx_1024": -5.679,
    "ltx_4096": -8.029,
    "wan_diffsynth": None,
    "wan_musubi": -6.008,
    "hunyuan_video": -7.813,
    "edm": -3.308,
    "edm2_latent": -3.158,
    "edm2_pixel": -8.640,
    "flow_matching_cifar10": -1.532,
    "stable_audio": None,
    "sid2": None,
    "laplace": 0.0,
}
"""To three decimals; None for a monotone w."""

TABLES = {"stable_diffusion": -0.445, "ddpm": -0.914, "min_snr_eps": -0.445, "min_snr_v": -0.445}
"""To 0.01: a convention fills in the density between the steps."""


def test_every_recipe_is_held_to_a_verdict() -> None:
    assert PEAKS.keys() | TABLES.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_verdict_and_peak(name: str) -> None:
    found, tolerance = recipes.peak(recipes.get(name).loss), 0.01 if name in TABLES else 5.1e-4
    assert found == (None if (expected := (PEAKS | TABLES)[name]) is None else pytest.approx(expected, abs=tolerance))


def test_the_table_says_what_the_recipes_say() -> None:
    rows = {row["recipe"]: row for row in recipes.table()}
    assert rows.keys() == RECIPES.keys()
    assert all(row["monotone"] is (row["peak"] is None) for row in rows.values())
    assert all(row["source"] and row["w"] for row in rows.values())
    assert "LearnedUncertainty" in rows["edm2_latent"]["unknown"]


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("rectified_flow", lambda level: -level / 2),
        ("rectified_flow_shift_3", lambda level: shifted_flow(level, 3)),
        ("sd3_dreambooth", lambda level: -((level + 2 * torch.tensor(3.0).log()) ** 2) / 8 - level),
        ("ltx_4096", lambda level: -((level + 4.1) ** 2) / 8 + 2 * torch.log1p(torch.exp(-level / 2))),
        ("edm2_pixel", lambda level: -((level - 1.6) ** 2) / (2 * 3.2**2) + torch.log(torch.exp(-level) + 0.25)),
        ("sid2", lambda level: -torch.log1p(torch.exp(level - 2))),
        ("laplace", lambda level: -2 * level.abs()),
    ],
)
def test_the_weighting_is_the_printed_one(name: str, formula: object) -> None:
    level = torch.linspace(-12, 12, 241, dtype=torch.float64)
    difference = recipes.get(name).loss.weighting.log(level) - formula(level)  # type: ignore[operator]
    assert difference.std() < 1e-6


def shifted_flow(level: torch.Tensor, shift: float) -> torch.Tensor:
    moved = (level + 2 * torch.tensor(shift, dtype=torch.float64).log()) / 4
    return -2 * torch.cosh(moved).log() + 2 * torch.log1p(torch.exp(-level / 2))


@pytest.mark.parametrize(("shift", "monotone"), [(0.1, False), (0.11, False), (0.1112, True), (1, True), (12, True)])
def test_shifts_of_a_ninth_and_more_are_monotone(shift: float, monotone: bool) -> None:
    schedule = schedules.get("flow_matching_ot", logsnr_min=-20, logsnr_max=20, flow_shift=shift)
    loss = objectives.get({"prediction": "flow", "schedule": schedule})
    assert (recipes.peak(loss) is None) is monotone


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'sd4'; choose one of stable_diffusion, ddpm"):
        recipes.get("sd4")
