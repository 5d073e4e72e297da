"""SIGTERM, SIGUSR1 and Ctrl-C set a flag, which a loop checks after every step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Windows has no SIGUSR1, and delivers SIGTERM only to processes that send it to themselves.
_SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    if hasattr(signal, name)
)
# A launcher passes on what its scheduler may have sent to every process already: a signal
# that follows within this many seconds is the same request, not a second one.
_ECHO_SECONDS = 2.0


@contextmanager
def signals_to(
    handler: Callable[[int, FrameType | None], Any],
) -> Iterator[dict[signal.Signals, Any]]:
    """Have stop signals handled by `handler` in the block; yield the handlers before."""
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield before
    finally:
        for number, each in before.items():
            signal.signal(number, each)


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
    request, first = StopRequest(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not request:
            request.number, first = number, time.monotonic()
        elif first and time.monotonic() - first > _ECHO_SECONDS:
            for each, handler in before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)

    with signals_to(handle) as before:
        yield request
