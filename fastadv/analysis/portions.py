"""Batches of images as portions of an analysis; see `fastadv.results.portions`."""

from __future__ import annotations

from collections.abc import Iterator

from fastadv.data import Batch, ImageSet, Loader, LoaderOptions
from fastadv.errors import DataError


def numbered_batches(loader: Loader, first: int = 0) -> Iterator[tuple[int, Batch]]:
    """Yield the number and the content of each batch from number `first` on.

    Args:
        loader: A loader in evaluation mode.
        first: Number of the first batch that is wanted.

    Yields:
        Numbers and batches. A batch without any image that can be read is left out.

    Raises:
        DataError: No image at all can be read.
    """
    size = loader.options.batch_size
    loader.load_state_dict(loader.state_dict() | {"position": first * size})
    number = None
    for batch in loader:
        number = int(batch.indices[0]) // size
        yield number, batch
    if number is None and not first:
        raise DataError(f"{loader.imageset.name} has no image that can be read")


def count_batches(images: ImageSet, options: LoaderOptions) -> int:
    """Return the number of batches of all images."""
    return -(-len(images) // options.batch_size)
