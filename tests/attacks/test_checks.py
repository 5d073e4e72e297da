"""What makes robust accuracy misleading is noticed, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from attack_nets import batch, predicted, same_bits, small_model, snapshot
from torch import Tensor, nn

from fastadv.attacks.checks import MASKING_GAIN, Checks, check_model, masking_warning
from fastadv.models.view import AttackView

IMAGES = batch(6)[0]


class Wrapped(nn.Module):
    """The small network, with something done to its input or its output."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = small_model()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "noisy":
            x = x + 0.01 * torch.randn_like(x)
        if self.kind == "quantised":
            x = (x * 7).round() / 7
        logits = self.inner(x)
        if self.kind == "softmax":
            return logits.softmax(1)
        if self.kind == "log_softmax":
            return logits.log_softmax(1)
        if self.kind == "shifted":  # sums to one, but is negative in places
            return logits - logits.mean(1, keepdim=True) + 0.1
        return nn.functional.dropout(logits, 0.5) if self.kind == "dropout" else logits


def checked(model: nn.Module) -> Checks:
    labels = predicted(small_model(), IMAGES)
    return check_model(model, AttackView(model), IMAGES, labels)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plain", Checks(6, probabilities=False)),
        ("softmax", Checks(6, probabilities=True)),
        ("log_softmax", Checks(6, probabilities=False)),
        ("shifted", Checks(6, probabilities=False)),
        ("noisy", Checks(6, probabilities=False, randomised=True)),
        ("dropout", Checks(6, probabilities=False, randomised=True)),
        ("quantised", Checks(6, probabilities=False, zero_gradients=6)),
    ],
)
def test_what_is_found_is_so(kind: str, expected: Checks) -> None:
    assert checked(Wrapped(kind).eval()) == expected


@pytest.mark.parametrize("part", ["inner.net.bn1", "inner"])
def test_a_part_in_training_mode_is_seen_and_left_so(part: str) -> None:
    model = Wrapped("plain").eval()
    model.get_submodule(part).train()
    modes = [m.training for m in model.modules()]
    before = snapshot(model)
    assert checked(model) == Checks(6, probabilities=False, train_mode=True)
    assert [m.training for m in model.modules()] == modes
    assert same_bits(before, snapshot(model))
    assert all(p.grad is None for p in model.parameters())


def test_gradients_vanish_sample_by_sample() -> None:
    """Scaling the logits saturates the softmax where the margin is large."""
    model = small_model()
    labels = predicted(model, IMAGES)
    model.net.head.weight.data *= 800
    model.net.head.bias.data *= 800
    pixels = (IMAGES.float() / 255).requires_grad_()
    loss = nn.functional.cross_entropy(model(pixels), labels, reduction="sum")
    (grad,) = torch.autograd.grad(loss, pixels)
    zero = int((grad.flatten(1) == 0).all(1).sum())
    found = check_model(model, AttackView(model), IMAGES, labels)
    assert 0 < zero < 6
    assert found.zero_gradients == zero
    assert found.zero_gradient_share == zero / 6


def test_batches_add_up() -> None:
    a = Checks(10, probabilities=True, zero_gradients=2)
    b = Checks(6, probabilities=False, randomised=True, zero_gradients=1)
    assert a + b == Checks(16, False, True, False, 3)
    assert sum([a, a], Checks()) == Checks(20, True, False, False, 4)
    assert Checks().warnings() == []
    assert Checks(5, probabilities=False).warnings() == []


def test_each_finding_has_its_sentence() -> None:
    said = Checks(8, True, True, True, 2).warnings()
    assert len(said) == 4
    for sentence, words in zip(
        said,
        (
            "returns probabilities, not logits",
            "the model is randomised",
            "given in training mode",
            "25.0 % of the images have a zero cross-entropy gradient",
        ),
        strict=True,
    ):
        assert words in sentence


def test_masking_is_called_above_the_bound() -> None:
    assert masking_warning(0.0) is None
    assert masking_warning(MASKING_GAIN) is None
    said = masking_warning(0.031)
    assert said is not None
    assert "3.1 % of the images that no white-box attack did" in said
