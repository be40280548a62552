r"""Inception, the feature network of FID, KID and the Inception Score, as clean-fid has it.

Two modes, to be named beside every number, for they differ by more than many published improvements:

* ``clean``: images are resized to 299×299 by clean-fid (bicubic, antialiased, not rounded again);
* ``legacy_tensorflow``: the network resizes them itself, bilinear and without antialiasing, as the evaluation of ADM
  and most of the published FIDs on ImageNet do.

Images are 8-bit before they are resized.  The network, its resizing and its reference statistics are clean-fid's
(Parmar et al. 2022); nothing here is a second version of them.  Its file is TorchScript, which is code: it is opened
only when its hash is the known one.
"""

import hashlib
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from paperlib.engine.decoding import cache_folder
from paperlib.engine.evaluation import Reference
from paperlib.engine.gathering import FeatureStatistics, Seen
from paperlib.engine.prefetch import ordered
from paperlib.files import DamagedFileError

Mode = Literal["clean", "legacy_tensorflow"]

FILE = "inception-2015-12-05.pt"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
"""Where clean-fid gets the weights from: NVIDIA's translation of the network that FID was defined with."""
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Their hash, as k-diffusion states it (``k_diffusion/evaluation.py``), which checks the same download."""

BATCH = 100
"""Images that the network sees at once."""

RESIZE: dict[str, str] = {
    "clean": "clean-fid 'clean', bicubic with antialiasing to 299×299",
    "legacy_tensorflow": "clean-fid 'legacy_tensorflow', bilinear to 299×299 inside the network",
}


class Inception:
    """Inception v3 of 5 December 2015, 2,048 features and 1,008 class probabilities.

    Args:
        weights: the file, named :data:`FILE`; None downloads it once into the cache.
        mode: how images are resized.
        device: where it runs.
        workers: threads that resize.

    Raises:
        DamagedFileError: for a file with another hash; it is not opened.
        FileNotFoundError: when there is no such file.
        OSError: when the download fails; the message says what to fetch.
    """

    levels = 256

    def __init__(
        self,
        weights: Path | str | None = None,
        mode: Mode = "clean",
        device: torch.device | str = "cpu",
        workers: int = 4,
    ) -> None:
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        if mode not in get_args(Mode):
            raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(get_args(Mode))}.")
        path = verified(Path(weights)) if weights else downloaded()
        self.mode, self.device, self.workers = mode, torch.device(device), workers
        inside = mode == "legacy_tensorflow"
        self._network = InceptionV3W(str(path.parent), download=False, resize_inside=inside).to(self.device).eval()
        self._resize = partial(_resized, build_resizer(mode)) if not inside else _as_floats

    @property
    def name(self) -> str:
        return f"Inception v3 {SHA256[:6]}"

    @property
    def sha256(self) -> str:
        return SHA256

    @property
    def distance(self) -> str:
        return "FID"

    @property
    def resize(self) -> str:
        return RESIZE[self.mode]

    def __call__(self, images: Tensor) -> Tensor:
        """The features alone, float32 (N, 2048)."""
        return self.see(images).features

    @torch.no_grad()
    def see(self, images: Tensor) -> Seen:
        """Features, float32 (N, 2048), and probabilities (N, 1008) of uint8 images, shape (N, C, H, W), C 1 or 3.

        The probabilities leave out the bias of the last layer, as the original Inception Score did.

        Raises:
            TypeError: for anything but uint8.
            ValueError: for another shape.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}; use data.to_uint8(x, levels=256).")
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must have shape (N, 3, H, W) or (N, 1, H, W), got {tuple(images.shape)}.")
        parts = ordered(self._resize, images.expand(-1, 3, -1, -1).split(BATCH), self.workers)
        features = torch.cat([self._network(part.to(self.device)).float() for part in parts])
        logits = features @ self._network.base.output.weight.float().mT
        return Seen(features.cpu(), logits.softmax(1).cpu())


def _resized(resize: Any, images: Tensor) -> Tensor:
    """clean-fid's resizing of each image, float32 (N, 3, 299, 299) in 0 … 255."""
    pictures = [torch.from_numpy(resize(image.permute(1, 2, 0).numpy())) for image in images.cpu()]
    return torch.stack(pictures).permute(0, 3, 1, 2).contiguous()


def _as_floats(images: Tensor) -> Tensor:
    return images.float()


# The file ------------------------------------------------------------------------------------------------------------


def verified(path: Path) -> Path:
    """``path``, if it is the file of the weights.

    Raises:
        FileNotFoundError: when there is no such file.
        DamagedFileError: when it has another name or hash.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; download {URL} and name the file.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise DamagedFileError(
            f"{path} has hash {found[:12]}, Inception's is {SHA256[:12]}: it is truncated or another file, and is not "
            f"opened. Delete it and download {URL}."
        )
    if path.name != FILE:
        raise DamagedFileError(f"{path} is Inception, but clean-fid opens {FILE}: rename it to that.")
    return path


def downloaded() -> Path:
    """The file in the cache, fetched by clean-fid if it is not there.

    Raises:
        OSError: when it cannot be fetched; the message says what to do.
        DamagedFileError: when what is there is not it.
    """
    from cleanfid.downloads_helper import check_download_inception

    path = cache_folder() / "inception" / FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            try:
                fetched = Path(check_download_inception(fpath=folder))
            except OSError as error:
                raise OSError(
                    f"Inception could not be downloaded ({error}). Fetch {URL} elsewhere and put it at {path}, or pass "
                    f"its path."
                ) from error
            verified(fetched).replace(path)
    return verified(path)


# Reference statistics ------------------------------------------------------------------------------------------------


def published_reference(
    name: str, resolution: int, split: str, images: int, network: Inception, features: bool = True
) -> Reference:
    """clean-fid's own statistics of a data set, downloaded once, for distances that compare with published ones.

    Args:
        name: such as "cifar10"; clean-fid lists them.
        resolution: of the images.
        split: such as "train".
        images: how many images the statistics are of, which the file does not say.
        network: which gives the mode.
        features: fetch the features of KID too.

    Raises:
        OSError: when there are none, or they cannot be downloaded.
    """
    from cleanfid.features import get_reference_statistics

    fetch = partial(get_reference_statistics, name, resolution, mode=network.mode, split=split)
    try:
        mean, covariance = (torch.from_numpy(moment).double() for moment in fetch(metric="FID"))
        kept = torch.from_numpy(fetch(metric="KID")) if features else torch.zeros(0, len(mean))
    except OSError as error:
        raise OSError(
            f"clean-fid's {network.mode} statistics of {name} {resolution} {split} could not be had ({error}). Make "
            f"the reference of the images instead: Reference.of(data, network)."
        ) from error
    digest = hashlib.sha256(mean.numpy().tobytes() + covariance.numpy().tobytes()).hexdigest()
    statistics = FeatureStatistics.from_moments(mean, covariance, images)
    title = f"clean-fid {name} {resolution} {split}"
    return Reference.by(network, title, digest, kept, statistics)


def stored_reference(path: Path | str, images: int, network: Inception) -> Reference:
    """A reference from an .npz file with ``mu`` and ``sigma``, as ADM and EDM publish them for ImageNet and CIFAR-10.

    Such files do not say how their images were resized: ADM's and EDM's are of ``legacy_tensorflow``.

    Args:
        path: the file; nothing in it is executed.
        images: how many images the statistics are of.
        network: of the mode in which they were made.

    Raises:
        DamagedFileError: for a file without the two.
    """
    import numpy as np

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; download the statistics and name the file.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(arrays[key]).double() for key in ("mu", "sigma"))
    except (ValueError, KeyError, OSError) as error:
        raise DamagedFileError(
            f"{path} is not a file of statistics, an .npz with mu (F,) and sigma (F, F): {error}."
        ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    statistics = FeatureStatistics.from_moments(mean, covariance, images)
    return Reference.by(network, path.name, digest, torch.zeros(0, len(mean)), statistics)
