"""AutoAttack on networks of two and three classes, for which parts of it do not exist."""

from __future__ import annotations

import json

import pytest
import torch
from attack_nets import MEAN, SPEC, STD, SmallNet, batch, predicted, randomise_bn
from torch import nn

from fastadv.attacks import Budget, ThreatModel, make_attack
from fastadv.evaluation import evaluate
from fastadv.models import LiveView, NormalizedModel

pytest.importorskip("pyautoattack")
THREAT = ThreatModel("linf", "8/255")
BUDGET = Budget(num_steps=4, num_queries=20)
IMAGES = batch(12)[0]
EXPECTED = {
    2: ("apgd-ce", "fab", "square"),
    3: ("apgd-ce", "apgd-dlr", "fab", "square"),
    4: ("apgd-ce", "apgd-t", "fab", "square"),
}


def _model(classes: int) -> NormalizedModel:
    torch.manual_seed(classes)
    net = SmallNet(classes=classes)
    net.head.weight.data *= 8
    randomise_bn(net)
    return NormalizedModel(net, MEAN, STD, "small", classes, spec=SPEC).eval()


@pytest.mark.parametrize("judge", ["fastadv", "package"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_what_is_undefined_is_left_out_and_said(
    classes: int, judge: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = _model(classes)
    labels = predicted(model, IMAGES)
    attack = make_attack("autoattack", THREAT, BUDGET, judge=judge)  # type: ignore[arg-type]
    batches = [(IMAGES[:8], labels[:8]), (IMAGES[8:], labels[8:])]
    found = evaluate(model, batches, attack)
    assert tuple(stage.name for stage in found.stages) == EXPECTED[classes]
    assert found.robust is not None
    assert found.robust.top1 < 1
    said = [m for m in caplog.messages if "apgd-t needs at least 4 classes" in m]
    assert len(said) == (classes < 4)
    if classes == 2:
        assert said[0].endswith("it is left out")
    if classes == 3:
        assert said[0].endswith("it gives way to apgd-dlr")


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["plain", "live"])
def test_a_call_of_the_attack_leaves_it_out_too(classes: int, kind: str) -> None:
    """Also where the network does not state how many classes it has."""
    plain = nn.Sequential(_model(classes))
    model = LiveView(plain) if kind == "live" else plain
    labels = predicted(plain, IMAGES)
    attack = make_attack("autoattack", THREAT, BUDGET)
    found = attack(model, IMAGES, labels)
    assert found.success.any()
    assert len(found.seconds) == 4
    if classes == 2:
        assert not (found.fell_to == 1).any()


def test_the_description_says_it() -> None:
    whole = make_attack("autoattack", THREAT, BUDGET)
    assert whole.for_classes(4) is whole.for_classes(1000) is whole
    two, three = whole.for_classes(2).describe(), whole.for_classes(3).describe()
    assert two == whole.describe() | {"left_out": "apgd-t"}
    assert three == two | {"instead": "apgd-dlr"}
    assert json.loads(json.dumps(three)) == three


def test_one_attack_that_was_asked_for_is_refused() -> None:
    model = _model(2)
    labels = predicted(model, IMAGES)
    for name, least in (("apgd-t", 4), ("apgd-dlr", 3)):
        attack = make_attack(name, THREAT, BUDGET)
        assert attack.for_classes(2) is attack
        with pytest.raises(ValueError, match=f"needs at least {least} classes"):
            attack(model, IMAGES, labels)
