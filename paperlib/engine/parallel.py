"""One network on one or many processes: who takes part, what they tell one another, and three engines.

``torchrun`` starts the processes and says in the environment who is who; here they find each other, on GPUs by NCCL, on
CPUs by Gloo.  A :class:`Group` of one needs none of that and answers at once, so no caller asks how many there are.

* ``single``: one process.
* ``ddp``: every process holds the whole network; gradients are averaged as they come (``DistributedDataParallel``).
* ``fsdp``: every process holds a share of each parameter, its gradient, its moments and its averages, and gets the rest
  of a block when that is computed (FSDP2's ``fully_shard``): for networks that do not fit a GPU.

All three compute the same, up to the order in which floating-point numbers are added.
"""

import atexit
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from paperlib.engine.recipe import Precision
from paperlib.models import ConditionedNetwork

Value = TypeVar("Value")
EngineName = Literal["auto", "single", "ddp", "fsdp"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """The processes that train one network together.

    Args:
        rank: number of this one, from 0.
        size: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes logs and weights."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in the order of their ranks."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: Value) -> Value:
        """The value of the first process."""
        held = [value]
        if self.size > 1:
            dist.broadcast_object_list(held, src=0)
        return held[0]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            dist.barrier()


ALONE = Group()
"""A single process on the CPU."""


def launched() -> int:
    """How many processes ``torchrun`` started; 1 without it.

    Raises:
        ValueError: for tasks of SLURM that do not know of one another, each of which would train the same.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if tasks > 1 and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"SLURM started {tasks} tasks that do not know of one another: start one torchrun a machine (srun "
            f"--ntasks-per-node=1 torchrun --nproc-per-node=N …), or train with the engine 'single'."
        )
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> Group:
    """Find the other processes that ``torchrun`` started; done once, whatever is trained afterwards.

    Each takes the GPU of its own, where the machine has one for each; else the CPU.

    Raises:
        ValueError: when it was not ``torchrun`` that started this process.
    """
    device = CPU
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            raise ValueError(
                "this process does not know of others: start it with torchrun --nproc-per-node=N …, or train with the "
                "engine 'single'."
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store, rank, size = next(rendezvous("env://"))
        # torchrun keeps its store when it starts the processes again (--max-restarts): those that read there where the
        # dead ones listened would wait for them.
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
        atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
    return Group(dist.get_rank(), dist.get_world_size(), device)


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
        ValueError: for an unknown name, and for several processes where ``torchrun`` started none.
    """
    if engine == "auto":
        engine = "ddp" if launched() > 1 else "single"
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; choose one of auto, {', '.join(ENGINES)}.")
    return ENGINES[engine], Group(device=device) if engine == "single" else join()


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
