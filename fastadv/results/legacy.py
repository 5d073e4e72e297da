"""The results table: one row per number, with everything needed to reproduce it.

A directory of Parquet files that is only ever added to, each file written whole. Several
processes may append at once; nothing is rewritten. Rows of older schema versions are
migrated as they are read; a table of any other version is refused.
"""

from __future__ import annotations

import io
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from fastadv.errors import DataError
from fastadv.files import write_atomic

SCHEMA_VERSION = 3
Read = TypeVar("Read")

SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("ms", tz="UTC")),
        ("source", pa.string()),
        ("source_path", pa.string()),
        ("source_hash", pa.string()),  # SHA-256 of the checkpoint file
        ("arch", pa.string()),
        ("source_norm", pa.string()),
        ("source_eps", pa.float64()),  # pixel units; 0 for standard training
        ("dataset", pa.string()),
        ("dataset_fingerprint", pa.string()),
        ("resolution", pa.int64()),
        ("mode", pa.string()),
        ("protocol", pa.string()),
        ("select_on", pa.string()),
        ("num_train", pa.int64()),
        ("num_val", pa.int64()),
        ("num_test", pa.int64()),
        ("num_classes", pa.int64()),
        ("seed", pa.int64()),
        ("hyperparameters", pa.string()),  # JSON, the chosen ones
        ("metric", pa.string()),
        ("value", pa.float64()),  # percent
        ("ci_low", pa.float64()),  # 95 %, over the draw of test images
        ("ci_high", pa.float64()),
        ("val_value", pa.float64()),  # percent; what the choice was made on
        ("per_class_correct", pa.list_(pa.int64())),
        ("per_class_total", pa.list_(pa.int64())),
        ("bad_images", pa.int64()),
        ("wall_seconds", pa.float64()),
        ("environment", pa.string()),  # JSON: versions, machine, commit
        # Since version 2:
        ("identity", pa.string()),  # hash of what defines the number: `identity`
        ("num_pool", pa.int64()),  # images asked for: num_train + num_val
        ("num_available", pa.int64()),  # training images there are
        ("class_names", pa.list_(pa.string())),
        ("k_blocks", pa.int64()),  # trained blocks, of last_k_blocks
        ("downscale", pa.int64()),  # side images were first reduced to, pixels
        ("source_accuracy", pa.float64()),  # percent, on the source's own test data
        ("robust_value", pa.float64()),  # percent, `metric` under `attack`
        ("robust_ci_low", pa.float64()),
        ("robust_ci_high", pa.float64()),
        ("attack", pa.string()),  # JSON: norm, eps, steps, ...
        ("notes", pa.string()),  # known defects of a published protocol
        # Since version 3:
        ("source_given", pa.string()),  # what --source was; opens it again
    ],
    metadata={"fastadv_schema": str(SCHEMA_VERSION)},
)

# What a row may leave empty: it does not apply to every experiment, or is not known of
# every source.
OPTIONAL = frozenset(
    {
        "source_norm",
        "source_eps",
        "k_blocks",
        "downscale",
        "source_accuracy",
        "robust_value",
        "robust_ci_low",
        "robust_ci_high",
        "attack",
        "notes",
    }
)
_MIGRATED = ("1", "2")  # older versions, of which SCHEMA only adds columns


class LegacyTable:
    """A table at a directory.

    Args:
        path: the directory; made at the first append.
        once: a row whose `identity` the table was given before is not added again, by
            whichever process: its file is named by the identity.
    """

    def __init__(self, path: str | Path, *, once: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.once = once
        if self.path.exists() and not self.path.is_dir():
            raise DataError(
                f"{self.path} is a file; a results table is a directory of .parquet files"
            )

    def prepare(self) -> None:
        """Make the directory and see that it can be written, before hours of work.

        Raises:
            DataError: it cannot; or what is there is of an unknown schema version, which
                a `once` table leaves to those who ask for its `identities`: every task
                of a sweep would open all of its files.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise DataError(
                f"results cannot be written to {self.path}: {error.strerror or error}; "
                "choose another --results"
            ) from None
        if not self.once:
            self.identities()

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add rows; keys of `SCHEMA` that a row lacks are stored as missing.

        Raises:
            ValueError: a key the schema does not have, or with `once` no `identity`.
            OutputError: the file cannot be written; nothing was added.
        """
        unknown = {key for row in rows for key in row} - set(SCHEMA.names)
        if unknown:
            raise ValueError(f"no such columns in the results table: {sorted(unknown)}")
        if not self.once:
            # Named by time, so that files read back in the order they were written.
            self._write(f"{time.time_ns():020d}-{secrets.token_hex(4)}", rows)
            return
        for row in rows:
            if not row.get("identity"):
                raise ValueError("a row without identity cannot be added once")
            # Two writers of one row write one file, so it cannot be there twice; the
            # first is kept where it is seen.
            if row["identity"] not in self:
                self._write(_OF_IDENTITY + row["identity"], [row])

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer)
        write_atomic(self.path / f"{name}.parquet", buffer.getvalue())

    def __contains__(self, identity: object) -> bool:
        """Whether a `once` table, this or another process's, was given the row."""
        return (self.path / f"{_OF_IDENTITY}{identity}.parquet").exists()

    def rows(self) -> list[dict[str, Any]]:
        """All rows, oldest first; those of older schema versions with empty columns.

        Raises:
            DataError: a file that is no Parquet file, or of an unknown schema version.
        """
        parts = [
            (_written_at(path, rows), path.name, rows)
            for path, rows in self._each(lambda _, part: _migrated(part.read()))
        ]
        return [
            row for _, _, rows in sorted(parts, key=lambda p: p[:2]) for row in rows
        ]

    def columns(self, *names: str) -> list[dict[str, Any]]:
        """Some columns of all rows, in no order; faster than `rows`.

        Raises:
            DataError: a file that is no Parquet file, or of an unknown schema version.
        """

        def read(path: Path, part: pq.ParquetFile) -> list[dict[str, Any]]:
            known = [name for name in names if name in part.schema_arrow.names]
            rows: list[dict[str, Any]] = part.read(known).to_pylist()
            return [dict.fromkeys(names) | row for row in rows]

        return [row for _, rows in self._each(read) for row in rows]

    def identities(self) -> set[str]:
        """Identities of all rows: what need not be computed again.

        Raises:
            DataError: a file that is no Parquet file, or of an unknown schema version.
        """

        def read(path: Path, part: pq.ParquetFile) -> set[str]:
            if path.name.startswith(_OF_IDENTITY):
                return {path.stem.removeprefix(_OF_IDENTITY)}
            if "identity" not in part.schema_arrow.names:
                return set()
            return set(part.read(["identity"])["identity"].to_pylist())

        return set().union(*(found for _, found in self._each(read))) - {None}

    def _each(
        self, read: Callable[[Path, pq.ParquetFile], Read]
    ) -> Iterator[tuple[Path, Read]]:
        """What `read` makes of every file, each of a known version."""
        for path in self.path.glob("*.parquet"):
            try:
                part = pq.ParquetFile(path)
                _check_version(part.schema_arrow, path)
                found = read(path, part)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, error) from None
            yield path, found


_OF_IDENTITY = "row-"


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({error}); move it away to use the rest")


def _check_version(schema: pa.Schema, path: Path) -> None:
    version = (schema.metadata or {}).get(b"fastadv_schema", b"none").decode()
    if version not in (str(SCHEMA_VERSION), *_MIGRATED):
        raise DataError(
            f"{path} has schema version {version}, this fastadv reads "
            f"{', '.join(_MIGRATED)} and {SCHEMA_VERSION}; nothing was changed. Use "
            "another --results"
        )


def _migrated(table: pa.Table) -> list[dict[str, Any]]:
    """Rows with every column of `SCHEMA`, in its order."""
    rows: list[dict[str, Any]] = table.to_pylist()
    return [{name: row.get(name) for name in SCHEMA.names} for row in rows]


def _written_at(path: Path, rows: list[dict[str, Any]]) -> int:
    """When a part was written, nanoseconds: by its name, else by its row."""
    stamp = path.name.partition("-")[0]
    if stamp.isdecimal():
        return int(stamp)
    when = rows[0]["time"] if rows else None
    return int(when.timestamp() * 1e9) if when else 0
