"""The adaptive schedule: a density that is one, an inverse that is one, the same objective with less variance."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paperlib import elbo, objectives, oracles, predictions, weightings
from paperlib.adaptive import START_HITS, AdaptiveSchedule

F64 = torch.float64


def peaked(logsnr: Tensor) -> Tensor:
    """An error that varies a hundredfold over [−10, 10]."""
    return 0.05 + 5 * torch.exp(-0.5 * (logsnr - 2) ** 2)


def trained(schedule: AdaptiveSchedule, batches: int = 300, size: int = 256, seed: int = 0) -> AdaptiveSchedule:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        logsnr = schedule.logsnr(torch.rand(size, generator=generator, dtype=F64))
        schedule.update(logsnr, peaked(logsnr))
    return schedule


def mass(schedule: AdaptiveSchedule) -> float:
    """∫ p dλ, by the value in the middle of each bin."""
    low, _ = schedule.ends
    middle = low + schedule.width * (torch.arange(schedule.bins, dtype=F64) + 0.5)
    return schedule.density(middle).sum().item() * schedule.width


# The schedule --------------------------------------------------------------------------------------------------------


def test_starts_uniform() -> None:
    schedule = AdaptiveSchedule(-15, 15)
    t = torch.linspace(0, 1, 11, dtype=F64)
    torch.testing.assert_close(schedule.logsnr(t), 15 - 30 * t)
    torch.testing.assert_close(schedule.density(schedule.logsnr(t)), torch.full_like(t, 1 / 30))


@pytest.mark.parametrize("moment", ["mean", "second"])
@settings(max_examples=25, deadline=None)
@given(st.floats(-20, -1), st.floats(1, 20), st.integers(1, 200), st.integers(0, 2**31), st.floats(0, 0.9999))
def test_density_inverse_and_ends(moment: str, low: float, high: float, bins: int, seed: int, decay: float) -> None:
    schedule = AdaptiveSchedule(low, high, bins=bins, decay=decay, moment=moment)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        u = torch.rand(64, generator=generator, dtype=F64)
        schedule.update(schedule.logsnr(u), torch.rand(64, generator=generator, dtype=F64).pow(8))
    assert mass(schedule) == pytest.approx(1, abs=1e-12)
    t = torch.linspace(0, 1, 301, dtype=F64)
    logsnr = schedule.logsnr(t)
    assert (logsnr.diff() < 0).all()
    assert (logsnr[-1].item(), logsnr[0].item()) == schedule.ends
    torch.testing.assert_close(schedule.time(logsnr), t, rtol=0, atol=1e-12)
    middle = logsnr[1:-1]
    torch.testing.assert_close(schedule.logsnr(schedule.time(middle)), middle, rtol=0, atol=1e-9)


def test_density_is_the_slope_of_time() -> None:
    schedule = trained(AdaptiveSchedule(-10, 10))
    middle = -10 + schedule.width * (torch.arange(100, dtype=F64) + 0.5)
    step = 0.25 * schedule.width
    slope = (schedule.time(middle - step) - schedule.time(middle + step)) / (2 * step)
    torch.testing.assert_close(schedule.density(middle), slope, rtol=1e-9, atol=0)
    assert schedule.density(torch.tensor([-10.5, 10.5])).tolist() == [0, 0]


def test_single_precision_keeps_its_dtype() -> None:
    schedule = trained(AdaptiveSchedule(-10, 10))
    t = torch.rand(100, generator=torch.Generator().manual_seed(0))
    logsnr = schedule.logsnr(t)
    assert logsnr.dtype == schedule.time(logsnr).dtype == schedule.density(logsnr).dtype == torch.float32
    torch.testing.assert_close(schedule.time(logsnr), t, rtol=0, atol=1e-5)


# The averages --------------------------------------------------------------------------------------------------------


def test_density_follows_the_weighted_error() -> None:
    schedule = trained(AdaptiveSchedule(-10, 10, floor=0.01), batches=2000)
    middle = -10 + schedule.width * (torch.arange(100, dtype=F64) + 0.5)
    share = peaked(middle) / (peaked(middle).sum() * schedule.width)
    torch.testing.assert_close(schedule.density(middle), 0.99 * share + 0.01 / 20, rtol=0.12, atol=0)


def test_several_hits_of_a_bin_count_as_their_mean() -> None:
    together, alone = AdaptiveSchedule(0, 4, bins=4, decay=0.5), AdaptiveSchedule(0, 4, bins=4, decay=0.5)
    for schedule in (together, alone):
        schedule.update(torch.tensor([0.5, 1.5, 2.5, 3.5]), torch.ones(4))
    together.update(torch.tensor([1.2, 1.4, 1.9, 3.1]), torch.tensor([1.0, 2.0, 6.0, 4.0]))
    alone.update(torch.tensor([1.5, 3.5]), torch.tensor([3.0, 4.0]))
    assert together.average.tolist() == pytest.approx([1, 2, 1, 2.5])  # decay 0.5: half the old, half the new
    assert alone.average.tolist() == together.average.tolist()


def test_a_bin_that_was_not_hit_keeps_its_average() -> None:
    schedule = trained(AdaptiveSchedule(-10, 10))
    before = schedule.average.clone()
    schedule.update(torch.tensor([3.05, 3.07]), torch.tensor([100.0, 200.0]))
    changed = (schedule.average != before).nonzero().flatten().tolist()
    assert changed == [65]


def test_start_is_a_plain_mean_and_later_an_exponential_one() -> None:
    schedule = AdaptiveSchedule(0, 1, bins=1, decay=0.95)
    expected = 2.0
    for hits, value in enumerate([2.0, 5.0, 1.0, 4.0, 3.0] * 8, start=1):
        expected += max(0.05, 1 / (START_HITS + hits)) * (value - expected)
        schedule.update(torch.tensor([0.5]), torch.tensor([value], dtype=F64))
    assert schedule.average.item() == pytest.approx(expected, rel=1e-12)


def test_first_batch_sets_the_scale_and_moves_little() -> None:
    """One batch of errors of the order of 10³ must not make the bins it missed look empty."""
    schedule = AdaptiveSchedule(-10, 10)
    schedule.update(torch.tensor([0.1, 3.3]), torch.tensor([1000.0, 3000.0]))
    middle = -10 + schedule.width * (torch.arange(100, dtype=F64) + 0.5)
    density = schedule.density(middle)
    assert density.max() / density.min() < 1.5


def test_floor_leaves_no_level_out() -> None:
    schedule = AdaptiveSchedule(-10, 10, floor=0.05, decay=0.0)
    logsnr = torch.linspace(-9.9, 9.9, 100)
    for _ in range(200):
        schedule.update(logsnr, (logsnr > 0).double())
    assert schedule.density(torch.tensor([-5.0], dtype=F64)).item() >= 0.05 / 20
    assert mass(schedule) == pytest.approx(1, abs=1e-12)


def test_errors_of_zero_leave_it_uniform() -> None:
    schedule = AdaptiveSchedule(-1, 1, bins=4)
    schedule.update(torch.zeros(3), torch.zeros(3))
    assert schedule.density(torch.tensor([0.1])).item() == pytest.approx(0.5)


def test_second_moment_is_tracked_where_asked() -> None:
    """Equal means, unequal spread: only p ∝ √E[e²] tells the two bins apart, by √2."""
    mean, second = (AdaptiveSchedule(0, 2, bins=2, floor=1e-6, moment=m) for m in ("mean", "second"))  # type: ignore[arg-type]
    for _ in range(4000):
        for schedule in (mean, second):
            schedule.update(torch.tensor([0.5, 0.5, 1.5, 1.5]), torch.tensor([1.0, 1.0, 0.0, 2.0]))
    both = torch.tensor([0.5, 1.5], dtype=F64)
    assert (mean.density(both)[1] / mean.density(both)[0]).item() == pytest.approx(1)
    assert (second.density(both)[1] / second.density(both)[0]).item() == pytest.approx(math.sqrt(2), rel=0.01)


def test_dividing_by_p_first_ruins_it() -> None:
    """The falsifier: fed with what is already divided by p, the density does not follow the error."""
    right, wrong = AdaptiveSchedule(-10, 10, decay=0.9), AdaptiveSchedule(-10, 10, decay=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        u = torch.rand(256, generator=generator, dtype=F64)
        for schedule, divide in ((right, False), (wrong, True)):
            logsnr = schedule.logsnr(u)
            schedule.update(logsnr, peaked(logsnr) / (schedule.density(logsnr) if divide else 1))
    middle = -10 + right.width * (torch.arange(100, dtype=F64) + 0.5)
    share = peaked(middle) / (peaked(middle).sum() * right.width)
    distance = [
        0.5 * (schedule.density(middle) - share).abs().sum().item() * right.width for schedule in (right, wrong)
    ]
    assert distance[0] < 0.03
    assert distance[1] > 0.15


# The objective -------------------------------------------------------------------------------------------------------


def test_same_objective_less_variance() -> None:
    """On the exact Gaussian: the mean within 4 standard errors of the exact value, the deviation a quarter."""
    data = oracles.Gaussian.isotropic(64, 0.25)
    generator = torch.Generator().manual_seed(0)
    adaptive = AdaptiveSchedule(-10, 10, decay=0.99)

    def estimates(schedule: AdaptiveSchedule, batches: int, low_discrepancy: bool) -> Tensor:
        loss = objectives.WeightedLoss(weightings.ELBO(), schedule, predictions.EPS)
        values = []
        for _ in range(batches):
            x = data.sample(128, generator)
            t = None if low_discrepancy else torch.rand(128, generator=generator, dtype=F64)
            parts = loss(data, x, t=t, generator=generator)
            if schedule is adaptive and batches > 500:
                schedule.update(parts.logsnr, parts.weighted_error)
            values.append(parts.loss.mean())
        return torch.stack(values)

    estimates(adaptive, 1500, False)
    exact = elbo.weighted_loss(data.eps_error, weightings.ELBO(), -10, 10).item()
    assert exact == pytest.approx(275.644, abs=1e-3)
    deviation = {}
    for name, schedule, low in (("uniform", AdaptiveSchedule(-10, 10), False), ("both", adaptive, True)):
        values = estimates(schedule, 400, low)
        deviation[name] = values.std().item()
        assert abs(values.mean().item() - exact) < 4 * deviation[name] / math.sqrt(400)
    assert 22 < deviation["uniform"] < 29
    assert deviation["both"] < 5.2


# State and processes -------------------------------------------------------------------------------------------------


def test_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    schedule = trained(AdaptiveSchedule(-10, 10), batches=20)
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    again = AdaptiveSchedule(-10, 10)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    trained(schedule, batches=20, seed=1)
    trained(again, batches=20, seed=1)
    assert torch.equal(schedule.average, again.average)
    t = torch.linspace(0, 1, 50, dtype=F64)
    assert torch.equal(schedule.logsnr(t), again.logsnr(t))


def test_state_is_a_copy() -> None:
    schedule = trained(AdaptiveSchedule(-10, 10), batches=2)
    state = schedule.state_dict()
    kept = state["average"].clone()
    trained(schedule, batches=2)
    assert torch.equal(state["average"], kept)


def summed(tensor: Tensor) -> Tensor:
    """Over the processes of the default group."""
    dist.all_reduce(tensor)
    return tensor


def _rank(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    schedule = AdaptiveSchedule(-10, 10, bins=20, decay=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        logsnr = schedule.logsnr(torch.rand(64, generator=generator, dtype=F64))
        mine = logsnr[rank::size]
        schedule.update(mine, peaked(mine), summed)
    torch.save(schedule.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_what_one_would_hold(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = AdaptiveSchedule(-10, 10, bins=20, decay=0.9)
    trained(alone, batches=30, size=64)
    assert torch.equal(first["average"], second["average"])
    torch.testing.assert_close(first["average"], alone.average, rtol=1e-12, atol=0)
    assert torch.equal(first["hits"], alone.hits)


def test_no_process_group_is_asked_unless_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule in a process group of which only this process updates it: it must not wait for the others."""
    asked: list[tuple[int, ...]] = []

    def doubled(tensor: Tensor) -> Tensor:
        asked.append(tuple(tensor.shape))
        return 2 * tensor

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    reduced: list[Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *_, **__: reduced.append(tensor))
    try:
        schedule = AdaptiveSchedule(-1, 1, bins=4)
        schedule.update(torch.tensor([0.1]), torch.tensor([3.0]))
    finally:
        dist.destroy_process_group()
    assert not reduced
    schedule.update(torch.tensor([0.1]), torch.tensor([3.0]), doubled)
    assert asked == [(2, 4)]
    assert schedule.hits.tolist() == [0, 0, 2, 0]


def test_three_lines_in_a_plain_torch_loop() -> None:
    """What the module documents, with nothing else of the library: a linear denoiser learns that of N(0, ¼)."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = AdaptiveSchedule(-10.0, 10.0)
    losses = []
    for _ in range(300):
        x, eps = 0.5 * torch.randn(256, 1), torch.randn(256, 1)
        logsnr = schedule.logsnr(torch.rand(256))
        alpha, sigma = logsnr.sigmoid().sqrt()[:, None], (-logsnr).sigmoid().sqrt()[:, None]
        eps_hat = network(torch.cat([alpha * x + sigma * eps, logsnr[:, None] / 10], 1))
        eps_error = (eps_hat - eps).square().sum(1)
        loss = 0.5 * (eps_error / schedule.density(logsnr)).mean()
        schedule.update(logsnr, eps_error)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    exact = elbo.weighted_loss(oracles.Gaussian.isotropic(1, 0.25).eps_error, weightings.ELBO(), -10, 10).item()
    assert exact * 0.85 < sum(losses[-50:]) / 50 < exact * 1.3
    assert schedule.density(torch.tensor([5.0])).item() > 3 * schedule.density(torch.tensor([-5.0])).item()


# Refusals ------------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    for arguments, message in (
        ({"bins": 0}, "bins must be at least 1"),
        ({"decay": 1.0}, r"decay must lie in \[0, 1\)"),
        ({"floor": 0.0}, r"floor must lie in \(0, 1\]"),
        ({"moment": "third"}, "moment must be 'mean' or 'second'"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptiveSchedule(-1, 1, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be below"):
        AdaptiveSchedule(1, -1)


@pytest.mark.parametrize(
    ("logsnr", "weighted_error", "message"),
    [
        ([0.0, 0.1], [1.0], "one value an example"),
        ([], [], "B ≥ 1"),
        ([2.0], [1.0], "logsnr must lie in"),
        ([math.nan], [1.0], "logsnr must lie in"),
        ([0.0], [-1.0], "weighted_error must lie in"),
        ([0.0, 0.0], [1.0, math.nan], "weighted_error must lie in"),
        ([0.0], [math.inf], "weighted_error must lie in"),
    ],
)
def test_bad_batches_are_refused_and_leave_no_trace(
    logsnr: list[float], weighted_error: list[float], message: str
) -> None:
    schedule = AdaptiveSchedule(-1, 1)
    with pytest.raises(ValueError, match=message):
        schedule.update(torch.tensor(logsnr), torch.tensor(weighted_error))
    assert torch.equal(schedule.state_dict()["average"], torch.ones(100, dtype=F64))


def test_foreign_states_are_refused() -> None:
    schedule = AdaptiveSchedule(-1, 1)
    with pytest.raises(ValueError, match=r"100 bins on \[-1.0, 1.0\], this schedule 50"):
        AdaptiveSchedule(-1, 1, bins=50).load_state_dict(schedule.state_dict())
    with pytest.raises(ValueError, match="make the schedule with the same numbers"):
        AdaptiveSchedule(-2, 1).load_state_dict(schedule.state_dict())
    with pytest.raises(ValueError, match="it lacks average, ends, hits"):
        schedule.load_state_dict({})


def test_bins_are_whole_and_a_level_that_is_none_has_no_density() -> None:
    with pytest.raises(ValueError, match=r"bins must be a positive whole number, got 2\.5"):
        AdaptiveSchedule(-8, 8, bins=2.5)  # type: ignore[arg-type]
    assert AdaptiveSchedule(-8, 8).density(torch.tensor([math.nan])).isnan().all()
