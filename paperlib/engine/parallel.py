"""One network on one or many processes: three engines with one interface.

* ``single``: one process.
* ``ddp``: every process holds the whole network; gradients are averaged as they come (``DistributedDataParallel``).
* ``fsdp``: every process holds a share of each parameter, its gradient, its moments and its averages, and gets the rest
  of a block when that is computed (FSDP2's ``fully_shard``): for networks that do not fit a GPU.

All three compute the same, up to the order in which floating-point numbers are added.
"""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from paperlib.engine import distributed
from paperlib.engine.distributed import Group
from paperlib.engine.recipe import Precision
from paperlib.models import ConditionedNetwork

EngineName = Literal["auto", "single", "ddp", "fsdp"]


class Single:
    """A network in one process.

    Args:
        network: what is trained, in place.
        group: the processes.
        precision: of the forward and backward pass.

    Attributes:
        model: what is called in training, and takes care of the gradients.
    """

    name = "single"

    def __init__(self, network: ConditionedNetwork, group: Group, precision: Precision) -> None:
        self.network, self.group, self.precision = network, group, precision
        self.model: nn.Module = self._wrapped()

    def _wrapped(self) -> nn.Module:
        return self.network

    def predict(self, z: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """The prediction, in the type of ``z``, so that the loss is computed in it."""
        with torch.autocast(self.group.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.model(z, logsnr, label)
        return output.to(z.dtype)

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Around forward and backward pass of a micro-batch: processes exchange gradients at the last one alone."""
        return nullcontext()

    def clip(self, limit: float) -> Tensor:
        """Clip the gradient to a norm, over all parameters and processes; returns the norm before, a scalar."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors put together from their shares, on the CPU of the first process; nothing on the others."""
        found = {}
        for name, tensor in tensors.items():
            full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            if self.group.is_first:
                found[name] = full.detach().cpu()
        return found


class Replicated(Single):
    """A network of which every process holds a copy."""

    name = "ddp"

    def _wrapped(self) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.group.device] if self.group.device.type == "cuda" else None
        return DistributedDataParallel(self.network, device_ids=ids, gradient_as_bucket_view=True)

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self.model.no_sync()  # type: ignore[operator]


class Sharded(Single):
    """A network that the processes share.

    Parameters stay float32; in mixed precision blocks are gathered in bfloat16 and gradients added in float32.  Inputs
    are not cast, log-SNR would lose its digits: autocast does what there is to cast.
    """

    name = "fsdp"

    def _wrapped(self) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view", UserWarning)  # changed by nobody
        mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        policy = mixed if self.precision == "bf16" else MixedPrecisionPolicy()
        mesh = init_device_mesh(self.group.device.type, (self.group.size,))
        for unit in (*self.network.sharding_units(), self.network):
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        return self.network

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()


ENGINES: dict[str, type[Single]] = {engine.name: engine for engine in (Single, Replicated, Sharded)}


def choose(engine: EngineName, device: torch.device) -> tuple[type[Single], Group]:
    """The engine of that name, and the processes that it has.

    Args:
        engine: "auto" is "ddp" for several processes that ``torchrun`` started, else "single".
        device: of the network; several processes take their own instead.

    Raises:
        ValueError: for an unknown name.
        RuntimeError: for several processes where ``torchrun`` started none.
    """
    if engine == "auto":
        engine = "ddp" if distributed.launched() > 1 else "single"
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; choose one of auto, {', '.join(ENGINES)}.")
    return ENGINES[engine], Group(device=device) if engine == "single" else distributed.join()


def require_equal(network: nn.Module, group: Group) -> None:
    """Refuse networks that were not initialised alike in all processes.

    Raises:
        ValueError: naming the remedy.
    """
    with torch.no_grad():
        sums = [parameter.double().sum().item() for parameter in network.parameters()]
    if any(other != sums for other in group.gather(sums)):
        raise ValueError(
            f"the networks of the {group.size} processes differ; build them with one seed: models.build(…, seed=…)."
        )
