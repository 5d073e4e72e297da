"""Options of data sets: as text or values, refused by name, and named where needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from miniatures import dtd
from record_files import image, samples, table, write_tar

from fastadv.cli.data import main
from fastadv.data import native_resolution, open_dataset
from fastadv.errors import ConfigError, DataError
from fastadv.runs.distributed import World
from fastadv.training.config import TrainConfig
from fastadv.training.images import RunImages


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))


def test_options_may_be_text() -> None:
    given = {"n_train": "30", "correlation": "0.5", "cache": "false", "seed": "3"}
    values = {"n_train": 30, "correlation": 0.5, "cache": False, "seed": 3}
    texts = open_dataset("shapetex", resolution=32, **given)
    typed = open_dataset("shapetex", resolution=32, **values)
    assert len(texts.train) == 30
    assert texts.train.fingerprint == typed.train.fingerprint


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("dtd", "partition", "two", "expected a whole number"),
        ("dtd", "partition", 2.5, "expected a whole number"),
        ("dtd", "partition", [2], "expected a whole number"),
        ("dtd", "partition", "11", "there are 1 to 10"),
        ("shapetex", "cache", "maybe", "expected true or false"),
        ("shapetex", "correlation", "high", "expected a number"),
        ("caltech101", "split_sed", "1", "perhaps you meant: split_seed"),
        ("hf:x", "downlod", "true", "perhaps you meant: download"),
    ],
)
def test_wrong_options_are_refused(
    name: str, option: str, value: Any, message: str, tmp_path: Path
) -> None:
    if name == "dtd":
        dtd(tmp_path)
    root = {"root": tmp_path} if name == "dtd" else {}
    with pytest.raises(ConfigError, match=message):
        open_dataset(name, **{option: value}, **root)


def test_the_command_passes_options_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "all.tar", samples(range(40)))
    words = ["stats", str(tmp_path / "all.tar"), "--json"]
    assert main([*words, "--dataset-option", "holdout=0.25"]) == 0
    splits = json.loads(capsys.readouterr().out)["splits"].values()
    assert [s["images"] for s in splits] == [30, 10]
    words += ["--dataset-option", "partition=1"]
    assert main(words) == 2
    assert "unknown option of data set" in capsys.readouterr().err
    assert main([*words, "--dataset-option", "partition=2"]) == 2
    assert "partition was already given" in capsys.readouterr().err


def test_the_list_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    of_all = ["metric", "texture", "texture_seed"]
    assert rows["sun397"]["options"] == ["root", "partition", *of_all]
    assert rows["caltech256"]["options"] == ["root", "split_seed", *of_all]
    assert rows["digits"]["options"] == of_all
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "  partition: dtd, sun397\n" in out
    assert "  root: every set of files\n" in out
    assert "  texture: every data set\n" in out


def test_advice_is_for_the_command_line_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match=r"variable FASTADV_DATA .*--root; Python"):
        open_dataset("cifar10", root=tmp_path)
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"picture": [image(1)], "label": [0]}), path)
    with pytest.raises(DataError, match="--dataset-option image_column=NAME"):
        open_dataset(path)
    write_tar(tmp_path / "all.tar", samples(range(40)))
    opened = open_dataset(tmp_path / "all.tar")
    assert "--dataset-option test=PATH" in caplog.text
    assert native_resolution(tmp_path / "all.tar", opened) == 5
    assert len(caplog.records) == 1


def test_a_run_opens_its_data_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "all.tar", samples(range(40)))
    config = TrainConfig(
        data=str(tmp_path / "all.tar"), arch="resnet8_cifar", eps=0.0, batch_size=8
    )
    images = RunImages(config, torch.device("cpu"), World())
    assert images.resolution == 5
    assert caplog.text.count("has one split only") == 1


def test_verify_lists_columns_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, values in (("train-0", [3, 4]), ("train-1", [6]), ("val-0", [1, 2])):
        parquet.write_table(table(values), tmp_path / f"{split}.parquet")
    bad = tmp_path / "train-1.parquet"
    bad.write_bytes(b"PAR1")
    assert main(["verify", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [name for name, _ in found["corrupt"]] == [str(bad)]
    assert found["images"] == {"train": 2, "val": 2}
