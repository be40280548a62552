"""Feature networks: what images are seen through when two sets of them are compared.

:func:`digits_classifier` is a small classifier of scikit-learn's digits, trained once on the training split by
:func:`train_digits_classifier` and packaged with its hash.  **A Fréchet distance in its features is not FID**, and may
be compared with nothing but distances in the same features: its name, with the first digits of its hash, belongs
beside every number.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paperlib.engine import checkpoints
from paperlib.engine.data import ImageData, load, scale

DIGITS_WEIGHTS_SHA256 = "b1c2cf48085ef959f825070ce947b2566a3b1722453620d434e0c7c49594cbd9"
"""Hash of the packaged weights."""


class FeatureNetwork(Protocol):
    """What a distance needs of a network.

    Attributes:
        name: what to print beside a distance.
        sha256: hash of the weights.
    """

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor:
        """Features, shape (N, F), of uint8 images, shape (N, C, H, W)."""
        ...


class DigitsClassifier(nn.Module):
    """A convolutional classifier of 8×8 digits.  Its 28 features are its last hidden layer, before the nonlinearity.

    Over the training split each has mean zero and variance one.  There are 28, so that the 297 images of the test split
    are more than ten to a feature, the least that a covariance needs.
    """

    levels = 17

    def __init__(self) -> None:
        super().__init__()
        self.sha256 = ""
        self.card: dict[str, Any] = {}
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 28),
        )
        self.norm = nn.BatchNorm1d(28, affine=False)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(28, 10))

    @property
    def name(self) -> str:
        return f"digits classifier {self.sha256[:6]}"

    def logits(self, x: Tensor) -> Tensor:
        """Class logits, shape (N, 10), of images in [−1, 1], shape (N, 1, 8, 8)."""
        return self.head(self.norm(self.body(x)))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features, shape (N, 28), of uint8 images with 17 levels of grey, shape (N, 1, 8, 8).

        Raises:
            TypeError: for anything but uint8.
            ValueError: for another shape, or values above 16.
        """
        return self.norm(self.body(self._scaled(images)))

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """The likeliest class, int64 (N,), of uint8 images with 17 levels of grey, shape (N, 1, 8, 8)."""
        return self.logits(self._scaled(images)).argmax(1)

    def _scaled(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}; use data.to_uint8(x, levels=17).")
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(f"images must have shape (N, 1, 8, 8), got {tuple(images.shape)}.")
        if images.numel() and images.max() >= self.levels:
            raise ValueError(f"digits have 17 levels, 0 … 16; got {images.max().item()}. Use to_uint8(x, levels=17).")
        return scale(images, self.levels).to(next(self.parameters()).device)


@cache
def digits_classifier() -> DigitsClassifier:
    """The packaged classifier.

    Raises:
        DamagedFileError: when the packaged weights are not the ones whose hash this module knows.
    """
    path = Path(str(files("paperlib.engine") / "assets" / "digits_classifier.safetensors"))
    network = DigitsClassifier()
    network.card = checkpoints.load_weights(path, network)
    network.sha256 = network.card["weights_sha256"]
    if network.sha256 != DIGITS_WEIGHTS_SHA256:
        raise checkpoints.DamagedFileError(
            f"{path} has hash {network.sha256[:12]}, this version of paperlib knows {DIGITS_WEIGHTS_SHA256[:12]}: "
            f"distances would not be comparable. Install paperlib again."
        )
    return network.eval().requires_grad_(False)


def train_digits_classifier(steps: int = 1500, batch_size: int = 128, seed: int = 0) -> DigitsClassifier:
    """Train the classifier on the training split, images shifted by up to a pixel.  About ten seconds.

    Returns:
        The network, with its accuracy on both splits in its ``card``.
    """
    train, test = load("digits", "train"), load("digits", "test")
    x, generator = train.scaled(), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsClassifier()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        index = torch.randint(len(train), (batch_size,), generator=generator)
        loss = nn.functional.cross_entropy(network.logits(_shifted(x[index], generator)), train.labels[index])
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


def _standardise(network: DigitsClassifier, x: Tensor) -> None:
    """Give every feature mean zero and variance one over ``x``; the network is in evaluation mode after it."""
    network.norm.momentum = 1.0
    with torch.no_grad():
        network.logits(x)
    network.eval()


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved by −1, 0 or 1 pixels along each axis, black coming in; one draw a batch, shape (B, 1, H, W)."""
    down, right = torch.randint(3, (2,), generator=generator).tolist()
    padded = nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    return padded[..., down : down + x.shape[-2], right : right + x.shape[-1]]


def _accuracy(network: DigitsClassifier, data: ImageData) -> float:
    return (network.classify(data.images) == data.labels).double().mean().item()
