"""Training: exact resume, what is averaged and saved, what a run is known by, and how it fails."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import models, predictions, schedules, weightings
from paperlib.adaptive import AdaptiveSchedule
from paperlib.engine import checkpoints, data, states, training
from paperlib.engine.batching import batch_indices
from paperlib.engine.files import UnwritableError
from paperlib.engine.randomness import Draws, noise
from paperlib.engine.training import Trainer, TrainingConfig, TrainingDivergedError, TrainResult
from paperlib.models import ConditionedNetwork
from paperlib.objectives import WeightedLoss

DIGITS = data.load("digits", "train")
LOSS = WeightedLoss(weightings.Sigmoid(2.0), schedules.Cosine(-10, 10), predictions.V)
CONFIG = TrainingConfig(steps=11, batch_size=8, warmup_steps=3, ema_decays=(0.6,), checkpoint_every=3, log_every=2)


def network(name: str = "mlp", seed: int = 0) -> ConditionedNetwork:
    small: dict[str, dict[str, Any]] = {
        "mlp": {"width": 16, "hidden": 16, "blocks": 1},
        "unet": {"channels": 8, "blocks": 1, "head_channels": 8},
    }
    return models.build(name, image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, seed=seed, **small[name])


def train(directory: Path, config: TrainingConfig = CONFIG, **changes: Any) -> TrainResult:
    arguments = {"network": network(), "loss": LOSS, "data": DIGITS} | changes
    return training.train(**arguments, config=config, directory=directory, progress=False)


def weights(result: TrainResult) -> dict[str, Tensor]:
    return result.network.state_dict()


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def interrupt(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Have Ctrl-C pressed before each of these steps, once."""
    advance, remaining = Trainer.advance, list(steps)

    def advance_or_stop(trainer: Trainer) -> None:
        if remaining and trainer.step == remaining[0]:
            remaining.pop(0)
            raise KeyboardInterrupt
        advance(trainer)

    monkeypatch.setattr(Trainer, "advance", advance_or_stop)


# Resume --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "unet"])
@pytest.mark.parametrize("stops", [(1,), (7,), (5, 8, 10)], ids=str)
def test_an_interrupted_run_equals_an_uninterrupted_one_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stops: tuple[int, ...]
) -> None:
    config = replace(CONFIG, weights_precision="fp32", ema_decays=(0.6, 0.95))
    whole = train(tmp_path / "whole", config, network=network(name))
    interrupt(monkeypatch, *stops)
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", config, network=network(name))
    torch.manual_seed(99)  # nothing may depend on the global generator
    start = network(name) if stops == (1,) else network(name, seed=5)  # nor, once there is a state, on the start
    parts = train(tmp_path / "parts", config, network=start)
    assert all(torch.equal(value, weights(parts)[key]) for key, value in weights(whole).items())
    slower = [checkpoints.read_card(tmp_path / run / "weights-0.95.safetensors") for run in ("whole", "parts")]
    assert slower[0]["weights_sha256"] == slower[1]["weights_sha256"]
    assert without_seconds(parts.history) == without_seconds(whole.history)
    assert training.read_log(tmp_path / "parts" / "log.jsonl") == parts.history


def test_a_trainer_goes_back_to_a_state(tmp_path: Path) -> None:
    trainer, after = Trainer(network(), LOSS, DIGITS, CONFIG), list[Tensor]()
    for _ in range(2):
        trainer.advance()
    path = states.save_state(tmp_path, trainer.tensors(), trainer.values())
    for _ in range(2):
        trainer.advance()
        trainer.advance()
        after.append(torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()]))
        trainer.restore(path, states.read_values(path))
    assert trainer.step == 2
    assert torch.equal(*after)


def test_weights_in_half_precision_are_trained_on_the_same_levels() -> None:
    def levels(dtype: torch.dtype) -> Tensor:
        trainer = Trainer(network().to(dtype), LOSS, DIGITS, CONFIG)
        return trainer._backward(trainer._fetch()).logsnr

    assert torch.equal(levels(torch.bfloat16), levels(torch.float32))


def test_a_damaged_newest_state_costs_only_the_steps_since_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole")
    interrupt(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts")
    newest = states.states(tmp_path / "parts" / "states")[-1]
    (newest / "state.json").write_text("{")
    with pytest.warns(UserWarning, match=newest.name):
        parts = train(tmp_path / "parts")
    assert all(torch.equal(value, weights(parts)[key]) for key, value in weights(whole).items())


def test_a_finished_run_is_returned_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path)
    monkeypatch.setattr(Trainer, "advance", None)
    again = train(tmp_path, network=network(seed=7))
    assert all(torch.equal(value, weights(again)[key]) for key, value in weights(first).items())
    assert (again.history, again.card, again.seconds) == (first.history, first.card, first.seconds)
    assert not again.network.training
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "MODEL_CARD.md",
        "log.jsonl",
        "weights.safetensors",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"config": replace(CONFIG, seed=1)},
        {"config": replace(CONFIG, learning_rate=2e-3)},
        {"loss": replace(LOSS, weighting=weightings.Sigmoid(2.5))},
        {"loss": replace(LOSS, schedule=schedules.Cosine(-10, 9.5))},
        {"loss": replace(LOSS, prediction=predictions.EPS)},
        {"data": replace(DIGITS, labels=DIGITS.labels.flip(0))},
        {"network": models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, width=8)},
    ],
    ids=["seed", "learning rate", "weighting", "schedule", "prediction", "data", "network"],
)
def test_a_run_of_another_configuration_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    old = train(tmp_path)
    interrupt(monkeypatch, 5)
    with pytest.warns(UserWarning, match="another configuration"), pytest.raises(KeyboardInterrupt):
        train(tmp_path, **change)
    assert checkpoints.read_card(old.weights) == old.card  # kept until the new run is finished
    with pytest.warns(UserWarning, match="another configuration"):
        assert train(tmp_path, **change).card["key"] != old.card["key"]


def test_states_of_another_configuration_are_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(CONFIG, seed=1)
    expected = train(tmp_path / "alone", other)
    interrupt(monkeypatch, 10)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "mixed")
    found = train(tmp_path / "mixed", other)
    assert all(torch.equal(value, weights(found)[key]) for key, value in weights(expected).items())


@pytest.mark.parametrize("change", [{"accumulate": 4}, {"workers": 1}, {"checkpoint_every": 2}, {"keep_states": 1}])
def test_a_run_goes_on_where_only_its_housekeeping_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    whole = train(tmp_path / "whole")
    interrupt(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts")
    parts = train(tmp_path / "parts", replace(CONFIG, **change))
    assert without_seconds(parts.history)[:3] == without_seconds(whole.history)[:3]
    assert [entry["loss"] for entry in parts.history] == pytest.approx([e["loss"] for e in whole.history], rel=1e-5)


class Dropping(models.MLP):
    """An MLP that drops out half of its input."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dropout = torch.nn.Dropout(0.5)

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        return super().body(self.dropout(x), condition)


def dropping() -> Dropping:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dropping(image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, width=16, hidden=16, blocks=1)


def test_every_micro_batch_of_every_step_drops_out_something_else() -> None:
    trainer = Trainer(network := dropping(), LOSS, DIGITS, replace(CONFIG, accumulate=2))
    masks = list[Tensor]()
    network.dropout.register_forward_hook(lambda module, arguments, output: masks.append(output == 0))
    for _ in range(3):
        trainer.advance()
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == len(masks) == 6


def test_dropout_is_resumed_exactly_and_leaves_the_generator_of_torch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, before = [dropping() for _ in range(4)], torch.get_rng_state()
    whole = train(tmp_path / "whole", network=start[0])
    assert torch.equal(torch.get_rng_state(), before)
    interrupt(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", network=start[1])
    torch.manual_seed(99)
    parts = train(tmp_path / "parts", network=start[2])
    assert all(torch.equal(value, weights(parts)[key]) for key, value in weights(whole).items())
    monkeypatch.setattr(training, "seed_dropout", lambda *_: None)  # the masks matter: others give other weights
    other = train(tmp_path / "other", network=start[3])
    assert not torch.equal(weights(other)["inward.weight"], weights(whole)["inward.weight"])


# The adaptive schedule -----------------------------------------------------------------------------------------------


def adaptive_loss() -> tuple[WeightedLoss, AdaptiveSchedule]:
    schedule = AdaptiveSchedule(-10, 10, bins=20, decay=0.5)
    return replace(LOSS, schedule=schedule), schedule


def test_an_adaptive_schedule_is_part_of_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, weights_precision="fp32")
    losses, found = zip(*(adaptive_loss() for _ in range(3)), strict=True)
    for schedule in found[1:]:
        schedule.update(torch.tensor([3.0]), torch.tensor([9.0]))  # what it learned elsewhere is forgotten
    whole = train(tmp_path / "whole", config, loss=losses[0])
    interrupt(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", config, loss=losses[1])
    parts = train(tmp_path / "parts", config, loss=losses[2])
    assert all(torch.equal(value, weights(parts)[key]) for key, value in weights(whole).items())
    assert all(torch.equal(value, found[2].state_dict()[key]) for key, value in found[0].state_dict().items())
    assert whole.card["learned_schedule"]["average"] == found[0].average.tolist()
    assert len(found[0].average.unique()) > 10


def test_a_finished_run_gives_its_adaptive_schedule_back(tmp_path: Path) -> None:
    (loss, trained), (other, fresh) = adaptive_loss(), adaptive_loss()
    first = train(tmp_path, loss=loss)
    assert train(tmp_path, loss=other).card == first.card
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    assert torch.equal(trained.logsnr(t), fresh.logsnr(t))


def test_an_adaptive_schedule_sees_every_step_once_and_errors_not_divided_by_p() -> None:
    loss, schedule = adaptive_loss()
    trainer = Trainer(network(), loss, DIGITS, replace(CONFIG, batch_size=40, accumulate=4))
    other, expected = adaptive_loss()
    for step in range(3):
        draws, index = Draws.of(0, step, 40), batch_indices(0, step, 40, len(DIGITS))
        label = DIGITS.labels[index].masked_fill(draws.drop < 0.1, 10)
        x, eps = DIGITS.scaled()[index], noise(0, step, range(40), (1, 8, 8))
        with torch.no_grad():
            parts = other(trainer.network, x, t=draws.t, eps=eps, label=label)
        trainer.advance()
        expected.update(parts.logsnr, parts.weighted_error)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(schedule.state_dict()[name], tensor, rtol=1e-4, atol=0)


# A step --------------------------------------------------------------------------------------------------------------


def test_twenty_steps_from_nothing_lower_the_loss(tmp_path: Path) -> None:
    config = TrainingConfig(steps=20, batch_size=64, learning_rate=3e-3, warmup_steps=2, ema_decays=(0.8,), log_every=5)
    result = train(
        tmp_path, config, network=models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75)
    )
    assert [entry["step"] for entry in result.history] == [5, 10, 15, 20]
    assert result.history[-1]["loss"] < 0.95 * result.history[0]["loss"]


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.95])
def test_what_is_saved_is_the_moving_average_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    after_each_step: list[dict[str, Tensor]] = []
    advance = Trainer.advance

    def watched(trainer: Trainer) -> None:
        advance(trainer)
        after_each_step.append({key: value.clone() for key, value in trainer.network.state_dict().items()})

    monkeypatch.setattr(Trainer, "advance", watched)
    result = train(tmp_path, replace(CONFIG, ema_decays=(decay,), weights_precision="fp32"))
    for key, value in weights(result).items():
        average = after_each_step[0][key]
        for following in after_each_step[1:]:
            average = decay * average + (1 - decay) * following[key]
        torch.testing.assert_close(value, average)


def test_several_averages_are_kept_at_once_each_in_a_file_of_its_own(tmp_path: Path) -> None:
    config = replace(CONFIG, weights_precision="fp32")
    both = train(tmp_path / "both", replace(config, ema_decays=(0.6, 0.95)))
    for decay, file in ((0.6, "weights.safetensors"), (0.95, "weights-0.95.safetensors")):
        alone, found = train(tmp_path / str(decay), replace(config, ema_decays=(decay,))), network(seed=5)
        card = checkpoints.load_weights(tmp_path / "both" / file, found)
        assert (card["ema_decay"], card["weights"]) == (decay, f"exponential moving average, decay {decay}")
        assert all(torch.equal(value, found.state_dict()[key]) for key, value in weights(alone).items())
    assert not torch.equal(weights(both)["inward.weight"], weights(alone)["inward.weight"])


def test_the_network_that_is_returned_holds_the_rounded_weights_of_the_file(tmp_path: Path) -> None:
    result = train(tmp_path)
    assert all(torch.equal(value, value.bfloat16().float()) for value in weights(result).values())
    other = network(seed=3)
    assert checkpoints.load_weights(result.weights, other) == result.card
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in weights(result).items())


def test_the_card_says_how_the_weights_were_made(tmp_path: Path) -> None:
    card = train(tmp_path, card={"licence": "MIT"}).card
    assert card["licence"] == "MIT"
    assert card["data"] == {name: value for name, value in DIGITS.provenance().items() if value}
    assert card["data"]["sha256"] == DIGITS.sha256
    assert f"| data sha256 | {DIGITS.sha256} |" in (tmp_path / "MODEL_CARD.md").read_text()
    assert card["training"]["steps"] == 11
    assert card["loss"]["weighting"] == "Sigmoid(bias=2.0)"
    assert models.build(**card["network"]).load_state_dict(network().state_dict())


@pytest.mark.parametrize("seed", [0, 1])
def test_runs_depend_on_their_seed_alone(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    first, other = train(tmp_path / "a"), train(tmp_path / "b", replace(CONFIG, seed=seed))
    equal = [torch.equal(value, weights(other)[key]) for key, value in weights(first).items()]
    assert all(equal) == (seed == 0)


def test_mixed_precision_trains_nearly_the_same_network(tmp_path: Path) -> None:
    full, mixed = (train(tmp_path / name, replace(CONFIG, precision=name)) for name in ("fp32", "bf16"))
    losses = [[entry["loss"] for entry in result.history] for result in (full, mixed)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(value.dtype == torch.float32 for value in weights(mixed).values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_labels_are_dropped_to_the_null_class_as_often_as_asked(dropout: float) -> None:
    config = replace(CONFIG, batch_size=2000, label_dropout=dropout)
    trainer, seen = Trainer(network(), LOSS, DIGITS, config), list[Tensor]()
    trainer.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2]))
    trainer.advance()
    index = batch_indices(config.seed, 0, 2000, len(DIGITS))
    dropped = seen[0] == 10
    assert dropped.float().mean().item() == pytest.approx(dropout, abs=0.04)
    assert torch.equal(seen[0][~dropped], DIGITS.labels[index][~dropped])


def test_a_network_without_classes_is_told_none(tmp_path: Path) -> None:
    unconditional = models.build("mlp", image_shape=(1, 8, 8), num_classes=0, sigma_data=0.75, width=8)
    assert train(tmp_path, network=unconditional).network.num_classes == 0


def test_the_learning_rate_rises_linearly_then_stays(tmp_path: Path) -> None:
    config = TrainingConfig(steps=8, batch_size=4, learning_rate=0.4, warmup_steps=4, log_every=1)
    assert [config.learning_rate_at(step) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    config = replace(config, learning_rate=1e-3)
    history = train(tmp_path, config).history
    assert [entry["learning_rate"] for entry in history] == [config.learning_rate_at(step) for step in range(8)]


def test_the_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(network(), LOSS, DIGITS, replace(CONFIG, grad_clip=1e-3, log_every=1))
    trainer.advance()
    norm = torch.stack([p.grad.norm() for p in trainer.network.parameters() if p.grad is not None]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert trainer.history[0]["grad_norm"] > 1e-2  # the log has the norm before


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_micro_batches_have_the_gradient_of_the_whole_batch(name: str, dtype: torch.dtype, tolerance: float) -> None:
    gradients, losses = [], []
    for accumulate in (1, 2, 5, 40):
        config = replace(CONFIG, batch_size=40, accumulate=accumulate, horizontal_flip=True, grad_clip=1e9, log_every=1)
        perturbed = network(name).to(dtype)
        for parameter in perturbed.parameters():  # what begins at zero hides mistakes behind it
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        trainer = Trainer(perturbed, LOSS, DIGITS, config)
        trainer.advance()
        found = [parameter.grad for parameter in perturbed.parameters() if parameter.grad is not None]
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
        losses.append(trainer.history[0]["loss"])
    assert len(found) == len(list(perturbed.parameters()))
    for gradient, loss in zip(gradients[1:], losses[1:], strict=True):
        assert (gradient - gradients[0]).norm() <= tolerance * gradients[0].norm()
        assert loss == pytest.approx(losses[0], rel=tolerance)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size \(8\) must be a multiple of processes × accumulate = 1 × 3"):
        Trainer(network(), LOSS, DIGITS, replace(CONFIG, accumulate=3))


@pytest.mark.parametrize("flips", [False, True])
def test_every_second_picture_is_mirrored_where_asked(flips: bool) -> None:
    noiseless = replace(LOSS, schedule=schedules.LinearLogSNR(29, 30))
    config = replace(CONFIG, batch_size=1000, horizontal_flip=flips)
    trainer, seen = Trainer(network(), noiseless, DIGITS, config), list[Tensor]()
    trainer.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    trainer.advance()
    x = DIGITS.scaled()[batch_indices(config.seed, 0, 1000, len(DIGITS))]
    same, mirrored = ((seen[0] - y).abs().amax((1, 2, 3)) < 1e-3 for y in (x, x.flip(-1)))
    assert (same | mirrored).all()
    assert same.float().mean().item() == pytest.approx(0.5 if flips else 1, abs=0.05)


def test_the_optimiser_is_adamw_with_the_numbers_of_the_recipe() -> None:
    trainer = Trainer(network(), LOSS, DIGITS, replace(CONFIG, betas=(0.8, 0.95), weight_decay=0.2))
    group = trainer.optimiser.param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.95), 0.2)


@pytest.mark.parametrize("workers", [1, 3])
def test_images_that_are_fetched_ahead_are_the_same_images(tmp_path: Path, workers: int) -> None:
    first, other = train(tmp_path / "a"), train(tmp_path / "b", replace(CONFIG, workers=workers))
    assert all(torch.equal(value, weights(other)[key]) for key, value in weights(first).items())
    assert first.card["key"] == other.card["key"]


@pytest.mark.parametrize("name", weightings.WEIGHTINGS)
def test_the_loss_is_scaled_by_that_of_a_network_that_predicts_no_noise(name: str) -> None:
    loss = WeightedLoss(weightings.get(name), schedules.LinearLogSNR(-6, 6), predictions.EPS)
    x = torch.zeros(20_000, 3, dtype=torch.float64)
    parts = loss(lambda z, logsnr: torch.zeros_like(z), x, generator=torch.Generator().manual_seed(0))
    assert parts.mean().item() == pytest.approx(training.loss_scale(loss, 3), rel=0.05)


# Failure -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def breaking() -> Iterator[ConditionedNetwork]:
    """A network whose output is NaN for the third image of its ninth batch."""
    broken, calls = network(), iter(range(100))

    def hook(module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if next(calls) == 8:
            output = output.clone()
            output[2] = math.nan
        return output

    handle = broken.register_forward_hook(hook)
    yield broken
    handle.remove()


def test_a_loss_that_is_not_finite_stops_the_run_and_is_recorded(tmp_path: Path, breaking: ConditionedNetwork) -> None:
    with pytest.raises(TrainingDivergedError, match=r"step 8: loss nan.*at log-SNR -?\d+\.\d\d\."):
        train(tmp_path, network=breaking)
    record = json.loads((tmp_path / "failure.json").read_text())
    batch = batch_indices(CONFIG.seed, 8, CONFIG.batch_size, len(DIGITS)).tolist()
    assert (record["step"], record["batch"], record["images"]) == (8, batch, [batch[2]])
    assert len(record["logsnr"]) == 1
    assert -10 <= record["logsnr"][0] <= 10
    assert not (tmp_path / "weights.safetensors").exists()
    path = states.newest_state(tmp_path / "states")
    assert path is not None
    trainer = Trainer(network(seed=1), LOSS, DIGITS, CONFIG)
    trainer.restore(path, states.read_values(path))
    assert trainer.step == 6
    assert all(torch.isfinite(value).all() for value in trainer.network.parameters())


def test_a_run_goes_on_from_the_state_before_the_failure(tmp_path: Path, breaking: ConditionedNetwork) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(TrainingDivergedError):
        train(tmp_path / "broken", network=breaking)
    mended = train(tmp_path / "broken")
    assert all(torch.equal(value, weights(mended)[key]) for key, value in weights(whole).items())
    assert not (tmp_path / "broken" / "failure.json").exists()


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    broken = network()
    parameter = next(broken.parameters())
    parameter.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    with pytest.raises(TrainingDivergedError, match=r"step 0: .*only the gradient"):
        train(tmp_path, network=broken)
    assert all(torch.isfinite(value).all() for value in broken.parameters())


def test_a_folder_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    monkeypatch.setattr(Trainer, "advance", None)
    with pytest.raises(UnwritableError, match=r"log\.jsonl: no permission"):
        train(tmp_path / "run")


def test_damaged_finished_weights_are_refused_by_name(tmp_path: Path) -> None:
    path = train(tmp_path).weights
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(checkpoints.DamagedFileError, match=r"weights\.safetensors"):
        train(tmp_path)


def test_network_and_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for shape, classes in (((1, 4, 4), 10), ((1, 8, 8), 3)):
        other = models.build("mlp", image_shape=shape, num_classes=classes, sigma_data=0.75)
        with pytest.raises(ValueError, match=r"digits/train has \(1, 8, 8\) of 10"):
            train(tmp_path, network=other)


def test_a_weighting_that_cannot_be_recognised_is_refused(tmp_path: Path) -> None:
    loss = replace(LOSS, weighting=weightings.Custom(lambda logsnr: -logsnr))
    with pytest.raises(ValueError, match="frozen dataclass"):
        train(tmp_path, loss=loss)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", -5),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("grad_clip", -1.0),
        ("checkpoint_every", 0),
        ("keep_states", 0),
        ("log_every", 0),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
        ("seed", -1),
        ("workers", -1),
        ("accumulate", 0),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("ema_decays", (0.9, 1.0)),
        ("ema_decays", ()),
        ("ema_decays", (0.9, 0.9)),
        ("label_dropout", 1.5),
        ("label_dropout", math.nan),
        ("precision", "fp16"),
        ("weights_precision", "int8"),
    ],
)
def test_a_configuration_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        replace(CONFIG, **{name: value})


def test_an_unfinished_last_line_of_the_log_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert training.read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}]


def test_three_steps_are_those_of_the_loop_written_out() -> None:
    config = replace(CONFIG, label_dropout=0.0, weight_decay=0.1, grad_clip=0.05, log_every=1)
    trainer, expected, losses = Trainer(network("unet"), LOSS, DIGITS, config), network("unet"), []
    optimiser = torch.optim.AdamW(expected.parameters(), weight_decay=0.1)
    for step, share in enumerate((1 / 3, 2 / 3, 1)):
        trainer.advance()
        index = batch_indices(0, step, 8, len(DIGITS))
        x, label = DIGITS.scaled()[index], DIGITS.labels[index]
        t, eps = Draws.of(0, step, 8).t, noise(0, step, range(8), (1, 8, 8))
        loss = LOSS(expected, x, t=t, eps=eps, label=label).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        (loss / training.loss_scale(LOSS, 64)).backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.05)
        optimiser.param_groups[0]["lr"] = 1e-3 * share
        optimiser.step()
    assert [entry["loss"] for entry in trainer.history] == pytest.approx(losses, rel=1e-5)
    for found, wanted in zip(trainer.network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
