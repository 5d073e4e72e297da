"""Match a state dict to an architecture: fill a network, or say what does not fit.

Keys are those of the bare network; wrappers come off in `foreign_checkpoints.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fastadv.errors import CheckpointError
from fastadv.models.architecture_names import ARCHITECTURES
from fastadv.models.dialects import from_lukemelas
from fastadv.models.normalized import replace_head, seeded_init
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
        net = spec.build(_BUILD_CLASSES)
    head = spec.head_path(net)
    state = from_lukemelas(state, net.state_dict())
    weight = state.get(f"{head}.weight")
    if weight is not None and weight.dim() >= 2 and len(weight) > 0:
        replace_head(net, head, len(weight), seed=0)
    problems = _differences(net.state_dict(), state)
    if problems:
        raise _wrong_arch(spec.name, state, problems, file)
    # Only num_batches_tracked can be missing: files older than torch 0.4.1 lack it.
    net.load_state_dict(state, strict=False)
    return net


def _differences(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> list[str]:
    """Say how two state dicts differ, as up to three clauses."""
    missing = [
        key
        for key in expected
        if key not in found and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in found if key not in expected]
    misshapen = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of wrong shape": misshapen}
    return [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in groups.items()
        if keys
    ]


def _wrong_arch(
    arch: str, state: dict[str, Tensor], problems: list[str], file: Path
) -> CheckpointError:
    fits = fitting_archs(state)
    hint = f" They fit {' and '.join(fits)}: pass that as arch." if fits else ""
    return CheckpointError(
        f"the weights in {file} are not those of {arch}: {'; '.join(problems)}.{hint}"
    )


def fitting_archs(state: Mapping[str, Tensor]) -> list[str]:
    """Return the registered architectures whose keys and shapes `state` has.

    The number of classes is left open. Networks are built without memory (meta
    device): all of them together take about a second.
    """
    return [name for name in ARCHITECTURES if _fits(get_spec(name), state)]


def _fits(spec: ArchSpec, state: Mapping[str, Tensor]) -> bool:
    with torch.device("meta"):
        net = spec.build(_BUILD_CLASSES)
        head = spec.head_path(net)
        weight = state.get(f"{head}.weight")
        if weight is None or weight.dim() < 2 or len(weight) == 0:
            return False
        replace_head(net, head, len(weight))
    return not _differences(net.state_dict(), state)
