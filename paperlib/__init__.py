r"""Companion library of Kingma & Gao, *Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation*.

Three tiers, imports pointing down only:

* **theory** (`process`, `schedules`, `tables`, `adaptive`, `weightings`, `predictions`, `loss_weights`, `objectives`,
  `recipes`, `oracles`, `elbo`): pure functions and small values, float64-safe, needing torch alone;
* **practice** (`models`, `engine`): networks, training, sampling, metrics;
* **companion** (`companion`): profiles, provenance, figures, notebooks, the command line.

Throughout, :math:`\lambda` (always ``logsnr``) is :math:`\log(\alpha^2/\sigma^2)`, natural logarithm, and the noisy
data ``z`` are variance preserving, :math:`z = \alpha x + \sigma \epsilon` with :math:`\alpha^2 + \sigma^2 = 1`.
"""

from paperlib import (
    adaptive,
    elbo,
    loss_weights,
    objectives,
    oracles,
    predictions,
    process,
    recipes,
    schedules,
    tables,
    weightings,
)

__version__ = "0.1.0"
__all__ = [
    "adaptive",
    "elbo",
    "loss_weights",
    "objectives",
    "oracles",
    "predictions",
    "process",
    "recipes",
    "schedules",
    "tables",
    "weightings",
]
