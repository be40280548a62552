r"""What is kept of the features of images that pass by in batches: never the images, never all of the features.

Of any number of images there remain the mean and covariance of their features (exact), a bounded random choice of the
features themselves (for distances between pairs), and the sums of the Inception Score (exact).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from paperlib.checks import require_finite

KEEP = 10_000
"""Rows of features that are kept of a larger set."""

SPLITS = 10
"""Parts of a set whose Inception Scores are averaged."""


class Seen(NamedTuple):
    """What a feature network makes of a batch of images.

    Attributes:
        features: shape (N, F).
        probabilities: of the classes that it knows, shape (N, C); None for a network that knows none.
    """

    features: Tensor
    probabilities: Tensor | None = None


def require_features(name: str, features: Tensor) -> None:
    """Refuse anything but finite features, shape (N, F)."""
    require_finite(name, features)
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name} must have shape (N, F), neither zero; got {tuple(features.shape)}.")


@dataclass
class FeatureStatistics:
    """Number, mean and covariance of features, gathered batch by batch in float64.

    Batches are merged by their means and scatter matrices (Chan et al. 1983), so nothing is lost to large sums and
    nothing but F² numbers is kept.

    Attributes:
        count: rows seen.
        mean: shape (F,).
        scatter: Σ (f − mean)(f − mean)ᵀ, shape (F, F).
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    @classmethod
    def of(cls, batches: Tensor | Iterable[Tensor]) -> "FeatureStatistics":
        """The statistics of features (N, F), or of an iterable of such batches."""
        statistics = cls()
        for batch in [batches] if isinstance(batches, Tensor) else batches:
            statistics.update(batch)
        return statistics

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, count: int) -> "FeatureStatistics":
        """Those of ``count`` rows with this mean, shape (F,), and unbiased covariance, shape (F, F).

        Raises:
            ValueError: for moments that do not fit each other, or are not finite.
        """
        mean, covariance = mean.double(), covariance.double()
        for name, moment in (("mean", mean), ("covariance", covariance)):
            require_finite(name, moment)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or count < 2:
            raise ValueError(
                f"a mean (F,), a covariance (F, F) and a count from 2 are needed; got shapes {tuple(mean.shape)}, "
                f"{tuple(covariance.shape)} and count {count}."
            )
        return cls(count, mean, covariance * (count - 1))

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, shape (F, F)."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}.")
        return self.scatter / (self.count - 1)

    def update(self, features: Tensor) -> None:
        """Add a batch, shape (N, F).

        Raises:
            ValueError: for NaN or infinite features, or a number of features that differs from earlier batches.
        """
        require_features("features", features)
        rows = features.detach().to("cpu", torch.float64)
        mean = rows.mean(0)
        centred = rows - mean
        self._merge(len(rows), mean, centred.mT @ centred)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add what another one has seen."""
        self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self.count == 0:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        if mean.shape != self.mean.shape:
            raise ValueError(f"batches have {len(self.mean)} and {len(mean)} features; use one feature network.")
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


class Reservoir:
    """A uniform random choice of at most ``capacity`` rows of all that pass by, in the order in which they came.

    Every row draws a number, and those with the smallest are kept; so up to ``capacity`` rows all are.

    Args:
        capacity: rows to keep, at least 1.
        seed: of the choice.
    """

    def __init__(self, capacity: int = KEEP, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}.")
        self.capacity = capacity
        self.rows = torch.zeros(0, 0)
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn = torch.zeros(0, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Add a batch, shape (N, F)."""
        rows = rows.detach().cpu()
        drawn = torch.cat([self._drawn, torch.rand(len(rows), generator=self._generator, dtype=torch.float64)])
        rows = torch.cat([self.rows, rows]) if len(self.rows) else rows
        if len(drawn) > self.capacity:
            kept = drawn.topk(self.capacity, largest=False).indices.sort().values
            drawn, rows = drawn[kept], rows[kept]
        self._drawn, self.rows = drawn, rows


class Score(NamedTuple):
    """A mean over parts of a set, and the standard deviation over them."""

    value: float
    deviation: float


class InceptionScore:
    r"""The sums of :math:`\exp E_x KL(p(y|x) \,\|\, p(y))` over equal random parts of a set.  (Salimans et al. 2016.)

    It is the Inception Score where the probabilities are Inception's; those of another classifier give a number that
    compares with nothing else.  It grows with the size of the parts.

    Args:
        splits: number of parts.  Which row goes to which is random, so that images may come ordered by class.
        seed: of the parts.
    """

    def __init__(self, splits: int = SPLITS, seed: int = 0) -> None:
        if splits < 1:
            raise ValueError(f"splits must be at least 1, got {splits}.")
        self.splits = splits
        self._generator = torch.Generator().manual_seed(seed)
        self._waiting = torch.zeros(0, dtype=torch.int64)
        self._count = torch.zeros(splits, dtype=torch.float64)
        self._negentropy = torch.zeros(splits, dtype=torch.float64)
        self._probabilities: Tensor | None = None

    def update(self, probabilities: Tensor) -> None:
        """Add the class probabilities of a batch, shape (N, C), each row adding up to one."""
        require_features("probabilities", probabilities)
        rows = probabilities.detach().to("cpu", torch.float64)
        if not torch.allclose(rows.sum(1), torch.ones(len(rows), dtype=torch.float64), atol=1e-3) or (rows < 0).any():
            raise ValueError("probabilities must be 0 or more and add up to 1 in every row; pass logits.softmax(1).")
        if self._probabilities is None:
            self._probabilities = torch.zeros(self.splits, rows.shape[1], dtype=torch.float64)
        part = self._parts(len(rows))
        self._count.index_add_(0, part, torch.ones(len(rows), dtype=torch.float64))
        self._negentropy.index_add_(0, part, torch.xlogy(rows, rows).sum(1))
        self._probabilities.index_add_(0, part, rows)

    def _parts(self, rows: int) -> Tensor:
        """The parts of the next rows: of every ``splits`` rows one goes to each part, in a random order."""
        blocks = max(0, -(-(rows - len(self._waiting)) // self.splits))
        orders = torch.rand(blocks, self.splits, generator=self._generator, dtype=torch.float64).argsort(1)
        self._waiting = torch.cat([self._waiting, orders.flatten()])
        part, self._waiting = self._waiting[:rows], self._waiting[rows:]
        return part

    def score(self) -> Score | None:
        """The mean over the parts; None before every part has a row."""
        if self._probabilities is None or not self._count.all():
            return None
        marginal = self._probabilities / self._count[:, None]
        scores = (self._negentropy / self._count - torch.xlogy(marginal, marginal).sum(1)).exp()
        return Score(scores.mean().item(), scores.std(correction=0).item())


class Gathered:
    """All that is kept of a set of images.

    Args:
        keep: rows of features to keep.

    Attributes:
        statistics: of all features.
        reservoir: some of them.
        classes: the sums of the Inception Score.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self.statistics = FeatureStatistics()
        self.reservoir = Reservoir(keep)
        self.classes = InceptionScore()

    def update(self, seen: Seen) -> None:
        """Add what a feature network makes of a batch."""
        self.statistics.update(seen.features)
        self.reservoir.update(seen.features)
        if seen.probabilities is not None:
            self.classes.update(seen.probabilities)
