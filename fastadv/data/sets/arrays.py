"""Small sets that are read whole: digits, CIFAR, SVHN, MNIST's idx files, .npz files.

Each becomes an `ArraySet`; gray images become RGB.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.data.sets.image_set import ArraySet, ImageSet
from fastadv.data.sets.subsets import allocate, stratified_pick
from fastadv.errors import DataError

DIGITS_TRAIN = 1297  # leaves 500 of the 1,797 to test on
DIGIT_NAMES = tuple(str(digit) for digit in range(10))
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KMNIST_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_IDX_UINT8 = 8  # the type byte of idx files


def as_rgb(images: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Return uint8 [n, H, W, 3] of gray [n, H, W] or [n, H, W, 1], or RGB images.

    Raises:
        DataError: Another shape, or values that are not uint8.
    """
    if images.dtype != np.uint8:
        raise DataError(
            f"{what}: images are {images.dtype}; expected uint8 in 0..255, "
            "or float in [0, 1]. Convert them"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{what}: images are {list(images.shape)}; expected [n, H, W], "
            "[n, H, W, 1] or [n, H, W, 3]"
        )
    if images.shape[3] == 1:
        images = np.repeat(images, 3, axis=3)
    return np.ascontiguousarray(images)


def open_digits() -> tuple[ImageSet, ImageSet]:
    """Open the digits of scikit-learn, 8 px, with a split of our own."""
    from sklearn.datasets import load_digits

    gray, labels = load_digits(return_X_y=True)
    scaled = np.floor(gray.reshape(-1, 8, 8) * (255 / 16) + 0.5).astype(np.uint8)
    images = as_rgb(scaled, "digits")
    labels = labels.astype(np.int64)
    counts = np.bincount(labels)
    take = allocate(counts, DIGITS_TRAIN, np.ones_like(counts), counts)
    # The split is part of the data set's definition: its seed is not an option.
    train = stratified_pick(labels, take, seed=0)
    test = np.setdiff1d(np.arange(len(labels)), train)

    def part(indices: Any, split: str) -> ArraySet:
        return ArraySet(
            images[indices],
            labels[indices],
            DIGIT_NAMES,
            name="digits",
            split=split,
            augment_default="none",
        )

    return part(train, "train"), part(test, "test")


def open_cifar(class_name: str, folder: Path, name: str) -> tuple[ImageSet, ImageSet]:
    """Open CIFAR-10 or -100 from the official python archive, unpacked, by torchvision.

    Args:
        class_name: Its class in torchvision.
        folder: The unpacked archive.
        name: The data set.

    Raises:
        DataError: A file is missing or its MD5 is not the official one. The files are
            pickles, so none of another origin is opened.
    """
    import torchvision

    def part(split: str) -> ArraySet:
        dataset = getattr(torchvision.datasets, class_name)
        try:
            files = dataset(str(folder.parent), train=split == "train", download=False)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{name}: files in {folder} are missing or not the official ones (MD5); "
                "unpack the official python archive again"
            ) from error
        # torchvision keeps the file's order, which is the published class ids.
        return ArraySet(
            files.data, files.targets, files.classes, name=name, split=split
        )

    return part("train"), part("test")


def read_mat(path: Path) -> dict[str, Any]:
    """Return the variables of a MATLAB file.

    Raises:
        DataError: It cannot be read.
    """
    from scipy.io import loadmat

    try:
        values: dict[str, Any] = loadmat(path, squeeze_me=True)
    # Damaged files raise anything from zlib.error to struct.error.
    except Exception as error:
        raise DataError(f"cannot read {path} ({error}); fetch it again") from error
    return values


def open_svhn(folder: Path, name: str) -> tuple[ImageSet, ImageSet]:
    """Open SVHN from its cropped-digit MATLAB files; digit 0 has label 10 there."""

    def part(split: str) -> ArraySet:
        path = folder / f"{split}_32x32.mat"
        arrays = read_mat(path)
        if not {"X", "y"} <= arrays.keys() or arrays["X"].ndim != 4:
            raise DataError(f"{path} has no images X [32, 32, 3, n] and labels y")
        return ArraySet(
            as_rgb(np.transpose(arrays["X"], (3, 0, 1, 2)), f"{name}/{split}"),
            np.atleast_1d(arrays["y"]).astype(np.int64) % 10,
            DIGIT_NAMES,
            name=name,
            split=split,
        )

    return part("train"), part("test")


def open_idx(
    classes: tuple[str, ...], folder: Path, name: str
) -> tuple[ImageSet, ImageSet]:
    """Open MNIST and its relatives from idx files, gzipped or not.

    Raises:
        DataError: A file is missing, cut short or of another kind.
    """

    def part(split: str, stem: str) -> ArraySet:
        images = read_idx(_idx_file(folder, f"{stem}-images", 3))
        labels = read_idx(_idx_file(folder, f"{stem}-labels", 1))
        return ArraySet(
            as_rgb(images, f"{name}/{split}"),
            labels.astype(np.int64),
            classes,
            name=name,
            split=split,
        )

    return part("train", "train"), part("test", "t10k")


def _idx_file(folder: Path, stem: str, dimensions: int) -> Path:
    names = [
        f"{stem}{mark}idx{dimensions}-ubyte{zipped}"
        for zipped in ("", ".gz")
        for mark in "-."
    ]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise DataError(f"{folder} has no {names[0]} (or {names[2]}); fetch the file again")


def most_unpacked(packed: int) -> int:
    """Return to how many bytes a file of so many may unpack, if it holds images.

    Those of MNIST unpack to five times theirs; a bomb of zeros, to a thousand times.
    """
    return (64 << 20) + 50 * packed


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of an idx file of unsigned bytes, gzipped or not.

    Raises:
        DataError: Not an idx file of bytes, or not as long as its header says.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            most = most_unpacked(len(data))
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(most + 1)
            if len(data) > most:
                raise OSError(f"it unpacks to more than {most} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; fetch the file again") from error
    dimensions = data[3] if len(data) > 3 else 0
    if data[:2] != b"\0\0" or len(data) < 4 + 4 * dimensions or data[2] != _IDX_UINT8:
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    shape = np.frombuffer(data, ">u4", dimensions, offset=4).tolist()
    start = 4 + 4 * dimensions
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"{path} has {len(data) - start} bytes of data where its header says "
            f"{'x'.join(map(str, shape))} = {math.prod(shape)}; fetch the file again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
