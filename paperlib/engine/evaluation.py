"""Samples of a network, what they are compared with, and the record of the comparison.

Images pass through a feature network batch by batch; their features lie in memory together.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from paperlib.checks import require_finite_at, require_same_shape
from paperlib.engine import sampling
from paperlib.engine.data import ImageData, scale, to_uint8
from paperlib.engine.features import FeatureNetwork
from paperlib.engine.metrics import SPLITS, Estimate, Moments, frechet_distance, inception_score, kid, precision_recall
from paperlib.engine.randomness import noise, seeded
from paperlib.engine.recipe import loss_scale
from paperlib.models import ConditionedNetwork
from paperlib.objectives import WeightedLoss, low_discrepancy_time
from paperlib.predictions import Prediction
from paperlib.process import diffuse

PAIRS = 10_000
"""Rows of features, of a larger set a random choice, that distances between pairs (KID, precision, recall) are of."""

BATCH = 500
"""Real images that are shown to a feature network at once."""

NOT_KNOWN = Estimate(math.nan, math.nan)


# Samples -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Drawing:
    """How samples are drawn.

    Attributes:
        sampler: one of :data:`paperlib.engine.sampling.SAMPLERS`; with other options it is one more of them, such as
            ``partial(heun, churn=40)``.
        levels: increasing log-SNR, from :func:`paperlib.engine.sampling.levels`.
        guidance: strength of classifier-free guidance, 1 for none.
        seed: of the noise; a batch depends on it, on its own number and on ``batch_size`` alone.
        batch_size: images at once.
    """

    sampler: str
    levels: Tensor
    guidance: float = 1.0
    seed: int = 0
    batch_size: int = 256

    def samples(self, network: ConditionedNetwork, prediction: Prediction, labels: Tensor) -> Iterator[Tensor]:
        """Samples, one for each label, in batches.

        Args:
            network: a module ``network(z, logsnr, label=…)`` with ``image_shape``, put into evaluation mode.
            prediction: what it predicts.
            labels: classes, int64 (N,); ``network.num_classes`` asks for the null class.

        Yields:
            x in about [−1, 1], shape (≤ batch_size, C, H, W), on the device of the network.

        Raises:
            TypeError: for a network that does not say the shape of its images.
        """
        if not hasattr(network, "image_shape"):
            raise TypeError(f"{type(network).__name__} has no image_shape; set network.image_shape = (C, H, W).")
        sample, device = sampling.get(self.sampler), next(network.parameters()).device
        network.eval()
        for number, label in enumerate(labels.to(device).split(self.batch_size)):
            generator = seeded(self.seed, "samples", number, device=device)
            z = torch.randn(len(label), *network.image_shape, generator=generator, device=device)
            denoise = sampling.NetworkDenoiser(network, prediction, label, self.guidance)
            yield sample(denoise, z, self.levels, generator=generator)

    @property
    def evaluations(self) -> int:
        """How often a sample asks the denoiser, counted on one number; guidance doubles those of the network."""
        asked = 0

        def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
            nonlocal asked
            asked += 1
            return z

        generator = torch.Generator().manual_seed(0)
        sampling.get(self.sampler)(denoise, torch.zeros(1, 1), self.levels.cpu(), generator=generator)
        return asked


# What they are compared with -----------------------------------------------------------------------------------------


def see(images: Iterable[Tensor], network: FeatureNetwork, levels: int) -> Tensor:
    """Features of images, batch by batch, shape (N, F), on the CPU.

    Args:
        images: batches; uint8 with ``levels`` values, or real numbers in [−1, 1], which are rounded to these as the
            data are.  Shape (≤ B, C, H, W).
        network: the feature network.
        levels: number of values that a pixel can take.

    Raises:
        ValueError: when the network sees images of another number of levels.
    """
    if levels != network.levels:
        raise ValueError(
            f"the images have {levels} levels, {network.name} sees {network.levels}: a Fréchet distance would be that "
            f"of darkened images. Choose a feature network for these images."
        )
    batches = (to_uint8(batch.cpu(), levels) if batch.is_floating_point() else batch for batch in images)
    return torch.cat([network(batch).cpu() for batch in batches])


@dataclass(frozen=True, eq=False)
class Reference:
    """A set of real images as a feature network sees it.

    Attributes:
        network: the feature network.
        data: name of the data and split.
        sha256: their hash.
        moments: of the features of all images.
        pairs: features, shape (≤ :data:`PAIRS`, F); None where moments alone are known.
        caution: what must be said of the data.
    """

    network: FeatureNetwork
    data: str
    sha256: str
    moments: Moments
    pairs: Tensor | None = None
    caution: str = ""

    @classmethod
    def of(cls, data: ImageData, network: FeatureNetwork) -> "Reference":
        """The reference that a data set is."""
        features = see(data.images.split(BATCH), network, data.levels)
        return cls(network, data.name, data.sha256, Moments.of(features), _pairs(features), data.caution)


def _pairs(features: Tensor) -> Tensor:
    """At most :data:`PAIRS` rows, a random choice that is always the same, in their order."""
    if len(features) <= PAIRS:
        return features
    drawn = torch.rand(len(features), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return features[drawn.topk(PAIRS, largest=False).indices.sort().values]


# The comparison ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """How far a set of samples is from a reference, and what must be said beside it: a row of a table.

    What cannot be told is NaN: distances between pairs where only moments of the reference are known, the score where
    it was not asked for or there are few samples.

    Attributes:
        frechet: Fréchet distance, by the name that ``distance`` has for it.
        kid, kid_error: kernel distance, unbiased, and its standard error.
        precision, recall: shares of the samples, and of the reference, inside the manifold of the other.
        score, score_deviation: the Inception Score in Inception's classes, the same formula in those of another
            network; mean and deviation over parts of the set.
        samples: their number.
        sampler: of the samples, or where they are from; empty for real images.
        evaluations, guidance, sampling_seed, sampling_batch: how they were drawn, as in :class:`Drawing`; nothing is
            said of those that were not drawn here.
        distance: what the Fréchet distance is called, "FID" in Inception's features alone.
        reference, reference_images, reference_sha256: name of the reference, number of its images, and their hash.
        network, network_sha256, features: name of the feature network, its hash, and how many features it has.
        resize: how images were resized for it.
        caution: what must be said of the data.
        pair_samples, pair_reference_images: how many images of either set distances between pairs are of.
    """

    frechet: float
    kid: float
    kid_error: float
    precision: float
    recall: float
    score: float
    score_deviation: float
    samples: int
    sampler: str
    evaluations: int
    guidance: float
    sampling_seed: int
    sampling_batch: int
    distance: str
    reference: str
    reference_images: int
    reference_sha256: str
    network: str
    network_sha256: str
    features: int
    resize: str
    caution: str
    pair_samples: int
    pair_reference_images: int

    def row(self) -> dict[str, str | int | float]:
        """All of it, as one row of a table."""
        return asdict(self)

    @property
    def caption(self) -> str:
        """What a number depends on, in one line."""
        guided = f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        how = f"samples of {self.sampler}" if self.sampler else "real images"
        if self.evaluations:
            how = (
                f"samples by {self.sampler}, {self.evaluations} evaluations each{guided}, seed {self.sampling_seed} in "
                f"batches of {self.sampling_batch}"
            )
        pairs = (self.pair_samples, self.pair_reference_images)
        some = f"; kernel distance, precision and recall from {pairs[0]:,} and {pairs[1]:,} of them"
        fewer = pairs[1] > 0 and pairs != (self.samples, self.reference_images)
        return (
            f"{self.distance}: {self.samples:,} {how}; against "
            f"{self.reference_images:,} images, {self.reference}{some * fewer}; {self.features:,} features of the "
            f"{self.network}; resizing: {self.resize}{'; ' * bool(self.caution)}{self.caution}."
        )


def compare(
    features: Tensor, reference: Reference, drawing: Drawing | str | None = None, *, score: bool = False
) -> Evaluation:
    """Compare samples with a reference.

    Args:
        features: of the samples, by the feature network of the reference, shape (M, F).
        reference: what they are compared with.
        drawing: how they were drawn, or where they are from if it was not here; None for real images.
        score: whether to ask for the score too.
    """
    pairs, distance, shares = _pairs(features), NOT_KNOWN, (math.nan, math.nan)
    if reference.pairs is not None:
        distance, shares = kid(reference.pairs, pairs), precision_recall(reference.pairs, pairs)
    network, drawn = reference.network, drawing if isinstance(drawing, Drawing) else None
    asked = score and len(features) >= SPLITS
    classes = inception_score(network.probabilities(features).cpu()) if asked else NOT_KNOWN
    return Evaluation(
        frechet=frechet_distance(reference.moments, Moments.of(features)),
        kid=distance.value,
        kid_error=distance.error,
        precision=shares[0],
        recall=shares[1],
        score=classes.value,
        score_deviation=classes.error,
        samples=len(features),
        sampler=drawing.sampler if isinstance(drawing, Drawing) else drawing or "",
        evaluations=drawn.evaluations if drawn else 0,
        guidance=drawn.guidance if drawn else 1.0,
        sampling_seed=drawn.seed if drawn else 0,
        sampling_batch=drawn.batch_size if drawn else 0,
        distance=network.distance,
        reference=f"{reference.data} {reference.sha256[:6]}",
        reference_images=reference.moments.count,
        reference_sha256=reference.sha256,
        network=network.name,
        network_sha256=network.sha256,
        features=len(reference.moments.mean),
        resize=network.resize,
        caution=reference.caution,
        pair_samples=len(pairs),
        pair_reference_images=0 if reference.pairs is None else len(reference.pairs),
    )


def floor(data: ImageData, reference: Reference, count: int, seed: int = 0) -> Evaluation:
    """The same comparison for real images: what remains of a distance when samples are perfect, only finitely many.

    A Fréchet distance is biased upwards, the more the fewer samples there are, so it belongs beside every distance of
    the same number of samples.

    Args:
        data: real images that are not in the reference, such as the other split.
        reference: what samples are compared with.
        count: the number of samples; all images are taken where there are no more, as the caption then says.
        seed: of the choice of images.

    Raises:
        ValueError: when the data are the reference itself.
    """
    if data.sha256 == reference.sha256:
        raise ValueError(
            f"the floor compares different real images; {data.name} is the reference. Take the other split."
        )
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    batches = (data.images[index] for index in chosen.split(BATCH))
    return compare(see(batches, reference.network, data.levels), reference, score=True)


# Measurements of a network -------------------------------------------------------------------------------------------


def nearest(train: Tensor, samples: Tensor, batch_size: int = 256, tile: int = 5000) -> tuple[Tensor, Tensor]:
    """The nearest image of ``train`` (N, \\*) to each of ``samples`` (M, \\*): a look at what was learned by heart.

    The index, int64 (M,), and the L2 distance in the units of the images, float64 (M,); ``batch_size`` samples and
    ``tile`` training images are compared at once.
    """
    require_same_shape("the first sample", samples[0], "the first training image", train[0])
    indices, distances = [], []
    for batch in samples.split(batch_size):
        rows = batch.flatten(1).double()
        found = [torch.cdist(rows, images.flatten(1).double()).min(1) for images in train.split(tile)]
        distance, which = torch.stack([each.values for each in found]).min(0)
        indices.append(torch.stack([each.indices for each in found]).gather(0, which[None])[0] + tile * which)
        distances.append(distance)
    return torch.cat(indices), torch.cat(distances)


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

    The noise depends on ``seed`` alone: networks, ``levels`` (L,) and sizes of batches see the same.  The network is
    put into evaluation mode; other arguments as in :func:`paperlib.engine.likelihood.image_elbo`.

    Returns:
        Mean over all images of the squared error, summed over the dimensions of the data, shape (L,), float64.
    """
    network.eval()
    device = next(network.parameters()).device
    total = torch.zeros(len(levels), dtype=torch.float64)
    for draw in range(draws):
        generator = seeded(seed, "errors", draw, device=device)
        drawn = torch.randn(data.images.shape, generator=generator, device=device)
        for images, labels, eps in zip(
            *(part.split(batch_size) for part in (data.images, data.labels, drawn)), strict=True
        ):
            x = scale(images.to(device), data.levels)
            conditioning = {"label": labels.to(device)} if conditional else {}
            for index, level in enumerate(levels.to(device, x.dtype)):
                z, logsnr = diffuse(x, eps, level), level.expand(len(x))
                eps_hat = prediction.to_eps(network(z, logsnr, **conditioning), z, logsnr)
                require_finite_at("ε̂", eps_hat, logsnr)
                total[index] += (eps_hat - eps).double().square().sum().cpu()
    return total / (draws * len(data))


class GradientNoise(NamedTuple):
    """tr Cov g and ‖E g‖² of the gradient g of a batch, unbiased: the second may be negative where all is noise."""

    trace: float
    squared_mean: float


def gradient_noise(
    network: ConditionedNetwork,
    loss: WeightedLoss,
    data: ImageData,
    *,
    batch_size: int,
    batches: int,
    seed: int = 0,
) -> GradientNoise:
    r"""Covariance and mean of the gradient at the present weights: what a noise schedule is chosen for.

    The schedule leaves :math:`L_w` and so the mean of its gradient alone (Equation 4 of the paper); it changes the
    covariance of the gradient of a batch, and with it how many steps training takes (Section 5, Appendix F).  Images
    (drawn with replacement), times and noise depend on ``seed`` alone: losses under two schedules are compared on the
    same draws.

    Args:
        network: the network, which stays as it is.
        loss: the weighted loss, taken over :func:`~paperlib.engine.recipe.loss_scale`; an adaptive schedule in it stays
            as it is.
        data: where the images come from.
        batch_size: images in a batch.
        batches: gradients to take, 2 at least.
        seed: of all that is drawn.

    Raises:
        ValueError: for fewer than two batches, which have no covariance.
    """
    if batches < 2:
        raise ValueError(f"batches must be 2 or more for a covariance, got {batches}.")
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    device, total, squares = weights[0].device, torch.zeros(()), 0.0
    for number in range(batches):
        index = torch.randint(len(data), (batch_size,), generator=seeded(seed, "gradient", number))
        x, label = scale(data.images[index], data.levels).to(device), data.labels[index].to(device)
        t = low_discrepancy_time(batch_size, generator=seeded(seed, "step", number)).to(device)
        eps = noise(seed, number, range(batch_size), x.shape[1:], device=device)
        value = loss(network, x, t=t, eps=eps, label=label if network.num_classes else None).mean()
        parts = torch.autograd.grad(value / loss_scale(loss, x[0].numel()), weights)
        gradient = torch.cat([part.flatten() for part in parts]).double()
        total, squares = total + gradient, squares + gradient.square().sum().item()
    squared = (total / batches).square().sum().item()
    trace = (squares - batches * squared) / (batches - 1)
    return GradientNoise(trace, squared - trace / batches)
