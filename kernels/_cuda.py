"""The seat of the CUDA C++ backend (`csrc/cuda`, CMake option FASTADV_CUDA).

Nothing runs here yet: it declines every call, and `fastadv-doctor` says so.
"""

from fastadv.kernels.registry import Operands


def unavailable_reason() -> str | None:
    """Always declines."""
    return "not part of this version; the triton backend serves GPUs"


def not_supported_reasons(operands: Operands) -> list[str]:
    """Never asked, since the backend is unavailable."""
    return [str(unavailable_reason())]
