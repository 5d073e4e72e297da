"""The attack view of a model: what an attack differentiates instead of the model.

An attack needs the gradient with respect to the input, of a network whose weights do
not change while it runs. So the view freezes the parameters (no weight gradients are
computed), folds evaluation-mode BatchNorm into the convolution before it, and never
touches the model: its mode, statistics and `.grad` stay as they were. `refresh()`
brings the folded weights up to date after an optimiser step.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, fx, nn

from fastadv.models.normalized import NormalizedModel
from fastadv.models.stem import FrozenStem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Fold:
    """A convolution and the BatchNorm that follows it, by their names in the net."""

    conv: str
    norm: str


def _share(net: nn.Module) -> nn.Module:
    """A copy of the module tree in eval mode that shares every tensor with `net`."""
    memo: dict[int, object] = {id(p): p for p in net.parameters()}
    memo.update({id(b): b for b in net.buffers()})
    return copy.deepcopy(net, memo).eval()


def _has_hooks(net: nn.Module) -> bool:
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks
        for m in net.modules()
    )


def _foldable(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, _Fold]:
    """BatchNorm nodes whose input is a convolution that nothing else reads."""
    calls = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    folds = {}
    for node in graph.nodes:
        if node.op != "call_module" or not node.args:
            continue
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        norm, conv = modules[str(node.target)], modules[str(before.target)]
        # Exact types: a subclass or parametrised layer (weight_norm) has its own rule.
        if (
            type(norm) is nn.BatchNorm2d
            and norm.track_running_stats
            and type(conv) is nn.Conv2d
            and len(before.users) == 1
            and calls.count(str(node.target)) == calls.count(str(before.target)) == 1
        ):
            folds[node] = _Fold(str(before.target), str(node.target))
    return folds


def _replace_stem(graph: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """Give the first convolution its quicker input gradient, where it has one."""
    (image,) = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node in image.users:
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and FrozenStem.fits(conv):
            graph.add_submodule(str(node.target), FrozenStem.like(conv))


class AttackView(nn.Module):
    """A frozen, folded, evaluation-mode image of `model` that follows its weights.

    Args:
        model: the model under attack. Anything that is not a `NormalizedModel` is taken
            to accept [0, 1] images (mean 0, std 1).
        mode: `"eval"` uses running BatchNorm statistics and folds them; `"train"` uses
            the statistics of the batch, unfolded, on copies of the buffers. Dropout and
            the like are off in both.
        dtype: compute dtype of the network (float32, bfloat16, ...); None keeps the
            model's.

    Attributes:
        folded: number of BatchNorm layers folded away.
        unfolded_reason: why the graph could not be folded, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mode: Literal["eval", "train"] = "eval",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("eval", "train"):
            raise ValueError(f"mode={mode!r} is unknown; accepted: eval, train")
        normalized = isinstance(model, NormalizedModel)
        # In a tuple, so that the live model is not registered as a child of the view.
        self._live = (model.net if normalized else model,)
        self._model = (model,)
        self.mode = mode
        self._dtype = dtype
        self._folds: list[_Fold] = []
        self.unfolded_reason: str | None = None
        self._embedding: Callable[[Tensor], Tensor] | None = None
        self.net = _share(self.live)
        if mode == "train":
            for module in self.net.modules():  # but no dropout: it would be noise
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            self.unfolded_reason = "BatchNorm in train mode uses batch statistics"
        else:
            self._fold_graph()
        self.refresh()

    @property
    def live(self) -> nn.Module:
        """The network whose weights the view follows."""
        return cast(nn.Module, self._live[0])

    @property
    def folded(self) -> int:
        """Number of BatchNorm layers folded into a convolution."""
        return len(self._folds)

    def _fold_graph(self) -> None:
        if _has_hooks(self.live):
            self.unfolded_reason = "the network has hooks"
            return
        try:
            graph = fx.symbolic_trace(self.net)
        except Exception as error:  # fx raises whatever the traced code raises
            self.unfolded_reason = f"torch.fx cannot trace it: {error}"
            log.info("attack view not folded: %s", self.unfolded_reason)
            return
        modules = dict(graph.named_modules())
        folds = _foldable(graph.graph, modules)
        for node in folds:
            node.replace_all_uses_with(cast(fx.Node, node.args[0]))
            graph.graph.erase_node(node)
        _replace_stem(graph, modules)
        graph.delete_all_unused_submodules()
        graph.recompile()
        self._folds = list(folds.values())
        self.net = graph

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's present weights and statistics.

        Unfolded tensors are shared, so only folded convolutions (and casts to another
        dtype) cost anything: one pass over the weights.
        """
        live = dict(self.live.named_modules())
        norms = {fold.conv: fold.norm for fold in self._folds}
        mine = list(self.net.named_modules())
        if isinstance(self._embedding, nn.Module):
            # It shares the layers, but holds parameters outside of layers by itself.
            shared = {id(module) for _, module in mine}
            own = self._embedding.named_modules()
            mine += [(name, module) for name, module in own if id(module) not in shared]
        for name, module in mine:
            source = live.get(name)
            if source is None:
                continue
            if name in norms:
                self._fold_weights(module, source, live[norms[name]])
            else:
                self._share_tensors(module, source)
            if isinstance(module, FrozenStem):
                module.pack()

    def _share_tensors(self, module: nn.Module, source: nn.Module) -> None:
        for key, value in source._parameters.items():
            frozen = None
            if value is not None:
                frozen = nn.Parameter(self._cast(value.detach()), False)
            module._parameters[key] = frozen
        for key, buffer in source._buffers.items():
            if buffer is not None:
                shared = buffer if self.mode == "eval" else buffer.clone()
                module._buffers[key] = self._cast(shared)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self._dtype or next(self.live.parameters(), torch.zeros(())).dtype

    def statistics(self, channels: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the input, float32 [channels], pixel units."""
        model = self._model[0]
        if isinstance(model, NormalizedModel):
            return model.mean, model.std
        like = next(self.live.parameters(), torch.zeros(()))
        return like.new_zeros(channels).float(), like.new_ones(channels).float()

    def _cast(self, value: Tensor) -> Tensor:
        if self._dtype is None or not value.is_floating_point():
            return value
        return value.to(self._dtype)

    def _fold_weights(self, view: nn.Module, conv: nn.Module, norm: nn.Module) -> None:
        norm = cast(nn.BatchNorm2d, norm)
        conv = cast(nn.Conv2d, conv)
        mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = (var + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight
        shift = -mean if conv.bias is None else conv.bias - mean
        bias = shift * scale
        if norm.affine:
            bias = bias + norm.bias
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        weight = weight.contiguous(memory_format=torch.channels_last)
        for key, value in (("weight", weight), ("bias", bias)):
            view._parameters[key] = nn.Parameter(self._cast(value.detach()), False)

    def forward(self, z: Tensor) -> Tensor:
        """Logits [N, K] of normalised images `z` [N, C, H, W]."""
        logits: Tensor = self.net(z)
        return logits

    def features(self, z: Tensor) -> Tensor:
        """Penultimate embedding [N, D] of normalised images `z` [N, C, H, W].

        Raises:
            TypeError: the model is not a `NormalizedModel`, so its head is unknown.
        """
        model = self._model[0]
        if not isinstance(model, NormalizedModel):
            raise TypeError(
                "features need a NormalizedModel (fastadv.create_model or load_model), "
                f"got {type(model).__name__}: where its embedding ends is unknown"
            )
        if self._embedding is None:
            self._embedding = self._embedding_graph(model)
        embedding = self._embedding(z)
        return embedding.mean((2, 3)) if embedding.dim() == 4 else embedding

    def _embedding_graph(self, model: NormalizedModel) -> Callable[[Tensor], Tensor]:
        """The folded graph cut before the head, on the same modules."""
        spec = model.spec
        if not isinstance(self.net, fx.GraphModule):
            return lambda z: spec.features(self.net, z)
        head = spec.head_path(self.live)
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        for node in self.net.graph.nodes:
            if node.target == head:
                graph.output(copied[node.args[0]])
                break
            copied[node] = graph.node_copy(node, copied.__getitem__)
        return fx.GraphModule(self.net, graph)
