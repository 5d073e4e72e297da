"""What a resume needs and what not; one that is refused leaves the run as it was."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from small_runs import last_step, resume, signal_at_step, tiny, weights

from fastadv.cli import train as command
from fastadv.data.loading.memory_loader import MemoryLoader
from fastadv.errors import Preempted
from fastadv.models import create_model, save_model
from fastadv.runs.directory import RunDirectory
from fastadv.training import train

# Two epochs of two updates.
SHORT: dict[str, Any] = {"num_train": 40}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "ended"
    train(tiny(out, **SHORT))
    return out


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(ended, tmp_path / "run", symlinks=True))


@pytest.fixture
def other_digits(tmp_path: Path) -> Path:
    """Images of the same ten classes that are not those the run was begun on."""
    root = tmp_path / "other"
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    for split, count in (("train", 5), ("val", 1)):
        for label in range(10):
            (root / split / str(label)).mkdir(parents=True)
            for i in range(count):
                file = root / split / str(label) / f"{i}.png"
                Image.fromarray(pixels[label]).save(file)
    return root


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    } | {
        str(path.relative_to(folder)): os.readlink(path).encode()
        for path in folder.rglob("*")
        if path.is_symlink()
    }


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ("--data shapetex", 2, "--data shapetex has 12 classes (circle, square"),
        ("--data OTHER", 1, "train changed since the state was saved"),
        ("--seed 5", 2, "(seed: 0 -> 5)"),
        ("--milestones 0.5 --schedule step", 2, "milestones: None -> (0.5,)"),
    ],
)
def test_a_refused_resume_changes_nothing(
    words: str,
    code: int,
    complaint: str,
    run: Path,
    other_digits: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = _files(run)
    given = words.replace("OTHER", str(other_digits)).split()
    assert command.main(["--resume", "--out", str(run), *given]) == code
    lines = capsys.readouterr().err.splitlines()
    assert complaint in lines[-1]
    assert "Traceback" not in "".join(lines)
    assert _files(run) == before
    # The lock went with the refusal, and the run goes on as if nobody had asked.
    assert resume(run) == 0


def test_a_refused_resume_repairs_nothing(run: Path) -> None:
    (run / "checkpoints" / "last" / "model.safetensors").write_bytes(b"torn")
    before = _files(run)
    assert command.main(["--resume", "--out", str(run), "--seed", "5"]) == 2
    assert _files(run) == before
    assert resume(run) == 0
    assert _files(run) != before


def test_links_of_a_killed_process_keep_nothing(run: Path) -> None:
    checkpoints = run / "checkpoints"
    stale = checkpoints / "step-00000001"
    stale.mkdir()
    (checkpoints / ".last-12345").symlink_to(stale.name)
    assert command.main(["--resume", "--out", str(run), "--epochs", "2"]) == 0
    RunDirectory(run)._drop_unlinked()
    assert not stale.exists()
    assert not os.path.lexists(checkpoints / ".last-12345")
    assert (checkpoints / "last").exists()


def test_a_folder_without_locks_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert resume(run) == 0
    assert "nothing keeps a second process from writing there" in caplog.text


def test_dali_may_be_gone_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on another node: the run was begun by DALI, and there is none here."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(MemoryLoader, "backend", "dali")
        signal_at_step(patch, 1)
        with pytest.raises(Preempted):
            train(tiny(run, **SHORT))
    assert resume(run) == 0
    assert last_step(run) == 4
    assert "images are decoded by torchvision, not by DALI" in caplog.text


def test_what_a_run_began_with_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    source = tmp_path / "source.safetensors"
    # Another normalisation, too: it comes from the checkpoint then.
    model = create_model("resnet8_cifar", 10, mean=[0.1] * 3, std=[0.3] * 3, seed=5)
    save_model(model, source)
    train(tiny(whole, init_from=str(source), **SHORT))
    with monkeypatch.context() as patch:
        signal_at_step(patch, 1)
        with pytest.raises(Preempted):
            train(tiny(run, init_from=str(source), **SHORT))
    source.unlink()
    assert resume(run) == 0
    assert last_step(run) == 4
    assert weights(run) == weights(whole)


@pytest.mark.parametrize("damage", ["gone", "empty", "last, too"])
def test_config_yaml_is_written_again(
    damage: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = run / "config.yaml"
    before = yaml.safe_load(file.read_text())
    file.write_text("\n")
    if damage == "gone":
        file.unlink()
    if damage == "last, too":
        last = run / "checkpoints" / "last"
        (last / "model.safetensors").write_bytes(b"torn")
    assert resume(run) == 0
    assert yaml.safe_load(file.read_text()) == before | {"out": str(run)}
    assert f"{file} was gone or empty: written again from" in caplog.text
