"""Samples of a network and what they are compared with, batch by batch: images never lie in memory together."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from paperlib.checks import require_finite_at, require_same_shape
from paperlib.engine import sampling
from paperlib.engine.data import ImageData, scale, to_uint8
from paperlib.engine.features import FeatureNetwork
from paperlib.engine.gathering import KEEP, FeatureStatistics, Gathered, Score, Seen
from paperlib.engine.metrics import frechet_distance, kid, precision_recall
from paperlib.engine.randomness import seeded
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
    interval: tuple[float, float] = sampling.EVERYWHERE,
    batch_size: int = 256,
    seed: int = 0,
    **options: Any,
) -> Iterator[Tensor]:
    """Samples, one for each label, in batches.

    Args:
        network: a module ``network(z, logsnr, label=…)`` with ``image_shape``, put into evaluation mode.
        prediction: what it predicts.
        labels: classes, int64 (N,); ``network.num_classes`` asks for the null class.
        levels: increasing log-SNR, from :func:`paperlib.engine.sampling.levels`.
        sampler: one of :data:`paperlib.engine.sampling.SAMPLERS`.
        guidance: strength of classifier-free guidance, 1 for none.
        interval: log-SNR between which there is guidance.
        batch_size: images at once.
        seed: of the noise; a batch depends on it, on its own number and on ``batch_size`` alone.
        options: what else the sampler takes.

    Yields:
        x in about [−1, 1], shape (≤ batch_size, C, H, W), on the device of the network.

    Raises:
        TypeError: for a network that does not say the shape of its images.
    """
    if not hasattr(network, "image_shape"):
        raise TypeError(f"{type(network).__name__} has no image_shape; set network.image_shape = (C, H, W).")
    sample, device = sampling.get(sampler), next(network.parameters()).device
    network.eval()
    for number, label in enumerate(labels.to(device).split(batch_size)):
        generator = seeded(seed, "samples", number, device=device)
        z = sampling.prior((len(label), *network.image_shape), generator, device=device)
        denoise = sampling.denoiser(network, prediction, label, guidance, interval)
        yield sample(denoise, z, levels, generator=generator, **options)


# What is compared with what -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """How samples were drawn.

    Attributes:
        sampler: its name, and its options.
        evaluations: of the denoiser, for each sample; guidance doubles those of the network.
        guidance: strength of classifier-free guidance, 1 for none.
        seed: of the noise.
        batch_size: samples at once, on which with the seed the noise depends; 0 where it is not known.
    """

    sampler: str
    evaluations: int
    guidance: float = 1.0
    seed: int = 0
    batch_size: int = 0

    @classmethod
    def by(
        cls,
        sampler: str,
        levels: Tensor,
        *,
        guidance: float = 1.0,
        interval: tuple[float, float] = sampling.EVERYWHERE,
        seed: int = 0,
        batch_size: int = 0,
        **options: Any,
    ) -> "Drawn":
        """How :func:`generate` draws with these arguments."""
        named = [sampler, *(f"{name} {value}" for name, value in options.items())]
        if interval != sampling.EVERYWHERE:
            named.append(f"guidance at log-SNR {interval[0]:g} to {interval[1]:g}")
        return cls(", ".join(named), count_evaluations(sampler, levels, **options), guidance, seed, batch_size)


def count_evaluations(sampler: str, levels: Tensor, **options: Any) -> int:
    """How often a sampler asks the denoiser: counted, on one number."""
    asked = 0

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return z

    generator = torch.Generator().manual_seed(0)
    sampling.get(sampler)(denoise, torch.zeros(1, 1), levels.cpu(), generator=generator, **options)
    return asked


def gather(images: Iterable[Tensor], network: FeatureNetwork, levels: int, keep: int = KEEP) -> Gathered:
    """What is kept of images as a feature network sees them, batch by batch.

    Args:
        images: batches; uint8 with ``levels`` values, or real numbers in [−1, 1], which are rounded to these as the
            data are.  Shape (≤ B, C, H, W).
        network: the feature network.
        levels: number of values that a pixel can take.
        keep: rows of features to keep for distances between pairs.

    Raises:
        ValueError: when the network sees images of another number of levels.
    """
    if levels != network.levels:
        raise ValueError(
            f"the images have {levels} levels, {network.name} sees {network.levels}: a Fréchet distance would be that "
            f"of darkened images. Choose a feature network for these images."
        )
    gathered = Gathered(keep)
    for batch in images:
        gathered.update(network.see(to_uint8(batch.cpu(), levels) if batch.is_floating_point() else batch))
    return gathered


@dataclass(frozen=True)
class Reference:
    """A set of real images as a feature network sees it.

    Attributes:
        data: name of the data and split.
        sha256: their hash.
        caution: what must be said of the data.
        network: name of the feature network.
        network_sha256: hash of its weights.
        resize: how it brings images to its size.
        distance: what a Fréchet distance in its features is called.
        features: shape (N, F), a random choice where the set is large; without rows where they are not known.
        statistics: of the features of all images.
    """

    data: str
    sha256: str
    caution: str
    network: str
    network_sha256: str
    resize: str
    distance: str
    features: Tensor
    statistics: FeatureStatistics

    @classmethod
    def of(cls, data: ImageData, network: FeatureNetwork, batch_size: int = 500, keep: int = KEEP) -> "Reference":
        """The reference that a data set is."""
        gathered = gather(data.images.split(batch_size), network, data.levels, keep)
        rows, statistics = gathered.reservoir.rows, gathered.statistics
        return cls.by(network, data.name, data.sha256, rows, statistics, data.caution)

    @classmethod
    def by(
        cls,
        network: FeatureNetwork,
        data: str,
        sha256: str,
        features: Tensor,
        statistics: FeatureStatistics,
        caution: str = "",
    ) -> "Reference":
        """A reference of features and statistics that are known already."""
        return cls(
            data=data,
            sha256=sha256,
            caution=caution,
            network=network.name,
            network_sha256=network.sha256,
            resize=network.resize,
            distance=network.distance,
            features=features,
            statistics=statistics,
        )


@dataclass(frozen=True)
class Protocol:
    """What must be said beside a distance: without it, it compares with nothing.

    Attributes:
        samples: number of samples.
        sampler: of the samples; empty for real images.
        evaluations: of the denoiser for each sample.
        guidance: strength of classifier-free guidance.
        sampling_seed: of the noise of the samples.
        sampling_batch: samples drawn at once, on which with the seed the noise depends; 0 where it is not known.
        pairs: of samples, and of the reference, that distances between pairs (KID, precision, recall) are taken from.
        distance: what the Fréchet distance is called, "FID" in Inception's features alone.
        reference: name and hash of the reference.
        reference_images: number of images in it.
        reference_sha256: its whole hash.
        network: name of the feature network, which ends in its hash.
        network_sha256: its whole hash.
        features: their number.
        resize: how images were resized for it.
        caution: what must be said of the data.
    """

    samples: int
    sampler: str
    evaluations: int
    guidance: float
    sampling_seed: int
    sampling_batch: int
    pairs: tuple[int, int]
    distance: str
    reference: str
    reference_images: int
    reference_sha256: str
    network: str
    network_sha256: str
    features: int
    resize: str
    caution: str

    @classmethod
    def of(cls, seen: Gathered, reference: Reference, drawn: Drawn | None = None) -> "Protocol":
        """That of comparing samples, or real images where ``drawn`` is None, with a reference."""
        drawn = drawn or Drawn(sampler="", evaluations=0)
        return cls(
            samples=seen.statistics.count,
            sampler=drawn.sampler,
            evaluations=drawn.evaluations,
            guidance=drawn.guidance,
            sampling_seed=drawn.seed,
            sampling_batch=drawn.batch_size,
            pairs=(len(seen.reservoir.rows), len(reference.features)),
            distance=reference.distance,
            reference=f"{reference.data} {reference.sha256[:6]}",
            reference_images=reference.statistics.count,
            reference_sha256=reference.sha256,
            network=reference.network,
            network_sha256=reference.network_sha256,
            features=len(reference.statistics.mean),
            resize=reference.resize,
            caution=reference.caution,
        )

    @property
    def caption(self) -> str:
        """All of it in one line."""
        guided = f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        batches = f" in batches of {self.sampling_batch}" * bool(self.sampling_batch)
        seed = f"seed {self.sampling_seed}{batches}"
        how = f"samples by {self.sampler}, {self.evaluations} evaluations each{guided}, {seed}"
        some = f"; kernel distance, precision and recall from {self.pairs[0]:,} and {self.pairs[1]:,} of them"
        fewer = all(self.pairs) and self.pairs != (self.samples, self.reference_images)
        return (
            f"{self.distance}: {self.samples:,} {how if self.sampler else 'real images'}; against "
            f"{self.reference_images:,} images, {self.reference}{some * fewer}; {self.features:,} features of the "
            f"{self.network}; resizing: {self.resize}{'; ' * bool(self.caution)}{self.caution}."
        )


@dataclass(frozen=True)
class Evaluation:
    """How far a set of samples is from a reference, and what must be said beside it.

    What cannot be told is NaN: distances between pairs where only statistics of the reference are known, the score
    where the feature network has no classes.

    Attributes:
        frechet: Fréchet distance, by the name that the protocol has for it.
        kid: kernel distance, unbiased.
        kid_error: its standard error.
        precision: share of samples inside the manifold of the reference.
        recall: share of the reference inside the manifold of the samples.
        score: the Inception Score in Inception's classes, the same formula in those of another network.
        score_deviation: its standard deviation over the parts of the set.
        protocol: what must be said beside them.
    """

    frechet: float
    kid: float
    kid_error: float
    precision: float
    recall: float
    score: float
    score_deviation: float
    protocol: Protocol

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.protocol.samples

    @property
    def reference(self) -> str:
        """Name and hash of the reference."""
        return self.protocol.reference

    @property
    def network(self) -> str:
        """Name of the feature network."""
        return self.protocol.network

    def row(self) -> dict[str, str | int | float]:
        """Numbers and protocol as one row of a table."""
        numbers = asdict(self)
        protocol = numbers.pop("protocol")
        samples, reference = protocol.pop("pairs")
        return numbers | protocol | {"pair_samples": samples, "pair_reference_images": reference}


def compare(seen: Tensor | Gathered, reference: Reference, drawn: Drawn | None = None) -> Evaluation:
    """Compare samples with a reference.

    Args:
        seen: what was gathered of the samples, or all of their features, shape (M, F).
        reference: what they are compared with.
        drawn: how they were drawn; None for real images.
    """
    if isinstance(seen, Tensor):
        features, seen = seen, Gathered(keep=len(seen))
        seen.update(Seen(features))
    score = seen.classes.score() or Score(math.nan, math.nan)
    return Evaluation(
        frechet=frechet_distance(reference.statistics, seen.statistics),
        **_pairwise(reference.features, seen.reservoir.rows),
        score=score.value,
        score_deviation=score.deviation,
        protocol=Protocol.of(seen, reference, drawn),
    )


def _pairwise(real: Tensor, fake: Tensor) -> dict[str, float]:
    """What pairs of features tell, NaN where there are none."""
    if not len(real):
        return dict.fromkeys(("kid", "kid_error", "precision", "recall"), math.nan)
    distance, manifold = kid(real, fake), precision_recall(real, fake)
    return {"kid": distance.value, "kid_error": distance.standard_error} | manifold._asdict()


def floor(data: ImageData, reference: Reference, network: FeatureNetwork, count: int, seed: int = 0) -> Evaluation:
    """The same comparison for real images: what remains of a distance when samples are perfect, only finitely many.

    A Fréchet distance is biased upwards, the more the fewer samples there are, so it belongs beside every distance of
    the same number of samples.

    Args:
        data: real images that are not in the reference, such as the other split.
        reference: what samples are compared with.
        network: the feature network of the reference.
        count: the number of samples; all images are taken where there are no more, as the protocol then says.
        seed: of the choice of images.

    Raises:
        ValueError: when the data are the reference itself.
    """
    if data.sha256 == reference.sha256:
        raise ValueError(
            f"the floor compares different real images; {data.name} is the reference. Take the other split."
        )
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    batches = (data.images[index] for index in chosen.split(500))
    return compare(gather(batches, network, data.levels), reference)


def nearest(train: Tensor, samples: Tensor, batch_size: int = 256, tile: int = 5000) -> tuple[Tensor, Tensor]:
    """The nearest training image of each sample: a look at what was learned by heart.

    Args:
        train: shape (N, \\*), in the scale of ``samples``.
        samples: shape (M, \\*).
        batch_size: samples at once.
        tile: training images at once.

    Returns:
        Index into ``train``, int64 (M,), and L2 distance in the units of the images, shape (M,).
    """
    require_same_shape("the first sample", samples[0], "the first training image", train[0])
    found = [_nearest(train, batch.flatten(1).double(), tile) for batch in samples.split(batch_size)]
    return torch.cat([index for index, _ in found]), torch.cat([distance for _, distance in found])


def _nearest(train: Tensor, batch: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """:func:`nearest` for one batch, shape (B, D)."""
    index = torch.zeros(len(batch), dtype=torch.int64)
    distance = torch.full((len(batch),), math.inf, dtype=torch.float64)
    for start, images in zip(range(0, len(train), tile), train.split(tile), strict=True):
        found = torch.cdist(batch, images.flatten(1).double()).min(1)
        closer = found.values < distance
        index = torch.where(closer, found.indices + start, index)
        distance = torch.where(closer, found.values, distance)
    return index, distance


@torch.no_grad()
def errors_by_level(
    network: ConditionedNetwork,
    prediction: Prediction,
    data: ImageData,
    levels: Tensor,
    *,
    draws: int = 1,
    conditional: bool = True,
    seed: int = 0,
    batch_size: int = 1000,
) -> Tensor:
    r"""The error of ε̂ at each level, :math:`E_{x,\epsilon}\|\hat\epsilon(z_\lambda;\lambda) - \epsilon\|^2`.

    The noise depends on ``seed`` alone: networks, levels and sizes of batches see the same.

    Args:
        network: a module ``network(z, logsnr, label=…)``; it is put into evaluation mode.
        prediction: what it predicts.
        data: the images, all of which are used.
        levels: log-SNR, shape (L,).
        draws: noise draws for each image.
        conditional: whether the network is told the labels.
        seed: of the noise.
        batch_size: images at once.

    Returns:
        Mean of the squared error, summed over the dimensions of the data, shape (L,), float64.
    """
    network.eval()
    device = next(network.parameters()).device
    total = torch.zeros(len(levels), dtype=torch.float64)
    for draw in range(draws):
        generator = seeded(seed, "errors", draw, device=device)
        noise = torch.randn(data.images.shape, generator=generator, device=device)
        for images, labels, eps in zip(
            *(part.split(batch_size) for part in (data.images, data.labels, noise)), strict=True
        ):
            x = scale(images.to(device), data.levels)
            conditioning = {"label": labels.to(device)} if conditional else {}
            for index, level in enumerate(levels.to(device, x.dtype)):
                z, logsnr = diffuse(x, eps, level), level.expand(len(x))
                eps_hat = prediction.to_eps(network(z, logsnr, **conditioning), z, logsnr)
                require_finite_at("ε̂", eps_hat, logsnr)
                total[index] += (eps_hat - eps).double().square().sum().cpu()
    return total / (draws * len(data))
