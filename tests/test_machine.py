"""Memory that is kept: a large block freed and taken again costs no page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import sys
import numpy as np
from fastadv.machine import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def use(count):
    for _ in range(count):
        np.ones(16 << 20, dtype=np.float32)  # 64 MiB: 16,384 pages


use(2)
before = faults()
use(10)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_blocks_cost_no_page_faults():
    def faults(how):
        command = [sys.executable, "-c", PROGRAM, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    # Without keeping, each of ten blocks costs 16,384 faults, or 32 where pages are huge.
    kept = faults("keep")
    assert kept < 100
    assert faults("not") > kept + 200  # so the test would notice
