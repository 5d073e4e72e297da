"""The Triton backend without a GPU: values by interpreter, code by compiling ahead.

Every kernel is compiled to a cubin for sm_80, sm_90 and sm_100 and its machine code is
asked for what the bench would suffer from: register spills and narrow memory accesses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastadv.kernels._triton import CONFIG

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="triton compiles on Linux only"
)
CAPABILITIES = (80, 90, 100)
HALF = {"x0": "*u8", "grad": "*bf16", "z": "*bf16"}
FULL = {"x0": "*fp32", "grad": "*fp32", "z": "*fp32"}

# Argument types of an ImageNet batch. A number in DIVISIBLE is a multiple of 16 there
# (3 * 224 * 224 and 224 * 224 are), which is what Triton specialises on at a launch.
POINTERS = {
    **dict.fromkeys(("x", "out", "step", "eps", "mean", "std"), "*fp32"),
    "counter": "*i64",
    "parts": "*fp64",
}
DIVISIBLE = ("plane", "row", "pixels")
IMAGE = {"C": 3, "BLOCK": CONFIG.block}
STEP_KERNELS = {
    "step_linf": {},
    "sums_l2": {"WIDTH": CONFIG.width(150528)},
    "move_l2": {"PARTS": 64},
    "normalize": {},
}


def compile_for(
    capability: int, name: str, types: dict[str, str], constants: dict[str, Any]
) -> Any:
    """Compile one kernel for an NVIDIA GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastadv.kernels import _triton_kernels

    kernel = getattr(_triton_kernels, name)
    known = {**POINTERS, **types, "seed": "i64"}
    signature, attributes, values = {}, {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
            values[i,] = constants[argument]
            continue
        signature[argument] = known.get(argument, "i32")
        if argument in DIVISIBLE or signature[argument].startswith("*"):
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=values, attrs=attributes)
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": CONFIG.num_warps, "enable_fp_fusion": True},
    )


def resources(compiled: Any, directory: Path) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of a compiled kernel, from its cubin."""
    cubin = directory / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    command = [str(tools / "cuobjdump"), "-res-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(n) for name, n in re.findall(r"\b([A-Z]+):(\d+)", text)}
    assert "REG" in found, text
    return found


def assert_lean(compiled: Any, directory: Path) -> None:
    """No spills; registers for four programs of 256 threads in an SM's 65536."""
    used = resources(compiled, directory)
    assert used["STACK"] == 0, used
    assert used["LOCAL"] == 0, used
    assert used["REG"] <= 64, used


def accesses(ptx: str) -> set[str]:
    """The kinds of global memory instruction, such as `ld.v4.b32`."""
    found = re.findall(r"\b(ld|st)\.global[.\w:]*?((?:\.v[24])?\.b\d+)\b", ptx)
    return {kind + width for kind, width in found}


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "nchw"])
@pytest.mark.parametrize("types", [HALF, FULL], ids=["half", "float"])
@pytest.mark.parametrize("name", STEP_KERNELS)
def test_step_kernels_compile_lean_and_vectorised(tmp_path, name, types, last):
    constants = {**IMAGE, **STEP_KERNELS[name], "LAST": last}
    for capability in CAPABILITIES:
        compiled = compile_for(capability, name, types, constants)
        assert_lean(compiled, tmp_path)
        ptx = compiled.asm["ptx"]
        used = accesses(ptx)
        assert "ld.v4.b32" in used, used  # x, four floats
        if name in ("step_linf", "move_l2"):
            assert "st.v4.b32" in used, used
        if types is HALF and name != "sums_l2":
            assert "st.v2.b32" in used, used  # z, four bfloat16
            assert re.search(r"cvt\.rn\.bf16(x2)?\.f32", ptx)  # rounded, not cut
        # Nothing is read or written byte by byte.
        assert not {a for a in used if a.endswith((".b8", ".b16"))}, used


def test_start_kernels_compile_lean(tmp_path):
    for capability in CAPABILITIES:
        for last in (True, False):
            constants = {**IMAGE, "LAST": last, "L2": True}
            compiled = compile_for(capability, "random_start", HALF, constants)
            assert_lean(compiled, tmp_path)
        box = {**IMAGE, "LAST": True, "L2": False}
        assert_lean(compile_for(capability, "random_start", HALF, box), tmp_path)
        scale = {"PARTS": 64, "BLOCK": CONFIG.block}
        compiled = compile_for(capability, "scale_start", HALF, scale)
        assert_lean(compiled, tmp_path)
        assert {"ld.v4.b32", "st.v4.b32"} <= accesses(compiled.asm["ptx"])


def test_smallest_images_and_absent_outputs_compile():
    """A launch turns None and sizes of one into constants; both must still compile."""
    one = {"BLOCK": CONFIG.block, "tiles": 1}
    absent = {"z": None, "counter": None, "plane": 1}
    image = {**one, "C": 1, "LAST": False}
    total = {"total": 1}
    for name, constants in (
        ("step_linf", {**image, **absent}),
        ("sums_l2", {**image, **total, "counter": None, "plane": 1, "WIDTH": 4096}),
        ("move_l2", {**image, **total, "z": None, "plane": 1, "PARTS": 1, "count": 1}),
        ("normalize", {**image, "plane": 1}),
        ("random_start", {**image, "pixels": 1, "L2": True}),
        ("scale_start", {**one, "PARTS": 1, "count": 1, "row": 1}),
    ):
        assert compile_for(90, name, FULL, constants).asm["cubin"]


def test_values_in_the_interpreter():
    """All of `interpreted_cases.py`, in a process that starts with the variable set."""
    cases = Path(__file__).with_name("interpreted_cases.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("FASTADV_BACKEND", None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\b[1-9]\d passed", done.stdout), done.stdout


def test_interpreting_does_not_take_over_cpu_calls():
    """With the variable set but nothing forced, the CPU backends keep their calls."""
    program = """
import torch
from fastadv import kernels
x = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
kernels.ball_init(x, norm="linf", eps=0.1, seed=0)
with kernels.use_backend("triton"):
    kernels.ball_init(x, norm="linf", eps=0.1, seed=0)
print(*(name for name, _ in kernels.launch_counts()))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("FASTADV_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    first, second = done.stdout.split()
    assert first in ("cpp", "numba", "reference")
    assert second == "triton"
