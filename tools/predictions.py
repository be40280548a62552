"""What came of the predictions about photographs, for docs/preregistration.md and README.md (:mod:`tools.readme`).

Every number is computed from published tables of the notebooks 07, 08 and 09, a row a run.
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from paperlib.companion import paths
from paperlib.companion.claims import Verdict

sys.path.append(str(paths.root() / "notebooks"))
from over_seeds import Ratio, all_of, mean_interval, paired_ratio, verdict

LEVEL = "λ (nats)"


@dataclass(frozen=True)
class Runs:
    """The tables of a profile, a row a run.

    Attributes:
        distances: to the test split in the classifier's features, by weighting, seed and sampler.
        efficientnet: the same in those of EfficientNet-Lite0.
        errors: E‖ε̂ − ε‖² by weighting, seed and level.
        bits: −ELBO by weighting and seed, a column a level at which decoding starts; None where they were not counted.
        measure: the column of ``distances`` that is asked for.
    """

    distances: pd.DataFrame
    efficientnet: pd.DataFrame
    errors: pd.DataFrame
    bits: pd.DataFrame | None = None
    measure: str = "frechet"

    @classmethod
    def published(cls, profile: str) -> "Runs":
        """Those of the published results of a profile."""
        folder, of_samples = paths.published(profile), "08_sample_and_evaluate/tables/every_run"
        distances, efficientnet, errors = (
            pd.read_csv(folder / f"{name}.csv")
            for name in (of_samples, f"{of_samples}_efficientnet", "07_train/tables/errors_by_level")
        )
        bits = folder / "09_likelihood/tables/bits_by_stop.csv"
        to_test = distances[distances.reference.str.contains("test")]
        return cls(to_test, efficientnet, errors, pd.read_csv(bits) if bits.is_file() else None)

    def of_seeds(self, *seeds: int) -> "Runs":
        """Those of some seeds alone."""
        tables: dict[str, Any] = {name: table for name, table in vars(self).items() if isinstance(table, pd.DataFrame)}
        return replace(self, **{name: table[table.seed.isin(seeds)] for name, table in tables.items()})

    def distance(self, weighting: str, sampler: str = "heun") -> pd.Series:
        """Distances of a weighting by seed."""
        rows = self.distances.query("weighting == @weighting and sampler == @sampler")
        return rows.set_index("seed")[self.measure]

    def ratio(self, weighting: str, other: str) -> Ratio:
        """Of Heun's distances, within a seed."""
        return paired_ratio(self.distance(weighting), self.distance(other))

    def of_efficientnet(self) -> "Runs":
        """The same with kernel distances (KID) in the features of EfficientNet-Lite0, more of them than of samples."""
        return replace(self, distances=self.efficientnet, measure="kid")

    def error(self, weighting: str) -> pd.Series:
        """The mean over seeds by level."""
        return self.errors[self.errors.weighting == weighting].groupby(LEVEL).error.mean()

    def smaller(self, weighting: str, other: str, low: float, high: float) -> float:
        """At which share of the levels between two the error of a weighting is smaller than that of another."""
        both = pd.concat([self.error(weighting), self.error(other)], axis=1).loc[low:high]
        return float((both.iloc[:, 0] < both.iloc[:, 1]).mean())


Judged = tuple[str, bool, str]
"""A prediction, whether it held, and on what evidence."""


def photographs(runs: Runs) -> list[Judged]:
    """S1 to S7."""
    assert runs.bits is not None
    weightings = list(dict.fromkeys(runs.distances.weighting))
    others = [name for name in weightings if name != "sigmoid"]
    parity = runs.ratio("edm_monotonic", "edm")
    behind = runs.ratio("elbo", "sigmoid")
    worst = [
        rows.set_index("weighting")[column].idxmax() == "elbo"
        for table, column in ((runs.distances, "frechet"), (runs.efficientnet, "kid"))
        for _, rows in table.groupby(["sampler", "seed"])
    ]
    bits = runs.bits.set_index(["seed", "weighting"])
    leads = {stop: bits[stop].xs("sigmoid", level=1) - bits[stop].xs("elbo", level=1) for stop in ("4", "14")}
    fewest = bits["14"].unstack().idxmin(axis=1).eq("elbo")
    below, above = runs.smaller("sigmoid", "elbo", -np.inf, -1e-9), runs.smaller("elbo", "sigmoid", 8 + 1e-9, np.inf)
    ahead = {name: runs.ratio(name, "sigmoid") for name in others}
    lowest = min(ahead, key=lambda name: ahead[name].value)
    spread = {name: float(np.log(runs.distance(name)).std()) for name in weightings}
    widest = max(spread, key=lambda name: spread[name])
    both = runs.distances.merge(runs.efficientnet, on=["weighting", "seed", "sampler"], suffixes=("", "_other"))
    both = both[both.sampler == "heun"]
    rank = float(both.frechet.corr(both.kid_other, method="spearman"))
    return [
        ("S1", verdict(parity, 0.9, 1.1) is Verdict.HELD, f"EDM-monotonic / EDM: {parity}"),
        (
            "S2",
            all(worst) and bool((runs.distance("elbo") >= 1.2 * runs.distance("sigmoid")).all()),
            f"largest in {sum(worst)} of {len(worst)} comparisons; ELBO / sigmoid, Heun: {behind}",
        ),
        (
            "S3",
            bool(fewest.all() and (leads["4"] < 0.1 * leads["14"]).all()),
            f"fewest bits from 14 in {fewest.sum()} of {len(fewest)} seeds; lead over the sigmoid "
            f"{leads['14'].mean():.3f} bits, from 4 {leads['4'].mean():+.4f}",
        ),
        (
            "S4",
            below >= 0.8 and above >= 0.8,
            f"sigmoid's error smaller at {below:.0%} of levels below 0, larger at {above:.0%} above 8",
        ),
        (
            "S5",
            all(verdict(found, low=0.95) is not Verdict.NOT_HELD for found in ahead.values()),
            f"lowest: {lowest} / sigmoid {ahead[lowest]}",
        ),
        ("S6", max(spread.values()) < 0.05, f"largest standard deviation {spread[widest]:.3f}, of {widest}"),
        ("S7", rank > 0.7, f"rank correlation {rank:.2f} over {len(both)} networks"),
    ]


def longer_run(longer: Runs, grid: Runs) -> list[Judged]:
    """T1 and T2, of one network beside those of the same weighting in the grid."""
    judged: list[Judged] = []
    for name, table, share in (("T1", "distances", 0.5), ("T2", "efficientnet", 0.8)):
        found, others = (replace(runs, distances=getattr(runs, table)).distance("sigmoid") for runs in (longer, grid))
        mean, half = mean_interval(others)
        features = getattr(longer, table).network.iloc[0]
        said = f"{features}: {found[0]:.2f} in place of {mean:.2f} ± {half:.2f}, {found[0] / mean:.2f} times"
        judged.append((name, bool(found[0] <= share * mean and found[0] < mean - half), said))
    return judged


SHIFTED = {"sigmoid": "sigmoid_shifted", "edm_monotonic": "edm_monotonic_shifted"}
"""Each weighting, and what it is called when it is shifted."""


def shifts(runs: Runs) -> list[Ratio]:
    """Of Heun's distances, shifted over not shifted, of each weighting."""
    return [runs.ratio(moved, name) for name, moved in SHIFTED.items()]


def resolution(small: Runs, large: Runs) -> list[Judged]:
    """R1 to R5, of 8 pixels and of 32."""
    (first, second), of_large = shifts(small), shifts(large)
    by_seed = [
        pd.DataFrame({name: runs.distance(moved) / runs.distance(name) for name, moved in SHIFTED.items()})
        for runs in (small, large)
    ]
    larger = by_seed[0] > by_seed[1]
    shares = [
        (runs.smaller(name, moved, -np.inf, -1e-9), runs.smaller(moved, name, 4, 10))
        for runs in (small, large)
        for name, moved in SHIFTED.items()
    ]
    least = [min(share) for share in zip(*shares, strict=True)]
    return [
        ("R1", verdict(first, low=1.1) is Verdict.HELD, f"sigmoid, shifted / not, 8 pixels: {_said(first)}"),
        ("R2", verdict(second, low=1.1) is Verdict.HELD, f"EDM-monotonic, the same: {_said(second)}"),
        (
            "R3",
            all_of(verdict(found, high=1.2) for found in of_large) is Verdict.HELD,
            f"32 pixels: sigmoid {_said(of_large[0])}; EDM-monotonic {_said(of_large[1])}",
        ),
        (
            "R4",
            bool(larger.all(axis=None)),
            f"larger at 8 in {' and '.join(map(str, larger.sum()))} of {len(larger)} seeds",
        ),
        (
            "R5",
            min(least) >= 0.8,
            f"larger at {least[0]:.0%} of levels below 0 or more, smaller at {least[1]:.0%} from 4 to 10 or more",
        ),
    ]


def _said(ratio: Ratio) -> str:
    """A ratio, and whether the shifted network is surely the nearer one, as the paper's rule has it above 64 pixels."""
    return f"{ratio}" + (", below one, as the rule would have it" if ratio.high < 1 else "")
