"""Map-style data sets of PyTorch as image sets: anyone's own, and torchvision's by name.

An item is (image, label): a PIL image, a uint8 tensor, or a float tensor in [0, 1]. Such a
data set applies its own transforms; what random ones do is said, since loaders augment.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.data.decoding import BadImage, pixels_of
from fastadv.data.handed_in import is_dataset
from fastadv.data.sets.image_set import ImageSet, checked_index
from fastadv.data.sets.label_rule import resolve_labels
from fastadv.data.sets.split_names import WORDS, training_name
from fastadv.data.sets.splitting import SplitSets, chosen_splits
from fastadv.errors import ConfigError, DataError, unknown_name
from fastadv.progress import track

log = logging.getLogger(__name__)

_LABELS = ("targets", "labels", "_labels", "y")  # where data sets keep them
_PROBED = 8  # items looked at before work begins
_HASHED = 64  # images whose pixels are part of the fingerprint


class ObjectSet(ImageSet):
    """One split whose images a map-style data set gives.

    Args:
        dataset: The data set.
        name: Name of the data set in messages and results.
        split: The split.
        classes: Class names; position is the class id.
        labels: Class ids, int64 [n]; items with a label of -1 are left out.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        split: str,
        classes: Sequence[str],
        labels: NDArray[np.int64],
    ) -> None:
        self.dataset, self.name, self.split = dataset, name, split
        self.rows = np.flatnonzero(labels >= 0)
        self.classes, self.labels = tuple(classes), labels[self.rows]

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 [H, W, 3] RGB in 0..255."""
        row = int(self.rows[checked_index(index, len(self))])
        try:
            return as_pixels(self.dataset[row][0], self.describe(index))
        except BadImage:
            raise
        except Exception as error:  # whatever the data set's own code raises
            reason = f"{type(error).__name__}: {error}"
            raise BadImage(self.describe(index), reason) from error

    @cached_property
    def fingerprint(self) -> str:
        """Key of the name, the labels and the pixels of some images, hex."""
        what = (self.name, self.split, self.classes, len(self))
        digest = hashlib.sha256(repr(what).encode() + self.labels.tobytes())
        for index in range(0, len(self), max(1, len(self) // _HASHED)):
            digest.update(self._pixels(index))
        return digest.hexdigest()[:32]

    def part_hash(self, part: ImageSet, positions: NDArray[np.int64]) -> str:
        """Return the `content_hash` of `part`, the images at `positions` of this set."""
        digest = hashlib.sha256(part.labels.tobytes())
        for index in positions.tolist():
            digest.update(self._pixels(index))
        return digest.hexdigest()

    def _pixels(self, index: int) -> bytes:
        try:
            image = self.load(index)
        except BadImage as error:
            return f"bad: {error.reason}".encode()
        return repr(image.shape).encode() + image.tobytes()


def as_pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """Return an image of a data set as uint8 [H, W, 3] RGB in 0..255.

    Args:
        image: A PIL image; a tensor [C, H, W] or [H, W]; or an array [H, W, C] or
            [H, W]; of uint8, or of floats in [0, 1], which are rounded to 8 bit.
        name: Name of the image in errors.

    Raises:
        BadImage: It is something else, or floats are outside [0, 1].
    """
    import torch
    from PIL import Image

    if isinstance(image, Image.Image):
        return pixels_of(image, name)
    if isinstance(image, torch.Tensor):
        array = image.detach().cpu().numpy()
        if array.ndim == 3 and array.shape[0] in (1, 3):
            array = array.transpose(1, 2, 0)
        elif array.ndim == 3:
            raise BadImage(
                name,
                f"a tensor of {list(image.shape)}; expected [3, H, W] or [1, H, W]",
            )
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise BadImage(
            name,
            f"it is a {type(image).__name__}; expected a PIL image, or a uint8 or float "
            "tensor [C, H, W]",
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise BadImage(name, f"its shape is {list(array.shape)}; expected [C, H, W]")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        if not (low >= 0 and high <= 1):
            raise BadImage(
                name,
                f"its values span [{low:.3g}, {high:.3g}]; floats must be in [0, 1]: leave "
                "out transforms that normalise, networks here do that themselves",
            )
        array = np.floor(array * 255 + 0.5).astype(np.uint8)
    if array.dtype != np.uint8:
        raise BadImage(
            name, f"it is of {array.dtype}; expected uint8, or float in [0, 1]"
        )
    pixels = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array
    return np.ascontiguousarray(pixels)


def open_objects(
    given: Any,
    *,
    name: str | None = None,
    holdout: float = 0.1,
    strict: bool = True,
    eval_split: str | None = None,
) -> SplitSets:
    """Open map-style data sets.

    Args:
        given: One data set, or a dictionary of them by split (`train`, `val`, `test`).
        name: Name of the data set in results; by default that of its class.
        holdout: Share held out for evaluation where there is one split only.
        strict: Refuse an evaluation split that lacks classes, instead of warning.
        eval_split: Name of the evaluation split; by default the first with labels.

    Raises:
        DataError: Items are no (image, label), or images and labels are unusable.
        ConfigError: The object is no data set.
    """
    parts = dict(given) if isinstance(given, Mapping) else {"": given}
    for part in parts.values():
        if not is_dataset(part) or isinstance(part, str | bytes):
            raise ConfigError(
                f"{type(part).__name__} is no map-style data set: it needs __len__ and "
                "__getitem__; an iterable one cannot be opened by index"
            )
    if not parts or not all(len(part) for part in parts.values()):
        raise DataError("the data set is empty")
    first = next(iter(parts.values()))
    name = name or type(first).__name__
    labels = {
        split: _labels_of(part, f"{name}/{split or 'all'}")
        for split, part in parts.items()
    }
    order = sorted(labels, key=lambda split: split != training_name(parts))
    names = getattr(first, "classes", None) or getattr(first, "categories", None)
    known = [str(n) for n in names] if isinstance(names, list | tuple) else None
    classes, ids = resolve_labels({s: labels[s] for s in order}, name, names=known)
    sets: dict[str, ImageSet] = {
        split: ObjectSet(parts[split], name, split or "all", classes, ids[split])
        for split in ids
    }
    for split in sets:
        _probe(parts[split], f"{name}/{split or 'all'}")
    chosen = chosen_splits(sets, eval_split, name)
    return SplitSets(name, chosen, "top1", holdout, strict)


def open_torchvision(
    name: str,
    *,
    root: str | None = None,
    split: str | None = None,
    download: bool = False,
    holdout: float = 0.1,
    strict: bool = True,
    eval_split: str | None = None,
) -> SplitSets:
    """Open a data set of torchvision by the name of its class.

    Args:
        name: The class in `torchvision.datasets`, for example CIFAR10.
        root: The folder that torchvision looks in; by default $FASTADV_DATA, else ./data.
        split: What its class calls `split` where that is no part of the images, as of
            EMNIST (`letters`).
        download: Let torchvision fetch what is not there.
        holdout: Share held out for evaluation where there is one split only.
        strict: Refuse an evaluation split that lacks classes, instead of warning.
        eval_split: Name of the evaluation split; by default the first with labels.

    Raises:
        ConfigError: There is no such class.
        DataError: Its files are not there, or its items are no (image, label).
    """
    from torchvision import datasets

    from fastadv.data.sets.catalog import default_root

    known = {n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))}
    kind = {n.lower(): n for n in known}.get(name.lower())
    if kind is None:
        raise ConfigError(unknown_name("data set of torchvision", name, known))
    make = getattr(datasets, kind)
    takes = inspect.signature(make.__init__).parameters
    folder = str(default_root() if root is None else Path(root).expanduser())
    common: dict[str, Any] = {}
    if "root" in takes:
        common["root"] = folder
    if "download" in takes:
        common["download"] = download
    tried: dict[str, dict[str, Any]] = {"": {}}
    if "split" in takes and split is None:
        tried = {word: {"split": word} for words in WORDS.values() for word in words}
    elif "train" in takes:
        tried = {"train": {"train": True}, "test": {"train": False}}
    if split is not None:
        if "split" not in takes:
            raise ConfigError(f"split={split}: torchvision's {kind} has no splits")
        common["split"] = split
    parts: dict[str, Any] = {}
    reasons: list[str] = []
    for part, more in tried.items():
        try:
            parts[part] = make(**common, **more)
        # Data sets raise anything from RuntimeError to TypeError for what is absent.
        except Exception as error:
            reasons.append(" ".join(str(error).split()) or type(error).__name__)
    if not parts:
        hint = (
            "" if download else "; the option download=true lets torchvision fetch it"
        )
        raise DataError(
            f"torchvision:{kind} cannot be opened in {folder}: {reasons[0]}{hint}"
        )
    return open_objects(
        parts.get("", parts),
        name=f"torchvision:{kind}",
        holdout=holdout,
        strict=strict,
        eval_split=eval_split,
    )


def _labels_of(dataset: Any, where: str) -> list[object]:
    """Return the label of every item, from a list of the data set where it has one."""
    n = len(dataset)
    for attribute in _LABELS:
        values = getattr(dataset, attribute, None)
        if values is None or not hasattr(values, "__len__") or len(values) != n:
            continue
        plain = values.tolist() if hasattr(values, "tolist") else list(values)
        # Transforms of targets change them: trust the list where items agree with it.
        places = range(0, n, max(1, n // _PROBED))
        if all(_plain(_item(dataset, i, where)[1]) == _plain(plain[i]) for i in places):
            return [_plain(value) for value in plain]
    log.info("%s: labels are read from the items, one by one", where)
    return [
        _plain(_item(dataset, i, where)[1])
        for i in track(range(n), n, f"reading labels of {where}")
    ]


def _plain(label: object) -> object:
    if hasattr(label, "tolist"):  # tensors and NumPy's numbers
        return label.tolist()
    return label


def _item(dataset: Any, index: int, where: str) -> tuple[Any, Any]:
    try:
        item = dataset[index]
    except Exception as error:  # whatever the data set's own code raises
        raise DataError(
            f"{where}: item {index} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"{type(item).__name__}"
        if isinstance(item, tuple | list):
            what += f" of {len(item)}"
        raise DataError(
            f"{where}: item {index} is a {what}; expected (image, label). Wrap the data set "
            "in one whose __getitem__ returns them"
        )
    return item[0], item[1]


def _probe(dataset: Any, where: str) -> None:
    """Look at a few images before work begins."""
    n = len(dataset)
    differ = False
    for index in range(0, n, max(1, n // _PROBED)):
        name = f"{where}[{index}]"
        try:
            image = as_pixels(_item(dataset, index, where)[0], name)
            again = as_pixels(_item(dataset, index, where)[0], name)
        except BadImage as error:
            raise DataError(f"{where}: item {index}: {error.reason}") from error
        differ |= image.shape != again.shape or not np.array_equal(image, again)
    if differ:
        log.warning(
            "%s: images differ from one reading to the next, so its transforms are random. "
            "Leave them out: loaders augment training images, and evaluation needs the same "
            "images each time",
            where,
        )
