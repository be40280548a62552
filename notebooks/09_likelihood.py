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
# # 9 Likelihood, in bits a dimension
#
# **Question.** A diffusion model is a likelihood model: it gives every image a probability, and $-\log_2$ of that, per
# pixel, is what it would take to send the image. Notebook 04 says what the weighted losses have to do with likelihood.
# Here it is measured: how many bits do the networks of notebook 07 need, at which noise levels do they spend them, and
# what does each weighting cost?
#
# Published numbers of this kind hang on constants that are easily lost: the width of a grey level, the scale of the
# data, the noise level where the decoder takes over. So each term is derived first, and held to data whose likelihood
# is known. There are two ways to a number, a bound with three terms (the ELBO) and a differential equation (the
# probability flow); they share nothing but the network. And there is no such thing as *the* likelihood of a network: it
# depends on the level from which a decoder takes over, and so does which network codes best (9.5). Read no ranking of
# weightings by likelihood without that level.

# %% tags=["parameters"]
profile: str = "tiny"
threads: int = 2
draws: int = 16
train_images: int = 600
test_images: int = 297
bins: int = 40
quadrature_images: int = 297
quadrature_draws: int = 3
flow_images: int = 297
confidence: float = 0.95
seed: int = 0

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import math
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import stops
import torch
from scipy import stats

from paperlib import companion, elbo, oracles, predictions, quadrature, schedules, weightings
from paperlib.companion import experiments, figures, profiles
from paperlib.engine import evaluation, likelihood
from paperlib.engine.data import ImageData

run = companion.start("09_likelihood", profile)
settings = profiles.load(profile)
torch.set_num_threads(threads)
runs = list(experiments.grid(settings))
labels = list(settings.training.weightings)
repeats = experiments.repeats(settings, confidence)
several = len(settings.training.seeds) > 1
f64 = torch.float64

# %% [markdown]
# ## 9.1 The bound and its three terms
#
# **Derivation.** Let the model draw $z_1\sim N(0,I)$, go back through the noisy $z_t$ to $z_0$, and draw the image from
# a decoder $P(x\mid z_0)$. Jensen's inequality under $q(z_{0\ldots1}\mid x)$ gives
#
# $$-\log P(x)\ \le\ \underbrace{KL\big(q(z_{0\ldots1}|x)\,\Vert\,p(z_{0\ldots1})\big)}_{L(0;x)}
# +\underbrace{E_q\big[-\log P(x|z_0)\big]}_{\text{reconstruction}}, \tag{9.1}$$
#
# and by the Theorem (notebook 04) the path KL is what it is in pure noise, plus the integral of the error:
#
# $$L(0;x)=\underbrace{KL\big(q(z_1|x)\,\Vert\,N(0,I)\big)}_{\text{prior}}
# +\underbrace{\tfrac12\int_{\lambda_{\min}}^{\lambda_{\max}}E_\epsilon\Vert\epsilon-\hat\epsilon\Vert^2\,d\lambda
# }_{\text{diffusion}}. \tag{9.2}$$
#
# The *prior* term is a KL of Gaussians, $\tfrac12\sum_i(\alpha^2x_i^2-\alpha^2-\log\sigma^2)$ at $\lambda_{\min}$. The
# *diffusion* term is the weighted loss with $w=1$. For the *reconstruction* let a pixel take the values $v$ of a grid.
# If nothing is known of it but $z_0=\alpha x+\sigma\epsilon$, every value equally likely beforehand, Bayes' rule gives
#
# $$P(x_i=v\mid z_{0,i})\propto\exp\Big(-\frac{(z_{0,i}-\alpha v)^2}{2\sigma^2}\Big), \tag{9.3}$$
#
# a decoder without parameters. It is a probability of *integers*, so there is no width of a grey level to account for.
# Its expectation over $\epsilon$ depends on the value $v$ alone and is an integral of one dimension; here is its mean
# over all values, for the 17 grey levels of the digits and for the 256 of photographs. Decoding from pure noise costs
# their logarithm, decoding from clean images nothing:

# %%
decoded = pd.DataFrame(
    {
        "λ (nats)": level,
        "17 grey levels": likelihood.expected_reconstruction(17, level).mean().item() / math.log(2),
        "256 grey levels": likelihood.expected_reconstruction(256, level).mean().item() / math.log(2),
    }
    for level in (-20.0, 0.0, 4.0, 8.0, 12.0)
)
run.table(decoded, "reconstruction", caption="Bits a pixel that the decoder takes, by the noise level it decodes from.")
decoded.round(4)

# %% [markdown]
# ## 9.2 The probability flow
#
# **Derivation.** The other way replaces the random path by a deterministic one with the same marginals. In VE scaling,
# $\bar z=z/\alpha$ and $\bar\sigma=e^{-\lambda/2}$, it is $d\bar z/d\bar\sigma=\hat\epsilon$ (Karras et al. 2022).
# With $d\log\alpha/d\lambda=\tfrac12\sigma^2$ and $d\bar\sigma/d\lambda=-\tfrac12\bar\sigma$ this becomes, for our $z$,
#
# $$\frac{dz}{d\lambda}=\tfrac12\sigma\big(\sigma z-\hat\epsilon(z;\lambda)\big). \tag{9.4}$$
#
# A density that is carried along changes by the divergence of the velocity (the continuity equation, along a path):
#
# $$\frac{d}{d\lambda}\log p_\lambda(z_\lambda)=-\tfrac12\sigma\big(\sigma D-\nabla\!\cdot\hat\epsilon\big),
# \qquad p_{\lambda_{\min}}=N(0,I). \tag{9.5}$$
#
# That gives a *density* at $\lambda_{\max}$, and integers have none. They must be *dequantised*, in one of two ways.
#
# *Uniform.* Spread each integer over its level, of width $\Delta=2/(K-1)$ for $K$ values on $[-1,1]$. As
# $P(x)=\int p(x+u)\,du$ over the cell, Jensen gives $-\log P(x)\le E_u[-\log p(x+u)]-D\log\Delta$. Here $p$ is the
# density of $z/\alpha$, which is $\alpha^D$ times that of $z$.
#
# *Variational.* Let the forward process itself do it: $z_0\sim q(z_0|x)$, with the decoder (9.3). Then
#
# $$-\log P(x)\le E_q\Big[\log\frac{q(z_0|x)}{p(z_0)}\Big]+E_q\big[-\log P(x|z_0)\big], \tag{9.6}$$
#
# which is (9.1) with its first term replaced. For a denoiser that is the posterior mean of some data the two are equal
# (notebook 04, equation 4.3). A trained network is not quite that, and the difference will be seen below.
#
# First a Gaussian with different variances $s_i$ and a mean $m$. Its flow is known: $\bar z-m$ grows as
# $\sqrt{s+\bar\sigma^2}$, so $N(0,I)$ at $\lambda_{\min}$ arrives as a Gaussian. The falsifier leaves out the
# divergence.

# %%
low, high = -12.0, 7.0
mean = torch.tensor([0.3, -0.5, 0.0, 0.2], dtype=f64)
variances = torch.tensor([0.05, 0.4, 1.0, 2.5], dtype=f64)
gaussian = oracles.Gaussian(mean, torch.diag(variances))


def arrived():
    """What (9.4) makes of N(0, I), in closed form."""
    growth = ((variances + math.exp(-high)) / (variances + math.exp(-low))).sqrt()
    start, end = (math.sqrt(1 / (1 + math.exp(-level))) for level in (low, high))
    return torch.distributions.Normal(end * mean * (1 - growth), end * growth / start)


points = 1.5 * torch.randn(32, 4, generator=torch.Generator().manual_seed(seed), dtype=f64)
flow = likelihood.flow_density(gaussian, predictions.EPS, points, (low, high), tolerance=1e-7, dtype=f64)
exact = arrived().log_prob(points).sum(1)
undivided = torch.distributions.Normal(0.0, 1.0).log_prob(flow.latent).sum(1)

# %% [markdown]
# And the diffusion term for it, on images of four pixels, against $\tfrac12\int e\,d\lambda$ in closed form. Levels are
# drawn from the cosine schedule here, so that the importance $1/p$ has something to do; the falsifier forgets it.


# %% tags=["hide-input"] jupyter={"source_hidden": true}
class OnPictures:
    """An oracle of vectors as a network of pictures."""

    def __init__(self, oracle):
        self.oracle = oracle

    def __call__(self, z, logsnr, label=None):
        return self.oracle(z.flatten(1), logsnr).reshape(z.shape)


def pictures(values, levels, side):
    """Integers as a set of pictures."""
    return ImageData(
        "known", values.to(torch.uint8).reshape(-1, 1, side, side), torch.zeros(len(values)).long(), levels, 1.0
    )


four = pictures(torch.randint(9, (64, 4), generator=torch.Generator().manual_seed(seed)), 9, 2)
drawn = likelihood.image_elbo(
    OnPictures(gaussian), predictions.EPS, four, schedules.Cosine(low, high), draws=64, dtype=f64, seed=seed
)
in_closed_form = torch.stack(
    [
        elbo.weighted_loss(lambda lam, x=x: gaussian.eps_error_at(x, lam), weightings.ELBO(), low, high)
        for x in four.scaled(f64).flatten(1)
    ]
)
forgotten = 0.5 * (high - low) * drawn.eps_error.mean(1)


# %% tags=["gaussian"]
def in_errors(difference):
    """A mean that should be zero, in its standard errors."""
    return difference.mean().abs() / (difference.std() / math.sqrt(len(difference)))


claim = run.claim("X09a")
claim.check_below((flow.log_prob - exact).abs(), 1e-4, "flow against closed form, 32 points, in nats")
claim.check_below(in_errors(drawn.terms.diffusion - in_closed_form), 4, "diffusion term, 64 images, in standard errors")
claim.falsify_below((undivided - exact).abs(), 1e-4, "flow without the divergence, in nats")
claim.falsify_below(in_errors(forgotten - in_closed_form), 4, "diffusion term without 1/p, in standard errors")

# %% [markdown]
# ## 9.3 Data whose likelihood is a whole number of choices
#
# Take *all* images of some kind, equally likely, and the exact denoiser of that set. No code can do better than
# $\log_2 N$ bits an image, and the exact model reaches it: one bit a pixel for the 16 binary images of 2×2 pixels,
# $\log_2 17$ for a single pixel of 17 grey levels. Nothing in either way knows these numbers. They come out only if
# every factor is right: the width of a level, the scale of the data, the entropy of the noise.
#
# Falsifiers: a model of the set with one image twice, and the term $\log_2\frac{K-1}2$, which belongs to the density of
# scaled data, added where it does not belong.

# %%
sets = {
    "2×2 pixels, binary": pictures(torch.tensor(list(product(range(2), repeat=4))), 2, 2),
    "one pixel, 17 levels": pictures(torch.arange(17)[:, None], 17, 1),
}
ends = (-14.0, 10.0)
twice = pictures(torch.tensor([[0], *([value] for value in range(16))]), 17, 1)


def by_elbo(images):
    """The bound on a set under its own exact denoiser."""
    exactly, levels = oracles.Empirical(images.scaled(f64)), schedules.LinearLogSNR(*ends)
    return likelihood.image_elbo(exactly, predictions.EPS, images, levels, draws=400, dtype=f64, seed=seed).bits


def by_flow(images):
    """The same by the probability flow."""
    exactly = oracles.Empirical(images.scaled(f64))
    return likelihood.image_flow(exactly, predictions.EPS, images, ends, tolerance=1e-6, dtype=f64, seed=seed).bits


bounded, flowed = ({name: way(images) for name, images in sets.items()} for way in (by_elbo, by_flow))
truth = {name: math.log2(len(images)) / images.images[0].numel() for name, images in sets.items()}

# %% tags=["known"]
claim = run.claim("X09b")
for name in sets:
    claim.check(flowed[name].value, truth[name], f"flow, {name}")
    miss = abs(bounded[name].value - truth[name]) / bounded[name].standard_error
    claim.check_below(miss, 4, f"ELBO, {name}, in standard errors")
grey = "one pixel, 17 levels"
claim.falsify(by_flow(twice).value, truth[grey], "one of the 17 images twice")
claim.falsify(flowed[grey].value + elbo.scaling_bits(17), truth[grey], "a constant too many")

# %%
pd.DataFrame(
    {"data": name, "flow": round(flowed[name].value, 3), "log2 N a pixel": round(truth[name], 3)} for name in sets
)

# %% [markdown]
# ## 9.4 Where to stop: the last noise level is part of the model
#
# Now the trained networks. They know the class of an image, so what is bounded is $-\log P(x|\text{class})$; naming the
# class as well would cost $\log_2 10$ bits an image, which is printed below a dimension. What is measured is measured
# on the first so many images of either split, parameters of the profile; the standard errors are those of so many.
#
# One choice is left, $\lambda_{\max}$. A decoder that takes over early has to guess; one that takes over late leaves it
# to the network to find out that pixels are integers. Real networks are not good at that: at high log-SNR the error of
# $\hat\epsilon$ stays near $D$, and each further nat of $\lambda$ costs half a nat a pixel. The draws below any
# $\lambda_{\max}$ are draws of the bound that stops there, so all these bounds come from one evaluation. One level is
# chosen on training images, for all networks together, and kept for the tables; 9.5 has the others, and for each
# network its own best.

# %%
train, test = runs[0].data("train"), experiments.some(runs[0].data("test"), test_images)
learned_on = experiments.some(train, train_images)
pixels, range_of_training = test.images[0].numel(), runs[0].loss.schedule.ends
networks = {one.name: one.load() for one in runs}
print(f"{len(learned_on)} training and {len(test)} test images; {test.caution}".rstrip("; "))
print(f"naming the class would cost {math.log2(train.num_classes) / pixels:.4f} bits a dimension")
pilot = likelihood.image_elbo(
    networks[runs[0].name], runs[0].prediction, learned_on, schedules.LinearLogSNR(*range_of_training), seed=seed + 1
)
schedule = pilot.schedule()


def bound_of(one, images):
    """The bound on every image under a trained network."""
    return likelihood.image_elbo(networks[one.name], one.prediction, images, schedule, draws=draws, seed=seed)


bounds = {(one.name, images.name): bound_of(one, images) for one in runs for images in (learned_on, test)}

# %% tags=["nbval-ignore-output"]
edges = torch.linspace(*range_of_training, bins + 1, dtype=f64)
decoder = torch.stack([likelihood.reconstruction(learned_on, level).mean() for level in edges.tolist()])
paths = {one.name: bounds[one.name, train.name].by_level(bins).path_kl for one in runs}
whole = torch.stack([paths[one.name] + decoder for one in runs])
stop = edges[whole.mean(0).argmin()].item()
print(f"the decoder takes over at λ = {stop:g}; levels were drawn from a schedule learned on {runs[0].name}")
assert edges[0] < stop <= edges[-1]

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-ignore-output"]
fig, ax = plt.subplots(figsize=(0.75 * figures.WIDTH, 3.0))
curves = pd.DataFrame({"λ (nats)": edges, "decoder alone": elbo.bits_per_dim(decoder, pixels)})
for label in labels:
    mine = torch.stack([paths[one.name] for one in runs if one.weighting == label]).mean(0) + decoder
    curves[label] = elbo.bits_per_dim(mine, pixels)
    ax.plot(edges, curves[label], label=figures.label(label), **figures.line(label))
ax.plot(edges, curves["decoder alone"], color=figures.GREY, ls="--", label="decoder alone")
ax.axvline(stop, color="0.5", lw=0.8)
ax.text(stop + 0.1, math.log2(train.levels) + 0.15, "taken", fontsize=8, color="0.4")
ax.set(ylabel="−ELBO (bits a dimension)", ylim=(0, math.log2(train.levels) + 0.5))
figures.logsnr_axis(ax, -4, range_of_training[1])
ax.legend(fontsize=7)
run.figure(
    fig,
    "where_to_stop",
    data=curves,
    caption=f"The bound by the noise level at which the decoder takes over, {len(learned_on)} training images, mean "
    f"over the seeds {settings.training.seeds}. On the left the decoder guesses all; on the right the networks pay for "
    f"grey levels that they have not learned to see. Dashed: what the decoder takes. {train.caution}".strip(),
)
assert np.isfinite(curves).all(axis=None)

# %% [markdown]
# Is the diffusion term right for a real network as well? It was estimated by Monte Carlo over levels. It can be
# integrated instead: the mean error on test images at Gauss–Legendre nodes (`errors_by_level` of notebook 07, other
# noise, other code), $\tfrac12\int e\,d\lambda$. The falsifier leaves out $1/p$.

# %% tags=["nbval-ignore-output"]
nodes, widths = quadrature.panel_nodes(torch.linspace(*range_of_training, 9, dtype=f64), order=5)
checked = experiments.some(test, quadrature_images)
first = {label: next(one for one in runs if one.weighting == label) for label in labels}
by_quadrature = torch.stack(
    [
        0.5
        * widths
        @ evaluation.errors_by_level(
            networks[one.name], one.prediction, checked, nodes, draws=quadrature_draws, seed=seed
        )
        for one in first.values()
    ]
)
of_checked = [bounds[one.name, test.name] for one in first.values()]
by_draws = torch.stack([bound.terms.diffusion[: len(checked)].mean() for bound in of_checked])
span = range_of_training[1] - range_of_training[0]
unweighted = torch.stack([0.5 * span * bound.eps_error[: len(checked)].mean() for bound in of_checked])
assert torch.isfinite(by_quadrature).all()

# %% tags=["two-ways"]
claim = run.claim("X09c")
claim.check(by_draws, by_quadrature, "diffusion term by draws and by quadrature, a network of every weighting")
claim.falsify(unweighted, by_quadrature, "draws without 1/p")

# %% [markdown]
# ## 9.5 Bits a dimension by weighting
#
# Training images stand beside the test images: a network that has learned images by heart codes those cheaply, and only
# those. Intervals are Student's, over the *seeds* of training; a single seed has none, and the standard error over
# images in the table of every run is no substitute. All networks see the same levels and the same noise, so that
# differences between them are sharper than either number.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
rows = []
for one, images in product(runs, (learned_on, test)):
    terms = bounds[one.name, images.name].terms_until(stop, images)
    total = likelihood.Mean.bits(terms.total, pixels)
    rows.append(
        {"weighting": one.weighting, "seed": one.seed, "images": images.name, "bits": total.value}
        | {"± images": total.standard_error}
        | {
            part: likelihood.Mean.bits(getattr(terms, part), pixels).value
            for part in ("prior_kl", "diffusion", "reconstruction")
        }
    )
measured = pd.DataFrame(rows)
run.table(
    measured,
    "every_run",
    caption=f"−ELBO in bits a dimension of {len(test)} test and {len(learned_on)} training images, decoded from λ = "
    f"{stop:g}; ± is the standard error over images. {test.caution}".strip(),
)
assert np.allclose(measured.prior_kl + measured.diffusion + measured.reconstruction, measured.bits)

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
reach = stats.t.ppf(0.5 + confidence / 2, max(1, len(settings.training.seeds) - 1))
spread = measured.groupby(["weighting", "images"]).bits.agg(["mean", "sem"]).unstack().loc[labels]
table = pd.DataFrame({"test": spread["mean", test.name], "± test": reach * spread["sem", test.name]})
table["train"], table["± train"] = spread["mean", train.name], reach * spread["sem", train.name]
table["test − train"] = table["test"] - table["train"]
of_test = measured[measured.images == test.name].groupby("weighting")[["prior_kl", "diffusion", "reconstruction"]]
table = table.join(of_test.mean()).dropna(axis="columns", how="all")
run.table(
    table.round(4).reset_index(),
    "bits_by_weighting",
    caption=f"−ELBO in bits a dimension, given the class; decoded from λ = {stop:g}, log-SNR from "
    f"{range_of_training[0]:g}; {repeats}; "
    f"{len(test)} test and {len(learned_on)} training images × {draws} draws. A uniform code takes "
    f"log2 {train.levels} = {math.log2(train.levels):.3f}. Terms are those of the test images. Data {test.name} "
    f"{test.sha256[:6]}. {test.caution}".strip(),
)
assert table.notna().all(axis=None)
table.style.format("{:.3f}")

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-ignore-output"]
fig, ax = plt.subplots(figsize=(0.8 * figures.WIDTH, 2.9))
for position, label in enumerate(labels):
    mine = measured[measured.weighting == label]
    for images, shift, face in ((test.name, -0.12, figures.colour(label)), (train.name, 0.12, "white")):
        values = mine[mine.images == images].bits
        centre, half = values.mean(), reach * values.sem() if several else None
        ax.errorbar(position + shift, centre, half, fmt="_", ms=12, capsize=3, color=figures.colour(label))
        ax.scatter(np.full(len(values), position + shift), values, s=18, fc=face, ec=figures.colour(label), zorder=3)
ax.set_xticks(range(len(labels)), [figures.label(label).replace("-", "-\n") for label in labels], fontsize=8)
ax.set(ylabel="−ELBO (bits a dimension)")
run.figure(
    fig,
    "bits_by_weighting",
    data=measured,
    caption=f"Bits a dimension by weighting. Filled: {len(test)} test images, open: {len(learned_on)} training images; "
    f"a dot a seed; {repeats}. Lower is better. What the ELBO's own weighting, w = 1, makes of it under this noise "
    f"schedule is the subject of 9.6. {test.caution}".strip(),
)
assert measured.bits.gt(0).all()

# %% [markdown]
# **Decoded from elsewhere.** Every column is a valid bound for the same images. On the right the whole range, where a
# network trained with $w=1$ is asked what it was trained for; in the last column each network decodes from its own best
# level, chosen on training images. Decoded from $\lambda_1$ the bound is the loss of a step weighting, $w=1$ up to
# $\lambda_1$, so a network does best where its own weighting ends. Notebook 10 sees the same with the gradient of every
# loss well estimated, and with five seeds.

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-ignore-output"]
on_test = torch.stack([likelihood.reconstruction(test, level).mean() for level in edges.tolist()])
at_stop = torch.stack(
    [elbo.bits_per_dim(bounds[one.name, test.name].by_level(bins).path_kl + on_test, pixels) for one in runs]
)
own = [(paths[one.name] + decoder).argmin().item() for one in runs]
ends_shown = [number for number, level in enumerate(edges.tolist()) if level >= 0][::-2][::-1]
by_stop = pd.DataFrame({f"{edges[number]:.3g}": at_stop[:, number] for number in ends_shown})
by_stop["own"] = at_stop[range(len(runs)), own]
every_run = by_stop.assign(weighting=[one.weighting for one in runs], seed=[one.seed for one in runs])
run.table(every_run, "bits_by_stop", caption=f"−ELBO of {len(test)} test images, bits a dimension, of every run.")
by_stop = by_stop.groupby([one.weighting for one in runs]).mean().loc[labels].rename_axis("weighting")
run.figure(
    stops.picture(by_stop),
    "bits_by_stop",
    data=by_stop,
    caption=f"−ELBO of {len(test)} test images in bits a dimension by where decoding starts, mean over the seeds "
    f"{settings.training.seeds}. Colour: bits behind the best of the column, which is framed. Last column: each "
    f"network from its own best level on training images. {test.caution}".strip(),
)
best = by_stop.idxmin().map(figures.label)
print("codes best, by the level decoded from:", ", ".join(f"{level}: {name}" for level, name in best.items()))
assert np.isfinite(by_stop).all(axis=None)

# %% [markdown]
# One statement must hold on any machine: training taught something about images that were not seen. The falsifier is
# a slip of sign: a trained network that is told $-\lambda$, as by a code whose log-SNR is that of noise over data.

# %% tags=["better-than-untrained"]
blank = runs[0].network().eval()
untrained = likelihood.image_elbo(blank, runs[0].prediction, test, schedule, draws=draws, seed=seed)
start_bits = likelihood.Mean.bits(untrained.terms_until(stop, test).total, pixels).value
claim = run.claim("X09d")
claim.check_below(
    measured[measured.images == test.name].bits / start_bits, 0.8, "bits over those of the untrained network, every run"
)
misled = likelihood.image_elbo(
    lambda z, logsnr, **label: networks[runs[0].name](z, -logsnr, **label),
    runs[0].prediction,
    test,
    schedule,
    draws=draws,
    seed=seed,
)
claim.falsify_below(
    likelihood.Mean.bits(misled.terms_until(stop, test).total, pixels).value / start_bits,
    0.8,
    "a trained network that is told −λ",
)

# %% [markdown]
# ## 9.6 At which noise levels the bits are spent
#
# The diffusion term is an integral over $\lambda$, so it can be seen where each weighting saves and where it pays. The
# left panel shows bits a dimension per nat of log-SNR, $\tfrac12e/(D\log2)$, the right one what each weighting has paid
# up to $\lambda$ more than the mean of all. Where the decoder takes over the right panel is the difference in
# likelihood, to the left of it in $L(\lambda;x)$: in the likelihood of *noisy* images.

# %% tags=["nbval-ignore-output"]
by_level = {one.name: bounds[one.name, test.name].by_level(bins) for one in runs}
middle, width = (edges[1:] + edges[:-1]) / 2, (edges[1] - edges[0]).item()
spent = torch.stack([elbo.bits_per_dim(by_level[one.name].path_kl, pixels) for one in runs])
in_bins = torch.stack([elbo.bits_per_dim(by_level[one.name].nats, pixels) for one in runs]) / width
of = {label: [number for number, one in enumerate(runs) if one.weighting == label] for label in labels}
seeds = torch.tensor([one.seed for one in runs])
usual = torch.stack([spent[seeds == number].mean(0) for number in seeds.tolist()])
more = spent - usual
levels_table = pd.DataFrame({"λ (nats)": edges} | {label: more[numbers].mean(0) for label, numbers in of.items()})
assert torch.allclose(spent[:, -1] - spent[:, 0], in_bins.sum(1) * width)

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-ignore-output"]
fig, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.0), width_ratios=[2, 3])
for label, numbers in of.items():
    left.plot(middle, in_bins[numbers].mean(0), **figures.line(label))
    band = more[numbers]
    right.fill_between(edges, band.amin(0), band.amax(0), color=figures.colour(label), alpha=0.2, lw=0)
    right.plot(edges, band.mean(0), label=figures.label(label), **figures.line(label))
inside = more[:, edges <= stop]
left.set(ylabel="bits a dimension per nat", ylim=(0, None), title="where bits are spent")
right.set(
    ylabel="bits a dimension",
    ylim=(1.2 * inside.min().item(), 1.2 * inside.max().item()),
    title="paid so far, over the mean of all",
)
right.axhline(0, color="0.5", lw=0.8)
for ax in (left, right):
    ax.axvline(stop, color="0.5", lw=0.8)
    figures.logsnr_axis(ax, -8, stop + 1)
right.legend(loc="upper left", fontsize=7)
run.figure(
    fig,
    "elbo_by_level",
    data=levels_table,
    caption=f"The ELBO by noise level, {len(test)} test images. Left: bits a dimension per nat of log-SNR. Right: "
    "L(λ; x) so far, over the mean of all weightings of the same seed; bands span the seeds "
    f"{settings.training.seeds}, and may be narrower than the line. The vertical line is where the decoder takes over: "
    f"what a curve reaches there is its difference in likelihood{'' if several else f'; {repeats}'}. "
    f"{test.caution}".strip(),
)
assert np.isfinite(levels_table).all(axis=None)

# %% [markdown]
# The left curves are alike because most of the bits are spent where any network must spend them, on the noise of grey
# levels. The right ones show the trade. A weighting that turns away from high log-SNR loses there what it gained
# before; whether $w=1$, which does not turn away, wins depends on how well its gradient is estimated. Under the cosine
# schedule it is estimated badly (7.2: $w/p$ at the ends), and at the profile `tiny` the network trained on it is behind
# at all levels but the very last nats, where it beats the sigmoid: on its own measure, the clean likelihood, it is the
# worst of all. That says something of the schedule and the budget, the subject of notebook 06, and nothing of the
# objective, at whose optimum nothing could be lower. With the adaptive schedule, where the gradient is estimated well,
# it is the best on its own measure, and the worst in samples (10.3).

# %% [markdown]
# ## 9.7 Two ways for one network
#
# The bound and the flow are different models: they share the denoiser, but one goes back at random, the other on a
# line. For a posterior mean they agree (9.3); how far a trained network is from being one can be read off here. The
# divergence is estimated by Hutchinson's trick, $E[e^T\nabla\hat\epsilon\,e]=\nabla\cdot\hat\epsilon$ for random signs
# $e$. Both dequantisations are named in the table; the uniform one looks at the density where the noise is as wide as a
# uniform level, $\bar\sigma=\Delta/\sqrt{12}$, if the networks reach as far.

# %% tags=["nbval-ignore-output"]
some = experiments.some(test, flow_images)
as_wide = min(2 * math.log(math.sqrt(12) * (test.levels - 1) / 2), range_of_training[1])
rows, flows = [], {}
for label, one in first.items():
    bound = bounds[one.name, test.name].terms_until(stop, test).total[: len(some)]
    flows[label] = {
        kind: likelihood.image_flow(
            networks[one.name],
            one.prediction,
            some,
            (range_of_training[0], end),
            dequantisation=kind,
            divergence="hutchinson",
            seed=seed,
            tolerance=1e-4,
        )
        for kind, end in (("variational", stop), ("uniform", as_wide))
    }
    row = {"weighting": label, "ELBO": likelihood.Mean.bits(bound, pixels)}
    row |= {f"flow, {kind}": found.bits for kind, found in flows[label].items()}
    row["ELBO − flow, variational"] = likelihood.Mean.bits(bound - flows[label]["variational"].nats, pixels)
    rows.append(row)
assert all(torch.isfinite(found.nats).all() for kinds in flows.values() for found in kinds.values())

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
compared = pd.DataFrame(
    {
        name: value if isinstance(value, str) else f"{value.value:.3f} ± {value.standard_error:.3f}"
        for name, value in row.items()
    }
    for row in rows
)
evaluations = {found.evaluations for kinds in flows.values() for found in kinds.values()}
run.table(
    compared,
    "elbo_and_flow",
    caption=f"Bits a dimension of {len(some)} test images given their class, seed {runs[0].seed} of every weighting; ± "
    f"is the standard error over images, that of the draws included. ELBO and variational flow decode from λ = "
    f"{stop:g}; the uniform flow ends at λ = {as_wide:.2f}. Hutchinson's divergence with one probe, "
    f"{min(evaluations)} to {max(evaluations)} evaluations. {test.caution}".strip(),
)
assert len(compared) == len(labels)
compared

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-ignore-output"]
one, shown = runs[0], labels[0]
axis_x = elbo.bits_per_dim(flows[shown]["variational"].nats, pixels)
axis_y = elbo.bits_per_dim(bounds[one.name, test.name].terms_until(stop, test).total[: len(some)], pixels)
fig, ax = plt.subplots(figsize=(0.5 * figures.WIDTH, 0.5 * figures.WIDTH))
ax.scatter(axis_x, axis_y, s=8, color=figures.colour(shown), alpha=0.6, lw=0)
ends_of_line = [min(axis_x.min(), axis_y.min()).item(), max(axis_x.max(), axis_y.max()).item()]
ax.plot(ends_of_line, ends_of_line, color="0.5", lw=0.8)
ax.set(xlabel="probability flow, variational\n(bits a dimension)", ylabel="ELBO (bits a dimension)", aspect="equal")
run.figure(
    fig,
    "elbo_and_flow",
    data=pd.DataFrame({"flow": axis_x, "ELBO": axis_y}),
    caption=f"The same network ({one.name}), the same {len(some)} test images, a dot an image. Both are estimates with "
    f"noise of their own: of levels and ε for the ELBO, of ε and a probe for the flow. {test.caution}".strip(),
)
correlation = np.corrcoef(axis_x, axis_y)[0, 1]
print(f"correlation over images: {correlation:.2f}")
assert np.isfinite(correlation)

# %% [markdown]
# ## 9.8 What would falsify this, and what the numbers are not
#
# * A lost factor anywhere, in the width of a level, the scale of the data or the entropy of the noise, would have moved
#   9.3 away from whole numbers of choices. A lost $1/p$ or divergence would have failed 9.2 and 9.4; they were put in,
#   and did.
# * Bits on test images far above those on training images would say that the networks code what they have seen. The
#   table of 9.5 has the difference; where it exceeds the intervals, it is real.
# * If ELBO and flow disagreed beyond their errors for an exact denoiser, one of the derivations would be wrong. For
#   trained networks they may differ, in either direction; the last column of the table in 9.7 says how much they do,
#   over the images. At the profile `tiny` the flow takes some hundredths of a bit less, beyond the errors: these
#   denoisers are the posterior means of nothing, so the two ways back are two models, and the bound is not tight (4.5).
#
# The numbers are of images *given their class*, and of a bound that decodes from the level chosen in 9.4. They compare
# weightings at this budget. They are no more comparable with published numbers than the data are, and where the data
# carry a caution, it stands in the caption. A likelihood is no measure of how samples look: notebook 08 measures that,
# and the two need not agree.

# %% [markdown]
# ## The evidence
#
# Every comparison of this notebook. A number under "value" keeps the limit; one under "falsifier's value" is the same
# comparison on the slip named there, and must not.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
evidence = run.evidence()
assert len(evidence)
evidence
