"""Tiny training runs that several test folders share, and ways to run the commands.

Importable as `small_runs`: the conftest of each folder that wants it adds this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastadv.cli import train
from fastadv.kernels._cpp import unavailable_reason
from fastadv.models import load_model, state_hash
from fastadv.training import TrainConfig, trainer

# 190 training images in batches of 16: 12 updates an epoch, 24 in all, below a second.
TINY: dict[str, Any] = {
    "arch": "resnet8_cifar",
    "data": "digits",
    "resolution": 16,
    "num_train": 200,
    "batch_size": 16,
    "epochs": 2,
    "eps": 0.25,
    "num_steps": 2,
    "schedule": "onecycle",
    "eval_images": 20,
    "eval_steps": 2,
    "device": "cpu",
}
STEPS_PER_EPOCH, STEPS = 12, 24
DEFAULT_BACKEND = "numba" if unavailable_reason() else "cpp"


def tiny(out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**(TINY | {"out": str(out)} | changes))


def flags(out: Path, **changes: Any) -> list[str]:
    """The same choices as words of a command line; values of True are bare flags."""
    words = []
    for name, value in (TINY | {"out": str(out)} | changes).items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return words


def environment() -> dict[str, str]:
    """One thread, no forced backend, wide enough that tyro wraps no message."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTADV_BACK")}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def script(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed beside {sys.executable}")
    return str(path)


def execute(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an installed command as a user would."""
    return subprocess.run(
        [script(name), *words],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def last_step(run: Path) -> int:
    """The step of the newest checkpoint; 0 before there is one."""
    try:
        return int(os.readlink(run / "checkpoints" / "last").split("-")[1])
    except FileNotFoundError:
        return 0


def weights(run: Path, which: str = "last") -> str:
    """Hash of a checkpoint's weights and buffers: equal means bit-identical."""
    return state_hash(load_model(run / "checkpoints" / which / "model.safetensors"))


def resume(run: Path) -> int:
    """Continue a run in this process, as `fastadv-train --resume --out RUN` does."""
    return train.main(["--resume", "--out", str(run)])


def during_step(
    monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]
) -> None:
    """Do something in the middle of training step `step` (from 1) of this process."""
    real, calls = trainer.train_step, []

    def stepping(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            act()
        return real(*args, **options)

    monkeypatch.setattr(trainer, "train_step", stepping)


def signal_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM to this process in the middle of training step `step` (from 1)."""
    during_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def interrupt(
    words: list[str], run: Path, number: signal.Signals, step: int, delay: float = 0.0
) -> tuple[int, str]:
    """Start fastadv-train, signal it once `step` is saved; exit code and stderr."""
    process = subprocess.Popen(
        [script("fastadv-train"), *words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and last_step(run) < step:
            assert time.monotonic() < deadline, "no checkpoint within a minute"
            time.sleep(0.0005)
        time.sleep(delay)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, stderr


def same_ending(run: Path, whole: Path) -> None:
    """Check that an interrupted run ended like the `whole` one."""
    assert last_step(run) == STEPS
    assert weights(run) == weights(whole)
    assert weights(run, "best") == weights(whole, "best")
    validations = [
        {k: v for k, v in e.items() if k != "time"}
        for e in events(run)
        if e["event"] == "val"
    ]
    assert validations[-1].items() >= {"epoch": 2, "step": STEPS}.items()
    known = {e["step"]: e["robust_acc"] for e in events(whole) if e["event"] == "val"}
    assert all(v["robust_acc"] == known[v["step"]] for v in validations)
