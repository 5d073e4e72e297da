"""A view that calls the model itself: counters, wrappers and hooks see every pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attack_nets import SmallNet, batch, predicted, same_bits, small_model, snapshot
from torch import Tensor, nn

from fastadv.attacks import APGD, PGD, ThreatModel, make_attack
from fastadv.evaluation import evaluate
from fastadv.models import AttackView, LiveView

THREAT = ThreatModel("l2", 0.4)
IMAGES = batch(6)[0]


class Counter(nn.Module):
    """Counts the images that pass, as benchmarks of attacks do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(self._back)
        return logits

    def _back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


class Unregistered(Counter):
    """Holds its network out of reach of `modules()` and `parameters()`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(nn.Identity())
        object.__setattr__(self, "net", net)
        self._modules.clear()


class Stateful(nn.Module):
    """A defence whose answer depends on the number of queries before."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("queries", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.queries += 1
        return self.net(x) * (1 + self.queries % 2)


@pytest.mark.parametrize("wrapper", [Counter, Unregistered])
@pytest.mark.parametrize("restarts", [1, 3])
def test_every_pass_of_pgd_is_counted(wrapper: Any, restarts: int) -> None:
    model = wrapper(small_model())
    labels = predicted(model, IMAGES)
    options: dict[str, Any] = {"num_restarts": restarts, "compile": "off"}
    attack = PGD.judge(THREAT, 4, early_stop=False, **options)
    copied = attack(model, IMAGES, labels)
    model.forwards = model.backwards = 0
    found = attack(LiveView(model), IMAGES, labels)
    # K gradients and the verdict on the last iterate, for each restart.
    assert (model.forwards, model.backwards) == (6 * 5 * restarts, 6 * 4 * restarts)
    torch.testing.assert_close(found.x_adv, copied.x_adv, atol=1e-4, rtol=0)
    model.forwards = model.backwards = 0
    attack.perturb(LiveView(model), IMAGES, labels)
    assert model.backwards == 6 * 4 * restarts
    # Images that are fooled leave the attack, and are passed no more.
    model.forwards = 0
    found = PGD.judge(THREAT, 4, num_restarts=restarts)(LiveView(model), IMAGES, labels)
    assert model.forwards == found.passes < 6 * 5 * restarts


def test_evaluate_counts_too() -> None:
    model = Counter(small_model())
    labels = predicted(model, IMAGES)
    expected = evaluate(model, [(IMAGES, labels)], APGD(THREAT, 5))
    model.forwards = 0
    found = evaluate(LiveView(model), [(IMAGES, labels)], APGD(THREAT, 5))
    assert model.forwards > 6 * 5 / 2
    assert found.robust is not None
    assert expected.robust is not None
    assert found.robust.top1 == expected.robust.top1
    before = model.forwards
    evaluate(LiveView(model), [(IMAGES, labels)])
    assert model.forwards == before + 6


@pytest.mark.parametrize("name", ["apgd-t", "fab", "square", "deepfool", "autoattack"])
def test_every_attack_takes_it(name: str) -> None:
    if name in ("fab", "square", "autoattack"):
        pytest.importorskip("pyautoattack")
    from fastadv.attacks import Budget

    model = Counter(small_model())
    labels = predicted(model, IMAGES)
    model.forwards = 0
    budget = Budget(num_steps=3, num_targets=2, num_queries=10)
    make_attack(name, THREAT, budget)(LiveView(model), IMAGES, labels)
    assert model.forwards > 0


def test_state_is_that_of_the_model() -> None:
    model = Stateful(small_model())
    labels = predicted(model, IMAGES)
    evaluate(LiveView(model), [(IMAGES, labels)], PGD.judge(THREAT, 4, compile="off"))
    assert model.queries == 1 + 1 + 5 + 1  # here, clean, the attack, the verdict


@pytest.mark.parametrize("training", [False, True])
def test_the_model_comes_back_as_it_was(training: bool) -> None:
    """BatchNorm is in evaluation mode inside, and modes are mixed outside."""
    model = small_model()
    model.net.act = nn.Sequential(nn.SiLU(), nn.Dropout(0.9))
    model.net.bn1.train(not training)
    model.net.bn2.train(training)
    before, modes = snapshot(model), [m.training for m in model.modules()]
    view = LiveView(model)
    labels = torch.arange(6)
    first = PGD(THREAT, 2).perturb(view, IMAGES, labels)[0]
    assert torch.equal(PGD(THREAT, 2).perturb(view, IMAGES, labels)[0], first)
    assert same_bits(snapshot(model), before)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    expected = PGD(THREAT, 2).perturb(AttackView(model), IMAGES, labels)[0]
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=0)


def test_it_is_in_its_mode_again_after_an_error() -> None:
    class Failing(SmallNet):
        def forward(self, z: Tensor) -> Tensor:
            raise RuntimeError("out of queries")

    model = Failing().train()
    with pytest.raises(RuntimeError, match="out of queries"):
        PGD(THREAT, 2).perturb(LiveView(model), IMAGES, torch.arange(6))
    assert all(module.training for module in model.modules())


def test_weights_are_followed_without_refresh() -> None:
    model = small_model()
    view, labels = LiveView(model), torch.arange(6)
    with torch.no_grad():
        model.net.head.weight.neg_()
    copied = copy.deepcopy(model)
    found = PGD(THREAT, 2).perturb(view, IMAGES, labels)[0]
    torch.testing.assert_close(
        found, PGD(THREAT, 2).perturb(copied, IMAGES, labels)[0], atol=1e-4, rtol=0
    )


def test_hooks_run() -> None:
    seen = []
    model = small_model()
    model.net.conv2.register_forward_hook(lambda *_: seen.append(1))
    PGD(THREAT, 3).perturb(LiveView(model), IMAGES, torch.arange(6))
    assert len(seen) == 3


def test_bad_arguments() -> None:
    model = small_model()
    with pytest.raises(TypeError, match="is a view already"):
        LiveView(AttackView(model))
    with pytest.raises(ValueError, match="the view has mode 'eval'"):
        PGD(THREAT, 1, bn_mode="train").perturb(
            LiveView(model), IMAGES, torch.arange(6)
        )
    labels = torch.arange(6)
    recorded = PGD(THREAT, 1, compile="inductor")
    recorded.perturb(LiveView(model), IMAGES, labels)
    assert recorded.compile_report().reason == (
        "a LiveView calls the model itself in every pass"
    )
