"""How images are attacked: norm, radius and steps. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastadv.flags import Pixels, arg
from fastadv.ranges import AT_LEAST_1, Checked

# The same as `fastadv.attacks.compiled.CompileMode`, which would import torch; a test
# compares the two.
CompileName = Literal["auto", "off", "inductor", "graph", "full"]


NORM_ALIAS = arg(aliases=["--constraint"])
StepsFlag = Annotated[int | None, AT_LEAST_1, arg(aliases=["--attack-steps"])]
StepSizeFlag = Annotated[Pixels | None, arg(aliases=["--attack-lr"])]


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Checked):
    """How an attack runs; norm, radius and steps have other defaults in each command."""

    compile: CompileName = "auto"
    """How the steps of the attack run: one by one (off), with a network compiled by
    torch.compile (inductor), all in one CUDA graph, which keeps the memory of a batch
    (graph), or both (full). With auto, a graph is used on CUDA, and off elsewhere."""
