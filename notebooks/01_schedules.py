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
# # 1 The forward process and its noise schedules
#
# **Abstract.** There is one coordinate of noise, the log signal-to-noise ratio $\lambda$. A *noise schedule* adds
# nothing to the process but a probability distribution over $\lambda$: how often each level is visited (Section 2).
# This notebook defines the coordinate and its many names, reads every common schedule as a distribution (Figure 2 and
# the table of schedules), cuts schedules to a range so that the ends hold exactly, and shows two misprints beside what
# the formulas should say (E1, E3). None of this says which schedule is good: given the weighting, none changes the
# *objective*. What a training of finite length makes of it does depend on the schedule (10.7).
#
# **From what this was written.** The text of the paper was not at hand. These notebooks were written from passages of
# it that public sources quote, and from our own derivations; `docs/equations.md` says of every place which of the two
# it is. Of the errata, the first was also seen elsewhere. That the other formulas are wrong is derived here; that the
# paper has them so is from our notes of it, and no public quotation of those lines was found.
# Published numbers carry the address of their source, in `results/paper`; what could not be seen is left empty.

# %% tags=["parameters"]
profile: str = "tiny"
logsnr_min: float = -8.7
logsnr_max: float = 12.4
points: int = 401
samples: int = 20000
seed: int = 0

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sympy as sp
import torch
from scipy import stats

from paperlib import companion, objectives, process, schedules
from paperlib.companion import figures, profiles

run = companion.start("01_schedules", profile)
generator = torch.Generator().manual_seed(seed)
grid = torch.linspace(logsnr_min, logsnr_max, points, dtype=torch.float64)

# %% [markdown]
# ## 1.1 One coordinate of noise
#
# Noisy data are $z_\lambda = \alpha x + \sigma\epsilon$ with $\epsilon\sim N(0, I)$, and
#
# $$\lambda = \log\frac{\alpha^2}{\sigma^2}. \tag{1.1}$$
#
# The scaling is a convention. *Variance preserving* (VP) has $\alpha^2+\sigma^2=1$, *variance exploding* (VE) has
# $\alpha=1$, *flow matching* has $\alpha+\sigma=1$. At the same $\lambda$, the same $x$ and the same $\epsilon$, the
# three are multiples of one another, so they carry the same information about $x$. The library keeps to VP inside and
# converts at its border.

# %%
pictures = profiles.load(profile).data.load("test")
x = pictures.scaled(torch.float64, first=3)
caution = f" {pictures.caution}." if pictures.caution else ""
eps = torch.randn(x.shape, generator=generator, dtype=x.dtype)
level = torch.tensor([-4.0, 0.0, 4.0], dtype=x.dtype)
z = process.diffuse(x, eps, level)
sigma_ve = process.expand(process.sigma_ve_from_logsnr(level), x)
flow_time = process.expand(process.flow_time_from_logsnr(level), x)

assert torch.allclose(process.to_ve(z, level), x + sigma_ve * eps, rtol=1e-12)
assert torch.allclose(process.to_flow(z, level), (1 - flow_time) * x + flow_time * eps, rtol=1e-12)
print("VE and flow matching are multiples of the VP process at the same log-SNR.")

# %% [markdown]
# Here is what the coordinate means: three images, one draw of noise each, from almost pure noise to almost clean.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
levels = torch.linspace(-8, 8, 9, dtype=torch.float64)
fig, axes = plt.subplots(len(x), len(levels), figsize=(figures.WIDTH, 2.75))
for row, picture, noise in zip(axes, x, eps, strict=True):
    for ax, at in zip(row, levels, strict=True):
        noisy = process.diffuse(picture, noise, at)
        ax.imshow(figures.picture(noisy, reach=1.5), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
for ax, at in zip(axes[0], levels.tolist(), strict=True):
    ax.set_title(f"λ = {at:g}".replace("-", "−"))
run.figure(
    fig,
    "noisy_images",
    data={"x": x, "eps": eps, "logsnr": levels},
    caption=f"The forward process on three images of {pictures.name}, one draw of noise each; log-SNR in nats above. "
    "At the right the noise is invisible, at the left nothing can be told. The more pixels a picture has, the further "
    f"to the left it can still be recognised (notebook 05, section 5.5).{caution}",
)

# %% [markdown]
# ### Which SNR?
#
# Half of the confusion around schedules is one of names. "SNR" is $\alpha^2/\sigma^2$ here and in the paper, but some
# code means $\alpha/\sigma$. Logarithms are natural. DPM-Solver's $\lambda$ is $\log(\alpha/\sigma)$, half of ours;
# VDM's $\gamma$ is $-\lambda$. A factor of two in $\lambda$ moves every threshold: Min-SNR's cap at SNR $=5$ would sit
# at $\lambda = 2\log 5$ instead of $\log 5$. The same noise by all its names:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
names = pd.DataFrame(
    {
        "λ (nats)": levels,
        "SNR = α²/σ²": process.snr_from_logsnr(levels),
        "SNR (dB)": 10 * levels / math.log(10),
        "α/σ": torch.exp(levels / 2),
        "σ of EDM (VE)": process.sigma_ve_from_logsnr(levels),
        "ᾱ of DDPM": process.alphas_cumprod_from_logsnr(levels),
        "t of flow matching": process.flow_time_from_logsnr(levels),
    }
)
run.table(names, "names_of_noise", caption="One noise level by all its names.")
names.set_index("λ (nats)").round(5)

# %% [markdown]
# ## 1.2 A schedule is a distribution over log-SNR
#
# A schedule is a strictly decreasing map $\lambda = f(t)$ on $[0, 1]$ with $f(0)=\lambda_{\max}$ and
# $f(1)=\lambda_{\min}$. Training draws $t\sim U(0,1)$. Then $P(\Lambda > \lambda) = P(t < f^{-1}(\lambda)) =
# f^{-1}(\lambda)$, hence
#
# $$t(\lambda) = P(\Lambda > \lambda), \qquad p(\lambda) = -\frac{dt}{d\lambda} = -\frac{1}{f'(t)}. \tag{1.2}$$
#
# Time is a survival function, and $f$ is its inverse. Read like that, the cosine schedule *is* the hyperbolic secant
# distribution, EDM's training schedule a normal one, flow matching with uniform time a logistic one. Symbolically:

# %%
lam, mean = sp.symbols("lambda m", real=True)
std = sp.Symbol("s", positive=True)
survival = {
    "cosine": 2 / sp.pi * sp.atan(sp.exp(-lam / 2)),
    "flow matching, OT": 1 / (1 + sp.exp(lam / 2)),
    "normal (EDM training, logit-normal)": (1 - sp.erf((lam - mean) / (sp.sqrt(2) * std))) / 2,
}
stated_density = {
    "cosine": sp.sech(lam / 2) / (2 * sp.pi),
    "flow matching, OT": sp.sech(lam / 4) ** 2 / 8,
    "normal (EDM training, logit-normal)": sp.exp(-((lam - mean) ** 2) / (2 * std**2)) / (std * sp.sqrt(2 * sp.pi)),
}
for name, time in survival.items():
    remainder = sp.simplify((-sp.diff(time, lam) - stated_density[name]).rewrite(sp.exp))
    assert remainder == 0
    print(f"{name}: −dt/dλ − p(λ) = {remainder}")

# %% [markdown]
# All schedules of the literature are compared on one range, inside the support of each.

# %%
ends = {"logsnr_min": logsnr_min, "logsnr_max": logsnr_max}
family = {key: schedules.get(key, **ends) for key in schedules.TABLE}
family["cosine_shifted"] = schedules.Cosine(**ends, shift=math.log(64 / 256))
family = {key: family[key] for key in ("cosine", "cosine_shifted", *schedules.TABLE[1:])}
label = {key: figures.label(key) for key in schedules.TABLE} | {"cosine_shifted": "cosine, shifted"}
line = {key: figures.line(key) for key in schedules.TABLE}
line["cosine_shifted"] = {"color": figures.PURPLE, "linestyle": "--"}

# %% [markdown]
# Equation (1.2) for all of them: differentiate $f$ automatically and compare with the density that the library states
# on its own. The falsifier is a common slip: the density taken to be $-f'(t)$, its reciprocal.

# %% tags=["density"]
t = torch.linspace(0.01, 0.99, points, dtype=torch.float64, requires_grad=True)


def slope(schedule):
    """f′(t), by automatic differentiation."""
    return torch.autograd.grad(schedule.logsnr(t).sum(), t)[0]


stated = torch.stack([schedule.density(schedule.logsnr(t)) for schedule in family.values()]).detach()
derived = torch.stack([-1 / slope(schedule) for schedule in family.values()])
claim = run.claim("X01a")
claim.check(stated, derived, "p(λ) = −1/f′(t), 8 schedules")
claim.falsify(stated, 1 / derived, "p(λ) = −f′(t)")

# %% [markdown]
# ## 1.3 Figure 2: schedules and densities
#
# The paper's Figure 2 shows three of them: cosine, EDM's for training and EDM's for sampling.

# %%
unit = torch.linspace(0, 1, points, dtype=torch.float64)
curves = pd.concat(
    pd.DataFrame({"schedule": key, "t": unit, "f(t)": schedule.logsnr(unit), "λ": grid, "p(λ)": schedule.density(grid)})
    for key, schedule in family.items()
)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 2.9))
for key in ("cosine", "edm_training", "edm_sampling"):
    curve = curves[curves.schedule == key]
    left.plot(curve["t"], curve["f(t)"], **line[key], label=label[key])
    right.plot(curve["λ"], curve["p(λ)"], **line[key])
left.set(xlabel="time t", ylabel="log-SNR λ = f(t) (nats)", title="noise schedule", xlim=(0, 1))
right.set(ylabel="density p(λ) (1/nats)", title="what it draws", ylim=(0, None))
figures.logsnr_axis(right, logsnr_min, logsnr_max)
left.legend()
run.figure(
    fig,
    "fig2_schedules",
    data=curves,
    caption="Figure 2 of the paper. Left: noise schedules; where a curve is flat, time lingers. Right: the density of "
    "log-SNR that each draws. EDM trains around λ = 2.4 and rarely sees λ below −3; its sampling schedule spends steps "
    "at all levels, 4.5 times as many at the noisy end as at the clean one.",
)

# %% [markdown]
# And all of them, each with a histogram of $f(t)$ for $t\sim U(0,1)$ under its density: what (1.2) says, seen.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
uniform_time = torch.rand(samples, generator=generator, dtype=torch.float64)
fig, axes = plt.subplots(2, 4, figsize=(figures.WIDTH, 3.5), sharex=True, sharey=True)
for ax, (key, schedule) in zip(axes.flat, family.items(), strict=True):
    ax.hist(schedule.logsnr(uniform_time).numpy(), bins=40, density=True, color="0.83")
    ax.plot(grid, schedule.density(grid), **line[key])
    ax.set(title=label[key], xlim=(logsnr_min, logsnr_max))
fig.supxlabel(figures.LOGSNR_LABEL, fontsize=9)
fig.supylabel("density p(λ) (1/nats)", fontsize=9)
run.figure(
    fig,
    "all_schedules",
    data=curves,
    caption="Every schedule as a distribution over log-SNR, on one range. Grey: histogram of f(t) for uniform t. Line: "
    "the density as stated. The two agree, and the distributions differ a great deal: that they optimise the same "
    "thing, given the weighting, is the claim of notebook 03.",
)

# %% [markdown]
# ## 1.4 The schedule table
#
# Moments are taken over the whole support; the error of normalisation is measured on the common range, by
# Gauss–Legendre quadrature in $\lambda$ (which is quadrature in the time of a *uniform* schedule). Beyond
# $|\lambda| = 80$ none of the densities has any mass left in float64, so that stands for an unbounded support.


# %%
def moments(schedule):
    """∫p, mean and standard deviation of λ over the range of a schedule."""
    low, high = schedule.ends
    uniform = schedules.LinearLogSNR(low, high)
    time, weight = objectives.time_quadrature(uniform, panels=256)
    level = uniform.logsnr(time)
    mass = weight * (high - low) * schedule.density(level)
    total, first, second = mass.sum(), (mass * level).sum(), (mass * level**2).sum()
    return total.item(), (first / total).item(), (second / total - (first / total) ** 2).sqrt().item()


def whole(schedule):
    """The same schedule on all of its support, up to |λ| = 80."""
    low, high = schedule.support
    return replace(schedule, logsnr_min=max(low, -80.0), logsnr_max=min(high, 80.0))


# %%
formulas = {
    "cosine": ("−2 log tan(πt/2)", "sech(λ/2) / 2π"),
    "cosine_shifted": ("−2 log tan(πt/2) + 2s, s = log(64/256)", "sech(λ/2 − s) / 2π"),
    "edm_training": ("F⁻¹(1 − t; 2.4, 2.4²)", "N(λ; 2.4, 2.4²)"),
    "edm_sampling": ("−14 log(80^(1/7) + (1 − t)(0.002^(1/7) − 80^(1/7)))", "∝ exp(−λ/14)"),
    "flow_matching_ot": ("2 log((1 − t)/t)", "sech²(λ/4) / 8"),
    "linear_logsnr": ("λ_max + t (λ_min − λ_max)", "1 / (λ_max − λ_min)"),
    "linear_beta": ("−log(expm1(0.1 t + 9.95 t²))", "−dt/dλ"),
    "logit_normal": ("−2 logit(t′), logit(t′) ~ N(0, 1)", "N(λ; 0, 2²)"),
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
rows = []
for key, schedule in family.items():
    _, mean_all, std_all = moments(schedule if key == "linear_logsnr" else whole(schedule))
    total, mean_range, std_range = moments(schedule)
    rows.append(
        {
            "schedule": label[key],
            "f(t), whole support": formulas[key][0],
            "p(λ)": formulas[key][1],
            "support": "any range"
            if key == "linear_logsnr"
            else "[{:.3f}, {:.3f}]".format(*schedule.support).replace("inf", "∞"),
            "mean λ": round(mean_all, 9) + 0.0,  # no negative zero
            "std λ": std_all,
            "mean, cut": mean_range,
            "std, cut": std_range,
            "|∫p − 1|": abs(total - 1),
            "max |t(f(t)) − t|": (schedule.time(schedule.logsnr(t)) - t).abs().max().item(),
        }
    )
table = pd.DataFrame(rows)
run.table(
    table,
    "schedule_table",
    caption="Table of noise schedules, each as a distribution over log-SNR: formula, support, moments in nats over the "
    "whole support and cut to the common range, measured errors of normalisation and of the round trip.",
)
errors = ["|∫p − 1|", "max |t(f(t)) − t|"]
assert (table[errors] < 1e-9).all(axis=None)
table.drop(columns=errors).set_index("schedule").round(3)

# %% [markdown]
# The two columns of errors are left out of the display because their last digits depend on the machine; they are in the
# file of the table, and are asserted to be below $10^{-9}$. Where the moments have a closed form, they agree with it:

# %%
closed_form = {
    "cosine": (0, math.pi),
    "cosine_shifted": (2 * math.log(64 / 256), math.pi),
    "edm_training": (2.4, 2.4),
    "flow_matching_ot": (0, 2 * math.pi / math.sqrt(3)),
    "linear_logsnr": ((logsnr_min + logsnr_max) / 2, (logsnr_max - logsnr_min) / math.sqrt(12)),
    "logit_normal": (0, 2),
}
measured = table.set_index(table.index.map(dict(enumerate(family)))).loc[list(closed_form), ["mean λ", "std λ"]]
assert np.allclose(measured, list(closed_form.values()), atol=1e-8)
print("mean and standard deviation agree with the closed form:", ", ".join(closed_form))

# %% [markdown]
# ## 1.5 Cutting a schedule so that its ends hold exactly
#
# Most schedules run from $+\infty$ to $-\infty$ and have to be cut. Two ways are common in code and both change the
# process: *clamping* $\lambda$ piles a point mass on each end, and *shrinking time*, $t\in[\delta, 1-\delta]$, puts the
# ends wherever $f$ happens to be. The library cuts the *distribution*: with $S$ the survival function,
#
# $$t(\lambda) = \frac{S(\lambda) - S(\lambda_{\max})}{S(\lambda_{\min}) - S(\lambda_{\max})}, \tag{1.3}$$
#
# so that $f(0)=\lambda_{\max}$ and $f(1)=\lambda_{\min}$ exactly and the density integrates to one on the range.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
edm = family["edm_training"]
free = whole(edm)
both_ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
start, end = (schedule_end.item() for schedule_end in edm.logsnr(both_ends))
shrunk = free.logsnr(torch.tensor([1e-3, 1 - 1e-3], dtype=torch.float64)).tolist()
inside = (free.time(grid[:1]) - free.time(grid[-1:])).item()
truncation = pd.DataFrame(
    {
        "f(0)": [start, logsnr_max, shrunk[0]],
        "f(1)": [end, logsnr_min, shrunk[1]],
        "∫ p dλ inside": [moments(edm)[0], inside, 1.0],
    },
    index=pd.Index(["cut distribution (1.3)", "clamped λ", "t in [0.001, 0.999]"], name="EDM's training schedule"),
)
assert (start, end) == (logsnr_max, logsnr_min)
run.table(truncation, "truncation", caption="Three ways to make EDM's training schedule finite.")
truncation.round(6)

# %% [markdown]
# A range that reaches outside the support cannot be honoured, and is refused:

# %%
try:
    schedules.EDMSampling(logsnr_min=-15, logsnr_max=15)
except ValueError as error:
    print(error)

# %% [markdown]
# **A limit of floating point.** $t(f(t)) = t$ holds to machine precision, but $f(t(\lambda)) = \lambda$ is
# ill-conditioned: an error $\delta$ of $t$ becomes $\delta/p(\lambda)$ of $\lambda$, and $p$ is tiny in the tails of
# a normal distribution. This is why notebook 03 states schedule by schedule how exact its quadrature in $t$ is.

# %%
wide = schedules.EDMTraining(-15.0, 15.0)
tail = torch.linspace(-15, 15, 3001, dtype=torch.float64)[1:-1]
round_trip = (wide.logsnr(wide.time(tail)) - tail).abs()
rounding = torch.finfo(torch.float64).eps / wide.density(tail)
assert round_trip.max() > 1e-7
assert (round_trip <= 8 * rounding + 1e-13).all()
print("f(t(λ)) − λ stays within 8 rounding errors of t, divided by p(λ)")

# %% [markdown]
# ## 1.6 Erratum 1: the sign in EDM's training schedule
#
# EDM draws $\log\sigma_{VE}\sim N(P_{mean}, P_{std}^2) = N(-1.2, 1.2^2)$. Since $\lambda=-2\log\sigma_{VE}$, that is
# $\lambda\sim N(2.4, 2.4^2)$, and with $F^{-1}$ the normal quantile function
#
# | | |
# |---|---|
# | printed in the paper | $f(t) = -F^{-1}(t;\ 2.4,\ 2.4^2)$ |
# | correct | $f(t) = F^{-1}(1-t;\ 2.4,\ 2.4^2) = -F^{-1}(t;\ -2.4,\ 2.4^2)$ |
#
# The printed form has mean $-2.4$: it trains on noise where EDM trains on images with some noise. Three checks: the
# formula against $-2\log\sigma_{VE}$ at the same quantile; the library; and a Kolmogorov–Smirnov test on a sample drawn
# as EDM's training code draws it. The falsifier is the printed formula.

# %% tags=["erratum-1"]
u = torch.linspace(0.001, 0.999, points, dtype=torch.float64)
quantile = torch.special.ndtri(u)
edm_itself = process.logsnr_from_sigma_ve(torch.exp(-1.2 + 1.2 * quantile))
correct = 2.4 + 2.4 * torch.special.ndtri(1 - u)
printed = -(2.4 + 2.4 * quantile)

sigma_drawn = torch.exp(-1.2 + 1.2 * torch.randn(samples, generator=generator, dtype=torch.float64))
drawn = process.logsnr_from_sigma_ve(sigma_drawn).numpy()
normal = {sign: stats.kstest(drawn, stats.norm(sign * 2.4, 2.4).cdf).statistic * math.sqrt(samples) for sign in (1, -1)}

claim = run.claim("E1")
claim.check(correct, edm_itself, "F⁻¹(1−t; 2.4, 2.4²) is −2 log σ of EDM", scale=2.4)
claim.check(free.logsnr(u), edm_itself, "so is the library's schedule", scale=2.4)
claim.check_below(normal[1], 1.95, "Kolmogorov–Smirnov √n D of a sample, 0.1 % level")
claim.falsify(printed, edm_itself, "as printed, −F⁻¹(t; 2.4, 2.4²)", scale=2.4)
claim.falsify_below(normal[-1], 1.95, "the sample against the printed formula")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
level = torch.linspace(-11, 11, points, dtype=torch.float64)
density = {
    "correct": stats.norm(2.4, 2.4).pdf(level),
    "as printed": stats.norm(-2.4, 2.4).pdf(level),
}
fig, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 2.9))
left.plot(u, correct, color=figures.BLUE, label="correct")
left.plot(u, printed, color=figures.VERMILION, linestyle="--", label="as printed")
left.set(xlabel="time t", ylabel="log-SNR λ = f(t) (nats)", xlim=(0, 1), title="schedule")
left.legend()
right.hist(drawn, bins=60, density=True, color="0.83")
right.plot(level, density["correct"], color=figures.BLUE)
right.plot(level, density["as printed"], color=figures.VERMILION, linestyle="--")
right.set(ylabel="density p(λ) (1/nats)", title="grey: levels drawn by EDM's training", ylim=(0, 0.2))
figures.logsnr_axis(right, -11, 11)
run.figure(
    fig,
    "erratum_1",
    data=pd.DataFrame({"t": u, "correct": correct, "as printed": printed, "λ": level}).assign(
        **{f"p(λ), {key}": value for key, value in density.items()}
    ),
    caption="Erratum 1. The schedule as printed (dashed) is the correct one moved down by 4.8 nats. The histogram is "
    "what EDM really draws, −2 log σ with log σ ~ N(−1.2, 1.2²).",
)

# %% [markdown]
# ## 1.7 Erratum 3: the diffusion coefficient of VE
#
# In continuous time the process is $dz = a(t)\,z\,dt + g(t)\,dW$, with $a = d\log\alpha/dt$ and
# $g^2 = d\sigma^2/dt - 2a\sigma^2$. Dividing by $\sigma^2$, both terms are logarithmic derivatives and make one, for
# *every* scaling:
#
# $$g^2 = \sigma^2\left(\frac{d\log\sigma^2}{dt} - \frac{d\log\alpha^2}{dt}\right)
# = -\sigma^2\,\frac{d\lambda}{dt}. \tag{1.4}$$
#
# VE has $\sigma^2=e^{-\lambda}$, hence $g^2 = \frac{d}{dt}e^{-\lambda}$. As we have it, the paper prints
# $\frac{d}{dt}\log(1+e^{-\lambda})$, which is what (1.4) gives for VP, its $\beta(t)$. Symbolically, for an arbitrary
# schedule $\lambda(t)$:

# %%
time = sp.Symbol("t", real=True)
f = sp.Function("lambda")(time)
alpha_of = {"VP": 1 / sp.sqrt(1 + sp.exp(-f)), "VE": sp.Integer(1)}
sigma_of = {"VP": 1 / sp.sqrt(1 + sp.exp(f)), "VE": sp.exp(-f / 2)}
candidates = {"d/dt exp(−λ)": sp.diff(sp.exp(-f), time), "d/dt log(1 + exp(−λ))": sp.diff(sp.log(1 + sp.exp(-f)), time)}
for scaling in ("VP", "VE"):
    drift = sp.diff(sp.log(alpha_of[scaling]), time)
    g_squared = sp.diff(sigma_of[scaling] ** 2, time) - 2 * drift * sigma_of[scaling] ** 2
    for name, candidate in candidates.items():
        print(f"{scaling}: g² = {name:22}", sp.simplify(g_squared - candidate) == 0)

# %% [markdown]
# Now by simulation: run $dz = g\,dW$ from a point mass, with either coefficient, and look at the variance. The
# derivatives are taken automatically, at the middle of steps of equal size in $\lambda$. If $g$ is right, the variance
# arrives at $\sigma_{VE}^2=e^{-\lambda}$ at every level on the way.

# %%
cosine = family["cosine"]
steps = torch.linspace(logsnr_max, logsnr_min, points, dtype=torch.float64)
step_time = cosine.time(steps)
middle = ((step_time[1:] + step_time[:-1]) / 2).requires_grad_()
growth = {
    "correct": torch.exp(-cosine.logsnr(middle)),
    "as printed": torch.nn.functional.softplus(-cosine.logsnr(middle)),
}
g_squared = {key: torch.autograd.grad(value.sum(), middle)[0] for key, value in growth.items()}


def simulate(coefficient):
    """Variance of z over ``samples`` paths of dz = g dW after each step, Euler–Maruyama, from variance e^(−λ_max)."""
    z = math.exp(-logsnr_max / 2) * torch.randn(samples, generator=generator, dtype=torch.float64)
    variance = []
    for amount in (coefficient * step_time.diff()).sqrt():
        z = z + amount * torch.randn(samples, generator=generator, dtype=torch.float64)
        variance.append(z.var())
    return torch.stack(variance)


variance = {key: simulate(coefficient) for key, coefficient in g_squared.items()}

# %% tags=["erratum-3"]
sigma_squared = torch.exp(-cosine.logsnr(middle)).detach()
by_equation = sigma_squared * -torch.autograd.grad(cosine.logsnr(middle).sum(), middle)[0]
target = torch.exp(-steps[1:])
standard_error = target * math.sqrt(2 / samples)
claim = run.claim("E3")
claim.check(g_squared["correct"], by_equation, "d/dt exp(−λ) = −σ² dλ/dt")
claim.check_below((variance["correct"] - target).abs() / standard_error, 4, "simulated variance, in standard errors")
claim.falsify(g_squared["as printed"], by_equation, "d/dt log(1 + exp(−λ)) = −σ² dλ/dt")
claim.falsify_below((variance["as printed"] - target).abs() / standard_error, 4, "simulated variance, as printed")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(0.75 * figures.WIDTH, 3))
shown = slice(10, None, 26)
ax.plot(steps, torch.exp(-steps), color="0.6", label="what VE means: $e^{-λ}$")
ax.plot(steps[1:][shown], variance["correct"][shown], "o", color=figures.BLUE, label="simulated, $g^2 = d/dt\\,e^{-λ}$")
ax.plot(
    steps[1:][shown],
    variance["as printed"][shown],
    "x",
    color=figures.VERMILION,
    label="simulated, as printed, $d/dt\\,\\log(1+e^{-λ})$",
)
ax.set(yscale="log", ylabel="variance of the noise in z")
figures.logsnr_axis(ax, logsnr_min, logsnr_max)
ax.legend()
run.figure(
    fig,
    "erratum_3",
    data=pd.DataFrame({"λ": steps[1:], "exp(−λ)": target, **variance}),
    caption="Erratum 3. Variance of simulated VE paths that start almost clean (right) and end noisy (left). With the "
    "correct coefficient it is exp(−λ); with the printed one it stops growing like the noise and ends far below.",
)

# %% [markdown]
# ## 1.8 From your code to λ
#
# To place a training run in these pictures, turn its levels into $\lambda$ first. DDPM's thousand $\beta_i$, for
# instance, are the continuous linear-β schedule up to a few steps:

# %%
betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
discrete = process.logsnr_from_alphas_cumprod(torch.cumprod(1 - betas, 0))
i = torch.arange(1, 1001, dtype=torch.float64)
continuous = schedules.LinearBeta(logsnr_max=12.0)
step_at = continuous.time(discrete.clamp(*continuous.ends)) * 1000
assert ((step_at - i).abs()[10:] < 6).all()
print("DDPM's step i is time i/1000 of the continuous schedule, within 6 steps")
print(f"range of log-SNR of DDPM: [{discrete.min().item():.2f}, {discrete.max().item():.2f}]")

# %% [markdown]
# ## 1.9 What would falsify this, and what it does not show
#
# * A density that is not $-dt/d\lambda$ fails in 1.2; the reciprocal does. The misprints fail in 1.6 and 1.7: in closed
#   form, and on a sample.
# * Nothing here says which schedule is *good*. Given the weighting, none of them changes the objective (notebook 03);
#   they change the variance of its estimate (03, 06), hence what a training of finite length makes of it (10), and,
#   through the implied weighting, what published losses optimise (02).
# * The ends of the range are part of the objective, not of the schedule. Two papers with "the cosine schedule" and
#   different ends minimise different things.

# %% [markdown]
# ## The evidence
#
# Every comparison of this notebook. A number under "value" keeps the limit; one under "falsifier's value" is the same
# comparison on the slip named there, and must not.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
evidence = run.evidence()
assert len(evidence)
evidence
