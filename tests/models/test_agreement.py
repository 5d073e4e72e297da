"""A view is compared with its model, and gives way to it where the two differ."""

from __future__ import annotations

import gc
import linecache
import logging
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_nets import SmallNet, batch, predicted, small_model
from masks import THREAT, images, trained
from torch import Tensor, nn

from fastadv.attacks import PGD, ThreatModel
from fastadv.evaluation import evaluate
from fastadv.models import AttackView, LiveView, NormalizedModel

IMAGES, LABELS = images(32, 3)


class _Changed(nn.Module):
    """The network behind something that Python decides."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = trained(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.change(x))


OWN = torch.Generator().manual_seed(0)
DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "size": lambda x: F.interpolate(
        F.interpolate(x, size=int(torch.randint(9, 15, ()))), size=16
    ),
    "float": lambda x: x + 0.3 * float(torch.randn(())),
    "numpy": lambda x: x + torch.from_numpy(np.random.randn(1, 3, 16, 16)).float(),
    "python": lambda x: torch.roll(x, random.choice([0, 1, 5]), 3),
    "own generator": lambda x: x + 0.3 * torch.randn((1, 3, 16, 16), generator=OWN),
    "dropout": lambda x: F.dropout(x, 0.5),
}


def _by_batch(x: Tensor) -> Tensor:
    if isinstance(x, torch.fx.Proxy):
        return x
    draw = torch.Generator().manual_seed(int(1e3 * x.detach().sum()))
    return x + 0.3 * torch.randn(x.shape, generator=draw)


DECIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "gradients": lambda x: x if torch.is_grad_enabled() else 0 * x,
    "no gradients": lambda x: 0 * x if torch.is_grad_enabled() else x,
    "type": lambda x: 0 * x if isinstance(x, Tensor) else x,
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize("name", DRAWN)
def test_a_model_that_draws_is_attacked_itself(name: str) -> None:
    view = AttackView(_Changed(DRAWN[name]))
    found = view.compare(IMAGES)
    assert found.randomised
    assert found.reason == view.live_reason
    by_itself = "other outputs for the same images"
    expected = by_itself if name == "own generator" else "draws random numbers"
    assert expected in str(found.reason)
    outputs = [view(view.normalize(IMAGES)) for _ in range(6)]
    assert not all(torch.equal(each, outputs[0]) for each in outputs)


def test_noise_that_is_seeded_by_the_batch_is_noise() -> None:
    view = AttackView(_Changed(_by_batch))
    assert view.compare(IMAGES).randomised


@pytest.mark.parametrize("name", DECIDED)
def test_a_model_that_decides_in_python_is_attacked_itself(name: str) -> None:
    model = _Changed(DECIDED[name])
    view = AttackView(model)
    found = view.compare(IMAGES)
    assert not found.randomised
    assert "decides in Python" in str(found.reason)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            assert torch.equal(view(view.normalize(IMAGES)), model(IMAGES / 255))


@pytest.mark.parametrize("name", [*DRAWN, *DECIDED])
def test_clean_accuracy_is_that_of_the_model(name: str) -> None:
    change = (DRAWN | DECIDED)[name]
    model = _Changed(change)
    found = evaluate(model, [(IMAGES, LABELS)], PGD.judge(THREAT, 2), checks=True)
    assert found.live_reason is not None
    assert any(found.live_reason in warning for warning in found.warnings())
    assert ("randomised" in found.flags()) == (name in DRAWN)
    if name in DECIDED:
        with torch.no_grad():
            right = (model(IMAGES / 255).argmax(1) == LABELS).float().mean()
        assert found.clean.top1 == pytest.approx(float(right))


def test_the_reason_is_said_once_for_a_view(caplog: pytest.LogCaptureFixture) -> None:
    view = AttackView(_Changed(DECIDED["type"]))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            PGD.judge(THREAT, 2)(view, IMAGES, LABELS)
    assert caplog.text.count("decides in Python what it computes") == 1


class _Overridden(NormalizedModel):
    """A defence that is written as a subclass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


@pytest.mark.parametrize("how", ["subclass", "hook"])
def test_a_defence_around_the_network_is_not_left_out(how: str) -> None:
    model = small_model()
    x = batch(6)[0]
    expected = model(x / 255).flip(1).detach()
    if how == "hook":
        model.register_forward_hook(lambda module, args, out: out.flip(1))
    else:
        model.__class__ = _Overridden
    view = AttackView(model)
    torch.testing.assert_close(view(view.normalize(x)), expected, atol=1e-4, rtol=1e-4)
    labels = expected.argmax(1)
    assert evaluate(model, [(x, labels)]).clean.top1 == 1


def test_ordinary_networks_keep_their_folded_view() -> None:
    for model in (small_model(), small_model().bfloat16(), trained()):
        view = AttackView(model)
        assert view.compare(IMAGES).reason is None
        assert view.live_reason is None
        assert view.folded == 2
    half = AttackView(small_model(), dtype=torch.bfloat16)
    assert half.compare(IMAGES).reason is None


def test_the_comparison_takes_few_passes_of_few_images_once() -> None:
    passed: list[int] = []

    class Counted(SmallNet):
        def forward(self, z: Tensor) -> Tensor:
            if not isinstance(z, torch.fx.Proxy):
                passed.append(len(z))
            return super().forward(z)

    model = small_model(net=Counted())
    view, x = AttackView(model), batch(40)[0]
    attack = PGD(ThreatModel("l2", 0.5), 2)
    for _ in range(3):
        attack.perturb(view, x, torch.zeros(40).long())
    assert passed == [16, 8]  # beside one pass of the copy
    for _ in range(3):  # a new view each time, of a network that is known
        attack.perturb(model, x, torch.zeros(40).long())
    assert passed == [16, 8]


def test_verdicts_are_those_of_the_model() -> None:
    """A view that follows no update of statistics is stale; its verdicts do not count."""
    model = small_model()
    x = batch(6)[0]
    labels = predicted(model, x)
    view = AttackView(model)
    view.compare(x)
    with torch.no_grad():
        model.net.bn2.running_mean += 30  # not noticed: no parameter was written to
        right = model(x / 255).argmax(1) == labels
    assert not right.all()
    result = PGD(ThreatModel("l2", 0.0), 1)(view, x, labels)
    assert torch.equal(result.success, ~right)
    found = evaluate(view, [(x, labels)], PGD.judge(ThreatModel("l2", 1e-6), 1))
    assert found.clean.top1 == pytest.approx(float(right.float().mean()))


# ---- memory ----


def _sources() -> int:
    return len(torch.fx.graph_module._loader.eval_cache) + len(linecache.cache)


def _graphs() -> int:
    kinds = map(type, gc.get_objects())  # isinstance would wake lazy objects
    return sum(issubclass(kind, torch.fx.GraphModule) for kind in kinds)


def test_views_leave_nothing_behind() -> None:
    model, x = small_model(), batch(4)[0]
    labels = torch.zeros(4).long()
    attack = PGD(ThreatModel("l2", 0.5), 1)
    attack(model, x, labels)
    gc.collect()
    before, views = _sources(), []
    graphs = _graphs()
    for _ in range(5):
        view = AttackView(model)
        view.features(view.normalize(x))  # another graph
        views.append(weakref.ref(view))
        attack(model, x, labels)
    del view
    gc.collect()
    assert _sources() == before
    assert all(view() is None for view in views)
    after = _graphs()
    assert after == graphs


def test_a_live_view_makes_no_copy() -> None:
    model: Any = small_model()
    view = LiveView(model)
    assert view.net is model.net
    assert view.given is model
    assert view.folded == 0
    assert view.live_reason == "the model itself is called"
