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
from typing import Any, Literal, TypeVar, get_args

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


class Engine:
    """A network and what is called of it in training.

    FSDP keeps parameters in float32; in mixed precision it gathers blocks in bfloat16 and adds gradients in float32.
    It does not cast inputs, log-SNR would lose its digits: autocast does what there is to cast.

    Args:
        name: "single", "ddp" or "fsdp".
        network: what is trained, in place; brought to the device of the group.
        group: the processes.
        precision: of the forward and backward pass.

    Attributes:
        model: what is called, and takes care of the gradients.
    """

    def __init__(self, name: EngineName, network: ConditionedNetwork, group: Group, precision: Precision) -> None:
        self.name, self.group, self.precision = name, group, precision
        self.model: nn.Module = network if name == "fsdp" else network.to(group.device)  # a sharded one goes in blocks
        if name == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            ids = [group.device] if group.device.type == "cuda" else None
            self.model = DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)
        elif name == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

            warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view", UserWarning)  # nobody does
            mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            policy = mixed if precision == "bf16" else MixedPrecisionPolicy()
            mesh = init_device_mesh(group.device.type, (group.size,))
            for unit in (*network.sharding_units(), network):
                fully_shard(unit, mesh=mesh, mp_policy=policy)

    def predict(self, z: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """The prediction, in the type of ``z``, so that the loss is computed in it."""
        with torch.autocast(self.group.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.model(z, logsnr, label)
        return output.to(z.dtype)

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Around forward and backward pass of a micro-batch: processes exchange gradients at the last one alone."""
        if self.name == "fsdp":
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return self.model.no_sync() if self.name == "ddp" and not last else nullcontext()  # type: ignore[operator]

    def clip(self, limit: float) -> Tensor:
        """Clip the gradient to a norm, over all parameters and processes; returns the norm before, a scalar."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors put together from their shares, on the CPU of the first process; nothing on the others."""
        found = {}
        for name, tensor in tensors.items():
            full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            if self.group.is_first:
                found[name] = full.detach().cpu()
        return found


def choose(engine: EngineName, device: torch.device) -> tuple[EngineName, Group]:
    """The name of the engine, and the processes that it has.

    Args:
        engine: "auto" is "ddp" for several processes that ``torchrun`` started, else "single".
        device: of the network; several processes take their own instead.

    Raises:
        ValueError: for an unknown name; for several processes where ``torchrun`` started none; and for tasks of SLURM
            that do not know of one another, each of which would train the same.
    """
    if engine not in get_args(EngineName):
        raise ValueError(f"unknown engine {engine!r}; choose one of {', '.join(get_args(EngineName))}.")
    if engine == "auto":
        tasks, processes = (int(os.environ.get(name, "1")) for name in ("SLURM_NTASKS", "WORLD_SIZE"))
        if tasks > 1 and "WORLD_SIZE" not in os.environ:
            raise ValueError(
                f"SLURM started {tasks} tasks that do not know of one another: start one torchrun a machine (srun "
                f"--ntasks-per-node=1 torchrun --nproc-per-node=N …), or train with the engine 'single'."
            )
        engine = "ddp" if processes > 1 else "single"
    return engine, Group(device=device) if engine == "single" else join()


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
