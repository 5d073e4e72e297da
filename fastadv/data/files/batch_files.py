"""The batches of CIFAR, in Python and binary files, and the binary files of STL-10."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.errors import DataError

Pair = tuple[NDArray[Any], NDArray[Any]]  # images as stored, labels
_PLAIN_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def cifar_python_batches(folder: Path) -> tuple[dict[str, Pair], list[str] | None]:
    """Return images and labels by split of Python batches, and class names."""
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and not f.suffix]
    batches: dict[str, list[Path]] = {}
    for file in files:
        name = file.name.lower()
        if re.fullmatch(r"(train_)?data_batch_\d+|train", name):
            batches.setdefault("train", []).append(file)
        elif found := re.fullmatch(r"(test|val)(_batch|_data)?", name):
            batches.setdefault(found[1], []).append(file)
    one = any((folder / n).is_file() for n in ("data_batch_1", "train_data_batch_1"))
    if not one and not all((folder / n).is_file() for n in ("train", "test", "meta")):
        return {}, None
    pairs = {}
    for split, parts in batches.items():
        read = [_unpickle(part) for part in parts]
        label = next((k for k in ("fine_labels", "labels") if k in read[0]), None)
        if label is None or "data" not in read[0]:
            raise DataError(f"{parts[0]} has no data and labels like a batch of CIFAR")
        images = np.concatenate([np.asarray(each["data"]) for each in read])
        pairs[split] = images, np.concatenate([np.asarray(r[label]) for r in read])
    names = None
    meta = next(
        (f for n in ("batches.meta", "meta") if (f := folder / n).is_file()), None
    )
    if meta is not None:
        facts = _unpickle(meta)
        found_names = facts.get("fine_label_names", facts.get("label_names"))
        names = [_text(name) for name in found_names] if found_names else None
    return pairs, names


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of arrays, lists and numbers; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN_GLOBALS:
            raise ValueError(f"it needs {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        data = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if not isinstance(data, dict):
            raise ValueError("it holds no dictionary")
    # Damaged pickles raise anything from EOFError to AttributeError.
    except Exception as error:
        raise DataError(
            f"cannot read {path} as a batch of CIFAR: {error}; unpack the official python "
            "archive again"
        ) from error
    return {_text(key): value for key, value in data.items()}


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def cifar_binary_batches(folder: Path) -> tuple[dict[str, Pair], list[str] | None]:
    """Return images and labels by split of binary batches, and class names."""
    pairs: dict[str, Pair] = {}
    for split, pattern in (
        ("train", r"data_batch_\d+|train"),
        ("test", "test(_batch)?"),
    ):
        files = [
            f for f in sorted(folder.glob("*.bin")) if re.fullmatch(pattern, f.stem)
        ]
        rows = []
        for file in files:
            data = np.fromfile(file, np.uint8)
            before = next((n for n in (1, 2) if len(data) % (3072 + n) == 0), None)
            if before is None or not len(data):
                raise DataError(
                    f"{file} has {len(data)} bytes, which are no records of CIFAR's binary "
                    "files; fetch it again"
                )
            rows.append(data.reshape(-1, 3072 + before))
        if rows:
            table = np.concatenate(rows)
            labels = table[:, -3073].astype(np.int64)  # of CIFAR-100, the fine ones
            pairs[split] = table[:, -3072:], labels
    return pairs, _lines_of(folder, "batches.meta.txt", "fine_label_names.txt")


def stl_files(folder: Path) -> tuple[dict[str, Pair], list[str] | None]:
    """Return images and labels by split of the files of STL-10, and class names."""
    pairs: dict[str, Pair] = {}
    for split in ("train", "test"):
        images, labels = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
        if not (images.is_file() and labels.is_file()):
            continue
        pixels = np.fromfile(images, np.uint8)
        if len(pixels) % (3 * 96 * 96):
            raise DataError(
                f"{images} holds no images of 96 x 96 pixels; fetch it again"
            )
        # Columns come before rows in these files.
        planes = pixels.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        pairs[split] = planes, np.fromfile(labels, np.uint8).astype(np.int64)
    return pairs, _lines_of(folder, "class_names.txt") if pairs else None


def _lines_of(folder: Path, *names: str) -> list[str] | None:
    for name in names:
        if (folder / name).is_file():
            lines = (folder / name).read_text().splitlines()
            return [line.strip() for line in lines if line.strip()]
    return None
