"""Where things lie in a checkout; no other module spells these folders.

============================================= ======================================================================
``results/<profile>/<notebook>/``             published: tracked, and changed by ``make publish`` alone
``results/local/<profile>/<notebook>/``       what ``paperlib reproduce`` made here
``results/interactive/<profile>/<notebook>/`` a notebook opened in JupyterLab, and ``paperlib run``
``.cache/<profile>/<notebook>/``              stamps, and what a failed run left
``.cache/runs/<profile>/<run>/``              networks that were trained here
============================================= ======================================================================

Git ignores all but the first.
"""

import os
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"
ROOT_VARIABLE = "PAPERLIB_ROOT"
"""Environment variable that names the checkout when neither the working directory nor the package lies in it."""
PUBLISHED_VARIABLE = "PAPERLIB_READ_PUBLISHED"
"""Environment variable that, when set, hides a reader's own run: tests hold notebooks to what is published."""


def root() -> Path:
    """The checkout: $PAPERLIB_ROOT, else the nearest folder above the working directory or the package that is one.

    Raises:
        FileNotFoundError: when there is none; the companion, unlike the library, needs profiles and notebooks.
    """
    named = os.environ.get(ROOT_VARIABLE)
    starts = [Path(named)] if named else [Path.cwd(), Path(__file__).parent]
    for start in starts:
        for folder in [start, *start.parents] if not named else [start]:
            if (folder / "profiles").is_dir() and (folder / "claims.yaml").is_file():
                return folder.resolve()
    raise FileNotFoundError(
        f"no checkout of the companion (a folder with profiles/ and claims.yaml) at {' or '.join(map(str, starts))}; "
        f"change into it, or set {ROOT_VARIABLE} to it."
    )


def published(profile: str, notebook: str = "") -> Path:
    """The published results of a profile, or of one of its notebooks."""
    return root() / "results" / profile / notebook


def local(profile: str, notebook: str = "") -> Path:
    """What ``paperlib reproduce`` made in this checkout."""
    return root() / "results" / "local" / profile / notebook


def interactive(profile: str, notebook: str = "") -> Path:
    """Where a notebook writes that the runner did not start, and one that it runs with other parameters."""
    return root() / "results" / "interactive" / profile / notebook


def result(profile: str, notebook: str) -> Path | None:
    """The result of a notebook to read: the reader's own run where there is one, else the published one, else None."""
    folders = [published(profile, notebook)]
    if not os.environ.get(PUBLISHED_VARIABLE):
        folders.insert(0, local(profile, notebook))
    return next((folder for folder in folders if (folder / MANIFEST).is_file()), None)


def lock() -> Path:
    """The pinned versions of everything."""
    return root() / "requirements.lock"


def cache(profile: str, notebook: str = "") -> Path:
    """What outlives a run and is no result."""
    return root() / ".cache" / profile / notebook


def failed(profile: str, notebook: str) -> Path:
    """The folder in which a failed run leaves what it had made."""
    return cache(profile, notebook) / "failed"


def home() -> Path | None:
    """The user's home, where programs keep caches; None where it cannot be written, as that of an unknown user."""
    with suppress(RuntimeError):  # of a user without any
        if os.access(folder := Path.home(), os.W_OK):
            return folder
    return None


def settle() -> None:
    """Have what is started from here, in other folders, find the same: folders that variables name become absolute.

    And give it a home below ``.cache`` where the user has none that can be written.
    """
    for variable in (ROOT_VARIABLE, "PAPERLIB_DATA", "PAPERLIB_CACHE"):
        if named := os.environ.get(variable):
            os.environ[variable] = str(Path(named).expanduser().absolute())
    with suppress(FileNotFoundError):  # no checkout
        if home() is None:
            folder = root() / ".cache" / "home"
            with suppress(OSError):  # said by whoever wants to write there
                folder.mkdir(parents=True, exist_ok=True)
            os.environ["HOME"] = str(folder)


def shown(path: Path) -> str:
    """A path as messages show it: relative to the checkout where it lies there."""
    return path.relative_to(root()).as_posix() if path.is_relative_to(root()) else str(path)


def runs(profile: str) -> Path:
    """The networks that were trained here, one a folder, whoever asked for it: ``paperlib train``, a notebook, a job of
    the workflow."""
    return root() / ".cache" / "runs" / profile


def published_runs(profile: str) -> Path:
    """The networks that came with the checkout, one a folder: ``runs/`` of whichever notebook published them."""
    return next(iter(sorted(published(profile).glob("*/runs"))), published(profile) / "runs")
