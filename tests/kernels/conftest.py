"""One fixture for every way to run a kernel on this machine."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastadv import kernels
from fastadv.kernels import _cpp, _triton


@dataclass(frozen=True)
class Backend:
    """A forced backend and the device its tensors must be on."""

    name: str
    device: str = "cpu"
    isa: str | None = None
    half: bool = True  # takes bfloat16 and float16 gradients

    def __str__(self) -> str:
        return "-".join(filter(None, (self.name, self.isa, self.device)))


CPU = [
    Backend("reference"),
    *(Backend("cpp", isa=isa) for isa in ("baseline", "avx2", "avx512")),
    Backend("numba", half=False),
]
GPU = [Backend("reference", "cuda"), Backend("triton", "cuda")]


def params(backends: list[Backend]) -> list[object]:
    return [
        pytest.param(
            b, id=str(b), marks=[pytest.mark.gpu] if b.device == "cuda" else []
        )
        for b in backends
    ]


BACKENDS = params(CPU + (GPU if torch.cuda.is_available() else []))


def use_isa(isa: str, directory: Path, patch: pytest.MonkeyPatch) -> None:
    """Load a copy of the library that chooses `isa`; a library chooses only once."""
    if not _cpp.LIBRARY.exists():
        pytest.skip("fastadv_cpu.so was not built")
    copy = directory / f"{isa}.so"
    shutil.copy(_cpp.LIBRARY, copy)
    patch.setenv("FASTADV_CPU_ISA", isa)
    patch.setattr(_cpp, "LIBRARY", copy)
    _cpp._load.cache_clear()
    if _cpp.isa() != isa:
        pytest.skip(f"this processor has no {isa}")


@pytest.fixture(params=BACKENDS, scope="module")
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """Force each backend in turn, and check afterwards that it was the one that ran."""
    chosen: Backend = request.param
    if chosen.name == "numba" and importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    if chosen.name == "triton":
        reason = _triton._missing()
        if reason:
            pytest.skip(reason)
    patch = pytest.MonkeyPatch()
    try:
        if chosen.isa:
            use_isa(chosen.isa, tmp_path_factory.mktemp("isa"), patch)
        kernels.reset_launch_counts()
        with kernels.use_backend(chosen.name):
            yield chosen
        assert {name for name, _ in kernels.launch_counts()} <= {chosen.name}
    finally:
        patch.undo()
        _cpp._load.cache_clear()


@pytest.fixture(params=["avx2", "avx512"], scope="module")
def vector_isa(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Each instruction set with wide vectors that this processor has."""
    patch = pytest.MonkeyPatch()
    try:
        use_isa(request.param, tmp_path_factory.mktemp("isa"), patch)
        yield
    finally:
        patch.undo()
        _cpp._load.cache_clear()
