"""The C++ CPU backend: loads `fastadv_cpu.so` and passes it pointers and sizes.

Its OpenMP loops run in torch's own thread pool, because torch loads libgomp before us; a
second pool would fight the first for the cores.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from fastadv.kernels import _native
from fastadv.kernels._native import CODES, float32, pointers, structure
from fastadv.kernels.registry import STEP_DTYPES, Operands, operand_reasons
from fastadv.kernels.step import Start, Step

LIBRARY = Path(__file__).with_name("fastadv_cpu.so")
# The operands of the convolutions; the steps' are in the registry.
_CONVOLUTION = dict.fromkeys(
    ("x", "weight", "bias", "residual", "mask", "grad"), (torch.float32,)
)
_ACCEPTED = {
    "conv3x3": _CONVOLUTION,
    "conv3x3_weight": _CONVOLUTION,
    "crops": {"images": (torch.uint8,)},
}
_Step = structure(
    (c_void_p, "x x_prev x0 grad z step eps mean std nonfinite"),
    (c_int64, "n c hw"),
    (c_float, "momentum"),
    (c_int32, "x_dtype x0_dtype grad_dtype z_dtype channels_last l2 threads"),
)
_Init = structure(
    (c_void_p, "out x0 eps"),
    (c_uint64, "seed offset"),
    (c_int64, "n c hw"),
    (c_int32, "x0_dtype channels_last l2 threads"),
)
_Normalize = structure(
    (c_void_p, "z x mean std"),
    (c_int64, "n c hw"),
    (c_int32, "x_dtype z_dtype channels_last threads"),
)
_Triad = structure(
    (c_void_p, "x z a b"), (c_int64, "size"), (c_int32, "stream threads")
)
_Conv = structure(
    (c_void_p, "out x mask weight bias residual"),
    (c_int64, "n h w in_channels out_channels"),
    (c_int32, "transposed relu threads"),
)
_Weight = structure(
    (c_void_p, "weight x grad"),
    (c_int64, "n h w in_channels out_channels"),
    (c_int32, "threads"),
)
_Crops = structure(
    (c_void_p, "out images index boxes colour"),
    (c_int64, "n h w side"),
    (c_int32, "threads"),
)
_MIRRORS = (_Step, _Init, _Normalize, _Triad, _Conv, _Weight, _Crops)


@functools.cache
def _load() -> ctypes.CDLL | str:
    """Return the library, or why it cannot be used."""
    unbuilt = (
        "(no C++ compiler, CMake or OpenMP when fastadv was installed); install them and "
        "reinstall"
    )
    library = _native.load(LIBRARY, unbuilt, "fa_abi", _MIRRORS)
    if not isinstance(library, str):
        library.fa_isa.restype = ctypes.c_char_p
        library.fa_last_level_cache.restype = c_int64
    return library


def _library() -> ctypes.CDLL:
    library = _load()
    if isinstance(library, str):
        raise RuntimeError(library)
    return library


def isa() -> str:
    """Return the instruction set in use: `"avx512"`, `"avx2"` or `"baseline"`."""
    name: bytes = _library().fa_isa()
    return name.decode()


def unavailable_reason() -> str | None:
    """Return why the native library cannot be used, or None."""
    library = _load()
    return library if isinstance(library, str) else None


def not_supported_reasons(operands: Operands) -> list[str]:
    """Return why a call is declined: the library takes float32 and half precision."""
    accepted = _ACCEPTED.get(operands.op) or _step_dtypes()
    return operand_reasons(operands, "cpu", accepted)


@functools.cache
def _step_dtypes() -> dict[str, tuple[torch.dtype, ...]]:
    """Return the dtypes of a step that the compiler of the library knew."""
    codes = CODES if _library().fa_has_f16() else CODES.keys() - {torch.float16}
    return {
        name: tuple(d for d in ds if d in codes) for name, ds in STEP_DTYPES.items()
    }


def _layout(t: Tensor) -> dict[str, int]:
    n, c, h, w = t.shape
    last, threads = int(not t.is_contiguous()), torch.get_num_threads()
    return {"n": n, "c": c, "hw": h * w, "channels_last": last, "threads": threads}


def _run(function: str, arguments: ctypes.Structure) -> None:
    if getattr(_library(), function)(ctypes.byref(arguments)):
        raise RuntimeError(f"{function} was built without one of these dtypes")


def step(step: Step) -> None:
    """Take one step: linf in one pass, l2 in two (PGD) or three (APGD) cached passes."""
    fields, _made = _native.step_fields(step)
    _run(f"fa_{step.op}", _Step(**fields, **_layout(step.x)))


def ball_init(start: Start) -> Tensor:
    """Return a random start, as `reference.ball_init` does."""
    fields, out, _made = _native.start_fields(start)
    _run("fa_ball_init", _Init(**fields, **_layout(start.x0)))
    return out


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the normalised images, as `reference.normalize` does."""
    fields, z, _made = _native.normalize_fields(x, mean, std, dtype)
    _run("fa_normalize", _Normalize(**fields, **_layout(x)))
    return z


def _dense(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _map_sizes(x: Tensor, out_channels: int) -> dict[str, int]:
    n, channels, h, w = x.shape
    sizes = {"n": n, "h": h, "w": w, "threads": torch.get_num_threads()}
    return {**sizes, "in_channels": channels, "out_channels": out_channels}


def conv3x3(
    out: Tensor, tensors: Mapping[str, Tensor], transposed: bool, relu: bool
) -> None:
    """Write the convolution that `fastadv.kernels.conv` defines to `out`.

    Args:
        out: Result, float32 [N, O, H, W], channels_last.
        tensors: `x`, `weight`, and where there are any `bias`, `residual` and `mask`.
        transposed: Whether to compute the input gradient of the convolution instead.
        relu: Whether to clip the result at zero from below.
    """
    # Copies must live until the call returns.
    dense = {name: _dense(t) if name != "bias" else t for name, t in tensors.items()}
    fields = pointers(**dense, out=out) | _map_sizes(dense["x"], out.shape[1])
    _run("fa_conv3x3", _Conv(**fields, transposed=transposed, relu=relu))


def conv3x3_weight(weight: Tensor, x: Tensor, grad: Tensor) -> None:
    """Write the gradient [O, I, 3, 3] of a convolution's weight to `weight`."""
    x, grad = _dense(x), _dense(grad)
    fields = pointers(weight=weight, x=x, grad=grad) | _map_sizes(x, grad.shape[1])
    _run("fa_conv3x3_weight", _Weight(**fields))


def crops(
    images: Tensor,
    index: Tensor,
    boxes: Tensor,
    side: int,
    colour: Tensor | None,
    threads: int | None,
) -> Tensor:
    """Cut, resize and recolour boxes, as `reference.crops` does."""
    out = images.new_empty(len(index), side, side, 3)
    tensors = {"out": out, "images": images.contiguous()}
    tensors |= {"index": index.to(torch.int64).contiguous()}
    tensors |= {"boxes": boxes.to(torch.int32).contiguous()}
    if colour is not None:
        tensors["colour"] = float32(colour)
    sizes = {"n": len(index), "h": images.shape[1], "w": images.shape[2], "side": side}
    threads = threads or torch.get_num_threads()
    _run("fa_crops", _Crops(**pointers(**tensors), **sizes, threads=threads))
    return out


def triad(x: Tensor, a: Tensor, b: Tensor, z: Tensor | None, *, stream: bool) -> None:
    """Move the memory of a step, `x += (a - b) / 2; z = x`; for benchmarks only.

    Args:
        x: float32 tensor, dense; it is overwritten.
        a: Tensor like `x`.
        b: Tensor like `x`.
        z: Tensor like `x` that is written too; None writes nothing.
        stream: Whether to write `z` past the caches.
    """
    options = {"stream": int(stream), "threads": torch.get_num_threads()}
    _run("fa_triad", _Triad(**pointers(x=x, z=z, a=a, b=b), size=x.numel(), **options))


def last_level_cache() -> int:
    """Return the bytes of the last-level cache that cores share, as the library sees it."""
    size: int = _library().fa_last_level_cache()
    return size
