"""An attack view that calls the model itself: no copy of it is made, nothing is folded.

It serves networks with a state that a copy would not share: wrappers that count queries,
defences that keep a history, networks with hooks. It is slower than `AttackView`.
"""

from __future__ import annotations

from torch import nn

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
        self._hold(model)
        self.mode, self.tracks = "eval", False
        self._dtype, self._first = None, ""
        self._use_live("the model itself is called")
