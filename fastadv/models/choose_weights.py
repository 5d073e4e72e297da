"""Choose one of several weights that a file holds: raw or averaged, student or teacher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastadv.errors import CheckpointError, ConfigError, first_few
from fastadv.models.fit_weights import Fit

_FEW = 4  # names that a message lists
# The words by which programs name averaged weights and the networks of a pair.
_AVERAGED = {"ema", "avg", "averaged", "average", "swa", "shadow", "polyak"}
_SECOND = _AVERAGED | {"teacher", "momentum", "target", "key"}
_FIRST = {"student", "online", "base", "query", "raw"}


def choose_weights(
    fits: Sequence[Fit], which: str | None, file: Path
) -> tuple[Fit, list[str]]:
    """Return one of several weights, and what to say of the choice."""
    different: list[Fit] = []
    for fit in fits:  # copies of the same weights are one
        if not any(_difference(fit, other) is None for other in different):
            different.append(fit)
    labels = _labels(different)
    if which is not None:
        named = _named(different, which)
        if len(named) == 1:
            _refuse_strange(named[0], file)
            return named[0], []
        raise ConfigError(
            f"{file}: weights={which} names {len(named) or 'none'} of the weights in it: "
            f"{', '.join(labels.values())}"
        )
    if len(different) == 1:
        return different[0], []
    ranked = sorted(different, key=_rank)
    listed = " and ".join(labels[fit.prefix] for fit in ranked[:_FEW])
    if _rank(ranked[0]) == _rank(ranked[1]):
        for fit in ranked[:2]:
            _refuse_strange(fit, file)
        keys = _difference(ranked[0], ranked[1])
        raise CheckpointError(
            f"{file} holds two different models, {listed}, which differ in "
            f"{first_few(keys or [], _FEW)}; say which one you mean after its name: "
            f",weights={labels[ranked[0].prefix]}"
        )
    _refuse_strange(ranked[0], file)
    other = labels[ranked[1].prefix]
    return ranked[0], [
        f"it holds several weights ({listed}), of which {labels[ranked[0].prefix]} is "
        f"taken; write ,weights={_short(ranked[1]) or other} after its name for the other"
    ]


def _refuse_strange(fit: Fit, file: Path) -> None:
    if fit.strange:
        raise CheckpointError(
            f"the weights {fit.label} in {file} are not those of one network: "
            f"{unexpected(fit)}"
        )


def unexpected(fit: Fit) -> str:
    """Name the layers below a network that may be those of another one."""
    return (
        f"{len(fit.strange)} unexpected ({first_few(fit.strange, _FEW)}), as "
        f"{fit.prefix}{fit.strange[0]} in the file{ignored(fit.strange)}"
    )


def ignored(strange: Sequence[str]) -> str:
    """Name the option that leaves out a few layers that are no part of a network."""
    names = dict.fromkeys(key.rpartition(".")[0] or key for key in strange)
    if len(names) > _FEW:
        names = dict.fromkeys(key.split(".")[0] for key in strange)
    if len(names) > _FEW:
        return ""
    return (
        f"; if that is no part of the network, write ,ignore={'+'.join(names)} after its "
        "name"
    )


def _labels(fits: Sequence[Fit]) -> dict[str, str]:
    return {fit.prefix: fit.label for fit in fits}


def _words(fit: Fit) -> set[str]:
    """Return the words in the path of a network: `modelEMA.module` has model, ema, module."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[A-Z]+", fit.prefix)
    words = {word.lower() for word in found}
    return words | {"key"} if "encoder_k" in fit.prefix else words


def _rank(fit: Fit) -> int:
    words = _words(fit)
    return 2 if words & _SECOND else 1 if words & _FIRST else 0


def _short(fit: Fit) -> str:
    return next(iter(sorted(_words(fit) & (_SECOND | _FIRST))), "")


def _named(fits: Sequence[Fit], which: str) -> list[Fit]:
    """Return the networks that a text names: by path, by a step of it, by a word in it."""
    return (
        [fit for fit in fits if which == fit.label]
        or [fit for fit in fits if which in fit.label.split(".")]
        or [fit for fit in fits if which.lower() in _words(fit)]
        or [fit for fit in fits if which == "raw" and not _words(fit) & _SECOND]
    )


def _difference(a: Fit, b: Fit) -> list[str] | None:
    """Return the names by which two networks differ; None if they are copies."""
    names = [
        key
        for key in {**a.state, **b.state}
        if key not in a.state
        or key not in b.state
        or not same_tensor(a.state[key], b.state[key])
    ]
    names += [fit.prefix + key for fit in (a, b) for key in fit.strange]
    return [name for name in names if not name.endswith("num_batches_tracked")] or None


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and values."""
    # The copies of published files share memory, which makes this free.
    shared = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    return a.shape == b.shape and (shared or torch.equal(a, b))
