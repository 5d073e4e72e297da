"""Objects of an image as COCO writes them: run lengths of masks, areas, annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastadv.errors import ConfigError

_MASKED = 0.5  # Probability from which a pixel belongs to a mask.


def encode_masks(masks: Tensor, number: int) -> list[dict[str, Any]]:
    """Return masks as COCO's run lengths.

    Args:
        masks: [D, H, W] or [D, 1, H, W]; probabilities count from 0.5 on.
        number: Number of masks that there should be.

    Raises:
        ValueError: There are more or fewer masks, or they are no images.
    """
    masks = masks.squeeze(1) if masks.dim() == 4 and masks.shape[1] == 1 else masks
    if masks.dim() != 3 or len(masks) != number:
        raise ValueError(
            f"masks of {number} objects have shape {list(masks.shape)}; expected "
            f"[{number}, H, W] or [{number}, 1, H, W]"
        )
    whole = masks >= _MASKED if masks.is_floating_point() else masks != 0
    # Column by column, as COCO's run lengths go.
    columns = np.asfortranarray(whole.permute(1, 2, 0).to(torch.uint8).cpu().numpy())
    return cast(list[dict[str, Any]], coco_eval().mask.encode(columns))


def coco_eval() -> Any:
    """Return the package faster-coco-eval with its masks.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        import faster_coco_eval
        import faster_coco_eval.core.mask
    except ImportError as error:
        raise ConfigError(
            f"average precision needs the package {error.name}, which is not installed; "
            "run: pip install 'fastadv[detect]'"
        ) from error
    return faster_coco_eval


def area_of(each: Mapping[str, Any]) -> float:
    """Return the area of an object whose area is not stated."""
    if each["runs"] is not None:
        return float(coco_eval().mask.area(each["runs"]))
    x1, y1, x2, y2 = each["box"]
    return float((x2 - x1) * (y2 - y1))


def annotation(each: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a COCO annotation with either a box or a mask.

    With both, COCO's reader of results takes the size of a mask from its box.
    """
    kept = {k: v for k, v in each.items() if k not in ("box", "runs")}
    if what == "mask":
        return kept | {"segmentation": dict(each["runs"])}
    x1, y1, x2, y2 = each["box"]
    return kept | {"bbox": [x1, y1, x2 - x1, y2 - y1]}
