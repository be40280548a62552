r"""Distances between two sets of images, seen through the features of a network.

A distance is that of *these features*: only with Inception's and clean-fid's preprocessing is the Fréchet distance the
FID of the literature.  All of them depend on the number of samples, so none means anything without that number, and
without the same distance between two sets of real images beside it.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from paperlib.engine.gathering import FeatureStatistics, require_features

SAMPLES_PER_FEATURE = 10
"""Fewer samples than this for each feature make a covariance, and so a Fréchet distance, unreliable: a warning."""

TILE = 1000
"""Rows whose pairs are looked at together: no matrix is larger than TILE × TILE, whatever the size of a set."""


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    r"""Fréchet distance of two Gaussians with these means and covariances.

    :math:`\|\mu_a - \mu_b\|^2 + tr\,A + tr\,B - 2\,tr (A B)^{1/2}`  (Heusel et al. 2017.)  With any
    :math:`R R^T = A` the eigenvalues of A B are those of the symmetric :math:`R^T B R`: they are real and not negative,
    where a general matrix root of A B fails on singular covariances.  Those that are rounding errors count as zero.

    Warns where there are fewer than 10 samples a feature.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics have {len(a.mean)} and {len(b.mean)} features; use one feature network for both.")
    for statistics in (a, b):
        _warn_if_few(statistics)
    root = _root(a.covariance)
    product = torch.linalg.eigvalsh(root.mT @ b.covariance @ root)
    rounding = len(product) * torch.finfo(torch.float64).eps * product.abs().max()
    trace = torch.where(product > rounding, product, 0.0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace
    return max(0.0, distance.item())


def _root(covariance: Tensor) -> Tensor:
    """A matrix R with R Rᵀ = covariance: Cholesky's, which is cheap, or from the eigenvectors of a singular one."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return root
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


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
    may be negative.  All pairs are used, a tile at a time; the mean over random subsets that is usual elsewhere has the
    same expectation and a larger variance.  The standard error is the jackknife's: the estimate is repeated without one
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
    total = -2 * _kernel_sum(a, b, keep_a, keep_b) / (keep_a.sum(0) * keep_b.sum(0))
    for rows, keep in ((a, keep_a), (b, keep_b)):
        count = keep.sum(0)
        itself = _cubic(rows.square().sum(1), rows.shape[1]) @ keep
        total = total + (_kernel_sum(rows, rows, keep, keep) - itself) / (count * (count - 1))
    return total


def _kernel_sum(a: Tensor, b: Tensor, keep_a: Tensor, keep_b: Tensor) -> Tensor:
    """The kernel summed over all pairs that each column keeps, a tile at a time, shape (columns of keep,)."""
    total = torch.zeros(keep_a.shape[1], dtype=a.dtype)
    for left, kept in zip(a.split(TILE), keep_a.split(TILE), strict=True):
        for right, kept_too in zip(b.split(TILE), keep_b.split(TILE), strict=True):
            total += (kept * (_cubic(left @ right.mT, a.shape[1]) @ kept_too)).sum(0)
    return total


def _cubic(products: Tensor, features: int) -> Tensor:
    """The kernel from the inner products of features."""
    return (products / features + 1) ** 3


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
    radius = _radii(centres, k)
    inside = [_is_inside(tile, centres, radius) for tile in points.split(TILE)]
    return torch.cat(inside).double().mean().item()


def _radii(centres: Tensor, k: int) -> Tensor:
    """Distance of each centre to its k-th neighbour; it is its own zeroth."""
    tiles = []
    for number, tile in enumerate(centres.split(TILE)):
        nearest = torch.full((len(tile), k), torch.inf, dtype=centres.dtype)
        for other_number, other in enumerate(centres.split(TILE)):
            distance = _distances(tile, other)
            if number == other_number:
                distance.fill_diagonal_(torch.inf)
            nearest = torch.cat([nearest, distance], dim=1).topk(k, largest=False).values
        tiles.append(nearest.amax(1))
    return torch.cat(tiles)


def _is_inside(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Whether each of a tile of points lies in any ball."""
    inside = torch.zeros(len(points), dtype=torch.bool)
    for other, reach in zip(centres.split(TILE), radius.split(TILE), strict=True):
        inside |= (_distances(points, other) <= reach).any(1)
    return inside


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances; of long features by a matrix product, eight times as fast and good to seven digits."""
    mode = "use_mm_for_euclid_dist" if a.shape[1] > 128 else "donot_use_mm_for_euclid_dist"
    return torch.cdist(a, b, compute_mode=mode)


def _require_pair(real: Tensor, fake: Tensor, least: int) -> None:
    for name, features in (("real", real), ("fake", fake)):
        require_features(name, features)
        if len(features) < least:
            raise ValueError(f"{name} has {len(features)} rows; at least {least} are needed.")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"real has {real.shape[1]} features and fake {fake.shape[1]}; use one feature network.")
