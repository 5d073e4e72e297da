"""From rows of the results table to cells: one source under one condition, over seeds.

Everything here is percent.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from fastadv.reporting.literature import (
    PUBLISHED_SIDE,
    Record,
    Trained,
    accuracy_of_file,
    limited_accuracy,
    published_weights,
    rerun_accuracy,
    scratch_accuracy,
    transfer_accuracy,
)
from fastadv.reporting.threats import Threat, source_threat, threat, training_label
from fastadv.reporting.transfer.condition import Condition, make_condition
from fastadv.results.row import AttackRecord, Row
from fastadv.results.settings import TransferSetting
from fastadv.statistics.crossed import crossed_difference

K = TypeVar("K", bound=Hashable)

# Modes by how much of the network trains.
RANK = {"fixed_feature": 0, "last_k_blocks": 1, "full_network": 2, "scratch": 3}


@dataclass(frozen=True, eq=False)
class Place:
    """Where a cell, or a comparison of cells, belongs.

    Attributes:
        condition: What is equal in all rows of the cell, and in those compared with it.
        arch: Architecture of the source.
        threat: Norm and eps of its training; None if unknown.
        n: Number of images to train with, those for validation included.
    """

    condition: Condition
    arch: str
    threat: Threat | None
    n: int

    @property
    def radius(self) -> float:
        """Radius of the pretraining in pixel units, 0 where it is unknown."""
        return self.threat[1] if self.threat else 0.0


@dataclass(frozen=True, eq=False)
class Cell(Place):
    """One source, under one condition, with `n` training images.

    Attributes:
        source: Name of the source.
        rows: Accuracy on clean images, by seed.
        attacked: Clean and robust accuracy of the same networks, by seed, by attack.
        named: Whether arch, threat and kind do not tell which source it is.
        kind: How the source was trained, a key of `fastadv.threat.TRAINING_KINDS`; None
            if unknown.
    """

    source: str
    rows: Mapping[int, Row]
    attacked: Mapping[AttackRecord, Mapping[int, tuple[Row, Row]]]
    named: bool
    kind: str | None = None

    @property
    def first(self) -> Row:
        """The row of the smallest seed."""
        return next(iter(self.rows.values()))

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
        return self._interval

    @functools.cached_property
    def _interval(self) -> tuple[float, float, float]:
        return seeds_interval(list(self.rows.values()))

    @property
    def validation(self) -> float | None:
        """Mean of what hyper-parameters were chosen on; None where nothing was."""
        rows = self.rows.values()
        known = [row.val_value for row in rows if row.val_value is not None]
        return fmean(known) if len(known) == len(rows) else None

    @property
    def robust(self) -> bool:
        """Whether the source was trained on adversarial images."""
        return self.kind == "robust"

    @property
    def standard(self) -> bool:
        """Whether the source was trained on images as they are, and so is the baseline."""
        return self.kind == "standard"

    @property
    def plain(self) -> bool:
        """Whether the source was trained on images as they are, or as adversarial ones."""
        return self.standard or self.robust

    @property
    def training(self) -> str:
        """How the source was trained: its norm and radius, or `standard`."""
        return training_label(self.threat, self.kind)

    @property
    def label(self) -> str:
        """How the source was trained, and its name where that is not enough."""
        if self.condition.mode == "scratch":
            return "from scratch"
        if self.threat is None:
            return f"{self.source} ({self.training})"
        return f"{self.training} ({self.source})" if self.named else self.training

    @property
    def source_accuracy(self) -> float | None:
        """Accuracy of the source on its own test images, if it is known."""
        source = self.first.source
        known = source.accuracy is not None
        return source.accuracy if known else accuracy_of_file(source.path or "")

    @property
    def complete(self) -> bool:
        """Whether all training images there are were used."""
        return self.n == transfer_setting(self.first).num_available

    @property
    def epochs(self) -> int:
        """Epochs of fine-tuning; 0 where there are none."""
        return transfer_setting(self.first).epochs or 0

    def published(self, names: Mapping[str, str]) -> float | None:
        """Return the published number of the same data, mode, source and images.

        `names` are the published names of data sets by ours, where they differ.
        """
        found = self.published_record(names)
        return None if found is None else found.value

    def unlike_published(self, names: Mapping[str, str]) -> list[str]:
        """Return the differences of the experiment from the published one."""
        found = self.published_record(names)
        if found is None:
            return []
        first, protocol = self.first, self.condition.protocol
        scratch = self.condition.mode == "scratch"
        weights = scratch or published_weights(first.source.path or "", found.protocol)
        side = self.condition.resolution
        differs = {
            f"protocol {protocol or 'unknown'}": protocol != found.protocol,
            f"{side} px": side != PUBLISHED_SIDE,
            **{str(d): d.name != "resolution" for d in first.departures},
            "other source weights": not weights,
        }
        return [difference for difference, holds in differs.items() if holds]

    def published_record(self, names: Mapping[str, str]) -> Record | None:
        """Return the published number with how it was selected; see `published`."""
        condition, dataset = self.condition, self.condition.published(names)
        if condition.mode == "scratch":  # whatever the source is
            comparable = self.complete and not condition.downscale
            return scratch_accuracy().get((dataset, self.arch)) if comparable else None
        if self.threat is None or self.kind == "other":
            return None
        source = threat(*self.threat)
        if self.complete:
            place = (dataset, condition.mode, condition.downscale or None, self.arch)
            trained: Trained = "texture" if self.kind == "texture" else source
            found = transfer_accuracy().get((*place, trained))
            if found is not None:
                return found
        if condition.mode != "last_k_blocks" or condition.downscale:
            return None
        if not self.plain:
            return None
        n = None if self.complete else self.n
        limited = (dataset, self.arch, condition.k_blocks, n, source)
        return limited_accuracy().get(limited)

    def rerun(self, names: Mapping[str, str]) -> float | None:
        """Return the number of a rerun by others; see `literature.rerun_accuracy`."""
        condition = self.condition
        usual = self.complete and not condition.downscale
        if not usual or self.threat is None or not self.plain:
            return None
        key = (
            condition.published(names),
            condition.mode,
            self.arch,
            threat(*self.threat),
        )
        return rerun_accuracy().get(key)


def transfer_setting(row: Row) -> TransferSetting:
    """Return the setting of a row of kind "transfer".

    Raises:
        TypeError: The row is of another kind.
    """
    if not isinstance(row.setting, TransferSetting):
        raise TypeError(f"a row of kind {row.kind!r} is no transfer")
    return row.setting


def seeds_interval(*runs: Sequence[Row]) -> tuple[float, float, float]:
    """Return mean and 95 % interval over seeds, source runs and test images, percent.

    Seeds vary by what they draw, and all of them by the one draw of test images, which no
    spread over seeds shows. The interval over seeds and source runs and the mean one of
    the test images are combined by the square root of the sum of their squares on either
    side, as of two independent estimates (MOVER). It covers a little more than 95 % where
    seeds err on different images: that spread is then in both.

    Of fewer than three seeds, and of seeds that agree exactly, it is the interval of the
    test images.

    Args:
        runs: Rows of one source run each, one row per seed and the same seeds in each;
            where they have no interval of the test images, the result is that of the
            seeds and runs alone.

    Source:
        Zou and Donner 2008, Construction of confidence limits about effect measures.
    """
    values = np.array([[row.value for row in run] for run in runs])
    over = crossed_difference([values], [1.0])
    mean = over.value
    least, most = (mean if end is None else end for end in (over.low, over.high))
    rows = [row for run in runs for row in run]
    below = [row.value - row.low for row in rows if row.low is not None]
    above = [row.high - row.value for row in rows if row.high is not None]
    if below and above:
        least = mean - math.hypot(mean - least, fmean(below))
        most = mean + math.hypot(most - mean, fmean(above))
    return mean, max(0.0, least), min(100.0, most)


def make_cells(rows: Iterable[Row]) -> list[Cell]:
    """Collect rows into cells, in order of condition, arch, threat, source and n.

    If rows define the same number, the newest counts. If learning rates were run one by
    one, the one with the best validation accuracy counts. Sources and data sets of one
    name but other content get their hashes as part of the name.

    Args:
        rows: Rows of kind "transfer", oldest first; clean and robust accuracy of one
            network share their `experiment`.
    """
    clean: dict[Any, Row] = {}
    robust: dict[Any, dict[AttackRecord, Row]] = {}
    for number, row in enumerate(rows):
        if row.attack is None:
            clean[row.experiment if row.identity else number] = row
        else:
            robust.setdefault(row.experiment, {})[row.attack] = row
    sources = _versions((r.source.name, r.source.digest) for r in clean.values())
    # By side: the fingerprint is of the images as they were reduced.
    targets = _versions(map(_target, clean.values()))
    found: dict[
        tuple[Condition, str, Threat | None, int, str, str | None], list[Row]
    ] = {}
    names: dict[tuple[str, Threat | None, str | None], set[str]] = {}
    for row in clean.values():
        source, setting = row.source, transfer_setting(row)
        condition = make_condition(row, setting, targets[_target(row)])
        name = f"{source.name} {sources[source.name, source.digest]}".rstrip()
        arch, trained = str(source.arch), source_threat(row)
        key = (condition, arch, trained, setting.num_pool, name, source.training)
        found.setdefault(key, []).append(row)
        names.setdefault((arch, trained, source.training), set()).add(name)
    cells = []
    for key, of_cell in found.items():
        # The best of each seed comes last and stays, and of equals the newest.
        best = {row.seed: row for row in sorted(of_cell, key=_merit)}
        attacked: dict[AttackRecord, dict[int, tuple[Row, Row]]] = {}
        for row in of_cell:
            if row.setting == best[row.seed].setting:
                for attack, under in robust.get(row.experiment, {}).items():
                    attacked.setdefault(attack, {})[row.seed] = row, under
        of_seed = dict(sorted(best.items()))
        condition, arch, trained, n, name, kind = key
        named = len(names[arch, trained, kind]) > 1
        place = (condition, arch, trained, n)
        cells.append(Cell(*place, name, of_seed, attacked, named, kind))
    return sorted(cells, key=_order)


def _target(row: Row) -> tuple[tuple[str, int | None], str | None]:
    return (row.target.name, row.target.downscale), row.target.fingerprint


def _versions(found: Iterable[tuple[K, str | None]]) -> dict[tuple[K, str | None], str]:
    """Return the beginning of the hash for each name with a hash, where it has several."""
    pairs = set(found)
    count = Counter(name for name, _ in pairs)
    return {pair: str(pair[1])[:6] if count[pair[0]] > 1 else "" for pair in pairs}


def _order(cell: Cell) -> tuple[Any, ...]:
    norm, eps = cell.threat or ("", math.inf)
    condition = cell.condition
    place = (condition.target, RANK.get(condition.mode, len(RANK)), condition)
    return *place, cell.arch, norm or "", eps, cell.source, cell.n


def _merit(row: Row) -> tuple[float, float, str]:
    """Return the sort key of trials: validation accuracy, then the learning rate.

    Grids of learning rates, too, keep the largest of those that are equally good. The
    time at which a row was written plays no part.
    """
    value, used = row.val_value, transfer_setting(row)
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
    places = {(of(cell), cell.n, cell.condition) for cell in cells}
    count = Counter((key, n) for key, n, _ in places)
    # The last of each key stays in the dictionary.
    most = dict(sorted(count, key=lambda place: (count[place], place[1])))
    return [cell for cell in cells if cell.n == most[of(cell)]]
