"""Clean stop: the first signal ends the run after the current step, the second at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143}  # SIGUSR1: SLURM's notice before pre-emption


class StopRequest:
    """Whether a signal asked the run to stop, and the exit code that follows from it."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM or SIGUSR1, 0 without a signal."""
        return _EXIT_CODES.get(self.signal_name or "", 0)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 in the block into a request; the previous handlers come back.

    After the first signal the previous handlers are back, so a second one acts at once. Outside the main
    thread no signal is handled and the request never becomes true.
    """
    request = StopRequest()
    previous: dict[signal.Signals, object] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def note(signum: int, frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(signum).name
        restore()

    try:
        for name in _EXIT_CODES:
            if hasattr(signal, name):  # Windows has no SIGUSR1
                number = signal.Signals[name]
                previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread
        previous.clear()
    try:
        yield request
    finally:
        restore()
