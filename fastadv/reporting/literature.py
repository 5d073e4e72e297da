"""Published numbers, to be shown beside ours. Percent, as printed in the papers.

They are shipped as CSV files in `literature/`; every line names its source, and
`literature/README.md` says how the numbers of each file were selected. salman2020: Salman
et al. 2020 (2007.08489). utrera2021: Utrera et al. 2021 (2007.05869).
"""

from __future__ import annotations

import csv
import functools
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from fastadv.models.published import facts_from_name
from fastadv.reporting.threats import Threat, threat

PUBLISHED_SIDE = 224  # pixels; what both papers trained and tested at
_MODES = {"fixed": "fixed_feature", "full": "full_network"}
_SIDES = {"native": None, "downscaled32": 32}

Trained = Threat | Literal["texture"]
"""How a source was trained: norm and eps, or on stylized images."""

_TRIALS = "mean of three trials, learning rate and epoch chosen on test images"
_LAST = "last epoch, mean over seeds"
_BEST = "best logged epoch on test images, mean over seeds"


@dataclass(frozen=True)
class Record:
    """A published number.

    Attributes:
        value: The number, in percent.
        protocol: The protocol it was measured by, `salman2020` or `utrera2021`.
        selected: How it was selected, in a few words.
        low: Smallest of the trials that `value` is the mean of; None if unknown.
        high: Largest of them.
    """

    value: float
    protocol: str
    selected: str
    low: float | None = None
    high: float | None = None


def read_published(name: str) -> list[dict[str, str]]:
    """Return the lines of a file of `literature/`, by column.

    Args:
        name: Its name without suffix, for example `salman2020_detection`. Lines of files
            with a column `setting` have the columns that it names, too (`blocks=3`).

    Raises:
        FileNotFoundError: There is no such file.
    """
    folder = files("fastadv.reporting").joinpath("literature")
    plain, packed = folder / f"{name}.csv", folder / f"{name}.csv.gz"
    if packed.is_file():
        text = gzip.decompress(packed.read_bytes()).decode()
    else:
        text = plain.read_text()
    return [_named(line) for line in csv.DictReader(text.splitlines())]


def _named(line: dict[str, str]) -> dict[str, str]:
    pairs = (part.partition("=") for part in line.get("setting", "").split(";"))
    named = {key: value for key, equals, value in pairs if equals}
    if "source" in named:  # the network; the column of that name says who published it
        named["source_network"] = named.pop("source")
    return line | named


# ---- Salman et al. 2020 ----


@functools.cache
def transfer_accuracy() -> dict[tuple[str, str, int | None, str, Trained], Record]:
    """Return accuracies by data set, mode, side images were reduced to, arch and training."""
    found: dict[tuple[str, str, int | None, str, Trained], Record] = {}
    for line in read_published("salman2020_transfer"):
        side, mode = _SIDES[line["resolution"]], _MODES[line["mode"]]
        trained = threat(line["norm"], line["eps"])
        value = float(line["accuracy_percent"])
        record = Record(value, "salman2020", _TRIALS)
        found[line["dataset"], mode, side, line["arch"], trained] = record
    for key, record in _more_transfers():
        # The standard network of the table of linf sources is another one than that of
        # the table of l2 sources, and was not released; the latter stays.
        found.setdefault(key, record)
    return found


def _more_transfers() -> Iterator[
    tuple[tuple[str, str, int | None, str, Trained], Record]
]:
    """Yield the accuracies of the appendices and figures."""
    names = ("other_architectures", "linf", "stylized")
    for line in (r for n in names for r in read_published(f"salman2020_{n}")):
        if line["mode"] not in _MODES or line["eps"] == "best":
            continue
        trained: Trained = threat(line["norm"], line["eps"])
        if line.get("source_network") == "stylized_imagenet":
            trained = "texture"
        place = (line["dataset"], _MODES[line["mode"]], None, line["architecture"])
        selected = _TRIALS
        if "read from figure" in line["setting"]:
            selected += "; read from the figure"
        yield (*place, trained), Record(float(line["value"]), "salman2020", selected)


@functools.cache
def trials() -> dict[tuple[str, str, str, str], Record]:
    """Return mean, least and largest of three trials, of images as they are.

    Keys are data set, mode, arch and `standard` or `robust`; the latter is the best eps.
    """
    found: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for line in read_published("salman2020_trials"):
        mode, kind = _MODES[line["mode"]], line["source_network"]
        which = line["metric"].rpartition("_")[2]
        key = (line["dataset"], mode, line["architecture"], kind)
        found.setdefault(key, {})[which] = float(line["value"])
    return {
        key: Record(t["mean"], "salman2020", _TRIALS, t["min"], t["max"])
        for key, t in found.items()
    }


@functools.cache
def best_trials() -> dict[tuple[str, str, str], tuple[Record, Threat]]:
    """Return the best single trial over eps (0 too) and learning rate, and its eps.

    Keys are data set, mode and arch.
    """
    found = {}
    for line in read_published("salman2020_best_params"):
        trained = threat(line["norm"], line["eps"])
        key = (line["dataset"], _MODES[line["mode"]], line["architecture"])
        record = Record(float(line["value"]), "salman2020", "best single trial")
        found[key] = record, trained
    return found


@functools.cache
def headline_accuracy() -> dict[tuple[str, str, str], Record]:
    """Return the best of four networks by data set, mode and `standard` or `robust`.

    Source: Table 1 of the paper, in its final version.
    """
    return {
        (line["dataset"], _MODES[line["mode"]], line["source_network"]): Record(
            float(line["value"]), "salman2020", f"best architecture; {_TRIALS}"
        )
        for line in read_published("salman2020_headline")
        if line["table"].startswith("arXiv Table 1")
    }


@functools.cache
def shares_explained() -> dict[tuple[str, str, Threat], float]:
    """Return R^2 of source against transfer accuracy by data set, mode and threat."""
    found = {}
    for line in read_published("salman2020_r2"):
        if line["metric"] == "r2":
            trained = threat(line["norm"], line["eps"])
            found[line["dataset"], _MODES[line["mode"]], trained] = float(line["value"])
    return found


@functools.cache
def rerun_accuracy() -> dict[tuple[str, str, str, Threat], float]:
    """Return the accuracies of a rerun by others, on the CIFARs, of the same sources.

    Keys are data set, mode, arch and threat. Its learning rate was chosen on a tenth of
    the training images.
    """
    found: dict[tuple[str, str, str, Threat], float] = {}
    for line in read_published("salman2020_reproduction_ponyli"):
        trained = threat(line["norm"], line["eps"])
        place = (line["dataset"], _MODES[line["mode"]], line["architecture"])
        if line["norm"] == "l2" or trained[1]:  # see `transfer_accuracy`
            found[(*place, trained)] = float(line["value"])
    return found


# ---- Utrera et al. 2021 ----


@functools.cache
def limited_accuracy() -> dict[tuple[str, str, int, int | None, Threat], Record]:
    """Return accuracies by data set, arch, tuned blocks, training images and threat.

    The number of training images is None for all. What was published of the last epoch is
    preferred to what was of the best.
    """
    found: dict[tuple[str, str, int, int | None, Threat], Record] = {}
    for line in read_published("utrera2021_limited_data"):
        key = (
            line["dataset"],
            line["arch"],
            int(line["finetuned_blocks"]),
            _images(line["train_images"]),
            threat(line["source_norm"], line["source_eps"]),
        )
        found[key] = Record(float(line["accuracy_percent"]), "utrera2021", _LAST)
    lines = read_published("utrera2021_blocks")
    lines += read_published("utrera2021_constraint")
    for metric, selected in (
        ("top1_last_epoch_mean", _LAST),
        ("top1_best_epoch_mean", _BEST),
    ):
        for line in lines:
            # Runs above 1,600 images of the consolidated table had a shorter schedule.
            shorter = "shorter schedule" in line["table"]
            if line["metric"] != metric or shorter:
                continue
            place = (line["dataset"], line["architecture"], int(line["blocks"]))
            trained = threat(line["norm"], line["eps"])
            key = (*place, _images(line["images"]), trained)
            record = Record(float(line["value"]), "utrera2021", selected)
            found.setdefault(key, record)
    return found


def _images(text: str) -> int | None:
    return None if text == "all" else int(text)


@functools.cache
def scratch_accuracy() -> dict[tuple[str, str], Record]:
    """Return accuracies after training from scratch, by data set and arch, last epoch."""
    return {
        (line["dataset"], line["architecture"]): Record(
            float(line["value"]), "utrera2021", "last epoch of one run"
        )
        for line in read_published("utrera2021_scratch")
        if line["metric"] == "top1_last_epoch"
    }


@functools.cache
def epochs_accuracy() -> dict[tuple[str, str, int, int, int, int, Threat], float]:
    """Return accuracies during training (Utrera et al. 2021, figure 3).

    The keys are data set, arch, tuned blocks, training images, epochs of the schedule,
    finished epochs and threat.
    """
    found = {}
    for line in read_published("utrera2021_epochs"):
        if line["table"].startswith("Figure 3"):
            names = ("blocks", "images", "schedule", "epoch")
            blocks, images, schedule, epoch = (int(line[name]) for name in names)
            trained = threat(line["norm"], line["eps"])
            place = (line["dataset"], line["architecture"], blocks, images)
            found[*place, schedule, epoch, trained] = float(line["value"])
    return found


# ---- published checkpoints ----


@functools.cache
def imagenet_accuracy() -> dict[tuple[str, Threat], float]:
    """Return clean ImageNet accuracies of the released checkpoints by arch and threat."""
    return {
        (line["architecture"], threat(line["norm"], line["eps"])): float(line["value"])
        for line in read_published("salman2020_checkpoints")
        if "checkpoint" in line
    }


@dataclass(frozen=True)
class Judged:
    """A published accuracy of a published network on validation images of ImageNet.

    Attributes:
        value: The accuracy in percent.
        by: Who measured it.
        images: Number of images that it is over.
        attack: Name of the attack; None for clean images.
        threat: Norm and radius of the attack; those of no attack for clean images.
    """

    value: float
    by: str
    images: int
    attack: str | None = None
    threat: Threat = (None, 0.0)


@functools.cache
def _judged_by_robustbench() -> dict[str, tuple[str, Threat, list[Judged]]]:
    """Return arch, threat and accuracies of RobustBench's entries by their names."""
    found: dict[str, tuple[str, Threat, list[Judged]]] = {}
    for line in read_published("salman2020_checkpoints"):
        if line["table"] != "RobustBench entry":
            continue
        name = line["source"].rpartition("/")[2].removesuffix(".json")
        trained = threat(line["norm"], line["eps"])
        attacked = line["metric"] == "top1_autoattack_linf_4/255"
        how = ("autoattack", trained) if attacked else (None, (None, 0.0))
        value = Judged(float(line["value"]), "RobustBench", 5_000, *how)
        found.setdefault(name, (line["architecture"], trained, []))[2].append(value)
    return found


def judged_accuracy(given: str) -> list[Judged]:
    """Return what was published of a published network, clean accuracy first.

    Args:
        given: What names the network: `salman2020:NAME`, `robustbench:NAME` or the path of
            a file that still has its published name. Any other has no published accuracy.

    Example:
        >>> [each.value for each in judged_accuracy("robustbench:Salman2020Do_R18")]
        [52.92, 25.32]
        >>> [each.by for each in judged_accuracy("salman2020:resnet18_linf_eps4")]
        ['Salman et al. 2020', 'RobustBench']
    """
    scheme, _, name = given.partition(",")[0].rpartition(":")
    entries = _judged_by_robustbench()
    if scheme == "robustbench":
        return entries[name][2] if name in entries else []
    file = name.rpartition("/")[2]
    known = facts_from_name(file.removesuffix(".ckpt"))
    if known is None or (scheme != "salman2020" and not file.endswith(".ckpt")):
        return []
    arch, norm, eps = known
    trained = threat(norm, eps)
    clean = imagenet_accuracy().get((arch, trained))
    found = [] if clean is None else [Judged(clean, "Salman et al. 2020", 50_000)]
    for entry in entries.values():
        if entry[:2] == (arch, trained):
            found += [each for each in entry[2] if each.attack is not None]
    return found


def published_datasets() -> set[str]:
    """Return the names of all target data sets with published numbers."""
    tables = (transfer_accuracy(), limited_accuracy(), scratch_accuracy())
    return {str(key[0]) for table in tables for key in table}


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
    """Return whether a file is, by its name, what the paper of `protocol` transferred."""
    if protocol == "utrera2021":
        return path.rpartition("/")[2] in _LIMITED_FILES
    return accuracy_of_file(path) is not None
