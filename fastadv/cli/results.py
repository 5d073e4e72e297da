"""fastadv-results: list, show and export the rows of a results table, and compact it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from fastadv import results
from fastadv.cli import common
from fastadv.errors import EXIT_OK, ConfigError

PROG = "fastadv-results"
Table = Annotated[str, arg(help="Folder of the results table.")]
_HELP = """Select rows, for example kind=transfer dataset=cifar10 eps=0.5. Commas separate
several values; none is a missing value. A name may say where it is: source.eps,
attack.eps; docs/results-table.md lists the columns."""
Filters = Annotated[tuple[str, ...], arg(metavar="[NAME=VALUE ...]", help=_HELP)]
Json = Annotated[bool, arg(help="Print JSON instead of text.")]


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """List rows, oldest first, one line each."""

    table: Positional[Table]
    filters: Positional[Filters] = ()
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class ShowCommand:
    """Show everything that is stored of a row."""

    table: Positional[Table]
    identity: Positional[str]
    """Identity of the row, or its first digits, as `list` prints them."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write rows to a .csv or .parquet file that is read without fastadv."""

    table: Positional[Table]
    out: Positional[Path]
    """File to write. CSV names the members of structs with a dot and holds lists as JSON
    text; Parquet keeps them, and is itself a results table in a folder of its own."""
    filters: Positional[Filters] = ()
    force: bool = False
    """Replace OUT."""


@dataclass(frozen=True, kw_only=True)
class CompactCommand:
    """Merge the files of a table into one; others may write to it meanwhile.

    Tables do this by themselves while they grow. Files of older versions are replaced by
    today's.
    """

    table: Positional[Table]


@dataclass(frozen=True, kw_only=True)
class ForgetCommand:
    """Delete the weights that the rows of a filter keep; the rows stay."""

    table: Positional[Table]
    filters: Positional[Filters]
    arrays: bool = False
    """Delete verdicts and logits, too."""


def _selected(command: Any) -> tuple[results.ResultsTable, dict[str, Any]]:
    from fastadv.results.columns import parse_filters

    table = results.ResultsTable.existing(command.table)
    return table, parse_filters(command.filters)


def _list(command: ListCommand) -> int:
    from fastadv.results.export import plain_rows, row_text, summary

    table, filters = _selected(command)
    if not command.json:
        print(summary(table, **filters))
        return EXIT_OK
    for values in plain_rows(table.arrow(**filters)):
        print(row_text(values, json=True))
    return EXIT_OK


def _show(command: ShowCommand) -> int:
    from fastadv.results.export import plain_rows, row_text

    table = results.ResultsTable.existing(command.table)
    identity = table.find(command.identity)[0].identity
    for values in plain_rows(table.arrow(identity=identity)):
        values["files"] = table.kept.places(values)
        print(row_text(values, json=command.json))
    return EXIT_OK


def _export(command: ExportCommand) -> int:
    from fastadv.results.export import write_rows

    table, filters = _selected(command)
    rows = table.arrow(**filters)
    write_rows(rows, command.out, force=command.force)
    print(f"{command.out}: {len(rows)} rows")
    return EXIT_OK


def _compact(command: CompactCommand) -> int:
    table = results.ResultsTable.existing(command.table)
    count = table.compact()
    done = f"{count} files became one" if count else "there was nothing to merge"
    print(f"{table.path}: {done}")
    return EXIT_OK


def _forget(command: ForgetCommand) -> int:
    table, filters = _selected(command)
    if not filters:
        raise ConfigError("name rows by a filter, for example mode=full_network")
    columns = ("weights", "arrays") if command.arrays else ("weights",)
    count, size = table.forget(*columns, **filters)
    print(f"{table.path}: {count} files were deleted, {size / 1e6:.3g} MB")
    return EXIT_OK


_COMMANDS: common.Commands = {
    "list": (ListCommand, _list),
    "show": (ShowCommand, _show),
    "export": (ExportCommand, _export),
    "compact": (CompactCommand, _compact),
    "forget": (ForgetCommand, _forget),
}
main = functools.partial(common.run_commands, PROG, __doc__, _COMMANDS)

if __name__ == "__main__":
    raise SystemExit(main())
