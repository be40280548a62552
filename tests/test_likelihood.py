"""Likelihoods against closed forms of Gaussians, mixtures and finite sets, by both ways; what does not change them."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from paperlib import elbo, models, predictions, quadrature, schedules, weightings
from paperlib.engine import data, likelihood
from paperlib.engine.data import ImageData
from paperlib.oracles import Empirical, Gaussian, GaussianMixture, ShrunkGaussian

F64 = torch.float64
LEVELS, DIM, ENDS = 9, 4, (-12.0, 7.0)
MEAN = torch.tensor([0.3, -0.5, 0.0, 0.2], dtype=F64)
FACTOR = torch.tensor([[0.5, 0, 0, 0], [0.2, 0.6, 0, 0], [-0.3, 0.1, 0.4, 0], [0.1, 0.2, 0.1, 0.3]], dtype=F64)
GAUSSIAN = Gaussian(MEAN, FACTOR @ FACTOR.T)


class OnImages:
    """An oracle of vectors as a network of 2×2 images, predicting what it is asked to; tells nobody the label."""

    def __init__(self, oracle: Any, prediction: predictions.Prediction = predictions.EPS) -> None:
        self.oracle, self.prediction = oracle, prediction

    def __call__(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        eps_hat = self.oracle(z.flatten(1), logsnr).reshape(z.shape)
        return predictions.EPS.convert(eps_hat, z, logsnr, self.prediction)


def images(values: Tensor, levels: int = LEVELS) -> ImageData:
    """Integers (N, D) as a data set of pictures, for D = 1 or 4."""
    side = math.isqrt(values.shape[1])
    pictures = values.to(torch.uint8).reshape(len(values), 1, side, side)
    return ImageData("small/test", pictures, torch.arange(len(values)) % 10, levels=levels, sigma_data=0.5)


def some(size: int = 48) -> ImageData:
    return images(torch.randint(LEVELS, (size, DIM), generator=torch.Generator().manual_seed(3)))


def bound(network: Any, prediction: Any = predictions.EPS, pictures: ImageData | None = None, **options: Any) -> Any:
    chosen = {"schedule": schedules.LinearLogSNR(*ENDS), "dtype": F64} | options
    return likelihood.image_elbo(network, prediction, some() if pictures is None else pictures, **chosen)


def exact_diffusion(oracle: Any, pictures: ImageData, ends: tuple[float, float] = ENDS) -> Tensor:
    """½ ∫ e dλ of each image, in closed form but for the integral."""
    rows = pictures.scaled(F64).flatten(1)
    return torch.stack(
        [elbo.weighted_loss(lambda s, x=x: oracle.eps_error_at(x, s), weightings.ELBO(), *ends) for x in rows]
    )


EXACT = exact_diffusion(GAUSSIAN, some())


def in_errors(difference: Tensor) -> float:
    """A mean that should be zero, in its standard errors."""
    return (difference.mean().abs() / (difference.std() / math.sqrt(len(difference)))).item()


# The ELBO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        *((name, schedules.LinearLogSNR(*ENDS)) for name in predictions.PREDICTIONS),
        ("eps", schedules.Cosine(*ENDS)),
        ("v", schedules.EDMSampling(-8.7, 7)),
    ],
    ids=str,
)
def test_the_diffusion_term_is_the_closed_form_of_a_gaussian(name: str, schedule: schedules.NoiseSchedule) -> None:
    prediction = predictions.get(name)
    exact = EXACT if schedule.ends == ENDS else exact_diffusion(GAUSSIAN, some(), schedule.ends)
    found = bound(OnImages(GAUSSIAN, prediction), prediction, schedule=schedule, draws=32)
    difference = found.terms.diffusion - exact
    assert in_errors(difference) < 4
    assert difference.std() / math.sqrt(len(difference)) < 0.05 * exact.mean()


def test_a_network_in_half_precision_is_asked_at_the_same_levels() -> None:
    def nothing(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.zeros_like(z)

    half, single = (bound(nothing, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    assert torch.equal(half.logsnr, single.logsnr)


def test_the_other_terms_are_those_of_the_theory() -> None:
    pictures = some()
    terms = bound(OnImages(GAUSSIAN), draws=1).terms
    torch.testing.assert_close(terms.prior_kl, elbo.prior_kl(pictures.scaled(F64), ENDS[0]))
    table = likelihood.expected_reconstruction(LEVELS, ENDS[1])
    by_hand = [sum(table[value] for value in picture.flatten().tolist()) for picture in pictures.images]
    torch.testing.assert_close(terms.reconstruction, torch.stack(by_hand))
    torch.testing.assert_close(terms.total, terms.prior_kl + terms.diffusion + terms.reconstruction)


@pytest.mark.parametrize(("levels", "logsnr"), [(2, -1.0), (2, 3.0), (17, 4.0), (17, 8.0), (256, 11.0), (256, 13.3)])
def test_the_expected_reconstruction_is_the_mean_over_noise(levels: int, logsnr: float) -> None:
    """By the trapezoidal rule, which converges at once for a smooth function that vanishes at the ends."""
    found = likelihood.expected_reconstruction(levels, logsnr)
    eps = torch.linspace(-10, 10, 8001, dtype=F64)
    density = torch.exp(-(eps**2) / 2) / math.sqrt(2 * math.pi)
    for value in (0, levels // 3, levels - 1):
        x = data.scale(torch.tensor(value), levels, F64).expand(len(eps), 1)
        nats = elbo.reconstruction(x, eps[:, None], logsnr, levels)
        assert found[value].item() == pytest.approx(torch.trapezoid(nats * density, eps).item(), rel=1e-6)
    torch.testing.assert_close(found, found.flip(0), rtol=1e-9, atol=1e-12)


def test_decoding_from_noise_alone_costs_the_logarithm_of_the_levels() -> None:
    assert likelihood.expected_reconstruction(17, -30.0).tolist() == pytest.approx([math.log(17)] * 17)


@pytest.mark.parametrize(("levels", "pixels"), [(2, 4), (17, 1)])
def test_the_bound_of_a_finite_set_that_is_known_is_its_entropy(levels: int, pixels: int) -> None:
    """All images there are, equally likely: log2(levels) bits a pixel, by both ways and with no constant put in."""
    everything = images(torch.tensor(list(itertools.product(range(levels), repeat=pixels))), levels)
    oracle, ends = Empirical(everything.scaled(F64)), (-14.0, 10.0)
    by_elbo = bound(oracle, pictures=everything, draws=1200, schedule=schedules.LinearLogSNR(*ends))
    assert in_errors(by_elbo.terms.total - math.log(len(everything))) < 4
    assert by_elbo.bits.standard_error < 0.05 * math.log2(levels)
    by_flow = flow(oracle, everything, ends=ends, tolerance=1e-5)
    assert by_flow.bits.value == pytest.approx(math.log2(levels), abs=1e-3)


def test_a_wrong_denoiser_costs_what_the_theory_says() -> None:
    shrunk = OnImages(ShrunkGaussian(GAUSSIAN, 0.5))
    plain, worse = (bound(network, draws=32).terms.diffusion for network in (OnImages(GAUSSIAN), shrunk))
    assert in_errors(worse - plain) > 4
    assert (worse - plain).mean() > 0


def test_all_levels_together_are_even_and_those_of_an_image_stratified() -> None:
    schedule, draws = schedules.Cosine(*ENDS), 5
    found = bound(OnImages(GAUSSIAN), schedule=schedule, draws=draws)
    t = schedule.time(found.logsnr)
    steps = t.flatten().sort().values.diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / t.numel()), rtol=1e-6, atol=1e-9)
    assert torch.equal((t * draws).floor().long(), torch.arange(draws).expand(len(t), draws))


def test_levels_of_noise_add_up_to_the_whole() -> None:
    found = bound(OnImages(GAUSSIAN), draws=64)
    parts = found.by_level(10)
    assert parts.edges.tolist() == pytest.approx(torch.linspace(*ENDS, 11).tolist())
    assert parts.nats.sum().item() == pytest.approx(found.terms.diffusion.mean().item())
    assert parts.path_kl[0].item() == pytest.approx(found.terms.prior_kl.mean().item())
    assert parts.path_kl[-1].item() == pytest.approx((found.terms.prior_kl + found.terms.diffusion).mean().item())
    rows = some().scaled(F64).flatten(1)
    path = torch.stack([GAUSSIAN.kl(x, parts.edges) for x in rows]).mean(0)
    exact = path - path[0] + found.terms.prior_kl.mean()
    assert ((parts.path_kl - exact).abs() / parts.path_kl_error)[1:].max() < 4
    assert ((parts.nats - exact.diff()).abs() / parts.standard_error).max() < 4
    assert exact[-1] - exact[0] > 10 * parts.path_kl_error[-1]
    mean = likelihood.Mean.of(found.terms.prior_kl + found.terms.diffusion)
    assert parts.path_kl_error[-1].item() == pytest.approx(mean.standard_error)
    alone = found.by_level(1).standard_error.item()
    assert alone == pytest.approx(likelihood.Mean.of(found.terms.diffusion).standard_error)


def test_a_bound_that_ends_earlier_is_made_of_the_same_draws() -> None:
    found = bound(OnImages(GAUSSIAN), draws=64)
    whole, shorter = found.terms_until(ENDS[1], some()), found.terms_until(3.0, some())
    torch.testing.assert_close(whole.total, found.terms.total)
    assert in_errors(shorter.diffusion - exact_diffusion(GAUSSIAN, some(), (ENDS[0], 3.0))) < 4
    table = likelihood.expected_reconstruction(LEVELS, 3.0)
    torch.testing.assert_close(shorter.reconstruction, table[some().images.long()].flatten(1).sum(1))
    with pytest.raises(ValueError, match=r"logsnr_max must lie in \[-12, 7\], got 9"):
        found.terms_until(9.0, some())


def test_a_schedule_that_was_learned_leaves_the_mean_and_lowers_the_variance() -> None:
    network = OnImages(GAUSSIAN)
    pilot = bound(network, draws=64, schedule=schedules.Cosine(*ENDS))
    misses = [
        bound(network, draws=8, schedule=schedule, seed=1).terms.diffusion - EXACT
        for schedule in (schedules.Cosine(*ENDS), pilot.schedule(40))
    ]
    assert in_errors(misses[1]) < 4
    assert misses[1].std() < 0.8 * misses[0].std()


def test_the_standard_error_is_one_over_images() -> None:
    found = bound(OnImages(GAUSSIAN), draws=6)
    bits = found.terms.total / (DIM * math.log(2))
    assert found.bits.value == pytest.approx(bits.mean().item())
    assert found.bits.standard_error == pytest.approx(bits.std().item() / math.sqrt(len(bits)))
    assert math.isnan(likelihood.Mean.of(torch.ones(1)).standard_error)


# Real-valued data ----------------------------------------------------------------------------------------------------

REAL = GAUSSIAN.mean + torch.randn(2048, DIM, generator=torch.Generator().manual_seed(7), dtype=F64) @ FACTOR.T


def real(network: Any, x: Tensor = REAL, ends: tuple[float, float] = ENDS, **options: Any) -> likelihood.ImageElbo:
    return likelihood.real_elbo(
        network, predictions.EPS, x, schedules.LinearLogSNR(*ends), **({"batch_size": 2048} | options)
    )


def test_the_bound_on_a_density_is_that_of_a_gaussian_in_closed_form() -> None:
    """KL(q(z|x) ‖ p(z)) at both ends, and the entropy of the decoder."""
    found = real(GAUSSIAN, draws=16)
    ends = torch.tensor(ENDS, dtype=F64)
    path = torch.stack([GAUSSIAN.kl(x, ends) for x in REAL])
    prior = elbo.prior_kl(REAL, ENDS[0])
    exact = prior + path[:, 1] - path[:, 0] + 0.5 * DIM * (math.log(2 * math.pi * math.e) - ENDS[1])
    assert in_errors(found.terms.total - exact) < 4
    assert (found.terms.total - exact).std() / math.sqrt(len(REAL)) < 0.12
    assert found.bits.value == pytest.approx(found.terms.total.mean().item() / (DIM * math.log(2)))


def test_the_bound_on_a_density_is_tight_where_the_data_are_almost_clean() -> None:
    """From above: at λ_max = 2 it misses the density of the data, at 14 no more."""
    density = torch.distributions.MultivariateNormal(MEAN, GAUSSIAN.covariance).log_prob(REAL)
    gaps = [real(GAUSSIAN, ends=(-14.0, high), draws=32).terms.total + density for high in (2.0, 14.0)]
    assert gaps[0].mean() > 0.5
    assert in_errors(gaps[1]) < 4
    assert gaps[1].std() / math.sqrt(len(REAL)) < 0.16


def test_scaling_the_data_scales_their_density() -> None:
    """x to c x adds D log c to −log p."""
    c = 3.0
    scaled = Gaussian(c * MEAN, c**2 * GAUSSIAN.covariance)
    difference = (
        real(scaled, c * REAL, (-14.0, 14.0), draws=32).terms.total
        - real(GAUSSIAN, ends=(-14.0, 14.0), draws=32).terms.total
    )
    assert in_errors(difference - DIM * math.log(c)) < 4


def test_labels_of_real_data_reach_the_network() -> None:
    label, seen = torch.arange(64), list[Any]()

    def network(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        seen.append(label)
        return GAUSSIAN(z, logsnr)

    real(network, REAL[:64], label=label, draws=1, batch_size=40)
    assert [part.tolist() for part in seen] == [list(range(40)), list(range(40, 64))]
    real(network, REAL[:64], draws=1)
    assert seen[-1] is None


def test_integers_and_nan_are_no_real_data() -> None:
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch.uint8; scale pixels"):
        real(GAUSSIAN, torch.zeros(3, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="x has 1 value"):
        real(GAUSSIAN, torch.tensor([[0.0, math.nan]]))


# The probability flow ------------------------------------------------------------------------------------------------


def flow_of_gaussian(oracle: Gaussian, z: Tensor, low: float, high: float) -> Tensor:
    """Log-density at λ_max of the flow from N(0, I): in VE scaling z̄ − mean grows by √((s + σ̄²)/(s + σ̄₁²))."""
    values, vectors = oracle._spectrum
    growth = ((values + math.exp(-high)) / (values + math.exp(-low))).sqrt()
    start, end = (1 / math.sqrt(1 + math.exp(-level)) for level in (low, high))
    mean = end * (oracle.mean @ vectors) * (1 - growth)
    return torch.distributions.Normal(mean, end * growth / start).log_prob(z @ vectors).sum(1)


@pytest.mark.parametrize(
    ("name", "ends"),
    [*((name, (-12.0, 7.0)) for name in predictions.PREDICTIONS), ("eps", (-6.0, 2.0)), ("v", (-14.0, 11.0))],
    ids=str,
)
def test_the_flow_is_the_closed_form_of_a_gaussian(name: str, ends: tuple[float, float]) -> None:
    prediction = predictions.get(name)
    z = 1.5 * torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    found = likelihood.flow_density(OnImages(GAUSSIAN, prediction), prediction, z, ends, tolerance=1e-6, dtype=F64)
    torch.testing.assert_close(found.log_prob, flow_of_gaussian(GAUSSIAN, z.flatten(1), *ends), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "oracle",
    [
        Gaussian(MEAN[:2], GAUSSIAN.covariance[:2, :2]),
        GaussianMixture.isotropic(torch.tensor([[-1.0, 0.2], [0.8, -0.5], [0.1, 1.0]], dtype=F64), 0.05),
    ],
    ids=lambda oracle: type(oracle).__name__,
)
def test_the_flow_is_the_density_of_the_data(oracle: Any) -> None:
    """From so far down that N(0, I) is their marginal."""
    z = torch.tensor([[-1.0, 0.3], [0.5, 0.1], [2.0, -1.0], [0.0, 0.9]], dtype=F64)
    found = likelihood.flow_density(oracle, predictions.EPS, z, (-22.0, 5.0), tolerance=1e-6, dtype=F64)
    torch.testing.assert_close(found.log_prob, oracle.log_prob(z, torch.tensor(5.0, dtype=F64)), rtol=0, atol=2e-4)


def test_single_precision_of_the_network_is_enough() -> None:
    z = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    single = OnImages(Gaussian(MEAN.float(), GAUSSIAN.covariance.float()))
    found = likelihood.flow_density(single, predictions.EPS, z, ENDS)
    torch.testing.assert_close(found.log_prob, flow_of_gaussian(GAUSSIAN, z.flatten(1), *ENDS), rtol=0, atol=2e-3)
    assert found.log_prob.dtype == F64


def test_hutchinson_has_the_mean_of_the_exact_divergence() -> None:
    z = torch.randn(1, DIM, generator=torch.Generator().manual_seed(1), dtype=F64).expand(600, DIM)
    signs = torch.randint(2, z.shape, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    options: Any = {"tolerance": 1e-5, "dtype": F64}
    found = likelihood.flow_density(GAUSSIAN, predictions.EPS, z, ENDS, probe=signs, **options)
    exact = likelihood.flow_density(GAUSSIAN, predictions.EPS, z[:1], ENDS, **options)
    assert found.log_prob.std() > 0.1
    assert in_errors(found.log_prob - exact.log_prob) < 4


ONE = Gaussian(torch.tensor([0.1], dtype=F64), torch.tensor([[0.3]], dtype=F64))
EVERY_VALUE = images(torch.arange(LEVELS)[:, None])


def flow(network: Any, pictures: ImageData = EVERY_VALUE, **options: Any) -> likelihood.ImageFlow:
    chosen = {"ends": (-14.0, 5.0), "dtype": F64, "tolerance": 1e-4} | options
    return likelihood.image_flow(network, predictions.EPS, pictures, **chosen)


def test_uniform_dequantisation_is_the_mean_log_density_over_a_level() -> None:
    """And a bound: the probabilities of all integers add up to less than one, and each is less than its integral."""
    found = flow(OnImages(ONE), ends=(-14.0, 2.0), dequantisation="uniform", draws=60)
    width, level = 2 / (LEVELS - 1), torch.tensor(2.0, dtype=F64)
    nodes, weights = quadrature.panel_nodes(torch.linspace(-0.5, 0.5, 9, dtype=F64))
    x = EVERY_VALUE.scaled(F64).flatten()[:, None] + width * nodes
    alpha = torch.sigmoid(level).sqrt()
    log_density = ONE.log_prob((alpha * x).reshape(-1, 1), level).reshape(x.shape) + torch.log(alpha)
    mean = -(log_density @ weights) - math.log(width)
    spread = ((log_density**2 @ weights) - (log_density @ weights) ** 2).sqrt() / math.sqrt(60)
    assert ((found.nats - mean).abs() / (spread + 1e-4)).max() < 4
    integral = -torch.log(width * (log_density.exp() @ weights))
    assert (mean > integral).all()
    assert torch.exp(-mean).sum() < 1


def test_uniform_noise_is_as_wide_as_a_level() -> None:
    x, normal = (
        torch.zeros(20_000, 1, dtype=F64),
        torch.randn(20_000, 1, dtype=F64, generator=torch.Generator().manual_seed(5)),
    )
    z, _ = likelihood._uniform(x, normal, 2.0, LEVELS)
    spread = z / torch.sigmoid(torch.tensor(2.0, dtype=F64)).sqrt()
    half = 1 / (LEVELS - 1)
    assert (spread.min().item(), spread.max().item()) == pytest.approx((-half, half), rel=1e-2)
    assert spread.square().mean().item() == pytest.approx(half**2 / 3, rel=0.03)


def test_variational_dequantisation_is_the_elbo_of_an_exact_model() -> None:
    """E log q(z|x)/p(z) is then L(λ_max; x), in closed form; and what it gives all integers is less than one."""
    found = flow(OnImages(ONE), draws=40)
    level = torch.tensor([5.0], dtype=F64)
    path = torch.stack([ONE.kl(x, level)[0] for x in EVERY_VALUE.scaled(F64).reshape(-1, 1)])
    exact = path + likelihood.expected_reconstruction(LEVELS, 5.0)
    torch.testing.assert_close(found.nats, exact, rtol=0, atol=0.6)
    assert in_errors(found.nats - exact) < 4
    assert torch.exp(-exact).sum() < 1


def test_both_ways_agree_on_an_exact_model_of_images() -> None:
    by_elbo = bound(OnImages(GAUSSIAN), draws=64).terms.total
    by_flow = flow(OnImages(GAUSSIAN), some(), ends=ENDS, draws=2)
    assert in_errors(by_elbo - by_flow.nats) < 4
    assert by_flow.divergence == "exact"
    assert by_flow.bits.value == pytest.approx(by_flow.nats.mean().item() / (DIM * math.log(2)))


def test_the_divergence_that_was_asked_for_is_the_one_that_is_taken() -> None:
    options: dict[str, Any] = {"ends": ENDS, "draws": 3, "tolerance": 1e-4}
    exact, estimate = (
        flow(OnImages(GAUSSIAN), some(), divergence=divergence, **options) for divergence in ("exact", "hutchinson")
    )
    assert estimate.divergence == "hutchinson"
    difference = exact.nats - estimate.nats
    assert difference.std() > 0.1
    assert in_errors(difference) < 4


# What does not change the answer -------------------------------------------------------------------------------------


def mlp() -> models.ConditionedNetwork:
    network = models.build(
        "mlp", image_shape=(1, 8, 8), num_classes=10, sigma_data=0.75, seed=0, width=16, hidden=24, blocks=1
    )
    for parameter in network.parameters():  # the last layer begins at zero
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return network.eval()


DIGITS = data.load("digits", "test")
FEW = ImageData("digits/some", DIGITS.images[:70], DIGITS.labels[:70], DIGITS.levels, DIGITS.sigma_data)


def digits_elbo(**options: Any) -> likelihood.ImageElbo:
    chosen = {"draws": 3, "batch_size": 32} | options
    return likelihood.image_elbo(mlp(), predictions.V, FEW, schedules.Cosine(-10, 10), **chosen)


def digits_flow(**options: Any) -> likelihood.ImageFlow:
    chosen = {"divergence": "hutchinson", "tolerance": 1e-3, "batch_size": 32} | options
    return likelihood.image_flow(mlp(), predictions.V, FEW, (-10.0, 8.0), **chosen)


def test_the_seed_decides() -> None:
    first, again, other = (digits_elbo(seed=seed).terms.diffusion for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(digits_flow().nats, digits_flow().nats)


def test_a_batch_of_another_size_gives_the_same() -> None:
    for size in (7, 70, 1000):
        torch.testing.assert_close(digits_elbo(batch_size=size).loss, digits_elbo().loss, rtol=1e-4, atol=1e-4)


def test_labels_reach_the_network_only_where_it_is_conditional() -> None:
    seen: list[Any] = []

    def network(z: Tensor, logsnr: Tensor, **conditioning: Tensor) -> Tensor:
        seen.append(conditioning)
        return 0.5 * z

    for run in (digits_of(network, True), digits_of(network, False)):
        assert len(run.nats) == len(FEW)
    told = [conditioning["label"] for conditioning in seen if conditioning]
    assert {len(conditioning) for conditioning in seen} == {0, 1}
    assert torch.equal(told[0], FEW.labels)


def digits_of(network: Any, conditional: bool) -> likelihood.ImageFlow:
    options: dict[str, Any] = {"conditional": conditional, "batch_size": 70}
    likelihood.image_elbo(network, predictions.V, FEW, schedules.Cosine(-10, 10), draws=1, **options)
    return likelihood.image_flow(
        network, predictions.V, FEW, (-5.0, 5.0), divergence="hutchinson", tolerance=1e-2, **options
    )


# Networks that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", [None, torch.ones(3, DIM, dtype=F64)], ids=["exact", "hutchinson"])
@pytest.mark.parametrize("name", predictions.PREDICTIONS)
@pytest.mark.parametrize("cut", ["no_grad", "detach", "half"])
def test_the_flow_refuses_a_network_that_has_no_gradient(name: str, cut: str, probe: Tensor | None) -> None:
    """Whatever it predicts: ε̂ of a v- or x-network has a gradient by z even where the output has none."""
    weight = torch.ones((), dtype=F64, requires_grad=True)

    def network(z: Tensor, logsnr: Tensor) -> Tensor:
        if cut == "no_grad":
            with torch.no_grad():
                return 0.3 * z
        return 0.3 * z.detach() * (weight if cut == "half" else 1.0)

    with pytest.raises(ValueError, match="needs the gradient of the network's output by z, and there is none"):
        likelihood.flow_density(network, predictions.get(name), REAL[:3], (-2.0, 2.0), probe=probe, dtype=F64)


def failing(bad: Any) -> Any:
    return lambda z, logsnr, label=None: 0.3 * z + torch.where(logsnr > 1.0, bad, 0.0).reshape(-1, *[1] * (z.ndim - 1))


def test_nan_is_said_with_its_level() -> None:
    message = r"is NaN or infinite for \d+ of \d+ examples at log-SNR (\d|1\.\d+)"
    with pytest.raises(ValueError, match=message):
        bound(failing(math.nan))
    with pytest.raises(ValueError, match=message):
        real(failing(math.inf))
    with pytest.raises(ValueError, match="output is NaN or infinite for 3 of 3 examples at log-SNR 2;"):
        likelihood.flow_density(failing(math.nan), predictions.V, REAL[:3], (-2.0, 2.0), dtype=F64)


@pytest.mark.parametrize("given", [lambda z: (z,), lambda z: None], ids=["tuple", "NoneType"])
def test_what_is_no_tensor_is_refused_by_its_type(given: Any) -> None:
    network = lambda z, logsnr, label=None: given(z)  # noqa: E731
    name = type(given(REAL)).__name__
    for call in (
        lambda: bound(network),
        lambda: real(network),
        lambda: likelihood.flow_density(network, predictions.V, REAL[:3], (-2.0, 2.0)),
    ):
        with pytest.raises(TypeError, match=f"output must be a torch.Tensor, got {name}"):
            call()


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-30), (F64, 1e-15), (torch.float32, 1e-7)])
def test_a_tolerance_below_rounding_is_refused(dtype: torch.dtype, tolerance: float) -> None:
    with pytest.raises(ValueError, match=f"tolerance must be at least .* for a network in {dtype}, got {tolerance}"):
        likelihood.flow_density(GAUSSIAN, predictions.EPS, REAL[:3], ENDS, tolerance=tolerance, dtype=dtype)


def test_the_least_tolerance_is_met() -> None:
    z = REAL[:2]
    found = likelihood.flow_density(GAUSSIAN, predictions.EPS, z, (-2.0, 2.0), tolerance=1e-12, dtype=F64)
    torch.testing.assert_close(found.log_prob, flow_of_gaussian(GAUSSIAN, z, -2.0, 2.0), rtol=0, atol=1e-9)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_what_is_no_set_of_integers_is_refused() -> None:
    for call in (
        lambda given: bound(OnImages(GAUSSIAN), pictures=given),
        lambda given: flow(OnImages(GAUSSIAN), given),
    ):
        with pytest.raises(TypeError, match=r"data must be an ImageData, .* got Tensor"):
            call(some().scaled())
    with pytest.raises(TypeError, match=r"images must be torch\.uint8"):
        ImageData("real", some().scaled(), some().labels, LEVELS, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws must be a positive number, got 0"),
        ({"batch_size": 0}, "batch_size must be a positive number, got 0"),
        ({"divergence": "none"}, "unknown divergence 'none'; choose one of exact, hutchinson"),
        ({"dequantisation": "none"}, "unknown dequantisation 'none'; choose one of uniform, variational"),
        ({"ends": (5.0, -5.0)}, r"logsnr_min \(5.0\) must be below"),
        ({"tolerance": 0.0}, "tolerance must be a positive number"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow(OnImages(ONE), **options)
