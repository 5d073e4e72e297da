"""The fused step against eager PyTorch, torch.compile and the speed of the memory.

    python bench/bench_pgd_step.py [--batches 8 16 64] [--device cpu] [--repeats 9]
        [--compile-batches 64]

Two jobs: `step` updates float32 images from a float32 gradient; `step+normalize` also
undoes the normalisation in the gradient and writes the next normalised input, which is
what an attack needs. Bytes are what must cross the memory bus once: 16 or 20 an element.
(L2 takes two passes; the second finds the sample in cache and is not counted.)

Two ceilings. `copy` is `copy_` of as many bytes. `triad`, CPU only, has the very streams of
the step (three reads, one or two writes, x in place) without its arithmetic, tuned with
prefetching and, where that is faster, stores past the caches. It is called without the
dispatcher, and so is the step it is compared with (`kernel`): what `fastadv` takes longer
than `kernel` is the way through PyTorch and Python.

Every call finds cold caches, as after the network pass that precedes it in an attack: on
the CPU a buffer larger than they are is read in between, on a GPU the calls of a CUDA graph
go over sets of buffers that its L2 does not hold together. What the host takes to launch a
call stands beside it (`host_us`).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results, Timing, buffer_sets, device_timing, interleaved, ratio

from fastadv.kernels import _cpp, launch_counts, pgd_step_, reset_launch_counts
from fastadv.kernels.step import Step
from fastadv.models import IMAGENET_MEAN, IMAGENET_STD

CHANNELS, SIDE = 3, 224
EVICTING = 2**26  # bytes; twice what a Zen 4 chiplet caches


def eager_step(
    x: Tensor, x0: Tensor, g: Tensor, norm: str, step: float, eps: float
) -> Tensor:
    """Compute the step as attack libraries write it, one operation at a time."""
    if norm == "linf":
        x = x + step * g.sign()
        return torch.clamp(x0 + torch.clamp(x - x0, -eps, eps), 0, 1)
    length = g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    delta = x + step * g / (length + 1e-10) - x0
    size = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    delta = delta * (eps / size.clamp_min(1e-12)).clamp(max=1)
    return torch.clamp(x0 + delta, 0, 1)


def eager_full(
    x: Tensor,
    x0: Tensor,
    g: Tensor,
    norm: str,
    step: float,
    eps: float,
    mean: Tensor,
    std: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute the step between two normalisations, as an attack needs it."""
    x = eager_step(x, x0, g / std, norm, step, eps)
    return x, (x - mean) / std


def copy_cases(total_bytes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return source and destination of a copy that moves `total_bytes`, half each way."""
    source = torch.ones(total_bytes // 8, device=device)
    return source, torch.empty_like(source)


def with_cold_caches(
    cases: dict[str, Callable[[], object]], device: torch.device
) -> dict[str, Callable[[], object]]:
    """Return the cases, each after one that empties the caches."""
    buffer = torch.ones(EVICTING // 4, device=device)
    return {
        name: call
        for case, job in cases.items()
        for name, call in ((f"evict {case}", buffer.sum), (case, job))
    }


def triad_cases(size: int, full: bool) -> dict[str, Callable[[], object]]:
    """Return cases with the memory traffic of a step on float32 arrays of `size`."""
    x, a, b = (torch.rand(size) for _ in range(3))
    z = torch.empty(size) if full else None
    cases = {"triad": lambda: _cpp.triad(x, a, b, z, stream=False)}
    if full:
        cases["triad_past_caches"] = lambda: _cpp.triad(x, a, b, z, stream=True)
    return cases


def share_of_triad(times: dict[str, Timing]) -> dict[str, Any]:
    """Compare the kernel with the faster triad, with the range over the repeats."""
    triads = [t for name, t in times.items() if name.startswith("triad")]
    if not triads:
        return {}
    best = min(triads, key=lambda t: t.median)
    share, low, high = ratio(best, times["kernel"])
    return {
        "share_of_triad": share,
        "share_of_triad_range": [round(low, 3), round(high, 3)],
    }


def bench(
    results: Results,
    batch: int,
    norm: str,
    layout: str,
    job: str,
    device: torch.device,
    options: argparse.Namespace,
) -> None:
    order = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}[
        layout
    ]
    generator = torch.Generator().manual_seed(0)
    shape = (batch, CHANNELS, SIDE, SIDE)
    eps, step = (3.0, 2.0) if norm == "l2" else (4 / 255, 1 / 255)
    full = job == "step+normalize"
    mean = torch.tensor(IMAGENET_MEAN if full else (0.0,) * 3, device=device)
    std = torch.tensor(IMAGENET_STD if full else (1.0,) * 3, device=device)
    m4, s4 = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
    # Tensors: numbers would be written into new ones at each call, by a kernel each.
    steps = torch.full((batch,), step, device=device)
    radii = torch.full((batch,), eps, device=device)
    # x is read and written, x0 and g are read, z is written: 16 or 20 bytes an element.
    element = 20 if full else 16
    moved = math.prod(shape) * element
    torch._dynamo.reset()
    args = (norm, step, eps, m4, s4) if full else (norm, step, eps)
    eager = eager_full if full else eager_step
    compiled = torch.compile(eager, dynamic=False)
    chosen = options.compile_batches
    compiles = chosen is None or batch in chosen

    def images() -> Tensor:
        made = torch.rand(shape, generator=generator)
        return made.to(device).contiguous(memory_format=order)

    def cases() -> dict[str, Callable[[], object]]:
        """Return every case on buffers of its own."""
        x0, g = images(), images() - 0.5
        x = x0.clone()
        z = torch.empty_like(x) if full else None
        source, destination = copy_cases(moved, device)
        operands = Step(x, x0, g, steps, radii, mean, std, norm, z)
        made: dict[str, Callable[[], object]] = {
            "copy": lambda: destination.copy_(source),
            "eager": lambda: eager(x, x0, g, *args),
            "fastadv": lambda: pgd_step_(
                x, x0, g, norm=norm, step_size=steps, eps=radii, mean=mean, std=std, z=z
            ),
        }
        if compiles:
            made["compile"] = lambda: compiled(x, x0, g, *args)
        if device.type == "cpu":
            made |= triad_cases(x.numel(), full)
            made["kernel"] = lambda: _cpp.step(operands)
        return made

    sets = [cases() for _ in range(buffer_sets(moved, device))]
    names = [*sets[0]]
    reset_launch_counts()
    if device.type == "cuda":
        times = {
            name: device_timing(
                [each[name] for each in sets], repeats=options.repeats, device=device
            )
            for name in names
        }
    else:
        cold = with_cold_caches(sets[0], device)
        timings = interleaved(cold, repeats=options.repeats, warmup=3, device=device)
        times = {name: timings[name] for name in names}
    ((backend, _),) = launch_counts()
    ours = times["fastadv"]
    bandwidth = moved / times["copy"].median
    triad = share_of_triad(times)
    faster = {}
    for name in ("eager", "compile"):
        if name in times:
            middle, low, high = ratio(times[name], ours)
            faster[f"faster_than_{name}"] = middle
            faster[f"faster_than_{name}_range"] = [round(low, 3), round(high, 3)]
    results.add(
        device=str(device),
        backend=backend,
        norm=norm,
        layout=layout,
        job=job,
        batch=batch,
        bytes_per_element=element,
        ms={name: round(1e3 * t.median, 4) for name, t in times.items()},
        ms_range={
            name: [round(1e3 * t.low, 4), round(1e3 * t.high, 4)]
            for name, t in times.items()
        },
        host_us={
            name: round(1e6 * t.host[0], 1) for name, t in times.items() if t.host
        },
        gb_per_s=moved / ours.median / 1e9,
        copy_gb_per_s=bandwidth / 1e9,
        share_of_copy=times["copy"].median / ours.median,
        **triad,
        **faster,
        repeats=options.repeats,
    )
    print(
        f"{norm:5}{layout:14}{job:15}{batch:4}  {1e3 * ours.median:8.2f} ms "
        f"{moved / ours.median / 1e9:6.1f} GB/s"
        f" {100 * times['copy'].median / ours.median:4.0f} % of copy  "
        f"{100 * triad.get('share_of_triad', math.nan):4.0f} % of triad  "
        + "  ".join(
            f"{faster[f'faster_than_{name}']:5.2f} x {name}"
            for name in ("eager", "compile")
            if name in times
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--compile-batches",
        type=int,
        nargs="*",
        help="batches that are compared with torch.compile, which takes seconds each; "
        "with nothing behind it none is, by default all are",
    )
    parser.add_argument("--name", default="pgd_step")
    options = parser.parse_args()
    results = Results(options.name)
    for job in ("step", "step+normalize"):
        for norm in ("l2", "linf"):
            for layout in ("nchw", "channels_last"):
                for batch in options.batches:
                    device = torch.device(options.device)
                    bench(results, batch, norm, layout, job, device, options)
    results.write()


if __name__ == "__main__":
    main()
