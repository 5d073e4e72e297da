"""The images and labels of a batch, whoever's loader made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

AnyBatch: TypeAlias = Iterable[Tensor] | Mapping[str, Any]
"""A batch of one of our loaders or anyone's; see `images_and_labels`."""

# What data sets and networks of Hugging Face call them, and other common names.
IMAGE_KEYS = ("pixel_values", "images", "image", "x", "inputs", "input", "img")
LABEL_KEYS = ("labels", "label", "y", "targets", "target")


def images_and_labels(batch: AnyBatch) -> tuple[Tensor, Tensor]:
    """Return images [N, C, H, W] and labels [N] of a batch.

    Args:
        batch: A `Batch`; a tuple or a list of images and labels, as a
            `torch.utils.data.DataLoader` yields them; or a mapping that has images under
            `pixel_values`, `images`, `image`, `x` or `inputs`, and labels under `labels`,
            `label`, `y` or `targets`.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(batch, Mapping):
        image_key, label_key = image_and_label_keys(batch)
        return batch[image_key], batch[label_key]
    parts = [] if isinstance(batch, (Tensor, str)) else [*batch]
    if len(parts) == 2 and all(isinstance(part, Tensor) for part in parts):
        return parts[0], parts[1]
    kinds = ", ".join(type(part).__name__ for part in parts)
    what = f"{type(batch).__name__} of {kinds}" if parts else type(batch).__name__
    raise TypeError(
        f"a batch is a {what}; expected (images, labels), both tensors, or a mapping with "
        "them, for example `((batch[0], batch[1]) for batch in loader)`"
    )


def image_and_label_keys(batch: Mapping[str, Any]) -> tuple[str, str]:
    """Return the keys of the images and of the labels in a batch.

    Raises:
        TypeError: It has none under a name that is known.
    """
    found = [
        next((key for key in keys if isinstance(batch.get(key), Tensor)), None)
        for keys in (IMAGE_KEYS, LABEL_KEYS)
    ]
    if found[0] is None or found[1] is None:
        raise TypeError(
            f"a batch has the keys {', '.join(map(str, batch))}; expected tensors of images "
            f"under one of {', '.join(IMAGE_KEYS)} and of labels under one of "
            f"{', '.join(LABEL_KEYS)}"
        )
    return found[0], found[1]
