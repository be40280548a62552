"""The processes of a run: who takes part, and what they tell one another.

``torchrun`` starts them and says in the environment who is who; here they find each other, on GPUs by NCCL, on CPUs by
Gloo.  A :class:`Group` of one needs none of that and answers at once, so no caller asks how many there are.
"""

import atexit
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

Value = TypeVar("Value")

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
        RuntimeError: for tasks of SLURM that do not know of one another, each of which would train the same.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if tasks > 1 and "WORLD_SIZE" not in os.environ:
        raise RuntimeError(
            f"SLURM started {tasks} tasks that do not know of one another: start one torchrun a machine (srun "
            f"--ntasks-per-node=1 torchrun --nproc-per-node=N …), or train with the engine 'single'."
        )
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> Group:
    """Find the other processes that ``torchrun`` started; done once, whatever is trained afterwards.

    Raises:
        RuntimeError: when it was not ``torchrun`` that started this process.
    """
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            raise RuntimeError(
                "this process does not know of others: start it with torchrun --nproc-per-node=N …, or train with the "
                "engine 'single'."
            )
        device = _device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=_of_this_start(store), rank=rank, world_size=size
        )
        atexit.register(_leave)
    return Group(dist.get_rank(), dist.get_world_size(), _device())


def _of_this_start(store: dist.Store) -> dist.Store:
    """The store without what processes of an earlier start left in it.

    ``torchrun`` keeps its store when it starts the processes again (``--max-restarts``); those that read there where
    the dead ones listened would wait for them.
    """
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _device() -> torch.device:
    """The GPU of this process, where the machine has one for each; else the CPU."""
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return CPU


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
