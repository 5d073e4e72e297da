"""Training with compiled attacks: the same weights, and a line in the log about it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from small_runs import events, tiny, weights

from fastadv.attacks import compiled
from fastadv.attacks.config import CompileName
from fastadv.training import train


def test_the_flag_offers_every_mode() -> None:
    assert get_args(CompileName) == get_args(compiled.CompileMode)


def test_a_compiled_run_learns_the_same_and_says_what_it_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Differentiates ahead of time as Inductor does, without generating code for it.
    monkeypatch.setattr(compiled, "COMPILER", "aot_eager")
    said = {}
    for mode in ("off", "inductor"):
        train(tiny(tmp_path / mode, compile=mode, num_train=100, epochs=1))
        (said[mode],) = (
            event for event in events(tmp_path / mode) if event["event"] == "compile"
        )
    assert said["off"] | {"mode": "eager", "compiled": 0} == said["off"]
    # 95 images in batches of 16 leave a last one of 15.
    expected = {
        "mode": "inductor",
        "reason": None,
        "compiled": 2,
        "captured": 0,
        "recompiles": 1,
    }
    assert said["inductor"] | expected == said["inductor"]
    assert weights(tmp_path / "off") == weights(tmp_path / "inductor")
