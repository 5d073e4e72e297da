"""What the outputs of a network decide, and what the model itself outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastadv.models.live_view import LiveView
from fastadv.models.view import AttackView

# Bounds the rounding of a sum of a thousand float32 probabilities, with room.
_ONE = 1e-4
PROBABILITIES = (
    "the model returns probabilities, not logits: softmax flattens the loss that attacks "
    "climb. Remove the softmax from the model"
)


def checked_logits(outputs: object) -> Tensor:
    """Return the logits [N, K] among the outputs of a network, or raise a TypeError.

    They are the outputs themselves, or the value `logits` of an object or a mapping, as
    networks of the package transformers return it.
    """
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits", outputs)
    else:
        outputs = getattr(outputs, "logits", outputs)
    if isinstance(outputs, Tensor) and outputs.dim() == 2:
        return outputs
    what = f"a {type(outputs).__name__}"
    if isinstance(outputs, Tensor):
        what = f"a tensor of shape {list(outputs.shape)}"
    elif isinstance(outputs, (tuple, list)):
        what += f" of {len(outputs)}"
    raise TypeError(
        f"the model returned {what}; attacks need one tensor of logits [N, K], alone or "
        "called `logits`. Wrap the model in a module that returns its logits alone"
    )


def are_probabilities(outputs: Tensor) -> bool:
    """Return whether every row [K] is >= 0 and sums to one; waits for the device."""
    outputs = outputs.detach().double()
    far = (outputs.sum(1) - 1).abs().amax()
    return bool((outputs.amin() >= 0).logical_and(far < _ONE).tolist())


def decided(logits: Tensor) -> Tensor:
    """Return the class that each row of logits [N, K] decides for, int64 [N].

    Logits that are NaN or infinite decide for no class, and the result is -1.
    """
    return logits.argmax(1).where(logits.isfinite().all(1), -1)


@torch.no_grad()
def logits_of_model(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits [N, K] of a model itself in evaluation mode, never of a copy.

    Args:
        model: The model, or a view of it.
        x: Images [N, C, H, W], uint8 or float in [0, 1].

    Raises:
        TypeError: The model does not return logits [N, K].
    """
    view = model if isinstance(model, AttackView) else LiveView(model)
    return checked_logits(view.logits_of_model(x))
