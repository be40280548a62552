"""The bound by the level from which a decoder takes over: the same picture for the networks of notebooks 09 and 10."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import seaborn as sns

from paperlib.companion import figures

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def picture(by_stop: "pd.DataFrame") -> "Figure":
    """Bits a dimension, a row a weighting and a column a level, coloured by how far they are behind the best of the
    column, which is framed."""
    fig, ax = plt.subplots(figsize=(figures.WIDTH, 0.6 + 0.27 * len(by_stop)))
    sns.heatmap(
        (by_stop - by_stop.min()).rename(index=figures.label),
        annot=by_stop,
        fmt=".2f",
        cmap="viridis_r",
        vmin=0,
        vmax=0.3,
        ax=ax,
        annot_kws={"size": 7},
        cbar_kws={"label": "bits behind the best\nof the column", "extend": "max"},
    )
    for column, row in enumerate(by_stop.to_numpy().argmin(0)):
        ax.add_patch(plt.Rectangle((column, row), 1, 1, fill=False, ec=figures.VERMILION, lw=1.8))
    ax.grid(False)
    ax.set(xlabel="level λ (nats) from which the decoder takes over", ylabel="")
    return fig
