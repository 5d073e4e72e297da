"""The checkpoints of a run: damaged, limited, locked, kept, and resumed by name."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import (
    STEPS,
    STEPS_PER_EPOCH,
    environment,
    events,
    flags,
    last_step,
    resume,
    same_ending,
    script,
    signal_at_step,
    tiny,
    weights,
)

from fastadv.cli import train as train_command
from fastadv.data.loading import make_loader as choosing
from fastadv.errors import ConfigError, OutputError, Preempted
from fastadv.training import RunDirectory, Trainer, train


def test_changed_choices_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Trainer(tiny(whole, random_start=True, resume=True, epochs=3, lr=0.2))
    assert "epochs: 2 -> 3, lr: 0.1 -> 0.2" in str(caught.value)
    with pytest.raises(ConfigError, match="already holds a run; add `resume`"):
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
    same_ending(run, whole)


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
    same_ending(run, whole)


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


def test_checkpoints_of_every_nth_epoch_stay(tmp_path: Path) -> None:
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


def test_resume_of_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "robust").mkdir()
    words = ["--resume", "--out", str(tmp_path / "robsut")]
    for given in (words, [*words, "--dry-run"], [*words, "--nproc", "2"]):
        assert train_command.main(given) == 2
        error = capsys.readouterr().err
        assert f"--resume: there is no run in {tmp_path / 'robsut'}" in error
        assert f"Perhaps you meant {tmp_path / 'robust'}." in error
        assert "--resume auto starts the run" in error
    assert not (tmp_path / "robsut").exists()


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
    same_ending(run, whole)
