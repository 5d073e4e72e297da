"""Cores and memory of this machine. This module needs no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ranks_on_this_machine() -> int:
    """Return how many ranks of this run are on this machine; 1 without torchrun."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def platform_support() -> str:
    """Return the name of this platform, and how far fastadv is tested on it."""
    name, machine = platform.system(), platform.machine()
    if name == "Linux" and machine in ("x86_64", "AMD64"):
        return f"{name} {machine}: supported and tested"
    if name == "Linux":
        return (
            f"{name} {machine}: not tested; kernels are compiled, or Numba's are used"
        )
    if name == "Darwin":
        return (
            f"macOS {machine}: not tested; expected to work on the CPU, where memory is "
            "estimated and workers cannot ignore SIGTERM"
        )
    return (
        f"{name} {machine}: not tested; files are not locked, so two runs must not share a "
        "folder, and a run is stopped by Ctrl-C alone. Linux, or WSL on Windows, is supported"
    )


def _linux_memory(path: str, key: str) -> int | None:
    """Return a number of bytes that Linux reports under `key`; None elsewhere."""
    with contextlib.suppress(OSError), open(path) as lines:
        for line in lines:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None


def available_memory() -> int:
    """Return the bytes of memory that are available without swapping."""
    found = _linux_memory("/proc/meminfo", "MemAvailable:")
    if found is not None:
        return found
    # No simple call reports it elsewhere: half of what is built in, or 4 GiB.
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 4 << 30


def resident_memory(peak: bool = False) -> int:
    """Return the bytes that this process holds, or with `peak` the most it ever held.

    On systems other than Linux it is always the peak, and on Windows 0.
    """
    found = _linux_memory("/proc/self/status", "VmHWM:" if peak else "VmRSS:")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def keep_freed_memory() -> bool:
    """Have malloc keep large blocks instead of giving each back to the system.

    glibc maps every block above 32 MiB afresh, and the kernel clears its pages one by one:
    activations of that size cost more to allocate than to write. Kept in the heap, PGD-3 on
    a ResNet-18 takes 12 % less time, on a ResNet-50 8 % (docs/performance.md). The setting
    is for the whole process, so only commands make it, not the library.

    Returns:
        Whether it took effect, which it does with glibc alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    max_mmaps, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    return bool(libc.mallopt(max_mmaps, 0) and libc.mallopt(trim_threshold, 2**31 - 1))
