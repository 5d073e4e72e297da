r"""A transfer protocol of your own: the settings of an experiment that flags leave open.

Run: fastadv-transfer --source RUN --dataset DATA --mode full_network \
         --protocol examples/own_protocol.py:short
A package adds a name for it in its pyproject.toml:
    [project.entry-points."fastadv.protocols"]
    short = "mypackage.protocols:short"
"""

from __future__ import annotations

from fastadv.transfer.protocols import Procedure, Protocol, Task


def settings(task: Task) -> Procedure:
    """Return the settings for a task: fewer epochs where there are fewer images."""
    return Procedure(
        epochs=2 if task.num_pool <= 1000 else 20,
        batch_size=32,
        optimizer="adamw",
        lrs=(3e-3,),
        weight_decay=0.01,
        schedule="cosine",
        augment="none" if task.resolution <= 32 else "rrc",
    )


# The function alone is a protocol, too, which chooses on validation images. A Protocol
# says more: here, that there is one learning rate and nothing to choose.
short = Protocol(settings, select_on="none", name="short")
