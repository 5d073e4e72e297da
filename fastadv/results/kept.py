"""Files beside the rows of a results table: arrays, and the weights of networks.

They lie in folders of the table whose names begin with an underscore, which readers of
the Parquet files pass over. A file is written whole before the row that names it, so a
row never names a file that was cut short, and a process that is killed leaves at most a
file that no row names.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastadv.errors import DataError, OutputError
from fastadv.files import remove_stale, write_atomic

log = logging.getLogger(__name__)

ARRAYS = "_arrays"
WEIGHTS = "_weights"
_SUFFIXES = {ARRAYS: ".npz", WEIGHTS: ".safetensors"}
_DIGITS = 32  # hexadecimal digits of the hash that names a file of weights


class KeptFiles:
    """The arrays and weights that the rows of one table name.

    Args:
        table: Folder of the table.
    """

    def __init__(self, table: Path) -> None:
        self.table = table

    def save_arrays(self, identity: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Write the arrays of a row that is to be appended; return their file's name.

        Args:
            identity: Identity of the row, which names the file.
            arrays: Arrays by name.

        Raises:
            ValueError: An array holds Python objects, or the identity cannot be a name.
            OutputError: The file cannot be written.
        """
        name = f"{identity}.npz"
        write_atomic(self.path(ARRAYS, name), _packed(arrays))
        return name

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays in a file by their names.

        Raises:
            DataError: The file is missing or damaged.
            ValueError: The name is that of a file elsewhere.
        """
        path = self.path(ARRAYS, name)
        try:
            with np.load(path, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"the arrays of a row, {path}, cannot be read: {error}"
            ) from None

    def path(self, folder: str, name: str) -> Path:
        """Return the path of a file that a row names.

        Raises:
            ValueError: The name is that of a file elsewhere, or of another kind.
        """
        suffix = _SUFFIXES[folder]
        if Path(name).name != name or not name.endswith(suffix):
            kind = folder.removeprefix("_")
            raise ValueError(f"{name!r} is no name of a file of {kind}")
        return self.table / folder / name

    def places(self, names: Mapping[str, Any]) -> dict[str, str]:
        """Return the path of each file that a row names, and whether it is gone.

        Args:
            names: Columns of the row by name.
        """
        found = {}
        for folder in _SUFFIXES:
            if name := names.get(what := folder.removeprefix("_")):
                path = self.path(folder, name)
                found[what] = f"{path}{'' if path.is_file() else ' (deleted)'}"
        return found

    def delete(self, folder: str, names: Iterable[str]) -> Iterator[int]:
        """Delete files and yield the bytes of each; those that are gone are passed over.

        Raises:
            OutputError: A file cannot be deleted.
        """
        for path in (self.path(folder, name) for name in names):
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OutputError(
                    f"could not delete {path}: {error.strerror or error}"
                ) from None
            yield size

    def delete_unnamed(self, named: Container[str | None]) -> None:
        """Delete files that no row names, if they are older than a day.

        A process that is killed before it appends its row leaves such files. Younger ones
        may belong to a row that is about to be appended.
        """
        for folder in _SUFFIXES:
            paths = (self.table / folder).glob("*")
            remove_stale(path for path in paths if path.name not in named)

    def size(self) -> int:
        """Return how many bytes all files take."""
        total = 0
        for folder in _SUFFIXES:
            try:
                with os.scandir(self.table / folder) as found:
                    total += sum(each.stat().st_size for each in found)
            except FileNotFoundError:
                continue
        return total

    def keep(
        self,
        identity: str,
        arrays: Mapping[str, np.ndarray],
        weights: bytes | None = None,
        *,
        limit: float,
    ) -> dict[str, Any]:
        """Write what is to be kept of a row, as far as there is room for it.

        A number is worth more than the files beside it: where these cannot be written,
        a warning says so, and the row can be appended without them.

        Args:
            identity: Identity of the row.
            arrays: Its arrays by name; without any, no file is written.
            weights: The file of its network; None keeps no network.
            limit: Bytes that the files of the table may take together.

        Returns:
            The fields `arrays`, `weights` and `not_kept` of the row.
        """
        files: dict[str, tuple[Path, bytes]] = {}
        if arrays:
            files["arrays"] = self.path(ARRAYS, f"{identity}.npz"), _packed(arrays)
        if weights is not None:
            files["weights"] = self.path(WEIGHTS, weights_name(weights)), weights
        fields: dict[str, Any] = {"arrays": None, "weights": None}
        reasons = []
        used = self.size() if files else 0
        for what, (path, content) in files.items():
            if used + len(content) > limit:
                reasons.append(
                    f"{what}: {len(content) / 1e6:.3g} MB would exceed `keep_limit`"
                )
                continue
            try:
                write_atomic(path, content)
            except OutputError as error:
                reasons.append(f"{what}: {error}")
                continue
            fields[what] = path.name
            used += len(content)
        for reason in reasons:
            log.warning("the row %.8s keeps no %s", identity, reason)
        return fields | {"not_kept": "; ".join(reasons) or None}


def weights_name(content: bytes) -> str:
    """Return the name of a file of weights, by its content."""
    return f"{hashlib.sha256(content).hexdigest()[:_DIGITS]}.safetensors"


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as the bytes of an .npz file.

    Raises:
        ValueError: An array holds Python objects.
    """
    if any(np.asarray(values).dtype.hasobject for values in arrays.values()):
        raise ValueError("arrays of a row hold numbers or text, not Python objects")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
