"""The wheel holds everything, and what it installs runs from anywhere.

Everything happens on a copy of the checkout and in folders of its own; neither the
checkout nor the environment that runs the tests is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("fastadv", "kernels", "csrc", "CMakeLists.txt", "setup.py", "pyproject.toml")
MORE = ("README.md", "LICENSE", "MANIFEST.in")

# Drops the finder of the editable install that runs these tests; then one operator, on
# the backend that is chosen and on the reference.
PROGRAM = """
import json, sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
import fastadv, torch
from fastadv import kernels
from fastadv.cli.doctor import examine
x0 = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
grad = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
def stepped():
    x, z = x0.clone(), torch.empty_like(x0)
    kernels.pgd_step_(x, x0, grad, norm="l2", step_size=0.5, eps=0.3,
                      mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25), z=z)
    return x
mine = stepped()
ran = [name for name, op in kernels.launch_counts() if op == "pgd_step"]
with kernels.use_backend("reference"):
    error = (mine - stepped()).abs().max().item()
moved = (mine - x0).flatten(1).norm(dim=1).tolist()
print(json.dumps({"fastadv": fastadv.__file__, "kernels": kernels.__file__,
                  "ran": ran, "error": error, "moved": moved, "doctor": examine()}))
"""


def _run(
    words: list[str], cwd: Path, timeout: float = 240, **variables: str
) -> subprocess.CompletedProcess[str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("FASTADV", "PYTH"))
    }
    done = subprocess.run(
        words,
        cwd=cwd,
        env=kept | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _pip(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    quiet = ["--disable-pip-version-check", "--no-deps", "--no-index"]
    python = [sys.executable, "-m", "pip"]
    return _run([*python, words[0], *quiet, *words[1:]], cwd, **variables)


def _copy(target: Path) -> Path:
    """The checkout as a clone has it: sources, nothing built."""
    built = shutil.ignore_patterns("*.so", "__pycache__")
    target.mkdir()
    for part in (*PARTS, *MORE):
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target / part, ignore=built)
        elif (ROOT / part).exists() or part in PARTS:
            shutil.copy(ROOT / part, target / part)
    return target


def _operator(cwd: Path, target: Path | None = None) -> dict[str, Any]:
    """Run PROGRAM as `python -c` does in `cwd`, with `target` on the path."""
    path = {"PYTHONPATH": str(target)} if target else {}
    done = _run([sys.executable, "-c", PROGRAM], cwd, **path)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["error"] < 1e-6
    assert found["moved"] == pytest.approx([0.3, 0.3], abs=0.05)  # less at the box
    return found


@dataclass(frozen=True)
class Built:
    checkout: Path
    wheel: Path
    target: Path  # where the wheel is installed


def _built(folder: Path, **variables: str) -> Built:
    checkout = _copy(folder / "checkout")
    target = folder / "target"
    build = ["wheel", "--no-build-isolation", "-w", str(folder), str(checkout)]
    _pip(*build, cwd=folder, **variables)
    [wheel] = folder.glob("*.whl")
    _pip("install", "--target", str(target), str(wheel), cwd=folder)
    return Built(checkout, wheel, target)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("building needs setuptools >= 77 in this environment")
    if not (shutil.which("cmake") and (shutil.which("c++") or os.environ.get("CXX"))):
        pytest.skip("no CMake or no C++ compiler here")
    # Unoptimised and for one GPU: what is tested is the way of the libraries, and that
    # takes 20 s less without CUDA and a minute less with it.
    return _built(
        tmp_path_factory.mktemp("native"),
        CMAKE_BUILD_TYPE="Debug",
        CMAKE_ARGS="-DFASTADV_CUDA_ARCHITECTURES=90",
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built where there is no CMake."""
    empty = tmp_path_factory.mktemp("empty")
    folder = tmp_path_factory.mktemp("plain")
    return _built(folder, PATH=str(empty), CC="/none/cc", CXX="/none/c++")


@pytest.mark.slow
def test_the_wheel_holds_everything(native: Built) -> None:
    assert native.wheel.name.startswith("fastadv-")
    assert "-py3-none-linux_" in native.wheel.name
    packed = set(zipfile.ZipFile(native.wheel).namelist())
    sources = [
        path.relative_to(ROOT).as_posix()
        for path in (*ROOT.glob("fastadv/**/*"), *ROOT.glob("kernels/*.py"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    wanted = {p.replace("kernels/", "fastadv/kernels/", 1) for p in sources}
    wanted |= {"fastadv/kernels/fastadv_cpu.so"}
    if shutil.which("nvcc", path=f"{os.environ['PATH']}:/usr/local/cuda/bin"):
        wanted |= {"fastadv/kernels/fastadv_cuda.so"}
    assert {"fastadv/py.typed", "fastadv/reporting/page/report.html"} <= wanted
    assert wanted - packed == set()
    extra = {p for p in packed - wanted if ".dist-info/" not in p}
    assert extra == set()  # no tests, no top-level `kernels`


@pytest.mark.slow
def test_the_installed_wheel_runs_elsewhere(native: Built, tmp_path: Path) -> None:
    found = _operator(tmp_path, native.target)
    assert found["ran"] == ["cpp"]
    assert Path(found["fastadv"]).parent == native.target / "fastadv"
    assert Path(found["kernels"]).parent == native.target / "fastadv" / "kernels"


@pytest.mark.slow
def test_it_runs_in_the_checkout_too(native: Built, plain: Built) -> None:
    """`python -c` puts the working directory first, and ./fastadv has no ./kernels."""
    found = _operator(plain.checkout, native.target)
    assert Path(found["fastadv"]).parent == plain.checkout / "fastadv"
    assert Path(found["kernels"]).parent == plain.checkout / "kernels"  # not a mixture
    assert found["ran"] == ["numba"]


def test_a_bare_checkout_runs(plain: Built) -> None:
    found = _operator(plain.checkout)
    assert Path(found["kernels"]).parent == plain.checkout / "kernels"
    assert found["ran"] == ["numba"]


def test_without_a_compiler_the_install_is_complete(
    plain: Built, tmp_path: Path
) -> None:
    packed = zipfile.ZipFile(plain.wheel).namelist()
    assert "fastadv/kernels/_numba.py" in packed
    assert [name for name in packed if name.endswith(".so")] == []
    found = _operator(tmp_path, plain.target)
    assert found["ran"] == ["numba"]
    assert Path(found["kernels"]).parent == plain.target / "fastadv" / "kernels"
    report = found["doctor"]
    assert report["runs"]["cpu"] == "numba"
    reason = report["backends"]["cpp"]["declines"]
    assert "fastadv_cpu.so was not built (no C++ compiler, CMake or OpenMP" in reason
    assert report["backends"]["numba"]["declines"] is None


def _fake_cmake(folder: Path, body: str) -> str:
    """A PATH on which `cmake` is a script with the build folder in $build."""
    script = folder / "cmake"
    find = 'case "$1" in --build) build="$2";; *) build="";; esac\n'
    script.write_text(f"#!/bin/sh\n{find}{body}\n")
    script.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_a_failing_build_says_so_and_goes_on(tmp_path: Path) -> None:
    path = _fake_cmake(tmp_path, "echo no compiler; exit 1")
    checkout = _copy(tmp_path / "checkout")
    stale = checkout / "kernels" / "fastadv_cpu.so"
    stale.write_bytes(b"of an earlier build")
    words = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = _run(words, checkout, PATH=path)
    assert "the native CPU kernels were not built" in done.stderr
    assert "the Numba backend will be used instead" in done.stderr
    assert "Install a C++ compiler and CMake >= 3.18 and reinstall" in done.stderr
    assert not stale.exists()  # what was built from other sources must not run


def test_an_editable_install_takes_the_library_over(
    native: Built, tmp_path: Path
) -> None:
    """Built into kernels/, and replaced there when it is built again."""
    library = native.target / "fastadv" / "kernels" / "fastadv_cpu.so"
    checkout, target = _copy(tmp_path / "checkout"), tmp_path / "target"
    copying = 'if [ -n "$build" ]; then cp "$LIBRARY" "$build/fastadv_cpu.so"; fi'
    path = _fake_cmake(tmp_path, copying)
    words = ["install", "--no-build-isolation", "--target", str(target), "-e"]
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"not a library")
    built = checkout / "kernels" / "fastadv_cpu.so"
    for source in (wrong, library):
        _pip(
            *words, str(checkout), "--upgrade", cwd=tmp_path, PATH=path, LIBRARY=source
        )
        assert built.read_bytes() == source.read_bytes()
    # A .pth file counts in a site folder only, so the target is made one; its finder
    # has the name of that of the editable install that runs these tests.
    program = PROGRAM.replace(
        "import fastadv, torch",
        "for name in [n for n in sys.modules if n.startswith('__editable__')]:\n"
        "    del sys.modules[name]\n"
        f"sys.path.insert(0, {str(target)!r})\n"
        f"import site; site.addsitedir({str(target)!r})\nimport fastadv, torch",
    )
    found = json.loads(_run([sys.executable, "-c", program], tmp_path).stdout)
    assert Path(found["kernels"]).parent == checkout / "kernels"
    assert found["ran"] == ["cpp"]
    assert found["error"] < 1e-6


def test_the_source_archive_can_be_built_from(tmp_path: Path) -> None:
    checkout = _copy(tmp_path / "checkout")
    _run([sys.executable, "setup.py", "-q", "sdist"], checkout)
    [archive] = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        found = {name.partition("/")[2] for name in packed.getnames()}
    sources = [
        path.relative_to(checkout).as_posix()
        for part in PARTS
        for path in (checkout / part, *(checkout / part).rglob("*"))
        if path.is_file()
    ]
    assert "csrc/cpu/step.cpp" in sources
    assert set(sources) - found == set()


def test_this_environment_was_left_alone() -> None:
    program = (
        "from importlib.util import find_spec as find\n"
        "print(find('fastadv').origin, find('fastadv.kernels').origin)"
    )
    found = _run([sys.executable, "-c", program], Path("/")).stdout.split()
    assert len(found) == 2
    assert [path for path in found if "pytest" in path] == []
