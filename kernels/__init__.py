"""The projected ascent step and its family, as `torch.ops.fastadv.*` operators.

Imported as `fastadv.kernels`. `ops.py` defines and checks, `registry.py` chooses,
`reference.py` is the definition; the other modules implement.
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
