"""The report of audits: one HTML page that needs nothing else, no network and no script.

Plain words first, then w and p_w as pictures, photographs at the noise levels of p_w, what a monotone w would be, and
the description as code.  The photographs come with scikit-learn; without it, or Pillow, the page says so.
"""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from paperlib import process
from paperlib.auditing.result import SHOWN, Audit

if TYPE_CHECKING:  # which needs the engine
    from paperlib.auditing.trained import NetworkAudit

WIDTH, HEIGHT, LEFT, LINE = 760, 220, 72, 24
"""Of a picture, the room beside it, and a line of text below it; units that are pixels on a wide screen."""
POINTS = 150
"""Of a curve, about."""
FEW = 5
"""Audits up to which a page has every detail; with more, one small photograph."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title></head><body style="margin:0 auto;max-width:50rem;padding:1rem">{body}</body></html>
"""
STYLE = """<style>
.audit { font: 1rem/1.45 system-ui, sans-serif; --a: #0072b2; --b: #d55e00; --c: #888; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { .audit { --a: #56b4e9; --b: #e69f00; } }
.audit svg { width: 100%; height: auto; } .audit svg text { fill: currentColor; font-size: 13px; }
.audit figure { margin: 1rem 0; break-inside: avoid; } .audit pre { overflow-x: auto; font-size: .8rem; }
.audit td, .audit th { padding: 0 1rem; text-align: right; font-variant-numeric: tabular-nums; }
.audit td, .audit th, .audit pre { overflow-wrap: normal; }
.audit .photographs { display: grid; grid-template-columns: repeat(5, 1fr); gap: 4px; }
.audit img { width: 100%; } .audit figcaption { font-size: .9rem; }
@media (max-width: 40rem) { .audit svg text { font-size: 21px; } .audit td, .audit th { padding: 0 .5rem; } }
@media print { .audit pre { white-space: pre-wrap; } .audit button { display: none; } }
</style>"""


class Curve(NamedTuple):
    """A curve over λ: what it is called, empty for one more of the same name, levels (N,), values (N,) and colour."""

    name: str
    levels: Tensor
    values: Tensor
    colour: str = "var(--a)"


def page(audits: "Sequence[Audit | NetworkAudit]") -> str:
    """One page of all of them: the weightings side by side first, then each."""
    beside = ""
    losses = [found for found in audits if isinstance(found, Audit)]
    if len(losses) > 1:
        heights = [found.weighting / found.weighting[found.logsnr.abs() <= SHOWN].max() for found in losses]
        curves = [
            Curve(found.name, found.logsnr, height, f"hsl({360 * i // len(losses)} 70% 50%)")
            for i, (found, height) in enumerate(zip(losses, heights, strict=True))
        ]
        beside = f'<div class="audit"><h1>Side by side</h1>{_figure("w(λ) of each, over its largest.", *curves)}</div>'
    title = ", ".join(found.name for found in audits)
    coarse = 1 if len(audits) <= FEW else 3
    bodies = "".join(_body(found, coarse) for found in audits)
    return PAGE.format(title=escape(f"What does {title} optimise?"), body=STYLE + beside + bodies)


def section(found: "Audit | NetworkAudit") -> str:
    """One audit, for a notebook."""
    return STYLE + _body(found)


def _body(found: "Audit | NetworkAudit", coarse: int = 1) -> str:
    parts = _of_loss(found, coarse) if isinstance(found, Audit) else _of_network(found)
    button = '<button onclick="navigator.clipboard.writeText(this.nextElementSibling.textContent)">copy</button>'
    code = f"<div><p>As code:</p>{button}<pre><code>{escape(found.code())}</code></pre></div>"
    whole = [f"<h1>{escape(found.name)}</h1>", *parts, f"<pre>{escape(found.summary())}</pre>", code]
    return f'<article class="audit">{"".join(whole)}</article>'


def _of_network(found: "NetworkAudit") -> list[str]:
    curves = []
    for name, of, colour in (
        ("E‖ε̂ − ε‖² a dimension", found.levels, "var(--a)"),
        ("above the oracle", found.gap, "var(--b)"),
    ):
        if of is not None:
            error, spread = found.error(of)
            curves += [Curve("", found.logsnr, error + sign * 2 * spread, "var(--c)") for sign in (-1, 1)]
            curves += [Curve(name, found.logsnr, error, colour)]
    largest = max(curve.values.max().item() for curve in curves)
    data = f"{found.images:,} of {found.data or 'the examples'}"
    return [_figure(f"The error on {data}, over {largest:.3g}, with two standard errors.", *curves)]


def _of_loss(found: Audit, coarse: int) -> list[str]:
    w = [Curve("w", found.logsnr, found.weighting)]
    if found.band is not None:
        bounds = [(found.weighting + sign * found.band).clamp(min=0) for sign in (-1, 1)]
        w += [
            Curve(name, found.logsnr, bound, "var(--c)") for name, bound in zip(("95 % band", ""), bounds, strict=True)
        ]
    if found.settled is not None:
        w += [Curve("where it goes as the uncertainty is learned", found.logsnr, found.settled, "var(--b)")]
    levels = [Curve("loss of a reference model", found.logsnr, found.effort, "var(--b)")]
    if found.draws is not None:
        levels += [Curve("draws", found.logsnr, found.draws)]
    end = f" Max w is at λ = {found.ends[0]:.3g}, where the range is cut." if found.hangs_on_the_end else ""
    mass = f"negative mass {found.negative_mass:.3g}, clean data {found.clean_mass:.2g}, in units of max w.{end}"
    parts = [
        f"<p><strong>{escape(_plain_words(found))}</strong></p>",
        "".join(f"<p>{escape(note[0].upper() + note[1:])}</p>" for note in found.notes),
        _figure("w(λ), the weight of the ε error, over its largest value here.", *w),
        _figure(
            f"p_w, the noise levels in whose ELBO the loss can be read, over its largest size; below zero none: {mass}",
            Curve("p_w", found.logsnr, found.augmentation_density),
        ),
        _photographs(found, coarse),
        _figure("Where the draws and the loss lie, each a share per nat, over the largest.", *levels),
    ]
    if found.ratio is not None:
        both = found.ratio > 0  # and not NaN
        curve = Curve("", found.logsnr[both], found.ratio[both].log().clamp(-math.log(1000), math.log(1000)))
        top = max(curve.values.abs().max().item(), math.log(2))
        factor = f"from a factor 1/{math.exp(top):.3g} to {math.exp(top):.3g}"
        text = f"log w − log w of {found.expected}, {factor}: zero where they are the same objective."
        parts.append(_figure(text, curve, top=top))
    if corrections := found.corrections():
        nearest = "nearest in ∫(·)²dλ on [{:.3g}, {:.3g}], on which its height depends".format(*found.ends)
        slope = (-torch.gradient(found.majorant, spacing=(found.logsnr,))[0]).clamp(min=0)
        cells = "".join(
            f"<tr>{''.join(f'<td>{value:.3g}</td>' for value in row)}</tr>" for row in reversed(corrections)
        )
        parts += [
            _figure(
                "Made monotone.",
                Curve(nearest, found.logsnr, found.nearest, "var(--b)"),
                Curve("majorant, the smallest w that is nowhere below", found.logsnr, found.majorant),
            ),
            _figure("p_w of the majorant, over its largest value: nowhere below zero.", Curve("", found.logsnr, slope)),
            "<p>To train with the majorant, multiply the loss of each example, whatever it predicts and however it is "
            f"weighed, by</p><table><tr><th>λ</th><th>σ (VE)</th><th>flow t</th><th>factor</th></tr>{cells}</table>",
        ]
    return parts


def _plain_words(found: Audit) -> str:
    said = ""
    if found.agrees is not None:
        said = f" It is {'' if found.agrees else 'not '}the objective that was meant, {found.expected}."
    if found.objection:
        return f"This loss is not the ELBO of any data: {found.objection}.{said}"
    if found.monotonic:
        return f"This loss is the ELBO of data with Gaussian noise added; how much noise, p_w says.{said}"
    if found.below_peak is None or found.monotonic is None:
        return f"Whether this loss is the ELBO of noisy data, the measurement does not decide.{said}"
    below = found.below_peak
    where = "" if below.draws is None else f"{below.draws:.1%} of the draws and "
    smaller = f"is smaller for λ in {found.dips} than at cleaner levels"
    falls = smaller if found.dips else f"falls towards the noisy end below λ = {below.logsnr:.2f}"
    return (
        f"This loss is not the ELBO of any noisy data: its weight {falls}, where {where}{below.loss:.1%} of the loss "
        f"of a reference model lie.{said}"
    )


def _figure(caption: str, *curves: Curve, top: float | None = None) -> str:
    """Curves over λ of ± :data:`SHOWN`, over ``top``, by default what is largest, with other names of the levels."""
    low = max(min(curve.levels[0].item() for curve in curves), -SHOWN)
    high = min(max(curve.levels[-1].item() for curve in curves), SHOWN)
    shown = [(curve.levels >= low) & (curve.levels <= high) for curve in curves]
    inside = [curve.values[kept] for curve, kept in zip(curves, shown, strict=True)]
    top = top or max(values.abs().max().item() for values in inside) or 1.0
    floor = -1.0 if min(values.min().item() for values in inside) < 0 else 0.0

    def x(level: float) -> float:
        return LEFT + (level - low) / (high - low) * (WIDTH - LEFT - 8)

    def y(value: float) -> float:
        return LINE / 2 + (1 - value) / (1 - floor) * (HEIGHT - LINE)

    lines = [
        f'<path d="M{LEFT} {y(0):.1f}H{WIDTH - 8}M{LEFT} {y(1):.1f}V{y(floor):.1f}" stroke="currentColor" fill="none"/>'
    ]
    lines += [f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in {floor, 0.0, 1.0}]
    names = ("λ", "σ (VE)", "SNR", "flow t")
    lines += [f'<text x="0" y="{HEIGHT + (row + 0.6) * LINE:.1f}">{name}</text>' for row, name in enumerate(names)]
    for tick in range(math.ceil((low + 1) / 4) * 4, math.floor(high) + 1, 4):
        marks = (tick, math.exp(-tick / 2), math.exp(tick), 1 / (1 + math.exp(tick / 2)))
        lines += [
            f'<text x="{x(tick):.1f}" y="{HEIGHT + (row + 0.6) * LINE:.1f}" text-anchor="middle">{mark:.2g}</text>'
            for row, mark in enumerate(marks)
        ]
    for curve, kept, values in zip(curves, shown, inside, strict=True):
        every = max(1, len(values) // POINTS)
        along = zip(curve.levels[kept][::every].tolist(), (values / top)[::every].tolist(), strict=True)
        points = " ".join(f"{x(level):.1f},{y(value):.1f}" for level, value in along)
        lines.append(f'<polyline points="{points}" fill="none" style="stroke:{curve.colour}" stroke-width="1.8"/>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 4 * LINE}" role="img">{"".join(lines)}</svg>'
    keys = [f'<span style="color:{one.colour}">━</span> {escape(one.name)}' for one in curves if one.name]
    legend = f"<div>{'; '.join(keys)}</div>" if len(keys) > 1 else ""
    return f"<figure>{svg}<figcaption>{escape(caption)}{legend}</figcaption></figure>"


def quantiles(found: Audit, at: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9)) -> list[float]:
    """Levels below which these shares of p_w lie, of its positive part where it is signed; clean data at the end."""
    mass = found.augmentation_density.clamp(min=0) * found.width
    for level, atom in found.atoms:
        mass[(found.logsnr - level).abs().argmin()] += max(atom, 0.0)
    mass = torch.cat([mass, mass.new_tensor([found.clean_mass])]).cumsum(0)
    levels = torch.cat([found.logsnr, found.logsnr.new_tensor([found.ends[1]])])
    place = torch.searchsorted(mass, torch.tensor(at, dtype=torch.float64) * mass[-1])
    return levels[place].tolist()


def photograph(name: str, level: float, every: int = 4) -> str:
    """A photograph of scikit-learn's, every so many pixels of it, as a loss sees it at log-SNR ``level``: z/(α + σ).

    Returns:
        The address of a JPEG that holds the picture itself.

    Raises:
        ModuleNotFoundError: without scikit-learn, Pillow or NumPy.
    """
    package = find_spec("sklearn")  # found, not imported, which takes longer than all the rest
    if package is None or package.origin is None:
        raise ModuleNotFoundError("photographs come with scikit-learn: pip install scikit-learn.", name="sklearn")
    import numpy as np
    from PIL import Image

    file = Path(package.origin).parent / "datasets" / "images" / name
    x = torch.from_numpy(np.asarray(Image.open(file))[::every, ::every].copy()).double() / 127.5 - 1
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logsnr = torch.tensor(level, dtype=torch.float64)
    z = process.to_flow(process.diffuse(x, eps, logsnr), logsnr)
    held = io.BytesIO()
    Image.fromarray(((z.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()).save(held, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"


def _photographs(found: Audit, coarse: int) -> str:
    """Photographs at the quantiles of p_w."""
    levels = quantiles(found)
    try:
        pictures = [
            f'<img alt="{name} at λ = {level:.2f}" src="{photograph(name, level, 4 * coarse)}">'
            for name in ("china.jpg", "flower.jpg")[: 2 if coarse == 1 else 1]
            for level in levels
        ]
    except ModuleNotFoundError:
        return "<p>Photographs at these levels need scikit-learn and Pillow.</p>"
    signed = "" if found.monotonic else "the positive part of "
    shown = ", ".join(f"{level:.1f}" for level in levels)
    caption = f"What it looks at: 10, 30, 50, 70 and 90 % of {signed}p_w lie below λ = {shown}."
    return f'<figure><div class="photographs">{"".join(pictures)}</div><figcaption>{caption}</figcaption></figure>'
