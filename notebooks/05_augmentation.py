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
# # 5 What the augmentation looks like
#
# Notebook 04 showed that a monotone weighted loss is the ELBO of data to which Gaussian noise was added, the level of
# the noise drawn from
#
# $$p_w(\lambda)=-\frac{w'(\lambda)}{w(\lambda_{\min})},\qquad
# P(\text{clean})=m=\frac{w(\lambda_{\max})}{w(\lambda_{\min})}. \tag{5.1}$$
#
# **Abstract.** So a weighting *is* a picture: that of the data whose likelihood it maximises. This notebook draws $p_w$
# (for the recommended sigmoid a logistic density, X05b), shows how to draw levels from it (X05a), and shows real images
# at its quantiles. The noise is not slight: half of the augmented data of the sigmoid with $k=2$ have noise of 47 grey
# levels of 255 or more. The finest noise that still counts decides which detail is modelled; larger images want the
# weighting shifted (X05c). (Section 3, the Corollary; Section 5 for the recommended weightings.)

# %% tags=["parameters"]
profile: str = "tiny"
logsnr_min: float = -12.0
logsnr_max: float = 12.0
points: int = 481
samples: int = 20000
image: int = 4
seed: int = 0

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.datasets import load_sample_image

from paperlib import companion, process, quadrature, schedules, weightings
from paperlib.companion import figures, profiles

run = companion.start("05_augmentation", profile)
pictures = profiles.load(profile).data.load("test")
caution = f" {pictures.caution}." if pictures.caution else ""
generator = torch.Generator().manual_seed(seed)
f64 = torch.float64
low, high = logsnr_min, logsnr_max
grid = torch.linspace(low, high, points, dtype=f64)
# SiD2's is the sigmoid, whose bias we know at 64 pixels alone: 2, the sigmoid's own.
every = {name: make() for name, make in weightings.WEIGHTINGS.items()}
monotone = {name: w for name, w in every.items() if w.is_monotonic(low, high)}
signed = {name: w for name, w in every.items() if name not in monotone}

# %% [markdown]
# ## 5.1 The distribution of noise levels, weighting by weighting
#
# The value of $p_w$ follows from the slope of $w$, so it shows what the curve of $w$ hides. A weighting that falls from
# one to zero within a few nats is an augmentation with noise of *those* few nats. One that is proportional to
# $e^{-\lambda/2}$ falls fastest at the very left: nearly all of its augmented data are pure noise.
#
# Where $w$ rises, $p_w$ is negative and drawn so. There the numbers are large, because they are relative to the small
# $w(\lambda_{\min})$; each panel is scaled to its own largest value.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
density = {name: weightings.augmentation_density(w, grid, low, high) for name, w in every.items()}
mass = {name: weightings.clean_mass(w, low, high) for name, w in every.items()}
negative = {name: weightings.Augmentation(w, low, high).negative_mass for name, w in signed.items()}

panels = ("elbo", "sigmoid", "edm_monotonic", "v_cosine", "iddpm", "edm", "min_snr", "sd3_logit_normal")
fig, axes = plt.subplots(2, 4, figsize=(figures.WIDTH, 3.8), sharex=True)
for ax, name in zip(axes.flat, panels, strict=True):
    ax.fill_between(grid, density[name].clamp(min=0), color=figures.colour(name), alpha=0.7, linewidth=0)
    ax.fill_between(grid, density[name].clamp(max=0), color="0.35", linewidth=0)
    ax.axhline(0, color="black", linewidth=0.5)
    if mass[name] > 0.5 and name in monotone:
        ax.plot([high, high], [0, mass[name]], color=figures.colour(name), linewidth=5)
    note = f"clean {mass[name]:.2g}" if name in monotone else f"negative mass {negative[name]:.3g}"
    ax.set_title(f"{figures.label(name)}\n{note}", fontsize=8)
    ax.tick_params(labelsize=7)
    figures.logsnr_axis(ax, low, high)
    ax.set_xlabel("")
fig.supxlabel(figures.LOGSNR_LABEL, fontsize=9)
fig.supylabel("$p_w(λ)$ (1/nats)", fontsize=9)
run.figure(
    fig,
    "every_weighting",
    data=pd.DataFrame({"λ (nats)": grid} | density),
    caption=f"The noise that a weighting adds, λ in [{low:g}, {high:g}]. Above, monotone ones: a distribution, with "
    "the probability of clean data (of the ELBO all, the bar at the right). Below, ones whose p_w is signed (grey: "
    "negative). Only the ELBO itself is about clean data. The figure's data have the library's other weightings too.",
)

# %% [markdown]
# The recommended weighting, $\mathrm{sigmoid}(k-\lambda)$, has the simplest picture: $-w'$ is the logistic density,
# centred at $k$, of scale 1. Here is that identity over the whole sweep of $k$, up to the normalisation at
# $\lambda_{\min}$. The falsifier is a logistic of scale 2, the distribution of levels in flow matching.

# %% tags=["logistic"]
biases = (1.0, 2.0, 3.0, 4.0, 5.0)
sigmoids = {k: weightings.Sigmoid(k) for k in biases}
lhs = torch.stack([weightings.augmentation_density(w, grid, low, high) for w in sigmoids.values()])


def logistic(scale):
    """The logistic densities centred at each k, over w(λ_min)."""
    rows = [stats.logistic(k, scale).pdf(grid.numpy()) / w(grid[:1]).item() for k, w in sigmoids.items()]
    return torch.from_numpy(np.stack(rows))


claim = run.claim("X05b")
claim.check(lhs, logistic(1.0), "p_w of sigmoid(k − λ) and the logistic density, k = 1 … 5")
claim.falsify(lhs, logistic(2.0), "a logistic of scale 2")

# %% [markdown]
# ## 5.2 Drawing from it
#
# $P(\Lambda\ge\lambda)=w(\lambda)/w(\lambda_{\min})$, clean data included, so levels are drawn by inverting $w$. They
# are *not* the levels at which a network is trained: those come from the noise schedule, which leaves the objective as
# it is (notebook 03).
#
# The check is a Kolmogorov–Smirnov test against the integral of the *density* $p_w$, found by automatic differentiation
# of $w$ and quadrature, which knows nothing of the inversion; the clean draws are counted against $m$. Falsifiers:
# levels of the cosine schedule; and levels drawn in proportion to $w$ itself, where it should be $-w'$.

# %% tags=["draws"]
continuous = {name: w for name, w in monotone.items() if mass[name] < 0.5}
cosine = schedules.Cosine(low, high).logsnr(torch.rand(samples, generator=generator, dtype=f64))


def distance(levels, w):
    """√n times the Kolmogorov–Smirnov distance of levels from ∫p_w dλ, clean data left out."""
    noisy = levels[levels < high - 1e-9]
    below = quadrature.antiderivative(lambda lam: weightings.augmentation_density(w, lam, low, high), low, high)
    position = below(noisy) / (1 - weightings.clean_mass(w, low, high))
    return stats.kstest(position.clamp(0, 1).numpy(), "uniform").statistic * math.sqrt(len(noisy))


drawn = {
    name: weightings.Augmentation(w, low, high).level(torch.rand(samples, generator=generator, dtype=f64))
    for name, w in continuous.items()
}
sigmoid = weightings.Sigmoid(2.0)
by_weight = grid[torch.multinomial(sigmoid(grid), samples, replacement=True, generator=generator)]
by_weight = by_weight + (torch.rand(samples, generator=generator, dtype=f64) - 0.5) * (grid[1] - grid[0])
edge = weightings.Augmentation(sigmoid, low, 2.0)  # cut where w is a half: half of the draws are clean
cut_mass = weightings.clean_mass(sigmoid, low, 2.0)
cut_levels = edge.level(torch.rand(samples, generator=generator, dtype=f64))
cut_share = ((cut_levels > 2.0 - 1e-9).double().mean().item() - cut_mass) / math.sqrt(
    cut_mass * (1 - cut_mass) / samples
)
claim = run.claim("X05a")
claim.check_below([distance(drawn[name], w) for name, w in continuous.items()], 1.95, f"{len(drawn)} weightings, √n D")
claim.check_below(abs(cut_share), 4, "clean draws on a range that ends at λ = 2, in standard errors of m = ½")
claim.falsify_below(distance(cosine, sigmoid), 1.95, "levels of the cosine schedule for those of p_w")
claim.falsify_below(distance(by_weight.clamp(low, high - 1e-8), sigmoid), 1.95, "levels in proportion to w, not to −w′")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(0.75 * figures.WIDTH, 2.8))
ax.hist(drawn["sigmoid"], bins=80, density=True, color=figures.colour("sigmoid"), alpha=0.35, label="drawn from $p_w$")
ax.plot(grid, density["sigmoid"], color=figures.colour("sigmoid"), label="$p_w$, sigmoid(2 − λ)")
ax.plot(grid, schedules.Cosine(low, high).density(grid), **figures.line("cosine"), label="cosine schedule")
ax.set(ylabel="density (1/nats)")
figures.logsnr_axis(ax, low, high)
ax.legend()
run.figure(
    fig,
    "two_distributions",
    data=pd.DataFrame(
        {"λ (nats)": grid, "p_w": density["sigmoid"], "cosine": schedules.Cosine(low, high).density(grid)}
    ),
    caption="Two distributions over noise levels that have nothing to do with each other: the one whose noisy data the "
    "sigmoid weighting models, and the one from which a cosine schedule draws for training.",
)

# %% [markdown]
# ## 5.3 Real pictures at the levels of each weighting
#
# One photograph (scikit-learn's `flower.jpg`, a detail of 48 × 48 pixels), the same noise $\epsilon$, and the quantiles
# of $p_w$ from the noisiest to the cleanest. A row shows what the model of that weighting is a likelihood *of*. The
# ELBO's is clean at every quantile.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
x = pictures.scaled(f64, first=image + 1)[image:]
eps = torch.randn(x.shape, generator=generator, dtype=f64)
shares = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98], dtype=f64)
detail = torch.from_numpy(load_sample_image("flower.jpg")[60:348, 200:488].copy()).permute(2, 0, 1)[None]
photograph = torch.nn.functional.avg_pool2d(detail.double() / 127.5 - 1, 6)
photograph_noise = torch.randn(photograph.shape, generator=generator, dtype=f64)
rows = {
    "ELBO": weightings.ELBO(),
    "sigmoid, k = 5": weightings.Sigmoid(5.0),
    "sigmoid, k = 2": weightings.Sigmoid(2.0),
    "EDM-monotonic": weightings.EDMMonotonic(),
    "debiased": weightings.Debiased(),
    "v, cosine": weightings.VCosine(),
    "InDI": weightings.InDI(),
}
levels = {label: weightings.Augmentation(w, low, high).level(1 - shares) for label, w in rows.items()}


def noisy(level):
    """The photograph at a level, z as the network sees it (VP)."""
    return figures.picture(process.diffuse(photograph, photograph_noise, level)[0], reach=1.5)


fig, axes = plt.subplots(len(rows), len(shares), figsize=(figures.WIDTH, 1.25 * len(rows)))
for row, (label, at) in zip(axes, levels.items(), strict=True):
    for ax, level, share in zip(row, at, shares, strict=True):
        ax.imshow(noisy(level), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_xlabel("clean" if level > high - 1e-6 else f"λ = {level:.1f}", fontsize=7, labelpad=1)
        if label == "ELBO":
            ax.set_title(f"{100 * share:.0f} %\nnoisier", fontsize=8)
    row[0].set_ylabel(label, fontsize=7)
run.figure(
    fig,
    "pictures",
    data=pd.DataFrame({"share of p_w that is noisier": shares} | levels),
    caption="A photograph at the quantiles of each weighting's p_w; the number above a column is the share of the "
    "augmented data that is noisier. The sigmoids model pictures with some noise, EDM-monotonic and the debiased one a "
    "mixture of light and heavy noise; w = exp(−λ/2) and InDI hardly ever see a picture. The more pixels, the more can "
    "be told at a given λ (5.5).",
)

# %% [markdown]
# And the weightings that are no augmentation. Nothing is un-learned where $p_w<0$: the error counts at every level with
# $w\ge0$, and less of it never raises the loss. But error moved across those levels, to noisier ones, lowers the loss
# at equal total, and the ELBO of the levels that it crossed gets worse. Both parts at their own quantiles:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
parts = {}
for name in ("iddpm", "edm", "min_snr"):
    for sign, label in ((1, "$p_w>0$"), (-1, "$p_w<0$")):
        part = (sign * density[name]).clamp(min=0)
        cumulative = torch.cumsum(part, 0) / part.sum()
        parts[f"{figures.label(name)}\n{label}"] = torch.stack(
            [grid[(cumulative >= share).nonzero()[0, 0]] for share in shares]
        )

fig, axes = plt.subplots(len(parts), len(shares), figsize=(figures.WIDTH, 1.25 * len(parts)))
for ax, share in zip(axes[0], shares, strict=True):
    ax.set_title(f"{100 * share:.0f} %", fontsize=8)
for row, (label, at) in zip(axes, parts.items(), strict=True):
    for ax, level in zip(row, at, strict=True):
        ax.imshow(noisy(level), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_xlabel(f"λ = {level:.1f}", fontsize=7, labelpad=1)
    row[0].set_ylabel(label, fontsize=7)
run.figure(
    fig,
    "signed_pictures",
    data=pd.DataFrame({"share of the part": shares} | {label.replace("\n", ", "): at for label, at in parts.items()}),
    caption="Three weightings that are not monotone: quantiles of the positive and of the negative part of p_w; the "
    "number above a column is the share of the part that is noisier. EDM's p_w is negative where pictures are nearly "
    "pure noise; that of IDDPM and min-SNR also where a picture can still be made out.",
)

# %% [markdown]
# ## 5.4 The low-noise cut-off
#
# The finest noise that still counts decides the finest detail that is modelled. Noise of standard deviation
# $\sigma_{VE}=e^{-\lambda/2}$ on data in $[-1,1]$ is $\sigma_{VE}\cdot255/2$ grey levels of an 8-bit image. As cut-off
# take the level above which only one in a hundred of the augmented data lie.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
candidates = {f"sigmoid, k = {k:g}": w for k, w in sigmoids.items()} | {
    label: w for label, w in rows.items() if not label.startswith("sigmoid")
}


def grey(level):
    """Standard deviation of the noise in grey levels of 8 bits; none for clean data."""
    return 0.0 if level > high - 1e-6 else math.exp(-level / 2) * 255 / 2


cut = []
for label, w in candidates.items():
    shown = torch.tensor([0.95, 0.5, 0.01], dtype=f64)
    noisier, median, finest = weightings.Augmentation(w, low, high).level(shown).tolist()
    cut.append((label, noisier, median, finest, grey(finest), weightings.clean_mass(w, low, high)))
columns = ["weighting", "λ, 5 %", "λ, median", "λ, 99 %", "grey levels at 99 %", "P(clean)"]
cut = pd.DataFrame(cut, columns=columns)
run.table(
    cut,
    "cut_off",
    caption=f"Quantiles of p_w on log-SNR [{low:g}, {high:g}], and the noise at the last of them in 8-bit grey levels.",
)
cut.round({"λ, 5 %": 2, "λ, median": 2, "λ, 99 %": 2, "grey levels at 99 %": 1, "P(clean)": 6})

# %% [markdown]
# "Slightly noisy pictures" would be too kind: the median level of $k=2$ is $\lambda=2$, noise of 47 grey levels, and
# that of EDM-monotonic is below zero. What the last columns add is the cleanest end. With $k=2$, only one part in a
# hundred of the augmented data has noise finer than about five grey levels: whether a pixel is 100 or 101 hardly enters
# the loss, and that is where most of the nats of an ELBO go. Each step of $k$ lowers this by a factor
# $\sqrt e\approx1.65$. That is the trade-off which the sweep of the paper explores (Section 5): a larger $k$ is nearer
# to likelihood, a smaller one nearer to what the eye sees.
#
# How the *loss* divides among levels is another question, because clean data cost more nats than noise does. Here it is
# for the exact Gaussian of these images' covariance. The $e^{-\lambda/2}$ of v-prediction and flow matching shows the
# difference: nearly all its augmented data are pure noise, on which $L\approx0$, and its loss comes from the rare draws
# that are cleaner.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
flat = pictures.scaled(f64).flatten(1)  # all of them: the covariance wants more images than pixels
spectrum = torch.linalg.eigvalsh(flat.T.cov()).clamp(min=0)
error = (torch.exp(grid)[:, None] * spectrum / (torch.exp(grid)[:, None] * spectrum + 1)).sum(1)
fig, ax = plt.subplots(figsize=(0.75 * figures.WIDTH, 2.8))
spent = {"λ (nats)": grid}
for label, name in (
    ("ELBO", "elbo"),
    ("sigmoid, k = 2", "sigmoid"),
    ("EDM-monotonic", "edm_monotonic"),
    ("v, cosine", "v_cosine"),
):
    amount = rows[label](grid) * error
    spent[label] = amount / torch.trapezoid(amount, grid)
    ax.plot(grid, spent[label], label=label, **figures.line(name))
ax.set(ylabel="share of the loss (1/nats)", ylim=(0, None))
figures.logsnr_axis(ax, low, high)
ax.legend()
run.figure(
    fig,
    "where_the_loss_goes",
    data=pd.DataFrame(spent),
    caption="Where the loss comes from, for the best linear model of the images. Under the ELBO most of it is spent to "
    "the right of λ = 5, on differences of a few grey levels; the sigmoid and EDM-monotonic weightings spend it on "
    f"what can be seen. Covariance of {len(pictures)} images of {pictures.name}.{caution}",
)

# %% [markdown]
# ## 5.5 Larger images: shift the weighting
#
# Noise of a given $\lambda$ hides less in a larger image, because the eye, and the network, average over neighbouring
# pixels: the mean of $s\times s$ pixels of equal signal has $\sigma/s$. For $d\times d$ images in place of $64\times64$
# the same content is hidden at $\lambda$ lower by $2\log(d/64)$, hence shifted weightings $w(\lambda-2\log(64/d))$.
# That the paper shifts its weighting above $64\times64$ was seen; that it is by this much is derived here. (Hoogeboom
# et al. 2023 shift the schedule.)
#
# Two checks. On an image, each pixel repeated $2\times2$: noise at $\lambda-2\log2$, averaged back, must be noise at
# $\lambda$. And on what the loss is made of: the error of the best linear denoiser of the enlarged images (from their
# own covariance, on 4 times the pixels) at $\lambda-2\log2$ must be that of the small ones at $\lambda$. The falsifier
# shifts by half as much, which takes $\lambda$ for $\log(\alpha/\sigma)$.

# %% tags=["shift"]
block = torch.nn.functional.avg_pool2d
large = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest").expand(samples // 20, -1, -1, -1)
at = torch.linspace(-4, 8, 7, dtype=f64)


def pooled_variance(shift):
    """Variance of the noise that is left after averaging 2 × 2 pixels, over that of the small image at λ."""
    ratios = []
    for level in at:
        noise = torch.randn(large.shape, generator=generator, dtype=f64)
        z = process.to_ve(process.diffuse(large, noise, level - shift), level - shift)
        ratios.append((block(z, 2) - x).var() / torch.exp(-level))
    return torch.stack(ratios)


standard_error = math.sqrt(2 / (large.numel() / 4))
images = pictures.scaled(f64)
enlarged = torch.nn.functional.interpolate(images, scale_factor=2, mode="nearest")


def linear_error(batch, levels):
    """Error of the best linear denoiser of images, from their covariance, at each level."""
    eigenvalues = torch.linalg.eigvalsh(batch.flatten(1).T.cov()).clamp(min=0)
    return (1 - 1 / (1 + levels.exp()[:, None] * eigenvalues)).sum(1)


claim = run.claim("X05c")
claim.check_below(
    (pooled_variance(2 * math.log(2)) - 1).abs() / standard_error, 4, "averaged noise, 7 levels, in standard errors"
)
small_error = linear_error(images, at)
claim.check(linear_error(enlarged, at - 2 * math.log(2)), small_error, "error of the enlarged images, 7 levels")
claim.falsify_below((pooled_variance(math.log(2)) - 1).abs() / standard_error, 4, "shifted by log 2")
claim.falsify(linear_error(enlarged, at - math.log(2)), small_error, "the error, shifted by log 2")

# %% [markdown]
# ## 5.6 What would falsify this, and what it does not show
#
# * The pictures show *what* is modelled, not how well, nor which row makes the best samples (notebook 08).
# * "Augmentation" here is noise of a level that the model is told. At sampling time it is asked for none; that the
#   answer is any good relies on the network carrying over what it learned from noisy neighbours, and on the last, clean
#   step of the sampler, which most weightings hardly train.
# * Where $w$ keeps rising towards noise, as $e^{-\lambda/2}$ does, $p_w$ moves with $\lambda_{\min}$: such augmented
#   data are as noisy as the range allows. There "the ELBO with data augmentation" is true, and says little about
#   pictures.
# * The numbers of 5.4 in 8-bit grey levels are about the weighting and hold for any data on $[-1,1]$, however many
#   levels and pixels they have. What a picture still shows at a given noise does depend on its size (5.5).

# %% [markdown]
# ## The evidence
#
# Every comparison of this notebook. A number under "value" keeps the limit; one under "falsifier's value" is the same
# comparison on the slip named there, and must not.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
evidence = run.evidence()
assert len(evidence)
evidence
