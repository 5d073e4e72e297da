"""Array files of well-known data sets, and images of more than eight bits."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_data import content
from PIL import Image
from scipy.io import savemat

from fastadv.data import open_dataset, open_judged_splits
from fastadv.data.opening.shifted import CorruptedFiles, open_judged
from fastadv.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))


# ---- arrays ----

X = np.repeat(np.arange(12, dtype=np.uint8), 8 * 8 * 3).reshape(12, 8, 8, 3)
Y = np.arange(12) % 3
ALL = {"0": [0, 3, 6, 9], "1": [1, 4, 7, 10], "2": [2, 5, 8, 11]}


def test_medmnist(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    arrays = {f"{p}_images": X[s, ..., 0] for p, s in parts.items()}
    arrays |= {f"{p}_labels": Y[s, None] for p, s in parts.items()}
    np.savez(tmp_path / "pathmnist.npz", **arrays)
    splits = open_dataset(tmp_path / "pathmnist.npz")
    assert content(splits.train) == {"0": [0, 3], "1": [1, 4], "2": [2, 5]}
    assert content(splits.test) == {"0": [6], "1": [7], "2": [8]}
    assert "evaluating on val; ['test'] ignored" in caplog.text
    splits = open_dataset(tmp_path / "pathmnist.npz", eval_split="test")
    assert content(splits.test) == {"0": [9], "1": [10], "2": [11]}
    arrays["train_labels"] = np.ones((6, 14), int)
    np.savez(tmp_path / "chestmnist.npz", **arrays)
    with pytest.raises(DataError, match=r"labels are \[6, 14\], several per image"):
        open_dataset(tmp_path / "chestmnist.npz")


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": X, "y": Y},
        {"images": X, "labels": Y},
        {"X": X.transpose(0, 3, 1, 2), "Y": np.eye(3)[Y]},
        {"images": X.astype(np.float32), "labels": Y},
        {"images": (X / 255).astype(np.float32), "labels": Y},
        {"data": X.transpose(0, 3, 1, 2).reshape(12, -1), "targets": Y.astype(float)},
        {"data": X[..., 0].reshape(12, -1), "label": Y[:, None]},
    ],
)
def test_npz_of_other_habits(tmp_path: Path, arrays: Any) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert content(open_judged_splits(tmp_path / "a.npz").test) == ALL


def test_splits_before_the_kind_of_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", trainX=X[:6], trainY=Y[:6], testX=X[6:], testY=Y[6:])
    splits = open_dataset(tmp_path / "a.npz")
    assert content(splits.train) == {"0": [0, 3], "1": [1, 4], "2": [2, 5]}
    assert len(splits.test) == 6


@pytest.mark.parametrize("images", [X - 0.5, X.astype(float) * 100, X + np.nan])
def test_floats_that_are_no_pixels(tmp_path: Path, images: Any) -> None:
    np.savez(tmp_path / "a.npz", images=images, labels=Y)
    with pytest.raises(DataError, match=r"expected uint8 in 0\.\.255"):
        open_dataset(tmp_path / "a.npz")


def test_npy_files(tmp_path: Path) -> None:
    for folder, names in (
        ("a", ("X_train", "y_train", "X_test", "y_test")),
        ("b", ("train_images", "train_labels", "test_images", "test_labels")),
    ):
        (tmp_path / folder).mkdir()
        for name, array in zip(names, (X[:6], Y[:6], X[6:], Y[6:]), strict=True):
            np.save(tmp_path / folder / f"{name}.npy", array)
        splits = open_dataset(tmp_path / folder)
        assert content(splits.test) == {"0": [6, 9], "1": [7, 10], "2": [8, 11]}
    np.save(tmp_path / "cifar10.1_v6_data.npy", X)
    with pytest.raises(DataError, match="has no labels beside it"):
        open_judged_splits(tmp_path / "cifar10.1_v6_data.npy")
    np.save(tmp_path / "cifar10.1_v6_labels.npy", Y)
    assert content(open_judged_splits(tmp_path / "cifar10.1_v6_data.npy").test) == ALL
    np.save(tmp_path / "cifar10.1_v6_labels.npy", Y[:5])
    with pytest.raises(DataError, match="5 labels for 12 images"):
        open_judged_splits(tmp_path / "cifar10.1_v6_data.npy")


def test_folders_of_npz_files(tmp_path: Path) -> None:
    for part in ("train", "test"):
        np.savez(tmp_path / f"kmnist-{part}-imgs.npz", X[..., 0])
        np.savez(tmp_path / f"kmnist-{part}-labels.npz", Y)
    assert content(open_dataset(tmp_path).test) == ALL
    (tmp_path / "one").mkdir()
    np.savez(tmp_path / "one/pathmnist.npz", x=X, y=Y)
    assert content(open_judged_splits(tmp_path / "one").test) == ALL


def test_cifar_10_c(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "CIFAR-10-C"
    root.mkdir()
    labels = np.arange(40) % 10
    np.save(root / "labels.npy", np.tile(labels, 5))
    levels = np.repeat(np.arange(5, dtype=np.uint8), 40)
    for kind, start in (("fog", 0), ("gaussian_noise", 100)):
        images = (
            np.zeros((200, 4, 4, 3), np.uint8) + levels[:, None, None, None] + start
        )
        np.save(root / f"{kind}.npy", images.astype(np.uint8))
    one = open_judged_splits(root / "fog.npy", severity=3).test
    assert len(one) == 40
    assert {int(one.load(i)[0, 0, 0]) for i in range(40)} == {2}
    assert len(open_judged_splits(root / "fog.npy").test) == 200
    assert "five times, at five severities" in caplog.text
    assert "severity=3" in caplog.text
    with pytest.raises(DataError, match=r"holds 2 corruptions .*fastadv-analyze shift"):
        open_judged_splits(root)
    found = open_judged(str(root))
    assert isinstance(found, CorruptedFiles)
    assert list(found.conditions)[:2] == [("fog", 1), ("fog", 2)]
    images = found.conditions["gaussian_noise", 4]
    assert images.labels.tolist() == labels.tolist()
    assert {int(images.load(i)[0, 0, 0]) for i in range(40)} == {103}
    with pytest.raises(ConfigError, match="there are 1 to 5"):
        open_judged_splits(root / "fog.npy", severity=6)


def batch(path: Path, values: list[int], **more: Any) -> None:
    planes = np.zeros((len(values), 3, 32, 32), np.uint8)
    planes[:, 0] = np.array(values, np.uint8)[:, None, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"data": planes.reshape(len(values), -1), **more}
    path.write_bytes(pickle.dumps({k.encode(): v for k, v in content.items()}, 2))


def test_cifar_batches(tmp_path: Path) -> None:
    root = tmp_path / "cifar-10-batches-py"
    batch(root / "data_batch_1", [1, 2], labels=[0, 1])
    batch(root / "data_batch_2", [3, 4], labels=[1, 0])
    batch(root / "test_batch", [5, 6], labels=[1, 0])
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    splits = open_dataset(root)
    assert content(splits.train) == {"cat": [1, 4], "dog": [2, 3]}
    assert content(splits.test) == {"cat": [6], "dog": [5]}
    root = tmp_path / "cifar-100-python"
    batch(root / "train", [1, 2], fine_labels=[0, 1], coarse_labels=[0, 0])
    batch(root / "test", [5, 6], fine_labels=[1, 0], coarse_labels=[0, 0])
    (root / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"cat", b"dog"]}))
    assert content(open_dataset(root).test) == {"cat": [6], "dog": [5]}
    # Nothing of a pickle runs.
    (root / "test").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(
        DataError, match=r"cannot read .*test as a batch .*: it needs os"
    ):
        open_dataset(root)
    assert not (tmp_path / "ran").exists()


def test_binary_batches(tmp_path: Path) -> None:
    def record(value: int, *labels: int) -> bytes:
        return bytes(labels) + bytes([value]) * 1024 + bytes(2048)

    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    (root / "data_batch_1.bin").write_bytes(record(1, 0) + record(2, 1))
    (root / "test_batch.bin").write_bytes(record(3, 1) + record(4, 0))
    (root / "batches.meta.txt").write_text("cat\ndog\n\n")
    assert content(open_dataset(root).train) == {"cat": [1], "dog": [2]}
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    (root / "train.bin").write_bytes(record(1, 9, 0) + record(2, 9, 1))
    (root / "test.bin").write_bytes(record(3, 9, 1) + record(4, 9, 0))
    (root / "fine_label_names.txt").write_text("cat\ndog\n")
    assert content(open_dataset(root).test) == {"cat": [4], "dog": [3]}
    (root / "test.bin").write_bytes(record(3, 9, 1)[:-5])
    with pytest.raises(DataError, match=r"are no records of CIFAR's binary files"):
        open_dataset(root)
    root = tmp_path / "stl10_binary"
    root.mkdir()
    for part in ("train", "test"):
        planes = np.zeros((2, 3, 96, 96), np.uint8)
        planes[:, 0] = np.arange(96)[None, :, None]  # columns come first
        planes.tofile(root / f"{part}_X.bin")
        np.array([1, 2], np.uint8).tofile(root / f"{part}_y.bin")
    (root / "class_names.txt").write_text("airplane\nbird\n")
    splits = open_dataset(root)
    assert splits.train.classes == ("airplane", "bird")
    assert splits.train.labels.tolist() == [0, 1]
    assert splits.train.load(0)[0, :, 0].tolist() == list(range(96))


def test_svhn_and_idx_by_path(tmp_path: Path) -> None:
    x = np.zeros((32, 32, 3, 10), np.uint8) + np.arange(10, dtype=np.uint8)
    y = np.arange(1, 11)[:, None]
    for part in ("train", "test"):
        (tmp_path / "svhn").mkdir(exist_ok=True)
        savemat(tmp_path / f"svhn/{part}_32x32.mat", {"X": x, "y": y})
    splits = open_dataset(tmp_path / "svhn")
    assert content(splits.test) == {str(d): [(d - 1) % 10] for d in range(10)}
    alone = open_judged_splits(tmp_path / "svhn/test_32x32.mat").test
    assert content(alone) == content(splits.test)
    root = tmp_path / "idx"
    root.mkdir()
    for part in ("train", "t10k"):
        pixels = np.repeat(np.arange(4, dtype=np.uint8), 64)
        head = struct.pack(">HBB3I", 0, 8, 3, 4, 8, 8)
        (root / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = struct.pack(">HBBI", 0, 8, 1, 4) + bytes([0, 1, 0, 1])
        (root / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    for path in (root, root / "train-images-idx3-ubyte"):
        splits = open_dataset(path)
        assert content(splits.test) == {"0": [0, 2], "1": [1, 3]}


# ---- depth ----


def gray16(value: int, top: int) -> bytes:
    out = io.BytesIO()
    pixels = np.array([[value, top], [0, value]], np.uint16)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("bits", "ending"), [(12, "png"), (12, "tif"), (10, "png"), (14, "png"), (8, "png")]
)
def test_images_that_fill_fewer_bits(
    tmp_path: Path, bits: int, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    high = (1 << bits) - 1
    for part in ("train", "val"):
        for i, name in enumerate("ab"):
            path = tmp_path / f"x/{part}/{name}/{i}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.array([[high, 0], [high // 2, high // 4]], np.uint16)
            Image.fromarray(pixels).save(path)
    splits = open_dataset(tmp_path / "x")
    gray = splits.train.load(0)[..., 0]
    assert gray.tolist() == [[255, 0], [127, 63 if bits == 8 else 64]]
    assert f"images are {bits}-bit ones in 16-bit files" in caplog.text
    assert "bits=16" in caplog.text
    dark = open_dataset(tmp_path / "x", bits=16).train
    assert dark.load(0).max() == round(high * 255 / 65535)
    assert dark.fingerprint != splits.train.fingerprint
    with pytest.raises(ConfigError, match=r"bits=11; expected one of 8, 10, 12"):
        open_dataset(tmp_path / "x", bits=11)


def test_images_of_16_bits_stay_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("train", "val"):
        for i, name in enumerate("ab"):
            path = tmp_path / f"x/{part}/{name}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gray16(4000, 65535 if i else 100))
    train = open_dataset(tmp_path / "x").train
    assert int(train.load(0)[0, 0, 0]) == round(4000 * 255 / 65535)
    assert "16-bit files" not in caplog.text


def test_colour_images_that_fill_12_bits(tmp_path: Path) -> None:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    pixels = np.array([[[4095, 2048, 0]]], ">u2")
    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    body = zlib.compress(b"\0" + pixels.tobytes())
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body)
    for part in ("train", "val"):
        for name in "ab":
            path = tmp_path / f"x/{part}/{name}/1.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data + chunk(b"IEND", b""))
    assert open_dataset(tmp_path / "x").train.load(0).tolist() == [[[255, 128, 0]]]
