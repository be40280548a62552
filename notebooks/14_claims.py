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

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import json
import math

import numpy as np
import pandas as pd

from paperlib import companion
from paperlib.companion import paths, profiles, workflow
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
ledger["rests on"] = [
    ", ".join([*entry.requires, *(f"{one} FELL" for one in entry.unsupported)]) for entry in ledger.itertuples()
]
print(f"{len(ledger)} entries: {(~ours).sum()} claims and errata of the paper, {ours.sum()} checks of our own")

# %% [markdown]
# ## 14.1 The paper's claims

# %% tags=["hide-input"] jupyter={"source_hidden": true}
shown = ["statement", "place", "verdict", "rests on", "notebook"]
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

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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
# One check of the ledger itself. The verdicts are not believed: the outcome of every check and falsifier is counted
# again from its recorded number and limit, and an entry that passed must have checks that all hold and falsifiers of
# which none does. Falsifiers: the same count after one falsifier of each entry was moved among its checks, and after
# its falsifiers were taken away. Not one entry may come through.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
records = [
    json.loads(path.read_text(encoding="utf-8"))
    for name in settings.section("14_claims").upstream
    for path in sorted((run.upstream(name) / "claims").glob("*.json"))
]
passed = [record for record in records if record["verdict"] == Verdict.PASS]


def holds(outcome):
    """Whether a recorded value keeps its limit; where there was only yes or no, what was recorded."""
    if outcome["value"] is None:
        return outcome["holds"]
    limit = outcome["limit"]
    low, high = map(float, limit.strip("[]").split(", ")) if isinstance(limit, str) else (-math.inf, limit)
    return low <= float(outcome["value"]) <= high


def sound(checks, falsifiers):
    """Whether a claim with these outcomes may pass."""
    return all(map(holds, checks)) and len(falsifiers) > 0 and not any(map(holds, falsifiers))


# %% tags=["ledger"]
claim = run.claim("X14a")
claim.check_true(not ledger.verdict.isin([Verdict.FAIL, Verdict.VACUOUS]).any(), "no entry failed, none is vacuous")
claim.check_true(all(sound(one["checks"], one["falsifiers"]) for one in passed), "every entry that passed, recounted")
exchanged = [sound([*one["checks"], one["falsifiers"][0]], one["falsifiers"]) for one in passed]
claim.falsify_true(any(exchanged), "some entry comes through with a falsifier among its checks")
claim.falsify_true(any(sound(one["checks"], []) for one in passed), "some entry comes through without a falsifier")

# %% [markdown]
# ## 14.6 What this does not show
#
# * That a claim passes means that its check, at its tolerance, found nothing against it, and that the check could have.
#   It is no proof; the proofs are in the text of the notebooks.
# * Checks were written by people who knew the answer. The falsifiers guard against empty checks, not against claims
#   that nobody thought of testing.
# * The experiments (C11 to C14) are about networks at a scale. The verdict of one profile says nothing about another.

# %% [markdown]
# ## The evidence
#
# Every comparison of this notebook. A number under "value" keeps the limit; one under "falsifier's value" is the same
# comparison on the slip named there, and must not.

# %% tags=["nbval-ignore-output", "hide-input"] jupyter={"source_hidden": true}
evidence = run.evidence()
assert len(evidence)
evidence
