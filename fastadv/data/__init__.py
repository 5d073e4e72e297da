"""What a data set is (sources) and how its batches arrive (loaders).

Nothing heavy is imported until a name is used: `import fastadv.data` costs
what `import fastadv` costs, so `--help` stays quick. Not here: normalisation,
which belongs to the model, and anything adversarial.

Example:
    >>> from fastadv.data import make_loader, open_dataset
    >>> digits = open_dataset("digits")
    >>> loader = make_loader(digits.test, batch_size=100, resolution=32, train=False)
    >>> next(iter(loader)).images.shape
    torch.Size([100, 3, 32, 32])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastadv.data.choice import make_loader
    from fastadv.data.images import BadImage, decode_rgb
    from fastadv.data.loaders import Batch, Loader
    from fastadv.data.options import LoaderOptions
    from fastadv.data.registry import dataset_names, native_resolution, open_dataset
    from fastadv.data.shapetex import ShapeTex
    from fastadv.data.sources import ArraySet, DatasetSplits, ImageSet
    from fastadv.data.subsets import Subset, subset, train_val_split

_HOME = {
    "ArraySet": "sources",
    "BadImage": "images",
    "Batch": "loaders",
    "DatasetSplits": "sources",
    "ImageSet": "sources",
    "Loader": "loaders",
    "LoaderOptions": "options",
    "ShapeTex": "shapetex",
    "Subset": "subsets",
    "dataset_names": "registry",
    "decode_rgb": "images",
    "make_loader": "choice",
    "native_resolution": "registry",
    "open_dataset": "registry",
    "subset": "subsets",
    "train_val_split": "subsets",
}

__all__ = [
    "ArraySet",
    "BadImage",
    "Batch",
    "DatasetSplits",
    "ImageSet",
    "Loader",
    "LoaderOptions",
    "ShapeTex",
    "Subset",
    "dataset_names",
    "decode_rgb",
    "make_loader",
    "native_resolution",
    "open_dataset",
    "subset",
    "train_val_split",
]


def __getattr__(name: str) -> Any:
    """Import the module that owns `name` on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
