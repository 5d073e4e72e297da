"""Builds the native kernels with CMake; everything else is in pyproject.toml.

A machine without a compiler still gets a working install: the failure is printed, the
library is left out, and `fastadv-doctor` says which backend runs instead and why.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds CMakeLists.txt into the `kernels` package."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + ".so"  # not tied to one Python

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)
        try:
            with tempfile.TemporaryDirectory() as folder:
                subprocess.run(["cmake", "-S", ROOT, "-B", folder], check=True)
                subprocess.run(["cmake", "--build", folder, "-j2"], check=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(folder) / target.name, target)
        except (OSError, subprocess.CalledProcessError) as error:
            print(
                f"fastadv: the native CPU kernels were not built ({error}); the Numba "
                "backend will be used instead. Install a C++ compiler and CMake >= 3.18 "
                "and reinstall to get them.",
                file=sys.stderr,
            )

    def copy_extensions_to_source(self):
        # Editable installs: the library of an earlier build must not outlive a failure.
        (ROOT / "kernels" / "fastadv_cpu.so").unlink(missing_ok=True)
        super().copy_extensions_to_source()


class AnyPythonWheel(bdist_wheel):
    """The library speaks plain C, so one wheel per platform serves every Python 3."""

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    # Optional: an install without the library is complete, only slower.
    ext_modules=[Extension("fastadv.kernels.fastadv_cpu", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
