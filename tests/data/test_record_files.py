"""Tar shards, Parquet, Arrow and .npz, by path and by pattern."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from record_files import (
    check_everywhere,
    image,
    reds,
    samples,
    table,
    write_tar,
)

from fastadv.data import open_dataset
from fastadv.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))


# ---- WebDataset ----


@pytest.mark.parametrize("label", ["cls", "txt", "json"])
def test_tar_shards(label: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_tar(root / "train-000000.tar", samples([5, 2, 9], label))
    write_tar(root / "train-000001.tar", samples([4, 7], label))
    write_tar(root / "val-000000.tar", samples([11, 10], label))
    splits = open_dataset(root)
    names = ("even", "odd") if label == "txt" else ("0", "1")
    assert splits.train.classes == splits.test.classes == names
    assert splits.train.labels.tolist() == [1, 0, 1, 0, 1]
    assert splits.train.describe(3) == "set:train-000001.tar/d/004"
    check_everywhere(splits.train, [5, 2, 9, 4, 7], loader=label == "cls")
    assert reds(splits.test) == [11, 10]
    pattern = open_dataset(
        str(root / "train-{000000..000001}.tar"), test=str(root / "val-*.tar")
    )
    assert reds(pattern.train) == [5, 2, 9, 4, 7]
    assert reds(pattern.test) == [11, 10]
    assert pattern.train.fingerprint == splits.train.fingerprint
    commas = open_dataset(str(root / "{train,val}-000000.tar"))
    assert (reds(commas.train), reds(commas.test)) == ([5, 2, 9], [11, 10])


def test_a_shard_is_scanned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "set/train-0.tar", samples(range(20)))
    first = open_dataset(path)
    opened = []
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: opened.append(a))
    assert reds(open_dataset(path).train) == reds(first.train)
    assert not opened
    monkeypatch.undo()
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))
    write_tar(path, samples(range(30)))  # another size: scanned again
    again = open_dataset(path)
    assert len(again.train) + len(again.test) == 30


def test_one_split_is_divided_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "all.tar", samples(range(40)))
    splits = open_dataset(tmp_path / "all.tar", holdout=0.25)
    assert "one split only (40 images): 0.25 of it" in caplog.text
    assert (len(splits.train), len(splits.test)) == (30, 10)
    assert np.bincount(splits.test.labels).tolist() == [5, 5]
    assert sorted(reds(splits.train) + reds(splits.test)) == list(range(40))
    with pytest.raises(ConfigError, match="outside"):
        open_dataset(tmp_path / "all.tar", holdout=1.0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", image(1))], "sample 'a' has no label member (members: png)"),
        ([*samples([1]), ("b.cls", b"0")], "sample 'b' has 0 images (members: cls)"),
        ([("a.png", image(1)), ("a.jpg", image(1)), ("a.cls", b"0")], "has 2 images"),
        ([("a.png", image(1)), ("a.png", image(2))], "has a member twice"),
        ([*samples([1]), *samples([2]), *samples([1])], "sample 'd/001' occurs twice"),
        ([("a.png", image(1)), ("a.json", b"{}")], "no label in its .json"),
        ([("a.png", image(1)), ("a.json", b"{")], "that is not JSON"),
        ([("a.png", image(1)), ("a.json", b'{"label": [1, 2]}')], "the label [1, 2]"),
        ([("a.png", image(1)), ("a.cls", b" ")], "has an empty .cls"),
        (
            [("a.png", image(1)), ("a.cls", b"-1")],
            "none of the 1 images of train has a l",
        ),
        ([("a.png", image(1)), ("a.cls", b"-2")], "class id -2 is negative"),
        ([("a.png", image(1)), ("a.cls", b"2")], "no images of 2 of 3 classes"),
        ([], "holds no images"),
    ],
)
def test_samples_that_are_not_whole(members: Any, message: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set" / "train-000003.tar", members)
    with pytest.raises(DataError) as caught:
        open_dataset(path)
    assert message in str(caught.value)
    if "sample" in message:
        assert "train-000003.tar" in str(caught.value)


def test_shards_that_are_cut_or_compressed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", samples(range(4)))
    whole = path.read_bytes()
    path.write_bytes(whole[: 512 * 9])  # between members: they all look whole
    with pytest.raises(DataError, match=r"set\.tar is cut short"):
        open_dataset(path)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(path, "a.png")
    with pytest.raises(DataError, match=r"compressed.*gunzip"):
        open_dataset(tmp_path / "x.tar.gz")


def test_patterns_name_what_is_missing(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-000.tar", samples([0, 1]))
    with pytest.raises(DataError, match=r"no such file .*s-001\.tar"):
        open_dataset(str(tmp_path / "s-{000..001}.tar"))
    with pytest.raises(DataError, match="no file matches"):
        open_dataset(str(tmp_path / "t-*.tar"))
    with pytest.raises(DataError, match="no range of files"):
        open_dataset(str(tmp_path / "s-{5..1}.tar"))


def test_classes_of_the_splits_must_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "train.tar", samples([0, 1]))
    held = write_tar(tmp_path / "val.tar", [("a.png", image(1)), ("a.cls", b"2")])
    with pytest.raises(DataError, match="'2' are in val but not among the 2 classes"):
        open_dataset(tmp_path)
    write_tar(held, samples([2, 4, 6]))
    with pytest.raises(DataError, match="no images of 1 of 2 classes in val: '1'"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, strict=False).test.labels.tolist() == [0, 0, 0]
    assert "no images of 1 of 2 classes in val: '1'" in caplog.text
    (tmp_path / "train-1.rec").write_bytes(b"")
    with pytest.raises(DataError, match="several formats"):
        open_dataset(tmp_path)


def test_a_shard_that_shrank_gives_bad_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", samples(range(8)))
    train = open_dataset(path).train
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"set\.tar ends inside"):
        reds(train)


# ---- Parquet and Arrow ----


def test_parquet(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    (root / "data").mkdir(parents=True)
    parquet.write_table(
        table([3, 4, 6], ["even", "odd"]),
        root / "data/train-00000-of-00002.parquet",
        row_group_size=2,
    )
    parquet.write_table(table([9, 8]), root / "data/train-00001-of-00002.parquet")
    parquet.write_table(table([1, 2]), root / "data/test-00000-of-00001.parquet")
    splits = open_dataset(root)
    assert splits.train.classes == ("even", "odd")
    assert splits.train.labels.tolist() == [1, 0, 0, 1, 0]
    check_everywhere(splits.train, [3, 4, 6, 9, 8])
    assert splits.test.split == "test"
    copies = sorted((tmp_path / "cache/parquet").iterdir())
    times = [c.stat().st_mtime_ns for c in copies]
    assert open_dataset(root).train.fingerprint == splits.train.fingerprint
    assert [c.stat().st_mtime_ns for c in copies] == times  # copied once
    assert len(copies) == 3


@pytest.mark.parametrize("stream", [True, False])
def test_arrow(stream: bool, tmp_path: Path) -> None:
    for split, values in (("train", [5, 4]), ("validation", [2, 3])):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        made = table(values, text=True)
        open_writer = pa.ipc.new_stream if stream else pa.ipc.new_file
        path = folder / "data-00000-of-00001.arrow"
        with open_writer(str(path), made.schema) as writer:
            writer.write_table(made)
    splits = open_dataset(tmp_path / "saved")
    assert splits.train.classes == ("even", "odd")
    check_everywhere(splits.train, [5, 4], loader=stream)
    assert reds(splits.test) == [2, 3]


def test_parquet_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"picture": [image(1)], "label": [0]}), path)
    with pytest.raises(DataError, match="columns picture, label and none of image"):
        open_dataset(path)
    with pytest.raises(ConfigError, match="perhaps you meant: picture"):
        open_dataset(path, image_column="pictures")
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"cannot read .*train.parquet"):
        open_dataset(path)


def test_hugging_face_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        with pytest.raises(ConfigError, match=r"pip install 'fastadv\[hub\]'"):
            open_dataset("hf:nobody/nothing")


def test_hugging_face_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    root = tmp_path / "local"
    (root / "data").mkdir(parents=True)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"])
    )
    for split, values in (("train", [3, 4, 6, 7]), ("test", [1, 2])):
        rows = {
            "image": [{"bytes": image(v), "path": None} for v in values],
            "label": [v % 2 for v in values],
        }
        made = datasets.Dataset.from_dict(rows, features=features)
        made.to_parquet(root / f"data/{split}-00000-of-00001.parquet")
    ours, theirs = open_dataset(root), open_dataset(f"hf:{root}")
    for a, b in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert a.classes == b.classes == ("even", "odd")
        assert reds(a) == reds(b)
        assert a.labels.tolist() == b.labels.tolist()
    check_everywhere(theirs.train, [3, 4, 6, 7])
    with pytest.raises(DataError, match="--dataset-option download=true"):
        open_dataset("hf:nobody/nothing-at-all")


# ---- .npz ----


def test_npz(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.uint8)[:, None, None] + np.zeros((12, 8, 8), np.uint8)
    y = np.arange(12) % 3
    np.savez(
        tmp_path / "a.npz", x_train=x[:9], y_train=y[:9], x_test=x[9:], y_test=y[9:]
    )
    splits = open_dataset(tmp_path / "a.npz")
    assert (reds(splits.train), reds(splits.test)) == (list(range(9)), [9, 10, 11])
    np.savez(tmp_path / "b.npz", x=x, foo=y)
    with pytest.raises(DataError, match=r"arrays \['foo', 'x'\]; expected x_train"):
        open_dataset(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=x / 255, y=y)
    splits = open_dataset(tmp_path / "c.npz")
    assert sorted([*reds(splits.train), *reds(splits.test)]) == list(range(12))
    np.savez(tmp_path / "e.npz", x=x - 0.5, y=y)
    with pytest.raises(DataError, match=r"expected.* \[0, 1\]"):
        open_dataset(tmp_path / "e.npz")
    np.savez(tmp_path / "d.npz", x=np.array([{}]), y=y)
    with pytest.raises(DataError, match="cannot read"):  # a pickle is not opened
        open_dataset(tmp_path / "d.npz")
