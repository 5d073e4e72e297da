"""Whatever stops a run, the resumed one ends in the same bits."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
    script,
    signal_at_step,
    tiny,
    weights,
)

from fastadv.cli import train as train_command
from fastadv.data.loading import make_loader as choosing
from fastadv.data.sets.image_set import ArraySet
from fastadv.errors import ConfigError, OutputError, Preempted
from fastadv.training import RunDirectory, Trainer, train, validation

NOT_DONE = STEPS - 4  # kills come no later, so that they meet a living process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run: what every interrupted one must equal."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(out, random_start=True))
    return out


def _same(run: Path, whole: Path) -> None:
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
    _same(run, whole)
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
    _same(run, whole)


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
    _same(run, whole)


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
    _same(run, whole)
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


# ---- the run directory by itself ----


def test_changed_choices_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Trainer(tiny(whole, random_start=True, resume=True, epochs=3, lr=0.2))
    assert "epochs: 2 -> 3, lr: 0.1 -> 0.2" in str(caught.value)
    with pytest.raises(ConfigError, match="already holds a run; add --resume"):
        Trainer(tiny(whole, random_start=True))
    before = weights(whole)
    # What changes no result may change: here the clock and the kernels' backend.
    again = Trainer(
        tiny(whole, random_start=True, resume=True, save_minutes=1, backend="reference")
    )
    assert again.resumed
    assert again.step == STEPS
    assert weights(whole) == before


def test_a_resumed_config_begins_a_new_run_elsewhere(
    whole: Path, tmp_path: Path
) -> None:
    Trainer(tiny(whole, random_start=True, resume=True))
    text = (whole / "config.yaml").read_text()
    assert "resume: false" in text


@pytest.mark.parametrize("began", ["memory", "torchvision"])
def test_a_resumed_run_keeps_its_loader(
    began: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` goes by the memory that is free; the two differ in rounding."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    options: dict[str, Any] = {"num_train": 60, "workers": 1}
    train(tiny(whole, loader=began, **options))
    monkeypatch.setattr(choosing, "_fits", lambda *_: began == "memory")
    with monkeypatch.context() as patch:
        signal_at_step(patch, 3)
        with pytest.raises(Preempted):
            train(tiny(run, **options))
    monkeypatch.setattr(choosing, "_fits", lambda *_: began != "memory")
    again = Trainer(tiny(run, resume=True, **options))
    assert again.loader.backend == began
    again.fit()
    assert weights(run) == weights(whole)


@pytest.mark.parametrize("which", [2, 4, 5])
def test_killed_between_the_links(
    which: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`best` must not be lost: the resumed run believes its score was the best."""
    run = tmp_path / "run"
    point: Callable[..., None] = RunDirectory._point
    links = []

    def pointing(directory: RunDirectory, link: str, target: Path) -> None:
        links.append(link)
        if len(links) == which:  # each epoch of this run is the best so far
            raise KeyboardInterrupt  # nothing catches it, like a kill
        point(directory, link, target)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "_point", pointing)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(run, random_start=True))
    assert set(links) >= {"last", "best"}
    train(tiny(run, random_start=True, resume=True))
    _same(run, whole)


def test_a_torn_log_line_costs_only_itself(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.log("start", step=0)
    with open(run.log_file, "a") as file:
        file.write('{"event": "tra')
    run.log("resume", step=3)
    run.log("train", step=4)
    assert [(e["event"], e["step"]) for e in run.events()] == [
        ("start", 0),
        ("resume", 3),
        ("train", 4),
    ]


def _spoil(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        del data[5000:]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.pt", "flip"),
        ("model.safetensors", "flip"),
        ("state.pt", "cut"),
        ("state.pt", "gone"),
        ("SHA256SUMS", "cut"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    name: str, damage: str, whole: Path, tmp_path: Path, caplog: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    last = run / "checkpoints" / "last"
    _spoil(last, name, damage)
    if name == "SHA256SUMS":  # of no use, but nothing else is wrong with it
        (last / name).write_text("0" * 64 + "  state.pt\n")
    again = Trainer(tiny(run, random_start=True, resume=True))
    assert again.step == last_step(run) == STEPS_PER_EPOCH
    said = "\n".join(caplog.messages)
    wrong = "state.pt" if name == "SHA256SUMS" else name
    assert f"{last / wrong}" in said
    assert f"going on from {run}/checkpoints/step-{STEPS_PER_EPOCH:08d}" in said
    assert "damaged_checkpoint" in [e["event"] for e in events(run)]
    again.fit()
    _same(run, whole)


def test_a_run_without_a_whole_checkpoint_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(tiny(run, num_train=40, epochs=1))
    _spoil(run / "checkpoints" / "last", "state.pt", "cut")
    capsys.readouterr()
    assert resume(run) == 1
    errors = capsys.readouterr().err.splitlines()
    damaged = run / "checkpoints/last/state.pt"
    assert f"{damaged} is damaged (checksum differs); no other checkp" in errors[-1]
    assert "Traceback" not in "".join(errors)


def test_checkpoints_of_every_so_manieth_epoch_stay(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(run, num_train=40, epochs=5, keep_every=2))
    folder = run / "checkpoints"
    links = {p.name: os.readlink(p) for p in folder.iterdir() if p.is_symlink()}
    steps = {name: int(target.split("-")[1]) for name, target in links.items()}
    assert steps.items() >= {"last": 10, "previous": 8}.items()
    assert steps.items() >= {"epoch-0002": 4, "epoch-0004": 8}.items()
    kept = {p.name for p in folder.glob("step-*")}
    assert kept == set(links.values())
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"],
        cwd=folder / "epoch-0002",
        capture_output=True,
    )
    assert done.stdout == b"model.safetensors: OK\nstate.pt: OK\n"


def test_resume_auto_starts_and_continues(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = flags(run, num_train=40, epochs=1, resume="auto")
    assert train_command.main(words) == 0
    assert train_command.main(["--resume=auto", "--out", str(run)]) == 0
    assert [e["event"] for e in events(run) if "config" in e] == ["start", "resume"]


def test_two_runs_cannot_write_one_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [script("fastadv-train"), *flags(run, epochs=500)],
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (run / "checkpoints" / "last").exists():
            assert holder.poll() is None
            time.sleep(0.05)
        for words in (["--resume", "--out", str(run)], flags(run)):
            assert train_command.main(words) == 2
        errors = capsys.readouterr().err
        where = f"process {holder.pid} on {socket.gethostname()}"
        assert f"{run} is being written by {where}; wait until it ends" in errors
        assert "already holds a run" in errors
        holder.kill()
        holder.wait()
        assert Trainer(tiny(run, epochs=500, resume=True)).resumed  # at once
    finally:
        holder.kill()
        holder.wait()


def test_a_clock_that_jumps_changes_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, hours = tmp_path / "run", itertools.cycle([0.0, -1e6, 1e9])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(hours))
    summary = train(tiny(run, random_start=True))
    _same(run, whole)
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
    _same(run, whole)


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


def test_a_limit_on_the_size_of_files(whole: Path, tmp_path: Path) -> None:
    """A quota that the system enforces, not a planted exception."""
    run = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            train(tiny(run, random_start=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((run / "checkpoints").iterdir())
    train(tiny(run, random_start=True, resume=True))
    _same(run, whole)
