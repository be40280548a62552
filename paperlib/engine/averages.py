r"""Moving averages of the weights, several at once.

.. math:: \bar\theta_1 = \theta_1, \quad \bar\theta_n = \beta\,\bar\theta_{n-1} + (1 - \beta)\,\theta_n,

:math:`\theta_n` being the weights after step n.  An average is sharded as the weights are.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverages:
    """Averages of some parameters.

    Args:
        parameters: by name; plain or sharded.
        decays: β of each average, in [0, 1).

    Attributes:
        values: the averages, by decay and name.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decays: Sequence[float]) -> None:
        self._parameters = dict(parameters)
        self.values = {
            decay: {name: parameter.detach().clone() for name, parameter in parameters.items()} for decay in decays
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step 1, 2, …"""
        current = _local(self._parameters)
        for decay, average in self.values.items():
            get_ema_multi_avg_fn(decay if step > 1 else 0.0)(_local(average), current, step)


def _local(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors, or of sharded ones the part that lies here."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach() for tensor in tensors.values()]
