"""Tasks, and a loop that runs them on any executor until each has left its rows.

The results table is the only state: a task is finished when its rows are there, so the
same command goes on after any interruption, and two of them may even run at once.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, deque
from collections.abc import Callable, Container, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, Self

from fastadv.errors import DataError, FastadvError, Preempted
from fastadv.progress import Progress
from fastadv.runs.preemption import signals_to

if TYPE_CHECKING:  # commands that only print their help need no Parquet
    from fastadv.results.table import ResultsTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """The share of a machine that a task may use.

    Attributes:
        threads: Number of cores; None for all.
        device: Device such as `cuda:1`; None where the task may choose.
    """

    threads: int | None = None
    device: str | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """A piece of work that can be pickled: a function of a module, and its setting.

    Attributes:
        function: Called with `setting` and a `Place`; it appends its rows to the table
            the moment they are known, so that no crash of anything else can lose them.
        setting: Any value that can be pickled.
        results: Folder of the table.
        identities: Identities of the rows that the task leaves in the table.
        name: Description for people.
        resource: Tasks of the same resource would wait for each other, so they do not
            run side by side if others can; None is a resource of one's own.
    """

    function: Callable[[Any, Place], None]
    setting: Any
    results: str
    identities: tuple[str, ...]
    name: str
    resource: Hashable = None

    def __str__(self) -> str:
        return self.name

    def without(self, finished: Container[str]) -> Self | None:
        """Return the rest of the task when the rows in `finished` are there, if any.

        It is the whole task, unless a subclass can do a part.
        """
        return None if all(row in finished for row in self.identities) else self


@dataclass(frozen=True)
class Ended:
    """A task that is over.

    Attributes:
        task: What ran.
        error: Why it failed or was given up; None if it did not fail.
        crashed: Whether it may work another time: its process died, or something failed
            that fastadv does not know.
    """

    task: Task
    error: str | None = None
    crashed: bool = False


class Executor(Protocol):
    """Runs up to `slots` tasks at once and reports those that ended."""

    slots: int

    def start(self, task: Task) -> None:
        """Begin a task; there must be a free slot."""

    def wait(self) -> list[Ended]:
        """Block until a task has ended, or for a while; return all that have ended."""

    def close(self) -> None:
        """End everything that still runs."""


def run_task(task: Task, place: Place) -> Ended:
    """Run a task in this process; an error of it is returned and not raised."""
    try:
        if not Path(task.results).is_dir():
            raise DataError(
                f"{socket.gethostname()} does not see the results folder "
                f"{task.results}; every worker needs it, e.g. on a shared file system"
            )
        task.function(task.setting, place)
    except (FastadvError, ValueError, TypeError) as error:
        return Ended(task, str(error))
    except Exception as error:  # whatever it is must not end the other tasks
        log.exception("a task failed")
        return Ended(task, f"{type(error).__name__}: {error}", crashed=True)
    return Ended(task)


def run_tasks(
    tasks: Sequence[Task],
    executor: Executor,
    table: ResultsTable,
    *,
    done: int = 0,
    retries: int = 2,
    what: str = "rows",
) -> list[Ended]:
    """Run tasks until each is finished or given up.

    Args:
        tasks: What to run.
        executor: Where tasks run; closed at the end.
        table: The table that the tasks write to.
        done: Number of rows that were there before, for messages.
        retries: How often a task is started again after a crash.
        what: What identities stand for, in messages.

    Returns:
        The tasks that were given up.

    Raises:
        Preempted: Ctrl-C or SIGTERM; finished rows are in the table.
    """
    waiting, running = deque(tasks), list[Task]()
    crashes: Counter[str] = Counter()
    failures: list[Ended] = []
    rows = done + sum(len(task.identities) for task in tasks)
    progress = Progress(rows, done)
    try:
        with signals_to(_interrupt):
            while waiting or running:
                while waiting and len(running) < executor.slots:
                    # If possible, one that need not wait for another's resource.
                    busy = {task.resource for task in running} - {None}
                    free = (each for each in waiting if each.resource not in busy)
                    task = next(free, waiting[0])
                    waiting.remove(task)
                    running.append(task)
                    executor.start(task)
                for ended in executor.wait():
                    task = ended.task
                    running.remove(task)
                    left = task.without(table.finished())
                    done += len(task.identities) - (len(left.identities) if left else 0)
                    state = "finished" if left is None else "not finished"
                    progress.update(done, f"{what}; {state}: {task}")
                    if left is None:
                        continue
                    key = left.identities[0]
                    crashes[key] += 1
                    if ended.crashed and crashes[key] <= retries:
                        progress.note(f"again, {ended.error}: {left}")
                        waiting.append(left)
                    else:
                        reason = ended.error or "it left no row under its identity"
                        progress.note(f"given up, {reason}: {left}")
                        failures.append(replace(ended, task=left, error=reason))
    except KeyboardInterrupt:
        raise Preempted(
            f"stopped; {done} of {rows} {what} are in {table.path}. The same command "
            "goes on from there"
        ) from None
    finally:
        executor.close()
    return failures


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # at once, as Ctrl-C does: no row can be torn
