"""The files of a results table: how they are listed, read, written and merged.

A table is a folder of parts, Parquet files that are written whole and never changed:

* `part-TIME-RANDOM`: the rows of one append.
* `once-IDENTITY`, `once-many-DIGEST`: the rows of one append to a `once` table. Two
  writers of the same rows write the same file.
* `merged-TIME-RANDOM`: the rows of several parts. Each row names in its column `part`
  the part that it was first written in.
* Other names: parts of schema 1 to 3, where `row-IDENTITY` was `once-IDENTITY`.

Merging needs no lock against writers, readers or other merges. One rule makes it safe: a
merge removes exactly the files that it read, and only after a file that holds all of
their rows is durable, has a new name, and has been there for `GRACE` seconds.

Nothing is lost. Take a row and, among the files that were ever made with it, the one made
last. Whoever removed that file would have made a later one with the same row, so it was
not removed. A merge takes nothing on trust from a file that it does not itself remove: it
copies all the rows of its input, also those that another merged part holds, too. (Two
merges that each left out what the other had would lose it.) A part that is written again
under its old name, by a second writer of the same `once` rows that looked before the
first one's part was merged and removed, holds the same numbers and may be removed with
the name.

Nothing is doubled. The same row may be in several files: after kill -9 between the two
halves of a merge, after two merges of the same parts, or because of that second writer.
A reader takes the rows of a part from the first file that names it, and rows of `once`
parts once for each identity. So does a merge, which keeps this true: a file that names a
`once` part has all of its identities, if need be in rows of another part.

Nothing is overlooked. A listing of a folder may miss a file that is made meanwhile, and
one that is removed meanwhile. A listing that took less than `GRACE` cannot miss a merged
part and the parts it replaces: those were there for `GRACE` after it was. A slower one is
repeated. A file that is gone when it is opened was merged; the table is read again.

A part with a column that this fastadv does not know, of a later one, is not merged. A
merge that is killed or finds the disk full leaves at most a temporary file, or parts
that the merged one holds, too; the next merge takes them up.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastadv.errors import DataError
from fastadv.files import FolderLock, write_atomic
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
_STALE_SECONDS = 24 * 3600.0


def new_name(kind: str) -> str:
    """Return a name that no other part has; names of one kind sort by time."""
    return f"{kind}-{time.time_ns():020d}-{secrets.token_hex(4)}"


def written_at(part: str) -> int | None:
    """Return when a part was written, in nanoseconds, if its name says so."""
    stamp = part.removeprefix("part-").partition("-")[0]
    return int(stamp) if stamp.isdecimal() else None


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


def each(folder: Path, read: Callable[[Path], Read]) -> list[tuple[Path, Read]]:
    """Return what `read` makes of every part; merged parts come first.

    Raises:
        DataError: A file is no Parquet file or of an unknown schema version, or the
            folder changes faster than it can be read.
    """
    for attempt in range(_TRIES):
        try:
            return [(path, read(path)) for path in _listing(folder)]
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
            visible = [name for name in names if not name.startswith(".")]
            in_order = sorted(visible, key=lambda n: (not n.startswith(_MERGED), n))
            return [folder / name for name in in_order]
    raise DataError(f"{folder} takes more than {GRACE} s to list; try again")


def read(path: Path, columns: Sequence[str]) -> pa.Table:
    """Return columns of a part, in today's schema.

    Raises:
        DataError: The file is no Parquet file, or of an unknown schema version.
        FileNotFoundError: The part was merged into another.
    """
    schema = pa.schema([SCHEMA.field(name) for name in columns])
    try:
        with pq.ParquetFile(path) as file:
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
                return conform(to_arrow(rows, path.stem), schema)
            if version == str(SCHEMA_VERSION):
                names = set(file.schema_arrow.names)
                known = [name for name in columns if name in names]
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
    identity = pc.if_else(
        pc.is_in(whole["part"], pa.array(once, pa.string())), whole["identity"], None
    )
    if pc.count_distinct(identity).as_py() == len(whole) - identity.null_count:
        return whole
    met: set[str] = set()
    first = []
    for number, value in enumerate(identity.to_pylist()):
        if value is None or value not in met:
            first.append(number)
            met.add(value)
    return whole.take(pa.array(first, pa.int64()))


def count_appended(folder: Path) -> int:
    """Return how many parts of single appends there are."""
    names = os.listdir(folder)
    return sum(n.startswith(_APPENDED) and n.endswith(SUFFIX) for n in names)


def merge(folder: Path, *, everything: bool = False) -> int:
    """Merge parts, as the module says; return how many were merged.

    Args:
        folder: The folder of the table.
        everything: Whether all parts become one, those of older schema versions
            included. Otherwise the parts of single appends are merged, with merged parts
            that hold no more rows than what is merged so far: of N rows there are then
            about log N merged parts, and each row is copied about log N times.

    Raises:
        DataError: A part cannot be read; nothing was changed.
        OutputError: The merged part cannot be written; nothing was changed.
    """
    with _alone(folder) as alone:
        if not alone:
            return 0
        columns = SCHEMA.names
        paths = [path for path, _ in each(folder, lambda path: None)]
        if not everything:
            paths = _small_parts(paths)
        # Not through `each`: what vanished was merged by another, which is no error.
        tables = []
        inputs = []
        for path in sorted(paths, key=lambda p: (not p.name.startswith(_MERGED), p)):
            with contextlib.suppress(FileNotFoundError):
                rows = read(path, columns)
                if _is_mergeable(path):
                    tables.append(rows)
                    inputs.append(path)
        if len(inputs) < 2 and not (everything and _is_old(inputs)):
            return 0
        write(folder, new_name(_MERGED.rstrip("-")), distinct(tables))
        time.sleep(GRACE)
        for path in inputs:
            path.unlink(missing_ok=True)
        _remove_stale(folder)
        return len(inputs)


def _small_parts(paths: list[Path]) -> list[Path]:
    """Return the parts of single appends, and merged ones that are no larger."""
    sizes = []
    for path in paths:
        if path.name.startswith((*_APPENDED, _MERGED)):
            with contextlib.suppress(FileNotFoundError):
                merged = path.name.startswith(_MERGED)
                sizes.append((merged, pq.read_metadata(path).num_rows, path))
    found: list[Path] = []
    total = 0
    for merged, rows, path in sorted(sizes):
        if merged and rows > total:
            break
        found.append(path)
        total += rows
    return found


def _is_mergeable(path: Path) -> bool:
    """Return whether a part has no column of a later fastadv, which would be lost."""
    with pq.ParquetFile(path) as file:
        stored, version = pa.struct(list(file.schema_arrow)), _version(file)
    return version in MIGRATED or is_known(stored, pa.struct(list(SCHEMA)))


def _is_old(paths: list[Path]) -> bool:
    return any(not path.name.startswith((*_APPENDED, _MERGED)) for path in paths)


@contextlib.contextmanager
def _alone(folder: Path) -> Any:
    """Yield False while another process merges, which only saves double work."""
    try:
        lock = FolderLock(folder)
    except BlockingIOError:
        yield False
        return
    except OSError:  # no locks here
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


def _remove_stale(folder: Path) -> None:
    """Remove temporary files of writers that were killed long ago."""
    for path in folder.glob(f".*{SUFFIX}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
