"""One style for all figures: sizes, fonts, a fixed colour per weighting and per schedule, units on the axes.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; where there are more curves than colours,
the line style differs.
"""

from functools import cache
from typing import Any
from zlib import crc32

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from paperlib import weightings

WIDTH = 7.2
"""Width of a figure in inches: a column of text."""

LOGSNR_LABEL = "log-SNR λ (nats)"

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#D0C000", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8C8C8C"

BLUES = {1: "#74B9E0", 2: BLUE, 3: "#00588A", 4: "#003F63", 5: "#00263C"}
"""The sigmoid weightings of the sweep over k, darker for larger ones; k = 2 has the colour of ``sigmoid``."""

STYLES: dict[str, tuple[str, str, Any]] = {
    # weightings, by the names of weightings.WEIGHTINGS
    "sigmoid": ("sigmoid, k = 2", BLUE, "-"),
    "edm": ("EDM", VERMILION, "-"),
    "edm_monotonic": ("EDM-monotonic", ORANGE, "-"),
    "iddpm": ("IDDPM", PURPLE, "-"),
    "elbo": ("ELBO", BLACK, "-"),
    "v_cosine": ("v-prediction, cosine", GREEN, "-"),
    "flow_matching_ot": ("flow matching, OT", GREEN, "--"),
    "indi": ("InDI", SKY, "-"),
    "p2": ("P2", YELLOW, "-"),
    "min_snr": ("Min-SNR", GREY, "-"),
    "x_cosine": ("x-prediction, cosine", SKY, "--"),
    "sd3_logit_normal": ("SD3, logit-normal", VERMILION, "--"),
    "sd3_cosmap": ("SD3, cosmap", PURPLE, "--"),
    "soft_min_snr": ("soft Min-SNR", GREY, "--"),
    "debiased": ("debiased", ORANGE, "--"),
    "edm2": ("EDM2", VERMILION, ":"),
    **{f"sigmoid_k{k}": (f"sigmoid, k = {k}", shade, "-" if k == 2 else "-.") for k, shade in BLUES.items()},
    # schedules, by the names of schedules.SCHEDULES
    "cosine": ("cosine", PURPLE, "-"),
    "edm_training": ("EDM, training", VERMILION, "-"),
    "edm_sampling": ("EDM, sampling", VERMILION, "--"),
    "linear_logsnr": ("linear log-SNR (VDM)", BLACK, "-"),
    "linear_beta": ("linear β (DDPM)", SKY, "-"),
    "logit_normal": ("logit-normal (SD3)", ORANGE, "--"),
    "adaptive": ("adaptive", BLUE, "-"),
}
"""What figures and tables call weightings and noise schedules, their colours and their line styles; any other name goes
by itself, in a style that is free."""

_SPARE = [
    (shade, dashes)
    for dashes in ((0, (7, 2, 1, 2)), (0, (1, 1)))
    for shade in (BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE)
]
_taken: set[tuple[str, Any]] = set()


def use_style() -> None:
    """Apply the style to all figures made from here on, whatever a reader's matplotlibrc says.

    SVG files come out the same bytes every time.
    """
    mpl.rcdefaults()
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 0.5 * WIDTH),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.labelsize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "lines.linewidth": 1.6,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "savefig.bbox": "tight",
            "svg.hashsalt": "paperlib",
            "svg.fonttype": "path",
        }
    )


def colour(name: str) -> str:
    """The colour of a weighting or schedule, by its registry name, its label in Table 1 or that in a profile."""
    return _style(name)[1]


def line(name: str) -> dict[str, Any]:
    """Arguments for ``plot`` that tell a weighting or schedule from all others: colour and line style."""
    return {"color": _style(name)[1], "linestyle": _style(name)[2]}


def label(name: str) -> str:
    """What figures and tables call a weighting or schedule, given by any of its names."""
    return _style(name)[0]


@cache
def _style(name: str) -> tuple[str, str, Any]:
    """Label, colour and dashes; of an unknown name the same in every notebook, unless another name took it first."""
    if name in weightings.TABLE_1:
        kind = type(weightings.TABLE_1[name])
        name = next(key for key, value in weightings.WEIGHTINGS.items() if value is kind)
    if name in STYLES:
        return STYLES[name]
    first = crc32(name.encode()) % len(_SPARE)
    found = next((one for one in _SPARE[first:] + _SPARE[:first] if one not in _taken), _SPARE[first])
    _taken.add(found)
    return name.replace("_", " "), *found


def logsnr_axis(ax: Axes, logsnr_min: float, logsnr_max: float) -> None:
    """Label the horizontal axis as log-SNR, increasing to the right: noise on the left, data on the right."""
    ax.set_xlabel(LOGSNR_LABEL)
    ax.set_xlim(logsnr_min, logsnr_max)


def picture(x: Any, reach: float = 1.0) -> np.ndarray:
    """One image of real values as ``imshow`` takes it: −reach … reach to 0 … 1, colours last.

    Args:
        x: shape (C, H, W), one or three channels, array or tensor; noisy images may lie outside [−1, 1].
        reach: what is white; what lies beyond is cut.
    """
    values = (np.asarray(x) / (2 * reach) + 0.5).clip(0, 1)
    return values[0] if len(values) == 1 else values.transpose(1, 2, 0)


def image_grid(images: Any, columns: int, ax: Axes, title: str) -> None:
    """Show images in a grid, filled row by row, a white line of one pixel between them.

    Args:
        images: uint8, shape (N, C, H, W), one or three channels, array or tensor; scaled to its own brightest value
            when that is below 255 (the digits have 17 grey levels).
        columns: images a row.
        ax: where to draw.
        title: above the grid.
    """
    pictures = np.asarray(images)
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
        raise ValueError(f"images have shape (N, 1 or 3, H, W), got {pictures.shape}.")
    room = ((0, -len(pictures) % columns), (0, 0), (0, 1), (0, 1))  # the last row is filled with white ones
    pictures = np.pad(pictures, room, constant_values=pictures.max())
    count, channels, height, width = pictures.shape
    tiled = pictures.reshape(-1, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    tiled = tiled.reshape(count // columns * height, columns * width, channels)[:-1, :-1]
    ax.imshow(tiled.squeeze(-1) if channels == 1 else tiled, cmap="gray", interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title)
