# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 The weighted loss is the ELBO of noisy data
#
# **Claim.** Every weighted loss is a weighted integral of ELBOs, one for each noise level (C5, C6). If the weighting is
# monotone the weights are a probability distribution, and the loss *is* the ELBO of data to which Gaussian noise of
# random strength was added (C7). If it is not, some of the weights are negative (C8). (Section 3: the Theorem and its
# Corollary.)
#
# Each identity is checked in up to three ways: by symbols on a Gaussian, by quadrature in float64, and by Monte Carlo
# on real images. All of them need data for which the loss is known *independently* of what is to be shown. These come
# first.

# %% tags=["parameters"]
profile: str = "tiny"
logsnr_min: float = -12.0
logsnr_max: float = 12.0
points: int = 241
draws: int = 256
oracle_images: int = 1500
information_images: int = 1797
information_draws: int = 800000
entropy_draws: int = 800
largest_error: float = 0.004
samples: int = 20000
seed: int = 0

# %%
import math

import matplotlib.pyplot as plt
import pandas as pd
import sympy as sp
import torch
from scipy import optimize

from paperlib import companion, elbo, oracles, process, quadrature, schedules, weightings
from paperlib.companion import figures, profiles

run = companion.start("04_elbo_with_augmentation", profile)
settings = profiles.load(profile)
train, test = settings.data.load("train"), settings.data.load("test")
caution = f" {test.caution}." if test.caution else ""
generator = torch.Generator().manual_seed(seed)
f64 = torch.float64
low, high = logsnr_min, logsnr_max
grid = torch.linspace(low, high, points, dtype=f64)
all_weightings = {
    **weightings.TABLE_1,
    "EDM-monotonic": weightings.EDMMonotonic(),
    "sigmoid, k = 2": weightings.Sigmoid(2.0),
}

# %% [markdown]
# ## 4.1 The quantity, and models that know it
#
# Let the forward process run from $t$ to $1$ and the model back. The **path KL**
#
# $$L(t;x)=KL\big(q(z_{t\ldots1}\mid x)\,\Vert\,p(z_{t\ldots1})\big) \tag{4.1}$$
#
# says how badly the model explains a noisy version of $x$. It is an ELBO in disguise: with the entropy of the noise,
# $H(q(z_t|x))=\tfrac D2\log(2\pi e\sigma^2)$, a number that no model can change,
#
# $$L(t;x)=-E_q\big[\mathrm{ELBO}_t(z_t)\big]-H(q(z_t\mid x)). \tag{4.2}$$
#
# By the chain rule, $L(t;x)=KL(q(z_t|x)\Vert p(z_t))+E_q\,KL(q(z_{>t}|z_t,x)\Vert p(z_{>t}|z_t))$. The second term
# vanishes if the model's reverse process is the exact time reversal of *some* forward process, that is, if its denoiser
# is the posterior mean of *some* data, right or wrong, and it starts from the marginal of that data. For such a model
#
# $$L(t;x)=KL\big(q(z_t\mid x)\,\Vert\,p(z_t)\big), \tag{4.3}$$
#
# which needs the model's density and no integral over time. Three such models in one dimension, all looking at $x=0.9$:
# the exact Gaussian (closed form), a mixture of two Gaussians, and the same mixture **displaced** by half a unit. The
# last is a wrong model: exact, for other data.

# %%
x = torch.tensor([0.9], dtype=f64)
gaussian = oracles.Gaussian.isotropic(1, 1.7)
mixture = oracles.GaussianMixture(
    weights=torch.tensor([0.3, 0.7], dtype=f64),
    means=torch.tensor([[-1.0], [0.8]], dtype=f64),
    covariances=torch.tensor([[[0.04]], [[0.2]]], dtype=f64),
)
displaced = mixture.displaced(torch.tensor([0.5], dtype=f64))

noise = elbo.Noise.quadrature(dim=1, panels=20, order=12)  # expectations over ε, to 1e-12
models = {"Gaussian": gaussian, "mixture": mixture, "displaced mixture": displaced}
errors = {name: elbo.eps_error(model, x, noise) for name, model in models.items()}
divergences = {name: elbo.marginal_kl(model, x, noise) for name, model in models.items()}

assert torch.allclose(errors["Gaussian"](grid), gaussian.eps_error_at(x, grid), rtol=1e-10)
assert torch.allclose(divergences["Gaussian"](grid), gaussian.kl(x, grid), rtol=1e-8, atol=1e-12)
print("quadrature over ε agrees with the closed forms of the Gaussian at every level")

# %% [markdown]
# ## 4.2 The Theorem: how fast L grows
#
# **Derivation.** Take a short step from $t$ to $s=t-dt$. Both $q(z_s|z_t,x)$ and the model's $p(z_s|z_t)=q(z_s|z_t,\hat
# x)$ are Gaussians of the same variance, so their KL is a squared distance of means,
# $\tfrac12(e^{\lambda_s}-e^{\lambda_t})\lVert x-\hat x\rVert^2=\tfrac12(e^{\lambda_s-\lambda_t}-1)\lVert\epsilon-\hat
# \epsilon\rVert^2$. KLs of successive steps add up, and as $dt\to0$
#
# $$\frac{d}{dt}L(t;x)=\tfrac12\,f'(t)\,E_\epsilon\big\lVert\epsilon-\hat\epsilon(z_t;\lambda_t)\big\rVert^2.
# \tag{4.4}$$
#
# $f'<0$: more noise, less to explain. First by symbols, for any Gaussian data of variance $S$ and any $x$, with
# $u=e^\lambda$ and $d/d\lambda=u\,d/du$:

# %%
u, variance, point = sp.symbols("u S x", positive=True)
path = (sp.log(1 + u * variance) + (u * point**2 - u * variance) / (1 + u * variance)) / 2
squared_error = ((u * variance) ** 2 + u * point**2) / (1 + u * variance) ** 2
theorem_by_algebra = sp.simplify(u * sp.diff(path, u) - squared_error / 2)
print("dL/dλ − ½ E(ε̂ − ε)² =", theorem_by_algebra)

# %% [markdown]
# Next by quadrature, on right and wrong models, in the time of three schedules. The left side of (4.4) differentiates
# the density form (4.3) through $\lambda=f(t)$ automatically; the right side only ever sees the denoiser. The
# falsifiers replace $f'$ by that of another schedule, and drop the factor ½.

# %%
clocks = {
    "cosine": schedules.Cosine(-10, 10),
    "EDM sampling": schedules.EDMSampling(),
    "linear β": schedules.LinearBeta(logsnr_max=10.0),
}
times = torch.linspace(0.02, 0.98, 25, dtype=f64)


def slope(model, schedule):
    """dL/dt of (4.3), by automatic differentiation through λ = f(t)."""
    t = times.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(elbo.marginal_kl(model, x, noise)(schedule.logsnr(t)).sum(), t)
    return derivative


slopes = {(name, clock): slope(models[name], clocks[clock]) for name in models for clock in clocks}
rates = {(name, clock): elbo.path_kl_rate(errors[name], clocks[clock], times) for name in models for clock in clocks}

# %% [markdown]
# Finally on real images, by Monte Carlo. The model is the exact denoiser of the training images, a softmax over the
# set; the $x$ are images that are *not* in the set, so it is a wrong model for them, and (4.3) applies. Integrated over
# a segment, (4.4) says that $KL(q(z|x)\Vert p(z))$ grows by $\tfrac12\int e\,d\lambda$. Both sides are estimated with
# the same $\epsilon$, which leaves a small standard error on their difference.

# %%
denoiser = oracles.Empirical(train.scaled(torch.float32, first=oracle_images))
draw = elbo.Noise.monte_carlo(train.image_shape, draws, generator)
shown = test.scaled(f64)[torch.randint(len(test), (draws,), generator=generator)]  # one image for each ε
print(f"{len(denoiser.images)} images of {train.name}, {draws} images of {test.name}, drawn with replacement.{caution}")

segments = torch.linspace(-10, 6, 9, dtype=f64)
nodes, width = quadrature.panel_nodes(torch.linspace(-10, 6, 17, dtype=f64), order=4)
image_errors = elbo.eps_errors(denoiser, shown, nodes, draw)
image_kls = elbo.marginal_kls(denoiser, shown, segments, draw)

grown = image_kls.diff(dim=0)
integral = 0.5 * (width[:, None] * image_errors).reshape(len(segments) - 1, -1, draws).sum(1)
miss = draw.mean(grown - integral).abs() / draw.standard_error(grown - integral)
miss_without_half = draw.mean(grown - 2 * integral).abs() / draw.standard_error(grown - 2 * integral)
precision = draw.standard_error(grown - integral).norm() / draw.mean(image_kls[-1])
assert precision < 0.02
print("standard error of the whole growth: at most 2 % of L")

# %% tags=["theorem"]
claim = run.claim("C5")
claim.check_true(theorem_by_algebra == 0, "by algebra, Gaussian data of any variance, any x")
for name in models:
    lhs, rhs = (torch.stack([side[name, clock] for clock in clocks]) for side in (slopes, rates))
    claim.check(lhs, rhs, f"dL/dt by density and by error, {name}, 3 schedules", scale=rhs.abs() + 1e-6)
claim.check_below(miss, 4, "growth of L on real images, 8 segments, in standard errors")
claim.falsify(slopes["mixture", "cosine"], rates["mixture", "linear β"], "f′ of another schedule")
claim.falsify_below(miss_without_half, 4, "real images, without the factor ½")

# %% [markdown]
# Here is the theorem as a picture. The line is $L$ from the density, the dots are $L(\lambda_{\min};x)$ plus the
# integral of the error; nothing was fitted.

# %%
chosen = dict(zip(models, (figures.BLACK, figures.BLUE, figures.VERMILION), strict=True))
start = torch.tensor([low], dtype=f64)
by_integral = {name: elbo.path_kl(errors[name], low, high, divergences[name](start)) for name in models}
drawn = pd.DataFrame({"λ (nats)": grid})
fig, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.0))
for name, shade in chosen.items():
    drawn[f"L, {name}"] = divergences[name](grid)
    drawn[f"½ e, {name}"] = 0.5 * errors[name](grid)
    left.plot(grid, drawn[f"L, {name}"], color=shade, label=name)
    left.plot(grid[::12], by_integral[name](grid[::12]), "o", color=shade, markersize=3.5)
    right.plot(grid, drawn[f"½ e, {name}"], color=shade)
left.set(ylabel="path KL, L(λ; x)  (nats)")
right.set(ylabel="its slope, ½ E‖ε̂ − ε‖²", ylim=(0, None))
left.legend()
for ax in (left, right):
    figures.logsnr_axis(ax, low, high)
run.figure(
    fig,
    "theorem",
    data=drawn,
    caption="The Theorem at x = 0.9. Left: L from the model's density (lines) and from the integral of its error "
    "(dots). Right: the error itself. At high noise the displaced mixture even gains, its mean being nearer to this x; "
    "around λ = 2, where the displacement can be seen, it pays. Further right every model pays half a nat a nat: the "
    "price of resolving a continuous x ever more finely.",
)

# %% [markdown]
# ## 4.3 An inequality, and where it is strict
#
# For a model whose denoiser is the posterior mean of *nothing*, the second term of the chain rule stays, and
#
# $$L(t;x)\ \ge\ KL\big(q(z_t\mid x)\,\Vert\,p(z_t)\big). \tag{4.5}$$
#
# A displaced mixture is not enough to see a gap, however wrong it is. Shrinking is: let $\hat\epsilon$ be $\kappa$
# times the optimum of $N(0,S)$. The reverse process stays linear, so what the model generates stays Gaussian; in VE
# scaling, with $\nu=e^{-\lambda}$, its variance solves $dV/d\nu=2\kappa V/(S+\nu)-1$, hence
#
# $$V(\nu)=(S+\nu)\Big[a+(1-a)\Big(\frac{S+\nu}{S+\nu_1}\Big)^{2\kappa-1}\Big],\qquad a=\frac{1}{2\kappa-1}.
# \tag{4.6}$$
#
# The falsifier exchanges the two arguments of the KL. First the solution (4.6), by algebra:

# %%
nu, start_nu, kappa = sp.symbols("nu nu_1 kappa", positive=True)
a = 1 / (2 * kappa - 1)
grown = (variance + nu) * (a + (1 - a) * ((variance + nu) / (variance + start_nu)) ** (2 * kappa - 1))
remainder = sp.simplify(sp.diff(grown, nu) - (2 * kappa * grown / (variance + nu) - 1))
begins = sp.simplify(grown.subs(nu, start_nu) - (variance + start_nu))
print("dV/dν − (2κV/(S + ν) − 1) =", remainder, "  V(ν₁) − (S + ν₁) =", begins)

# %%
factors = (0.8, 0.9, 1.1)
gaps, reversed_gaps = {}, {}
for factor in factors:
    shrunk = oracles.ShrunkGaussian(gaussian, factor)
    path_of = elbo.path_kl(lambda lam, model=shrunk: model.eps_error_at(x, lam), low, high, gaussian.kl(x, start))
    gaps[factor] = path_of(grid) - shrunk.marginal_kl(x, grid, low)
    ratio = shrunk.variance(grid, low)[:, 0] / torch.sigmoid(-grid)
    backwards = 0.5 * (ratio - 1 - torch.log(ratio) + torch.exp(grid) * x**2)
    reversed_gaps[factor] = path_of(grid) - backwards
equality = torch.stack([by_integral[name](grid) - divergences[name](grid) for name in models])

# %% tags=["inequality"]
least = torch.stack([gaps[factor] for factor in factors])
claim = run.claim("C9")
claim.check_true(remainder == 0 and begins == 0, "by algebra: (4.6) solves its equation, from the right start")
claim.check_below(equality.abs(), 1e-8, "gap of models that are exact for some data, in nats")
claim.check_below(-least, 1e-12, "minus the gap of shrunk denoisers, κ = 0.8, 0.9, 1.1, at every level, in nats")
claim.check_within(least[:, -1], 1e-3, math.inf, "their gap at λ_max is strict, in nats")
claim.falsify_below(-reversed_gaps[0.9], 1e-12, "minus the gap to KL(p(z_t) ‖ q(z_t|x)), in nats")

# %%
fig, ax = plt.subplots(figsize=(0.7 * figures.WIDTH, 2.9))
for factor, shade in zip(factors, (figures.VERMILION, figures.ORANGE, figures.GREEN), strict=True):
    ax.plot(grid, gaps[factor], color=shade, label=f"ε̂ shrunk by κ = {factor}")
ax.plot(grid, equality[2], color=figures.BLUE, linestyle="--", label="displaced mixture: no gap")
ax.set(ylabel="L(λ; x) − KL(q(z|x) ‖ p(z))  (nats)")
figures.logsnr_axis(ax, low, high)
ax.legend()
run.figure(
    fig,
    "gap",
    data=pd.DataFrame({"λ (nats)": grid, **{f"κ = {factor}": gaps[factor] for factor in factors}}),
    caption="The gap of the bound. It opens only for denoisers that are the posterior mean of no data at all, and it "
    "never closes again: what the reverse path lost at high noise is not won back.",
)

# %% [markdown]
# ## 4.4 The Corollary: every weighted loss is made of ELBOs
#
# **Derivation.** By (4.4) the weighted loss is $L_w(x)=-\int_0^1\frac{dL}{dt}\,w(\lambda_t)\,dt$. Integrate by parts,
# in $\lambda$:
#
# $$L_w(x)=\int_{\lambda_{\min}}^{\lambda_{\max}}\!\!\big(-w'(\lambda)\big)L(\lambda;x)\,d\lambda
# +w(\lambda_{\max})\,L(\lambda_{\max};x)-w(\lambda_{\min})\,L(\lambda_{\min};x). \tag{4.7}$$
#
# This holds for *every* $w$. Writing $p_w(\lambda)=-w'(\lambda)/w(\lambda_{\min})$ and
# $m=w(\lambda_{\max})/w(\lambda_{\min})$, the weights of the first two terms add up to $\int p_w\,d\lambda+m=1$,
# always.
#
# By symbols, for $w=e^{-\lambda}$ (the plain error of $x$, $\lambda$ drawn uniformly), Gaussian data and any range
# $[\log a,\log b]$. The two sides have the same derivative in $b$, and both vanish at $b=a$:

# %%
upper = sp.Symbol("b", positive=True)
w_of_u = 1 / u
left_slope = (w_of_u * squared_error / 2 / u).subs(u, upper)
right_slope = (-sp.diff(w_of_u, u) * path + sp.diff(w_of_u * path, u)).subs(u, upper)
corollary_by_algebra = sp.simplify(left_slope - right_slope)
print("d/db (left − right) =", corollary_by_algebra)

# %% [markdown]
# By quadrature: the left side integrates the error of the denoiser against $w$, the right side the KL of densities
# (4.3) against $-w'$. All weightings, right and wrong models. Note EDM's row: its $w$, normalised at
# $\lambda_{\min}$, rises several hundredfold before it falls, and the identity holds all the same.

# %%
rows = []
for label, w in all_weightings.items():
    for name in models:
        weighted = elbo.weighted_loss(errors[name], w, low, high)
        augmented = elbo.augmented_loss(divergences[name], w, low, high)
        rows.append((label, name, weighted.item(), augmented.item()))
sides = pd.DataFrame(rows, columns=["weighting", "model", "½∫ w e dλ", "ELBOs of noisy data"])
run.table(sides, "corollary", caption="Both sides of the Corollary at x = 0.9, in nats.")
sides.pivot(index="weighting", columns="model", values="½∫ w e dλ").loc[list(all_weightings), list(models)].round(4)

# %% [markdown]
# And on real images, again with the same $\epsilon$ on both sides. The falsifier there, and for the mixture, is the
# bound without its point mass on clean data.

# %%
kls_at_nodes = elbo.marginal_kls(denoiser, shown, nodes, draw)
first, last = image_kls[0], image_kls[-1]


def both_sides(w, keep_point_mass=True):
    """Left minus right side of (4.7) for every draw, on the levels [−10, 6] of the images; and the left side."""
    weight = w(nodes) / w(segments[:1])
    weighted = 0.5 * (width * weight) @ image_errors
    inner = (width * weightings.augmentation_density(w, nodes, -10.0, 6.0)) @ kls_at_nodes
    clean = weightings.clean_mass(w, -10.0, 6.0) if keep_point_mass else 0.0
    return weighted - (inner + clean * last - first)


smooth = {name: all_weightings[name] for name in ("ELBO", "IDDPM", "EDM", "InDI", "P2", "sigmoid, k = 2")}
difference = torch.stack([both_sides(w) for w in smooth.values()])
broken = both_sides(weightings.ELBO(), keep_point_mass=False)

# %% tags=["corollary"]
claim = run.claim("C6")
claim.check_true(corollary_by_algebra == 0, "by algebra, w = exp(−λ), Gaussian data, any range")
for name in models:
    part = sides[sides["model"] == name]
    claim.check(part["½∫ w e dλ"], part["ELBOs of noisy data"], f"both sides, {name}, {len(part)} weightings")
claim.check_below(
    draw.mean(difference).abs() / draw.standard_error(difference),
    4,
    f"real images, {len(smooth)} weightings, in standard errors",
)
without = elbo.augmented_loss(lambda lam: divergences["mixture"](lam) * (lam < high), weightings.VCosine(), low, high)
claim.falsify(
    elbo.weighted_loss(errors["mixture"], weightings.VCosine(), low, high), without, "without the point mass at λ_max"
)
claim.falsify_below(draw.mean(broken).abs() / draw.standard_error(broken), 4, "real images, without the point mass")

# %% [markdown]
# ## 4.5 A monotone weighting: the ELBO with data augmentation
#
# If $w$ never rises with $\lambda$, then $p_w\ge0$. Its total with $m$ is one, so it is a probability distribution over
# noise levels, and (4.7) reads
#
# $$\frac{L_w(x)}{w(\lambda_{\min})}=E_{\lambda\sim p_w}\big[L(\lambda;x)\big]-L(\lambda_{\min};x)
# =-E_{\lambda\sim p_w,\;z_\lambda\sim q(\cdot|x)}\big[\mathrm{ELBO}_\lambda(z_\lambda)\big]+\text{const}. \tag{4.8}$$
#
# The constant holds the entropy of the noise and the KL at $\lambda_{\min}$, nothing of the network. So minimising
# $L_w$ *is* maximum likelihood, in the sense of an ELBO, of data with Gaussian noise added, the strength of the noise
# drawn from $p_w$: distribution augmentation (Child et al.; Jun et al.), where the model is told the augmentation in
# training and asked for none when sampling.
#
# By algebra, for the sigmoid weighting on any range: the density is positive, and its mass and that of clean data add
# up to one.

# %%
lam, k, left_end, right_end = sp.symbols("lambda k l h", real=True)
sigmoid = 1 / (1 + sp.exp(lam - k))
mass_by_algebra = sp.integrate(-sp.diff(sigmoid, lam), (lam, left_end, right_end)) + sigmoid.subs(lam, right_end)
excess = sp.simplify(mass_by_algebra - sigmoid.subs(lam, left_end))
positive = sp.simplify(-sp.diff(sigmoid, lam)).is_positive
print("mass of p_w and clean data, less one, times w(λ_min) =", excess, "  p_w > 0:", positive)

# %% [markdown]
# Taken at its word: draw levels from $p_w$ (by inverting $P(\Lambda\ge\lambda)=w(\lambda)/w(\lambda_{\min})$), add up
# $L$ there, and compare with the weighted loss. The falsifier takes a non-monotone $w$ for monotone: EDM's $p_w$ with
# its negative part dropped, and normalised again.

# %%
monotone = {label: w for label, w in all_weightings.items() if w.is_monotonic(low, high)}
uniform = torch.rand(samples, generator=generator, dtype=f64)
missed, mass, lowest = [], [], []
for w in monotone.values():
    levels = weightings.Augmentation(w, low, high).level(uniform)
    values = gaussian.kl(x, levels) - gaussian.kl(x, start)
    target = elbo.weighted_loss(lambda lam: gaussian.eps_error_at(x, lam), w, low, high) / w(start)
    missed.append((values.mean() - target).abs() / (values.std() / math.sqrt(samples) + 1e-10))
    density = weightings.augmentation_density(w, grid, low, high)
    lowest.append(density.min())
    inner = quadrature.integrate(lambda lam, w=w: weightings.augmentation_density(w, lam, low, high), low, high)
    mass.append(inner + weightings.clean_mass(w, low, high))


# %%
def positive_part(lam):
    return weightings.augmentation_density(weightings.EDM(), lam, low, high).clamp(min=0)


clean = weightings.clean_mass(weightings.EDM(), low, high)
kept = quadrature.integrate(positive_part, low, high) + clean
pretended = quadrature.integrate(lambda lam: positive_part(lam) * gaussian.kl(x, lam), low, high)
pretended = (pretended + clean * gaussian.kl(x, torch.tensor([high], dtype=f64))) / kept - gaussian.kl(x, start)
edm_loss = elbo.weighted_loss(lambda lam: gaussian.eps_error_at(x, lam), weightings.EDM(), low, high)

# %% tags=["augmentation"]
claim = run.claim("C7")
claim.check_true(excess == 0 and positive, "by algebra: p_w of sigmoid(k − λ) is positive and of mass one")
claim.check_within(torch.stack(lowest), 0, math.inf, f"least value of p_w, {len(monotone)} monotone weightings")
claim.check(torch.stack(mass), torch.ones(len(mass)), "total mass of p_w")
claim.check_below(torch.stack(missed), 4, f"L_w by {samples} levels drawn from p_w, in standard errors")
claim.falsify(edm_loss / weightings.EDM()(start), pretended, "EDM taken for monotone: negative part dropped")

# %% [markdown]
# The constant, for one weighting and three very different networks. The middle columns change with the network, the
# difference between them does not:

# %%
w = weightings.Sigmoid(2.0)
prior = elbo.prior_kl(x[None], low)[0]
constant = []
for name in models:
    bound = elbo.path_kl(errors[name], low, high, prior)  # L with the prior N(0, I) at λ_min

    def noisy_bound(lam, bound=bound):
        """−E[ELBO_λ(z_λ)] of (4.2)."""
        return bound(lam) + elbo.conditional_entropy(1, lam)

    expected = elbo.augmented_loss(noisy_bound, w, low, high) / w(start) + noisy_bound(start)
    weighted = elbo.weighted_loss(errors[name], w, low, high) / w(start)
    constant.append((name, expected.item(), weighted.item(), (expected - weighted).item()))
constant = pd.DataFrame(constant, columns=["model", "−E[ELBO of noisy data]", "L_w", "difference"])
assert constant["difference"].std() < 1e-10
constant.round(6)

# %% [markdown]
# ## 4.6 A weighting that is not monotone
#
# Where $w$ rises with $\lambda$, $p_w<0$. What that means, and what not: $w\ge0$ multiplies the error at every level,
# so less error at any level never raises the loss, and the ideal network is the same. But at equal *total* error,
# moving error from a level to a noisier one where $p_w<0$ lies between lowers the loss, although the ELBO of exactly
# the levels between gets worse. The loss is then no likelihood of any noisy data. The total mass is still one, so the
# positive part exceeds one by what the negative part amounts to. By the normalisation at $\lambda_{\min}$ these
# masses are large where $w$ starts small: they say how far $w$ climbs, not how much harm is done.
#
# A weighting with one peak climbs from $w(\lambda_{\min})$ to $w(\lambda^*)$, so its negative mass is
# $w(\lambda^*)/w(\lambda_{\min})-1$: for IDDPM $\cosh(\lambda_{\min}/2)-1$, for EDM with the root
# $\lambda^*=-3.3078$ of $(\log w)'=0$. Both are computed from the formulas alone, for whatever range was asked for.

# %%
table = pd.DataFrame(
    [
        (
            label,
            "yes" if w.is_monotonic(low, high) else "no",
            weightings.Augmentation(w, low, high).negative_mass,
            weightings.clean_mass(w, low, high),
        )
        for label, w in all_weightings.items()
    ],
    columns=["weighting", "monotone", "negative mass", "mass on clean data"],
)
run.table(table, "masses", caption=f"p_w of every weighting on log-SNR [{low:g}, {high:g}], w(λ_min) = 1.")
table.assign(**{"negative mass": table["negative mass"].map("{:.1f}".format)}).round(6)

# %% tags=["signed"]
signed = {label: w for label, w in all_weightings.items() if not w.is_monotonic(low, high)}
negative = torch.tensor([weightings.Augmentation(w, low, high).negative_mass for w in signed.values()])
total = [
    quadrature.integrate(lambda lam, w=w: weightings.augmentation_density(w, lam, low, high), low, high)
    + weightings.clean_mass(w, low, high)
    for w in signed.values()
]
claim = run.claim("C8")
rising = sp.diff(sp.sech(lam / 2), lam).subs(lam, -2)
claim.check_true(rising > 0, "by algebra: sech(λ/2) rises at λ = −2, so its p_w is negative there")
claim.check_within(negative, 1e-6, math.inf, f"negative mass of {', '.join(signed)}")
claim.check(torch.stack(total), torch.ones(len(total)), "their total, signs counted", scale=1 + negative)
iddpm, edm, held = (
    weightings.Augmentation(w, low, high).negative_mass
    for w in (weightings.IDDPM(), weightings.EDM(), weightings.EDMMonotonic())
)


def climb(log_w, peak):
    """w(λ*)/w(λ_min) − 1 of a weighting with one peak, which may lie outside the range."""
    return math.expm1(log_w(min(max(peak, low), high)) - log_w(low))


def log_edm(lam):
    """log w of EDM, written out: N(λ; 2.4, 2.4²)(e^−λ + ½²)."""
    return -((lam - 2.4) ** 2) / (2 * 2.4**2) + math.log(math.exp(-lam) + 0.25)


peak = optimize.brentq(lambda lam: -(lam - 2.4) / 2.4**2 - math.exp(-lam) / (math.exp(-lam) + 0.25), -8, 0)
from_formulas = [climb(lambda lam: -math.log(math.cosh(lam / 2)), 0), climb(log_edm, peak)]
claim.check([iddpm, edm], from_formulas, "negative mass of sech(λ/2) and EDM, from their formulas", scale=1 + edm)
half = climb(lambda lam: -math.log(math.cosh(lam / 4)), 0)
claim.falsify(iddpm, half, "sech(λ/2) with λ = log α/σ, the SNR without its square")
claim.falsify_within(held, 1e-6, math.inf, "negative mass of EDM-monotonic: it has none")

# %%
fig, axes = plt.subplots(1, 3, figsize=(figures.WIDTH, 2.6), sharex=True)
for ax, (label, name) in zip(
    axes, (("IDDPM", "iddpm"), ("EDM", "edm"), ("EDM-monotonic", "edm_monotonic")), strict=True
):
    density = weightings.augmentation_density(all_weightings[label], grid, low, high)
    ax.fill_between(grid, density.clamp(min=0), color=figures.colour(name), alpha=0.6, linewidth=0)
    ax.fill_between(grid, density.clamp(max=0), color="0.35", linewidth=0)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set_title(label)
    figures.logsnr_axis(ax, low, high)
axes[0].set_ylabel("$p_w(λ)$ (1/nats)")
run.figure(
    fig,
    "signed",
    data=pd.DataFrame(
        {"λ (nats)": grid}
        | {label: weightings.augmentation_density(w, grid, low, high) for label, w in all_weightings.items()}
    ),
    caption="The distribution of noise levels that a weighting implies; grey is negative. Two of the three are none. "
    "Holding EDM's weighting at its peak cuts the negative part away and leaves the positive one as it is.",
)

# %% [markdown]
# ## 4.7 A number that everybody can check: log N
#
# Average (4.4) over the data, with the exact denoiser. Then $E_x L(\lambda;x)=E_x KL(q(z|x)\Vert q(z))$ is the mutual
# information of image and noisy image, and the Theorem becomes the I-MMSE relation of Guo, Shamai & Verdú (2005),
#
# $$\frac{d}{d\lambda}I(x;z_\lambda)=\tfrac12E\lVert\epsilon-\hat\epsilon^*\rVert^2,\qquad
# \int_{-\infty}^{\infty}\tfrac12E\lVert\epsilon-\hat\epsilon^*\rVert^2\,d\lambda=\log N \tag{4.9}$$
#
# for $N$ distinct images: without noise one knows which it was, in pure noise one knows nothing. Below $\lambda_{\min}$
# the integral is $\tfrac12e^{\lambda_{\min}}\operatorname{tr}\operatorname{Cov}(x)$, which is added. To ten digits for
# two points on a line:

# %%
pair = oracles.Empirical(torch.tensor([[-1.0], [1.0]], dtype=f64))
triple = oracles.Empirical(torch.tensor([[-1.0], [1.0], [1.0]], dtype=f64))


def information(oracle, from_logsnr, with_tail):
    """(4.9) on a line, the average over the data exact, over ε by quadrature."""
    each = [elbo.eps_error(oracle, image, noise) for image in oracle.images]
    tail = 0.5 * math.exp(from_logsnr) * oracle.total_variance if with_tail else 0.0
    average = elbo.path_kl(lambda lam: torch.stack([e(lam) for e in each]).mean(0), from_logsnr, 8.0, tail)
    return average(torch.tensor([8.0], dtype=f64)).item()


print(f"two points: {information(pair, -25.0, with_tail=True):.10f}   log 2 = {math.log(2):.10f}")

# %% [markdown]
# And for real images, by Monte Carlo. Three things make $\log N$ come out to three digits after the point in seconds.
# The error of an example is averaged as the posterior variance, $E[\lVert\epsilon-\hat\epsilon^*\rVert^2|z]
# =e^\lambda\operatorname{tr}\operatorname{Cov}(x|z)$, and over $\epsilon$ and $-\epsilon$. Draws go to the levels where
# it varies: the standard error is least when level $\lambda$ gets draws in proportion to its standard deviation there
# (Neyman 1934), which a small pilot measures. And each image comes up equally often, so that only $\epsilon$ is random.
# (`elbo.information`)
#
# At every level in between there is a third way to the same number: $\log N$ minus the mean entropy of the posterior
# over the set.

# %%
everything = torch.cat([train.scaled(first=information_images), test.scaled()])[:information_images]
oracle = oracles.Empirical(everything)
panels = torch.linspace(-16, 12, 29, dtype=f64)
found = elbo.information(oracle, panels, information_draws, generator=generator)
log_n, total_error = math.log(len(everything)), found.standard_error[-1]

sent = everything.double()[torch.randint(len(everything), (entropy_draws,), generator=generator)]
entropy = []
for level in panels[1:]:
    z = process.diffuse(sent, torch.randn(sent.shape, generator=generator, dtype=f64), level)
    entropy.append(oracle.posterior_entropy(z, level))
entropy = torch.stack(entropy)
from_entropy = log_n - entropy.mean(1)
uncertain = (found.standard_error[1:] ** 2 + entropy.var(1) / entropy_draws).sqrt()
between = (found.nats[1:] - from_entropy).abs() / (uncertain + 1e-6)

# %% tags=["information"]
claim = run.claim("X04a")
claim.check(information(pair, -25.0, with_tail=True), math.log(2), "two points on a line")
claim.check_below((found.nats[-1] - log_n).abs() / total_error, 4, "N images, in standard errors")
claim.check_below(total_error, largest_error, "N images, the standard error in nats")
claim.check_below(between, 4, "I(x; z) by error and by entropy at 28 levels, in standard errors")
claim.falsify(information(pair, -6.0, with_tail=False), math.log(2), "from λ = −6, without the tail")
claim.falsify(information(triple, -25.0, with_tail=True), math.log(3), "one of three points a duplicate")
claim.falsify_below((2 * found.nats[-1] - log_n).abs() / total_error, 4, "N images, without the factor ½")

# %% tags=["nbval-ignore-output"]
assert abs(found.nats[-1] - log_n) < 4 * largest_error
print(f"{len(everything)} images: {found.nats[-1]:.4f} ± {total_error:.4f}, log N = {log_n:.4f}.{caution}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 2.9))
left.fill_between(found.levels, found.rate, color=figures.SKY, alpha=0.6, linewidth=0)
left.plot(found.levels, found.rate, color=figures.BLUE)
left.set(ylabel="½ E‖ε − ε̂*‖²  (nats a nat)", ylim=(0, None), title="area = log N")
right.plot(panels, found.nats, color=figures.BLUE, label="integral of the error")
right.plot(panels[1:], from_entropy, "o", color=figures.VERMILION, markersize=4, label="log N − posterior entropy")
right.axhline(log_n, color="black", linestyle=":", linewidth=1)
right.text(-15.5, 0.98 * log_n, "log N", va="top")
right.set(ylabel="information about the image  (nats)")
right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
for ax in (left, right):
    figures.logsnr_axis(ax, -16, 12)
run.figure(
    fig,
    "information",
    data=pd.DataFrame({"λ (nats)": panels[1:], "by error": found.nats[1:], "by entropy": from_entropy}),
    caption="What a model of a finite set has to learn, by noise level. Left: the error of the exact denoiser, of area "
    "log N. Right: the information gained so far, by the integral and by the entropy of the posterior. Where both are "
    f"flat the image is identified, and the error is zero.{caution}",
)

# %% [markdown]
# ## 4.8 In discrete time
#
# A sampler takes $T$ steps. Its bound replaces $d\lambda$ by $e^{\lambda_s-\lambda_t}-1$ and takes the error at the
# noisier end of each step,
#
# $$L_T=\tfrac12\sum_{i=1}^{T}\big(e^{\lambda_s-\lambda_t}-1\big)\,e(\lambda_t)\ \longrightarrow\
# \tfrac12\int e(\lambda)\,d\lambda. \tag{4.10}$$
#
# It falls to the limit as $1/T$: twice the steps, half the excess. With the error taken at the cleaner end it does so
# too, but it is then the KL of nothing; the falsifier shows that the two are told apart.

# %% tags=["discrete"]
known = {10: 22.572, 100: 6.7174, 1000: 6.0701, 10000: 6.0102}
known_range = schedules.LinearLogSNR(-12.0, 12.0)  # the one for which these numbers were worked out beforehand
uniform_levels = schedules.LinearLogSNR(low, high)
exact_error = lambda lam: gaussian.eps_error_at(x, lam)  # noqa: E731
bounds = {steps: elbo.discrete_bound(exact_error, known_range, steps).item() for steps in known}
limit = elbo.weighted_loss(exact_error, weightings.ELBO(), low, high).item()
edges = torch.linspace(12.0, -12.0, 101, dtype=f64)
cleaner_end = 0.5 * (torch.expm1(-edges.diff()) * exact_error(edges[:-1])).sum().item()

claim = run.claim("X04b")
claim.check(list(bounds.values()), list(known.values()), "L_T at T = 10, 100, 1000, 10000", tolerance=3e-5)
known_limit = elbo.weighted_loss(exact_error, weightings.ELBO(), *known_range.ends).item()
claim.check(known_limit, 6.00355, "the limit", tolerance=1e-6)
halving = [elbo.discrete_bound(exact_error, uniform_levels, steps).item() - limit for steps in (4000, 8000)]
claim.check(halving[0], 2 * halving[1], "twice the steps, half the excess", tolerance=5e-3)
claim.falsify(cleaner_end, known[100], "the error at the cleaner end of each step", tolerance=3e-5)
pd.DataFrame({"T": list(bounds), "L_T (nats)": [round(value, 4) for value in bounds.values()]})

# %% [markdown]
# ## 4.9 What would falsify this, and what the theorem does not say
#
# A wrong sign or factor in (4.4), the derivative of another schedule, a forgotten end point in (4.7), a non-monotone
# weighting taken for monotone, the KL the other way round, an information integral cut off without its tail: each was
# put in above and each made its check fail.
#
# What readers have asked of the theorem, and what can be answered:
#
# * *"It is the ELBO of augmented data, not of the data."* That is so. Clean data get the weight
#   $m=w(\lambda_{\max})/w(\lambda_{\min})$, which is below one in ten thousand for every monotone weighting
#   of the table in 4.6 but $w=1$, which has $m=1$. The perception-minded losses are likelihoods of slightly noisy
#   pictures; notebook 05 shows how noisy.
# * *"It explains every monotone loss equally, so it ranks none."* Also so. The Corollary is an interpretation. Which
#   $p_w$ makes good samples is an empirical question (notebooks 07 and 08).
# * *"A non-monotone weighting won."* The logit-normal one of Stable Diffusion 3, in a comparison of 61. Nothing here
#   forbids it: a signed combination of ELBOs can be a good objective. C8 says only that it is no likelihood.
# * *Does the noise-augmented ELBO rank models on held-out data as the clean one does?* Nobody else has tested it that
#   we know of; notebook 10 measures it, on digits.
#
# In this notebook the networks are exact, and so are the checks. A trained network obeys (4.4) by *definition* of its
# reverse process; what it adds is the gap of 4.3, which cannot be seen from its loss.
