"""Feature networks: what images are seen through when two sets of them are compared.

:func:`digits_classifier` and :func:`cifar10_classifier` are small classifiers, trained once on the training split of
their data by :func:`train_digits_classifier` and :func:`train_cifar10_classifier`, and packaged with their hashes.  **A
Fréchet distance in their features is not FID**, and may be compared with nothing but distances in the same features:
the name, with the first digits of the hash, belongs beside every number.  Inception is in
:mod:`paperlib.engine.inception`.
"""

from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.engine.data import ImageData, load, scale
from paperlib.engine.gathering import Seen
from paperlib.files import DamagedFileError
from paperlib.models import weights

DIGITS_WEIGHTS_SHA256 = "b1c2cf48085ef959f825070ce947b2566a3b1722453620d434e0c7c49594cbd9"
CIFAR10_WEIGHTS_SHA256 = "e86e77d90d7264a5d1bbd5bb2258b852c0a368f9782bb4f6893b0177a656a465"
"""Hashes of the packaged weights."""

BATCH = 500
"""Images that a classifier sees at once."""


class FeatureNetwork(Protocol):
    """What a comparison needs of a network.

    Attributes:
        name: what to print beside a distance.
        sha256: hash of the weights.
        distance: what a Fréchet distance in its features is called.
        levels: number of values that a pixel of its images can take.
        resize: how images of another size are brought to its own.
    """

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def distance(self) -> str: ...

    @property
    def levels(self) -> int: ...

    @property
    def resize(self) -> str: ...

    def see(self, images: Tensor) -> Seen:
        """Features, shape (N, F), and class probabilities of uint8 images, shape (N, C, H, W)."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """The features alone."""
        ...


# Classifiers ---------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A small classifier of ten classes.  Its features are its last hidden layer, before the nonlinearity.

    Over the training split each has mean zero and variance one.

    Args:
        body: images in [−1, 1] to (N, ``features``).
        features: their number.

    Attributes:
        card: what the weights are, and their accuracies.
    """

    title: ClassVar[str]
    levels: ClassVar[int]
    image_shape: ClassVar[tuple[int, int, int]]
    resize: ClassVar[str] = "none"

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.sha256 = ""
        self.card: dict[str, Any] = {}
        self.body = body
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(features, 10))

    @property
    def name(self) -> str:
        return f"{self.title} {self.sha256[:6]}"

    @property
    def distance(self) -> str:
        return f"Fréchet distance, {self.name}"

    def logits(self, x: Tensor) -> Tensor:
        """Class logits, shape (N, 10), of images in [−1, 1], shape (N, C, H, W)."""
        return self.head(self.norm(self.body(x)))

    @torch.no_grad()
    def see(self, images: Tensor) -> Seen:
        """Features, shape (N, F), and class probabilities, shape (N, 10), of uint8 images, shape (N, C, H, W).

        Raises:
            TypeError: for anything but uint8.
            ValueError: for another shape, or values that are none of the ``levels``.
        """
        self._require_images(images)
        device = next(self.parameters()).device
        features = [
            self.norm(self.body(self._resized(scale(part.to(device), self.levels)))) for part in images.split(BATCH)
        ]
        return Seen(torch.cat(features), self.head(torch.cat(features)).softmax(1))

    def forward(self, images: Tensor) -> Tensor:
        """The features of :meth:`see`."""
        return self.see(images).features

    def classify(self, images: Tensor) -> Tensor:
        """The likeliest class, int64 (N,), of images as :meth:`see` takes them."""
        probabilities = self.see(images).probabilities
        assert probabilities is not None
        return probabilities.argmax(1)

    def _resized(self, x: Tensor) -> Tensor:
        return x

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return shape == self.image_shape

    def _require_images(self, images: Tensor) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}; use data.to_uint8(x, levels={self.levels}).")
        if images.ndim != 4 or not self._fits(tuple(images.shape[1:])):
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must have shape (N, {wanted}), got {tuple(images.shape)}; see {self.title}.")
        if images.numel() and int(images.max()) >= self.levels:  # as an integer: 256 does not fit into uint8
            raise ValueError(
                f"the {self.title} sees {self.levels} levels, 0 … {self.levels - 1}; got {images.max().item()}. "
                f"Use to_uint8(x, levels={self.levels})."
            )


Network = TypeVar("Network", bound=Classifier)


class DigitsClassifier(Classifier):
    """A convolutional classifier of 8×8 digits with 17 levels of grey, 28 features.

    There are 28, so that the 297 images of the test split are more than ten to a feature, the least that a covariance
    needs.
    """

    title = "digits classifier"
    levels = 17
    image_shape = (1, 8, 8)

    def __init__(self) -> None:
        body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 28),
        )
        super().__init__(body, 28)


class Cifar10Classifier(Classifier):
    """A convolutional classifier of 32×32 photographs, 64 features.

    There are 64 features, so that 640 samples are enough for a covariance.  Images of 16×16 and
    8×8 pixels are enlarged; it was trained on none of these, and knows fewer of them.
    """

    title = "CIFAR-10 classifier"
    levels = 256
    image_shape = (3, 32, 32)
    resize = "none at 32×32; 16×16 and 8×8 bicubic to 32×32"

    def __init__(self, width: int = 64) -> None:
        body = nn.Sequential(
            nn.Conv2d(3, 24, 2, stride=2),
            nn.GELU(),
            _block(24, width),
            _block(width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 64),
        )
        super().__init__(body, 64)

    def _resized(self, x: Tensor) -> Tensor:
        return x if x.shape[-1] == 32 else F.interpolate(x, size=(32, 32), mode="bicubic").clamp(-1, 1)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return shape in {(3, size, size) for size in (8, 16, 32)}


def _block(inputs: int, outputs: int) -> nn.Module:
    """Two convolutions, the first with its output halved in size."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
    )


@cache
def digits_classifier() -> DigitsClassifier:
    """The packaged classifier of digits.

    Raises:
        DamagedFileError: when the packaged weights are not the ones whose hash this module knows.
    """
    return _packaged(DigitsClassifier(), "digits_classifier.safetensors", DIGITS_WEIGHTS_SHA256)


@cache
def cifar10_classifier() -> Cifar10Classifier:
    """The packaged classifier of CIFAR-10; its ``card`` says which copy of the images it was trained on.

    Raises:
        DamagedFileError: when the packaged weights are not the ones whose hash this module knows.
    """
    return _packaged(Cifar10Classifier(), "cifar10_classifier.safetensors", CIFAR10_WEIGHTS_SHA256)


def _packaged(network: Network, name: str, sha256: str) -> Network:
    path = Path(str(files("paperlib.engine") / "assets" / name))
    network.card = weights.load_weights(path, network)
    network.sha256 = network.card["weights_sha256"]
    if network.sha256 != sha256:
        raise DamagedFileError(
            f"{path} has hash {network.sha256[:12]}, this version of paperlib knows {sha256[:12]}: distances would "
            f"not be comparable. Install paperlib again."
        )
    return network.eval().requires_grad_(False)


CLASSIFIERS: dict[str, Callable[[], FeatureNetwork]] = {
    "digits": digits_classifier,
    "cifar10": cifar10_classifier,
    "cifar10-16": cifar10_classifier,
    "cifar10-8": cifar10_classifier,
}
"""The classifier in whose features samples of a data set can be compared without Inception."""


def classifier_of(data: str) -> FeatureNetwork:
    """The classifier of a data set, by its name in :data:`paperlib.engine.data.DATASETS`.

    Raises:
        ValueError: for data without one; the message lists those that have one.
    """
    if data not in CLASSIFIERS:
        raise ValueError(
            f"no packaged classifier sees {data!r} images; there is one for {', '.join(CLASSIFIERS)}. For others use "
            f"Inception (paperlib.engine.inception; on the command line: --features inception)."
        )
    return CLASSIFIERS[data]()


# Training ------------------------------------------------------------------------------------------------------------


def train_digits_classifier(steps: int = 1500, batch_size: int = 128, seed: int = 0) -> DigitsClassifier:
    """Train the classifier on the training split, images shifted by up to a pixel.  About ten seconds.

    Returns:
        The network, with its accuracy on both splits in its ``card``.
    """
    train, test = load("digits", "train"), load("digits", "test")
    x, generator = train.scaled(), torch.Generator().manual_seed(seed)
    network = _fresh(DigitsClassifier, seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        index = torch.randint(len(train), (batch_size,), generator=generator)
        loss = F.cross_entropy(network.logits(_shifted(x[index], generator)), train.labels[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    _standardise(network, x)
    network.card = {
        "name": "classifier of scikit-learn's digits, for features; distances in them are not FID",
        "trained_on": {"name": train.name, "sha256": train.sha256, "steps": steps, "seed": seed},
        "train_accuracy": _accuracy(network, train),
        "test_accuracy": _accuracy(network, test),
    }
    return network


def train_cifar10_classifier(
    epochs: int = 16, batch_size: int = 500, seed: int = 0, root: Path | None = None
) -> Cifar10Classifier:
    """Train the classifier on the training split, mirrored and shifted by up to two pixels.

    About eight minutes on one thread of a processor with bf16 arithmetic.

    Args:
        epochs: passes over the training split.
        batch_size: images a step.
        seed: of initialisation, order and augmentation.
        root: folder of the files, see :func:`paperlib.engine.data.load`.

    Returns:
        The network, with its accuracies and the caution of its data in its ``card``.
    """
    train = load("cifar10", "train", root)
    x, generator = train.scaled(), torch.Generator().manual_seed(seed)
    network = _fresh(Cifar10Classifier, seed).to(memory_format=torch.channels_last)
    optimiser, rate = _cifar10_optimiser(network, epochs * (len(x) // batch_size))
    for index in _epochs(len(x), batch_size, epochs, generator):
        with torch.autocast("cpu", torch.bfloat16):
            features = network.body(_mirrored_and_moved(x[index], 2, generator))
        logits = network.head(network.norm(features.float()))
        optimiser.zero_grad()
        F.cross_entropy(logits, train.labels[index], label_smoothing=0.1).backward()
        optimiser.step()
        rate.step()
    _standardise(network.to(memory_format=torch.contiguous_format), x)
    network.card = _cifar10_card(network, train, root, {"epochs": epochs, "batch_size": batch_size, "seed": seed})
    return network


def _cifar10_optimiser(
    network: Cifar10Classifier, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Nesterov's momentum; the rate rises linearly over a fifth of the steps and falls linearly to zero."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    peak = max(1, steps // 5)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / peak, (steps - step) / (steps - peak + 1))
    )
    return optimiser, rate


def _epochs(size: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of each step, every epoch in an order of its own; what does not fill a batch is left out."""
    for _ in range(epochs):
        order = torch.randperm(size, generator=generator)
        yield from order[: size - size % batch_size].split(batch_size)


def _mirrored_and_moved(x: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) moved by up to ``reach`` pixels along each axis, half of them mirrored; a draw each."""
    count, _, height, width = x.shape
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    move = torch.randint(2 * reach + 1, (2, count, 1), generator=generator)
    rows, columns = move[0] + torch.arange(height), move[1] + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    moved = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _cifar10_card(
    network: Cifar10Classifier, train: ImageData, root: Path | None, settings: dict[str, Any]
) -> dict[str, Any]:
    names = {32: "cifar10", 16: "cifar10-16", 8: "cifar10-8"}
    accuracy = {str(size): _accuracy(network, load(name, "test", root)) for size, name in names.items()}
    return {
        "name": "classifier of CIFAR-10, for features; distances in them are not FID",
        "trained_on": {"name": train.name, "sha256": train.sha256, **settings},
        "caution": train.caution,
        "train_accuracy": _accuracy(network, train),
        "test_accuracy": accuracy["32"],
        "test_accuracy_by_size": accuracy,
    }


def _fresh(make: Callable[[], Network], seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _standardise(network: Classifier, x: Tensor) -> None:
    """Give every feature mean zero and variance one over ``x``; the network is in evaluation mode after it."""
    network.eval()
    with torch.no_grad():
        features = torch.cat([network.body(part) for part in x.split(BATCH)])
    network.norm.running_mean, network.norm.running_var = features.mean(0), features.var(0)


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved by −1, 0 or 1 pixels along each axis, black coming in; one draw a batch, shape (B, 1, H, W)."""
    down, right = torch.randint(3, (2,), generator=generator).tolist()
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    return padded[..., down : down + x.shape[-2], right : right + x.shape[-1]]


def _accuracy(network: Classifier, data: ImageData) -> float:
    return (network.classify(data.images) == data.labels).double().mean().item()
