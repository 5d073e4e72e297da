"""The CUDA kernels on the CPU: compiled by g++ and run thread by thread, see
`cuda_emulator.h`. It checks the very source that nvcc compiles, launches included; what
nvcc makes of it is read in `test_kernel_cuda_build.py`, and a GPU runs all of it in
`test_kernel_values.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernel_cases import (
    ALL_DTYPES,
    BF16,
    DELTA_DTYPES,
    F16,
    F32,
    NORMS,
    U8,
    Dtypes,
    check_ball_init,
    check_exact_pixels,
    check_normalize,
    check_philox_words,
    check_step,
    make_apgd,
    make_step,
    step_cases,
)

from fastadv import kernels
from fastadv.errors import BackendError
from fastadv.kernels import _cuda

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
FLAGS = [
    *("-O1", "-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-fvisibility=hidden", "-DFA_ISA=fa_emulated", '-DFC_ARCHITECTURES=""'),
    # A load of several elements at an address that is no multiple of them is a trap here
    # as on the device.
    *("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"),
]

Emulate = Callable[..., None]


def _build(folder: Path) -> Path:
    include = f"-I{Path(__file__).parent}"
    running = []
    for source in SOURCES:
        made = ["-x", "c++", "-c", source, "-o", folder / f"{source.stem}.o"]
        running.append(subprocess.Popen(["g++", *FLAGS, include, *made]))
    assert [process.wait() for process in running] == [0] * len(SOURCES)
    library = folder / "emulated.so"
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    subprocess.run(["g++", "-shared", *objects, "-o", library], check=True)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    return _build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(autouse=True)
def emulate(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulate]:
    """Force the cuda backend, on CPU tensors; gives the emulator's settings."""
    monkeypatch.setattr(_cuda, "LIBRARY", library)
    monkeypatch.setattr(_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(_cuda, "unavailable_reason", lambda: None)
    monkeypatch.setattr(_cuda, "_where", lambda t: {"device": 0, "stream": 0})
    monkeypatch.setattr(_cuda, "_on", lambda device: contextlib.nullcontext())
    _cuda._load.cache_clear()
    loaded = _cuda._library()
    loaded.fc_emulate.argtypes = [ctypes.c_uint64, *[ctypes.c_int32] * 3]

    def settings(
        seed: int = 0, major: int = 9, shared: int = 232448, clusters: int = 2
    ) -> None:
        loaded.fc_emulate(seed, major, shared, clusters)

    settings()
    kernels.reset_launch_counts()
    with kernels.use_backend("cuda"):
        yield settings
    assert {name for name, _ in kernels.launch_counts()} <= {"cuda"}
    monkeypatch.undo()
    _cuda._load.cache_clear()


# ops.py copies the other layouts into one of these two.
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_step(norm, layout):
    for step, name in step_cases(norm, layout, (*ALL_DTYPES, *DELTA_DTYPES), "cpu"):
        check_step(step, name)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_apgd_step(norm, layout):
    for step, name in step_cases(norm, layout, ALL_DTYPES, "cpu", make_apgd):
        check_step(step, name)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_ball_init(norm, layout):
    check_ball_init(norm, layout, "cpu", seeds=(2**64 - 1,))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_normalize(layout):
    check_normalize(layout, "cpu", (F32, BF16, F16))


def test_words():
    check_philox_words("cpu")


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero(norm):
    check_exact_pixels(norm, "cpu")


FULL, HALF = Dtypes(F32, F32, F32), Dtypes(U8, BF16, BF16)
DELTA = Dtypes(U8, BF16, BF16, F16)


@pytest.mark.parametrize(
    ("shape", "dtypes", "shared", "size"),
    [
        ((1, 3, 16, 16), FULL, 232448, 1),
        ((5, 3, 64, 64), FULL, 232448, 2),  # 72 KB: two blocks on a multiprocessor
        ((5, 3, 64, 64), HALF, 232448, 1),
        ((5, 3, 64, 64), HALF, 30_000, 4),  # two stages in each block
        ((5, 3, 36, 36), FULL, 25_000, 2),  # an odd number of 16 elements
        ((2, 3, 36, 36), HALF, 3_000, 16),
        ((3, 3, 64, 64), DELTA, 30_000, 4),  # chunks of eight
        ((5, 1, 12, 12), FULL, 1_100, 8),  # nothing for the last three blocks
        ((5, 1, 12, 12), FULL, 800, 0),  # does not fit at all
        ((2, 3, 5, 7), FULL, 232448, 0),  # rows of other than 16 bytes
    ],
)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_clusters(emulate, layout, shape, dtypes, shared, size):
    """Every size of cluster, several samples to a cluster, in several orders."""
    results = []
    for seed, clusters in ((1, 1), (2, 2), (3, 3)):
        emulate(seed, 9, shared, clusters)
        step = make_step("l2", shape, dtypes, layout)
        assert _cuda.cluster_size(step) == size
        check_step(step, f"seed {seed}")
        results.append((step.x, step.z, step.nonfinite))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_older_devices_take_two_passes(emulate, monkeypatch):
    step = make_step("l2", (2, 3, 16, 16))
    assert _cuda.cluster_size(step) == 1
    monkeypatch.setattr(_cuda, "SINGLE_PASS", 0)
    assert _cuda.cluster_size(step) == 0
    check_step(step, "turned off")
    monkeypatch.setattr(_cuda, "SINGLE_PASS", None)
    emulate(major=8)
    assert _cuda.cluster_size(step) == 0
    check_step(make_step("l2", (2, 3, 16, 16)), "compute capability 8")


def test_small_batches_take_two_passes_where_the_table_says_so(emulate, monkeypatch):
    monkeypatch.setattr(_cuda, "_TWO_PASSES", ((4, 3000),))
    for shape, size in (((4, 3, 32, 32), 0), ((5, 3, 32, 32), 1), ((4, 3, 16, 16), 1)):
        step = make_step("l2", shape)
        assert _cuda.cluster_size(step) == size
        check_step(step, str(shape))


@pytest.mark.parametrize("least", [2, 8, 16])
def test_larger_clusters_on_demand(emulate, monkeypatch, least):
    """All sizes compute the same, up to the order of the sums."""
    monkeypatch.setattr(_cuda, "SINGLE_PASS", least)
    step = make_step("l2", (5, 3, 32, 32), HALF)
    assert _cuda.cluster_size(step) == least
    check_step(step, f"{least} blocks")


@pytest.mark.parametrize("norm", NORMS)
def test_image_size(norm):
    step = make_step(norm, (1, 3, 224, 224), HALF, "channels_last")
    if norm == "l2":
        assert _cuda.cluster_size(step) == 8
    check_step(step, norm)


def test_many_parts():
    """More than 512 parts of 4096 elements: they get wider."""
    check_step(make_step("l2", (1, 1, 1451, 1451), Dtypes(U8, F32, None)), "wide")


def test_more_channels_than_threads():
    step = make_step("linf", (1, 4, 3, 2), layout="channels_last")
    wide = {
        name: torch.cat([t] * 75, dim=0 if name in ("mean", "std") else 1)
        for name, t in vars(step).items()
        if name in ("x", "x0", "grad", "z", "mean", "std")
    }
    check_step(replace(step, **wide), "300 channels")


@pytest.mark.parametrize("shift", [1, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_tensors_inside_a_buffer(norm, shift):
    """Any address, and nothing beside the tensors is written."""
    for dtypes in (FULL, HALF):
        step = make_step(norm, (2, 3, 16, 16), dtypes)
        buffers = {}
        for name in ("x", "x0", "grad", "z"):
            t = getattr(step, name)
            buffer = torch.full((t.numel() + 64,), 77).to(t.dtype)
            inside = buffer[shift : shift + t.numel()].view(t.shape)
            step = replace(step, **{name: inside.copy_(t)})
            buffers[name] = buffer
        check_step(step, f"{norm} at {shift}")
        for name, buffer in buffers.items():
            rim = torch.cat((buffer[:shift], buffer[shift + step.x.numel() :]))
            assert (rim == 77).all(), name


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_gradient_scale(scale):
    step = make_step("l2", (2, 3, 16, 16), Dtypes(F32, F32, None))
    step.grad.mul_(scale)
    check_step(step, f"gradient times {scale}")


def test_an_error_has_a_name(emulate, monkeypatch):
    """What the runtime reports is raised, with its name and text."""
    values = make_step("linf", (1, 3, 4, 4))
    monkeypatch.setattr(_cuda._library(), "fc_normalize", lambda _: 1)
    with pytest.raises(BackendError, match="fc_normalize failed with emulated failure"):
        kernels.normalize(values.x, mean=values.mean, std=values.std)
