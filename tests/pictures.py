"""Made-up pictures in parquet files, and the real ones where there are some, for the tests of the data."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from numpy.typing import NDArray
from PIL import Image

from paperlib.engine.decode import Collection

COLLECTION = Collection(
    title="Noise",
    folder="noise",
    hub="nobody/noise",
    image_column="image",
    splits={"train": "train", "test": "validation"},
    counts={"train": 12, "test": 5},
    classes=7,
    licence="none needed",
)
"""A collection that the hub does not have."""


def encode(pixels: NDArray[np.uint8], form: str = "PNG", mode: str | None = None) -> bytes:
    """A picture as the content of a file."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, form)
    return file.getvalue()


def noise(count: int, size: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures of noise, shape (count, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def write_shards(
    folder: Path,
    contents: Sequence[bytes],
    labels: Sequence[int],
    shards: int = 1,
    split: str = "train",
    **columns: str,
) -> list[Path]:
    """Parquet files in the columns of the hub's copies; ``image="img"`` names the image column."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, rows in enumerate(np.array_split(np.arange(len(contents)), shards)):
        images = [{"bytes": contents[row], "path": f"{row}.png"} for row in rows]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table(
            {
                columns.get("image", "image"): pa.array(images, kind),
                columns.get("label", "label"): pa.array([labels[row] for row in rows], pa.int64()),
            }
        )
        name = f"{split}.parquet" if shards == 1 else f"{split}-{number:05d}-of-{shards:05d}.parquet"
        paths.append(folder / name)
        parquet.write_table(table, paths[-1], row_group_size=3)
    return paths


def real_images(needed: str = "cifar10") -> Path:
    """The folder of real images; the test is skipped where it lacks the folder that is ``needed``."""
    folder = Path(os.environ.get("PAPERLIB_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / needed).is_dir():
        pytest.skip(f"needs real images: set PAPERLIB_DATA to a folder with {needed}/ (see paperlib.engine.decode)")
    return folder
