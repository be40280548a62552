"""Being asked to stop: SIGTERM, as a cluster sends it before it takes a machine away, and Ctrl-C."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn


class Interrupted(KeyboardInterrupt):
    """Work that was asked to stop and has put in order what it was at: no failure, so nothing takes it for one.

    Attributes:
        signal: the signal; 128 + ``signal`` is the customary exit status.
    """

    def __init__(self, message: str, received: int) -> None:
        self.signal = received
        super().__init__(message)


class TrainingInterrupted(Interrupted):
    """A run that was asked to stop has finished its step and written its state; train again to go on.

    Attributes:
        path: the state.
        step: steps done.
    """

    def __init__(self, path: Path, step: int, received: int) -> None:
        self.path, self.step = path, step
        name = signal.Signals(received).name
        super().__init__(
            f"stopped by {name} after step {step}; the state is {path}. Run the same again to go on.", received
        )


def end(number: int, _: FrameType | None) -> NoReturn:
    """Handler of a signal: what runs ends at once, as by Ctrl-C, whose handler Python has."""
    raise Interrupted(f"ended by {signal.Signals(number).name}; what was finished is kept.", number)


class StopSignals:
    """While it is entered, SIGINT and SIGTERM are taken note of instead of ending the process.

    Only the main thread of a process can do that; elsewhere it does nothing.

    Args:
        patient: whether a second Ctrl-C is taken note of as well; otherwise it ends the process, as ever.
        tell: what is done at each signal besides, such as passing it on.

    Attributes:
        received: the last signal; 0 for none.
    """

    def __init__(self, patient: bool = False, tell: Callable[[], object] | None = None) -> None:
        self.patient, self.tell, self.received = patient, tell, 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received == number == signal.SIGINT and not self.patient:
            end(number, None)
        self.received = number
        if self.tell is not None:
            self.tell()
