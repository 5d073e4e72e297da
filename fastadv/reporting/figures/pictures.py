"""Pictures of what models see: adversarial examples and loss gradients.

The models are attacked and differentiated through the attack view, so their mode,
statistics and gradients stay as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
    clean = images.float() / 255
    adversarial = {}
    for name, model in models.items():
        place = model.mean.device
        result = attack(AttackView(model), images.to(place), labels.to(place))
        adversarial[name] = result.x_adv.to(clean.device)
    scale = _amplification(x_adv - clean for x_adv in adversarial.values())
    title = (
        f"PGD-{attack.num_steps}, {attack.threat}; below each image, the predicted "
        f"class (difference amplified x{scale} around gray)"
    )
    with house_style():
        height = 4 if gradients else 3
        figure, axes = _grid(title, height * len(models), len(images))
        for index, (name, model) in enumerate(models.items()):
            rows, x_adv = axes[height * index :], adversarial[name]
            _show_row(rows[0], clean, name, "clean")
            _show_row(rows[1], x_adv, "", "adversarial")
            difference = 0.5 + scale * (x_adv - clean)
            _show_row(rows[2], difference, "", f"difference x{scale}")
            for row, x in ((rows[0], clean), (rows[1], x_adv)):
                for ax, seen, label in zip(
                    row, _predict(model, x), labels, strict=True
                ):
                    known = seen < len(class_names)
                    text = class_names[seen] if known else f"class {seen}"
                    _caption(ax, text, seen != int(label))
            if gradients:
                slopes = pixel_gradients(model, images, labels)
                _show_row(rows[3], map(visible_gradient, slopes), "", "gradient")
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
        _show_row(axes[0], images.float() / 255, "image", "")
        for row, (name, model) in zip(axes[1:], models.items(), strict=True):
            gradients = pixel_gradients(model, images, labels)
            _show_row(row, map(visible_gradient, gradients), name, "gradient")
    return figure


def pixel_gradients(model: NormalizedModel, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient, float32 [N, C, H, W], of the cross-entropy by [0, 1] pixels.

    The model is left as it is; `images` are uint8 [N, C, H, W] and `labels` int64 [N].
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


def image_rows(title: str, rows: Mapping[str, Tensor]) -> Figure:
    """Draw rows of images below each other.

    Args:
        title: Title of the figure.
        rows: Images uint8 [N, C, H, W], as many in each row, by the name of the row.
    """
    with house_style():
        count = len(next(iter(rows.values())))
        figure, axes = _grid(title, len(rows), count, captions=False)
        for row, (name, images) in zip(axes, rows.items(), strict=True):
            _show_row(row, images.float() / 255, "", name)
    return figure


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


@torch.no_grad()
def _predict(model: NormalizedModel, x: Tensor) -> list[int]:
    view = AttackView(model)
    inputs = model.normalize(x.to(model.mean.device)).to(view.dtype)
    return [int(index) for index in view(inputs).argmax(1)]


def _amplification(deltas: Iterable[Tensor]) -> int:
    """Return the largest round factor that keeps 99 % of pixels within half the range."""
    large = 0.0
    for delta in deltas:
        # Not torch.quantile: it refuses more than 16 million elements.
        values = delta.abs().flatten()
        rank = max(1, int(0.99 * values.numel()))
        large = max(large, float(values.kthvalue(rank).values))
    fitting = [scale for scale in _SCALES if scale * large <= 0.5]
    return fitting[-1] if fitting else 1


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


def _show_row(
    row: Sequence[Axes], images: Iterable[Tensor], name: str, what: str
) -> None:
    """Show [C, H, W] images in [0, 1] as 8-bit pixels, enlarged without smoothing.

    The name of the model and what its row shows stand left of the first image.
    """
    place: Any = {"ha": "right", "va": "center", "transform": row[0].transAxes}
    if name:
        row[0].text(-0.08, 0.62, name, color=INK, weight="bold", fontsize=9, **place)
    if what:
        row[0].text(
            -0.08, 0.42, what, color=MUTED, weight="normal", fontsize=8, **place
        )
    for ax, image in zip(row, images, strict=True):
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
