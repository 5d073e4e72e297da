"""Launch configurations of the Triton kernels: a default, or measured and kept.

Nothing is measured unless FASTADV_TUNE=1 is set. Then the first call of each kind
(`Task`) times the candidates and the choice is kept on disk, one small JSON file per
kind, in a folder per fastadv version, Triton version and device. Later processes read
it, with the variable or without. This module needs neither torch nor Triton: `_triton.py`
decides what runs where and measures how long it takes.

A choice of another `sum_width` or `block` adds up in another order, so an L2 step may
differ in its last bit; the same choice gives the same bits.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastadv import __version__
from fastadv.files import fastadv_cache_dir, replace_file

ENV_VAR = "FASTADV_TUNE"
MAX_PARTS = 512
# Two timings of one configuration may differ by this share without meaning anything.
NOISE = 0.02

log = logging.getLogger(__name__)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class LaunchConfig:
    """How much work one program does, and one launch.

    Attributes:
        block: Elements of an elementwise program: 4 per thread, so that a float32 load
            is 16 bytes per thread, a bfloat16 load 8 and a uint8 load 4, all of them
            coalesced (8 per thread would split the float32 loads in two).
        num_warps: Warps of a program. With about 48 registers a thread an SM holds 5
            programs of 8 warps. Their 28 bytes per thread in flight (x, x0, bfloat16
            gradient) make 36 KB; 3.35 TB/s x 600 ns asks for 15 KB of each of an H100's
            132 SMs.
        sum_width: Elements of one partial sum. Images of 224 px make 37 programs per
            sample, so a batch of 8 already fills 132 SMs twice.
        l2_share: The share of the L2 cache that the images of one group of samples may
            fill; the passes of an L2 step then run group by group, and all but the
            first read from the cache. 0 runs whole batches. It is 0 because groups are
            small launches: half of an H100's 50 MB is read in 8 us, of which the ramp
            up and down of a launch takes a good part, so less than the 35 % of the
            bytes that it spares is to be had there. Parts with a large cache for their
            bandwidth gain more; a measurement decides.

    Raises:
        ValueError: No kernel can be launched with these values.
    """

    block: int = 1024
    num_warps: int = 8
    sum_width: int = 4096
    l2_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("block", "num_warps", "sum_width"):
            value = getattr(self, name)
            if type(value) is not int or value < 1 or value != power_of_two(value):
                raise ValueError(f"{name}={value!r} must be a power of two")
        if self.block > 65536 or self.num_warps > 32 or self.sum_width < self.block:
            raise ValueError(
                f"{self} must have block <= 65536 and <= sum_width, num_warps <= 32"
            )
        if type(self.l2_share) not in (int, float) or not 0 <= self.l2_share <= 1:
            raise ValueError(f"l2_share={self.l2_share!r} must be in [0, 1]")

    def width(self, row: int) -> int:
        """Return the elements per partial sum for samples of `row` elements.

        It is a power of two. Each program of a later pass reads all of its sample's sums
        (24 bytes each), so on huge images wider tiles keep them at `MAX_PARTS`.
        """
        return max(self.sum_width, power_of_two(math.ceil(row / MAX_PARTS)))

    def group(self, samples: int, sample_bytes: int, cache_bytes: int) -> int:
        """Return the samples per group, of `samples` that take `sample_bytes` each."""
        if not self.l2_share:
            return samples
        fitting = int(self.l2_share * cache_bytes) // sample_bytes
        return min(samples, max(1, fitting))


DEFAULT = LaunchConfig()


def candidates(
    norm: str, samples: int, sample_bytes: int, cache_bytes: int
) -> Iterator[LaunchConfig]:
    """Yield the candidates to time: the default, then all with a reason to be faster."""
    # 4, 8 and 16 elements per thread: more bytes in flight against more programs.
    shapes = ((1024, 8), (1024, 4), (2048, 8), (2048, 4), (4096, 8))
    widths, shares = (
        ((4096, 16384), (0.0, 0.25, 0.5)) if norm == "l2" else ((4096,), (0.0,))
    )
    seen = set()
    for (block, warps), width, share in itertools.product(shapes, widths, shares):
        config = LaunchConfig(block, warps, width, share)
        group = config.group(samples, sample_bytes, cache_bytes)
        if (block, warps, width, group) not in seen:
            seen.add((block, warps, width, group))
            yield config


@dataclass(frozen=True)
class Platform:
    """The software and the device that a choice is made for.

    Attributes:
        triton: Version of Triton.
        device: Name of the GPU, as its driver gives it.
        capability: Compute capability such as `"9.0"`, or ROCm's architecture.
        cache_bytes: Size of its L2 cache.
    """

    triton: str
    device: str
    capability: str
    cache_bytes: int


@dataclass(frozen=True)
class Task:
    """Calls that cost alike, and so share a choice.

    `samples` and `row` (elements per sample) are powers of two, rounded up: the last
    batch of an epoch or another crop does not ask for a choice of its own.
    """

    op: str
    norm: str
    layout: str
    dtypes: str
    samples: int
    row: int


def _key(task: Task, platform: Platform) -> dict[str, Any]:
    return {
        "fastadv": __version__,
        "triton": platform.triton,
        "device": platform.device,
        "capability": platform.capability,
        **asdict(task),
    }


def choice_file(task: Task, platform: Platform) -> Path:
    """Return the file of a choice; software and device make the folder's name."""
    parts = [
        re.sub(r"[^A-Za-z0-9.-]+", "-", str(value))
        for value in _key(task, platform).values()
    ]
    folder, name = "_".join(parts[:4]), "_".join(parts[4:])
    return fastadv_cache_dir() / "triton" / folder / f"{name}.json"


def _read(task: Task, platform: Platform) -> LaunchConfig | None:
    """Return the choice on disk; a damaged file is reported and counts as absent."""
    path = choice_file(task, platform)
    try:
        found = json.loads(path.read_bytes())
        if found["key"] != _key(task, platform):
            raise ValueError("made for something else")
        return LaunchConfig(**found["config"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning(
            "ignoring %s (%s: %s), using the default launch configuration; "
            "%s=1 measures and writes it again",
            path,
            type(error).__name__,
            error,
            ENV_VAR,
        )
        return None


def _keep(
    task: Task, platform: Platform, times: dict[LaunchConfig, float]
) -> LaunchConfig:
    """Write the fastest to disk, or the default where the gain is within the noise."""
    best = min(times, key=times.__getitem__)
    if DEFAULT in times and times[best] > (1 - NOISE) * times[DEFAULT]:
        best = DEFAULT
    record = {
        "key": _key(task, platform),
        "config": asdict(best),
        "milliseconds": times[best],
        "default_milliseconds": times.get(DEFAULT),
    }
    path = choice_file(task, platform)
    log.info("%s: chose %s of %d candidates", path.stem, record, len(times))
    try:
        replace_file(path, json.dumps(record, indent=1).encode())
    except OSError as error:
        log.warning(
            "cannot keep a launch configuration in %s (%s); set FASTADV_CACHE to a "
            "writable folder",
            path,
            error,
        )
    return best


_chosen: dict[tuple[Task, Platform], LaunchConfig] = {}


def choose(
    task: Task,
    platform: Platform,
    measure: Callable[[], dict[LaunchConfig, float]] | None = None,
) -> LaunchConfig:
    """Return the configuration for `task`: from disk, measured now, or the default.

    Args:
        task: Kind of the call.
        platform: Where it runs.
        measure: Function that returns the milliseconds of each candidate that runs, the
            default first; it is called when nothing is on disk. None measures nothing.
    """
    known = _chosen.get((task, platform))
    if known is None:
        known = _read(task, platform)
        if known is None and measure is not None:
            times = measure()
            known = _keep(task, platform, times) if times else None
        known = known or DEFAULT
        # A call that may not measure now does not settle it for those that may.
        if measure is not None or not wanted():
            _chosen[task, platform] = known
    return known


def wanted() -> bool:
    """Return whether FASTADV_TUNE asks for measurements."""
    return os.environ.get(ENV_VAR, "0").lower() in ("1", "true", "yes", "on")
