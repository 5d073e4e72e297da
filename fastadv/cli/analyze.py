"""fastadv-analyze: what a network learned, as numbers of the results table.

Analyses of robust and standard networks that explain how they transfer. Each adds rows to
the results table, of which `fastadv-report` makes a section, and is computed once. After
an interruption, the same command continues.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastadv.analysis.shift_config import DerivedConfig
from fastadv.cli import common
from fastadv.cli.analyses import KINDS
from fastadv.text_tables import text_table

if TYPE_CHECKING:
    from fastadv.results.row import Row

PROG = "fastadv-analyze"


def _act(command: Any, module: str) -> int:
    from fastadv.analysis.derived import derive
    from fastadv.results.export import plain_rows
    from fastadv.results.schema import to_arrow

    rows = (derive if isinstance(command, DerivedConfig) else _run)(command, module)
    lines = []
    for row in rows:
        ends = None if row.low is None else f"[{row.low:.4g}, {row.high:.4g}]"
        label = row.setting_label
        if row.attack is not None:  # clean and attacked rows have one setting
            label += f", {row.attack}"
        lines.append([row.source.name, label, row.metric, row.value, ends, row.n])
    columns = ["source", "analysis", "metric", "value", "95 % interval", "images"]
    text = f"{text_table(columns, lines)}\nfastadv-report {command.results} draws them"
    return common.show(command, list(plain_rows(to_arrow(rows, ""))), text)


def _run(command: Any, module: str) -> list[Row]:
    from fastadv.analysis.running import run_analyses
    from fastadv.runs.executors import make_executor

    executor = functools.partial(
        make_executor,
        command.engine,
        workers=command.jobs,
        address=command.address,
        cpus_per_task=command.cpus_per_task,
        gpus_per_task=command.gpus_per_task,
    )
    # In this process, what failed would fail again.
    retries = 0 if command.engine == "serial" else command.retries
    return run_analyses(module, command, executor, retries=retries)


def _command(config: type[Any], module: str) -> tuple[type[Any], Callable[[Any], int]]:
    return config, lambda command: _act(command, module)


_COMMANDS = {kind: _command(*each) for kind, each in KINDS.items()}

main = functools.partial(common.run_commands, PROG, __doc__ or "", _COMMANDS)

if __name__ == "__main__":
    raise SystemExit(main())
