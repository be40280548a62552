"""What one process of ``tools/gpu.py`` does: train a network, evaluate it, measure how it trains.

Everything comes from the library's theory, networks and training; nothing that a bare machine with torch and scipy
lacks is imported, not even a reader of YAML.
"""

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from paperlib import models, objectives, predictions, schedules, weightings
from paperlib.adaptive import AdaptiveSchedule
from paperlib.engine import data, evaluation, likelihood, randomness, sampling, training
from paperlib.engine.data import ImageData, Split
from paperlib.engine.evaluation import Drawing, Reference
from paperlib.engine.features import EfficientNetLite0, FeatureNetwork, classifier_of
from paperlib.engine.interruption import StopSignals
from paperlib.engine.metrics import Moments
from paperlib.files import replacing
from paperlib.models import ConditionedNetwork

CUTOFFS = (4.0, 6.0, 8.0, 10.0, 12.0)
"""Log-SNR at which the bound is decoded, besides the end of the range."""

LEVELS = 40
"""Levels of noise at which the error is measured."""

TEST_IMAGES = {"levels": 2000, "likelihood": 10_000}
"""Test images of a measurement."""

DRAWS = 4
"""Levels and noises an image of the likelihood."""

BOUNDS = {"fp32": 1e-5, "bf16": 5e-2}
"""By how much a step on a GPU may differ from one on a CPU, relative, by norms."""


@dataclass(frozen=True)
class Kit:
    """What there is to work with.

    Args:
        profile: the content of ``profiles/cifar10-gpu.yaml``.
        data: the folder with ``train.parquet`` and ``test.parquet``.
        work: the folder of states, references and results.
        efficientnet: whether its packages are there.
        share: of the size of everything; 1 but in a dry run.
    """

    profile: dict[str, Any]
    data: Path
    work: Path
    efficientnet: bool
    share: float = 1.0

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def part(self, number: int, least: int = 8) -> int:
        """The share of a number."""
        return max(min(least, number), round(number * self.share))

    @property
    def batch(self) -> int:
        return self.part(self.profile["training"]["recipe"]["batch_size"])

    def images(self, split: Split, count: int | None = None) -> ImageData:
        """The first ``count`` images of a split, or its share of all."""
        found = data.load("cifar10", split, self.data)
        count = self.part(count) if count else self.part(len(found), least=100)
        if count >= len(found):
            return found
        return replace(found, images=found.images[:count], labels=found.labels[:count])

    def network(self, seed: int) -> ConditionedNetwork:
        """A fresh network on the device; in a dry run one with about that share of the parameters."""
        options, known = self.profile["model"]["options"], data.DATASETS["cifar10"]
        if self.share < 1:
            options = options | {"channels": 16, "head_channels": 16, "transformer_blocks": 1, "condition_width": 16}
        network = models.build(
            self.profile["model"]["name"],
            image_shape=known.image_shape,
            num_classes=known.num_classes,
            sigma_data=known.sigma_data,
            seed=seed,
            **options,
        )
        return network.to(self.device)

    @property
    def prediction(self) -> predictions.Prediction:
        return predictions.get(self.profile["model"]["prediction"])

    @property
    def ends(self) -> tuple[float, float]:
        """Of the range of log-SNR."""
        schedule = self.profile["training"]["schedule"]
        return schedule["logsnr_min"], schedule["logsnr_max"]

    def loss(self, weighting: str) -> objectives.WeightedLoss:
        """The weighted loss of a weighting of the profile, under a fresh adaptive schedule."""
        w = weightings.get(self.profile["training"]["weightings"][weighting])
        return objectives.WeightedLoss(w, AdaptiveSchedule(*self.ends), self.prediction)

    def config(self, seed: int, steps: int, **changes: Any) -> training.TrainingConfig:
        """The recipe of the profile, for so many steps."""
        stated = self.profile["training"]["recipe"]
        recipe = dict(stated) | {
            name: self.part(stated[name], 1) for name in ("warmup_steps", "checkpoint_every", "log_every")
        }
        recipe |= {"steps": steps, "batch_size": self.batch, "seed": seed, "ema_decays": tuple(stated["ema_decays"])}
        return training.TrainingConfig(**recipe | changes)

    def levels(self) -> Tensor:
        """The log-SNR that the sampler walks through."""
        stated = self.profile["sampling"]
        return sampling.levels(schedules.get(stated["schedule"]), self.part(stated["steps"], 4))

    def references(self) -> Iterator[Reference]:
        """The training images as each feature network sees them: made once, then read."""
        train = self.images("train")
        for judge in self._judges():
            path = self.work / f"reference-{judge.sha256[:6]}-{train.sha256[:6]}.safetensors"
            if not path.exists():
                seen = Reference.of(train, judge).moments
                with replacing(path) as temporary:
                    save_file({"mean": seen.mean, "covariance": seen.covariance}, temporary)
            moments = Moments(**load_file(path), count=len(train))
            yield Reference(judge, train.name, train.sha256, moments, caution=train.caution)

    def _judges(self) -> list[FeatureNetwork]:
        found: list[FeatureNetwork] = [classifier_of("cifar10").to(self.device)]
        return [*found, EfficientNetLite0(device=self.device)] if self.efficientnet else found

    def wait(self) -> None:
        """Until the device has done all that it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def name_of(weighting: str, seed: int) -> str:
    """The name of a run, as those of all profiles are called."""
    return f"{weighting}-seed{seed}"


# A network -----------------------------------------------------------------------------------------------------------


def make(
    kit: Kit, weighting: str, seed: int, steps: int, compiled: bool, commit: str | None
) -> tuple[dict[str, Any], bytes]:
    """Train a network, or go on with it, and evaluate it: its line of results, and 100 samples as a PNG file.

    Raises:
        TrainingInterrupted: when it was asked to stop; the same call goes on.
    """
    network = kit.network(seed)
    if compiled:
        network.compile()
    name, config, train = name_of(weighting, seed), kit.config(seed, steps), kit.images("train")
    card = {"profile": kit.profile["name"], "run": name, "commit": commit}
    folder = kit.work / "runs" / name
    result = training.train(network, kit.loss(weighting), train, config, folder, card=card, progress=False)
    plain = kit.network(seed)
    plain.load_state_dict(network.state_dict())
    begun = time.perf_counter()
    line, sheet = evaluate(kit, plain.eval())
    told = {
        "name": name,
        "weighting": weighting,
        "seed": seed,
        "images": steps * kit.batch,
        "steps": steps,
        "batch_size": kit.batch,
        "parameters": result.card["parameters"],
        "weights_sha256": result.card["weights_sha256"],
        "data_sha256": train.sha256,
        "caution": train.caution,
        "training_seconds": result.seconds,
        "evaluation_seconds": time.perf_counter() - begun,
        "commit": commit,
    }
    history = [[entry["step"], entry["loss"], entry["grad_norm"]] for entry in result.history]
    return {**told, **line, "history": history}, picture(sheet)


def picture(sheet: Tensor) -> bytes:
    """Samples, uint8 (100, 3, H, W), ten in a row, a class in a column, as the content of a PNG file."""
    rows = sheet.unflatten(0, (-1, 10)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    file = io.BytesIO()
    Image.fromarray(rows.numpy()).save(file, "PNG", optimize=True)
    return file.getvalue()


def evaluate(kit: Kit, network: ConditionedNetwork) -> tuple[dict[str, Any], Tensor]:
    """Distances of samples, −ELBO at several cut-offs and errors by level, and 100 samples, uint8 (100, 3, 32, 32)."""
    stated = kit.profile["sampling"]
    how = Drawing(stated["samplers"][0], kit.levels(), batch_size=stated["batch_size"])
    labels = torch.arange(kit.part(stated["count"])) % network.num_classes
    batches = how.samples(network, kit.prediction, labels)
    samples = torch.cat([data.to_uint8(batch, 256).cpu() for batch in batches])
    distances = {}
    for reference in kit.references():
        seen = evaluation.see(samples.split(500), reference.network, 256)
        found = evaluation.compare(seen, reference, how, score=True)
        distances[found.network] = {"frechet": found.frechet, "score": found.score, "protocol": found.caption}
    return {"distances": distances, "bits": bits(kit, network), "errors": errors(kit, network)}, samples[:100]


def floor(kit: Kit) -> dict[str, float]:
    """The same distances of real images, the test split."""
    test = kit.images("test")
    found = [
        evaluation.compare(evaluation.see(test.images.split(500), reference.network, test.levels), reference)
        for reference in kit.references()
    ]
    return {each.network: each.frechet for each in found}


def bits(kit: Kit, network: ConditionedNetwork) -> dict[str, Any]:
    """−ELBO in bits a dimension on test images: over the whole range, and decoded from each of :data:`CUTOFFS`."""
    test = kit.images("test", TEST_IMAGES["likelihood"])
    even, known = schedules.LinearLogSNR(*kit.ends), kit.prediction
    found = likelihood.image_elbo(network, known, test, even, draws=DRAWS, batch_size=500, device=kit.device)
    rows = {f"{end:g}": found.terms_until(end, test) for end in CUTOFFS} | {f"{kit.ends[1]:g}": found.terms}
    means = {end: likelihood.Mean.bits(terms.total, found.dim) for end, terms in rows.items()}
    return {
        "images": len(test),
        "decoded_from": {end: [mean.value, mean.standard_error] for end, mean in means.items()},
    }


def errors(kit: Kit, network: ConditionedNetwork) -> dict[str, Any]:
    """E‖ε̂ − ε‖² on test images in the middle of each of :data:`LEVELS` equal parts of the range."""
    test, (low, high) = kit.images("test", TEST_IMAGES["levels"]), kit.ends
    levels = low + (high - low) * (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    found = evaluation.errors_by_level(network, kit.prediction, test, levels)
    return {"images": len(test), "logsnr": levels.tolist(), "eps_error": found.tolist()}


# Many networks, several at once --------------------------------------------------------------------------------------


def serve(
    kit: Kit,
    setting: dict[str, Any],
    runs: list[tuple[str, int]],
    place: Any,
    deadline: float,
    commit: str | None,
    keep: Callable[[dict[str, Any], bytes | None], None],
) -> None:
    """What a worker does: take the next of ``runs``, make it, keep its line; until the deadline, or SIGTERM.

    SIGTERM ends training in good order, and lets an evaluation finish.

    Args:
        kit: what there is to work with.
        setting: what piece (a) found.
        runs: weightings and seeds.
        place: the number of the next one, shared with the other workers.
        deadline: the time after which none is begun.
        commit: of the code.
        keep: takes a line and, where there is one, the sheet of samples.
    """
    prepare(kit, setting["processes"])
    with StopSignals() as signals:
        while not signals.received and time.time() < deadline:
            with place.get_lock():
                number, place.value = place.value, place.value + 1
            if number >= len(runs):
                return
            weighting, seed = runs[number]
            try:
                keep(*make(kit, weighting, seed, setting["steps"], setting["compile"], commit))
            except training.TrainingInterrupted:
                return
            except Exception as error:  # one network is lost, not the machine's half hour
                keep({"name": name_of(weighting, seed), "failed": f"{type(error).__name__}: {error}"}, None)


def prepare(kit: Kit, processes: int) -> None:
    """Divide the processor among the processes; matrices in TF32, which evaluation alone feels."""
    if kit.device.type == "cuda":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


# Measurements --------------------------------------------------------------------------------------------------------


def throughput(kit: Kit, batch: int, compiled: bool, processes: int, barrier: Any, seconds: float) -> float:
    """Images a second that this process trains on while as many others as there are do the same."""
    prepare(kit, processes)
    network = kit.network(0)
    if compiled:
        network.compile()
    config = kit.config(0, steps=10**6, batch_size=batch)
    trainer = training.Trainer(network, kit.loss("sigmoid_k2"), kit.images("train"), config)
    for _ in range(3):
        trainer.advance()
    barrier.wait(timeout=120)
    begun, first = time.perf_counter(), trainer.step
    while time.perf_counter() - begun < seconds:
        trainer.advance()
    kit.wait()
    return (trainer.step - first) * batch / (time.perf_counter() - begun)


def waits(kit: Kit, steps: int = 10) -> dict[str, float]:
    """How often a step has the processor wait for the GPU, by the name of the call: counted by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    trainer = training.Trainer(kit.network(0), kit.loss("sigmoid_k2"), kit.images("train"), kit.config(0, 2 * steps))
    for _ in range(steps):
        trainer.advance()
    kit.wait()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if kit.device.type == "cuda" else [])]
    with profile(activities=activities) as recorded:
        for _ in range(steps):
            trainer.advance()
    counted = {event.key: event.count / steps for event in recorded.key_averages()}
    return {name: n for name, n in counted.items() if "Synchronize" in name or name == "aten::_local_scalar_dense"}


def difference(kit: Kit, precision: str) -> dict[str, float]:
    """By how much a training step on the device differs from one on the CPU, relative, by norms."""
    here, there = (_stepped(kit, torch.device(kind), precision) for kind in ("cpu", kit.device.type))
    return {name: ((there[name] - value).norm() / value.norm()).item() for name, value in here.items()}


def _stepped(kit: Kit, device: torch.device, precision: str) -> dict[str, Tensor]:
    """Loss, gradient and averaged weights after two steps of a network no layer of which is zero."""
    network = kit.network(0).to("cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    config = kit.config(0, 2, batch_size=min(kit.batch, 64), precision=precision, warmup_steps=10, log_every=1)
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # other products are so until :func:`prepare`
    with mock.patch.object(training, "noise", _noise_of_a_cpu), exact:
        trainer = training.Trainer(network.to(device), kit.loss("sigmoid_k2"), kit.images("train"), config)
        trainer.advance()
        trainer.advance()
    vectors = {
        "loss": [torch.tensor([entry["loss"] for entry in trainer.history], dtype=torch.float64)],
        "gradient": [weight.grad for weight in network.parameters() if weight.grad is not None],
        "average": trainer.averages[config.ema_decays[0]].values(),
    }
    return {name: torch.cat([part.flatten().double().cpu() for part in parts]) for name, parts in vectors.items()}


def _noise_of_a_cpu(*arguments: Any, device: torch.device | str = "cpu", **options: Any) -> Tensor:
    """A GPU draws other noise than a CPU: have the latter draw for both."""
    return randomness.noise(*arguments, **options).to(device)
