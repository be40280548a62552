"""Training of the packaged classifiers.  ``python -m tools.classifiers digits``, or ``cifar10`` and a folder of data

The weights go where :mod:`paperlib.engine.features` reads them, which holds their hashes.
"""

import argparse
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib.engine.data import ImageData, load
from paperlib.engine.features import Cifar10Classifier, Classifier, DigitsClassifier
from paperlib.models import weights

Network = TypeVar("Network", bound=Classifier)


def train_digits(steps: int = 1500, batch_size: int = 128, seed: int = 0) -> DigitsClassifier:
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
        loss = F.cross_entropy(network.logits(network.features(_shifted(x[index], generator))), train.labels[index])
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


def train_cifar10(
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
    optimiser = torch.optim.SGD(network.parameters(), lr=0.4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(x) // batch_size)
    peak = max(1, steps // 5)  # the rate rises linearly until there, and falls linearly to zero
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / peak, (steps - step) / (steps - peak + 1))
    )
    for index in _epochs(len(x), batch_size, epochs, generator):
        with torch.autocast("cpu", torch.bfloat16):
            features = network.body(_mirrored_and_moved(x[index], 2, generator))
        logits = network.head(network.norm(features.float()))
        optimiser.zero_grad()
        F.cross_entropy(logits, train.labels[index], label_smoothing=0.1).backward()
        optimiser.step()
        rate.step()
    _standardise(network.to(memory_format=torch.contiguous_format), x)
    sizes = {"32": "cifar10", "16": "cifar10-16", "8": "cifar10-8"}
    accuracy = {size: _accuracy(network, load(name, "test", root)) for size, name in sizes.items()}
    trained_on = {"name": train.name, "sha256": train.sha256, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    network.card = {
        "name": "classifier of CIFAR-10, for features; distances in them are not FID",
        "trained_on": trained_on,
        "caution": train.caution,
        "train_accuracy": _accuracy(network, train),
        "test_accuracy": accuracy["32"],
        "test_accuracy_by_size": accuracy,
    }
    return network


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


def _fresh(make: Callable[[], Network], seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _standardise(network: Classifier, x: Tensor) -> None:
    """Give every feature mean zero and variance one over ``x``; the network is in evaluation mode after it."""
    network.eval()
    with torch.no_grad():
        features = torch.cat([network.body(part) for part in x.split(network.batch)])
    network.norm.running_mean, network.norm.running_var = features.mean(0), features.var(0)


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved by −1, 0 or 1 pixels along each axis, black coming in; one draw a batch, shape (B, 1, H, W)."""
    down, right = torch.randint(3, (2,), generator=generator).tolist()
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    return padded[..., down : down + x.shape[-2], right : right + x.shape[-1]]


def _accuracy(network: Classifier, data: ImageData) -> float:
    return (network.classify(data.images) == data.labels).double().mean().item()


def main() -> None:
    """Train a classifier and put its weights where the library reads them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["digits", "cifar10"])
    parser.add_argument("data", nargs="?", type=Path)
    options = parser.parse_args()
    network: Classifier = train_digits() if options.name == "digits" else train_cifar10(root=options.data)
    path = Path(str(files("paperlib.engine") / "assets" / network.file))
    weights.save_weights(path, network, network.card)
    print(network.card)


if __name__ == "__main__":
    main()
