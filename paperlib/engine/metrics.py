r"""Distances between two sets of images, seen through the features of a network.

A distance is that of *these features*: only with Inception's and clean-fid's preprocessing is the Fréchet distance the
FID of the literature.  All of them depend on the number of samples, so none means anything without that number, and
without the same distance between two sets of real images beside it.
"""

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from paperlib.checks import require_finite, require_positive

SAMPLES_PER_FEATURE = 10
"""Fewer samples than this for each feature make a covariance, and so a Fréchet distance, unreliable: a warning."""

TILE = 1000
"""Rows whose pairs with all others are looked at together, which bounds the memory."""

BLOCKS = 10
"""Random parts of a set, each of which is left out once for the standard error of a kernel distance."""

SPLITS = 10
"""Parts of a set whose Inception Scores are averaged."""


# Fréchet distance ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and unbiased covariance of features, float64, and the number of rows that they are of.

    Attributes:
        mean: shape (F,).
        covariance: shape (F, F).
        count: at least 2.

    Raises:
        ValueError: for moments that do not fit each other, or are not finite.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}.")
        if self.mean.ndim != 1 or self.covariance.shape != 2 * self.mean.shape:
            raise ValueError(
                f"a mean (F,) and a covariance (F, F) are needed; got shapes {tuple(self.mean.shape)} and "
                f"{tuple(self.covariance.shape)}."
            )
        require_finite("mean", self.mean)
        require_finite("covariance", self.covariance)

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Those of features, shape (N, F)."""
        rows = _rows("features", features)
        centred = rows - rows.mean(0)
        return cls(rows.mean(0), centred.mT @ centred / (len(rows) - 1 or math.nan), len(rows))


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""Fréchet distance of two Gaussians with these moments.

    :math:`\|\mu_a - \mu_b\|^2 + tr\,A + tr\,B - 2\,tr (A B)^{1/2}`  (Heusel et al. 2017.)  With any
    :math:`R R^T = A` the eigenvalues of A B are those of the symmetric :math:`R^T B R`: they are real and not negative,
    where a general matrix root of A B fails on singular covariances.  Those that are rounding errors count as zero.

    Warns where there are fewer than 10 samples a feature.
    """
    features = len(a.mean)
    if len(b.mean) != features:
        raise ValueError(f"moments have {features} and {len(b.mean)} features; use one feature network for both.")
    if (fewer := min(a.count, b.count)) < SAMPLES_PER_FEATURE * features:
        warnings.warn(
            f"{fewer} samples are few for {features} features: below {SAMPLES_PER_FEATURE * features} the Fréchet "
            f"distance is far too large. Take more samples, or compare with KID.",
            stacklevel=2,
        )
    root = _root(a.covariance)
    product = torch.linalg.eigvalsh(root.mT @ b.covariance @ root)
    rounding = features * torch.finfo(torch.float64).eps * product.abs().max()
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


# Kernel distance -----------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A number and how much it varies."""

    value: float
    error: float


def kid(real: Tensor, fake: Tensor) -> Estimate:
    r"""Kernel Inception distance: the unbiased squared MMD with the kernel :math:`(f \cdot g / F + 1)^3`.

    (Bińkowski et al. 2018.)  Its mean is zero for two sets of one distribution, whatever their size, so a single value
    may be negative.  All pairs are used; the mean over random subsets that is usual elsewhere has the same expectation
    and a larger variance.  The error is the jackknife's standard error: the estimate is repeated without one of
    :data:`BLOCKS` random blocks of either set, always the same, at a time; each must hold two rows.

    Args:
        real: features, shape (N, F).
        fake: features, shape (M, F).
    """
    a, b = _pair(real, fake, least=2 * BLOCKS)
    generator = torch.Generator().manual_seed(0)
    keep_a, keep_b = (_leave_out(len(rows), generator) for rows in (a, b))
    estimates = -2 * _kernel_sum(a, b, keep_a, keep_b) / (keep_a.sum(0) * keep_b.sum(0))
    for rows, keep in ((a, keep_a), (b, keep_b)):
        count, itself = keep.sum(0), _kernel(rows.square().sum(1), rows.shape[1]) @ keep
        estimates += (_kernel_sum(rows, rows, keep, keep) - itself) / (count * (count - 1))
    spread = estimates[1:].var(correction=0) * (BLOCKS - 1)
    return Estimate(estimates[0].item(), spread.sqrt().item())


def _leave_out(rows: int, generator: torch.Generator) -> Tensor:
    """Which rows to keep, 0 or 1, shape (rows, 1 + BLOCKS): all of them, then all but one block at a time."""
    keep = torch.ones(rows, 1 + BLOCKS, dtype=torch.float64)
    keep[torch.randperm(rows, generator=generator), 1 + torch.arange(rows) % BLOCKS] = 0
    return keep


def _kernel_sum(a: Tensor, b: Tensor, keep_a: Tensor, keep_b: Tensor) -> Tensor:
    """The kernel summed over all pairs that each column keeps, shape (columns of keep,)."""
    tiles = zip(a.split(TILE), keep_a.split(TILE), strict=True)
    return torch.stack([(kept * (_kernel(rows @ b.mT, a.shape[1]) @ keep_b)).sum(0) for rows, kept in tiles]).sum(0)


def _kernel(products: Tensor, features: int) -> Tensor:
    return (products / features + 1) ** 3


# Precision and recall ------------------------------------------------------------------------------------------------


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
    a, b = _pair(real, fake, least=k + 1)
    return PrecisionRecall(_share_inside(b, a, k), _share_inside(a, b, k))


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """Share of ``points`` within the k-th-neighbour balls of ``centres``."""
    radii = []
    for number, tile in enumerate(centres.split(TILE)):
        distance = _distances(tile, centres)
        distance.diagonal(number * TILE).fill_(torch.inf)  # no centre is a neighbour of itself
        radii.append(distance.topk(k, largest=False).values.amax(1))
    radius = torch.cat(radii)
    inside = [(_distances(tile, centres) <= radius).any(1) for tile in points.split(TILE)]
    return torch.cat(inside).double().mean().item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances; of long features by a matrix product, eight times as fast and good to seven digits."""
    mode = "use_mm_for_euclid_dist" if a.shape[1] > 128 else "donot_use_mm_for_euclid_dist"
    return torch.cdist(a, b, compute_mode=mode)


# Inception Score -----------------------------------------------------------------------------------------------------


def inception_score(probabilities: Tensor, splits: int = SPLITS) -> Estimate:
    r""":math:`\exp E_x KL(p(y|x) \,\|\, p(y))`, mean and deviation over equal random parts.  (Salimans et al. 2016.)

    It is the Inception Score where the probabilities are Inception's; those of another classifier give a number that
    compares with nothing else.  It grows with the size of the parts.

    Args:
        probabilities: of classes, shape (N, C), each row adding up to one.
        splits: number of parts, no more than rows.  Which row goes to which is random: images may come by class.
    """
    require_positive("splits", splits)
    rows = _rows("probabilities", probabilities, least=splits)
    if not torch.allclose(rows.sum(1), rows.new_ones(()), atol=1e-3) or (rows < 0).any():
        raise ValueError("probabilities must be 0 or more and add up to 1 in every row; pass logits.softmax(1).")
    generator = torch.Generator().manual_seed(0)
    orders = torch.rand(-(-len(rows) // splits), splits, generator=generator, dtype=torch.float64).argsort(1)
    parts = [rows[orders.flatten()[: len(rows)] == part] for part in range(splits)]
    divergences = [torch.xlogy(p, p).sum(1).mean() - torch.xlogy(p.mean(0), p.mean(0)).sum() for p in parts]
    scores = torch.stack(divergences).exp()
    return Estimate(scores.mean().item(), scores.std(correction=0).item())


# Sets of features ----------------------------------------------------------------------------------------------------


def _rows(name: str, features: Tensor, least: int = 1) -> Tensor:
    """Features as float64 on the CPU; refuses anything but ``least`` finite rows, shape (N, F)."""
    require_finite(name, features)
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name} must have shape (N, F), neither zero; got {tuple(features.shape)}.")
    if len(features) < least:
        raise ValueError(f"{name} has {len(features)} rows; at least {least} are needed.")
    return features.detach().to("cpu", torch.float64)


def _pair(real: Tensor, fake: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"real has {real.shape[-1]} features and fake {fake.shape[-1]}; use one feature network.")
    return _rows("real", real, least), _rows("fake", fake, least)
