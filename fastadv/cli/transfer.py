"""fastadv-transfer: what a pretrained model is worth on another data set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

from fastadv.cli import common
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
    from fastadv.reporting.tables import format_percent_ci, text_table

    columns = ["source", "eps", "dataset", "mode", "n", "seed", "metric", "accuracy"]
    cells = [
        [
            row["source"],
            row["source_eps"],
            row["dataset"],
            row["mode"],
            row["num_train"],
            row["seed"],
            row["metric"],
            format_percent_ci(row["value"], row["ci_low"], row["ci_high"]),
        ]
        for row in rows
    ]
    print(text_table(columns, cells))


def _body(argv: list[str]) -> None:
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
