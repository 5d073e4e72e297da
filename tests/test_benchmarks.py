"""What benchmarks leave behind: every row as it is measured, also of a run that is cut."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("FASTADV_BENCH", str(tmp_path / "rows"))
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.delitem(sys.modules, "harness", raising=False)
    return importlib.import_module("harness")


def test_rows_are_written_as_they_come(harness: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "rows" / "some.jsonl"
    file.parent.mkdir()
    file.write_text("of an earlier run\n")
    results = harness.Results("some")
    for number in range(3):
        results.add(number=number, value=1 / 3)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["number"] for row in rows] == list(range(number + 1))
    assert rows[0]["value"] == 0.33333
    assert rows[0]["bench"] == "some"


def test_all_buffers_are_used_and_a_call_is_what_is_timed(harness: ModuleType) -> None:
    used: list[int] = []
    calls = [lambda n=n: used.append(n) for n in range(5)]
    timing = harness.device_timing(calls, repeats=3, device=torch.device("cpu"))
    assert used == [0, 1, 2, 3, 4] * 4  # one warm-up
    assert len(timing.seconds) == len(timing.cpu) == 3
    assert timing.host == ()


@pytest.mark.parametrize("seconds", [5, 470])
def test_the_first_call_on_a_gpu_keeps_its_time_and_tells(
    seconds: int, tmp_path: Path
) -> None:
    """A program that only ends stands in for Python, so that stages take no time."""
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu.sh"],
        env=os.environ
        | {
            "DEVICE": "cpu",
            "PYTHON": "true",
            "OUT": str(tmp_path / "out"),
            "SECONDS_MAX": str(seconds),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/gpu.jsonl").open()]
    stages = ["facts", "clusters", "step_times", "attacks", "peers", "launches"]
    key = "left_out" if seconds < 10 else "ran"
    said = [row[key] for row in rows]
    assert [line.split()[2] for line in said[: len(stages)]] == stages
    assert all(row.get("code", 0) == 0 for row in rows)
    assert "== " in (tmp_path / "out" / "log").read_text()
