"""What a headless run shows and measures: which cell runs, for how long, what it prints, and how much memory it takes.

Lines only, no cursor movements, so that several notebooks at once and a log file read as well as a terminal.
"""

import sys
import threading
import time
from contextlib import suppress
from typing import Any, TextIO

import psutil
from nbformat import NotebookNode


def clock(seconds: float) -> str:
    """``m:ss``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Screen:
    """Progress of one notebook.  Silence never lasts longer than ``patience`` seconds.

    Attributes:
        cell, title: the running cell, numbered as its author knows it, and the Markdown heading above it.
        seconds: of every cell that has run, by its number.
        memory: largest resident memory so far of this process and its children, in bytes, sampled four times a second.
    """

    def __init__(self, notebook: str, cells: int, patience: float = 10.0, stream: TextIO | None = None) -> None:
        self.notebook, self.cells = notebook, cells
        self.cell, self.title, self.memory = 0, "", 0
        self.seconds: dict[int, float] = {}
        self._patience, self._stream = patience, stream or sys.stdout
        self._started = self._spoke = self._cell_started = time.monotonic()
        self._section: str | None = None
        self._pending = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Screen":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
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

    def begin(self, cell: NotebookNode, cell_index: int) -> None:
        """A cell starts; a line where a new section does.  What papermill injects has no number of its own."""
        self.cell += "injected-parameters" not in cell.metadata.get("tags", [])
        self._cell_started = time.monotonic()
        if cell.cell_type == "markdown":
            headings = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            self.title = headings[-1] if headings else self.title
        elif self.title != self._section:
            self._section = self.title
            self.say(f"cell {self.cell}/{self.cells}  {self.title}")

    def end(self, **_: Any) -> None:
        """The cell is over: what it left unfinished on its last line is shown."""
        self.seconds[self.cell] = round(time.monotonic() - self._cell_started, 3)
        self._show(self._pending)
        self._pending = ""

    def write(self, text: str) -> None:
        """Text from the notebook: whole lines at once."""
        *lines, rest = (self._pending + text).split("\n")
        for line in lines:
            self._show(line)
        self._pending = rest[rest.rstrip().rfind("\r") + 1 :]  # of a progress bar, which may run for hours, the last

    def flush(self) -> None:
        """Nothing: a line that is not at its end, such as a progress bar, is shown when silence has to be broken."""

    def _show(self, line: str) -> None:
        shown = [part.strip() for part in line.split("\r") if part.strip()]
        if shown:
            self.say(f"| {shown[-1]}")

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            taken = 0
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    taken += one.memory_info().rss
            self.memory = max(self.memory, taken)
            if time.monotonic() - self._spoke >= self._patience:
                running = clock(time.monotonic() - self._cell_started)
                with suppress(BrokenPipeError):  # the next cell finds it out
                    self.say(f"cell {self.cell}/{self.cells}  {self.title} … running for {running}")
                    self._show(self._pending)
            if self._over.wait(0.25):
                return
