"""Numbers of computations and fingerprints of what they do: raised together, or trained networks would be taken for
others.

A run is known by its configuration and :data:`paperlib.engine.recipe.VERSION`, a measurement by the run, its protocol
and :data:`paperlib.companion.measuring.VERSION`; neither by the code.  So what the code does is written down here, in
``fingerprints.json``.  Where a test fails, the computation has changed.  If that was not meant, mend it.  If it was:
raise the VERSION, so that runs or rows of before are not taken for those of now, and write the new fingerprint with

    python tests/test_fingerprints.py

and say in the commit what changed; published results of before have then to be made again.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PROFILE

from paperlib import models, predictions, schedules, weightings
from paperlib.adaptive import AdaptiveSchedule
from paperlib.companion import measuring
from paperlib.engine import data, recipe
from paperlib.engine.training import Trainer, TrainingConfig
from paperlib.models import ConditionedNetwork
from paperlib.objectives import WeightedLoss

FILE = Path(__file__).with_name("fingerprints.json")
TOLERANCE = 1e-9
"""Relative, in float64: machines add in another order, and a change of the computation is larger."""

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "hidden": 16, "blocks": 1},
    "unet": {"channels": 8, "blocks": 1, "head_channels": 8},
    "uvit": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "transformer_blocks": 1, "head_channels": 8},
}


def network(name: str) -> ConditionedNetwork:
    """A small network in float64; what begins at zero, and would hide the rest, is moved away from there."""
    made = models.build(name, image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, seed=0, **NETWORKS[name]).double()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            wave = torch.arange(parameter.numel(), dtype=torch.float64).add(number).sin()
            parameter.add_(0.02 * wave.reshape(parameter.shape))
    return made


def losses() -> Iterator[tuple[str, WeightedLoss]]:
    """Every weighting, schedule and prediction once."""
    for name in weightings.WEIGHTINGS:
        yield f"weighting {name}", WeightedLoss(weightings.get(name), schedules.Cosine(-8, 8), predictions.V)
    for name in ("linear_logsnr", "edm_training", "flow_matching_ot", "logit_normal"):
        schedule = schedules.get(name, logsnr_min=-8.0, logsnr_max=8.0)
        yield f"schedule {name}", WeightedLoss(weightings.Sigmoid(), schedule, predictions.V)
    for name in predictions.PREDICTIONS:
        loss = WeightedLoss(weightings.Sigmoid(), schedules.Cosine(-8, 8), predictions.get(name))
        yield f"prediction {name}", loss
    yield "adaptive", WeightedLoss(weightings.Sigmoid(), AdaptiveSchedule(-8, 8, bins=10, decay=0.5), predictions.V)


def two_steps(name: str, loss: WeightedLoss, **changes: Any) -> list[float]:
    """Loss and norm of the gradient of two steps, and the sum of squares of the average of the weights after them."""
    config = TrainingConfig(**{"steps": 2, "batch_size": 8, "log_every": 1} | changes)
    trainer = Trainer(network(name), loss, data.load("digits", "train"), config, engine="single")
    for _ in range(2):
        trainer.advance()
    average = next(iter(trainer.averages.values())).values()
    steps = [line[what] for line in trainer.history for what in ("loss", "grad_norm")]
    return [*steps, sum(weight.square().sum().item() for weight in average)]


def training() -> dict[str, list[float]]:
    """The fingerprint of training."""
    found = {f"mlp, {what}": two_steps("mlp", loss) for what, loss in losses()}
    sigmoid = WeightedLoss(weightings.Sigmoid(), schedules.Cosine(-8, 8), predictions.V)
    found |= {name: two_steps(name, sigmoid) for name in NETWORKS}
    rest = {"weight_decay": 0.1, "horizontal_flip": True, "grad_clip": 0.01, "accumulate": 2, "seed": 3}
    found["mlp, every option"] = two_steps("mlp", sigmoid, **rest, label_dropout=0.5, betas=(0.5, 0.9))
    return found


def measured() -> dict[str, list[float]]:
    """The fingerprint of a measurement: one row of a network that was never trained."""
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        checkout = Path(folder)
        (checkout / "profiles").mkdir()
        (checkout / "profiles" / "small.yaml").write_text(PROFILE.replace("count: 8", "count: 40"))
        (checkout / "claims.yaml").touch()
        patched.setenv("PAPERLIB_ROOT", folder)
        from paperlib.companion import experiments, profiles

        one = next(experiments.grid(profiles.load("small")))
        patched.setattr(type(one), "load", lambda self: network("mlp").float().eval())
        patched.setattr(type(one), "card", lambda self: {"seconds": 0.0})
        patched.setattr(type(one), "found", lambda self: checkout)
        how = measuring.Protocol(panels=2, draws=1, images=20, batches=2)
        found = measuring.measure(one, how)
    numbers = {name: [value] for name, value in found.row.items() if isinstance(value, float)}
    return numbers | {f"errors, {split}": errors for split, errors in found.errors.items()}


FINGERPRINTS = {"training": (recipe.VERSION, training), "measuring": (measuring.VERSION, measured)}


@pytest.mark.filterwarnings("ignore:w/p at log-SNR", "ignore:40 samples are few")
@pytest.mark.parametrize(("name", "tolerance"), [("training", TOLERANCE), ("measuring", 1e-3)])
def test_a_computation_that_changes_has_another_number(name: str, tolerance: float) -> None:
    version, compute = FINGERPRINTS[name]
    stored = json.loads(FILE.read_text())[name]
    how = f"the computation of {name!r} has changed; see what to do at the top of tests/test_fingerprints.py"
    assert stored["version"] == version, how
    found = compute()
    for what, numbers in stored["found"].items():
        assert found.get(what) == pytest.approx(numbers, rel=tolerance, abs=1e-12), f"{what}: {how}"
    assert found.keys() == stored["found"].keys(), "something new has no fingerprint yet: write it, the number stays"


if __name__ == "__main__":
    stored = {name: {"version": version, "found": compute()} for name, (version, compute) in FINGERPRINTS.items()}
    FILE.write_text(json.dumps(stored, indent=1) + "\n")
