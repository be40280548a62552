r"""What all networks share: how they are told the level of noise and the class.

A network is told the level by its log-SNR λ, never by a time t, so that one set of weights serves every noise
schedule, in training and in sampling.  λ becomes Fourier features of fixed frequencies, these and an embedding of the
class become one vector, and every block of the network is scaled and shifted by it (Dhariwal & Nichol 2021, Section 3).
One extra class, the *null class*, stands for "class not told": training drops labels to it, and classifier-free
guidance asks for it (Ho & Salimans 2022).

Precision.  Level, features and condition are computed in float32 at least, and so is the last layer of a network, under
automatic mixed precision too; a network whose parameters are bfloat16 throughout (FSDP's mixed precision) computes in
bfloat16 from the condition's first matrix on, but for the statistics of its norms, which torch accumulates in float32.
Nothing here is a buffer, so that a network made on the meta device is whole once its parameters are there.
"""

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from paperlib.checks import at_least_float32, require_floating, require_positive
from paperlib.process import expand, input_scale

Module = TypeVar("Module", bound=nn.Module)


def logsnr_features(logsnr: Tensor) -> Tensor:
    r"""32 Fourier features of λ: :math:`\cos f_j\lambda, \sin f_j\lambda`, f_j from 1/32 to 2 rad/nat, geometric.

    The lowest frequency tells the levels of [−50, 50] apart, the highest resolves about half a nat.  (B,) to (B, 32),
    in float32 or what finer type ``logsnr`` has.
    """
    level = logsnr.to(at_least_float32(logsnr.dtype))
    frequencies = torch.linspace(math.log(1 / 32), math.log(2), 16, dtype=level.dtype, device=level.device).exp()
    phase = level[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class Conditioning(nn.Module):
    """One vector from log-SNR and class, shape (B, width).

    Args:
        num_classes: number of classes; label ``num_classes`` is the null class.
        width: length of the vector.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.level = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(num_classes + 1, width)

    def forward(self, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """``logsnr`` (B,), ``label`` int64 (B,) or None for the null class throughout."""
        if label is None:
            label = torch.full_like(logsnr, self.num_classes, dtype=torch.int64)
        self._require_label(label, logsnr)
        return nn.functional.silu(exactly(self.level, logsnr_features(logsnr)) + self.classes(label))

    def _require_label(self, label: Tensor, logsnr: Tensor) -> None:
        if label.dtype != torch.int64 or label.shape != logsnr.shape:
            raise ValueError(
                f"label must be int64 of shape {tuple(logsnr.shape)}, got {label.dtype} of shape {tuple(label.shape)}."
            )
        if torch.compiler.is_compiling():
            return
        outside = (label < 0) | (label > self.num_classes)
        if outside.any():
            raise ValueError(
                f"label must lie in 0 … {self.num_classes} ({self.num_classes} is the null class), "
                f"got {label[outside][0].item()}."
            )


class ConditionedNetwork(nn.Module, ABC):
    r"""A network ``network(z, logsnr, label=None)``; what it predicts is the business of the loss.

    A subclass has a :meth:`body`, which sees :math:`c_{in} z`, of unit variance at every level
    (:func:`paperlib.process.input_scale`), and level and class as one vector.  Its constructor takes ``image_shape``,
    ``num_classes`` and ``sigma_data`` by name, which :func:`paperlib.models.build` hands on from the data, and options
    of its own, with defaults.  Dropped labels come as ``num_classes``; to a network without classes, none come.

    Args:
        image_shape: (C, H, W) of the data.
        num_classes: number of classes; 0 for data without.
        sigma_data: standard deviation of the data.
        condition_width: length of the vector that carries level and class.
    """

    config: dict[str, Any]
    initial_seed: int | None = None

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, sigma_data: float, condition_width: int
    ) -> None:
        super().__init__()
        if len(image_shape) != 3 or any(side < 1 for side in image_shape):
            raise ValueError(f"image_shape must be (channels, height, width), all positive, got {image_shape}.")
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no classes) or more, got {num_classes}.")
        require_positive("sigma_data", sigma_data)
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.sigma_data = sigma_data
        self.conditioning = Conditioning(num_classes, condition_width)

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, the shape and type of ``z``.

        Args:
            z: noisy data, VP, shape (B, C, H, W), or flattened (B, C·H·W).
            logsnr: λ in nats, shape (B,); float32 whatever the parameters are, since bfloat16 rounds 10.3 to 10.3125.
            label: classes, int64 (B,), ``num_classes`` being the null class; None is the null class for all.

        Raises:
            TypeError: when z or logsnr is not a floating-point tensor.
            ValueError: for shapes that do not fit, or a label out of range.
        """
        require_floating("z", z)
        require_floating("logsnr", logsnr)
        self._require_shapes(z, logsnr)
        level = logsnr.to(at_least_float32(logsnr.dtype))
        scaled = expand(input_scale(level, self.sigma_data), z) * z
        condition = self.conditioning(logsnr, label)
        output = self.body(scaled.reshape(-1, *self.image_shape).to(condition.dtype), condition)
        return output.to(z.dtype).reshape(z.shape)

    @abstractmethod
    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        """The prediction (B, C, H, W) from the scaled input (B, C, H, W) and the condition (B, condition_width)."""

    def sharding_units(self) -> list[nn.Module]:
        """The modules to shard one by one (``fully_shard``), in the order of use; the root has the rest, here all."""
        return []

    def _require_shapes(self, z: Tensor, logsnr: Tensor) -> None:
        flat = (math.prod(self.image_shape),)
        if z.shape[1:] not in (self.image_shape, flat):
            raise ValueError(f"z must have shape (B, *{self.image_shape}) or (B, {flat[0]}), got {tuple(z.shape)}.")
        if logsnr.shape != z.shape[:1]:
            raise ValueError(f"logsnr must have one level an example, shape ({len(z)},), got {tuple(logsnr.shape)}.")


def _as_it_is(x: Tensor) -> AbstractContextManager[object]:
    """Where nothing is cast by automatic mixed precision on the device of ``x``; the meta device has none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def exactly(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` in the type of the module's parameters, also inside automatic mixed precision."""
    with _as_it_is(x):
        return module(x.to(next(module.parameters()).dtype))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (B, heads, N, channels of a head), fused, in the type of ``value``.

    A CPU computes it in float32 even where that type is bfloat16, for which torch's fused kernel takes several times as
    long there.
    """
    width = at_least_float32(value.dtype) if value.device.type == "cpu" else value.dtype
    with _as_it_is(value):
        attended = scaled_dot_product_attention(query.to(width), key.to(width), value.to(width))
    return attended.to(value.dtype)


def zero_initialised(module: Module) -> Module:
    """The same module with all its parameters set to zero: a residual branch that starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def scale_shift(normalised: Tensor, modulation: Tensor) -> Tensor:
    """``normalised`` (B, C, *) times 1 + scale plus shift; ``modulation`` (B, 2 C) holds both."""
    scale, shift = modulation.reshape(*modulation.shape, *[1] * (normalised.ndim - 2)).chunk(2, dim=1)
    return normalised * (1 + scale) + shift
