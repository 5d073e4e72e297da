"""Plans of sweeps: what a recipe asks for, less the rows that a table has."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fastadv.data import DatasetSplits, ImageSet
from fastadv.errors import ConfigError, DataError, FastadvError
from fastadv.models.published import facts_from_name
from fastadv.models.source import Source, open_source
from fastadv.reporting.literature import PUBLISHED_SIDE
from fastadv.results.table import ResultsTable
from fastadv.runs.tasks import Place, Task
from fastadv.threat import training_kind
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.freezing import choose_trained
from fastadv.transfer.identity import changed_values, row_identity
from fastadv.transfer.keeping import expected_bytes
from fastadv.transfer.protocol import TransferRun
from fastadv.transfer.target import draw_pool, hold_out, open_target
from fastadv.transfer.work import Subject, subject_of

log = logging.getLogger(__name__)

_NOT_IN_NAMES = (
    "source", "name", "dataset", "mode", "seeds", "results", "source_accuracy", "keep",
    "keep_limit", "save",
)  # fmt: skip


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
        name = [config.name or Path(config.source).name, config.dataset, config.mode]
        changed = changed_values(config, _NOT_IN_NAMES)
        name += [f"{choice}={value}" for choice, value in changed.items()]
        name.append(f"seeds={','.join(map(str, config.seeds))}")
        # One of two tasks with the same features would wait for the other.
        shared = (config.source, config.dataset) if config.on_cached_features else None
        return cls(
            function=run_transfer,
            setting=config,
            results=config.results,
            identities=tuple(identities),
            name=" ".join(name),
            resource=shared,
        )

    def without(self, finished: Container[str]) -> Self | None:
        """Return the task with the seeds whose rows are not there; None without any."""
        config: TransferConfig = self.setting
        seed_of = dict(zip(self.identities, config.seeds, strict=True))
        left = [identity for identity in seed_of if identity not in finished]
        if not left:
            return None
        seeds = tuple(seed_of[identity] for identity in left)
        return self.make(dataclasses.replace(config, seeds=seeds), left)


@dataclass
class SweepPlan:
    """A recipe, compared with a table.

    Attributes:
        tasks: What is to be done.
        rows: Number of rows of the whole recipe.
        done: Number of rows that the table has already.
        missing: Reasons why experiments were left out.
        bytes_left: About how many bytes the tasks will leave on disk.
        absent: Experiments whose source or data set is not here, in a survey.
        subjects: What is known of the data and the network of experiments that are left.
        trained: Norm and eps of the training of each source, in a survey.
    """

    tasks: list[TransferTask] = field(default_factory=list)
    rows: int = 0
    done: int = 0
    missing: list[str] = field(default_factory=list)
    bytes_left: int = 0
    absent: list[TransferConfig] = field(default_factory=list)
    subjects: dict[TransferConfig, Subject | None] = field(default_factory=dict)
    trained: dict[str, tuple[str | None, float]] = field(default_factory=dict)


def plan_sweep(
    configs: Sequence[TransferConfig],
    table: ResultsTable,
    *,
    skip_missing: bool = False,
    survey: bool = False,
) -> SweepPlan:
    """Open every source and data set, and see what the table lacks.

    Args:
        configs: The experiments of a recipe.
        table: Where rows are, and will be.
        skip_missing: Leave out what cannot be opened, or cannot work.
        survey: Do not stop at what is missing, and download nothing: such experiments
            are in `absent`.

    Raises:
        DataError: A source or a data set cannot be opened, or has too few images or
            blocks; all of them are named. With `skip_missing` only where that leaves no
            experiment.
        ConfigError: Two experiments define the same number.
    """
    plan = SweepPlan()
    opened = _Opened(plan.missing)
    checked: list[tuple[TransferConfig, Source, set[str]]] = []
    finished = table.finished() if table.path.exists() else set()
    seen: dict[str, TransferConfig] = {}
    for config in configs:
        if survey:
            config = dataclasses.replace(config, download=False)
        source, splits, side = opened.open(config)
        if survey and (threat := _threat_of(config, source)):
            plan.trained[config.source] = threat
        if source is None or splits is None:
            plan.absent.append(config)
            plan.subjects[config] = subject = subject_of(config, source, splits, side)
            plan.bytes_left += _bytes(config, subject) if survey else 0
            continue
        known = source, splits, side
        # All seeds together on features; elsewhere each seed can run apart.
        seeds = [config.seeds] if config.on_cached_features else zip(config.seeds)
        for part in (dataclasses.replace(config, seeds=each) for each in seeds):
            identities = [row_identity(part, seed, *known) for seed in part.seeds]
            if part.mode == "scratch" and identities[0] in seen:
                continue  # sources of one architecture share the network without source
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
            checked.append((part, known[0], finished.intersection(identities)))
            plan.rows += len(identities)
            plan.done += len(identities) - (len(left.identities) if left else 0)
            if left:
                subject = subject_of(left.setting, *known)
                plan.subjects[left.setting] = subject
                plan.tasks.append(left)
                plan.bytes_left += _bytes(left.setting, subject)
    _warn_of_other_descriptions(table, checked)
    if plan.missing and not survey and not (skip_missing and plan.rows):
        listed = "\n  ".join(plan.missing)
        hint = (
            "`skip_missing` goes on without them"
            if plan.rows
            else "without them no experiment of the recipe is left"
        )
        raise DataError(
            f"{len(plan.missing)} source(s) or data set(s) cannot be used:\n  "
            f"{listed}\n{hint}"
        )
    return plan


def _bytes(config: TransferConfig, subject: Subject | None) -> int:
    """Return about how many bytes an experiment leaves; 0 where nothing is known."""
    if subject is None:
        return 0
    about = (subject.arch, subject.test, subject.classes)
    return len(config.seeds) * expected_bytes(config, *about)


def _threat_of(
    config: TransferConfig, source: Source | None
) -> tuple[str | None, float] | None:
    """Return norm and eps of the training of a source, also by its name alone."""
    if source is not None:
        return None if source.eps is None else (source.norm, source.eps)
    known = facts_from_name(config.source.partition(",")[0].rpartition(":")[2])
    return None if known is None else known[1:]


def _warn_of_other_descriptions(
    table: ResultsTable, checked: Sequence[tuple[TransferConfig, Source, set[str]]]
) -> None:
    """Log each source of which finished rows state something else than the recipe.

    The same weights are the same number whatever they are called, so such rows are not
    computed again; but a report knows only what the rows state.
    """
    if not any(identities for *_, identities in checked):
        return
    names = ("source", "source_norm", "source_eps", "source_accuracy", "source_kind")
    columns = ("source.name", "source.norm", "source.eps", "source.accuracy")
    rows = {
        row["experiment"]: row
        for row in table.columns("experiment", *columns, "source.kind")
    }
    differing: Counter[str] = Counter()
    for config, source, identities in checked:
        if config.mode == "scratch":
            continue  # such rows state no source
        now = (
            source.name,
            source.norm,
            source.eps,
            config.source_accuracy,
            source.kind,
        )
        for identity in identities:
            row = rows[identity]
            then = [row[column] for column in columns]
            then.append(training_kind(row["source.kind"], row["source.eps"]))
            stated = zip(names, then, now, strict=True)
            found = [
                f"{name} {old}, not {new}" for name, old, new in stated if old != new
            ]
            if found:
                differing[f"{source.name}: {', '.join(found)}"] += 1
    for difference, count in differing.items():
        log.warning(
            "%d finished row(s) say otherwise of %s. They stay as they are, and so they "
            "are reported; delete them, or use another `results`, to have them computed "
            "again",
            count,
            difference,
        )


def _draw(config: TransferConfig, train: ImageSet) -> ImageSet:
    """Draw the images of the first seed, to see whether there are enough."""
    pool = draw_pool(config, train, config.seeds[0])
    return hold_out(config, pool, config.seeds[0])[0] if config.holds_out else pool


class _Opened:
    """Sources and data sets, each opened once, and what cannot be used of them."""

    def __init__(self, problems: list[str]) -> None:
        self._found: dict[object, Any] = {}
        self.problems = problems

    def open(
        self, config: TransferConfig
    ) -> tuple[Source | None, DatasetSplits | None, int]:
        """Return source, data set and resolution; None is what cannot be opened."""
        named = (config.source, config.name, config.arch)
        source: Source | None = self._try(
            named, lambda: open_source(*named, download=config.download)
        )
        # Also where the source is missing, at any side: everything missing is named.
        resolution = config.side(source.resolution if source else PUBLISHED_SIDE)
        splits: DatasetSplits | None = self._try(
            ("dataset", config.dataset, config.dataset_option, resolution),
            lambda: open_target(config, resolution),
        )
        return source, splits, resolution

    def fits(
        self, config: TransferConfig, source: Source, splits: DatasetSplits
    ) -> bool:
        """Return whether all images and blocks are there; note a problem where not."""
        train, part = splits.train, (config.num_train, config.val_fraction)
        draw = config.subset_kind
        fits = self._try(
            ("part", config.dataset, train.fingerprint, part, config.holds_out, draw),
            lambda: _draw(config, train),
            f"{config.dataset}: ",
        )
        if fits and config.mode == "last_k_blocks":
            fits = self._try(
                ("blocks", config.source, config.arch, config.k),
                lambda: choose_trained(source.load(), config.mode, config.k),
                f"{source.name}: ",
            )
        return bool(fits)

    def _try(self, key: object, make: Callable[[], Any], prefix: str = "") -> Any:
        """Return what `make` makes, made once for each key; None after an error."""
        if key not in self._found:
            self._found[key] = None
            try:
                self._found[key] = make()
            except FastadvError as error:
                if (problem := f"{prefix}{error}") not in self.problems:
                    self.problems.append(problem)
        return self._found[key]
