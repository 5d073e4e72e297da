"""Portions of unfinished analyses: kept, read, made again, deleted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastadv.analysis.portions import Portions, count_batches, numbered_batches
from fastadv.data import LoaderOptions, make_loader, open_dataset
from fastadv.data.sets.image_set import ArraySet


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


def test_a_step_that_is_one_portion(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        found = Portions(tmp_path).once("step", compute)
        assert found["x"].tolist() == [0, 1, 2]
    assert len(calls) == 1


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
