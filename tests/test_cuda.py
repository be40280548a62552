"""What only a GPU can show: that results do not depend on where they are computed.

``tools/gpu.py`` runs this file on machines that have little more than torch and pytest: nothing else is imported.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from paperlib import models, objectives, predictions, schedules, weightings
from paperlib.adaptive import AdaptiveSchedule
from paperlib.engine import data, evaluation, features, likelihood, sampling, training
from paperlib.models import ConditionedNetwork, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

GPU = "cuda"
OPTIONS = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "transformer_blocks": 1, "head_channels": 16, "patch": 2}
LEVELS = sampling.levels(schedules.EDMSampling(-8.0, 12.0), 6)


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="module")
def images() -> data.ImageData:
    """Noise in ten classes, one shade each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 10
    pixels = 20 * labels[:, None, None, None] + torch.randint(40, (96, 3, 32, 32), generator=generator)
    return data.ImageData("noise/train", pixels.to(torch.uint8), labels, 256, 0.5)


def network(device: str, seed: int = 0) -> ConditionedNetwork:
    """A small U-ViT none of whose layers is zero."""
    found = models.build("uvit", image_shape=(3, 32, 32), num_classes=10, sigma_data=0.5, seed=seed, **OPTIONS)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return found.eval().to(device)


def loss() -> objectives.WeightedLoss:
    return objectives.WeightedLoss(weightings.Sigmoid(2.0), AdaptiveSchedule(-10.0, 14.0), predictions.V)


def config(**changes: Any) -> training.TrainingConfig:
    recipe = {"steps": 12, "batch_size": 16, "warmup_steps": 2, "checkpoint_every": 4, "log_every": 4}
    return training.TrainingConfig(**recipe | changes)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_reach_a_gpu(images: data.ImageData, workers: int) -> None:
    wanted = [training.batch_indices(0, step, 10, len(images)) for step in range(20)]
    for batch, index in zip(data.batches(images, wanted, GPU, workers), wanted, strict=True):
        assert {part.device.type for part in (batch.index, batch.images, batch.labels)} == {GPU}
        assert torch.equal(batch.images.cpu(), images.images[index])


def test_an_adaptive_schedule_learns_the_same_on_both() -> None:
    generator = torch.Generator().manual_seed(0)
    here, there = AdaptiveSchedule(-10.0, 14.0), AdaptiveSchedule(-10.0, 14.0)
    for _ in range(5):
        t, error = (torch.rand(64, generator=generator) for _ in range(2))
        here.update(here.logsnr(t), error)
        there.update(there.logsnr(t.to(GPU)), error.to(GPU))
    grid = torch.linspace(-10, 14, 101, dtype=torch.float64)
    torch.testing.assert_close(there.density(grid.to(GPU)).cpu(), here.density(grid), rtol=1e-5, atol=0)
    torch.testing.assert_close(there.time(grid.to(GPU)).cpu(), here.time(grid), rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupted_run_goes_on(images: data.ImageData, tmp_path: Path, precision: str) -> None:
    recipe = config(precision=precision, weights_precision="fp32")
    whole = training.train(network(GPU), loss(), images, recipe, tmp_path / "whole", progress=False)
    trainer = training.Trainer(network(GPU), loss(), images, recipe)
    for _ in range(8):
        trainer.advance()
    values = {"course": training.run_key(network(GPU), loss(), images, recipe).course, **trainer.values()}
    training.checkpoint.save_state(tmp_path / "parts" / "states", trainer.tensors(), values, keep=1)
    parts = training.train(network(GPU), loss(), images, recipe, tmp_path / "parts", progress=False)
    assert [line["step"] for line in parts.history] == [4, 8, 12]
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(parts.network.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_weights_of_a_gpu_are_those_of_a_cpu(images: data.ImageData, tmp_path: Path) -> None:
    trained = training.train(
        network(GPU), loss(), images, config(weights_precision="fp32"), tmp_path / "run", progress=False
    )
    loaded = network("cpu", seed=1)
    weights.load_weights(trained.weights, loaded)
    z, logsnr, label = images.scaled()[:8], torch.linspace(-9, 13, 8), images.labels[:8]
    with torch.no_grad():
        there = trained.network(z.to(GPU), logsnr.to(GPU), label.to(GPU)).cpu()
        torch.testing.assert_close(there, loaded(z, logsnr, label), rtol=1e-4, atol=1e-4)


def test_a_compiled_network_predicts_the_same(images: data.ImageData) -> None:
    plain, compiled = network(GPU), network(GPU)
    compiled.compile()
    z, logsnr, label = images.scaled()[:8].to(GPU), torch.linspace(-9, 13, 8, device=GPU), images.labels[:8].to(GPU)
    with torch.no_grad():
        torch.testing.assert_close(compiled(z, logsnr, label), plain(z, logsnr, label), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", sorted(sampling.SAMPLERS))
def test_samplers_follow_the_same_path(images: data.ImageData, sampler: str) -> None:
    z = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", GPU):
        denoise = sampling.NetworkDenoiser(network(device), predictions.V, images.labels[:4].to(device), guidance=1.5)
        options = {"generator": torch.Generator(device).manual_seed(0)}
        found.append(sampling.get(sampler)(denoise, z.to(device), LEVELS, **options).cpu())
    assert found[1].isfinite().all()
    if sampler != "ddpm":  # whose noise is drawn where it is needed
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


def test_samples_depend_on_their_seed_alone(images: data.ImageData) -> None:
    def draw() -> torch.Tensor:
        batches = evaluation.Drawing("heun", LEVELS, batch_size=4).samples(
            network(GPU), predictions.V, images.labels[:6]
        )
        return torch.cat(list(batches))

    torch.testing.assert_close(draw(), draw(), rtol=1e-4, atol=1e-4)


def test_likelihoods_agree_within_their_errors(images: data.ImageData) -> None:
    schedule = schedules.LinearLogSNR(-10.0, 14.0)
    found = [
        likelihood.image_elbo(network(device), predictions.V, images, schedule, draws=4, device=device).bits
        for device in ("cpu", GPU)
    ]
    here, there = found
    assert abs(here.value - there.value) < 5 * (here.standard_error + there.standard_error)


def test_the_probability_flow_runs(images: data.ImageData) -> None:
    few = data.ImageData("noise/few", images.images[:2], images.labels[:2], 256, 0.5)
    found = likelihood.image_flow(network(GPU), predictions.V, few, (-8.0, 6.0), tolerance=1e-2, device=GPU)
    assert found.nats.isfinite().all()


def test_errors_by_level_agree(images: data.ImageData) -> None:
    levels = torch.tensor([-6.0, 0.0, 6.0])
    here, there = (evaluation.errors_by_level(network(d), predictions.V, images, levels) for d in ("cpu", GPU))
    assert there.device.type == "cpu"
    torch.testing.assert_close(there, here, rtol=0.02, atol=0)


def test_a_classifier_sees_the_same(images: data.ImageData) -> None:
    judge = features.classifier_of("cifar10")
    here = judge(images.images)
    try:
        there = judge.to(GPU)(images.images)
    finally:
        judge.to("cpu")
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)
