"""Ranks by themselves: who they are, their devices, how they are started and fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import flags
from torch.distributed import TCPStore

from fastadv.cli import train as command
from fastadv.errors import ConfigError
from fastadv.runs.distributed import World, join_ranks, read_environment
from fastadv.runs.launch import _free_port, launch
from fastadv.runs.peers import Peers


def test_what_an_earlier_start_said_is_not_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun --max-restarts starts ranks anew beside the store of those that failed."""
    port = _free_port()
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    first = Peers(0, 2, "first", quiet=True)
    second = Peers(0, 2, "second", quiet=True)
    try:
        first._report("out of memory", 1, 1)
        assert first._failure() == (1, "out of memory", 1)
        assert second._failure() is None
    finally:
        first.leave()
        second.leave()


@pytest.mark.parametrize(
    ("set_to", "complaint"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2 set, but RANK, MASTER_ADDR, MASTER_PORT not",
        ),
        ({"RANK": "0"}, "RANK=0 set, but WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a number"),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "RANK=2 of WORLD_SIZE=2",
        ),
    ],
)
def test_a_wrong_world_is_refused(
    set_to: dict[str, str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert command.main(flags(tmp_path / "run")) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError), join_ranks("cpu"):
        pass


def test_a_world_of_one_is_no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_environment({}) == World()
    assert read_environment({"WORLD_SIZE": "1"}) == World()
    given = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert read_environment(given) == World()


def test_more_ranks_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    crowded = World(rank=1, size=4, local_rank=1, local_size=4)
    with pytest.raises(ConfigError, match=r"4 ranks .* has 2 CUDA device\(s\)"):
        crowded.device("auto")
    with pytest.raises(ConfigError, match="`device=cuda:1` is one device"):
        crowded.device("cuda:1")
    assert crowded.device("cpu") == torch.device("cpu")
    fitting = World(rank=3, size=4, local_rank=1, local_size=2)
    assert fitting.device("cuda") == torch.device("cuda", 1)


def test_a_number_of_processes_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="`nproc=0` cannot work"):
        launch("fastadv.cli.train", 0, [])
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="torchrun and Slurm start the ranks"):
        launch("fastadv.cli.train", 2, [])
