"""A run that cannot go on says why, and keeps what it had."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import (
    STEPS,
    STEPS_PER_EPOCH,
    events,
    flags,
    last_step,
    resume,
    tiny,
    weights,
)

from fastadv.cli import train as command
from fastadv.data import ImageSet, Loader
from fastadv.errors import DataError, OutputError, TrainingDiverged
from fastadv.models import load_model
from fastadv.training import Trainer, train, trainer
from fastadv.training.images import RunImages


def _message(capsys: pytest.CaptureFixture[str]) -> str:
    """The error on stderr: one line, the last."""
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    assert [line.startswith("fastadv-train: ") for line in lines].count(True) == 1
    return lines[-1]


# ---- images that cannot be had ----


def test_an_epoch_whose_validation_fails_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(tiny(whole))
    with monkeypatch.context() as patch:

        def broken(self: RunImages, images: ImageSet) -> Loader:
            raise DataError("a decoding process was killed")

        patch.setattr(RunImages, "eval_loader", broken)
        with pytest.raises(DataError, match="was killed"):
            train(tiny(run))
    assert last_step(run) == STEPS_PER_EPOCH
    assert resume(run) == 0
    assert [e["epoch"] for e in events(run) if e["event"] == "val"] == [1, 2]
    assert weights(run) == weights(whole)


# ---- divergence ----


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(flags(tmp_path / "run", lr="1e30")) == 1
    message = _message(capsys)
    assert "the loss of step 1 is nan; no checkpoint had been saved yet" in message
    assert "Lower --lr (now 1e+30)" in message
    assert events(tmp_path / "run")[-1]["event"] == "diverged"


def test_the_last_good_checkpoint_is_named_and_loads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    real = trainer.learning_rate

    def rising(config: Any, step: int, total: int) -> float:
        return 1e30 if step == STEPS_PER_EPOCH + 3 else real(config, step, total)

    monkeypatch.setattr(trainer, "learning_rate", rising)
    assert command.main(flags(run)) == 1
    message = _message(capsys)
    good = run / "checkpoints" / f"step-{STEPS_PER_EPOCH:08d}"
    assert f"the loss of step {STEPS_PER_EPOCH + 4} is nan" in message
    assert f"the last good checkpoint is {good}" in message
    outputs = load_model(good / "model.safetensors")(torch.rand(2, 3, 16, 16))
    assert outputs.isfinite().all()
    monkeypatch.undo()  # a saner learning rate
    assert resume(run) == 0
    assert last_step(run) == STEPS


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The loss before the fatal update is still finite, and a save may fall there."""
    training = Trainer(tiny(tmp_path / "run", save_minutes=0))
    real = training.optimizer.step

    def stepping(*args: Any) -> Any:
        real(*args)
        if training.step == 5:
            next(training.model.parameters()).data[0] = float("inf")

    training.optimizer.step = stepping  # type: ignore[method-assign]
    with pytest.raises(TrainingDiverged) as caught:
        training.fit()
    assert "the weights after step 5 are not finite" in str(caught.value)
    assert f"last good checkpoint is {tmp_path / 'run'}" in str(caught.value)
    assert last_step(tmp_path / "run") == 5  # after step 4, counted from 0
    assert all(p.isfinite().all() for p in load_model(tmp_path / "run").parameters())


# ---- storage ----


class _Disk:
    """Fails with "no space left on device" from the n-th use on, until emptied."""

    def __init__(self, real: Any, uses: int) -> None:
        self.real, self.uses = real, uses

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.uses -= 1
        if self.uses < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(*args, **options)


# Per checkpoint: one torch.save; fsync of three files and up to seven times of
# folders (whose failure is no failure); replace of weights, sums and two or three links.
@pytest.mark.parametrize(
    ("module", "name", "uses"),
    [(torch, "save", 1), (os, "fsync", 11), (os, "replace", 6)],
    ids=["torch.save", "fsync", "replace"],
)
def test_a_full_disk_leaves_the_old_checkpoint(
    module: Any,
    name: str,
    uses: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, _Disk(getattr(module, name), uses))
        assert command.main(flags(run)) == 1
    message = _message(capsys)
    assert "No space left on device" in message
    assert "could not " in message
    assert last_step(run) == STEPS_PER_EPOCH
    assert not list((run / "checkpoints").glob(".writing-*"))
    load_model(run)
    assert resume(run) == 0
    train(tiny(whole))
    assert weights(run) == weights(whole)
    assert weights(run, "best") == weights(whole, "best")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Any]]:
    """A file system of its own, and a way to mount it again with other options."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options: str) -> None:
        kind = ["-t", "tmpfs", "tmpfs"] if not options.startswith("remount") else []
        words = ["mount", "-o", options, *kind, str(folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mount("size=1400k")
    try:
        yield folder, mount
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(
    mounted: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, mount = mounted
    run = folder / "run"  # a checkpoint is 0.95 MB: one fits, a second beside it not
    assert command.main(flags(run)) == 1
    assert "No space left on device" in _message(capsys)
    assert last_step(run) == STEPS_PER_EPOCH
    mount("remount,size=8m")
    assert resume(run) == 0
    train(tiny(tmp_path / "whole"))
    assert weights(run) == weights(tmp_path / "whole")


def test_a_folder_that_cannot_be_written(
    mounted: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, mount = mounted
    mount("remount,ro")
    assert command.main(flags(folder / "run")) == 1
    message = _message(capsys)
    assert f"could not write {folder / 'run' / 'config.yaml'}" in message
    assert "Read-only file system" in message


def test_a_file_where_the_run_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert command.main(flags(out)) == 1
        assert f"could not write {out / 'config.yaml'}" in _message(capsys)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_log_that_cannot_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Trainer(tiny(tmp_path / "run"))
    training.run.log_file.mkdir()
    with pytest.raises(OutputError, match=r"could not write .*log\.jsonl"):
        training.fit()
