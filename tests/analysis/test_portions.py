"""Portions of unfinished analyses: kept, read, made again, deleted."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastadv.analysis.portions import count_batches, numbered_batches
from fastadv.data import LoaderOptions, make_loader, open_dataset
from fastadv.data.sets.image_set import ArraySet
from fastadv.results.portions import Portions, Share, ShareDone


class Work:
    """Computes squares, and stops before one of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.asked: list[int] = []

    def __call__(self, first: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for number in range(first, 4):
            if number == self.stop:
                raise KeyboardInterrupt
            self.asked.append(number)
            yield number, {"square": np.array(number**2)}


def squares(portions: Portions, work: Work) -> list[int]:
    return [int(each["square"]) for each in portions.each("squares", 4, work)]


def test_finished_portions_are_not_computed_again(tmp_path: Path) -> None:
    portions = Portions(tmp_path / "_unfinished" / "abc")
    with pytest.raises(KeyboardInterrupt):
        squares(portions, Work(stop=2))
    rest = Work()
    assert squares(Portions(portions.folder), rest) == [0, 1, 4, 9]
    assert rest.asked == [2, 3]
    nothing = Work()
    assert squares(portions, nothing) == [0, 1, 4, 9]
    assert nothing.asked == []
    portions.discard()
    assert not (tmp_path / "_unfinished").exists()
    portions.discard()  # also where nothing was kept


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_portion_is_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    portions = Portions(tmp_path)
    squares(portions, Work())
    file = tmp_path / "squares-1.npz"
    content = {"cut": file.read_bytes()[:50], "empty": b"", "foreign": b"text"}
    file.write_bytes(content[damage])
    again = Work()
    with caplog.at_level(logging.WARNING):
        assert squares(portions, again) == [0, 1, 4, 9]
    assert again.asked == [1, 2, 3]
    assert "squares-1.npz cannot be read" in caplog.text


def test_a_full_disk_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert squares(Portions(tmp_path / "file"), Work()) == [0, 1, 4, 9]
    assert "an interruption will lose more" in caplog.text


class Spoilt(ArraySet):
    """Digits of which some cannot be read."""

    def load(self, index: int) -> np.ndarray:
        from fastadv.data.decoding import BadImage

        if index in (0, *range(10, 20)):
            raise BadImage(self.describe(index), "spoilt")
        return super().load(index)


def test_batches_from_any_on_are_the_same() -> None:
    digits = open_dataset("digits", resolution=8).test
    pixels = np.stack([digits.load(i) for i in range(35)])
    images = Spoilt(pixels, np.arange(35) % 5, digits.classes, name="d", split="test")
    options = LoaderOptions(batch_size=10, resolution=8, train=False)
    assert count_batches(images, options) == 4
    # The second batch has no image that can be read.
    whole = dict(numbered_batches(make_loader(images, **vars(options))))
    assert list(whole) == [0, 2, 3]
    assert whole[0].indices.tolist() == list(range(1, 10))
    for first in (1, 2, 3, 4):
        rest = dict(numbered_batches(make_loader(images, **vars(options)), first))
        assert list(rest) == [number for number in whole if number >= first]
        for number, batch in rest.items():
            assert batch.indices.tolist() == whole[number].indices.tolist()
            assert (batch.images == whole[number].images).all()
            assert (batch.labels == whole[number].labels).all()


def _share(folder: Path, helps: bool, numbers: range, out: Path) -> None:
    """Compute the portions that nobody else does, and write which into `out`."""

    def compute(first: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for number in numbers[first:]:
            time.sleep(0.02)
            with out.open("a") as file:
                file.write(f"{number}\n")
            if number != 7:  # a batch of which no image can be read
                yield number, {"square": np.array(number**2)}

    found = []
    with contextlib.suppress(ShareDone):
        portions = Portions(folder, Share(3, helps))
        for each in portions.each("squares", len(numbers), compute):
            found.append(int(each["square"]))
    assert found == ([] if helps else [n**2 for n in numbers if n != 7])


def test_processes_share_the_portions(tmp_path: Path) -> None:
    folder, numbers = tmp_path / "portions", range(30)
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_share, args=(folder, i > 0, numbers, tmp_path / f"{i}"))
        for i in range(3)
    ]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    assert [each.exitcode for each in processes] == [0, 0, 0]
    by = [path for path in (tmp_path / f"{i}" for i in range(3)) if path.exists()]
    assert len(by) > 1
    computed = [int(line) for path in by for line in path.read_text().split()]
    # Each once, but for the batch that showed that there is nothing of the one before.
    assert sorted(computed) == sorted([*numbers, 8])


def test_a_share_that_finds_damage_computes_it_again(tmp_path: Path) -> None:
    numbers = range(8)
    _share(tmp_path, False, numbers, tmp_path / "first")
    (tmp_path / "squares-3.npz").write_bytes(b"text")
    _share(tmp_path, False, numbers, tmp_path / "second")
    assert (tmp_path / "second").read_text().split() == ["3"]


def test_an_ordered_sequence_is_the_work_of_one(tmp_path: Path) -> None:
    helper = Portions(tmp_path, Share(2, helps=True))
    with pytest.raises(ShareDone):
        list(helper.each("squares", 4, Work(), ordered=True))
    main = Portions(tmp_path, Share(2, helps=False))
    found = main.each("squares", 4, Work(), ordered=True)
    assert [int(each["square"]) for each in found] == [0, 1, 4, 9]
