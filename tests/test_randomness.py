"""What training draws belongs to the example, however the batch is shared out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paperlib.engine import randomness
from paperlib.engine.randomness import BLOCK, Draws, noise, seeded


@given(st.integers(1, 3 * BLOCK), st.data())
@settings(max_examples=40)
def test_the_noise_of_a_slice_is_that_slice_of_the_noise(size: int, choice: st.DataObject) -> None:
    start = choice.draw(st.integers(0, size - 1))
    stop = choice.draw(st.integers(start + 1, size))
    for dtype in (torch.float32, torch.float64):
        whole = noise(3, 5, range(size), (2, 3), dtype=dtype)
        assert whole.shape == (size, 2, 3)
        assert torch.equal(noise(3, 5, range(start, stop), (2, 3), dtype=dtype), whole[start:stop])


def test_nobody_draws_much_more_than_he_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, randn = list[int](), torch.randn
    monkeypatch.setattr(torch, "randn", lambda shape, **options: drawn.append(shape[0]) or randn(shape, **options))
    noise(0, 0, range(1000, 1100), (4,))
    assert sum(drawn) <= 100 + 2 * BLOCK


def test_noise_is_standard_normal_and_differs_between_seeds_steps_and_examples() -> None:
    one = noise(0, 0, range(4 * BLOCK), (500,), dtype=torch.float64)
    others = [noise(1, 0, range(4 * BLOCK), (500,)), noise(0, 1, range(4 * BLOCK), (500,))]
    every = torch.cat([one, *others])
    assert abs(every.mean().item()) < 0.01
    assert abs(every.std().item() - 1) < 0.01
    correlation = torch.corrcoef(every) - torch.eye(len(every))
    assert correlation.abs().max() < 0.25


def test_times_cover_the_global_batch_evenly_and_flips_and_drops_are_fair() -> None:
    draws = Draws.of(0, 0, 4000)
    assert torch.equal((draws.t.sort().values * 4000).long(), torch.arange(4000))
    assert draws.flip.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert draws.drop.mean().item() == pytest.approx(0.5, abs=0.02)
    together = torch.stack([draws.t, draws.flip.float(), draws.drop])
    assert (torch.corrcoef(together) - torch.eye(3)).abs().max() < 0.06
    assert not torch.equal(Draws.of(0, 1, 4000).t, draws.t)
    assert not torch.equal(Draws.of(1, 0, 4000).t, draws.t)


def test_times_are_the_same_in_any_precision() -> None:
    single, double = Draws.of(0, 3, 64), Draws.of(0, 3, 64, torch.float64)
    assert double.t.dtype == torch.float64
    torch.testing.assert_close(single.t.double(), double.t, rtol=0, atol=1e-7)
    assert torch.equal(single.drop, double.drop)


def test_generators_of_different_keys_are_unrelated_and_of_equal_keys_equal() -> None:
    def draw(*key: object) -> Tensor:
        return torch.randn(2000, generator=seeded(*key))

    assert torch.equal(draw(0, "step", 1), draw(0, "step", 1))
    streams = torch.stack([draw(0, "step", 1), draw(1, "step", 0), draw(0, "epoch", 1), draw(0, "step", 11)])
    assert (torch.corrcoef(streams) - torch.eye(4)).abs().max() < 0.1


def test_dropout_has_another_mask_for_every_step_and_process() -> None:
    masks = []
    for key in ((0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        randomness.seed_dropout(*key, torch.device("cpu"))
        masks.append(torch.nn.functional.dropout(torch.ones(100)))
    assert torch.equal(masks[0], masks[1])
    assert len({tuple(mask.tolist()) for mask in masks}) == 4
