"""What stop signals do to a command: it ends whole, with 75, and says how to go on."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from fastadv.cli.words import flag_value


def continued(prog: str, words: Sequence[str]) -> str:
    """Return the command line that continues the one of a program and its arguments."""
    keeps = prog == "fastadv-train" or words[:1] == ["train"]
    keeps = keeps or (
        prog == "fastadv-eval" and flag_value([*words], "--out") is not None
    )
    out = flag_value([*words], "--out", "--out-dir")
    began = out is not None and (Path(out).expanduser() / "log.jsonl").exists()
    resumes = any(word.startswith("--resume") for word in words)
    return shlex.join([prog, *words, *["--resume"] * (keeps and began and not resumes)])


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does: files stay whole, and it says how to go on.

    Loops that save at a signal handle it themselves.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a worker, which inherits the handler
            os._exit(128 + number)
        signal.signal(number, signal.SIG_IGN)  # the same request may come again
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
