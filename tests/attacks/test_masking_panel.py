"""Networks that hide their gradients: what is reported is true, or is called doubtful."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masks import HONEST, MASKS, THREAT, images, trained
from torch import Tensor, nn

from fastadv.attacks import BPDA, PGD, Cascade, Transfer
from fastadv.evaluation import evaluate

# Without a mask the network is right on all of these images, and on none under attack.
# No mask makes it more robust than that, whatever its gradients look like.
BATCHES = [images(48, 2)]
STEPS = 12


def _pgd(objective: str = "cross_entropy") -> PGD:
    return PGD.judge(THREAT, STEPS, objective=objective, compile="off")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_seen_or_does_not_help(name: str) -> None:
    """The constant network is right on a quarter of the images, which no attack changes."""
    found = evaluate(MASKS[name]().eval(), BATCHES, _pgd(), checks=True)
    assert found.robust is not None
    assert found.robust.top1 <= 0.02 or found.flags()
    assert bool(found.flags()) == bool(found.warnings())


RANDOM = {
    *("noise .3", "noise 1e-3", "dropout at inference"),
    *("resize and pad", "modes swapped"),
}


# The verdict on a network that draws is a single draw, and the constant one cannot fall.
@pytest.mark.parametrize("name", sorted({*MASKS} - RANDOM - {"constant"}))
def test_bpda_breaks_every_mask(name: str) -> None:
    """Whatever part hides the gradient, the second opinion finds the truth."""
    batch = [tuple(each[:16] for each in BATCHES[0])]
    found = evaluate(MASKS[name]().eval(), batch, BPDA(THREAT, STEPS))
    assert found.robust is not None
    assert found.robust.top1 == 0


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("objective", ["cross_entropy", "margin"])
def test_an_honest_network_has_no_flag(name: str, objective: str) -> None:
    attack = Cascade.of(_pgd(objective)).then(BPDA(THREAT, STEPS), "yes")
    found = evaluate(HONEST[name]().eval(), BATCHES, attack, checks=True)
    assert found.flags() == ()
    assert found.warnings() == []
    assert found.clean.top1 == 1
    assert [stage.robust.top1 for stage in found.stages] == [0, 0]


class _Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        logits = trained()(x)
        return logits if bool(logits.sum() > -1e9) else 2 * logits


def test_honest_code_that_cannot_be_traced_has_no_flag() -> None:
    found = evaluate(_Untraceable().eval(), BATCHES, _pgd(), checks=True)
    assert found.flags() == ()
    assert found.warnings() == []


def test_the_second_opinion_counts_as_a_black_box_attack() -> None:
    masked = MASKS["8 grey levels"]()
    attack = Cascade.of(_pgd()).then(BPDA(THREAT, STEPS), "yes")
    found = evaluate(masked, BATCHES, attack, checks=True)
    assert [stage.robust.top1 for stage in found.stages] == [1, 0]
    assert found.black_box_gain == 1
    assert found.flags() == ("zero_gradients", "black_box")
    assert attack.describe()["bpda"] == "yes"


def test_images_of_an_unmasked_twin_fool_the_masked_network() -> None:
    masked = MASKS["one-hot"]()
    attack = Cascade.of(_pgd()).then(Transfer(THREAT, trained(), STEPS), "a digest")
    found = evaluate(masked, BATCHES, attack, checks=True)
    assert [stage.robust.top1 for stage in found.stages] == [1, 0]
    assert found.flags()[-1] == "black_box"


def test_the_second_opinion_is_within_the_ball_and_leaves_no_trace() -> None:
    """The images are those of the threat, and PyTorch is as it was afterwards."""
    x, y = BATCHES[0]
    usual = torch.autograd.Function.__dict__["apply"]
    model = MASKS["flipped gradient, untraceable"]()
    result = BPDA(THREAT, STEPS)(model, x, y)
    assert torch.autograd.Function.__dict__["apply"] is usual
    moved = (result.x_adv - x / 255).abs().amax()
    assert THREAT.eps * 0.99 < moved <= THREAT.eps * (1 + 1e-5)
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    with torch.no_grad():
        assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)
    # The custom backward pass of the model still is its own.
    pixels = (x / 255).requires_grad_()
    mine = torch.autograd.grad(model(pixels).sum(), pixels)[0]
    plain = torch.autograd.grad(trained()(pixels).sum(), pixels)[0]
    torch.testing.assert_close(mine, -plain)


@pytest.mark.parametrize("name", ["one-hot", "detached", "jpeg"])
@pytest.mark.parametrize(
    "attack", ["apgd-ce", "apgd-t", "deepfool", "fmn", "fab", "square"]
)
def test_every_attack_runs_on_a_model_without_gradients(name: str, attack: str) -> None:
    from fastadv.attacks import Budget, make_attack

    if attack in ("fab", "square"):
        pytest.importorskip("pyautoattack")
    batch = [tuple(each[:4] for each in BATCHES[0])]
    budget = Budget(num_steps=2, num_targets=2, num_queries=20)
    made: Any = make_attack(attack, THREAT, budget)
    found = evaluate(MASKS[name]().eval(), batch, made, checks=True)
    assert found.checks is not None
    assert found.checks.zero_gradients == 4
    assert "zero_gradients" in found.flags()
