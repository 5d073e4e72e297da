"""Labels of any type, members of shards, and rows that hold paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from odd_data import content, picture, write
from record_files import samples, write_tar

from fastadv.data import open_dataset, open_judged_splits
from fastadv.data.sets.label_rule import resolve_labels
from fastadv.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))


def rows(path: Path, labels: Any, **more: Any) -> Path:
    """Write Parquet of images whose red values are 1, 2, ... with these labels."""
    n = len(labels)
    images = [{"bytes": picture(i + 1), "path": None} for i in range(n)]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"image": images, "label": labels, **more}), path)
    return path


# ---- the rule ----


@pytest.mark.parametrize(
    ("labels", "classes", "ids"),
    [
        ([1, 0, 2], ["0", "1", "2"], [1, 0, 2]),
        ([0.0, 1.0, 10.0], ["0", "1", "10"], [0, 1, 2]),
        (["0.0", "10.0", "1.0"], ["0", "1", "10"], [0, 2, 1]),
        (["10", "9", "8"], ["8", "9", "10"], [2, 1, 0]),
        ([1, 2, 3], ["1", "2", "3"], [0, 1, 2]),
        ([0, None, 1, -1], ["0", "1"], [0, -1, 1, -1]),
        ([0.0, float("nan"), 1.0], ["0", "1"], [0, -1, 1]),
        (["0", "", "1", "-1", "nan"], ["0", "1"], [0, -1, 1, -1, -1]),
        (["b", "a", None, "10"], ["10", "a", "b"], [2, 1, -1, 0]),
        ([True, False], ["false", "true"], [1, 0]),
        ([np.int8(0), np.float32(1)], ["0", "1"], [0, 1]),
        (["nan", "cat"], ["cat", "nan"], [1, 0]),
    ],
)
def test_labels_by_one_rule(labels: Any, classes: Any, ids: Any) -> None:
    found, by_split = resolve_labels({"train": labels}, "x")
    assert (found, by_split["train"].tolist()) == (classes, ids)


def test_labels_with_names(caplog: pytest.LogCaptureFixture) -> None:
    names = ["cat", "dog", "emu"]
    assert resolve_labels({"": [2, 0]}, "x", names=names)[1][""].tolist() == [2, 0]
    assert resolve_labels({"": ["emu"]}, "x", names=names)[1][""].tolist() == [2]
    assert not caplog.text
    found = resolve_labels({"": [3, 1, 2]}, "x", names=names)
    assert found[0] == names
    assert found[1][""].tolist() == [2, 0, 1]
    assert "label 1 is 'cat'" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1], [1]], r"labels are lists, like \[0, 1\]; an image has one class"),
        ([(0,), (1,)], "labels are lists"),
        ([b"cat", b"dog"], r"labels are bytes, like b'cat'; store them as"),
        ([0.5, 1.0], r"the label 0\.5 is no whole number"),
        (["0.5", "2"], r"the label 0\.5 is no whole number"),
        ([{"id": 1}], "labels are dict"),
        ([-2, 1], "class id -2 is negative"),
        ([None, -1, ""], "none of the 3 images of train has a label"),
        ([float("inf"), 1.0], "is no whole number"),
    ],
)
def test_labels_that_are_none(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolve_labels({"train": labels}, "x")


# ---- tables ----


@pytest.mark.parametrize("none", [-1, None, -1.0, "-1", ""])
def test_labels_of_minus_one(
    tmp_path: Path, none: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kind: Any = str if none == "" else type(none or 0)
    rows(tmp_path / "x/train-0.parquet", [kind(i % 2) for i in range(6)])
    rows(tmp_path / "x/validation-0.parquet", [kind(0), kind(1), none])
    rows(tmp_path / "x/test-0.parquet", [none] * 3)
    splits = open_dataset(tmp_path / "x")
    assert splits.test.split == "validation"
    assert content(splits.test) == {"0": [1], "1": [2]}
    assert "1 of 3 images of validation have no label" in caplog.text
    (tmp_path / "x/validation-0.parquet").unlink()
    splits = open_dataset(tmp_path / "x", holdout=0.4)
    assert "test has no labels (3 images); it is passed over" in caplog.text
    assert (len(splits.train), len(splits.test)) == (4, 2)


def test_splits_of_tables_have_one_order_too(tmp_path: Path) -> None:
    for split in ("Training", "dev", "test"):
        rows(tmp_path / f"x/{split}-00000.parquet", [0, 1])
    assert open_dataset(tmp_path / "x").test.split == "dev"
    assert open_dataset(tmp_path / "x", eval_split="test").test.split == "test"


def test_float_labels_of_a_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = rows(tmp_path / "all.parquet", [10.0, 0.0, None, 1.0])
    images = open_judged_splits(path).test
    assert images.classes == ("0", "1", "10")
    assert content(images) == {"10": [1], "0": [2], "1": [4]}
    assert "1 of 4 images" in caplog.text
    assert "no image of all has the label(s) 2, 3, 4" in caplog.text
    for labels, what in (([[0], [1]], "lists"), ([b"a", b"b"], "bytes")):
        with pytest.raises(DataError, match=f"labels are {what}"):
            open_dataset(rows(tmp_path / "bad.parquet", labels))


@pytest.mark.parametrize("as_text", [False, True])
def test_rows_that_point_to_files(tmp_path: Path, as_text: bool) -> None:
    write(tmp_path / "x", "images/{1,2,3,4}.png")
    paths = [f"images/{i}.png" for i in (1, 2, 3, 4)]
    cells = paths if as_text else [{"bytes": None, "path": p} for p in paths]
    table = pa.table({"image": cells, "label": [0, 1, 0, 1]})
    (tmp_path / "x/data").mkdir()
    for file in (tmp_path / "x/all.parquet", tmp_path / "x/data/all.parquet"):
        parquet.write_table(table, file)
        images = open_judged_splits(file).test
        assert content(images) == {"0": [1, 3], "1": [2, 4]}
    before = images.fingerprint
    (tmp_path / "x/images/4.png").unlink()
    assert open_judged_splits(file).test.fingerprint != before
    with pytest.raises(DataError, match=r"its file images/4\.png is not in"):
        images.load(3)
    elsewhere = tmp_path / "elsewhere.parquet"
    parquet.write_table(table, elsewhere)
    with pytest.raises(
        DataError, match=r"hold paths and no image bytes.*image_root=DIR"
    ):
        open_dataset(elsewhere)
    images = open_judged_splits(elsewhere, image_root=tmp_path / "x").test
    assert len(images) == 4
    with pytest.raises(ConfigError, match="is no folder"):
        open_dataset(elsewhere, image_root=tmp_path / "nowhere")


# ---- members of shards ----


def test_members_of_samples(tmp_path: Path) -> None:
    def shard(*members: tuple[str, bytes]) -> Path:
        return write_tar(tmp_path / "all.tar", members)

    plain = [
        (f"{i:06}.{ending}", data)
        for i in range(4)
        for ending, data in (("input.jpg", picture(0)), ("target.cls", b"%d" % (i % 2)))
    ]
    assert open_judged_splits(shard(*plain)).test.labels.tolist() == [0, 1, 0, 1]
    two = [
        (f"{i:06}.{ending}", data)
        for i in range(4)
        for ending, data in (
            ("input.png", picture(i)),
            ("mask.png", picture(99)),
            ("color.cls", b"0"),
            ("shape.cls", b"%d" % (i % 2)),
        )
    ]
    with pytest.raises(DataError, match=r"has 2 images .*image_column=input\.png"):
        open_dataset(shard(*two))
    with pytest.raises(
        DataError, match=r"has 2 members that .*label_column=color\.cls"
    ):
        open_dataset(shard(*two), image_column="input.png")
    images = open_judged_splits(
        shard(*two), image_column="input.png", label_column="shape.cls"
    ).test
    assert content(images) == {"0": [0, 2], "1": [1, 3]}
    with pytest.raises(DataError, match=r"has no label member .*; expected x\.cls"):
        open_dataset(shard(*two), image_column="input.png", label_column="x.cls")
    numbers = [
        (f"{i}.{e}", d)
        for i in range(4)
        for e, d in (("jpeg", picture(0)), ("json", b'{"label": %d.0}' % i))
    ]
    assert open_judged_splits(shard(*numbers)).test.labels.tolist() == [0, 1, 2, 3]


def test_shards_without_labels_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "x/train-0.tar", samples(range(20)))
    write_tar(tmp_path / "x/val-0.tar", [(f"{i}.png", picture(i)) for i in range(3)])
    splits = open_dataset(tmp_path / "x")
    assert "val has no labels (3 images); it is passed over" in caplog.text
    assert (len(splits.train), len(splits.test)) == (18, 2)
