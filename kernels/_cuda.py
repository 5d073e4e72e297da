"""The CUDA C++ backend: loads `fastadv_cuda.so` and passes it pointers, sizes, a stream.

The library speaks plain C (`csrc/cuda/kernels.h`) and holds the CUDA runtime, so it
needs neither torch nor a toolkit to load: one build serves every torch version. Calls
go to torch's current stream and wait for nothing, so they can be captured in a graph.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from fastadv.errors import BackendError
from fastadv.kernels.registry import Operands, operand_reasons

LIBRARY = Path(__file__).with_name("fastadv_cuda.so")
DEVICE = "cuda"
# Whether L2 may keep a sample in the shared memory of a cluster of thread blocks, where
# the GPU and the size allow it; tests and benchmarks turn it off.
SINGLE_PASS = True
_CODES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.uint8: 4}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_ACCEPTED = {
    "x": (torch.float32, torch.float16),
    "x_prev": (torch.float32,),
    "x0": (torch.uint8, torch.float32),
    "grad": _FLOATS,
    "z": _FLOATS,
}
# Offsets in a sample are 32-bit and reach one tile past its end; blocks are counted in
# 31 bits.
_MAX_ROW = 2**31 - 2**13
_MAX_SAMPLES = 2**30


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("n", "c", "hw")),
        ("stream", c_void_p),
        *((name, c_int32) for name in ("device", "channels_last")),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("call", _Call),
        *((name, c_void_p) for name in ("x", "x_prev", "x0", "grad", "z")),
        *((name, c_void_p) for name in ("step", "eps", "mean", "std")),
        *((name, c_void_p) for name in ("nonfinite", "parts")),
        ("momentum", c_float),
        *((name, c_int32) for name in ("x_dtype", "x0_dtype", "grad_dtype", "z_dtype")),
        *((name, c_int32) for name in ("l2", "single_pass")),
    ]


class _Init(ctypes.Structure):
    _fields_ = [
        ("call", _Call),
        *((name, c_void_p) for name in ("out", "x0", "eps", "parts")),
        *((name, c_uint64) for name in ("seed", "offset")),
        *((name, c_int32) for name in ("x0_dtype", "l2")),
    ]


class _Normalize(ctypes.Structure):
    _fields_ = [
        ("call", _Call),
        *((name, c_void_p) for name in ("z", "x", "mean", "std")),
        *((name, c_int32) for name in ("x_dtype", "z_dtype")),
    ]


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not LIBRARY.exists():
        return (
            f"{LIBRARY.name} was not built (no CUDA compiler, nvcc, when fastadv was "
            "installed); install the CUDA toolkit and reinstall"
        )
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}; reinstall fastadv"
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
    """Compute capabilities with machine code in the library: 90 for 9.0."""
    text: bytes = _library().fc_architectures()
    return [int(name) for name in text.decode().split(",")]


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@functools.cache
def unavailable_reason() -> str | None:
    """Why the library cannot run on this machine, or None."""
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
    """Why the library has no machine code for a device; code for 8.0 runs on 8.x."""
    major, minor = torch.cuda.get_device_capability(device)
    if any(a // 10 == major and a % 10 <= minor for a in architectures()):
        return None
    built = ", ".join(f"{a / 10:.1f}" for a in architectures())
    return (
        f"no machine code for compute capability {major}.{minor} (built for {built}); "
        f"reinstall with CMAKE_ARGS=-DFASTADV_CUDA_ARCHITECTURES={major}{minor}"
    )


def not_supported_reasons(operands: Operands) -> list[str]:
    """Runs CUDA tensors; float32 or float16 state, half-precision gradients, outputs."""
    reasons = operand_reasons(operands, DEVICE, _ACCEPTED, _FLOATS)
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
    """The device of `t` and the stream that its work is on."""
    stream = torch.cuda.current_stream(t.device).cuda_stream
    return {"device": t.device.index, "stream": stream}


def _call(t: Tensor) -> _Call:
    n, c, h, w = t.shape
    last = int(not t.is_contiguous())
    return _Call(n=n, c=c, hw=h * w, channels_last=last, **_where(t))


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _float32(t: Tensor) -> Tensor:
    return t.to(torch.float32).contiguous()


def _parts(t: Tensor, row: int, norm: str) -> Tensor | None:
    """Scratch for the sums of an L2 operator, freed in the order of the stream."""
    if norm != "l2":
        return None
    size = _library().fc_parts(t.shape[0], row)
    return torch.empty(size, dtype=torch.float64, device=t.device)


def _run(function: str, arguments: ctypes.Structure) -> None:
    library = _library()
    error = getattr(library, function)(ctypes.byref(arguments))
    if error < 0:
        raise BackendError(f"{function} was built without one of these dtypes")
    if error:
        name, text = library.fc_error_name(error), library.fc_error_text(error)
        raise BackendError(
            f"{function} failed with {name.decode()}: {text.decode()}. If an earlier "
            "kernel failed, this only reports it; CUDA_LAUNCH_BLOCKING=1 shows which"
        )


def _step(
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
) -> tuple[_Step, list[Tensor | None]]:
    """The arguments of a step, and the tensors made for it, which must outlive it."""
    vectors = [_float32(t) for t in (step_size, eps, mean, std)]
    parts = _parts(x, x[0].numel(), norm)
    arguments = _Step(
        call=_call(x),
        x=x.data_ptr(),
        x_prev=_pointer(x_prev),
        x0=x0.data_ptr(),
        grad=grad.data_ptr(),
        z=_pointer(z),
        **{
            name: t.data_ptr()
            for name, t in zip(("step", "eps", "mean", "std"), vectors, strict=True)
        },
        nonfinite=_pointer(nonfinite),
        parts=_pointer(parts),
        momentum=momentum,
        x_dtype=_CODES[x.dtype],
        x0_dtype=_CODES[x0.dtype],
        grad_dtype=_CODES[grad.dtype],
        z_dtype=0 if z is None else _CODES[z.dtype],
        l2=int(norm == "l2"),
        single_pass=int(SINGLE_PASS),
    )
    return arguments, [*vectors, parts]


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
    """As `reference.pgd_step`: linf in one pass, l2 in one (clusters) or two."""
    sizes = (step_size, eps, 1.0)
    arguments, _made = _step(x, None, x0, grad, *sizes, mean, std, norm, z, nonfinite)
    _run("fc_pgd_step", arguments)


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
    """As `reference.apgd_step`: linf in one pass, l2 in three."""
    sizes = (step_size, eps, momentum)
    arguments, _made = _step(x, x_prev, x0, grad, *sizes, mean, std, norm, z, nonfinite)
    _run("fc_apgd_step", arguments)


def cluster_size(x: Tensor, x0: Tensor, grad: Tensor, z: Tensor | None) -> int:
    """Thread blocks per sample with which `pgd_step` would do L2 in one pass; 0: two."""
    ones = torch.ones(max(x.shape[:2]), device=x.device)
    options = (ones, ones, 1.0, ones, ones, "l2", z, None)
    arguments, _made = _step(x, None, x0, grad, *options)
    size: int = _library().fc_uses_cluster(ctypes.byref(arguments))
    return size


def ball_init(x0: Tensor, eps: Tensor, norm: str, seed: int, offset: int) -> Tensor:
    """As `reference.ball_init`: linf in one pass, l2 in two."""
    out = torch.empty_like(x0, dtype=torch.float32)
    radius = _float32(eps)
    parts = _parts(x0, x0[0, 0].numel(), norm)
    arguments = _Init(
        call=_call(x0),
        out=out.data_ptr(),
        x0=x0.data_ptr(),
        eps=radius.data_ptr(),
        parts=_pointer(parts),
        seed=seed & (2**64 - 1),
        offset=offset,
        x0_dtype=_CODES[x0.dtype],
        l2=int(norm == "l2"),
    )
    _run("fc_ball_init", arguments)
    return out


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """As `reference.normalize`."""
    z = torch.empty_like(x, dtype=dtype)
    mean, std = _float32(mean), _float32(std)
    arguments = _Normalize(
        call=_call(x),
        z=z.data_ptr(),
        x=x.data_ptr(),
        mean=mean.data_ptr(),
        std=std.data_ptr(),
        x_dtype=_CODES[x.dtype],
        z_dtype=_CODES[dtype],
    )
    _run("fc_normalize", arguments)
    return z
