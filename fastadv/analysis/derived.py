"""What analyses of measured numbers have in common: they read rows of the table.

The module of such an analysis has a function `prepare`, which takes a configuration and
the table and yields an `Analysis` for each row that it is about. No network runs, so they
need neither devices nor other processes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from fastadv.analysis.contract import measure_once
from fastadv.analysis.shift_config import DerivedConfig
from fastadv.errors import ConfigError, unknown_name
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable


def derive(config: DerivedConfig, module: str) -> list[Row]:
    """Analyse the rows that a configuration chooses, each once; return the new rows.

    Args:
        config: The choices.
        module: Name of the module of the analysis.

    Raises:
        ConfigError, DataError: There are no such rows, or they cannot be analysed.
    """
    table = ResultsTable.existing(config.results)
    prepare: Any = importlib.import_module(module).prepare
    # All are prepared before one is computed, so that mistakes are found first.
    return [
        row
        for analysis in list(prepare(config, table))
        for row in measure_once(table, analysis)
    ]


def chosen_rows(
    table: ResultsTable,
    given: Sequence[str],
    usable: Sequence[Row],
    what: str,
) -> list[Row]:
    """Return the rows that a user named, out of those that an analysis can use.

    Args:
        table: The results table.
        given: First digits of identities, or names of networks; none chooses all.
        usable: The rows that can be used, oldest first; of equal ones the newest counts.
        what: What they are, in messages, with the command that makes them.

    Raises:
        ConfigError: There are none, or a name fits none of them.
    """
    rows = list({row.identity: row for row in usable}.values())
    if not rows:
        raise ConfigError(f"{table.path} has no {what}")
    if not given:
        return rows
    found: dict[str | None, Row] = {}
    for name in given:
        text = name.removeprefix("row:")
        hits = [row for row in rows if row.source.name == name]
        if len(text) >= 4:
            hits = hits or [row for row in rows if str(row.identity).startswith(text)]
        if not hits:
            names = dict.fromkeys(row.source.name for row in rows)
            known = unknown_name("network or row", name, names)
            raise ConfigError(f"{known}; {table.path} has these with {what}")
        found |= {row.identity: row for row in hits}
    return list(found.values())


def newest(
    rows: Sequence[Row], belongs: Callable[[Row], bool]
) -> dict[str | None, Row]:
    """Return the newest of the rows that belong, by the digest of their network."""
    return {row.source.digest: row for row in rows if belongs(row)}
