"""An exponential moving average of the weights, on the device of the weights."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class EMA(Generic[Network]):
    """A model with averaged weights, which is validated, tested and saved for others.

    BatchNorm statistics are averaged like weights. The decay of update t is
    min(decay, (1 + t) / (10 + t)), so that a short run is not an average of its start.

    Args:
        model: The model whose weights are averaged.
        decay: Share of the average that an update keeps, in (0, 1).

    Attributes:
        model: The averaged model, in evaluation mode.

    Source:
        Polyak and Juditsky 1992; the warm-up is TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.model: Network = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Network) -> None:
        """Add the present weights of `model`; nothing is read from the device."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        mine, theirs = self.model.state_dict(), model.state_dict()
        averaged = [name for name, value in mine.items() if value.is_floating_point()]
        for name in mine.keys() - set(averaged):
            mine[name].copy_(theirs[name])
        torch._foreach_lerp_(
            [mine[name] for name in averaged],
            [theirs[name] for name in averaged],
            1 - decay,
        )

    def reset(self, model: Network) -> None:
        """Restart the average from the present weights of `model`."""
        self.model.load_state_dict(model.state_dict())
        self.updates = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates in it."""
        return {"weights": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.model.load_state_dict(state["weights"])
        self.updates = state["updates"]
