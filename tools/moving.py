"""The page that moves: choose a loss, and its w, p_w, share of the loss, photographs and verdict change together.

One HTML file of the site, which needs nothing else: every curve is an audit (:mod:`paperlib.auditing`) that was made
here, on a grid of levels, and the page only shows them.  ``tools/moving.html`` is the page.

    python -m tools.moving docs/_extra/moving.html
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from paperlib import files, recipes
from paperlib.auditing import Audit, report, result
from paperlib.objectives import PublishedLoss
from paperlib.predictions import PREDICTIONS
from paperlib.schedules import get
from paperlib.weightings import Sigmoid

LEVELS = torch.linspace(-14, 14, 113, dtype=torch.float64)
K = (-4.0, 6.0, 0.5)
"""Least and largest bias of the sigmoid weighting, and the step between."""
SCHEDULES = ("cosine", "flow_matching_ot", "edm_training", "edm2_pixel", "laplace")
QUANTILES = (0.1, 0.5, 0.9)


def curves(found: Audit) -> dict[str, Any]:
    """What the page shows of one loss: curves in thousandths of their largest size, zero outside its range."""

    def on_grid(values: torch.Tensor) -> list[int]:
        place = torch.bucketize(LEVELS, found.edges) - 1
        inside = (place >= 0) & (place < len(values))
        shown = torch.where(inside, values[place.clamp(0, len(values) - 1)], 0.0)
        return (1000 * shown / values.abs().max().clamp(min=1e-12)).round().int().tolist()

    return {
        "w": on_grid(found.weighting),
        "density": on_grid(found.augmentation_density),
        "effort": on_grid(found.effort),
        "verdict": found.verdict.removesuffix("*"),
        "quantiles": [round(level, 1) for level in report.quantiles(found, QUANTILES)],
    }


def content() -> dict[str, Any]:
    """Everything that the page shows."""
    low, high, step = K
    biases = [low + step * i for i in range(round((high - low) / step) + 1)]
    names = [name for name in PREDICTIONS if name != "score"]
    losses = {
        f"{prediction},{schedule}": PublishedLoss(PREDICTIONS[prediction], get({"name": schedule, **recipes.ENDS}))
        for prediction in names
        for schedule in SCHEDULES
    }
    return {
        "levels": LEVELS.tolist(),
        "k": K,
        "predictions": names,
        "schedules": SCHEDULES,
        "sigmoid": {f"{k:g}": curves(result.of_weighting(Sigmoid(k), -20.0, 20.0, "", {})) for k in biases},
        "recipe": {name: curves(result.of_loss(recipe.loss, name, {})) for name, recipe in recipes.RECIPES.items()},
        "loss": {name: curves(result.of_loss(loss, name, {})) for name, loss in losses.items()},
        "photographs": [[level, report.photograph("china.jpg", level, 6)] for level in range(-12, 13)],
    }


def page() -> str:
    """The page, as HTML."""
    text = (Path(__file__).parent / "moving.html").read_text(encoding="utf-8")
    return text.replace("/*DATA*/", json.dumps(content(), ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    files.write_text(sys.argv[1], page())
