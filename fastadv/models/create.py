"""create_model: from a name (and perhaps weights) to a NormalizedModel.

The table of names is `registry.py`; reading files is `checkpoint.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastadv.errors import CheckpointError, ConfigError
from fastadv.models import timm_models
from fastadv.models.checkpoint import load_model
from fastadv.models.names import IMAGENET_MEAN, IMAGENET_STD, TIMM_PREFIX
from fastadv.models.normalized import NormalizedModel, check_num_classes, seeded_init
from fastadv.models.registry import ArchSpec, get_spec


def create_model(
    arch: str,
    num_classes: int | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
) -> NormalizedModel:
    """Build a classifier of [0, 1] images.

    Args:
        arch: A name from `list_models()`, or `timm/<name>`.
        num_classes: Number of logits. Default: 1000, or that of the weights. Where
            the weights have another number, the head is replaced by a fresh one.
        weights: None for random weights; "torchvision" or "timm" for that library's
            own (downloaded on first use); else a path for `load_model`.
        mean: Per-channel mean in [0, 1] units. Default: that of the weights where
            they say so, else ImageNet's.
        std: Per-channel standard deviation, likewise.
        seed: Makes random weights reproducible: they are drawn on the CPU, and global
            random state stays as it was.

    Raises:
        ConfigError: Unknown architecture (near misses are named), timm is missing, or
            the library has no weights for `arch`.
        CheckpointError: The weights cannot be read, fetched, or are of another
            architecture or normalisation.
        ValueError: `num_classes`, `mean` or `std` out of range.

    Example:
        >>> model = create_model("resnet18_cifar", 10, seed=0)
        >>> model.embedding_dim
        512
    """
    spec = get_spec(arch)
    if num_classes is not None:
        check_num_classes(num_classes)
    if weights is None:
        with seeded_init(seed):
            net = spec.build(num_classes or 1000)
        mean = IMAGENET_MEAN if mean is None else mean
        std = IMAGENET_STD if std is None else std
        return NormalizedModel(net, mean, std, arch, num_classes or 1000, spec=spec)
    if weights in ("torchvision", "timm"):
        model = _from_library(spec, str(weights), mean, std)
    else:
        model = load_model(weights, arch, mean=mean, std=std)
    if num_classes is not None and num_classes != model.num_classes:
        model.replace_head(num_classes, seed)
    return model


def _from_library(
    spec: ArchSpec,
    library: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> NormalizedModel:
    owner = "timm" if spec.name.startswith(TIMM_PREFIX) else "torchvision"
    if spec.pretrained is None or library != owner:
        raise ConfigError(
            f"{library} has no weights for {spec.name!r}; give weights= a path, or "
            "None for random weights"
        )
    try:
        net = spec.pretrained()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"could not fetch the {library} weights of {spec.name!r}: {error}. Without "
            "a network, download the file elsewhere and give weights= its path"
        ) from error
    stated = timm_models.statistics(net) if owner == "timm" else None
    head = net.get_submodule(spec.head_path(net))
    own_mean, own_std = stated or (IMAGENET_MEAN, IMAGENET_STD)
    return NormalizedModel(
        net,
        own_mean if mean is None else mean,
        own_std if std is None else std,
        spec.name,
        len(head.get_parameter("weight")),
        spec=spec,
    )
