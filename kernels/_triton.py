"""The Triton backend: any CUDA or ROCm GPU, half-precision gradients and states.

Decides when it runs and how kernels are launched; `_triton_kernels.py` and
`_triton_start_kernels.py` hold them and are imported at the first call. With
TRITON_INTERPRET=1 (tests) it also runs CPU tensors, slowly, but only when forced:
otherwise it would take every call from the C++ backend.
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

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_ACCEPTED = {
    "x": (torch.float32, torch.float16),
    "x_prev": (torch.float32,),
    "x0": (torch.uint8, torch.float32),
    "grad": _FLOATS,
    "z": _FLOATS,
}
_LONGEST = 2**31 - 1  # offsets in a sample are 32-bit

_log = logging.getLogger(__name__)


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
    device = "cpu" if _interpreting() else "cuda"
    reasons = operand_reasons(operands, device, _ACCEPTED, _FLOATS)
    for name, tensor in operands.tensors.items():
        if tensor.shape[1:].numel() > _LONGEST:
            reasons.append(f"{name} has more than {_LONGEST} elements in a sample")
    return reasons


@functools.cache
def _load(name: str) -> ModuleType:
    return importlib.import_module(f"fastadv.kernels.{name}")


@functools.cache
def _platform(index: int | None) -> Platform:
    """The GPU of this index; None stands for the interpreter."""
    version = importlib.import_module("triton").__version__
    if index is None:
        return Platform(version, "interpreter", "none", 1 << 20)
    found = torch.cuda.get_device_properties(index)
    capability = (
        found.gcnArchName if torch.version.hip else f"{found.major}.{found.minor}"
    )
    return Platform(version, found.name, capability, found.L2_cache_size)


def _launch(
    kernel: Any, like: Tensor, programs: int, warps: int, *args: Any, **constants: Any
) -> None:
    # Triton launches on the current device, which need not be the tensor's.
    on_device = (
        torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
    )
    with on_device:
        # Fusion is stated because Triton's default for it changes in 3.10.
        options = {"num_warps": warps, "enable_fp_fusion": True}
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
        return math.ceil(self.plane / width)


@dataclass(frozen=True)
class _Pass:
    """One kernel over some samples; `programs` is the number of programs for each."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass(frozen=True)
class _Step:
    """A `pgd_step`, or with an `x_prev` an `apgd_step`, whatever it is launched with."""

    norm: str
    x: Tensor
    x_prev: Tensor | None
    x0: Tensor
    grad: Tensor
    z: Tensor | None
    step_size: Tensor
    eps: Tensor
    mean: Tensor
    std: Tensor
    momentum: float
    nonfinite: Tensor | None

    def task(self) -> Task:
        """What its tuned choice is kept by."""
        tensors = (self.x, self.x0, self.grad, self.z)
        return Task(
            "pgd_step" if self.x_prev is None else "apgd_step",
            self.norm,
            "nchw" if self.x.is_contiguous() else "channels_last",
            "-".join(
                "none" if t is None else str(t.dtype).removeprefix("torch.")
                for t in tensors
            ),
            power_of_two(self.x.shape[0]),
            power_of_two(self.x[0].numel()),
        )

    def sample_bytes(self) -> int:
        """Bytes of one sample that every pass of an L2 step reads."""
        read = (self.x, self.x_prev, self.x0, self.grad)
        size = sum(t.element_size() for t in read if t is not None)
        return size * self.x[0].numel()

    def scratch(self) -> _Step:
        """The same step on copies."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **{name: t.clone() for name, t in tensors.items()})

    def passes(self, config: LaunchConfig) -> list[_Pass]:
        """One for linf, two for L2, three for L2 with momentum."""
        kernels = _load("_triton_kernels")
        x, n = self.x, self.x.shape[0]
        step, eps, mean, std = (
            t.contiguous() for t in (self.step_size, self.eps, self.mean, self.std)
        )
        images = (x, self.x_prev, self.x0, self.grad)
        grid = _Grid.of(x)
        rows, tiles = grid.rows // n, grid.tiles(config.block)
        block = {**grid.constants, "BLOCK": config.block}
        written = (*images, self.z, step, eps, mean, std)
        if self.norm == "linf":
            rest = (self.nonfinite, self.momentum, grid.plane, tiles)
            return [_Pass(kernels.step_linf, rows * tiles, (*written, *rest), block)]
        width = config.width(x[0].numel())
        sum_tiles = grid.tiles(width)
        count = rows * sum_tiles
        kinds = 3 if self.x_prev is None else 4
        parts = torch.empty((kinds, n * count), dtype=torch.float64, device=x.device)
        wide = {**block, "WIDTH": width}
        block["PARTS"] = power_of_two(count)
        sums = (x, self.x0, self.grad, std, self.nonfinite, parts)
        sums += (grid.plane, sum_tiles, n * count)
        passes = [_Pass(kernels.sums_l2, count, sums, wide)]
        if self.x_prev is not None:
            lengths = (*images, step, eps, std, self.momentum, parts, count)
            lengths += (grid.plane, sum_tiles, n * count)
            wide = {**wide, "PARTS": block["PARTS"]}
            passes.append(_Pass(kernels.lengths_l2, count, lengths, wide))
        move = (*written, self.momentum, parts, count, grid.plane, tiles, n * count)
        passes.append(_Pass(kernels.move_l2, rows * tiles, move, block))
        return passes

    def run(self, config: LaunchConfig) -> None:
        """Launch all passes, group of samples by group."""
        x, n = self.x, self.x.shape[0]
        passes = self.passes(config)
        group = config.group(
            n, self.sample_bytes(), _platform(x.device.index).cache_bytes
        )
        for first in range(0, n, group):
            samples = min(group, n - first)
            for each in passes:
                _launch(
                    each.kernel,
                    x,
                    samples * each.programs,
                    config.num_warps,
                    *each.arguments,
                    first * each.programs,
                    **each.constants,
                )

    def run_as_chosen(self) -> None:
        """Launch with the tuned choice if there is one, else as reasoned."""
        platform = _platform(self.x.device.index)
        may_measure = _tuning.wanted() and not _capturing(self.x)
        measure = (lambda: self.times(platform)) if may_measure else None
        self.run(_tuning.choose(self.task(), platform, measure))

    def times(self, platform: Platform) -> dict[LaunchConfig, float]:
        """Milliseconds of the candidates that run, measured on copies of all tensors.

        Empty when the device has no memory left for the copies.
        """
        errors = importlib.import_module("triton.errors")
        tried = _tuning.candidates(
            self.norm, self.x.shape[0], self.sample_bytes(), platform.cache_bytes
        )
        times = {}
        try:
            scratch = self.scratch()
            for config in tried:
                try:
                    times[config] = _milliseconds(
                        functools.partial(scratch.run, config), self.x
                    )
                except errors.TritonError as error:  # too many registers, ...
                    _log.info("%s does not run here: %s", config, error)
        except torch.OutOfMemoryError:
            _log.warning("no memory left to tune %s; using the default", self.task())
        return times


def _milliseconds(run: Callable[[], None], like: Tensor) -> float:
    """Median time, with a cold L2 cache: a network ran since these images were used."""
    if not like.is_cuda:  # interpreted
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    testing = importlib.import_module("triton.testing")
    with torch.cuda.device(like.device):
        median: float = testing.do_bench(run, warmup=5, rep=20, return_mode="median")
    return median


def _capturing(like: Tensor) -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be measured."""
    if not (like.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    _warn_of_capture()
    return True


@functools.cache
def _warn_of_capture() -> None:
    _log.warning(
        "%s=1: nothing is measured while a CUDA graph is captured; a step without a "
        "choice on disk is captured as the default launches it. Run one before the "
        "capture",
        _tuning.ENV_VAR,
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
    """As `reference.pgd_step`, single pass for linf, two passes for l2."""
    _Step(
        norm, x, None, x0, grad, z, step_size, eps, mean, std, 1.0, nonfinite
    ).run_as_chosen()


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
    _Step(
        norm, x, x_prev, x0, grad, z, step_size, eps, mean, std, momentum, nonfinite
    ).run_as_chosen()


def ball_init(x0: Tensor, eps: Tensor, norm: str, seed: int, offset: int) -> Tensor:
    """As `reference.ball_init`, one pass for linf, two for l2."""
    kernels, config = _load("_triton_start_kernels"), _tuning.DEFAULT
    n, c, h, w = x0.shape
    out = torch.empty_like(x0, dtype=torch.float32)
    radius = eps.contiguous()
    l2 = norm == "l2"
    tiles = math.ceil(h * w / config.block)
    parts = torch.empty(n * tiles, dtype=torch.float64, device=x0.device)
    start = (out, x0, radius, parts, seed, offset, h * w, tiles)
    constants = {**_Grid.of(x0).constants, "L2": l2, "BLOCK": config.block}
    programs = n * tiles
    _launch(kernels.random_start, x0, programs, config.num_warps, *start, **constants)
    if l2:
        row = c * h * w
        blocks = math.ceil(row / config.block)
        scale = (out, x0, radius, parts, tiles, seed, offset, row, blocks)
        constants = {"PARTS": power_of_two(tiles), "BLOCK": config.block}
        programs = n * blocks
        _launch(
            kernels.scale_start, x0, programs, config.num_warps, *scale, **constants
        )
    return out


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """As `reference.normalize`."""
    kernels, config = _load("_triton_kernels"), _tuning.DEFAULT
    z = torch.empty_like(x, dtype=dtype)
    grid = _Grid.of(x)
    tiles = grid.tiles(config.block)
    args = (x, z, mean.contiguous(), std.contiguous(), grid.plane, tiles)
    constants = {**grid.constants, "BLOCK": config.block}
    programs = grid.rows * tiles
    _launch(kernels.normalize, x, programs, config.num_warps, *args, **constants)
    return z
