"""Running the steps of an attack with Inductor or as a CUDA graph, where that works.

Both can be used alone or together. Inductor (`torch.compile`) compiles the network's
forward pass and input gradient. A CUDA graph records all steps of an attack over buffers
that stay where they are; each further batch is copied into them and replayed with one
launch. Where either is not available the steps run one by one, and the reason is logged
once.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fastadv.attacks.engine import Forward
from fastadv.attacks.objectives import Context
from fastadv.attacks.recording import Tensors, record_cuda_graph
from fastadv.device import float32_precision
from fastadv.models.view import AttackView

log = logging.getLogger(__name__)

CompileMode: TypeAlias = Literal["auto", "off", "inductor", "graph", "full"]
"""With `off` steps run one by one, with `inductor` on a network that torch compiled, with
`graph` as one CUDA graph, which keeps the memory of a batch, with `full` both; `auto` is a
graph on CUDA, else off.

On the CPU Inductor was slower (torch 2.15, 2 cores): a step of the attack took 0.68 s
instead of 0.52 on resnet18 (224 px, batch 16), 0.60 instead of 0.48 on resnet18_cifar
(32 px, batch 64).
"""

Inputs: TypeAlias = Sequence[Tensor | None]
Call: TypeAlias = Callable[[Inputs], Tensors]
Steps: TypeAlias = Callable[[Forward, Inputs], Tensors]
"""Runs an attack on one batch, with the given network: returns tensors, may overwrite its
inputs, and never waits for the device."""

COMPILER = "inductor"
"""The backend of `torch.compile`."""

_WAYS = {
    "auto": (),  # a graph where one is available
    "off": (),
    "inductor": ("inductor",),
    "graph": ("graph",),
    "full": ("inductor", "graph"),
}
# Compilation takes minutes, and a graph holds the memory of an attack. A run has one shape
# of batch and a smaller last one, and may change its resolution now and then.
_MOST_SHAPES = 4
_MOST_CAPTURES = 16


@dataclass(frozen=True)
class CompileReport:
    """How the steps of an attack have been run.

    Attributes:
        mode: How the last batch was run: `"eager"`, `"inductor"`, `"graph"` or `"full"`.
        reason: Why the requested mode was not used, or None.
        compiled: Number of compilations of the network.
        captured: Number of recorded CUDA graphs.
        recompiles: Number of both that repeated the work for another shape.
    """

    mode: str
    reason: str | None
    compiled: int
    captured: int
    recompiles: int


RECORDERS = {"cuda": record_cuda_graph}
"""Maps a device type to the function that records a call there."""


def _recorded(call: Call, tensors: Inputs) -> Call:
    """Record `call` for inputs like `tensors`; the result leaves its inputs unchanged."""
    buffers = [None if t is None else t.clone() for t in tensors]
    device = next(t.device for t in tensors if t is not None)
    replay = RECORDERS[device.type](lambda: call(buffers), device)

    def replayed(tensors: Inputs) -> Tensors:
        for buffer, given in zip(buffers, tensors, strict=True):
            if buffer is not None and given is not None:
                buffer.copy_(given)
        return tuple(result.clone() for result in replay())

    return replayed


class Runner:
    """Runs the steps of one attack in the requested mode, or else one by one."""

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
        self._replay: tuple[Hashable, Call] | None = None
        self._last: Hashable = None

    def report(self) -> CompileReport:
        """Return how the batches so far have been run."""
        repeated = max(self._compiled - 1, 0) + max(self._captured - 1, 0)
        return CompileReport(
            self._ran, self._reason, self._compiled, self._captured, repeated
        )

    def run(
        self,
        view: AttackView,
        forward: Forward,
        steps: Steps,
        tensors: Inputs,
        *,
        reused: bool,
        constants: Hashable,
    ) -> Tensors:
        """Return the results of `steps(network, tensors)`, which may overwrite tensors.

        The network is `forward`, the forward pass of `view` with the objective, or the
        same compiled. `reused` tells whether `view` will be attacked again, and
        `constants` is everything else that the results depend on.
        """
        device = next(t.device for t in tensors if t is not None)
        ways = self._ways(device, reused, view)
        shapes = tuple(
            None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors
        )
        network = None
        if "inductor" in ways and self._compiles((id(view), shapes)):
            network = self._compiled_network(view, forward)
        call = partial(steps, network or forward)
        results = None
        if "graph" in ways:
            # Recorded kernels read the weights where they lie now.
            weights = (*view.parameters(), *view.buffers())
            addresses = tuple(t.data_ptr() for t in weights)
            # Another network may have been put where the weights of a former one lay.
            net = weakref.ref(view.net)
            key = (constants, shapes, device, addresses, net, float32_precision())
            results = self._replayed(key, call, tensors)
        recorded = results is not None
        if results is None:
            results = call(tensors)
        compiled = network is not None and "inductor" not in self._failed
        names = ("inductor", "full") if compiled else ("eager", "graph")
        self._ran = names[recorded]
        return results

    # ---- parts ----

    def _ways(self, device: torch.device, reused: bool, view: AttackView) -> set[str]:
        ways = set(_WAYS[self.mode])
        if self.mode == "auto" and device.type in RECORDERS:
            ways = {"graph"}
        if "graph" in ways and device.type not in RECORDERS:
            self._explain(
                f"a CUDA graph needs a CUDA device, the images are on {device}"
            )
            ways.discard("graph")
        if ways and view.live_reason is not None:
            self._explain("a LiveView calls the model itself in every pass")
            return set()
        if ways and view.tracks:
            self._explain("recording it would count some batches twice in BatchNorm")
            return set()
        if ways and not reused:
            self._explain("what is compiled serves one AttackView; a model was given")
            return set()
        return ways - self._failed

    def _explain(self, reason: str) -> None:
        """Keep the reason and log it once, as a warning unless the mode is `auto`."""
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
        """Return whether the network is compiled for `shapes`.

        That is decided when they are seen first. Were it decided later, results would
        depend on the batches before, and a resumed run would differ from an
        uninterrupted one.
        """
        if shapes not in self._shapes and len(self._shapes) == _MOST_SHAPES:
            self._explain(
                f"it is compiled for {_MOST_SHAPES} shapes of batches already"
            )
            return False
        self._shapes.add(shapes)
        return True

    def _compiled_network(self, view: AttackView, eager: Forward) -> Forward:
        """Return the forward pass of `view` compiled, which is done once for each view.

        The eager one takes over when compilation fails.
        """
        if self._network is not None and self._network[0] is view:
            return self._network[1]
        from torch._dynamo import lookup_backend

        compiler = lookup_backend(COMPILER)

        def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            self._compiled += 1
            return compiler(graph, inputs)

        def forward(z: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
            return eager(z, context)

        # Dynamo counts recompilations by code object, for all attacks together.
        forward.__code__ = forward.__code__.replace()
        # One graph or none: several pieces of it would hide that little was gained.
        compiled = torch.compile(
            forward, backend=counted, dynamic=False, fullgraph=True
        )

        def network(z: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
            if "inductor" in self._failed:
                return eager(z, context)
            try:
                found: tuple[Tensor, Tensor, Tensor] = compiled(z, context)
            except Exception as error:
                found = eager(z, context)  # raises again if the network is at fault
                self._fail("inductor", error)
            return found

        self._network = (view, network)
        return network

    def _replayed(self, key: Hashable, call: Call, tensors: Inputs) -> Tensors | None:
        """Return the results of a recording, made now or before; None without one.

        A kind of batch is recorded when it comes twice in a row, in place of the one
        before. So a new resolution is recorded, but not the smaller last batch of an
        epoch, which comes alone.
        """
        again, self._last = key == self._last, key
        if self._replay is None or self._replay[0] != key:
            if not again:
                return None
            self._replay = None  # frees its memory first
            if self._captured == _MOST_CAPTURES:
                self._fail("graph", f"it was recorded {_MOST_CAPTURES} times already")
                return None
            try:
                self._replay = (key, _recorded(call, tensors))
            except Exception as error:  # eager steps raise any that is not recording's
                self._fail("graph", error)
                return None
            self._captured += 1
        return self._replay[1](tensors)
