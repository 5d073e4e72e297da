"""Rows of the results table as plain values, CSV and Parquet."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from json import dumps
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from fastadv.errors import ConfigError
from fastadv.files import write_atomic
from fastadv.results.parts import encode
from fastadv.results.row import AttackRecord
from fastadv.results.settings import KINDS
from fastadv.results.table import ResultsTable
from fastadv.text_tables import format_percent_ci, text_table

_KEPT = {"arrays": "verdicts", "weights": "network"}


def summary(table: ResultsTable, **filters: Any) -> str:
    """Return rows as an aligned table for a terminal, one line each.

    The column `images` is the number of training images of a transfer, and the number of
    evaluated images of any other kind; `kept` says whether verdicts on the test images and
    a network are beside the row. Filters are as in `ResultsTable.rows`.
    """
    names = ("kind", "source", "source.eps", "setting_label")
    more = ("num_pool", "n", "seed", "metric", "attack", "identity", *_KEPT)
    cells = [
        [
            (row["identity"] or "")[:8],
            *(row[name] for name in names),
            row["num_pool"] or row["n"],
            row["seed"],
            row["metric"],
            row["attack"] and str(AttackRecord(**row["attack"] | {"options": ()})),
            format_percent_ci(row["value"], row["low"], row["high"]),
            " ".join(title for name, title in _KEPT.items() if row[name]),
        ]
        for row in table.columns(*names, *more, "value", "low", "high", **filters)
    ]
    titles = ["kind", "source", "eps", "setting", "images", "seed", "metric", "attack"]
    return text_table(["identity", *titles, "value", "kept"], cells)


def plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as plain values, without the columns of other kinds."""
    for values in table.to_pylist():
        other = KINDS.keys() - {values["kind"]}
        yield {name: value for name, value in values.items() if name not in other}


def row_text(values: Mapping[str, Any], *, json: bool = False) -> str:
    """Return the plain values of a row for a terminal: a line each, or one of JSON."""
    if json:
        return dumps(values, default=str)
    lines = []
    for name, value in values.items():
        members = value if isinstance(value, dict) else {"": value}
        for member, each in members.items():
            lines.append(f"{f'{name}.{member}'.rstrip('.'):32} {each}")
    return "\n".join(lines)


def write_rows(table: pa.Table, path: Path, *, force: bool = False) -> None:
    """Write rows to a file that others read without fastadv.

    Args:
        table: From `ResultsTable.arrow`.
        path: Ends in `.csv` or `.parquet`. In CSV, members of structs are columns named
            with a dot, lists are JSON text, and an apostrophe stands before text that a
            spreadsheet would take for a formula. A Parquet file is itself a results table,
            in a folder of its own.
        force: Whether a file at `path` is replaced.

    Raises:
        ConfigError: The suffix is another one, or there is a file at `path`.
        OutputError: The file cannot be written.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path} must end in .csv or .parquet")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; add `force` to replace it")
    if path.suffix == ".parquet":
        write_atomic(path, encode(table))
        return
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = [dumps(values) for values in table[number].to_pylist()]
            table = table.set_column(number, field.name, pa.array(texts, pa.string()))
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):  # a spreadsheet would compute "=1+1"
            texts = pc.replace_substring_regex(table[number], r"^([=+@\t\r-])", r"'\1")
            table = table.set_column(number, field.name, texts)
    buffer = io.BytesIO()
    csv.write_csv(table, buffer)
    write_atomic(path, buffer.getvalue())
