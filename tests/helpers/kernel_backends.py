"""Every way to run a kernel on this machine, for the `backend` fixture of conftest.py."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastadv.kernels import _cpp


@dataclass(frozen=True)
class Backend:
    """A forced backend and the device its tensors must be on."""

    name: str
    device: str = "cpu"
    isa: str | None = None
    half: bool = True  # takes half-precision gradients, outputs and states

    def __str__(self) -> str:
        return "-".join(filter(None, (self.name, self.isa, self.device)))


CPU = [
    Backend("reference"),
    *(Backend("cpp", isa=isa) for isa in ("baseline", "avx2", "avx512")),
    Backend("numba", half=False),
]
GPU = [Backend(name, "cuda") for name in ("reference", "triton", "cuda")]


def params(backends: list[Backend]) -> list[object]:
    return [
        pytest.param(
            b, id=str(b), marks=[pytest.mark.gpu] if b.device == "cuda" else []
        )
        for b in backends
    ]


BACKENDS = params(CPU + (GPU if torch.cuda.is_available() else []))


def use_isa(
    isa: str, directory: Path, patch: pytest.MonkeyPatch, name: str = "library"
) -> None:
    """Load a copy of the library that chooses `isa`; a library chooses only once."""
    if not _cpp.LIBRARY.exists():
        pytest.skip("fastadv_cpu.so was not built")
    copy = directory / f"{name}.so"
    shutil.copy(_cpp.LIBRARY, copy)
    patch.setenv("FASTADV_CPU_ISA", isa)
    patch.setattr(_cpp, "LIBRARY", copy)
    _cpp._load.cache_clear()
    if _cpp.isa() != isa:
        pytest.skip(f"this processor has no {isa}")
