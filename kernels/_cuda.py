"""The CUDA C++ backend: loads `fastadv_cuda.so` and passes it pointers, sizes, a stream.

The library (`csrc/cuda/kernels.h`) holds the CUDA runtime, so it needs no toolkit to
load. Calls go to torch's current stream and wait for nothing, so they can be captured in
a graph.
"""

from __future__ import annotations

import ctypes
import functools
from contextlib import AbstractContextManager
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from fastadv.errors import BackendError
from fastadv.kernels import _native
from fastadv.kernels._native import pointers, structure
from fastadv.kernels.registry import Operands, operand_reasons
from fastadv.kernels.step import Start, Step

LIBRARY = Path(__file__).with_name("fastadv_cuda.so")
DEVICE = "cuda"
# The least number of thread blocks in whose shared memory a cluster keeps a sample of an L2
# step, or 0 for two passes over memory; None chooses by `_TWO_PASSES`. Tests and benchmarks
# set it.
SINGLE_PASS: int | None = None
# Batches that take two passes although a sample fits into a cluster: (samples at most,
# elements of a sample at least), as `bench/gpu_first.py` measures them (`step_times`). No GPU
# has been measured yet, and by the bytes no entry is due: an element of a training batch
# (float32 state, uint8 image, bfloat16 gradient and output) moves 13 bytes in a single pass
# and 20 in two, of which L2 saves the 7 that are read again only where all samples fit
# (60 MB: 57 of 224 px). There both move the same, and two passes cost a second launch, but
# use all multiprocessors, where 8 clusters of 8 blocks use half of those of an H200.
_TWO_PASSES: tuple[tuple[int, int], ...] = ()
# Offsets in a sample are 32-bit and reach one tile past its end; blocks are counted in
# 31 bits.
_MAX_ROW = 2**31 - 2**13
_MAX_SAMPLES = 2**30


_Call = structure(
    (c_int64, "n c hw"), (c_void_p, "stream"), (c_int32, "device channels_last")
)
_Step = structure(
    (_Call, "call"),
    (c_void_p, "x x_prev x0 grad z step eps mean std nonfinite parts"),
    (c_float, "momentum"),
    (c_int32, "x_dtype x0_dtype grad_dtype z_dtype l2 single_pass"),
)
_Init = structure(
    (_Call, "call"),
    (c_void_p, "out x0 eps parts"),
    (c_uint64, "seed offset"),
    (c_int32, "x0_dtype l2"),
)
_Normalize = structure(
    (_Call, "call"), (c_void_p, "z x mean std"), (c_int32, "x_dtype z_dtype")
)
_MIRRORS = (_Step, _Init, _Normalize)


@functools.cache
def _load() -> ctypes.CDLL | str:
    """Return the library, or why it cannot be used."""
    unbuilt = (
        "(no CUDA compiler, nvcc, when fastadv was installed); install the CUDA toolkit "
        "and reinstall"
    )
    library = _native.load(LIBRARY, unbuilt, "fc_abi", _MIRRORS)
    if isinstance(library, str):
        return library
    for name in ("fc_architectures", "fc_error_name", "fc_error_text"):
        getattr(library, name).restype = ctypes.c_char_p
    for name in ("fc_parts", "fc_max_channels"):
        getattr(library, name).restype = c_int64
    library.fc_parts.argtypes = [c_int64, c_int64]
    return library


def _library() -> ctypes.CDLL:
    library = _load()
    if isinstance(library, str):
        raise BackendError(library)
    return library


def architectures() -> list[int]:
    """Return the compute capabilities of the machine code in the library: 90 for 9.0."""
    text: bytes = _library().fc_architectures()
    return [int(name) for name in text.decode().split(",")]


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@functools.cache
def unavailable_reason() -> str | None:
    """Return why the library cannot run on this machine, or None."""
    library = _load()
    if isinstance(library, str):
        return library
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "no NVIDIA GPU that this PyTorch can use"
    runtime, driver = library.fc_runtime_version(), library.fc_driver_version()
    if driver // 1000 < runtime // 1000:
        return (
            f"built with CUDA {_version(runtime)}, and the NVIDIA driver runs CUDA up "
            f"to {_version(driver)}; update the driver or reinstall with a CUDA "
            f"{driver // 1000} toolkit"
        )
    devices = range(torch.cuda.device_count())
    reasons = [_device_reason(device) for device in devices]
    return None if None in reasons else reasons[0]


@functools.cache
def _device_reason(device: int) -> str | None:
    """Return why there is no machine code for a device; code for 8.0 runs on every 8.x."""
    major, minor = torch.cuda.get_device_capability(device)
    if any(a // 10 == major and a % 10 <= minor for a in architectures()):
        return None
    built = ", ".join(f"{a / 10:.1f}" for a in architectures())
    return (
        f"no machine code for compute capability {major}.{minor} (built for {built}); "
        f"reinstall with CMAKE_ARGS=-DFASTADV_CUDA_ARCHITECTURES={major}{minor}"
    )


def not_supported_reasons(operands: Operands) -> list[str]:
    """Return why a call is declined: by its dtypes, its device or its size."""
    reasons = operand_reasons(operands, DEVICE)
    t = next(iter(operands.tensors.values()))
    if t.device.type == "cuda" and (reason := _device_reason(t.device.index)):
        reasons.append(reason)
    if t.shape[1:].numel() > _MAX_ROW:
        reasons.append("a sample has 2^31 elements or more")
    if t.shape[0] > _MAX_SAMPLES:
        reasons.append("more than 2^30 samples")
    if t.shape[1] > (most := _library().fc_max_channels()):
        reasons.append(f"more than {most} channels")
    return reasons


def _where(t: Tensor) -> dict[str, int]:
    """Return the device of `t` and the stream that its work is on."""
    stream = torch.cuda.current_stream(t.device).cuda_stream
    return {"device": t.device.index, "stream": stream}


def _on(device: int) -> AbstractContextManager[None]:
    """Make a CUDA device the current one in the block."""
    return torch.cuda.device(device)  # type: ignore[no-untyped-call, no-any-return]


def _call(t: Tensor) -> ctypes.Structure:
    n, c, h, w = t.shape
    last = int(not t.is_contiguous())
    return _Call(n=n, c=c, hw=h * w, channels_last=last, **_where(t))


def _parts(t: Tensor, row: int, norm: str) -> Tensor | None:
    """Return scratch for the sums of an L2 operator, freed in the order of the stream."""
    if norm != "l2":
        return None
    size = _library().fc_parts(t.shape[0], row)
    return torch.empty(size, dtype=torch.float64, device=t.device)


def _run(function: str, arguments: ctypes.Structure) -> None:
    library = _library()
    # The library would make this device the current one and then go back to the one
    # before, which in a thread of its own may be a device that nothing has touched yet:
    # going back would make a context on it. torch's guard knows of that.
    with _on(arguments.call.device):
        error = getattr(library, function)(ctypes.byref(arguments))
    if error < 0:
        raise BackendError(f"{function} was built without one of these dtypes")
    if error:
        name, text = library.fc_error_name(error), library.fc_error_text(error)
        raise BackendError(
            f"{function} failed with {name.decode()}: {text.decode()}. If an earlier "
            "kernel failed, this only reports it; CUDA_LAUNCH_BLOCKING=1 shows which"
        )


def _least_cluster(x: Tensor) -> int:
    """Return the least size of a cluster for a batch; 0 means two passes."""
    if SINGLE_PASS is not None:
        return SINGLE_PASS
    n, row = x.shape[0], x.shape[1:].numel()
    return int(not any(n <= most and row >= least for most, least in _TWO_PASSES))


def _arguments(step: Step) -> tuple[ctypes.Structure, list[Tensor | None]]:
    """Return the arguments of a step and the tensors made for it, which must outlive it."""
    fields, made = _native.step_fields(step)
    parts = _parts(step.x, step.x[0].numel(), step.norm)
    rest = pointers(parts=parts) | {"single_pass": _least_cluster(step.x)}
    return _Step(**fields, **rest, call=_call(step.x)), [*made, parts]


def step(step: Step) -> None:
    """Take one step: linf in one pass; l2 in one (clusters) or two, with APGD in three."""
    arguments, _made = _arguments(step)
    _run(f"fc_{step.op}", arguments)


def cluster_size(step: Step) -> int:
    """Return the thread blocks per sample of an L2 PGD step in one pass; 0 means two."""
    arguments, _made = _arguments(step)
    size: int = _library().fc_uses_cluster(ctypes.byref(arguments))
    return size


def ball_init(start: Start) -> Tensor:
    """Return a random start: linf in one pass, l2 in two."""
    fields, out, _made = _native.start_fields(start)
    parts = _parts(start.x0, start.x0[0, 0].numel(), start.norm)
    arguments = _Init(**fields, **pointers(parts=parts), call=_call(start.x0))
    _run("fc_ball_init", arguments)
    return out


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the normalised images, as `reference.normalize` does."""
    fields, z, _made = _native.normalize_fields(x, mean, std, dtype)
    _run("fc_normalize", _Normalize(**fields, call=_call(x)))
    return z
