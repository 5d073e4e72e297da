"""Finished portions of a measurement, kept beside the table until its rows are there.

A measurement that is stopped, by whatever means, loses at most the portion in work: the same
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastadv.errors import OutputError
from fastadv.files import claimed, write_atomic
from fastadv.progress import Progress
from fastadv.results.identity import digest

log = logging.getLogger(__name__)

UNFINISHED = "_unfinished"  # Readers of Parquet folders pass over an underscore.

Arrays = Mapping[str, np.ndarray]


class ShareDone(Exception):
    """A process that helps has nothing left to do."""


@dataclass(frozen=True)
class Share:
    """The share of a process in a measurement that several compute.

    Attributes:
        processes: How many compute it.
        helps: Whether this one only computes portions, of the first sequence; another
            computes the rest and the numbers.
    """

    processes: int
    helps: bool


def _nothing() -> None:
    """Say nothing before waiting for another process of the same command."""


class Portions:
    """The finished portions of one measurement on disk, each written whole or not at all.

    Args:
        folder: Their folder, made at the first portion.
        share: The share of this process, where several compute the measurement.
    """

    def __init__(self, folder: Path, share: Share | None = None) -> None:
        self.folder, self.share = folder, share

    def each(
        self,
        name: str,
        total: int,
        compute: Callable[[int], Iterable[tuple[int, Arrays]]],
        what: str = "batches",
        *,
        ordered: bool = False,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the arrays of every portion: known ones, then computed ones.

        A portion is on disk before it is yielded. Where several processes compute the
        measurement, each computes some of the portions, and yields all of them.

        Args:
            name: Name of the sequence in file names. It must state whatever divides the
                work into portions and is not in the setting, such as the batch size.
            total: Number of portions; `compute` is not called when so many are known.
            compute: Given the number of portions that are known, yields the number and
                the arrays of each later portion, in their order.
            what: What the portions are, in progress messages.
            ordered: Whether each portion needs the one before it, so that one process
                computes all of them.

        Raises:
            ShareDone: This process only helps, and has done its share.
        """
        if self.share is not None and not ordered:
            yield from self._shared(self.share, name, total, compute, what)
            return
        if self.share is not None and self.share.helps:
            raise ShareDone
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

    def _shared(
        self,
        share: Share,
        name: str,
        total: int,
        compute: Callable[[int], Iterable[tuple[int, Arrays]]],
        what: str,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Compute the portions that no other process does; yield all that there are."""
        size = max(1, total // (4 * share.processes))
        key = int(
            digest(name)[:6], 16
        )  # other sequences of the measurement lock other bytes
        progress = Progress(total)
        for waiting in (False, True):  # what nobody does, then what a dead process left
            for first in range(0, total, size):
                block = range(first, min(first + size, total))
                if all(self._path(name, number).exists() for number in block):
                    continue
                with claimed(
                    self.folder, key + first, wait=_nothing if waiting else None
                ) as free:
                    if free:
                        self._complete(name, block, compute)
                        progress.update(block.stop, what)
        if share.helps:
            raise ShareDone
        for number in range(total):
            found = self._read(name, number)
            if found is None:  # damaged, or the disk is full
                one = range(number, number + 1)
                found = self._complete(name, one, compute).get(number)
            if found:  # else no image of the batch can be read
                yield found

    def _complete(
        self,
        name: str,
        block: range,
        compute: Callable[[int], Iterable[tuple[int, Arrays]]],
    ) -> dict[int, dict[str, np.ndarray]]:
        """Compute the portions of a block from the first that is not known; return them."""
        known = 0
        while known < len(block) and self._read(name, block[known]) is not None:
            known += 1
        left = set(block[known:])
        made: dict[int, dict[str, np.ndarray]] = {}
        for number, arrays in compute(block[known]) if left else ():
            if number >= block.stop:
                break
            made[number] = {key: np.asarray(value) for key, value in arrays.items()}
            self._write(name, number, made[number])
            left.discard(number)
            if not left:
                break
        for number in left:  # a batch of which no image can be read
            self._write(name, number, {})
        return made

    def discard(self) -> None:
        """Delete all portions: the rows are written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # those of another measurement are there
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
        except OutputError as error:  # the measurement itself needs no file
            log.warning("an interruption will lose more than usual: %s", error)
