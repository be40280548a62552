"""What training draws, fixed by (seed, step, example): the same however many processes share the batch.

A *global* batch is what one step sees, over all processes and micro-batches.  Each of them uses the numbers of its own
slice.  What is one number an example (times, flips, dropped classes) is drawn for the whole batch.  The noise is drawn
in blocks of :data:`BLOCK` examples, each with a generator of its own, so that nobody draws much more than he uses.

Generators of a CPU and of a GPU are different ones: the noise depends on the kind of device, nothing else does.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from paperlib.objectives import low_discrepancy_time

BLOCK = 32
"""Examples whose noise comes from one generator."""


def seed_of(*key: object) -> int:
    """A seed from a hash of ``key``: streams for different keys have nothing to do with each other."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded with :func:`seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(*key))


class Draws(NamedTuple):
    """One number for each example of a global batch; drawn on the CPU, each of shape (B,).

    Attributes:
        t: times in [0, 1), of low discrepancy over the whole batch.
        flip: whether the picture is mirrored, if pictures are.
        drop: uniform in [0, 1); the class is dropped where it is below the rate.
    """

    t: Tensor
    flip: Tensor
    drop: Tensor

    @classmethod
    def of(cls, seed: int, step: int, batch_size: int, dtype: torch.dtype = torch.float32) -> "Draws":
        """The draws of a step."""
        generator = seeded(seed, "step", step)
        t = low_discrepancy_time(batch_size, generator=generator, dtype=dtype)
        flip = torch.rand(batch_size, generator=generator) < 0.5
        return cls(t, flip, torch.rand(batch_size, generator=generator))

    def to(self, device: torch.device) -> "Draws":
        """The draws on a device; a GPU copies them by itself, nobody waits."""
        if device.type == "cpu":
            return self
        return Draws(*(drawn.pin_memory().to(device, non_blocking=True) for drawn in self))


def noise(
    seed: int,
    step: int,
    examples: range,
    shape: tuple[int, ...],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise for some examples of a global batch.

    Args:
        seed: of the run.
        step: number of the step.
        examples: their positions in the batch, one after the other.
        shape: of an example.
        device: where it is drawn.
        dtype: of the result.

    Returns:
        The shape ``(len(examples), *shape)``.
    """
    first, last = examples.start // BLOCK, -(-examples.stop // BLOCK)
    drawn = torch.empty((last - first) * BLOCK, *shape, device=device, dtype=dtype)
    generator = torch.Generator(device)
    for block, part in enumerate(drawn.split(BLOCK), first):
        torch.randn(part.shape, generator=generator.manual_seed(seed_of(seed, "noise", step, block)), out=part)
    return drawn[examples.start - first * BLOCK : examples.stop - first * BLOCK]


def seed_dropout(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed torch's own generator, from which the dropout of a network draws: another mask for every process."""
    value = seed_of(seed, "dropout", step, rank)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)
