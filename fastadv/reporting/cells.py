"""From rows of the results table to experiments over seeds, comparable and paired.

A cell is one source in one setting with so many training images; its values are by seed.
Everything here is percent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fastadv.reporting.reference import (
    Threat,
    accuracy_of_file,
    limited_accuracy,
    threat,
    transfer_accuracy,
)
from fastadv.statistics import holm, mean_interval, paired_t

Row = Mapping[str, Any]
_MODE_NAMES = {
    "fixed_feature": "fixed features",
    "full_network": "full network",
    "scratch": "from scratch",
}


@dataclass(frozen=True, order=True)
class Setting:
    """What must be equal for two numbers to be compared.

    Empty strings and zeros stand for what does not apply.
    """

    dataset: str
    mode: str
    k_blocks: int
    downscale: int  # 0: none
    protocol: str
    select_on: str
    resolution: int
    solver: str
    method: str
    metric: str

    def __str__(self) -> str:
        mode = _MODE_NAMES.get(self.mode, f"last {self.k_blocks} blocks")
        return f"{self.dataset}, {mode}"

    def published_side(self) -> int | None:
        """How published tables call the side images were reduced to."""
        return self.downscale or None


@dataclass(frozen=True, eq=False)
class Cell:
    """One source, in one setting, with `n` training images.

    Attributes:
        source: name of the source.
        arch: its architecture.
        threat: its norm and eps; None if unknown.
        n: images to train with, those for validation included.
        rows: by seed.
    """

    setting: Setting
    source: str
    arch: str
    threat: Threat | None
    n: int
    rows: Mapping[int, Row]

    @property
    def values(self) -> dict[int, float]:
        """Accuracy by seed."""
        return {seed: float(row["value"]) for seed, row in self.rows.items()}

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return self.interval()[0]

    def interval(self) -> tuple[float, float, float]:
        """Mean and 95 % interval: over seeds, or of the test images for a single seed."""
        if len(self.rows) > 1:
            mean, least, most = mean_interval(list(self.values.values()))
            return mean, max(0.0, least), min(100.0, most)
        [row] = self.rows.values()
        low, high = row.get("ci_low"), row.get("ci_high")
        if low is None or high is None:
            return float(row["value"]), float(row["value"]), float(row["value"])
        return float(row["value"]), float(low), float(high)

    @property
    def validation(self) -> float | None:
        """Mean of what hyper-parameters were chosen on; None where nothing was."""
        found = [row.get("val_value") for row in self.rows.values()]
        known = [float(value) for value in found if value is not None]
        return math.fsum(known) / len(known) if len(known) == len(found) else None

    @property
    def robust(self) -> bool:
        """Whether the source was trained on adversarial images."""
        return self.threat is not None and self.threat[1] > 0

    @property
    def label(self) -> str:
        """The threat in words."""
        if self.threat is None:
            return self.source
        norm, eps = self.threat
        if not eps:
            return "standard"
        pixels = f"{eps * 255:.4g}/255" if norm == "linf" else f"{eps:g}"
        return f"{norm} {pixels}"

    @property
    def source_accuracy(self) -> float | None:
        """Accuracy of the source on its own test images, if it is known."""
        row = next(iter(self.rows.values()))
        given = row.get("source_accuracy")
        return (
            given if given is not None else accuracy_of_file(row["source_path"] or "")
        )

    @property
    def complete(self) -> bool:
        """Whether all training images there are were used."""
        return self.n == next(iter(self.rows.values())).get("num_available")

    def published(self, names: Mapping[str, str]) -> float | None:
        """The published number of the same setting, if there is one.

        Args:
            names: published name of a data set by ours.
        """
        if self.threat is None:
            return None
        setting, (norm, eps) = self.setting, self.threat
        dataset = names.get(setting.dataset, setting.dataset)
        if self.complete:
            key = (dataset, setting.mode, setting.published_side(), self.arch)
            found = transfer_accuracy().get((*key, threat(norm, eps)))
            if found is not None:
                return found
        if setting.mode != "last_k_blocks" or setting.downscale:
            return None
        n = None if self.complete else self.n
        limited = (dataset, self.arch, setting.k_blocks, n, threat(norm, eps))
        return limited_accuracy().get(limited)


def make_cells(rows: Iterable[Row]) -> list[Cell]:
    """Collect rows into cells, in order of setting, arch, threat and n.

    Of rows that define the same number the newest counts, and of learning rates that
    were run one by one the one that did best on what they were to be chosen on.
    """
    newest: dict[Any, Row] = {}
    for number, row in enumerate(rows):
        newest[row.get("identity") or number] = row
    found: dict[tuple[Setting, str, str, Threat | None, int], dict[int, Row]] = {}
    for row in newest.values():
        setting = _setting(row)
        eps = row.get("source_eps")
        of = None if eps is None else threat(row.get("source_norm"), eps)
        n = row.get("num_pool") or (row["num_train"] or 0) + (row.get("num_val") or 0)
        key = (setting, str(row["source"]), str(row["arch"]), of, int(n))
        seeds = found.setdefault(key, {})
        seed = int(row["seed"])
        if seed not in seeds or _chosen(row) >= _chosen(seeds[seed]):
            seeds[seed] = row
    cells = [
        Cell(*key, rows=dict(sorted(seeds.items()))) for key, seeds in found.items()
    ]
    return sorted(cells, key=_order)


def _order(cell: Cell) -> tuple[Any, ...]:
    norm, eps = cell.threat or ("", math.inf)
    return cell.setting, cell.arch, norm or "", eps, cell.source, cell.n


def _chosen(row: Row) -> float:
    value = row.get("val_value")
    return -math.inf if value is None else float(value)


def _setting(row: Row) -> Setting:
    chosen = json.loads(row.get("hyperparameters") or "{}")
    method = chosen.get("method")
    return Setting(
        dataset=str(row["dataset"]),
        mode=str(row["mode"]),
        k_blocks=int(row.get("k_blocks") or 0),
        downscale=int(row.get("downscale") or 0),
        protocol=str(row.get("protocol") or ""),
        select_on=str(row.get("select_on") or ""),
        resolution=int(row.get("resolution") or 0),
        solver=str(chosen.get("solver") or ""),
        method=json.dumps(method) if isinstance(method, dict) else str(method or ""),
        metric=str(row.get("metric") or ""),
    )


def with_most_images(cells: Sequence[Cell]) -> list[Cell]:
    """Of every setting, the cells with the most training images."""
    most: dict[Setting, int] = {}
    for cell in cells:
        most[cell.setting] = max(most.get(cell.setting, 0), cell.n)
    return [cell for cell in cells if cell.n == most[cell.setting]]


def setting_labels(settings: Iterable[Setting]) -> dict[Setting, str]:
    """A short name of each, with whatever else tells apart those of one short name."""
    listed = list(dict.fromkeys(settings))
    labels = {}
    for setting in listed:
        peers = [s for s in listed if str(s) == str(setting)]
        words = [str(setting)]
        for field in fields(Setting)[3:]:
            if len({getattr(peer, field.name) for peer in peers}) > 1:
                value = getattr(setting, field.name)
                words.append(
                    (f"reduced to {value} px" if value else "native")
                    if field.name == "downscale"
                    else f"{field.name} {value or 'none'}".replace("_", " ")
                )
        labels[setting] = ", ".join(words)
    return labels


# ---- comparisons ----


@dataclass(frozen=True, eq=False)
class Comparison:
    """A robust source against the standard one of its architecture.

    Attributes:
        robust, standard: what is compared.
        by: what chose the robust one: `val`, `test`, or `` where there was one only.
        seeds: those both have; the differences are paired by them.
        difference: mean of robust - standard, points.
        low, high: its 95 % t-interval; equal to it for one seed.
        p: of the paired t-test over seeds; None for one seed.
        adjusted: `p` after Holm's correction for all comparisons made together.
    """

    robust: Cell
    standard: Cell
    by: str
    seeds: tuple[int, ...]
    difference: float
    low: float
    high: float
    p: float | None
    adjusted: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.adjusted is not None and self.adjusted < 0.05


def compare(cells: Sequence[Cell]) -> list[Comparison]:
    """The best robust source against the standard one, per setting, arch and n.

    The best is chosen by validation accuracy; only where there is none, by the test
    accuracy itself, which flatters it. P-values are corrected together.
    """
    groups: dict[tuple[Setting, str, int], list[Cell]] = {}
    for cell in cells:
        if cell.setting.mode == "scratch":  # has nothing of its source
            continue
        groups.setdefault((cell.setting, cell.arch, cell.n), []).append(cell)
    found = []
    for group in groups.values():
        standard = [c for c in group if c.threat is not None and not c.robust]
        robust = [c for c in group if c.robust]
        if not standard or not robust:
            continue
        judged = all(c.validation is not None for c in robust)
        best = max(robust, key=lambda c: (c.validation if judged else c.mean) or 0.0)
        select_on = group[0].setting.select_on
        by = (
            ""
            if len(robust) == 1
            else "val"
            if judged and select_on == "val"
            else "test"
        )
        pair = compare_pair(best, standard[0], by)
        if pair is not None:
            found.append(pair)
    return corrected(found)


def compare_pair(robust: Cell, standard: Cell, by: str = "") -> Comparison | None:
    """Two cells, paired by seed; None if they share none."""
    ours, theirs = robust.values, standard.values
    seeds = tuple(seed for seed in ours if seed in theirs)
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean, low, high = mean_interval(differences)
    p = paired_t(differences)
    return Comparison(robust, standard, by, seeds, mean, low, high, p)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with Holm's correction for their number."""
    tested = [c for c in comparisons if c.p is not None]
    adjusted = dict(
        zip(
            map(id, tested), holm([c.p for c in tested if c.p is not None]), strict=True
        )
    )
    return [
        Comparison(
            **{f.name: getattr(c, f.name) for f in fields(c)}
            | {"adjusted": adjusted.get(id(c))}
        )
        for c in comparisons
    ]
