"""Build the native kernels with CMake; everything else is in pyproject.toml.

A machine without a compiler still gets a working install: the failure is printed, the
library is left out, and `fastadv-doctor` says which backend runs instead and why. The
environment variable FASTADV_CUDA=OFF leaves the CUDA kernels out, which otherwise are
built where nvcc is; CMAKE_ARGS goes to CMake.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Library -> what runs in its place, and what it takes to build it.
LIBRARIES = {
    "fastadv_cpu": (
        "the native CPU kernels were not built ({}); the Numba backend will be used "
        "instead. Install a C++ compiler and CMake >= 3.18 and reinstall to get them."
    ),
    "fastadv_cuda": (
        "the CUDA kernels were not built ({}); the Triton backend will serve NVIDIA "
        "GPUs instead. Install the CUDA toolkit and CMake >= 3.18 and reinstall to get "
        "them."
    ),
}


def find_nvcc():
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    named = os.environ.get("CUDACXX") or shutil.which("nvcc")
    return named or shutil.which("nvcc", path=f"{home}/bin")


def configuration(library):
    """Return CMake's options for one library, so that neither's failure is the other's."""
    if library == "fastadv_cpu":
        cuda = ["-DFASTADV_CUDA=OFF"]
    elif nvcc := find_nvcc():
        cuda = ["-DFASTADV_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    else:
        raise FileNotFoundError("no nvcc")
    return [*shlex.split(os.environ.get("CMAKE_ARGS", "")), *cuda]


class CMakeBuild(build_ext):
    """Build the libraries of CMakeLists.txt into the `kernels` package."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + ".so"  # not tied to one Python

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)
        library = target.stem
        if library == "fastadv_cuda" and os.environ.get("FASTADV_CUDA") == "OFF":
            return
        try:
            with tempfile.TemporaryDirectory() as folder:
                configure = ["cmake", "-S", ROOT, "-B", folder]
                subprocess.run([*configure, *configuration(library)], check=True)
                build = ["cmake", "--build", folder, "--target", library, "-j2"]
                subprocess.run(build, check=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(folder) / target.name, target)
        except (OSError, subprocess.CalledProcessError) as error:
            print("fastadv:", LIBRARIES[library].format(error), file=sys.stderr)

    def copy_extensions_to_source(self):
        # Editable installs: the library of an earlier build must not outlive a failure.
        for library in LIBRARIES:
            (ROOT / "kernels" / f"{library}.so").unlink(missing_ok=True)
        super().copy_extensions_to_source()


class AnyPythonWheel(bdist_wheel):
    """The library speaks plain C, so one wheel per platform serves every Python 3."""

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    # Optional: an install without the libraries is complete, only slower.
    ext_modules=[
        Extension(f"fastadv.kernels.{library}", sources=[], optional=True)
        for library in LIBRARIES
    ],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
