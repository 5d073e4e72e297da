"""Ranks that notice when another fails, whatever it died of.

A rank that raises writes its reason to the store that all ranks share; a rank that is
killed stops counting its heartbeat. Every rank has a thread that checks once a second,
since its main thread may be inside a collective that will never end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from datetime import timedelta

from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    TCPStore,
)

from fastadv.errors import EXIT_FAILED, FastadvError

log = logging.getLogger(__name__)

_TICK = 1.0  # seconds between checks
# Ticks are counted, not the clock read: a job that was suspended as a whole goes on.
_SILENT = 20  # ticks without a heartbeat: the rank is dead
_GRACE = 10  # ticks for the main thread to notice by itself; its message is better
_FAILED = "failed"
_NO_REASON = "it died without a word (killed, or out of memory?)"
_UNREACHABLE = 0, "it cannot be reached any more", EXIT_FAILED  # rank 0 holds the store


_Failure = tuple[int, str, int]  # number of the rank, reason, exit code


class PeerFailed(FastadvError):
    """An error on another rank, whose reason the message repeats."""


class Peers:
    """Tells the other ranks of a failure of this one, and learns of theirs.

    Args:
        rank: Number of this process.
        size: Number of ranks.
        attempt: Text that is the same on all ranks and new at each start of the run:
            torchrun's store, and what was written to it, outlives a start that failed.
        quiet: Whether to report nothing on stderr.
    """

    def __init__(
        self, rank: int, size: int, attempt: str, *, quiet: bool = False
    ) -> None:
        self.rank, self.size, self.quiet = rank, size, quiet
        self.next = (rank + 1) % size  # the rank whose heartbeat this one listens to
        # A connection of its own: torch's is blocked while a collective sets up.
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=15),
        )
        self._store = PrefixStore(f"fastadv/{attempt}", store)
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._parent = os.getppid()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Stop watching, and let the others know that this end is in order."""
        self._left.set()
        self._thread.join(5)
        with contextlib.suppress(RuntimeError):  # the store may be gone already
            self._beat("left")

    def explain(self, error: BaseException) -> BaseException:
        """Return what this rank is to raise for `error`.

        Args:
            error: An exception on this rank. If it comes from torch it may be due to the
                end of another rank, for which this method waits a moment.

        Returns:
            `error` itself, or a `PeerFailed` if another rank failed first.
        """
        lost = isinstance(error, RuntimeError) and not isinstance(error, FastadvError)
        try:
            if lost and self._failure() is None:
                self._await_reason()
            code = getattr(error, "exit_code", EXIT_FAILED)
            rank, reason, code = self._report(self.rank, _reason(error), code)
        except RuntimeError:
            if not lost:
                return error
            rank, reason, code = _UNREACHABLE
        if rank == self.rank:
            error.own = True  # type: ignore[attr-defined]
            return error
        if reason == _reason(error):  # all ranks found the same
            return error
        failed = PeerFailed(f"rank {rank} failed: {reason}")
        failed.exit_code = code
        return failed

    # ---- the store ----

    def _beat(self, value: str) -> None:
        with self._lock:
            self._store.set(f"beat/{self.rank}", value)

    def _heard(self, rank: int) -> str:
        key = f"beat/{rank}"
        with self._lock:
            return self._store.get(key).decode() if self._store.check([key]) else ""

    def _failure(self) -> _Failure | None:
        with self._lock:
            known = self._store.get(_FAILED) if self._store.check([_FAILED]) else None
        return None if known is None else _parsed(known)

    def _report(self, rank: int, reason: str, code: int = EXIT_FAILED) -> _Failure:
        """Report that `rank` failed; return the first report that any rank made."""
        report = json.dumps([rank, reason, code])
        with self._lock:
            return _parsed(self._store.compare_set(_FAILED, "", report))

    def _await_reason(self) -> None:
        """Wait until a dying rank has given its reason, or its heartbeat is missed."""
        silent = dict.fromkeys((r for r in range(self.size) if r != self.rank), 0)
        heard = {rank: self._heard(rank) for rank in silent}
        for _ in range(5):
            self._left.wait(_TICK)
            if self._failure() is not None:
                return
            for rank, before in heard.items():
                heard[rank] = self._heard(rank)
                silent[rank] = silent[rank] + 1 if heard[rank] == before else 0
        dead = [rank for rank, ticks in silent.items() if ticks >= 3]
        if dead:
            self._report(dead[0], _NO_REASON)

    # ---- the thread ----

    def _watch(self) -> None:
        count = silent = 0
        heard = ""
        while not self._left.wait(_TICK):
            count += 1
            try:
                self._beat(str(count))
                now = self._heard(self.next)
                silent = silent + 1 if now == heard and now not in ("", "left") else 0
                heard = now
                if silent >= _SILENT:
                    self._report(self.next, _NO_REASON)
                if os.getppid() != self._parent:
                    self._report(self.rank, "the process that started it is gone")
                found = self._failure()
            except RuntimeError:
                found = _UNREACHABLE
            if found is not None:
                break
        else:
            return
        for _ in range(_GRACE):
            if self._left.wait(_TICK):
                return
        rank, reason, code = found
        if not self.quiet:
            log.error("rank %d failed: %s", rank, reason)
        sys.stderr.flush()
        os._exit(code)  # the main thread waits for a rank that is gone


def _parsed(report: bytes) -> _Failure:
    rank, reason, code = json.loads(report)
    return rank, reason, code


def _reason(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    if isinstance(error, FastadvError):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0]}"
