"""What a headless run shows: which cell is running and for how long, and what the notebook itself prints.

Lines only, no cursor movements, so that several notebooks at once and a log file read as well as a terminal.
"""

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from nbformat import NotebookNode


def clock(seconds: float) -> str:
    """``m:ss``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def titles(notebook: NotebookNode) -> list[str]:
    """For every cell the Markdown heading above it."""
    title, found = "", []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            title = headings[-1] if headings else title
        found.append(title)
    return found


class Screen:
    """Progress of one notebook.  Silence never lasts longer than ``patience`` seconds."""

    def __init__(self, notebook: str, patience: float = 10.0, stream: TextIO | None = None) -> None:
        self.notebook = notebook
        self.seconds: dict[int, float] = {}
        self.cell, self.title, self.cells = 0, "", 0
        self._patience = patience
        self._stream = stream or sys.stdout
        self._started = self._spoke = self._cell_started = time.monotonic()
        self._pending = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_talking, daemon=True)

    def __enter__(self) -> "Screen":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        """One line, after the time and the notebook's name."""
        self._spoke = time.monotonic()
        print(f"[{clock(self.elapsed):>5}] {self.notebook}  {text}", file=self._stream, flush=True)

    def begin(self, cell: int, cells: int, title: str) -> None:
        """Cell ``cell`` of ``cells`` starts; a line where a new section does."""
        new = title != self.title or not self.cell
        self.cell, self.cells, self.title = cell, cells, title
        self._cell_started = time.monotonic()
        if new:
            self.say(f"cell {cell}/{cells}  {title}")

    def end(self) -> None:
        """The cell is over: what it left unfinished on its last line is shown."""
        self.seconds[self.cell] = round(time.monotonic() - self._cell_started, 3)
        self._flush()

    def hear(self, text: str) -> None:
        """Text from the notebook: whole lines at once, a progress bar every ``patience``/2 seconds."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._show(line)
        if self._pending and time.monotonic() - self._spoke > self._patience / 2:
            self._flush()

    def _flush(self) -> None:
        self._show(self._pending)
        self._pending = ""

    def _show(self, line: str) -> None:
        shown = [part.strip() for part in line.split("\r") if part.strip()]
        if shown:
            self.say(f"| {shown[-1]}")

    def _keep_talking(self) -> None:
        while not self._over.wait(1.0):
            if time.monotonic() - self._spoke >= self._patience:
                running = clock(time.monotonic() - self._cell_started)
                self.say(f"cell {self.cell}/{self.cells}  {self.title} … running for {running}")
