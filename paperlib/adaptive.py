r"""An adaptive noise schedule: draw λ where the loss is large, and keep the objective as it is.

The estimate :math:`\tfrac12 (w/p)\|\hat\epsilon - \epsilon\|^2` of the weighted loss has the same mean under every
density p, and the least variance from one level to another when p is proportional to what it divides (Appendix F of the
paper).  So a running average of the *weighted error* :math:`w(\lambda)\|\hat\epsilon - \epsilon\|^2` is kept in bins of
equal width over [λ_min, λ_max], and

.. math:: p(\lambda) = \frac{\bar e_b}{\sum_j \bar e_j\, \Delta\lambda} \quad\text{for } \lambda \text{ in bin } b,

piecewise constant, so that t(λ) and f(t) are piecewise linear.  In a training loop of one's own it takes three lines::

    schedule = AdaptiveSchedule(-15.0, 15.0)
    ...
    logsnr = schedule.logsnr(t)                                             # t uniform, or low-discrepancy
    loss = 0.5 * (w(logsnr) / schedule.density(logsnr) * eps_error).mean()  # eps_error: ‖ε̂ − ε‖² of each example
    schedule.update(logsnr, w(logsnr) * eps_error)                          # what is *not* yet divided by p

Condition the network on λ, not on t: f moves.  ``state_dict`` belongs in the checkpoint.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from paperlib.checks import at_least_float32, outside, require_levels, require_positive, require_range, require_within
from paperlib.schedules import NoiseSchedule, register

START_HITS = 2
"""How many hits of a bin the start value counts for: what keeps single early draws from steering the schedule."""
MOST_BINS = 10_000
"""More bins than hits, and larger tables than the networks that they serve, are a slip."""


@register("adaptive")
@dataclass(eq=False)
class AdaptiveSchedule(NoiseSchedule):
    """A noise schedule that follows the loss.  (Appendix F)

    The start is uniform.  The mean of the first batch then becomes the average of every bin, counting as two hits; each
    later hit moves a bin's average by 1/hits until that falls to 1 − decay.  Several examples in one bin in one batch
    are averaged and count as one hit; a bin that was not hit keeps its average.

    Args:
        logsnr_min: f(1), in nats.
        logsnr_max: f(0), in nats.
        bins: number of bins of equal width.
        decay: of the running averages, for each batch that hits a bin.
        floor: share of the probability that is spread evenly, so that no level is ever left out.
        moment: "mean" keeps p ∝ E[w‖·‖²], as published; "second" keeps p ∝ √E[(w‖·‖²)²], the exact optimum for
            independent draws, which differs where the error varies much at a given level (low dimension).

    Raises:
        ValueError: for a range that is none or parameters out of theirs.
    """

    logsnr_min: float
    logsnr_max: float
    bins: int = 100
    decay: float = 0.999
    floor: float = 0.01
    moment: Literal["mean", "second"] = "mean"

    def __post_init__(self) -> None:
        require_range(*self.ends)
        if not 1 <= self.bins <= MOST_BINS:
            raise ValueError(f"bins must be at least 1 and at most {MOST_BINS:,}, got {self.bins}.")
        require_positive("bins", self.bins, whole=True)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}.")
        if not 0 < self.floor <= 1:
            raise ValueError(
                f"floor must lie in (0, 1], got {self.floor}: with none a level could be left out for ever."
            )
        if self.moment not in ("mean", "second"):
            raise ValueError(f"moment must be 'mean' or 'second', got {self.moment!r}.")
        self._edges = torch.linspace(*self.ends, self.bins + 1, dtype=torch.float64)
        self.average = torch.ones(self.bins, dtype=torch.float64)
        self.hits = torch.zeros(self.bins, dtype=torch.float64)
        self._untouched = True
        self._refresh()

    @property
    def ends(self) -> tuple[float, float]:
        return float(self.logsnr_min), float(self.logsnr_max)

    @property
    def width(self) -> float:
        """Δλ, the width of a bin, in nats."""
        return (self.ends[1] - self.ends[0]) / self.bins

    @property
    def breaks(self) -> tuple[float, ...]:
        return tuple(self._edges[1:-1].tolist())

    # The schedule ----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Probability of each bin, (bins,), and 1 − t at the edges of the bins, (bins + 1,), from the averages."""
        importance = self.average.sqrt() if self.moment == "second" else self.average
        share = torch.nan_to_num(importance / importance.sum(), nan=1 / self.bins)  # all averages zero: uniform
        self._probability = share.mul_(1 - self.floor).add_(self.floor / self.bins)
        inner = self._probability.cumsum(0)
        self._cdf = torch.nn.functional.pad(inner / inner[-1], (1, 0))

    def _bin(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """Bin of each level and the place within it, in [0, 1]."""
        position = (logsnr.double() - self.ends[0]) / self.width
        index = position.long().clamp(0, self.bins - 1)
        return index, (position - index).clamp(0, 1)

    def logsnr(self, t: Tensor) -> Tensor:
        require_within("t", t, 0.0, 1.0)
        cdf, rest = self._cdf.to(t.device), 1 - t.double()
        index = (torch.searchsorted(cdf, rest, right=True) - 1).clamp(0, self.bins - 1)
        below, above = cdf[index], cdf[index + 1]
        place = (rest - below) / (above - below)
        edges = self._edges.to(t.device)
        return torch.lerp(edges[index], edges[index + 1], place).to(at_least_float32(t.dtype))

    def time(self, logsnr: Tensor) -> Tensor:
        require_levels("logsnr", logsnr, *self.ends)
        index, place = self._bin(logsnr)
        cdf = self._cdf.to(logsnr.device)
        return (1 - torch.lerp(cdf[index], cdf[index + 1], place)).clamp(0, 1).to(at_least_float32(logsnr.dtype))

    def log_density(self, logsnr: Tensor) -> Tensor:
        index, _ = self._bin(logsnr)
        inner = torch.log(self._probability.to(logsnr.device))[index] - math.log(self.width)
        inner = inner + 0 * logsnr  # NaN stays what it is
        return torch.where(outside(logsnr, *self.ends), -math.inf, inner).to(at_least_float32(logsnr.dtype))

    # Its state -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, logsnr: Tensor, weighted_error: Tensor, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take in a batch: the level and the weighted error w(λ)‖ε̂ − ε‖² of each example, *not* divided by p.

        (Dividing first would feed the schedule back into itself: where p is small the error would look large.)

        Args:
            logsnr: levels, shape (B,), within the range.
            weighted_error: shape (B,), non-negative, finite; no gradient is taken.
            reduce: the sum of a tensor over the processes that train together, each with its part of the batch; None
                for one process.  Nothing is asked of `torch.distributed` otherwise.

        Raises:
            ValueError: for shapes that differ, levels outside the range, or errors that are negative or not finite.
        """
        if logsnr.ndim != 1 or len(logsnr) == 0 or weighted_error.shape != logsnr.shape:
            raise ValueError(
                f"logsnr and weighted_error have one value an example, shape (B,), B ≥ 1; got {tuple(logsnr.shape)} "
                f"and {tuple(weighted_error.shape)}."
            )
        require_levels("logsnr", logsnr, *self.ends)
        require_within("weighted_error", weighted_error, 0.0, torch.finfo(weighted_error.dtype).max)
        if self.average.device != weighted_error.device:
            self.average, self.hits = self.average.to(weighted_error.device), self.hits.to(weighted_error.device)
        value = weighted_error.double().pow(2 if self.moment == "second" else 1)
        each = torch.stack([value, torch.ones_like(value)])
        sums_and_counts = value.new_zeros(2, self.bins).index_add_(1, self._bin(logsnr)[0], each)  # of every bin
        sums, counts = sums_and_counts if reduce is None else reduce(sums_and_counts)
        if self._untouched:
            self.average.fill_(sums.sum() / counts.sum())
            self._untouched = False
        hit = counts.clamp(max=1)
        self.hits += hit
        step = hit / (START_HITS + self.hits).clamp(max=1 / (1 - self.decay))
        self.average += step * (sums / counts.clamp(min=1) - self.average)
        self._refresh()

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the averages and hits of the bins, and the ends that they belong to."""
        ends = torch.tensor(self.ends, dtype=torch.float64)
        return {"average": self.average.clone(), "hits": self.hits.clone(), "ends": ends}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where a checkpoint left off, of tensors or lists.

        ValueError for other bins, another range, or keys that are missing.
        """
        missing = {"average", "hits", "ends"} - set(state)
        if missing:
            raise ValueError(f"this is no state of an AdaptiveSchedule: it lacks {', '.join(sorted(missing))}.")
        average, hits, ends = (
            torch.as_tensor(state[name], dtype=torch.float64) for name in ("average", "hits", "ends")
        )
        if len(average) != self.bins or tuple(ends.tolist()) != self.ends:
            raise ValueError(
                f"the state has {len(average)} bins on {ends.tolist()}, this schedule {self.bins} on "
                f"{list(self.ends)}; make the schedule with the same numbers."
            )
        self.average, self.hits = average.clone(), hits.clone()
        self._untouched = not self.hits.any()
        self._refresh()
