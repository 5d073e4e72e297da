"""The last layers of a network: its classifiers, their width, fresh ones in their place.

Nearly every network has one, an `nn.Linear` or a convolution. Networks with a distillation
token have two, and return the mean of both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastadv.errors import ConfigError

Classifier: TypeAlias = nn.Linear | nn.Conv2d
"""A last layer that turns the embedding into logits."""


def classifiers(
    net: nn.Module, paths: Sequence[str], arch: str
) -> tuple[Classifier, ...]:
    """Return the last layers of a network.

    Args:
        net: The network.
        paths: Their dotted paths.
        arch: The name of the architecture, for messages.

    Raises:
        ConfigError: There is none, or one is neither `nn.Linear` nor `nn.Conv2d`.
    """
    if not paths:
        raise ConfigError(
            f"{arch} has no classifier: its output is an embedding, or its last layer is "
            "not known. Give the dotted path of the last layer as `head`"
        )
    found: list[Classifier] = []
    for path in paths:
        head = net.get_submodule(path)
        if not isinstance(head, (nn.Linear, nn.Conv2d)):
            raise ConfigError(
                f"the head {path!r} of {arch} is {type(head).__name__}; it must "
                "be nn.Linear or nn.Conv2d. Correct the `head` of its ArchSpec"
            )
        found.append(head)
    return tuple(found)


def width_of(head: Classifier) -> int:
    """Return the number of features that a last layer reads."""
    return head.in_features if isinstance(head, nn.Linear) else head.in_channels


def classes_of(net: nn.Module, paths: Sequence[str]) -> int:
    """Return the number of classes of a network; 0 where it has no classifier."""
    if not paths:
        return 0
    return int(net.get_submodule(paths[0]).get_parameter("weight").shape[0])


def replace_heads(net: nn.Module, paths: Sequence[str], num_classes: int) -> None:
    """Put fresh last layers in the place of those of a network.

    Each has the device, the dtype and the mode of the old one.

    Raises:
        ConfigError: There is none, or one is neither `nn.Linear` nor `nn.Conv2d`.
    """
    for path, old in zip(
        paths, classifiers(net, paths, type(net).__name__), strict=True
    ):
        new: Classifier
        if isinstance(old, nn.Conv2d):
            new = nn.Conv2d(
                old.in_channels,
                num_classes,
                old.kernel_size,  # type: ignore[arg-type]
                old.stride,  # type: ignore[arg-type]
                old.padding,  # type: ignore[arg-type]
                bias=old.bias is not None,
            )
        else:
            new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        new.to(device=old.weight.device, dtype=old.weight.dtype).train(old.training)
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, new)
    if hasattr(net, "num_classes"):
        net.num_classes = num_classes  # type: ignore[assignment]


@torch.no_grad()
def write_heads(
    heads: Sequence[Classifier], weight: Tensor, bias: Tensor | None
) -> None:
    """Give last layers, whose mean is returned, the weights of one linear map.

    Args:
        heads: The last layers; a missing bias is added where `bias` is given.
        weight: Weights [K, D] on what all of them read, one after the other.
        bias: Bias [K], or None for zeros.
    """
    widths = [width_of(head) for head in heads]
    for head, part in zip(heads, torch.split(weight, widths, 1), strict=True):
        head.weight.copy_((len(heads) * part).reshape(head.weight.shape))
        if head.bias is None and bias is not None:
            head.bias = nn.Parameter(bias.to(head.weight))
        if head.bias is not None:
            head.bias.copy_(torch.zeros_like(head.bias) if bias is None else bias)


# Sides in pixels that a network of unknown size is tried on.
_SIDES = (32, 224, 64, 28, 96, 128, 256, 299, 384)


def find_heads(
    net: nn.Module,
    channels: int,
    side: int | None = None,
    paths: tuple[str, ...] | None = None,
) -> tuple[tuple[str, ...], bool]:
    """Find the last layer of a network from one forward pass over random images.

    It is the last `nn.Linear` or `nn.Conv2d` that ran and has as many outputs as there
    are logits. On the meta device nothing is known of values.

    Args:
        net: The network; it comes back as it was.
        channels: Number of channels of its images.
        side: Side of its images in pixels; None tries the usual ones.
        paths: The last layers, where they are known.

    Returns:
        The dotted paths, none where there is no such layer; and whether their mean over
        what they read gives the logits.

    Raises:
        ConfigError: The network runs on no image that was tried.
    """
    calls: list[tuple[str, Tensor]] = []
    names: dict[nn.Module, str] = {
        module: name
        for name, module in net.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            calls.append((names[module], output))

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for module in names:
            stack.callback(module.register_forward_hook(note).remove)
        logits = _tried(net, channels, side, calls)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        return paths or (), False
    if paths is None:
        last = [name for name, out in calls if _pooled(out).shape == logits.shape]
        paths = (last[-1],) if last else ()
    if logits.is_meta or not paths:
        return paths, bool(paths)
    outputs = [_pooled(out) for name, out in calls if name in paths]
    if not outputs or any(each.shape != logits.shape for each in outputs):
        return paths, False
    mean = torch.stack(outputs).mean(0)
    return paths, bool(torch.allclose(mean, logits, rtol=1e-3, atol=1e-5))


def _tried(net: nn.Module, channels: int, side: int | None, calls: list[Any]) -> object:
    """Run a network on images of the first size that it takes; `calls` are of that."""
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
    draw = torch.Generator().manual_seed(0)
    reason: Exception | None = None
    with _evaluating(net):
        for size in _SIDES if side is None else (side,):
            calls.clear()
            images = torch.randn(2, channels, size, size, generator=draw, device="cpu")
            try:
                found: object = net(images.to(like))
            except Exception as error:  # whatever the code of the user raises
                reason = reason or error
            else:
                return found
    sides = f"{side} px" if side else f"{', '.join(map(str, _SIDES))} px"
    raise ConfigError(
        f"the network {type(net).__name__} runs on no images of {channels} channels and "
        f"{sides} ({type(reason).__name__}: {str(reason).splitlines()[0][:120]}); give "
        "`image_size` or `head` to register_arch"
    )


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and each module back in its mode."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _pooled(output: Tensor) -> Tensor:
    """Average maps [N, K, H, W] to [N, K]; another output stays as it is."""
    return output.mean((2, 3)) if output.dim() == 4 else output


class MeanOfHeads(nn.Module):
    """Several last layers as one linear map, the mean of theirs.

    Args:
        heads: The last layers. Each reads its own part of the embedding.
    """

    def __init__(self, heads: Sequence[Classifier]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    @property
    def weight(self) -> Tensor:
        """The weights [K, D] of the whole map."""
        parts = [head.weight.flatten(1) for head in self._members()]
        return torch.cat(parts, 1) / len(parts)

    @property
    def bias(self) -> Tensor | None:
        """The bias [K] of the whole map, or None."""
        parts = [head.bias for head in self._members() if head.bias is not None]
        return torch.stack(parts).sum(0) / len(self.heads) if parts else None

    def forward(self, features: Tensor) -> Tensor:
        """Classify embeddings [N, D]: logits [N, K]."""
        widths = [width_of(head) for head in self._members()]
        parts = zip(self._members(), torch.split(features, widths, 1), strict=True)
        logits = [
            head(part if isinstance(head, nn.Linear) else part[..., None, None])
            for head, part in parts
        ]
        return torch.stack([each.flatten(1) for each in logits]).mean(0)

    def _members(self) -> tuple[Classifier, ...]:
        return tuple(m for m in self.heads if isinstance(m, (nn.Linear, nn.Conv2d)))
