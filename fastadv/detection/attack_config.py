"""The choices of an attack on a detector, which flags set. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fastadv.attacks.config import NORM_ALIAS, StepsFlag, StepSizeFlag
from fastadv.errors import ConfigError
from fastadv.flags import NormName, Pixels
from fastadv.ranges import Checked

# The keys of `fastadv.detection.view.LOSSES`, which would import torch; a test compares them.
LossChoice = Literal["classification", "regression", "both", "all"]


@dataclass(frozen=True, kw_only=True)
class DetectorAttackConfig(Checked):
    """How the images of a detector are attacked."""

    USUAL_STEPS: ClassVar[int] = 10

    norm: Annotated[NormName, NORM_ALIAS] = "linf"
    """Norm of the attack."""
    eps: Pixels = 0.0
    """Radius of the attack in [0, 1] pixel units, around images of their own size; 0 means
    no attack."""
    num_steps: StepsFlag = None
    """Number of gradient steps. Default: 10 to judge a detector, 3 to train one."""
    step_size: StepSizeFlag = None
    """Length of a step in [0, 1] pixel units. Default: 2.5 eps / num_steps."""
    attack_loss: LossChoice = "both"
    """Losses that the attack maximises: those of classes (classification), of boxes
    (regression), of both, or also that of masks (all)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (
            ("num_steps", self.num_steps is not None),
            ("step_size", self.step_size is not None),
            ("attack_loss", self.attack_loss != "both"),
        )
        idle = [name for name, is_given in given if is_given]
        if idle and not self.eps:
            raise ConfigError(
                f"`{idle[0]}` belongs to the attack, and there is none; give its radius "
                "`eps`, for example 8/255"
            )

    @property
    def steps(self) -> int:
        """Number of gradient steps: `num_steps`, or the usual one."""
        return self.num_steps or self.USUAL_STEPS
