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
# # Appendix: the ledger
#
# Every claim of the paper, every erratum and every check of our own, with what came of it. The verdicts are read from
# what the other notebooks recorded when they ran; nothing is decided here.
#
# How to read it. A claim is only worth what its check could have found, so each check comes with a *falsifier*: the
# same comparison on a broken assumption, which must fail. Two factors say how clear the outcome was. The **margin** is
# limit over value for the tightest check: at ×1 it just held, at ×1000 the deviation was a thousandth of what was
# allowed. A falsifier **misses** by value over limit: at ×1 the broken version was only just caught. A dash means yes
# or no, with nothing to measure. Statistical checks are held to 4 standard errors, so their margins are small numbers
# by nature, and the least of many even more so.

# %% tags=["parameters"]
profile: str = "tiny"

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from paperlib import companion
from paperlib.companion import figures, paths, profiles, workflow
from paperlib.companion.claims import Verdict, factor

run = companion.start("14_claims", profile)
settings = profiles.load(profile)
pd.set_option("display.max_colwidth", None)
pd.set_option("display.max_rows", None)

# %% [markdown]
# Results of all other notebooks of the profile are needed; a missing one says how to make it.

# %%
for name in settings.section("14_claims").upstream:
    run.upstream(name)
ledger = pd.DataFrame(workflow.ledger(settings)).set_index("id").query("notebook != '14_claims'")
ours = ledger.index.str.startswith("X")
print(f"{len(ledger)} entries: {(~ours).sum()} claims and errata of the paper, {ours.sum()} checks of our own")

# %% [markdown]
# ## 14.1 The paper's claims

# %%
shown = ["statement", "place", "verdict", "notebook"]
run.table(ledger[[*shown, "margin", "missed", "why", "falsifier"]], "ledger", caption=f"The ledger at {profile}.")
ledger.loc[~ours, shown]

# %% [markdown]
# How clear each outcome was. These numbers differ a little from run to run and machine to machine; the verdicts must
# not.

# %% tags=["nbval-ignore-output"]
clarity = ledger[["verdict", "margin", "tightest", "missed"]].copy()
for column in ("margin", "missed"):
    assert not (clarity[column] < 1).any(), "a margin below one is a failure, a miss below one a vacuous check"
    clarity[column] = [factor(None if np.isnan(value) else value) for value in clarity[column].astype(float)]
clarity[~ours].fillna("–")

# %% [markdown]
# ## 14.2 Checks of our own

# %%
ledger.loc[ours, shown]

# %% tags=["nbval-ignore-output"]
assert len(clarity[ours])
clarity[ours].fillna("–")

# %% [markdown]
# Margins against misses, one dot an entry. A good check stands far to the right *and* high up: it had room to spare,
# and its broken version had none. Exact identities, held to rounding errors, do; statistical ones live near the corner,
# because a standard error is all the precision they have.

# %% tags=["nbval-ignore-output"]
both = ledger.dropna(subset=["margin", "missed"])
fig, ax = plt.subplots(figsize=(0.75 * figures.WIDTH, 3.4))
for kind, shade in (("identity", figures.BLUE), ("statistic", figures.VERMILION), ("check", figures.GREY)):
    part = both[both.kind == kind]
    ax.loglog(part.margin, part.missed, "o", color=shade, label=kind, markersize=5)
rest = both[~both.kind.isin(["identity", "statistic", "check"])]
ax.loglog(rest.margin, rest.missed, "s", color=figures.GREEN, label="other", markersize=5)
ax.axvline(1, color="black", linewidth=0.8)
ax.axhline(1, color="black", linewidth=0.8)
ax.set(xlabel="margin of the tightest check (limit / value)", ylabel="weakest falsifier misses by (value / limit)")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
run.figure(
    fig,
    "clarity",
    data=both[["kind", "margin", "missed"]].rename_axis("id").reset_index(),
    caption="How clear the outcomes are. Right of the vertical line the check held, above the horizontal one its "
    "falsifier failed. Entries without a scale (yes or no) are not drawn.",
)
assert (both.margin >= 1).all()
assert (both.missed > 1).all()

# %% [markdown]
# ## 14.3 What an experiment decided, and what was not run

# %%
open_claims = ledger[~ledger.verdict.isin([Verdict.PASS, Verdict.FAIL, Verdict.VACUOUS])]
for identifier, entry in open_claims.iterrows():
    reasons = "; ".join(entry.remarks.values()) or f"{profile} has no result of {entry.notebook}"
    print(f"{identifier} {entry.verdict}: {reasons}")

# %% [markdown]
# ## 14.4 Coverage of the paper's equations, tables and figures
#
# Which places of the paper a function of the library and a cell of a notebook compute, collected from docstrings,
# claims and captions (`docs/equations.md` has the whole index). The places are those that public sources quote or that
# were derived here; the paper may well have more.

# %%
places = pd.read_csv(paths.root() / "docs" / "equations.csv").query("kind != 'section'")
count = places[["function", "cell"]].sum()
both = (places.function & places.cell).sum()
print(f"{len(places)} places: {count.function} have a function, {count.cell} a cell, {both} both")
summary = places.groupby("kind").agg(places=("kind", "size"), function=("function", "sum"), cell=("cell", "sum"))
run.table(summary, "coverage", caption="Places of the paper by kind, and how many have a function and a cell.")
summary

# %%
print("no cell computes:", "; ".join(places.place[~places.cell]) or "(none)")

# %% [markdown]
# ## 14.5 The ledger, checked
#
# One check of the ledger itself: nothing in it has failed, and every entry that passed had a falsifier. The falsifier
# of *that* puts a vacuous entry in.

# %% tags=["ledger"]
claim = run.claim("X14a")
passed = ledger[ledger.verdict == Verdict.PASS]
bad = [Verdict.FAIL, Verdict.VACUOUS]
claim.check_true(not ledger.verdict.isin(bad).any(), "no entry failed, none is vacuous")
claim.check_true(passed.falsifiers.map(bool).all(), "every entry that passed had a falsifier, which failed")
claim.falsify_true(not pd.Series([*ledger.verdict, "VACUOUS"]).isin(bad).any(), "the same with a vacuous entry put in")

# %% [markdown]
# ## 14.6 What this does not show
#
# * That a claim passes means that its check, at its tolerance, found nothing against it, and that the check could have.
#   It is no proof; the proofs are in the text of the notebooks.
# * Checks were written by people who knew the answer. The falsifiers guard against empty checks, not against claims
#   that nobody thought of testing.
# * The experiments (C11 to C14) are about networks at a scale. The verdict of one profile says nothing about another.
