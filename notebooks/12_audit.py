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
# # 12 Audit your own objective
#
# What does *my* loss optimise? The audit answers for any diffusion or flow-matching code: which weighting $w(\lambda)$
# of the $\epsilon$ error it amounts to, how far that is from monotone, of which noisy data it is the ELBO if it is, and
# where training effort goes. It takes a description (12.1), a scheduler of diffusers (12.2), or the loss function
# itself, which is then *measured* and not believed (12.3). Told what the loss was meant to be, it finds the mistakes
# that leave no other trace: training runs, the loss falls, and another objective is optimised (12.4). And it makes a
# weighting monotone, if that is wanted (12.5).
#
# Everything here is `paperlib.audit(...)`; `paperlib audit` does the same on the command line, and writes a page with
# `--html`. In a notebook of your own, leave out `print`: the audit then shows its pictures.

# %% tags=["parameters"]
profile: str = "tiny"
logsnr_min: float = -20.0
logsnr_max: float = 20.0
draws: int = 400000
seed: int = 0

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch

import paperlib
from paperlib import companion, weightings
from paperlib.companion import figures

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tqdm's, that there are no widgets
    from diffusers import FlowMatchEulerDiscreteScheduler

run = companion.start("12_audit", profile)

# %% [markdown]
# ## 12.1 From a description
#
# Three things make a weighting: $w\propto p\,c\,k$, how levels are drawn, what the error is multiplied with, and the
# factor of the prediction (notebook 02). Say them by name. Here: v-prediction, cosine, Min-SNR with $\gamma=5$.

# %%
cosine = {"name": "cosine", "logsnr_min": logsnr_min, "logsnr_max": logsnr_max}
meant = {"prediction": "v", "schedule": cosine, "loss_weight": {"name": "min_snr", "gamma": 5}}
print(paperlib.audit(meant, name="Min-SNR, v, cosine"))

# %% [markdown]
# The rows of blocks run from noise to clean data. "Loss by λ" is where the loss lies for a reference model, the exact
# denoiser of Gaussian data with the spectrum of photographs; draws in that proportion would estimate the same loss with
# the least variance.
#
# ## 12.2 From a scheduler
#
# A scheduler of diffusers, its `scheduler_config.json` or the folder of a saved pipeline says which levels there are
# and what is predicted. How a script draws and weighs them it does not say, and the audit says so.

# %%
scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
described = paperlib.audit(scheduler)
print(described)

# %% [markdown]
# Is that what training with it does? A script draws a step, looks up its $\sigma$ and noises; measure that. The slip:
# the times are shifted by 3 once more, though the scheduler's table has the shift already.


# %%
def flow_script(shift):
    """Flow matching on the scheduler's table, its steps drawn uniformly, then shifted."""

    def loss(model, x, generator):
        u = torch.rand(len(x), generator=generator)
        index = (1000 * (1 - shift * u / (1 + (shift - 1) * u))).long().clamp(max=999)  # the table descends
        sigma = scheduler.sigmas[index].to(x)[:, None, None, None]
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return ((model((1 - sigma) * x + sigma * noise, scheduler.timesteps[index]) - (noise - x)) ** 2).mean()

    return loss


once, twice = (
    paperlib.audit(flow_script(shift), name=f"shift {shift}", expect=dict(described.said), draws=draws)
    for shift in (1, 3)
)


def miss(found):
    """How far the ratio to what was meant is from one, over its band and 2 %; the two bins at each end left out."""
    slack = 0.02 + found.band / found.weighting
    return ((found.ratio - 1).abs() / slack)[2:-2]


# %% tags=["scheduler"]
claim = run.claim("X12c")
claim.check_below(miss(once), 1, "the scheduler's levels and those of its noising, over band and 2 %")
claim.falsify_below(miss(twice), 1, "a shift that is applied twice")

# %% [markdown]
# ## 12.3 From code
#
# Any `loss(model, x, generator)` will do. The audit calls it with models of its own: what the noise is, how z is
# scaled, what the model is told and what a unit of error costs are read off, never asked. First it sees whether the
# loss is one that can be read as a weighting at all: an exact model must be *stationary*, twice the error must cost
# four times (*quadratic*), and errors of every shape must cost the same (*isotropic*).


# %%
def min_snr_script(weight):
    """v-prediction under a cosine schedule, as a training script has it."""

    def loss(model, x, generator):
        angle = torch.rand(len(x), generator=generator).to(x) * torch.pi / 2
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        alpha, sigma = angle.cos()[:, None, None, None], angle.sin()[:, None, None, None]
        error = (model(alpha * x + sigma * noise, angle) - (alpha * noise - sigma * x)) ** 2
        return weight(alpha**2 / sigma**2) * error

    return loss


right = paperlib.audit(
    min_snr_script(lambda snr: snr.clamp(max=5) / (snr + 1)), name="Min-SNR for v", expect=meant, draws=draws
)
print(right)

# %% [markdown]
# ## 12.4 Mistakes that train
#
# Three slips, the first two seen in public code. All are stationary and quadratic: the perfect network is the same,
# the loss falls, nothing fails. Only `expect` tells.

# %%
slips = {
    "Min-SNR's formula for ε": min_snr_script(lambda snr: snr.clamp(max=5) / snr),
    "SNR taken for α/σ": min_snr_script(lambda snr: snr.sqrt().clamp(max=5) / (snr.sqrt() + 1)),
    "no weight at all": min_snr_script(torch.ones_like),
}
wrong = {name: paperlib.audit(loss, name=name, expect=meant, draws=draws) for name, loss in slips.items()}
for found in wrong.values():
    print(f"{found.name}: stationary {found.stationary}, quadratic {found.quadratic}, agrees {found.agrees}")

# %% tags=["measured"]
claim = run.claim("X12b")
claim.check_below(miss(right), 1, "measured ratio to Min-SNR for v, over band and 2 %")
for name, found in wrong.items():
    claim.falsify_below(miss(found), 1, name)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (one, two) = plt.subplots(1, 2, figsize=(figures.WIDTH, 2.8))
formula = paperlib.audit(meant)
one.plot(formula.logsnr, formula.weighting, color="0.7", linewidth=4, label="meant")
one.errorbar(right.logsnr, right.weighting, right.band, fmt=".", markersize=3, color=figures.BLUE, label="measured")
one.set(ylabel="w(λ) over its maximum", title="measured from code")
two.axhline(1, color="0.7", linewidth=4)
for (name, found), shade in zip(
    [("Min-SNR for v", right), *wrong.items()],
    (figures.BLUE, figures.VERMILION, figures.ORANGE, figures.GREEN),
    strict=True,
):
    two.plot(found.logsnr, found.ratio, color=shade, label=name)
two.set(yscale="log", ylabel="w(λ) over what was meant", title="slips", ylim=(1e-2, 1e3))
for ax in (one, two):
    figures.logsnr_axis(ax, -8, 8)
    ax.legend(fontsize=7)
run.figure(
    fig,
    "slips",
    data=pd.DataFrame({"λ (nats)": right.logsnr, "w": right.weighting, "band": right.band, "ratio": right.ratio}),
    caption="Left: the weighting of a loss function, measured, with its simultaneous 95 % band, on the formula. Right: "
    "the ratio to what was meant, its median one. A loss that is what it should be lies on the grey line.",
)

# %% [markdown]
# Another kind of mistake shows without being told what was meant. A trainer turns the output into
# $\hat x=z-\sigma\hat v$ and leaves the target at noise minus data: the exact model is not stationary, for any usual
# prediction. And a Huber loss is no weighted squared error.


# %%
def flow_loss(distance, as_denoiser=False):
    """Uniform t; with ``as_denoiser`` the output becomes x̂ while the target stays a velocity."""

    def loss(model, x, generator):
        t = torch.rand(len(x), generator=generator).to(x)[:, None, None, None]
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        z = (1 - t) * x + t * noise
        output = model(z, t.flatten())
        return distance(z - t * output if as_denoiser else output, noise - x)

    return loss


for name, loss in {
    "target that does not fit": flow_loss(torch.nn.functional.mse_loss, as_denoiser=True),
    "Huber": flow_loss(lambda a, b: torch.nn.functional.huber_loss(a, b, delta=0.02)),
}.items():
    found = paperlib.audit(loss, name=name, draws=draws // 4)
    print(f"{name}: stationary {found.stationary}, quadratic {found.quadratic}")
    assert not (found.stationary and found.quadratic)

# %% [markdown]
# ## 12.5 Made monotone
#
# If a likelihood is wanted, there are two ways to the nearest monotone weighting. The *majorant*, $\max_{\lambda'\ge
# \lambda}w(\lambda')$, is the smallest that gives no level less than before; applied to EDM it is the paper's
# EDM-monotonic. The *nearest* one, in $\int(\cdot)^2d\lambda$, takes from the peak what it gives to the noisy side
# (isotonic regression; its height depends on the range). In your own code the majorant multiplies the loss weight by
# the ratio of the two, $c\to c\cdot\max_{\lambda'\ge\lambda}w(\lambda')/w(\lambda)$: one above the peak, growing below
# it.

# %% tags=["majorant"]
ends = {"logsnr_min": -12.0, "logsnr_max": 12.0}
edm = paperlib.audit(weightings.EDM(), name="EDM", **ends)
held = weightings.EDMMonotonic()(edm.logsnr)
claim = run.claim("X12d")
claim.check(edm.majorant, held / held.max(), "majorant of EDM and EDM-monotonic")
claim.falsify(edm.weighting.cummax(0).values, held / held.max(), "the running maximum from the other end", scale=1.0)
claim.falsify(edm.nearest / edm.nearest.max(), held / held.max(), "the nearest non-increasing w", scale=1.0)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
shown = {"EDM": edm, "SD3": paperlib.audit("sd3"), "Laplace": paperlib.audit("laplace")}
fig, axes = plt.subplots(2, 3, figsize=(figures.WIDTH, 4.0), sharex=True)
drawn = []
for (weight, density), (name, found) in zip(axes.T, shown.items(), strict=True):
    for label, w, style in (
        ("as it is", found.weighting, {"color": figures.VERMILION}),
        ("majorant", found.majorant, {"color": figures.BLUE, "linestyle": "--"}),
        ("nearest", found.nearest, {"color": figures.GREEN, "linestyle": ":"}),
    ):
        slope = -torch.gradient(w, spacing=(found.logsnr,))[0]
        weight.plot(found.logsnr, w, label=label, **style)
        density.plot(found.logsnr, slope, **style)
        drawn.append(pd.DataFrame({"loss": name, "which": label, "λ (nats)": found.logsnr, "w": w, "p_w": slope}))
    weight.set(title=name, ylim=(0, None))
    density.axhline(0, color="black", linewidth=0.5)
    figures.logsnr_axis(density, -10, 10)
axes[0, 0].set_ylabel("w(λ)")
axes[1, 0].set_ylabel("$p_w$, of w over its maximum")
axes[0, 0].legend(loc="upper right")
run.figure(
    fig,
    "monotonised",
    data=pd.concat(one[::10] for one in drawn),
    caption="Three weightings made monotone, and what that does to p_w: the majorant removes the negative part and "
    "leaves the positive one; the nearest flattens the peak, and keeps only the clean side of it.",
)

# %% [markdown]
# As a weighting to train with, it is one line; the loss is the library's, or your own with the ratio above.

# %%
weighting = edm.monotonised()
added = (edm.majorant * paperlib.auditing.result.reference_error(edm.logsnr) * edm.width).sum()
before = (edm.weighting * paperlib.auditing.result.reference_error(edm.logsnr) * edm.width).sum()
print(f"{type(weighting).__name__} on {len(weighting.w)} levels; monotone: {weighting.is_monotonic()}")
print(f"the loss of the reference model grows by {(added / before - 1).item():.1%}")

# %% [markdown]
# So making EDM monotone changes what the loss is, and hardly what training does: levels below its peak carry one per
# cent of it. Whether it changes samples is an experiment (notebook 10).
#
# ## 12.6 What would falsify this, and what it does not show
#
# * A slip that passes for what was meant: each of them was seen to fail.
# * The audit says what a loss weighs, not whether that is good. A non-monotone weighting is no mistake.
# * It measures what the code does to *its* models. Dropout of conditions, several outputs, or a second call of the
#   network in the loss are outside of it, and it says when it cannot tell.

# %% [markdown]
# ## The evidence
#
# Every comparison of this notebook. A number under "value" keeps the limit; one under "falsifier's value" is the same
# comparison on the slip named there, and must not.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
evidence = run.evidence()
assert len(evidence)
evidence
