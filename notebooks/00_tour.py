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
# # 0 A tour in fifteen minutes
#
# A diffusion model is trained by removing noise, and every recipe weighs the noise levels in its own way. The paper
# says what such a weighted loss *is*: if the weight never falls towards more noise, it is the likelihood bound (ELBO)
# of ordinary maximum-likelihood training, on data to which Gaussian noise of random strength was added. The weighting
# decides how much noise, and nothing else.
#
# This tour shows it on a line, where every term can be computed (0.2); draws the picture that goes with it, from a
# weighting to the photographs that its model is a likelihood of (0.3); says what it does and does not mean for your
# network (0.4); and ends with three lines that tell you what your own loss optimises (0.5). The notebooks after it
# prove, test and measure each step.

# %% tags=["parameters"]
profile: str = "tiny"
logsnr_min: float = -12.0
logsnr_max: float = 12.0
points: int = 481
seed: int = 0

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.datasets import load_sample_image

import paperlib
from paperlib import companion, elbo, oracles, process, schedules, weightings
from paperlib.auditing import report
from paperlib.augmentation import Augmentation
from paperlib.companion import figures

run = companion.start("00_tour", profile)
generator = torch.Generator().manual_seed(seed)
f64 = torch.float64
low, high = logsnr_min, logsnr_max
grid = torch.linspace(low, high, points, dtype=f64)

corner = {"china.jpg": (60, 130), "flower.jpg": (60, 130)}
photographs = []
for name, (top, left) in corner.items():
    pixels = torch.from_numpy(load_sample_image(name)[top : top + 320, left : left + 320].copy()).permute(2, 0, 1)
    photographs.append(torch.nn.functional.avg_pool2d(pixels.to(f64) / 127.5 - 1, 5))
photographs = torch.stack(photographs)  # (2, 3, 64, 64)
eps = torch.randn(photographs.shape[1:], generator=generator, dtype=f64)


def noisy(x, level):
    """A photograph at a noise level, scaled to signal + noise = 1 so that both can be seen; clean at the very end."""
    level = torch.as_tensor(level, dtype=f64)
    return figures.picture(process.to_flow(process.diffuse(x, eps, level), level) if level < high - 0.01 else x)


def show(ax, image, below=""):
    """A picture without axes."""
    ax.imshow(image)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(below, fontsize=6.5, labelpad=1)


# %% [markdown]
# ## 0.1 What is weighted
#
# Mix an image with noise, $z_\lambda=\alpha x+\sigma\epsilon$. One number says how much, the log signal-to-noise ratio
# $\lambda=\log(\alpha^2/\sigma^2)$: large is clean, very negative is noise alone. A network sees $z_\lambda$ and
# $\lambda$ and guesses the noise, $\hat\epsilon$. Whatever a recipe predicts and however it draws its levels, in
# expectation it minimises
#
# $$L_w(x)=\tfrac12\int w(\lambda)\;E_\epsilon\big\lVert\hat\epsilon(z_\lambda;\lambda)-\epsilon\big\rVert^2\,d\lambda,
# \tag{0.1}$$
#
# and all that tells recipes apart is the weighting $w(\lambda)$ (notebooks 02, 03). With $w=1$ it is the ELBO.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
shown = [12.0, 6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0]
fig, axes = plt.subplots(2, len(shown), figsize=(figures.WIDTH, 2.0))
for row, x in zip(axes, photographs, strict=True):
    for ax, level in zip(row, shown, strict=True):
        show(ax, noisy(x, level))
for ax, level in zip(axes[0], shown, strict=True):
    ax.set_title("clean" if level == high else f"λ = {level:g}".replace("-", "−"), fontsize=8)
run.figure(
    fig,
    "levels",
    data={"x": photographs, "eps": eps, "logsnr": torch.tensor(shown)},
    caption="Two photographs of 64 × 64 pixels under growing noise. Textures go first, shapes last; below λ = −6 "
    "nothing is left to be seen.",
)

# %% [markdown]
# ## 0.2 The theorem, on a line
#
# **What it says.** Let $w$ never increase with $\lambda$. Then $p_w=-w'/w(\lambda_{\min})$ is a probability density
# over noise levels (with what is left, $w(\lambda_{\max})/w(\lambda_{\min})$, on clean data), and
#
# $$\frac{L_w(x)}{w(\lambda_{\min})}=E_{\lambda\sim p_w}\,E_{z_\lambda}\big[-\mathrm{ELBO}_\lambda(z_\lambda)\big]
# +\text{a constant that no network can change}. \tag{0.2}$$
#
# *To minimise the weighted denoising error is to maximise a likelihood bound of data with noise added, its level drawn
# from $p_w$.* The reason takes two lines (notebook 04 has it in full): the bound of the data at level $\lambda$ changes
# with $\lambda$ at the rate of half the squared error there, and (0.1) is then integrated by parts.
#
# **Seen.** Take one datum, $x=0.9$, and a family of models whose likelihood is known at every noise level: the same
# two-humped density, displaced by $\delta$. For those the bound is tight, $\mathrm{ELBO}_\lambda(z)=\log p_\lambda(z)$.
# So the left side of (0.2) sees only each model's denoiser, and the right side only its density.

# %%
x = torch.tensor([0.9], dtype=f64)
humps = oracles.GaussianMixture.isotropic(torch.tensor([[-1.0], [0.8]], dtype=f64), 0.1)
noise = elbo.Noise.quadrature(dim=1, panels=20, order=12)
start = torch.tensor([low], dtype=f64)


def of_denoiser(model, w):
    """The left side of (0.2): only ε̂ is asked for."""
    return elbo.weighted_loss(elbo.eps_error(model, x, noise), w, low, high) / w(start)[0]


def of_noisy_data(model, w):
    """The right side: only log p(z) is, less its value at λ_min and the entropy of the noise."""
    surprise = elbo.marginal_kl(model, x, noise)
    return Augmentation(w, low, high).integral(surprise) - surprise(start)[0]


shifts = torch.linspace(-1, 1, 9, dtype=f64)
models = [humps.displaced(shift[None]) for shift in shifts]
sigmoid, edm, held = weightings.Sigmoid(2.0), weightings.EDM(), weightings.EDMMonotonic()
left = {w: torch.stack([of_denoiser(model, w) for model in models]) for w in (sigmoid, edm)}
right = {w: torch.stack([of_noisy_data(model, w) for model in models]) for w in (sigmoid, edm, held)}

# %% [markdown]
# The two sides agree to eight digits. Two near misses do not. One forgets the probability that $p_w$ leaves on clean
# data, here 0.000045. The other takes the weighting of EDM, which *falls* again towards strong noise, for one that does
# not: it keeps the positive part of $p_w$ as if that were the distribution.

# %% tags=["theorem"]
clean_mass = weightings.clean_mass(sigmoid, low, high)
clean = torch.stack([elbo.marginal_kl(model, x, noise)(torch.tensor([high], dtype=f64))[0] for model in models])
largest = (edm(start) / edm(torch.tensor([edm.peak], dtype=f64))).item()

claim = run.claim("X00a")
claim.check(left[sigmoid], right[sigmoid], "sigmoid, k = 2: denoising error and likelihood of noisy data, 9 models")
claim.check(left[edm], right[edm], "EDM: the same, with a signed p_w", scale=right[edm].abs().max())
claim.falsify(left[sigmoid], right[sigmoid] - clean_mass * clean, "sigmoid: clean data left out")
claim.falsify(left[edm] * largest, right[held], "EDM: the positive part of p_w for all of it")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
entropy = Augmentation(sigmoid, low, high).integral(lambda level: elbo.conditional_entropy(1, level))
start_kl = torch.stack([elbo.marginal_kl(model, x, noise)(start)[0] for model in models])
nats = right[sigmoid] + start_kl + entropy
offset = {
    "sigmoid, k = 2": left[sigmoid] - right[sigmoid],
    "EDM taken for monotone": left[edm] * largest - right[held],
}
fig, (one, two) = plt.subplots(1, 2, figsize=(figures.WIDTH, 2.7))
one.plot(shifts, left[sigmoid], color=figures.BLUE, label="weighted error of the denoiser")
one.plot(shifts, nats, "o", color=figures.VERMILION, markersize=4, label="−log p of noisy data")
one.legend()
one.set(xlabel="displacement δ of the model", ylabel="nats", title="sigmoid weighting, k = 2")
for (name, values), shade in zip(offset.items(), (figures.BLUE, figures.ORANGE), strict=True):
    two.plot(shifts, values - values[4], "o-", color=shade, markersize=4, label=name)
two.set(xlabel="displacement δ of the model", ylabel="nats", title="error − likelihood, less its value at δ = 0")
two.legend()
run.figure(
    fig,
    "theorem",
    data=pd.DataFrame({"δ": shifts, "error": left[sigmoid], "−log p": nats} | offset),
    caption="Nine models of x = 0.9, each a density displaced by δ. Left: the weighted error of its denoiser (line) "
    "and minus the log-likelihood of noisy data, levels drawn from p_w (dots): the same but for a constant. Right: "
    "their difference. It is flat where w is monotone; where EDM is taken to be, it depends on the model.",
)

# %% [markdown]
# ## 0.3 The picture
#
# So a monotone weighting has a picture: the data that its model is a likelihood of. Read a row from left to right: the
# weighting, the distribution of noise levels that it amounts to, and photographs at that distribution's quantiles.

# %%
weighted = {"ELBO": weightings.ELBO(), "sigmoid, k = 2": sigmoid, "EDM-monotonic": held, "EDM": edm}
audits = {name: paperlib.audit(w, name=name, logsnr_min=low, logsnr_max=high) for name, w in weighted.items()}
shares = (0.1, 0.3, 0.5, 0.7, 0.9)
quantiles = {name: report.quantiles(found, shares) for name, found in audits.items()}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig = plt.figure(figsize=(figures.WIDTH, 6.3))
outer = fig.add_gridspec(4, 3, width_ratios=[1.25, 1.25, 3.4])
for row, (name, found) in enumerate(audits.items()):
    shade = {
        "color": figures.colour({"ELBO": "elbo", "EDM": "edm", "EDM-monotonic": "edm_monotonic"}.get(name, "sigmoid"))
    }
    weight, density = (fig.add_subplot(outer[row, column]) for column in (0, 1))
    weight.plot(found.logsnr, found.weighting, **shade)
    weight.set(ylim=(0, 1.12), yticks=[0, 1])
    weight.set_title(name, loc="left", fontsize=9, fontweight="bold")
    density.plot(found.logsnr, found.augmentation_density, **shade)
    density.fill_between(found.logsnr, found.augmentation_density.clamp(max=0), color="0.4", linewidth=0)
    density.axhline(0, color="black", linewidth=0.5)
    density.set(ylim=(-0.42, 0.42), yticks=[0])
    if found.clean_mass > 0.5:
        density.plot([high, high], [0, 0.4], linewidth=5, solid_capstyle="butt", **shade)
        density.text(high - 1, 0.2, "all on\nclean data", ha="right", va="center", fontsize=7)
    if not found.monotonic:
        density.text(-2, -0.3, f"negative: −{found.negative_mass:.3f}", va="center", fontsize=7)
        density.text(2, 0.25, "positive: 1", fontsize=7)
    for ax in (weight, density):
        figures.logsnr_axis(ax, low, high)
        ax.set(xlabel=" " if row < 3 else "log-SNR λ (nats)", xticks=[-10, 0, 10])
        ax.tick_params(labelsize=7)
    cells = outer[row, 2].subgridspec(2, len(shares), wspace=0.04, hspace=0.02)
    for column, (level, share) in enumerate(zip(quantiles[name], shares, strict=True)):
        for line, x_ in enumerate(photographs):
            ax = fig.add_subplot(cells[line, column])
            below = "clean" if level > high - 0.01 else f"λ = {level:.1f}".replace("-", "−")
            show(ax, noisy(x_, level), below if line else "")
            ax.set_title(f"{100 * share:.0f} %" if row == 0 and line == 0 else " " if line == 0 else "", fontsize=8)
    if name == "ELBO":
        weight.text(0.5, 0.5, "w(λ)", transform=weight.transAxes, ha="center", fontsize=9)
        density.text(0.06, 0.8, "$p_w(λ)$", transform=density.transAxes, fontsize=9)
run.figure(
    fig,
    "central",
    data=pd.DataFrame({"share that is noisier": shares} | quantiles),
    caption="From a weighting to the data that its model is a likelihood of. Left: w, its largest value one. Middle: "
    "the noise levels p_w that it amounts to, in units of the largest w. Right: two photographs, 64 × 64 pixels, at "
    "the levels of which 10, 30, 50, 70 and 90 % of p_w are noisier. The ELBO's p_w is all on clean data, so its five "
    "are the same. EDM's p_w is negative at strong noise (grey), nearly as much as it is positive, so it is a "
    "likelihood of no data; its pictures are those of its positive part. "
    f"In units of w at the noisy end, as (0.2) has it, its two parts are {1 / largest:.0f} and {1 / largest - 1:.0f}.",
)

# %% [markdown]
# EDM's pictures are those of EDM-monotonic, and that is no accident: holding $w$ at its peak for all stronger noise
# removes the negative part of $p_w$ and leaves the positive one as it was. It has to be *the* peak. A public
# implementation takes the largest $w$ among the levels of the batch at hand; that is another weighting in every batch.

# %% tags=["held"]
density = {w: weightings.augmentation_density(w, grid, low, high) for w in (edm, held)}
batch = schedules.EDMTraining(low, high).logsnr(torch.rand(64, generator=generator, dtype=f64))
best = batch[edm.log(batch).argmax()]

claim = run.claim("X00b")
claim.check(density[held], density[edm].clamp(min=0) * largest, "EDM-monotonic and EDM's positive part", scale=1.0)
claim.falsify(density[held], (density[edm] * largest).where(grid > best, 0), "the peak of a batch of 64", scale=1.0)

# %% [markdown]
# ## 0.4 What it means for your network, and what it does not
#
# * **Monotone $w$: maximum likelihood, of noisy data.** The usual guarantees of a likelihood bound hold, for data
#   augmented as pictured above, with the network told the strength of the noise. Clean data have the
#   probability $w(\lambda_{\max})/w(\lambda_{\min})$: all of it for $w=1$, next to nothing for the others.
# * **$w$ that falls towards noise: no likelihood, and no disaster.** $w\ge0$ multiplies the error at every level, so
#   less error anywhere never costs, and the perfect network is the same. But where errors must be traded, moving error
#   from a level to a noisier one where $p_w<0$ between them *lowers* the loss, and the bound of the data at the levels
#   between gets worse.
# * **How far from monotone** matters more than whether: below its peak EDM has hardly any of its draws, DDPM more
#   than half, though little of its loss (`paperlib audit --recipe ddpm`).
# * **It is an interpretation, not a ranking.** The theorem does not say which weighting makes the best pictures. The
#   paper finds monotone ones on a par with the best others; what became of that at small scale is in notebook 10.
#
# ## 0.5 Your loss, in three lines
#
# Say how your levels are drawn, what the network predicts, and how the error is weighed, as here Min-SNR with
# v-prediction under a cosine schedule. A recipe's name, a scheduler of diffusers or the loss function itself will do
# too (notebook 12); `paperlib audit` does the same on the command line.

# %%
cosine = {"name": "cosine", "logsnr_min": -12.0, "logsnr_max": 12.0}
found = paperlib.audit({"prediction": "v", "schedule": cosine, "loss_weight": "min_snr"}, name="Min-SNR, v, cosine")
print(found)

# %% [markdown]
# It is not monotone: half of the draws lie below the peak at $\lambda=0$, though only about a sixth of the loss.
#
# ## 0.6 Where to go from here
#
# | question | notebook |
# |---|---|
# | What is a noise schedule, and why does it drop out of the loss? | 01, 03 |
# | Which $w$ does a published loss amount to? | 02, 12 |
# | The theorem and its proof, on a line, on images | 04 |
# | What do the augmented data look like? | 05 |
# | How are levels drawn with the least variance? | 06 |
# | What do networks trained under different weightings do? | 07, 08, 09, 10 |
# | What came after the paper? | 11 |
# | Audit my own objective | 12 |
# | What does the paper report, and what of it was found here? | 13, 14 |

# %% [markdown]
# ## The evidence
#
# Every comparison of this notebook. A number under "value" keeps the limit; one under "falsifier's value" is the same
# comparison on the slip named there, and must not.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
evidence = run.evidence()
assert len(evidence)
evidence
