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
# # 7 Training under different weightings
#
# **Question.** Every diffusion loss is a weighted loss (notebook 02), and with a monotone weighting it is an ELBO of
# noisy data. The paper then asks an empirical question: does it matter *which* weighting a network is trained with, and
# do the monotone ones keep up with the best of the others (Section 5)?
#
# This notebook trains the same network under several weightings, with every seed of the profile, with nothing else
# different, and looks at *where* the networks differ: at which noise levels each weighting bought accuracy, and at
# which it paid. Each network is asked how it does under every other loss too. Notebook 08 looks at what all this does
# to samples, notebook 09 at likelihood, and notebook 10 repeats it with more weightings, seeds and schedules.
#
# **What a small scale can say.** Small networks on small pictures carry statements about *how the error is distributed
# over noise levels*. They do not carry a ranking of weightings by sample quality on ImageNet, and none is made. Nor
# does a profile with one training seed carry a ranking of anything: a difference between two single runs may be one of
# their seeds. What the profile at hand has is printed first.

# %% tags=["parameters"]
profile: str = "tiny"
threads: int = 2
levels: int = 33
draws: int = 4
test_images: int = 297

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import over_seeds
import pandas as pd
import torch
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from paperlib import companion
from paperlib.companion import experiments, figures, profiles
from paperlib.engine import evaluation

run = companion.start("07_train", profile)
settings = profiles.load(profile)
torch.set_num_threads(threads)
runs = list(experiments.grid(settings))
labels = list(settings.training.weightings)
repeats = experiments.repeats(settings)
single = f" ({repeats})" if len(settings.training.seeds) == 1 else ""

# %% tags=["scale"]
plan, images = runs[0].config, runs[0].data("train")
epochs = plan.steps * plan.batch_size / len(images)
print(
    f"{images.name}: {len(images):,} images of {images.image_shape}, {images.levels} levels. {images.caution}".strip()
)
print(f"{len(labels)} weightings, seeds {settings.training.seeds}, {plan.steps:,} steps or {epochs:.1f} epochs a run")
print(f"repeats: {repeats}")

# %% [markdown]
# ## 7.1 What is held equal
#
# Two networks can only be compared under two losses if everything else is the same: data and their split,
# initialisation, number of steps and images, optimiser, schedule, and, as far as chance goes, the very batches, noise
# and noise levels. All of these are functions of the seed here, so runs of one seed are *paired* and their differences
# are free of most of the noise between seeds.
#
# The data are split once and for all by a hash of the image's number. A test image that also stood in the training
# split would make every number below meaningless, so that is checked first; the falsifier puts one there.

# %% tags=["split"]
train, test = runs[0].data("train"), runs[0].data("test")


def shared(images, others):
    """How many of ``images`` also stand in ``others``, pixel by pixel."""
    known = {picture.numpy().tobytes() for picture in others}
    return sum(picture.numpy().tobytes() in known for picture in images)


leaking = torch.cat([test.images, train.images[:1]])
claim = run.claim("X07a")
claim.check_below(shared(test.images, train.images), 0, "test images that are training images too")
claim.falsify_below(shared(leaking, train.images), 0, "test images that are training images too")
print(f"{train.name}: {len(train)} images, SHA-256 {train.sha256[:12]}")
print(f"{test.name}: {len(test)} images, SHA-256 {test.sha256[:12]}")

# %% tags=["budget"]
budgets = {(one.config.steps, one.config.batch_size, one.network().config["name"]) for one in runs}
starts = {one.seed: set() for one in runs}


def weights_of(network):
    """All weights as bytes: equal for equal networks alone."""
    return b"".join(weight.numpy().tobytes() for weight in network.state_dict().values())


for one in runs:
    starts[one.seed].add(weights_of(one.network()))

swapped = runs[0].network()
with torch.no_grad():
    last = max(swapped.parameters(), key=lambda weight: weight.numel())
    last.copy_(last.flip(0))  # the same numbers, in other places

claim = run.claim("X07b")
claim.check_true(len(budgets) == 1, "one budget and one architecture for all runs")
claim.check_true(all(len(found) == 1 for found in starts.values()), "one initialisation a seed, whatever the weighting")
claim.check_true(len(set.union(*starts.values())) == len(starts), "another initialisation for every seed")
claim.falsify_true(weights_of(swapped) in starts[runs[0].seed], "the rows of one weight in reverse order")

# %% [markdown]
# ## 7.2 What each weighting asks for
#
# The left panel shows how each weighting divides its attention: $w(\lambda)/\int w$, since a weighting counts only up
# to a constant. On the right is what the optimiser sees. Levels are drawn from one schedule, $\lambda\sim p$, and the
# error of an example counts $w/p$. Where that ratio is large, single examples dominate a batch; the estimate of the
# loss is still unbiased (notebook 03), but it is noisy.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
schedule = runs[0].loss.schedule
low, high = schedule.ends
fine = torch.linspace(low, high, 401, dtype=torch.float64)
attention = {
    label: torch.exp(w.log(fine)) / torch.trapezoid(torch.exp(w.log(fine)), fine)
    for label in labels
    for w in [experiments.weighting(settings, label)]
}
asked = pd.DataFrame({"λ (nats)": fine, "p(λ)": schedule.density(fine), **attention})

# %% jupyter={"source_hidden": true} tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 2.9))
for label in labels:
    left.plot(fine, asked[label], label=figures.label(label), **figures.line(label))
    right.semilogy(fine, asked[label] / asked["p(λ)"], **figures.line(label))
left.set(ylabel="w / ∫w dλ  (1/nats)", title="attention of the loss", ylim=(0, None))
right.set(ylabel="w/p over its mean", title="how much a draw at λ counts", ylim=(1e-3, 1e3))
for ax in (left, right):
    figures.logsnr_axis(ax, low, high)
fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(labels))
run.figure(
    fig,
    "attention",
    data=asked,
    caption="What each weighting asks for. Left: its share of attention per nat of log-SNR. The ELBO asks for all "
    "levels alike; the others turn away from high log-SNR, where only the last bits of the pixels are left to "
    "predict. Right: the importance w/p of a draw, over its mean, under the schedule that all runs share.",
)

# %% [markdown]
# ## 7.3 Training
#
# What is finished is not trained again: a run is known by a hash of its network, loss, data and budget. The first seed
# of every weighting comes first, then the second, so an interrupted grid is a balanced one.

# %% tags=["nbval-ignore-output"]
results = experiments.train_all(run, runs, processes=threads)
assert len(results) == len(labels) * len(settings.training.seeds)
assert all(np.isfinite(line["loss"]) for result in results.values() for line in result.history)

# %% [markdown]
# Losses under different weightings have different units, so they cannot be compared with each other. Each can be
# compared with the loss that *its own* weighting gives a network that knows nothing: one that predicts $\hat\epsilon=0$
# has an error of $D$ (the number of pixels) at every level, hence the loss $\tfrac12 D\int w\,d\lambda$.
#
# How far from converged are the runs? No run can tell how low its loss would come, but its log tells how fast it was
# still falling: the number below is the relative decrease of the smoothed loss over the last quarter of training.

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-ignore-output"]
pixels = train.images[0].numel()
curves = pd.concat(
    pd.DataFrame(results[one.name].history).assign(
        weighting=one.weighting,
        seed=one.seed,
        relative=lambda table, one=one: (
            table.loss / (0.5 * pixels * torch.trapezoid(torch.exp(one.loss.weighting.log(fine)), fine).item())
        ),
    )
    for one in runs
)
falling = pd.Series(
    {
        label: np.mean([over_seeds.still_falling(results[one.name].history) for one in runs if one.weighting == label])
        for label in labels
    }
)
fig, ax = plt.subplots(figsize=(figures.WIDTH, 2.8))
for label in labels:
    pivot = curves[curves.weighting == label].pivot(index="step", columns="seed", values="relative")
    ax.fill_between(pivot.index, pivot.min(axis=1), pivot.max(axis=1), color=figures.colour(label), alpha=0.3, lw=0)
    ax.plot(pivot.index, pivot.mean(axis=1), label=figures.label(label), lw=1, color=figures.colour(label))
ax.set(xlabel="optimiser step", ylabel="loss / loss of ε̂ = 0", yscale="log")
ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
ax.yaxis.set_major_formatter("{x:g}")
ax.yaxis.set_minor_locator(NullLocator())
ax.legend(ncols=len(labels), loc="lower center", bbox_to_anchor=(0.5, 1))
run.figure(
    fig,
    "training_curves",
    data=curves,
    caption="Training loss relative to that of a network that predicts no noise at all, one colour a weighting; bands "
    f"span the seeds {settings.training.seeds}. {plan.steps:,} steps of {plan.batch_size} images are "
    f"{epochs:.1f} epochs of {train.name}. Curves of different colours have different units and may not be ranked: "
    "each says only how far its own loss has come. Over the last quarter of training the smoothed loss still fell by "
    + ", ".join(f"{falling[label]:.1%} ({figures.label(label)})" for label in labels)
    + f". {train.caution}".rstrip(),
)
assert (curves.relative > 0).all()
falling.rename("fall over the last quarter").to_frame().style.format("{:.1%}")

# %% [markdown]
# ## 7.4 Where the networks differ
#
# One quantity *can* be compared across weightings: the error of $\hat\epsilon$ at a given level,
#
# $$e(\lambda) = E_{x,\epsilon}\,\|\hat\epsilon(z_\lambda;\lambda)-\epsilon\|^2, \tag{7.1}$$
#
# on test images, with the same noise for every network. The weighted loss is $\tfrac12\int w\,e\,d\lambda$, so $e$ is
# what the weightings trade with.

# %% tags=["nbval-ignore-output"]
at = torch.linspace(low, high, levels)
measured_on = experiments.some(test, test_images)
errors = pd.concat(
    pd.DataFrame(
        {
            "weighting": one.weighting,
            "seed": one.seed,
            "λ (nats)": at,
            "error": evaluation.errors_by_level(
                results[one.name].network, one.prediction, measured_on, at, draws=draws, seed=0
            ),
        }
    )
    for one in runs
)
run.table(errors, "errors_by_level", caption=f"E‖ε̂ − ε‖² of every run by level, {len(measured_on)} test images.")
assert np.isfinite(errors.error).all()
assert (errors.error > 0).all()

# %% [markdown]
# Seen on its own, every network's curve looks the same: at low log-SNR everything about $\epsilon$ is known from $z$,
# at high log-SNR hardly anything. So the picture shows each curve divided by the geometric mean over all weightings of
# the same seed.

# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-ignore-output"]
errors["log"] = np.log(errors.error)
errors["relative"] = np.exp(errors.log - errors.groupby(["seed", "λ (nats)"]).log.transform("mean"))
summary = errors.groupby(["weighting", "λ (nats)"]).relative.agg(["mean", "min", "max"]).reset_index()

fig, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.1), width_ratios=[2, 3])
for label in labels:
    curve = errors[errors.weighting == label].groupby("λ (nats)").error.mean() / pixels
    left.plot(curve.index, curve, **figures.line(label))
    band = summary[summary.weighting == label]
    right.fill_between(band["λ (nats)"], band["min"], band["max"], color=figures.colour(label), alpha=0.2, lw=0)
    right.plot(band["λ (nats)"], band["mean"], label=figures.label(label), **figures.line(label))
left.set(ylabel="error of ε̂ per pixel", title="test error", ylim=(0, None))
right.set(ylabel="error over mean of weightings", title="the same, compared", yscale="log")
right.axhline(1, color="0.5", lw=0.8)
right.yaxis.set_major_locator(FixedLocator([0.2, 0.5, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10]))
right.yaxis.set_major_formatter("{x:g}")
right.yaxis.set_minor_locator(NullLocator())
for ax in (left, right):
    figures.logsnr_axis(ax, low, high)
fig.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=len(labels))
told_apart = "; the curves can hardly be told apart, but for the ELBO's" if "elbo" in labels else ""
compared = (
    f"Where weightings differ. Left: error of ε̂ on {len(measured_on)} test images by noise level{told_apart}. Right: "
    f"each divided by the mean over weightings; the band spans the seeds {settings.training.seeds}{single}. Below one "
    "is better than average. Compare with the attention of each weighting in the first figure."
)
if len(labels) == 1:
    right.remove()
    compared = f"Error of ε̂ on {len(measured_on)} test images by noise level{single}."
run.figure(fig, "error_by_level", data=summary, caption=f"{compared} {test.caution}".strip())
assert summary["mean"].gt(0).all()

# %% [markdown]
# Is each network the best *under its own loss*? If training had reached the optimum of each objective, it would have to
# be: nothing else can be lower there. Here is the matrix. Rows are losses, columns are networks, each entry the test
# loss $\tfrac12\int w\,e\,d\lambda$ relative to the network that was trained with that very loss (mean over seeds,
# paired). An entry *below one* off the diagonal says that another loss taught this loss's own business better: then it
# was not the optimum of the objective that decided but how far a short training came, for which a schedule may do more
# (Appendix F of the paper) than another weighting, or what was learned by heart.

# %% tags=["nbval-ignore-output"]
table = errors.pivot(index=["weighting", "seed"], columns="λ (nats)", values="error")


def test_loss(label):
    """½ ∫ w e dλ for every network, by the trapezoidal rule on the measured levels."""
    w = torch.exp(experiments.weighting(settings, label).log(at.double()))
    return 0.5 * pd.Series(np.trapezoid(table * w.numpy(), at, axis=1), index=table.index)


losses = pd.DataFrame({label: test_loss(label) for label in labels})
own = pd.DataFrame({label: losses[label].xs(label, level="weighting") for label in labels})
relative = (losses / own.reindex(losses.index, level="seed")).groupby("weighting").mean().T.loc[labels, labels]
relative.index.name = "loss"
run.table(
    relative.round(4),
    "own_loss",
    caption="Test loss of each network (column) under each loss (row), over that of the network trained with it; "
    f"mean over seeds {settings.training.seeds}{single}, {len(measured_on)} test images × {draws} noise draws × "
    f"{levels} levels. {test.caution}".strip(),
)
assert np.allclose(np.diag(relative), 1)
beaten = {label: relative.columns[relative.loc[label] < 0.99].tolist() for label in labels}
for label, better in beaten.items():
    print(
        f"loss {label}: "
        + (f"beaten by the networks trained with {', '.join(better)}" if better else "its own network is best")
    )
relative.style.format("{:.3f}").background_gradient(cmap="RdBu_r", vmin=0.9, vmax=1.1)

# %% [markdown]
# And one statement that must hold on any machine: training helped, under the network's own loss and on images that it
# has not seen. The threshold is 0.8 of the untrained network's loss; the worst run, of the ELBO, is not far below. The
# falsifier is a slip that needs a trained network: weights averaged with a decay made for runs much longer than this
# one, so that at the end 92 % of the average is still the initialisation.

# %% tags=["training-helped"]
blank = runs[0].network().eval()
untrained = evaluation.errors_by_level(blank, runs[0].prediction, measured_on, at, draws=draws, seed=0)


def loss_of(errors_at, one):
    """½ ∫ w e dλ of one curve."""
    return 0.5 * torch.trapezoid(torch.exp(one.loss.weighting.log(at)) * errors_at, at).item()


decay = 1 - 0.08 / plan.steps
late = decay**plan.steps
averaged = runs[0].network().eval()
with torch.no_grad():
    for old, new in zip(averaged.parameters(), results[runs[0].name].network.parameters(), strict=True):
        old.lerp_(new, 1 - late)
lagging = evaluation.errors_by_level(averaged, runs[0].prediction, measured_on, at, draws=draws, seed=0)

claim = run.claim("X07c")
claim.check_below(
    [
        loss_of(torch.tensor(table.loc[(one.weighting, one.seed)].to_numpy()), one) / loss_of(untrained, one)
        for one in runs
    ],
    0.8,
    "test loss over that of the untrained network, every run",
)
claim.falsify_below(
    loss_of(lagging, runs[0]) / loss_of(untrained, runs[0]),
    0.8,
    f"weights averaged with decay {decay:g} from the start",
)

# %% [markdown]
# ## 7.5 The networks whose samples are shown
#
# Notebook 08 shows samples. A profile with a section `pictures` trains one larger network for that, a small U-Net in
# the manner of the paper's 64×64 experiments, with a budget of its own; its grid is of networks that train in seconds.
# A profile without that section has networks of pictures already: the first seed of every weighting is shown, and
# nothing is trained here that was not trained above.

# %% tags=["nbval-ignore-output"]
shown = {one.name: experiments.train_once(run, one) for one in experiments.shown(settings)}
assert all(result.history[-1]["loss"] < result.history[0]["loss"] for result in shown.values())

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
overview = pd.DataFrame(
    {
        "run": name,
        "network": result.card["network"]["name"],
        "parameters": result.card["parameters"],
        "steps": result.card["training"]["steps"],
        "images a step": result.card["training"]["batch_size"],
        "epochs": result.card["training"]["steps"] * result.card["training"]["batch_size"] / len(train),
        "final training loss (nats)": result.card["final_loss"],
        "fall over the last quarter (%)": 100 * over_seeds.still_falling(result.history),
        "seconds": result.seconds,
    }
    for name, result in {**results, **shown}.items()
)
run.table(
    overview,
    "runs",
    caption=f"Every training run of the profile {profile}; seconds are those of the run's card. The fall is that of "
    "the smoothed loss over the last quarter of training, near zero for a run that has converged. "
    f"{train.caution}".strip(),
)
assert overview.seconds.gt(0).all()
overview.style.format(precision=1).hide()

# %% [markdown]
# ## 7.6 What would falsify this
#
# * If the matrix of 7.4 had no structure at all, the weighting would not reach the gradient. Entries below one off the
#   diagonal do not contradict the theory, which speaks of optima; they show how far these short runs are from theirs.
# * If the curves of 7.4 differed beyond the bands of the seeds where two weightings agree up to a constant, the
#   comparison would not be fair.
# * An answer by sample quality needs samples: notebook 08.
#
# The theorem does not say that monotone weightings are better. It says what they are: likelihoods of noisy data. With
# the published counter-example in mind (the logit-normal weighting of SD3, not monotone, came out ahead among 61
# variants), the comparison stays an empirical one.

# %% [markdown]
# ## The evidence
#
# Every comparison of this notebook. A number under "value" keeps the limit; one under "falsifier's value" is the same
# comparison on the slip named there, and must not.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
evidence = run.evidence()
assert len(evidence)
evidence
