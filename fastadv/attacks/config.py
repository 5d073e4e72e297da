"""How images are attacked: norm, radius and steps. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from fastadv.flags import NormName, Pixels
from fastadv.ranges import AT_LEAST_1, Checked

# The same as `fastadv.attacks.compiled.CompileMode`, which would import torch; a test
# compares the two.
CompileName = Literal["auto", "off", "inductor", "graph", "full"]


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Checked):
    """An attack by projected gradient descent."""

    norm: Annotated[NormName | None, arg(aliases=["--constraint"])] = None
    """Norm of the perturbation."""
    eps: Pixels | None = None
    """Radius of the perturbation in [0, 1] pixel units, for example 3 or 4/255."""
    num_steps: Annotated[int | None, AT_LEAST_1, arg(aliases=["--attack-steps"])] = None
    """Number of gradient steps of the attack."""
    step_size: Annotated[Pixels | None, arg(aliases=["--attack-lr"])] = None
    """Length of an attack step in [0, 1] pixel units."""
    compile: CompileName = "auto"
    """How the steps of the attack run: one by one (off), with a network compiled by
    torch.compile (inductor), all in one CUDA graph, which keeps the memory of a batch
    (graph), or both (full). With auto, a graph is used on CUDA, and off elsewhere."""
