"""The parts of a network: outputs of named modules, stages, and blocks for fine-tuning.

A network as it is written is watched by hooks while it runs (`recording`). A traced
graph, such as an attack view's, is cut behind the nodes that are wanted (`cut`), which
`torch.compile` can follow.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, fx, nn

from fastadv.errors import unknown_name

EMBEDDING = "embedding"
"""The name of what the head of a model reads: its penultimate features."""

RETURNED_BY = "returned_by"
"""The key under which a traced node lists the modules whose output it is."""

Block = tuple[str, list[nn.Module]]
"""A block's name (dotted path of its first module) and its modules."""


@dataclass(frozen=True)
class Stage:
    """A part of a network after which its resolution or its width changes.

    Attributes:
        name: Dotted path of the module whose output is that of the stage.
        stride: Pixels of the image for each pixel (or token) of the output, per side.
    """

    name: str
    stride: int


class _HasActivations(Protocol):
    def activations(self, z: Tensor, names: Sequence[str]) -> dict[str, Tensor]: ...


def activations(
    model: _HasActivations, z: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return what named modules of a model output for normalised images.

    Args:
        model: A `NormalizedModel` or an `AttackView`.
        z: Normalised images, floating point [N, C, H, W].
        names: Dotted paths of modules within the network, such as the names of
            `model.stages()`; and `"embedding"` for the penultimate features [N, D].

    Returns:
        The output of each module's last call, in the order of `names`. Convolutional
        stages give [N, C', H / stride, W / stride]. Gradients flow through all of them.

    Raises:
        ValueError: A name is not that of a module that runs and outputs a tensor.

    Example:
        >>> model = create_model("resnet18", 10).eval()
        >>> names = [stage.name for stage in model.stages()]
        >>> found = activations(model, torch.rand(2, 3, 64, 64), names)
        >>> [tuple(value.shape) for value in found.values()][-1]
        (2, 512, 2, 2)
    """
    return model.activations(z, names)


@contextlib.contextmanager
def recording(
    net: nn.Module, names: Sequence[str], heads: Sequence[str] = ()
) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of modules while `net` runs in this thread.

    Args:
        net: The network. Its hooks are as before when the context ends.
        names: Names as `activations` takes them.
        heads: Dotted paths of the classifiers, for `"embedding"`. Where there is none, the
            output of the network is the embedding.

    Yields:
        A dictionary that running the network fills, which `in_order` reads. What each
        head reads is in it as it is.

    Raises:
        ValueError: A name is not that of a module that ran and returned a tensor.
    """
    found: dict[str, Tensor] = {}
    thread = threading.get_ident()

    def keep(key: str, value: Any, *, copied: bool) -> None:
        if threading.get_ident() == thread and isinstance(value, Tensor):
            found[key] = value.clone() if copied else value

    modules = dict(net.named_modules())
    places = dict(_places(names, heads))
    with contextlib.ExitStack() as stack:
        for key, (path, reads) in places.items():
            module = modules.get(path)
            if module is None:
                raise unknown_activation(key, activation_names(net))
            # A copy, since a ReLU may overwrite it; nothing overwrites the head's input.
            handle = module.register_forward_hook(
                lambda _, inputs, output, key=key, reads=reads: keep(
                    key,
                    inputs[0] if reads else output,
                    copied=not key.startswith(EMBEDDING),
                )
            )
            stack.callback(handle.remove)
        yield found
    for key in places:
        if key not in found:
            raise unknown_activation(key, activation_names(net))


def _places(
    names: Sequence[str], heads: Sequence[str]
) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Yield for each key of a recording a module, and whether its input is meant."""
    for name in names:
        if name != EMBEDDING:
            yield name, (name, False)
        elif not heads:
            yield name, ("", False)
        for number, path in enumerate(heads if name == EMBEDDING else ()):
            yield _key(number), (path, True)


def _key(number: int) -> str:
    """Return the key of what the head of a number reads; the first has the usual one."""
    return f"{EMBEDDING} of head {number + 1}" if number else EMBEDDING


def cut(
    graph: fx.GraphModule, names: Sequence[str], heads: Sequence[str] = ()
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return a graph on the same modules whose outputs are those of the modules named.

    Args:
        graph: A graph made by `folding.trace`, folded or not.
        names: Names as `activations` takes them; the embedding is the head's own input.
        heads: Dotted paths of the classifiers, as `recording` takes them.

    Returns:
        A graph whose outputs are the values of the dictionary that `recording` fills, and
        their keys.

    Raises:
        ValueError: A name is not that of a module, or its output no longer exists,
            because it was folded into the layer that follows it.
        TypeError: The embedding is wanted, and the graph never calls a head.
    """
    called: dict[str, fx.Node] = {}
    returned: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            called[str(node.target)] = node
        elif node.op == "output":
            returned[""] = cast(fx.Node, node.args[0])
        for name in node.meta.get(RETURNED_BY, ()):
            returned[name] = node
    nodes: dict[str, fx.Node] = {}
    for key, (path, reads) in _places(names, heads):
        if reads and path not in called:
            raise TypeError(f"{type(graph).__name__} never calls its head {path!r}")
        if not reads and path not in returned:
            raise unknown_activation(key, activation_names(graph))
        node = called[path].args[0] if reads else returned[path]
        if not isinstance(node, fx.Node):
            raise unknown_activation(key, activation_names(graph))
        nodes[key] = node
    wanted = set(nodes.values())
    copied: dict[fx.Node, fx.Node] = {}
    kept: dict[fx.Node, fx.Node] = {}
    result = fx.Graph()
    for node in graph.graph.nodes:
        copied[node] = result.node_copy(node, copied.__getitem__)
        if node in wanted:
            kept[node] = copied[node]
            if len(kept) == len(wanted):
                break
            # A copy, since a ReLU may overwrite it; nothing comes after the last.
            kept[node] = result.call_method("clone", (copied[node],))
    result.output(tuple(kept[node] for node in nodes.values()))
    return fx.GraphModule(graph, result), tuple(nodes)


def activation_names(net: nn.Module) -> set[str]:
    """Return the names of all modules of a network, and that of the embedding."""
    return {EMBEDDING, *(name for name, _ in net.named_modules() if name)}


def unknown_activation(name: str, known: Collection[str]) -> ValueError:
    """Return the error for a name whose output is not there; `known` are all modules."""
    if name not in known:
        return ValueError(
            f"{unknown_name('layer', name, known)}. "
            "`[stage.name for stage in model.stages()]` are names that can be taken"
        )
    return ValueError(
        f"the output of {name!r} cannot be taken: the module does not run, returns no "
        "tensor, or is folded into the next layer. "
        "`[stage.name for stage in model.stages()]` are names that can be taken"
    )


def in_order(found: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return what was recorded in the order of `names`, the embedding as [N, D]."""
    return {n: _embedding(found) if n == EMBEDDING else found[n] for n in names}


def _embedding(found: dict[str, Tensor]) -> Tensor:
    """Join what the heads read: maps [N, D, H, W] and tokens [N, T, D] are averaged."""
    parts: list[Tensor] = []
    over = {4: (2, 3), 3: (1,)}  # dimensions that are no features
    while (value := found.get(_key(len(parts)))) is not None:
        parts.append(value.mean(over[value.dim()]) if value.dim() in over else value)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def trainable_blocks(net: nn.Module, heads: Sequence[nn.Module]) -> list[Block]:
    """Return the blocks of `net`, input to output, without its classifiers `heads`.

    They are what last-k fine-tuning counts, by one rule for every architecture: earlier
    code had lists of layer names, and got VGG, MobileNet, MNASNet, ShuffleNet and DenseNet
    wrong. Sequences are opened; whatever else has weights (a residual block, an inverted
    residual, a dense layer, a convolution outside any of these) is one block. A
    normalisation layer belongs to the block it follows, so the last one of a network
    trains with its last block. Together with the heads, the blocks hold every parameter
    of `net` exactly once.

    Parameters that hang directly on an opened module (`cls_token` of a ViT) come as
    an `nn.ParameterList` around the same Parameter objects.
    """
    blocks: list[Block] = []
    _collect(net, "", {id(head) for head in heads}, blocks)
    return blocks


def _collect(
    module: nn.Module, path: str, heads: set[int], blocks: list[Block]
) -> None:
    loose = dict(module.named_parameters(recurse=False))
    if loose:
        blocks.append((path + next(iter(loose)), [nn.ParameterList(loose.values())]))
    for name, child in module.named_children():
        if id(child) in heads or next(child.parameters(), None) is None:
            continue
        if _is_sequence(child, heads):
            _collect(child, f"{path}{name}.", heads, blocks)
        elif blocks and not _has_weights(child):
            blocks[-1][1].append(child)
        else:
            blocks.append((path + name, [child]))


def _is_sequence(module: nn.Module, heads: set[int]) -> bool:
    if any(id(inner) in heads for inner in module.modules()):
        return True
    # A stage of timm's transformers and ConvNeXt keeps its sequence in `blocks`.
    holder = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) or (
        isinstance(getattr(module, "blocks", None), (nn.Sequential, nn.ModuleList))
    )
    # With one weighted layer (conv-bn-relu, a DenseNet transition) it is a block.
    leaves = (m for m in module.modules() if next(m.children(), None) is None)
    return holder and sum(_has_weights(leaf) for leaf in leaves) > 1


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())
