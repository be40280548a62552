r"""Companion library of Kingma & Gao, *Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation*.

Three tiers, imports pointing down only:

* **theory** (the modules here): pure functions and small values, float64-safe, needing torch alone;
* **practice** (`models`, `engine`, `auditing`): networks, training, sampling, metrics; what a loss optimises, which
  needs the others for trained networks alone;
* **companion** (`companion`): profiles, provenance, figures, notebooks, the command line.

Throughout, :math:`\lambda` (always ``logsnr``) is :math:`\log(\alpha^2/\sigma^2)`, natural logarithm, and the noisy
data ``z`` are variance preserving, :math:`z = \alpha x + \sigma \epsilon` with :math:`\alpha^2 + \sigma^2 = 1`.

A module is imported when it is first asked for.
"""

import importlib
from typing import Any

__version__ = "1.0.0"
__all__ = [
    "adaptive",
    "auditing",
    "elbo",
    "loss_weights",
    "objectives",
    "oracles",
    "predictions",
    "process",
    "quadrature",
    "recipes",
    "schedules",
    "tables",
    "weightings",
]
DISTRIBUTION = "diffusion-objectives"
"""What to ``pip install``; the package index knows another project by the name of this module."""


def __getattr__(name: str) -> Any:
    if name == "audit":
        return importlib.import_module("paperlib.auditing").audit
    if name in __all__:
        return importlib.import_module(f"paperlib.{name}")
    raise AttributeError(f"module 'paperlib' has no attribute {name!r}; it has audit, {', '.join(__all__)}.")
