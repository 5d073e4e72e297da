"""Data and checkpoints as they come: counted skips, clear refusals, exit codes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import Caller, image_folder, picture
from PIL import Image
from small_runs import events

from fastadv.models import create_model, load_model, save_model
from fastadv.reporting.transfer.cells import make_cells
from fastadv.results.table import ResultsTable
from fastadv.runs.tasks import Place
from fastadv.transfer.recipe import read_recipe
from fastadv.transfer.sweep import plan_sweep, run_transfer


def _words(data: Path, out: Path, *more: str) -> list[str]:
    words = "--arch resnet8_cifar --resolution 16 --batch-size 6 --epochs 1 --eps 0.1"
    words += " --num-steps 1 --eval-steps 1 --device cpu"
    return [*words.split(), "--data", str(data), "--out", str(out), *more]


EASY = ["--epochs", "6", "--augment", "none", "--lr", "0.05", "--batch-size", "4"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "data")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained two-class network."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(create_model("resnet8_cifar", 2, seed=0), path)
    return path


# ---- folders ----


def test_a_folder_of_images_trains(call: Caller, data: Path, tmp_path: Path) -> None:
    result = call("train", *_words(data, tmp_path / "run", "--json", *EASY))
    assert result.code == 0
    assert "22 training, 2 validation, 12 test images, 2 classes" in result.err
    assert json.loads(result.out)["clean_acc"] >= 0.75


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        (name, damage, complaint)
        for damage, complaint in (
            ("absent", "no data set at"),
            ("near", "perhaps you meant: data"),
            ("empty class", "no images in the training class folder(s) 'middle'"),
            ("class only in val", "'upper' are in val/ but not in train/"),
            ("empty val", "val/ has no images"),
            ("no train", "has no train/ folder"),
            ("a text file", "is neither a folder nor a .zip archive"),
            ("no zip", "as a zip archive"),
        )
        for name in ("train", "eval", "transfer")
        if (name, damage) != ("eval", "no train")  # see the next but one test
    ],
)
def test_folders_that_cannot_be_used(
    name: str, damage: str, complaint: str, call: Caller, data: Path, checkpoint: Path
) -> None:
    path = data
    if damage == "absent":
        path = data / "nowhere" / "else"
    elif damage == "near":
        path = data.with_name("dota")
    elif damage == "empty class":
        (data / "train" / "middle").mkdir()
    elif damage == "class only in val":
        (data / "val" / "upper").mkdir()
        picture(0, 0).save(data / "val" / "upper" / "1.png")
    elif damage == "empty val":
        for image in data.glob("val/*/*"):
            image.unlink()
    elif damage == "no train":
        shutil.rmtree(data / "train")
    else:
        path = data.with_name("list.txt" if damage == "a text file" else "data.zip")
        path.write_text("train/above/00.jpg")
    out = data.parent / "out"
    words = {
        "train": _words(path, out),
        "eval": ["--checkpoint", checkpoint, "--data", path],
        "transfer": ["--source", checkpoint, "--dataset", path, "--results", out],
    }
    result = call(name, *words[name])
    assert result.code == 1
    assert complaint in result.error
    assert result.out == ""
    assert not out.exists()


def test_a_folder_of_one_split_is_divided(
    call: Caller, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(data / "val")
    result = call("train", *_words(data, tmp_path / "run", "--json", *EASY))
    assert result.code == 0
    assert "data has one split only" in caplog.text


def test_images_that_are_only_judged_need_no_training_split(
    call: Caller, data: Path, checkpoint: Path
) -> None:
    shutil.rmtree(data / "train")
    result = call("eval", "--checkpoint", checkpoint, "--data", data, "--json")
    assert result.code == 0
    assert json.loads(result.out)


def test_an_unknown_name_lists_its_near_misses(call: Caller, checkpoint: Path) -> None:
    result = call("transfer", "--source", checkpoint, "--dataset", "digit")
    assert result.code == 1
    assert "unknown data set 'digit'; perhaps you meant: digits" in result.error


# ---- images ----


def _damage(data: Path) -> dict[str, str]:
    """Spoil three of the training images; name -> why."""
    folder = data / "train" / "above"
    whole = (folder / "03.jpg").read_bytes()
    (folder / "03.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "04.jpg").write_bytes(b"<html>not found</html>")
    (data / "train" / "below" / "00.jpg").write_bytes(b"")
    return {
        "data:train/above/03.jpg": "runcated",
        "data:train/above/04.jpg": "not an image of a known format",
        "data:train/below/00.jpg": "the file is empty",
    }


@pytest.mark.parametrize("loader", ["memory", "torchvision"])
def test_bad_images_are_named_and_replaced(
    loader: str,
    call: Caller,
    data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = _damage(data)
    words = _words(data, tmp_path / "run", "--loader", loader, "--workers", "1")
    result = call("train", *words, "--epochs", "3")
    assert result.code == 0
    assert "3 unreadable image(s) were replaced by others of their class" in result.err
    told = [r.getMessage() for r in caplog.records if "bad image" in r.getMessage()]
    for name, why in bad.items():
        lines = {line for line in told if f" {name} " in line}
        assert len(lines) == 1  # the same in every epoch
        assert why in lines.pop()
    [counted] = [e for e in events(tmp_path / "run") if e["event"] == "bad_images"]
    assert counted["count"] == len(bad)
    assert sorted(counted["images"]) == sorted(bad)


@pytest.mark.parametrize("loader", ["memory", "torchvision"])
def test_or_the_first_one_stops_the_run(
    loader: str, call: Caller, data: Path, tmp_path: Path
) -> None:
    bad = _damage(data)
    words = _words(data, tmp_path / "run", "--on-bad-image", "fail")
    result = call("train", *words, "--loader", loader, "--workers", "1")
    assert result.code == 1
    assert "cannot decode image data:train/" in result.error
    assert any(name in result.error for name in bad)


def test_a_class_without_a_readable_image(
    call: Caller, data: Path, tmp_path: Path
) -> None:
    for image in (data / "train" / "above").iterdir():
        image.write_bytes(b"x")
    result = call("train", *_words(data, tmp_path / "run"))
    assert result.code == 1
    assert "no image of class 'above' in data/train" in result.error


def test_bad_images_are_counted_in_results(
    call: Caller, data: Path, tmp_path: Path, checkpoint: Path
) -> None:
    _damage(data)
    whole = (data / "val" / "above" / "01.jpg").read_bytes()
    (data / "val" / "above" / "01.jpg").write_bytes(whole[:200])
    words = ["--checkpoint", checkpoint, "--data", data, "--resolution", "16"]
    result = call("eval", *words, "--json")
    assert result.code == 0
    assert json.loads(result.out)["bad_images"] == 1
    assert "1 unreadable image(s) were left out" in call("eval", *words).out
    failed = call("eval", *words, "--on-bad-image", "fail")
    assert failed.code == 1
    assert "cannot decode image data:val/above/01.jpg" in failed.error
    words = ["--source", checkpoint, "--dataset", data, "--resolution", "16"]
    moved = call("transfer", *words, "--results", tmp_path / "table", "--json")
    assert moved.code == 0
    assert json.loads(moved.out)["bad_images"] == 4


def _spoil(file: Path) -> None:
    """Make an image unreadable; name and size, and so the fingerprint, stay."""
    file.write_bytes(bytes(file.stat().st_size))


def test_numbers_without_unreadable_images_have_identities_of_their_own(
    call: Caller, data: Path, tmp_path: Path, checkpoint: Path
) -> None:
    table = ResultsTable(tmp_path / "r")
    words = ["--checkpoint", checkpoint, "--data", data, "--resolution", "16"]
    for count in range(3):
        if count:
            _spoil(data / "val" / "above" / f"0{count}.jpg")
        words += ["--eps", "0.1", "--num-steps", "1", "--results", table.path]
        assert call("eval", *words).code == 0
    clean, robust = (
        [row for row in table.rows() if (row.attack is None) == whole]
        for whole in (True, False)
    )
    assert [row.n for row in clean] == [12, 11, 10]
    for rows in (clean, robust):
        assert len({row.identity for row in rows}) == 3
        # It is the same experiment, on the same files by their names and sizes.
        assert len({row.experiment for row in rows}) == 1
    assert clean[0].identity == clean[0].experiment


def test_a_sweep_computes_numbers_again_that_judged_stand_ins(
    data: Path, tmp_path: Path, checkpoint: Path
) -> None:
    _spoil(data / "val" / "above" / "01.jpg")
    recipe = {
        "sources": [str(checkpoint)], "datasets": [str(data)], "resolution": 16,
        "protocols": [{"mode": "fixed_feature", "select_on": "none"}], "device": "cpu",
        "feature_cache": "off", "workers": 0, "results": str(tmp_path / "r"),
    }  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    table = ResultsTable(tmp_path / "r", once=True)
    configs = read_recipe(file)
    [task] = plan_sweep(configs, table).tasks
    run_transfer(task.setting, Place())
    [row] = table.rows()
    assert (row.n, row.experiment) == (11, task.identities[0])
    assert row.identity != row.experiment
    assert plan_sweep(configs, table).tasks == []
    # As rows were written when another image of the class was judged instead.
    old = ResultsTable(tmp_path / "old", once=True)
    old.append([replace(row, identity=row.experiment, n=12, value=0.0)])
    [again] = plan_sweep(configs, old).tasks
    run_transfer(replace(again.setting, results=str(old.path)), Place())
    assert plan_sweep(configs, old).tasks == []
    [cell] = make_cells(old.rows())
    assert [found.n for found in cell.rows.values()] == [11]


def test_every_kind_of_image_trains(call: Caller, tmp_path: Path) -> None:
    """CMYK, gray, palette, alpha, 16-bit: all as one class sees them, in one run."""
    data = image_folder(tmp_path / "data", train=8)
    folder = data / "train" / "above"
    shown = picture(0, 7)
    wide = np.asarray(shown.convert("L")).astype(np.uint16) * 257
    kinds = {
        "cmyk.jpg": shown.convert("CMYK"),
        "gray.jpg": shown.convert("L"),
        "palette.png": shown.convert("P"),
        "alpha.png": shown.convert("RGBA"),
        "gray-alpha.png": shown.convert("LA"),
        "one-bit.png": shown.convert("1"),
        "wide.png": Image.fromarray(wide),
        "upper.JPEG": shown,
    }
    for name, image in kinds.items():
        image.save(folder / name)
    words = _words(data, tmp_path / "run", "--on-bad-image", "fail", "--epochs", "2")
    result = call("train", *words)
    assert result.code == 0
    assert "22 training, 2 validation" in result.err  # 16 and 8, less 2
    test = events(tmp_path / "run")[-1]
    assert test["n"] == 12


# ---- checkpoints ----


@pytest.mark.parametrize("name", ["eval", "transfer"])
def test_checkpoints_that_cannot_be_used(
    name: str, call: Caller, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html><html>Sign in</html>")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    bare, nothing = tmp_path / "bare.pt", tmp_path / "nothing.pt"
    torch.save(load_model(checkpoint).net.state_dict(), bare)
    torch.save({"a": torch.zeros(3)}, nothing)
    cases: list[tuple[Path, list[str], str]] = [
        (page, [], "is a web page, not a checkpoint"),
        (cut, [], "is damaged, cut short, or no checkpoint at all"),
        (tmp_path / "no.pt", [], "there is no file or folder"),
        (data, [], "holds no checkpoint; looked for checkpoints/best/"),
        (checkpoint, ["--arch", "resnet18"], "is a resnet8_cifar, not a resnet18"),
        (bare, ["--arch", "resnet18"], "They fit resnet8_cifar"),
        (nothing, [], "does not say its architecture; no known one fits"),
    ]
    for path, more, complaint in cases:
        flag, where = (
            ("--checkpoint", "--data") if name == "eval" else ("--source", "--dataset")
        )
        result = call(name, flag, path, where, data, *more)
        assert result.code == 1, path
        assert complaint in result.error
    wrong = call(name, flag, bare, where, data, "--arch", "resnet81")
    assert wrong.code == 2
    assert "perhaps you meant: resnet" in wrong.error
