"""What each profile costs: size of its network, FLOPs, memory, and GPU-days, as a table.  ``python -m tools.costs``

Everything is measured on the network itself (:mod:`paperlib.engine.costs`), nothing typed; what is assumed, which GPU,
its share of peak that training reaches, the price of an hour, stands beside the table.
"""

import math
from typing import TYPE_CHECKING, Any

import torch

from paperlib import files, models
from paperlib.companion import experiments, paths, profiles
from paperlib.engine import costs, data

if TYPE_CHECKING:
    import pandas as pd

DOLLARS_AN_HOUR = 2.5
"""Price of an hour of one GPU, an assumption."""

ASSUMPTIONS = (
    f"Assumed: {costs.H100.name} at {costs.H100.utilisation:.0%} of {costs.H100.flops / 1e12:.0f} TFLOP/s (dense "
    f"bf16), {DOLLARS_AN_HOUR} dollars an hour; a training step costs {costs.TRAINING_PASSES} forward passes; "
    f"activations under bf16 take half of what float32 takes, and none are recomputed. We have made none of the runs "
    f"that need a GPU."
)


COLUMNS = {
    "profile": "profile",
    "network": "network",
    "parameters": "M parameters",
    "gflops": "GFLOP forward, an image",
    "activations": "MB kept, an image (float32)",
    "images": "M images, a run",
    "micro_batch": "images a GPU at once",
    "memory": "GB of a GPU",
    "gpus": "GPUs",
    "gpu_days": "GPU-days, a run",
    "days": "days, a run",
    "dollars": "dollars, a run",
    "runs": "runs",
}
"""The columns of the table, as the file calls them and as people read them.  A profile without GPUs has no days."""


def row(profile: profiles.Profile) -> dict[str, Any]:
    """The costs of one profile, by :data:`COLUMNS`."""
    recipe, launch = profile.training.recipe, profile.launch
    gpus, images = launch.gpus if launch else 0, recipe.steps * recipe.batch_size
    cost = costs.network_cost(network(profile))
    micro_batch = -(-recipe.batch_size // (max(1, gpus) * recipe.accumulate))
    held = costs.training_bytes(
        cost,
        micro_batch,
        averages=len(recipe.ema_decays),
        shards=gpus if launch and launch.engine == "fsdp" else 1,
        activation_bytes=2 if recipe.precision == "bf16" else 4,
    )
    days = costs.H100.days(costs.training_flops(cost, images)) if gpus else None
    return {
        "profile": profile.name,
        "network": profile.model.name,
        "parameters": cost.parameters / 1e6,
        "gflops": cost.forward_flops / 1e9,
        "activations": cost.activation_bytes / 1e6,
        "images": images / 1e6,
        "micro_batch": micro_batch,
        "memory": held / 1e9,
        "gpus": gpus,
        "gpu_days": days,
        "days": days and days / gpus,
        "dollars": days and days * 24 * DOLLARS_AN_HOUR,
        "runs": sum(map(len, experiments.arms(profile).values())),
    }


def network(profile: profiles.Profile) -> models.ConditionedNetwork:
    """The network of a profile without values, on the meta device; its data need not be there."""
    known = data.DATASETS[profile.data.name]
    options: dict[str, Any] = profile.model.options
    with torch.device("meta"):
        return models.build(
            profile.model.name,
            image_shape=known.image_shape,
            num_classes=known.num_classes,
            sigma_data=known.sigma_data,
            **options,
        )


def table() -> "pd.DataFrame":
    """A row for every profile of the checkout, the largest network last."""
    import pandas as pd

    rows = sorted((row(profiles.load(name)) for name in profiles.names()), key=lambda one: one["parameters"])
    return pd.DataFrame(rows)


def markdown(found: "pd.DataFrame") -> str:
    """The table for people, with what is assumed below it."""
    shown = found.map(_text).assign(parameters=[f"{value:.1f}" for value in found.parameters])
    shown = shown.rename(columns=COLUMNS)
    return f"{shown.to_markdown(index=False, disable_numparse=True)}\n\n*{ASSUMPTIONS}*\n"


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> None:
    """Put the table where documents read it, ``results/costs.csv`` and ``docs/costs.md``, and show it."""
    found = table()
    files.write_text(paths.root() / "results" / "costs.csv", found.to_csv(index=False, float_format="%.6g"))
    files.write_text(paths.root() / "docs" / "costs.md", markdown(found))
    print(found.to_string(index=False, float_format="{:.3g}".format), ASSUMPTIONS, sep="\n\n")


if __name__ == "__main__":
    main()
