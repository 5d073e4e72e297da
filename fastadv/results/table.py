"""The results table: a directory of Parquet files that is only ever added to.

Every file, called a part, is written whole or not at all, and several processes may
append at once; `parts` describes how many parts become few. Rows of older schema versions
are migrated as they are read; a table of any other version is refused.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastadv.errors import ConfigError, DataError, FastadvError
from fastadv.results import parts
from fastadv.results.columns import column, column_path, passes
from fastadv.results.identity import digest
from fastadv.results.kept import KeptFiles
from fastadv.results.row import Row
from fastadv.results.schema import SCHEMA, from_arrow, to_arrow

log = logging.getLogger(__name__)

_ROOM = 1 << 18  # bytes that have to be free: those of a few files of rows

Arrays = Callable[[Row], Mapping[str, np.ndarray]]
"""Reads the arrays of a row, as `ResultsTable.arrays` does; empty if it has none."""


class ResultsTable:
    """A table at a directory.

    Args:
        path: The directory; made at the first append.
        once: Whether a row whose `identity` the table has is not added again, by
            whichever process.

    Raises:
        DataError: There is a file at the path.

    Attributes:
        kept: The files of arrays and of weights that rows name.
    """

    def __init__(self, path: str | Path, *, once: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.once = once
        self.kept = KeptFiles(self.path)
        self._identities: dict[str, frozenset[str]] = {}
        self._finished: dict[str, frozenset[str]] = {}
        if self.path.exists() and not self.path.is_dir():
            raise DataError(
                f"{self.path} is a file; a results table is a directory of .parquet files"
            )

    @classmethod
    def existing(cls, path: str | Path) -> ResultsTable:
        """Return the table at a directory.

        Raises:
            DataError: There is none.
        """
        table = cls(path)
        if not table.path.is_dir():
            raise DataError(f"there is no results table at {table.path}")
        return table

    def prepare(self) -> None:
        """Make the directory and see that it can be written, before hours of work.

        Raises:
            DataError: It cannot be written, or a part is of an unknown schema version.
                A `once` table checks versions only when its `identities` are read: every
                task of a sweep would open all of its files.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(bytes(_ROOM))  # a full disk takes the file, and no bytes
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"results cannot be written to {self.path}: {error.strerror or error}; "
                "choose another folder"
            ) from None
        if not self.once:
            self.identities()

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows, all of them or none: they are one file.

        A `once` table leaves out rows whose identity it has. Rows of one experiment
        should be appended together.

        Raises:
            ValueError: The table is `once` and a row has no identity.
            OutputError: The file cannot be written; nothing was added.
        """
        if self.once:
            if not all(row.identity for row in rows):
                raise ValueError("a row without identity cannot be added once")
            rows = [row for row in rows if not self._has(row.identity)]
        if not rows:
            return
        part = parts.new_name("part")
        if self.once:  # Two writers of the same rows write the same file.
            first, *more = [str(row.identity) for row in rows]
            part = f"once-many-{digest([first, *more])}" if more else f"once-{first}"
        parts.write(self.path, part, to_arrow(rows, part))
        if parts.count_appended(self.path) >= parts.MANY:
            try:
                parts.merge(self.path)
            except (FastadvError, OSError, pa.ArrowException) as error:
                # The rows are there; only reading them stays slow.
                log.warning("the parts of %s were not merged: %s", self.path, error)

    def _has(self, identity: str | None) -> bool:
        try:
            return identity in self
        except DataError as error:
            # What was computed must not be lost for a foreign file; readers take rows of
            # a `once` table once.
            log.warning("%s", error)
            return False

    def save_arrays(self, identity: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Write the arrays of a row that is to be appended; see `KeptFiles`.

        The name that is returned belongs into `Row.arrays`. A file whose row was never
        written is harmless.
        """
        return self.kept.save_arrays(identity, arrays)

    def arrays(self, row: Row) -> dict[str, np.ndarray]:
        """Return the arrays of a row by name; empty if it has none.

        Raises:
            DataError: The file is missing or damaged.
            ValueError: The row names a file outside of the table.
        """
        return {} if row.arrays is None else self.kept.arrays(row.arrays)

    def find(self, begin: str) -> list[Row]:
        """Return the rows of the one identity that begins with a text, oldest first.

        Raises:
            ConfigError: No identity begins so, or several do.
        """
        found = sorted(i for i in self.identities() if i.startswith(begin))
        if not begin or not found:
            raise ConfigError(
                f"no row of {self.path} has an identity that begins with {begin!r}; "
                f"`fastadv-results list {self.path}` prints them"
            )
        if len(found) > 1:
            first = ", ".join(identity[:12] for identity in found[:3])
            raise ConfigError(
                f"{begin!r} is ambiguous: {len(found)} rows of {self.path} have an "
                f"identity that begins so ({first}{', ...' if found[3:] else ''}); give "
                "more digits"
            )
        return self.rows(identity=found[0])

    def forget(self, *columns: str, **filters: Any) -> tuple[int, int]:
        """Delete files beside rows; the rows stay, and files that other rows need.

        Args:
            columns: Which files: `weights`, `arrays` or both.
            filters: Which rows, as in `rows`.

        Returns:
            The number of files that were deleted, and their bytes.

        Raises:
            OutputError: A file cannot be deleted.
        """
        chosen = {row["identity"] for row in self.columns("identity", **filters)}
        count = size = 0
        for column_name in columns:
            named = self.columns(column_name, "identity")
            needed = {r[column_name] for r in named if r["identity"] not in chosen}
            names = {r[column_name] for r in named} - needed - {None}
            for each in self.kept.delete(f"_{column_name}", names):
                count, size = count + 1, size + each
        return count, size

    def compact(self) -> int:
        """Merge all parts into one and return how many they were.

        Parts of older schema versions are replaced by today's, and files of arrays and
        weights that no row names are deleted once they are a day old. Others may read and
        write the table meanwhile; nothing is done while another process merges.

        Raises:
            DataError: A part cannot be read; nothing was changed.
            OutputError: The merged part cannot be written; nothing was changed.
        """
        merged = parts.merge(self.path, everything=True)
        named = self.columns("arrays", "weights")
        self.kept.delete_unnamed({name for row in named for name in row.values()})
        return merged

    def __contains__(self, identity: object) -> bool:
        """Return whether the table has the row, whichever process wrote it."""
        own = (f"{kind}-{identity}{parts.SUFFIX}" for kind in ("once", "row"))
        if any((self.path / name).exists() for name in own):
            return True
        return any(identity in found for found in self._identities_of_parts())

    def identities(self) -> set[str]:
        """Return the identities of all rows: what need not be computed again.

        Raises:
            DataError: A file is no Parquet file, or of an unknown schema version.
        """
        return set().union(*self._identities_of_parts())

    def _identities_of_parts(self) -> Iterable[frozenset[str]]:
        """Return the identities of every part; each part is opened once only."""

        def read(path: Path) -> frozenset[str]:
            if path.name not in self._identities:
                schema = pa.schema([SCHEMA.field("identity")])
                found = parts.read(path, schema)["identity"].to_pylist()
                self._identities[path.name] = frozenset(found) - {None}
            return self._identities[path.name]

        return parts.each(self.path, read)

    def finished(self) -> set[str]:
        """Return the experiments that need not be computed again, by their identities.

        A row that met unreadable images, but does not say so by its identity, was written
        when others of their class were judged in their place. It is computed again.

        Raises:
            DataError: A file is no Parquet file, or of an unknown schema version.
        """
        names = ("identity", "experiment", "bad_images")
        schema = pa.schema([SCHEMA.field(name) for name in names])

        def read(path: Path) -> frozenset[str]:
            if path.name not in self._finished:
                rows = parts.read(path, schema).select(names).to_pylist()
                self._finished[path.name] = frozenset(
                    row["experiment"]
                    for row in rows
                    if not row["bad_images"] or row["experiment"] != row["identity"]
                ) - {None}
            return self._finished[path.name]

        return set().union(*parts.each(self.path, read))

    def rows(self, **filters: Any) -> list[Row]:
        """Return the rows that pass every filter, oldest first.

        Args:
            filters: Values by name of the column, for example `kind="transfer"`; a list
                or tuple passes any of its values, None passes a missing value. A member
                of a struct is named with a dot (`**{"source.eps": 3.0}`), or by its last
                name alone, which is searched in the row, its target, attack, source and
                setting, in this order. `dataset` and `source` are their names.

        Raises:
            DataError: A file is no Parquet file or of an unknown schema version, or a row
                is of an unknown kind.
            ConfigError: There is no such column.
        """
        return from_arrow(self.arrow(**filters))

    def columns(self, *names: str, **filters: Any) -> list[dict[str, Any]]:
        """Return some columns of the rows, oldest first; faster than `rows`.

        Args:
            names: Names as in the filters of `rows`; they are the keys of the result.
            filters: As in `rows`.

        Raises:
            DataError, ConfigError: As in `rows`.
        """
        found = self.arrow(*names, **filters)
        values = [column(found, name).to_pylist() for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]

    def arrow(self, *names: str, **filters: Any) -> pa.Table:
        """Return the rows that pass every filter as an Arrow table, oldest first.

        Args:
            names: Columns that are needed; the top-level columns they are in are
                returned. All of them if there are none.
            filters: As in `rows`.

        Raises:
            DataError, ConfigError: As in `rows`.
        """
        wanted = [column_path(name)[0] for name in names] or SCHEMA.names
        needed = [column_path(name)[0] for name in filters]
        columns = dict.fromkeys([*wanted, *needed, "part", "time", "identity"])
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        tables = parts.each(self.path, lambda path: parts.read(path, schema))
        found = parts.distinct([schema.empty_table(), *tables])
        for name, value in filters.items():
            found = found.filter(passes(column(found, name), value))
        return _in_order(found).select(list(dict.fromkeys(wanted)))


def _in_order(table: pa.Table) -> pa.Table:
    """Return the rows in the order they were written: by part name, else by time."""
    times = table["time"].cast(pa.int64()).to_pylist()
    keys = []
    for part, microseconds in zip(table["part"].to_pylist(), times, strict=True):
        stamp = part.removeprefix("part-").partition("-")[0]
        in_time = (microseconds or 0) * 1000
        keys.append(int(stamp) if stamp.isdecimal() else in_time)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return table.take(pa.array(order, pa.int64()))
