"""The measurements of all runs of a profile as tables, which notebook 13 reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from paperlib.companion import files
from paperlib.companion.experiments import Experiment
from paperlib.companion.measuring import Measured, Protocol, measure_all

if TYPE_CHECKING:
    from paperlib.companion.run import Run

INDICES = {"measured": [0], "errors": [0, 1], "losses": [0], "densities": [0]}
"""Tables, and which of their columns are the index."""


def frames(run: "Run", experiments: Sequence[Experiment], how: Protocol, processes: int) -> dict[str, pd.DataFrame]:
    """What :func:`measure_all` finds, as tables that are also written to ``tables/`` of the notebook's results.

    A reader who opens the notebook without the networks gets the tables that came with the checkout.

    Args:
        run: the notebook's.
        experiments: the runs to measure.
        how: the protocol.
        processes: how many are measured at once.

    Returns:
        ``measured``: :attr:`Measured.row` by run; ``errors``: by run and split, a column a node; ``losses``: by step, a
        column a run; ``densities``: by bin, a column a run with an adaptive schedule.

    Raises:
        FileNotFoundError: when there are neither networks nor tables, saying what to run.
    """
    source = run.finished / "tables" if run.finished else run.directory / "tables"
    if run.finished is None:
        for name, frame in _framed(measure_all(run, experiments, how, processes)).items():
            files.write_text(source / f"{name}.csv", frame.to_csv())
    return {name: pd.read_csv(source / f"{name}.csv", index_col=index) for name, index in INDICES.items()}


def _framed(found: Sequence[Measured]) -> dict[str, pd.DataFrame]:
    by_run = {one.row["run"]: one for one in found}
    errors = {(name, split): values for name, one in by_run.items() for split, values in one.errors.items()}
    densities = {name: one.density for name, one in by_run.items() if one.density}
    return {
        "measured": pd.DataFrame([one.row for one in found]).set_index("run"),
        "errors": pd.DataFrame(errors.values(), pd.MultiIndex.from_tuples(errors, names=["run", "split"])),
        "losses": pd.DataFrame({name: one.losses for name, one in by_run.items()}).rename_axis("step"),
        "densities": pd.DataFrame(densities).rename_axis("bin"),
    }
