"""The attack view of a model: what an attack differentiates instead of the model.

It freezes the parameters (no weight gradients are computed), folds evaluation-mode
BatchNorm into the convolution before it, and never touches the model: its mode,
statistics and `.grad` stay as they were, unless it is made to track statistics. Where it
turns out to compute something else than the model, it calls the model itself.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from fastadv.device import differentiable
from fastadv.kernels import normalize
from fastadv.kernels.pixels import to_pixels
from fastadv.models.agreement import Agreement, compared
from fastadv.models.calling import caches_of, evaluating, first_line, lacks_gradient
from fastadv.models.folding import (
    FrozenNorm,
    affine_maps,
    fold_norms,
    fold_weights,
    forget_source,
    own_tensor,
    trace,
)
from fastadv.models.intermediate import EMBEDDING, cut, in_order, recording
from fastadv.models.normalized import NormalizedModel, only_normalizes
from fastadv.models.quick_convs import Frozen, rewrite_convs

log = logging.getLogger(__name__)


class AttackView(nn.Module):
    """A frozen, folded, evaluation-mode image of `model` that follows its weights.

    Args:
        model: The model under attack. Anything that is not a `NormalizedModel` is taken
            to accept [0, 1] images (mean 0, std 1).
        mode: `"eval"` uses running BatchNorm statistics and folds them; `"train"` uses
            the statistics of the batch, unfolded, on copies of the buffers. Dropout and
            the like are off in both.
        tracks: Whether passes in mode `"train"` also update the running statistics of
            the model's BatchNorm, as the attacks of the published single-step methods do.
        dtype: Compute dtype of the network (float32, bfloat16, ...); None keeps the
            model's.
        fold: Fold BatchNorm in mode `"eval"`. Without it every module is called as it is,
            so that `activations` reaches also what would be folded away.
        exact_input: Keep normalised images, and the first convolution, in float32 where
            the network computes in a shorter dtype, which would round away a small
            perturbation; see `ThreatModel.survives`.

    Attributes:
        input_dtype: Dtype of the normalised images.
        folded: Number of BatchNorm layers folded away.
        unfolded: The reason why each other BatchNorm of the graph was not, by its name.
        unfolded_reason: The reason why the graph could not be folded, or None.
        live_reason: The reason why the model itself is called in place of a copy of it, or
            None.
        agreement: What the comparison with the model found, if it was made.
        no_gradient: Why no gradient of the outputs reaches the images, or None where one
            does or where nobody has looked.
    """

    @differentiable
    def __init__(
        self,
        model: nn.Module,
        *,
        mode: Literal["eval", "train"] = "eval",
        tracks: bool = False,
        dtype: torch.dtype | None = None,
        fold: bool = True,
        exact_input: bool = False,
    ) -> None:
        super().__init__()
        if mode not in ("eval", "train"):
            raise ValueError(f"mode={mode!r} is unknown; accepted: eval, train")
        self._hold(model)
        self.mode, self.tracks = mode, tracks and mode == "train"
        self._dtype = dtype
        self._folds: dict[str, str] = {}  # by convolution, the BatchNorm behind it
        self.unfolded: dict[str, str] = {}
        self.unfolded_reason: str | None = None
        self._cuts: dict[tuple[str, ...], tuple[fx.GraphModule, tuple[str, ...]]] = {}
        # The model's parameters when they were followed last, and their versions then.
        self._seen: tuple[list[Tensor], int] = [], 0
        # A copy of the modules that shares every tensor with the model.
        tensors = (*self.live.parameters(), *self.live.buffers())
        memo: dict[int, Any] = {id(t): t for t in tensors}
        for held in caches_of(self.live):  # what a network computed of its weights
            memo |= {id(held): {}}
        self.net = copy.deepcopy(self.live, memo).eval()
        if mode == "train":
            for module in self.net.modules():  # but no dropout: it would be noise
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            self.unfolded_reason = "BatchNorm in train mode uses batch statistics"
        elif not fold:
            self.unfolded_reason = "folding was not wanted"
        else:
            self._fold_graph()
        self.input_dtype, self._first = self.dtype, ""
        if exact_input and self.dtype in (torch.bfloat16, torch.float16):
            self._keep_input()
        self.refresh()

    def _hold(self, model: nn.Module) -> None:
        """Remember the model, and the network in it that takes normalised images."""
        self._normalized = only_normalizes(model)
        net = cast(nn.Module, model.net) if self._normalized else model
        # In tuples, so that the live model is not registered as a child of the view.
        self._live, self._model = (net,), (model,)
        self.live_reason: str | None = None
        self.agreement: Agreement | None = None
        self.no_gradient: str | None = None

    @differentiable
    def compare(self, x: Tensor) -> Agreement:
        """Compare the view with the model on a few images, the first time it is called.

        Where they differ, and where the model draws random numbers, of which a copy of its
        graph would hold a single draw, the view calls the model itself from now on, and a
        warning says so. This takes one and a half passes of the model and one of the view
        over at most 16 images.

        Args:
            x: Images [N, C, H, W], uint8 or float in [0, 1].
        """
        if self.agreement is None:
            found = self.agreement = compared(self, x)
            if found.reason is not None and self.live_reason is None:
                log.warning(
                    "%s; attacks call the model itself, which is slower", found.reason
                )
                self._use_live(found.reason)
            self.no_gradient = found.no_gradient
        return self.agreement

    def _use_live(self, reason: str) -> None:
        """Call the model itself from now on."""
        self.live_reason = self.unfolded_reason = reason
        self._folds, self._cuts, self.unfolded = {}, {}, {}
        self.net = self.live
        self.input_dtype = next(self.live.parameters(), torch.zeros(())).dtype

    @torch.no_grad()
    def logits_of_model(self, x: Tensor) -> Any:
        """Return what the model itself outputs in evaluation mode, whatever the view is.

        Args:
            x: Images [N, C, H, W], uint8 or float in [0, 1].
        """
        model = self._model[0]
        if self._normalized:
            dtype = next(self.live.parameters(), torch.zeros(())).dtype
            mean, std = self.statistics(x.shape[1])
            x = normalize(x, mean=mean, std=std, dtype=dtype)
            model = self.live
        else:
            x = to_pixels(x, torch.float32)
            like = next(model.parameters(), x)
            x = x.to(like.dtype) if like.is_floating_point() else x
        with evaluating(model):
            return model(x)

    def _keep_input(self) -> None:
        """Let the first convolution compute in float32, if there is one."""
        convs = (n for n, m in self.net.named_modules() if isinstance(m, nn.Conv2d))
        self._first = next(convs, "")
        if not self._first:
            log.info("there is no convolution that could read the input in float32")
            return
        first = self.net.get_submodule(self._first)
        first.register_forward_pre_hook(_in_float32)
        first.register_forward_hook(partial(_returned_in, self.dtype))
        self.input_dtype = torch.float32

    @property
    def live(self) -> nn.Module:
        """The network whose weights the view follows."""
        return self._live[0]

    @property
    def given(self) -> nn.Module:
        """The model that the view was made of."""
        return self._model[0]

    @property
    def folded(self) -> int:
        """Number of BatchNorm layers folded into a convolution."""
        return len(self._folds)

    def _fold_graph(self) -> None:
        if any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks
            for m in self.live.modules()
        ):
            self.unfolded_reason = "the network has hooks"
            return
        try:
            graph = trace(self.net)
        except Exception as error:  # fx raises whatever the traced code raises
            self.unfolded_reason = f"torch.fx cannot trace it: {error}"
            log.info("attack view not folded: %s", self.unfolded_reason)
            return
        self._folds, self.unfolded = fold_norms(graph)
        rewrite_convs(graph)
        graph.delete_all_unused_submodules()
        graph.recompile()
        forget_source(graph)
        self.net = graph

    @differentiable
    @torch.no_grad()
    def refresh(self) -> None:
        """Follow the model's present weights and statistics.

        Unfolded tensors are shared, so only folded convolutions (and casts to another
        dtype) cost anything: one pass over the weights.
        """
        if self.live_reason is not None:
            return
        held: list[Tensor] = [p for p in self.live.parameters() if not p.is_inference()]
        self._seen = held, _versions(held)
        for cache in caches_of(self.net):
            cache.clear()
        live = dict(self.live.named_modules())
        mine = list(self.net.named_modules())
        # Cuts share the layers, but hold parameters outside of layers by themselves.
        shared = {id(module) for _, module in mine}
        for graph, _ in self._cuts.values():
            own = graph.named_modules()
            mine += [(name, module) for name, module in own if id(module) not in shared]
        mine = [(name, module) for name, module in mine if name in live]
        maps, usual = self._affine_maps(mine, live), self.dtype
        biases: list[tuple[Tensor, Tensor]] = []
        for name, module in mine:
            source = live[name]
            if name in self._folds:
                dtype = self.input_dtype if name == self._first else usual
                conv = cast(nn.Conv2d, source)
                biases.append(fold_weights(module, conv, *maps[name], dtype))
            elif isinstance(module, FrozenNorm):
                module.follow(*maps[name], usual)
            else:
                wanted = torch.float32 if name == self._first else self._dtype
                self._share_tensors(module, source, wanted)
            if isinstance(module, Frozen):
                module.pack()
        if biases:
            held_biases, values = map(list, zip(*biases, strict=True))
            torch._foreach_copy_(held_biases, values)

    def _affine_maps(
        self, mine: list[tuple[str, nn.Module]], live: dict[str, nn.Module]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return scale and shift of every BatchNorm that is folded or frozen.

        They come by the name of the convolution that it is folded into, or of itself.
        """
        norms = {
            name: cast(nn.BatchNorm2d, live[self._folds.get(name, name)])
            for name, module in mine
            if name in self._folds or isinstance(module, FrozenNorm)
        }
        return dict(zip(norms, affine_maps([*norms.values()]), strict=True))

    def refresh_if_stale(self) -> None:
        """Refresh if a parameter of the model was written to since the last refresh.

        An update of BatchNorm statistics alone, and a module put in the place of another,
        are not noticed; `refresh` follows them, too.
        """
        if self.live_reason is not None:
            return
        held, versions = self._seen
        if _versions(held) != versions:
            self.refresh()

    def _share_tensors(
        self, module: nn.Module, source: nn.Module, dtype: torch.dtype | None
    ) -> None:
        if self.tracks and isinstance(source, nn.modules.batchnorm._BatchNorm):
            # The model's own, which stay float32 whatever the network computes in.
            module._parameters.update(
                (key, None if value is None else nn.Parameter(value.detach(), False))
                for key, value in source._parameters.items()
            )
            module._buffers.update(source._buffers)
            return
        for key, value in source._parameters.items():
            frozen = None
            if value is not None:
                held = module._parameters.get(key)
                mine = self._followed(held, value.detach(), dtype)
                frozen = nn.Parameter(mine, False)
            module._parameters[key] = frozen
        for key, buffer in source._buffers.items():
            if buffer is not None:
                copied = self.mode == "train"  # BatchNorm would write to it
                # A traced graph holds only the buffers that it reads.
                own = module._buffers.get(key)
                mine = self._followed(own, buffer, dtype, copied)
                module._buffers[key] = mine

    @staticmethod
    def _followed(
        held: Tensor | None,
        live: Tensor,
        wanted: torch.dtype | None,
        copied: bool = False,
    ) -> Tensor:
        """Return `live`, or a copy of it where the view wants another dtype."""
        dtype = wanted if live.is_floating_point() and wanted else live.dtype
        if dtype == live.dtype and not copied:
            return live
        return own_tensor(held, live, dtype, live=live).copy_(live)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return self._dtype or next(self.live.parameters(), torch.zeros(())).dtype

    @property
    def num_classes(self) -> int | None:
        """Number of logits, where the model states it."""
        model = self._model[0]
        return cast(NormalizedModel, model).num_classes if self._normalized else None

    def statistics(self, channels: int) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the input, float32 [channels], in [0, 1]."""
        if self._normalized:
            model = cast(NormalizedModel, self._model[0])
            return model.mean, model.std
        like = next(self.live.parameters(), torch.zeros(()))
        return like.new_zeros(channels).float(), like.new_ones(channels).float()

    def normalize(self, x: Tensor) -> Tensor:
        """Normalise images `x` [N, C, H, W] (uint8, or float in [0, 1]), without gradient."""
        mean, std = self.statistics(x.shape[1])
        z: Tensor = normalize(x, mean=mean, std=std, dtype=self.input_dtype)
        return z

    def forward(self, z: Tensor) -> Tensor:
        """Map normalised images `z` [N, C, H, W] to logits [N, K]."""
        if self.live_reason is None and self.no_gradient is None:
            logits: Tensor = self.net(z)
            return logits
        with self._as_judged():
            try:
                with torch.set_grad_enabled(
                    torch.is_grad_enabled() and self.no_gradient is None
                ):
                    return cast(Tensor, self.net(z))
            except RuntimeError as error:
                tried = torch.is_grad_enabled() and z.requires_grad
                if not (tried and lacks_gradient(error)):
                    raise
                with torch.no_grad():  # raises again if gradients are not the reason
                    logits = self.net(z.detach())
                self.no_gradient = first_line(error)
        return logits

    def _as_judged(self) -> contextlib.AbstractContextManager[None]:
        """Put a model that is called itself in evaluation mode while it is called."""
        if self.live_reason is None:
            return contextlib.nullcontext()
        return evaluating(self.live)

    def features(self, z: Tensor) -> Tensor:
        """Embed normalised images `z` [N, C, H, W] as penultimate features [N, D].

        Raises:
            TypeError: The model is not a `NormalizedModel`, so its head is unknown.
        """
        return self.activations(z, (EMBEDDING,))[EMBEDDING]

    def activations(self, z: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the outputs of named modules; see `fastadv.models.activations`."""
        wanted = tuple(names)
        if not isinstance(self.net, fx.GraphModule):
            heads = self._heads(wanted)
            with self._as_judged(), recording(self.net, wanted, heads) as found:
                self.net(z)
        else:
            if wanted not in self._cuts:
                self._cuts[wanted] = cut(self.net, wanted, self._heads(wanted))
                forget_source(self._cuts[wanted][0])
            part, keys = self._cuts[wanted]
            found = dict(zip(keys, part(z), strict=True))
        return in_order(found, wanted)

    def _heads(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the paths of the heads, where the embedding is among `names`."""
        model = self._model[0]
        if EMBEDDING not in names:
            return ()
        if not self._normalized:
            raise TypeError(
                "features need a NormalizedModel (fastadv.create_model or load_model), "
                f"got {type(model).__name__}: where its embedding ends is unknown"
            )
        return cast(NormalizedModel, model).spec.head_paths(self.live)


def _versions(tensors: list[Tensor]) -> int:
    """Return a number that grows with every write to one of the tensors."""
    return sum(tensor._version for tensor in tensors)


def _in_float32(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(), *inputs[1:])


def _returned_in(
    dtype: torch.dtype, _module: nn.Module, _inputs: Any, output: Tensor
) -> Tensor:
    return output.to(dtype)
