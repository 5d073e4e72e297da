"""The C++ CPU backend: loads `fastadv_cpu.so` and passes it pointers and sizes.

The library speaks plain C (`csrc/cpu/step.h`) instead of linking torch: one build
serves every torch version, and its OpenMP loops run in torch's own thread pool, because
torch loads libgomp before us. A second pool would fight the first for the cores.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from fastadv.kernels.registry import Operands, operand_reasons

LIBRARY = Path(__file__).with_name("fastadv_cpu.so")
_CODES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.uint8: 4}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_ACCEPTED = {
    "x": (torch.float32, torch.float16),
    "x_prev": (torch.float32,),
    "x0": (torch.uint8, torch.float32),
    "grad": _FLOATS,
    "z": _FLOATS,
}


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("x", "x_prev", "x0", "grad", "z")),
        *((name, c_void_p) for name in ("step", "eps", "mean", "std", "nonfinite")),
        *((name, c_int64) for name in ("n", "c", "hw")),
        ("momentum", c_float),
        *((name, c_int32) for name in ("x_dtype", "x0_dtype", "grad_dtype", "z_dtype")),
        *((name, c_int32) for name in ("channels_last", "l2", "threads")),
    ]


class _Init(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("out", "x0", "eps")),
        *((name, c_uint64) for name in ("seed", "offset")),
        *((name, c_int64) for name in ("n", "c", "hw")),
        *((name, c_int32) for name in ("x0_dtype", "channels_last", "l2", "threads")),
    ]


class _Triad(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("x", "z", "a", "b")),
        ("size", c_int64),
        *((name, c_int32) for name in ("stream", "threads")),
    ]


class _Normalize(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("z", "x", "mean", "std")),
        *((name, c_int64) for name in ("n", "c", "hw")),
        *((name, c_int32) for name in ("x_dtype", "z_dtype")),
        *((name, c_int32) for name in ("channels_last", "threads")),
    ]


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not LIBRARY.exists():
        return (
            f"{LIBRARY.name} was not built (no C++ compiler, CMake or OpenMP when "
            "fastadv was installed); install them and reinstall"
        )
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}; reinstall fastadv"
    library.fa_isa.restype = ctypes.c_char_p
    library.fa_last_level_cache.restype = c_int64
    return library


def _library() -> ctypes.CDLL:
    library = _load()
    if isinstance(library, str):
        raise RuntimeError(library)
    return library


def isa() -> str:
    """The instruction set in use: `"avx512"`, `"avx2"` or `"baseline"`."""
    name: bytes = _library().fa_isa()
    return name.decode()


def unavailable_reason() -> str | None:
    """Why the native library is not there, or None."""
    library = _load()
    return library if isinstance(library, str) else None


def not_supported_reasons(operands: Operands) -> list[str]:
    """Runs CPU tensors; float32 state, half-precision gradients and outputs."""
    built = _built()
    return operand_reasons(operands, "cpu", built, built["z"])


@functools.cache
def _built() -> dict[str, tuple[torch.dtype, ...]]:
    """The accepted dtypes that the compiler of the library knew."""
    codes = _CODES if _library().fa_has_f16() else _CODES.keys() - {torch.float16}
    return {name: tuple(d for d in ds if d in codes) for name, ds in _ACCEPTED.items()}


def pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _float32(t: Tensor) -> Tensor:
    return t.to(torch.float32).contiguous()


def _layout(t: Tensor) -> dict[str, int]:
    n, c, h, w = t.shape
    return {
        "n": n,
        "c": c,
        "hw": h * w,
        "channels_last": int(not t.is_contiguous()),
        "threads": torch.get_num_threads(),
    }


def run(function: str, arguments: ctypes.Structure) -> None:
    if getattr(_library(), function)(ctypes.byref(arguments)):
        raise RuntimeError(f"{function} was built without one of these dtypes")


def _step(
    function: str,
    x: Tensor,
    x_prev: Tensor | None,
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
    step, radius, mean, std = (_float32(t) for t in (step_size, eps, mean, std))
    run(
        function,
        _Step(
            x=x.data_ptr(),
            x_prev=pointer(x_prev),
            x0=x0.data_ptr(),
            grad=grad.data_ptr(),
            z=pointer(z),
            step=step.data_ptr(),
            eps=radius.data_ptr(),
            mean=mean.data_ptr(),
            std=std.data_ptr(),
            nonfinite=pointer(nonfinite),
            momentum=momentum,
            x_dtype=_CODES[x.dtype],
            x0_dtype=_CODES[x0.dtype],
            grad_dtype=_CODES[grad.dtype],
            z_dtype=0 if z is None else _CODES[z.dtype],
            l2=int(norm == "l2"),
            **_layout(x),
        ),
    )


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
    """As `reference.pgd_step`, single pass for linf, two cached passes for l2."""
    images = (x, None, x0, grad)
    _step("fa_pgd_step", *images, step_size, eps, 1.0, mean, std, norm, z, nonfinite)


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
    """As `reference.apgd_step`, single pass for linf, three cached passes for l2."""
    images = (x, x_prev, x0, grad)
    sizes = (step_size, eps, momentum)
    _step("fa_apgd_step", *images, *sizes, mean, std, norm, z, nonfinite)


def ball_init(x0: Tensor, eps: Tensor, norm: str, seed: int, offset: int) -> Tensor:
    """As `reference.ball_init`."""
    out = torch.empty_like(x0, dtype=torch.float32)
    radius = _float32(eps)
    run(
        "fa_ball_init",
        _Init(
            out=out.data_ptr(),
            x0=x0.data_ptr(),
            eps=radius.data_ptr(),
            seed=seed & (2**64 - 1),
            offset=offset,
            x0_dtype=_CODES[x0.dtype],
            l2=int(norm == "l2"),
            **_layout(x0),
        ),
    )
    return out


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """As `reference.normalize`."""
    z = torch.empty_like(x, dtype=dtype)
    mean, std = _float32(mean), _float32(std)
    run(
        "fa_normalize",
        _Normalize(
            z=z.data_ptr(),
            x=x.data_ptr(),
            mean=mean.data_ptr(),
            std=std.data_ptr(),
            x_dtype=_CODES[x.dtype],
            z_dtype=_CODES[dtype],
            **_layout(x),
        ),
    )
    return z


def triad(x: Tensor, a: Tensor, b: Tensor, z: Tensor | None, *, stream: bool) -> None:
    """For benchmarks only: the memory traffic of a step, `x += (a - b) / 2; z = x`.

    Args:
        x: float32, dense; overwritten.
        a: like x.
        b: like x.
        z: like x, written too; None writes nothing.
        stream: write `z` past the caches.
    """
    run(
        "fa_triad",
        _Triad(
            x=x.data_ptr(),
            z=pointer(z),
            a=a.data_ptr(),
            b=b.data_ptr(),
            size=x.numel(),
            stream=int(stream),
            threads=torch.get_num_threads(),
        ),
    )


def last_level_cache() -> int:
    """Bytes of the last-level cache that cores share, as the library sees it."""
    size: int = _library().fa_last_level_cache()
    return size
