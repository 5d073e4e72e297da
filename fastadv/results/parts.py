"""The files of a results table: how they are listed, read, written and merged.

A table is a folder of parts, Parquet files that are written whole and never changed:

* `part-TIME-RANDOM`: the rows of one append.
* `once-IDENTITY`, `once-many-DIGEST`: the rows of one append to a `once` table. Two
  writers of the same rows write the same file.
* `merged-TIME-RANDOM`: the rows of several parts. Each row names in its column `part`
  the part that it was first written in.
* Other names: parts of schema 1 to 3, where `row-IDENTITY` was `once-IDENTITY`.

Merging needs no lock. One rule makes it safe: a merge removes exactly the files that it
read, and only after a file that holds all of their rows is durable, has a new name, and
has been there for `GRACE` seconds.

Nothing is lost. Take a row and, among the files that were ever made with it, the one made
last. A process that removed that file would have made a later one with the same row. For
this a merge copies all the rows of its input, even if another merged part holds them: two
merges that each left out the rows of the other would lose them. A part may be written
again under its old name, by a second writer of the same `once` rows that listed the folder
before the first one's part was merged. It holds the same numbers and may be removed, too.

Nothing is doubled. The same row may be in several files: after kill -9 between the two
halves of a merge, after two merges of the same parts, or because of that second writer.
A reader takes the rows of a part from the first file that names it, and rows of `once`
parts once for each identity. So does a merge, which keeps this true: a file that names a
`once` part has all of its identities, if need be in rows of another part.

Nothing is overlooked. A listing that took less than `GRACE` cannot miss both a merged
part and the parts it replaces: those were there for `GRACE` after it was. A slower one is
repeated. If a file cannot be found when it is opened, it was merged, and the table is read
again.

A part with a column that only a later fastadv knows is not merged. A merge that is killed
or finds the disk full leaves at most a temporary file, or parts that the merged one
holds, too; the next merge includes them.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastadv.errors import DataError
from fastadv.files import FolderLock, remove_stale, write_atomic
from fastadv.results.migration import MIGRATED, migrate
from fastadv.results.schema import SCHEMA, SCHEMA_VERSION, conform, is_known, to_arrow

Read = TypeVar("Read")

GRACE = 0.5  # seconds
MANY = 128  # parts of single appends, at which they are merged without being asked
SUFFIX = ".parquet"
_VERSION = "fastadv_schema"
_APPENDED = ("part-", "once-")
_ONCE = ("once-", "row-")
_MERGED = "merged-"
_TRIES = 8


def new_name(kind: str) -> str:
    """Return a name that no other part has; names of one kind sort by time."""
    return f"{kind}-{time.time_ns():020d}-{secrets.token_hex(4)}"


def encode(rows: pa.Table) -> bytes:
    """Return rows as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    # Most parts hold a row or two, of which statistics, dictionaries and a copy of the
    # Arrow schema would be half the bytes: Parquet's own types say the same.
    large = len(rows) > MANY
    with pq.ParquetWriter(
        buffer,
        SCHEMA,
        compression="zstd" if large else "none",
        use_dictionary=large,
        write_statistics=large,
        store_schema=False,
    ) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({_VERSION: str(SCHEMA_VERSION)})
    return buffer.getvalue()


def write(folder: Path, name: str, rows: pa.Table) -> None:
    """Write a part, whole and durable or not at all.

    Raises:
        OutputError: It cannot be written; nothing was added.
    """
    write_atomic(folder / f"{name}{SUFFIX}", encode(rows))


def each(folder: Path, read: Callable[[Path], Read]) -> list[Read]:
    """Return what `read` makes of every part; merged parts come first.

    Raises:
        DataError: A file is no Parquet file or of an unknown schema version, or the
            folder changes faster than it can be read.
    """
    for attempt in range(_TRIES):
        try:
            return [read(path) for path in _listing(folder)]
        except FileNotFoundError:  # merged meanwhile
            time.sleep(0.05 * 2**attempt)
    raise DataError(f"{folder} changes while it is read; try again")


def _listing(folder: Path) -> list[Path]:
    for _ in range(_TRIES):
        began = time.monotonic()
        try:
            names = [name for name in os.listdir(folder) if name.endswith(SUFFIX)]
        except FileNotFoundError:
            return []
        if time.monotonic() - began < GRACE:
            visible = (folder / name for name in names if not name.startswith("."))
            return sorted(visible, key=_merged_first)
    raise DataError(f"{folder} takes more than {GRACE} s to list; try again")


def _merged_first(path: Path) -> tuple[bool, str]:
    return not path.name.startswith(_MERGED), path.name


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """Return the columns of a part that `schema`, a part of today's, names.

    Raises:
        DataError: The file is no Parquet file, or of an unknown schema version.
        FileNotFoundError: The part was merged into another.
    """
    try:
        # One read of several columns is quicker than one of each.
        with pq.ParquetFile(path, pre_buffer=True) as file:
            version = _version(file)
            # Handing a few rows to other threads takes longer than reading them.
            threads = file.metadata.num_rows > MANY
            if version in MIGRATED:
                old = file.read(use_threads=threads).to_pylist()
                rows = [
                    row
                    for number, values in enumerate(old)
                    for row in migrate(values, path.stem, number)
                ]
                return to_arrow(rows, path.stem, schema)
            if version == str(SCHEMA_VERSION):
                stored = set(file.schema_arrow.names)
                known = [name for name in schema.names if name in stored]
                return conform(file.read(known, use_threads=threads), schema)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); move it away to use the rest"
        ) from None
    raise DataError(
        f"{path} has schema version {version}, this fastadv reads "
        f"{', '.join(MIGRATED)} and {SCHEMA_VERSION}; nothing was changed. Use another "
        "folder"
    )


def _version(file: pq.ParquetFile) -> str:
    metadata = file.metadata.metadata or {}
    return str(metadata.get(_VERSION.encode(), b"none").decode())


def distinct(tables: Iterable[pa.Table]) -> pa.Table:
    """Return the rows of several files, each row once.

    Args:
        tables: One per file, in the order of `each`, with the columns `part` and
            `identity`.
    """
    seen: set[str] = set()
    kept = []
    for table in tables:
        parts = set(pc.unique(table["part"]).to_pylist())
        if twice := parts & seen:
            known = pc.is_in(table["part"], pa.array(sorted(twice), pa.string()))
            table = table.filter(pc.invert(known))
        seen |= parts
        kept.append(table)
    whole = pa.concat_tables(kept)
    once = [part for part in seen if part.startswith(_ONCE)]
    if not once:
        return whole
    is_once = pc.is_in(whole["part"], pa.array(once, pa.string()))
    identities = pc.if_else(is_once, whole["identity"], None).to_pylist()
    first: dict[str | int, int] = {}
    for number, identity in enumerate(identities):
        first.setdefault(number if identity is None else identity, number)
    return whole.take(pa.array(list(first.values()), pa.int64()))


def count_appended(folder: Path) -> int:
    """Return how many parts of single appends there are."""
    names = os.listdir(folder)
    return sum(n.startswith(_APPENDED) and n.endswith(SUFFIX) for n in names)


def merge(folder: Path, *, everything: bool = False) -> int:
    """Merge parts as described above, and return how many were merged.

    Args:
        folder: The folder of the table.
        everything: Whether all parts become one, including parts of older schema
            versions. Otherwise the parts of single appends are merged, with merged parts
            that hold no more rows than the parts chosen before them: N rows are then in
            about log N merged parts, and each row is copied about log N times.

    Raises:
        DataError: A part cannot be read; nothing was changed.
        OutputError: The merged part cannot be written; nothing was changed.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.callback(FolderLock(folder).release)
        except BlockingIOError:  # another process merges: this would be double work
            return 0
        except OSError:
            pass  # The file system has no locks, and none is needed.
        paths = _listing(folder) if everything else _small_parts(folder)
        # Not through `each`: what vanished was merged by another, which is no error.
        tables = []
        inputs = []
        for path in sorted(paths, key=_merged_first):
            with contextlib.suppress(FileNotFoundError):
                rows = read(path, SCHEMA)
                with pq.ParquetFile(path) as file:
                    # A column of a later fastadv would be lost.
                    if _version(file) in MIGRATED or is_known(file.schema_arrow):
                        tables.append(rows)
                        inputs.append(path)
        today = (*_APPENDED, _MERGED)
        has_old = not all(path.name.startswith(today) for path in inputs)
        if len(inputs) < 2 and not (everything and has_old):
            return 0
        write(folder, new_name(_MERGED.rstrip("-")), distinct(tables))
        time.sleep(GRACE)
        for path in inputs:
            path.unlink(missing_ok=True)
        remove_stale(folder.glob(f".*{SUFFIX}.*.tmp"))  # of writers that were killed
        return len(inputs)


def _small_parts(folder: Path) -> list[Path]:
    """Return the parts of single appends, and merged ones that are no larger."""
    sizes = []
    for path in _listing(folder):
        if path.name.startswith((*_APPENDED, _MERGED)):
            with contextlib.suppress(FileNotFoundError):
                is_merged = path.name.startswith(_MERGED)
                sizes.append((is_merged, pq.read_metadata(path).num_rows, path))
    found: list[Path] = []
    total = 0
    for is_merged, rows, path in sorted(sizes):
        if is_merged and rows > total:
            break
        found.append(path)
        total += rows
    return found
