"""A run directory by itself: any choices, any weights, never half written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from fastadv.errors import CheckpointError, ConfigError, OutputError
from fastadv.runs.directory import RunDirectory

CHOICES = {"depth": 3, "rates": [0.1, 0.01], "out": "here"}


def open_run(path: Path) -> RunDirectory:
    return RunDirectory(path, may_change=["out"])


def save(run: RunDirectory, step: int, *, best: bool = False) -> Path:
    """A checkpoint whose weights are the number of its step."""
    state = {"config": CHOICES, "step": step, "moments": torch.full((3,), step)}
    return run.save(
        lambda folder: (folder / "weights").write_text(str(step)) and None,
        state,
        step=step,
        best=best,
    )


def weights(run: RunDirectory, link: str) -> str:
    return (run.checkpoints / link / "weights").read_text()


@pytest.fixture
def saved(tmp_path: Path) -> RunDirectory:
    """A run of three checkpoints, the first of which is the best."""
    run = open_run(tmp_path / "run")
    assert run.prepare(CHOICES, resume=False) is None
    for step in (1, 2, 3):
        save(run, step, best=step == 1)
    run.release()
    return run


def test_the_state_comes_back_and_links_say_which(saved: RunDirectory) -> None:
    state = open_run(saved.path).prepare(CHOICES | {"out": "there"}, resume=True)
    assert state is not None
    assert state["step"] == 3
    assert state["moments"].tolist() == [3, 3, 3]
    names = ("best", "previous", "last")
    assert [weights(saved, name) for name in names] == ["1", "2", "3"]
    assert saved.has_best


def test_other_choices_are_refused_unless_they_may_change(saved: RunDirectory) -> None:
    with pytest.raises(ConfigError, match=r"\(depth: 3 -> 4\)"):
        open_run(saved.path).prepare(CHOICES | {"depth": 4, "new": 1}, resume=True)
    with pytest.raises(ConfigError, match="already holds a run; add `resume`"):
        open_run(saved.path).prepare(CHOICES, resume=False)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    saved: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("last", "best"):
        (saved.checkpoints / name / "weights").write_text("damage")
    with caplog.at_level(logging.WARNING):
        state = open_run(saved.path).prepare(CHOICES, resume=True)
    assert state is not None
    assert state["step"] == 2
    assert weights(saved, "last") == "2"
    assert not saved.has_best
    assert "weights is damaged (checksum differs)" in caplog.text
    (saved.checkpoints / "last" / "state.pt").unlink()
    with pytest.raises(CheckpointError, match="no other checkpoint is left"):
        open_run(saved.path).prepare(CHOICES, resume=True)


def test_weights_that_cannot_be_written_change_nothing(saved: RunDirectory) -> None:
    def fails(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    before = sorted(saved.path.rglob("*"))
    with pytest.raises(OutputError, match=r"could not save .*No space left on device"):
        saved.save(fails, {"config": CHOICES}, step=4, best=True)
    assert sorted(saved.path.rglob("*")) == before
    assert weights(saved, "last") == "3"


def test_a_lost_config_is_written_again(saved: RunDirectory) -> None:
    open_run(saved.path).restore_config()
    written: dict[str, Any] = {}
    for line in (saved.path / "config.yaml").read_text().splitlines():
        key, _, value = line.partition(": ")
        written[key] = value
    assert written["depth"] == "3"
    assert written["resume"] == "false"


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


@pytest.mark.parametrize("sums", [None, "", "weights"])
def test_sums_that_state_nothing_are_said_and_the_files_own_checksums_taken(
    saved: RunDirectory, caplog: pytest.LogCaptureFixture, sums: str | None
) -> None:
    last = saved.checkpoints / "last"
    lines = (last / "SHA256SUMS").read_text().splitlines(keepends=True)
    (last / "SHA256SUMS").unlink()
    if sums is not None:
        kept = [line for line in lines if sums and line.endswith(f"  {sums}\n")]
        (last / "SHA256SUMS").write_text("".join(kept))
    with caplog.at_level(logging.WARNING):
        state = open_run(saved.path).prepare(CHOICES, resume=True)
    assert state is not None
    assert state["step"] == 3
    assert "SHA256SUMS is missing, empty or partial" in caplog.text
    with pytest.raises(CheckpointError, match="is not written again from"):
        open_run(saved.path).restore_config()
    assert not (saved.path / "config.yaml").exists()
    data = bytearray((last / "state.pt").read_bytes())
    data[data.index(3 * (3).to_bytes(8, "little"))] ^= 1  # in the tensor of moments
    (last / "state.pt").write_bytes(data)
    state = open_run(saved.path).prepare(CHOICES, resume=True)
    assert state is not None
    assert state["step"] == 2


def test_a_state_of_another_program_is_one_line(saved: RunDirectory) -> None:
    for name in ("last", "previous"):
        folder = saved.checkpoints / name
        (folder / "SHA256SUMS").unlink()
        torch.save({"a": 1}, folder / "state.pt")
    with pytest.raises(CheckpointError, match=r"is no state of a run \(no `config`"):
        open_run(saved.path).prepare(CHOICES, resume=True)
