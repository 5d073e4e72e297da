"""From rows of the results table to experiments over seeds.

A cell is one source in one setting with so many training images; its values are by seed.
Everything here is percent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fastadv.reporting.literature import (
    Threat,
    accuracy_of_file,
    limited_accuracy,
    published_weights,
    threat,
    transfer_accuracy,
)
from fastadv.reporting.transfer.condition import Condition, Row, make_condition
from fastadv.statistics import mean_interval

# By how much trains.
_RANK = {"fixed_feature": 0, "last_k_blocks": 1, "full_network": 2, "scratch": 3}
_PUBLISHED_SIDE = 224  # pixels


@dataclass(frozen=True, eq=False)
class Cell:
    """One source, in one condition, with `n` training images.

    Attributes:
        source: name of the source.
        arch: its architecture.
        threat: its norm and eps; None if unknown.
        n: images to train with, those for validation included.
        rows: by seed.
        attacked: of the same models under each attack, by seed, by attack as JSON.
        named: whether arch and threat do not say which source it is.
    """

    condition: Condition
    source: str
    arch: str
    threat: Threat | None
    n: int
    rows: Mapping[int, Row]
    attacked: Mapping[str, Mapping[int, Row]]
    named: bool

    @property
    def values(self) -> dict[int, float]:
        """Accuracy by seed."""
        return {seed: float(row["value"]) for seed, row in self.rows.items()}

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return self.interval()[0]

    def interval(self) -> tuple[float, float, float]:
        """Mean and 95 % interval; see `seeds_interval`."""
        return seeds_interval(list(self.rows.values()), "value", "ci")

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
    def training(self) -> str:
        """The threat in words."""
        if self.threat is None:
            return "eps unknown"
        norm, eps = self.threat
        if not eps:
            return "standard"
        pixels = f"{eps * 255:.4g}/255" if norm == "linf" else f"{eps:g}"
        return f"{norm} {pixels}"

    @property
    def radius(self) -> float:
        """Radius of the pretraining, 0 where it is unknown; pixel units."""
        return self.threat[1] if self.threat else 0.0

    @property
    def label(self) -> str:
        """The threat in words, and the name of the source where that is not enough."""
        if self.threat is None:
            return f"{self.source} ({self.training})"
        return f"{self.training} ({self.source})" if self.named else self.training

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

    @property
    def epochs(self) -> int:
        """Epochs of fine-tuning; 0 where there are none."""
        row = next(iter(self.rows.values()))
        return int(json.loads(row.get("hyperparameters") or "{}").get("epochs") or 0)

    def published(self, names: Mapping[str, str]) -> float | None:
        """The published number of the same data, mode, source and number of images.

        Args:
            names: published name of a data set by ours.
        """
        found = self._published(names)
        return None if found is None else found[0]

    def unlike_published(self, names: Mapping[str, str]) -> list[str]:
        """In what the experiment differs from that of the published number, in words."""
        found = self._published(names)
        if found is None:
            return []
        condition, row = self.condition, next(iter(self.rows.values()))
        words = []
        if condition.protocol != found[1]:
            words.append(f"protocol {condition.protocol or 'unknown'}")
        if condition.resolution != _PUBLISHED_SIDE:
            words.append(f"{condition.resolution} px")
        # What flags changed of a published protocol, as the row words it.
        words += [
            note
            for note in (row.get("notes") or "").split("; ")
            if " instead of " in note and not note.startswith("resolution ")
        ]
        if not published_weights(row["source_path"] or "", found[1]):
            words.append("other source weights")
        return words

    def _published(self, names: Mapping[str, str]) -> tuple[float, str] | None:
        """The published number, and the protocol it was measured by."""
        if self.threat is None:
            return None
        condition, of = self.condition, threat(*self.threat)
        dataset = names.get(condition.dataset, condition.dataset)
        if self.complete:
            key = (dataset, condition.mode, condition.published_side(), self.arch)
            found = transfer_accuracy().get((*key, of))
            if found is not None:
                return found, "salman2020"
        if condition.mode != "last_k_blocks" or condition.downscale:
            return None
        n = None if self.complete else self.n
        limited = (dataset, self.arch, condition.k_blocks, n, of)
        found = limited_accuracy().get(limited)
        return None if found is None else (found, "utrera2021")


def seeds_interval(
    rows: Sequence[Row], value: str, ends: str
) -> tuple[float, float, float]:
    """Mean and 95 % interval over seeds and test images, percent.

    Seeds vary by what they draw, and all of them by the one draw of test images, which no
    spread over seeds shows. The t-interval over seeds and the mean one of the test images
    are joined by the square root of the sum of their squares on either side, as of two
    independent estimates (MOVER). It covers a little more than 95 % where seeds err on
    different images: that spread is then in both.

    Of a single seed, and of seeds that agree exactly, it is that of the test images.

    Args:
        rows: one per seed.
        value: column of the values.
        ends: their interval is in the columns `ends` + `_low` and `_high`; without it
            the result is of the seeds alone.

    Source:
        Zou and Donner 2008, Construction of confidence limits about effect measures.
    """
    mean, least, most = mean_interval([float(row[value]) for row in rows])
    low, high = f"{ends}_low", f"{ends}_high"
    known = [r for r in rows if r.get(low) is not None and r.get(high) is not None]
    below = fmean(r[value] - r[low] for r in known) if known else 0.0
    above = fmean(r[high] - r[value] for r in known) if known else 0.0
    least = mean - math.hypot(mean - least, below)
    most = mean + math.hypot(most - mean, above)
    return mean, max(0.0, least), min(100.0, most)


def make_cells(rows: Iterable[Row]) -> list[Cell]:
    """Collect rows into cells, in order of condition, arch, threat and n.

    Of rows that define the same number the newest counts, and of learning rates that
    were run one by one the one that did best on what they were to be chosen on. Sources
    and data sets of one name but other content are told apart by their hashes.
    """
    newest: dict[Any, Row] = {}
    for number, row in enumerate(rows):
        newest[row.get("identity") or number] = row
    of_source = _versions(newest.values(), lambda r: r["source"], "source_hash")
    # By side: the fingerprint is of the images as they were reduced.
    of_dataset = _versions(
        newest.values(),
        lambda r: (r["dataset"], r.get("downscale")),
        "dataset_fingerprint",
    )
    found: dict[tuple[Condition, str, str, Threat | None, int], list[Row]] = {}
    for row in newest.values():
        eps = row.get("source_eps")
        of = None if eps is None else threat(row.get("source_norm"), eps)
        n = int(
            row.get("num_pool") or (row["num_train"] or 0) + (row.get("num_val") or 0)
        )
        condition = make_condition(row, n, of_dataset(row))
        source = f"{row['source']} {of_source(row)}".rstrip()
        key = (condition, source, str(row["arch"]), of, n)
        found.setdefault(key, []).append(row)
    sources: dict[tuple[str, Threat | None], set[str]] = {}
    for _, name, arch, of, _ in found:
        sources.setdefault((arch, of), set()).add(name)
    cells = []
    for key, of_cell in found.items():
        best: dict[int, Row] = {}
        for row in of_cell:
            seed = int(row["seed"])
            if seed not in best or _merit(row) >= _merit(best[seed]):
                best[seed] = row
        attacked: dict[str, dict[int, Row]] = {}
        for row in of_cell:
            seed = int(row["seed"])
            same = row["hyperparameters"] == best[seed]["hyperparameters"]
            if same and row.get("robust_value") is not None:
                attacked.setdefault(str(row.get("attack") or ""), {})[seed] = row
        several = len(sources[key[2], key[3]]) > 1
        cells.append(Cell(*key, dict(sorted(best.items())), attacked, several))
    return sorted(cells, key=_order)


def _versions(
    rows: Iterable[Row], name: Callable[[Row], Hashable], column: str
) -> Callable[[Row], str]:
    """The beginning of the hash in `column`; empty where a name has only one."""
    hashes: dict[Hashable, set[str]] = {}
    for row in rows:
        hashes.setdefault(name(row), set()).add(str(row.get(column)))

    def version(row: Row) -> str:
        return str(row.get(column))[:6] if len(hashes[name(row)]) > 1 else ""

    return version


def _order(cell: Cell) -> tuple[Any, ...]:
    norm, eps = cell.threat or ("", math.inf)
    condition = cell.condition
    place = (condition.target, _RANK.get(condition.mode, len(_RANK)), condition)
    return *place, cell.arch, norm or "", eps, cell.source, cell.n


def _merit(row: Row) -> tuple[float, float, str]:
    """What a row is preferred by: validation, then as the grids of learning rates do.

    Those begin with the largest and keep the first of equals; when a row was written says
    nothing. Equal only of the same hyper-parameters.
    """
    value = row.get("val_value")
    used = str(row.get("hyperparameters") or "{}")
    lr = json.loads(used).get("lr") or 0.0
    return -math.inf if value is None else float(value), float(lr), used


def with_most_images(
    cells: Sequence[Cell], family: Callable[[Cell], object] | None = None
) -> list[Cell]:
    """The cells with the most training images.

    Args:
        cells: to choose from.
        family: what shares one number: that of which there are most settings, and the
            largest of those; every setting by itself if it is None.
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
