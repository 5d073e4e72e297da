"""Match a state dict to an architecture: fill a network, or say what does not fit.

Keys are those of the bare network; wrappers come off in `foreign_checkpoints.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fastadv.errors import CheckpointError
from fastadv.models.architecture_names import ARCHITECTURES
from fastadv.models.dialects import from_lukemelas
from fastadv.models.heads import replace_heads
from fastadv.models.normalized import seeded_init
from fastadv.models.registry import ArchSpec, get_spec

_BUILD_CLASSES = 1000  # any number does: the head is resized to that of the weights


def fill_network(spec: ArchSpec, state: dict[str, Tensor], file: Path) -> nn.Module:
    """Build the network of `spec` with exactly the weights of `state`.

    Args:
        spec: The architecture.
        state: Weights under the network's own keys, or an EfficientNet's under those of
            lukemelas; the number of classes is theirs.
        file: Where they came from, for the message.

    Raises:
        CheckpointError: A key is missing, unexpected or of another shape; the message
            names the first few, and the architectures that would fit.
    """
    with seeded_init(0):
        net, state, problems = _build(spec, state)
    if problems:
        fits = fitting_archs(state)
        hint = f" They fit {' and '.join(fits)}: pass that as arch." if fits else ""
        raise CheckpointError(
            f"the weights in {file} are not those of {spec.name}: "
            f"{'; '.join(problems)}.{hint}"
        )
    # MNASNet asks for the version of its weights, which wrappers and safetensors lose; all
    # versions have the same weights at width 1.
    named = OrderedDict(state)
    named._metadata = net.state_dict()._metadata  # type: ignore[attr-defined]
    # Only num_batches_tracked can be missing: files older than torch 0.4.1 lack it.
    net.load_state_dict(named, strict=False)
    return net


def _build(
    spec: ArchSpec, state: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """Return a network with the classes of `state`, its weights, and what does not fit."""
    net = spec.build(_BUILD_CLASSES)
    heads = spec.head_paths(net)
    renamed = from_lukemelas(state, net.state_dict())
    weight = renamed.get(f"{heads[0]}.weight") if heads else None
    if weight is not None and weight.dim() >= 2 and len(weight) > 0:
        replace_heads(net, heads, len(weight))
    return net, renamed, _differences(net.state_dict(), renamed)


def _differences(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> list[str]:
    """Say how two state dicts differ, as up to three clauses."""
    wrong = {
        "missing": [
            key
            for key in expected
            if key not in found and not key.endswith("num_batches_tracked")
        ],
        "unexpected": [key for key in found if key not in expected],
        "of wrong shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in found and found[key].shape != value.shape
        ],
    }
    return [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in wrong.items()
        if keys
    ]


def fitting_archs(state: Mapping[str, Tensor]) -> list[str]:
    """Return the registered architectures whose keys and shapes `state` has.

    The number of classes is left open. Networks are built without memory (meta
    device): all of them together take about a second.
    """
    with torch.device("meta"):
        return [name for name in ARCHITECTURES if not _build(get_spec(name), state)[2]]
