"""Attacks under `torch.inference_mode`, as Lightning validates, and `no_grad`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_nets import batch, predicted, small_model
from torch import Tensor, nn

from fastadv.attacks import (
    APGD,
    FMN,
    PGD,
    Budget,
    ThreatModel,
    UniversalAttack,
    make_attack,
)
from fastadv.evaluation import evaluate
from fastadv.models import AttackView, LiveView

THREAT = ThreatModel("l2", 0.4)
MODEL = small_model()
IMAGES = batch(6)[0]
LABELS = predicted(MODEL, IMAGES)

BUDGET = Budget(num_steps=3, num_targets=2, num_queries=10)
CALLS: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "perturb": lambda m, x, y: PGD(THREAT, 2).perturb(m, x, y)[0],
    "pgd": lambda m, x, y: PGD.judge(THREAT, 2)(m, x, y).x_adv,
    "apgd": lambda m, x, y: APGD(THREAT, 3)(m, x, y).x_adv,
    "minimal": lambda m, x, y: FMN(THREAT, 3).minimal(m, x, y).x_adv,
    "cascade": lambda m, x, y: make_attack("deepfool", THREAT)(m, x, y).x_adv,
    "square": lambda m, x, y: make_attack("square", THREAT, BUDGET)(m, x, y).x_adv,
    "fab": lambda m, x, y: make_attack("fab", THREAT, BUDGET)(m, x, y).x_adv,
    "view": lambda m, x, y: PGD(THREAT, 2).perturb(AttackView(m), x, y)[0],
    "live": lambda m, x, y: PGD(THREAT, 2).perturb(LiveView(m), x, y)[0],
    "evaluate": lambda m, x, y: (
        evaluate(m, [(x, y)], PGD.judge(THREAT, 2), checks=True, keep_logits=True)
        .images.attacked_logits  # type: ignore[union-attr]
    ),
}  # fmt: skip


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", CALLS)
def test_the_result_is_the_same(name: str, around: Any) -> None:
    if name in ("square", "fab"):
        pytest.importorskip("pyautoattack")
    expected = CALLS[name](MODEL, IMAGES, LABELS)
    with around():
        images, labels = IMAGES.clone(), LABELS.clone()  # made there, as a loader does
        found = CALLS[name](MODEL, images, labels)
        assert torch.equal(found, expected)
        assert torch.is_inference_mode_enabled() == (around is torch.inference_mode)
        assert not torch.is_grad_enabled()
    # What was made in inference mode is of use outside of it, too.
    assert torch.equal(CALLS[name](MODEL, images, labels), expected)


def test_a_view_that_was_made_there_serves_outside() -> None:
    with torch.inference_mode():
        view = AttackView(MODEL)
        view.refresh()
    assert view.folded
    found, _ = PGD(THREAT, 2).perturb(view, IMAGES, LABELS)
    assert torch.equal(found, CALLS["perturb"](MODEL, IMAGES, LABELS))


def test_a_universal_perturbation_can_be_crafted_there() -> None:
    def crafted() -> Tensor:
        attack = UniversalAttack(THREAT, 2)
        return attack.craft(MODEL, [IMAGES.clone(), IMAGES[:3] / 255]).delta

    expected = crafted()
    with torch.inference_mode():
        assert torch.equal(crafted(), expected)
