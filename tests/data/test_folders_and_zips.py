"""Folders, archives and names: what opens, and what the refusals say."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared_data import shared

from fastadv.data import BadImage, dataset_names, open_dataset
from fastadv.errors import ConfigError, DataError


def png(value: int, size: tuple[int, int] = (6, 5)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(out, "PNG")
    return out.getvalue()


# Creation order is not sorted order, and "B" < "a" bytewise.
FILES = {
    "train/b/2.png": png(2),
    "train/b/1.png": png(1),
    "train/a/nested/3.PNG": png(3),
    "train/B/4.png": png(4),
    "val/a/5.png": png(5),
    "val/B/6.png": png(6),
    "val/b/7.png": png(7),
    "train/.hidden/x.png": b"",
    "train/a/.x.png": b"",
    "train/a/notes.txt": b"",
    "meta.json": b"{}",
}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes], prefix="", method=0) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(prefix + name, data)
    return path


def reds(imageset) -> list[int]:
    return [int(imageset.load(i)[0, 0, 0]) for i in range(len(imageset))]


def test_folder_classes_are_sorted_bytewise_and_files_too(tmp_path):
    splits = open_dataset(write_folder(tmp_path / "set", FILES))
    assert splits.train.classes == ("B", "a", "b")
    assert reds(splits.train) == [4, 3, 1, 2]
    assert splits.train.labels.tolist() == [0, 1, 2, 2]
    assert reds(splits.test) == [6, 5, 7]
    assert splits.test.labels.tolist() == [0, 1, 2]
    assert (splits.train.split, splits.test.split) == ("train", "val")
    assert splits.train.describe(3) == "set:train/b/2.png"
    with pytest.raises(IndexError):
        splits.train.load(-1)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["", "top/"])
def test_zip_equals_folder(tmp_path, method, prefix):
    files = FILES | {"__MACOSX/train/a/3.png": b"x"}
    archive = write_zip(tmp_path / "set.zip", files, prefix, method)
    folder = open_dataset(write_folder(tmp_path / "set", FILES))
    for of_zip, of_folder in zip(
        (lambda s: (s.train, s.test))(open_dataset(archive)),
        (folder.train, folder.test),
        strict=True,
    ):
        assert of_zip.classes == of_folder.classes
        np.testing.assert_array_equal(of_zip.labels, of_folder.labels)
        assert reds(of_zip) == reds(of_folder)
        assert of_zip.fingerprint == of_folder.fingerprint


def test_fingerprint_follows_names_and_sizes(tmp_path):
    root = write_folder(tmp_path / "set", FILES)
    before = open_dataset(root).train.fingerprint
    assert open_dataset(root).train.fingerprint == before
    (root / "train/b/3.png").write_bytes(png(9))
    assert open_dataset(root).train.fingerprint != before


def load_in_child(imageset, queue):
    queue.put(reds(imageset))


def test_zip_is_read_from_threads_and_forks_and_pickles(tmp_path):
    files = {f"{s}/c/{i:03}.png": png(i) for s in ("train", "val") for i in range(200)}
    train = open_dataset(write_zip(tmp_path / "a.zip", files)).train
    expected = list(range(200))
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: int(train.load(i)[0, 0, 0]), expected * 3))
    assert got == expected * 3
    assert reds(pickle.loads(pickle.dumps(train))) == expected
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [
        context.Process(target=load_in_child, args=(train, queue)) for _ in range(2)
    ]
    for child in children:
        child.start()
    assert [queue.get(timeout=20) for _ in children] == [expected, expected]
    for child in children:
        child.join()


def test_damaged_zip_member_is_bad_and_named(tmp_path):
    path = write_zip(tmp_path / "a.zip", FILES)
    data = bytearray(path.read_bytes())
    data[data.find(FILES["train/b/1.png"]) + 40] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BadImage, match=r"train/b/1\.png.*CRC"):
        open_dataset(path).train.load(2)


@pytest.mark.parametrize("name", ["../up.png", "/abs.png", "train/../../x.png"])
def test_unsafe_zip_members_are_refused(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", FILES | {name: b"x"})
    with pytest.raises(DataError, match="points outside"):
        open_dataset(path)


def test_not_a_zip(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="zip archive"):
        open_dataset(path)


def without(prefix: str) -> dict[str, bytes]:
    return {k: v for k, v in FILES.items() if not k.startswith(prefix)}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (without("train/"), r"no train/ folder.*found 'val'"),
        (FILES | {"val/dog/1.png": png(0)}, r"'dog' are in val/ but not in train/"),
        (FILES | {"train/cat/x.txt": b""}, r"no images.*'cat'"),
        ({"train/1.png": png(1), "val/a/1.png": png(1)}, r"train/ has no"),
        ({"train/a/1.png": png(1), "val/a/x.txt": b""}, r"val/ has no images"),
    ],
)
def test_wrong_layouts_say_what_is_wrong(tmp_path, kind, files, message):
    if kind == "folder":
        path = write_folder(tmp_path / "set", files)
    else:
        path = write_zip(tmp_path / "set.zip", files)
    with pytest.raises(DataError, match=message):
        open_dataset(path)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_of_a_training_split_alone_a_part_is_held_out(tmp_path, caplog, kind):
    files = without("val/")
    if kind == "folder":
        path = write_folder(tmp_path / "set", files)
    else:
        path = write_zip(tmp_path / "set.zip", files)
    splits = open_dataset(path)
    assert "one split only (4 images): 0.1 of it" in caplog.text
    assert (len(splits.train), len(splits.test)) == (3, 1)
    assert sorted(reds(splits.train) + reds(splits.test)) == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_classes_missing_from_evaluation_are_refused(tmp_path, caplog, kind):
    files = without("val/a/")
    if kind == "folder":
        path = write_folder(tmp_path / "set", files)
    else:
        path = write_zip(tmp_path / "set.zip", files)
    with pytest.raises(DataError, match=r"1 of 3 classes in val: 'a'.*strict=false"):
        open_dataset(path)
    for lenient in (False, "false"):
        splits = open_dataset(path, strict=lenient)
        assert splits.test.labels.tolist() == [0, 2]
    assert "no images of 1 of 3 classes in val: 'a'" in caplog.text


def test_symbolic_links_are_followed_and_loops_end(tmp_path):
    root = write_folder(tmp_path / "set", FILES)
    (root / "train/a/loop").symlink_to(root / "train/a")
    (root / "train/linked").symlink_to(root / "train/b")
    (root / "val/linked").symlink_to(root / "val/b")
    train = open_dataset(root).train
    assert train.classes == ("B", "a", "b", "linked")
    assert np.bincount(train.labels).tolist() == [1, 1, 2, 2]


def test_unknown_names_and_paths(tmp_path):
    with pytest.raises(DataError, match="perhaps you meant: shapetex"):
        open_dataset("shapetext")
    (tmp_path / "caltech101").mkdir()
    with pytest.raises(DataError, match="perhaps you meant: caltech101"):
        open_dataset(tmp_path / "caltech10")
    (tmp_path / "a.rar").write_bytes(b"")
    with pytest.raises(DataError, match="neither a folder nor"):
        open_dataset(tmp_path / "a.rar")
    with pytest.raises(ConfigError, match="n_train"):
        open_dataset("shapetex", n_trian=10)
    with pytest.raises(ConfigError, match="known: metric, texture, texture_seed"):
        open_dataset("digits", seed=3)
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        open_dataset("cifar10", root=tmp_path)
    assert {"digits", "shapetex", "cifar100"} <= set(dataset_names())


def test_metric_is_the_literatures_unless_chosen(tmp_path, caplog):
    root = write_folder(tmp_path / "Caltech-101", FILES)
    assert open_dataset(root).metric == "mean_per_class"
    assert open_dataset(root, metric="top1").metric == "top1"
    assert open_dataset(write_folder(tmp_path / "x", FILES)).metric == "top1"
    assert not caplog.text
    # A name that only begins so may be of anything; what it could be is said.
    for name in ("caltech101-96px", "flowershop", "petstore"):
        assert open_dataset(write_folder(tmp_path / name, FILES)).metric == "top1"
        assert f"{name}: accuracy is top-1" in caplog.text
    with pytest.raises(ConfigError, match="mean_per_class"):
        open_dataset(root, metric="mean_class")


def test_the_evaluation_split_can_be_chosen(tmp_path, caplog):
    root = write_folder(tmp_path / "x", FILES)
    (root / "val").rename(root / "test")
    write_folder(root, FILES)
    assert open_dataset(root).test.split == "val"
    assert "eval_split=test" in caplog.text
    caplog.clear()
    chosen = open_dataset(root, eval_split="test")
    assert chosen.test.split == "test"
    assert all("test/" in member for member in chosen.test.members)
    assert not caplog.text
    with pytest.raises(DataError, match="no folder valid/"):
        open_dataset(root, eval_split="valid")
    with pytest.raises(ConfigError, match="unknown eval_split 'tset'"):
        open_dataset(root, eval_split="tset")


def test_digits():
    splits = open_dataset("digits")
    train, test = splits.train, splits.test
    assert (len(train), len(test)) == (1297, 500)
    image = train.load(0)
    assert image.shape == (8, 8, 3)
    every = np.concatenate([train.images, test.images])
    assert len(np.unique(every.reshape(1797, -1), axis=0)) > 1790
    levels = np.floor(np.arange(17) * 255 / 16 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(np.unique(every), levels)
    # Stratified: every class has its share of the training images.
    counts = np.bincount(train.labels) + np.bincount(test.labels)
    share = np.bincount(train.labels) / counts
    assert abs(share - 1297 / 1797).max() < 0.005
    assert train.augment_default == "none"
    again = open_dataset("digits").train
    assert again.fingerprint == train.fingerprint != test.fingerprint


def test_tiny_imagenet_archive():
    splits = open_dataset(shared("tiny-imagenet-40.zip"))
    assert len(splits.train.classes) == 40
    assert np.bincount(splits.train.labels).tolist() == [500] * 40
    assert np.bincount(splits.test.labels).tolist() == [50] * 40
    # Two grayscale files among others.
    gray = []
    for i in (*range(0, 20000, 500), 1218, 1491):
        image = splits.train.load(i)
        assert image.shape == (64, 64, 3)
        if (image[..., 0] == image[..., 1]).all():
            gray.append(i)
    assert {1218, 1491} <= set(gray)
    assert len(gray) < 10
    assert splits.train.classes[0] in splits.train.describe(0)
