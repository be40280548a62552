"""What a notebook uses: where it writes, where it reads, and its figures, tables and claims.

The same lines serve a reader in JupyterLab and a headless run (:mod:`paths` says which writes where).
"""

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import Markdown, display

from paperlib import files
from paperlib.companion import claims, paths, profiles

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OUTPUT_VARIABLE = "PAPERLIB_OUTPUT"
"""Environment variable by which the runner tells a notebook where to write."""
DIGITS = "%.9g"
"""Nine digits of a number in a CSV file: more than any tolerance asks for."""


@dataclass(frozen=True)
class Run:
    """One run of one notebook; made by :func:`start`."""

    notebook: str
    profile: str
    directory: Path
    _claims: dict[str, claims.Test] = field(default_factory=dict)

    @property
    def headless(self) -> bool:
        """Whether the runner started this, so that everything is to be made anew or taken from the cache."""
        return OUTPUT_VARIABLE in os.environ

    @property
    def cache(self) -> Path:
        """A folder that outlives the run; git ignores it.  The notebook names its entries by what they depend on."""
        folder = paths.cache(self.profile, self.notebook) / "kept"
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def finished(self) -> Path | None:
        """The result of this very notebook (:func:`paths.result`), if there is one to read instead of making it anew.

        For a reader who opens a training notebook without training: its weights lie there.  None under the runner.
        """
        return None if self.headless else paths.result(self.profile, self.notebook)

    def upstream(self, notebook: str) -> Path:
        """The results of another notebook: the reader's own run, else the published one, else an interactive run.

        Raises:
            FileNotFoundError: when there are none, saying what to run.
        """
        if finished := paths.result(self.profile, notebook):
            return finished
        if (interactive := paths.interactive(self.profile, notebook)).is_dir():
            return interactive
        made_here = notebook in profiles.load(self.profile).notebooks
        command = f"reproduce {self.profile} --only {notebook}" if made_here else f"train {self.profile}"
        raise FileNotFoundError(
            f"{self.notebook} reads the results of {notebook}, and there are none for profile {self.profile!r}; "
            f"run: paperlib {command}"
        )

    def figure(
        self, figure: "Figure", name: str, data: "pd.DataFrame | dict[str, Any] | None" = None, caption: str = ""
    ) -> None:
        """Write a figure as picture and as data, with its caption: ``figures/<name>.{svg,png,csv,txt}``.

        Args:
            figure: the figure; a notebook shows it here, its caption below, and closes it.
            name: a file name without suffix.
            data: what is drawn: a DataFrame (written as CSV) or arrays by name (written as NPZ).
            caption: what to see in it.
        """
        target = self.directory / "figures" / name
        files.write_whole(f"{target}.svg", partial(figure.savefig, metadata={"Date": None}))
        files.write_whole(f"{target}.png", partial(figure.savefig, dpi=200, pil_kwargs={"optimize": True}))
        if isinstance(data, dict):
            arrays: Any = {key: np.asarray(value) for key, value in data.items()}
            files.write_whole(f"{target}.npz", lambda path: np.savez_compressed(path, **arrays))
        elif data is not None:
            files.write_text(f"{target}.csv", data.to_csv(index=_named(data), float_format=DIGITS))
        files.write_text(f"{target}.txt", caption + "\n")
        _show(figure, caption)

    def table(self, table: "pd.DataFrame", name: str, caption: str = "") -> None:
        """Write a table as ``tables/<name>.csv`` and ``.md``, the caption above the latter.  A named index is kept."""
        target = self.directory / "tables" / name
        files.write_text(f"{target}.csv", table.to_csv(index=_named(table), float_format=DIGITS))
        text = table.to_markdown(index=_named(table))
        files.write_text(f"{target}.md", f"{caption}\n\n{text}\n" if caption else f"{text}\n")

    def claim(self, identifier: str) -> claims.Test:
        """The claim to test, one of ``claims.yaml``; its record is ``claims/<identifier>.json``.

        Raises:
            ValueError: for an id that is not in ``claims.yaml``.
        """
        if identifier not in self._claims:
            known = claims.load()
            if identifier not in known:
                raise ValueError(f"no claim {identifier!r} in claims.yaml; it has {', '.join(known) or 'none yet'}.")
            path = self.directory / "claims" / f"{identifier}.json"
            self._claims[identifier] = claims.Test(known[identifier], path)
        return self._claims[identifier]

    def evidence(self) -> "pd.DataFrame":
        """All that this notebook compared, as recorded: a check has its number under "value", a falsifier, which must
        break the limit, under "falsifier's value"; what was decided or not run has its verdict for a value."""
        import pandas as pd

        pd.set_option("display.max_colwidth", None)  # it ends the notebook, and nothing of it is cut
        rows = []
        for name, test in self._claims.items():
            rows += [(name, one.what, one.statement, one.shown, "") for one in test.checks.values()]
            rows += [(name, reason, "", verdict, "") for verdict, reason in test.remarks.items()]
            rows += [(name, one.what, one.statement, "", one.shown) for one in test.falsifiers.values()]
        columns = ["claim", "compared", "limit", "value", "falsifier's value"]
        return pd.DataFrame(rows, columns=columns).set_index("claim")


def start(notebook: str, profile: str) -> Run:
    """Begin a notebook: works out where to write, and sets the style of the figures.

    Args:
        notebook: its name, such as "03_invariance".
        profile: the profile it runs at; one of ``profiles/``.

    Raises:
        ValueError: for an unknown profile or notebook.
        OSError: when the results cannot be written, naming the folder and the remedy.
    """
    from paperlib.companion import figures  # with Matplotlib, which the command line does not need

    profiles.path(profile)  # which refuses an unknown one
    known = sorted({path.stem for path in (paths.root() / "notebooks").glob("[0-9]*")})
    profiles.require_known("unknown notebook", notebook, known)
    directory = Path(os.environ.get(OUTPUT_VARIABLE, paths.interactive(profile, notebook)))
    with files.explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
    figures.use_style()
    return Run(notebook, profile, directory)


def _show(figure: "Figure", caption: str) -> None:
    """In a notebook, the picture and its caption; in a script or a test, nothing."""
    if get_ipython() is None:
        return
    display(figure)
    if caption:
        display(Markdown(f"*{caption}*"))
    plt.close(figure)


def _named(table: "pd.DataFrame") -> bool:
    return any(name is not None for name in table.index.names)
