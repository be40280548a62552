r"""What a network costs, measured without running it: parameters, FLOPs, activations, and from these GPU-days.

The network lives on torch's meta device, where tensors have shapes and no values, so that models of billions of
parameters are looked at on a laptop.  FLOPs are those of torch's counter: two for each multiplication with addition in
matrix products, convolutions and attention, nothing for the rest.  A training step is taken as three forward passes
(Kaplan et al. 2020, Section 2.1: the backward pass costs two).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from paperlib.checks import require_positive
from paperlib.models import ConditionedNetwork

TRAINING_PASSES = 3
"""Forward passes that a forward and a backward pass are worth."""

SECONDS_PER_DAY = 24 * 3600


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs.

    Attributes:
        parameters: numbers that are trained.
        forward_flops: FLOPs of one forward pass, an image.
        activation_bytes: what the backward pass needs kept of the forward pass, an image, in float32.
    """

    parameters: int
    forward_flops: int
    activation_bytes: int


@dataclass(frozen=True)
class Accelerator:
    """A GPU as its data sheet has it, and the share of that which training is assumed to reach.

    Args:
        name: its name.
        flops: dense bf16 FLOP/s.
        memory_bytes: its memory.
        utilisation: the share of ``flops`` that is reached, an assumption.
    """

    name: str
    flops: float
    memory_bytes: float
    utilisation: float = 0.25

    def days(self, total_flops: float) -> float:
        """GPU-days for so many FLOPs."""
        return total_flops / (self.flops * self.utilisation) / SECONDS_PER_DAY


H100 = Accelerator("H100 SXM", flops=989e12, memory_bytes=80e9)
"""989 TFLOP/s dense bf16, 80 GB: NVIDIA's data sheet.  That a quarter is reached, with convolutions, is assumed."""


def network_cost(network: ConditionedNetwork) -> NetworkCost:
    """Measure a network, best one on the meta device: ``with torch.device("meta"): network = models.build(…)``.

    Two images are sent through and the figures halved, so that nothing which is shared between images counts.
    """
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        forward_flops=_flops(network, 2) - _flops(network, 1),
        activation_bytes=_kept(network, 2) - _kept(network, 1),
    )


def training_flops(cost: NetworkCost, images: int) -> float:
    """FLOPs of training on so many images, repetitions counted."""
    require_positive("images", images)
    return float(TRAINING_PASSES) * cost.forward_flops * images


def training_bytes(
    cost: NetworkCost, images: int, averages: int = 1, shards: int = 1, activation_bytes: float = 4
) -> float:
    """Memory of one GPU in training: float32 weights, gradients, Adam's two moments and the averages, and activations.

    Args:
        cost: of the network.
        images: images in a micro-batch of this GPU.
        averages: moving averages of the weights that are kept.
        shards: GPUs that share weights, gradients, moments and averages (FSDP); 1 for DDP.
        activation_bytes: bytes of a number kept for the backward pass: 4, or about 2 under bf16 autocast.
    """
    held = 4 * (4 + averages) * cost.parameters / shards
    return held + cost.activation_bytes * images * activation_bytes / 4


def _inputs(network: ConditionedNetwork, batch: int) -> tuple[Tensor, Tensor]:
    like = next(network.parameters())
    condition = network.conditioning.level(like.new_zeros(batch, network.conditioning.features.frequencies.numel() * 2))
    return like.new_zeros(batch, *network.image_shape), condition


def _flops(network: ConditionedNetwork, batch: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.body(*_inputs(network, batch))
    return counter.get_total_flops()


def _kept(network: ConditionedNetwork, batch: int) -> int:
    """Bytes of what is saved for the backward pass, parameters left out, every storage counted once."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.body(*_inputs(network, batch))
    return sum(storage.nbytes() for storage in kept.values())
