"""What a checkpoint of any program holds: its tensors by path, and what it says beside them.

Wherever weights lie in a file, each tensor has a path: the keys that lead to it, joined by
dots (`state_dict.module.conv1.weight`). Wrappers of all kinds are then prefixes of paths,
which `fit_weights.py` takes off, so no list of the wrappers of programs is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv.errors import CheckpointError, ConfigError, first_few
from fastadv.models.fit_weights import Fit
from fastadv.models.safe_pickle import Stub

_DEEPEST = 24  # nested containers; those of real files have at most ten
# Modules that wrap others wherever they are: compiled, sharded, recomputed.
_WRAPPED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_NAME_KEYS = ("arch", "model", "architecture", "model_name", "backbone", "net")
_MEAN = re.compile(r"_?(?:new_|pixel_|image_|img_|input_|data_)?(?:means?|mu)$", re.I)
_STD = re.compile(
    r"_?(?:new_|pixel_|image_|img_|input_|data_)?(?:stds?|stdev|sigma|sd)$", re.I
)
# Functions that a file names to attack whoever reads it, not to describe training.
_RISKY = re.compile(
    r"(?:os|posix|nt|sys|subprocess|shutil|socket|runpy|importlib|ctypes|webbrowser)\."
    r"|builtins\.(?:eval|exec|compile|open|__import__|getattr)$"
)


@dataclass(frozen=True, slots=True)
class Statistics:
    """The mean and the standard deviation that a file states, in [0, 1] pixel units.

    Attributes:
        path: The path of the mean in the file.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        in_tensors: Whether they are buffers of a layer that normalised, not notes.
    """

    path: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_tensors: bool = False


@dataclass(slots=True)
class Contents:
    """What a file holds.

    Attributes:
        tensors: Its tensors by path; those of optimisers are left out.
        names: Texts in it that may name an architecture, in the order they were found.
        statistics: The normalisations that it states outside of its tensors.
        stubs: The functions and classes that it names and that were not loaded.
        what: What it holds on top, for a message.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    statistics: list[Statistics] = field(default_factory=list)
    stubs: set[str] = field(default_factory=set)
    what: str = ""

    @property
    def risky(self) -> list[str]:
        """Names of functions that only an attack on the reader would call."""
        return sorted(name for name in self.stubs if _RISKY.match(name))


def read_contents(content: object) -> Contents:
    """Collect the tensors of what a file holds, at any depth, and what describes them.

    Args:
        content: What `read_pickle` returned, or a state dict.
    """
    found = Contents()
    if isinstance(content, Mapping):
        found.what = f"keys {sorted(map(str, content))[:8]}"
    else:
        name = content.named if isinstance(content, Stub) else type(content).__name__
        found.what = f"a {name}"
    _visit(content, (), found, set())
    return found


def _visit(value: Any, path: tuple[str, ...], found: Contents, seen: set[int]) -> None:
    array = as_tensor(value)
    if array is not None:
        name = _WRAPPED.sub("", ".".join(path))
        found.tensors.setdefault(name, array)
        return
    if isinstance(value, Stub):
        found.stubs.add(value.named)
    if len(path) > _DEEPEST or isinstance(value, (str, bytes)) or id(value) in seen:
        return
    seen.add(id(value))
    entries = dict(_entries(value))
    if "param_groups" in entries:  # the state of an optimiser
        return
    _describe(entries, path, found)
    for key, entry in entries.items():
        _visit(entry, (*path, key) if key else path, found, seen)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a container or of a stub, with their keys as texts."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield (
                key.decode(errors="replace") if isinstance(key, bytes) else str(key),
                entry,
            )
    elif isinstance(value, (list, tuple, set)):
        yield from ((str(place), entry) for place, entry in enumerate(value))
    elif isinstance(value, Stub):
        state = value.state
        if isinstance(state, Mapping) and "_modules" in state:  # a pickled network
            for kind in ("_parameters", "_buffers", "_modules"):
                yield from _entries(state.get(kind))
            return
        yield from _entries(value.entries)
        # An object adds no step to the path of what it holds.
        for part in (state, *value.args):
            yield from _entries(part)
        yield from ((str(place), each) for place, each in enumerate(value.elements))


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or a pickled NumPy array of numbers, as a tensor; else None."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Stub):
        return None
    order: Any
    try:
        if value.named.endswith("multiarray._reconstruct"):
            _, shape, dtype, fortran, data = value.state
            order = "F" if fortran else "C"
        elif value.named.endswith("numeric._frombuffer"):
            data, dtype, shape, order = value.args
        else:
            return None
        code, (_, swapped, *_) = dtype.args[0], dtype.state
        if not re.fullmatch(r"[fiu][1248]|b1", code):
            return None
        kind = np.dtype(code).newbyteorder(">" if swapped == ">" else "<")
        array = np.frombuffer(data, kind).reshape(tuple(shape), order=order)
        return torch.from_numpy(np.array(array, kind.newbyteorder("="), order="C"))
    except (AttributeError, TypeError, ValueError, IndexError):
        return None


def _describe(
    entries: Mapping[str, Any], path: tuple[str, ...], found: Contents
) -> None:
    """Note names of architectures and statistics among entries that are no tensors."""
    for key in _NAME_KEYS:
        if isinstance(text := entries.get(key), str):
            found.names.append(text)
    numbers = {key: _numbers(entry) for key, entry in entries.items()}
    known = {key: each for key, each in numbers.items() if each}
    for mean, std in _pairs(known):
        if std is not None and mean is not None:
            found.statistics.append(
                _in_pixel_units(".".join((*path, mean)), known[mean], known[std])
            )


def _numbers(value: Any) -> tuple[float, ...]:
    """Return the one to four numbers that a list or a small array holds, else nothing."""
    if isinstance(value, Tensor):
        return ()  # those are found by their paths
    array = as_tensor(value)
    if array is not None and array.numel() <= 4:
        value = array.flatten().tolist()
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 4:
        return ()
    if not all(type(each) in (int, float) and math.isfinite(each) for each in value):
        return ()
    return tuple(float(each) for each in value)


def _pairs(keys: Mapping[str, Any]) -> list[tuple[str | None, str | None]]:
    """Return the keys that name a mean and a deviation of the same thing; None for none."""
    means = [key for key in keys if _MEAN.match(key)]
    stds = [key for key in keys if _STD.match(key)]
    return [
        (means[i] if i < len(means) else None, stds[i] if i < len(stds) else None)
        for i in range(max(len(means), len(stds)))
    ]


def _in_pixel_units(
    path: str, mean: Sequence[float], std: Sequence[float], in_tensors: bool = False
) -> Statistics:
    scale = 255.0 if max(mean) > 2 else 1.0  # some networks take images of 0..255
    means, stds = tuple(m / scale for m in mean), tuple(s / scale for s in std)
    return Statistics(path, means, stds, in_tensors)


def without(
    tensors: dict[str, Tensor], ignored: Sequence[str], file: Path
) -> dict[str, Tensor]:
    """Return the tensors of a file but for those that the user said to ignore.

    Args:
        tensors: The tensors by path.
        ignored: Parts of paths, one or more steps of them: `adapter`, `model.proj`.
        file: The file, for messages.

    Raises:
        ConfigError: Nothing in the file is called so.
    """
    left = tensors
    for name in ignored:
        rest = {k: v for k, v in left.items() if f".{name}." not in f".{k}."}
        if len(rest) == len(left):
            steps = {path.split(".")[0] for path in tensors}
            raise ConfigError(
                f"{file} holds nothing called {name!r} (ignore={name}); its tensors begin "
                f"with {first_few(sorted(steps), 6)}"
            )
        left = rest
    return left


def find_statistics(
    contents: Contents, tensors: Mapping[str, Tensor], fit: Fit, file: Path
) -> Statistics | None:
    """Return the normalisation that a file states for the network in it; None for none.

    It is among the tensors that no layer took (`module.normalizer.new_mean`), or beside them.

    Args:
        contents: What the file holds.
        tensors: Its tensors by path.
        fit: The place of the network.
        file: The file, for messages.

    Raises:
        CheckpointError: There is a mean without a deviation, or the reverse, or there are
            several normalisations and none is nearer to the network.
    """
    rest = {path: tensor for path, tensor in tensors.items() if path not in fit.used}
    found = _in_tensors(rest, file) or contents.statistics

    def near(one: Statistics) -> int:
        steps = zip(one.path.split("."), fit.prefix.split("."), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], steps))

    different: dict[tuple[float, ...], Statistics] = {}
    for one in sorted(found, key=near, reverse=True):
        different.setdefault(tuple(round(v, 5) for v in (*one.mean, *one.std)), one)
    first, *others = (*different.values(), None)
    if first is not None and others[0] is not None and near(first) == near(others[0]):
        raise CheckpointError(
            f"{file} states two normalisations, {first.path} and {others[0].path}; write "
            ",mean=R,G,B,std=R,G,B after its name for the one that the network needs"
        )
    return first


def _in_tensors(rest: Mapping[str, Tensor], file: Path) -> list[Statistics]:
    parents: dict[str, dict[str, Tensor]] = {}
    for path, tensor in rest.items():
        parent, _, name = path.rpartition(".")
        if tensor.is_floating_point() and tensor.numel() in (1, 3, 4):
            parents.setdefault(parent, {})[name] = tensor
    found = []
    for parent, named in parents.items():
        for mean, std in _pairs(named):
            if mean is not None and std is not None:
                means, stds = (named[k].flatten().tolist() for k in (mean, std))
                path = f"{parent}.{mean}".lstrip(".")
                found.append(_in_pixel_units(path, means, stds, in_tensors=True))
            elif named[single := str(mean or std)].numel() == 3:
                name = ".".join(f"{parent}.{single}".split(".")[-2:]).lstrip(".")
                raise CheckpointError(
                    f"{file} holds only one of {name!r} and its partner; the model's "
                    "normalisation is incomplete; write ,mean=R,G,B,std=R,G,B after its name"
                )
    return found
