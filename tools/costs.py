"""What each profile costs: size of its network, FLOPs, memory, and GPU-days, as a table.  ``python -m tools.costs``

Everything is measured on the network itself, on torch's meta device, where tensors have shapes and no values.  FLOPs
are those of torch's counter: two for each multiplication with addition in matrix products, convolutions and attention,
nothing for the rest.  What is assumed, which GPU, its share of peak that training reaches, the price of an hour, stands
beside the table.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from paperlib import files
from paperlib.companion import experiments, paths, profiles
from paperlib.engine import data
from paperlib.models import ConditionedNetwork
from paperlib.models.conditioning import logsnr_features

if TYPE_CHECKING:
    import pandas as pd

TRAINING_PASSES = 3
"""Forward passes that a training step is worth: the backward pass costs two.  (Kaplan et al. 2020, Section 2.1.)"""

PEAK, REACHED, DOLLARS_AN_HOUR = 989e12, 0.25, 2.5
"""Of an H100 SXM: dense bf16 FLOP/s (NVIDIA's data sheet), the share of them that training reaches, with convolutions,
and the price of an hour, both assumed."""

ASSUMPTIONS = (
    f"Assumed: H100 SXM at {REACHED:.0%} of {PEAK / 1e12:.0f} TFLOP/s (dense bf16), {DOLLARS_AN_HOUR} dollars an hour; "
    f"a training step costs {TRAINING_PASSES} forward passes; activations under bf16 take half of what float32 takes, "
    f"and none are recomputed. We have made none of the runs that need a GPU."
)


# One network ---------------------------------------------------------------------------------------------------------


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

    def gpu_days(self, images: int) -> float:
        """GPU-days of training on so many images, repetitions counted."""
        return TRAINING_PASSES * self.forward_flops * images / (PEAK * REACHED) / (24 * 3600)

    def training_bytes(self, images: int, averages: int = 1, shards: int = 1, activation_bytes: float = 4) -> float:
        """Memory of one GPU in training: weights, gradients, Adam's two moments and averages, float32; activations.

        Args:
            images: images in a micro-batch of this GPU.
            averages: moving averages of the weights that are kept.
            shards: GPUs that share weights, gradients, moments and averages (FSDP); 1 for DDP.
            activation_bytes: bytes of a number kept for the backward pass: 4, or about 2 under bf16 autocast.
        """
        held = 4 * (4 + averages) * self.parameters / shards
        return held + self.activation_bytes * images * activation_bytes / 4


def network_cost(network: ConditionedNetwork) -> NetworkCost:
    """Measure a network, best one on the meta device: ``with torch.device("meta"): network = models.build(…)``.

    Two images and one are sent through and subtracted, so that nothing which is shared between images counts.
    """
    return NetworkCost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        forward_flops=_flops(network, 2) - _flops(network, 1),
        activation_bytes=_kept(network, 2) - _kept(network, 1),
    )


def _inputs(network: ConditionedNetwork, batch: int) -> tuple[Tensor, Tensor]:
    like = next(network.parameters())
    condition = network.conditioning.level(logsnr_features(like.new_zeros(batch)))
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


# The profiles --------------------------------------------------------------------------------------------------------


COLUMNS = {
    "profile": "profile",
    "network": "network",
    "parameters": "M parameters",
    "gflops": "GFLOP forward, an image",
    "activations": "MB kept, an image (float32)",
    "images": "M images, a run",
    "micro_batch": "images a GPU at once",
    "memory": "GB of a GPU",
    "gpus": "GPUs",
    "gpu_days": "GPU-days, a run",
    "days": "days, a run",
    "dollars": "dollars, a run",
    "runs": "runs",
}
"""The columns of the table, as the file calls them and as people read them.  A profile without GPUs has no days."""


def row(profile: profiles.Profile) -> dict[str, Any]:
    """The costs of one profile, by :data:`COLUMNS`."""
    recipe, launch = profile.training.recipe, profile.launch
    gpus, images = launch.gpus if launch else 0, recipe.steps * recipe.batch_size
    cost = network_cost(network(profile))
    held = cost.training_bytes(
        micro_batch := -(-recipe.batch_size // (max(1, gpus) * recipe.accumulate)),
        averages=len(recipe.ema_decays),
        shards=gpus if launch and launch.engine == "fsdp" else 1,
        activation_bytes=2 if recipe.precision == "bf16" else 4,
    )
    days = cost.gpu_days(images) if gpus else None
    return {
        "profile": profile.name,
        "network": profile.model.name,
        "parameters": cost.parameters / 1e6,
        "gflops": cost.forward_flops / 1e9,
        "activations": cost.activation_bytes / 1e6,
        "images": images / 1e6,
        "micro_batch": micro_batch,
        "memory": held / 1e9,
        "gpus": gpus,
        "gpu_days": days,
        "days": days and days / gpus,
        "dollars": days and days * 24 * DOLLARS_AN_HOUR,
        "runs": sum(map(len, experiments.arms(profile).values())),
    }


def network(profile: profiles.Profile) -> ConditionedNetwork:
    """The network of a profile without values, on the meta device; its data need not be there."""
    with torch.device("meta"):
        return profile.model.build(data.DATASETS[profile.data.name], seed=0)


def table() -> "pd.DataFrame":
    """A row for every profile of the checkout, the largest network last."""
    import pandas as pd

    rows = sorted((row(profiles.load(name)) for name in profiles.names()), key=lambda one: one["parameters"])
    return pd.DataFrame(rows)


def markdown(found: "pd.DataFrame") -> str:
    """The table for people, with what is assumed below it."""
    shown = found.map(_text).assign(parameters=[f"{value:.1f}" for value in found.parameters])
    shown = shown.rename(columns=COLUMNS)
    return f"{shown.to_markdown(index=False, disable_numparse=True)}\n\n*{ASSUMPTIONS}*\n"


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> None:
    """Put the table where documents read it, ``results/costs.csv`` and ``docs/costs.md``, and show it."""
    found = table()
    files.write_text(paths.root() / "results" / "costs.csv", found.to_csv(index=False, float_format="%.6g"))
    files.write_text(paths.root() / "docs" / "costs.md", markdown(found))
    print(found.to_string(index=False, float_format="{:.3g}".format), ASSUMPTIONS, sep="\n\n")


if __name__ == "__main__":
    main()
