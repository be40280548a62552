r"""How noisy the gradient of a loss is: what a noise schedule is chosen for.

The schedule leaves :math:`L_w` and so the mean of its gradient alone (Equation 4 of the paper); it changes the
covariance of the gradient of a batch, and with it how many steps training takes (Section 5, Appendix F).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.engine.data import ImageData, scale
from paperlib.engine.randomness import Draws, noise, seeded
from paperlib.engine.recipe import loss_scale
from paperlib.models import ConditionedNetwork
from paperlib.objectives import WeightedLoss


@dataclass(frozen=True)
class GradientNoise:
    """The gradient g of a batch at fixed weights, of the loss over :func:`~paperlib.engine.recipe.loss_scale`.

    Attributes:
        trace: tr Cov g, unbiased.
        squared_mean: ‖E g‖², unbiased, and so possibly negative where there is nothing but noise.
        batches: how many gradients these are from.
    """

    trace: float
    squared_mean: float
    batches: int

    @property
    def relative(self) -> float:
        """tr Cov g / ‖E g‖²: how many batches like this it takes until the mean stands out of the noise."""
        return self.trace / self.squared_mean


def gradient_noise(
    network: ConditionedNetwork,
    loss: WeightedLoss,
    data: ImageData,
    *,
    batch_size: int,
    batches: int,
    seed: int = 0,
) -> GradientNoise:
    """Covariance and mean of the gradient at the present weights, by independent batches.

    Images (drawn with replacement), times and noise depend on ``seed`` alone: losses under two schedules are compared
    on the same draws.

    Args:
        network: the network; its weights stay, its gradients are cleared.
        loss: the weighted loss; an adaptive schedule in it stays as it is.
        data: where the images come from.
        batch_size: images in a batch.
        batches: gradients to take, 2 at least.
        seed: of all that is drawn.

    Raises:
        ValueError: for fewer than two batches, which have no covariance.
    """
    if batches < 2:
        raise ValueError(f"batches must be 2 or more for a covariance, got {batches}.")
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    scale, total, squares = loss_scale(loss, data.images[0].numel()), torch.zeros(()), 0.0
    for number in range(batches):
        value = _batch_loss(network, loss, data, batch_size, number, seed) / scale
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(value, weights)]).double()
        total, squares = total + gradient, squares + gradient.square().sum().item()
    squared = (total / batches).square().sum().item()
    trace = (squares - batches * squared) / (batches - 1)
    return GradientNoise(trace, squared - trace / batches, batches)


def _batch_loss(
    network: ConditionedNetwork, loss: WeightedLoss, data: ImageData, batch_size: int, number: int, seed: int
) -> Tensor:
    """The mean loss of batch ``number``, its times of low discrepancy as in training."""
    device = next(network.parameters()).device
    index = torch.randint(len(data), (batch_size,), generator=seeded(seed, "gradient", number))
    x = scale(data.images[index], data.levels).to(device)
    t = Draws.of(seed, number, batch_size).t.to(device)
    eps = noise(seed, number, range(batch_size), x.shape[1:], device=device)
    label = data.labels[index].to(device) if network.num_classes else None
    return loss(network, x, t=t, eps=eps, label=label).mean()
