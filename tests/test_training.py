"""Training: exact resume, what is averaged and saved, what a run is known by, and how it fails."""

import importlib
import json
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import models, predictions, schedules, weightings
from paperlib.adaptive import AdaptiveSchedule
from paperlib.engine import checkpoint, data, training
from paperlib.engine.data import batch_indices
from paperlib.engine.interruption import Interrupted
from paperlib.engine.randomness import Draws, noise
from paperlib.engine.training import Trainer, TrainingConfig, TrainingDivergedError, TrainResult
from paperlib.files import DamagedFileError, UnwritableError
from paperlib.models import ConditionedNetwork, weights
from paperlib.objectives import LossParts, WeightedLoss

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


def weights_of(result: TrainResult) -> dict[str, Tensor]:
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
    parts = train(tmp_path / "parts", config, network=network(name))
    assert all(torch.equal(value, weights_of(parts)[key]) for key, value in weights_of(whole).items())
    slower = [weights.read_card(tmp_path / run / "weights-0.95.safetensors") for run in ("whole", "parts")]
    assert slower[0]["weights_sha256"] == slower[1]["weights_sha256"]
    assert without_seconds(parts.history) == without_seconds(whole.history)
    assert training.read_log(tmp_path / "parts" / "log.jsonl") == parts.history


def test_a_trainer_goes_back_to_a_state(tmp_path: Path) -> None:
    trainer, after = Trainer(network(), LOSS, DIGITS, CONFIG), list[Tensor]()
    for _ in range(2):
        trainer.advance()
    path = checkpoint.save_state(tmp_path, trainer.tensors(), trainer.values())
    for _ in range(2):
        trainer.advance()
        trainer.advance()
        after.append(torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()]))
        trainer.restore(path, checkpoint.read_values(path))
    assert trainer.step == 2
    assert torch.equal(*after)


def test_weights_in_half_precision_are_trained_on_the_same_levels() -> None:
    def levels(dtype: torch.dtype) -> Tensor:
        drawn: list[Tensor] = []

        class Listening(WeightedLoss):
            def __call__(self, *arguments: Any, **options: Any) -> LossParts:
                parts = super().__call__(*arguments, **options)
                drawn.append(parts.logsnr)
                return parts

        listening = Listening(LOSS.weighting, LOSS.schedule, LOSS.prediction)
        Trainer(network().to(dtype), listening, DIGITS, CONFIG).advance()
        return torch.cat(drawn)

    assert torch.equal(levels(torch.bfloat16), levels(torch.float32))


def test_the_average_of_weights_in_half_precision_follows_them() -> None:
    trainer = Trainer(network().bfloat16(), LOSS, DIGITS, replace(CONFIG, ema_decays=(0.9,)))
    average = trainer.averages[0.9]
    expected = {name: weight.detach().double() for name, weight in trainer.parameters.items()}
    for step in range(CONFIG.steps):
        trainer.advance()
        decay = 0.9 if step else 0.0
        now = {name: weight.detach().double() for name, weight in trainer.parameters.items()}
        expected = {name: decay * value + (1 - decay) * now[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(average[name].double(), value, rtol=1e-5, atol=1e-6)


def test_parameters_of_two_names_are_refused() -> None:
    tied = network()
    tied.blocks[0].branch[2].weight = tied.blocks[0].branch[0].weight  # type: ignore[index, union-attr]
    with pytest.raises(
        ValueError, match=r"^blocks\.0\.branch\.2\.weight: these parameters are others by a second name"
    ):
        Trainer(tied, LOSS, DIGITS, CONFIG)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_to_be_stopped_in_the_last_step_ends_what_comes_after_a_run_that_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    advance = Trainer.advance

    def stopped(trainer: Trainer) -> None:
        advance(trainer)
        if trainer.step == CONFIG.steps:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "advance", stopped)
    with pytest.raises(Interrupted, match=rf"^stopped by {number.name} when .* was finished") as found:
        train(tmp_path)
    assert found.value.signal == number
    monkeypatch.setattr(Trainer, "advance", None)
    assert train(tmp_path).history[-1]["step"] == CONFIG.steps


def test_a_card_that_json_does_not_hold_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "advance", None)
    with pytest.raises(ValueError, match="the card's entry 'profile' goes into a file as JSON"):
        train(tmp_path / "run", card={"licence": "MIT", "profile": tmp_path})
    assert not (tmp_path / "run").exists()


def test_a_damaged_newest_state_costs_only_the_steps_since_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole")
    interrupt(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts")
    newest = checkpoint.states(tmp_path / "parts" / "states")[-1]
    (newest / "state.json").write_text("{")
    with pytest.warns(UserWarning, match=newest.name):
        parts = train(tmp_path / "parts")
    assert all(torch.equal(value, weights_of(parts)[key]) for key, value in weights_of(whole).items())


def test_a_finished_run_is_returned_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path)
    monkeypatch.setattr(Trainer, "advance", None)
    again = train(tmp_path)
    assert all(torch.equal(value, weights_of(again)[key]) for key, value in weights_of(first).items())
    assert (again.history, again.card, again.seconds) == (first.history, first.card, first.seconds)
    assert not again.network.training
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".lock",
        "MODEL_CARD.md",
        "log.jsonl",
        "weights.safetensors",
    ]


class Own(torch.nn.Module):
    """A network that is none of paperlib's."""

    image_shape, num_classes = (1, 8, 8), 10
    version: int | None = None

    def __init__(self, activation: type[torch.nn.Module] = torch.nn.Tanh) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(torch.nn.Linear(64, 8), activation(), torch.nn.Linear(8, 64))

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        return self.layers(z.flatten(1)).reshape(z.shape)


def own(version: int | None = None, activation: type[torch.nn.Module] = torch.nn.Tanh) -> torch.nn.Module:
    made = Own(activation)
    type(made).version = version
    return made


class Scaled(Own):
    """What it multiplies by is kept in no file of weights."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain), persistent=False)


def direct(**options: Any) -> ConditionedNetwork:
    """A network of paperlib's that was not made by ``build``."""
    shape = {"image_shape": (1, 8, 8), "num_classes": 10, "sigma_data": 0.75}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.UViT(**{**shape, "channels": 8, "head_channels": 8, "patch": 2, **options})


def started_elsewhere(seed: int = 0) -> ConditionedNetwork:
    """A network that is fine-tuned: its weights are not those of its seed."""
    begun = network(seed=seed)
    with torch.no_grad():
        begun.inward.weight[0, 0] += 1e-3  # type: ignore[index, union-attr]
    return begun


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"config": replace(CONFIG, seed=1)},
    "learning rate": {"config": replace(CONFIG, learning_rate=2e-3)},
    "weighting": {"loss": replace(LOSS, weighting=weightings.Sigmoid(2.5))},
    "schedule": {"loss": replace(LOSS, schedule=schedules.Cosine(-10, 9.5))},
    "prediction": {"loss": replace(LOSS, prediction=predictions.EPS)},
    "data": {"data": replace(DIGITS, labels=DIGITS.labels.flip(0))},
    "levels": {"data": replace(DIGITS, levels=18)},
    "network": {"network": models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, width=8)},
    "initialisation": {"network": network(seed=1)},
    "starting weights": {"network": started_elsewhere()},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_of_another_configuration_is_moved_aside_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    old = train(tmp_path)
    with pytest.warns(UserWarning, match=r"held a run of another configuration.*is in other-\w{8} now"):
        assert train(tmp_path, **change).card["key"] != old.card["key"]
    aside = next(tmp_path.glob("other-*"))
    assert aside.name == f"other-{old.card['key'][:8]}"
    assert weights.read_card(aside / "weights.safetensors") == old.card
    monkeypatch.setattr(Trainer, "advance", None)
    assert train(aside).card == old.card, "whole: it can be read where it is"


def key(**changes: Any) -> training.RunKey:
    return training.run_key(**{"network": network(), "loss": LOSS, "data": DIGITS, "config": CONFIG} | changes)


def test_every_change_of_the_result_has_a_key_of_its_own() -> None:
    others: list[dict[str, Any]] = [
        *CHANGES.values(),
        {"network": started_elsewhere(seed=1)},
        {"network": models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, width=8, seed=0)},
        {"network": dropping()},
        {"loss": replace(LOSS, schedule=AdaptiveSchedule(-10, 10))},
        {"loss": replace(LOSS, schedule=AdaptiveSchedule(-10, 10, bins=99))},
    ]
    mine = [(None, torch.nn.Tanh), (None, torch.nn.ReLU), (1, torch.nn.Tanh), (2, torch.nn.Tanh)]
    keys = [key().course, *(key(**change).course for change in others)]
    keys += [key(network=own(version, activation)).course for version, activation in mine]
    keys += [key(network=direct(**options)).course for options in ({}, {"folding": "wavelet"}, {"sigma_data": 0.6})]
    keys += [key(network=Scaled(gain)).course for gain in (1.0, 2.0)]
    assert len(set(keys)) == len(keys)
    assert key(network=direct()) == key(network=direct())
    assert key(config=replace(CONFIG, steps=12)).course == key().course
    assert key(config=replace(CONFIG, steps=12)).key != key().key


def test_a_key_is_of_values_not_of_how_they_are_written() -> None:
    again = replace(LOSS, weighting=weightings.Sigmoid(), schedule=schedules.Cosine(-10.0, 10.0, shift=0))
    assert key(loss=again, data=replace(DIGITS, name="ours", licence="another")) == key()
    written_out = {"width": 16, "hidden": 16, "blocks": 1, "condition_width": 128}
    taken = set(models.option_names("mlp"))
    defaults = {name: value for name, value in written_out.items() if name in taken and name != "condition_width"}
    other = models.build("mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, seed=0, **defaults)
    assert key(network=other) == key()


def test_a_network_whose_source_cannot_be_read_must_state_a_version() -> None:
    made: dict[str, Any] = {}
    exec("import torch\nclass Typed(torch.nn.Linear):\n    pass", made)
    typed = made["Typed"](2, 2)
    with pytest.raises(ValueError, match=r"source of Typed cannot be read.*version = 1"):
        key(network=typed)
    made["Typed"].version = 3
    assert key(network=typed) == key(network=typed)


def test_a_network_is_known_by_what_it_inherits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for function in ("tanh", "relu"):
        text = f"import torch\nclass Base(torch.nn.Linear):\n    def body(self, x):\n        return x.{function}()\n"
        (tmp_path / f"with_{function}.py").write_text(f"{text}class Mine(Base):\n    pass\n")
        torch.manual_seed(0)
        found.append(key(network=importlib.import_module(f"with_{function}").Mine(2, 2)))
    assert found[0] != found[1]


def test_states_of_another_configuration_are_moved_aside_and_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(CONFIG, seed=1)
    expected = train(tmp_path / "alone", other)
    interrupt(monkeypatch, 10)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "mixed")
    with pytest.warns(UserWarning, match=r"is in other-"):
        found = train(tmp_path / "mixed", other)
    assert all(torch.equal(value, weights_of(found)[key]) for key, value in weights_of(expected).items())
    aside = next((tmp_path / "mixed").glob("other-*/states"))
    assert [path.name for path in checkpoint.states(aside)] == ["step_000000006", "step_000000009"]


@pytest.mark.parametrize(
    "change",
    [{"accumulate": 4}, {"workers": 1}, {"checkpoint_every": 2}, {"keep_states": 1}, {"log_every": 1}],
)
def test_a_run_goes_on_where_only_its_housekeeping_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    whole = train(tmp_path / "whole")
    interrupt(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts")
    parts = train(tmp_path / "parts", replace(CONFIG, **change))
    assert without_seconds(parts.history)[:3] == without_seconds(whole.history)[:3]
    assert parts.history[3]["step"] == (7 if "log_every" in change else 8)
    assert all(torch.allclose(value, weights_of(parts)[key], rtol=0.02) for key, value in weights_of(whole).items())
    assert parts.card["key"] == whole.card["key"]


# More steps ----------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_for_as_many_steps_as_are_now_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = replace(CONFIG, steps=17)
    whole = train(tmp_path / "whole", longer)
    interrupt(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts")
    parts = train(tmp_path / "parts", longer)
    assert all(torch.equal(value, weights_of(parts)[key]) for key, value in weights_of(whole).items())
    assert without_seconds(parts.history) == without_seconds(whole.history)


def test_a_finished_run_goes_on_where_it_is_extendable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = replace(CONFIG, steps=12, extendable=True)
    whole = train(tmp_path / "whole", replace(CONFIG, steps=20))
    shorter = train(tmp_path / "parts", kept)
    assert shorter.card == train(tmp_path / "parts", kept).card
    steps, advance = [], Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda trainer: (steps.append(trainer.step), advance(trainer)))
    with pytest.warns(UserWarning, match=r"held a finished run from which this one goes on; it is in other-\w{8} now"):
        parts = train(tmp_path / "parts", replace(CONFIG, steps=20))
    assert steps == list(range(12, 20))
    assert train(next((tmp_path / "parts").glob("other-*")), kept).card == shorter.card
    assert all(torch.equal(value, weights_of(parts)[key]) for key, value in weights_of(whole).items())
    assert without_seconds(parts.history) == without_seconds(whole.history)


@pytest.mark.parametrize(("extendable", "steps"), [(False, 15), (True, 9), (False, 9)])
def test_a_finished_run_that_cannot_go_on_is_moved_aside_with_a_word(
    tmp_path: Path, extendable: bool, steps: int
) -> None:
    old = train(tmp_path / "run", replace(CONFIG, extendable=extendable))
    expected = train(tmp_path / "alone", replace(CONFIG, steps=steps))
    with pytest.warns(UserWarning, match=r"number of steps from which this one cannot go on.*extendable=True"):
        found = train(tmp_path / "run", replace(CONFIG, steps=steps))
    assert all(torch.equal(value, weights_of(found)[key]) for key, value in weights_of(expected).items())
    aside = next((tmp_path / "run").glob("other-*"))
    assert weights.read_card(aside / "weights.safetensors") == old.card


def test_a_state_goes_into_a_fresh_optimiser_as_if_it_had_never_left(tmp_path: Path) -> None:
    """Adam counts its steps for the correction of its bias: a fresh trainer has taken none."""
    trainer = Trainer(network(), LOSS, DIGITS, CONFIG)
    assert {float(value) for name, value in trainer.tensors().items() if ".step." in name} == {0.0}
    trainer.advance()
    path = checkpoint.save_state(tmp_path, trainer.tensors(), trainer.values())
    other = Trainer(network(seed=4), LOSS, DIGITS, CONFIG)
    before = [parameter.clone() for parameter in other.network.parameters()]
    other.tensors()
    assert all(torch.equal(a, b) for a, b in zip(before, other.network.parameters(), strict=True))
    other.restore(path, checkpoint.read_values(path))
    for one in (trainer, other):
        one.advance()
    assert all(torch.equal(value, other.tensors()[name]) for name, value in trainer.tensors().items())


# One at a time -------------------------------------------------------------------------------------------------------


def test_a_second_training_waits_for_the_first_and_says_for_whom(tmp_path: Path) -> None:
    """Both in one folder, the second begun in the middle of the first."""
    import threading

    begun, may_go_on = threading.Event(), threading.Event()
    slow, results = network(), list[TrainResult]()

    def hold(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        begun.set()
        may_go_on.wait(60)

    handle = slow.register_forward_pre_hook(hold)
    first = threading.Thread(target=lambda: results.append(train(tmp_path, network=slow)))
    first.start()
    assert begun.wait(60)
    threading.Timer(0.5, may_go_on.set).start()
    with pytest.warns(UserWarning, match=rf"being trained by process {os.getpid()} on .*; waiting for it"):
        found = train(tmp_path)
    first.join()
    handle.remove()
    assert found.card == results[0].card, "one training, found twice"
    assert found.history == results[0].history
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(found.history)


def test_tasks_of_slurm_that_do_not_know_of_one_another_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(ValueError, match=r"4 tasks.*torchrun"):
        train(tmp_path)
    assert train(tmp_path, engine="single").weights.is_file()


@pytest.mark.parametrize("name", ["log.jsonl", "MODEL_CARD.md", "weights-0.95.safetensors"])
@pytest.mark.parametrize("gone", [False, True])
def test_every_file_of_a_finished_run_is_checked(tmp_path: Path, name: str, gone: bool) -> None:
    config = replace(CONFIG, ema_decays=(0.6, 0.95))
    train(tmp_path, config)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if gone else path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=name):
        train(tmp_path, config)


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
    assert all(torch.equal(value, weights_of(parts)[key]) for key, value in weights_of(whole).items())
    monkeypatch.setattr(training, "seed_dropout", lambda *_: None)  # the masks matter: others give other weights
    other = train(tmp_path / "other", network=start[3])
    assert not torch.equal(weights_of(other)["inward.weight"], weights_of(whole)["inward.weight"])


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
    assert all(torch.equal(value, weights_of(parts)[key]) for key, value in weights_of(whole).items())
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
    for key, value in weights_of(result).items():
        average = after_each_step[0][key]
        for following in after_each_step[1:]:
            average = decay * average + (1 - decay) * following[key]
        torch.testing.assert_close(value, average)


def test_several_averages_are_kept_at_once_each_in_a_file_of_its_own(tmp_path: Path) -> None:
    config = replace(CONFIG, weights_precision="fp32")
    both = train(tmp_path / "both", replace(config, ema_decays=(0.6, 0.95)))
    for decay, file in ((0.6, "weights.safetensors"), (0.95, "weights-0.95.safetensors")):
        alone, found = train(tmp_path / str(decay), replace(config, ema_decays=(decay,))), network(seed=5)
        card = weights.load_weights(tmp_path / "both" / file, found)
        assert (card["ema_decay"], card["weights"]) == (decay, f"exponential moving average, decay {decay}")
        assert all(torch.equal(value, found.state_dict()[key]) for key, value in weights_of(alone).items())
    assert not torch.equal(weights_of(both)["inward.weight"], weights_of(alone)["inward.weight"])


def test_the_network_that_is_returned_holds_the_rounded_weights_of_the_file(tmp_path: Path) -> None:
    result = train(tmp_path)
    assert all(torch.equal(value, value.bfloat16().float()) for value in weights_of(result).values())
    other = network(seed=3)
    assert weights.load_weights(result.weights, other) == result.card
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in weights_of(result).items())


def test_the_card_says_how_the_weights_were_made(tmp_path: Path) -> None:
    card = train(tmp_path, card={"licence": "MIT"}).card
    assert card["licence"] == "MIT"
    assert card["data"] == {name: value for name, value in DIGITS.provenance().items() if value}
    assert card["data"]["sha256"] == DIGITS.sha256
    assert f"| data sha256 | {DIGITS.sha256} |" in (tmp_path / "MODEL_CARD.md").read_text()
    assert card["training"]["steps"] == 11
    assert card["loss"]["weighting"] == {"name": "Sigmoid", "bias": 2.0}
    assert models.build(**card["network"]).load_state_dict(network().state_dict())


@pytest.mark.parametrize("seed", [0, 1])
def test_runs_depend_on_their_seed_alone(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    first, other = train(tmp_path / "a"), train(tmp_path / "b", replace(CONFIG, seed=seed))
    equal = [torch.equal(value, weights_of(other)[key]) for key, value in weights_of(first).items()]
    assert all(equal) == (seed == 0)


def test_mixed_precision_trains_nearly_the_same_network(tmp_path: Path) -> None:
    full, mixed = (train(tmp_path / name, replace(CONFIG, precision=name)) for name in ("fp32", "bf16"))
    losses = [[entry["loss"] for entry in result.history] for result in (full, mixed)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(value.dtype == torch.float32 for value in weights_of(mixed).values())


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
    assert all(torch.equal(value, weights_of(other)[key]) for key, value in weights_of(first).items())
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
    found = checkpoint.newest_state(tmp_path / "states")
    assert found is not None
    trainer = Trainer(network(seed=1), LOSS, DIGITS, CONFIG)
    trainer.restore(*found)
    assert trainer.step == 6
    assert all(torch.isfinite(value).all() for value in trainer.network.parameters())


def test_a_run_goes_on_from_the_state_before_the_failure(tmp_path: Path, breaking: ConditionedNetwork) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(TrainingDivergedError):
        train(tmp_path / "broken", network=breaking)
    mended = train(tmp_path / "broken")
    assert all(torch.equal(value, weights_of(mended)[key]) for key, value in weights_of(whole).items())
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
    with pytest.raises(UnwritableError, match=r"run/\.lock: no permission"):
        train(tmp_path / "run")


def test_damaged_finished_weights_are_refused_by_name(tmp_path: Path) -> None:
    path = train(tmp_path).weights
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedFileError, match=r"weights\.safetensors"):
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
