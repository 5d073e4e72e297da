"""Gradient ascent on units and representations, against loops of plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastadv.analysis.analyze_gradients import alignments
from fastadv.analysis.ascent import (
    LOGITS,
    Budget,
    ascend,
    ascend_all,
    class_objective,
    count_units,
    likeness_objective,
    unit_objective,
    units_of,
    view_of_layer,
)
from fastadv.analysis.starts import GaussianImages, noise_image
from fastadv.attacks.objectives import Objective
from fastadv.errors import ConfigError
from fastadv.models import NormalizedModel, activations, create_model
from fastadv.models.view import AttackView
from fastadv.results.portions import Portions

SIDE = 16
BUDGET = Budget(eps=1.5, num_steps=12, step_size=0.25)


@pytest.fixture(scope="module")
def model() -> NormalizedModel:
    """A network whose BatchNorm has seen something."""
    found = create_model("resnet8_cifar", 10, seed=0).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            found(torch.rand(16, 3, SIDE, SIDE))
    return found.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    drawn = [noise_image((3, SIDE, SIDE), 1, i) for i in range(7)]
    return torch.stack(drawn)


def as_robustness(
    x: Tensor, loss_of: Callable[[Tensor], Tensor], budget: Budget = BUDGET
) -> Tensor:
    """Ascend as `robustness.attacker` does it, with its L2 step and its best iterate."""
    x0, best, best_loss = x, x, loss_of(x).detach()
    for _ in range(budget.num_steps):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss_of(x).sum(), x)
        with torch.no_grad():
            g = g / (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10)
            away = (x + g * BUDGET.step_size - x0).renorm(
                p=2, dim=0, maxnorm=BUDGET.eps
            )
            x = (x0 + away).clamp(0, 1)
            loss = loss_of(x)
            take = loss > best_loss
            best = torch.where(take.view(-1, 1, 1, 1), x, best)
            best_loss = torch.where(take, loss, best_loss)
    return best


def agree(
    view: AttackView,
    x: Tensor,
    wanted: Tensor,
    objective: Objective,
    loss_of: Callable[[Tensor], Tensor],
) -> None:
    """Check that pixels agree after a few steps, and values after more.

    In the long run a ReLU is on in one and off in the other, by rounding.
    """
    few = replace(BUDGET, num_steps=4)
    found = ascend(view, x, wanted, objective, few)
    plain = as_robustness(x, loss_of, few)
    torch.testing.assert_close(found.images, plain, rtol=0, atol=5e-5)
    found = ascend(view, x, wanted, objective, BUDGET)
    plain = as_robustness(x, loss_of)
    torch.testing.assert_close(found.before, loss_of(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.after, loss_of(plain), rtol=2e-3, atol=1e-4)
    assert (found.after >= found.before).all()
    assert (found.after > found.before).sum() >= 5


LAYERS = ["embedding", "layer2", "layer1.0.conv1", LOGITS]


def plain(model: NormalizedModel, x: Tensor, layer: str) -> Tensor:
    if layer == LOGITS:
        return model(x)
    return activations(model, model.normalize(x), (layer,))[layer]


@pytest.mark.parametrize("layer", LAYERS)
def test_units_are_maximised_as_by_robustness(
    model: NormalizedModel, images: Tensor, layer: str
) -> None:
    units = torch.tensor([0, 3, 9, 1, 2, 8, 3])

    def loss_of(x: Tensor) -> Tensor:
        found = plain(model, x, layer)
        found = found.mean((2, 3)) if found.dim() == 4 else found
        return found[range(7), units]

    view = view_of_layer(model, layer, SIDE)
    agree(view, images, units, unit_objective(layer), loss_of)


def test_classes_are_maximised_as_by_robustness(
    model: NormalizedModel, images: Tensor
) -> None:
    classes = torch.arange(7)

    def loss_of(x: Tensor) -> Tensor:
        return -functional.cross_entropy(model(x), classes, reduction="none")

    agree(AttackView(model), images, classes, class_objective(), loss_of)


@pytest.mark.parametrize("layer", LAYERS)
def test_representations_are_matched_as_by_robustness(
    model: NormalizedModel, images: Tensor, layer: str
) -> None:
    target = plain(model, images.flip(0) ** 2, layer).flatten(1).detach()

    def loss_of(x: Tensor) -> Tensor:
        rep = plain(model, x, layer).flatten(1)
        return -torch.norm(rep - target, dim=1) / torch.norm(target, dim=1)

    view = view_of_layer(model, layer, SIDE)
    agree(view, images, target, likeness_objective(layer), loss_of)


def test_the_budget_holds(model: NormalizedModel, images: Tensor) -> None:
    """Steps of ten radii end on the sphere, but for the box of pixels.

    Every stored pixel is rounded by at most half the spacing of float32 below 1.
    """
    rounding = (3 * SIDE**2) ** 0.5 * 2**-25
    for eps in (0.01, 0.3, 4.0):
        budget = Budget(eps, 8, 10 * eps)
        units = torch.zeros(7, dtype=torch.int64)
        view = AttackView(model)
        found = ascend(view, images, units, unit_objective("layer1"), budget)
        assert (found.distance <= eps * (1 + 1e-6) + rounding).all()
        assert found.distance.max() > 0.9 * eps
        assert found.images.min() >= 0
        assert found.images.max() <= 1


def test_an_invertible_network_gives_the_image_back() -> None:
    """Of an orthogonal map the representation of one image alone is that of the target."""
    torch.manual_seed(0)
    linear = nn.Linear(3 * 6 * 6, 3 * 6 * 6)
    with torch.no_grad():
        linear.weight.copy_(torch.linalg.qr(torch.randn(108, 108)).Q)
    network = nn.Sequential(nn.Flatten(), linear)
    target = 0.2 + 0.6 * torch.rand(4, 3, 6, 6)
    start = torch.stack([noise_image((3, 6, 6), 0, i) for i in range(4)])
    wanted = network(target).detach()
    budget = Budget(eps=20, num_steps=400, step_size=0.01)
    objective = likeness_objective(LOGITS)
    found = ascend(AttackView(network), start, wanted, objective, budget)
    assert (start - target).abs().max() > 0.2
    torch.testing.assert_close(found.images, target, rtol=0, atol=0.01)
    assert (-found.after < 0.003).all()


def test_results_do_not_depend_on_the_batch_size(
    model: NormalizedModel, images: Tensor, tmp_path: Path
) -> None:
    objective = unit_objective("layer2")
    view = AttackView(model)
    cells = [lambda i=i: (images[i], torch.tensor(i % 3)) for i in range(7)]
    found = [
        ascend_all(
            Portions(tmp_path), lambda: view, cells, objective, BUDGET, batch_size
        )
        for batch_size in (1, 3, 7)
    ]
    for other in found[1:]:
        pixels = (each["images"].astype(int) for each in (found[0], other))
        assert abs(np.subtract(*pixels)).max() <= 1
        for name in ("before", "after", "distance"):
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-4)


def test_a_start_at_the_target_stays(model: NormalizedModel, images: Tensor) -> None:
    view = AttackView(model)
    with torch.no_grad():
        target = view.activations(view.normalize(images), ("layer2",))["layer2"]
    wanted = target.flatten(1).clone()
    found = ascend(view, images, wanted, likeness_objective("layer2"), BUDGET)
    assert (found.after >= -1e-6).all()
    assert torch.equal(found.images, images)


def test_what_is_not_finite_moves_nothing(model: NormalizedModel) -> None:
    broken = create_model("resnet8_cifar", 10, seed=0).eval()
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.net.get_submodule("layer2.0.bn2").bias[5] = float("nan")
    start = noise_image((3, SIDE, SIDE), 0, 0)[None].repeat(2, 1, 1, 1)
    units = torch.tensor([4, 5])
    view = view_of_layer(broken, "layer2.0.bn2", SIDE)
    found = ascend(view, start, units, unit_objective("layer2.0.bn2"), BUDGET)
    assert found.after.isfinite().tolist() == [True, False]
    assert found.after[0] > found.before[0]
    assert torch.equal(found.images[1], start[1])


# ---- layers ----


def test_layers_that_are_folded_away_are_reached(
    model: NormalizedModel, images: Tensor
) -> None:
    layer = "layer1.0.conv1"
    with pytest.raises(ValueError, match="folded"):
        AttackView(model).activations(images, (layer,))
    view = view_of_layer(model, layer, SIDE)
    z = model.normalize(images)
    for name in (layer, "layer2"):
        found, wanted = (each.activations(z, (name,))[name] for each in (view, model))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_layers_and_their_units(model: NormalizedModel) -> None:
    sizes = {"embedding": 64, "layer1": 16, "layer2.0.conv1": 32, LOGITS: 10}
    for layer, count in sizes.items():
        assert count_units(view_of_layer(model, layer, SIDE), layer, SIDE) == count
    with pytest.raises(ConfigError, match=r"layer 'layer9'.*layer1"):
        view_of_layer(model, "layer9", SIDE)
    tokens = torch.arange(24.0).view(2, 3, 4)
    assert units_of(tokens)[0].tolist() == [4, 5, 6, 7]
    assert units_of(tokens[..., None])[0].tolist() == [1.5, 5.5, 9.5]


# ---- input gradients and starting images ----


def test_alignment_is_that_of_autograd(model: NormalizedModel, images: Tensor) -> None:
    found = alignments(AttackView(model), images)
    for i, image in enumerate(images):
        z = model.normalize(image[None]).detach().requires_grad_()
        model.forward_normalized(z).max().backward()
        assert z.grad is not None
        x, g = z.detach().double().flatten(), z.grad.double().flatten()
        wanted = float((x @ g).abs() / g.norm())
        assert float(found[0, i]) == pytest.approx(wanted, rel=1e-3)
        assert float(found[1, i]) == pytest.approx(wanted / float(x.norm()), rel=1e-3)


def test_alignment_of_a_linear_network_is_its_distance_to_the_boundary() -> None:
    """Logits w.x and -w.x: the boundary is where w.x = 0."""
    torch.manual_seed(0)
    linear = nn.Linear(12, 2, bias=False)
    with torch.no_grad():
        linear.weight[1] = -linear.weight[0]
    x = torch.rand(5, 3, 2, 2)
    found = alignments(AttackView(nn.Sequential(nn.Flatten(), linear)), x)
    w = linear.weight[0].detach().double()
    distance = (x.double().flatten(1) @ w).abs() / w.norm()
    torch.testing.assert_close(found[0], distance, rtol=1e-5, atol=1e-6)


def test_a_fitted_gaussian_has_the_moments_of_the_images() -> None:
    numbers = np.random.default_rng(0)
    base = numbers.normal(128, 20, (40, 3, 2, 2)).clip(60, 200)
    small = torch.from_numpy(base.astype(np.uint8))
    images = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    fitted = GaussianImages(images, 4)
    drawn = torch.stack([fitted.draw(0, i) for i in range(6000)])
    assert drawn.shape[1:] == (3, 8, 8)
    blocks = drawn[:, :, ::4, ::4]
    assert torch.equal(blocks.repeat_interleave(4, 2).repeat_interleave(4, 3), drawn)
    values, seen = (small.float() / 255).flatten(1), blocks.flatten(1)
    torch.testing.assert_close(seen.mean(0), values.mean(0), rtol=0, atol=0.005)
    wanted = torch.cov(values.T) + 1e-4 * torch.eye(12)
    torch.testing.assert_close(torch.cov(seen.T), wanted, rtol=0, atol=5e-4)
    assert torch.equal(fitted.draw(3, "a"), fitted.draw(3, "a"))
    assert not torch.equal(fitted.draw(3, "a"), fitted.draw(3, "b"))


def test_noise_depends_on_seed_and_number_alone() -> None:
    one = noise_image((3, 64, 64), 0, 5)
    assert torch.equal(one, noise_image((3, 64, 64), 0, 5))
    assert not torch.equal(one, noise_image((3, 64, 64), 0, 6))
    assert not torch.equal(one, noise_image((3, 64, 64), 1, 5))
    assert float(one.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(one.std()) == pytest.approx(0.05, rel=0.03)
