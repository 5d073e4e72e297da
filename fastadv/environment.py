"""The software, hardware and commit that a result was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from fastadv import __version__
from fastadv.device import float32_precision
from fastadv.machine import usable_cores

PACKAGES = ("torch", "torchvision", "triton", "numba", "numpy", "nvidia-dali-cuda130")


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the name of the processor, or its architecture where that is not known."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit of fastadv's checkout, with `+` if files differ; None without.

    Where the checkout travels without its history, FASTADV_COMMIT names it.
    """
    if named := os.environ.get("FASTADV_COMMIT"):
        return named
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def provenance() -> dict[str, Any]:
    """Return the software and hardware of this process as plain values."""
    facts: dict[str, Any] = {
        "fastadv": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        facts["float32"] = f"{float32_precision()} in training, ieee in verdicts"
    return facts
