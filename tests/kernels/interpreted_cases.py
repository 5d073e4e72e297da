"""The Triton kernels on the CPU, in Triton's interpreter. Not collected by itself.

Triton reads TRITON_INTERPRET when it is imported, so `test_kernel_triton.py` runs this
file in a process of its own. It checks arithmetic and indexing; what a compiler makes
of the kernels is checked there too, and the two together on a GPU by the other tests.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch
from kernel_cases import (
    ALL_DTYPES,
    BF16,
    DELTA_DTYPES,
    F16,
    F32,
    NORMS,
    TOLERANCES,
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
from fastadv.kernels import _triton, _tuning
from fastadv.kernels._tuning import LaunchConfig

# The interpreter cuts bfloat16 off where hardware rounds: a whole unit in the last
# place instead of half. That the compiled kernels round is read from their PTX.
TOLERANCES[BF16] = (2**-7, TOLERANCES[BF16][1])


@pytest.fixture(autouse=True)
def forced():
    kernels.reset_launch_counts()
    with kernels.use_backend("triton"):
        yield
    assert {name for name, _ in kernels.launch_counts()} == {"triton"}


# ops.py copies the other layouts into one of these two.
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_step(norm, layout):
    # Each combination in one layout: loading and indexing do not know of each other.
    mixed = (*ALL_DTYPES, *DELTA_DTYPES[:2])
    dtypes = mixed[::2] if layout == "channels_last" else mixed[1::2]
    for step, name in step_cases(norm, layout, dtypes, "cpu"):
        check_step(step, name)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_apgd_step(norm, layout):
    dtypes = ALL_DTYPES[2:3] if layout == "channels_last" else ALL_DTYPES[3:4]
    for step, name in step_cases(norm, layout, dtypes, "cpu", make_apgd):
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


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_gradient_scale(scale):
    step = make_step("l2", (2, 3, 5, 7), Dtypes(F32, F32, None))
    step.grad.mul_(scale)
    check_step(step, f"gradient times {scale}")


def test_many_channels():
    """More than four channels take the gathering path for the constants."""
    step = make_step("l2", (2, 4, 6, 5), layout="channels_last")
    double = {
        name: torch.cat((t, t), dim=0 if name in ("mean", "std") else 1)
        for name, t in vars(step).items()
        if name in ("x", "x0", "grad", "z", "mean", "std")
    }
    for name, t in double.items():
        if t.dim() == 4:
            double[name] = t.contiguous(memory_format=torch.channels_last)
    check_step(replace(step, **double), "eight channels")


@pytest.fixture
def tuning(tmp_path, monkeypatch):
    """Measuring is on; the choices go to the folder this gives."""
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path))
    monkeypatch.setenv("FASTADV_TUNE", "1")
    _tuning._chosen.clear()
    yield tmp_path
    _tuning._chosen.clear()


@pytest.mark.parametrize("norm", NORMS)
def test_tuning_leaves_the_callers_tensors_alone(norm, tuning, monkeypatch):
    """Timing runs the step many times; the caller sees it once."""
    check_step(make_step(norm, (3, 3, 20, 20)), "measured")
    (path,) = tuning.rglob("*.json")
    text = path.read_text()
    found = json.loads(text)
    assert 0 < found["milliseconds"] <= found["default_milliseconds"]
    # From now on it is used without the variable too.
    monkeypatch.delenv("FASTADV_TUNE")
    _tuning._chosen.clear()
    check_step(make_step(norm, (4, 3, 20, 20)), "read")
    (chosen,) = _tuning._chosen.values()
    assert chosen == LaunchConfig(**found["config"])
    assert path.read_text() == text


def written(step):
    """One step, and everything it wrote."""
    step.run()
    return [getattr(step, name) for name in ("x", "z", "nonfinite")] + (
        [step.x_prev] if step.x_prev is not None else []
    )


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(
    ("make", "passes", "groups"), [(make_step, 2, 2), (make_apgd, 3, 3)]
)
def test_groups_of_samples_change_no_bit(
    make, passes, groups, layout, tuning, monkeypatch
):
    """Five samples of 2.1 or 3.3 KB, and 0.7 % of 1 MB: groups of three or two."""
    case = functools.partial(make, "l2", (5, 3, 10, 10), ALL_DTYPES[2], layout)
    grouped = LaunchConfig(l2_share=0.007)
    monkeypatch.setattr(_tuning, "candidates", lambda *_: iter([grouped]))
    written(case())  # measures
    launches = []
    launch = _triton._launch
    monkeypatch.setattr(
        _triton, "_launch", lambda *a, **k: (launches.append(k), launch(*a, **k))
    )
    got = written(case())
    assert len(launches) == passes * groups
    monkeypatch.delenv("FASTADV_TUNE")
    monkeypatch.setenv("FASTADV_CACHE", str(tuning / "empty"))
    _tuning._chosen.clear()
    launches.clear()
    want = written(case())
    assert len(launches) == passes
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
