"""Which part of a network trains, and how a new head begins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fastadv.errors import ConfigError
from fastadv.models import NormalizedModel
from fastadv.models.normalized import seeded_init
from fastadv.results.row import Defect
from fastadv.transfer.protocols import Procedure


@dataclass(frozen=True)
class Trained:
    """Which part of a network trains.

    Attributes:
        parameters: Parameters that the optimiser updates.
        frozen: Modules all of whose parameters are fixed.
    """

    parameters: list[nn.Parameter]
    frozen: list[nn.Module]


def choose_trained(
    model: NormalizedModel, mode: str, k: int | None = None, *, by_name: bool = False
) -> Trained:
    """Freeze all of `model` but what `mode` trains.

    Args:
        model: The network with its new head.
        mode: fixed_feature (the head), last_k_blocks (the last k blocks and the head),
            full_network or scratch (everything).
        k: Number of blocks of last_k_blocks.
        by_name: Freeze as the code of Salman et al. did, see `published_names`.

    Raises:
        ConfigError: `k` is more than the network has.
    """
    blocks = model.blocks()
    if mode == "last_k_blocks" and k is not None and k > len(blocks):
        raise ConfigError(
            f"`k={k}`: {model.arch} has {len(blocks)} blocks before its head; use at most "
            "as many, or `mode=full_network`"
        )
    counts = {"fixed_feature": 0, "last_k_blocks": k or 0}
    first = len(blocks) - counts.get(mode, len(blocks))
    frozen = [module for _, modules in blocks[:first] for module in modules]
    model.requires_grad_(True)
    for module in frozen:
        module.requires_grad_(False)
    named = dict(model.net.named_parameters())
    if by_name and (names := published_names(list(named))) is not None:
        for name, parameter in named.items():
            parameter.requires_grad_(name in names)
    return Trained([p for p in model.parameters() if p.requires_grad], frozen)


def published_names(names: list[str]) -> list[str] | None:
    """Return what the code of Salman et al. trained of a network with fixed features.

    It froze every parameter up to the first with "layer4" in its name, and all later
    ones with "layer4" in theirs. That is right for ResNets, freezes half of a DenseNet
    (`denselayer4`), and is an error for networks without such a name.

    Args:
        names: Names of the parameters, in the order of the network.

    Returns:
        Names of the parameters that train; None where the published code stops.
    """
    marked = ["layer4" in name for name in names]
    if True not in marked:
        return None
    first = marked.index(True)
    return [n for n, m in zip(names[first:], marked[first:], strict=True) if not m]


def misfreezing(model: NormalizedModel) -> Defect | None:
    """Return what freezing by name does wrong to `model`; None for ResNets."""
    named = dict(model.net.named_parameters())
    trained = published_names(list(named))
    if trained is None:
        text = "the published code stops with an error here, this trains the head alone"
        return Defect(code="freezing_by_name_fails", text=text)
    head = {id(parameter) for parameter in model.head.parameters()}
    left = sum(named[n].numel() for n in trained if id(named[n]) not in head)
    if not left:
        return None
    text = f"freezing by layer name left {left:,} parameters of the trunk training"
    return Defect(code="freezing_by_name_left_some", text=text)


def prepare_model(
    model: NormalizedModel, classes: int, seed: int, procedure: Procedure
) -> NormalizedModel:
    """Put a new head on `model` and normalise as `procedure` says, in place."""
    model.replace_head(classes, seed=seed)
    if procedure.normal_head:
        with seeded_init(seed):
            for head in model.heads:
                head.weight.detach().copy_(torch.empty(head.weight.shape).normal_())
                if head.bias is not None:
                    head.bias.detach().zero_()
    if procedure.statistics is not None:
        model.mean.copy_(torch.tensor(procedure.statistics.mean))
        model.std.copy_(torch.tensor(procedure.statistics.std))
    return model
