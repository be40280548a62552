"""The tables of the ablation: what was measured, as it is read back."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from paperlib import companion
from paperlib.companion import experiments, measuring, paths, profiles, provenance
from paperlib.companion.run import Run

HOW = measuring.Protocol()
FOUND = [
    measuring.Measured(
        {"run": f"sigmoid-seed{seed}", "seed": seed, "frechet_heun_test": 0.1 + seed / 3},
        {"train": [0.1, 0.2 + seed], "test": [0.3, 0.4]},
        {"50": 2.0 + seed, "100": 1.0},
        [0.25, 0.75] if seed else [],
    )
    for seed in (0, 1)
]


@pytest.fixture
def run(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (checkout / "notebooks" / "10_ablation.py").touch()
    profile = checkout / "profiles" / "small.yaml"
    profile.write_text(profile.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
    monkeypatch.setattr(measuring, "measure_all", lambda *_: FOUND)
    return companion.start("10_ablation", "small")


def planned() -> list[experiments.Experiment]:
    return list(experiments.grid(profiles.load("small")))


def test_every_number_is_read_back_as_it_was_measured(run: Run) -> None:
    tables = measuring.frames(run, planned(), HOW, processes=1)
    for one in FOUND:
        name = one.row["run"]
        assert {"run": name, **tables["measured"].loc[name].drop("key")} == one.row
        for split, errors in one.errors.items():
            assert tables["errors"].loc[(name, split)].tolist() == errors
        assert {str(step): loss for step, loss in tables["losses"][name].items()} == one.losses
    assert tables["densities"].to_dict("list") == {"sigmoid-seed1": [0.25, 0.75]}


def test_a_reader_without_networks_reads_the_tables_that_are_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measuring.frames(run, planned(), HOW, processes=1)
    finished = run.directory.parents[2] / "small" / "10_ablation"
    finished.parent.mkdir(parents=True)
    run.directory.rename(finished)
    provenance.write(finished, {})
    monkeypatch.setattr(measuring, "measure_all", pytest.fail)
    again = measuring.frames(companion.start("10_ablation", "small"), planned(), HOW, processes=1)
    for name, table in first.items():
        pd.testing.assert_frame_equal(again[name], table)


def test_what_came_of_a_network_that_is_not_here_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row for row, under what was measured here, and only under the key that it was measured by."""
    first = measuring.frames(run, planned(), HOW, processes=1)
    came = paths.published("small", "10_ablation")
    came.mkdir(parents=True)
    (run.directory / "tables").rename(came / "tables")
    monkeypatch.setattr(measuring, "measure_all", lambda *_: pytest.fail("there is no network"))
    for name, table in measuring.frames(run, planned(), HOW, processes=1).items():
        pd.testing.assert_frame_equal(table, first[name])

    again = replace(FOUND[0], row={**FOUND[0].row, "frechet_heun_test": 9.0})
    monkeypatch.setattr(measuring, "measure_all", lambda *_: [again])
    monkeypatch.setattr(experiments.Experiment, "find", lambda one: came if one.seed == 0 else None)
    mixed = measuring.frames(run, planned(), HOW, processes=1)["measured"].frechet_heun_test
    assert mixed.tolist() == [9.0, FOUND[1].row["frechet_heun_test"]]
    assert len(measuring.frames(run, planned(), replace(HOW, draws=2), processes=1)["measured"]) == 1


def test_without_networks_and_tables_it_says_what_to_run(
    run: Run, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PAPERLIB_ROOT", str(checkout))
    with pytest.raises(FileNotFoundError, match="Run: paperlib train small --arm sigmoid"):
        measuring.frames(run, planned(), HOW, processes=1)
