"""Arrays of HDF5 files, those of MATLAB 7.3 among them, by name. Needs h5py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.errors import DataError

ENDINGS = (".h5", ".hdf5", ".hdf", ".he5")


def read_hdf5(path: Path, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by their path in it, such as `train/images`.

    Args:
        path: The file.
        wanted: Says by its path whether an array is read; others cost nothing.

    Raises:
        DataError: It cannot be read, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise DataError(
            f"{path} is an HDF5 file, which needs the package h5py: pip install h5py, or "
            "the extra fastadv[hdf5]"
        ) from None
    found: dict[str, NDArray[Any]] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or not item.ndim or not wanted(name):
            return
        if h5py.check_string_dtype(item.dtype) is not None:
            found[name] = np.asarray(item.asstr()[()], dtype=np.str_)
        elif item.dtype.kind in "biufSU":
            found[name] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(f"cannot read {path} as an HDF5 file: {error}") from error
    return found
