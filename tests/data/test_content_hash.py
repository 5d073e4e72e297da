"""The hash of images by their content, on which cached features depend."""

from __future__ import annotations

import numpy as np
import pytest

from fastadv.data import ArraySet, BadImage, ImageSet
from fastadv.data.sets.image_set import FileSet
from fastadv.data.sets.subsets import (
    Downscaled,
    Subset,
    base_and_positions,
    files_and_positions,
)


class Files(FileSet):
    """Six files, the fourth of which cannot be read."""

    def _encoded(self, index: int) -> bytes:
        if index == 3:
            raise BadImage(self.describe(index), "cut short")
        return b"image %d" % index

    def sizes(self) -> list[int]:
        return [7] * len(self)


LABELS = [0, 1, 0, 1, 0, 1]
FILES = Files("f", "train", ["a", "b"], [f"{i}.jpg" for i in range(6)], LABELS)
PIXELS = (np.arange(6 * 2 * 2 * 3) % 251).astype(np.uint8).reshape(6, 2, 2, 3)
ARRAYS = ArraySet(PIXELS, LABELS, ["a", "b"], name="x", split="train")


@pytest.mark.parametrize(
    ("base", "recorded"),
    [
        (FILES, "f7abccfb 1fffd9aa 80100b3d cd3e5963 10060be8 f524039b d07ce250"),
        (ARRAYS, "45486aa6 7addde76 bce0defe 239cdbd1 4f0aa37d 3de52cf2 b170f7a5"),
    ],
)
def test_hashes_are_those_of_earlier_versions(base: ImageSet, recorded: str) -> None:
    """Otherwise every cached feature would be computed again."""
    part = Subset(base, [5, 3, 0, 1])
    nested = Subset(part, [2, 0])
    sets = [
        base,
        part,
        nested,
        Downscaled(base, 4),
        Downscaled(nested, 4),
        Subset(Downscaled(base, 4), [4, 2]),
        Subset(Downscaled(part, 4), [1, 2]),
    ]
    hashes = [images.content_hash() for images in sets]
    assert [h[:8] for h in hashes] == recorded.split()
    assert {len(h) for h in hashes} == {64}


def test_nested_subsets_lie_in_one_base() -> None:
    nested = Subset(Subset(FILES, [5, 3, 0, 1]), [2, 0])
    base, positions = base_and_positions(nested)
    assert base is FILES
    assert positions.tolist() == [0, 5]
    base, positions = base_and_positions(FILES)
    assert (base, positions.tolist()) == (FILES, [0, 1, 2, 3, 4, 5])
    found = files_and_positions(nested)
    assert found is not None
    assert found[0].read(int(found[1][1])) == b"image 5"
    assert files_and_positions(Subset(ARRAYS, [1])) is None
