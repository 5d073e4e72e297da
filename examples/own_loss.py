"""A loss of your own as what an attack maximises.

Run: fastadv-eval --checkpoint RUN --data DATA --objective examples/own_loss.py:hinge
A package adds a name for it in its pyproject.toml:
    [project.entry-points."fastadv.objectives"]
    hinge = "mypackage.losses:hinge"
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastadv import PGD, ThreatModel
from fastadv.attacks import Context, Objective


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the multi-class hinge loss [N] of logits [N, K]; one number per image."""
    return F.multi_margin_loss(logits.float(), labels, reduction="none")


def towards(logits: Tensor, context: Context) -> Tensor:
    """Return minus the hinge loss [N] of the classes an attack aims at."""
    return -hinge(logits, context.labels)


# A function alone attacks the true class. An Objective says more: here, that the labels
# of a call are targets, and that success means that they are predicted.
targeted_hinge = Objective("targeted_hinge", towards, flips_success=True)

attack = PGD(ThreatModel("linf", "8/255"), num_steps=10, objective=hinge)
