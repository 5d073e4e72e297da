"""How stored images become pixel values in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def to_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images of any shape in pixel units [0, 1] as `dtype`.

    A uint8 image takes one correctly rounded division by 255; others are only cast.
    """
    if images.dtype == torch.uint8:
        return images.to(dtype) / 255
    return images.to(dtype)
