"""The Numba backend: the CPU fallback where `fastadv_cpu.so` could not be built.

Chooses threads and hands flat arrays to `_numba_kernels.py`, which is imported at the
first call: Numba takes half a second to import and seconds to compile a kernel (once;
the result is cached on disk). float32 only; half precision is the C++ backend's.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastadv.kernels.registry import Operands, operand_reasons

# Elements. x, x0, the gradient and two tables of one tile are about 100 KiB: they stay
# in a core's second-level cache between the passes over a tile.
TILE = 6144

_ACCEPTED = {
    "x": (torch.float32,),
    "x_prev": (torch.float32,),
    "x0": (torch.uint8, torch.float32),
    "grad": (torch.float32,),
    "z": (torch.float32,),
}
# Numba's fallback thread pool (workqueue) aborts the process on concurrent calls.
_one_at_a_time = threading.Lock()


@functools.cache
def unavailable_reason() -> str | None:
    """Why Numba is not there, or None. Looks for it without importing it."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed; pip install numba"
    return None


def not_supported_reasons(operands: Operands) -> list[str]:
    """Runs float32 CPU tensors; clean images may be uint8."""
    return operand_reasons(operands, "cpu", _ACCEPTED, (torch.float32,))


@functools.cache
def _kernels() -> ModuleType:
    """The compiled functions, on a thread pool shared with torch where possible."""
    import numba
    from numba.np.ufunc import parallel

    # "omp" binds to the libgomp that torch loaded, so both use one pool of threads.
    config: Any = numba.config
    config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]
    threads = torch.get_num_threads()
    parallel._launch_threads()  # type: ignore[no-untyped-call]
    torch.set_num_threads(threads)  # launching resets the count in that libgomp
    return importlib.import_module("fastadv.kernels._numba_kernels")


def _call(name: str, *args: Any) -> Any:
    import numba

    with _one_at_a_time:
        kernel = getattr(_kernels(), name)
        config: Any = numba.config
        most = int(config.NUMBA_NUM_THREADS)
        numba.set_num_threads(min(torch.get_num_threads(), most))
        return kernel(*args)


def _rows(t: Tensor) -> Any:
    """A dense image tensor as numpy [rows, plane] in memory order, sharing memory."""
    n, c, h, w = t.shape
    if t.is_contiguous():
        return t.detach().reshape(n * c, h * w).numpy()
    return t.detach().permute(0, 2, 3, 1).reshape(n, h * w * c).numpy()


def _unit(images: Tensor) -> Any:
    """What a pixel is divided by: one is exact, and spares a second set of kernels."""
    import numpy as np

    return np.float32(255 if images.dtype == torch.uint8 else 1)


def _vector(t: Tensor) -> Any:
    return t.detach().to(torch.float32).contiguous().numpy()


def _tables(mean: Tensor, std: Tensor, like: Tensor) -> tuple[Any, Any]:
    """Mean and 1/std of every element of a tile, [planes, tile]; see the kernels."""
    import numpy as np

    _, c, h, w = like.shape
    tables = (_vector(mean), 1 / _vector(std))
    if like.is_contiguous():
        width = min(TILE, h * w)
        return tuple(np.repeat(t[:, None], width, axis=1) for t in tables)  # type: ignore[return-value]
    pixels = min(max(1, TILE // c), h * w)
    return tuple(np.tile(t, (1, pixels)) for t in tables)  # type: ignore[return-value]


def pgd_step(
    x: Tensor,
    x0: Tensor,
    grad: Tensor,
    step_size: Tensor,
    eps: Tensor,
    mean: Tensor,
    std: Tensor,
    norm: str,
    z: Tensor | None,
    nonfinite: Tensor | None,
) -> None:
    """As `reference.pgd_step`, single pass for linf, two passes for l2."""
    bad = _call(
        f"step_{norm}",
        _rows(x),
        _rows(x0),
        _unit(x0),
        _rows(grad),
        _rows(x if z is None else z),
        z is not None,
        _vector(step_size),
        _vector(eps),
        *_tables(mean, std, x),
    )
    if nonfinite is not None:
        nonfinite += bad


def apgd_step(
    x: Tensor,
    x_prev: Tensor,
    x0: Tensor,
    grad: Tensor,
    step_size: Tensor,
    eps: Tensor,
    momentum: float,
    mean: Tensor,
    std: Tensor,
    norm: str,
    z: Tensor | None,
    nonfinite: Tensor | None,
) -> None:
    """As `reference.apgd_step`, single pass for linf, three passes for l2."""
    import numpy as np

    bad = _call(
        f"apgd_{norm}",
        _rows(x),
        _rows(x_prev),
        _rows(x0),
        _unit(x0),
        _rows(grad),
        _rows(x if z is None else z),
        z is not None,
        _vector(step_size),
        _vector(eps),
        np.float32(momentum),
        *_tables(mean, std, x),
    )
    if nonfinite is not None:
        nonfinite += bad


def ball_init(x0: Tensor, eps: Tensor, norm: str, seed: int, offset: int) -> Tensor:
    """As `reference.ball_init`."""
    import numpy as np

    n, c, h, w = x0.shape
    out = torch.empty_like(x0, dtype=torch.float32)
    channels_last = not x0.is_contiguous()
    _call(
        "ball_init",
        _rows(out).reshape((n, h * w, c) if channels_last else (n, c, h * w)),
        _rows(x0).reshape(n, c * h * w),
        _unit(x0),
        channels_last,
        norm == "l2",
        _vector(eps),
        np.uint64(seed & (2**64 - 1)),
        np.uint64(offset & (2**64 - 1)),
    )
    return out


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """As `reference.normalize`."""
    z = torch.empty_like(x, dtype=dtype)
    _call("normalize", _rows(x), _unit(x), *_tables(mean, std, x), _rows(z))
    return z
