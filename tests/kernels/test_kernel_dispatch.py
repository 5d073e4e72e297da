"""Which backend runs, why another one does not, and how to force one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from kernel_cases import BF16, F16, F32, Dtypes, make_step

from fastadv import kernels
from fastadv.errors import BackendError
from fastadv.kernels import _cpp, registry
from fastadv.kernels.crops import resized_crops

needs_cpp = pytest.mark.skipif(not _cpp.LIBRARY.exists(), reason="not built")
needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="not installed"
)


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch):
    monkeypatch.delenv("FASTADV_BACKEND", raising=False)
    kernels.reset_launch_counts()


FULL = Dtypes(F32, F32, None)


def step(dtypes: Dtypes = FULL):
    return make_step("linf", (1, 3, 4, 4), dtypes)


def ran() -> list[str]:
    return [name for name, _ in kernels.launch_counts()]


@needs_cpp
def test_cpp_is_the_default_on_the_cpu():
    step().run()
    assert kernels.launch_counts() == {("cpp", "pgd_step"): 1}


@needs_numba
def test_use_backend_forces_nests_and_comes_back():
    with kernels.use_backend("numba"):
        assert kernels.forced_backend() == "numba"
        with kernels.use_backend("reference"):
            step().run()
            with kernels.use_backend(None):
                assert kernels.forced_backend() is None
        step().run()
    assert kernels.forced_backend() is None
    assert ran() == ["reference", "numba"]


def test_use_backend_is_undone_by_an_exception():
    with pytest.raises(ZeroDivisionError), kernels.use_backend("reference"):
        raise ZeroDivisionError
    assert kernels.forced_backend() is None


def test_the_environment_forces_and_use_backend_overrides(monkeypatch):
    monkeypatch.setenv("FASTADV_BACKEND", "reference")
    step().run()
    assert ran() == ["reference"]
    with kernels.use_backend("auto"):  # what a command's default flag says
        assert kernels.forced_backend() == "reference"
    with kernels.use_backend(None):
        assert kernels.forced_backend() is None
    with kernels.use_backend("numba"):
        assert kernels.forced_backend() == "numba"
    monkeypatch.setenv("FASTADV_BACKEND", "auto")
    assert kernels.forced_backend() is None


def test_unknown_backends_give_near_misses(monkeypatch):
    with (
        pytest.raises(BackendError, match="'nunba'; perhaps you meant: numba"),
        kernels.use_backend("nunba"),
    ):
        pass
    monkeypatch.setenv("FASTADV_BACKEND", "tritn")
    with pytest.raises(BackendError, match="'tritn'; perhaps you meant: triton"):
        step().run()


def test_a_forced_backend_that_cannot_run_says_why():
    with (
        kernels.use_backend("cuda"),
        pytest.raises(BackendError) as caught,
    ):
        step().run()
    text = str(caught.value)
    assert "x[1, 3, 4, 4] float32" in text
    assert "forces cuda" in text
    reason = kernels.BACKENDS["cuda"].unavailable_reason() or "needs cuda tensors"
    assert f"cuda: {reason}" in text
    assert ran() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_triton_without_a_gpu_says_so():
    with kernels.use_backend("triton"), pytest.raises(BackendError, match="no CUDA or"):
        step().run()


@needs_cpp
def test_float64_is_declined_by_cpp_and_runs_on_the_reference():
    wide = step()
    wide = replace(wide, x=wide.x.double()).run()
    assert ran() == ["reference"]
    with (
        kernels.use_backend("cpp"),
        pytest.raises(BackendError, match="needs x as float32 or float16, got float64"),
    ):
        wide.run()


@needs_numba
def test_numba_declines_float16_perturbations():
    with (
        kernels.use_backend("numba"),
        pytest.raises(BackendError, match="needs x as float32, got float16"),
    ):
        step(Dtypes(F32, F32, None, F16)).run()


def test_normalising_to_float64_runs_on_the_reference():
    """The result's dtype takes part in the choice, not only the operands'."""
    values = step()
    got = kernels.normalize(
        values.x, mean=values.mean, std=values.std, dtype=torch.float64
    )
    assert got.dtype == torch.float64
    assert ran() == ["reference"]
    for name in ("cpp", "numba"):
        if kernels.BACKENDS[name].unavailable_reason():
            continue
        with (
            kernels.use_backend(name),
            pytest.raises(BackendError, match=r"writes float32.*not float64"),
        ):
            kernels.normalize(
                values.x, mean=values.mean, std=values.std, dtype=torch.float64
            )


@needs_numba
def test_numba_takes_over_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setattr(_cpp, "LIBRARY", tmp_path / "fastadv_cpu.so")
    _cpp._load.cache_clear()
    try:
        step().run()
        assert ran() == ["numba"]
        with (
            kernels.use_backend("cpp"),
            pytest.raises(BackendError, match=r"fastadv_cpu.so was not built"),
        ):
            step().run()
        step(Dtypes(F32, BF16, None)).run()  # numba declines half precision
        assert ran() == ["numba", "reference"]
        with (
            kernels.use_backend("numba"),
            pytest.raises(BackendError, match="needs grad as float32, got bfloat16"),
        ):
            step(Dtypes(F32, BF16, None)).run()
    finally:
        monkeypatch.undo()
        _cpp._load.cache_clear()


def test_a_damaged_library_says_so(monkeypatch, tmp_path):
    broken = tmp_path / "fastadv_cpu.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_cpp, "LIBRARY", broken)
    _cpp._load.cache_clear()
    try:
        assert "does not load" in str(_cpp.unavailable_reason())
    finally:
        monkeypatch.undo()
        _cpp._load.cache_clear()


def test_no_backend_at_all_lists_every_reason(monkeypatch):
    from fastadv.kernels import reference

    monkeypatch.setattr(reference, "unavailable_reason", lambda: "switched off")
    wide = step()
    wide = replace(wide, x=wide.x.double())
    with pytest.raises(BackendError) as caught:
        wide.run()
    for name in kernels.BACKENDS:
        assert f"\n  {name}: " in str(caught.value)


def test_counts_add_up_and_reset():
    with kernels.use_backend("reference"):
        for _ in range(3):
            step().run()
    assert kernels.launch_counts() == {("reference", "pgd_step"): 3}
    kernels.reset_launch_counts()
    assert kernels.launch_counts() == {}


def test_a_forced_backend_without_an_operator_leaves_it_to_another():
    """Crops and convolutions run as before: they are no reason to stop a training."""
    images = torch.randint(0, 256, (2, 9, 8, 3), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 9, 8, 0], [1, 2, 5, 4, 1]])
    with kernels.use_backend("reference"):
        want = resized_crops(images, torch.arange(2), boxes, 6)
    assert kernels.launch_counts() == {("reference", "crops"): 1}
    kernels.reset_launch_counts()
    for name in ("numba", "cuda"):
        with kernels.use_backend(name):
            assert torch.equal(resized_crops(images, torch.arange(2), boxes, 6), want)
            reason = registry.unavailable_reason("conv3x3")
            assert reason == f"the {name} backend is forced, which has no conv3x3"
    assert kernels.launch_counts() == {}


@needs_cpp
def test_a_convolution_compiled_before_another_backend_was_forced_still_runs():
    x, weight = torch.rand(1, 16, 4, 4), torch.rand(16, 16, 3, 3)
    arguments = (x, weight, None, None, None, False, False)
    want = torch.ops.fastadv.conv3x3(*arguments)
    with kernels.use_backend("reference"):
        assert torch.equal(torch.ops.fastadv.conv3x3(*arguments), want)
    with pytest.raises(BackendError, match="needs x as float32, got float64"):
        torch.ops.fastadv.conv3x3(x.double(), *arguments[1:])


def test_importing_the_kernels_imports_no_compiler():
    """`fastadv.kernels` stays cheap: Numba and Triton come with their first call."""
    program = (
        "import sys, torch; before = set(sys.modules)\n"
        "import fastadv.kernels, fastadv.kernels._numba, fastadv.kernels._triton\n"
        "print({'numba', 'llvmlite', 'triton'} & (set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
