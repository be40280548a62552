"""Being asked to stop: SIGTERM, as a cluster sends it before it takes a machine away, and Ctrl-C."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""The signals that end a run in good order."""


class TrainingInterrupted(KeyboardInterrupt):
    """A run that was asked to stop has finished its step and written its state; train again to go on.

    It is a KeyboardInterrupt, so that nothing takes it for a failure.

    Attributes:
        path: the state.
        step: steps done.
        signal: the signal; 128 + ``signal`` is the customary exit status.
    """

    def __init__(self, path: Path, step: int, received: int) -> None:
        self.path, self.step, self.signal = path, step, received
        super().__init__(
            f"stopped by {signal.Signals(received).name} after step {step}; the state is {path}. "
            f"Run the same again to go on."
        )


class StopSignals:
    """While it is entered, SIGINT and SIGTERM are taken note of instead of ending the process.

    Only the main thread of a process can do that; elsewhere it does nothing.

    Args:
        patient: whether a second Ctrl-C is taken note of as well; otherwise it ends the process, as ever.

    Attributes:
        received: the last signal; 0 for none.
    """

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received == number == signal.SIGINT and not self.patient:
            raise KeyboardInterrupt
        self.received = number
