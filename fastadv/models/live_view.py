"""An attack view that calls the model itself: no copy of it is made, nothing is folded.

It serves networks with a state that a copy would not share: wrappers that count queries,
defences that keep a history, networks with hooks. It is slower than `AttackView`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from fastadv.models.normalized import NormalizedModel
from fastadv.models.view import AttackView


class LiveView(AttackView):
    """A view of `model` that passes every batch through the model itself.

    Attacks and `evaluate` take it in place of the model. Each pass of an attack is a call
    of the model (of its network, for a `NormalizedModel`), with its hooks, in evaluation
    mode; afterwards every module is in the mode that it had. Weights are never copied, so
    `refresh` has nothing to do. No gradient of a weight is computed.

    Args:
        model: Any module that maps [0, 1] images to logits, or a `NormalizedModel`.

    Example:
        >>> counted = QueryCounter(network)  # a module of yours
        >>> result = PGD.judge(threat, num_steps=20)(LiveView(counted), images, labels)
        >>> counted.queries  # 21 passes of the batch
    """

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        if isinstance(model, AttackView):
            raise TypeError("the model is a view already; give the model itself")
        normalized = isinstance(model, NormalizedModel)
        self._live = (model.net if normalized else model,)
        self._model = (model,)
        self.mode, self.tracks = "eval", False
        self._dtype = None
        self._folds, self._cuts = {}, {}
        self.unfolded = {}
        self.unfolded_reason = "the model itself is called"
        self.net = self.live
        self.input_dtype, self._first = self.dtype, ""

    def refresh(self) -> None:
        """Do nothing, since the weights are those of the model."""

    def refresh_if_stale(self) -> None:
        """Do nothing, since the weights are those of the model."""

    def forward(self, z: Tensor) -> Tensor:
        """Map normalised images `z` [N, C, H, W] to logits [N, K]."""
        with _evaluating(self.live):
            logits: Tensor = self.net(z)
        return logits

    def activations(self, z: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the outputs of named modules; see `fastadv.models.activations`."""
        with _evaluating(self.live):
            return super().activations(z, names)


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Put all modules in evaluation mode, and each back into the mode that it had."""
    training = [module for module in net.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
