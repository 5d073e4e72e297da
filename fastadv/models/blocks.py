"""The ordered blocks of a network that last-k fine-tuning counts.

One rule for every architecture instead of lists of layer names, which earlier code
got wrong for VGG, MobileNet, MNASNet, ShuffleNet and DenseNet. Nothing here decides
what is frozen; it only says what the blocks are.
"""

from __future__ import annotations

from torch import nn

Block = tuple[str, list[nn.Module]]
"""A block's name (dotted path of its first module) and its modules."""


def trainable_blocks(net: nn.Module, head: nn.Module) -> list[Block]:
    """Return the blocks of `net`, input to output, without its classifier `head`.

    Sequences are opened; whatever else has weights (a residual block, an inverted
    residual, a dense layer, a convolution outside any of these) is one block. A
    normalisation layer belongs to the block it follows, so the last one of a network
    trains with its last block. Together with `head`, the blocks hold every parameter
    of `net` exactly once.

    Parameters that hang directly on an opened module (`cls_token` of a ViT) come as
    an `nn.ParameterList` around the same Parameter objects.
    """
    blocks: list[Block] = []
    _collect(net, "", head, blocks)
    return blocks


def _collect(
    module: nn.Module, path: str, head: nn.Module, blocks: list[Block]
) -> None:
    loose = dict(module.named_parameters(recurse=False))
    if loose:
        blocks.append((path + next(iter(loose)), [nn.ParameterList(loose.values())]))
    for name, child in module.named_children():
        if child is head or next(child.parameters(), None) is None:
            continue
        if _is_sequence(child, head):
            _collect(child, f"{path}{name}.", head, blocks)
        elif blocks and not _has_weights(child):
            blocks[-1][1].append(child)
        else:
            blocks.append((path + name, [child]))


def _is_sequence(module: nn.Module, head: nn.Module) -> bool:
    if any(inner is head for inner in module.modules()):
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
