"""`create_model` builds a NormalizedModel from a name, and perhaps weights.

The table of names is in `registry.py`; files are read in `checkpoint.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastadv.errors import ConfigError
from fastadv.models.architecture_names import IMAGENET_MEAN, IMAGENET_STD, TIMM_PREFIX
from fastadv.models.checkpoint import load_model
from fastadv.models.input_shapes import set_channels
from fastadv.models.normalized import NormalizedModel, check_num_classes, seeded_init
from fastadv.models.own_networks import import_arch, own_network
from fastadv.models.registry import get_spec
from fastadv.models.weights import torchvision_files


def create_model(
    arch: str,
    num_classes: int | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
    image_size: int | None = None,
) -> NormalizedModel:
    """Build a classifier of [0, 1] images.

    Args:
        arch: A name from `list_models()`, `timm/<name>`, the name of a network of your own
            (`register_arch`), or package.module:function, which is imported.
        num_classes: Number of logits. Default: 1000, or that of the weights. Where
            the weights have another number, the head is replaced by a fresh one.
        weights: None for random weights; "torchvision" or "timm" for that library's
            own (downloaded on first use); else a path or name for `load_model`.
        mean: Per-channel mean in [0, 1] units. Default: that of the weights where
            they say so, else ImageNet's. A single value makes a grey network, of images
            of one channel.
        std: Per-channel standard deviation, for which the same holds.
        seed: Makes random weights reproducible: they are drawn on the CPU, and global
            random state stays as it was.
        image_size: Side in pixels of the images that it has to take; see
            `NormalizedModel.set_image_size`. None leaves it as it is designed.

    Raises:
        ConfigError: Unknown architecture (near misses are named), timm is missing, or
            the library has no weights for `arch`.
        CheckpointError: The weights cannot be read, fetched, or are of another
            architecture or normalisation.
        ValueError: `num_classes`, `mean` or `std` is out of range.

    Example:
        >>> model = create_model("resnet18_cifar", 10, seed=0)
        >>> model.embedding_dim
        512
    """
    import_arch(arch)
    spec = get_spec(arch)
    if weights is None and (own := own_network(arch)) is not None:
        mean, std = mean or own.mean, std or own.std
    if num_classes is not None:
        check_num_classes(num_classes)
    if weights is None:
        mean = IMAGENET_MEAN if mean is None else mean
        std = IMAGENET_STD if std is None else std
        with seeded_init(seed):
            net = spec.build(num_classes or 1000)
            if len(mean) != 3:
                set_channels(net, len(mean))
        model = NormalizedModel(net, mean, std, arch, num_classes or 1000, spec=spec)
        if image_size is not None:
            model.set_image_size(image_size)
        return model
    if weights in ("torchvision", "timm"):
        name = arch.removeprefix(TIMM_PREFIX)
        owner = "timm" if name != arch else "torchvision"
        if weights != owner or not (name != arch or torchvision_files(arch)):
            raise ConfigError(
                f"{weights} has no weights for {arch!r}; give weights= a path, or None "
                "for random weights"
            )
        model = load_model(f"{owner}:{name}", mean=mean, std=std, download=True)
    else:
        model = load_model(weights, arch, mean=mean, std=std)
    if num_classes is not None and num_classes != model.num_classes:
        model.replace_head(num_classes, seed)
    if image_size is not None:
        model.set_image_size(image_size)
    return model
