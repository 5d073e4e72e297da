"""A plain function as objective, and what is refused where it is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attack_nets import batch, predicted, small_model
from torch import Tensor, nn

from fastadv.attacks import APGD, PGD, Context, Objective, ThreatModel
from fastadv.attacks.objectives import OBJECTIVES

MODEL = small_model()
IMAGES = batch(6)[0]
LABELS = predicted(MODEL, IMAGES)
THREAT = ThreatModel("l2", 0.4)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def with_context(outputs: Tensor, context: Context) -> Tensor:
    return F.cross_entropy(outputs, context.labels, reduction="none")


class Smoothed:
    """An object that is called, as losses of other libraries are."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target)


OWN: list[Any] = [
    cross_entropy,
    lambda logits, labels: cross_entropy(logits, labels),
    with_context,
    nn.CrossEntropyLoss(reduction="none"),
    Smoothed(),
    Objective("mine", with_context),
]


@pytest.mark.parametrize("own", OWN, ids=range(len(OWN)))
@pytest.mark.parametrize("kind", [PGD, APGD])
def test_a_function_is_an_objective(own: Any, kind: Any) -> None:
    expected = kind(THREAT, 4, objective="cross_entropy")(MODEL, IMAGES, LABELS)
    attack = kind(THREAT, 4, objective=own)
    found = attack(MODEL, IMAGES, LABELS)
    torch.testing.assert_close(found.x_adv, expected.x_adv)
    assert torch.equal(found.success, expected.success)
    assert isinstance(attack.describe()["objective"], str)
    if kind is PGD:
        again, _ = attack.perturb(MODEL, IMAGES, LABELS)
        torch.testing.assert_close(
            again, PGD(THREAT, 4).perturb(MODEL, IMAGES, LABELS)[0]
        )


def test_another_function_is_another_attack() -> None:
    """Descending on the loss leads elsewhere: the function is what is maximised."""
    away = PGD(THREAT, 4, objective=cross_entropy).perturb(MODEL, IMAGES, LABELS)[0]
    back = PGD(THREAT, 4, objective=lambda z, y: -cross_entropy(z, y))
    x_adv, _ = back.perturb(MODEL, IMAGES, LABELS)
    losses = [
        cross_entropy(MODEL(x), LABELS).sum() for x in (x_adv, IMAGES / 255, away)
    ]
    assert losses[0] < losses[1] < losses[2]


def test_the_targets_of_a_targeted_attack_are_given_as_labels() -> None:
    targets = (LABELS + 1) % 10
    attack = PGD(ThreatModel("l2", 3), 20, objective="targeted", random_start=True)
    found = attack(MODEL, IMAGES, targets)
    assert found.success.all()
    assert torch.equal(predicted(MODEL, found.x_adv * 255), targets)
    own = Objective("to", lambda z, c: -cross_entropy(z, c.labels), flips_success=True)
    same = PGD(ThreatModel("l2", 3), 20, objective=own, random_start=True)
    torch.testing.assert_close(same(MODEL, IMAGES, targets).x_adv, found.x_adv)


@pytest.mark.parametrize(
    ("own", "what"),
    [
        (nn.CrossEntropyLoss(), "a tensor of shape []"),
        (F.cross_entropy, "a tensor of shape []"),
        (lambda z, y: cross_entropy(z, y)[:, None], "a tensor of shape [6, 1]"),
        (lambda z, y: z, "a tensor of shape [6, 10]"),
        (lambda z, y: 1.0, "a float"),
    ],
)
@pytest.mark.parametrize("kind", [PGD, APGD])
def test_one_loss_per_image_is_needed(own: Any, what: str, kind: Any) -> None:
    with pytest.raises(TypeError, match="attacks need one loss per image, shape") as e:
        kind(THREAT, 2, objective=own)(MODEL, IMAGES, LABELS)
    assert f"returned {what}" in str(e.value)


@pytest.mark.parametrize("kind", [PGD, APGD])
@pytest.mark.parametrize(
    ("own", "error", "said"),
    [
        ("cross_entropi", ValueError, "perhaps you meant: cross_entropy"),
        ("targetted", ValueError, "perhaps you meant: targeted"),
        (3, TypeError, "accepted: a name"),
        (None, TypeError, "accepted: a name"),
        (lambda z: z, TypeError, r"cannot be called as <lambda>\(logits, labels\)"),
        (lambda: 0, TypeError, "cannot be called"),
        (nn.Linear(3, 3), TypeError, "'Linear' cannot be called"),
    ],
)
def test_what_is_no_objective_fails_where_it_is_given(
    kind: Any, own: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        kind(THREAT, 3, objective=own)


def test_every_name_is_documented() -> None:
    for name in OBJECTIVES:
        assert f'"{name}"' in (PGD.__doc__ or "")
