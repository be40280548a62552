"""Inception through clean-fid, on a small TorchScript stand-in for its file: the same numbers as clean-fid's own.

The real weights are a download of 91 MB, which tests do not make.
"""

import hashlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paperlib.engine import evaluation, features, metrics
from paperlib.engine.features import INCEPTION_FILE, Inception
from paperlib.engine.metrics import Moments
from paperlib.files import DamagedFileError


class StandIn(nn.Module):
    """The interface of Inception's file, with 2,048 features that are means over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Flatten(), nn.Linear(768, 2048), nn.Tanh())
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        resized = nn.functional.interpolate(img, size=[299, 299], mode="bilinear", align_corners=False)
        features = self.layers((resized - 128) / 128)
        if return_features:
            return features
        if no_output_bias:
            return (features @ self.output.weight.t()).softmax(1)
        return self.output(features).softmax(1)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / INCEPTION_FILE
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.jit.script(StandIn()).save(str(path))
    return path


@pytest.fixture
def weights(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in, taken for the real file."""
    monkeypatch.setattr(Inception, "sha256", hashlib.sha256(stand_in.read_bytes()).hexdigest())
    return stand_in


def pictures(count: int, size: int = 20, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def folder_of(images: Tensor, folder: Path) -> str:
    from PIL import Image

    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:03d}.png")
    return str(folder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*samples are few")
@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_features_are_those_of_clean_fid(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    from cleanfid import features as theirs
    from cleanfid import fid

    monkeypatch.setattr(
        theirs,
        "InceptionV3W",
        lambda path, download, resize_inside, make=theirs.InceptionV3W: make(
            str(weights.parent), download=False, resize_inside=resize_inside
        ),
    )
    images, device = pictures(7), torch.device("cpu")
    model = theirs.build_feature_extractor(mode, device, use_dataparallel=False)
    folder = folder_of(images, tmp_path / "images")
    expected = fid.get_folder_features(
        folder, model, num_workers=0, batch_size=4, device=device, mode=mode, verbose=False
    )
    found = Inception(weights, mode)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.std() > 0.01


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*samples are few")
def test_fid_and_kid_of_two_folders_are_those_of_clean_fid(weights: Path, tmp_path: Path) -> None:
    from cleanfid import fid

    judge = Inception(weights)
    sets = [pictures(24), (0.7 * pictures(30, seed=1).float()).to(torch.uint8)]
    folders = [folder_of(images, tmp_path / str(number)) for number, images in enumerate(sets)]

    def extractor(batch: Tensor) -> Tensor:
        return judge.network(batch)[:, :20]  # of 2,048 clean-fid's matrix root would take a minute

    theirs = fid.compute_fid(
        *folders,
        custom_feat_extractor=extractor,
        device=torch.device("cpu"),
        num_workers=0,
        use_dataparallel=False,
        verbose=False,
    )
    real, fake = (evaluation.see(images.split(10), judge, 256)[:, :20] for images in sets)
    ours = metrics.frechet_distance(Moments.of(real), Moments.of(fake))
    assert ours == pytest.approx(theirs, rel=1e-5)
    expected = fid.kernel_distance(real[:24].numpy(), fake[:24].numpy(), num_subsets=1)
    assert metrics.kid(real[:24], fake[:24]).value == pytest.approx(expected, rel=1e-4)


def test_probabilities_are_those_without_bias(weights: Path) -> None:
    """On images of 299 pixels the network does not resize, whichever the mode."""
    images = pictures(2, size=299)
    judge = Inception(weights, "legacy_tensorflow")
    found = judge.probabilities(judge(images))
    network = torch.jit.load(str(weights))
    torch.testing.assert_close(found, network(images.float(), no_output_bias=True), rtol=1e-4, atol=1e-9)
    assert not torch.allclose(found, network(images.float()), rtol=1e-3)


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_grey_images_are_those_with_three_equal_channels(weights: Path, mode: str) -> None:
    grey, judge = pictures(3, channels=1), Inception(weights, mode)
    torch.testing.assert_close(judge(grey), judge(grey.repeat(1, 3, 1, 1)))


def test_features_do_not_depend_on_batches_or_threads(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(9)
    expected = Inception(str(weights))(images)  # a path may be a str
    monkeypatch.setattr(Inception, "batch", 2)
    torch.testing.assert_close(Inception(weights)(images), expected)
    monkeypatch.setattr(Inception, "workers", 0)
    torch.testing.assert_close(Inception(weights)(images), expected)


def test_it_is_named_with_its_resizing(weights: Path) -> None:
    judge = Inception(weights)
    assert judge.name == f"Inception v3 {Inception.sha256[:6]}"
    assert (judge.distance, judge.levels) == ("FID", 256)
    assert "bicubic" in judge.resize
    assert "bilinear" in Inception(weights, "legacy_tensorflow").resize


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8), TypeError, r"to_uint8\(x, levels=256\)"),
        (pictures(2)[0], ValueError, r"shape \(N, 3, H, W\) or \(N, 1, H, W\)"),
        (pictures(2, channels=4), ValueError, r"got \(2, 4, 20, 20\)"),
    ],
)
def test_what_it_cannot_see_is_refused(weights: Path, images: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Inception(weights)(images)


def test_an_unknown_mode_lists_the_modes(weights: Path) -> None:
    with pytest.raises(ValueError, match="unknown mode 'legacy_pytorch'; choose one of clean, legacy_tensorflow"):
        Inception(weights, "legacy_pytorch")


# The file ------------------------------------------------------------------------------------------------------------


def test_a_file_with_another_hash_is_not_opened(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("TorchScript is code: it was opened"))
    with pytest.raises(DamagedFileError, match="is not opened"):
        Inception(stand_in)


def test_a_file_must_be_there_and_have_the_name_that_clean_fid_opens(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*; download https://"):
        Inception(tmp_path / INCEPTION_FILE)
    other = tmp_path / "other.pt"
    other.write_bytes(weights.read_bytes())
    with pytest.raises(DamagedFileError, match=rf"clean-fid opens {INCEPTION_FILE}: rename it"):
        Inception(other)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    return tmp_path / "inception"


def test_it_is_downloaded_once(weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "INCEPTION_URL", weights.as_uri())
    first = Inception()(pictures(2))
    assert [path.name for path in cache.iterdir()] == [INCEPTION_FILE]
    monkeypatch.setattr(features, "INCEPTION_URL", "file:///fetched/again")
    torch.testing.assert_close(Inception()(pictures(2)), first)


def test_a_download_that_breaks_off_leaves_nothing(
    weights: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cut").write_bytes(weights.read_bytes()[:1000])
    monkeypatch.setattr(features, "INCEPTION_URL", (tmp_path / "cut").as_uri())
    with pytest.raises(OSError, match=r"could not be downloaded \(invalid hash value"):
        Inception()
    assert list(cache.iterdir()) == []


def test_without_a_network_it_says_what_to_fetch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    with pytest.raises(OSError, match=r"no route to host.*Fetch https://.*inception-2015-12-05\.pt.*put it at"):
        Inception()
    assert list(cache.iterdir()) == []
