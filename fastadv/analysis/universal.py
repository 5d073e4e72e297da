"""What a universal perturbation does to the decisions of a network, beside mere noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastadv.analysis.contract import Measured
from fastadv.analysis.decisions import finite_logits
from fastadv.attacks.universal import perturbed
from fastadv.models.view import AttackView


@dataclass(frozen=True)
class Shown:
    """What is added to images, float32 [C, H, W] each.

    Attributes:
        delta: The universal perturbation.
        noise: Random noise of the same norm.
    """

    delta: Tensor
    noise: Tensor


def show(
    view: AttackView, images: Tensor, labels: Tensor, shown: Shown, *, name: str
) -> dict[str, NDArray[np.int32]]:
    """Return the decisions on a batch, clean and perturbed, by name, int32 [n].

    Args:
        view: The network.
        images: uint8 or float in [0, 1], [n, C, H, W], on its device.
        labels: Classes of the images, int64 [n], which need not be those of the network.
        shown: What is added to the images.
        name: Name of the network in errors.

    Raises:
        CheckpointError: Outputs are not finite.
    """
    seen = {
        "decided": images,
        "perturbed": perturbed(images, shown.delta),
        "noisy": perturbed(images, shown.noise),
    }
    found = {key: finite_logits(view, x, name).argmax(1) for key, x in seen.items()}
    found["labels"] = labels
    return {key: value.int().cpu().numpy() for key, value in found.items()}


def show_summary(
    found: Mapping[str, NDArray[np.generic]], *, knows: bool
) -> list[Measured]:
    """Return the numbers of a universal perturbation from what `show` found.

    Args:
        found: The decisions on all images.
        knows: Whether the network tells apart the classes of the images.

    Returns:
        In percent: `fooling_rate`, the share of decisions that it changes; `noise_rate`,
        the share that noise changes; and if the network knows the classes,
        `clean_accuracy` and `perturbed_accuracy`.
    """
    decided, labels = found["decided"], found["labels"]
    counted = {
        "fooling_rate": found["perturbed"] != decided,
        "noise_rate": found["noisy"] != decided,
    }
    if knows:
        counted["clean_accuracy"] = decided == labels
        counted["perturbed_accuracy"] = found["perturbed"] == labels
    return [
        Measured.share_of(metric, int(hits.sum()), len(hits))
        for metric, hits in counted.items()
    ]
