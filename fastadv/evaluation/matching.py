"""A network and a data set of other classes: images and network made to fit each other.

The classes of the data are found among the outputs of the network by a class map. Images
of classes that the network does not know are left out. The network chooses among the
outputs of the known classes, or among all that it has.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastadv.data import ImageSet
from fastadv.data.sets.listed import ListedSet
from fastadv.errors import ConfigError, DataError
from fastadv.evaluation.class_map import ClassMap, class_map_for, output_names
from fastadv.models import NormalizedModel
from fastadv.models.source import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Matched:
    """Images whose labels are outputs of a network, and how these outputs are made.

    Attributes:
        images: The images of known classes, with labels among `groups`.
        groups: Outputs of the network that stand for each class; None where the classes
            are its outputs as they are.
        class_map: Which outputs stand for the classes of the data.
        all_outputs: Whether the network chooses among all of its outputs.
    """

    images: ImageSet
    groups: tuple[tuple[int, ...], ...] | None
    class_map: ClassMap
    all_outputs: bool = False

    def model(self, source: Source) -> NormalizedModel:
        """Load the network, with one output for each class."""
        model = source.load()
        if self.groups is None:
            return model
        net = ClassScores(model.net, self.groups)
        mean, std = model.mean.tolist(), model.std.tolist()
        made = NormalizedModel(net, mean, std, source.arch, len(self.groups))
        return made.train(model.training)


class ClassScores(nn.Module):
    """A network with one output for each of some groups of its outputs.

    The probability of a group is the sum of those of its outputs.

    Args:
        net: Maps images to logits [N, K].
        groups: The outputs of each group.
    """

    first: Tensor

    def __init__(self, net: nn.Module, groups: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.net, self.groups = net, groups
        self.single = all(len(group) == 1 for group in groups)
        first = torch.tensor([group[0] for group in groups])
        self.register_buffer("first", first, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, len(groups)] of normalised images [N, C, H, W]."""
        logits: Tensor = self.net(x)
        if self.single:
            return logits.index_select(1, self.first)
        parts = [logits[:, list(group)].logsumexp(1) for group in self.groups]
        return torch.stack(parts, 1)


def match_classes(
    source: Source,
    images: ImageSet,
    class_map: str | None = None,
    *,
    all_outputs: bool | None = None,
) -> Matched:
    """Find the classes of images among the outputs of a network.

    What is mapped, restricted and left out is logged once, unless the classes are the
    outputs in their order.

    Args:
        source: The network.
        images: The images.
        class_map: A file that says which outputs stand for which class; see
            `class_map_for`.
        all_outputs: Let the network choose among all of its outputs, and not among those
            of the classes of the images alone. None is the latter, for callers without
            this choice.

    Raises:
        ConfigError: The network knows fewer than two of the classes; see `class_map_for`.
        DataError: The file cannot be read, or no image is of a class that is known.
    """
    source.require_classifier()
    n = len(images.classes)
    if class_map is None and not output_names(source) and n > source.num_classes:
        raise ConfigError(
            f"{source.file} has {source.num_classes} classes, {images.name} has {n}; "
            "evaluate on the data it was trained for, name a file `class_map` that says "
            "which of them it knows, or use fastadv-transfer"
        )
    classes = class_map_for(source, images.classes, class_map)
    if classes.is_identity:
        return Matched(images, None, classes)
    groups = classes.outputs
    names = classes.classes
    if all_outputs:
        used = {output for group in groups for output in group}
        rest = [i for i in range(classes.num_outputs) if i not in used]
        own = output_names(source)
        names = (*names, *(own[i] if own else f"output {i}" for i in rest))
        groups = (*groups, *((i,) for i in rest))
    known = np.flatnonzero(np.isin(images.labels, classes.ids))
    if not len(known):
        raise DataError(
            f"{images.name} has no images of classes that {source.name} knows"
        )
    place = classes.positions()
    labels = [place[label] for label in images.labels[known].tolist()]
    part = ListedSet(images, known, labels, names, images.name, split=images.split)
    among = "all of its outputs" if all_outputs else "the outputs of these classes"
    other = "; `all_outputs` lets it choose among all" if all_outputs is False else ""
    log.warning(
        "%s on %s: %s; %d of %d images are judged, and the network chooses among %s%s",
        *(source.name, images.name, classes, len(known), len(images), among, other),
    )
    return Matched(part, groups, classes, bool(all_outputs))


def check_all_outputs(matched: Matched, wanted: bool) -> None:
    """Raise ConfigError where all outputs are wanted and there are no others."""
    if wanted and matched.groups is None:
        raise ConfigError(
            "`all_outputs` has no effect: the classes of the data are all outputs of the "
            "network; leave it out"
        )
