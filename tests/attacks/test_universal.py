"""Universal perturbations: closed form of a linear network, bounds, determinism, sizes."""

from __future__ import annotations

import pytest
import torch
from attack_nets import batch, same_bits, small_model, snapshot
from torch import Tensor, nn

from fastadv.attacks import ThreatModel, UniversalAttack
from fastadv.attacks.universal import fitted, perturbed

L2, LINF = ThreatModel("l2", 0.5), ThreatModel("linf", "10/255")


class Line(nn.Module):
    """Two classes, told apart by one direction w: logits (0, w x + b)."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(3 * 8 * 8, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([torch.zeros_like(score), score], 1)


def of_one_class(net: Line, n: int = 40) -> Tensor:
    """Images, far from 0 and 1, that the network decides for the second class."""
    draw = torch.Generator().manual_seed(1)
    images = 0.5 + 0.2 * (torch.rand(400, 3, 8, 8, generator=draw) - 0.5)
    with torch.no_grad():
        return images[net(images)[:, 1] > 0][:n]


@pytest.mark.parametrize("threat", [L2, LINF])
def test_a_linear_network_has_one_best_perturbation(threat: ThreatModel) -> None:
    net = Line()
    images = of_one_class(net)
    found = UniversalAttack(threat).craft(net, images.split(8))
    w = net.w.detach().view(3, 8, 8)
    best = -threat.eps * (w.sign() if threat.norm == "linf" else w / w.norm())
    assert (found.delta - best).abs().max() < 1e-5
    fooled = net(perturbed(images, found.delta)).argmax(1) != 1
    dual = w.abs().sum() if threat.norm == "linf" else w.norm()
    expected = net(images)[:, 1] < threat.eps * dual
    assert torch.equal(fooled, expected)
    assert fooled.float().mean() > 0.5


@pytest.mark.parametrize("threat", [ThreatModel("l2", 1.5), LINF])
def test_a_network_is_fooled_on_images_it_was_not_crafted_on(
    threat: ThreatModel,
) -> None:
    model, images = small_model(), batch(64, 16)[0]
    before = snapshot(model)
    found = UniversalAttack(threat, num_epochs=8).craft(model, images[:32].split(8))
    assert same_bits(before, snapshot(model))
    size = found.delta.norm() if threat.norm == "l2" else found.delta.abs().max()
    assert 0.9 * threat.eps < size <= threat.eps * (1 + 1e-5)
    other = images[32:]
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 16, 16, generator=draw)
    noise = (
        noise.sign() * size if threat.norm == "linf" else noise / noise.norm() * size
    )
    with torch.no_grad():
        clean = model(other.float() / 255).argmax(1)
        shares = [
            (model(perturbed(other, each)).argmax(1) != clean).float().mean()
            for each in (found.delta, noise)
        ]
    assert shares[0] > shares[1] + 0.2
    again = UniversalAttack(threat, num_epochs=8).craft(model, images[:32].split(8))
    assert torch.equal(again.delta, found.delta)
    assert found.nonfinite.item() == 0


def test_images_that_are_fooled_do_not_count() -> None:
    """Clipped at almost nothing, the loss of every image is flat."""
    net = Line()
    flat = UniversalAttack(LINF, clip=1e-30).craft(net, [of_one_class(net)])
    assert (flat.delta == 0).all()


def test_other_sizes() -> None:
    delta = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2))
    delta = delta.clamp(-0.1, 0.1)
    threat = ThreatModel("linf", 0.1)
    assert fitted(delta, 16, threat) is delta
    for side in (8, 24):
        assert fitted(delta, side, threat).abs().max() <= 0.1
        long = fitted(delta, side, L2)
        assert long.shape == (3, side, side)
        assert torch.allclose(long.norm(), delta.norm())
    with pytest.raises(ValueError, match="`fitted` resizes"):
        perturbed(torch.zeros(2, 3, 8, 8), delta)
    flat = perturbed(torch.ones(1, 3, 16, 16), delta.abs())
    assert flat.max() == 1


def test_bad_gradients_are_counted() -> None:
    class Broken(Line):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (0 * x[:, :, :1]).sum((1, 2, 3)).sqrt()[:, None]

    found = UniversalAttack(LINF, num_epochs=1).craft(
        Broken(), [torch.full((2, 3, 8, 8), 0.5)]
    )
    assert found.nonfinite.item() == 3 * 8  # the first row of every channel
    assert found.delta.isfinite().all()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        UniversalAttack(ThreatModel("linf", 0))
    with pytest.raises(ValueError, match="num_epochs=0"):
        UniversalAttack(LINF, num_epochs=0)
    with pytest.raises(ValueError, match="step_size=-1"):
        UniversalAttack(LINF, step_size=-1)
    model = small_model()
    model.net.head.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        UniversalAttack(LINF).craft(model, [torch.zeros(1, 3, 16, 16)])
    with pytest.raises(ValueError, match="no batch"):
        UniversalAttack(LINF).craft(Line(), [])
    with pytest.raises(ValueError, match="one size"):
        UniversalAttack(LINF).craft(
            small_model(), [torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 8, 8)]
        )
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        UniversalAttack(LINF).craft(Line(), [torch.full((1, 3, 8, 8), 2.0)])
