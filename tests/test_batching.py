"""Batches: their order, the same from wherever a run begins and however many share it; work done ahead by threads."""

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paperlib.engine import data
from paperlib.engine.decode import ordered
from paperlib.engine.randomness import seeded

SIZES = st.integers(1, 40)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> data.ImageData:
    """Fifty pictures in a mapped file."""
    path = tmp_path_factory.mktemp("mapped") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), np.uint8))
    mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
    return data.ImageData("noise", mapped, torch.arange(50) % 7, 256, 0.5)


# Order ---------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(0, 30), st.integers(1, 100), SIZES)
def test_batches_follow_the_orders_of_the_epochs_without_a_gap(seed: int, step: int, batch: int, size: int) -> None:
    epochs = range((step + 1) * batch // size + 1)
    orders = [torch.randperm(size, generator=seeded(seed, "epoch", epoch)) for epoch in epochs]
    expected = torch.cat(orders)[step * batch : (step + 1) * batch]
    assert torch.equal(data.batch_indices(seed, step, batch, size), expected)


@given(st.integers(0, 9), st.integers(0, 9), SIZES)
def test_an_epoch_is_a_permutation(seed: int, epoch: int, size: int) -> None:
    assert torch.equal(data.epoch_order(seed, epoch, size).sort().values, torch.arange(size))


def test_an_epoch_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffles = []

    def shuffle(size: int, **options: torch.Generator) -> Tensor:
        shuffles.append(size)
        return torch.arange(size)

    data.epoch_order.cache_clear()
    monkeypatch.setattr(torch, "randperm", shuffle)
    for step in range(100):
        data.batch_indices(0, step, 3, 100)
    data.epoch_order.cache_clear()
    assert shuffles == [100] * 3


def test_a_batch_is_not_a_view_of_the_order_that_is_kept() -> None:
    data.batch_indices(5, 0, 4, 10).zero_()
    assert torch.equal(data.epoch_order(5, 0, 10).sort().values, torch.arange(10))


@pytest.mark.parametrize("bad", [(-1, 4, 10), (0, 0, 10), (0, 4, 0)])
def test_steps_and_sizes_that_cannot_be_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"got step {bad[0]}, batch_size {bad[1]}, size {bad[2]}"):
        data.batch_indices(0, *bad)


# Batches -------------------------------------------------------------------------------------------------------------


def indices(first: int, last: int, batch: int = 8) -> Iterator[Tensor]:
    return (data.batch_indices(3, step, batch, 50) for step in range(first, last))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_batch_holds_the_images_and_labels_of_its_indices(images: data.ImageData, workers: int) -> None:
    found = list(data.batches(images, indices(0, 20), "cpu", workers))
    assert len(found) == 20
    for batch, index in zip(found, indices(0, 20), strict=True):
        assert torch.equal(batch.index, index)
        assert torch.equal(batch.images, images.images[index])
        assert torch.equal(batch.labels, images.labels[index])
        assert (batch.images.dtype, batch.labels.dtype, len(batch)) == (torch.uint8, torch.int64, 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_can_begin_anywhere(images: data.ImageData, workers: int) -> None:
    whole = [batch.images for batch in data.batches(images, indices(0, 30), "cpu", workers)]
    rest = [batch.images for batch in data.batches(images, indices(17, 30), "cpu", workers)]
    assert all(torch.equal(a, b) for a, b in zip(whole[17:], rest, strict=True))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_slices_of_the_processes_make_up_the_batch(images: data.ImageData, ranks: int) -> None:
    def share(rank: int) -> Iterator[Tensor]:
        return (index.chunk(ranks)[rank] for index in indices(0, 10))

    slices = [data.batches(images, share(rank), "cpu", 1) for rank in range(ranks)]
    for parts, index in zip(zip(*slices, strict=True), indices(0, 10), strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), images.images[index])


def test_a_change_of_a_batch_leaves_the_data_alone(images: data.ImageData) -> None:
    before = images.images.clone()
    next(data.batches(images, indices(0, 1), "cpu")).images.zero_()
    assert torch.equal(images.images, before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad", [[-1, 3], [3, 50]])
def test_indices_outside_the_data_are_refused(images: data.ImageData, workers: int, bad: list[int]) -> None:
    with pytest.raises(IndexError, match=f"0 … 49, the images of noise; got {bad[0]} to {bad[1]}"):
        next(data.batches(images, [torch.tensor(bad)], "cpu", workers))


# Work done ahead -----------------------------------------------------------------------------------------------------


def slow_start(item: int) -> int:
    """The earlier, the slower: threads finish in the wrong order."""
    time.sleep(0.02 / (1 + item))
    return item * item


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_order(workers: int) -> None:
    assert list(ordered(slow_start, range(30), workers)) == [item * item for item in range(30)]
    assert list(ordered(slow_start, [], workers)) == []


@pytest.mark.parametrize(("workers", "bound"), [(0, 1), (1, 2), (3, 6)])
def test_no_more_is_taken_than_may_lie_ahead(workers: int, bound: int) -> None:
    taken = itertools.count()
    results = ordered(lambda item: item, taken, workers)
    for done in range(1, 20):
        next(results)
        assert next(taken) - done < bound  # this takes an item itself, which nobody misses
        bound += 1


def test_an_error_comes_at_its_place_and_ends_the_work() -> None:
    threads = threading.active_count()
    results = ordered(lambda item: 12 // item, [3, 2, 0, 1], 2)
    assert [next(results), next(results)] == [4, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == threads


def test_threads_end_with_the_results_that_nobody_takes() -> None:
    threads = threading.active_count()
    results = ordered(slow_start, itertools.count(), 3)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


def test_work_that_nobody_waits_for_is_not_begun() -> None:
    begun, gate = [], threading.Event()

    def wait(item: int) -> None:
        begun.append(item)
        if item:
            gate.wait()

    results = ordered(wait, itertools.count(), 4)
    next(results)
    threading.Timer(0.1, gate.set).start()
    results.close()  # type: ignore[attr-defined]
    assert set(begun) <= set(range(5)), "the four threads wait in one item each, and three more lie ahead"


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="workers must be a positive number or zero, got -1"):
        next(ordered(abs, [1], -1))
