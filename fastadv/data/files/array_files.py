"""Well-known files of whole arrays of images, opened by path.

NumPy (.npz, .npy), MATLAB (.mat), HDF5 (.h5), the Python and binary batches of CIFAR, the
binary files of STL-10, and idx files. Which array is what stands in its name: `x_train`,
`val_labels`, `test_images`, `data`, `y`.
"""

from __future__ import annotations

import logging
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastadv.data.files.batch_files import (
    cifar_binary_batches,
    cifar_python_batches,
    stl_files,
)
from fastadv.data.files.hdf5_files import ENDINGS, read_hdf5
from fastadv.data.sets.arrays import (
    DIGIT_NAMES,
    as_rgb,
    most_unpacked,
    read_idx,
    read_mat,
)
from fastadv.data.sets.image_set import ArraySet, ImageSet, option_hint
from fastadv.data.sets.label_rule import resolve_labels
from fastadv.data.sets.split_names import exact_role
from fastadv.data.sets.splitting import chosen_splits
from fastadv.data.sets.tree import refuse_overlaps
from fastadv.errors import ConfigError, DataError, first_few

log = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]
Pair = tuple[NDArray[Any], NDArray[Any]]  # images as stored, labels
_IMAGES = frozenset(("x", "images", "image", "imgs", "img", "data", "pixels"))
_LABELS = frozenset(
    ("y", "labels", "label", "targets", "target", "classes", "cls", "ans")
)
_EXPECTED = (
    "expected x_train, y_train, x_test and y_test, names like train_images and "
    "train_labels, or x and y (images and labels) alone"
)
_SEVERITIES = 5
_SVHN = re.compile(r"(train|test)_32x32\.mat")
_IDX = re.compile(r"images?([-.])idx3-ubyte")


def open_arrays(
    path: Path, severity: int | None = None, eval_split: str | None = None
) -> dict[str, ImageSet]:
    """Open a file of arrays, or a folder of such files.

    Args:
        path: The file or folder.
        severity: Of images that are stored five times, at severities 1 to 5 one after the
            other, take those of this one.
        eval_split: Name of the evaluation split, where there are several.

    Returns:
        The splits, as `chosen_splits` returns them; nothing if the path is of no such
        format.

    Raises:
        DataError: A file cannot be read, or its arrays are no images with labels.
        ConfigError: The severity cannot be met.
    """
    pairs, names = _pairs(path)
    if not pairs:
        if severity is not None:
            raise ConfigError(
                f"severity={severity} belongs to arrays like those of CIFAR-10-C; {path} "
                "holds none"
            )
        return {}
    where = path.stem if path.is_file() else path.name
    if severity is not None:
        pairs = {k: _at_severity(p, severity, str(path)) for k, p in pairs.items()}
    elif any(repeats_labels(labels) for _, labels in pairs.values()):
        log.warning(
            "%s holds the same images five times, at five severities; all are taken. For "
            "one of them give %s",
            path,
            option_hint("severity", "3"),
        )
    sets = sets_of_arrays(where, pairs, names)
    return chosen_splits(sets, eval_split, str(path))


def sets_of_arrays(
    name: str, pairs: Mapping[str, Pair], names: list[str] | None = None
) -> dict[str, ImageSet]:
    """Return the splits of images and labels in memory, those without labels left out.

    Args:
        name: The data set.
        pairs: Images and labels by split.
        names: Names of the classes by id, if they are known.

    Raises:
        DataError: Shapes, dtypes or labels do not fit.
    """
    labels = {}
    images = {}
    order = sorted(pairs, key=lambda split: exact_role(split) != "train")
    for split in order:
        what = f"{name}/{split or 'all'}"
        images[split] = to_images(pairs[split][0], what)
        labels[split] = _flat_labels(pairs[split][1], what)
        if len(labels[split]) != len(images[split]):
            raise DataError(
                f"{what}: {len(labels[split])} labels for {len(images[split])} images"
            )
    classes, ids = resolve_labels(labels, name, names=names)
    found: dict[str, ImageSet] = {}
    for split, label in ids.items():
        kept = label >= 0
        pixels = images[split] if kept.all() else images[split][kept]
        found[split] = ArraySet(
            pixels, label[kept], classes, name=name, split=split or "all"
        )
    return found


def to_images(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Return uint8 [n, H, W, 3] of images in any usual order of axes.

    Rows of 3 x side x side values are planes of colours, as in CIFAR; rows of side x side
    values are gray; channels may stand before height and width.
    """
    if array.ndim == 2:
        side = round((array.shape[1] / 3) ** 0.5)
        gray = round(array.shape[1] ** 0.5)
        if 3 * side * side == array.shape[1]:
            array = array.reshape(-1, 3, side, side)
        elif gray * gray == array.shape[1]:
            array = array.reshape(-1, gray, gray)
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    return as_rgb(_eight_bits(array), what)


def _eight_bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return floats in [0, 1] rounded to 8 bit, whole ones in 0..255 as they are."""
    if not np.issubdtype(array.dtype, np.floating) or not array.size:
        return array
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 255):  # not a number neither
        return array
    if high <= 1:
        return np.floor(array * 255 + 0.5).astype(np.uint8)
    whole = np.floor(array)
    return whole.astype(np.uint8) if (whole == array).all() else array


def corruption_arrays(path: Path) -> dict[str, Path]:
    """Return the files of a folder like CIFAR-10-C by corruption; nothing of others."""
    if not (path / "labels.npy").is_file():
        return {}
    files = {p.stem: p for p in sorted(path.glob("*.npy")) if p.stem != "labels"}
    return {} if any(_kind(stem)[0] for stem in files) else files


def read_corruption(file: Path) -> Pair:
    """Return images and labels of one corruption of a folder like CIFAR-10-C."""
    return _npy(file), _npy(file.with_name("labels.npy"))


def repeats_labels(labels: NDArray[Any]) -> bool:
    """Return whether labels are five times the same, as those of CIFAR-10-C are."""
    n = len(labels)
    if labels.ndim != 1 or n < 100 or n % _SEVERITIES:
        return False
    fifths = labels.reshape(_SEVERITIES, -1)
    return bool((fifths == fifths[0]).all())


def _at_severity(pair: Pair, severity: int, where: str) -> Pair:
    images, labels = pair
    if not 1 <= severity <= _SEVERITIES:
        raise ConfigError(f"severity={severity}; there are 1 to {_SEVERITIES}")
    n = len(images) // _SEVERITIES
    if len(labels) == len(images) and not repeats_labels(labels):
        raise ConfigError(
            f"severity={severity}: {where} does not hold the same images five times"
        )
    part = slice((severity - 1) * n, severity * n)
    return images[part], labels[part] if len(labels) == len(images) else labels[:n]


def _pairs(path: Path) -> tuple[dict[str, Pair], list[str] | None]:
    """Return images and labels by split, and the class names where they are known."""
    if path.is_dir():
        return _of_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _by_names(_npz(path), str(path)), None
    if suffix == ".npy":
        return _beside(path), None
    if suffix == ".mat":
        return _of_mat(path)
    if suffix in ENDINGS:
        return _by_names(read_hdf5(path, _is_wanted), str(path)), None
    if _IDX.search(path.name):
        return _of_idx(path.parent), None
    return {}, None


def _of_folder(folder: Path) -> tuple[dict[str, Pair], list[str] | None]:
    if corruptions := corruption_arrays(folder):
        kinds = list(corruptions)
        raise DataError(
            f"{folder} holds {len(kinds)} corruptions ({first_few(kinds, 4)}): name one of "
            f"its files, for example {folder / kinds[0]}.npy, or judge on all of them with "
            "fastadv-analyze shift"
        )
    arrays = {file.stem: file for file in sorted(folder.glob("*.np[yz]"))}
    if {"images", "labels"} <= {_kind(stem)[0] for stem in arrays}:
        found = {k: _only_array(f) for k, f in arrays.items()}
        return _by_names(found, str(folder)), None
    if len(arrays) == 1 and (file := next(iter(arrays.values()))).suffix == ".npz":
        return _by_names(_npz(file), str(file)), None
    hdf5 = {f.stem: f for f in sorted(folder.iterdir()) if f.suffix in ENDINGS}
    if hdf5:
        return _of_hdf5(hdf5, str(folder)), None
    mats = [f for f in sorted(folder.glob("*.mat")) if _SVHN.fullmatch(f.name)]
    if mats:
        return {f.name.split("_")[0]: _svhn(f) for f in mats}, list(DIGIT_NAMES)
    if any(_IDX.search(file.name) for file in folder.glob("*idx3*")):
        return _of_idx(folder), None
    for reader in (stl_files, cifar_binary_batches, cifar_python_batches):
        pairs, names = reader(folder)
        if pairs:
            return pairs, names
    return {}, None


def _kind(key: str) -> tuple[str, str]:
    """Return (images, labels or nothing; the split or nothing) that a name stands for."""
    text = re.sub(r"(?<=[a-z])(?=[XY]$)", "_", key).lower()  # trainX
    text = re.sub(r"^([xy])(?=tr|te|val)", r"\1_", text)
    words = [w for w in re.split(r"[^a-z0-9]+", text) if w]
    split = next((w for w in words if exact_role(w)), "")
    kinds = [
        kind
        for kind, known in (("labels", _LABELS), ("images", _IMAGES))
        if known & set(words)
    ]
    return (kinds[0] if kinds else ""), split


def _by_names(arrays: Arrays, where: str) -> dict[str, Pair]:
    """Pair arrays of images and of labels by their names."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        kind, split = _kind(key)
        if kind and array.ndim:
            if kind in found.setdefault(split, {}):
                raise DataError(
                    f"{where} has the arrays {sorted(arrays)}, of which several are "
                    f"{kind} of {split or 'all'}; {_EXPECTED}"
                )
            found[split][kind] = array
    pairs = {s: (p["images"], p["labels"]) for s, p in found.items() if len(p) == 2}
    for split in set(found) - set(pairs):
        if pairs and "images" in found[split]:
            log.warning(
                "%s: %s has images without labels; it is passed over",
                where,
                split or "all",
            )
    if not pairs:
        raise DataError(f"{where} has the arrays {sorted(arrays)}; {_EXPECTED}")
    return pairs


def _flat_labels(labels: NDArray[Any], what: str) -> list[object]:
    """Return one label per image."""
    if labels.ndim > 1 and labels.size == len(labels):
        labels = labels.reshape(-1)
    if labels.ndim == 2:
        binary = bool(np.isin(labels, (0, 1)).all())
        if not (binary and (labels.sum(axis=1) == 1).all()):
            raise DataError(
                f"{what}: labels are {list(labels.shape)}, several per image; an image has "
                "one class here"
            )
        labels = labels.argmax(axis=1)
    if labels.ndim != 1:
        raise DataError(f"{what}: labels are {list(labels.shape)}; expected [n]")
    return list(labels.tolist())


_UNREADABLE = (OSError, ValueError, EOFError, OverflowError, MemoryError, RuntimeError)


def _refuse_bombs(path: Path) -> None:
    """Raise ValueError where arrays would have more bytes than the file accounts for."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        refuse_overlaps(infos, path)
        total, most = (
            sum(i.file_size for i in infos),
            most_unpacked(path.stat().st_size),
        )
        if total > most:
            raise ValueError(
                f"it would unpack to {total} bytes, and at most {most} are read"
            )
        for info in infos:
            with archive.open(info) as member:
                shape, _, dtype = _array_header(member)
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise ValueError(
                    f"its array {info.filename} would be {list(shape)} of {dtype}, which "
                    f"its {info.file_size} bytes cannot hold"
                )


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        _refuse_bombs(path)
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(
            f"cannot read {path} as a NumPy .npz archive: {error}"
        ) from error


def _npy(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"cannot read {path} as a NumPy array: {error}") from error
    return array


def _only_array(path: Path) -> NDArray[Any]:
    """Return the array of an .npy file, or the only one of an .npz file."""
    if path.suffix == ".npy":
        return _npy(path)
    found = _npz(path)
    if len(found) != 1:
        raise DataError(
            f"{path} has the arrays {sorted(found)}; beside files of single arrays it must "
            "have one. Name the file to open it alone"
        )
    return next(iter(found.values()))


def _beside(path: Path) -> dict[str, Pair]:
    """Return the images of an .npy file with the labels of the file beside it."""
    stem = path.stem
    other = re.sub(r"(?i)(images?|imgs?|data|pixels|x)(?![a-z])", "labels", stem)
    names = [f"{other}.npy", f"{stem}_labels.npy", "labels.npy"]
    if stem.lower().startswith("x"):
        names.insert(0, f"y{stem[1:]}.npy")
    for name in names:
        if (file := path.with_name(name)).is_file() and file != path:
            return {_kind(stem)[1]: (_npy(path), _npy(file))}
    raise DataError(f"{path} has no labels beside it; expected {' or '.join(names)}")


def _is_wanted(key: str) -> bool:
    return bool(_kind(key)[0])


def _of_hdf5(files: Mapping[str, Path], where: str) -> dict[str, Pair]:
    """Pair the arrays of one HDF5 file, or of several that are called by what they hold."""
    found: dict[str, NDArray[Any]] = {}
    for stem, file in files.items():
        arrays = read_hdf5(file, _is_wanted)
        for key, array in arrays.items():
            # PatchCamelyon calls the only array of `..._train_y.h5` y.
            alone = len(arrays) == 1 and _kind(stem)[0] == _kind(key)[0]
            found[stem if alone else f"{stem}/{key}" if len(files) > 1 else key] = array
    return _by_names(found, where)


def _svhn(path: Path) -> Pair:
    arrays = read_mat(path)
    if not {"X", "y"} <= arrays.keys() or arrays["X"].ndim != 4:
        raise DataError(f"{path} has no images X [32, 32, 3, n] and labels y")
    labels = np.atleast_1d(arrays["y"]).astype(np.int64) % 10  # 0 is stored as 10
    return np.transpose(arrays["X"], (3, 0, 1, 2)), labels


def _of_mat(path: Path) -> tuple[dict[str, Pair], list[str] | None]:
    if found := _SVHN.fullmatch(path.name):
        return {found[1]: _svhn(path)}, list(DIGIT_NAMES)
    with path.open("rb") as file:
        hdf5 = file.read(128).startswith(b"MATLAB 7.3")
    if hdf5:  # axes are stored in the opposite order
        read = read_hdf5(path, _is_wanted)
        return _by_names({key: array.T for key, array in read.items()}, str(path)), None
    arrays = {
        key: value
        for key, value in read_mat(path).items()
        if isinstance(value, np.ndarray) and not key.startswith("__")
    }
    return _by_names(arrays, str(path)), None


def _of_idx(folder: Path) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for file in sorted(folder.glob("*idx3*")):
        name = _IDX.sub(r"labels\1idx1-ubyte", file.name)
        spelled = (name, f"{name}.gz", name.removesuffix(".gz"))
        labels = next((f for n in spelled if (f := folder / n).is_file()), None)
        if labels is None:
            log.warning("%s has no labels beside it; it is passed over", file)
            continue
        words = re.split(r"[^a-z0-9]+", file.name.lower())
        split = next((w for w in words if exact_role(w)), "")
        if split not in pairs:
            pairs[split] = read_idx(file), read_idx(labels)
    return pairs
