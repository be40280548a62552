r"""Distances between two sets of images, seen through the features of a network.

A distance is that of *these features*: only with Inception's and clean-fid's preprocessing is the Fréchet distance the
FID of the literature.  All of them depend on the number of samples, so none means anything without that number, and
without the same distance between two sets of real images beside it.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from paperlib.checks import require_finite

SAMPLES_PER_FEATURE = 10
"""Fewer samples than this for each feature make a covariance, and so a Fréchet distance, unreliable: a warning."""


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
        _require_features("features", features)
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


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    r"""Fréchet distance of two Gaussians with these means and covariances.

    :math:`\|\mu_a - \mu_b\|^2 + tr\,A + tr\,B - 2\,tr (A^{1/2} B A^{1/2})^{1/2}`  (Heusel et al. 2017.)  The trace of
    the root comes from the eigenvalues of that symmetric matrix, so it stays real where a covariance is singular;
    eigenvalues that are rounding errors count as zero.

    Warns where there are fewer than 10 samples a feature.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics have {len(a.mean)} and {len(b.mean)} features; use one feature network for both.")
    for statistics in (a, b):
        _warn_if_few(statistics)
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    product = torch.linalg.eigvalsh(root @ b.covariance @ root)
    rounding = len(product) * torch.finfo(torch.float64).eps * product.abs().max()
    trace = torch.where(product > rounding, product, 0.0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace
    return max(0.0, distance.item())


def _warn_if_few(statistics: FeatureStatistics) -> None:
    features = len(statistics.mean)
    if statistics.count < SAMPLES_PER_FEATURE * features:
        warnings.warn(
            f"{statistics.count} samples are few for {features} features: below {SAMPLES_PER_FEATURE * features} the "
            f"Fréchet distance is far too large. Take more samples, or compare with KID.",
            stacklevel=3,
        )


class KID(NamedTuple):
    """A kernel distance and its standard error."""

    value: float
    standard_error: float


def kid(real: Tensor, fake: Tensor, blocks: int = 10, generator: torch.Generator | None = None) -> KID:
    r"""Kernel Inception distance: the unbiased squared MMD with the kernel :math:`(f \cdot g / F + 1)^3`.

    (Bińkowski et al. 2018.)  Its mean is zero for two sets of one distribution, whatever their size, so a single value
    may be negative.  All pairs are used.  The standard error is the jackknife's: the estimate is repeated without one
    of ``blocks`` random blocks of either set at a time.

    Args:
        real: features, shape (N, F).
        fake: features, shape (M, F).
        blocks: number of blocks, at least 2; each must hold at least 2 rows.
        generator: source of the blocks; None always makes the same.
    """
    if blocks < 2:
        raise ValueError(f"blocks must be at least 2, got {blocks}.")
    _require_pair(real, fake, least=2 * blocks)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    a, b = (features.detach().to("cpu", torch.float64) for features in (real, fake))
    estimates = _squared_mmd(a, b, _leave_out(len(a), blocks, generator), _leave_out(len(b), blocks, generator))
    spread = estimates[1:].var(correction=0) * (blocks - 1)
    return KID(estimates[0].item(), spread.sqrt().item())


def _leave_out(rows: int, blocks: int, generator: torch.Generator) -> Tensor:
    """Which rows to keep, 0 or 1, shape (rows, 1 + blocks): all of them, then all but one block at a time."""
    keep = torch.ones(rows, 1 + blocks, dtype=torch.float64)
    keep[torch.randperm(rows, generator=generator), 1 + torch.arange(rows) % blocks] = 0
    return keep


def _squared_mmd(a: Tensor, b: Tensor, keep_a: Tensor, keep_b: Tensor) -> Tensor:
    """The unbiased estimate from the rows that each column of ``keep`` keeps; no row is paired with itself."""
    total = -2 * _pair_mean(_polynomial_kernel(a, b), keep_a, keep_b, keep_a.sum(0) * keep_b.sum(0))
    for rows, keep in ((a, keep_a), (b, keep_b)):
        kernel, count = _polynomial_kernel(rows, rows).fill_diagonal_(0), keep.sum(0)
        total = total + _pair_mean(kernel, keep, keep, count * (count - 1))
    return total


def _pair_mean(kernel: Tensor, left: Tensor, right: Tensor, pairs: Tensor) -> Tensor:
    return (left * (kernel @ right)).sum(0) / pairs


def _polynomial_kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.mT / a.shape[1] + 1) ** 3


class PrecisionRecall(NamedTuple):
    """Share of the fake set that lies among the real one, and of the real set that lies among the fake one."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall.  (Kynkäänniemi et al. 2019.)

    A set's manifold is the union of balls around its members, each reaching to its k-th nearest neighbour.  Precision
    is the share of fake features inside the real manifold, recall the share of real ones inside the fake manifold.

    Args:
        real: features, shape (N, F).
        fake: features, shape (M, F).
        k: which neighbour sets the radius.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    _require_pair(real, fake, least=k + 1)
    a, b = (features.detach().to("cpu", torch.float64) for features in (real, fake))
    return PrecisionRecall(_share_inside(b, a, k), _share_inside(a, b, k))


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """Share of ``points`` within the k-th-neighbour balls of ``centres``."""
    own = _distances(centres, centres).fill_diagonal_(torch.inf)
    radius = own.kthvalue(k, dim=1).values
    return (_distances(points, centres) <= radius).any(1).double().mean().item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _require_pair(real: Tensor, fake: Tensor, least: int) -> None:
    for name, features in (("real", real), ("fake", fake)):
        _require_features(name, features)
        if len(features) < least:
            raise ValueError(f"{name} has {len(features)} rows; at least {least} are needed.")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"real has {real.shape[1]} features and fake {fake.shape[1]}; use one feature network.")


def _require_features(name: str, features: Tensor) -> None:
    require_finite(name, features)
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name} must have shape (N, F), neither zero; got {tuple(features.shape)}.")
