"""What is kept beside the rows of a results table. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastadv.ranges import AT_LEAST_0, Checked

Keep = Literal["none", "verdicts", "heads", "networks"]
LEVELS: tuple[Keep, ...] = ("none", "verdicts", "heads", "networks")


@dataclass(frozen=True, kw_only=True)
class KeepConfig(Checked):
    """What is kept beside the rows of a results table."""

    keep: Keep = "heads"
    """What is kept beside each row: nothing (none), the verdict on every test image
    (verdicts), also the logits and a head that was fitted to a frozen network (heads), or
    also the weights of a network that was fine-tuned (networks)."""
    keep_limit: Annotated[float, AT_LEAST_0] = 10.0
    """Size in GB up to which the files beside the rows of a table may grow. A row beyond it
    is still written, and says what it does not keep."""

    def keeps(self, level: Keep) -> bool:
        """Return whether what a level adds is kept."""
        return LEVELS.index(self.keep) >= LEVELS.index(level)

    @property
    def keep_bytes(self) -> float:
        """Bytes that the files of a table may take together."""
        return self.keep_limit * 1e9
