"""fastadv-results: list, show and export the rows of a results table, and compact it."""

from __future__ import annotations

import functools
import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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

    def __post_init__(self) -> None:
        if self.out.suffix not in (".csv", ".parquet"):
            raise ConfigError(f"{self.out} must end in .csv or .parquet")


@dataclass(frozen=True, kw_only=True)
class CompactCommand:
    """Merge the files of a table into one; others may write to it meanwhile.

    Tables do this by themselves while they grow. Files of older versions are replaced by
    today's.
    """

    table: Positional[Table]


def _list(command: ListCommand) -> int:
    from fastadv.results.columns import parse_filters
    from fastadv.results.export import plain_rows, summary

    table = results.ResultsTable.existing(command.table)
    filters = parse_filters(command.filters)
    if not command.json:
        print(summary(table, **filters))
        return EXIT_OK
    for values in plain_rows(table.arrow(**filters)):
        print(json_module.dumps(values, default=str))
    return EXIT_OK


def _show(command: ShowCommand) -> int:
    from fastadv.results.export import plain_rows

    table = results.ResultsTable.existing(command.table)
    begins = [i for i in table.identities() if i.startswith(command.identity)]
    if len(begins) != 1:
        raise ConfigError(
            f"{len(begins)} rows of {table.path} have an identity that begins with "
            f"{command.identity!r}; `fastadv-results list` prints them"
        )
    for values in plain_rows(table.arrow(identity=begins[0])):
        if command.json:
            print(json_module.dumps(values, default=str))
            continue
        for name, value in values.items():
            members = value if isinstance(value, dict) else {"": value}
            for member, each in members.items():
                print(f"{f'{name}.{member}'.rstrip('.'):32} {each}")
    return EXIT_OK


def _export(command: ExportCommand) -> int:
    from fastadv.results.columns import parse_filters
    from fastadv.results.export import write_rows

    if command.out.exists() and not command.force:
        raise ConfigError(f"{command.out} exists; add --force to replace it")
    table = results.ResultsTable.existing(command.table)
    rows = table.arrow(**parse_filters(command.filters))
    write_rows(rows, command.out)
    print(f"{command.out}: {len(rows)} rows")
    return EXIT_OK


def _compact(command: CompactCommand) -> int:
    table = results.ResultsTable.existing(command.table)
    count = table.compact()
    what = f"{count} files became one" if count else "there was nothing to merge"
    print(f"{table.path}: {what}")
    return EXIT_OK


main = functools.partial(
    common.run_commands,
    PROG,
    __doc__,
    {
        "list": (ListCommand, _list),
        "show": (ShowCommand, _show),
        "export": (ExportCommand, _export),
        "compact": (CompactCommand, _compact),
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
