"""The projected ascent step and its family, as `torch.ops.fastadv.*` operators.

This package is imported as `fastadv.kernels`. `ops.py` defines and checks the operators,
`step.py` has their operands, `registry.py` chooses a backend, `reference.py` defines what is
computed, and the other modules compute it.
"""

from fastadv.kernels.ops import apgd_step_, ball_init, normalize, pgd_step_
from fastadv.kernels.registry import (
    BACKENDS,
    forced_backend,
    launch_counts,
    reset_launch_counts,
    use_backend,
)

__all__ = [
    "BACKENDS",
    "apgd_step_",
    "ball_init",
    "forced_backend",
    "launch_counts",
    "normalize",
    "pgd_step_",
    "reset_launch_counts",
    "use_backend",
]
