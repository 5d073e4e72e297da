"""Running an attack's steps in larger pieces, where that works: Inductor, CUDA graphs.

Two ways, alone or together. Inductor (`torch.compile`) compiles the network's forward
pass and input gradient. A CUDA graph records all steps of an attack over buffers that stay
where they are, and each further batch is copied in and replayed with one launch. Where
either cannot be had the steps run one by one, and the reason is logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fastadv.attacks.objectives import Context
from fastadv.models.view import AttackView

log = logging.getLogger(__name__)

CompileMode: TypeAlias = Literal["auto", "off", "inductor", "graph", "full"]
"""`auto` is a CUDA graph on CUDA and nothing elsewhere, `full` is Inductor and graph.

On the CPU Inductor was slower (torch 2.15, 2 cores): a step of the attack took 0.68 s
instead of 0.52 on resnet18 (224 px, batch 16), 0.60 instead of 0.48 on resnet18_cifar
(32 px, batch 64).
"""

Tensors: TypeAlias = tuple[Tensor, ...]
Steps: TypeAlias = Callable[..., Tensors]
"""Takes tensors (or None), may overwrite them, returns tensors; reads nothing back."""

Forward: TypeAlias = Callable[[Tensor, Context], tuple[Tensor, Tensor, Tensor]]

COMPILER = "inductor"
"""The backend of `torch.compile`."""

_WAYS = {
    "auto": (),  # but a graph where one can be had
    "off": (),
    "inductor": ("inductor",),
    "graph": ("graph",),
    "full": ("inductor", "graph"),
}
# Compilation takes minutes, a graph holds the memory of an attack. A run has one shape of
# batch, a smaller last one, and may change resolution now and then.
_MOST_SHAPES = 4
_MOST_CAPTURES = 16


@dataclass(frozen=True)
class CompileReport:
    """How an attack's steps have been run.

    Attributes:
        mode: of the last batch: `"eager"`, `"inductor"`, `"graph"` or `"full"`.
        reason: why not as asked for, or None.
        compiled: how often the network was compiled.
        captured: how often a CUDA graph was recorded.
        recompiles: how many of both repeated what had been done for another shape.
    """

    mode: str
    reason: str | None
    compiled: int
    captured: int
    recompiles: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a log."""
        return asdict(self)


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
    # The outer context puts device and stream back, also if recording fails half-way.
    with torch.cuda.stream(current):
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call()  # tunes kernels and makes workspaces, which must not be recorded
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Of other threads (loaders, NCCL's watchdog) nothing is recorded: let them work.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = call()
    free = torch.cuda.mem_get_info(device)[0]
    # Whoever trains needs the memory of a training step beside the graph's.
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


Recorder: TypeAlias = Callable[
    [Callable[[], Tensors], torch.device], Callable[[], Tensors]
]
RECORDERS: dict[str, Recorder] = {"cuda": record_cuda_graph}
"""Device type -> how a call is recorded there."""


class Replay:
    """A recorded attack: inputs go into buffers of its own, results come out as copies.

    Args:
        steps: what is recorded, a function of tensors.
        tensors: of the shapes, dtypes, strides and device to come.

    Raises:
        Exception: whatever recording raises.
    """

    def __init__(self, steps: Steps, tensors: Sequence[Tensor | None]) -> None:
        self._inputs = [t.clone() if t is not None else None for t in tensors]
        device = next(t.device for t in tensors if t is not None)
        self._replay = RECORDERS[device.type](lambda: steps(*self._inputs), device)

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensors:
        """The results of `steps` for `tensors`, which stay as they are."""
        for buffer, given in zip(self._inputs, tensors, strict=True):
            if buffer is not None and given is not None:
                buffer.copy_(given)
        return tuple(result.clone() for result in self._replay())


class Runner:
    """Runs the steps of one attack in the way asked for, or else one by one.

    Args:
        mode: a `CompileMode`.

    Raises:
        ValueError: no mode is called so.
    """

    def __init__(self, mode: CompileMode) -> None:
        if mode not in get_args(CompileMode):
            accepted = ", ".join(get_args(CompileMode))
            raise ValueError(f"compile={mode!r} is unknown; accepted: {accepted}")
        self.mode: CompileMode = mode
        self._ran = "eager"
        self._reason: str | None = None
        self._reasons: set[str] = set()
        self._failed: set[str] = set()
        self._compiled = self._captured = 0
        self._network: tuple[AttackView, Forward] | None = None
        self._shapes: set[Hashable] = set()
        self._compiling = False
        self._replay: tuple[Hashable, Replay] | None = None
        self._last: Hashable = None

    def report(self) -> CompileReport:
        """How the batches so far have been run."""
        repeated = max(self._compiled - 1, 0) + max(self._captured - 1, 0)
        return CompileReport(
            self._ran, self._reason, self._compiled, self._captured, repeated
        )

    def run(
        self,
        view: AttackView,
        steps: Steps,
        tensors: Sequence[Tensor | None],
        *,
        reused: bool,
        constants: Hashable,
    ) -> Tensors:
        """The results of `steps(*tensors)`.

        Args:
            view: what `steps` attacks.
            steps: the whole attack on one batch; calls `forward` for the network.
            tensors: batch, start and labels; `steps` may overwrite them.
            reused: whether `view` will be attacked again.
            constants: everything else the result depends on.
        """
        device = next(t.device for t in tensors if t is not None)
        ways = self._ways(device, reused)
        shapes = tuple(
            None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors
        )
        self._compiling = "inductor" in ways and self._compiles((id(view), shapes))
        try:
            results = None
            if "graph" in ways:
                key = (constants, shapes, device, _addresses(view))
                results = self._replayed(key, steps, tensors)
            recorded = results is not None
            if results is None:
                results = steps(*tensors)
            if recorded:
                self._ran = "full" if self._compiling else "graph"
            else:
                self._ran = "inductor" if self._compiling else "eager"
            return results
        finally:
            self._compiling = False

    def forward(
        self, view: AttackView, eager: Forward, z: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`eager(z, context)`, compiled if this batch is to be; called by the steps."""
        if not self._compiling:
            return eager(z, context)
        if self._network is None or self._network[0] is not view:
            self._network = (view, self._compile(eager))
        try:
            return self._network[1](z, context)
        except Exception as error:  # the compiler's, or else `eager` raises it again
            found = eager(z, context)
            self._fail("inductor", error)
            self._compiling = False
            return found

    # ---- parts ----

    def _ways(self, device: torch.device, reused: bool) -> set[str]:
        ways = set(_WAYS[self.mode])
        if self.mode == "auto" and device.type in RECORDERS:
            ways = {"graph"}
        if "graph" in ways and device.type not in RECORDERS:
            self._explain(
                f"a CUDA graph needs a CUDA device, the images are on {device}"
            )
            ways.discard("graph")
        if ways and not reused:
            self._explain("what is compiled serves one AttackView; a model was given")
            return set()
        return ways - self._failed

    def _explain(self, reason: str) -> None:
        """Keep the reason, and log it the first time; for `auto` it is no loss."""
        self._reason = reason
        if reason not in self._reasons:
            self._reasons.add(reason)
            level = logging.INFO if self.mode == "auto" else logging.WARNING
            log.log(
                level, "compile=%s: %s; attack steps run eagerly", self.mode, reason
            )

    def _fail(self, way: str, error: Exception | str) -> None:
        self._failed.add(way)
        text = str(error).strip().split("\n")[0] or type(error).__name__
        self._explain(f"{way} failed: {text}")

    def _compiles(self, shapes: Hashable) -> bool:
        """Whether the network is compiled for `shapes`, at first sight if at all.

        Not later: then results would depend on what came before, and a resumed run
        would differ from an uninterrupted one.
        """
        if shapes not in self._shapes and len(self._shapes) == _MOST_SHAPES:
            self._explain(
                f"it is compiled for {_MOST_SHAPES} shapes of batches already"
            )
            return False
        self._shapes.add(shapes)
        return True

    def _compile(self, eager: Forward) -> Forward:
        from torch._dynamo import lookup_backend

        compiler = lookup_backend(COMPILER)

        def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            self._compiled += 1
            return compiler(graph, inputs)

        def forward(z: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
            return eager(z, context)

        # Dynamo counts recompilations by code object, of all attacks together.
        forward.__code__ = forward.__code__.replace()
        # In one graph or not at all: pieces of one would hide that little was gained.
        compiled: Forward = torch.compile(
            forward, backend=counted, dynamic=False, fullgraph=True
        )
        return compiled

    def _replayed(
        self, key: Hashable, steps: Steps, tensors: Sequence[Tensor | None]
    ) -> Tensors | None:
        """The results, recorded for this batch or before; None if they are not to be.

        What comes twice in a row is recorded, in place of what was before: the smaller
        last batch of an epoch comes alone, a new resolution does not.
        """
        again, self._last = key == self._last, key
        if self._replay is None or self._replay[0] != key:
            if not again:
                return None
            self._replay = None  # its memory first
            if self._captured == _MOST_CAPTURES:
                self._fail("graph", f"it was recorded {_MOST_CAPTURES} times already")
                return None
            try:
                self._replay = (key, Replay(steps, tensors))
            except Exception as error:  # what is at fault elsewhere, eager steps raise
                self._fail("graph", error)
                return None
            self._captured += 1
        return self._replay[1](tensors)


def _addresses(view: AttackView) -> tuple[int, ...]:
    """Where the weights lie: recorded kernels read them there, whatever a module holds."""
    return tuple(t.data_ptr() for t in (*view.parameters(), *view.buffers()))
