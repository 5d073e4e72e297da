"""Every attack keeps the one contract: its names, its description, its result."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from attack_nets import batch, predicted, small_model

from fastadv.attacks import APGD, PGD, Attack, Budget, Cascade, ThreatModel, make_attack

MODEL = small_model()
IMAGES = batch(8)[0]
LABELS = predicted(MODEL, IMAGES)
LABELS[3] = (LABELS[3] + 1) % 10  # wrong to begin with
THREAT = ThreatModel("l2", 0.3)
BUDGET = Budget(num_steps=5, num_targets=2, num_queries=20)


def _attack(name: str) -> Attack:
    if name == "pgd":
        return PGD.judge(THREAT, 5)
    if name == "apgd":
        return APGD(THREAT, 5)
    if name == "pgd+apgd":
        return Cascade([("pgd", PGD.judge(THREAT, 1)), ("apgd", APGD(THREAT, 5))])
    if name in ("autoattack", "fab", "square"):
        pytest.importorskip("pyautoattack")
    return make_attack(name, THREAT, BUDGET)


ATTACKS = [
    "pgd", "apgd", "pgd+apgd", "apgd-dlr", "apgd-t", "fab", "square", "deepfool", "fmn",
    "ddn",
]  # fmt: skip


@pytest.mark.parametrize("name", [*ATTACKS, "autoattack"])
def test_every_attack_describes_itself_in_plain_values(name: str) -> None:
    attack = _attack(name)
    found = attack.describe()
    assert (found["name"], found["norm"], found["eps"]) == (name, "l2", 0.3)
    assert json.loads(json.dumps(found)) == found
    standard = ("apgd-ce", "apgd-t", "fab", "square")
    several = {"autoattack": standard, "pgd+apgd": ("pgd", "apgd")}
    assert attack.names == several.get(name, (name,))
    single = {"pgd": PGD.judge(THREAT, 6), "apgd": APGD(THREAT, 6)}
    if name in single:  # another attack has another description
        assert single[name].describe() != found


@pytest.mark.parametrize("name", ATTACKS)
def test_every_result_has_a_verdict_per_image(name: str) -> None:
    attack = _attack(name)
    result = attack(attack.prepare(MODEL), IMAGES, LABELS)
    count = len(attack.names)
    assert result.success[3]
    assert result.fell_to[3] == 0
    assert torch.equal(result.success, result.fell_to < count)
    assert result.fell_to.max() <= count
    assert (result.fell_to.dtype, result.fell_to.shape) == (torch.int64, (8,))
    assert len(result.seconds) == count
    assert sum(result.seconds) > 0
    assert result.nonfinite.item() == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_only_active_images_count(name: str) -> None:
    active = torch.arange(8) % 2 == 0
    whole = _attack(name)(MODEL, IMAGES, LABELS)
    result = _attack(name)(MODEL, IMAGES, LABELS, active=active)
    assert not result.success[~active].any()
    assert (result.fell_to[~active] == len(_attack(name).names)).all()
    if name != "square":  # whose random numbers are drawn for the batch
        assert torch.equal(result.success, whole.success & active)


@pytest.mark.parametrize("eps", [0.3, 1.0])
@pytest.mark.parametrize(
    "options", [{}, {"num_restarts": 2, "seed": 3}, {"dtype": None}]
)
def test_the_judge_is_pgd_as_published(eps: float, options: dict[str, Any]) -> None:
    threat = ThreatModel("l2", eps)
    explicit = PGD(threat, 4, 2.5 * eps / 4, random_start=True, keep="best", **options)
    judge = PGD.judge(threat, 4, **options)
    assert judge.describe() == explicit.describe()
    whole = PGD.judge(threat, 4, early_stop=False, **options)
    found, expected = (a(MODEL, IMAGES, LABELS) for a in (whole, explicit))
    assert torch.equal(found.x_adv, expected.x_adv)
    assert torch.equal(found.success, expected.success)
    assert torch.equal(judge(MODEL, IMAGES, LABELS).success, expected.success)


def test_choices_of_the_judge_can_be_replaced() -> None:
    found = PGD.judge(THREAT, 4, step_size=0.1, keep="last").describe()
    assert (found["step_size"], found["keep"], found["random_start"]) == (
        0.1,
        "last",
        True,
    )
    with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
        PGD.judge(THREAT, 0)
    with pytest.raises(TypeError, match="step_sise"):
        PGD.judge(THREAT, 4, step_sise=0.1)
