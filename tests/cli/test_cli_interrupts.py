"""Stop signals end commands with 75, and the same command goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fastadv.cli import eval as eval_command, transfer as transfer_command
from fastadv.cli.interrupts import continued, interrupt_on_sigterm
from fastadv.errors import EXIT_PREEMPTED
from fastadv.evaluation.journal import Journal
from fastadv.models import create_model
from fastadv.models.checkpoint import save_model
from fastadv.results.table import ResultsTable
from fastadv.transfer.protocol import TransferRun


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    names = [str(number) for number in range(10)]
    save_model(create_model("resnet8_cifar", 10, seed=0), path, {"classes": names})
    return path


def interrupt_after(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, n: int
) -> None:
    """Send SIGTERM to this process after the n-th call of a method."""
    real, calls = getattr(where, name), []

    def counting(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(where, name, counting)


@pytest.fixture
def _signals() -> Any:
    before = signal.getsignal(signal.SIGTERM)
    interrupt_on_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_signals")
def test_an_evaluation_goes_on_after_its_last_batch(
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    words = ["--checkpoint", str(network), "--data", "digits", "--num-images", "60"]
    words += ["--eps", "0.1", "--norm", "l2", "--num-steps", "1", "--batch-size", "20"]
    words += ["--results", str(results)]
    with monkeypatch.context() as patch:
        interrupt_after(patch, Journal, "add", 2)
        assert eval_command.main(words) == EXIT_PREEMPTED
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"continue with: fastadv-eval --checkpoint {network}" in said
    assert not ResultsTable(results).rows()
    interrupt_on_sigterm()
    judged: list[int] = []
    real = Journal.add
    monkeypatch.setattr(
        Journal,
        "add",
        lambda log, number, one: (judged.append(number), real(log, number, one)),
    )
    assert eval_command.main(words) == 0
    assert judged == [2]
    assert len(ResultsTable(results).rows()) == 2
    assert not (results / "_journals").exists()


@pytest.mark.usefixtures("_signals")
def test_a_transfer_names_the_seeds_that_are_left(
    network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    words = ["--source", str(network), "--dataset", "digits", "--mode", "fixed_feature"]
    words += ["--num-train", "50", "--seeds", "3", "4", "5", "--results", str(results)]
    words += ["--feature-cache", "off"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, TransferRun, "_store", 2)
        assert transfer_command.main(words) == EXIT_PREEMPTED
    rows = ResultsTable(results).rows()
    assert sorted({row.seed for row in rows}) == [3, 4]
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"are in {results}; continue with: fastadv-transfer" in said
    left = said.partition("--seeds 3 4 5")[2].partition("--seeds ")[2]
    assert left.split() in (["5"], ["4", "5"])


def test_the_command_that_continues(tmp_path: Path) -> None:
    out = str(tmp_path / "a run")
    assert continued("fastadv-train", ["--out", out]) == f"fastadv-train --out '{out}'"
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "log.jsonl").touch()
    assert continued("fastadv-train", ["--out", out]).endswith(" --resume")
    assert continued("fastadv-eval", ["--out", out, "--resume"]).count("--resume") == 1
    assert (
        continued("fastadv-data", ["pack", "x", out]) == f"fastadv-data pack x '{out}'"
    )
