"""fastadv-data: what it prints, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command_line import Caller, image_folder
from small_runs import environment, events

from fastadv.data import dataset_names


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "data")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))


def test_list(call: Caller) -> None:
    shown = call("data", "list")
    assert shown.code == 0
    assert "mean_per_class" in shown.out
    entries = json.loads(call("data", "list", "--json").out)
    assert set(entries) == set(dataset_names())
    assert entries["dtd"]["files"][0][0] == "images"
    for name, entry in entries.items():
        assert entry.get("made") or (
            name in shown.out and entry["citation"] in shown.out
        )


def test_stats(call: Caller, data: Path) -> None:
    shown = call("data", "stats", data)
    assert shown.code == 0
    assert "train: 24 images, 2 classes of 12 to 12" in shown.out
    found = json.loads(call("data", "stats", data, "--json").out)["splits"]
    assert found["val"]["classes"] == {"above": 6, "below": 6}
    # Half of every image is noise of 0 to 90, the other half 150 brighter: JPEG of it.
    assert all(abs(mean - 120 / 255) < 0.01 for mean in found["train"]["mean"])


def test_verify(call: Caller, data: Path) -> None:
    clean = call("data", "verify", data)
    assert (clean.code, clean.out.splitlines()[-1]) == (0, "clean")
    shutil.copy(data / "train/above/03.jpg", data / "val/above/03.jpg")
    (data / "train/below/05.jpg").write_bytes(b"")
    shown = call("data", "verify", data)
    assert shown.code == 1
    lines = shown.out.splitlines()
    assert "  data:train/below/05.jpg: the file is empty" in lines
    assert "  data:train/above/03.jpg = data:val/above/03.jpg (equal bytes)" in lines
    found = call("data", "verify", data, "--json")
    assert found.code == 1
    assert json.loads(found.out)["duplicates"] == [
        ["data:train/above/03.jpg", "data:val/above/03.jpg", "bytes"]
    ]


def test_packed_shards_train(call: Caller, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    packed = call("data", "pack", data, out)
    assert packed.code == 0
    assert "2 shards, 36 images" in packed.out
    assert "wrote train-000000.tar" in packed.err
    again = call("data", "pack", data, out, "--json")
    assert "wrote" not in again.err
    assert [s["samples"] for s in json.loads(again.out)["shards"]] == [24, 12]
    assert call("data", "verify", out).code == 0
    words = "--arch resnet8_cifar --resolution 16 --batch-size 6 --epochs 1 --eps 0"
    words += " --eval-steps 1 --device cpu --loader torchvision --workers 1"
    run = tmp_path / "run"
    trained = call("train", *words.split(), "--data", out, "--out", run)
    assert trained.code == 0, trained.err
    assert events(run)
    (out / "train-000000.tar").rename(tmp_path / "train-000007.tar")
    shutil.copy(out / "val-000000.tar", out / "train-000001.tar")
    missing = call("data", "verify", out)
    assert missing.code == 1
    assert "train-000000.tar: is in manifest.json but not there" in missing.out


def test_unpack(call: Caller, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("train/a/1.txt", b"hello")
    shown = call("data", "unpack", tmp_path / "x.zip", tmp_path / "out", "--json")
    assert json.loads(shown.out) == {"files": 1, "bytes": 5}
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("../up.txt", b"hello")
    refused = call("data", "unpack", tmp_path / "y.zip", tmp_path / "out2")
    assert refused.code == 1
    assert "a path outside the folder, at member '../up.txt'" in refused.error


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["lsit"], 2, "unknown command 'lsit'; perhaps you meant: list"),
        (["stats", "food-101"], 1, "perhaps you meant: food101"),
        (["stats", "food101", "--root", "/nowhere"], 1, "There is no such folder"),
        (["stats", "{tmp}/nothing.tar"], 1, "no data set at"),
        (["verify", "hf:x", "--root", "/"], 2, "option of data set hf:x 'root'"),
        (["pack", "digits", "{tmp}", "--shard-mb", "0"], 2, "--shard-mb 0"),
        (["pack", "digits", "{tmp}/data"], 2, "is not empty"),
        (["stats", "digits", "--jobs", "-1"], 2, "--jobs -1"),
        (["unpack", "{tmp}/none.zip", "{tmp}/out"], 1, "no archive at"),
        (
            ["unpack", "{tmp}/none.zip", "{tmp}/out", "--max-gb", "0"],
            2,
            "--max-gb 0.0 cannot",
        ),
    ],
)
def test_refusals(
    words: list[str], code: int, message: str, call: Caller, data: Path, tmp_path: Path
) -> None:
    result = call("data", *(w.format(tmp=tmp_path) for w in words))
    assert result.code == code
    assert message in result.error
    assert result.out == ""


@pytest.mark.parametrize("name", ["list", "pack", "stats", "unpack", "verify"])
def test_help_of_every_command_is_light(name: str) -> None:
    program = (
        "import sys\n"
        "from fastadv.cli.data import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as stopped: print('code', stopped.code)\n"
        "print([m for m in ('torch', 'numpy', 'PIL', 'pyarrow') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert f"usage: fastadv-data {name}" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["code 0", "[]"]
