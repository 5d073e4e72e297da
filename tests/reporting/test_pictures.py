"""Pictures: the pixels and captions shown are those of the model and the attack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastadv.attacks import PGD, ThreatModel
from fastadv.models import NormalizedModel
from fastadv.reporting import adversarial_examples, loss_gradients
from fastadv.reporting.figures.palette import INK, WRONG
from fastadv.reporting.figures.pictures import pixel_gradients, visible_gradient

NAMES = ["cat", "<script>alert(1)</script>", "dog", "eel"]


def shown(ax: Axes) -> NDArray[np.uint8]:
    (image,) = ax.images
    return np.asarray(image.get_array())


def test_adversarial_examples_show_the_attack(
    model: NormalizedModel, images: Tensor, labels: Tensor
) -> None:
    attack = PGD(ThreatModel("linf", "16/255"), num_steps=3)
    figure = adversarial_examples({"tiny": model}, images, labels, NAMES, attack)
    axes = np.array(figure.axes).reshape(3, 3)
    x_adv = attack(model, images, labels).x_adv
    # 16 of 255 amplified five times is 0.31, ten times would leave the range.
    assert "x5 " in figure.get_suptitle()
    for i in range(3):
        clean = images[i].permute(1, 2, 0).numpy()
        assert np.array_equal(shown(axes[0, i]), clean)
        expected = (x_adv[i].permute(1, 2, 0) * 255).round().numpy()
        assert np.abs(shown(axes[1, i]) - expected).max() <= 1
        assert not np.array_equal(shown(axes[1, i]), clean)
        delta = (x_adv[i] - images[i] / 255).permute(1, 2, 0)
        difference = ((0.5 + 5 * delta).clamp(0, 1) * 255).numpy()
        assert np.abs(shown(axes[2, i]) - difference).max() <= 1


def test_captions_are_predictions_red_where_wrong(
    model: NormalizedModel, images: Tensor
) -> None:
    model.eval()
    with torch.no_grad():
        right = model(images / 255).argmax(1)
    labels = torch.cat([right[:2], (right[2:] + 1) % 4])
    attack = PGD(ThreatModel("l2", 0.0), num_steps=1)
    axes = adversarial_examples({"m": model}, images, labels, list("abcd"), attack).axes
    for row in (axes[:3], axes[3:6]):
        captions = [ax.xaxis.label for ax in row]
        assert [c.get_text() for c in captions] == ["abcd"[c] for c in right.tolist()]
        assert [c.get_color() for c in captions] == [INK, INK, WRONG]


def test_pixel_gradients_agree_with_plain_autograd(
    model: NormalizedModel, images: Tensor, labels: Tensor
) -> None:
    model.train()
    found = pixel_gradients(model, images, labels)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    x = (images.float() / 255).requires_grad_()
    (expected,) = torch.autograd.grad(
        cross_entropy(model(x), labels, reduction="sum"), x
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_loss_gradients_stand_below_their_image(
    model: NormalizedModel, images: Tensor, labels: Tensor
) -> None:
    figure = loss_gradients({"a": model, "b": model}, images, labels)
    axes = np.array(figure.axes).reshape(3, 3)
    gradient = visible_gradient(pixel_gradients(model, images, labels)[1])
    expected = (gradient.permute(1, 2, 0) * 255).round().numpy()
    assert np.array_equal(shown(axes[0, 1]), images[1].permute(1, 2, 0).numpy())
    assert np.abs(shown(axes[1, 1]) - expected).max() <= 1
    assert shown(axes[2, 1]).std() > 10


def test_visible_gradient_clips_at_three_deviations() -> None:
    gradient = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0)) + 7
    mean, std = gradient.mean(), gradient.std()
    gradient[0, 0, 0] = 1e3
    assert visible_gradient(gradient)[0, 0, 0] == 1
    gradient[0, 0, 0] = mean
    seen = visible_gradient(gradient)
    index = int(gradient.argmax())
    value = (gradient.flatten()[index] - mean) / (6 * std) + 0.5
    assert seen.flatten()[index] == pytest.approx(min(1.0, float(value)), abs=1e-3)
    assert torch.equal(
        visible_gradient(torch.ones(3, 4, 4)), torch.full((3, 4, 4), 0.5)
    )


def test_grayscale_images_are_drawn(images: Tensor) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
    model = NormalizedModel(net, [0.5], [0.25], "mine", 4)
    figure = loss_gradients({"m": model}, images[:, :1], torch.tensor([0, 1, 2]))
    assert shown(figure.axes[0]).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "models is empty"),
        ({"images": torch.rand(3, 3, 8, 8)}, r"torch.float32 \[3, 3, 8, 8\]; expected"),
        ({"labels": torch.tensor([0])}, r"labels have shape \[1\] for 3 images"),
        ({"class_names": ["a"]}, "labels reach 3 but there are 1"),
    ],
)
def test_arguments_that_do_not_fit(
    model: NormalizedModel,
    images: Tensor,
    labels: Tensor,
    change: dict[str, object],
    message: str,
) -> None:
    arguments = {
        "models": {"m": model},
        "images": images,
        "labels": labels,
        "class_names": NAMES,
        "attack": PGD(ThreatModel("l2", 0.5)),
    }
    with pytest.raises(ValueError, match=message):
        adversarial_examples(**(arguments | change))  # type: ignore[arg-type]
