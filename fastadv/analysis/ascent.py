"""Images that maximise a unit of a network, or that a network represents like another.

Both are projected gradient ascent in an L2 ball around a starting image, by the fused
steps of `fastadv.attacks.PGD`, as the library `robustness` does it (Engstrom et al. 2019,
"Adversarial robustness as a prior for learned representations").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastadv.attacks import PGD
from fastadv.attacks.objectives import Context, Objective, targeted
from fastadv.errors import ConfigError, unknown_name
from fastadv.models import NormalizedModel
from fastadv.models.intermediate import EMBEDDING
from fastadv.models.view import AttackView
from fastadv.results.portions import Portions
from fastadv.threat import ThreatModel

LOGITS = "logits"
"""The name by which the outputs of a network are chosen like those of a layer."""

Cell = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Budget:
    """How far an image may be moved, and in which steps.

    Attributes:
        eps: Largest L2 distance to the start, in pixel units.
        num_steps: Number of gradient steps.
        step_size: L2 length of a step in pixel units.
    """

    eps: float
    num_steps: int
    step_size: float


class Ascended(NamedTuple):
    """What gradient ascent reached from N images.

    Attributes:
        images: The iterates of the largest objective, float32 [N, C, H, W] in [0, 1].
        before: The objective at the start, float32 [N].
        after: The objective at `images`, float32 [N].
        distance: L2 distance of `images` to the start in pixel units, [N].
    """

    images: Tensor
    before: Tensor
    after: Tensor
    distance: Tensor


def ascend(
    view: AttackView, x: Tensor, wanted: Tensor, objective: Objective, budget: Budget
) -> Ascended:
    """Move images so that an objective grows, and keep the iterate where it is largest.

    Args:
        view: View of the network.
        x: Starting images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
        wanted: What the objective reads as its labels: units or classes, int64 [N], or
            representations, float [N, D].
        objective: The objective; every image has one of its own.
        budget: Radius and steps.

    Raises:
        ValueError: Images are outside [0, 1], or shapes do not fit.
    """
    attack = PGD(
        ThreatModel("l2", budget.eps),
        budget.num_steps,
        budget.step_size,
        objective=objective,
        compile="off",
    )
    found = attack(view, x, wanted)
    start = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    with torch.no_grad():
        outputs = represent(view, view.normalize(x), objective.layer or LOGITS)
        before = objective.losses(outputs, Context(wanted)).float()
    distance = (found.x_adv.double() - start.double()).flatten(1).norm(dim=1)
    return Ascended(found.x_adv, before, found.loss, distance)


def ascend_all(
    portions: Portions,
    make_view: Callable[[], AttackView],
    cells: Sequence[Cell],
    objective: Objective,
    budget: Budget,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Move any number of images, batch by batch; see `ascend`.

    Args:
        portions: Where finished batches are kept.
        make_view: Makes the view of the network; it is called if a batch is not known.
        cells: A function for each image, which returns the image [C, H, W] and what the
            objective reads as its label.
        objective: The objective.
        budget: Radius and steps.
        batch_size: Images per batch.

    Returns:
        `images` uint8 [n, C, H, W], rounded, and `before`, `after`, `distance`, float32
        [n], in the order of the cells.
    """
    total = -(-len(cells) // batch_size)

    def batches(first: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        view = make_view()
        device = view.statistics(3)[0].device
        for number in range(first, total):
            some = [cell() for cell in cells[number * batch_size :][:batch_size]]
            x, wanted = (
                torch.stack(each).to(device) for each in zip(*some, strict=True)
            )
            reached = ascend(view, x, wanted, objective, budget)
            values = {k: v.float().cpu() for k, v in reached._asdict().items()}
            values["images"] = values["images"].mul(255).round().byte().contiguous()
            yield number, {k: v.numpy() for k, v in values.items()}

    found = list(portions.each(f"batches-of-{batch_size}", total, batches))
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def represent(view: AttackView, z: Tensor, layer: str) -> Tensor:
    """Return the activation of a layer, or the logits, for normalised images."""
    if layer != LOGITS:
        return view.activations(z, (layer,))[layer]
    logits: Tensor = view(z)
    return logits


# ---- objectives ----


def units_of(outputs: Tensor) -> Tensor:
    """Return the value [N, units] of every unit of a layer.

    A channel of maps [N, C, H, W] counts as the mean over positions, a dimension of
    tokens [N, T, D] as the mean over tokens.
    """
    outputs = outputs.float()
    if outputs.dim() == 3:
        return outputs.mean(1)
    return outputs.flatten(2).mean(2) if outputs.dim() > 3 else outputs


def _unit(outputs: Tensor, context: Context) -> Tensor:
    return units_of(outputs).gather(1, context.labels[:, None]).squeeze(1)


def _likeness(outputs: Tensor, context: Context) -> Tensor:
    """Return minus the relative distance [N] to the representation that is wanted."""
    wanted = context.labels
    length = torch.linalg.vector_norm(wanted, dim=1)
    tiny = torch.finfo(wanted.dtype).tiny
    apart = outputs.float().flatten(1) - wanted
    distance: Tensor = torch.linalg.vector_norm(apart, dim=1) / length.clamp_min(tiny)
    return -distance


def unit_objective(layer: str) -> Objective:
    """Return the activation of a unit of `layer` as an objective; see `units_of`."""
    return _objective("unit", _unit, layer)


def class_objective() -> Objective:
    """Return the log-probability of a class as an objective (Santurkar et al. 2019)."""
    return _objective("class", targeted, LOGITS)


def likeness_objective(layer: str) -> Objective:
    """Return minus the relative distance |r - wanted| / |wanted| as an objective.

    r is the representation of the image by `layer`, all of its values. The objective is
    that of `robustness` for the inversion of representations.
    """
    return _objective("likeness", _likeness, layer)


def _objective(
    name: str, per_sample: Callable[[Tensor, Context], Tensor], layer: str
) -> Objective:
    of_layer = None if layer == LOGITS else layer
    return Objective(name, per_sample, layer=of_layer, succeeds=False)


# ---- layers ----


def view_of_layer(model: NormalizedModel, layer: str, side: int) -> AttackView:
    """Return a view of a model whose `activations` reach a layer.

    Args:
        model: The model.
        layer: Dotted path of a module, `"embedding"` or `"logits"`.
        side: Side of its images in pixels.

    Raises:
        ConfigError: There is no such layer (near misses are named), or it outputs no
            tensor of one row per image.
    """
    known = {
        LOGITS,
        EMBEDDING,
        *(name for name, _ in model.net.named_modules() if name),
    }
    if layer not in known:
        raise ConfigError(unknown_name("layer", layer, known))
    image = model.mean.new_zeros(1, model.mean.numel(), side, side)
    for fold in (True, False):
        view = AttackView(model, fold=fold)
        try:
            with torch.no_grad():
                found = represent(view, view.normalize(image), layer)
        except ValueError:  # It may be folded away.
            continue
        if found.dim() < 2 or len(found) != 1:
            raise ConfigError(
                f"the layer {layer!r} outputs a tensor of shape {list(found.shape)} for "
                "one image; units need one row per image"
            )
        return view
    raise ConfigError(
        f"the layer {layer!r} does not run on an image, or returns no tensor; use a "
        f"stage ({', '.join(stage.name for stage in model.stages())}), {EMBEDDING} or "
        f"{LOGITS}"
    )


@torch.no_grad()
def count_units(view: AttackView, layer: str, side: int) -> int:
    """Return the number of units of a layer; see `units_of`."""
    mean, _ = view.statistics(3)
    z = view.normalize(mean.new_zeros(1, mean.numel(), side, side))
    return units_of(represent(view, z, layer)).shape[1]
