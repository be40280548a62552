"""The parts of README.md and docs/preregistration.md that are made from results: ``make readme``.

A part stands between ``<!-- begin: NAME -->`` and ``<!-- end -->``.  Numbers there come from ``results/`` and carry
their provenance; the tests check that they are the ones that the committed results give.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from paperlib import files
from paperlib.companion import figures, paths, profiles, provenance, workflow
from paperlib.companion.claims import factor
from tools import predictions as judged
from tools.predictions import Judged, Runs

PAGES = ("README.md", "docs/preregistration.md")
PART = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


CLAIMS = ("C1", "C3", "C5", "C7", "C8", "C10", "C11", "C12", "C13", "C14")
"""Those that README shows; all are in the ledger."""


def picture(profile: profiles.Profile) -> str:
    """The central picture of the tour."""
    (path,) = paths.published(profile.name).glob("*/figures/central.png")
    return f"![From w(λ) to p_w(λ) to photographs at its noise levels]({paths.shown(path)})"


def findings(profile: profiles.Profile) -> str:
    """What the ablation on digits found, and the networks on CIFAR-10."""
    evidence = _csv("digits", "tables/predictions_and_verdicts").set_index("prediction").evidence
    ablated = _csv("digits", "tables/every_run")
    runs = ablated.query("prediction == 'v' and schedule == 'adaptive'")
    distance = runs.groupby("weighting").frechet_heun_test.mean().sort_values()
    whole = _csv("digits", "figures/bits_by_stop").set_index("weighting")["10"].sort_values()
    bits = _csv("cifar10-cpu", "tables/bits_by_weighting").set_index("weighting").test.sort_values()
    photos = _csv("cifar10-cpu", "tables/weighting_by_sampler").query("sampler == 'heun'")
    worst_first = photos.set_index("weighting").frechet.sort_values(ascending=False)
    every = _csv("cifar10-cpu", "tables/bits_by_stop")
    first = every.groupby("weighting").mean().drop(columns=["seed", "own"]).idxmin().astype(str)
    elbo_from = next(stop for stop in first.index if (first[stop:] == "elbo").all())
    photographed, longer, small, large = map(
        Runs.published, ("cifar10-cpu", "cifar10-long", "resolution8", "resolution32")
    )
    of_longer = judged.longer_run(longer, photographed)
    by_ours, by_efficientnet = (found.partition(": ")[2].rpartition(", ")[0] for _, _, found in of_longer)
    came = judged.photographs(photographed) + of_longer + judged.resolution(small, large)
    own, known = (found.ratio("edm", "sigmoid") for found in (photographed, photographed.of_efficientnet()))
    shift, shift_known = (found.ratio("sigmoid_shifted", "sigmoid") for found in (large, large.of_efficientnet()))
    came_on_digits = _csv("digits", "tables/predictions_and_verdicts").set_index("prediction").verdict == "HELD"
    level = _csv("digits", "figures/correlation_by_level").set_index("λ (nats)").iloc[:, 1]
    count, nearly_clean = profiles.load("digits").sampling.count, f"{level.iloc[-1]:+.2f}".replace("-", "−")
    return (
        f"Distances: Fréchet, {count:,} samples by Heun, features of our own classifiers, no FID; bits: −ELBO a "
        "dimension; less is better. Brackets: 95 % over "
        f"{ablated.seed.nunique()} seeds, {every.seed.nunique()} on CIFAR-10.\n\n"
        f"* **A tie.** Distances on digits, {evidence.P1}; CIFAR-10 {came[0][2].partition(': ')[2]}: the monotone one, "
        "a likelihood of noisy data, is on a par.\n"
        "* **What likelihood says.** With w = 1, the likelihood itself, networks take the fewest bits decoded "
        f"near the clean end (digits, from λ = 10: {whole['elbo']:.2f}, next {whole.iloc[1]:.2f}; CIFAR-10, from 12: "
        f"{bits['elbo']:.2f}, next {bits.iloc[1]:.2f}) and make the worst samples (distances {distance['elbo']:.1f}, "
        f"best {distance.iloc[0]:.1f}; {worst_first['elbo']:.1f}, best {worst_first.iloc[-1]:.1f}). Which codes best "
        f"depends on where decoding starts: on CIFAR-10 from 4 {figures.label(first['4'])}, from 8 "
        f"{figures.label(first['8'])}, from {elbo_from} ELBO.\n"
        f"* **Who judges.** CIFAR-10, EDM / sigmoid: {own}; post hoc, by kernel distance in EfficientNet's features, "
        f"{known}. The sigmoid shifted by 2 log(64/d), the paper's rule for larger images, recalled, / not: "
        f"{shift}, by EfficientNet {shift_known}; at 8 pixels {small.ratio('sigmoid_shifted', 'sigmoid')}.\n"
        f"* **A longer run.** CIFAR-10, {_size('cifar10-long')}, sigmoid, one seed: distance {by_ours}; by "
        f"EfficientNet {by_efficientnet}.\n"
        f"* **[Predictions](docs/preregistration.md).** CIFAR-10: {_held(came)}; digits: "
        f"{_held([(str(name), held, '') for name, held in came_on_digits.items()])}.\n"
        f"* **Which levels samples need** (post hoc). Among {len(runs)} networks that differ in weighting alone, "
        f"distances fall with the error at λ = {level.idxmax():.1f} (rank correlation {level.max():+.2f}), and rise as "
        f"that at {level.index[-1]:.0f}, nearly clean, falls ({nearly_clean}).\n"
        "* **Drawing is not weighing.** With w held, levels drawn ∝ E, the error, not ∝ wE, multiply the distance (by "
        f"Heun, by DDPM): {evidence.L2}."
    )


def _size(profile: str) -> str:
    """How large the networks of a profile are, and how long they were trained."""
    run = _csv(profile, "tables/runs").iloc[0]
    return f"{run.parameters / 1e6:.1f} million parameters, {run.epochs:.0f} epochs"


def _held(came: Sequence[Judged]) -> str:
    """How many of some predictions held, and which did not."""
    failed = [name for name, held, _ in came if not held]
    return f"{len(came) - len(failed)} of {len(came)} held{', not ' * bool(failed)}{', '.join(failed)}"


def paper(profile: profiles.Profile) -> str:
    """What the paper says, and what was found: ten of the claims."""
    ledger = {entry["id"]: entry for entry in workflow.published_ledger(profile.name)}
    rows = [
        [f"{name}: {entry['statement']}", _found(entry), entry["profile"], entry["verdict"]]
        for name, entry in ((name, ledger[name]) for name in CLAIMS)
    ]
    return tabulate(rows, ["the paper says", "found here", "scale", "verdict"], tablefmt="github")


def _found(entry: dict[str, Any]) -> str:
    if entry["remarks"]:
        return "; ".join(entry["remarks"].values())
    count = len(entry["falsifiers"])
    caught = f"{count} {'falsifier' if count == 1 else 'falsifiers'} caught"
    return f"tightest check {factor(entry['margin'])} within its limit, {caught}" if entry["margin"] else caught


def predictions(profile: profiles.Profile) -> str:
    """What was expected of the ablation, and what came."""
    table = _csv("digits", "tables/predictions_and_verdicts").fillna("")
    return tabulate(
        table[["prediction", "expected", "verdict", "by DDPM"]].to_numpy().tolist(),
        ["", "expected", "verdict", "by DDPM"],
        tablefmt="github",
    )


def notebooks(profile: profiles.Profile) -> str:
    """Every notebook by its title, in order."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (paths.root() / "notebooks").glob("[0-9]*.py")}
    titles = {name: re.findall(r"^# # (.*)$", sources[name], re.MULTILINE)[0] for name in sorted(sources)}
    return "\n".join(f"* [{title}](notebooks/{name}.ipynb)" for name, title in titles.items())


def limits(profile: profiles.Profile) -> str:
    """How small all networks are."""
    return (
        f"Networks are small: 8×8 digits; {_size('cifar10-cpu')} on CIFAR-10, but for the longer run; 1,000 pictures "
        "of ImageNet, one seed."
    )


def source(profile: profiles.Profile) -> str:
    """Where the numbers come from: commits, machine, time."""
    found = provenance.manifests(paths.published(profile.name)).values()
    commits = ", ".join(sorted({manifest["commit"][:7] for manifest in found}))
    machines = ", ".join(sorted({f"{manifest['cpu']}, {manifest['cores']} cores" for manifest in found}))
    total = sum(manifest["seconds"] for manifest in found)
    return f"Profile `{profile.name}`: commit {commits}, {machines}, no GPU, {total / 60:.0f} minutes in all."


def photographs(profile: profiles.Profile) -> str:
    """What came of the predictions about CIFAR-10, by all seeds and by those that nobody had seen, and a post hoc."""
    runs = Runs.published("cifar10-cpu")
    own, known = (found.ratio("edm", "sigmoid") for found in (runs, runs.of_efficientnet()))
    return (
        f"{_came(judged.photographs(runs), judged.photographs(runs.of_seeds(1, 2)))}\n\n"
        f"Post hoc: EDM / sigmoid, by Heun: Fréchet distance in the classifier's features {own}, kernel distance (KID) "
        f"in those of EfficientNet-Lite0 {known}."
    )


def longer_run(profile: profiles.Profile) -> str:
    """What came of the predictions about the network for the sheets of CIFAR-10."""
    return _came(judged.longer_run(*map(Runs.published, ("cifar10-long", "cifar10-cpu"))))


def resolution(profile: profiles.Profile) -> str:
    """What came of the predictions about the shift by resolution."""
    small, large = map(Runs.published, ("resolution8", "resolution32"))
    page = _came(judged.resolution(small, large))
    for size, runs in ((8, small), (32, large)):
        first, second = judged.shifts(runs.of_efficientnet())
        page += (
            f"\n\nPost hoc, {size} pixels, kernel distance (KID) in EfficientNet-Lite0's features, "
            f"{runs.efficientnet.samples.max():,} samples: sigmoid {first}, EDM-monotonic {second}."
        )
    return page


def _came(rows: list[Judged], unseen: list[Judged] | None = None) -> str:
    """A table of predictions, verdicts and evidence, beside them those of the seeds 1 and 2 alone."""
    said = {True: "held", False: "failed"}
    cells = [[name, said[held], why] for name, held, why in rows]
    for cell, (_, held, why) in zip(cells, unseen or [], strict=False):
        cell += [said[held], why]
    return tabulate(cells, ["", "", "found", *["", "seeds 1 and 2"] * bool(unseen)], tablefmt="github")


PARTS: dict[str, Callable[[profiles.Profile], str]] = {
    part.__name__: part
    for part in (picture, findings, paper, predictions, notebooks, limits, source, photographs, longer_run, resolution)
}


def fill(text: str, profile: profiles.Profile) -> str:
    """A page with every part made anew from results; ValueError for a part that nobody knows how to make."""

    def part(match: re.Match[str]) -> str:
        if match[2] not in PARTS:
            raise ValueError(f"the page asks for a part {match[2]!r}; there are {', '.join(PARTS)}.")
        return f"{match[1]}{PARTS[match[2]](profile)}\n{match[3]}"

    return PART.sub(part, text)


def _csv(profile: str, name: str) -> pd.DataFrame:
    """A published table, by its folder and name, which one notebook of the profile alone has."""
    (path,) = paths.published(profile).glob(f"*/{name}.csv")
    return pd.read_csv(path)


def main() -> None:
    """Fill the pages of this checkout, README.md from the results of the profile tiny."""
    for page in PAGES:
        path = paths.root() / page
        files.write_text(path, fill(path.read_text(encoding="utf-8"), profiles.load("tiny")))
    print(f"{' and '.join(PAGES)} filled from results", file=sys.stderr)


if __name__ == "__main__":
    main()
