"""A radius for each image and a start of one's own, by arguments of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_nets import batch, predicted, small_model
from torch import Tensor

from fastadv.attacks import APGD, PGD, ThreatModel

MODEL = small_model()
UINT8 = batch(6)[0]
IMAGES = UINT8 / 255
LABELS = predicted(MODEL, UINT8)
RADII = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1, 0.2])


def _lengths(delta: Tensor, norm: str) -> Tensor:
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("options", [{}, {"random_start": True, "num_restarts": 2}])
@pytest.mark.parametrize("images", [UINT8, IMAGES])
def test_each_image_has_its_own_radius(
    norm: Any, options: dict[str, Any], images: Tensor
) -> None:
    """What one image gets is what it gets alone under a threat model of its radius."""
    radii = RADII * (10 if norm == "l2" else 1)
    attack = PGD(ThreatModel(norm, 0.1), 4, **options)
    found = attack(MODEL, images, LABELS, eps=radii)
    again, _ = attack.perturb(MODEL, images, LABELS, eps=radii)
    for x_adv in (found.x_adv, again):
        lengths = _lengths(x_adv - IMAGES, norm)
        assert (lengths <= radii * (1 + 1e-5) + 1e-6).all()
        assert (lengths[3:] > radii[3:] * 0.5).all()
    assert torch.equal(found.x_adv[0], IMAGES[0])
    for i in range(1, 6):
        alone = PGD(ThreatModel(norm, float(radii[i])), 4, **options)
        rows = slice(i, i + 1)
        expected = alone(MODEL, images[rows], LABELS[rows], offset=i)
        torch.testing.assert_close(
            found.loss[rows], expected.loss, atol=2e-2, rtol=2e-2
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_radius_of_the_threat_model_changes_nothing(norm: Any) -> None:
    attack = PGD(ThreatModel(norm, 0.1), 3, random_start=True)
    expected = attack(MODEL, IMAGES, LABELS)
    found = attack(MODEL, IMAGES, LABELS, eps=torch.full((6,), 0.1))
    torch.testing.assert_close(found.x_adv, expected.x_adv, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_begins_where_it_is_told(norm: Any) -> None:
    threat = ThreatModel(norm, 0.1)
    still = PGD(threat, 1, step_size=0.0)
    inside = (IMAGES + 0.001).clamp(0, 1)
    found, _ = still.perturb(MODEL, IMAGES, LABELS, start=inside)
    torch.testing.assert_close(found, inside, atol=1e-6, rtol=0)
    far = 1 - IMAGES.round()
    found, _ = still.perturb(MODEL, UINT8, LABELS, start=far)
    lengths = _lengths(found - IMAGES, norm)
    assert (lengths <= 0.1 * (1 + 1e-5)).all()
    assert (lengths > 0.09).all()
    assert found.amin() >= 0
    assert found.amax() <= 1
    judged = still(MODEL, IMAGES, LABELS, start=far)
    assert (_lengths(judged.x_adv - IMAGES, norm) <= 0.1 * (1 + 1e-5)).all()
    small = torch.full((6,), 0.02)
    found, _ = still.perturb(MODEL, IMAGES, LABELS, start=far, eps=small)
    assert (_lengths(found - IMAGES, norm) <= 0.02 * (1 + 1e-5)).all()


def test_a_good_start_helps_and_restarts_begin_elsewhere() -> None:
    threat = ThreatModel("l2", 0.3)
    strong = PGD.judge(threat, 20)(MODEL, IMAGES, LABELS)
    weak = PGD(threat, 1, step_size=1e-6, random_start=True, num_restarts=2)
    alone = weak(MODEL, IMAGES, LABELS)
    helped = weak(MODEL, IMAGES, LABELS, start=strong.x_adv)
    assert helped.success.sum() >= strong.success.sum() > alone.success.sum()
    own, _ = weak.perturb(MODEL, IMAGES, LABELS, seed=0, start=IMAGES)
    other, _ = weak.perturb(MODEL, IMAGES, LABELS, seed=0)
    assert not torch.equal(own, other)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"eps": 0.1}, "eps is float; expected the radius of each image"),
        ({"eps": torch.ones(5)}, r"eps is \[5\]; expected"),
        ({"eps": torch.ones(6, 1)}, r"eps is \[6, 1\]; expected"),
        ({"eps": -torch.ones(6)}, "negative or not finite"),
        ({"eps": torch.full((6,), float("nan"))}, "negative or not finite"),
        ({"eps": torch.full((6,), 8.0)}, "eps has values up to 8; linf radii"),
        ({"start": IMAGES[:5]}, "expected images like x"),
        ({"start": IMAGES * 2 - 0.5}, r"need images in \[0, 1\]"),
    ],
)
def test_what_cannot_be_meant(more: dict[str, Any], said: str) -> None:
    attack = PGD(ThreatModel("linf", 0.1), 2)
    for call in (attack, attack.perturb):
        with pytest.raises(ValueError, match=said):
            call(MODEL, IMAGES, LABELS, **more)


def test_other_attacks_do_not_take_them() -> None:
    with pytest.raises(TypeError, match="'eps'"):
        APGD(ThreatModel("linf", 0.1), 2)(MODEL, IMAGES, LABELS, eps=RADII)
    none = PGD(ThreatModel("linf", 0), 2)
    with pytest.raises(ValueError, match="a share of the threat model's, which is 0"):
        none(MODEL, IMAGES, LABELS, eps=RADII)
