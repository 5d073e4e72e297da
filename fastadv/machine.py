"""How much of this machine may be used. Needs no torch."""

from __future__ import annotations

import ctypes
import os
import platform


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ranks_on_this_machine() -> int:
    """Processes of this run here, as torchrun and its like say it; 1 for one alone."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def available_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Elsewhere nothing simple tells: half of what is built in, or 4 GiB.
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError):
        return 4 << 30


def resident_memory(peak: bool = False) -> int:
    """Bytes of memory this process holds; with `peak`, the most it ever held.

    Elsewhere than on Linux always the peak: nothing simple tells more.
    """
    key = "VmHWM:" if peak else "VmRSS:"
    try:
        with open("/proc/self/status") as lines:
            for line in lines:
                if line.startswith(key):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # not on Windows, where nothing here has run

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def keep_freed_memory() -> bool:
    """Have malloc keep large blocks instead of giving each back to the system.

    glibc maps every block above 32 MiB afresh, and the kernel clears its pages one by one:
    activations of that size cost more to allocate than to write. Kept in the heap, PGD-3 on
    a ResNet-18 takes 12 % less time, on a ResNet-50 8 % (docs/performance.md). It is for
    the whole process, so only commands do it, not the library.

    Returns:
        Whether it took effect: only glibc has it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    max_mmaps, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    return bool(libc.mallopt(max_mmaps, 0) and libc.mallopt(trim_threshold, 2**31 - 1))
