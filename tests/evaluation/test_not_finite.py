"""Logits that are NaN or infinite are a wrong answer, counted and named; so are images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from masks import THREAT, Masked, images
from torch import Tensor, nn

from fastadv.attacks import APGD, BPDA, PGD, Budget, PackageAttack, make_attack
from fastadv.attacks.outputs import decided
from fastadv.evaluation import evaluate
from fastadv.models import AttackView, LiveView

IMAGES, LABELS = images(16, 4)
BUDGET = Budget(num_steps=2, num_targets=2, num_queries=10)
NAMES = ("pgd", "margin", "apgd-ce", "apgd-t", "fmn", "fab", "square", "square package")


def _attack(name: str) -> Any:
    if name in ("pgd", "margin"):
        objective = "cross_entropy" if name == "pgd" else name
        return PGD.judge(THREAT, 2, objective=objective)
    if name in ("fab", "square", "square package"):
        pytest.importorskip("pyautoattack")
    name, _, judge = name.partition(" ")
    return make_attack(name, THREAT, BUDGET, judge=judge or "fastadv")  # type: ignore[arg-type]


def _all(value: float) -> nn.Module:
    return Masked(after=lambda z: z * 0 + value)


def _one(value: float) -> nn.Module:
    def after(z: Tensor) -> Tensor:
        return z + torch.tensor([0.0, 0.0, 0.0, value])

    return Masked(after=after)


BROKEN = {
    "all NaN": lambda: _all(math.nan),
    "all infinite": lambda: _all(math.inf),
    "one NaN": lambda: _one(math.nan),
    "one infinite": lambda: _one(math.inf),
    "one minus infinite": lambda: _one(-math.inf),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_network_is_right_on_nothing(how: str, name: str) -> None:
    found = evaluate(BROKEN[how](), [(IMAGES, LABELS)], _attack(name), checks=True)
    assert found.robust is not None
    assert found.clean.top1 == found.robust.top1 == 0
    assert found.nonfinite_clean == found.nonfinite_logits == 16
    assert "nonfinite_logits" in found.flags()
    assert any("16 of 16 images were NaN" in text for text in found.warnings())


def test_without_an_attack_too(caplog: pytest.LogCaptureFixture) -> None:
    found = evaluate(_all(math.nan), [(IMAGES, LABELS)])
    assert found.clean.top1 == 0
    assert found.nonfinite_clean == 16
    assert "16 of 16 images were NaN" in caplog.text


@pytest.mark.parametrize("name", [*NAMES, "bpda"])
def test_logits_that_break_off_the_grid_are_fooled(name: str) -> None:
    """Clean images lie on the grid of bytes; adversarial images need not."""

    def after_grid(x: Tensor) -> Tensor:
        off = ((x * 255) - (x * 255).round()).abs().flatten(1).amax(1) > 1e-2
        return x + torch.where(off, math.nan, 0.0).view(-1, 1, 1, 1)

    attack = BPDA(THREAT, 2) if name == "bpda" else _attack(name)
    found = evaluate(Masked(before=after_grid), [(IMAGES, LABELS)], attack)
    assert found.clean.top1 == 1
    assert found.nonfinite_clean == 0
    assert found.robust is not None
    assert found.robust.top1 == 0
    if found.nonfinite_logits:
        assert "nonfinite_logits" in found.flags()


def test_what_logits_decide() -> None:
    logits = torch.tensor(
        [[0.0, 1, 0], [math.nan, 1, 0], [0, math.inf, 0], [0, 1, -math.inf]]
    )
    assert decided(logits).tolist() == [1, -1, -1, -1]


# ---- images ----


def _entries() -> dict[str, Any]:
    model = Masked()
    return {
        "evaluate": lambda x: evaluate(model, [(x, LABELS)]),
        "evaluate attacked": lambda x: evaluate(model, [(x, LABELS)], _attack("pgd")),
        "perturb": lambda x: PGD(THREAT).perturb(model, x, LABELS),
        "perturb a view": lambda x: PGD(THREAT).perturb(AttackView(model), x, LABELS),
        "perturb live": lambda x: PGD(THREAT).perturb(LiveView(model), x, LABELS),
        "pgd": lambda x: PGD(THREAT)(model, x, LABELS),
        "apgd": lambda x: APGD(THREAT, 2)(model, x, LABELS),
        "bpda": lambda x: BPDA(THREAT, 2)(model, x, LABELS),
        "fmn": lambda x: _attack("fmn")(model, x, LABELS),
        "square": lambda x: PackageAttack("square", THREAT, BUDGET)(model, x, LABELS),
        "cascade": lambda x: _attack("apgd-ce")(model, x, LABELS),
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("entry", _entries())
def test_images_that_are_not_finite_are_refused_by_index(
    entry: str, value: float
) -> None:
    if entry == "square":
        pytest.importorskip("pyautoattack")
    x = IMAGES / 255
    _entries()[entry](x)
    x[3, 0, 2, 2] = x[11, 1, 0, 0] = value
    with pytest.raises(ValueError, match=r"in 2 of 16 images \(of index 3, 11 in the"):
        _entries()[entry](x)
