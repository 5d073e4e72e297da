"""The shape bias: published decisions of people and networks."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest
from shared_data import shared

from fastadv.analysis.shape import ShapeBias, conflict_of, decide, shape_bias


def published() -> dict[str, list[tuple[str, str]]]:
    """The decisions of every subject on every image."""
    found: dict[str, list[tuple[str, str]]] = {}
    with gzip.open(shared("cue-conflict-decisions.csv.gz"), "rt") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["subject"], []).append((row["image"], row["response"]))
    return found


def test_equals_the_published_decisions() -> None:
    """33,280 decisions of ten people and 16 networks."""
    of_subject = {name: shape_bias(each) for name, each in published().items()}
    counts = {name: (of.shape, of.texture) for name, of in of_subject.items()}
    assert counts["resnet50"] == (162, 572)
    assert counts["vgg16"] == (84, 912 - 84)
    assert counts["alexnet"] == (182, 719 - 182)
    people = [each for name, each in counts.items() if name.startswith("subject")]
    shape, texture = map(sum, zip(*people, strict=True))
    assert (shape, shape + texture) == (9236, 9634)
    assert all(
        sum((of.shape, of.texture, of.other)) == 1200 for of in of_subject.values()
    )


def test_the_share_and_its_interval() -> None:
    bias = ShapeBias(30, 10, 60)
    assert bias.share == 0.75
    assert bias.cued == 0.4
    low, high = bias.interval()
    assert low < 0.75 < high
    assert high - low == pytest.approx(0.26, abs=0.02)
    assert np.isnan(ShapeBias(0, 0, 5).share)


@pytest.mark.parametrize(
    "name", ["cat1-cat2", "cat-dog", "cat1", "", "cat1-dog2-bird3", "CAT1-dog2"]
)
def test_names_without_a_conflict(name: str) -> None:
    assert conflict_of(name) is None
    assert shape_bias([(name, "cat")]) == ShapeBias(0, 0, 0)


def test_many_classes_are_no_advantage() -> None:
    probabilities = np.array([[0.3, 0.2, 0.2, 0.2, 0.1], [0.0, 0.3, 0.3, 0.2, 0.2]])
    categories = {"knife": [0], "dog": [1, 2, 3, 4]}
    # The four dogs have 0.7 together, but a mean of 0.175.
    assert decide(probabilities, categories) == ["knife", "dog"]
    with pytest.raises(ValueError, match="without a class: bear"):
        decide(probabilities, {"bear": [], "dog": [1]})
    with pytest.raises(ValueError, match="class 5 of a category is none of the 5"):
        decide(probabilities, {"bear": [5], "dog": [1]})
