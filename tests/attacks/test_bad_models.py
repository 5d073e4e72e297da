"""Batches and models that cannot be attacked: said clearly, and the model left alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_nets import SmallNet, batch, predicted, same_bits, small_model, snapshot
from compile_cases import said
from torch import Tensor, nn

from fastadv.attacks import APGD, PGD, ThreatModel
from fastadv.models.view import AttackView

THREAT = ThreatModel("l2", 1.0)
IMAGES = batch(6)[0]
LABELS = torch.zeros(6, dtype=torch.int64)
PIXELS = IMAGES.float() / 255

Call = Callable[[nn.Module, Tensor, Tensor], object]
CALLS = {
    "pgd": PGD(THREAT, 3).__call__,
    "perturb": PGD(THREAT, 3).perturb,
    "apgd": APGD(THREAT, 3).__call__,
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
@pytest.mark.parametrize("known", [True, False], ids=["NormalizedModel", "any module"])
@pytest.mark.parametrize("label", [-100, -1, 10, 1000])
def test_labels_out_of_range(call: Call, known: bool, label: int) -> None:
    """-100 would be ignored by the cross-entropy: no gradient, and called robust."""
    model = small_model()
    if not known:
        model = nn.Sequential(model)  # type: ignore[assignment]
    labels = LABELS.clone()
    labels[2] = label
    low, high = min(label, 0), max(label, 0)
    with pytest.raises(
        ValueError, match=f"y has labels from {low} to {high}; expected"
    ):
        call(model, PIXELS, labels)


@every_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool])
def test_labels_of_another_type(call: Call, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"y is {dtype}; expected class ids, int64"):
        call(small_model(), PIXELS, LABELS.to(dtype))


@every_call
def test_shapes_that_do_not_fit(call: Call) -> None:
    with pytest.raises(ValueError, match=r"x has shape \[3, 16, 16\] and y \[6\]"):
        call(small_model(), PIXELS[0], LABELS)
    with pytest.raises(ValueError, match=r"and y \[5\]; expected \[N, C, H, W\]"):
        call(small_model(), PIXELS, LABELS[:5])


@every_call
@pytest.mark.parametrize("where", ["x", "y", "model"])
def test_devices_that_do_not_fit(call: Call, where: str) -> None:
    model, x, y = small_model(), PIXELS, LABELS
    moved = {"x": x, "y": y, "model": model}[where].to("meta")  # type: ignore[attr-defined]
    operands = {"x": x, "y": y, "model": model} | {where: moved}
    names = {name: "meta" if name == where else "cpu" for name in operands}
    with pytest.raises(
        ValueError,
        match=f"x is on {names['x']}, y on {names['y']}, the model on {names['model']}; "
        "move them to one device",
    ):
        call(operands["model"], operands["x"], operands["y"])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [PGD, APGD])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 2.5}, "num_steps=2.5 must be an integer"),
        ({"num_steps": -1}, "num_steps=-1 must be at least 1"),
        ({"num_restarts": 0}, "num_restarts=0 must be at least 1"),
        ({"dtype": torch.int8}, "dtype=torch.int8 has no gradients; accepted"),
    ],
)
def test_numbers_out_of_range(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(THREAT, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_lengths_that_are_none(value: float) -> None:
    with pytest.raises(ValueError, match=f"step_size={value} must be a finite number"):
        PGD(THREAT, 3, value)
    with pytest.raises(ValueError, match=f"{value} must be a finite number >= 0"):
        PGD(ThreatModel("l2", value), 3)


# ---- what the model returns ----


class Auxiliary(SmallNet):
    """Two heads, as Inception's in training mode."""

    def forward(self, z: Tensor) -> Any:
        logits = super().forward(z)
        return logits, logits


class Dense(SmallNet):
    def forward(self, z: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv1(z)))


@every_call
@pytest.mark.parametrize(
    ("kind", "what"),
    [(Auxiliary, "a tuple of 2"), (Dense, r"a tensor of shape \[6, 12, 16, 16\]")],
)
def test_outputs_that_are_no_logits(call: Call, kind: Any, what: str) -> None:
    model = small_model(net=kind())
    with pytest.raises(TypeError, match=f"the model returned {what}; attacks need one"):
        call(model, PIXELS, LABELS)


class Softmax(SmallNet):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).softmax(1)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_probabilities_are_told_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model(net=Softmax())
    labels = predicted(model, IMAGES)
    for _ in range(3):
        CALLS[name](model, PIXELS, labels)
    (message,) = said(caplog)
    assert "returns probabilities, not logits" in message
    assert caplog.records[0].levelno == logging.WARNING
    caplog.clear()
    CALLS[name](small_model(), PIXELS, labels)
    assert said(caplog) == []


# ---- models that fail ----


class Failing(SmallNet):
    """Fails at its call number `at`, or whenever it is not in training mode."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, z: Tensor) -> Tensor:
        if z.sum() > -1e9:  # which no tracer can decide, so every step gets here
            self.calls += 1
        if self.calls == self.at or (self.at is None and not self.training):
            raise RuntimeError("the network failed")
        return super().forward(z)


@every_call
@pytest.mark.parametrize("at", [None, 1, 2, 3])
def test_a_model_that_fails_is_left_as_it_was(call: Call, at: int | None) -> None:
    net = Failing(at=0)
    model = small_model(net=net)
    labels = predicted(model, IMAGES)  # APGD leaves alone what is wrong already
    net.at, net.calls = at, 0
    model.train()
    model.net.bn2.eval()
    model.net.conv2.weight.requires_grad_(False)
    gradient = torch.ones_like(model.net.conv1.weight)
    model.net.conv1.weight.grad = gradient
    modes = [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="the network failed"):
        call(model, PIXELS, labels)
    assert same_bits(before, snapshot(model))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert model.net.conv1.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert torch.is_grad_enabled()


def test_a_failed_batch_does_not_spoil_the_next() -> None:
    net = SmallNet()
    model = small_model(net=net)
    view, attack = AttackView(model), PGD(THREAT, 3)
    expected = attack(view, PIXELS, LABELS)
    with pytest.raises(ValueError, match="expected class ids"):
        attack(view, PIXELS, LABELS + 10)
    again = attack(view, PIXELS, LABELS)
    assert torch.equal(again.x_adv, expected.x_adv)


def test_only_some_models_say_how_many_classes_they_have() -> None:
    model = small_model()
    assert AttackView(model).num_classes == 10
    assert AttackView(model.net).num_classes is None
