"""The results table: one row per number, with everything needed to reproduce it.

A directory of Parquet files that is only ever added to, each file written whole. Several
processes may append at once; nothing is rewritten.
"""

from __future__ import annotations

import io
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastadv.errors import DataError
from fastadv.models.files import write_atomic

SCHEMA_VERSION = 1

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
    ],
    metadata={"fastadv_schema": str(SCHEMA_VERSION)},
)


class ResultsTable:
    """A table at a directory.

    Args:
        path: the directory; made at the first append.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise DataError(
                f"{self.path} is a file; a results table is a directory of .parquet files"
            )

    def prepare(self) -> None:
        """Make the directory and see that it can be written, before hours of work.

        Raises:
            DataError: it cannot.
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

    def append(self, rows: list[dict[str, Any]]) -> Path:
        """Add rows; keys of `SCHEMA` that a row lacks are stored as missing.

        Raises:
            ValueError: a key the schema does not have.
            CheckpointError: the file cannot be written; nothing was added.
        """
        unknown = {key for row in rows for key in row} - set(SCHEMA.names)
        if unknown:
            raise ValueError(f"no such columns in the results table: {sorted(unknown)}")
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer)
        # Named by time, so that files read back in the order they were written.
        path = self.path / f"{time.time_ns():020d}-{secrets.token_hex(4)}.parquet"
        write_atomic(path, buffer.getvalue())
        return path

    def rows(self) -> list[dict[str, Any]]:
        """All rows, oldest first.

        Raises:
            DataError: a file that is no Parquet file, or of another schema version.
        """
        rows: list[dict[str, Any]] = []
        for path in sorted(self.path.glob("*.parquet")):
            try:
                table = pq.read_table(path)
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"{path} cannot be read ({error}); move it away to use the rest"
                ) from None
            version = (table.schema.metadata or {}).get(b"fastadv_schema", b"none")
            if version.decode() != str(SCHEMA_VERSION):
                raise DataError(
                    f"{path} has schema version {version.decode()}, this fastadv reads "
                    f"{SCHEMA_VERSION}; use another --results"
                )
            rows += table.to_pylist()
        return rows
