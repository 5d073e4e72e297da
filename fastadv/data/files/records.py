"""Images inside large files: what tar shards, TFRecord and RecordIO have in common.

The list of a file's records is kept in the cache folder; images are read by `pread`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastadv.data.cache import cached_array, file_key
from fastadv.data.sets.image_set import Damage, FileSet, SharedFile
from fastadv.errors import DataError
from fastadv.files import fastadv_cache_dir
from fastadv.progress import track

_TEXT = ("utf-8", "surrogateescape")  # how keys and labels are encoded
_VERSION = 2  # of the stored lists; part of their names
_Result = TypeVar("_Result")
_KEPT_OPEN = 512  # half of the usual limit of open files per process


class Record(NamedTuple):
    """One image of a file.

    Attributes:
        key: Its name in the file.
        label: Class name or id, as text.
        offset: Where its bytes begin, from the start of the file.
        size: Number of bytes.
    """

    key: str
    label: str
    offset: int
    size: int


Scanner = Callable[..., list[Record]]
Table = NDArray[Any]  # structured, the fields of Record


class RecordSet(FileSet):
    """One split of images that lie in a few large files.

    It takes the arguments of `FileSet` and `tables`, the records of each file. Labels are
    in the order of the records, file by file; records with a label of -1 are left out.
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: Sequence[str],
        labels: NDArray[np.int64],
        tables: dict[Path, Table],
    ) -> None:
        kept = labels >= 0
        ends = np.cumsum([len(table) for table in tables.values()])
        parts = np.split(kept, ends[:-1])
        tables = {
            file: table[part]
            for (file, table), part in zip(tables.items(), parts, strict=True)
        }
        members = [
            f"{file.name}/{key.decode(*_TEXT)}"
            for file, table in tables.items()
            for key in table["key"].tolist()
        ]
        super().__init__(name, split, classes, members, labels[kept])
        keep_open = len(tables) <= _KEPT_OPEN
        self.files = [SharedFile(file, keep_open=keep_open) for file in tables]
        counts = [len(table) for table in tables.values()]
        self._file_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._offsets = np.concatenate([t["offset"] for t in tables.values()])
        self._sizes = np.concatenate([t["size"] for t in tables.values()])

    def _encoded(self, index: int) -> bytes:
        file = self.files[int(self._file_of[index])]
        return file.read(int(self._sizes[index]), int(self._offsets[index]))

    def sizes(self) -> list[int]:
        """Return the size of every encoded image in bytes."""
        return list(self._sizes.tolist())


def read_splits(
    name: str,
    splits: dict[str, list[Path]],
    read: Callable[[Path], _Result],
    damage: Damage | None = None,
) -> dict[str, dict[Path, _Result]]:
    """Return what `read` finds in each file of each split.

    Args:
        name: The data set in messages.
        splits: The files of each split.
        read: Reads one file.
        damage: Files that cannot be read are added here, and left out.

    Raises:
        DataError: A file cannot be read, or none of them.
    """
    found: dict[str, dict[Path, _Result]] = {}
    for split, files in splits.items():
        for file in track(files, len(files), "reading indices"):
            try:
                found.setdefault(split, {})[file] = read(file)
            except DataError as error:
                if damage is None:
                    raise
                damage.append((str(file), str(error)))
    if not found:
        raise DataError(f"{name}: none of its files can be read")
    return found


def records_of(file: Path, scan: Scanner, how: object = None) -> Table:
    """Return the records of a file, from the cache where the file has not changed.

    Args:
        file: The file.
        scan: Lists its records.
        how: What else `scan` takes, if anything; its `repr` identifies it.

    Raises:
        DataError: The file cannot be read, or is not what the scanner expects.
    """
    try:
        key = file_key(file, scan.__name__, _VERSION, *([] if how is None else [how]))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    stored = fastadv_cache_dir() / "indices" / f"{key}.npy"
    arguments = (file,) if how is None else (file, how)
    return cached_array(stored, lambda: _as_table(file, scan(*arguments)))


def _as_table(file: Path, records: Sequence[Record]) -> Table:
    if not records:
        raise DataError(f"{file} holds no images")
    keys = [r.key.encode(*_TEXT) for r in records]
    labels = [r.label.encode(*_TEXT) for r in records]
    kinds = [("key", np.array(keys).dtype), ("label", np.array(labels).dtype)]
    rows = [(k, n, *r[2:]) for k, n, r in zip(keys, labels, records, strict=True)]
    return np.array(rows, dtype=[*kinds, ("offset", "<i8"), ("size", "<i8")])


def label_texts(tables: Iterable[Table]) -> list[str]:
    """Return the label of every record, files one after the other."""
    return [
        t.decode("utf-8", "replace") for part in tables for t in part["label"].tolist()
    ]
