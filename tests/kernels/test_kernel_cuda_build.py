"""What nvcc made of the CUDA kernels, read from the library: no GPU needed."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastadv.kernels import _cuda


def tool(name: str) -> str:
    """A program of the CUDA toolkit, or Triton's copy of it."""
    places = [None, "/usr/local/cuda/bin"]
    try:
        import triton

        places.append(str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin"))
    except ImportError:
        pass
    for place in places:
        found = shutil.which(name, path=place)
        if found:
            return found
    pytest.skip(f"no {name} here")


@pytest.fixture(autouse=True)
def built() -> None:
    if not _cuda.LIBRARY.exists():
        pytest.skip("fastadv_cuda.so was not built: no nvcc at install")


def dump(*options: str) -> Iterator[str]:
    command = [tool("cuobjdump"), *options, str(_cuda.LIBRARY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    assert process.returncode == 0


@dataclass(frozen=True)
class Kernel:
    """A kernel's name and the sizes of the elements it reads and writes."""

    symbol: str

    @property
    def name(self) -> str:
        found = re.search(r"\d((?:[a-z]+_)+kernel)I", self.symbol)
        assert found, self.symbol
        return found[1].removesuffix("_kernel")

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Bytes per element of what is read and of what is written."""
        command = [tool("c++filt"), self.symbol]
        text = subprocess.run(command, capture_output=True, text=True, check=True)
        known = {"float": 4, "f16": 2, "bf16": 2, "unsigned char": 1}
        words = re.search(r"<(.*)>", text.stdout)
        assert words, text.stdout
        types = [word.split("::")[-1].strip() for word in words[1].split(",")]
        state = (4,) if self.name in ("linf", "advance", "finish", "scale") else ()
        n = [*state, *(known[t] for t in types if t in known)]
        read = {"finish": 2, "scale": 2, "normalize": 1}.get(self.name, 3)
        last = () if self.name in ("sums", "advance", "scale") else (n[-1],)
        first = () if self.name in ("sums", "normalize") else (n[0],)
        return tuple(n[:read]), (*first, *last)


@functools.cache
def resources() -> dict[tuple[int, Kernel], dict[str, int]]:
    """(architecture, kernel) -> REG, STACK, LOCAL and so on."""
    found = {}
    architecture, kernel = 0, Kernel("")
    for line in dump("-res-usage"):
        if match := re.match(r"arch = sm_(\d+)", line):
            architecture = int(match[1])
        elif match := re.match(r" Function (\w+):", line):
            kernel = Kernel(match[1])
        elif "REG:" in line:
            numbers = re.findall(r"\b([A-Z]+):(\d+)", line)
            found[architecture, kernel] = {name: int(n) for name, n in numbers}
    return found


@functools.cache
def memory_instructions(architecture: int) -> dict[Kernel, set[str]]:
    """Kernel -> the kinds of memory instruction in its machine code."""
    found = defaultdict(set)
    kernel = Kernel("")
    interesting = re.compile(r"\b((?:LDG|STG|LDL|STL|UBLKCP|LDS|UCGABAR)[\w.]*)")
    for line in dump("-sass", "-arch", f"sm_{architecture}"):
        if match := re.search(r"Function : (\w+)", line):
            kernel = Kernel(match[1])
        elif match := interesting.search(line):
            found[kernel].add(match[1])
    return dict(found)


def test_every_kernel_is_there_for_every_architecture():
    assert {arch for arch, _ in resources()} == set(_cuda.architectures())
    for architecture in _cuda.architectures():
        counts = Counter(
            kernel.name for arch, kernel in resources() if arch == architecture
        )
        # Two states, two clean images, three gradients, three outputs. The sums of a
        # perturbation read no clean images.
        clusters = {"cluster": 36} if architecture >= 90 else {}
        assert counts == {
            **{"step": 72, "sums": 9, "linf": 18, "advance": 6, "finish": 6},
            **{"draw": 2, "scale": 2, "normalize": 6, **clusters},
        }


def test_nothing_spills():
    for key, used in resources().items():
        assert used["STACK"] == 0, (key, used)
        assert used["LOCAL"] == 0, (key, used)


def test_registers_leave_room_for_the_blocks_that_are_meant_to_share():
    for (architecture, kernel), used in resources().items():
        threads = 2 * 512 if kernel.name == "cluster" else 3 * 256
        assert used["REG"] * threads <= 65536, (architecture, kernel, used)


def test_the_widest_stream_moves_sixteen_bytes_at_a_time():
    architecture = 90 if 90 in _cuda.architectures() else _cuda.architectures()[0]
    for kernel, used in memory_instructions(architecture).items():
        what = (kernel, sorted(used))
        assert not {i for i in used if i.startswith(("LDL", "STL"))}, what
        if kernel.name == "draw":  # a thread has the channels of one pixel
            continue
        wide = {i.partition(".")[0] for i in used if ".128" in i}
        read, written = kernel.sizes()
        widest = max(*read, *written)
        if kernel.name == "cluster":
            # The copy engine fills shared memory, and nothing else reads images.
            assert any(i.startswith("UBLKCP") for i in used), what
            assert any(i.startswith("UCGABAR") for i in used), what
            assert "LDG" not in wide, what
            assert ("LDS" in wide) == (widest in read), what
        else:
            assert ("LDG" in wide) == (widest in read), what
        assert ("STG" in wide) == (widest in written), what
