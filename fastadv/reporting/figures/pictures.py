"""Pictures of what models see: adversarial examples and loss gradients.

The models are attacked and differentiated through the attack view, so their mode,
statistics and gradients stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastadv.attacks import PGD
from fastadv.models import NormalizedModel
from fastadv.models.view import AttackView
from fastadv.reporting.figures.palette import INK, MUTED, WRONG, house_style, new_figure

_CELL = 1.12  # inches of one image; small enough for eight in the width of a page
_LABEL = 1.0  # inches for the names of the rows
_SCALES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def adversarial_examples(
    models: Mapping[str, NormalizedModel],
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    attack: PGD,
    *,
    gradients: bool = False,
) -> Figure:
    """Draw clean images, adversarial ones and the amplified difference, per model.

    Under each image stands what the model predicts, bold red where that is wrong. All
    perturbations are amplified by one factor, which the title states.

    Args:
        models: Models by the name to show.
        images: Images, uint8 [N, C, H, W], N from 1 to about 8.
        labels: True classes, int64 [N].
        class_names: Names of the models' outputs, in their order.
        attack: The attack, with its threat model; it runs once per model.
        gradients: Whether to add a row with the loss gradient, as `loss_gradients`
            draws it.

    Raises:
        ValueError: There are no models, images that are not uint8 [N, C, H, W], or labels and
            class names that do not fit them.
    """
    _check(models, images, labels)
    if int(labels.max()) >= len(class_names):
        raise ValueError(
            f"labels reach {int(labels.max())} but there are {len(class_names)} "
            "class_names; give one name per output of the models"
        )
    found = {name: _attacked(m, images, labels, attack) for name, m in models.items()}
    scale = _amplification(max(_large(a.x_adv - a.x) for a in found.values()))
    title = (
        f"PGD-{attack.num_steps}, {attack.threat}; below each image, the predicted "
        f"class (difference amplified x{scale} around gray)"
    )
    with house_style():
        height = 4 if gradients else 3
        figure, axes = _grid(title, height * len(found), len(images))
        for index, (name, attacked) in enumerate(found.items()):
            rows = axes[height * index : height * (index + 1)]
            difference = 0.5 + scale * (attacked.x_adv - attacked.x)
            _name_row(rows[0][0], name, "clean")
            _name_row(rows[1][0], "", "adversarial")
            _name_row(rows[2][0], "", f"difference x{scale}")
            for i, label in enumerate(labels.tolist()):
                _show(rows[0][i], attacked.x[i])
                _show(rows[1][i], attacked.x_adv[i])
                _show(rows[2][i], difference[i])
                for row, seen in ((0, attacked.before[i]), (1, attacked.after[i])):
                    _caption(
                        rows[row][i], _class_name(class_names, seen), seen != label
                    )
            if gradients:
                _name_row(rows[3][0], "", "gradient")
                slopes = pixel_gradients(models[name], images, labels)
                for ax, slope in zip(rows[3], slopes, strict=True):
                    _show(ax, visible_gradient(slope))
    return figure


def loss_gradients(
    models: Mapping[str, NormalizedModel], images: Tensor, labels: Tensor
) -> Figure:
    """Draw the loss gradient with respect to the pixels, each model below the image.

    Gradients of robust models follow the outlines of the object; those of standard
    models look like noise. Each is clipped to three standard deviations around its
    mean and mapped to [0, 1], nothing else.

    Args:
        models: Models by the name to show.
        images: Images, uint8 [N, C, H, W], N from 1 to about 8.
        labels: True classes, int64 [N].

    Raises:
        ValueError: There are no models, images that are not uint8 [N, C, H, W], or labels
            that do not fit them.

    Source:
        Tsipras et al. 2019, figure 2; Utrera et al. 2021.
    """
    _check(models, images, labels)
    title = "Gradient of the loss with respect to the pixels"
    with house_style():
        figure, axes = _grid(title, 1 + len(models), len(images), captions=False)
        _name_row(axes[0][0], "image", "")
        for ax, image in zip(axes[0], images.float() / 255, strict=True):
            _show(ax, image)
        for row, (name, model) in zip(axes[1:], models.items(), strict=True):
            _name_row(row[0], name, "gradient")
            gradients = pixel_gradients(model, images, labels)
            for ax, gradient in zip(row, gradients, strict=True):
                _show(ax, visible_gradient(gradient))
    return figure


def pixel_gradients(model: NormalizedModel, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of each sample's cross-entropy by its [0, 1] pixels.

    Args:
        model: The model, which is left as it is.
        images: Images, uint8 [N, C, H, W].
        labels: True classes, int64 [N].

    Returns:
        The gradient, float32 [N, C, H, W].
    """
    view = AttackView(model)
    x = (images.to(model.mean.device).float() / 255).requires_grad_()
    with torch.enable_grad():
        logits = view(model.normalize(x).to(view.dtype))
        loss = cross_entropy(logits.float(), labels.to(x.device), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient


def visible_gradient(gradient: Tensor) -> Tensor:
    """Map one gradient [C, H, W] to [0, 1]: mean +-3 deviations; constant is gray."""
    centered = gradient - gradient.mean()
    # Where nothing varies, 0 / tiny stays 0 and the picture gray.
    tiny = torch.finfo(gradient.dtype).tiny
    return (0.5 + centered / (6 * centered.std()).clamp_min(tiny)).clamp(0, 1)


# ---- parts ----


def _check(
    models: Mapping[str, NormalizedModel], images: Tensor, labels: Tensor
) -> None:
    if not models:
        raise ValueError("models is empty; give at least one model by name")
    if images.dtype != torch.uint8 or images.dim() != 4 or len(images) == 0:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; expected uint8 "
            "[N, C, H, W] in 0..255 with N >= 1"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels have shape {list(labels.shape)} for {len(images)} images; "
            f"expected [{len(images)}]"
        )


@dataclass(frozen=True)
class _Attacked:
    """What one attack did to one model: images in [0, 1] and predicted classes."""

    x: Tensor  # [N, C, H, W]
    x_adv: Tensor
    before: list[int]  # [N]
    after: list[int]


def _attacked(
    model: NormalizedModel, images: Tensor, labels: Tensor, attack: PGD
) -> _Attacked:
    view = AttackView(model)
    images = images.to(model.mean.device)
    x_adv = attack(view, images, labels.to(images.device)).x_adv
    x = images.float() / 255
    return _Attacked(x, x_adv, _predict(model, view, x), _predict(model, view, x_adv))


@torch.no_grad()
def _predict(model: NormalizedModel, view: AttackView, x: Tensor) -> list[int]:
    logits = view(model.normalize(x).to(view.dtype))
    classes: list[int] = logits.argmax(1).tolist()
    return classes


def _large(delta: Tensor) -> float:
    """Return the change that 99 % of the pixels stay below."""
    # Not torch.quantile: it refuses more than 16 million elements.
    values = delta.abs().flatten()
    rank = max(1, int(0.99 * values.numel()))
    return float(values.kthvalue(rank).values)


def _amplification(large: float) -> int:
    """Return the largest round factor that keeps `large` within half the pixel range."""
    fitting = [scale for scale in _SCALES if scale * large <= 0.5]
    return fitting[-1] if fitting else 1


def _class_name(class_names: Sequence[str], index: int) -> str:
    return class_names[index] if index < len(class_names) else f"class {index}"


def _grid(
    title: str, rows: int, columns: int, *, captions: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of bare axes, with its title left and room for the names of rows."""
    height = rows * (_CELL + (0.12 if captions else 0.0)) + 0.5
    # A title of one line needs its width even over a single image.
    width = max(_LABEL + columns * _CELL, 0.078 * len(title))
    figure = new_figure(width, height)
    figure.suptitle(title, x=0.005, ha="left", fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, [list(row) for row in axes]


def _name_row(ax: Axes, name: str, what: str) -> None:
    for text, height, color, weight in (
        (name, 0.62, INK, "bold"),
        (what, 0.42, MUTED, "normal"),
    ):
        if text:
            ax.text(
                -0.08,
                height,
                text,
                color=color,
                weight=weight,
                ha="right",
                va="center",
                fontsize=9 if weight == "bold" else 8,
                transform=ax.transAxes,
            )


def _show(ax: Axes, image: Tensor) -> None:
    """Show [C, H, W] in [0, 1] as 8-bit pixels, enlarged without smoothing."""
    pixels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    ax.imshow(array, interpolation="none")


def _caption(ax: Axes, text: str, wrong: bool) -> None:
    short = text if len(text) <= 15 else text[:14] + "\u2026"
    ax.set_xlabel(
        short,
        color=WRONG if wrong else INK,
        weight="bold" if wrong else "normal",
        fontsize=8,
        labelpad=2,
    )
