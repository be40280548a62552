r"""What a network predicts, and how one prediction becomes another.

Every target of the literature is linear in data and noise, with coefficients that depend on λ alone:

.. math:: \text{target} = a(\lambda)\,x + b(\lambda)\,\epsilon, \qquad z = \alpha x + \sigma\epsilon.

Two linear equations in two unknowns: with :math:`D = a\sigma - b\alpha`,

.. math:: \epsilon = (a z - \alpha\,\text{target})/D, \qquad x = (\sigma\,\text{target} - b z)/D,

and at a given z an error of the target is an error of ε times a factor (Section 2, predictions):

.. math:: \|\text{target error}\|^2 = k(\lambda)\,\|\epsilon\text{ error}\|^2, \qquad k = (D/\alpha)^2.

A prediction therefore states a and b, and nothing else.  Inputs may be float32 or float64; z is VP.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from paperlib.checks import require_positive, require_same_shape
from paperlib.process import alpha, expand, input_scale, sigma
from paperlib.registry import Registry


@dataclass(frozen=True)
class Prediction(ABC):
    """A prediction target a(λ) x + b(λ) ε.  ``x``, ``eps``, ``z`` and outputs: (B, *); ``logsnr``: () or (B,)."""

    @abstractmethod
    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of target = a x + b ε, each of the shape of ``logsnr``."""

    def target(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        """What the network is asked to predict, a x + b ε."""
        require_same_shape("eps", eps, "x", x)
        a, b = self.coefficients(logsnr)
        return expand(a, x) * x + expand(b, x) * eps

    def to_eps(self, output: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
        """The prediction ε̂ that ``output`` stands for at ``z``."""
        require_same_shape("output", output, "z", z)
        a, _ = self.coefficients(logsnr)
        d = self._determinant(logsnr)
        return expand(a / d, z) * z - expand(alpha(logsnr) / d, z) * output

    def to_x(self, output: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
        """The prediction x̂ that ``output`` stands for at ``z``."""
        require_same_shape("output", output, "z", z)
        _, b = self.coefficients(logsnr)
        d = self._determinant(logsnr)
        return expand(sigma(logsnr) / d, z) * output - expand(b / d, z) * z

    def convert(self, output: Tensor, z: Tensor, logsnr: Tensor, to: "Prediction") -> Tensor:
        """The output that ``to`` would have made where this prediction made ``output``."""
        return to.target(self.to_x(output, z, logsnr), self.to_eps(output, z, logsnr), logsnr)

    def mse_factor(self, logsnr: Tensor) -> Tensor:
        """k(λ) in ‖target error‖² = k(λ) ‖ε error‖².  (Section 2, predictions)"""
        return self.log_mse_factor(logsnr).exp()

    def log_mse_factor(self, logsnr: Tensor) -> Tensor:
        """log k(λ) = 2 log |D| − log α²."""
        return 2 * torch.log(self._determinant(logsnr).abs()) - functional.logsigmoid(logsnr)

    def _determinant(self, logsnr: Tensor) -> Tensor:
        a, b = self.coefficients(logsnr)
        return a * sigma(logsnr) - b * alpha(logsnr)


class EpsPrediction(Prediction):
    """The noise ε; k = 1.  (Ho et al. 2020.)"""

    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(logsnr), torch.ones_like(logsnr)


class XPrediction(Prediction):
    r"""The data x; :math:`k = e^{-\lambda}`."""

    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(logsnr), torch.zeros_like(logsnr)


class ScorePrediction(Prediction):
    r"""The score of q(z|x), :math:`\nabla_z \log q(z|x) = -\epsilon/\sigma`; :math:`k = 1/\sigma^2 = 1 + e^\lambda`."""

    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(logsnr), -1 / sigma(logsnr)


class VPrediction(Prediction):
    r"""v = α ε − σ x; :math:`k = 1 + e^{-\lambda}`.  (Salimans & Ho 2022.)"""

    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return -sigma(logsnr), alpha(logsnr)

    def _determinant(self, logsnr: Tensor) -> Tensor:
        return -torch.ones_like(logsnr)  # −(σ² + α²), without its rounding


class FlowPrediction(Prediction):
    r"""The velocity u = ε − x of the optimal-transport path; :math:`k = (1 + e^{-\lambda/2})^2`.

    (Lipman et al. 2023.)  The paper's o is −u.
    """

    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(logsnr), torch.ones_like(logsnr)


@dataclass(frozen=True)
class FPrediction(Prediction):
    r"""EDM's F, :math:`\hat x = c_{skip}\,z/\alpha + c_{out} F`; :math:`k = 1 + e^{-\lambda}/s^2`.

    With :math:`c_{skip} = s^2/(e^{-\lambda}+s^2)` and :math:`c_{out} = s e^{-\lambda/2}/\sqrt{e^{-\lambda}+s^2}`
    (Appendix, F-prediction; Karras et al. 2022, Table 1).  The skip term takes z/α, EDM's own input: with α z, as
    printed in the paper, the targets would not have unit variance (Erratum 2; notebook 02).

    Args:
        sigma_data: s, the standard deviation of the data.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require_positive("sigma_data", self.sigma_data)

    def coefficients(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        scale = input_scale(logsnr, self.sigma_data)
        return sigma(logsnr) * scale / self.sigma_data, -self.sigma_data * alpha(logsnr) * scale


EPS = EpsPrediction()
X = XPrediction()
SCORE = ScorePrediction()
V = VPrediction()
FLOW = FlowPrediction()
F = FPrediction()

PREDICTIONS: Registry[Prediction] = Registry(
    "prediction", Prediction, {"eps": EPS, "x": X, "score": SCORE, "v": V, "flow": FLOW, "F": F}
)
"""Every prediction by name, with its default parameters."""


def register(name: str) -> Callable[[type[Prediction]], type[Prediction]]:
    """Decorator that adds a class, whose parameters have defaults, to :data:`PREDICTIONS` under ``name``."""

    def add(kind: type[Prediction]) -> type[Prediction]:
        PREDICTIONS.register(name)(kind())
        return kind

    return add


get = PREDICTIONS.make
"""See :class:`paperlib.registry.Registry`."""
