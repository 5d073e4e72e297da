"""The choice of the backend that runs an operator.

Backends give the reasons why they decline a call, the first that accepts it runs, and a
count is kept so that tests can see which one it was.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch

from fastadv.errors import BackendError, unknown_name

ENV_VAR = "FASTADV_BACKEND"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# The dtypes of the operands of a step that compiled backends take.
STEP_DTYPES = {
    "x": (torch.float32, torch.float16),
    "x_prev": (torch.float32,),
    "x0": (torch.uint8, torch.float32),
    "grad": FLOATS,
    "z": FLOATS,
}


@dataclass(frozen=True)
class Operands:
    """What a backend may judge: the tensors and options of one operator call.

    Attributes:
        op: Name of the operator.
        tensors: Every tensor by its schema name; optional ones that are absent are left
            out.
        out_dtype: The dtype that a freshly made result must have, where the caller
            chooses it.
    """

    op: str
    tensors: dict[str, torch.Tensor]
    out_dtype: torch.dtype | None = None

    def __str__(self) -> str:
        images = [
            f"{name}{list(t.shape)} {_dtype_name(t.dtype)}"
            for name, t in self.tensors.items()
            if t.dim() == 4
        ]
        device = next(iter(self.tensors.values())).device
        made = f" to {_dtype_name(self.out_dtype)}" if self.out_dtype else ""
        return f"{self.op}({', '.join(images)}){made} on {device}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _either(dtypes: tuple[torch.dtype, ...]) -> str:
    names = [_dtype_name(d) for d in dtypes]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def operand_reasons(
    operands: Operands,
    device: str,
    accepted: Mapping[str, tuple[torch.dtype, ...]] = STEP_DTYPES,
) -> list[str]:
    """Return why a backend that takes these dtypes on `device` declines a call.

    Args:
        operands: Operands of the call.
        device: Device type that the tensors must be on, `"cpu"` or `"cuda"`.
        accepted: Dtypes of every operand by its schema name. `normalize` reads clean
            images, so its `x` is judged as `x0`, and its result as `z`.
    """
    if any(t.device.type != device for t in operands.tensors.values()):
        return [f"needs {device} tensors"]
    reasons = []
    for name, tensor in operands.tensors.items():
        allowed = accepted["x0" if operands.op == "normalize" else name]
        if tensor.dtype not in allowed:
            got = _dtype_name(tensor.dtype)
            reasons.append(f"needs {name} as {_either(allowed)}, got {got}")
    out = operands.out_dtype
    if out is not None and out not in accepted["z"]:
        reasons.append(f"writes {_either(accepted['z'])}, not {_dtype_name(out)}")
    return reasons


_import = functools.cache(importlib.import_module)


@dataclass(frozen=True)
class BackendInfo:
    """One entry of the registry. Order in `BACKENDS` is order of preference.

    The module at `module` implements

        unavailable_reason() -> str | None            # this machine cannot run it
        not_supported_reasons(operands) -> list[str]  # it cannot run this call
        step(step), ball_init(start), normalize(x, mean, std, dtype)

    with the operands of `step.py`, and a function for each name in `extra`.

    Attributes:
        name: Name that users force the backend by.
        module: Full name of the module.
        summary: What the backend is, for `fastadv-doctor`.
        extra: Operators that the backend has and that not every backend must have.
    """

    name: str
    module: str
    summary: str
    extra: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        """Import the module of the backend."""
        return _import(self.module)

    def unavailable_reason(self) -> str | None:
        """Return why this backend cannot run on this machine, or None when it can."""
        reason: str | None = self.load().unavailable_reason()
        return reason

    def declines(self, operands: Operands) -> list[str]:
        """Return why this backend cannot run the call; [] when it can."""
        if not self.has(operands.op):
            return [f"has no {operands.op}"]
        module = self.load()
        missing = module.unavailable_reason()
        return [missing] if missing else module.not_supported_reasons(operands)

    def has(self, op: str) -> bool:
        """Return whether the backend implements an operator."""
        return op in EVERYWHERE or op in self.extra


EVERYWHERE = ("pgd_step", "apgd_step", "ball_init", "normalize")
BACKENDS: dict[str, BackendInfo] = {
    info.name: info
    for info in (
        BackendInfo("cuda", "fastadv.kernels._cuda", "CUDA C++, NVIDIA GPUs"),
        BackendInfo("triton", "fastadv.kernels._triton", "Triton, any GPU it supports"),
        BackendInfo(
            "cpp",
            "fastadv.kernels._cpp",
            "C++, vectorised and threaded CPU",
            ("conv3x3", "conv3x3_weight", "crops"),
        ),
        BackendInfo("numba", "fastadv.kernels._numba", "Numba, CPU without a compiler"),
        BackendInfo(
            "reference",
            "fastadv.kernels.reference",
            "plain PyTorch, anywhere",
            ("crops",),
        ),
    )
}

_launches: Counter[tuple[str, str]] = Counter()
_forced: str | None = None


def check_backend_name(name: str) -> str:
    """Return `name` if a backend has this name, else raise with its near misses."""
    if name not in BACKENDS:
        raise BackendError(unknown_name("kernel backend", name, BACKENDS))
    return name


def forced_backend() -> str | None:
    """Return the backend that `use_backend` or FASTADV_BACKEND forces, if any."""
    name = _forced or os.environ.get(ENV_VAR) or None
    return check_backend_name(name) if name and name != "auto" else None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend for all calls inside the block, in the whole process.

    Args:
        name: A key of `BACKENDS`. "auto" leaves the choice to FASTADV_BACKEND or to the
            order of preference; None lifts any force.

    Raises:
        BackendError: No backend has this name.
    """
    global _forced
    previous = _forced
    if name != "auto":
        _forced = "auto" if name is None else check_backend_name(name)
    try:
        yield
    finally:
        _forced = previous


def unavailable_reason(op: str) -> str | None:
    """Return why no backend that may run here has the operator `op`, or None."""
    forced = forced_backend()
    if forced and not BACKENDS[forced].has(op):
        return f"the {forced} backend is forced, which has no {op}"
    having = [BACKENDS[forced]] if forced else BACKENDS.values()
    reasons = [info.unavailable_reason() for info in having if info.has(op)]
    return None if None in reasons else "; ".join(filter(None, reasons))


def select(operands: Operands, instead: str | None = None) -> tuple[str, ModuleType]:
    """Return name and module of the first backend that accepts the call, and count it.

    Args:
        operands: Operands of the call.
        instead: Backend that runs, uncounted, a call that a forced backend declines; for
            operators that not every backend has.

    Raises:
        BackendError: No backend accepts the call; the message gives their reasons.
    """
    forced = forced_backend()
    infos = [BACKENDS[forced]] if forced else BACKENDS.values()
    for info in infos:
        if info.has(operands.op) and not info.declines(operands):
            _launches[info.name, operands.op] += 1
            return info.name, info.load()
    if forced and instead and not BACKENDS[instead].declines(operands):
        return instead, BACKENDS[instead].load()
    declined = [f"{info.name}: {'; '.join(info.declines(operands))}" for info in infos]
    hint = f" {ENV_VAR} or use_backend() forces {forced}." if forced else ""
    raise BackendError(
        f"no backend can run {operands}:{hint}\n  " + "\n  ".join(declined)
    )


def launch_counts() -> dict[tuple[str, str], int]:
    """Return how often each (backend, operator) ran since `reset_launch_counts`."""
    return dict(_launches)


def reset_launch_counts() -> None:
    """Set every launch count back to zero."""
    _launches.clear()
