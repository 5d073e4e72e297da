"""Figures of detections: every box that counts, in the place where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from fastadv.reporting.figures.detections import detections


def test_boxes_and_masks_are_drawn_where_they_are() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    masks = torch.zeros(2, 1, 40, 60)
    masks[0, 0, 5:15, 10:30], masks[1, 0, 30:, 50:] = 0.9, 0.9
    found = {
        "boxes": torch.tensor([[10.0, 5, 30, 15], [50, 30, 60, 40]]),
        "scores": torch.tensor([0.8, 0.3]),
        "labels": torch.tensor([2, 1]),
        "masks": masks,
    }
    true = {"boxes": found["boxes"], "labels": found["labels"]}
    attacked = torch.full((3, 40, 60), 0.5)
    figure = detections(
        {"annotated": [(image, true)], "attacked": [(attacked, found)]}, ["cat", "dog"]
    )
    known, other = figure.axes
    boxes = [p for p in other.patches if isinstance(p, Rectangle)]
    assert [box.get_bbox().extents.tolist() for box in boxes] == [[10, 5, 30, 15]]
    assert [text.get_text() for text in other.texts] == ["dog 0.80"]
    assert [text.get_text() for text in known.texts] == ["dog", "cat"]
    drawn = np.asarray(other.get_images()[0].get_array())
    changed = np.abs(drawn - 0.5).max(-1) > 0.01
    wanted = np.zeros((40, 60), dtype=bool)
    wanted[5:15, 10:30] = True  # the other mask has a small score
    np.testing.assert_array_equal(changed, wanted)
    assert [axis.get_title(loc="center") for axis in figure.axes] == [
        "annotated",
        "attacked",
    ]
    assert (
        len(detections({"all": [(image, found)]}, least_score=0.2).axes[0].patches) == 2
    )


def test_columns_of_different_length_are_refused() -> None:
    image = torch.zeros(3, 4, 4)
    one = (image, {"boxes": torch.zeros(0, 4)})
    with pytest.raises(ValueError, match="equally many"):
        detections({"a": [one], "b": []})
    with pytest.raises(ValueError, match="columns have no images"):
        detections({})
