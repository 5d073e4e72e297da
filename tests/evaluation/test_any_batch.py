"""Batches and outputs of other people's loaders and networks."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attack_nets import batch, predicted, small_model
from torch import Tensor, nn

from fastadv.attacks import APGD, PGD, ThreatModel
from fastadv.data import Batch
from fastadv.data.any_batch import IMAGE_KEYS, LABEL_KEYS, images_and_labels
from fastadv.evaluation import evaluate

IMAGES, LABELS = batch(6)
MODEL = small_model()
Pair = namedtuple("Pair", ["left", "right"])


class Wrapped(nn.Module):
    """Returns its logits as `make` wraps them."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.make = MODEL, make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.net(x))


def test_a_batch_unpacks() -> None:
    images, labels = Batch(IMAGES, LABELS, torch.arange(6))
    assert images is IMAGES
    assert labels is LABELS


@pytest.mark.parametrize(
    "given",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        Pair(IMAGES, LABELS),
        Batch(IMAGES, LABELS, torch.arange(6)),
        {"label": LABELS, "image": IMAGES, "path": ["a"] * 6},
        *({key: IMAGES, "labels": LABELS} for key in IMAGE_KEYS),
        *({"pixel_values": IMAGES, key: LABELS} for key in LABEL_KEYS),
    ],
)
def test_batches_that_are_read(given: Any) -> None:
    images, labels = images_and_labels(given)
    assert images is IMAGES
    assert labels is LABELS
    found = evaluate(MODEL, [given]).clean
    assert found.top1 == (predicted(MODEL, IMAGES) == LABELS).float().mean()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (IMAGES, "a batch is a Tensor"),
        ((IMAGES,), "a batch is a tuple of Tensor"),
        ((IMAGES, LABELS, LABELS), "a tuple of Tensor, Tensor, Tensor"),
        ((IMAGES, LABELS.tolist()), "a tuple of Tensor, list"),
        ({"pixels": IMAGES, "labels": LABELS}, "has the keys pixels, labels"),
        ({"image": ["a.png"], "label": LABELS}, "has the keys image, label"),
        ({}, "has the keys ;"),
    ],
)
def test_batches_that_are_refused(given: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        evaluate(MODEL, [given])


@pytest.mark.parametrize(
    "make",
    [
        lambda logits: {"logits": logits, "loss": None},
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: namedtuple("Output", ["loss", "logits"])(None, logits),
    ],
)
def test_outputs_called_logits(make: Callable[[Tensor], Any]) -> None:
    threat = ThreatModel("l2", 0.4)
    model = Wrapped(make)
    labels = predicted(MODEL, IMAGES)
    for attack in (PGD.judge(threat, 3), APGD(threat, 3)):
        expected = evaluate(MODEL, [(IMAGES, labels)], attack, checks=True)
        found = evaluate(model, [(IMAGES, labels)], attack, checks=True)
        assert found.robust is not None
        assert expected.robust is not None
        assert torch.equal(found.robust.correct, expected.robust.correct)
    x_adv, _ = PGD(threat, 2).perturb(model, IMAGES, labels)
    torch.testing.assert_close(
        x_adv, PGD(threat, 2).perturb(MODEL, IMAGES, labels)[0], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda logits: {"scores": logits}, "a dict"),
        (lambda logits: (logits, logits), "a tuple of 2"),
        (lambda logits: {"logits": logits[:, :, None]}, "a tensor of shape"),
        (lambda logits: {"logits": None}, "a NoneType"),
    ],
)
def test_outputs_without_logits(make: Callable[[Tensor], Any], what: str) -> None:
    with pytest.raises(TypeError, match=f"the model returned {what}"):
        evaluate(Wrapped(make), [(IMAGES, LABELS)])


def test_targets_are_not_true_classes() -> None:
    attack = PGD(ThreatModel("l2", 1), 3, objective="targeted")
    with pytest.raises(ValueError, match="is targeted, and evaluate gives"):
        evaluate(MODEL, [(IMAGES, LABELS)], attack)
