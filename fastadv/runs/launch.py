"""Several processes of a command on this machine, as torchrun would start them.

This module needs no torch.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from fastadv.errors import EXIT_FAILED, EXIT_PREEMPTED, ConfigError
from fastadv.machine import usable_cores

log = logging.getLogger(__name__)

# Seconds that a rank has to report the failure of another and to end by itself; then it
# is terminated, and after `_LAST` more killed. Together below a minute.
_PATIENCE, _LAST = 25.0, 10.0
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def launch(module: str, nproc: int, argv: Sequence[str]) -> int:
    """Run `python -m module argv` in `nproc` processes, the ranks of one run.

    Args:
        module: Full name of the command's module.
        nproc: Number of processes.
        argv: Arguments of the command.

    Returns:
        The exit code of the first process that failed, else that of the run.

    Raises:
        ConfigError: `nproc` is no number of ranks, or this process is a rank itself.
    """
    if nproc < 1:
        raise ConfigError(f"`nproc={nproc}` cannot work; it must be at least 1")
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        raise ConfigError(
            f"`nproc={nproc}` inside of a run of several ranks (RANK or WORLD_SIZE is "
            "set): torchrun and Slurm start the ranks themselves; leave `nproc` out"
        )
    shared = os.environ | {
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    shared.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // nproc)))
    command = [sys.executable, "-m", module, *argv]
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        for rank in range(nproc):
            # In a session of their own, so that Ctrl-C reaches them once, from here.
            ranks.append(
                subprocess.Popen(
                    command,
                    env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    start_new_session=True,
                )
            )
        return _wait(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all processes have ended, and return the exit code of the run.

    After a failure the others have a limited time to end.
    """
    first: int | None = None
    deadline = float("inf")
    stage = 0
    while None in [rank.poll() for rank in ranks]:
        for number, rank in enumerate(ranks):
            code = rank.returncode
            if first is None and code not in (None, 0, EXIT_PREEMPTED):
                first, deadline = code, time.monotonic() + _PATIENCE
                if code < 0:
                    name = signal.Signals(-code).name
                    log.error("rank %d was ended by %s", number, name)
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.terminate() if stage == 0 else rank.kill()
            stage, deadline = stage + 1, time.monotonic() + _LAST
        time.sleep(0.05)
    codes = [rank.returncode for rank in ranks]
    if first is None:  # none failed: 0, or the code of a preempted run
        first = max(codes, key=abs)
    return first if first >= 0 else EXIT_FAILED
