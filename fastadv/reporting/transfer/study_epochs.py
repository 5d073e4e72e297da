"""Accuracy after several epochs of one and the same training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fastadv.reporting.literature import epochs_accuracy
from fastadv.reporting.page.html import Section
from fastadv.reporting.threats import threat
from fastadv.reporting.transfer.cells import Cell, transfer_setting
from fastadv.reporting.transfer.curves import draw_curves, log_axis
from fastadv.reporting.transfer.study import Study, line_name
from fastadv.results.row import Row
from fastadv.statistics import wilson


@dataclass(frozen=True, eq=False)
class EpochCell(Cell):
    """A cell as it was after some epoch of its training.

    Attributes:
        epoch: Number of epochs that were finished.
        schedule: Number of epochs of the whole training.
    """

    epoch: int = 0
    schedule: int = 0

    def published(self, names: Mapping[str, str]) -> float | None:
        """Return the published accuracy after the same epoch of the same training."""
        condition = self.condition
        if self.threat is None or condition.mode != "last_k_blocks":
            return None
        return epochs_accuracy().get((
            condition.published(names),
            self.arch,
            condition.k_blocks,
            self.n,
            self.schedule,
            self.epoch,
            threat(*self.threat),
        ))  # fmt: skip


def within_training(study: Study) -> Section | None:
    """Show accuracy on the test images against the epochs of one training."""
    cells: list[Cell] = [at for cell in study.cells for at in _by_epoch(cell)]
    several = len({cell.n for cell in cells}) > 1

    def panel(cell: Cell) -> str:
        images = f", n = {cell.n}" if several else ""
        return study.labels[cell.condition] + images

    axis = log_axis("epochs", _epoch, cells)
    drawn = draw_curves(study, cells, axis, panel, line_name(cells))
    if drawn is None:
        return None
    table = study.pivot(
        drawn.items,
        {"arch": lambda c: c.arch, "source": lambda c: c.label, "n": lambda c: c.n},
        lambda c: f"epoch {_epoch(c)}",
        _epoch,
    )
    return Section(
        "Accuracy during training",
        [
            "Each line is one schedule, measured after several of its epochs; nothing is "
            "chosen by it. " + study.interval_note
        ],
        [drawn.captioned("Accuracy against the epochs of one training.")],
        [table],
    )


def _epoch(cell: Cell) -> int:
    return cell.epoch if isinstance(cell, EpochCell) else 0


def _by_epoch(cell: Cell) -> Iterator[EpochCell]:
    """Yield a cell after each epoch at which all of its seeds were measured."""
    measured = [_history(row) for row in cell.rows.values()]
    common = set.intersection(*(set(values) for values in measured))
    if len(common) < 2:
        return
    schedule = transfer_setting(cell.first).epochs or 0
    for epoch in sorted(common):
        rows = {
            seed: _with_value(row, values[epoch])
            for (seed, row), values in zip(cell.rows.items(), measured, strict=True)
        }
        fields = {**vars(cell), "rows": rows, "attacked": {}}
        yield EpochCell(**fields, epoch=epoch, schedule=schedule)


def _history(row: Row) -> dict[int, float]:
    """Return the values of a row by epoch, the one at the end of the training included."""
    values = {record.epoch: record.value for record in row.history}
    setting = transfer_setting(row)
    if values and setting.epochs and setting.chosen_epoch == setting.epochs:
        values[setting.epochs] = row.value
    return values


def _with_value(row: Row, value: float) -> Row:
    """Return a row with another value, and the interval that belongs to it."""
    low = high = None
    if row.metric == "top1" and row.n:
        low, high = (100 * end for end in wilson(round(value * row.n / 100), row.n))
    return replace(row, value=value, low=low, high=high)
