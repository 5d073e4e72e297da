"""fastadv-train --plan: what it counts is what happens, what it projects comes true."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import STEPS, flags, tiny

from fastadv.cli import train as command
from fastadv.training import Trainer
from fastadv.training.plan import ASSUMED_EFFICIENCY, RunPlan, plan_run
from fastadv.training.probe import SavedMemory, Units, own_bytes, tensors_of


def _units(**changes: Any) -> float:
    trainer = Trainer(tiny(Path("never-made"), **changes), dry_run=True)
    trainer.model.train()
    batch = next(iter(trainer.loader))
    units = Units()
    with units.counting(trainer, batch.images):
        trainer.update(batch)
    return units.total / len(batch.labels)


@pytest.mark.parametrize(
    ("changes", "units"),
    [
        ({"eps": 0.0}, 3),
        ({"num_steps": 3}, 9),  # DESIGN: not 12, and not one forward pass more
        ({"num_steps": 1}, 5),
        ({"num_steps": 3, "accumulate": 2}, 9),
        ({"method": "free", "num_steps": 1, "replays": 4}, 12),
        # The attack's target is one clean pass of the view, the loss two of the model.
        ({"method": "trades", "num_steps": 3}, 1 + 6 + 6),
    ],
)
def test_units_of_cost_are_those_of_the_method(
    changes: dict[str, Any], units: float
) -> None:
    assert _units(**changes) == units


def test_the_memory_autograd_keeps_is_counted_exactly() -> None:
    """A chain y = ((x * w) * w) * w keeps its three factors' inputs: x and two products."""
    w = torch.ones(1000, requires_grad=True)
    ledger = SavedMemory(iter([w]))
    with ledger.recording():
        for _ in range(3):  # freed between passes
            x = torch.ones(1000)
            y = x * w
            y = y * w
            y = y * w
            y.sum().backward()
            del x, y
    assert ledger.peak == {"attack": 0, "train": 3 * 4000}
    assert ledger.largest == 4000


def test_memory_that_is_shared_counts_once() -> None:
    layer = torch.nn.Linear(10, 10)
    assert own_bytes(tensors_of(layer)) == 440
    both = [*tensors_of(layer), layer.weight[:5], layer.weight.T]
    assert own_bytes(iter(both)) == 440
    assert own_bytes(iter(both), but=[layer.bias]) == 400


def test_a_plan_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = flags(out, eval_every=2)
    assert command.main([*words, "--plan", "1", "8", "32", "--json"]) == 0
    assert not out.exists()
    found = json.loads(capsys.readouterr().out)
    assert found["units"] == 7
    assert found["steps"] == STEPS
    assert found["measured_steps"] == 20
    trainer = Trainer(tiny(out), dry_run=True)
    count = sum(p.numel() for p in trainer.model.parameters())
    assert found["parameters"] == count
    assert found["memory"]["gradients"] == found["memory"]["optimiser"] == 4 * count
    assert [row["devices"] for row in found["projection"]] == [1, 8, 32]
    one, eight, many = (row["seconds"] for row in found["projection"])
    assert one > eight > many > found["parts"]["setup"]


def test_a_plan_is_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*flags(tmp_path / "run"), "--plan"]) == 0
    text = capsys.readouterr().out
    assert "a step costs 7 units" in text
    assert max(len(line) for line in text.splitlines() if "  " in line) < 100
    assert text.count("\n\n") == 5
    for word in ("weights", "peak, measured", "images/s", "validation", "assumption"):
        assert word in text


@pytest.mark.parametrize("word", ["0", "-1", "two", "1.5"])
def test_numbers_of_devices_and_steps_are_checked(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--plan", "--profile"):
        with pytest.raises(SystemExit) as stopped:
            raise SystemExit(command.main([flag, word]))
        assert stopped.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_projection_shares_all_but_the_setup() -> None:
    plan = RunPlan(
        what="",
        device="",
        parameters=1,
        units=9,
        memory={},
        memory_peak=0,
        memory_measured=0,
        steps=1,
        measured_steps=1,
        step_seconds=1.0,
        images_per_s=1.0,
        data_wait=0.0,
        parts={"setup": 10.0, "training": 70.0, "validation": 10.0},
        devices=(1, 8),
    )
    assert plan.projected(1) == plan.projected(1, ASSUMED_EFFICIENCY) == 90
    assert plan.projected(8) == 10 + 80 / 8
    assert plan.projected(8, 0.8) == pytest.approx(10 + 80 / 6.4)


def test_the_projection_comes_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a quarter, in CPU time: other processes are no fault of the projection."""
    monkeypatch.setattr(time, "monotonic", time.process_time)
    config = tiny(tmp_path / "run", epochs=4, num_train=400, eval_images=100, workers=1)
    Trainer(config, dry_run=True)  # imports what a data set needs, once
    plan = plan_run(config)
    began = time.process_time()
    Trainer(config).fit()
    assert 0.75 < (time.process_time() - began) / plan.seconds < 1.25
