r"""The forward process q(z | x) and its borders.

.. math:: z_\lambda = \alpha_\lambda x + \sigma_\lambda \epsilon, \quad \epsilon \sim N(0, I), \quad
          \alpha_\lambda^2 = \mathrm{sigmoid}(\lambda), \quad \sigma_\lambda^2 = \mathrm{sigmoid}(-\lambda).

``logsnr``, :math:`\lambda = \log(\alpha^2/\sigma^2)`, is the only coordinate of noise inside the library (Section 2 of
the paper), and z is always variance preserving (VP).  The variance-exploding scaling (VE, α = 1) and the one of flow
matching (α = 1 − t, σ = t) are multiples of the same z: no objective, weighting or bound depends on which is used.
They, σ, SNR and ᾱ exist here alone, in functions whose names say what they convert.

This module knows nothing of time: how λ is drawn is the business of :mod:`paperlib.schedules`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.checks import require_floating, require_positive, require_same_shape


def alpha(logsnr: Tensor) -> Tensor:
    r"""Signal coefficient, :math:`\alpha = \sqrt{\mathrm{sigmoid}(\lambda)}`.  Shape of ``logsnr``."""
    return torch.exp(0.5 * F.logsigmoid(logsnr))


def sigma(logsnr: Tensor) -> Tensor:
    r"""Noise coefficient, :math:`\sigma = \sqrt{\mathrm{sigmoid}(-\lambda)}`.  Shape of ``logsnr``."""
    return torch.exp(0.5 * F.logsigmoid(-logsnr))


def expand(level: Tensor, like: Tensor) -> Tensor:
    """Give ``level``, () or (B,), the trailing dimensions that multiply ``like`` (B, *), or raise ValueError."""
    if level.ndim == 0:
        return level
    if level.ndim != 1 or like.ndim == 0 or level.shape[0] not in (1, like.shape[0]):
        raise ValueError(
            f"a level has shape () or (B,), got {tuple(level.shape)} for a batch of shape {tuple(like.shape)}."
        )
    return level.reshape(-1, *[1] * (like.ndim - 1))


def diffuse(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    r"""Noisy data :math:`z_\lambda = \alpha x + \sigma \epsilon`.  (Section 2, the forward process)

    ``x`` and ``eps`` are (B, *), ``logsnr`` in nats is () or (B,).  TypeError for what is no floating-point tensor,
    ValueError for shapes that do not fit.
    """
    for name, value in (("x", x), ("eps", eps), ("logsnr", logsnr)):
        require_floating(name, value)
    require_same_shape("eps", eps, "x", x)
    return expand(alpha(logsnr), x) * x + expand(sigma(logsnr), x) * eps


def posterior(z: Tensor, x: Tensor, logsnr: Tensor, logsnr_next: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of q(z_s | z_t, x), where z_s is the less noisy of the two.

    With :math:`c = 1 - e^{\lambda_t - \lambda_s}`: mean :math:`\alpha_s((1 - c) z_t / \alpha_t + c\,x)`, standard
    deviation :math:`\sigma_s \sqrt{c}`.  (Kingma et al. 2021, *Variational Diffusion Models*, Appendix A.)

    Args:
        z: noisy data at ``logsnr``, shape (B, *).
        x: data, or a prediction of it, the shape of ``z``.
        logsnr: λ_t, shape () or (B,).
        logsnr_next: λ_s ≥ λ_t, the shape of ``logsnr``; ValueError where it is the noisier of the two.
    """
    require_same_shape("x", x, "z", z)
    if not torch.compiler.is_compiling() and (logsnr_next < logsnr).any():
        raise ValueError("logsnr_next must not be below logsnr; were the two exchanged?")
    step = logsnr - logsnr_next
    c = -torch.expm1(step)
    keep = torch.exp(step) * alpha(logsnr_next) / alpha(logsnr)
    mean = expand(keep, z) * z + expand(alpha(logsnr_next) * c, z) * x
    return mean, expand(sigma(logsnr_next) * c.sqrt(), z)


def input_scale(logsnr: Tensor, sigma_data: float) -> Tensor:
    r"""c_in, which gives the network inputs of unit variance: :math:`(\alpha^2 s^2 + \sigma^2)^{-1/2}`.

    (Karras et al. 2022, Table 1, in VP scaling.)  ``sigma_data`` is s, the standard deviation of the data.
    """
    require_positive("sigma_data", sigma_data)
    return torch.rsqrt(torch.sigmoid(logsnr) * sigma_data**2 + torch.sigmoid(-logsnr))


# Other scalings of z -------------------------------------------------------------------------------------------------


def to_ve(z: Tensor, logsnr: Tensor) -> Tensor:
    r"""VP to VE scaling (:math:`x + e^{-\lambda/2}\epsilon`): z / α."""
    return z / expand(alpha(logsnr), z)


def from_ve(z_ve: Tensor, logsnr: Tensor) -> Tensor:
    """VE to VP scaling: α z_VE."""
    return z_ve * expand(alpha(logsnr), z_ve)


def to_flow(z: Tensor, logsnr: Tensor) -> Tensor:
    """VP to flow-matching scaling ((1 − t) x + t ε): z / (α + σ)."""
    return z / expand(alpha(logsnr) + sigma(logsnr), z)


def from_flow(z_flow: Tensor, logsnr: Tensor) -> Tensor:
    """Flow-matching to VP scaling: (α + σ) z_FM."""
    return z_flow * expand(alpha(logsnr) + sigma(logsnr), z_flow)


# Other coordinates of noise ------------------------------------------------------------------------------------------


def logsnr_from_sigma_ve(sigma_ve: Tensor) -> Tensor:
    """λ from the noise level of EDM and other VE models, σ_VE = σ/α: λ = −2 log σ_VE."""
    return -2 * torch.log(sigma_ve)


def sigma_ve_from_logsnr(logsnr: Tensor) -> Tensor:
    r"""Noise level of EDM and other VE models: :math:`\sigma_{VE} = e^{-\lambda/2}`."""
    return torch.exp(-0.5 * logsnr)


def snr_from_logsnr(logsnr: Tensor) -> Tensor:
    r"""SNR = α²/σ² = :math:`e^\lambda` (the square: some code calls α/σ the SNR)."""
    return torch.exp(logsnr)


def logsnr_from_alphas_cumprod(alphas_cumprod: Tensor) -> Tensor:
    """λ from DDPM's ᾱ = α²: logit(ᾱ)."""
    return torch.logit(alphas_cumprod)


def alphas_cumprod_from_logsnr(logsnr: Tensor) -> Tensor:
    """DDPM's ᾱ = α² = sigmoid(λ)."""
    return torch.sigmoid(logsnr)


def logsnr_from_flow_time(t: Tensor) -> Tensor:
    """λ of flow matching's own time, z = (1 − t) x + t ε: 2 log((1 − t)/t)."""
    return 2 * (torch.log1p(-t) - torch.log(t))


def flow_time_from_logsnr(logsnr: Tensor) -> Tensor:
    """Flow matching's own time, t = σ/(α + σ) = sigmoid(−λ/2)."""
    return torch.sigmoid(-0.5 * logsnr)
