"""A native library whose structures differ from ours is refused and never called."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_cases import make_step

from fastadv import kernels
from fastadv.errors import BackendError
from fastadv.kernels import _cpp, _cuda, _native

NATIVE = {"cpp": (_cpp, "fa_abi"), "cuda": (_cuda, "fc_abi")}


def numbers(module: ModuleType) -> list[int]:
    """What a library that fits says of itself."""
    return [_native.VERSION, *map(ctypes.sizeof, module._MIRRORS), 0]


def build(path: Path, abi: str, said: list[int] | None) -> None:
    """Compile a library that ends the process in every function but the handshake."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    functions = [
        "fa_isa",
        "fa_has_f16",
        "fa_pgd_step",
        "fc_runtime_version",
        "fc_pgd_step",
    ]
    source = "#include <stdlib.h>\n"
    source += "".join(f"int {name}() {{ abort(); }}\n" for name in functions)
    if said is not None:
        listed = ", ".join(map(str, said))
        source += f"static const long long n[] = {{{listed}}};\n"
        source += f"const long long *{abi}() {{ return n; }}\n"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)


WRONG = {
    "older than the handshake": lambda right: None,
    "of another version": lambda right: [right[0] + 1, *right[1:]],
    "with a longer structure": lambda right: [right[0], right[1] + 8, *right[2:]],
    "with one structure less": lambda right: [*right[:-2], 0],
    "with one structure more": lambda right: [*right[:-1], 64, 0],
    "that says nothing": lambda right: [0],
}


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_another_library_is_refused(backend, damage, tmp_path, monkeypatch, capsys):
    module, abi = NATIVE[backend]
    path = tmp_path / module.LIBRARY.name
    build(path, abi, damage(numbers(module)))
    monkeypatch.setattr(module, "LIBRARY", path)
    module._load.cache_clear()
    _cuda.unavailable_reason.cache_clear()
    try:
        reason = kernels.BACKENDS[backend].unavailable_reason()
        assert f"{path.name} was built from other sources" in str(reason)
        with (
            kernels.use_backend(backend),
            pytest.raises(BackendError, match=r"other sources .* reinstall"),
        ):
            make_step("linf", (1, 3, 4, 4)).run()
        make_step("linf", (1, 3, 4, 4)).run()  # by another backend
        # Commands need tyro, which nothing else here does.
        doctor = pytest.importorskip("fastadv.cli.doctor")
        assert doctor.main(["--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["backends"][backend]["declines"] == reason
    finally:
        monkeypatch.undo()
        module._load.cache_clear()
        _cuda.unavailable_reason.cache_clear()


@pytest.mark.parametrize("backend", NATIVE)
def test_a_library_that_fits_is_loaded(backend, tmp_path):
    module, abi = NATIVE[backend]
    build(tmp_path / "fits.so", abi, numbers(module))
    found = _native.load(tmp_path / "fits.so", "compiler", abi, module._MIRRORS)
    assert isinstance(found, ctypes.CDLL)


@pytest.mark.parametrize("backend", NATIVE)
def test_the_library_that_was_built_fits(backend):
    module, _ = NATIVE[backend]
    if not module.LIBRARY.exists():
        pytest.skip("not built")
    assert isinstance(module._load(), ctypes.CDLL)


def test_a_convolution_is_left_to_torch_when_the_library_is_refused(
    tmp_path, monkeypatch
):
    from fastadv.kernels.conv import unsupported_reason

    build(tmp_path / "fastadv_cpu.so", "fa_abi", None)
    monkeypatch.setattr(_cpp, "LIBRARY", tmp_path / "fastadv_cpu.so")
    _cpp._load.cache_clear()
    try:
        x, weight = torch.zeros(4, 32, 16, 16), torch.zeros(32, 32, 3, 3)
        assert "other sources" in str(unsupported_reason(x, weight))
    finally:
        monkeypatch.undo()
        _cpp._load.cache_clear()
