# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 The weighted loss is the ELBO of noisy data
#
# **Abstract.** Let $L(\lambda;x)$ be the KL divergence between the noisy path from level $\lambda$ on and the model's.
# Up to the entropy of the noise it is $-$ELBO of $x$ *with noise of level $\lambda$ added*. It grows with $\lambda$ by
# half the error of $\hat\epsilon$ a nat (the Theorem, C5). Integrated by parts, every weighted loss is therefore a
# weighted integral of ELBOs, one for each noise level (the Corollary, C6). If $w$ never rises with $\lambda$ the
# weights are a probability distribution $p_w$, and the loss *is* the ELBO of data with Gaussian noise added, its level
# drawn from $p_w$ (C7). Section 4.6 tests this last sentence, the title of the paper, on a trained network, with
# nothing but the transition densities of its sampler. If $w$ rises somewhere, some weights are negative, and no such
# reading exists (C8). Section 4.10 says what all this means for a network. (Section 3 of the paper.)
#
# Identities are checked by symbols, by quadrature in float64 and by Monte Carlo on real images, each against a slip
# that has been made or is easily made. The last table has every number.

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
early_steps: int = 40
train_steps: int = 300
pairs: int = 24
chain_steps: int = 1000
batches: int = 60
seed: int = 0

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import math

import immse
import matplotlib.pyplot as plt
import pandas as pd
import sympy as sp
import torch
from scipy import optimize

from paperlib import (
    companion,
    elbo,
    objectives,
    oracles,
    predictions,
    process,
    quadrature,
    schedules,
    weightings,
)
from paperlib.companion import figures, profiles
from paperlib.engine import training
from paperlib.models import build

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
# The forward process is a Markov chain that runs from little noise, $t=0$, to much, $t=1$; the model runs back. Take
# noisy data $z_t$ for *the data*. Then $z_{>t}$, all that is noisier, are the latent variables of the model, the
# forward process is its encoder, and the evidence lower bound is what it is for any such model:
#
# $$\mathrm{ELBO}_t(z_t)=E_{q(z_{>t}|z_t)}\big[\log p(z_{t\ldots1})-\log q(z_{>t}\mid z_t)\big]\ \le\ \log p(z_t).
# \tag{4.1}$$
#
# The **path KL** says how badly the model explains a noisy version of $x$. Because $q(z_{>t}|z_t,x)=q(z_{>t}|z_t)$, it
# is that bound in disguise, averaged over the noise in $z_t$:
#
# $$\begin{aligned}L(t;x)&=KL\big(q(z_{t\ldots1}\mid x)\,\Vert\,p(z_{t\ldots1})\big)
# =E_q\big[\log q(z_t|x)+\log q(z_{>t}|z_t)-\log p(z_{t\ldots1})\big]\\
# &=-E_{q(z_t|x)}\big[\mathrm{ELBO}_t(z_t)\big]-H(q(z_t\mid x)),\end{aligned} \tag{4.2}$$
#
# where $H(q(z_t|x))=\tfrac D2\log(2\pi e\sigma^2)$, the entropy of the noise, is a number that no model can change.
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

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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
# **Derivation.** *The reverse kernel.* For two levels $s<t$, $z_t$ the noisier, and $c=1-e^{\lambda_t-\lambda_s}$,
# Bayes' rule for Gaussians gives
#
# $$q(z_s\mid z_t,x)=N\big(\alpha_s\big((1-c)\,z_t/\alpha_t+c\,x\big),\ c\,\sigma_s^2\big),\qquad
# p(z_s\mid z_t)=q(z_s\mid z_t,\hat x(z_t)).$$
#
# The model's step is that of the forward process with its guess in place of $x$. The variances are the same, so their
# KL is a squared distance of means, $\alpha_sc\,(x-\hat x)$ apart; with $\sigma_s^2=\alpha_s^2e^{-\lambda_s}$ and
# $\lVert x-\hat x\rVert^2=e^{-\lambda_t}\lVert\epsilon-\hat\epsilon\rVert^2$ it is
#
# $$KL\big(q(z_s|z_t,x)\Vert p(z_s|z_t)\big)=\tfrac12\,c\,e^{\lambda_s}\lVert x-\hat x\rVert^2
# =\tfrac12\big(e^{\lambda_s-\lambda_t}-1\big)\lVert\epsilon-\hat\epsilon\rVert^2.$$
#
# *The chain rule.* A path from $s$ is a path from $t$ and one more step, $q(z_{s\ldots1}|x)=q(z_{t\ldots1}|x)\,
# q(z_s|z_t,x)$ and likewise for $p$, so $L(s;x)=L(t;x)+E_q\,KL(q(z_s|z_t,x)\Vert p(z_s|z_t))$. *The limit.* As
# $s\to t$, $e^{\lambda_s-\lambda_t}-1\to f'(t)(s-t)$, and
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

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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

# %% tags=["hide-input"] jupyter={"source_hidden": true}
denoiser = oracles.Empirical(train.scaled(torch.float32, first=oracle_images))
draw = elbo.Noise.monte_carlo(train.image_shape, draws, generator)
shown = test.scaled(f64)[torch.randint(len(test), (draws,), generator=generator)]  # one image for each ε
print(f"{len(denoiser.images)} images of {train.name}, {draws} images of {test.name}, drawn with replacement.{caution}")

segments = torch.linspace(-10, 6, 9, dtype=f64)
kinks = (weightings.EDM().peak, math.log(5))  # of EDM-monotonic and Min-SNR: panels end there
nodes, width = quadrature.panel_nodes(quadrature.edges_between(-10, 6, 16, kinks), order=4)
image_errors = elbo.eps_errors(denoiser, shown, nodes, draw)
image_kls = elbo.marginal_kls(denoiser, shown, segments, draw)

grown = image_kls.diff(dim=0)
within = torch.bucketize(nodes, segments) - 1
integral = torch.zeros_like(grown).index_add(0, within, 0.5 * width[:, None] * image_errors)
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

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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
# A displaced mixture is not enough to see a gap, however wrong it is. Scaling is: let $\hat\epsilon$ be $\kappa$
# times the optimum of $N(0,S)$. The reverse process stays linear, so what the model generates stays Gaussian; in VE
# scaling, with $\nu=e^{-\lambda}$, its variance solves $dV/d\nu=2\kappa V/(S+\nu)-1$, hence
#
# $$V(\nu)=(S+\nu)\Big[a+(1-a)\Big(\frac{S+\nu}{S+\nu_1}\Big)^{2\kappa-1}\Big],\qquad a=\frac{1}{2\kappa-1}.
# \tag{4.6}$$
#
# Falsifiers: the error of a single level counted twice, where there should be no gap; and the term at $\lambda_{\min}$
# left out of $L$, which is a few millionths of a nat and makes the bound false at the noisy end. First the solution
# (4.6), by algebra:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
nu, start_nu, kappa = sp.symbols("nu nu_1 kappa", positive=True)
a = 1 / (2 * kappa - 1)
grown = (variance + nu) * (a + (1 - a) * ((variance + nu) / (variance + start_nu)) ** (2 * kappa - 1))
remainder = sp.simplify(sp.diff(grown, nu) - (2 * kappa * grown / (variance + nu) - 1))
begins = sp.simplify(grown.subs(nu, start_nu) - (variance + start_nu))
print("dV/dν − (2κV/(S + ν) − 1) =", remainder, "  V(ν₁) − (S + ν₁) =", begins)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
factors = (0.8, 0.9, 1.1)
gaps, without_prior = {}, {}
for factor in factors:
    shrunk = oracles.ShrunkGaussian(gaussian, factor)
    path_of = elbo.path_kl(lambda lam, model=shrunk: model.eps_error_at(x, lam), low, high, gaussian.kl(x, start))
    gaps[factor] = path_of(grid) - shrunk.marginal_kl(x, grid, low)
    without_prior[factor] = gaps[factor] - gaussian.kl(x, start)
equality = torch.stack([by_integral[name](grid) - divergences[name](grid) for name in models])
twice = 0.5 * errors["displaced mixture"](grid) * (grid[1] - grid[0])  # what one level of the grid adds

# %% tags=["inequality"]
least = torch.stack([gaps[factor] for factor in factors])
claim = run.claim("C9")
claim.check_true(remainder == 0 and begins == 0, "by algebra: (4.6) solves its equation, from the right start")
claim.check_below(equality.abs(), 1e-8, "gap of models that are exact for some data, in nats")
claim.check_below(-least, 1e-12, "minus the gap of scaled denoisers, κ = 0.8, 0.9, 1.1, at every level, in nats")
claim.check_within(least[:, -1], 1e-3, math.inf, "their gap at λ_max is strict, in nats")
claim.falsify_below((equality[2] + twice).abs(), 1e-8, "gap with the error of one level counted twice, in nats")
claim.falsify_below(-without_prior[0.9], 1e-12, "minus the gap with L(λ_min; x) left out, κ = 0.9, in nats")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(0.7 * figures.WIDTH, 2.9))
for factor, shade in zip(factors, (figures.VERMILION, figures.ORANGE, figures.GREEN), strict=True):
    ax.plot(grid, gaps[factor], color=shade, label=f"ε̂ times κ = {factor}")
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
# **Derivation.** By (4.4) the weighted loss is $L_w(x)=-\int_0^1\frac{dL}{dt}\,w(\lambda_t)\,dt
# =\int_{\lambda_{\min}}^{\lambda_{\max}}w\,dL$. Integrate by parts, in $\lambda$:
#
# $$L_w(x)=\int_{\lambda_{\min}}^{\lambda_{\max}}\!\!\big(-w'(\lambda)\big)L(\lambda;x)\,d\lambda
# +w(\lambda_{\max})\,L(\lambda_{\max};x)-w(\lambda_{\min})\,L(\lambda_{\min};x). \tag{4.7}$$
#
# * *Smooth w*: the product rule, $(wL)'=w'L+wL'$.
# * *Kinked w* (EDM-monotonic, Min-SNR): the product rule holds everywhere but at the kink, $wL$ is continuous there, so
#   the pieces of $[wL]$ join and (4.7) stays as it is.
# * *Stepped w* (a loss that is cut off at some level): on each piece as before, but $[wL]$ no longer joins. A step at
#   $\lambda_k$ leaves the term $\big(w(\lambda_k^-)-w(\lambda_k^+)\big)L(\lambda_k;x)$, a point mass. In one formula
#   for all three, $L_w=-\int L\,dw+[wL]$, a Stieltjes integral. Whoever takes $-w'$ by automatic differentiation misses
#   the steps: that is one of the falsifiers.
#
# This holds for *every* $w$. Writing $dp_w=-dw/w(\lambda_{\min})$ and $m=w(\lambda_{\max})/w(\lambda_{\min})$, the
# weights of the first two terms add up to $\int dp_w+m=1$, always.
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

# %% tags=["hide-input"] jupyter={"source_hidden": true}
rows = []
stepped = weightings.Custom(lambda lam: torch.where(lam < 1, 0.0, -1.0).to(lam), breaks=(1.0,))
for label, w in (all_weightings | {"a step at λ = 1": stepped}).items():
    for name in models:
        weighted = elbo.weighted_loss(errors[name], w, low, high)
        augmented = elbo.augmented_loss(divergences[name], w, low, high)
        rows.append((label, name, weighted.item(), augmented.item()))
sides = pd.DataFrame(rows, columns=["weighting", "model", "½∫ w e dλ", "ELBOs of noisy data"])
run.table(sides, "corollary", caption="Both sides of the Corollary at x = 0.9, in nats.")
sides.pivot(index="weighting", columns="model", values="½∫ w e dλ").reindex(sides["weighting"].unique())[
    list(models)
].round(4)

# %% [markdown]
# And on real images, again with the same $\epsilon$ on both sides, weightings with kinks included. Falsifiers: the
# bound without its point mass on clean data, on images and for the mixture; and the step missed.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
kls_at_nodes = elbo.marginal_kls(denoiser, shown, nodes, draw)
first, last = image_kls[0], image_kls[-1]


def both_sides(w, keep_point_mass=True):
    """Left minus right side of (4.7) for every draw, on the levels [−10, 6] of the images."""
    weight = w(nodes) / w(segments[:1])
    weighted = 0.5 * (width * weight) @ image_errors
    inner = (width * weightings.augmentation_density(w, nodes, -10.0, 6.0)) @ kls_at_nodes
    clean = weightings.clean_mass(w, -10.0, 6.0) if keep_point_mass else 0.0
    return weighted - (inner + clean * last - first)


on_images = {name: w for name, w in all_weightings.items() if not name.startswith(("v-", "Flow"))}
difference = torch.stack([both_sides(w) for w in on_images.values()])
broken = both_sides(weightings.ELBO(), keep_point_mass=False)

# %% tags=["corollary", "hide-input"] jupyter={"source_hidden": true}
claim = run.claim("C6")
claim.check_true(corollary_by_algebra == 0, "by algebra, w = exp(−λ), Gaussian data, any range")
for name in models:
    part = sides[sides["model"] == name]
    claim.check(part["½∫ w e dλ"], part["ELBOs of noisy data"], f"both sides, {name}, {len(part)} weightings")
claim.check_below(
    draw.mean(difference).abs() / draw.standard_error(difference),
    4,
    f"real images, {len(on_images)} weightings, in standard errors",
)
without = elbo.augmented_loss(lambda lam: divergences["mixture"](lam) * (lam < high), weightings.VCosine(), low, high)
claim.falsify(
    elbo.weighted_loss(errors["mixture"], weightings.VCosine(), low, high), without, "without the point mass at λ_max"
)
claim.falsify_below(draw.mean(broken).abs() / draw.standard_error(broken), 4, "real images, without the point mass")
slope_of_step = lambda lam: weightings.augmentation_density(stepped, lam, low, high)  # noqa: E731
by_slope = quadrature.integrate(lambda lam: slope_of_step(lam) * divergences["mixture"](lam), low, high, (1.0,))
ends = divergences["mixture"](torch.tensor([low, high], dtype=f64))
claim.falsify(
    elbo.weighted_loss(errors["mixture"], stepped, low, high),
    by_slope + weightings.clean_mass(stepped, low, high) * ends[1] - ends[0],
    "a step at λ = 1, by −w′ alone",
)

# %% [markdown]
# ## 4.5 A monotone weighting: the ELBO with data augmentation
#
# If $w$ never rises with $\lambda$, then $p_w\ge0$. Its total with $m$ is one, so it is a probability distribution over
# noise levels, and with (4.2) the Corollary (4.7) reads
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
# In one dimension, taken at its word: draw levels from $p_w$ (by inverting
# $P(\Lambda\ge\lambda)=w(\lambda)/w(\lambda_{\min})$), add up $L$ there, and compare with the weighted loss.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
monotone = {name: all_weightings[name] for name in ("ELBO", "v-prediction, cosine", "Flow matching, OT", "InDI")}
monotone |= {name: all_weightings[name] for name in ("EDM-monotonic", "sigmoid, k = 2")} | {"stepped": stepped}
uniform = torch.rand(samples, generator=generator, dtype=f64)
missed = []
for w in monotone.values():
    levels = weightings.Augmentation(w, low, high).level(uniform)
    values = gaussian.kl(x, levels) - gaussian.kl(x, start)
    target = elbo.weighted_loss(lambda lam: gaussian.eps_error_at(x, lam), w, low, high) / w(start)
    missed.append((values.mean() - target).abs() / (values.std() / math.sqrt(samples) + 1e-10))

# %% [markdown]
# The constant, for one weighting and three very different networks. The middle columns change with the network, the
# difference between them does not:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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
# ## 4.6 The title, tested on a trained network
#
# So far the networks were exact. Here is one that is not: a small MLP, trained in this notebook, and stopped early, so
# that its gradients are still large. To integrate its error against $p_w$ would only exchange the order of two
# integrals. So $-$ELBO is computed as (4.1) says, from the densities of the sampler itself, $T$ Gaussian steps down to
# $\lambda_{\max}$ (`elbo.Chain`). Noisy data $y=z_j$ go through the same process as $x$, at another log-SNR, so that
# with $y$ in the place of $x$
#
# $$-\mathrm{ELBO}_j(y)=KL\big(q(z_T|y)\Vert N(0,I)\big)+\sum_{i>j+1}E\,KL\big(q(z_{i-1}|z_i,y)\Vert p(z_{i-1}|z_i)\big)
# -E\log p(y\mid z_{j+1}). \tag{4.9}$$
#
# *At finite T* the Corollary is exact. Let $p_j=\big(w(\lambda_{j+1})-w(\lambda_j)\big)/w(\lambda_T)$ with
# $w(\lambda_0)$ replaced by 0, which is $p_w$ with each level moved up to the next one of the chain. Summing by parts,
#
# $$\nabla\sum_jp_j\,E\big[-\mathrm{ELBO}_j(z_j)\big]=\nabla\sum_{i=1}^T\frac{w(\lambda_i)}{w(\lambda_T)}\,
# \tfrac12\big(e^{\lambda_{i-1}-\lambda_i}-1\big)\,e(\lambda_i)\ \longrightarrow\ \frac{\nabla L_w}{w(\lambda_{\min})}
# \qquad(T\to\infty). \tag{4.10}$$
#
# The left side knows `torch.distributions.Normal` and its KL, the right side only errors of $\hat\epsilon$. Both are
# differentiated with respect to every parameter, on the same pairs of test image and noise. Falsifiers: $p_w$ moved
# *down* to the next level, which is right in the limit and wrong at every $T$; levels of the cosine schedule, which
# trained the network, taken for $p_w$; EDM taken for monotone, the negative part of its $p_w$ dropped.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
cosine, dim = schedules.Cosine(low, high), math.prod(train.image_shape)
training_loss = objectives.WeightedLoss(weightings.Sigmoid(2.0), cosine, predictions.V)


def untrained():
    torch.manual_seed(seed)
    return build("mlp", image_shape=train.image_shape, num_classes=0, sigma_data=train.sigma_data, width=96, hidden=96)


def trained(steps):
    """The network after so many steps on L_w; kept by what it depends on."""
    config = training.TrainingConfig(steps=steps, learning_rate=2e-3, seed=seed, checkpoint_every=steps)
    folder = run.cache / f"network-{low:g}-{high:g}-{steps}-{seed}"
    return training.train(untrained(), training_loss, train, config, folder, progress=False).network.double()


network = trained(early_steps)
parts = [part for part in network.parameters() if part.requires_grad]

pictures = test.scaled(f64, first=pairs)
pair_noise = torch.randn(pictures.shape, generator=generator, dtype=f64)
clean_data = torch.tensor(math.inf, dtype=f64)


def at_each(levels):
    """Pictures, noise and levels, shape (N · pairs, …): every pair at every level."""
    count = len(levels)
    return pictures.repeat(count, 1, 1, 1), pair_noise.repeat(count, 1, 1, 1), levels.repeat_interleave(pairs)


def eps_errors(levels, judged=network):
    """e(λ) of a network, averaged over the pairs, shape (N,)."""
    picture, eps, at = at_each(levels)
    z = process.diffuse(picture, eps, at)
    eps_hat = predictions.V.to_eps(judged(z, at), z, at)
    return (eps_hat - eps).square().flatten(1).sum(1).reshape(len(levels), -1).mean(1)


def chain_of(steps):
    """The sampler in steps of equal size in λ."""
    return elbo.Chain(network, torch.linspace(high, low, steps + 1, dtype=f64), predictions.V)


def bounds(chain):
    """E[−ELBO_j(z_j)] over z_j ~ q(·|x), j = 0 … T − 1, by (4.2): KLs of the sampler's Gaussians, and the entropy."""
    levels = chain.levels
    picture, eps, step = at_each(torch.arange(1, len(levels)))
    steps = chain.term(picture, clean_data.expand(len(step)), step, eps).reshape(len(levels) - 1, -1).mean(1)
    constant = elbo.prior_kl(pictures, low).mean() + elbo.conditional_entropy(dim, levels[:-1])
    return steps.flip(0).cumsum(0).flip(0) + constant


def gradient(value):
    """With respect to every parameter, one after the other."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, parts, retain_graph=True)])


def scale_of(gradients):
    """What an error of an element is relative to: the largest element of its tensor."""
    return torch.cat([part.abs().max().expand(len(part)) for part in gradients.split([p.numel() for p in parts])])


# %%
def weighted_sum(w, chain):
    """The right side of (4.10)."""
    levels = chain.levels
    return 0.5 * (w(levels[1:]) / w(levels[-1:]) * torch.expm1(-levels.diff())) @ eps_errors(levels[1:])


def loss_gradient(w):
    """∇L_w/w(λ_min), by quadrature over λ."""
    node, weight = quadrature.panel_nodes(quadrature.edges_between(low, high, 48, w.breaks), order=4)
    return gradient(0.5 * (weight * w(node) / w(start)) @ eps_errors(node))


coarse = chain_of(64)
coarse_bounds = bounds(coarse)
by_bounds = {name: gradient(coarse.masses(w) @ coarse_bounds) for name, w in monotone.items()}
by_errors = {name: gradient(weighted_sum(w, coarse)) for name, w in monotone.items()}
values = [(coarse.masses(w) @ coarse_bounds - weighted_sum(w, coarse)).item() for w in monotone.values()]
constants = [
    (elbo.prior_kl(pictures, low).mean() + coarse.masses(w) @ elbo.conditional_entropy(dim, coarse.levels[:-1])).item()
    for w in monotone.values()
]

relative = weightings.Sigmoid(2.0)(coarse.levels) / weightings.Sigmoid(2.0)(start)
moved_down = gradient(relative[:-1].diff(prepend=torch.zeros(1, dtype=f64)) @ coarse_bounds)
edm_masses = coarse.masses(weightings.EDM()).clamp(min=0)
edm_as_monotone = gradient(edm_masses / edm_masses.sum() @ coarse_bounds)
edm_by_errors = gradient(weighted_sum(weightings.EDM(), coarse))

# %% [markdown]
# In the limit: the relative distance of the two gradients at $T=64, 128, 256$, which must halve, and what is left of it
# after extrapolating the last two (Richardson).

# %% tags=["hide-input"] jupyter={"source_hidden": true}
limits = {name: loss_gradient(monotone[name]) for name in ("sigmoid, k = 2", "EDM-monotonic", "v-prediction, cosine")}
counts, distances, extrapolated = (64, 128, 256), {}, {}
schedule_masses = cosine.time(chain_of(256).levels).diff()
for name, limit in limits.items():
    found = [gradient(chain.masses(monotone[name]) @ bounds(chain)) for chain in map(chain_of, counts)]
    distances[name] = torch.stack([(one - limit).norm() / limit.norm() for one in found])
    extrapolated[name] = (2 * found[2] - found[1] - limit).norm() / limit.norm()
limit = limits["sigmoid, k = 2"]
by_schedule = (gradient(schedule_masses @ bounds(chain_of(256))) - limit).norm() / limit.norm()
halving = torch.stack([each[:-1] / each[1:] for each in distances.values()])

# %% [markdown]
# **The same as training.** Now nobody sees $x$. Draw $\lambda_j$ from $p_w$, make $y=z_j$, and train on $y$ as one
# trains on data: one random term of (4.9), times their number. Its expected gradient must be that of $L_w$. Each of the
# two is drawn in batches here and projected, tensor by tensor, on the gradient found by quadrature; they must agree
# within the standard error of the difference. Falsifiers: levels from the cosine schedule; and the random term
# multiplied by $T$, whatever the number of terms is that this $y$ has.

# %%
fine = chain_of(chain_steps)
sigmoid_masses = fine.masses(weightings.Sigmoid(2.0))
all_pictures, batch = train.scaled(f64), 512


def noisy_data_loss(chain, picture, masses, times_all=False):
    """One term of −ELBO(y), times their number, for each picture: y at a level drawn by ``masses``."""
    count, steps = len(picture), len(chain.levels) - 1
    j = torch.multinomial(masses, count, replacement=True, generator=generator)
    at = chain.levels[j].to(picture)
    y = process.diffuse(picture, torch.randn(picture.shape, generator=generator, dtype=picture.dtype), at)
    step = j + 1 + (torch.rand(count, generator=generator, dtype=f64) * (steps - j)).long()
    eps = torch.randn(picture.shape, generator=generator, dtype=picture.dtype)
    return (steps if times_all else steps - j) * chain.term(y, at, step, eps)


def weighted(picture):
    """L_w/w(λ_min) of each picture, as training estimates it."""
    t = (torch.rand(1, generator=generator, dtype=f64) + torch.arange(batch, dtype=f64) / batch) % 1
    eps = torch.randn(picture.shape, generator=generator, dtype=f64)
    return training_loss(network, picture, t=t, eps=eps).loss / weightings.Sigmoid(2.0)(start)


def projected(loss, number):
    """Gradients of ``number`` batches over the one by quadrature: each tensor's projection, and that of all, last."""
    rows = []
    for _ in range(number):
        drawn = all_pictures[torch.randint(len(all_pictures), (batch,), generator=generator)]
        each = (gradient(loss(drawn).mean()) * limit).split([part.numel() for part in parts])
        rows.append(torch.stack([part.sum() for part in each]))
    rows = torch.stack(rows)
    squares = torch.stack([part.square().sum() for part in limit.split([part.numel() for part in parts])])
    return torch.cat([rows / squares, rows.sum(1, keepdim=True) / squares.sum()], 1)


def apart(one, other):
    """Difference of the means in standard errors, for each tensor and for all."""
    return (one.mean(0) - other.mean(0)).abs() / (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()


of_loss = projected(weighted, batches)
of_noisy_data = projected(lambda drawn: noisy_data_loss(fine, drawn, sigmoid_masses), batches)
of_schedule = projected(lambda drawn: noisy_data_loss(fine, drawn, cosine.time(fine.levels).diff()), batches // 3)
of_all_steps = projected(lambda drawn: noisy_data_loss(fine, drawn, sigmoid_masses, times_all=True), batches // 3)
precision = (of_noisy_data[:, -1].std() / math.sqrt(batches)).item()

# %% tags=["augmentation"]
lowest = torch.stack([coarse.masses(w).min() for w in monotone.values()])
total = torch.stack([coarse.masses(w).sum() for w in monotone.values()])
together = lambda gradients: torch.cat([gradients[name] for name in monotone])  # noqa: E731
sizes = torch.cat([scale_of(by_errors[name]) for name in monotone])
sigmoid_errors = by_errors["sigmoid, k = 2"]

claim = run.claim("C7")
claim.check_true(excess == 0 and positive, "by algebra: p_w of sigmoid(k − λ) is positive and of mass one")
claim.check_within(lowest, 0, math.inf, f"least mass of p_w on 64 levels, {len(monotone)} weightings of the paper")
claim.check(total, torch.ones(len(total)), "its total")
claim.check_below(torch.stack(missed), 4, f"1-D: L_w by {samples} levels drawn from p_w, in standard errors")
claim.check(values, constants, "network, T = 64: average −ELBO less the weighted sum is the constant")
claim.check(together(by_bounds), together(by_errors), "and their gradients, parameter by parameter", scale=sizes)
claim.check_within(halving, 1.85, 2.15, "distance from ∇L_w at T over that at 2T, T = 64, 128")
claim.check_below(torch.stack([*extrapolated.values()]), 5e-3, "what is left after extrapolation, relative")
claim.check_below(apart(of_noisy_data, of_loss), 4.5, "training on noisy data alone: gradient, in standard errors")
claim.check_below(precision, 0.05, "standard error of that gradient, relative")
claim.falsify(moved_down, sigmoid_errors, "p_w moved down to the next level", scale=scale_of(sigmoid_errors))
claim.falsify(edm_as_monotone, edm_by_errors, "EDM taken for monotone", scale=scale_of(edm_by_errors))
claim.falsify_below(by_schedule, 5e-3, "levels of the cosine schedule for p_w, T = 256, relative")
claim.falsify_below(apart(of_schedule, of_loss)[-1], 4, "trained on noise of the cosine schedule, in standard errors")
claim.falsify_below(apart(of_all_steps, of_loss)[-1], 4, "times T for any y, in standard errors")

# %% [markdown]
# Two networks to illustrate it, from the same initial weights: one trained on $L_w$, one on noisy data as above, which
# never saw a clean image. Both are judged by $L_w$ on test images. This is no check: the second has the noisier
# gradient, so equal steps are not equal progress.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
on_noise = untrained()
optimiser = torch.optim.Adam(on_noise.parameters(), lr=2e-3)
on_chain = elbo.Chain(on_noise, fine.levels.float(), predictions.V)
for _ in range(train_steps):
    drawn = all_pictures[torch.randint(len(all_pictures), (256,), generator=generator)].float()
    optimiser.zero_grad()
    noisy_data_loss(on_chain, drawn, sigmoid_masses.float()).mean().div(dim).backward()
    optimiser.step()

node, weight = quadrature.panel_nodes(quadrature.edges_between(low, high, 48), order=2)
compared = {
    "untrained": untrained().double(),
    "trained on noisy data alone": on_noise.double(),
    "trained on L_w": trained(train_steps),
}
judged = {
    label: (0.5 * (weight * weightings.Sigmoid(2.0)(node)) @ eps_errors(node, one)).item()
    for label, one in compared.items()
}
gained = {label: judged["untrained"] - loss for label, loss in judged.items()}
assert gained["trained on noisy data alone"] > 0.7 * gained["trained on L_w"] > 0
pd.DataFrame({"L_w on test images (nats), w: sigmoid, k = 2": judged}).round(2)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.0), width_ratios=(1, 1.25))
for (name, each), shade in zip(distances.items(), (figures.BLUE, figures.ORANGE, figures.GREEN), strict=True):
    left.loglog(counts, each, "o-", color=shade, label=name)
left.axhline(by_schedule, color=figures.VERMILION, linestyle=":", label="levels of the\ncosine schedule")
left.set(xlabel="steps T", ylabel="distance of the gradient from ∇L_w", xticks=counts, xticklabels=counts)
left.set_yticks((0.05, 0.1, 0.2, 0.4), ("0.05", "0.1", "0.2", "0.4"))
left.minorticks_off()
left.legend(fontsize=7)
names = [name for name, part in network.named_parameters() if part.requires_grad] + ["all"]
for drawn, shade, label, shift in (
    (of_noisy_data, figures.BLUE, "trained on noisy data", -0.15),
    (of_loss, figures.BLACK, "L_w", 0.15),
):
    at = torch.arange(len(names)) + shift
    right.errorbar(at, drawn.mean(0), 2 * drawn.std(0) / math.sqrt(len(drawn)), fmt=".", color=shade, label=label)
right.axhline(of_schedule[:, -1].mean(), color=figures.VERMILION, linestyle=":", label="noise of the cosine schedule")
right.set(xlabel="tensor of parameters; all of them last", ylabel="gradient, as projected on ∇L_w")
right.legend(fontsize=7)
run.figure(
    fig,
    "title",
    data={"T": counts, "noisy data": of_noisy_data.numpy(), "L_w": of_loss.numpy()}
    | {f"distance, {name}": each.numpy() for name, each in distances.items()},
    caption="The title on a trained network. Left: the gradient of −ELBO of noisy data, from the densities of a T-step "
    "sampler, comes down to that of L_w as 1/T, for three weightings alike. Right: expected gradients of training"
    " on noisy data and on L_w, over the one by quadrature, with two standard errors. Dotted: levels of the wrong"
    f" distribution.{caution}",
)

# %% [markdown]
# ## 4.7 A weighting that is not monotone
#
# Where $w$ rises with $\lambda$, $p_w<0$. Then $L_w$ is not the ELBO of any noisy data, and no sum of ELBOs with
# positive weights. The proof is a pair of models. Take any errors $e(\lambda)$, with one unit of error more at a level
# $a$; let the second model have that unit at a noisier level $b<a$ instead. By (4.4) the second has the larger
# $L(\lambda)$, so the *worse* ELBO, at every level between $b$ and $a$, and the same one everywhere else. But its
# weighted loss differs by $\tfrac12\big(w(b)-w(a)\big)$, which is negative where $w$ rises from $b$ to $a$: the loss
# prefers the model that is nowhere better and somewhere worse as a likelihood. For a monotone $w$ no such pair exists.
#
# Below, that pair for every weighting of Table 1 that is not monotone, $a$ at its peak and $b$ two nats noisier.
# Falsifier: the same for EDM-monotonic, which differs from EDM only where EDM rises, and for the sigmoid.
#
# The total mass is still one, so the positive part exceeds one by what the negative part amounts to. By the
# normalisation at $\lambda_{\min}$ these masses are large where $w$ starts small: they say how far $w$ climbs, not how
# much harm is done.
#
# A weighting with one peak climbs from $w(\lambda_{\min})$ to $w(\lambda^*)$, so its negative mass is
# $w(\lambda^*)/w(\lambda_{\min})-1$: for IDDPM $\cosh(\lambda_{\min}/2)-1$, for EDM with the root
# $\lambda^*=-3.3078$ of $(\log w)'=0$. Both are computed from the formulas alone, for whatever range was asked for.
#
# The last column is the mass at $\lambda_{\max}$. Of a signed measure it is no probability: for IDDPM it is one because
# its $w$ is the same at both ends of this range, not because its data are clean.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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
    columns=["weighting", "monotone", "negative mass", "mass at λ_max"],
)
run.table(table, "masses", caption=f"p_w of every weighting on log-SNR [{low:g}, {high:g}], w(λ_min) = 1.")
table.assign(**{"negative mass": table["negative mass"].map("{:.1f}".format)}).round(6)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
signed = {name: all_weightings[name] for name in ("IDDPM", "EDM", "P2", "Min-SNR")}
negative = torch.tensor([weightings.Augmentation(w, low, high).negative_mass for w in signed.values()])
total = [
    quadrature.integrate(lambda lam, w=w: weightings.augmentation_density(w, lam, low, high), low, high)
    + weightings.clean_mass(w, low, high)
    for w in signed.values()
]


def moved(w, a, b):
    """L_w of the second model less that of the first, over w at its peak; and L of the second less L of the first."""

    def unit(at):
        """A unit of error at a level: a normal density, a tenth of a nat wide."""
        return lambda lam: torch.exp(-((lam - at) ** 2) / 0.02) / math.sqrt(0.02 * math.pi)

    losses = [elbo.weighted_loss(lambda lam, at=at: exact_error(lam) + unit(at)(lam), w, low, high) for at in (a, b)]
    paths = [elbo.path_kl(lambda lam, at=at: exact_error(lam) + unit(at)(lam), low, high)(grid) for at in (a, b)]
    return ((losses[1] - losses[0]) / w(torch.tensor(a, dtype=f64))).item(), paths[1] - paths[0]


exact_error = errors["mixture"]
peaks = {label: grid[w(grid).argmax()].item() for label, w in signed.items()}
pairs_of_models = {label: moved(w, peaks[label], peaks[label] - 2) for label, w in signed.items()}
kept_monotone = [
    moved(monotone[name], peaks["EDM"], peaks["EDM"] - 2)[0] for name in ("EDM-monotonic", "sigmoid, k = 2")
]

# %% tags=["signed", "hide-input"] jupyter={"source_hidden": true}
claim = run.claim("C8")
rising = sp.diff(sp.sech(lam / 2), lam).subs(lam, -2)
claim.check_true(rising > 0, "by algebra: sech(λ/2) rises at λ = −2, so its p_w is negative there")
worse = torch.stack([path for _, path in pairs_of_models.values()])
claim.check_within(worse, -1e-9, math.inf, "L of the second model less that of the first, every level, 4 pairs")
claim.check_within(worse.amax(1), 0.49, 0.51, "and where it is worse, half a nat")
claim.check_below([loss for loss, _ in pairs_of_models.values()], -1e-3, "yet the loss prefers it, relative to w")
claim.check(torch.stack(total), torch.ones(len(total)), "their total, signs counted", scale=1 + negative)
iddpm, edm = (weightings.Augmentation(w, low, high).negative_mass for w in (weightings.IDDPM(), weightings.EDM()))


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
claim.falsify_below(min(kept_monotone), -1e-3, "the pair of EDM under EDM-monotonic and the sigmoid")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(0.8 * figures.WIDTH, 3.0))
slopes_of_w = {}
for label, name, dashes in (("IDDPM", "iddpm", "-"), ("EDM", "edm", "-"), ("EDM-monotonic", "edm_monotonic", "--")):
    w = all_weightings[label]
    relative_to_peak = (w(start) / w(grid).max()).item()
    slopes_of_w[label] = weightings.augmentation_density(w, grid, low, high) * relative_to_peak
    ax.plot(grid, slopes_of_w[label], color=figures.colour(name), linestyle=dashes, label=label)
    ax.fill_between(grid, slopes_of_w[label].clamp(max=0), color=figures.colour(name), alpha=0.25, linewidth=0)
ax.axhline(0, color="black", linewidth=0.6)
figures.logsnr_axis(ax, low, high)
ax.set(ylabel="−w′(λ) / max w  (1/nats)")
ax.legend()
run.figure(
    fig,
    "signed",
    data=pd.DataFrame({"λ (nats)": grid} | slopes_of_w),
    caption="p_w of three weightings, each times w(λ_min)/max w so that they share an axis; shaded where negative. "
    "Holding EDM's weighting at its peak cuts the negative part away and changes nothing to the right of it; divided "
    "by its own w(λ_min), EDM's positive part is 658 times that of EDM-monotonic.",
)

# %% [markdown]
# ## 4.8 A number that everybody can check: log N
#
# Average (4.4) over the data, with the exact denoiser. Then $E_x L(\lambda;x)=E_x KL(q(z|x)\Vert q(z))$ is the mutual
# information of image and noisy image, and the Theorem becomes the I-MMSE relation of Guo, Shamai & Verdú (2005),
#
# $$\frac{d}{d\lambda}I(x;z_\lambda)=\tfrac12E\lVert\epsilon-\hat\epsilon^*\rVert^2,\qquad
# \int_{-\infty}^{\infty}\tfrac12E\lVert\epsilon-\hat\epsilon^*\rVert^2\,d\lambda=\log N \tag{4.11}$$
#
# for $N$ distinct images: without noise one knows which it was, in pure noise one knows nothing. Below $\lambda_{\min}$
# the integral is $\tfrac12e^{\lambda_{\min}}\operatorname{tr}\operatorname{Cov}(x)$, which is added. To ten digits for
# two points on a line:

# %%
pair = oracles.Empirical(torch.tensor([[-1.0], [1.0]], dtype=f64))
triple = oracles.Empirical(torch.tensor([[-1.0], [1.0], [1.0]], dtype=f64))


def information(oracle, from_logsnr, with_tail):
    """(4.11) on a line, the average over the data exact, over ε by quadrature."""
    each = [elbo.eps_error(oracle, image, noise) for image in oracle.images]
    tail = 0.5 * math.exp(from_logsnr) * oracle.total_variance if with_tail else 0.0
    average = elbo.path_kl(lambda lam: torch.stack([e(lam) for e in each]).mean(0), from_logsnr, 8.0, tail)
    return average(torch.tensor([8.0], dtype=f64)).item()


print(f"two points: {information(pair, -25.0, with_tail=True):.10f}   log 2 = {math.log(2):.10f}")

# %% [markdown]
# And for real images, by Monte Carlo. Three things make $\log N$ come out to two digits after the point in seconds.
# The error of an example is averaged as the posterior variance, $E[\lVert\epsilon-\hat\epsilon^*\rVert^2|z]
# =e^\lambda\operatorname{tr}\operatorname{Cov}(x|z)$, and over $\epsilon$ and $-\epsilon$. Draws go to the levels where
# it varies: the standard error is least when level $\lambda$ gets draws in proportion to its standard deviation there
# (Neyman 1934), which a small pilot measures. And each image comes up equally often, so that only $\epsilon$ is random.
# (`immse.py`, beside this notebook)
#
# At every level in between there is a third way to the same number: $\log N$ minus the mean entropy of the posterior
# over the set.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
everything = torch.cat([train.scaled(first=information_images), test.scaled()])[:information_images]
oracle = oracles.Empirical(everything)
panels = torch.linspace(-16, 12, 29, dtype=f64)
found = immse.information(oracle, panels, information_draws, generator=generator)
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

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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
# ## 4.9 In discrete time
#
# A sampler takes $T$ steps. Its bound replaces $d\lambda$ by $e^{\lambda_s-\lambda_t}-1$ and takes the error at the
# noisier end of each step,
#
# $$L_T=\tfrac12\sum_{i=1}^{T}\big(e^{\lambda_s-\lambda_t}-1\big)\,e(\lambda_t)\ \longrightarrow\
# \tfrac12\int e(\lambda)\,d\lambda. \tag{4.12}$$
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
# ## 4.10 What this means for your network
#
# * *Your w never rises with λ.* You maximise a bound on the likelihood of noisy pictures. The next
#   notebook shows which. Clean data get the weight $m=w(\lambda_{\max})/w(\lambda_{\min})$, below one in ten thousand
#   for every monotone weighting of the table in 4.7 but $w=1$, which has $m=1$. How noisy "noisy" is differs: the
#   median level of the sigmoid with $k=2$ is $\lambda=2$, noise of 47 grey levels of 255; that of EDM-monotonic is
#   $\lambda=-0.2$.
# * *Your w rises somewhere.* Two facts belong together. First, $w\ge0$ multiplies the error at every level: less error
#   at any level never raises the loss, and the ideal network is the same as under any other $w>0$. Nothing is
#   un-learned where $p_w<0$, and no ELBO can get worse at one level alone, because $L(\lambda)$ adds up all the noisier
#   ones. Second, at equal *total* error, moving error to a noisier level lowers the loss wherever $w$ is smaller there.
#   Then the ELBOs of exactly the levels between get worse, and no other: for $\mathrm{sech}(\lambda/2)$, one unit of
#   error moved from $\lambda=-1$ to $-3$ lowers $L_w$ by 0.231 and raises $L(\lambda)$ by ½ on $(-3,-1)$. A network of
#   finite size makes such trades.
# * *Hold w at its peak* and you have a monotone weighting that differs nowhere to the right of it (EDM-monotonic).
#
# ## 4.11 What would falsify this, and what the theorem does not say
#
# What readers have asked of the theorem, and what can be answered:
#
# * *"It is the ELBO of augmented data, not of the data."* That is so, see above.
# * *"It explains every monotone loss equally, so it ranks none."* Also so. The Corollary is an interpretation. Which
#   $p_w$ makes good samples is an empirical question (the ablation).
# * *"A non-monotone weighting won."* The logit-normal one of Stable Diffusion 3, in a comparison of 61. Nothing here
#   forbids it: a signed combination of ELBOs can be a good objective. C8 says only that it is no likelihood.
# * *Does the noise-augmented ELBO rank models on held-out data as the clean one does?* The ablation measures it, on
#   digits.
#
# A trained network obeys (4.4) by *definition* of its reverse process; what it adds is the gap of 4.3, which cannot be
# seen from its loss. What 4.6 shows holds for any network, so one trained for seconds will do.
#
# ## The evidence
#
# Every comparison of this notebook. A number under "value" keeps the limit; one under "falsifier's value" is the same
# comparison on the slip named there, and must not.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
evidence = run.evidence()
assert len(evidence)
evidence
