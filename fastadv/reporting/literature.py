"""Published numbers, to be shown beside ours. Percent, as printed in the papers.

They are shipped as CSV files in `literature/`; every line names its source. salman2020:
Salman et al. 2020 (2007.08489), the tables of transfer and ImageNet accuracy. utrera2021:
Utrera et al. 2021 (2007.05869), few target images, and the epochs of one training.
"""

from __future__ import annotations

import csv
import functools
from importlib.resources import files

from fastadv.models.published import facts_from_name
from fastadv.reporting.threats import Threat, threat

PUBLISHED_SIDE = 224  # pixels; what both papers trained and tested at
_MODES = {"fixed": "fixed_feature", "full": "full_network"}
_SIDES = {"native": None, "downscaled32": 32}


def _rows(name: str) -> list[dict[str, str]]:
    text = files("fastadv.reporting").joinpath(f"literature/{name}.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


@functools.cache
def transfer_accuracy() -> dict[tuple[str, str, int | None, str, Threat], float]:
    """Return accuracies by data set, mode, side images were reduced to, arch and threat."""
    return {
        (
            row["dataset"],
            _MODES[row["mode"]],
            _SIDES[row["resolution"]],
            row["arch"],
            threat(row["norm"], row["eps"]),
        ): float(row["accuracy_percent"])
        for row in _rows("salman2020_transfer")
    }


@functools.cache
def limited_accuracy() -> dict[tuple[str, str, int, int | None, Threat], float]:
    """Return accuracies by data set, arch, tuned blocks, training images and threat.

    The number of training images is None for all.
    """
    return {
        (
            row["dataset"],
            row["arch"],
            int(row["finetuned_blocks"]),
            None if row["train_images"] == "all" else int(row["train_images"]),
            threat(row["source_norm"], row["source_eps"]),
        ): float(row["accuracy_percent"])
        for row in _rows("utrera2021_limited_data")
    }


@functools.cache
def epochs_accuracy() -> dict[tuple[str, str, int, int, int, int, Threat], float]:
    """Return accuracies during training (Utrera et al. 2021, figure 3).

    The keys are data set, arch, tuned blocks, training images, epochs of the schedule,
    finished epochs and threat.
    """
    found = {}
    for row in _rows("utrera2021_epochs"):
        if row["table"].startswith("Figure 3"):
            parts = (part.partition("=") for part in row["setting"].split(";"))
            setting = {name: value for name, _, value in parts}
            names = ("blocks", "images", "schedule", "epoch")
            blocks, images, schedule, epoch = (int(setting[name]) for name in names)
            trained = threat(row["norm"], row["eps"])
            place = (row["dataset"], row["architecture"], blocks, images)
            found[*place, schedule, epoch, trained] = float(row["value"])
    return found


@functools.cache
def imagenet_accuracy() -> dict[tuple[str, Threat], float]:
    """Return clean ImageNet accuracies by arch and threat."""
    rows = _rows("salman2020_imagenet_clean")
    accuracy = "clean_accuracy_percent"
    return {
        (row["arch"], threat(row["norm"], row["eps"])): float(row[accuracy])
        for row in rows
    }


def published_datasets() -> set[str]:
    """Return the names of all target data sets with published numbers."""
    return {key[0] for key in (*transfer_accuracy(), *limited_accuracy())}


def accuracy_of_file(path: str) -> float | None:
    """Return the ImageNet accuracy of a published checkpoint, by its file name.

    Example:
        >>> accuracy_of_file("models/resnet18_l2_eps3.ckpt")
        53.12
    """
    known = facts_from_name(path.rpartition("/")[2].removesuffix(".ckpt"))
    if known is None or not path.endswith(".ckpt"):
        return None
    arch, norm, eps = known
    return imagenet_accuracy().get((arch, threat(norm, eps)))


# What Utrera et al. transferred: the ImageNet models of the `robustness` package, and
# torchvision's natural one, whose file was renamed since.
_LIMITED_FILES = (
    "imagenet_l2_3_0.pt",
    "imagenet_linf_4.pt",
    "imagenet_linf_8.pt",
    "resnet50-0676ba61.pth",
    "resnet50-19c8e357.pth",
)


def published_weights(path: str, protocol: str) -> bool:
    """Return whether a file has the name of one that the paper of `protocol` used."""
    if protocol == "utrera2021":
        return path.rpartition("/")[2] in _LIMITED_FILES
    return accuracy_of_file(path) is not None
