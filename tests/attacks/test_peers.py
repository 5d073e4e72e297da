"""The same attack in three other libraries, on the same network and batch.

Without a random start the mathematics is the same, so iterates agree to rounding. How
the peers differ, none of which may show here:

* They differentiate with respect to the image, we with respect to the normalised image
  in a network with BatchNorm folded away; the chain rule joins the two.
* torchattacks and robustness average the loss over the batch, foolbox and we sum it;
  the direction of a sample's gradient is the same.
* Against a zero gradient norm torchattacks and robustness add 1e-10, foolbox takes the
  maximum with 1e-12, we add 1e-30.
* robustness projects by `renorm`, which divides by (norm + 1e-7): it ends 1e-7 of the
  radius inside the ball.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attack_nets import batch, predicted, small_model
from torch import Tensor, nn

from fastadv.attacks import PGD, ThreatModel
from fastadv.threat import Norm

# Pixels in [0, 1] carry 6e-8 of rounding; after up to ten steps 4.2e-7 was measured.
TOLERANCE = 1e-6
# sign() turns a rounding difference around zero into 2 * step_size. In a smooth network
# gradients that small are rare: measured none in 6 * 768 pixels, allowed four.
LINF_SHARE = 0.999
# The loss that was reached, of size 2 to 6: measured 1.4e-6; a flipped pixel adds 1e-5.
LOSS_TOLERANCE = 5e-5

Peer = Callable[[nn.Module, Tensor, Tensor, Norm, float, float, int], Tensor]


def torchattacks_pgd(
    model: nn.Module, x: Tensor, y: Tensor, norm: Norm, eps: float, step: float, n: int
) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks", reason="make test installs it")
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    return kind(model, eps=eps, alpha=step, steps=n, random_start=False)(x, y)


def foolbox_pgd(
    model: nn.Module, x: Tensor, y: Tensor, norm: Norm, eps: float, step: float, n: int
) -> Tensor:
    foolbox = pytest.importorskip("foolbox", reason="make test installs it")
    attacks = foolbox.attacks
    kind = {
        "linf": attacks.LinfProjectedGradientDescentAttack,
        "l2": attacks.L2ProjectedGradientDescentAttack,
    }[norm]
    attack = kind(abs_stepsize=step, steps=n, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, clipped, _ = attack(wrapped, x, y, epsilons=eps)
    return clipped


def robustness_pgd(
    model: nn.Module, x: Tensor, y: Tensor, norm: Norm, eps: float, step: float, n: int
) -> Tensor:
    """The loop of `Attacker.forward`, which insists on `.cuda()`, on its library's own steps.

    It follows `robustness/attacker.py` of MadryLab/robustness without a random start: the
    gradient of the mean loss, a step, a projection to the ball and then to the pixels, and
    the last iterate counts.
    """
    steps = pytest.importorskip(
        "robustness.attack_steps", reason="make test installs it"
    )
    kind = {"linf": steps.LinfStep, "l2": steps.L2Step}[norm]
    stepper = kind(orig_input=x.detach(), eps=eps, step_size=step)
    for _ in range(n):
        x = x.clone().detach().requires_grad_(True)
        loss = F.cross_entropy(model(x), y, reduction="none").mean()
        (grad,) = torch.autograd.grad(loss, [x])
        with torch.no_grad():
            x = stepper.project(stepper.step(x, grad))
    return x.clone().detach()


PEERS = [
    pytest.param(torchattacks_pgd, id="torchattacks"),
    pytest.param(foolbox_pgd, id="foolbox"),
    pytest.param(robustness_pgd, id="robustness"),
]
SETTINGS = [
    pytest.param("linf", 8 / 255, 16 / 255 / 3, 3, id="linf-3"),
    pytest.param("linf", 8 / 255, 2 / 255, 10, id="linf-10"),
    pytest.param("l2", 1.0, 2 / 3, 3, id="l2-3"),
    pytest.param("l2", 0.5, 0.125, 10, id="l2-10"),
    pytest.param("l2", 8.0, 2.0, 5, id="l2-5-at-the-box"),
]


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


@pytest.mark.parametrize(("norm", "eps", "step", "n"), SETTINGS)
@pytest.mark.parametrize("peer", PEERS)
def test_iterates_agree(
    peer: Peer, norm: Norm, eps: float, step: float, n: int
) -> None:
    model, images = small_model(), batch()[0]
    x, y = images.float() / 255, predicted(model, images)
    theirs = peer(model, x, y, norm, eps, step, n)
    ours = PGD(ThreatModel(norm, eps), n, step, keep="last")(model, x, y)
    moved = (theirs - x).flatten(1).norm(dim=1)
    gap = (ours.x_adv - theirs).abs()
    assert (moved > 0.3 * step).all()
    if norm == "l2":
        assert gap.max() < TOLERANCE
    else:
        assert (gap < TOLERANCE).float().mean() >= LINF_SHARE
    before, after = losses(model, x, y), losses(model, theirs, y)
    assert (after > 1.1 * before).all()
    assert (ours.loss - after).abs().max() < LOSS_TOLERANCE
    with torch.no_grad():
        assert torch.equal(ours.success, model(theirs).argmax(1) != y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_attack_agrees_with_foolbox(norm: Norm) -> None:
    foolbox = pytest.importorskip("foolbox", reason="make test installs it")
    model, images = small_model(), batch()[0]
    x, y = images.float() / 255, predicted(model, images)
    target = (y + 1) % 10
    eps, step = (4 / 255, 1 / 255) if norm == "linf" else (1.0, 0.25)
    kind = (
        foolbox.attacks.LinfProjectedGradientDescentAttack
        if norm == "linf"
        else foolbox.attacks.L2ProjectedGradientDescentAttack
    )
    attack = kind(abs_stepsize=step, steps=5, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    criterion = foolbox.criteria.TargetedMisclassification(target)
    _, theirs, reached = attack(wrapped, x, criterion, epsilons=eps)
    pgd = PGD(ThreatModel(norm, eps), 5, step, objective="targeted", keep="last")
    ours = pgd(model, x, target)
    gap = (ours.x_adv - theirs).abs()
    assert (gap < TOLERANCE).float().mean() >= (LINF_SHARE if norm == "linf" else 1)
    assert torch.equal(ours.success, reached)
    assert (ours.loss + losses(model, theirs, target)).abs().max() < LOSS_TOLERANCE


def test_art_linf_agrees() -> None:
    """The Adversarial Robustness Toolbox steps in numpy, in float32."""
    classifiers = pytest.importorskip(
        "art.estimators.classification", reason="make test installs it"
    )
    evasion = pytest.importorskip("art.attacks.evasion")
    model, images = small_model(), batch()[0]
    x, y = images.float() / 255, predicted(model, images)
    wrapped = classifiers.PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(reduction="sum"),
        input_shape=(3, 16, 16),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    eps, step, n = 8 / 255, 2 / 255, 7
    attack = evasion.ProjectedGradientDescent(
        wrapped, eps=eps, eps_step=step, max_iter=n, verbose=False, batch_size=len(x)
    )
    theirs = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    ours = PGD(ThreatModel("linf", eps), n, step, keep="last")(model, x, y)
    gap = (ours.x_adv - theirs).abs()
    assert (gap < TOLERANCE).float().mean() >= LINF_SHARE
    assert (ours.loss - losses(model, theirs, y)).abs().max() < LOSS_TOLERANCE
