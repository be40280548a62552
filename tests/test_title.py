"""The title: L_w is the ELBO of noisy data, held by the transition densities of the T-step sampler alone.

Nothing here integrates an error on the side of the ELBO.  Expectations over ε are quadrature in one dimension, so that
every comparison is one of float64; the network is one with parameters, so that gradients can be compared too.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from paperlib import elbo, oracles, process, quadrature, weightings
from paperlib.elbo import Chain

F64 = torch.float64
LOW, HIGH = -6.0, 6.0
X = torch.tensor([0.9], dtype=F64)
NOISE = elbo.Noise.quadrature(1, panels=16, order=8)
CLEAN = torch.tensor([math.inf], dtype=F64)
STEPPED = weightings.Custom(lambda logsnr: torch.where(logsnr < 1, 0.0, -1.0).to(logsnr), breaks=(1.0,))
MONOTONE = {
    name: weightings.get(name) for name in ("elbo", "v_cosine", "flow_matching_ot", "indi", "sigmoid", "edm_monotonic")
} | {"stepped": STEPPED}
SIGNED = {name: weightings.get(name) for name in ("iddpm", "edm", "p2", "min_snr", "sd3_logit_normal")}
every_weighting = pytest.mark.parametrize("weighting", [*MONOTONE.values(), *SIGNED.values()], ids=[*MONOTONE, *SIGNED])


class Network(nn.Module):
    """ε̂ of a mixture, scaled and shifted by two parameters: no posterior mean of anything."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = oracles.GaussianMixture.isotropic(torch.tensor([[-1.0], [0.6]], dtype=F64), 0.05)
        self.scale = nn.Parameter(torch.tensor(0.8, dtype=F64))
        self.shift = nn.Parameter(torch.tensor(0.2, dtype=F64))

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        return self.scale * self.mixture(z, logsnr).detach() + self.shift


def chain(steps: int) -> Chain:
    return Chain(Network(), torch.linspace(HIGH, LOW, steps + 1, dtype=F64))


def gradient(value: Tensor, model: Chain) -> Tensor:
    assert isinstance(model.network, Network)
    return torch.stack(torch.autograd.grad(value, [*model.network.parameters()], retain_graph=True))


def errors(model: Chain, logsnr: Tensor) -> Tensor:
    """e(λ) = E_ε‖ε̂ − ε‖² at x, which knows nothing of the chain, shape (N,)."""
    eps, level = NOISE.eps.repeat(len(logsnr), 1), logsnr.repeat_interleave(len(NOISE.eps))
    eps_hat = model.network(process.diffuse(X.expand_as(eps), eps, level), level)
    return NOISE.mean((eps_hat - eps).square().reshape(len(logsnr), -1))


def term(model: Chain, y: Tensor, data_logsnr: Tensor, step: int) -> Tensor:
    """Term ``step`` of −ELBO(y), y (N, 1): averaged over ε for each, shape (N,)."""
    rows = len(y) * len(NOISE.eps)
    eps = NOISE.eps.repeat(len(y), 1)
    data = y.repeat_interleave(len(NOISE.eps), 0)
    value = model.term(data, data_logsnr.expand(rows), torch.full((rows,), step), eps)
    return NOISE.mean(value.reshape(len(y), -1))


def kls(model: Chain) -> Tensor:
    """E KL(q(z_{i−1}|z_i, x) ‖ p(z_{i−1}|z_i)) for i = 1 … T, shape (T,)."""
    return torch.cat([term(model, X[None], CLEAN, step) for step in range(1, len(model.levels))])


def noisy_bound(model: Chain, j: int) -> Tensor:
    """E −ELBO_j(z_j) over z_j ~ q(·|x), each bound computed from its z_j alone."""
    level = model.levels[j]
    y = process.diffuse(X.expand_as(NOISE.eps), NOISE.eps, level)
    total = sum(term(model, y, level[None], step) for step in range(j + 1, len(model.levels)))
    assert isinstance(total, Tensor)
    end = elbo.logsnr_of_noisy_data(model.levels[-1], level)
    prior = torch.stack([elbo.prior_kl(one[None], end.item())[0] for one in y])
    return NOISE.mean(total + prior)


def test_noisy_data_are_data_of_the_same_process() -> None:
    """z_λ from z_λ' has the coefficients of z_λ from x: α = α_λ'·α′ and σ² = (α′σ_λ')² + σ′²."""
    at, of = torch.linspace(-9, 3, 25, dtype=F64), torch.linspace(3.5, 15, 25, dtype=F64)
    again = elbo.logsnr_of_noisy_data(at, of)
    torch.testing.assert_close(process.alpha(of) * process.alpha(again), process.alpha(at), rtol=1e-13, atol=0)
    variance = (process.alpha(again) * process.sigma(of)).square() + process.sigma(again).square()
    torch.testing.assert_close(variance, process.sigma(at).square(), rtol=1e-13, atol=0)
    assert torch.equal(elbo.logsnr_of_noisy_data(at, CLEAN), at)


def test_transitions_are_those_of_the_sampler() -> None:
    """One step of the ancestral sampler has the mean and the standard deviation of the chain's transition."""
    from paperlib.engine import sampling

    model = chain(6)
    z, step = torch.full((200_000, 1), 0.3, dtype=F64), torch.full((200_000,), 2)
    seen: list[Tensor] = []

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        return model.prediction.to_x(model.network(z, logsnr), z, logsnr)

    with torch.no_grad():
        levels = torch.stack([model.levels[2], model.levels[1]])
        sampling.ddpm(
            denoise,
            z,
            levels,
            generator=torch.Generator().manual_seed(0),
            callback=lambda number, logsnr, z, x: seen.append(z.clone()),
        )
        expected = model.transition(z[:1], step[:1])
    drawn = seen[-1]
    assert abs(drawn.mean() - expected.mean) < 4 * expected.stddev / math.sqrt(len(z))
    assert drawn.std().item() == pytest.approx(expected.stddev.item(), rel=0.01)


@pytest.mark.parametrize("j", [0, 2, 4])
def test_the_bound_on_noisy_data_is_the_path_kl_and_the_entropy(j: int) -> None:
    """−E ELBO_j(z_j) = Σ_{i>j} KL_i + KL(q(z_T|x) ‖ p(z_T)) + H(q(z_j|x)), though it never saw x; gradients too."""
    model = chain(6)
    bound = noisy_bound(model, j)
    path = kls(model)[j:].sum()
    constant = elbo.prior_kl(X[None], LOW)[0] + elbo.conditional_entropy(1, model.levels[j])
    torch.testing.assert_close(bound, path + constant, rtol=1e-8, atol=0)
    torch.testing.assert_close(gradient(bound, model), gradient(path, model), rtol=1e-8, atol=1e-10)


def test_the_bound_is_the_expected_log_ratio_of_paths() -> None:
    """−ELBO_j by nothing but densities of paths, log q(z_{j+1..T}|z_j) − log p(z_{j..T}), within 4 standard errors."""
    model, j, count = chain(6), 2, 40_000
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(7 - j, count, 1, dtype=F64, generator=generator)
    z = process.diffuse(X.expand(count, 1), draw[0], model.levels[j])
    value = torch.zeros(count, dtype=F64)
    with torch.no_grad():
        for i, eps in zip(range(j + 1, 7), draw[1:], strict=True):
            keep = process.alpha(model.levels[i]) / process.alpha(model.levels[i - 1])
            variance = process.sigma(model.levels[i]) ** 2 - (keep * process.sigma(model.levels[i - 1])) ** 2
            forward = Normal(keep * z, variance.sqrt())
            following = forward.mean + forward.stddev * eps
            backward = model.transition(following, torch.full((count,), i))
            value += (forward.log_prob(following) - backward.log_prob(z))[:, 0]
            z = following
        value -= Normal(0.0, 1.0).log_prob(z)[:, 0]
        deviation = (value.mean() - noisy_bound(model, j)) / (value.std() / math.sqrt(count))
    assert abs(deviation) < 4


def test_the_bound_of_an_exact_model_comes_down_to_its_density() -> None:
    """For data N(0, S) seen through the exact denoiser −E ELBO_j(z_j) ≥ −E log p(z_j), and the gap falls as 1/T."""
    gaussian = oracles.Gaussian.isotropic(1, 1.7)
    gaps = []
    for steps in (32, 64):
        model = Chain(gaussian, torch.linspace(HIGH, -9.0, steps + 1, dtype=F64))
        level, path = model.levels[steps // 4], kls(model)[steps // 4 :].sum()
        bound = path + elbo.prior_kl(X[None], -9.0)[0] + elbo.conditional_entropy(1, level)
        z = process.diffuse(X.expand_as(NOISE.eps), NOISE.eps, level)
        gaps.append((bound + NOISE.mean(gaussian.log_prob(z, level.expand(len(z))))).item())
    assert gaps[0] > gaps[1] > 0
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)


@every_weighting
def test_the_weighted_sum_is_the_average_of_bounds_at_any_number_of_steps(weighting: weightings.Weighting) -> None:
    """Σ w(λ_i)/w(λ_T) ½ expm1(λ_{i−1} − λ_i) e(λ_i) is Σ p_j (Σ_{i>j} KL_i) in value and gradient, T = 5."""
    model = chain(5)
    levels, terms = model.levels, kls(model)
    paths = terms.flip(0).cumsum(0).flip(0)  # Σ_{i>j} KL_i for j = 0 … T − 1
    mass = model.masses(weighting)
    weighted = (
        0.5 * (weighting(levels[1:]) / weighting(levels[-1:]) * torch.expm1(-levels.diff())) @ errors(model, levels[1:])
    )
    assert mass.sum().item() == pytest.approx(1, abs=1e-13)
    torch.testing.assert_close(mass @ paths, weighted, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient(mass @ paths, model), gradient(weighted, model), rtol=1e-9, atol=1e-12)


@every_weighting
def test_masses_are_a_distribution_where_the_weighting_is_monotone(weighting: weightings.Weighting) -> None:
    mass = chain(64).masses(weighting)
    assert (mass >= -1e-15).all() == (weighting in MONOTONE.values())


@every_weighting
def test_masses_are_those_of_the_augmentation(weighting: weightings.Weighting) -> None:
    """Levels drawn from p_w and moved up to the next level of the chain: the mass of each cell, by its density."""
    model = chain(24)
    augmentation = weightings.Augmentation(weighting, LOW, HIGH)
    where, atoms = augmentation.atoms
    for j, mass in enumerate(model.masses(weighting).tolist()):
        low, high = model.levels[j + 1].item(), model.levels[j].item()
        inside = quadrature.integrate(augmentation.density, low, high, weighting.breaks)
        stepped = atoms[(where > low) & (where <= high)].sum()
        clean = augmentation.clean_mass if j == 0 else 0.0
        assert mass == pytest.approx((inside + stepped + clean).item(), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("weighting", MONOTONE.values(), ids=MONOTONE)
def test_the_average_of_bounds_comes_down_to_the_weighted_loss(weighting: weightings.Weighting) -> None:
    """Its excess over L_w/w(λ_min), and that of its gradient, halve with twice the steps."""
    edges = quadrature.edges_between(LOW, HIGH, 48, weighting.breaks)
    nodes, width = quadrature.panel_nodes(edges, 8)
    excess, slopes = [], []
    for steps in (120, 240):  # the step of the stepped weighting is at a level of both
        model = chain(steps)
        limit = 0.5 * (width * weighting(nodes) / weighting(model.levels[-1:])) @ errors(model, nodes)
        average = model.masses(weighting) @ kls(model).flip(0).cumsum(0).flip(0)
        excess.append((average - limit).item())
        slopes.append(gradient(average - limit, model))
    assert excess[0] / excess[1] == pytest.approx(2, rel=0.05)
    torch.testing.assert_close(slopes[0] / slopes[1], torch.full((2,), 2.0, dtype=F64), rtol=0.15, atol=0)
