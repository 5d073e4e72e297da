"""Images with the boxes and the masks of the objects in them, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from fastadv.reporting.figures.palette import INK, house_style, new_figure

_WIDTH = 2.0  # inches of one image
_LEAST_SCORE = 0.5
_MASKED = 0.5  # Probability from which a pixel belongs to a mask.
# Bright, so that they stand out from photographs; objects of an image take them in turn.
_COLOURS = ("#ffd400", "#00e5ff", "#ff4fd8", "#7cff4f", "#ff8a3d", "#9db4ff")

Drawn = tuple[Tensor, Mapping[str, Any]]
"""An image, uint8 in 0..255 or float in [0, 1], [3, H, W]; and its objects by torchvision's
names: `boxes` [N, 4] in pixels, and where they are known `masks`, `labels` and `scores`."""


def detections(
    columns: Mapping[str, Sequence[Drawn]],
    class_names: Sequence[str] = (),
    *,
    least_score: float = _LEAST_SCORE,
) -> Figure:
    """Draw images in rows, with the objects that each column has in them.

    A box carries its score, and its class where there are several. Objects of one image
    have colours of their own, in the order of their scores; one object has other colours in
    other columns.

    Args:
        columns: The images of each column with their objects, by the title of the column.
        class_names: Names of the classes; label k is `class_names[k - 1]`.
        least_score: Objects of a smaller score are left out.

    Raises:
        ValueError: There is no image, or columns have different numbers of them.
    """
    counts = {title: len(drawn) for title, drawn in columns.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(
            f"columns have {counts or 'no'} images; give equally many, and at least one"
        )
    rows = list(zip(*columns.values(), strict=True))
    # Each row is as high as its highest image.
    heights = [
        _WIDTH * max(image.shape[-2] / image.shape[-1] for image, _ in row)
        for row in rows
    ]
    with house_style():
        figure = new_figure(_WIDTH * len(columns), sum(heights) + 0.3)
        grid = figure.subplots(
            len(rows), len(columns), squeeze=False, height_ratios=heights
        )
        for axes, row in zip(grid, rows, strict=True):
            for axis, (image, objects) in zip(axes, row, strict=True):
                _draw(axis, image, objects, class_names, least_score)
        for axis, title in zip(grid[0], columns, strict=True):
            axis.set_title(title, loc="center")
    return figure


def _draw(
    axis: Axes,
    image: Tensor,
    objects: Mapping[str, Any],
    class_names: Sequence[str],
    least_score: float,
) -> None:
    pixels = image.detach().cpu().permute(1, 2, 0).float()
    if image.dtype == torch.uint8:
        pixels /= 255
    shown = pixels.numpy().copy()
    boxes = torch.as_tensor(objects["boxes"]).detach().cpu().reshape(-1, 4)
    scores = objects.get("scores")
    kept = range(len(boxes))
    if scores is not None:
        order = torch.as_tensor(scores).argsort(descending=True).tolist()
        kept = [i for i in order if float(scores[i]) >= least_score]  # type: ignore[assignment]
    masks = objects.get("masks")
    for place, i in enumerate(kept):
        colour = _COLOURS[place % len(_COLOURS)]
        x1, y1, x2, y2 = boxes[i].tolist()
        box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.2)
        axis.add_patch(box)
        if masks is not None:
            mask = torch.as_tensor(masks[i]).detach().cpu().reshape(shown.shape[:2])
            whole = (mask >= _MASKED if mask.is_floating_point() else mask != 0).numpy()
            tint = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
            shown[whole] = 0.5 * shown[whole] + 0.5 * tint
        words = [] if scores is None else [f"{float(scores[i]):.2f}"]
        if len(class_names) > 1:
            words.insert(0, class_names[int(objects["labels"][i]) - 1])
        if words:
            axis.text(
                x1, y1, " ".join(words), size=6, color=INK, va="bottom",
                bbox={"facecolor": colour, "pad": 0.5, "lw": 0},
            )  # fmt: skip
    axis.imshow(shown.clip(0, 1), extent=(0, shown.shape[1], shown.shape[0], 0))
    axis.set_axis_off()
