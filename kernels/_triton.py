"""The Triton backend: any CUDA or ROCm GPU, half-precision gradients and states.

This module decides how kernels are launched; `_triton_kernels.py` holds them and is
imported at the first call. With
TRITON_INTERPRET=1 (in tests) the backend also runs CPU tensors, slowly, but only when it
is forced: otherwise it would take every call from the C++ backend.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastadv.kernels import _tuning
from fastadv.kernels._tuning import LaunchConfig, Platform, Task, power_of_two
from fastadv.kernels.registry import Operands, forced_backend, operand_reasons
from fastadv.kernels.step import Start, Step

# Offsets in a sample are 32-bit and reach one tile past its end.
_LONGEST = 2**31 - 2**13

log = logging.getLogger(__name__)


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
    """Return why Triton cannot run here, or None."""
    missing = _missing()
    if missing is None and _interpreting() and forced_backend() != "triton":
        return "TRITON_INTERPRET=1 is for tests: it runs only when forced"
    return missing


def not_supported_reasons(operands: Operands) -> list[str]:
    """Return why a call is declined: by its dtypes, its device or its size."""
    device = "cpu" if _interpreting() else "cuda"
    reasons = operand_reasons(operands, device)
    for name, tensor in operands.tensors.items():
        if tensor.shape[1:].numel() > _LONGEST:
            reasons.append(f"{name} has more than {_LONGEST} elements in a sample")
    return reasons


@functools.cache
def _load(name: str) -> ModuleType:
    return importlib.import_module(f"fastadv.kernels.{name}")


@functools.cache
def _platform(index: int | None) -> Platform:
    """Describe the GPU of this index; None stands for the interpreter."""
    version = importlib.import_module("triton").__version__
    if index is None:
        return Platform(version, "interpreter", "none", 1 << 20)
    found = torch.cuda.get_device_properties(index)
    capability = (
        found.gcnArchName if torch.version.hip else f"{found.major}.{found.minor}"
    )
    return Platform(version, found.name, capability, found.L2_cache_size)


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
        """Return the number of tiles in a row."""
        return math.ceil(self.plane / width)


@dataclass(frozen=True)
class _Pass:
    """One kernel over some samples; `programs` is the number of programs for each."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


def _launch(each: _Pass, like: Tensor, samples: int, warps: int, *first: int) -> None:
    # Triton launches on the current device, which need not be the tensor's.
    on_device = (
        torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
    )
    with on_device:
        # Fusion is stated because Triton's default for it changes in 3.10.
        options = {"num_warps": warps, "enable_fp_fusion": True}
        launch = each.kernel[(samples * each.programs,)]
        launch(*each.arguments, *first, **each.constants, **options)


def _task(step: Step) -> Task:
    """Return the kind of call that the tuned choice for a step is stored under."""
    tensors = (step.x, step.x0, step.grad, step.z)
    return Task(
        step.op,
        step.norm,
        "nchw" if step.x.is_contiguous() else "channels_last",
        "-".join(
            "none" if t is None else str(t.dtype).removeprefix("torch.")
            for t in tensors
        ),
        power_of_two(step.x.shape[0]),
        power_of_two(step.x[0].numel()),
    )


def _sample_bytes(step: Step) -> int:
    """Return the bytes of one sample that every pass of an L2 step reads."""
    read = (t for name, t in step.images().items() if name != "z")
    return sum(t.element_size() for t in read) * step.x[0].numel()


def _passes(step: Step, config: LaunchConfig) -> list[_Pass]:
    """Return the kernels of a step: one for linf, two for L2, three for L2 of APGD."""
    kernels = _load("_triton_kernels")
    x, n = step.x, step.x.shape[0]
    size, eps, mean, std = (
        t.contiguous() for t in (step.step_size, step.eps, step.mean, step.std)
    )
    images = (x, step.x_prev, step.x0, step.grad)
    grid = _Grid.of(x)
    rows, tiles = grid.rows // n, grid.tiles(config.block)
    block = {**grid.constants, "BLOCK": config.block}
    written = (*images, step.z, size, eps, mean, std)
    if step.norm == "linf":
        rest = (step.nonfinite, step.momentum, grid.plane, tiles)
        return [_Pass(kernels.step_linf, rows * tiles, (*written, *rest), block)]
    width = config.width(x[0].numel())
    sum_tiles = grid.tiles(width)
    count = rows * sum_tiles
    kinds = 3 if step.x_prev is None else 4
    parts = torch.empty((kinds, n * count), dtype=torch.float64, device=x.device)
    wide = {**block, "WIDTH": width}
    block["PARTS"] = power_of_two(count)
    sums = (x, step.x0, step.grad, std, step.nonfinite, parts)
    sums += (grid.plane, sum_tiles, n * count)
    passes = [_Pass(kernels.sums_l2, count, sums, wide)]
    if step.x_prev is not None:
        lengths = (*images, size, eps, std, step.momentum, parts, count)
        lengths += (grid.plane, sum_tiles, n * count)
        wide = {**wide, "PARTS": block["PARTS"]}
        passes.append(_Pass(kernels.lengths_l2, count, lengths, wide))
    move = (*written, step.momentum, parts, count, grid.plane, tiles, n * count)
    passes.append(_Pass(kernels.move_l2, rows * tiles, move, block))
    return passes


def _run(step: Step, config: LaunchConfig) -> None:
    """Launch all passes of a step, group of samples by group."""
    x, n = step.x, step.x.shape[0]
    passes = _passes(step, config)
    cache = _platform(x.device.index).cache_bytes
    group = config.group(n, _sample_bytes(step), cache)
    for first in range(0, n, group):
        samples = min(group, n - first)
        for each in passes:
            _launch(each, x, samples, config.num_warps, first * each.programs)


def _times(step: Step, platform: Platform) -> dict[LaunchConfig, float]:
    """Return milliseconds of the candidates that run, measured on copies of all tensors.

    The result is empty when the device has no memory left for the copies.
    """
    errors = importlib.import_module("triton.errors")
    n, size = step.x.shape[0], _sample_bytes(step)
    tried = _tuning.candidates(step.norm, n, size, platform.cache_bytes)
    times = {}
    try:
        tensors = {k: v for k, v in vars(step).items() if isinstance(v, Tensor)}
        scratch = replace(step, **{name: t.clone() for name, t in tensors.items()})
        for config in tried:
            try:
                times[config] = _milliseconds(
                    functools.partial(_run, scratch, config), step.x
                )
            except errors.TritonError as error:  # too many registers, ...
                log.info("%s does not run here: %s", config, error)
    except torch.OutOfMemoryError:
        log.warning("no memory left to tune %s; using the default", _task(step))
    return times


def _milliseconds(run: Callable[[], None], like: Tensor) -> float:
    """Return the median time with a cold L2 cache, as it is after a network has run."""
    if not like.is_cuda:  # interpreted
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    testing = importlib.import_module("triton.testing")
    with torch.cuda.device(like.device):
        median: float = testing.do_bench(run, warmup=5, rep=20, return_mode="median")
    return median


def _capturing(like: Tensor) -> bool:
    """Return whether a CUDA graph is being captured, in which nothing can be measured."""
    if not (like.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    _warn_of_capture()
    return True


@functools.cache
def _warn_of_capture() -> None:
    log.warning(
        "%s=1: nothing is measured while a CUDA graph is captured; a step without a "
        "choice on disk is captured as the default launches it. Run one before the "
        "capture",
        _tuning.ENV_VAR,
    )


def step(step: Step) -> None:
    """Take one step: linf in one pass, l2 in two (PGD) or three (APGD) passes."""
    platform = _platform(step.x.device.index)
    may_measure = _tuning.wanted() and not _capturing(step.x)
    measure = (lambda: _times(step, platform)) if may_measure else None
    _run(step, _tuning.choose(_task(step), platform, measure))


def ball_init(start: Start) -> Tensor:
    """Return a random start: linf in one pass, l2 in two."""
    kernels, config = _load("_triton_kernels"), _tuning.DEFAULT
    x0, key = start.x0, (start.seed, start.offset)
    n, c, h, w = x0.shape
    out = torch.empty_like(x0, dtype=torch.float32)
    radius = start.eps.contiguous()
    l2 = start.norm == "l2"
    tiles = math.ceil(h * w / config.block)
    parts = torch.empty(n * tiles, dtype=torch.float64, device=x0.device)
    draw = (out, x0, radius, parts, *key, h * w, tiles)
    constants = {**_Grid.of(x0).constants, "L2": l2, "BLOCK": config.block}
    one = _Pass(kernels.random_start, tiles, draw, constants)
    _launch(one, x0, n, config.num_warps)
    if l2:
        row = c * h * w
        blocks = math.ceil(row / config.block)
        scale = (out, x0, radius, parts, tiles, *key, row, blocks)
        constants = {"PARTS": power_of_two(tiles), "BLOCK": config.block}
        two = _Pass(kernels.scale_start, blocks, scale, constants)
        _launch(two, x0, n, config.num_warps)
    return out


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the normalised images, as `reference.normalize` does."""
    kernels, config = _load("_triton_kernels"), _tuning.DEFAULT
    z = torch.empty_like(x, dtype=dtype)
    grid = _Grid.of(x)
    tiles = grid.tiles(config.block)
    args = (x, z, mean.contiguous(), std.contiguous(), grid.plane, tiles)
    constants = {**grid.constants, "BLOCK": config.block}
    each = _Pass(kernels.normalize, tiles, args, constants)
    _launch(each, x, grid.rows, config.num_warps)
    return z
