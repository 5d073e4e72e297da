"""Finished portions of an analysis, kept beside the table until its rows are there.

An analysis that is stopped, by whatever means, loses at most the portion in work: the same
command reads the finished ones. They lie in `_unfinished` in the folder of the results
table, and are deleted when the rows are written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fastadv.data import Batch, ImageSet, Loader, LoaderOptions
from fastadv.errors import DataError, OutputError
from fastadv.files import write_atomic
from fastadv.progress import Progress

log = logging.getLogger(__name__)

UNFINISHED = "_unfinished"  # Readers of Parquet folders pass over an underscore.

Arrays = Mapping[str, np.ndarray]


class Portions:
    """The finished portions of one analysis on disk, each written whole or not at all.

    Args:
        folder: Their folder, made at the first portion.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def each(
        self,
        name: str,
        total: int,
        compute: Callable[[int], Iterable[tuple[int, Arrays]]],
        what: str = "batches",
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the arrays of every portion: known ones, then computed ones.

        A portion is on disk before it is yielded.

        Args:
            name: Name of the sequence in file names. It must state whatever divides the
                work into portions and is not in the setting, such as the batch size.
            total: Number of portions; `compute` is not called when so many are known.
            compute: Given the number of portions that are known, yields the number and
                the arrays of each later portion, in their order.
            what: What the portions are, in progress messages.
        """
        done = 0
        while done < total and (known := self._read(name, done)) is not None:
            yield known
            done += 1
        if done == total:
            return
        progress = Progress(total, done)
        for number, arrays in compute(done):
            found = {key: np.asarray(value) for key, value in arrays.items()}
            self._write(name, number, found)
            yield found
            progress.update(number + 1, what)

    def once(self, name: str, compute: Callable[[], Arrays]) -> dict[str, np.ndarray]:
        """Return the arrays of a step that is one portion, known or computed."""
        [found] = self.each(name, 1, lambda _: [(0, compute())], name)
        return found

    def discard(self) -> None:
        """Delete all portions: the rows are written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # those of another analysis are there
            self.folder.parent.rmdir()

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number}.npz"

    def _read(self, name: str, number: int) -> dict[str, np.ndarray] | None:
        """Return the arrays of a portion; None if there is none that can be read."""
        try:
            with np.load(self._path(name, number), allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            log.warning(
                "%s cannot be read (%s) and is computed again",
                self._path(name, number),
                error,
            )
            return None

    def _write(self, name: str, number: int, arrays: Arrays) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        try:
            write_atomic(self._path(name, number), buffer.getvalue())
        except OutputError as error:  # the analysis itself needs no file
            log.warning("an interruption will lose more than usual: %s", error)


def numbered_batches(loader: Loader, first: int = 0) -> Iterator[tuple[int, Batch]]:
    """Yield the number and the content of each batch from number `first` on.

    Args:
        loader: A loader in evaluation mode.
        first: Number of the first batch that is wanted.

    Yields:
        Numbers and batches. A batch without any image that can be read is left out.

    Raises:
        DataError: No image at all can be read.
    """
    size = loader.options.batch_size
    loader.load_state_dict(loader.state_dict() | {"position": first * size})
    number = None
    for batch in loader:
        number = int(batch.indices[0]) // size
        yield number, batch
    if number is None and not first:
        raise DataError(f"{loader.imageset.name} has no image that can be read")


def count_batches(images: ImageSet, options: LoaderOptions) -> int:
    """Return the number of batches of all images."""
    return -(-len(images) // options.batch_size)
