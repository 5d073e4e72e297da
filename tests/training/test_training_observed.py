"""What a run tells while it runs: intervals, loggers, pictures, where a step went."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_runs import STEPS_PER_EPOCH, environment, events, script, tiny, weights

from fastadv.cli import train as command
from fastadv.errors import ConfigError, DataError
from fastadv.progress import Progress
from fastadv.runs import profile
from fastadv.runs.distributed import World
from fastadv.runs.listeners import check_listeners
from fastadv.training import Trainer, train

TWO = {"epochs": 1, "eval_images": 10}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every observer on."""
    pytest.importorskip("tensorboard")
    run = tmp_path_factory.mktemp("observed") / "run"
    config = tiny(run, tensorboard=True, pictures_every=2)
    Trainer(config, profile=4).fit()
    return run


# ---- lines and log ----


def test_an_interval_tells_memory_and_waiting(observed: Path) -> None:
    found = [e for e in events(observed) if e["event"] == "train"]
    assert len(found) == 2
    for event in found:
        with open("/proc/self/status") as lines:
            peak = next(int(s.split()[1]) for s in lines if s.startswith("VmHWM"))
        assert 0.1 < event["memory_gib"] <= peak / 2**20
        assert 0 <= event["data_wait"] < 1
        assert event["images_per_s"] > 0


def test_lines_name_the_accuracy_that_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastadv.training.loop._LOG_SECONDS", 0.0)
    for eps, name in ((0.25, "robust"), (0.0, "clean")):
        monkeypatch.setattr(
            Progress, "update", lambda self, done, text: self.note(text)
        )
        train(tiny(tmp_path / name, eps=eps, **TWO))
        shown = capsys.readouterr().err
        assert f"{name} acc " in shown
        assert "images/s  data wait " in shown
        assert " GiB" in shown


# ---- loggers ----


def test_tensorboard_holds_the_numbers_of_the_log(observed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(observed / "tensorboard"))
    board.Reload()
    for name, key in (("train", "loss"), ("val", "robust_acc"), ("test", "clean_acc")):
        logged = [(e["step"], e[key]) for e in events(observed) if e["event"] == name]
        written = [(s.step, s.value) for s in board.Scalars(f"{name}/{key}")]
        assert logged
        assert [step for step, _ in written] == [step for step, _ in logged]
        assert [v for _, v in written] == pytest.approx([v for _, v in logged])
    assert [image.step for image in board.Images("picture")] == [2 * STEPS_PER_EPOCH]


def test_wandb_gets_them_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    train(tiny(run, wandb="fastadv-test", **TWO))
    files = list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1
    # Its own process writes the file, until some time after `finish`.
    deadline = time.monotonic() + 60
    wanted = {b"train/loss", b"val/robust_acc"}
    while missing := {w for w in wanted if w not in files[0].read_bytes()}:
        assert time.monotonic() < deadline, missing
        time.sleep(0.05)


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_logger_is_refused_before_anything_is_made(
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = ["--tensorboard"] if package == "tensorboard" else ["--wandb", "project"]
    out = tmp_path / "run"
    code = command.main(
        ["--data", "digits", "--device", "cpu", "--out", str(out), *words]
    )
    assert code == 2
    message = capsys.readouterr().err
    assert f"--{package} needs the package {package}" in message
    assert f"pip install 'fastadv[{package}]'" in message
    assert not out.exists()
    check_listeners(False, None, writes=True)  # not asked for, not missed


def test_wandb_without_an_account_is_refused_before_the_data_are_read(
    tmp_path: Path,
) -> None:
    pytest.importorskip("wandb")
    kept = {k: v for k, v in environment().items() if not k.startswith("WANDB_")}
    words = ["--data", "no-such-data", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [script("fastadv-train"), *words, "--wandb", "project"],
        env=kept | {"HOME": str(tmp_path)},  # where a key would be kept
        stdin=subprocess.DEVNULL,  # nobody to ask
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    message = done.stderr.splitlines()[-1]
    assert "--wandb could not be started: No API key configured" in message
    assert "WANDB_MODE=offline needs no account" in message
    with pytest.raises(DataError):  # a rank that writes nothing needs none
        Trainer(
            tiny(tmp_path / "run", wandb="project", data="no-such-data"),
            world=World(rank=1, size=2),
        )


def test_a_logger_that_fails_is_warned_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    calls = []

    def fails(*args: Any, **options: Any) -> None:
        calls.append(args)
        raise OSError("the disk of the logs is full")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fails)
    with caplog.at_level(logging.WARNING):
        train(tiny(tmp_path / "run", tensorboard=True))
    told = [r.getMessage() for r in caplog.records if "tensorboard" in r.getMessage()]
    assert told == [
        "tensorboard failed (the disk of the logs is full); the run goes on without it"
    ]
    assert len(calls) == 1
    assert events(tmp_path / "run")[-1]["event"] == "test"


def test_a_logger_that_cannot_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("in the way")
    with pytest.raises(ConfigError, match="`tensorboard` could not be started: "):
        train(tiny(run, tensorboard=True))
    assert not (run / "checkpoints").exists()


# ---- pictures ----


def test_pictures_are_drawn_every_nth_epoch(observed: Path) -> None:
    files = [path.name for path in (observed / "pictures").iterdir()]
    assert files == ["epoch-0002.png"]
    with Image.open(observed / "pictures" / files[0]) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    rows = (pixels != 255).any(2).sum(1)  # how much of each line of pixels is drawn
    filled = rows > 0.5 * pixels.shape[1]
    assert np.diff(filled.astype(int)).clip(0).sum() == 4  # bands of images
    logged = [e for e in events(observed) if e["event"] == "picture"]
    assert [e["file"] for e in logged] == ["pictures/epoch-0002.png"]


def test_a_standard_run_draws_gradients(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", eps=0.0, pictures_every=1, **TWO))
    assert (tmp_path / "run" / "pictures" / "epoch-0001.png").stat().st_size > 5000


def test_observers_change_nothing(observed: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "plain"))
    assert weights(observed) == weights(tmp_path / "plain")


# ---- where a step went ----


def test_the_profile_adds_up_and_sees_every_phase(observed: Path) -> None:
    found = json.loads((observed / "profile.json").read_text())
    assert found["steps"] == 4
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert sum(found["seconds"].values()) == pytest.approx(found["step_seconds"])
    assert min(found["shares"].values()) >= 0
    assert [name for name, took in found["seconds"].items() if not took] == ["sync"]
    assert found["shares"]["other"] < 0.25


def test_the_trace_holds_the_traced_steps(observed: Path) -> None:
    trace = json.loads((observed / "trace.json").read_text())["traceEvents"]
    named = [e["name"] for e in trace if e.get("cat") == "user_annotation"]
    assert named.count("optimiser") == profile.TRACED
    assert named.count("fused step") == profile.TRACED * 2  # --num-steps 2
    assert any(e["name"] == "aten::convolution_backward" for e in trace)
