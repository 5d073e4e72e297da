"""Whatever interrupts a run, the resumed one ends in the same bits."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import (
    STEPS,
    STEPS_PER_EPOCH,
    during_step,
    environment,
    events,
    flags,
    interrupt,
    last_step,
    resume,
    same_ending,
    signal_at_step,
    tiny,
)

from fastadv.cli import train as train_command
from fastadv.data.sets.image_set import ArraySet
from fastadv.errors import Preempted
from fastadv.training import Trainer, train, validation

NOT_DONE = STEPS - 4  # kills come no later, so that they meet a living process


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """A few of the fifty runs whose table is in docs/never-lose-work.md."""
    program = Path(__file__).parents[2] / "bench" / "kill_nine.py"
    done = subprocess.run(
        [sys.executable, str(program), "--runs", "2", "--seed", "1"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| yes |") == 2
    assert done.stdout.splitlines()[-1].endswith(" kills, 2 bit-identical")
    assert ", 0 kills" not in done.stdout


def test_killed_again_and_again(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = flags(run, random_start=True, save_minutes=0.001)
    reached = []
    for step in (2, NOT_DONE - 1):
        code, _ = interrupt(words, run, signal.SIGKILL, step, 0.003)
        assert code == -signal.SIGKILL
        reached.append(last_step(run))
        words = ["--resume", "--out", str(run)]
    assert reached == sorted(reached)
    assert reached[-1] < STEPS
    assert resume(run) == 0
    assert resume(run) == 0  # of a finished run: only its test is done again
    same_ending(run, whole)
    resumed_at = [e["step"] for e in events(run) if e["event"] == "resume"]
    assert resumed_at == [*reached, STEPS]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_75(
    number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, stderr = interrupt(
        flags(run, random_start=True, save_minutes=0), run, number, 5
    )
    assert code == 75
    saved = last_step(run)
    hint = f"continue with --resume --out {run}"  # which is what `resume` types
    assert f"{number.name}: saved step {saved}; {hint}" in stderr
    assert events(run)[-1].items() >= {"event": "preempted", "step": saved}.items()
    assert "Traceback" not in stderr
    assert resume(run) == 0
    same_ending(run, whole)


@pytest.mark.parametrize("step", [3, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, STEPS])
def test_stops_within_the_step(
    step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signal_at_step(patch, step)
        with pytest.raises(Preempted, match=f"SIGTERM: saved step {step};"):
            train(tiny(run, random_start=True))
    assert last_step(run) == step  # not one more, and no validation first
    assert [e for e in events(run) if e["event"] == "val" and e["step"] == step] == []
    assert signal.getsignal(signal.SIGTERM) is before
    train(tiny(run, random_start=True, resume=True))
    same_ending(run, whole)


@pytest.mark.parametrize("which", [1, 2, 3])
def test_stops_during_evaluation(
    which: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of epoch 1, of epoch 2, and the final test: each is done over, once."""
    run = tmp_path / "run"
    real, calls = validation.evaluate, []

    def evaluating(*args: Any, **options: Any) -> Any:
        calls.append(1)
        # The final test is two evaluations: 500 clean images and 20 attacked ones.
        if len(calls) == which:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "evaluate", evaluating)
        with pytest.raises(Preempted, match="SIGINT"):
            train(tiny(run, random_start=True))
    assert last_step(run) == min(which, 2) * STEPS_PER_EPOCH
    train(tiny(run, random_start=True, resume=True))
    same_ending(run, whole)
    finished = [e["epoch"] for e in events(run) if e["event"] == "val"]
    assert finished == [1, 2]
    assert [e["event"] for e in events(run)].count("test") == 1


def test_stops_although_its_decoding_processes_were_signalled_too(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedulers and terminals signal the whole process group, workers included."""
    load = ArraySet.load
    waiting = threading.Event()

    def slowly(images: ArraySet, index: int) -> Any:
        waiting.wait(0.02)  # the loop is waiting for data when the signal comes
        return load(images, index)

    monkeypatch.setattr(ArraySet, "load", slowly)
    config = tiny(tmp_path / "run", loader="torchvision", workers=1, num_train=60)
    training = Trainer(config)

    def signal_all() -> None:
        while training.step < 2:
            time.sleep(0.01)
        workers = training.loader._loader._iterator._workers  # type: ignore[attr-defined]
        pids = [str(worker.pid) for worker in workers] + [str(os.getpid())]
        # From another process: SIGTERM of their own parent does end the workers.
        subprocess.run(["kill", "-TERM", *pids], check=True)

    threading.Thread(target=signal_all, daemon=True).start()
    with pytest.raises(Preempted, match="SIGTERM: saved step"):
        training.fit()
    assert last_step(training.run.path) == training.step > 0


def test_a_clock_that_jumps_changes_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, hours = tmp_path / "run", itertools.cycle([0.0, -1e6, 1e9])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(hours))
    summary = train(tiny(run, random_start=True))
    same_ending(run, whole)
    assert 1 < summary.images_per_s < 1e5
    waits = [e["data_wait"] for e in events(run) if e["event"] == "train"]
    assert all(0 <= wait <= 1 for wait in waits)


def test_a_loader_that_fails_loses_no_step(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    training = Trainer(tiny(run, random_start=True))

    def failing(batches: Any) -> Any:
        for number, images in enumerate(real(batches)):
            if number == 7:
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal")
            yield images

    real = training.loader._images
    monkeypatch.setattr(training.loader, "_images", failing)
    with pytest.raises(RuntimeError, match="worker"):
        training.fit()
    assert last_step(run) == 7
    train(tiny(run, random_start=True, resume=True))
    same_ending(run, whole)


def test_a_decoding_process_killed_during_a_step_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = flags(run, num_train=60, loader="torchvision", workers=1)
    trainers: list[Trainer] = []
    fit = Trainer.fit

    def fitting(training: Trainer) -> Any:
        trainers.append(training)
        return fit(training)

    def kill() -> None:
        loader = trainers[0].loader
        (worker,) = loader._loader._iterator._workers  # type: ignore[attr-defined]
        os.kill(worker.pid, signal.SIGKILL)
        # Dead, but not reaped: a handler of SIGCHLD could see it in this very step.
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(Trainer, "fit", fitting)
    during_step(monkeypatch, 2, kill)
    assert train_command.main(words) == 1
    errors = capsys.readouterr().err
    assert "died with exit code -9" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert last_step(run) >= 2  # what was decoded before the kill is trained on
