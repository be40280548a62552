r"""What an audit says: the weighting that a loss implies, and how it reads.

A loss that draws levels with density p and weighs a squared error of factor k by c optimises

.. math:: L_w = \tfrac12 \int w(\lambda)\, E\|\hat\epsilon - \epsilon\|^2\, d\lambda, \qquad w \propto p\, c\, k.

w matters up to a constant: here its largest value is one.  So is p_w taken, :math:`-dw/d\lambda` over max w: for a
monotone w the distribution of noise levels in whose ELBO the loss can be read (Section 3, monotone weightings), and
otherwise a signed density on a scale that says *how far* from one it is.

The weighting says what a unit of error costs, not where errors are.  Shares of the loss take a **reference model**: the
exact denoiser of Gaussian data with the 1/f² spectrum of photographs, 64×64 pixels, standard deviation ½.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from paperlib.checks import outside
from paperlib.objectives import ImpliedWeighting, PublishedLoss
from paperlib.predictions import PREDICTIONS
from paperlib.weightings import BAND, Augmentation, Tabulated, Weighting, majorant

POINTS = 2000
"""Cells of the grid on which a formula is shown, at their middles: never at an end, where w has no slope."""
SHOWN = 14.0
"""|λ| up to which pictures and tables go; beyond, nothing is learned of an image."""
SAME = 0.02
"""By how much the weights of one objective may differ, and how much of it may lie where the other has none."""
FORMAT = 2
"""Of :meth:`Audit.json`; raised when a key changes its meaning or goes away."""


class BelowPeak(NamedTuple):
    """How much happens at levels where w is smaller than at some cleaner one: mostly those noisier than its peak.

    Attributes:
        logsnr: the peak above which w is monotone, in nats.
        draws: share of the draws; None where the density of the draws is not known.
        loss: share of the loss of the reference model.
        within: where a measured peak may lie, by the band of w and the width of its bins, in nats; None for a formula.
        dips: the intervals of those levels, in nats, ascending; each ends at a peak, the last one at ``logsnr``.
    """

    logsnr: float
    draws: float | None
    loss: float
    within: tuple[float, float] | None = None
    dips: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Audit:
    """The answer to "what does this loss optimise?".

    Attributes:
        name: what was audited.
        logsnr: levels, ascending, in nats, (N,), float64: the middles of cells, or of bins.
        weighting: w of the ε error at each of them, the largest being one.
        width: what each level stands for, in nats.
        draws: p(λ), the density of the draws in 1/nats; None where that is not known.
        band: half-width of a simultaneous 95 % band of ``weighting`` where the loss was measured, three standard errors
            where the weighting was; None for a formula.
        monotonic: whether w is non-increasing in λ; None where the measurement does not decide it.
        augmentation_density: −w′(λ)/max w, in 1/nats, point masses aside.
        atoms: levels and masses of the steps of w, in units of max w.
        clean_mass: w at the cleanest level over max w: the point mass on clean data.
        below_peak: how much lies where w is smaller than at a cleaner level; None for a monotone w.
        stationary: whether the exact model of a usual prediction is stationary; None where that was not measured.
        quadratic: whether the loss is a squared error; None where that was not measured.
        isotropic: whether errors of every shape count alike; None where that was not measured.
        learns: whether it divides by a learned uncertainty (:attr:`settled`); None where nothing is learned.
        prediction: what the network predicts.
        expected: name of the loss that it was compared with.
        ratio: w over the expected one, its median one; NaN where the expected one is zero, if only in part of a cell.
        expected_ends: the range of the expected one, in nats; None for a formula.
        unshared: share of the draws, or of the loss of the reference model, of either at levels where the other has no
            weight; the largest of those that are known.
        agrees: whether the ratio is one within the band and 2 %, and ``unshared`` no more than 2 %.
        notes: what else is to be said, in plain words.
        said: the description that the loss was made of; or ``what`` was audited, a name or a path, and with which
            options.
    """

    name: str
    logsnr: Tensor
    weighting: Tensor
    width: Tensor
    draws: Tensor | None
    monotonic: bool | None
    augmentation_density: Tensor
    clean_mass: float
    below_peak: BelowPeak | None
    atoms: tuple[tuple[float, float], ...] = ()
    band: Tensor | None = None
    stationary: bool | None = None
    quadratic: bool | None = None
    isotropic: bool | None = None
    learns: bool | None = None
    prediction: str | None = None
    expected: str | None = None
    ratio: Tensor | None = None
    expected_ends: tuple[float, float] | None = None
    unshared: float | None = None
    agrees: bool | None = None
    notes: tuple[str, ...] = ()
    said: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[float, float]:
        """The range of levels, in nats."""
        return self.edges[0].item(), self.edges[-1].item()

    @property
    def edges(self) -> Tensor:
        """Between what the levels stand for, in nats, (N + 1,)."""
        return torch.cat([self.logsnr - self.width / 2, self.logsnr[-1:] + self.width[-1:] / 2])

    @property
    def objection(self) -> str | None:
        """Why this is the likelihood of no data, whatever w may be; None where nothing speaks against it."""
        if self.quadratic is False:
            return "not a weighted squared error; w is its local weighting at a small error"
        if self.stationary is False:
            return "the exact model is not stationary; w is that of a model that fits the target"
        if self.isotropic is False:
            return "errors of different shapes count differently; w is that of constant ones"
        return None

    @property
    def dips(self) -> str:
        """The intervals of :attr:`below_peak`; empty where there is one alone, all that is below a peak."""
        dips = self.below_peak.dips if self.below_peak else ()
        if len(dips) == 1 and dips[0][0] < self.logsnr[0]:
            return ""
        return " and ".join("[{:.2f}, {:.2f}]".format(*dip) for dip in dips)

    @property
    def negative_mass(self) -> float:
        """Mass of the negative part of p_w, in units of max w: zero for a monotone w."""
        smooth = (-self.augmentation_density).clamp(min=0) * self.width
        return smooth.sum().item() + sum(-mass for _, mass in self.atoms if mass < 0)

    @property
    def hangs_on_the_end(self) -> bool:
        """Whether w is largest, and still grows, at the noisy end: max w, and the bulk of p_w, move with that end."""
        return bool(self.weighting.argmax() == 0 and self.augmentation_density[0] > 0.1)

    @property
    def effort(self) -> Tensor:
        """Share of the loss per nat, of the reference model: w E up to a constant, 1/nats.

        It is also the density of draws that estimates the same loss with the least variance.
        (Appendix F, adaptive noise schedule)
        """
        loss = self.weighting * reference_error(self.logsnr)
        return loss / (loss * self.width).sum()

    @property
    def saving(self) -> float | None:
        """Second moment of the loss under its own draws, over that under draws ∝ :attr:`effort`: ∫effort²/p dλ.

        Of the reference model's expected loss at a level; what varies within a level is not in it.
        """
        if self.draws is None:
            return None
        ratio = torch.where(self.draws > 0, self.effort**2 / self.draws, 0.0)
        return (ratio * self.width).sum().item() if ratio.isfinite().all() else None

    @property
    def settled(self) -> Tensor | None:
        """Where w goes as an uncertainty is learned, p(λ)/E(λ) of the reference model, its largest one; else None."""
        if not self.learns or self.draws is None:
            return None
        weighting = self.draws / reference_error(self.logsnr)
        return weighting / weighting.max()

    @cached_property
    def majorant(self) -> Tensor:
        """The smallest non-increasing function that is nowhere below w: max over λ′ ≥ λ.  (Section 5, EDM-monotonic)"""
        return majorant(self.weighting)

    @cached_property
    def nearest(self) -> Tensor:
        """The non-increasing function nearest to w in ∫ (·)² dλ over the range: isotonic regression.

        Where w rises from the noisy end on, its height depends on where the range is cut; :attr:`majorant` does not.
        """
        pools: list[tuple[float, float, int]] = []  # mean, width and number of levels
        for w, width in zip(self.weighting.tolist(), self.width.tolist(), strict=True):
            mean, total, count = w, width, 1
            while pools and pools[-1][0] < mean:
                before, other, number = pools.pop()
                mean, total = (before * other + mean * total) / (other + total), other + total
                count += number
            pools.append((mean, total, count))
        return torch.cat([torch.full((count,), mean, dtype=torch.float64) for mean, _, count in pools])

    def monotonised(self, how: Literal["majorant", "nearest"] = "majorant") -> Tabulated:
        """:attr:`majorant` or :attr:`nearest` as a weighting to train with, on the range of λ."""
        return self._table(getattr(self, how))

    def correction(self) -> Tabulated:
        """The factor :attr:`majorant`/w, one outside of dips: what the loss of an example is to be multiplied by.

        It is the same whatever the network predicts, however its levels are drawn, and whatever the loss is weighed by.
        """
        return self._table(torch.where(self.weighting > 0, self.majorant / self.weighting, 0.0))

    def _table(self, values: Tensor) -> Tabulated:
        """``values`` where they are positive, held from the outermost levels to the ends of the range."""
        values = torch.cat([values[:1], values, values[-1:]])
        levels = torch.cat([self.edges[:1], self.logsnr, self.edges[-1:]])
        return Tabulated(levels[values > 0].tolist(), values[values > 0].tolist())

    def corrections(self) -> list[tuple[float, float, float, float]]:
        """λ in nats, σ of VE, flow time and the factor of :meth:`correction` at five levels of each dip, rising.

        Without those at which w is zero.
        """
        if self.below_peak is None or self.monotonic is not False or self.objection:
            return []
        levels = torch.cat(
            [
                torch.linspace(low if high <= -SHOWN else max(low, -SHOWN), high, 7, dtype=torch.float64)[1:-1]
                for low, high in self.below_peak.dips
            ]
        )
        factors = self.correction()(levels).tolist()
        return [
            (level, math.exp(-level / 2), 1 / (1 + math.exp(level / 2)), factor)
            for level, factor in zip(levels.tolist(), factors, strict=True)
            if factor > 0
        ]

    @property
    def verdict(self) -> str:
        """One line: monotone, not, or not decided, and how far."""
        if self.objection:
            return self.objection
        if self.monotonic:
            return "monotone: the ELBO of data with Gaussian noise added"
        if self.below_peak is None:
            return "monotone or not: the measurement does not decide it"
        peak, draws, loss, within, _ = self.below_peak
        shares = ([] if draws is None else [f"{draws:.1%} of the draws"]) + [f"{loss:.1%} of the loss*"]
        decided = "not monotone" if self.monotonic is False else "not decided"
        where = f"peak at λ = {f'{peak:.3f}' if within is None else '{:.2f} … {:.2f}'.format(*within)}, below it"
        where = f"w dips for λ in {self.dips}, with" if self.dips else where
        return f"{decided}: {where} {' and '.join(shares)}"

    def _row(self, values: Tensor) -> str:
        """A row of blocks from the noisiest level to the cleanest, the highest being full."""
        columns = torch.linspace(self.logsnr[0], self.logsnr[-1], 60, dtype=torch.float64)
        cells = values[torch.searchsorted(self.logsnr, columns).clamp(max=len(values) - 1)]
        return "".join(" ▁▂▃▄▅▆▇█"[height] for height in (cells / cells.max() * 8).round().int().tolist())

    def summary(self) -> str:
        """For a terminal, 120 columns."""
        measured = {"stationary": self.stationary, "quadratic": self.quadratic, "isotropic": self.isotropic}
        found = {name: "yes" if value else "NO" for name, value in measured.items() if value is not None}
        rows = {
            "range of λ": "[{:.3f}, {:.3f}] nats".format(*self.ends),
            "w(λ)": self._row(self.weighting),
            "loss by λ*": self._row(self.effort),
            "verdict": self.verdict,
            "p_w / max w": f"negative mass {self.negative_mass:.3g}, clean data {self.clean_mass:.2g}",
        }
        if self.hangs_on_the_end:
            rows["p_w / max w"] += f"; w still grows at λ = {self.ends[0]:.3g}, where the range is cut"
        if self.draws is not None:
            rows["draws by λ"] = self._row(self.draws)
        if self.prediction is not None:
            rows["prediction"] = self.prediction
        if self.settled is not None:
            rows["w settled*"] = self._row(self.settled)
        if found:
            rows["exact model"] = ", ".join(f"{name}: {value}" for name, value in found.items())
        if self.ratio is not None:
            spread = self.ratio[self.ratio.isfinite()]
            rows["expected"] = (
                f"{self.expected}: {'the same objective' if self.agrees else 'ANOTHER OBJECTIVE'}, "
                f"ratio from {spread.min():.3g} to {spread.max():.3g}"
            )
            if self.expected_ends and max(abs(a - b) for a, b in zip(self.expected_ends, self.ends, strict=True)) > 0.1:
                rows["its range"] = (
                    "[{:.3f}, {:.3f}] nats, here [{:.3f}, {:.3f}]: ".format(*self.expected_ends, *self.ends)
                    + f"{self.unshared:.1%} of draws or loss* is in one alone"
                )
        if corrections := self.corrections():
            more = (self.majorant - self.weighting) * reference_error(self.logsnr) * self.width
            cost = more.sum() / (self.weighting * reference_error(self.logsnr) * self.width).sum()
            levels, factors = (", ".join(f"{row[i]:.3g}" for row in reversed(corrections)) for i in (0, 3))
            rows["monotone by"] = f"the loss times {factors} at λ = {levels}; {cost:+.1%} of the loss*"
        if self.saving is not None and self.saving > 1.05:
            rows["variance"] = (
                f"drawn in proportion to it, the loss* at a level has a {self.saving:.2g}× smaller second moment"
            )
        lines = [self.name, *(f"  {name:<12} {text}" for name, text in rows.items())]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join([*lines, "  * of the exact denoiser of Gaussian data with the 1/f² spectrum of photographs"])

    def __str__(self) -> str:
        return self.summary()

    def json(self) -> dict[str, Any]:
        """Everything as plain values, stable: the attributes under their names, None where not measured.

        ``format`` is raised when a key changes; levels in nats; NaN is None.
        """
        stated = [one.name for one in fields(self) if one.name not in ("width", "said")]
        names = [*stated, "negative_mass", "effort", "saving", "majorant", "nearest", "settled"]
        return {"format": FORMAT, **{name: plain(getattr(self, name)) for name in names}}

    def code(self) -> str:
        """What makes this audit again, and the monotone weighting where there is one to be made."""
        options = dict(self.said)
        what = [repr(options.pop("what"))] if "what" in options else []
        call = ", ".join(what + [f"{key}={value!r}" for key, value in options.items()]) if what else repr(options)
        if not self.said or len(call) > 1000:
            call = "what"
        lines = ["import paperlib", "", f"found = paperlib.audit({call})"]
        lines[-1] += "  # the function or object that was audited" if call == "what" else ""
        if self.corrections():
            lines += [
                'weighting = found.monotonised()  # or "nearest"; for objectives.WeightedLoss',
                "factor = found.correction()  # or multiply your own loss of each example by",
                "# factor(logsnr.clamp(*factor.ends))",
            ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from paperlib.auditing import report

        return report.section(self)


def of_loss(loss: PublishedLoss, name: str, said: Mapping[str, Any], notes: tuple[str, ...] = ()) -> Audit:
    """The audit of a loss that is known by its formula, on the range of its schedule.

    Raises:
        ValueError: for a w that is NaN, infinite, or zero at the noisy end.
    """
    if terminal := loss.schedule.terminal_mass:
        notes += (f"{terminal:.2g} of the draws are noise alone (λ = −∞): a term of its own, no part of w.",)
    found = of_weighting(loss.weighting, *loss.schedule.ends, name, said, notes)
    below = found.below_peak
    if below is not None:
        draws = -loss.schedule.time(torch.tensor(below.dips, dtype=torch.float64)).diff().sum().item()
        below = below._replace(draws=(1 - terminal) * draws + terminal * (below.dips[0][0] == loss.schedule.ends[0]))
    prediction = PREDICTIONS.called(loss.prediction)
    return replace(found, draws=loss.schedule.density(found.logsnr), below_peak=below, prediction=prediction)


def of_weighting(
    weighting: Weighting,
    low: float,
    high: float,
    name: str,
    said: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> Audit:
    """The audit of a weighting on [low, high], however its levels are drawn.

    Raises:
        ValueError: for a w that is NaN, infinite, or zero at the noisy end.
    """
    edges = torch.linspace(low, high, POINTS + 1, dtype=torch.float64)
    logsnr, width = (edges[1:] + edges[:-1]) / 2, edges.diff()
    log_w = weighting.log(logsnr)
    if (bad := log_w.isnan() | (log_w == math.inf)).any():
        raise ValueError(f"{name}: w is NaN or infinite at log-SNR {logsnr[bad][0].item():g}; no curve can be shown.")
    if log_w.max() == -math.inf:
        raise ValueError(f"{name}: w is zero on all of [{low:g}, {high:g}].")
    measure = Augmentation(weighting, low, high)
    top = max(log_w.max().item(), weighting.log(edges[1:-1]).max().item(), math.log(measure.scale))
    scale = measure.scale / math.exp(top)
    levels, masses = measure.atoms
    w, error = (log_w - top).exp(), weighting.log_error(logsnr)
    monotonic = {"monotone": True, "within error": None, "not monotone": False}[weighting.monotonicity(low, high)]
    found = Audit(
        name=name,
        logsnr=logsnr,
        weighting=w,
        width=width,
        draws=None,
        band=BAND * error * w if error.any() else None,
        monotonic=monotonic,
        augmentation_density=measure.density(logsnr) * scale,
        atoms=tuple(zip(levels.tolist(), (masses * scale).tolist(), strict=True)),
        clean_mass=measure.clean_mass * scale,
        below_peak=None,
        notes=notes,
        said=said,
    )
    if monotonic:
        return found
    dips = weighting.dips(low, high)
    share = sum((found.effort * edges.clamp(*dip).diff()).sum().item() for dip in dips)
    return replace(found, below_peak=BelowPeak(dips[-1][1], None, share, dips=dips))


def compared(found: Audit, name: str, expected: Weighting) -> Audit:
    """``found`` beside what was meant: w over ``expected``, both averaged over what each level stands for."""
    inner = (torch.arange(256, dtype=torch.float64) + 0.5) / 256 - 0.5
    wanted = expected((found.logsnr[:, None] + inner * found.width[:, None]).flatten()).reshape(-1, 256)
    ratio = torch.where((wanted > 0).all(1), found.weighting / wanted.mean(1), math.nan)  # not where it ends in a cell
    scale = ratio.nanmedian()
    if scale.isnan():
        raise ValueError(f"{name} and {found.name} share no level at which both have a weight.")
    ratio = ratio / scale
    slack = SAME * found.weighting + (0 if found.band is None else found.band)
    agrees = bool((((ratio - 1).abs() * found.weighting <= slack) | ratio.isnan()).all())
    low, high = expected.ends or found.ends
    levels = low + (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS * (high - low)
    log_w, place = expected.log(levels), torch.bucketize(levels, found.edges[1:-1])
    none = outside(levels, *found.ends) | (found.weighting[place] == 0)
    loss = (log_w - log_w.max()).exp() * reference_error(levels)
    shares = [(found.effort * found.width, (wanted == 0).double().mean(1)), (loss, none.double())]
    if found.draws is not None:
        shares.append((found.draws * found.width, shares[0][1]))
    if isinstance(expected, ImpliedWeighting):
        shares.append((expected.schedule.density(levels), shares[1][1]))
    unshared = max(((share * alone).sum() / share.sum()).item() for share, alone in shares)
    return replace(
        found,
        expected=name,
        ratio=ratio,
        expected_ends=expected.ends,
        unshared=unshared,
        agrees=agrees and unshared <= SAME,
    )


def reference_error(logsnr: Tensor) -> Tensor:
    """E‖ε̂ − ε‖² a dimension, of the reference model: mean of v/(v + e^{−λ}) over its variances v."""
    frequency = torch.fft.fftfreq(64, dtype=torch.float64) * 64
    square = (frequency[:, None] ** 2 + frequency**2).flatten()[1:]
    variance = 0.25 * len(square) / square / (1 / square).sum()
    values, counts = variance.unique(return_counts=True)
    return torch.sigmoid(logsnr[:, None] + values.log()) @ counts.double() / len(square)


def plain(value: Any) -> Any:
    """As JSON has it: tensors and tuples as lists, a named tuple as a dictionary, None for what is not finite."""
    if isinstance(value, Tensor):
        return [one if math.isfinite(one) else None for one in value.tolist()]
    if isinstance(value, BelowPeak):
        return {name: plain(held) for name, held in value._asdict().items()}
    if isinstance(value, tuple):
        return [*map(plain, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
