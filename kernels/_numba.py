"""The Numba backend: the CPU fallback where `fastadv_cpu.so` could not be built.

It chooses threads and hands flat arrays to `_numba_kernels.py`, which is imported at the
first call: Numba takes half a second to import and seconds to compile a kernel, once,
because the result is cached on disk. It computes in float32 only.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastadv.kernels.registry import STEP_DTYPES, Operands, operand_reasons
from fastadv.kernels.step import Start, Step

# Elements. x, x0, the gradient and two tables of one tile are about 100 KiB: they stay
# in a core's second-level cache between the passes over a tile.
TILE = 6144

_ACCEPTED = {
    **dict.fromkeys(STEP_DTYPES, (torch.float32,)),
    "x0": (torch.uint8, torch.float32),
}
# Numba's fallback thread pool (workqueue) aborts the process on concurrent calls.
_one_at_a_time = threading.Lock()


@functools.cache
def unavailable_reason() -> str | None:
    """Return why Numba is not there, or None; look for it without importing it."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed; pip install numba"
    return None


def not_supported_reasons(operands: Operands) -> list[str]:
    """Return why a call is declined: only clean images may be other than float32."""
    return operand_reasons(operands, "cpu", _ACCEPTED)


@functools.cache
def _kernels() -> ModuleType:
    """Return the compiled functions, which share torch's thread pool where possible."""
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
    """Return a dense image tensor as NumPy [rows, plane], which shares its memory."""
    n, c, h, w = t.shape
    if t.is_contiguous():
        return t.detach().reshape(n * c, h * w).numpy()
    return t.detach().permute(0, 2, 3, 1).reshape(n, h * w * c).numpy()


def _unit(images: Tensor) -> Any:
    """Return the divisor of pixels, 255 or 1; a division by 1 spares further kernels."""
    import numpy as np

    return np.float32(255 if images.dtype == torch.uint8 else 1)


def _vector(t: Tensor) -> Any:
    return t.detach().to(torch.float32).contiguous().numpy()


def _tables(mean: Tensor, std: Tensor, like: Tensor) -> tuple[Any, Any]:
    """Return mean and 1/std of every element of a tile, [planes, tile] each."""
    import numpy as np

    _, c, h, w = like.shape
    tables = (_vector(mean), 1 / _vector(std))
    if like.is_contiguous():
        width = min(TILE, h * w)
        return tuple(np.repeat(t[:, None], width, axis=1) for t in tables)  # type: ignore[return-value]
    pixels = min(max(1, TILE // c), h * w)
    return tuple(np.tile(t, (1, pixels)) for t in tables)  # type: ignore[return-value]


def step(step: Step) -> None:
    """Take one step: linf in one pass, l2 in two (PGD) or three (APGD) passes."""
    import numpy as np

    x_prev, z = (step.x if t is None else t for t in (step.x_prev, step.z))
    images = _rows(step.x), _rows(x_prev), _rows(step.x0), _unit(step.x0)
    arrays = _kernels().Arrays(
        *images,
        _rows(step.grad),
        _rows(z),
        step.z is not None,
        _vector(step.step_size),
        _vector(step.eps),
        np.float32(step.momentum),
        *_tables(step.mean, step.std, step.x),
    )
    bad = _call(f"step_{step.norm}", arrays, step.x_prev is not None)
    if step.nonfinite is not None:
        step.nonfinite.add_(bad)


def ball_init(start: Start) -> Tensor:
    """Return a random start, as `reference.ball_init` does."""
    import numpy as np

    x0 = start.x0
    n, c, h, w = x0.shape
    out = torch.empty_like(x0, dtype=torch.float32)
    channels_last = not x0.is_contiguous()
    _call(
        "ball_init",
        _rows(out).reshape((n, h * w, c) if channels_last else (n, c, h * w)),
        _rows(x0).reshape(n, c * h * w),
        _unit(x0),
        channels_last,
        start.norm == "l2",
        _vector(start.eps),
        tuple(np.uint64(key & (2**64 - 1)) for key in (start.seed, start.offset)),
    )
    return out


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the normalised images, as `reference.normalize` does."""
    z = torch.empty_like(x, dtype=dtype)
    _call("normalize", _rows(x), _unit(x), *_tables(mean, std, x), _rows(z))
    return z
