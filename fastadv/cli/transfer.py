"""fastadv-transfer: the accuracy of a pretrained model on another data set.

`fastadv-transfer sweep RECIPE` is in `sweep`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastadv.cli import common, sweep
from fastadv.cli.interrupts import continued
from fastadv.errors import Preempted, in_flags
from fastadv.ranges import ordered_values
from fastadv.transfer.config import TransferConfig

if TYPE_CHECKING:
    from fastadv.results.row import Row
    from fastadv.results.settings import TransferSetting
    from fastadv.results.table import ResultsTable

PROG = "fastadv-transfer"


@dataclass(frozen=True, kw_only=True)
class TransferCommand(TransferConfig):  # noqa: D101, it shows the help of its base
    __doc__ = TransferConfig.__doc__

    json: bool = False
    """Print the new rows as JSON lines instead of a table."""


def print_rows(rows: Sequence[Row]) -> None:
    """Print the transfers of a table, a line for each experiment and seed."""
    from fastadv.results.settings import TransferSetting
    from fastadv.text_tables import format_percent_ci, text_table

    columns = ["source", "eps", "dataset", "mode", "n", "seed", "metric", "accuracy"]
    lines: list[list[Any]] = []
    robust: dict[int, str] = {}
    notes: set[str] = set()
    for row in rows:
        setting = row.setting
        if not isinstance(setting, TransferSetting):
            continue
        accuracy = format_percent_ci(row.value, row.low, row.high)
        if row.attack is not None:  # it follows the clean accuracy of its experiment
            robust[len(lines) - 1] = accuracy
            continue
        notes.add(_note(row, setting))
        line = [row.source.name, row.source.eps, row.target.name, _mode(setting)]
        lines.append([*line, setting.num_pool, row.seed, row.metric, accuracy])
    if robust:
        columns.append("robust accuracy")
        for number, line in enumerate(lines):
            line.append(robust.get(number, "-"))
    print(text_table(columns, lines))
    for note in sorted(notes - {""}):
        print(f"note: {note}")


def _mode(setting: TransferSetting) -> str:
    """Return mode, blocks and protocol: `last_k_blocks 3 (utrera2021)`."""
    blocks = "" if setting.k_blocks is None else f" {setting.k_blocks}"
    protocol = "" if setting.protocol == "fastadv" else f" ({setting.protocol})"
    return setting.mode + blocks + protocol


def _note(row: Row, setting: TransferSetting) -> str:
    """Return the defects and departures of a row in one line; empty if there are none."""
    notes = [defect.text for defect in row.defects]
    if not setting.depends_on_seed:
        notes.append("one row for all seeds, which change nothing here")
    return "; ".join([*notes, *map(str, row.departures)])


def _say_what_is_missing(row: Row, table: ResultsTable) -> None:
    """Say how to measure the source of an attacked row on its own data, if it was not."""
    from fastadv.reporting.transfer.study_attack import own_command, own_decline

    known = table.rows(kind="evaluation", **{"source.digest": row.source.digest})
    if (
        row.attack is not None
        and own_decline(known, row.source.digest, row.attack) is None
    ):
        print(
            "the comparison lacks the source on its own data: "
            f"{own_command(row, str(table.path))}",
            file=sys.stderr,
        )


def _body(argv: list[str]) -> None:
    if argv[:1] == ["sweep"]:
        sweep.body(argv[1:])
        return
    command = common.parse(TransferCommand, argv, PROG)

    from fastadv.transfer.protocol import TransferRun

    run = TransferRun(TransferConfig(**ordered_values(command, TransferConfig)))
    prepared = in_flags(str(run.experiment.prepared))
    print(f"images that are not augmented: {prepared}", file=sys.stderr)
    rows: list[Row] = []
    try:
        for row in run.rows():
            rows.append(row)
            if command.json:
                print(json.dumps(dataclasses.asdict(row), default=str), flush=True)
    except KeyboardInterrupt:
        done = {row.seed for row in rows}
        left = [str(seed) for seed in command.seeds if seed not in done]
        again = [*argv, *(["--seeds", *left] if done and left else [])]
        raise Preempted(
            f"interrupted; the rows of {len(done)} of {len(command.seeds)} seeds are in "
            f"{run.table.path}; continue with: {continued(PROG, again)}"
        ) from None
    if command.protocol == "zhang2023" and command.mode != "scratch":
        _say_what_is_missing(rows[-1], run.table)
    if not command.json:
        print_rows(run.table.rows())


main = functools.partial(common.run, PROG, _body)

if __name__ == "__main__":
    raise SystemExit(main())
