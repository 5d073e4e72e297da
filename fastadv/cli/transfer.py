"""fastadv-transfer: what a pretrained model is worth on another data set.

`fastadv-transfer sweep RECIPE` is in `sweep`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

from fastadv.cli import common, sweep
from fastadv.transfer.config import TransferConfig

PROG = "fastadv-transfer"


@dataclass(frozen=True, kw_only=True)
class TransferCommand(TransferConfig):  # noqa: D101, it shows the help of its base
    __doc__ = TransferConfig.__doc__

    json: Annotated[bool, arg(help="Print the new rows as JSON lines, no table.")] = (
        False
    )


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows of the results table, aligned."""
    from fastadv.text_tables import format_percent_ci, text_table

    columns = ["source", "eps", "dataset", "mode", "n", "seed", "metric", "accuracy"]
    cells = [
        [
            row["source"],
            row["source_eps"],
            row["dataset"],
            _mode(row),
            row["num_pool"] or row["num_train"],  # as the report counts
            row["seed"],
            row["metric"],
            format_percent_ci(row["value"], row["ci_low"], row["ci_high"]),
        ]
        for row in rows
    ]
    if any(row["robust_value"] is not None for row in rows):
        columns.append("robust accuracy")
        for row, line in zip(rows, cells, strict=True):
            bounds = row["robust_ci_low"], row["robust_ci_high"]
            value = row["robust_value"]
            line.append("-" if value is None else format_percent_ci(value, *bounds))
    print(text_table(columns, cells))
    for note in sorted({str(row["notes"]) for row in rows if row["notes"]}):
        print(f"note: {note}")


def _mode(row: dict[str, Any]) -> str:
    """Mode, blocks and protocol of a row: `last_k_blocks 3 (utrera2021)`."""
    words = [row["mode"]]
    if row["k_blocks"] is not None:
        words.append(str(row["k_blocks"]))
    if row["protocol"] != "fastadv":
        words.append(f"({row['protocol']})")
    return " ".join(words)


def _body(argv: list[str]) -> None:
    if argv[:1] == ["sweep"]:
        sweep.body(argv[1:])
        return
    command = common.parse(TransferCommand, argv, PROG)
    values = dataclasses.asdict(command)
    as_json = values.pop("json")

    from fastadv.transfer.protocol import TransferRun

    run = TransferRun(TransferConfig(**values))
    for row in run.rows():
        if as_json:
            print(json.dumps(row, default=str), flush=True)
    if not as_json:
        print_rows(run.table.rows())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(PROG, _body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
