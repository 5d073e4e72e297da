"""The Triton backend without a GPU: values by interpreter, code by compiling ahead.

Every kernel is compiled to a cubin for sm_80, sm_90 and sm_100 and its machine code is
asked for what the bench would suffer from: register spills and narrow memory accesses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastadv.kernels._tuning import DEFAULT, candidates

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="triton compiles on Linux only"
)
CAPABILITIES = (80, 90, 100)
HALF = {"x0": "*u8", "grad": "*bf16", "z": "*bf16"}
FULL = {"x0": "*fp32", "grad": "*fp32", "z": "*fp32"}
DELTA = {**HALF, "x": "*fp16"}

# Argument types of an ImageNet batch. A number in DIVISIBLE is a multiple of 16 there
# (3 * 224 * 224 and 224 * 224 are), which is what Triton specialises on at a launch.
POINTERS = {
    **dict.fromkeys(("x", "x_prev", "out", "step", "eps", "mean", "std"), "*fp32"),
    "counter": "*i64",
    "parts": "*fp64",
}
NUMBERS = {"seed": "i64", "share": "fp32"}
DIVISIBLE = ("plane", "row", "pixels")
IMAGE = {"C": 3, "BLOCK": DEFAULT.block}
SUMS, PARTS = {"WIDTH": DEFAULT.width(150528)}, {"PARTS": 64}
PLAIN = {"x_prev": None}


@dataclass(frozen=True)
class Kernel:
    """One way a step kernel is launched, and what it should look like.

    `tiles` of a row are loaded before any of them is used. A thread has four elements
    of each, so a float32 image takes one 128-bit access per tile, a half precision one
    64 bits and a uint8 one 32; nothing else is loaded but `scalars` and the entries of
    `tables`: all of them on channels_last, one on NCHW.
    """

    name: str
    constants: dict[str, Any]
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    tables: int = 1
    scalars: int = 0
    tiles: int = 1
    registers: int = 64  # four programs of 256 threads in the 65536 of an SM

    def loads(self, types: dict[str, str], last: bool) -> int:
        """32-bit loads of a thread."""
        bytes_ = [image for image in self.reads if types.get(image) == "*u8"]
        table = 3 if last else 1
        return self.scalars + self.tables * table + self.tiles * len(bytes_)


READ = ("x", "x0", "grad")
READ_TWO = (*READ, "x_prev")
STEP_KERNELS = {
    "linf": Kernel("step_linf", PLAIN, READ, ("x", "z"), tables=2, scalars=2),
    "linf-momentum": Kernel(
        "step_linf", {}, READ_TWO, ("x", "x_prev", "z"), tables=2, scalars=2
    ),
    "sums": Kernel("sums_l2", {**SUMS, **PLAIN}, READ, tiles=4, registers=80),
    "lengths": Kernel(
        "lengths_l2", {**SUMS, **PARTS}, READ_TWO, scalars=2, tiles=4, registers=80
    ),
    "move": Kernel(
        "move_l2", {**PARTS, **PLAIN}, READ, ("x", "z"), tables=2, scalars=2
    ),
    "move-momentum": Kernel(
        "move_l2", PARTS, READ_TWO, ("x", "x_prev", "z"), tables=2, scalars=2
    ),
    "normalize": Kernel("normalize", {}, ("x",), ("z",), tables=2),
}
HOLD_DELTA = ("linf", "sums", "move")
CODE = [
    *((name, HALF, CAPABILITIES) for name in STEP_KERNELS),
    *((name, FULL, (90,)) for name in STEP_KERNELS),
    *((name, DELTA, (90,)) for name in HOLD_DELTA),
]


def compile_for(
    capability: int,
    name: str,
    types: dict[str, str],
    constants: dict[str, Any],
    warps: int = DEFAULT.num_warps,
) -> Any:
    """Compile one kernel for an NVIDIA GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastadv.kernels import _triton_kernels

    kernels = vars(_triton_kernels)
    kernel = kernels[name]
    known = {**POINTERS, **NUMBERS, **types}
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
        options={"num_warps": warps, "enable_fp_fusion": True},
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


def assert_lean(compiled: Any, directory: Path, registers: int = 64) -> None:
    """No spills, and registers for enough programs at a time."""
    used = resources(compiled, directory)
    assert used["STACK"] == 0, used
    assert used["LOCAL"] == 0, used
    assert used["REG"] <= registers, used


def accesses(ptx: str) -> Counter[str]:
    """The kinds of global memory instruction, such as `ld.v4.b32`, and how many."""
    found = re.findall(r"\b(ld|st)\.global[.\w:]*?((?:\.v[24])?\.b\d+)\b", ptx)
    return Counter(kind + width for kind, width in found)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "nchw"])
@pytest.mark.parametrize(("name", "types", "capabilities"), CODE)
def test_step_kernels_compile_lean_and_vectorised(
    tmp_path, name, types, capabilities, last
):
    kernel = STEP_KERNELS[name]
    constants = {**IMAGE, **kernel.constants, "LAST": last}
    for capability in capabilities:
        compiled = compile_for(capability, kernel.name, types, constants)
        assert_lean(compiled, tmp_path, kernel.registers)
        ptx = compiled.asm["ptx"]
        used = accesses(ptx)
        # Memory order on channels_last too: reading it channel by channel would take
        # a 32-bit load for each element.
        assert used["ld.b32"] <= kernel.loads(types, last), used
        for kind, images in (("ld", kernel.reads), ("st", kernel.writes)):
            held = Counter({**POINTERS, **types}[image] for image in images)
            halves = held["*bf16"] + held["*fp16"]
            assert used[f"{kind}.v4.b32"] == kernel.tiles * held["*fp32"], used
            assert used[f"{kind}.v2.b32"] == kernel.tiles * halves, used
        assert not {a for a in used if a.endswith((".b8", ".b16"))}, used
        if types is HALF and "z" in kernel.writes:
            assert re.search(r"cvt\.rn\.bf16(x2)?\.f32", ptx)  # rounded, not cut


def test_candidates_do_not_spill(tmp_path):
    """Wider programs take more registers, but never more than there are."""
    for config in candidates("l2", 64, 150528 * 7, 50 << 20):
        if config.l2_share or config.sum_width > 4096:
            continue  # the same code
        kernel = STEP_KERNELS["move-momentum"]
        constants = {**IMAGE, **PARTS, "BLOCK": config.block, "LAST": True}
        compiled = compile_for(90, kernel.name, FULL, constants, config.num_warps)
        assert_lean(compiled, tmp_path, 255)


def test_start_kernels_compile_lean(tmp_path):
    for capability in CAPABILITIES:
        for last in (True, False):
            constants = {**IMAGE, "LAST": last, "L2": True}
            compiled = compile_for(capability, "random_start", HALF, constants)
            assert_lean(compiled, tmp_path)
        box = {**IMAGE, "LAST": True, "L2": False}
        assert_lean(compile_for(capability, "random_start", HALF, box), tmp_path)
        scale = {"PARTS": 64, "BLOCK": DEFAULT.block}
        compiled = compile_for(capability, "scale_start", HALF, scale)
        assert_lean(compiled, tmp_path)
        assert {"ld.v4.b32", "st.v4.b32"} <= set(accesses(compiled.asm["ptx"]))


def test_smallest_images_and_absent_outputs_compile():
    """A launch turns None and sizes of one into constants; both must still compile."""
    one = {"BLOCK": DEFAULT.block, "tiles": 1}
    absent = {"z": None, "counter": None, "plane": 1}
    image = {**one, "C": 1, "LAST": False}
    total = {"total": 1}
    l2 = {**image, **total, "plane": 1}
    sums = {**l2, "WIDTH": DEFAULT.sum_width}
    parts = {"PARTS": 1, "count": 1}
    for name, constants in (
        ("step_linf", {**image, **absent, "x_prev": None}),
        ("step_linf", {**image, **absent}),
        ("sums_l2", {**sums, "counter": None}),
        ("lengths_l2", {**sums, **parts}),
        ("move_l2", {**l2, **parts, "z": None, "x_prev": None}),
        ("move_l2", {**l2, **parts, "z": None}),
        ("normalize", {**image, "plane": 1}),
        ("random_start", {**image, "pixels": 1, "L2": True}),
        ("scale_start", {**one, **parts, "row": 1}),
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
