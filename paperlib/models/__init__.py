"""Networks, conditioned on log-SNR and class, by name, and from files of weights.

Every network is called as ``network(z, logsnr, label)``, see :class:`ConditionedNetwork`.  One of one's own is a class
with a body, under a name (:func:`register`) that profiles, the command line and :func:`load` know from then on;
docs/howto/network.md has one.  A package does so for every process, see :mod:`paperlib.registry`.
"""

from paperlib.models.conditioning import ConditionedNetwork
from paperlib.models.mlp import MLP
from paperlib.models.presets import MODELS, PRESETS, build, option_names, register
from paperlib.models.unet import UNet
from paperlib.models.uvit import UViT
from paperlib.models.weights import load

__all__ = [
    "MLP",
    "MODELS",
    "PRESETS",
    "ConditionedNetwork",
    "UNet",
    "UViT",
    "build",
    "load",
    "option_names",
    "register",
]
