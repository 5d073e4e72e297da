"""How images are attacked: norm, radius and steps. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import arg

from fastadv.errors import ConfigError
from fastadv.flags import NormName, Pixels
from fastadv.ranges import AT_LEAST_1, Checked
from fastadv.threat import parse_norm, parse_pixels

# The same as `fastadv.attacks.compiled.CompileMode`, which would import torch; a test
# compares the two.
CompileName = Literal["auto", "off", "inductor", "graph", "full"]


@dataclass(frozen=True, kw_only=True)
class ThreatConfig(Checked):
    """The ball of perturbations, and in how many steps it is searched."""

    LENGTHS: ClassVar[tuple[str, ...]] = ("eps",)  # fields in pixel units

    norm: NormName | None = None
    """Norm of the perturbation."""
    eps: Pixels | None = None
    """Radius of the perturbation in [0, 1] pixel units, for example 3 or 4/255."""
    num_steps: Annotated[int | None, AT_LEAST_1, arg(aliases=["--attack-steps"])] = None
    """Number of gradient steps of the attack."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            if self.norm is not None:
                object.__setattr__(self, "norm", parse_norm(self.norm))
            for name in self.LENGTHS:
                value = getattr(self, name)
                if value is not None:
                    object.__setattr__(self, name, parse_pixels(value))
        except ValueError as error:
            raise ConfigError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class AttackConfig(ThreatConfig):
    """An attack by projected gradient descent."""

    LENGTHS: ClassVar[tuple[str, ...]] = ("eps", "step_size")

    norm: Annotated[NormName | None, arg(aliases=["--constraint"])] = None
    """Norm of the perturbation."""
    step_size: Annotated[Pixels | None, arg(aliases=["--attack-lr"])] = None
    """Length of an attack step in [0, 1] pixel units."""
    compile: CompileName = "auto"
    """How the steps of the attack run: one by one (off), with a network compiled by
    torch.compile (inductor), all in one CUDA graph, which keeps the memory of a batch
    (graph), or both (full). With auto, a graph is used on CUDA, and off elsewhere."""
