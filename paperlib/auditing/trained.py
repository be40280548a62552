r"""The audit of a trained network on data: what each level costs it, and what that comes to under every weighting.

One estimate of −ELBO (:mod:`paperlib.engine.likelihood`) holds all of it.  Each of its draws has a level λ of known
density and an error e = ‖ε̂ − ε‖²; so for every w (Section 3, the Corollary)

.. math:: E_{p_w}[L(\lambda; x)] = L(\lambda_{min}; x)
          + \tfrac12\int \frac{w(\lambda)}{w(\lambda_{min})}\,E[e]\,d\lambda,

the expected −ELBO of noisy data but for a constant.  A training loss that draws levels with density p estimates the
integral by (w/p) e, of variance

.. math:: \int \frac{w^2 E[e^2]}{p}\,d\lambda - \left(\int w\,E[e]\,d\lambda\right)^2,

which is least for :math:`p \propto w\sqrt{E[e^2]}` (Appendix F, adaptive noise schedule; exact for independent draws).
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperlib import predictions, schedules, weightings
from paperlib.auditing.result import plain
from paperlib.checks import require_positive
from paperlib.engine import data as datasets
from paperlib.engine.data import ImageData
from paperlib.engine.likelihood import ImageElbo, LevelBins, Mean, image_elbo, real_elbo
from paperlib.models import ConditionedNetwork, weights
from paperlib.objectives import Network
from paperlib.predictions import EPS, Prediction
from paperlib.schedules import LinearLogSNR, NoiseSchedule
from paperlib.tables import Histogram
from paperlib.weightings import Augmentation, Weighting

BINS = 24
"""Bins of the errors and of a suggested schedule, of equal width in λ."""
FLOOR = 0.01
"""Share of a suggested schedule that is spread evenly, so that no level is left out."""
CUTS = (0.0, 2.0, 4.0, 6.0)
"""How many nats below the upper end the bounds decode from."""


@dataclass(frozen=True)
class Weighted:
    """What a weighting makes of the network's errors.

    Attributes:
        path_kl: E_{p_w}[L(λ; x)], in nats an example; where w is not monotone p_w is signed.
        monotonic: whether it is an expectation, w being non-increasing on the range.
        saving: how many times fewer draws the best density of levels needs than the schedule of training.
        schedule: that density, in :data:`BINS` bins, with :data:`FLOOR` of it spread evenly.
    """

    path_kl: Mean
    monotonic: bool
    saving: float
    schedule: Histogram


@dataclass(frozen=True, eq=False)
class NetworkAudit:
    """What a network costs on data, level by level.

    Attributes:
        name: of the network.
        prediction: what it predicts.
        data: name of the data; empty for a tensor.
        images: number of examples.
        bound: the draws that everything is computed from.
        levels: what each bin of levels contributes to −ELBO, in nats an example.
        bounds: −ELBO in bits a dimension by the level that is decoded from; of a density for real numbers.
        weighted: for every weighting by name.
        trained_by: schedule that ``saving`` compares with.
        main: name of the weighting whose schedule is suggested.
        gap: by how much the contributions exceed those of the oracle; None without one.
    """

    name: str
    prediction: str
    data: str
    images: int
    bound: ImageElbo
    levels: LevelBins
    bounds: Mapping[float, Mean]
    weighted: Mapping[str, Weighted]
    trained_by: NoiseSchedule
    main: str
    gap: LevelBins | None = None

    @property
    def logsnr(self) -> Tensor:
        """Middles of the bins, in nats, (K,)."""
        return (self.levels.edges[1:] + self.levels.edges[:-1]) / 2

    def error(self, of: LevelBins | None = None) -> tuple[Tensor, Tensor]:
        """E‖ε̂ − ε‖² a dimension in each bin and its standard error over examples, (K,) each; of :attr:`gap` too."""
        of = of or self.levels
        scale = 2 / (of.edges.diff() * self.bound.dim)
        return of.nats * scale, of.standard_error * scale

    def code(self) -> str:
        """The suggested schedule, as code."""
        best = self.weighted[self.main].schedule
        edges, heights = ([float(f"{round(value, 6):.4g}") for value in row] for row in (best.edges, best.heights))
        return (
            "import torch\nfrom paperlib import schedules\n\n"
            f'schedule = schedules.get({{"name": "histogram", "edges": {edges}, "heights": {heights}}})\n'
            "logsnr = schedule.logsnr(torch.rand(64))  # of the examples of a batch; their errors of ε are multiplied\n"
            "factor = 1 / schedule.density(logsnr)  # by this and by your w(logsnr)"
        )

    def summary(self) -> str:
        """For a terminal, 120 columns."""
        error, spread = self.error()
        gap = [None] * len(error) if self.gap is None else self.error(self.gap)[0].tolist()
        lines = [
            f"{self.name}: {self.prediction} on {self.images:,} of {self.data or 'the examples'}, "
            f"{self.bound.logsnr.shape[1]} levels each",
            "  λ         E‖ε̂ − ε‖² a dimension" + ("" if self.gap is None else "     above the oracle"),
        ]
        rows = zip(self.logsnr.tolist(), error.tolist(), spread.tolist(), gap, strict=True)
        lines += [
            f"  {level:+7.2f}   {value:.4g} ± {own:.2g}" + ("" if above is None else f"     {above:+.2g}")
            for level, value, own, above in rows
        ]
        lines += [
            f"  −ELBO, decoded from λ = {level:g}: {bits.value:.4f} ± {bits.standard_error:.4f} bits/dim"
            for level, bits in self.bounds.items()
        ]
        names: dict[int, list[str]] = {}  # of what is one weighting
        for name, found in self.weighted.items():
            names.setdefault(id(found), []).append(name)
        lines += [
            f"  E_pw[L] of {' or '.join(names[id(found)]):<22} "
            f"{found.path_kl.value:10.3f} ± {found.path_kl.standard_error:.2g} nats"
            f"{'' if found.monotonic else ', p_w signed'}; the best p(λ) needs {found.saving:.3g}× fewer draws*"
            for name, found in self.weighted.items()
            if name == names[id(found)][0]
        ]
        return "\n".join([*lines, f"  * fewer than levels drawn by {self.trained_by}"])

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{self.code()}"

    def json(self) -> dict[str, Any]:
        """Everything as plain values; NaN is None."""
        error, spread = self.error()
        gap, of_gap = (None, None) if self.gap is None else self.error(self.gap)
        rows = {"error": error, "standard_error": spread, "gap": gap, "gap_standard_error": of_gap}
        return {
            "name": self.name,
            "prediction": self.prediction,
            "data": self.data,
            "images": self.images,
            "edges": self.levels.edges.tolist(),
            **{name: plain(row) for name, row in rows.items()},
            "bits_per_dim": [[level, *plain(astuple(bits))] for level, bits in self.bounds.items()],
            "weighted": {
                name: {
                    "path_kl": plain(astuple(found.path_kl)),
                    "monotonic": found.monotonic,
                    "saving": plain(found.saving),
                    "edges": list(found.schedule.edges),
                    "heights": list(found.schedule.heights),
                }
                for name, found in self.weighted.items()
            },
            "suggested": self.main,
        }

    def _repr_html_(self) -> str:
        from paperlib.auditing import report

        return report.section(self)


def of_weights(path: str | Path, **options: Any) -> NetworkAudit:
    """The audit of the network in a file of weights, whose card says what it predicts and how it was trained.

    Args:
        path: as :func:`paperlib.models.weights.load` takes it, whose errors are raised.
        options: those of :func:`audit`.
    """
    network, prediction = weights.load(path)
    said = weights.read_card(Path(path))["loss"]
    trained_by, weighting = (
        _made(registry, said.get(part, {}))
        for registry, part in ((schedules.SCHEDULES, "schedule"), (weightings.WEIGHTINGS, "weighting"))
    )
    return audit(
        network,
        **{"prediction": prediction, "trained_by": trained_by, "weighting": weighting, "name": str(path)} | options,
    )


def _made(registry: Mapping[str, Any], said: Mapping[str, Any]) -> Any:
    """What a card describes by the name of its class and its parameters; None where that is no class by itself."""
    kind = next((kind for kind in registry.values() if getattr(kind, "__name__", "") == said.get("name")), None)
    try:
        return kind and kind(**{key: value for key, value in said.items() if key != "name"})
    except (TypeError, ValueError):
        return None


def audit(
    network: Network,
    data: ImageData | Tensor | str,
    *,
    prediction: Prediction | str | Mapping[str, Any],
    name: str | None = None,
    trained_by: NoiseSchedule | str | Mapping[str, Any] | None = None,
    weighting: Weighting | str | Mapping[str, Any] | None = None,
    oracle: Network | None = None,
    logsnr_min: float | None = None,
    logsnr_max: float | None = None,
    images: int = 256,
    draws: int = 48,
) -> NetworkAudit:
    """What a trained network costs on data.

    Args:
        network: ``network(z, logsnr)``; one of this library is told labels too.
        data: images; a name of :data:`paperlib.engine.data.DATASETS`, with "/train" for other than its test split; or
            real numbers (N, *), whose bounds are of a density.
        prediction: what the network predicts.
        name: what to call it.
        trained_by: schedule that draws are compared with; by default levels uniform on the range.
        weighting: whose schedule is suggested, beside those of Table 1; by default the ELBO.
        oracle: the optimal denoiser, ``oracle(z, logsnr)`` returning ε̂, where it is known.
        logsnr_min: lower end of the bounds, in nats, within ``trained_by``; by default that of it, else −12.
        logsnr_max: upper end; by default that of ``trained_by``, else 12.
        images: examples at most, the first ones.
        draws: levels and noises for each; the oracle sees the same.

    Raises:
        TypeError: for data of another kind.
        ValueError: for names that are not known, for no data or too few of them, for levels that ``trained_by`` does
            not draw, and for a network that returns NaN, naming the level.
    """
    if isinstance(data, str):
        base, _, split = data.partition("/")
        data = datasets.load(base, split or "test")  # type: ignore[arg-type]  # which raises for another split
    if not isinstance(data, ImageData | Tensor):
        raise TypeError(f"data are ImageData, a tensor (N, *) or the name of a data set, got {type(data).__name__}.")
    for count, number in (("images", images), ("draws", draws), ("the number of examples", len(data))):
        require_positive(count, number, whole=True)
    prediction = predictions.get(prediction)
    own = None if trained_by is None else schedules.get(trained_by)
    low, high = own.ends if own is not None else (-12.0, 12.0)
    low, high = low if logsnr_min is None else logsnr_min, high if logsnr_max is None else logsnr_max
    if own is not None and (low < own.ends[0] or high > own.ends[1]):
        raise ValueError(
            f"trained_by draws levels in [{own.ends[0]:g}, {own.ends[1]:g}] and cannot be compared on [{low:g}, "
            f"{high:g}]: narrow logsnr_min and logsnr_max, or leave trained_by out."
        )
    told, even = isinstance(network, ConditionedNetwork), LinearLogSNR(low, high)
    if isinstance(data, Tensor):
        data = data[:images]
    elif len(data) > images:
        data = replace(data, images=data.images[:images], labels=data.labels[:images])

    def bound(of: Network, predicts: Prediction) -> ImageElbo:
        if isinstance(data, ImageData):
            return image_elbo(of, predicts, data, even, draws=draws, conditional=told)
        return real_elbo(of, predicts, data, even, draws=draws)

    found = bound(network, prediction)
    gap = None
    if oracle is not None:
        best = bound(oracle, EPS)
        gap = replace(found, loss=found.loss - best.loss).by_level(BINS)  # under the same noise
    given = {} if weighting is None else {str(weighting): weightings.get(weighting)}
    compared = own or even
    weighted: dict[str, Weighted] = {}
    every = given | weightings.TABLE_1
    for called, w in every.items():
        same = next((weighted[other] for other in weighted if every[other] == w), None)
        weighted[called] = same or _weighted(found, w, compared)
    return NetworkAudit(
        name=name or type(network).__name__,
        prediction=predictions.PREDICTIONS.called(prediction),
        data=data.name if isinstance(data, ImageData) else "",
        images=len(found.loss),
        bound=found,
        levels=found.by_level(BINS),
        bounds={high - cut: _bits(found, data, high - cut) for cut in CUTS if high - cut > low},
        weighted=weighted,
        trained_by=compared,
        main=next(iter(given), "ELBO"),
        gap=gap,
    )


def _bits(found: ImageElbo, data: ImageData | Tensor, logsnr_max: float) -> Mean:
    """−ELBO of the bound that decodes from ``logsnr_max``, in bits a dimension."""
    if isinstance(data, ImageData):
        return Mean.bits(found.terms_until(logsnr_max, data).total, found.dim)
    kept = torch.where(found.logsnr <= logsnr_max, found.loss, 0.0).mean(1)
    decoder = found.terms.reconstruction + 0.5 * found.dim * (found.ends[1] - logsnr_max)
    return Mean.bits(found.terms.prior_kl + kept + decoder, found.dim)


def _weighted(found: ImageElbo, weighting: Weighting, trained_by: NoiseSchedule) -> Weighted:
    low, high = found.ends
    w = weighting(found.logsnr) / Augmentation(weighting, low, high).scale
    path_kl = Mean.of(found.terms.prior_kl + (w * found.loss).mean(1))
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    place, value = torch.bucketize(found.logsnr, edges[1:-1]).flatten(), (w * found.eps_error).flatten()
    count = torch.bincount(place, minlength=BINS)
    mean, square = (torch.bincount(place, value**power, minlength=BINS) / count for power in (1, 2))
    if (count == 0).any():
        raise ValueError(
            f"{found.logsnr.numel()} levels leave some of {BINS} bins without any: take more images, or more draws."
        )
    width = edges.diff()
    least = (width * square.sqrt()).sum() ** 2 - (width * mean).sum() ** 2
    share = -trained_by.time(edges.clamp(*trained_by.ends)).diff()
    used = (width**2 * square / share).sum() - (width * mean).sum() ** 2
    heights = square.sqrt() / (square.sqrt() * width).sum()
    best = Histogram(edges=edges, heights=(1 - FLOOR) * heights + FLOOR / (high - low))
    return Weighted(path_kl, weighting.is_monotonic(low, high), (used / least).item(), best)
