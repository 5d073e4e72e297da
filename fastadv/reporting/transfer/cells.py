"""From rows of the results table to cells: one source under one condition, over seeds.

Everything here is percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fastadv.reporting.literature import (
    PUBLISHED_SIDE,
    accuracy_of_file,
    limited_accuracy,
    published_weights,
    transfer_accuracy,
)
from fastadv.reporting.threats import Threat, source_threat, threat, training_label
from fastadv.reporting.transfer.condition import Condition, make_condition
from fastadv.results.row import AttackRecord, Departure, Row
from fastadv.results.settings import TransferSetting
from fastadv.statistics import mean_interval

# Modes by how much of the network trains.
_RANK = {"fixed_feature": 0, "last_k_blocks": 1, "full_network": 2, "scratch": 3}


@dataclass(frozen=True)
class Trial:
    """One row of a cell, with its setting and what its network does under attack.

    Attributes:
        row: Accuracy on clean images.
        setting: The setting of the row.
        attacked: Accuracy of the same network under each attack.
    """

    row: Row
    setting: TransferSetting
    attacked: Mapping[AttackRecord, Row]


@dataclass(frozen=True, eq=False)
class Cell:
    """One source, under one condition, with `n` training images.

    Attributes:
        condition: What is equal in all rows of the cell, and in those compared with it.
        source: Name of the source.
        arch: Architecture of the source.
        threat: Norm and eps of its training; None if unknown.
        n: Number of images to train with, those for validation included.
        rows: Accuracy on clean images, by seed.
        attacked: Clean and robust accuracy of the same networks, by seed, by attack.
        named: Whether arch and threat do not tell which source it is.
    """

    condition: Condition
    source: str
    arch: str
    threat: Threat | None
    n: int
    rows: Mapping[int, Row]
    attacked: Mapping[AttackRecord, Mapping[int, tuple[Row, Row]]]
    named: bool

    @property
    def first(self) -> Row:
        """The row of the smallest seed."""
        return next(iter(self.rows.values()))

    @property
    def setting(self) -> TransferSetting:
        """The setting of the first row; others differ in what was chosen at most."""
        return transfer_setting(self.first)

    @property
    def values(self) -> dict[int, float]:
        """Accuracy on clean images, by seed."""
        return {seed: row.value for seed, row in self.rows.items()}

    @property
    def mean(self) -> float:
        """Mean accuracy over all seeds."""
        return self.interval()[0]

    def interval(self) -> tuple[float, float, float]:
        """Return mean and 95 % interval; see `seeds_interval`."""
        return seeds_interval(list(self.rows.values()))

    @property
    def validation(self) -> float | None:
        """Mean of what hyper-parameters were chosen on; None where nothing was."""
        found = [row.val_value for row in self.rows.values()]
        known = [value for value in found if value is not None]
        return math.fsum(known) / len(known) if len(known) == len(found) else None

    @property
    def robust(self) -> bool:
        """Whether the source was trained on adversarial images."""
        return self.threat is not None and self.threat[1] > 0

    @property
    def training(self) -> str:
        """How the source was trained, in a few words."""
        return training_label(self.threat)

    @property
    def radius(self) -> float:
        """Radius of the pretraining in pixel units, 0 where it is unknown."""
        return self.threat[1] if self.threat else 0.0

    @property
    def label(self) -> str:
        """How the source was trained, and its name where that is not enough."""
        if self.threat is None:
            return f"{self.source} ({self.training})"
        return f"{self.training} ({self.source})" if self.named else self.training

    @property
    def source_accuracy(self) -> float | None:
        """Accuracy of the source on its own test images, if it is known."""
        source = self.first.source
        if source.accuracy is not None:
            return source.accuracy
        return accuracy_of_file(source.path or "")

    @property
    def complete(self) -> bool:
        """Whether all training images there are were used."""
        return self.n == self.setting.num_available

    @property
    def epochs(self) -> int:
        """Epochs of fine-tuning; 0 where there are none."""
        return self.setting.epochs or 0

    def published(self, names: Mapping[str, str]) -> float | None:
        """Return the published number of the same data, mode, source and images.

        Args:
            names: Published name of a data set by ours, where they differ.
        """
        found = self._published(names)
        return None if found is None else found[0]

    def unlike_published(self, names: Mapping[str, str]) -> list[str]:
        """Return in what the experiment differs from that of the published number."""
        found = self._published(names)
        if found is None:
            return []
        differences = []
        if self.condition.protocol != found[1]:
            differences.append(f"protocol {self.condition.protocol or 'unknown'}")
        if self.condition.resolution != PUBLISHED_SIDE:
            differences.append(f"{self.condition.resolution} px")
        differences += [
            departure_label(departure)
            for departure in self.first.departures
            if departure.name != "resolution"
        ]
        if not published_weights(self.first.source.path or "", found[1]):
            differences.append("other source weights")
        return differences

    def _published(self, names: Mapping[str, str]) -> tuple[float, str] | None:
        """Return the published number, and the protocol it was measured by."""
        if self.threat is None:
            return None
        condition, source = self.condition, threat(*self.threat)
        dataset = names.get(condition.dataset, condition.dataset)
        if self.complete:
            side = condition.downscale or None
            key = (dataset, condition.mode, side, self.arch, source)
            found = transfer_accuracy().get(key)
            if found is not None:
                return found, "salman2020"
        if condition.mode != "last_k_blocks" or condition.downscale:
            return None
        n = None if self.complete else self.n
        limited = (dataset, self.arch, condition.k_blocks, n, source)
        found = limited_accuracy().get(limited)
        return None if found is None else (found, "utrera2021")


def transfer_setting(row: Row) -> TransferSetting:
    """Return the setting of a row of kind "transfer".

    Raises:
        TypeError: The row is of another kind.
    """
    if not isinstance(row.setting, TransferSetting):
        raise TypeError(f"a row of kind {row.kind!r} is no transfer")
    return row.setting


def departure_label(departure: Departure) -> str:
    """Describe one departure from a published protocol."""
    return f"{departure.name} {departure.ours} instead of {departure.published}"


def seeds_interval(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Return mean and 95 % interval over seeds and test images, percent.

    Seeds vary by what they draw, and all of them by the one draw of test images, which no
    spread over seeds shows. The t-interval over seeds and the mean one of the test images
    are combined by the square root of the sum of their squares on either side, as of two
    independent estimates (MOVER). It covers a little more than 95 % where seeds err on
    different images: that spread is then in both.

    Of a single seed, and of seeds that agree exactly, it is the interval of the test
    images.

    Args:
        rows: One per seed; where they have no interval of the test images, the result is
            that of the seeds alone.

    Source:
        Zou and Donner 2008, Construction of confidence limits about effect measures.
    """
    mean, least, most = mean_interval([row.value for row in rows])
    below = [row.value - row.low for row in rows if row.low is not None]
    above = [row.high - row.value for row in rows if row.high is not None]
    if below and above:
        least = mean - math.hypot(mean - least, fmean(below))
        most = mean + math.hypot(most - mean, fmean(above))
    return mean, max(0.0, least), min(100.0, most)


def make_cells(rows: Iterable[Row]) -> list[Cell]:
    """Collect rows into cells, in order of condition, arch, threat and n.

    Of rows that define the same number the newest counts, and of learning rates that
    were run one by one the one that did best on what they were to be chosen on. Sources
    and data sets of one name but other content are told apart by their hashes.

    Args:
        rows: Rows of kind "transfer", oldest first; clean and robust accuracy of one
            network share their `experiment`.
    """
    trials = _trials(rows)
    source_version = _versions((t.row.source.name, t.row.source.digest) for t in trials)
    # By side: the fingerprint is of the images as they were reduced.
    target_version = _versions(
        ((t.row.target.name, t.row.target.downscale), t.row.target.fingerprint)
        for t in trials
    )
    found: dict[tuple[Condition, str, str, Threat | None, int], list[Trial]] = {}
    for trial in trials:
        source, target = trial.row.source, trial.row.target
        version = target_version((target.name, target.downscale), target.fingerprint)
        condition = make_condition(trial.row, trial.setting, version)
        name = f"{source.name} {source_version(source.name, source.digest)}".rstrip()
        trained = source_threat(trial.row)
        key = (condition, name, str(source.arch), trained, trial.setting.num_pool)
        found.setdefault(key, []).append(trial)
    sources: dict[tuple[str, Threat | None], set[str]] = {}
    for _, name, arch, trained, _ in found:
        sources.setdefault((arch, trained), set()).add(name)
    cells = []
    for key, of_cell in found.items():
        best: dict[int, Trial] = {}
        for trial in of_cell:
            seed = trial.row.seed
            if seed not in best or _merit(trial) >= _merit(best[seed]):
                best[seed] = trial
        attacked: dict[AttackRecord, dict[int, tuple[Row, Row]]] = {}
        for trial in of_cell:
            if trial.setting == best[trial.row.seed].setting:
                for attack, robust in trial.attacked.items():
                    pair = (trial.row, robust)
                    attacked.setdefault(attack, {})[trial.row.seed] = pair
        clean = {seed: best[seed].row for seed in sorted(best)}
        several = len(sources[key[2], key[3]]) > 1
        cells.append(Cell(*key, clean, attacked, several))
    return sorted(cells, key=_order)


def _trials(rows: Iterable[Row]) -> list[Trial]:
    """Return the newest row of each clean number, with the robust ones of its network."""
    clean: dict[Any, Row] = {}
    robust: dict[Any, dict[AttackRecord, Row]] = {}
    for number, row in enumerate(rows):
        if row.attack is None:
            clean[row.identity or number] = row
        else:
            robust.setdefault(row.experiment, {})[row.attack] = row
    return [
        Trial(row, transfer_setting(row), robust.get(row.experiment, {}))
        for row in clean.values()
    ]


def _versions(
    found: Iterable[tuple[Hashable, str | None]],
) -> Callable[[Hashable, str | None], str]:
    """Return a function of name and hash: the beginning of the hash, if it is needed.

    Args:
        found: All names with their hashes; a name with one hash needs no version.
    """
    hashes: dict[Hashable, set[str | None]] = {}
    for name, digest in found:
        hashes.setdefault(name, set()).add(digest)
    return lambda name, digest: str(digest)[:6] if len(hashes[name]) > 1 else ""


def _order(cell: Cell) -> tuple[Any, ...]:
    norm, eps = cell.threat or ("", math.inf)
    condition = cell.condition
    place = (condition.target, _RANK.get(condition.mode, len(_RANK)), condition)
    return *place, cell.arch, norm or "", eps, cell.source, cell.n


def _merit(trial: Trial) -> tuple[float, float, str]:
    """Return what a trial is preferred by: validation, then as grids of rates do.

    Those begin with the largest learning rate and keep the first of equals; when a row
    was written plays no part. Only trials of the same choices are equal.
    """
    value, used = trial.row.val_value, trial.setting
    choices = str((used.lrs, used.chosen_c, used.chosen_epoch))
    return -math.inf if value is None else value, used.chosen_lr or 0.0, choices


def with_most_images(
    cells: Sequence[Cell], family: Callable[[Cell], object] | None = None
) -> list[Cell]:
    """Return the cells with the most training images.

    Args:
        cells: Cells to choose from.
        family: Returns what shares one number of images: that at which there are most
            conditions, and the largest of those. None: every condition by itself.
    """
    of = family or (lambda cell: cell.condition)
    found: dict[object, dict[int, set[Condition]]] = {}
    for cell in cells:
        found.setdefault(of(cell), {}).setdefault(cell.n, set()).add(cell.condition)
    most = {
        key: max(sizes, key=lambda n: (len(sizes[n]), n))
        for key, sizes in found.items()
    }
    return [cell for cell in cells if cell.n == most[of(cell)]]
