"""The Triton backend: any CUDA or ROCm GPU, float32 state, half-precision gradients.

Decides when it runs and how kernels are launched; `_triton_kernels.py` holds them and
is imported at the first call. With TRITON_INTERPRET=1 (tests) it also runs CPU tensors,
slowly, but only when forced: otherwise it would take every call from the C++ backend.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastadv.kernels.registry import Operands, forced_backend

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_ACCEPTED = {
    "x": (torch.float32,),
    "x0": (torch.uint8, torch.float32),
    "grad": _FLOATS,
    "z": _FLOATS,
}


@dataclass(frozen=True)
class LaunchConfig:
    """How much work one program does. Not tuned on a device yet: reasoned, see below.

    Attributes:
        block: elements of an elementwise program: 4 per thread, so that a float32 load
            is 16 bytes per thread, a bfloat16 load 8 and a uint8 load 4, all of them
            coalesced (8 per thread would split the float32 loads in two).
        num_warps: with about 48 registers a thread an SM holds 5 programs of 8 warps.
            Their 28 bytes per thread in flight (x, x0, bfloat16 gradient) make 36 KB;
            3.35 TB/s x 600 ns asks for 15 KB of each of an H100's 132 SMs.
        sum_width: elements of one partial sum. 224 px makes 37 programs per sample, so
            a batch of 8 already fills 132 SMs twice.
        max_parts: partial sums per sample. Each program of the second pass reads all of
            its sample's (24 bytes each), so wider tiles take over on huge images.
    """

    block: int = 1024
    num_warps: int = 8
    sum_width: int = 4096
    max_parts: int = 512

    def width(self, row: int) -> int:
        """Elements per partial sum for samples of `row` elements: a power of two."""
        return max(self.sum_width, _power_of_two(_ceil_div(row, self.max_parts)))


CONFIG = LaunchConfig()


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@functools.cache
def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if not _interpreting() and not torch.cuda.is_available():
        return (
            "no CUDA or ROCm device (TRITON_INTERPRET=1 runs it on the CPU, for tests)"
        )
    return None


def unavailable_reason() -> str | None:
    """Why Triton cannot run here, or None."""
    missing = _missing()
    if missing is None and _interpreting() and forced_backend() != "triton":
        return "TRITON_INTERPRET=1 is for tests: it runs only when forced"
    return missing


def not_supported_reasons(operands: Operands) -> list[str]:
    """Runs GPU tensors (CPU ones when interpreting) of fewer than 2^31 per sample."""
    reasons = []
    device = "cpu" if _interpreting() else "cuda"
    for name, tensor in operands.tensors.items():
        accepted = _ACCEPTED["x0" if operands.op == "normalize" else name]
        if tensor.device.type != device:
            return [f"needs {device} tensors"]
        if tensor.dtype not in accepted:
            names = " or ".join(str(d).removeprefix("torch.") for d in accepted)
            got = str(tensor.dtype).removeprefix("torch.")
            reasons.append(f"needs {name} as {names}, got {got}")
        if tensor.shape[1:].numel() > 2**31 - CONFIG.block:
            reasons.append(f"{name} has more than 2^31 elements in a sample")
    if operands.out_dtype not in (None, *_FLOATS):
        got = str(operands.out_dtype).removeprefix("torch.")
        reasons.append(f"writes float32, bfloat16 or float16, not {got}")
    return reasons


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("fastadv.kernels._triton_kernels")


def _launch(
    name: str, like: Tensor, programs: int, *args: Any, **constants: Any
) -> None:
    # Triton launches on the current device, which need not be the tensor's.
    on_device = (
        torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
    )
    with on_device:
        kernel = getattr(_kernels(), name)
        # Fusion is stated because Triton's default for it changes in 3.10.
        options = {"num_warps": CONFIG.num_warps, "enable_fp_fusion": True}
        kernel[(programs,)](*args, **constants, **options)


@dataclass(frozen=True)
class _Grid:
    """[rows, plane] and the constants that describe a dense image tensor."""

    rows: int
    plane: int
    constants: dict[str, Any]

    @classmethod
    def of(cls, t: Tensor) -> _Grid:
        n, c, h, w = t.shape
        last = not t.is_contiguous()
        rows, plane = (n, c * h * w) if last else (n * c, h * w)
        return cls(rows, plane, {"C": c, "LAST": last})

    def tiles(self, width: int) -> int:
        """Tiles per row."""
        return _ceil_div(self.plane, width)


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
    step, radius, mean, std = (t.contiguous() for t in (step_size, eps, mean, std))
    grid = _Grid.of(x)
    tiles = grid.tiles(CONFIG.block)
    programs = grid.rows * tiles
    constants = {**grid.constants, "BLOCK": CONFIG.block}
    images = (x, x0, grad, z, step, radius, mean, std)
    if norm == "linf":
        _launch(
            "step_linf", x, programs, *images, nonfinite, grid.plane, tiles, **constants
        )
        return
    width = CONFIG.width(x[0].numel())
    sum_tiles = grid.tiles(width)
    total = grid.rows * sum_tiles
    count = total // x.shape[0]
    parts = torch.empty((3, total), dtype=torch.float64, device=x.device)
    sums = (x, x0, grad, std, nonfinite, parts, grid.plane, sum_tiles, total)
    _launch("sums_l2", x, total, *sums, **constants, WIDTH=width)
    move = (*images, parts, count, grid.plane, tiles, total)
    _launch("move_l2", x, programs, *move, **constants, PARTS=_power_of_two(count))


def ball_init(x0: Tensor, eps: Tensor, norm: str, seed: int, offset: int) -> Tensor:
    """As `reference.ball_init`, one pass for linf, two for l2."""
    n, c, h, w = x0.shape
    out = torch.empty_like(x0, dtype=torch.float32)
    radius = eps.contiguous()
    l2 = norm == "l2"
    tiles = _ceil_div(h * w, CONFIG.block)
    parts = torch.empty(n * tiles, dtype=torch.float64, device=x0.device)
    start = (out, x0, radius, parts, seed, offset, h * w, tiles)
    constants = {**_Grid.of(x0).constants, "L2": l2, "BLOCK": CONFIG.block}
    _launch("random_start", x0, n * tiles, *start, **constants)
    if l2:
        row = c * h * w
        blocks = _ceil_div(row, CONFIG.block)
        scale = (out, x0, radius, parts, tiles, seed, offset, row, blocks)
        constants = {"PARTS": _power_of_two(tiles), "BLOCK": CONFIG.block}
        _launch("scale_start", x0, n * blocks, *scale, **constants)
    return out


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """As `reference.normalize`."""
    z = torch.empty_like(x, dtype=dtype)
    grid = _Grid.of(x)
    tiles = grid.tiles(CONFIG.block)
    args = (x, z, mean.contiguous(), std.contiguous(), grid.plane, tiles)
    constants = {**grid.constants, "BLOCK": CONFIG.block}
    _launch("normalize", x, grid.rows * tiles, *args, **constants)
    return z
