"""Panels of Gauss–Legendre quadrature: exact on polynomials, breaks stated and found, against scipy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate as scipy_integrate

from paperlib import quadrature, schedules

F64 = torch.float64


@given(st.integers(1, 12), st.floats(-5, 0), st.floats(0.1, 5), st.integers(1, 5))
def test_panels_are_exact_for_polynomials(order: int, low: float, width: float, panels: int) -> None:
    nodes, weights = quadrature.panel_nodes(torch.linspace(low, low + width, panels + 1, dtype=F64), order)
    degree = 2 * order - 1
    exact = ((low + width) ** (degree + 1) - low ** (degree + 1)) / (degree + 1)
    scale = (weights * nodes.abs() ** degree).sum().item()
    assert (weights * nodes**degree).sum().item() == pytest.approx(exact, abs=1e-12 * scale + 1e-15)


def test_integrate_finds_kinks_and_jumps() -> None:
    kink = quadrature.integrate(lambda lam: (lam - math.pi).clamp(min=0), -5, 5)
    assert kink.item() == pytest.approx(0.5 * (5 - math.pi) ** 2, rel=1e-11)
    jump = quadrature.integrate(lambda lam: (lam > math.e).double(), -5, 5)
    assert jump.item() == pytest.approx(5 - math.e, rel=1e-10)


def test_breaks_that_are_stated_need_no_halving() -> None:
    calls = []

    def jump(lam: torch.Tensor) -> torch.Tensor:
        calls.append(len(lam))
        return (lam > math.e).double()

    value = quadrature.integrate(jump, -5, 5, breaks=(math.e, -7.0, 99.0, math.e))
    assert value.item() == pytest.approx(5 - math.e, rel=1e-14)
    assert len(calls) == 2  # the panels, and once their halves


@pytest.mark.parametrize(
    "f", [torch.sin, torch.sigmoid, lambda lam: torch.exp(-(lam**2)), lambda lam: lam.abs().sqrt()]
)
def test_integrate_is_that_of_scipy(f: quadrature.LevelFunction) -> None:
    expected, _ = scipy_integrate.quad(lambda lam: f(torch.tensor(lam, dtype=F64)).item(), -4, 7, points=[0], limit=200)
    assert quadrature.integrate(f, -4, 7).item() == pytest.approx(expected, rel=1e-8)


@given(st.floats(-6, 0), st.floats(0.5, 9), st.floats(0, 1))
def test_antiderivative_is_the_integral_up_to_every_level(low: float, width: float, share: float) -> None:
    level = torch.tensor([low + share * width], dtype=F64)
    found = quadrature.antiderivative(torch.sigmoid, low, low + width)(level)
    softplus = torch.nn.functional.softplus
    assert found.item() == pytest.approx((softplus(level) - softplus(torch.tensor(low, dtype=F64))).item(), abs=1e-12)


def test_integrands_that_have_no_integral_are_said() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        quadrature.integrate(lambda lam: torch.where(lam > 0.1, torch.nan, 0.0), -1, 1)
    with pytest.raises(ValueError, match="did not settle"):
        quadrature.integrate(lambda lam: torch.rand_like(lam), -1, 1)
    with pytest.raises(ValueError, match="must be below"):
        quadrature.integrate(torch.sin, 1, -1)
    with pytest.raises(ValueError, match="logsnr must lie in"):
        quadrature.antiderivative(torch.sin, -3, 3)(torch.tensor([4.0], dtype=F64))


# One tolerance for an end point --------------------------------------------------------------------------------------


@given(st.floats(-30, -1), st.floats(1, 30))
def test_an_end_that_went_through_float32_is_within_the_range(low: float, high: float) -> None:
    ends = torch.tensor([low, high]).double()
    schedule = schedules.Cosine(low, high)
    assert schedule.time(ends).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert quadrature.antiderivative(torch.ones_like, low, high)(ends).tolist() == pytest.approx(
        [0, high - low], abs=1e-5
    )
    beyond = torch.tensor([high + 1e-3], dtype=F64)
    for refused in (schedule.time, quadrature.antiderivative(torch.ones_like, low, high)):
        with pytest.raises(ValueError, match="logsnr must lie in"):
            refused(beyond)
