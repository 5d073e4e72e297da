"""What the tests of compiled and of recorded attacks share. No tests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_nets import batch, predicted, small_model
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fastadv.attacks import PGD, ThreatModel
from fastadv.models import NormalizedModel
from fastadv.models.view import AttackView

THREAT = ThreatModel("l2", 1.0)
IMAGES = batch(6)[0]


def attack(compile: Any = "off", **options: Any) -> PGD:
    return PGD(THREAT, 3, compile=compile, **options)


def setting(seed: int = 0) -> tuple[NormalizedModel, AttackView, Tensor]:
    model = small_model(seed)
    return model, AttackView(model), predicted(model, IMAGES)


def shrink(model: NormalizedModel, view: AttackView) -> None:
    """As an optimiser step: in place, and the view follows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    view.refresh()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this package logged; torch's compiler talks to loggers of its own."""
    records = (r for r in caplog.records if r.name.startswith("fastadv"))
    return [r.message for r in records if r.levelno >= logging.WARNING]


def record_operators(
    call: Callable[[], Any], device: torch.device
) -> Callable[[], Any]:
    """Stands in for a CUDA graph: a graph of operators over the very tensors they ran on.

    Replayed, it reads inputs and weights where they lay when it was recorded, and writes
    results there, whatever Python objects have come to hold since.
    """
    call()
    traced = make_fx(call)()
    operators = {str(n.target) for n in traced.graph.nodes if n.op == "call_function"}
    assert "fastadv.pgd_step_.default" in operators
    held: tuple[Tensor, ...] = tuple(t.clone() for t in traced())

    def replay() -> tuple[Tensor, ...]:
        for buffer, result in zip(held, traced(), strict=True):
            buffer.copy_(result)
        return held

    return replay
