"""Whether an attack view computes what its model does, found on a few images.

The view of most networks is a traced and folded copy. Tracing runs the code of a network
once: what that code decides in Python (a random draw, whether gradients are recorded, the
type of its input) is then the same in every pass of the copy, and need not be what the
model does. So the two are compared before the view is trusted.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv.models.calling import first_line, lacks_gradient

IMAGES = 16  # images that are compared
# Outputs that differ by more than this share of their length do not differ by rounding.
# Folding moves outputs of float32 by 1e-5; bfloat16 keeps three digits of each layer.
_SAME = 1e-2
_SAME_IN_HALF = 0.25
# Passes of a model over the same images in batches of two sizes differ by rounding alone.
_STEADY = 1e-4
_STEADY_IN_HALF = 0.05
_DRAWS = 4  # further passes of a model that draws random numbers, until outputs differ


@dataclass(frozen=True)
class Agreement:
    """What the comparison of a view with its model found.

    Attributes:
        reason: Why the view cannot stand for the model, or None where it can.
        randomised: Whether passes of the model over the same images differ, be it by chance
            or by the other images of the batch.
        no_gradient: Why no gradient reaches the images, or None where one does.
    """

    reason: str | None = None
    randomised: bool = False
    no_gradient: str | None = None


def compared(view: Any, x: Tensor) -> Agreement:
    """Compare a view with its model in evaluation mode; see `AttackView.compare`.

    Args:
        view: The `AttackView`. One in mode `"train"` copies modules and traces nothing, and
            is not compared.
        x: Images [N, C, H, W], uint8 or float in [0, 1]; the first 16 of them are used.
    """
    if view.mode != "eval":
        return Agreement()
    x = x[:IMAGES]
    no_gradient, seen = _differentiated(view, x)
    before = _random_state(x)
    outputs = _logits(view.logits_of_model(x))
    drew = _random_state(x) != before
    part = x[: (len(x) + 1) // 2]  # noise may be seeded by the whole batch
    half = view.dtype.itemsize < torch.float32.itemsize
    steady = _STEADY_IN_HALF if half else _STEADY
    randomised = False
    for _ in range(1 + _DRAWS if drew else 1):
        again = _logits(view.logits_of_model(part))
        seen_before = None if outputs is None else outputs[: len(part)]
        randomised = _differ(seen_before, again, steady)
        if randomised:
            break
    reason = None
    if view.live_reason is None:
        if drew:
            reason = (
                "the model draws random numbers, of which a copy of its graph may hold a "
                "single draw"
            )
        elif randomised:
            reason = "the model gives other outputs for the same images in another pass"
        elif _differ(outputs, seen, _SAME_IN_HALF if half else _SAME):
            reason = (
                "a traced copy of the model gives other outputs than the model: its code "
                "decides in Python what it computes"
            )
    return Agreement(reason, randomised, no_gradient)


def _differentiated(view: Any, x: Tensor) -> tuple[str | None, Tensor | None]:
    """Return why a pass of the view has no gradient by its input, or None; and outputs."""
    z = view.normalize(x).requires_grad_()
    try:
        with torch.enable_grad():
            outputs = _logits(view(z))
    except RuntimeError as error:
        if not lacks_gradient(error):
            raise
        with torch.no_grad():
            outputs = _logits(
                view(z.detach())
            )  # raises again if that is not the reason
        return first_line(error), outputs
    if outputs is None or outputs.requires_grad:
        return None, outputs
    return (
        "its outputs do not depend on the images by operations with a gradient",
        outputs,
    )


def _logits(outputs: Any) -> Tensor | None:
    """Return the logits among the outputs of a model, or None if there are none."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    outputs = getattr(outputs, "logits", outputs)
    return outputs if isinstance(outputs, Tensor) and outputs.dim() > 1 else None


def _differ(one: Tensor | None, other: Tensor | None, bound: float) -> bool:
    """Return whether outputs differ by more than rounding; waits for the device.

    Rows that are not finite in both do not differ.
    """
    if one is None or other is None or one.shape != other.shape:
        return (one is None) != (other is None) or (one is not None)
    a, b = (each.detach().double().flatten(1) for each in (one, other))
    finite = a.isfinite().all(1), b.isfinite().all(1)
    if bool((finite[0] != finite[1]).any()):
        return (
            bound < _SAME_IN_HALF
        )  # a shorter dtype may overflow where the model does not
    a, b = a[finite[0]], b[finite[0]]
    length = torch.maximum(a.norm(dim=1), b.norm(dim=1)).clamp_min(1e-30)
    return bool(((a - b).norm(dim=1) > bound * length).any())


def _random_state(x: Tensor) -> tuple[Any, ...]:
    """Return the states of the generators that code usually draws from."""
    states = [torch.default_generator.get_state()]
    if x.is_cuda:
        states.append(torch.cuda.get_rng_state(x.device))
    seen = tuple(state.numpy().tobytes() for state in states)
    return (random.getstate(), str(np.random.get_state()), *seen)
