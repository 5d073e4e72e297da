"""Shape or texture: which cue decides where an image holds both.

In the cue conflict experiment of Geirhos et al. 2019, images with the shape of one category
and the texture of another are classified into 16 categories. Of the decisions for either
cue, the share for the shape is the shape bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastadv.statistics import wilson

# airplane1-bicycle2: the shape, its number, the texture, its number.
_NAME = re.compile(r"^([a-z]+)\d+-([a-z]+)\d+$")


@dataclass(frozen=True)
class Conflict:
    """The two categories that an image shows."""

    shape: str
    texture: str


def conflict_of(name: str) -> Conflict | None:
    """Return the cues of a cue conflict image, by its name without folder and suffix.

    Args:
        name: For example `airplane1-bicycle2`: the shape of an airplane, the texture of
            a bicycle.

    Returns:
        The cues; None where both are of one category, or the name has another form.
    """
    found = _NAME.match(name)
    if found is None or found[1] == found[2]:
        return None
    return Conflict(found[1], found[2])


@dataclass(frozen=True)
class ShapeBias:
    """Decisions on cue conflict images.

    Attributes:
        shape: Number of decisions for the category of the shape.
        texture: Number of decisions for the category of the texture.
        other: Number of decisions for any other category.
    """

    shape: int
    texture: int
    other: int

    @property
    def share(self) -> float:
        """Shape decisions among those for either cue, in [0, 1]; NaN without any."""
        cued = self.shape + self.texture
        return self.shape / cued if cued else float("nan")

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the share, over the draw of images."""
        return wilson(self.shape, self.shape + self.texture)

    @property
    def cued(self) -> float:
        """Share of decisions for either cue, in [0, 1]."""
        total = self.shape + self.texture + self.other
        return (self.shape + self.texture) / total if total else float("nan")


def shape_bias(decisions: Iterable[tuple[str, str]]) -> ShapeBias:
    """Count decisions by the cue they follow.

    Args:
        decisions: Pairs of an image's name, as of `conflict_of`, and the category that
            was decided. Images whose cues agree are left out.

    Example:
        >>> shape_bias([("cat1-dog2", "cat"), ("cat1-dog2", "dog"), ("cat1-cat2", "cat")])
        ShapeBias(shape=1, texture=1, other=0)
    """
    counts = {"shape": 0, "texture": 0, "other": 0}
    for name, decided in decisions:
        if (cues := conflict_of(name)) is None:
            continue
        if decided == cues.shape:
            counts["shape"] += 1
        elif decided == cues.texture:
            counts["texture"] += 1
        else:
            counts["other"] += 1
    return ShapeBias(**counts)


def decide(
    probabilities: NDArray[np.floating],
    categories: Mapping[str, Sequence[int]],
) -> list[str]:
    """Return the category of each image: that of the highest mean probability.

    Args:
        probabilities: Softmax of the logits, [n, C].
        categories: Classes of each category, at least one, as positions in [0, C).

    Raises:
        ValueError: A category has no class, or a class is not one of the network's.

    Source:
        Geirhos et al. 2019: the mean over a category's classes, so that categories of
        many classes have no advantage.
    """
    empty = [name for name, classes in categories.items() if not len(classes)]
    if empty:
        raise ValueError(f"categories without a class: {', '.join(empty)}")
    highest = max(max(classes) for classes in categories.values())
    if highest >= probabilities.shape[1]:
        raise ValueError(
            f"class {highest} of a category is none of the {probabilities.shape[1]} of the "
            "network"
        )
    names = list(categories)
    means = [probabilities[:, list(classes)].mean(1) for classes in categories.values()]
    return [names[i] for i in np.argmax(np.stack(means, 1), 1)]
