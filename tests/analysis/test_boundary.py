"""Margin and steepness along the direction of an attack, for linear networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastadv.analysis.boundary import along_attack
from fastadv.attacks.minimal import norm_of
from fastadv.threat import ThreatModel


def linear(scale: float = 1.0, classes: int = 4):
    """A linear network, images, and directions that lead to another class."""
    draw = torch.Generator().manual_seed(0)
    w = scale * torch.randn(classes, 3 * 6 * 6, generator=draw)
    x = 0.4 + 0.2 * torch.rand(12, 3, 6, 6, generator=draw)

    def classify(images: Tensor) -> Tensor:
        return images.flatten(1) @ w.T

    y = classify(x).argmax(1)
    noise = torch.randn(x.shape, generator=draw)
    way = (w[(y + 1) % classes] - w[y]).view_as(x) + scale * noise
    return classify, w, x, way


@pytest.mark.parametrize("scale", [0.3, 1.0, 100.0])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_network(norm: str, scale: float) -> None:
    classify, w, x, way = linear(scale)
    y = classify(x).argmax(1)
    threat = ThreatModel(norm, 0.02)
    way = way / norm_of(way, norm).view(-1, 1, 1, 1)
    found = along_attack(classify, x, x + 0.02 * way, y, threat, (0, 1))
    gaps = classify(x).gather(1, y[:, None]) - classify(x)
    speed = (way.flatten(1) @ w.T) - (way.flatten(1) @ w.T).gather(1, y[:, None])
    ways = torch.where(speed > 0, gaps / speed, torch.inf)
    expected, rival = ways.min(1)
    reach = norm_of(0.4 * torch.ones_like(x), norm) if norm == "linf" else 1.0
    near = expected < reach  # so that the box does not bind
    assert near.sum() >= 10
    assert torch.allclose(found.distance[near], expected[near], rtol=2e-3)
    at = classify(x + expected.view(-1, 1, 1, 1) * way).softmax(1)
    share = at.gather(1, y[:, None])[:, 0]
    steepness = share * speed.gather(1, rival[:, None])[:, 0]
    assert torch.allclose(found.steepness[near], steepness[near], rtol=2e-2)
    clean = classify(x).softmax(1).sort(1, descending=True).values
    assert torch.allclose(found.profile[:, 0], clean[:, 0] - clean[:, 1], atol=1e-6)
    assert (found.profile[near & (expected < 0.02), 1] < 0).all()


def test_what_has_no_direction_or_no_boundary() -> None:
    classify, _, x, way = linear()
    y = classify(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified
    x_adv = x + 0.01 * way
    x_adv[1] = x[1]  # not moved
    found = along_attack(classify, x, x_adv, y, ThreatModel("linf", 0.01), (0.5,))
    assert found.distance[:2].isnan().all()
    assert found.steepness[:2].isnan().all()
    assert found.profile[:2].isnan().all()
    assert not found.distance[2:].isnan().any()

    def stubborn(images: Tensor) -> Tensor:
        return torch.tensor([1.0, 0, 0, 0]).expand(len(images), 4)

    zero = torch.zeros_like(y)
    never = along_attack(stubborn, x, x + way, zero, ThreatModel("linf", 0.01))
    assert never.distance.isinf().all()
    assert never.steepness.isnan().all()
    assert never.profile.shape == (12, 0)
