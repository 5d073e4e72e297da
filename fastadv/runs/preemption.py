"""SIGTERM, SIGUSR1 and Ctrl-C set a flag, which a loop checks after every step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A launcher passes on what its scheduler may have sent to every process already: a signal
# that follows within this many seconds is the same request, not a second one.
_ECHO_SECONDS = 2.0


class StopRequest:
    """A request to stop, which is true once a signal came.

    Attributes:
        number: Number of the signal, else 0.
    """

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    @property
    def signal(self) -> str | None:
        """Name of the signal, or None if there was none."""
        return signal.Signals(self.number).name if self.number else None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Catch stop signals inside the block; a later second signal acts as without it.

    Only the main thread can catch signals; elsewhere the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not request:
            request.number, first = number, time.monotonic()
        elif first and time.monotonic() - first > _ECHO_SECONDS:
            for each, handler in before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
