"""Comparison with others: no number without a source, our rows marked, reproductions read from their manifests."""

import shutil
from pathlib import Path

import literature
import pandas as pd
import pytest
from helpers import record

from paperlib.companion import profiles, provenance

TABLE = "resolution,model,guidance,fid,inception_score,from_the_paper,mark,source,address\n"


@pytest.fixture
def paper(checkout: Path) -> Path:
    """The checkout's table 4, of two models at one resolution."""
    path = checkout / "results" / "paper" / "table4.csv"
    path.parent.mkdir(parents=True)
    rows = "256,A,no,2.4,225.3,yes,seen,T,https://a\n256,A,yes,,,yes,,,\n256,B,,3.6,,,seen,T,https://b\n"
    path.write_text(TABLE + rows)
    return path


def test_what_is_not_verified_is_not_a_number(paper: Path) -> None:
    assert literature.published("table4").fid.isna().tolist() == [False, True, False]
    shown = literature.table_4()
    assert shown.loc[(256, "A")].tolist() == ["2.40 / 225.3", literature.NOT_VERIFIED, "–"]
    assert shown.loc[(256, "B")].tolist() == ["–", "–", "3.60"]
    assert shown.loc[(256, literature.OURS)].tolist() == [literature.NOT_RUN, "–", "–"]


@pytest.mark.parametrize(
    "row",
    [
        "256,C,no,1.0,,,recalled,T,https://c\n",
        "256,C,no,1.0,,,seen,,https://c\n",
        "256,C,no,,90.0,,,T,https://c\n",
        "256,C,no,1.0,,,seen,T,\n",
        "256,C,no,1.0,,,seen,T,there\n",
    ],
)
def test_a_number_without_source_address_or_mark_is_refused(paper: Path, row: str) -> None:
    paper.write_text(paper.read_text() + row)
    with pytest.raises(ValueError, match="1 numbers have no source, no address or no mark 'seen', first for C"):
        literature.published("table4")


def test_our_own_rows_stand_beside_the_published_ones(paper: Path) -> None:
    ours = pd.DataFrame(
        [
            {
                "resolution": 256,
                "model": literature.OURS,
                "guidance": "yes",
                "fid": 9.876,
                "inception_score": float("nan"),
            }
        ]
    )
    assert literature.table_4(ours).loc[(256, literature.OURS)].tolist() == ["–", "9.88", "–"]


def test_reproductions_are_read_from_their_manifests(checkout: Path) -> None:
    assert literature.reproductions().empty
    result = checkout / "results" / "reproduced" / "somebody" / "small" / "01_first"
    (result / "claims").mkdir(parents=True)
    (result / "claims" / "C1.json").write_text(record("C1", "PASS"))
    (result / "table.csv").write_text("1\n")
    provenance.write(result, {"profile": "small", "notebook": "01_first", "seconds": 90.0})
    (result / "table.csv").write_text("2\n")
    (row,) = literature.reproductions().to_dict("records")
    assert (row["who"], row["profile"], row["notebook"], row["claims"]) == ("somebody", "small", "01_first", "1 PASS")
    assert (row["minutes"], row["files changed since"]) == (1.5, 1)


def test_full_scale_rows_have_a_command_and_their_costs(checkout: Path, repository: Path) -> None:
    small = checkout / "profiles" / "small.yaml"
    small.write_text(small.read_text() + "launch: {gpus: 4, engine: fsdp, before: 01_first}\n")
    (row,) = literature.full_scale().to_dict("records")
    command = (
        "torchrun --standalone --nproc-per-node=4 --no-python paperlib train small --weighting sigmoid --engine fsdp"
    )
    assert row == {"profile": "small", "command of one run": command}
    (checkout / "results").mkdir(exist_ok=True)
    shutil.copyfile(repository / "results" / "costs.csv", checkout / "results" / "costs.csv")
    assert {"gpus", "gpu_days", "days", "dollars", "runs"} <= set(literature.full_scale())


def test_what_was_measured_names_its_profile_and_its_unit(checkout: Path) -> None:
    assert literature.measured("small").empty
    tables = checkout / "results" / "small" / "08_sample_and_evaluate" / "tables"
    tables.mkdir(parents=True)
    (tables / "weighting_by_sampler.csv").write_text("weighting,sampler,frechet\nedm,heun,2.5\n")
    (tables / "weighting_by_sampler.md").write_text("Fréchet distance, digits classifier\n\n| a |\n")
    (row,) = literature.measured("other").to_dict("records")
    assert (row["profile"], row["caption"], row["frechet"]) == ("small", "Fréchet distance, digits classifier", 2.5)


# This checkout -------------------------------------------------------------------------------------------------------


def test_every_published_number_here_has_its_source() -> None:
    assert literature.published("imagenet64").fid.notna().all()
    published = literature.published("table4")
    own = published[published.from_the_paper == "yes"]
    assert len(own) == 6
    assert own.fid.isna().sum() == 1, "128 with guidance is not verified"


def test_every_number_reported_with_a_later_recipe_has_its_address(repository: Path) -> None:
    table = pd.read_csv(repository / "results/tiny/11_what_came_after/tables/recipes.csv")
    assert table["where"][table.reported != "–"].str.fullmatch(r"arXiv:\d{4}\.\d{5}").all()
    assert (table.reported != "–").sum() >= 6


def test_every_profile_that_trains_on_gpus_has_a_row() -> None:
    wanted = {name for name in profiles.names() if (launch := profiles.load(name).launch) and launch.gpus}
    assert set(literature.full_scale().profile) == wanted
