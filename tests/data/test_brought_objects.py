"""Data sets handed in as objects, torchvision's by name, and files at any address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd_data import content, picture, write
from PIL import Image
from record_files import reds, samples, write_tar
from test_brought_arrays import batch
from test_brought_labels import rows
from torch.utils.data import Dataset, TensorDataset

from fastadv.cli.data import main
from fastadv.data import make_loader, open_dataset, open_judged_splits
from fastadv.errors import ConfigError, DataError


class Mine(Dataset[Any]):
    """Items 0 to n - 1 of two classes, whose red value is their number."""

    def __init__(self, n: int, kind: str = "pil", first: int = 0) -> None:
        self.n, self.kind, self.first = n, kind, first

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        pixels = np.zeros((6, 5, 3), np.uint8)
        pixels[..., 0] = index + self.first
        image: Any = Image.fromarray(pixels)
        if self.kind != "pil":
            image = torch.from_numpy(pixels).permute(2, 0, 1)
        if self.kind == "float":
            image = image / 255
        if self.kind == "array":
            image = pixels
        return image, torch.tensor(index % 2) if self.kind == "uint8" else index % 2


@pytest.mark.parametrize("kind", ["pil", "uint8", "float", "array"])
def test_an_object_is_a_data_set(kind: str) -> None:
    splits = open_dataset({"train": Mine(6, kind), "val": Mine(4, kind, 100)})
    assert content(splits.train) == {"0": [0, 2, 4], "1": [1, 3, 5]}
    assert content(splits.test) == {"0": [100, 102], "1": [101, 103]}
    assert splits.name == "Mine"
    loader = make_loader(
        splits.test, batch_size=4, resolution=4, train=False, workers=0
    )
    assert next(iter(loader)).images[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
    again = open_dataset({"train": Mine(6, kind), "val": Mine(4, kind, 101)})
    assert again.train.fingerprint == splits.train.fingerprint
    assert again.test.fingerprint != splits.test.fingerprint
    assert again.test.content_hash() != splits.test.content_hash()


def test_one_object_is_divided_or_judged_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    splits = open_dataset(Mine(20), holdout=0.2)
    assert (len(splits.train), len(splits.test)) == (16, 4)
    assert "one split only (20 images)" in caplog.text
    assert len(open_judged_splits(Mine(20)).test) == 20
    tensors = TensorDataset(torch.rand(6, 3, 4, 4), torch.tensor([0, 1, -1, 1, 0, 1]))
    judged = open_judged_splits(tensors, name="mine").test
    assert (judged.name, judged.labels.tolist()) == ("mine", [0, 1, 1, 0, 1])
    gray = TensorDataset(torch.full((4, 1, 4, 4), 0.5), torch.tensor([0, 1, 0, 1]))
    assert open_judged_splits(gray).test.load(0).tolist() == [[[128] * 3] * 4] * 4


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (
            TensorDataset(torch.randn(4, 3, 4, 4), torch.arange(4)),
            DataError,
            "values span",
        ),
        (
            TensorDataset(torch.rand(4, 4, 4, 4), torch.arange(4)),
            DataError,
            r"tensor of \[4",
        ),
        (
            TensorDataset(torch.rand(4, 3, 4, 4)),
            DataError,
            r"a tuple of 1; expected \(im",
        ),
        (
            TensorDataset(torch.rand(4, 3, 4, 4), torch.rand(4, 2)),
            DataError,
            "are lists",
        ),
        ([("text", 0), ("text", 1)], DataError, "it is a str; expected a PIL image"),
        (iter([1]), ConfigError, "is no map-style data set"),
        ([], DataError, "the data set is empty"),
    ],
)
def test_objects_that_are_none(dataset: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        open_dataset(dataset)


def test_random_transforms_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    class Random(Mine):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return torch.rand(3, 4, 4), index % 2

    open_judged_splits(Random(4))
    assert "its transforms are random" in caplog.text

    class Broken(Mine):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            raise KeyError("gone")

    with pytest.raises(DataError, match="item 0 cannot be read: KeyError: 'gone'"):
        open_judged_splits(Broken(4))


def test_data_sets_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    with pytest.raises(ConfigError, match="perhaps you meant: CIFAR10"):
        open_dataset("torchvision:CIFAR-10")
    with pytest.raises(
        DataError, match=r"torchvision:CIFAR10 cannot be opened in .*downl"
    ):
        open_dataset("torchvision:CIFAR10", root=str(tmp_path))
    # Miniatures in place of the files whose sums torchvision checks.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", ""]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", ""]])
    names = ["cat", "dog"]
    monkeypatch.setattr(
        datasets.CIFAR10, "_load_meta", lambda self: setattr(self, "classes", names)
    )
    root = tmp_path / "cifar-10-batches-py"
    for name, values in (("data_batch_1", [1, 2, 3]), ("test_batch", [4, 5])):
        batch(root / name, values)
        import pickle

        stored = pickle.loads((root / name).read_bytes())
        labels = [v % 2 for v in values]
        plain = {"data": stored[b"data"], "labels": labels}
        (root / name).write_bytes(pickle.dumps(plain))
    splits = open_dataset("torchvision:CIFAR10", root=str(tmp_path))
    assert splits.name == "torchvision:CIFAR10"
    assert content(splits.train) == {"cat": [2], "dog": [1, 3]}
    assert content(splits.test) == {"cat": [4], "dog": [5]}
    write(tmp_path / "photos", "a/{1,2}.png", "b/{3,4}.png")
    images = open_judged_splits(datasets.ImageFolder(str(tmp_path / "photos"))).test
    assert content(images) == {"a": [1, 2], "b": [3, 4]}
    fake = open_judged_splits("torchvision:FakeData").test
    assert len(fake) == 1000


# ---- addresses ----


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    for name, values in (
        ("train-000000.tar", [5, 2, 9]),
        ("train-000001.tar", [4, 7]),
        ("val-000000.tar", [11, 10]),
    ):
        file = write_tar(tmp_path / name, samples(values))
        system.pipe(f"/bucket/set/{name}", file.read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    "address",
    [
        "memory://bucket/set/train-{000000..000001}.tar",
        "memory://bucket/set/train-*.tar",
        "memory://bucket/set",
    ],
)
def test_shards_at_any_address(bucket: Any, address: str) -> None:
    more = (
        {}
        if address.endswith("set")
        else {"test": "memory://bucket/set/val-000000.tar"}
    )
    with pytest.raises(DataError, match=r"not on this machine.*download=true"):
        open_dataset(address, **more)
    splits = open_dataset(address, download=True, **more)
    assert (reds(splits.train), reds(splits.test)) == ([5, 2, 9, 4, 7], [11, 10])
    # What was fetched is kept, and read without the address.
    bucket.rm("/bucket", recursive=True)
    again = open_dataset(address, **more)
    assert again.train.fingerprint == splits.train.fingerprint
    bucket.pipe("/bucket/set/x", b"")


def test_copies_are_checked(bucket: Any, tmp_path: Path) -> None:
    address = "memory://bucket/set/{train,val}-000000.tar"
    open_dataset(address, download=True)
    assert main(["verify", address]) == 0
    (copy,) = (tmp_path / "cache/remote").rglob("train-000000.tar")
    data = bytearray(copy.read_bytes())
    data[600] ^= 1
    copy.write_bytes(data)
    assert main(["verify", address]) == 1
    copy.write_bytes(data[:-512])
    with pytest.raises(
        DataError, match=r"has \d+ bytes and had \d+ when it was fetched"
    ):
        open_dataset(address)
    with pytest.raises(DataError, match=r"cannot fetch memory://bucket/set/no\.tar"):
        open_dataset("memory://bucket/set/no.tar", download=True)
    with pytest.raises(DataError, match="holds no data files"):
        open_dataset("memory://bucket/nothing", download=True)
    with pytest.raises(DataError, match=r"fsspec reads it once the package"):
        open_dataset("nosuch://bucket/a.tar", download=True)


# ---- what stats says ----


def noticed(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["stats", *map(str, words), "--json"]) == 0
    shown = capsys.readouterr()
    assert not shown.err
    return "\n".join(json.loads(shown.out)["noticed"])


def test_stats_say_what_was_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))
    paths = [f"train/{i}/{i}.png" for i in range(12)] + ["val/1/1.png", "val/10/10.png"]
    root = write(tmp_path / "numbers", *paths)
    (root / "train/1/x.heic").write_bytes(b"x")
    found = noticed(capsys, root)
    assert "called by numbers and sorted as text" in found
    assert "left out" in found
    assert ".heic 1" in found
    assert "val has no images of 10 of 12 classes: '0', '11', '2'" in found
    for value in range(2):
        path = tmp_path / f"scans/{'ab'[value]}/{value}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 3000 + 900 * value, np.uint16)).save(path)
    found = noticed(capsys, tmp_path / "scans")
    assert "12-bit ones in 16-bit files" in found
    assert "there is one split" in found
    found = noticed(capsys, rows(tmp_path / "x/val.parquet", [0.0, 1.0, None]))
    assert "1 of 3 images of val have no label" in found
    assert noticed(capsys, "digits") == ""
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/1.png").write_bytes(picture(1))
    assert main(["stats", str(tmp_path / "flat")]) == 1
    assert "without a list of labels" in capsys.readouterr().err


def test_checkpoints_at_any_address(bucket: Any, tmp_path: Path) -> None:
    from fastadv.errors import CheckpointError
    from fastadv.models import create_model, save_model
    from fastadv.models.source import open_source

    file = tmp_path / "net.safetensors"
    save_model(create_model("resnet8_cifar", 10, seed=1), file, {"resolution": 32})
    bucket.pipe("/bucket/net.safetensors", file.read_bytes())
    address = "memory://bucket/net.safetensors"
    with pytest.raises(CheckpointError, match=r"is not on this machine.*download=true"):
        open_source(address)
    source = open_source(f"{address},download=true")
    assert source.digest == open_source(str(file)).digest
    bucket.rm("/bucket/net.safetensors")
    assert open_source(address).digest == source.digest
