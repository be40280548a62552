"""Noise schedules: end points, inverse, density, truncation, refusals, over many ranges within [−30, 30]."""

import math
import pickle
from collections.abc import Callable
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paperlib import process, schedules, tables
from paperlib.schedules import NARROWEST, TruncatedSchedule

Family = Callable[[float, float], TruncatedSchedule]

FAMILIES: dict[str, Family] = {
    "cosine": schedules.Cosine,
    "cosine, shift −1.4": partial(schedules.Cosine, shift=-1.4),
    "cosine, shift 2": partial(schedules.Cosine, shift=2.0),
    "EDM training": schedules.EDMTraining,
    "EDM2 training": partial(schedules.EDMTraining, p_mean=-0.4, p_std=1.0),
    "EDM sampling": schedules.EDMSampling,
    "EDM sampling, ρ 3": partial(schedules.EDMSampling, rho=3.0, sigma_min=1e-5, sigma_max=1e5),
    "flow matching": schedules.FlowMatchingOT,
    "linear log-SNR": schedules.LinearLogSNR,
    "linear β": schedules.LinearBeta,
    "linear β, weak": partial(schedules.LinearBeta, beta_min=0.01, beta_max=5.0),
    "linear β, strong": partial(schedules.LinearBeta, beta_max=60.0),
    "logit-normal": schedules.LogitNormal,
    "logit-normal, displaced": partial(schedules.LogitNormal, mean=0.7, std=0.8),
    "normal": partial(schedules.Normal, mean=-1.0, std=3.0),
    "Laplace": schedules.Laplace,
    "Laplace, displaced": partial(schedules.Laplace, mean=1.3, scale=2.0),
    "Cauchy": partial(schedules.Cauchy, median=-0.5, scale=2.0),
    "Beta(1.5, 1)": partial(schedules.Beta, a=1.5, b=1.0),
    "Beta(0.4, 2.5)": partial(schedules.Beta, a=0.4, b=2.5),
    "mode": schedules.Mode,
    "mode, tails": partial(schedules.Mode, scale=-0.8),
    "flow matching, shift 3": lambda low, high: schedules.FlowMatchingOT(low, high).shifted(schedules.flow_shift(3)),
    "linear log-SNR, shifted": lambda low, high: schedules.LinearLogSNR(low, high).shifted(2.5),
    "EDM training, shifted": lambda low, high: schedules.EDMTraining(low, high).shifted(-1.5),
}
TABLES: dict[str, Family] = {
    "DDPM": tables.DDPM,
    "DDPM, zero terminal SNR": partial(tables.DDPM, zero_terminal=True),
    "scaled linear": tables.ScaledLinear,
    "DDPM, shifted": partial(schedules.Shifted, base=tables.DDPM(), nats=1.0),
    "three steps": partial(tables.StepTable, alphas_cumprod=[0.99, 0.5, 0.01]),
    "histogram": partial(tables.Histogram, edges=[-9.0, -2.0, 0.5, 4.0, 9.0], heights=[1.0, 0.2, 3.0, 1e-3]),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
family_or_table = pytest.mark.parametrize("family", (FAMILIES | TABLES).values(), ids=FAMILIES | TABLES)

COMPARISON_RANGE = (-8.7, 12.4)
"""Inside the support of every schedule."""


def support_within_30(family: Family) -> tuple[float, float]:
    low, high = family(0.0, 0.5).support
    return max(low, -30.0), min(high, 30.0)


@st.composite
def schedules_on_any_range(draw: st.DrawFn, family: Family) -> TruncatedSchedule:
    """A schedule on a range inside its support and [−30, 30]: wide, one-sided, or down to 1e-6 nats narrow."""
    lowest, highest = support_within_30(family)
    span = highest - lowest
    width = draw(st.one_of(st.just(span), st.floats(1e-3, span), st.floats(-5.9, 0).map(lambda e: 10**e)))
    start = draw(st.floats(0, 1)) * (span - width)
    return family(lowest + start, min(lowest + start + width, highest))


def gauss_legendre(
    low: float, high: float, panels: int = 128, order: int = 16, breaks: tuple[float, ...] = ()
) -> tuple[Tensor, Tensor]:
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(order))
    inside = torch.tensor([level for level in breaks if low < level < high], dtype=torch.float64)
    edges = torch.cat([torch.linspace(low, high, panels + 1, dtype=torch.float64), inside]).sort().values
    half, middle = edges.diff()[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return (middle + half * nodes).flatten(), (half * weights).flatten()


@family_or_table
@settings(max_examples=40)
@given(data=st.data())
def test_density_integrates_to_one(family: Family, data: st.DataObject) -> None:
    schedule = data.draw(schedules_on_any_range(family))
    level, weight = gauss_legendre(*schedule.ends, breaks=schedule.breaks)
    assert (weight * schedule.density(level)).sum().item() == pytest.approx(1, abs=1e-6)


@family_or_table
@settings(max_examples=40)
@given(data=st.data())
def test_end_points_are_exact_and_time_returns(family: Family, data: st.DataObject) -> None:
    schedule = data.draw(schedules_on_any_range(family))
    low, high = schedule.ends
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    level = schedule.logsnr(t)
    assert level[0].item() == high
    assert level[-1].item() == low
    assert (level.diff() <= 0).all()
    # rounding λ by an ulp moves t by p(λ) times that; nothing more is allowed
    ulp = 8 * torch.finfo(torch.float64).eps
    allowed = 1e-12 + ulp * (1 + level.abs()) * schedule.density(level) + ulp * 30 / (high - low)
    assert ((schedule.time(level) - t).abs() <= allowed).all()


@family_or_table
@settings(max_examples=40)
@given(data=st.data())
def test_rounding_never_leaves_the_range(family: Family, data: st.DataObject) -> None:
    schedule = data.draw(schedules_on_any_range(family))
    near = torch.tensor([1e-300, 1e-18, 1e-16, 1e-12], dtype=torch.float64)
    level = schedule.logsnr(torch.cat([near, 1 - near]))
    assert schedule.ends[0] <= level.min() <= level.max() <= schedule.ends[1]


@every_family
def test_time_is_the_inverse_to_machine_precision_on_the_comparison_range(family: Family) -> None:
    schedule = family(*COMPARISON_RANGE) if family is not FAMILIES["linear β, weak"] else family(-2.4, 12.4)
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    assert (schedule.time(schedule.logsnr(t)) - t).abs().max() < 5e-15


@family_or_table
@settings(max_examples=25)
@given(data=st.data())
def test_density_is_minus_the_slope_of_time(family: Family, data: st.DataObject) -> None:
    schedule = data.draw(schedules_on_any_range(family))
    low, high = schedule.ends
    level = (low + (high - low) * torch.linspace(0.01, 0.99, 99, dtype=torch.float64)).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.time(level).sum(), level)
    density = schedule.density(level.detach())
    # where the mass below λ is 1e-16 of the whole, 1 − t has no digits left and its slope may round to zero
    assert torch.allclose(-slope, density, rtol=1e-8, atol=1e-9 * density.max().item())


@every_family
def test_density_is_minus_the_slope_of_time_by_finite_differences(family: Family) -> None:
    schedule = family(-2.3, 12.4)
    t = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    level, step = schedule.logsnr(t), 1e-4
    slope = (schedule.time(level + step) - schedule.time(level - step)) / (2 * step)
    assert torch.allclose(-slope, schedule.density(level), rtol=1e-6, atol=1e-10)


# The formulas of Section 1, written as they are printed --------------------------------------------------------------


def test_cosine_formula() -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    wide, shift = schedules.Cosine(-60, 60, shift=0.5), 0.5
    assert torch.allclose(wide.logsnr(t), -2 * torch.log(torch.tan(math.pi * t / 2)) + 2 * shift, atol=1e-11)
    level = torch.linspace(-20, 20, 81, dtype=torch.float64)
    expected = 1 / torch.cosh(level / 2 - shift) / (2 * math.pi)
    assert torch.allclose(wide.density(level), expected, rtol=1e-12)


def test_the_cosine_schedule_of_larger_images_is_noisier() -> None:
    for size in (64, 128, 256, 512):
        shifted = schedules.get("cosine", logsnr_min=-15, logsnr_max=15, image_size=size)
        middle = shifted.logsnr(torch.tensor(0.5, dtype=torch.float64)).item()
        assert middle == pytest.approx(2 * math.log(64 / size), abs=0.05)


def test_edm_training_has_mean_plus_two_point_four() -> None:
    """The paper prints −F⁻¹(t; 2.4, 2.4²), whose mean is −2.4: few levels would be near the data."""
    schedule = schedules.EDMTraining(-30, 30)
    level, weight = gauss_legendre(-30, 30)
    mean = (weight * schedule.density(level) * level).sum().item()
    assert mean == pytest.approx(2.4, abs=1e-9)
    assert (weight * schedule.density(level) * (level - mean) ** 2).sum().sqrt().item() == pytest.approx(2.4, abs=1e-9)
    assert schedule.logsnr(torch.tensor(0.5, dtype=torch.float64)).item() == pytest.approx(2.4, abs=1e-12)


def test_edm_sampling_formula_and_native_ends() -> None:
    schedule = schedules.EDMSampling()
    assert schedule.ends == pytest.approx((-8.764, 12.429), abs=1e-3)
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    small, large = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert torch.allclose(schedule.logsnr(t), -14 * torch.log(large + (1 - t) * (small - large)), atol=1e-12)
    level = torch.linspace(-8.7, 12.4, 50, dtype=torch.float64)
    assert torch.allclose(schedule.density(level), torch.exp(-level / 14) / (14 * (large - small)), rtol=1e-12)


def test_flow_matching_formula() -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    wide = schedules.FlowMatchingOT(-80, 80)
    assert torch.allclose(wide.logsnr(t), 2 * torch.log((1 - t) / t), atol=1e-11)
    level = torch.linspace(-20, 20, 81, dtype=torch.float64)
    assert torch.allclose(wide.density(level), 1 / torch.cosh(level / 4) ** 2 / 8, rtol=1e-12)


def test_linear_logsnr_formula() -> None:
    schedule = schedules.LinearLogSNR(-9, 13)
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    assert torch.allclose(schedule.logsnr(t), 13 - 22 * t, atol=1e-13)
    assert torch.allclose(schedule.density(schedule.logsnr(t)), torch.full_like(t, 1 / 22), rtol=1e-13)


def test_linear_beta_formula() -> None:
    schedule = schedules.LinearBeta(None, 30)
    assert schedule.ends[0] == pytest.approx(-10.05, abs=1e-4)
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    assert torch.allclose(schedule.logsnr(t), -torch.log(torch.expm1(0.1 * t + 0.5 * 19.9 * t**2)), atol=1e-9)


def test_logit_normal_formula() -> None:
    """t of flow matching with logit(t) ~ N(m, s²); λ = −2 logit(t)."""
    schedule = schedules.LogitNormal(-30, 30, mean=0.5, std=1.3)
    level, weight = gauss_legendre(-30, 30)
    logit = -level / 2
    assert (weight * schedule.density(level) * logit).sum().item() == pytest.approx(0.5, abs=1e-6)
    assert (weight * schedule.density(level) * (logit - 0.5) ** 2).sum().item() == pytest.approx(1.69, abs=1e-6)


def test_presets_are_normal() -> None:
    for preset, mean, std in (
        (schedules.EDMTraining(-9, 9), 2.4, 2.4),
        (schedules.EDM2Latent(-9, 9), 0.8, 2.0),
        (schedules.EDM2Pixel(-9, 9), 1.6, 3.2),
        (schedules.LogitNormal(-9, 9, mean=0.5, std=1.5), -1.0, 3.0),
    ):
        assert preset == schedules.Normal(-9, 9, mean=mean, std=std)


def test_mode_sampling_formula() -> None:
    """Stable Diffusion 3 prints t = 1 − u − s (cos²(πu/2) − 1 + u), its u running from noise to data."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    for s in (-0.9, 0.0, 0.81, 1.29, 1.75):
        u = 1 - t
        printed = 1 - u - s * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
        ours = process.flow_time_from_logsnr(schedules.Mode(-90, 90, scale=s).logsnr(t))
        assert torch.allclose(ours, printed, atol=1e-12)


@pytest.mark.parametrize("schedule", [schedules.Beta(-80, 80, a=1, b=1), schedules.Mode(-80, 80, scale=0)])
def test_special_cases_are_flow_matching(schedule: TruncatedSchedule) -> None:
    level = torch.linspace(-20, 20, 81, dtype=torch.float64)
    assert torch.allclose(schedule.density(level), schedules.FlowMatchingOT(-80, 80).density(level), rtol=1e-10)


@pytest.mark.parametrize(
    ("schedule", "std"),
    [(schedules.Cosine(-80, 80), math.pi), (schedules.FlowMatchingOT(-120, 120), 2 * math.pi / math.sqrt(3))],
)
def test_standard_deviations(schedule: TruncatedSchedule, std: float) -> None:
    level, weight = gauss_legendre(*schedule.ends)
    assert (weight * schedule.density(level) * level**2).sum().sqrt().item() == pytest.approx(std, rel=1e-9)


@pytest.mark.parametrize("width", [1e-5, 1e-3, 1.0, 30.0])
def test_linear_beta_keeps_its_digits_at_its_noisy_end(width: float) -> None:
    """There 1 − t is small, and the range narrow: it may not be a difference of numbers near one."""
    schedule = schedules.LinearBeta(None, schedules.LinearBeta(logsnr_max=0.0).ends[0] + width)
    low, high = schedule.ends
    level = low + (high - low) * torch.linspace(0.01, 0.99, 33, dtype=torch.float64)

    def elapsed(logsnr: float) -> mpmath.mpf:
        """1 − t before truncation: (20 − 19.9/2 · u) u = ∫β from t to 1, with u = 1 − t."""
        slope, left = mpmath.mpf(19.9), mpmath.log1p(mpmath.exp(-low)) - mpmath.log1p(mpmath.exp(-mpmath.mpf(logsnr)))
        return (20 - mpmath.sqrt(400 - 2 * slope * left)) / slope

    with mpmath.workdps(40):
        exact = [float(1 - elapsed(each) / elapsed(high)) for each in level.tolist()]
    assert schedule.time(level).tolist() == pytest.approx(exact, rel=0, abs=1e-13)


@pytest.mark.parametrize(
    "schedule",
    [
        *(schedules.get(name, logsnr_min=-8.0, logsnr_max=8.0) for name in schedules.TABLE),
        schedules.Laplace(-8, 8),
        schedules.Cauchy(-8, 8),
        schedules.Normal(-8, 12, mean=2.0, std=3.0),
    ],
    ids=lambda schedule: repr(schedule)[:40],
)
def test_the_slope_of_the_level_is_one_over_the_density_at_the_centre_too(schedule: schedules.NoiseSchedule) -> None:
    t = torch.cat([torch.linspace(0.02, 0.98, 25).double(), schedule.time(torch.tensor([0.0, 2.0]).double())])
    t.requires_grad_()
    level = schedule.logsnr(t)
    (slope,) = torch.autograd.grad(level.sum(), t)
    assert torch.allclose(slope * schedule.density(level.detach()), -torch.ones_like(slope), rtol=0, atol=1e-9)


# Shifts --------------------------------------------------------------------------------------------------------------


@family_or_table
@settings(max_examples=15)
@given(nats=st.floats(-6, 6))
def test_a_shift_moves_the_distribution_and_keeps_the_ends(family: Family, nats: float) -> None:
    """On [low, high] it is what the unshifted one is on [low − nats, high − nats], every level ``nats`` higher."""
    lowest, highest = support_within_30(family)
    low, high = max(lowest, lowest + nats), min(highest, highest + nats)
    moved, expected = family(low, high).shifted(nats), family(low - nats, high - nats)
    assert moved.ends == (low, high)
    level = torch.linspace(low, high, 101, dtype=torch.float64)
    assert torch.allclose(moved.time(level), expected.time((level - nats).clamp(*expected.ends)), atol=1e-11)


def test_native_ends_move() -> None:
    assert schedules.EDMSampling().shifted(-2).ends == pytest.approx((-10.7641, 10.4292), abs=1e-4)
    with pytest.raises(ValueError, match=r"lives on log-SNR in \[-6.7641, 14.4292\]; the range \[-8.0, 8.0\]"):
        schedules.EDMSampling(-8, 8).shifted(2)


def test_shifts_in_use() -> None:
    """Flow matching's t → s t/(1 + (s − 1) t), and the cosine schedule's own argument."""
    t, wide = torch.linspace(0.01, 0.99, 99, dtype=torch.float64), schedules.FlowMatchingOT(-80, 80)
    for s in (0.5, 3.0, 12.0):
        shifted = s * t / (1 + (s - 1) * t)
        level = wide.shifted(schedules.flow_shift(s)).logsnr(t)
        assert torch.allclose(process.flow_time_from_logsnr(level), shifted, atol=1e-12)
    for size in (32, 256):
        nats = schedules.image_size_shift(size)
        ours = schedules.Cosine(-15, 15).shifted(nats).logsnr(t)
        assert torch.allclose(ours, schedules.Cosine(-15, 15, shift=nats / 2).logsnr(t), atol=1e-12)
    for make in (schedules.flow_shift, schedules.image_size_shift):
        with pytest.raises(ValueError, match="must be a positive number, got 0"):
            make(0)
    with pytest.raises(ValueError, match="finite number of nats, got nan"):
        wide.shifted(math.nan)


# dtypes --------------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(family: Family, dtype: torch.dtype) -> None:
    schedule = family(-2.3, 12.4)
    t = torch.rand(3, 5, dtype=dtype)
    level = schedule.logsnr(t)
    for value in (level, schedule.time(level), schedule.density(level), schedule.log_density(level)):
        assert value.dtype == dtype
        assert value.shape == (3, 5)
    assert schedule.logsnr(torch.tensor(0.5, dtype=dtype)).shape == ()


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_in_single(family: Family, dtype: torch.dtype) -> None:
    schedule = family(-2.3, 12.4)
    t = torch.rand(50, generator=torch.Generator().manual_seed(0)).to(dtype)
    level = schedule.logsnr(t)
    assert torch.equal(level, schedule.logsnr(t.float()))
    for value in (schedule.time, schedule.density, schedule.log_density):
        assert value(torch.tensor([3.0], dtype=dtype)).dtype == torch.float32
    wide = schedules.Cosine(-178, 23)
    ends = wide.logsnr(torch.tensor([1.0, 0.0], dtype=dtype))
    assert ends.tolist() == [-178, 23]
    assert torch.isfinite(wide.log_density(ends.to(dtype))).all()


@every_family
def test_float32_differs_from_float64_by_rounding_alone(family: Family) -> None:
    schedule = family(-2.3, 12.4)
    t = torch.linspace(0, 1, 257, dtype=torch.float64).float()
    level = schedule.logsnr(t)
    assert torch.allclose(level.double(), schedule.logsnr(t.double()), rtol=1e-7, atol=1e-6)
    assert torch.allclose(schedule.time(level), t, atol=1e-6)
    assert torch.allclose(schedule.log_density(level).double(), schedule.log_density(level.double()), rtol=1e-6)


@given(st.floats(-29, -1), st.floats(1, 29))
def test_an_end_point_rounded_to_float32_keeps_its_density(low: float, high: float) -> None:
    """Rounding may carry it past the end; a density of zero there would make w/p, hence the loss, infinite."""
    schedule = schedules.Cosine(low, high)
    ends = torch.tensor([low, high]).float()
    assert torch.isfinite(schedule.log_density(ends)).all()
    assert torch.equal(schedule.time(ends).round(), torch.tensor([1.0, 0.0]))


@family_or_table
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite(family: Family, dtype: torch.dtype) -> None:
    low, high = support_within_30(family)
    schedule = family(low, high)
    t = torch.linspace(0, 1, 101, dtype=dtype).requires_grad_()
    inside = torch.linspace(low, high, 201, dtype=dtype).clamp(low, high).requires_grad_()
    around = torch.linspace(-40, 40, 161, dtype=dtype).requires_grad_()
    for value, variable in (
        (schedule.logsnr(t), t),
        (schedule.time(inside), inside),
        (schedule.log_density(inside), inside),
        (schedule.density(around), around),
    ):
        (slope,) = torch.autograd.grad(value.sum() + 0 * variable.sum(), variable)
        assert torch.isfinite(slope).all()


@every_family
def test_density_vanishes_outside_the_range(family: Family) -> None:
    schedule = family(-2.0, 9.0)
    outside = torch.tensor([-25.0, -2.01, 9.01, 30.0], dtype=torch.float64)
    assert not schedule.density(outside).any()
    assert (schedule.log_density(outside) == -math.inf).all()
    assert torch.isnan(schedule.density(torch.tensor([math.nan]))).all()


# Refusals ------------------------------------------------------------------------------------------------------------


@every_family
def test_times_and_levels_out_of_range_are_refused(family: Family) -> None:
    schedule = family(-2.0, 9.0)
    for bad in (-0.01, 1.01, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got"):
            schedule.logsnr(torch.tensor([0.5, bad]))
    for bad in (-2.01, 9.01, math.nan, -math.inf):
        with pytest.raises(ValueError, match=r"logsnr must lie in \[-2.*, 9.*\], got"):
            schedule.time(torch.tensor([0.0, bad]))
    with pytest.raises(TypeError, match=r"t must be a floating-point tensor, got torch\.int64"):
        schedule.logsnr(torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"t must be a torch\.Tensor, got float"):
        schedule.logsnr(0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="logsnr must be a floating-point tensor"):
        schedule.density(torch.tensor([0, 1]))


@every_family
def test_ranges_that_are_none_are_refused(family: Family) -> None:
    with pytest.raises(ValueError, match=r"logsnr_min \(3.0\) must be below logsnr_max \(-2.0\)"):
        family(3.0, -2.0)
    with pytest.raises(ValueError, match=r"logsnr_min \(3.0\) must be below logsnr_max \(3.0\)"):
        family(3.0, 3.0)
    with pytest.raises(ValueError, match="must be finite numbers"):
        family(math.nan, 3.0)
    with pytest.raises(ValueError, match=r"narrower than 1e-06 nats"):
        family(1.0, 1.0 + NARROWEST / 2)


@pytest.mark.parametrize("family", [schedules.Cosine, schedules.EDMTraining, schedules.FlowMatchingOT, schedules.Beta])
def test_schedules_without_native_ends_say_so(family: Family) -> None:
    with pytest.raises(ValueError, match=r"has no native logsnr_min; pass a number"):
        family(None, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no native logsnr_max; pass a number"):
        family(-10, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="LinearBeta has no native logsnr_max"):
        schedules.LinearBeta(None, None)


def test_ranges_outside_the_support_are_refused_with_the_support_named() -> None:
    with pytest.raises(ValueError, match=r"EDMSampling lives on log-SNR in \[-8.7641, 12.4292\].*\[-15.0, 12.0\]"):
        schedules.EDMSampling(-15, 12)
    with pytest.raises(ValueError, match=r"EDMSampling lives on .* None for the native end"):
        schedules.EDMSampling(None, 15)
    with pytest.raises(ValueError, match=r"LinearBeta lives on log-SNR in \[-10.0500, inf\]"):
        schedules.LinearBeta(-12, 12)
    with pytest.raises(ValueError, match=r"no probability on \[20.0, 30.0\]"):
        schedules.LogitNormal(20, 30, std=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.EDMTraining(-9, 9, p_std=0.0), "p_std must be a positive number, got 0.0"),
        (lambda: schedules.LogitNormal(-9, 9, std=-1), "std must be a positive number, got -1"),
        (lambda: schedules.EDMSampling(rho=0), "rho must be a positive number, got 0"),
        (lambda: schedules.EDMSampling(sigma_min=0), "sigma_min must be a positive number"),
        (lambda: schedules.EDMSampling(sigma_min=80, sigma_max=2), r"sigma_min \(80\) must be below sigma_max \(2\)"),
        (lambda: schedules.LinearBeta(None, 9, beta_min=0), "beta_min must be a positive number"),
        (lambda: schedules.LinearBeta(None, 9, beta_max=0.1), r"beta_max \(0.1\) must be above beta_min \(0.1\)"),
        (lambda: schedules.image_size_shift(0), "size must be a positive number, got 0"),
        (lambda: schedules.Laplace(-9, 9, scale=0), "scale must be a positive number, got 0"),
        (lambda: schedules.Cauchy(-9, 9, scale=-1), "scale must be a positive number, got -1"),
        (lambda: schedules.Beta(-9, 9, a=0), "a must be a positive number, got 0"),
        (lambda: schedules.Beta(-9, 9, b=math.inf), "b must be a positive number, got inf"),
        (lambda: schedules.Mode(-9, 9, scale=2), r"scale must lie in \(−1, 1.7519\), where t rises with u; got 2"),
        (lambda: schedules.Cosine(-math.inf, 9), "logsnr_min must be finite, got -inf. Zero terminal SNR, λ = −∞, is"),
        (lambda: schedules.get("cosin"), "unknown noise schedule 'cosin'; choose one of cosine, edm_training"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_schedules_are_values() -> None:
    schedule = schedules.get("cosine", logsnr_min=-9, logsnr_max=9, shift=0.5)
    assert schedule == schedules.Cosine(-9, 9, 0.5)
    assert hash(schedule) == hash(schedules.Cosine(-9, 9, 0.5))
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    for name in schedules.TABLE:
        assert schedules.get(name, logsnr_min=-8, logsnr_max=8).ends == (-8, 8)
