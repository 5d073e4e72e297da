"""One fixture for every way to run a kernel on this machine (kernel_backends.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernel_backends import BACKENDS, Backend, use_isa

from fastadv import kernels
from fastadv.kernels import _cpp


@pytest.fixture(params=BACKENDS, scope="module")
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """Force each backend in turn, and check afterwards that it was the one that ran."""
    chosen: Backend = request.param
    reason = kernels.BACKENDS[chosen.name].unavailable_reason()
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
