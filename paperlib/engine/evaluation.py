"""Samples of a network and what they are compared with, batch by batch: images never lie in memory together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paperlib.checks import require_same_shape
from paperlib.engine import sampling
from paperlib.engine.data import ImageData, to_uint8
from paperlib.engine.features import FeatureNetwork
from paperlib.engine.metrics import FeatureStatistics, frechet_distance, kid, precision_recall
from paperlib.engine.training import seeded
from paperlib.models import ConditionedNetwork
from paperlib.predictions import Prediction
from paperlib.process import diffuse


def generate(
    network: ConditionedNetwork,
    prediction: Prediction,
    labels: Tensor,
    levels: Tensor,
    *,
    sampler: str = "heun",
    guidance: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
    **options: Any,
) -> Iterator[Tensor]:
    """Samples, one for each label, in batches.

    Args:
        network: the network, which is put into evaluation mode.
        prediction: what it predicts.
        labels: classes, int64 (N,); ``network.num_classes`` asks for the null class.
        levels: increasing log-SNR, from :func:`paperlib.engine.sampling.levels`.
        sampler: one of :data:`paperlib.engine.sampling.SAMPLERS`.
        guidance: strength of classifier-free guidance, 1 for none.
        batch_size: images at once.
        seed: of the noise; a batch depends on it and on its own number alone.
        options: what else the sampler takes.

    Yields:
        x in about [−1, 1], shape (≤ batch_size, C, H, W), on the device of the network.
    """
    sample, device = sampling.get(sampler), next(network.parameters()).device
    network.eval()
    for number, label in enumerate(labels.to(device).split(batch_size)):
        generator = seeded(seed, "samples", number, device=device)
        z = sampling.prior((len(label), *network.image_shape), generator, device=device)
        denoise = sampling.denoiser(network, prediction, label, guidance)
        yield sample(denoise, z, levels, generator=generator, **options)


@dataclass(frozen=True)
class Reference:
    """A set of real images as a feature network sees it.

    Attributes:
        data: name of the data and split.
        sha256: their hash.
        network: name of the feature network.
        features: shape (N, F).
        statistics: of these features.
    """

    data: str
    sha256: str
    network: str
    features: Tensor
    statistics: FeatureStatistics

    @classmethod
    def of(cls, data: ImageData, network: FeatureNetwork) -> "Reference":
        """The reference that a data set is."""
        features = network(data.images)
        return cls(data.name, data.sha256, network.name, features, FeatureStatistics.of(features))


@dataclass(frozen=True)
class Evaluation:
    """How far a set of samples is from a reference, and what must be said beside it.

    Attributes:
        frechet: Fréchet distance in the features of ``network``.
        kid: kernel distance, unbiased.
        kid_error: its standard error.
        precision: share of samples inside the manifold of the reference.
        recall: share of the reference inside the manifold of the samples.
        samples: number of samples.
        reference: name and hash of the reference.
        network: name of the feature network.
    """

    frechet: float
    kid: float
    kid_error: float
    precision: float
    recall: float
    samples: int
    reference: str
    network: str


def compare(features: Tensor, reference: Reference) -> Evaluation:
    """Compare features of samples, shape (M, F), with a reference."""
    distance = kid(reference.features, features)
    manifold = precision_recall(reference.features, features)
    return Evaluation(
        frechet=frechet_distance(reference.statistics, FeatureStatistics.of(features)),
        kid=distance.value,
        kid_error=distance.standard_error,
        precision=manifold.precision,
        recall=manifold.recall,
        samples=len(features),
        reference=f"{reference.data} {reference.sha256[:6]}",
        network=reference.network,
    )


def features_of(batches: Iterator[Tensor], network: FeatureNetwork, levels: int) -> Tensor:
    """Features, shape (M, F), of batches of images in [−1, 1], each rounded to ``levels`` values as the data are."""
    return torch.cat([network(to_uint8(batch.cpu(), levels)) for batch in batches])


def nearest(train: Tensor, samples: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """The nearest training image of each sample: a look at what was learned by heart.

    Args:
        train: shape (N, \\*), in the scale of ``samples``.
        samples: shape (M, \\*).
        batch_size: samples at once.

    Returns:
        Index into ``train``, int64 (M,), and L2 distance in the units of the images, shape (M,).
    """
    require_same_shape("the first sample", samples[0], "the first training image", train[0])
    reference = train.flatten(1).double()
    found = [torch.cdist(batch.flatten(1).double(), reference).min(1) for batch in samples.split(batch_size)]
    return torch.cat([minimum.indices for minimum in found]), torch.cat([minimum.values for minimum in found])


@torch.no_grad()
def errors_by_level(
    network: ConditionedNetwork,
    prediction: Prediction,
    data: ImageData,
    levels: Tensor,
    *,
    draws: int = 1,
    seed: int = 0,
) -> Tensor:
    r"""The error of ε̂ at each level, :math:`E_{x,\epsilon}\|\hat\epsilon(z_\lambda;\lambda) - \epsilon\|^2`.

    Labels are given to the network.  The noise depends on ``seed`` alone: networks, and levels, see the same.

    Args:
        network: the network.
        prediction: what it predicts.
        data: the images, all of which are used.
        levels: log-SNR, shape (L,).
        draws: noise draws for each image.
        seed: of the noise.

    Returns:
        Mean of the squared error, summed over the dimensions of the data, shape (L,), float64.
    """
    device = next(network.parameters()).device
    x, label = data.scaled().to(device), data.labels.to(device)
    total = torch.zeros(len(levels), dtype=torch.float64)
    for draw in range(draws):
        eps = torch.randn(x.shape, generator=seeded(seed, "errors", draw, device=device), device=device)
        for index, level in enumerate(levels.to(device, x.dtype)):
            z, logsnr = diffuse(x, eps, level), level.expand(len(x))
            eps_hat = prediction.to_eps(network(z, logsnr, label), z, logsnr)
            total[index] += (eps_hat - eps).double().square().flatten(1).sum(1).mean().cpu()
    return total / draws
