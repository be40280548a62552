"""The mutual information of a finite set and its noisy copies: log N, its own error, and where the draws go."""

import math

import immse
import pytest
import torch

from paperlib import oracles, process

F64 = torch.float64
PANELS = torch.linspace(-16.0, 10.0, 27, dtype=F64)


def scattered(count: int, dim: int = 6) -> oracles.Empirical:
    """A finite set of points, some of them close together."""
    points = torch.randn(count, dim, generator=torch.Generator().manual_seed(3), dtype=F64)
    points[1::4] = points[::4][: len(points[1::4])] + 0.3
    return oracles.Empirical(points)


def sampled(oracle: oracles.Empirical, draws: int = 12_000, seed: int = 0) -> immse.Information:
    return immse.information(oracle, PANELS, draws, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [2, 5, 50, 400])
def test_information_of_a_finite_set_is_log_n(count: int) -> None:
    found = sampled(scattered(count))
    assert abs(found.nats[-1] - math.log(count)) < 4 * found.standard_error[-1]
    assert 0 < found.standard_error[-1] < 0.05
    assert (found.nats.diff() >= 0).all()
    assert abs(found.draws.sum().item() / 12_000 - 1) < 0.1


def test_information_is_log_n_minus_the_entropy_of_the_posterior_at_every_level() -> None:
    oracle, generator = scattered(50), torch.Generator().manual_seed(1)
    found = sampled(oracle, draws=40_000)
    x = oracle.sample(4000, generator)
    for level, nats, error in zip(found.logsnr[4::4], found.nats[4::4], found.standard_error[4::4], strict=True):
        z = process.diffuse(x, torch.randn(x.shape, generator=generator, dtype=F64), level)
        entropy = oracle.posterior_entropy(z, level)
        spread = torch.sqrt(error**2 + entropy.var() / len(x)) + 1e-6
        assert abs(nats - (math.log(50) - entropy.mean())) < 4 * spread, level


def test_information_states_its_own_error() -> None:
    """Over repeats, deviations from log N are as large as the standard errors say, with and without whole passes."""
    for oracle, draws in ((scattered(20), 4000), (scattered(400), 4000)):
        found = [sampled(oracle, draws, seed) for seed in range(30)]
        off = torch.stack([(one.nats[-1] - math.log(len(oracle.images))) / one.standard_error[-1] for one in found])
        assert 0.7 < off.square().mean().sqrt() < 1.4
        assert off.mean().abs() < 4 / math.sqrt(30)


def test_information_spends_its_draws_where_the_error_varies() -> None:
    found = sampled(scattered(50))
    busy = (found.levels > -4) & (found.levels < 4)
    assert found.draws[busy].float().mean() > 4 * found.draws[~busy].float().mean()
    assert (found.draws >= 4).all()


def test_information_of_duplicates_is_less_and_starts_at_its_tail() -> None:
    twice = oracles.Empirical(torch.cat([scattered(20).images] * 2))
    found = sampled(twice)
    assert abs(found.nats[-1] - math.log(20)) < 4 * found.standard_error[-1], "which of two equal images is not learned"
    assert found.nats[0] == pytest.approx(0.5 * math.exp(-16) * twice.total_variance, rel=1e-12)
