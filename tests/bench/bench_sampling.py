"""What a sampler costs beside its network: ours, diffusers' schedulers and azula's samplers around a free denoiser.

The denoiser returns the same tensor at every call, so that all the time is the sampler's.  Every sampler takes the same
number of evaluations on the same batch of small images; theirs are called as their documentation does.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bench import Row, in_turn, main
from torch import Tensor

from paperlib import predictions, schedules
from paperlib.engine import sampling

THREADS = 1
SHAPE = (16, 3, 32, 32)
STEPS = 50
ROUNDS = 30
MILLISECONDS = 1e3
TARGET = 0.2
"""Milliseconds an evaluation that a deterministic sampler may cost."""
DRAWING = ("ddpm",)
"""Samplers most of whose time goes into drawing noise."""


def rows() -> Iterator[Row]:
    """Milliseconds an evaluation of each sampler, beside those of its peers."""
    z, levels = torch.randn(SHAPE), sampling.levels(schedules.Cosine(-10, 10), STEPS - 1)
    for name, peers in PEERS.items():
        calls, evaluations = {"paperlib": _ours(name, z, levels)}, {"paperlib": _evaluations(name, levels)}
        for peer, make in peers.items():
            calls[peer], evaluations[peer] = make(z)
        times = in_turn(ROUNDS, **calls)
        each = {peer: MILLISECONDS * time / evaluations[peer] for peer, time in times.items()}
        own, others = each["paperlib"], {peer: time for peer, time in each.items() if peer != "paperlib"}
        limit, words = (math.inf, "") if name in DRAWING else (TARGET, f"≤ {TARGET} and ")
        met = own <= min(limit, *others.values())
        yield Row(f"overhead an evaluation, {name}", own, "ms", f"{words}below every peer", met, others)


# Ours ----------------------------------------------------------------------------------------------------------------


def _ours(name: str, z: Tensor, levels: Tensor) -> Callable[[], object]:
    output = torch.randn(SHAPE)
    denoise = sampling.NetworkDenoiser(lambda z, logsnr: output, predictions.EPS)
    return lambda: sampling.get(name)(denoise, z, levels)


def _evaluations(name: str, levels: Tensor) -> int:
    return 2 * len(levels) - 1 if name == "heun" else len(levels)


# diffusers -----------------------------------------------------------------------------------------------------------


def _diffusers(name: str, **options: Any) -> Callable[[Tensor], tuple[Callable[[], object], int]]:
    def make(z: Tensor) -> tuple[Callable[[], object], int]:
        import diffusers

        scheduler, output = getattr(diffusers, name)(**options), torch.randn(SHAPE)
        scheduler.set_timesteps(STEPS)

        def call() -> Tensor:
            scheduler.set_timesteps(STEPS)  # which resets those that count their steps
            sample = z
            for t in scheduler.timesteps:
                scheduler.scale_model_input(sample, t)
                sample = scheduler.step(output, t, sample).prev_sample
            return sample

        return torch.no_grad()(call), len(scheduler.timesteps)

    return make


# azula ---------------------------------------------------------------------------------------------------------------


def _azula(name: str, evaluations: int = 1) -> Callable[[Tensor], tuple[Callable[[], object], int]]:
    def make(z: Tensor) -> tuple[Callable[[], object], int]:
        from azula import denoise, noise, sample

        class Free(denoise.Denoiser):
            """Its network gives ε: x̂ is made of it, as ours and those of diffusers do."""

            def __init__(self) -> None:
                super().__init__()
                self.schedule, self.output = noise.CosineSchedule(), torch.randn(SHAPE)

            def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> denoise.DiracPosterior:
                alpha, sigma = self.schedule(t)
                return denoise.DiracPosterior((x_t - sigma * self.output) / alpha)

        sampler = getattr(sample, name)(Free(), start=0.99, stop=0.01, steps=STEPS, silent=True)
        return lambda: sampler(z), evaluations * STEPS

    return make


PEERS: dict[str, dict[str, Callable[[Tensor], tuple[Callable[[], object], int]]]] = {
    "ddim": {
        "diffusers DDIM": _diffusers("DDIMScheduler", clip_sample=False),
        "diffusers Euler": _diffusers("EulerDiscreteScheduler"),
        "azula Euler": _azula("EulerSampler"),
    },
    "ddpm": {
        "diffusers DDPM": _diffusers("DDPMScheduler", clip_sample=False, variance_type="fixed_small"),
        "azula DDPM": _azula("DDPMSampler"),
    },
    "heun": {
        "diffusers Heun": _diffusers("HeunDiscreteScheduler"),
        "azula Heun": _azula("HeunSampler", evaluations=2),
    },
    "dpmpp_2m": {
        "diffusers DPM-Solver++": _diffusers("DPMSolverMultistepScheduler"),
        "azula exponential Adams–Bashforth": _azula("xEABSampler"),
    },
}
"""Our samplers, and those of others that do the same or nearly so."""


if __name__ == "__main__":
    main(rows)
