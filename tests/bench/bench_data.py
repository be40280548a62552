"""Images a second of the data pipeline: random access to a mapped file in batches, and the decoding of photographs.

The file is made here, of noise, so that the figures need no data; it is read from memory once the system has cached it,
as the images of a training run are after their first epoch.
"""

import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Row, in_turn, main
from torch import Tensor

from paperlib.engine import data, decode

TARGET = 2000
"""Images a second that a GPU may eat of the ImageNet-64 model: what reads them must not be slower."""

IMAGES = {32: 50_000, 64: 50_000}
"""Side of the images, and how many there are: 154 and 614 MB."""

BATCH_SIZES = (128, 512, 2048)
WORKERS = (0, 1, 2)
READ = 16_384
"""Images of one measurement."""


def rows(rounds: int = 5) -> Iterator[Row]:
    """Reading, then decoding where there are photographs."""
    with tempfile.TemporaryDirectory() as folder:
        for size, count in IMAGES.items():
            yield from reading(mapped(Path(folder) / f"{size}.npy", count, size), rounds)
    yield from decoding_rates(rounds)


def mapped(path: Path, count: int, size: int) -> data.ImageData:
    """Images of noise in a mapped file."""
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 3, size, size))
    generator = np.random.default_rng(0)
    for first in range(0, count, 1000):
        file[first : first + 1000] = generator.integers(0, 256, file[first : first + 1000].shape, np.uint8)
    file.flush()
    images = torch.from_numpy(np.load(path, mmap_mode="c"))
    return data.ImageData(f"noise {size}×{size}", images, torch.arange(count) % 10, 256, 0.5)


def reading(images: data.ImageData, rounds: int) -> Iterator[Row]:
    """Random access; beside it the same batches from torch's DataLoader, which collates image by image."""
    size = images.image_shape[1]
    for batch_size in BATCH_SIZES:
        calls: dict[str, Any] = {f"{workers} workers": reader(images, batch_size, workers) for workers in WORKERS}
        times = in_turn(rounds, **calls, DataLoader=loader(images, batch_size))
        others = READ / times.pop("DataLoader")
        for workers, found in times.items():
            rate = READ / found
            yield Row(
                name=f"reading {size}×{size}, batch {batch_size}, {workers}",
                value=rate,
                unit="images/s",
                target=f"≥ {TARGET}",
                met=rate >= TARGET,
                peers={"torch DataLoader, 0 workers": others},
            )


def reader(images: data.ImageData, batch_size: int, workers: int) -> Any:
    """Some steps of a run, from their indices to batches on the device, which is the CPU."""

    def read() -> None:
        steps = READ // batch_size
        indices = (data.batch_indices(0, step, batch_size, len(images)) for step in range(steps))
        total = sum(len(batch) for batch in data.batches(images, indices, "cpu", workers))
        assert total == READ

    return read


def loader(images: data.ImageData, batch_size: int) -> Any:
    """The same amount through torch's own loader."""
    pairs = torch.utils.data.TensorDataset(images.images, images.labels)
    options = {"batch_size": batch_size, "shuffle": True, "generator": torch.Generator().manual_seed(0)}

    def read() -> None:
        batches: Iterator[list[Tensor]] = iter(torch.utils.data.DataLoader(pairs, **options))
        assert sum(len(batch[0]) for batch in islice(batches, READ // batch_size)) == READ

    return read


def decoding_rates(rounds: int) -> Iterator[Row]:
    """Photographs to squares, from memory to memory; no row where there are none."""
    folder = Path(os.environ.get(decode.DATA_VARIABLE) or "none") / "imagenet-sample"
    if not folder.is_dir():
        return
    source = decode.find(data.IMAGENET, "train", folder)
    batches = list(source.stream(decode.BATCH))
    for crop in (decode.Crop("adm", 64), decode.Crop("area", 64), decode.Crop("area", 256)):
        times = in_turn(rounds, **{f"{workers} threads": decoder(batches, crop, workers) for workers in (1, 2)})
        for workers, found in times.items():
            name = f"decoding photographs of 256 pixels, {crop.name} to {crop.size}×{crop.size}, {workers}"
            yield Row(name, value=source.count() / found, unit="images/s")


def decoder(batches: list[Any], crop: decode.Crop, workers: int) -> Any:
    """Decoding of all batches."""

    def run() -> None:
        for _ in decode.ordered(lambda batch: decode._decode(batch, crop), batches, workers):
            pass

    return run


if __name__ == "__main__":
    main(rows)
