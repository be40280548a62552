"""Where things lie in a checkout."""

from pathlib import Path

from paperlib.companion import files


def runs(profile: str) -> Path:
    """The folder of the networks that were trained here, one a folder, whoever asked for it: ``paperlib train``, a
    notebook, the workflow."""
    return files.root() / ".cache" / "runs" / profile


def published_runs(profile: str) -> Path:
    """The folder of the networks that came with the checkout, one a folder."""
    return files.root() / "results" / profile / "07_train" / "runs"
