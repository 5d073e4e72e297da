"""Sweeps: every task of a recipe, each row computed once, whatever crashes meanwhile.

The results table is the only state. A plan is the recipe less the rows the table has; a
task is finished when its rows are there. So the same command goes on after any
interruption, on any engine, and two of them may even run at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fastadv.data import DatasetSplits, subset
from fastadv.errors import ConfigError, DataError, FastadvError, Preempted
from fastadv.models.source import Source, open_source
from fastadv.progress import Progress
from fastadv.ranges import ordered_fields
from fastadv.results.legacy import LegacyTable
from fastadv.transfer.config import PUBLISHED_SIDE, TransferConfig
from fastadv.transfer.engines import Ended, Engine
from fastadv.transfer.freezing import choose_trained
from fastadv.transfer.identity import row_identity
from fastadv.transfer.recipe import one_seed_each
from fastadv.transfer.target import hold_out, open_target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What one worker does at a time.

    Attributes:
        config: of the experiment.
        identities: of its rows, one per seed of `config`.
    """

    config: TransferConfig
    identities: tuple[str, ...]

    def without(self, finished: Container[str]) -> Task | None:
        """The rows whose identity is not among the finished; None if all are."""
        left = [
            (seed, identity)
            for seed, identity in zip(
                self.config.seeds or (), self.identities, strict=True
            )
            if identity not in finished
        ]
        if not left:
            return None
        seeds, identities = zip(*left, strict=True)
        return Task(dataclasses.replace(self.config, seeds=seeds), identities)

    def __str__(self) -> str:
        config = self.config
        words = [config.name or Path(config.source).name, config.dataset, config.mode]
        changed = [
            f"{field.name}={value}"
            for field in ordered_fields(TransferConfig)
            if field.name not in _IN_WORDS
            and (value := getattr(config, field.name)) != field.default
        ]
        seeds = ",".join(map(str, config.seeds or ()))
        return " ".join([*words, *changed, f"seeds={seeds}"])


_IN_WORDS = {"source", "name", "dataset", "mode", "seeds", "results", "source_accuracy"}


@dataclass(frozen=True)
class Plan:
    """A recipe, held against a table.

    Attributes:
        tasks: what is to be done.
        rows: rows of the whole recipe.
        done: rows the table has already.
        missing: why experiments were left out.
    """

    tasks: list[Task]
    rows: int
    done: int
    missing: list[str]


@dataclass(frozen=True)
class Failure:
    """A task that was given up, and why."""

    task: Task
    reason: str


def make_plan(
    configs: Sequence[TransferConfig],
    table: LegacyTable,
    *,
    skip_missing: bool = False,
) -> Plan:
    """Open every source and data set, and see what the table lacks.

    Args:
        configs: of a recipe.
        table: where rows are, and will be.
        skip_missing: leave out what cannot be opened, or cannot work.

    Raises:
        DataError: a source or a data set cannot be opened, has too few images or blocks;
            all of them are named. With `skip_missing` only where that leaves no
            experiment.
        ConfigError: two experiments define the same number.
    """
    opened, described = _Opened(), _Described(table)
    finished = table.identities() if table.path.exists() else set()
    tasks: list[Task] = []
    seen: dict[str, TransferConfig] = {}
    rows = done = 0
    for config in configs:
        known = opened.find(config)
        if known is None:
            continue
        for part in one_seed_each(config):
            identities = tuple(
                row_identity(part, seed, *known) for seed in part.seeds or ()
            )
            for identity in identities:
                if identity in seen:
                    raise ConfigError(
                        f"{part.source} on {part.dataset} ({part.mode}) defines the same "
                        f"number as {seen[identity].source} on {seen[identity].dataset}; "
                        "leave one out of the recipe"
                    )
                seen[identity] = part
            left = Task(part, identities).without(finished)
            if left and not opened.fits(left.config, known[0], known[1]):
                continue
            described.check(part, known[0], finished.intersection(identities))
            rows += len(identities)
            done += len(identities) - (len(left.identities) if left else 0)
            if left:
                tasks.append(left)
    described.warn()
    if opened.problems and not (skip_missing and rows):
        listed = "\n  ".join(opened.problems)
        hint = (
            "--skip-missing goes on without them"
            if rows
            else "without them no experiment of the recipe is left"
        )
        raise DataError(
            f"{len(opened.problems)} source(s) or data set(s) cannot be used:\n  "
            f"{listed}\n{hint}"
        )
    return Plan(tasks, rows, done, opened.problems)


class _Opened:
    """Sources and data sets by name, each opened once, and what could not be."""

    def __init__(self) -> None:
        self._found: dict[object, Source | DatasetSplits | None] = {}
        self._fitting: dict[object, bool] = {}
        self.problems: list[str] = []

    def find(self, config: TransferConfig) -> tuple[Source, DatasetSplits, int] | None:
        source = self._get(
            ("source", config.source, config.name, config.arch),
            lambda: open_source(
                config.source, config.name, config.arch, download=config.download
            ),
        )
        # Also where the source is missing, at any side: all that is missing is named.
        side = source.resolution if isinstance(source, Source) else PUBLISHED_SIDE
        resolution = config.side(side)
        splits = self._get(
            ("dataset", config.dataset, config.dataset_option, resolution),
            lambda: open_target(config, resolution),
        )
        if not (isinstance(source, Source) and isinstance(splits, DatasetSplits)):
            return None
        return source, splits, resolution

    def fits(
        self, config: TransferConfig, source: Source, splits: DatasetSplits
    ) -> bool:
        """Whether there are the images and blocks asked for; says so here if not."""
        train, part = splits.train, (config.num_train, config.val_fraction)
        fits = self._works(
            (config.dataset, train.fingerprint, part, config.holds_out),
            config.dataset,
            lambda: (
                hold_out(config, train, config.seeds[0])
                if config.holds_out
                else subset(train, config.num_train, config.seeds[0])
            ),
        )
        if config.mode != "last_k_blocks":
            return fits
        return fits and self._works(
            (config.source, config.arch, config.k),
            source.name,
            lambda: choose_trained(source.load(), config.mode, config.k),
        )

    def _works(self, key: object, name: str, attempt: Callable[[], object]) -> bool:
        if key not in self._fitting:
            self._fitting[key] = True
            try:
                attempt()
            except FastadvError as error:
                self._fitting[key] = False
                self.problems.append(f"{name}: {error}")
        return self._fitting[key]

    def _get(
        self, key: object, opener: Callable[[], Source | DatasetSplits]
    ) -> Source | DatasetSplits | None:
        if key not in self._found:
            try:
                self._found[key] = opener()
            except FastadvError as error:
                self._found[key] = None
                if str(error) not in self.problems:
                    self.problems.append(str(error))
        return self._found[key]


class _Described:
    """What finished rows say of their sources, against what the recipe says now.

    The same weights are the same number whatever they are called, so such rows are not
    computed again; but a report knows only what they say.
    """

    def __init__(self, table: LegacyTable) -> None:
        self._table = table
        self._rows: dict[str, dict[str, Any]] | None = None
        self._differing: Counter[str] = Counter()

    def check(
        self, config: TransferConfig, source: Source, finished: Iterable[str]
    ) -> None:
        """Compare the rows of `finished` identities."""
        now = {
            "source": source.name,
            "source_norm": source.norm,
            "source_eps": source.eps,
            "source_accuracy": config.source_accuracy,
        }
        for identity in finished:
            if self._rows is None:
                found = self._table.columns("identity", *now)
                self._rows = {row["identity"]: row for row in found}
            row = self._rows[identity]
            words = [f"{k} {row[k]}, not {v}" for k, v in now.items() if row[k] != v]
            if words:
                self._differing[f"{source.name}: {', '.join(words)}"] += 1

    def warn(self) -> None:
        """Say what differs."""
        for words, count in self._differing.items():
            log.warning(
                "%d finished row(s) say otherwise of %s. They stay as they are, and so "
                "they are reported; delete them, or use another --results, to have them "
                "computed again",
                count,
                words,
            )


def run_sweep(
    plan: Plan, engine: Engine, table: LegacyTable, *, retries: int = 2
) -> list[Failure]:
    """Run a plan's tasks until each is finished or given up.

    Args:
        plan: from `make_plan`.
        engine: where tasks run; closed at the end.
        table: at `config.results` of every task.
        retries: how often a task is started again after a crash.

    Returns:
        The tasks given up.

    Raises:
        Preempted: Ctrl-C or SIGTERM; finished rows are in the table.
    """
    waiting = deque(plan.tasks)
    running: dict[TransferConfig, Task] = {}
    crashes: Counter[str] = Counter()
    failures: list[Failure] = []
    progress = Progress(plan.rows, plan.done)
    done = plan.done
    try:
        with _stop_signals():
            while waiting or running:
                while waiting and len(running) < engine.slots:
                    task = _take(waiting, running)
                    running[task.config] = task
                    engine.start(task.config)
                for ended in engine.wait():
                    task = running.pop(ended.config)
                    left = task.without(table)
                    done += len(task.identities) - (len(left.identities) if left else 0)
                    progress.update(done, f"rows; {_verdict(task, ended, left)}")
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
                        failures.append(Failure(left, reason))
    except KeyboardInterrupt:
        raise Preempted(
            f"stopped; {done} of {plan.rows} rows are in {table.path}. The same command "
            "goes on from there"
        ) from None
    finally:
        engine.close()
    return failures


def _take(waiting: deque[Task], running: Iterable[TransferConfig]) -> Task:
    """The next task, if there is one that need not wait for another's features."""
    busy = {_embedded(config) for config in running}
    found = next((t for t in waiting if _embedded(t.config) not in busy), waiting[0])
    waiting.remove(found)
    return found


def _embedded(config: TransferConfig) -> object:
    """What a task computes features of: two that share that would wait for each other."""
    if config.on_cached_features:
        return config.source, config.dataset
    return config


def _verdict(task: Task, ended: Ended, left: Task | None) -> str:
    return f"{'finished' if left is None else 'not finished'}: {task}"


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 interrupt at once, as Ctrl-C does: no row can be torn."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
