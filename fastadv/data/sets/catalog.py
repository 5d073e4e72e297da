"""The data sets known by name: what each is, and in which folders its files may be.

Adding one is one entry in `CATALOG`. Whatever its own layout is, every entry is also read
as an image folder or zip archive (`NAME/train/<class>/`, `NAME/test/<class>/`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastadv.data.sets import arrays, official_splits as official
from fastadv.data.sets.class_order import abridged
from fastadv.data.sets.folders import open_folder, open_zip
from fastadv.data.sets.image_set import (
    Augment,
    DatasetSplits,
    ImageSet,
    check_classes,
)
from fastadv.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How the files of a data set lie on disk, as distributed.

    Attributes:
        needs: Glob patterns below its folder, alternatives by `|`; each must match.
        read: Function that opens it: (folder, name, **options) -> (train, test).
        folders: Other names that its folder may have below the root.
        lister: The function whose keywords are the options, if that is not `read`.
    """

    needs: tuple[str, ...]
    read: Callable[..., tuple[ImageSet, ImageSet]]
    folders: tuple[str, ...] = ()
    lister: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A data set known by name.

    Attributes:
        citation: The publication to cite.
        licence: Terms, as its authors state them.
        counts: Published numbers of classes, training images and test images.
        splits: Which published lists the two splits are.
        metric: The accuracy its literature reports.
        layout: Layout of its files as distributed; it may also be an image folder or zip.
        augment: The augmentation that `augment="auto"` stands for.
        resolution: Side in pixels to train at if its images are smaller than any network
            takes; None takes that of its images.
    """

    citation: str
    licence: str
    counts: tuple[int, int, int]
    splits: str = "train -> test"
    metric: str = "top1"
    layout: Layout | None = None
    augment: Augment = "rrc"
    resolution: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return what is known of the set, as plain values without the layout."""
        classes, train, test = self.counts
        return {
            "citation": self.citation,
            "licence": self.licence,
            **{"classes": classes, "train": train, "test": test},
            "splits": self.splits,
            "metric": self.metric,
            "augment": self.augment,
            "resolution": self.resolution,
        }


# In the next three functions, `needs` are patterns separated by blanks.
def _listed(lister: official.Lister, usual: str, needs: str) -> Layout:
    read = partial(official.open_official, lister)
    return Layout(tuple(needs.split()), read, (usual,), lister)


def _caltech(usual: str, top: str, count: int, without: str = "") -> Layout:
    return _listed(official.first_files(top, count, without), usual, top)


def _cifar(class_name: str, usual: str, needs: str) -> Layout:
    read = partial(arrays.open_cifar, class_name)
    return Layout(tuple(needs.split()), read, (usual,))


def _idx(usual: str, classes: tuple[str, ...]) -> Layout:
    kinds = ("images?idx3", "labels?idx1")
    needs = [f"{part}-{kind}-ubyte*" for part in ("train", "t10k") for kind in kinds]
    read = partial(arrays.open_idx, classes)
    return Layout(tuple(needs), read, (f"{usual}/raw", usual))


_CALTECH_TERMS = "CC BY 4.0"
_RESEARCH = "non-commercial research"

CATALOG: dict[str, Entry] = {
    "aircraft": Entry(
        citation="Maji et al. 2013, arXiv:1306.5151 (FGVC-Aircraft 2013b)",
        licence=_RESEARCH,
        counts=(100, 6667, 3333),
        splits="variants, trainval -> test",
        metric="mean_per_class",
        layout=_listed(
            official.aircraft,
            "fgvc-aircraft-2013b",
            "data/images data/images_variant_trainval.txt data/images_variant_test.txt",
        ),
    ),
    "birdsnap": Entry(
        citation="Berg et al., CVPR 2014",
        licence="images of several owners; research",
        counts=(500, 32677, 8171),
        splits="train -> test (image folder)",
    ),
    "caltech101": Entry(
        citation="Fei-Fei, Fergus and Perona, CVPR workshop 2004",
        licence=_CALTECH_TERMS,
        counts=(101, 3030, 5647),
        splits="first 30 files per class -> rest; no background class",
        metric="mean_per_class",
        layout=_caltech(
            "caltech-101", "101_ObjectCategories", 30, without="BACKGROUND_Google"
        ),
    ),
    "caltech256": Entry(
        citation="Griffin, Holub and Perona, Caltech technical report 7694, 2007",
        licence=_CALTECH_TERMS,
        counts=(257, 15420, 15187),
        splits="first 60 files per class -> rest",
        metric="mean_per_class",
        layout=_caltech("caltech-256", "256_ObjectCategories", 60),
    ),
    "cifar10": Entry(
        citation="Krizhevsky, technical report 2009",
        licence="not stated",
        counts=(10, 50000, 10000),
        layout=_cifar(
            "CIFAR10", "cifar-10-batches-py", "data_batch_1 test_batch batches.meta"
        ),
        augment="crop_flip",
    ),
    "cifar100": Entry(
        citation="Krizhevsky, technical report 2009",
        licence="not stated",
        counts=(100, 50000, 10000),
        splits="train -> test, fine classes",
        layout=_cifar("CIFAR100", "cifar-100-python", "train test meta"),
        augment="crop_flip",
    ),
    "dtd": Entry(
        citation="Cimpoi et al., CVPR 2014",
        licence="research",
        counts=(47, 3760, 1880),
        splits="train1 + val1 -> test1; option partition",
        layout=_listed(
            official.dtd,
            "dtd/dtd",
            "images labels/train1.txt labels/val1.txt labels/test1.txt",
        ),
    ),
    "fashion_mnist": Entry(
        citation="Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747",
        licence="MIT",
        counts=(10, 60000, 10000),
        layout=_idx("FashionMNIST", arrays.FASHION_NAMES),
        augment="crop_flip",
        resolution=32,
    ),
    "flowers102": Entry(
        citation="Nilsback and Zisserman, ICVGIP 2008",
        licence="not stated",
        counts=(102, 2040, 6149),
        splits="train + val -> test",
        metric="mean_per_class",
        layout=_listed(
            official.flowers102, "flowers-102", "jpg imagelabels.mat setid.mat"
        ),
    ),
    "food101": Entry(
        citation="Bossard, Guillaumin and Van Gool, ECCV 2014",
        licence="images of several owners; scientific fair use",
        counts=(101, 75750, 25250),
        layout=_listed(
            official.food101, "food-101", "images meta/train.txt meta/test.txt"
        ),
    ),
    "kmnist": Entry(
        citation="Clanuwat et al. 2018, arXiv:1812.01718",
        licence="CC BY-SA 4.0",
        counts=(10, 60000, 10000),
        layout=_idx("KMNIST", arrays.KMNIST_NAMES),
        augment="none",
        resolution=32,
    ),
    "mnist": Entry(
        citation="LeCun et al., Proceedings of the IEEE 1998",
        licence="CC BY-SA 3.0",
        counts=(10, 60000, 10000),
        layout=_idx("MNIST", arrays.DIGIT_NAMES),
        augment="none",
        resolution=32,
    ),
    "oxford_pets": Entry(
        citation="Parkhi et al., CVPR 2012",
        licence="CC BY-SA 4.0",
        counts=(37, 3680, 3669),
        splits="trainval -> test",
        metric="mean_per_class",
        layout=_listed(
            official.oxford_pets,
            "oxford-iiit-pet",
            "images annotations/trainval.txt annotations/test.txt",
        ),
    ),
    "stanford_cars": Entry(
        citation="Krause et al., 3dRR workshop 2013",
        licence=_RESEARCH,
        counts=(196, 8144, 8041),
        layout=_listed(
            official.stanford_cars,
            "StanfordCars",
            "devkit/cars_meta.mat devkit/cars_train_annos.mat "
            "cars_test_annos_withlabels.mat cars_train cars_test",
        ),
    ),
    "sun397": Entry(
        citation="Xiao et al., CVPR 2010",
        licence=_RESEARCH,
        counts=(397, 19850, 19850),
        splits="official partition 01; option partition",
        layout=_listed(
            official.sun397, "SUN397", "a Training_01.txt|[Pp]artitions/Training_01.txt"
        ),
    ),
    "svhn": Entry(
        citation="Netzer et al., NIPS workshop 2011",
        licence=_RESEARCH,
        counts=(10, 73257, 26032),
        layout=Layout(
            ("train_32x32.mat", "test_32x32.mat"), arrays.open_svhn, ("SVHN",)
        ),
        augment="none",
    ),
}


def default_root() -> Path:
    """Return the folder above named sets: `$FASTADV_DATA`, else ./data."""
    return Path(os.environ.get("FASTADV_DATA") or "data").expanduser()


def open_entry(name: str, root: Path, **options: Any) -> DatasetSplits:
    """Open a data set of the catalogue from its files below `root`.

    Raises:
        DataError: No folder has its layout; the message lists the files that were
            expected and found.
    """
    entry = CATALOG[name]
    layout = entry.layout
    names = [name, *(layout.folders if layout else ())]
    near: list[str] = []
    for folder in (*(root / each for each in names), root):
        if not layout or not folder.is_dir():
            continue
        missing = [
            need
            for need in layout.needs
            if not any(any(folder.glob(pattern)) for pattern in need.split("|"))
        ]
        if not missing:
            return _splits(name, entry, layout.read(folder, name, **options))
        if len(missing) < len(layout.needs):
            near.append(f"{folder} lacks {', '.join(missing)}")
    generic = _image_folder(names, root)
    if generic is not None and not options:
        return _splits(name, entry, generic)
    raise DataError(_not_found(names, layout, root, near))


def _image_folder(names: list[str], root: Path) -> tuple[ImageSet, ImageSet] | None:
    for folder in names:
        if (root / folder / "train").is_dir():
            return _two(open_folder((root / folder).resolve()))
    archive = root / f"{names[0]}.zip"
    return _two(open_zip(archive)) if archive.exists() else None


def _two(parts: Sequence[ImageSet]) -> tuple[ImageSet, ImageSet]:
    """Return the two splits that a published set has.

    Raises:
        DataError: There is one only.
    """
    if len(parts) < 2:
        raise DataError(
            f"{parts[0].name} has the split {parts[0].split} only; a set that is called by "
            "its name needs train/ and test/ (or val/)"
        )
    return parts[0], parts[1]


def _not_found(
    names: list[str], layout: Layout | None, root: Path, near: list[str]
) -> str:
    name = names[0]
    ways = f"{name}/train/<class>/ and {name}/test/<class>/ (or {name}.zip)"
    if layout:
        folders = " or ".join(f"{n}/" for n in names)
        own = f"{', '.join(layout.needs)} in {folders} or in the root itself"
        ways = f"{own}; or {ways}"
    if near:
        found = "; ".join(near)
    elif root.is_dir():
        listed = os.listdir(root)
        found = f"Found {abridged(listed)}" if listed else "The folder is empty"
    else:
        found = "There is no such folder"
    return (
        f"{name} is not in {root.absolute()}: expected {ways}. "
        f"{found[0].upper()}{found[1:]}. Nothing is downloaded: unpack it there, or set "
        "the environment variable FASTADV_DATA to the folder above it (fastadv-data: "
        "--root; Python: open_dataset(..., root=...))"
    )


def _splits(name: str, entry: Entry, sets: tuple[ImageSet, ImageSet]) -> DatasetSplits:
    train, test = sets
    found = (len(train.classes), len(train), len(test))
    if found != entry.counts:
        log.warning(
            "%s: %d classes, %d training and %d test images found; published are %d, %d "
            "and %d",
            name,
            *found,
            *entry.counts,
        )
    for part in sets:
        part.name = name
        part.augment_default = entry.augment
    check_classes(train, test, hint="restore the files that are missing")
    return DatasetSplits(name, train, test, entry.metric)
