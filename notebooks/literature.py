"""What others have published, what was measured here, and what others measured with this companion.

Published numbers lie in ``results/paper/*.csv``, each with the place where it was seen and its address; an empty cell
is not verified.  Our own come
from the finished results of each profile, and reproductions by other people from manifests below
``results/reproduced/<who>/``: the results folder of their run, as it is, under a name of theirs.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from paperlib.companion import paths, profiles, provenance, workflow

if TYPE_CHECKING:
    import pandas as pd

READS = (
    "results/paper/*.csv",
    "results/costs.csv",
    "results/reproduced/*/*/*/manifest.json",
    "results/*/*/claims/*.json",
    "results/*/08_sample_and_evaluate/tables/weighting_by_sampler.csv",
)
"""Files of the checkout that whoever imports this module depends on."""
OURS, NOT_VERIFIED, NOT_RUN = "this companion", "not verified", "not run"
NUMBERS = ("fid", "inception_score")


def published(name: str) -> "pd.DataFrame":
    """``results/paper/NAME.csv``, with NaN where nothing is verified.

    Raises:
        ValueError: for a number without source or address, or whose mark is not "seen".
    """
    import pandas as pd

    path = paths.root() / "results" / "paper" / f"{name}.csv"
    table = pd.read_csv(path)
    stated = table[[column for column in NUMBERS if column in table]].notna().any(axis=1)
    addressed = table.address.fillna("").str.startswith("https://")
    bad = table[stated & ((table.mark != "seen") | table.source.isna() | ~addressed)]
    if len(bad):
        raise ValueError(
            f"{path}: {len(bad)} numbers have no source, no address or no mark 'seen', first for {bad.iloc[0].model}; "
            f"remove them, or say where they were seen."
        )
    return table


def table_4(ours: "pd.DataFrame | None" = None) -> "pd.DataFrame":
    """The comparison at 128, 256 and 512 pixels, "FID / IS": a row a resolution and model, a column a guidance.

    Args:
        ours: rows of our own with the columns of ``table4.csv``; a resolution without any is shown as not run.
    """
    import pandas as pd

    theirs = published("table4").fillna({"guidance": "not stated"})
    theirs["shown"] = list(map(_pair, theirs.fid, theirs.inception_score))
    missing = sorted(set(theirs.resolution) - set([] if ours is None else ours.resolution))
    mine = pd.DataFrame({"resolution": missing, "model": OURS, "guidance": "no", "shown": NOT_RUN})
    if ours is not None:
        mine = pd.concat([ours.assign(shown=list(map(_pair, ours.fid, ours.inception_score))), mine])
    table = pd.concat([theirs, mine], ignore_index=True)
    order = pd.MultiIndex.from_frame(table[["resolution", "model"]].drop_duplicates()).sortlevel(
        0, sort_remaining=False
    )[0]
    wide = table.pivot(index=["resolution", "model"], columns="guidance", values="shown").reindex(order).fillna("–")
    return wide[["no", "yes", "not stated"]].add_prefix("guidance: ").rename_axis(columns=None)


def _pair(fid: float, inception_score: float) -> str:
    score = "" if math.isnan(inception_score) else f" / {inception_score:.1f}"
    return NOT_VERIFIED if math.isnan(fid) else f"{fid:.2f}{score}"


def measured(profile: str) -> "pd.DataFrame":
    """Weighting × sampler of this profile, and as published of every other one that has samples evaluated, with the
    caption that says in what unit."""
    import pandas as pd

    found = []
    for name in profiles.names():
        notebook = "08_sample_and_evaluate"
        folder = paths.result(name, notebook) if name == profile else paths.published(name, notebook)
        table = (folder or paths.published(name, notebook)) / "tables" / "weighting_by_sampler"
        if table.with_suffix(".csv").is_file():
            caption = table.with_suffix(".md").read_text(encoding="utf-8").partition("\n")[0]
            found.append(pd.read_csv(table.with_suffix(".csv")).assign(profile=name, caption=caption))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["profile", "caption"])


def reproductions() -> "pd.DataFrame":
    """A row for every notebook that somebody else has run: who, at which profile, and what came of the claims."""
    import pandas as pd

    folder = paths.root() / "results" / "reproduced"
    rows = [_reproduction(folder, manifest.parent) for manifest in sorted(folder.rglob(provenance.MANIFEST))]
    columns = ["who", "profile", "notebook", "claims", "commit", "GPUs", "minutes", "files changed since"]
    return pd.DataFrame(rows, columns=columns)


def _reproduction(folder: Path, result: Path) -> list[object]:
    manifest = provenance.read(result)
    return [
        result.relative_to(folder).parts[0],
        manifest["profile"],
        manifest["notebook"],
        workflow.summary(workflow.verdicts(result)),
        (manifest["commit"] or "unknown")[:7],
        ", ".join(manifest["gpus"]) or "none",
        round(manifest["seconds"] / 60, 1),
        len(provenance.verify(result)),
    ]


def full_scale() -> "pd.DataFrame":
    """What each profile that trains on GPUs takes: the command of one run, GPUs, days and dollars.

    The figures are those of ``results/costs.csv``, computed from the networks themselves; without the file they are
    left out.
    """
    import pandas as pd

    wanted = {name: profile for name in profiles.names() if (profile := profiles.load(name)).launch}
    rows = [[name, _command(profile)] for name, profile in wanted.items() if profile.launch and profile.launch.gpus]
    table = pd.DataFrame(rows, columns=["profile", "command of one run"])
    costs = paths.root() / "results" / "costs.csv"
    if not costs.is_file():
        return table
    columns = ["profile", "gpus", "gpu_days", "days", "dollars", "runs"]
    table = table.merge(pd.read_csv(costs)[columns], on="profile", how="left")
    return table.sort_values("gpu_days", ignore_index=True)


def _command(profile: profiles.Profile) -> str:
    """How one run of the first weighting is trained, on all GPUs of its job."""
    assert profile.launch is not None
    engine = "" if profile.launch.engine == "auto" else f" --engine {profile.launch.engine}"
    train = f"paperlib train {profile.name} --weighting {next(iter(profile.training.weightings))}{engine}"
    return f"torchrun --standalone --nproc-per-node={profile.launch.gpus} --no-python {train}"
