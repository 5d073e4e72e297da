"""Recording what a call launches as a CUDA graph, and giving up without leaving a trace.

A capture that fails is not survived everywhere: torch 2.11 leaves its allocator and its
random generator in the state of capturing, after which no memory is freed, no other graph
can be recorded and dropout raises. So a call that waits for the device, the usual cause,
is refused before the capture begins, and after any other failure the state is put right.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = tuple[Tensor, ...]


def record_cuda_graph(
    call: Callable[[], Tensors], device: torch.device
) -> Callable[[], Tensors]:
    """Record what `call` launches; the result launches it again, on the same memory.

    Raises:
        RuntimeError: `call` waits for the device, or the graph and an eager run of the
            process do not fit into the device's memory together.
    """
    current = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    # The outer context restores device and stream, also if recording fails half-way.
    with torch.cuda.stream(current):
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call()  # tunes kernels and allocates workspaces, which must not be recorded
            with waits_counted() as waits:
                call()
        current.wait_stream(side)
        if waits:
            raise RuntimeError(
                "a step waits for the device, which a CUDA graph cannot record"
            )
        graph, results = _captured(call, side)
    free = torch.cuda.mem_get_info(device)[0]
    # Training needs the memory of a training step beside that of the graph.
    peak = torch.cuda.max_memory_allocated(device)
    needed = peak - torch.cuda.memory_allocated(device)
    if free < needed:
        graph.reset()
        raise RuntimeError(
            f"it would leave {free / 2**30:.1f} GiB, and up to {needed / 2**30:.1f} GiB "
            "have been in use beside it"
        )

    def replay() -> Tensors:
        graph.replay()
        return results

    return replay


@contextlib.contextmanager
def waits_counted() -> Iterator[list[str]]:
    """Collect a message for each time that this thread makes torch wait for the device.

    Other threads may wait as they like; what they are warned of otherwise is shown.
    """
    found: list[str] = []
    thread = threading.get_ident()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, *args: Any, **options: Any) -> None:
            if "synchronizing CUDA operation" not in str(message):
                show(message, *args, **options)
            elif threading.get_ident() == thread:
                found.append(str(message))

        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _captured(
    call: Callable[[], Tensors], stream: torch.cuda.Stream
) -> tuple[torch.cuda.CUDAGraph, Tensors]:
    """Capture `call` on `stream`, whose device is the current one.

    Without a stream of its own torch takes one for the whole process, on the device of
    the first capture; kernels of another device would not be recorded.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.MemPool()
    handle: Any = pool.id  # torch 2.11 takes no pool itself
    try:
        # Other threads (loaders, NCCL's watchdog) go on working and are not recorded.
        with torch.cuda.graph(
            graph, pool=handle, stream=stream, capture_error_mode="thread_local"
        ):
            results = call()
    except BaseException:
        with contextlib.suppress(Exception):  # the error to be told is the first one
            _end_failed_capture(graph, pool, stream)
        raise
    return graph, results


def _end_failed_capture(
    graph: torch.cuda.CUDAGraph, pool: torch.cuda.MemPool, stream: torch.cuda.Stream
) -> None:
    """Do what a version of torch leaves undone when a capture fails.

    torch 2.11 goes on allocating from the pool of the graph, keeps it for ever, and has a
    random generator that is still capturing (pytorch#180395, #190348, #176753).
    """
    graph.reset()
    device = stream.device.index
    with contextlib.suppress(RuntimeError):  # it has ended already
        torch._C._cuda_endAllocateToPool(device, pool.id)
    while pool.use_count() > 1:  # the one that is left is that of `pool` itself
        torch._C._cuda_releasePool(device, pool.id)
    # The end of another capture also ends that of the generator.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty graph is what is wanted
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
            pass
