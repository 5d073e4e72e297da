"""Worker processes of a `DataLoader`: what they ignore, and what is said when one dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader

from fastadv.errors import DataError

Received = TypeVar("Received")


def received(loader: DataLoader[Received | DataError]) -> Iterator[Received]:
    """Yield what the workers of a loader return, until there is no more.

    Workers return an error instead of raising it: the loader would make it again from its
    message alone and lose the type.

    Raises:
        DataError: A worker returned it, or a worker died.
    """
    batches = iter(loader)
    _ignore_dead_workers(batches)
    while True:
        try:
            found: Any = next(batches, None)
        # What it left in its pipe is one of many errors; torch's own names it.
        except (RuntimeError, OSError, EOFError) as error:
            lost = _lost_worker(loader)
            if lost is None:
                raise
            raise DataError(
                f"decoding process {lost}: those that are killed mostly ran out of "
                "memory; use fewer workers or a smaller batch_size, and resume"
            ) from error
        if found is None:
            return
        if isinstance(found, DataError):
            raise found
        yield found


def unchanged(returned: Any) -> Any:
    """Return what a worker made of a batch of requests; it is a batch already."""
    return returned


def outlive_stop_signals(worker: int) -> None:
    """Ignore stop signals in a worker, which schedulers send to every process of a job.

    A worker that died would break the training step under way. SIGTERM from its parent
    still ends it; that is how Python ends its children when it exits.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _ignore_dead_workers(batches: Any) -> None:
    """Stop torch's SIGCHLD handler, which raises anywhere, from watching these workers.

    Waiting for a batch notices a dead worker, too, up to five seconds later.
    """
    if getattr(batches, "_worker_pids_set", False):  # not where nothing was started
        _remove_worker_pids(id(batches))
        batches._worker_pids_set = False


def _lost_worker(loader: DataLoader[Any]) -> str | None:
    """Return which worker process died and of what, or None."""
    iterator: Any = loader._iterator
    workers = iterator._workers if loader.num_workers else []
    until = time.monotonic() + 1  # its pipe may close before its death is known
    while workers and time.monotonic() < until:
        for worker in workers:
            worker.join(timeout=0.01)
            if worker.exitcode:
                return f"{worker.pid} died with exit code {worker.exitcode}"
    return None
