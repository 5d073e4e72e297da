"""Attacks that minimise the norm: closed forms, other libraries, and what cannot work.

foolbox's FMN in l2 projects onto nothing (its factor is norm / norm), so that one is
compared with adv-lib alone.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from attack_nets import batch, predicted, same_bits, small_model, snapshot
from torch import Tensor, nn

from fastadv.attacks import DDN, FMN, DeepFool, ThreatModel
from fastadv.attacks.minimal import MinimalNormAttack, norm_of
from fastadv.threat import Norm

L2, LINF = ThreatModel("l2", 0.5), ThreatModel("linf", "8/255")
EVERY = [
    pytest.param(DeepFool, L2, id="deepfool-l2"),
    pytest.param(DeepFool, LINF, id="deepfool-linf"),
    pytest.param(FMN, L2, id="fmn-l2"),
    pytest.param(FMN, LINF, id="fmn-linf"),
    pytest.param(DDN, L2, id="ddn"),
]
Make = Callable[..., MinimalNormAttack]


def grey(n: int = 8, classes: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network, and images so far from 0 and 1 that these bind nowhere."""
    draw = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
    linear = net[1]
    weight = torch.randn(linear.weight.shape, generator=draw)
    linear.weight.data.copy_(weight)
    linear.bias.data.copy_(torch.randn(classes, generator=draw))
    images = 0.4 + 0.2 * torch.rand(n, 3, 8, 8, generator=draw)
    with torch.no_grad():
        return net, images, net(images).argmax(1)


def true_distance(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Distance to the nearest plane between two classes: gap over the dual norm."""
    weight, logits = net[1].weight.detach(), net(x).detach()
    found = torch.full((len(x),), torch.inf)
    for k in range(len(weight)):
        ways = weight[k] - weight[y]
        dual = ways.norm(dim=1) if norm == "l2" else ways.abs().sum(1)
        gap = (logits[:, k] - logits.gather(1, y[:, None])[:, 0]).abs()
        found = torch.minimum(found, torch.where(y == k, torch.inf, gap / dual))
    return found


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_is_exact_for_a_linear_network(norm: Norm) -> None:
    net, x, y = grey()
    attack = DeepFool(ThreatModel(norm, 0.1), refine=30)
    found = attack.minimal(net, x, y)
    expected = true_distance(net, x, y, norm)
    assert expected.min() > 1e-3
    assert (found.distance - expected).abs().max() < 1e-5
    assert found.found.all()
    # As published it is longer by its overshoot, and by 1e-4.
    plain = DeepFool(ThreatModel(norm, 0.1)).minimal(net, x, y)
    assert torch.allclose(plain.distance, 1.02 * (expected + 1e-4), rtol=1e-4)


@pytest.mark.parametrize("make", [FMN, DDN])
def test_balls_shrink_to_the_distance_of_a_linear_network(make: Make) -> None:
    net, x, y = grey()
    found = make(ThreatModel("l2", 0.1), num_steps=400).minimal(net, x, y)
    expected = true_distance(net, x, y, "l2")
    assert (found.distance >= expected - 1e-6).all()
    assert (found.distance <= 1.01 * expected + 1e-3).all()


FOOLBOX = [
    pytest.param(DeepFool, L2, "L2DeepFoolAttack", id="deepfool-l2"),
    pytest.param(DeepFool, LINF, "LinfDeepFoolAttack", id="deepfool-linf"),
    pytest.param(DDN, L2, "DDNAttack", id="ddn"),
    pytest.param(FMN, LINF, "LInfFMNAttack", id="fmn-linf"),
]


@pytest.mark.parametrize(("make", "threat", "theirs"), FOOLBOX)
def test_foolbox_finds_the_same(make: Make, threat: ThreatModel, theirs: str) -> None:
    """Same network, same steps: measured 2e-7 per pixel at most.

    FMN keeps the pixels of the first of several equally short perturbations, and rounding
    decides which that is: up to 14 of 6,144 pixels differed, while distances agree.
    """
    foolbox = pytest.importorskip("foolbox", reason="make test installs it")
    model, images = small_model(), batch(8)[0]
    x, y = images.float() / 255, predicted(model, images)
    y[3] = (y[3] + 1) % 10  # wrong to begin with
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    expected = getattr(foolbox.attacks, theirs)(steps=40).run(wrapped, x, y)
    found = make(threat, num_steps=40).minimal(model, x, y)
    gap = (found.x_adv - expected).abs()
    share = 0.99 if make is FMN else 1
    assert (gap < 5e-6).float().mean() >= share
    lengths = norm_of(expected - x, threat.norm)
    assert (found.distance - lengths).abs().max() < 5e-6
    assert found.distance[3] == 0
    assert found.distance[:3].min() > 1e-3


@pytest.fixture
def adv_lib(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The attacks of adv-lib, without the plots of visdom, which it imports for them."""
    if importlib.util.find_spec("visdom") is None:
        monkeypatch.setitem(sys.modules, "visdom", ModuleType("visdom"))
    return pytest.importorskip("adv_lib.attacks", reason="make test installs adv-lib")


@pytest.mark.parametrize(("make", "threat"), EVERY)
def test_adv_lib_finds_the_same(
    make: Make, threat: ThreatModel, adv_lib: ModuleType
) -> None:
    """Same network, same steps: lengths differ by 4e-7 at most.

    In linf, rounding decides the sign of the smallest gradients: 14 of 6,144 pixels
    differed. FMN in l2 finds nothing on the small convolutional network in either library,
    so a linear one stands in.
    """
    if make is FMN and threat.norm == "l2":
        model, x, y = grey()
    else:
        model, images = small_model(), batch(8)[0]
        x, y = images.float() / 255, predicted(model, images)
    y[3] = (y[3] + 1) % 5  # wrong to begin with
    norm = 2 if threat.norm == "l2" else math.inf
    theirs = {
        DeepFool: lambda: adv_lib.df(model, x, y, steps=40, norm=norm),
        DDN: lambda: adv_lib.ddn(model, x, y, steps=40, levels=None),
        FMN: lambda: adv_lib.fmn(model, x, y, norm=norm, steps=40),
    }
    expected = theirs[make]()
    found = make(threat, num_steps=40).minimal(model, x, y)
    assert ((found.x_adv - expected).abs() < 5e-6).float().mean() >= 0.99
    lengths = norm_of(expected - x, threat.norm)
    assert (found.distance - lengths).abs().max() < 2e-6
    assert found.distance[3] == 0
    assert found.distance[:3].min() > 1e-3


@pytest.mark.parametrize(("make", "threat"), EVERY)
def test_the_batch_does_not_matter(make: Make, threat: ThreatModel) -> None:
    model, images = small_model(), batch(7)[0]
    y = predicted(model, images)
    before = snapshot(model)
    attack = make(threat, num_steps=30)
    whole = attack.minimal(model, images, y)
    parts = [
        attack.minimal(model, images[i : i + 2], y[i : i + 2]) for i in range(0, 7, 2)
    ]
    distance = torch.cat([part.distance for part in parts])
    assert torch.equal(distance.isfinite(), whole.found)
    finite = whole.found
    assert torch.allclose(distance[finite], whole.distance[finite], atol=1e-5)
    assert same_bits(before, snapshot(model))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("make", "threat"), EVERY)
def test_what_is_found_is_misclassified(make: Make, threat: ThreatModel) -> None:
    net, x, y = grey()
    y[2] = (y[2] + 1) % 5
    found = make(threat, num_steps=50).minimal(net, x, y)
    assert found.found.all()
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    assert (net(found.x_adv).argmax(1) != y).all()
    assert torch.equal(found.distance, norm_of(found.x_adv - x, threat.norm))
    # An image that is misclassified already needs no perturbation.
    assert found.distance[2] == 0
    refined = make(threat, num_steps=50, refine=10).minimal(net, x, y)
    assert (net(refined.x_adv).argmax(1) != y).all()
    assert (refined.distance <= found.distance).all()
    if make is DeepFool:  # The others end at the boundary by themselves.
        assert (refined.distance < 0.99 * found.distance)[found.distance > 0].all()


@pytest.mark.parametrize(("make", "threat"), EVERY)
def test_the_verdict_is_that_of_the_radius(make: Make, threat: ThreatModel) -> None:
    net, x, y = grey()
    lengths = make(threat, num_steps=50).minimal(net, x, y).distance
    eps = float(lengths.median())
    attack = make(ThreatModel(threat.norm, eps), num_steps=50)
    result = attack(net, x, y)
    assert torch.equal(result.success, lengths <= eps * (1 + 1e-6))
    assert 0 < result.success.sum() < len(x)
    assert norm_of(result.x_adv - x, threat.norm).max() <= eps * (1 + 1e-6)
    assert torch.equal(net(result.x_adv).argmax(1) != y, result.success)
    if make is not DDN:  # which maximises cross-entropy, not the margin
        assert torch.equal(result.loss >= 0, result.success)
    active = torch.arange(len(x)) % 2 == 0
    part = attack.minimal(net, x, y, active=active)
    assert torch.equal(part.distance[active], lengths[active])
    assert part.distance[~active].isinf().all()


class Broken(nn.Module):
    """Logits that are constant, not finite, or whose gradient is not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3))
        logits = torch.stack([level, level - 1, level - 2], 1)
        if self.how == "constant":
            return 0 * logits + torch.tensor([1.0, 0, 0])
        if self.how == "nan":
            return logits * torch.nan
        # The square root of zero has an infinite slope.
        return logits + (0 * x).sum((1, 2, 3)).sqrt()[:, None]


@pytest.mark.parametrize("how", ["constant", "gradient"])
@pytest.mark.parametrize(("make", "threat"), EVERY)
def test_what_was_not_found_is_infinite(
    make: Make, threat: ThreatModel, how: str
) -> None:
    x, y = torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64)
    found = make(threat, num_steps=5).minimal(Broken(how), x, y)
    assert found.distance.isinf().all()
    assert not found.found.any()
    assert torch.equal(found.x_adv, x)
    assert bool(found.nonfinite > 0) == (how == "gradient")


@pytest.mark.parametrize(("make", "threat"), EVERY)
def test_logits_that_are_not_finite_are_a_wrong_answer(
    make: Make, threat: ThreatModel
) -> None:
    x, y = torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64)
    found = make(threat, num_steps=5).minimal(Broken("nan"), x, y)
    assert torch.equal(found.distance, torch.zeros(4))
    assert torch.equal(found.x_adv, x)


BAD = [
    (lambda: DDN(LINF), "ddn minimises l2, not linf"),
    (lambda: DDN(L2, first_radius=0), "first_radius=0"),
    (lambda: FMN(L2, gamma=1), "gamma=1 must be between 0 and 1"),
    (lambda: FMN(L2, step_size=-1), "step_size=-1"),
    (lambda: DeepFool(L2, num_steps=0), "num_steps=0"),
    (lambda: DeepFool(L2, num_candidates=1), "num_candidates=1 must be at least 2"),
    (lambda: DeepFool(L2, overshoot=-0.1), "overshoot=-0.1"),
    (lambda: DeepFool(L2, refine=-1), "refine=-1 must be at least 0"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
