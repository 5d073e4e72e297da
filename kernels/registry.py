"""Which implementation runs an operator: backends state why they decline, the first
that accepts runs, and a count is kept so that tests can see which one it was.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch

from fastadv.errors import BackendError, unknown_name

ENV_VAR = "FASTADV_BACKEND"


@dataclass(frozen=True)
class Operands:
    """What a backend may judge: the tensors and options of one operator call.

    `tensors` holds every tensor by its schema name (absent optional ones left out);
    `out_dtype` is what a freshly made result must be, where the caller chooses.
    """

    op: str
    tensors: dict[str, torch.Tensor]
    out_dtype: torch.dtype | None = None

    def __str__(self) -> str:
        shown = [
            f"{name}{list(t.shape)} {str(t.dtype).removeprefix('torch.')}"
            for name, t in self.tensors.items()
            if t.dim() == 4
        ]
        device = next(iter(self.tensors.values())).device
        made = f" to {self.out_dtype}".replace("torch.", "") if self.out_dtype else ""
        return f"{self.op}({', '.join(shown)}){made} on {device}"


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    shown = [str(d).removeprefix("torch.") for d in dtypes]
    return " or ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def operand_reasons(
    operands: Operands,
    device: str,
    accepted: Mapping[str, tuple[torch.dtype, ...]],
    made: tuple[torch.dtype, ...],
) -> list[str]:
    """Why a backend that takes these devices and dtypes declines a call: [] if it runs.

    Args:
        operands: of the call.
        device: the device type its tensors must be on: `"cpu"` or `"cuda"`.
        accepted: dtypes of every operand by its schema name. `normalize` reads clean
            images, so its `x` is judged as `x0`.
        made: dtypes that a freshly made result may have.
    """
    if any(t.device.type != device for t in operands.tensors.values()):
        return [f"needs {device} tensors"]
    reasons = []
    for name, tensor in operands.tensors.items():
        allowed = accepted["x0" if operands.op == "normalize" else name]
        if tensor.dtype not in allowed:
            got = _names((tensor.dtype,))
            reasons.append(f"needs {name} as {_names(allowed)}, got {got}")
    out = operands.out_dtype
    if out is not None and out not in made:
        reasons.append(f"writes {_names(made)}, not {_names((out,))}")
    return reasons


@dataclass(frozen=True)
class BackendInfo:
    """One entry of the registry. Order in `BACKENDS` is order of preference.

    The module at `module` implements

        unavailable_reason() -> str | None          # this machine cannot run it
        not_supported_reasons(operands) -> list[str]  # it cannot run this call
        pgd_step(...), apgd_step(...), ball_init(...), normalize(...)

    with the arguments that `reference.py` documents.
    """

    name: str
    module: str
    summary: str

    def load(self) -> ModuleType:
        """Import the backend's module."""
        return importlib.import_module(self.module)

    def unavailable_reason(self) -> str | None:
        """Why this backend cannot run on this machine, or None when it can."""
        reason: str | None = self.load().unavailable_reason()
        return reason


BACKENDS: dict[str, BackendInfo] = {
    info.name: info
    for info in (
        BackendInfo("cuda", "fastadv.kernels._cuda", "CUDA C++, NVIDIA GPUs"),
        BackendInfo("triton", "fastadv.kernels._triton", "Triton, any GPU it supports"),
        BackendInfo("cpp", "fastadv.kernels._cpp", "C++, vectorised and threaded CPU"),
        BackendInfo("numba", "fastadv.kernels._numba", "Numba, CPU without a compiler"),
        BackendInfo(
            "reference", "fastadv.kernels.reference", "plain PyTorch, anywhere"
        ),
    )
}

_launches: Counter[tuple[str, str]] = Counter()
_forced: str | None = None


def check_backend_name(name: str) -> str:
    """Return `name` if a backend is called so, else raise with its near misses."""
    if name not in BACKENDS:
        raise BackendError(unknown_name("kernel backend", name, BACKENDS))
    return name


def forced_backend() -> str | None:
    """The backend that `use_backend` or FASTADV_BACKEND forces, if any."""
    name = _forced or os.environ.get(ENV_VAR) or None
    return check_backend_name(name) if name and name != "auto" else None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend for all calls inside the block (process-wide).

    Args:
        name: a key of `BACKENDS`; "auto" leaves the choice to FASTADV_BACKEND or the
            order of preference, None lifts any force.

    Raises:
        BackendError: no backend is called so.
    """
    global _forced
    previous = _forced
    if name != "auto":
        _forced = "auto" if name is None else check_backend_name(name)
    try:
        yield
    finally:
        _forced = previous


def select(operands: Operands) -> tuple[str, ModuleType]:
    """Return the first backend that accepts the call.

    Raises:
        BackendError: none does; the message gives every backend's reasons.
    """
    forced = forced_backend()
    declined = []
    for info in [BACKENDS[forced]] if forced else BACKENDS.values():
        module = info.load()
        missing = module.unavailable_reason()
        reasons = [missing] if missing else module.not_supported_reasons(operands)
        if not reasons:
            count_launch(info.name, operands.op)
            return info.name, module
        declined.append(f"{info.name}: {'; '.join(reasons)}")
    hint = f" {ENV_VAR} or use_backend() forces {forced}." if forced else ""
    raise BackendError(
        f"no backend can run {operands}:{hint}\n  " + "\n  ".join(declined)
    )


def count_launch(backend: str, op: str) -> None:
    """Note that `backend` ran `op` once."""
    _launches[backend, op] += 1


def launch_counts() -> dict[tuple[str, str], int]:
    """How often each (backend, operator) ran since `reset_launch_counts`."""
    return dict(_launches)


def reset_launch_counts() -> None:
    """Set every launch count back to zero."""
    _launches.clear()
