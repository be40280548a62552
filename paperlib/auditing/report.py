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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paperlib import process
from paperlib.auditing.result import SHOWN, Audit

if TYPE_CHECKING:  # which needs the engine
    from paperlib.auditing.trained import NetworkAudit

WIDTH, HEIGHT, LEFT, BOTTOM = 760, 220, 46, 74
"""Of a picture, and what its axes take of it, in pixels."""
POINTS = 150
"""Of a curve, about."""
FEW = 5
"""Audits up to which a page has every detail; with more, one small photograph."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title></head><body style="margin:0 auto;max-width:50rem;padding:1rem">{body}</body></html>
"""
STYLE = """<style>
.audit { color-scheme: light dark; font: 1rem/1.45 system-ui, sans-serif; --a: #0072b2; --b: #d55e00; --c: #888; }
@media (prefers-color-scheme: dark) { .audit { --a: #56b4e9; --b: #e69f00; } }
.audit svg { width: 100%; height: auto; } .audit svg text { fill: currentColor; font-size: 11px; }
.audit figure { margin: 1rem 0; break-inside: avoid; } .audit pre { overflow-x: auto; }
.audit td, .audit th { padding: 0 1rem; text-align: right; font-variant-numeric: tabular-nums; }
.audit img { width: 9rem; max-width: 30%; } .audit figcaption { font-size: .9rem; }
</style>"""


def page(audits: "Sequence[Audit | NetworkAudit]") -> str:
    """One page of all of them: the weightings side by side first, then each."""
    beside = ""
    losses = [found for found in audits if isinstance(found, Audit)]
    if len(losses) > 1:
        curves = [
            (found.logsnr, found.weighting, f"hsl({360 * i // len(losses)} 70% 50%)") for i, found in enumerate(losses)
        ]
        names = ", ".join(
            f'<span style="color:{curve[2]}">{escape(found.name)}</span>'
            for found, curve in zip(losses, curves, strict=True)
        )
        beside = (
            f'<div class="audit"><h1>Side by side</h1>{_figure(curves, f"w(λ) over its largest value: {names}.")}</div>'
        )
    title = ", ".join(found.name for found in audits)
    coarse = 1 if len(audits) <= FEW else 3
    bodies = "".join(_body(found, coarse) for found in audits)
    return PAGE.format(title=escape(f"What does {title} optimise?"), body=STYLE + beside + bodies)


def section(found: "Audit | NetworkAudit") -> str:
    """One audit, for a notebook."""
    return STYLE + _body(found)


def _body(found: "Audit | NetworkAudit", coarse: int = 1) -> str:
    parts = _of_loss(found, coarse) if isinstance(found, Audit) else _of_network(found)
    whole = [f"<h1>{escape(found.name)}</h1>", *parts, f"<pre>{escape(found.summary())}</pre>", _copied(found.code())]
    return f'<article class="audit">{"".join(whole)}</article>'


def _copied(code: str) -> str:
    """Code with a button that copies it."""
    button = '<button onclick="navigator.clipboard.writeText(this.nextElementSibling.textContent)">copy</button>'
    return f"<div><p>As code:</p>{button}<pre><code>{escape(code)}</code></pre></div>"


def _of_network(found: "NetworkAudit") -> list[str]:
    curves, text = [], f"E‖ε̂ − ε‖² a dimension, over {{:.3g}}, on {found.images:,} of {found.data or 'the examples'}"
    for error, spread, colour in [
        (*found.error(), "var(--a)"),
        *([(*found.error(found.gap), "var(--b)")] if found.gap else []),
    ]:
        curves += [(found.logsnr, error + sign * 2 * spread, "var(--c)") for sign in (-1, 1)]
        curves += [(found.logsnr, error, colour)]
    largest = max(values.max().item() for _, values, _ in curves)
    text = text.format(largest) + ", with two standard errors" + ("; above the oracle in orange." if found.gap else ".")
    return [_figure([(level, values / largest, colour) for level, values, colour in curves], escape(text))]


def _of_loss(found: Audit, coarse: int) -> list[str]:
    w = [(found.logsnr, found.weighting, "var(--a)")]
    settled = ""
    if found.settled is not None:
        w += [(found.logsnr, found.settled, "var(--b)")]
        settled = " In orange where it goes as the uncertainty is learned."
    if found.band is not None:
        w += [(found.logsnr, (found.weighting + sign * found.band).clamp(min=0), "var(--c)") for sign in (-1, 1)]
    peak = found.augmentation_density.abs().max().clamp(min=1e-12)
    levels = [(found.logsnr, found.effort / found.effort.max(), "var(--b)")]
    if found.draws is not None:
        levels += [(found.logsnr, found.draws / found.draws.max(), "var(--a)")]
    parts = [
        f"<p><strong>{escape(_plain_words(found))}</strong></p>",
        "".join(f"<p>{escape(note[0].upper() + note[1:])}</p>" for note in found.notes),
        _figure(
            w,
            "w(λ), the weight of the ε error, over its largest value; the band, where it was measured, in grey."
            + settled,
        ),
        _figure(
            [(found.logsnr, found.augmentation_density / peak, "var(--a)")],
            "p_w, the noise levels in whose ELBO the loss can be read, over its largest size. Below zero it is none: "
            f"negative mass {found.negative_mass:.3g}, clean data {found.clean_mass:.2g}, in units of max w.",
        ),
        _photographs(found, coarse),
        _figure(levels, "Where the draws lie (blue, if known) and where the loss of a reference model lies (orange)."),
    ]
    if found.ratio is not None:
        ratio = found.ratio.nan_to_num(0)
        text = f"w over that of {found.expected}, over its largest: flat where they are the same objective."
        parts.append(_figure([(found.logsnr, ratio / ratio.max(), "var(--a)")], escape(text)))
    if not found.monotonic:
        slope = (-torch.gradient(found.majorant, spacing=(found.logsnr,))[0]).clamp(min=0)
        shapes = [(found.logsnr, slope / slope.max().clamp(min=1e-12), "var(--a)")]
        both = [(found.logsnr, found.nearest, "var(--b)"), (found.logsnr, found.majorant, "var(--a)")]
        text = "Made monotone: the smallest w that is nowhere below (blue), and the nearest one (orange)."
        parts.append(_figure(both, text))
        parts.append(_figure(shapes, "p_w of the blue one, over its largest value: nowhere below zero."))
    if corrections := found.corrections():
        cells = "".join(
            f"<tr>{''.join(f'<td>{value:.3g}</td>' for value in row)}</tr>" for row in reversed(corrections)
        )
        parts.append(
            "<p>To train with the blue one, multiply the loss of each example, whatever it predicts and however it is "
            f"weighed, by</p><table><tr><th>λ</th><th>σ (VE)</th><th>flow t</th><th>factor</th></tr>{cells}</table>"
        )
    return parts


def _plain_words(found: Audit) -> str:
    if found.quadratic is False:
        return "This loss is no weighted squared error, so it is the ELBO of no data; a local weighting is shown."
    if found.monotonic:
        return "This loss is the ELBO of data with Gaussian noise added; how much noise, p_w says."
    if found.below_peak is None or found.monotonic is None:
        return "Whether this loss is the ELBO of noisy data, the measurement does not decide."
    level, draws, loss, _ = found.below_peak
    where = "" if draws is None else f"{draws:.1%} of the draws and "
    return (
        f"This loss is the ELBO of no noisy data: its weight falls towards the noisy end below λ = {level:.2f}, where "
        f"{where}{loss:.1%} of the loss of a reference model lie."
    )


def _figure(curves: Sequence[tuple[Tensor, Tensor, str]], caption: str) -> str:
    """Curves over λ, values from −1 or 0 to 1, with the axis also as σ of VE, SNR and flow time."""
    low = max(min(levels[0].item() for levels, _, _ in curves), -SHOWN)
    high = min(max(levels[-1].item() for levels, _, _ in curves), SHOWN)
    floor = -1.0 if min(values.min().item() for _, values, _ in curves) < 0 else 0.0

    def x(level: float) -> float:
        return LEFT + (level - low) / (high - low) * (WIDTH - LEFT - 8)

    def y(value: float) -> float:
        return 8 + (1 - value) / (1 - floor) * (HEIGHT - 16)

    lines = [f'<path d="M{LEFT} {y(0):.1f}H{WIDTH - 8}M{LEFT} 8V{HEIGHT - 8}" stroke="currentColor" fill="none"/>']
    lines += [f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in {floor, 0.0, 1.0}]
    names = ("λ", "σ (VE)", "SNR", "flow t")
    lines += [f'<text x="0" y="{HEIGHT + 8 + 17 * row}">{name}</text>' for row, name in enumerate(names)]
    for tick in range(math.ceil((low + 1) / 4) * 4, math.floor(high) + 1, 4):
        marks = (tick, math.exp(-tick / 2), math.exp(tick), 1 / (1 + math.exp(tick / 2)))
        lines += [
            f'<text x="{x(tick):.1f}" y="{HEIGHT + 8 + 17 * row}" text-anchor="middle">{mark:.2g}</text>'
            for row, mark in enumerate(marks)
        ]
    for levels, values, colour in curves:
        inside = ((levels >= low) & (levels <= high)).nonzero().flatten()
        inside = inside[:: max(1, len(inside) // POINTS)]
        points = " ".join(f"{x(levels[i].item()):.1f},{y(values[i].item()):.1f}" for i in inside.tolist())
        lines.append(f'<polyline points="{points}" fill="none" style="stroke:{colour}" stroke-width="1.8"/>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT + BOTTOM}" role="img">{"".join(lines)}</svg>'
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


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
            f'<img alt="{name} at λ = {level:.2f}" src="{photograph(name, level, 4 * coarse)}"> '
            for name in ("china.jpg", "flower.jpg")[: 2 if coarse == 1 else 1]
            for level in levels
        ]
    except ModuleNotFoundError:
        return "<p>Photographs at these levels need scikit-learn and Pillow.</p>"
    signed = "" if found.monotonic else "the positive part of "
    shown = ", ".join(f"{level:.1f}" for level in levels)
    caption = f"What it looks at: 10, 30, 50, 70 and 90 % of {signed}p_w lie below λ = {shown}."
    return f"<figure>{''.join(pictures)}<figcaption>{caption}</figcaption></figure>"
