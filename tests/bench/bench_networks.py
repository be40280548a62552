"""A training step of our U-Net against those of azula and diffusers: equal parameters, FLOPs, batch, optimiser, data.

Forward, backward and fused Adam on 32 images of 32 × 32 × 3 in float32, two threads.  Where the time goes: in our step
about six sevenths are convolutions, and these run near the machine's matmul rate; what can be saved lies around them.

* Norm, scale and shift are one pass (:func:`paperlib.models.unet.modulated`) instead of three.
* Resampling is a convolution: torch's own nearest-neighbour and pooling kernels take four times as long on a CPU.
* Attention works on tokens, so that the fused kernel need not copy.
* Wide maps of few pixels: passes over activations cost by the channel, convolutions by its square.

Tried and left out: channels_last makes narrow convolutions faster (by a quarter at 32 channels, by 3 % at 96) and group
norms six times as slow.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from bench import Row, in_turn, main
from contestants import CONTESTANTS, costs
from torch import nn

from tools.costs import TRAINING_PASSES

THREADS = 2
BATCH = 32
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))
TARGET = 1.25
MATMUL = 2048
PEAK_STEPS = 3


def training_step(network: nn.Module, batch: int = BATCH) -> Callable[[], None]:
    """A step on a fixed batch of noise."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, 3, 32, 32, generator=generator)
    logsnr = torch.linspace(-10, 10, batch)
    label = torch.arange(batch) % 10
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (network(z, logsnr, label) - z).square().mean().backward()
        optimiser.step()

    return step


def matmul_rate() -> float:
    """What the machine multiplies, in GFLOP/s."""
    a = torch.randn(MATMUL, MATMUL)
    return 2e-9 * MATMUL**3 / in_turn(5, matmul=lambda: a @ a)["matmul"]


def peak_memory(name: str) -> float:
    """The most memory, in MB, that a process which trains this network has held beyond what it held before."""
    command = [sys.executable, __file__, "--peak", name]
    before, after = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    return after - before


def print_peak(name: str) -> None:
    """Resident memory before and after a few steps."""
    step = training_step(CONTESTANTS[name]())
    before = psutil.Process().memory_info().rss
    for _ in range(PEAK_STEPS):
        step()
    print(before / 2**20, _high_water() / 2**10)


def _high_water() -> int:
    """The most memory that this process has held, in kB, as Linux has it.  (``ru_maxrss`` begins at the parent's.)"""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def rows() -> Iterator[Row]:
    """Images a second and the ratio, FLOP/s beside the machine's, memory, and what was matched."""
    torch.set_num_threads(THREADS)
    cost = costs()
    times = in_turn(ROUNDS, warmup=2, **{name: training_step(make()) for name, make in CONTESTANTS.items()})
    speed = {name: BATCH / seconds for name, seconds in times.items()}
    rate = {name: 1e-9 * TRAINING_PASSES * cost[name].forward_flops * speed[name] for name in speed}
    yield ours("parameters", {name: one.parameters / 1e6 for name, one in cost.items()}, "million")
    yield ours("forward FLOPs of an image", {name: one.forward_flops / 1e6 for name, one in cost.items()}, "MFLOP")
    fastest = max(value for name, value in speed.items() if name != "paperlib")
    ratio = speed["paperlib"] / fastest
    yield Row("training step, 32×32×3, batch 32, fp32, 2 threads", speed["paperlib"], "images/s", peers=others(speed))
    yield Row("training step, against the fastest peer", ratio, "×", f"≥ {TARGET}", ratio >= TARGET)
    yield Row("training step, rate", rate["paperlib"], "GFLOP/s", peers=others(rate) | {"matmul": matmul_rate()})
    yield ours("training step, memory", {name: peak_memory(name) for name in CONTESTANTS}, "MB")


def ours(name: str, values: dict[str, float], unit: str) -> Row:
    """A row without a target."""
    return Row(name, values["paperlib"], unit, peers=others(values))


def others(values: dict[str, float]) -> dict[str, float]:
    """Those of the peers."""
    return {name: value for name, value in values.items() if name != "paperlib"}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(sys.argv[2])
    else:
        main(rows)
