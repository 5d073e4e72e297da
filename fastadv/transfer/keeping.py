"""What a transfer keeps beside its rows, and how much room that will take."""

from __future__ import annotations

import functools
from dataclasses import asdict

import torch

from fastadv.models import create_model
from fastadv.models.checkpoint import model_bytes
from fastadv.models.kept import Origin, changed_tensors, head_alone_trained
from fastadv.models.source import Source
from fastadv.models.weights import absolute_source
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.experiment import Experiment, Fitted

_FLOAT = 4  # bytes
# Logits are compressed to about this share; random mantissas do not become smaller.
_PACKED = 0.93
_PER_IMAGE = 2.0  # bytes of the label, verdict and position, compressed
_ARRAYS = 1300  # bytes of the names and headers of a file of arrays
_ROW = 2000  # bytes of a row in a merged table
_HEADER = 600  # bytes of the header of a weights file
_PER_CLASS = 40  # bytes of the counts and the name of a class in a row


def kept_network(
    experiment: Experiment, fitted: Fitted
) -> tuple[bytes | None, str | None]:
    """Return the file of a fitted network, or why there is none.

    A network of which nothing but the head was trained is kept as its head and the name
    of its source, any other one whole.

    Args:
        experiment: Source, data set and choices.
        fitted: The network.

    Returns:
        The content of the file and None, or None and a reason; both are None where
        networks are not to be kept.
    """
    config, model, source = experiment.config, fitted.model, experiment.source
    if not config.keeps("heads"):
        return None, None
    if model is None:
        return None, (
            f"weights: the head of {source.arch} is no linear function of its features"
        )
    changed = None
    if config.mode != "scratch":
        changed = changed_tensors(model, experiment.frozen)
        if not head_alone_trained(model, changed):
            changed = None
    if changed is None and not config.keeps("networks"):
        return None, "weights: whole networks are kept with `save` alone"
    images = experiment.opened.test
    augment = experiment.options(train=False).augment_of(images)
    metadata = {
        "classes": list(images.classes),
        "resolution": experiment.resolution,
        "preparation": asdict(experiment.prepared.how),
        "downscale": config.downscale,
        "config": {"augment": augment, **_threat(config, source)},
    }
    trunk = None
    if changed is not None:
        given = absolute_source(source.given)
        trunk = Origin(given, source.digest, source.arch).to_text()
    return model_bytes(model, metadata, changed, trunk), None


def _threat(config: TransferConfig, source: Source) -> dict[str, str | float | None]:
    """Return `norm` and `eps` of the training of a transferred network, where known.

    A robust network that was fine-tuned on clean images was trained in two ways, and no
    radius describes it.
    """
    if (method := config.method_config) is not None:
        return {"norm": method.norm, "eps": method.threat.eps}
    if config.mode == "scratch":
        return {"eps": 0.0}
    if source.eps is None or (source.eps and config.mode != "fixed_feature"):
        return {}
    return {"norm": source.norm, "eps": source.eps}


def expected_bytes(config: TransferConfig, arch: str, images: int, classes: int) -> int:
    """Return about how many bytes one seed of an experiment leaves on disk.

    Counted are its rows, the verdicts and logits of the test images, and its weights.

    Args:
        config: The choices of the experiment.
        arch: Architecture of the source.
        images: Number of test images.
        classes: Number of classes of the data set.
    """
    passes = 1 if config.robust_eps is None else 2  # clean, and attacked
    total = passes * (_ROW + _PER_CLASS * classes)
    if config.keeps("verdicts"):
        total += round(_PER_IMAGE * images) + _ARRAYS
    if not config.keeps("heads"):
        return total
    total += round(passes * images * classes * _FLOAT * _PACKED)
    head, statistics, whole = _sizes(arch, classes)
    if config.mode == "fixed_feature" or config.k == 0:
        # Outside of cached features, statistics of BatchNorm may follow the target.
        size = head if config.on_cached_features else head + statistics
    elif config.keeps("networks"):
        size = whole
    else:
        return total
    return total + _HEADER + size


@functools.cache
def _sizes(arch: str, classes: int) -> tuple[int, int, int]:
    """Return the bytes of the head, the statistics, and of all tensors of a network."""
    with torch.device("meta"):
        model = create_model(arch, classes)
    head = sum(tensor.nbytes for tensor in model.head.parameters())
    statistics = sum(tensor.nbytes for tensor in model.net.buffers())
    whole = sum(tensor.nbytes for tensor in model.net.state_dict().values())
    return head, statistics, whole
