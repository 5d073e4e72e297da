"""Profiles of steps: every phase gets its own time, and short runs report what they have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastadv.phases import marked, phase
from fastadv.runs.profile import PhaseTimer, StepProfile, summary


def test_a_timer_gives_each_phase_what_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter(map(float, [0, 1, 2, 4, 7, 8, 10, 20, 21, 23, 30]))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    timer = PhaseTimer(torch.device("cpu"))  # 0
    with marked(timer.mark):
        with phase("train"), phase("attack"), phase("fused step"):  # 1, 2, 4
            pass  # 7, 8, 10
        timer.boundary(counted=True)  # 20
        with phase("data"):  # 21
            pass  # 23
        timer.boundary(counted=False)  # 30
    seconds = timer.seconds()
    assert len(timer) == 1
    assert {k: v for k, v in seconds.items() if v} == {
        "train": 3,
        "attack, rest": 3,
        "fused step": 3,
        "other": 11,
    }
    assert sum(summary(seconds, 1, 8)["shares"].values()) == pytest.approx(1)


def test_a_short_run_reports_what_it_has(tmp_path: Path) -> None:
    told: list[str] = []
    for steps, wanted in ((1, "within the 3 steps of warm-up"), (5, "mean of 2")):
        short = StepProfile(tmp_path, 9, torch.device("cpu"), 8, told.append)
        for _ in range(steps):
            with phase("train"):
                sum(range(1000))
            short.end_step()
        short.close()
        short.close()
        assert wanted in told.pop()
        assert not told


def test_nothing_is_marked_without_a_profile(tmp_path: Path) -> None:
    off = StepProfile(tmp_path, None, torch.device("cpu"), 8, print)
    for _ in range(30):
        off.end_step()
    off.close()
    assert phase("train") is phase("data")  # one empty context for all
    assert list(tmp_path.iterdir()) == []
