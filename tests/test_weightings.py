"""Weightings: Table 1, the monotone column, peaks, stability, and the augmentation distribution p_w."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paperlib import schedules, weightings
from paperlib.weightings import TABLE_1, Weighting

ALL: dict[str, Weighting] = {name: weightings.get(name) for name in weightings.WEIGHTINGS}
every_weighting = pytest.mark.parametrize("weighting", ALL.values(), ids=ALL)


def gauss_legendre(low: float, high: float, panels: int = 512, order: int = 16) -> tuple[Tensor, Tensor]:
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(order))
    edges = torch.linspace(low, high, panels + 1, dtype=torch.float64)
    half, middle = edges.diff()[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return (middle + half * nodes).flatten(), (half * weights).flatten()


def normal(level: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-((level - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))


def sech(x: Tensor) -> Tensor:
    return 1 / torch.cosh(x)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "elbo": torch.ones_like,
    "iddpm": lambda level: sech(level / 2),
    "edm": lambda level: normal(level, 2.4, 2.4) * (torch.exp(-level) + 0.5**2),
    "v_cosine": lambda level: torch.exp(-level / 2),
    "flow_matching_ot": lambda level: torch.exp(-level / 2),
    "indi": lambda level: torch.exp(-level) * sech(level / 4) ** 2,
    "p2": lambda level: sech(level / 2) / (1 + torch.exp(level)),
    "min_snr": lambda level: sech(level / 2) * torch.clamp(5 * torch.exp(-level), max=1),
    "sigmoid": lambda level: 1 / (1 + torch.exp(level - 2)),
    "x_cosine": lambda level: torch.exp(-level) * sech(level / 2),
    "sd3_logit_normal": lambda level: normal(level, 0, 2) * (1 + torch.exp(-level / 2)) ** 2,
    "sd3_cosmap": lambda level: sech(level / 2) * (1 + torch.exp(-level / 2)) ** 2,
    "soft_min_snr": lambda level: sech(level / 2) * 4 / (torch.exp(level) + 4),
    "debiased": lambda level: sech(level / 2) * torch.exp(-level / 2),
    "edm2": lambda level: normal(level, 0.8, 2.0) * (torch.exp(-level) + 0.5**2),
}
"""As Section 2 prints them; EDM-monotonic has tests of its own."""


@pytest.mark.parametrize("name", FORMULAS)
def test_weightings_have_the_printed_formulas(name: str) -> None:
    level = torch.linspace(-15, 15, 301, dtype=torch.float64)
    assert torch.allclose(ALL[name](level), FORMULAS[name](level), rtol=1e-12, atol=0)


def test_every_weighting_is_held_to_a_formula() -> None:
    assert FORMULAS.keys() | {"edm_monotonic"} == ALL.keys()


def test_table_1_is_made_of_these() -> None:
    names = ("elbo", "iddpm", "edm", "v_cosine", "flow_matching_ot", "indi", "p2", "min_snr")
    assert list(TABLE_1.values()) == [ALL[name] for name in names]


def test_p2_without_gamma_is_its_baseline() -> None:
    level = torch.linspace(-15, 15, 301, dtype=torch.float64)
    assert torch.equal(weightings.P2(gamma=0)(level), weightings.IDDPM()(level))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0, 20.0])
def test_gamma(gamma: float) -> None:
    level = torch.linspace(-15, 15, 301, dtype=torch.float64)
    p2 = sech(level / 2) / (1 + torch.exp(level)) ** gamma
    assert torch.allclose(weightings.P2(gamma=gamma)(level), p2, rtol=1e-11)
    # x-MSE · min(SNR, γ), which is ε-MSE · min(1, γ/SNR)
    min_snr = sech(level / 2) * torch.minimum(torch.exp(level), torch.tensor(gamma)) * torch.exp(-level)
    assert torch.allclose(weightings.MinSNR(gamma)(level), min_snr, rtol=1e-12)
    soft = sech(level / 2) * gamma * torch.exp(level) / (torch.exp(level) + gamma) * torch.exp(-level)
    assert torch.allclose(weightings.SoftMinSNR(gamma)(level), soft, rtol=1e-12)


# The monotone column -------------------------------------------------------------------------------------------------


MONOTONE = {
    "elbo": True,
    "iddpm": False,
    "edm": False,
    "v_cosine": True,
    "flow_matching_ot": True,
    "indi": True,
    "p2": False,
    "min_snr": False,
    "sigmoid": True,
    "edm_monotonic": True,
    "x_cosine": True,
    "sd3_logit_normal": False,
    "debiased": True,
    "edm2": False,
}


@pytest.mark.parametrize("ends", [(-8.7, 12.4), (-12.0, 12.0), (-15.0, 15.0), (-30.0, 30.0)])
@pytest.mark.parametrize("name", MONOTONE)
def test_monotone_column(name: str, ends: tuple[float, float]) -> None:
    assert ALL[name].is_monotonic(*ends) is MONOTONE[name]


def test_monotone_means_falling_not_rising() -> None:
    rising = weightings.Custom(lambda level: level / 2)
    assert not rising.is_monotonic(-9, 9)
    assert weightings.Custom(lambda level: -level / 2).is_monotonic(-9, 9)


@pytest.mark.parametrize(
    ("weighting", "peak"),
    [
        (weightings.IDDPM(), 0.0),
        (weightings.EDM(), -3.3078),
        (weightings.P2(gamma=1.0), -1.0986),
        (weightings.P2(gamma=0.5), -0.6931),
        (weightings.MinSNR(), 0.0),
        (weightings.SD3LogitNormal(), -3.3758),
    ],
    ids=str,
)
def test_peaks(weighting: Weighting, peak: float) -> None:
    level = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    assert level[weighting.log(level).argmax()].item() == pytest.approx(peak, abs=2e-4)
    assert not weighting.is_monotonic(peak - 2, peak)
    assert weighting.is_monotonic(peak + 1e-4, peak + 20)


# EDM-monotonic -------------------------------------------------------------------------------------------------------


def test_edm_monotonic_is_edm_held_at_its_peak() -> None:
    edm, held = weightings.EDM(), weightings.EDMMonotonic()
    peak = edm.peak
    assert peak == pytest.approx(-3.3078, abs=5e-5)
    above = torch.linspace(peak, 20, 101, dtype=torch.float64)
    assert torch.equal(held(above), edm(above))
    below = torch.linspace(-20, peak, 101, dtype=torch.float64)
    assert torch.equal(held(below), edm(torch.full_like(below, peak)))
    # the peak is the weighting's, not that of the batch at hand
    assert held(torch.tensor([5.0])).item() == pytest.approx(edm(torch.tensor([5.0])).item())


@pytest.mark.parametrize(("level", "value"), [(0, 0.465), (2, 0.233), (4, 0.132), (6, 0.050), (8, 0.010)])
def test_edm_monotonic_values(level: float, value: float) -> None:
    w = weightings.EDMMonotonic()
    relative = w(torch.tensor(float(level), dtype=torch.float64)) / w(torch.tensor(-12.0, dtype=torch.float64))
    assert relative.item() == pytest.approx(value, abs=5e-4)


@given(st.floats(-3, 1), st.floats(0.3, 3), st.floats(0.1, 3))
def test_edm_monotonic_is_monotone_or_refused(p_mean: float, p_std: float, sigma_data: float) -> None:
    try:
        w = weightings.EDMMonotonic(p_mean, p_std, sigma_data)
    except ValueError as refusal:
        assert "two peaks" in str(refusal)  # noqa: PT017
        assert not weightings.EDM(p_mean, p_std, sigma_data).is_monotonic(
            weightings.EDM(p_mean, p_std, sigma_data).peak + 1e-6, 40
        )
    else:
        assert w.is_monotonic(-30, 30)


def test_edm_monotonic_with_two_peaks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma_data=1.1 EDM's weighting has two peaks"):
        weightings.EDMMonotonic(sigma_data=1.1)


@given(st.floats(-3, 1), st.floats(0.3, 3), st.floats(0.1, 3))
def test_edm_peak_is_the_highest_point(p_mean: float, p_std: float, sigma_data: float) -> None:
    edm = weightings.EDM(p_mean, p_std, sigma_data)
    grid = torch.linspace(-60, 30, 20_001, dtype=torch.float64)
    assert edm.log(grid).max() <= edm.log(torch.tensor(edm.peak, dtype=torch.float64)) + 1e-12


# Stability -----------------------------------------------------------------------------------------------------------


@every_weighting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_with_finite_gradients(weighting: Weighting, dtype: torch.dtype) -> None:
    level = torch.linspace(-30, 30, 1201, dtype=dtype).requires_grad_()
    for value in (weighting.log(level), weighting(level)):
        assert value.dtype == dtype
        assert value.shape == level.shape
        assert torch.isfinite(value).all()
        (slope,) = torch.autograd.grad(value.sum() + 0 * level.sum(), level)
        assert torch.isfinite(slope).all()
    assert (weighting(level) >= 0).all()  # N(30; 0, 2²) is below the smallest float32
    assert (weighting(level.double()) > 0).all()


@every_weighting
def test_float32_differs_by_rounding_alone(weighting: Weighting) -> None:
    level = torch.linspace(-30, 30, 601)
    assert torch.allclose(weighting.log(level).double(), weighting.log(level.double()), rtol=1e-6, atol=1e-5)


@every_weighting
def test_shift_moves_the_weighting(weighting: Weighting) -> None:
    level = torch.linspace(-9, 9, 37, dtype=torch.float64)
    assert torch.allclose(weighting.shifted(1.5)(level), weighting(level - 1.5))
    for size in (64, 128, 256, 512):
        shifted = weighting.shifted(schedules.image_size_shift(size))
        assert torch.allclose(shifted(level), weighting(level - 2 * math.log(64 / size)))


# p_w -----------------------------------------------------------------------------------------------------------------


RANGES = [(-12.0, 12.0), (-8.7, 12.4), (-5.0, 3.0), (2.0, 9.0)]


@pytest.mark.parametrize("ends", RANGES)
@every_weighting
def test_augmentation_adds_up_to_one(weighting: Weighting, ends: tuple[float, float]) -> None:
    kinks = [kink for kink in (math.log(5), weightings.EDM().peak) if ends[0] < kink < ends[1]]
    edges = sorted([*ends, *kinks])
    parts = [gauss_legendre(a, b) for a, b in pairwise(edges)]
    level, weight = (torch.cat(part) for part in zip(*parts, strict=True))
    density = weightings.augmentation_density(weighting, level, *ends)
    total = (weight * density).sum().item() + weightings.clean_mass(weighting, *ends)
    scale = 1 + (weight * density.abs()).sum().item()
    assert total == pytest.approx(1, abs=1e-10 * scale)
    if weighting.is_monotonic(*ends):
        assert (density >= -1e-15).all()
    else:
        assert (density < 0).any()


@pytest.mark.parametrize(
    ("weighting", "mass"),
    [
        (weightings.IDDPM(), math.cosh(6) - 1),  # 200.7: from w(−12) = sech 6 up to 1
        (weightings.EDM(), 656.8),
        (weightings.Sigmoid(), 0),
        (weightings.VCosine(), 0),
        (weightings.EDMMonotonic(), 0),
    ],
    ids=str,
)
def test_negative_mass(weighting: Weighting, mass: float) -> None:
    level, weight = gauss_legendre(-12, 12)
    density = weightings.augmentation_density(weighting, level, -12, 12)
    negative = (weight * (-density).clamp(min=0)).sum().item()
    assert negative == pytest.approx(mass, rel=2e-4, abs=1e-12)


@pytest.mark.parametrize(
    ("weighting", "mass", "tolerance"),
    [
        *(
            (weightings.Sigmoid(k), m, 0.04)
            for k, m in zip((1, 2, 3, 4, 5), (1.7e-5, 4.5e-5, 1.2e-4, 3.4e-4, 9.1e-4), strict=True)
        ),
        (weightings.EDMMonotonic(), 5.1e-5, 0.01),
        (weightings.VCosine(), math.exp(-12), 1e-12),
        (weightings.ELBO(), 1.0, 1e-15),
    ],
    ids=str,
)
def test_clean_mass(weighting: Weighting, mass: float, tolerance: float) -> None:
    assert weightings.clean_mass(weighting, -12, 12) == pytest.approx(mass, rel=tolerance)


@pytest.mark.parametrize("bias", [-1.0, 2.0, 5.0])
def test_augmentation_of_the_sigmoid_weighting_is_logistic(bias: float) -> None:
    level = torch.linspace(-12, 12, 241, dtype=torch.float64)
    density = weightings.augmentation_density(weightings.Sigmoid(bias), level, -12, 12)
    logistic = torch.sigmoid(level - bias) * torch.sigmoid(bias - level)
    at_the_noisy_end = 1 / (1 + math.exp(-12 - bias))
    assert torch.allclose(density, logistic / at_the_noisy_end, rtol=1e-12)


def test_the_elbo_augments_with_nothing() -> None:
    level = torch.linspace(-12, 12, 49, dtype=torch.float64)
    assert not weightings.augmentation_density(weightings.ELBO(), level, -12, 12).any()
    assert weightings.clean_mass(weightings.ELBO(), -12, 12) == 1


def test_augmentation_density_vanishes_outside_the_range_and_keeps_its_dtype() -> None:
    level = torch.tensor([-9.0, -8.7, 0.0, 8.1, 8.2])
    density = weightings.augmentation_density(weightings.VCosine(), level, -8.7, 8.1)
    assert density.dtype == torch.float32
    # float32 rounds 8.1 upwards: still an end point
    assert torch.equal(density > 0, torch.tensor([False, True, True, True, False]))
    with torch.no_grad():
        assert torch.equal(weightings.augmentation_density(weightings.VCosine(), level, -8.7, 8.1), density)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_reversed_ranges_are_refused() -> None:
    level, message = torch.zeros(3), r"logsnr_min \(3.0\) must be below logsnr_max \(-3.0\)"
    with pytest.raises(ValueError, match=message):
        weightings.augmentation_density(weightings.ELBO(), level, 3.0, -3.0)
    with pytest.raises(ValueError, match=message):
        weightings.clean_mass(weightings.ELBO(), 3.0, -3.0)
    with pytest.raises(ValueError, match=message):
        weightings.ELBO().is_monotonic(3.0, -3.0)
    with pytest.raises(ValueError, match=r"must be finite numbers"):
        weightings.clean_mass(weightings.ELBO(), -math.inf, 3.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weightings.EDM(p_std=0), "p_std must be a positive number"),
        (lambda: weightings.EDM(sigma_data=-0.5), "sigma_data must be a positive number, got -0.5"),
        (lambda: weightings.EDMMonotonic(p_std=-1), "p_std must be a positive number, got -1"),
        (lambda: weightings.P2(gamma=-0.5), "gamma must be a positive number or zero, got -0.5"),
        (lambda: weightings.P2(k=0), "k must be a positive number"),
        (lambda: weightings.MinSNR(gamma=math.nan), "gamma must be a positive number, got nan"),
        (lambda: weightings.SoftMinSNR(gamma=0), "gamma must be a positive number"),
        (lambda: weightings.SD3LogitNormal(std=0), "std must be a positive number"),
        (lambda: weightings.get("elbo", image_size=0), "size must be a positive number"),
        (lambda: weightings.get("sigmoids"), "unknown weighting 'sigmoids'; choose one of elbo, iddpm, edm"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
