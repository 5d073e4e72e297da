"""Plans of sweeps: what a recipe asks for, less the rows that a table has."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastadv.data import DatasetSplits, subset
from fastadv.errors import ConfigError, DataError, FastadvError
from fastadv.models.source import Source, open_source
from fastadv.ranges import ordered_fields
from fastadv.reporting.literature import PUBLISHED_SIDE
from fastadv.results.table import ResultsTable
from fastadv.runs.tasks import Place, Task
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.freezing import choose_trained
from fastadv.transfer.identity import row_identity
from fastadv.transfer.protocol import TransferRun
from fastadv.transfer.recipe import one_seed_each
from fastadv.transfer.target import hold_out, open_target

log = logging.getLogger(__name__)

_NOT_IN_NAMES = {
    "source",
    "name",
    "dataset",
    "mode",
    "seeds",
    "results",
    "source_accuracy",
}


_SOURCE_COLUMNS = ("source.name", "source.norm", "source.eps", "source.accuracy")


def run_transfer(config: TransferConfig, place: Place) -> None:
    """Compute the rows of `config` into its table, each once, at a place."""
    if config.workers is None and place.threads is not None:
        config = dataclasses.replace(config, workers=min(8, place.threads))
    if config.device == "auto" and place.device is not None:
        config = dataclasses.replace(config, device=place.device)
    for _ in TransferRun(config, ResultsTable(config.results, once=True)).rows():
        pass


class TransferTask(Task):
    """A transfer with some seeds; `setting` is its TransferConfig."""

    @classmethod
    def make(cls, config: TransferConfig, identities: Sequence[str]) -> Self:
        """Make the task that leaves the rows of `identities`, one per seed."""
        words = [config.name or Path(config.source).name, config.dataset, config.mode]
        changed = [
            f"{field.name}={value}"
            for field in ordered_fields(TransferConfig)
            if field.name not in _NOT_IN_NAMES
            and (value := getattr(config, field.name)) != field.default
        ]
        seeds = ",".join(map(str, config.seeds))
        return cls(
            function=run_transfer,
            setting=config,
            results=config.results,
            identities=tuple(identities),
            name=" ".join([*words, *changed, f"seeds={seeds}"]),
            # One of two tasks with the same features would wait for the other.
            resource=(config.source, config.dataset)
            if config.on_cached_features
            else None,
        )

    def without(self, finished: Container[str]) -> Self | None:
        """Return the task with the seeds whose rows are not there; None without any."""
        config: TransferConfig = self.setting
        left = [
            (seed, identity)
            for seed, identity in zip(config.seeds, self.identities, strict=True)
            if identity not in finished
        ]
        if not left:
            return None
        seeds, identities = zip(*left, strict=True)
        return self.make(dataclasses.replace(config, seeds=seeds), identities)


@dataclass(frozen=True)
class SweepPlan:
    """A recipe, compared with a table.

    Attributes:
        tasks: What is to be done.
        rows: Number of rows of the whole recipe.
        done: Number of rows that the table has already.
        missing: Reasons why experiments were left out.
    """

    tasks: list[TransferTask]
    rows: int
    done: int
    missing: list[str]


def plan_sweep(
    configs: Sequence[TransferConfig],
    table: ResultsTable,
    *,
    skip_missing: bool = False,
) -> SweepPlan:
    """Open every source and data set, and see what the table lacks.

    Args:
        configs: The experiments of a recipe.
        table: Where rows are, and will be.
        skip_missing: Leave out what cannot be opened, or cannot work.

    Raises:
        DataError: A source or a data set cannot be opened, or has too few images or
            blocks; all of them are named. With `skip_missing` only where that leaves no
            experiment.
        ConfigError: Two experiments define the same number.
    """
    opened, described = _Opened(), _Described(table)
    finished = table.identities() if table.path.exists() else set()
    tasks: list[TransferTask] = []
    seen: dict[str, TransferConfig] = {}
    rows = done = 0
    for config in configs:
        known = opened.find(config)
        if known is None:
            continue
        for part in one_seed_each(config):
            identities = [row_identity(part, seed, *known) for seed in part.seeds]
            for identity in identities:
                if identity in seen:
                    raise ConfigError(
                        f"{part.source} on {part.dataset} ({part.mode}) defines the same "
                        f"number as {seen[identity].source} on {seen[identity].dataset}; "
                        "leave one out of the recipe"
                    )
                seen[identity] = part
            left = TransferTask.make(part, identities).without(finished)
            if left and not opened.fits(left.setting, known[0], known[1]):
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
            "`skip_missing` goes on without them"
            if rows
            else "without them no experiment of the recipe is left"
        )
        raise DataError(
            f"{len(opened.problems)} source(s) or data set(s) cannot be used:\n  "
            f"{listed}\n{hint}"
        )
    return SweepPlan(tasks, rows, done, opened.problems)


class _Opened:
    """Sources and data sets by name, each opened once, and what could not be opened."""

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
        # Also where the source is missing, at any side: everything missing is named.
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
        """Whether there are the images and blocks that are needed; note a problem if not."""
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
    """Compares what finished rows state of their sources with the recipe.

    The same weights are the same number whatever they are called, so such rows are not
    computed again; but a report knows only what the rows state.
    """

    def __init__(self, table: ResultsTable) -> None:
        self._table = table
        self._rows: dict[str, dict[str, Any]] | None = None
        self._differing: Counter[str] = Counter()

    def check(
        self, config: TransferConfig, source: Source, finished: Iterable[str]
    ) -> None:
        """Compare the rows with the identities in `finished`."""
        now = {
            "source": source.name,
            "source_norm": source.norm,
            "source_eps": source.eps,
            "source_accuracy": config.source_accuracy,
        }
        for identity in finished:
            if self._rows is None:
                rows = self._table.columns("identity", *_SOURCE_COLUMNS)
                self._rows = {row["identity"]: row for row in rows}
            stored = self._rows[identity]
            then = dict(zip(now, (stored[c] for c in _SOURCE_COLUMNS), strict=True))
            found = [f"{k} {then[k]}, not {v}" for k, v in now.items() if then[k] != v]
            if found:
                self._differing[f"{source.name}: {', '.join(found)}"] += 1

    def warn(self) -> None:
        """Log each source whose finished rows differ, with their number."""
        for difference, count in self._differing.items():
            log.warning(
                "%d finished row(s) say otherwise of %s. They stay as they are, and so "
                "they are reported; delete them, or use another `results`, to have them "
                "computed again",
                count,
                difference,
            )
