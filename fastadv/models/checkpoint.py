"""Model weights in and out: safetensors written here, files of all programs read.

Not the resume state of a training run (optimiser, loader, random state), which
belongs to `fastadv.training`. Whatever the file, nothing that it names is ever run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fastadv.errors import CheckpointError, ConfigError
from fastadv.files import write_atomic
from fastadv.models import timm_models
from fastadv.models.architecture_names import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    TIMM_PREFIX,
)
from fastadv.models.checkpoint_contents import find_statistics, without
from fastadv.models.checkpoint_files import our_header, resolve_checkpoint
from fastadv.models.file_checksums import with_checksums
from fastadv.models.fill_network import Filled, fill_network
from fastadv.models.foreign_checkpoints import facts_from_filename
from fastadv.models.input_conventions import CONVENTIONS, make_rgb
from fastadv.models.input_shapes import first_convolution
from fastadv.models.normalized import NormalizedModel, as_model
from fastadv.models.own_networks import own_network
from fastadv.models.read_checkpoint import (
    FORMAT_VERSION,
    FileContents,
    read_checkpoint,
    read_header,
)
from fastadv.models.registry import arch_name, get_spec
from fastadv.models.tokens import TOKENS, token_of
from fastadv.models.weights import Weights, find_weights

log = logging.getLogger(__name__)


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as one safetensors file, atomically.

    Tensors carry the keys of the bare network, so any torchvision code can load them;
    architecture, classes and normalisation are in the header.

    Args:
        model: The model, or a network of your own that takes [0, 1] images; its weights are
            stored in their own dtype.
        path: The file to write; missing folders are made.
        metadata: Anything JSON can hold (threat model, epoch, accuracy, commit).

    Raises:
        OutputError: The file cannot be written (full disk, no permission); what was at
            `path` before is unchanged.
        ConfigError: The architecture is not registered, so that `load_model` could not
            build the network again.
        TypeError: `metadata` holds something JSON cannot.
    """
    model = as_model(model)
    try:
        get_spec(model.arch)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. `load_model` could not build this network again, so {path} is not "
            "written"
        ) from None
    write_atomic(path, model_bytes(model, metadata))


def model_bytes(
    model: NormalizedModel,
    metadata: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    trunk: str | None = None,
) -> bytes:
    """Return the file that `save_model` writes; equal models give equal bytes.

    Args:
        model: The model.
        metadata: Anything JSON can hold.
        state: The tensors to store, where those of `trunk` are not to be stored again;
            None stores all.
        trunk: Which network the other tensors are of; an `Origin` as text.
    """
    header = {
        "fastadv_format": str(FORMAT_VERSION),
        "arch": model.arch,
        "num_classes": str(model.num_classes),
        "mean": json.dumps(decimals(model.mean)),
        "std": json.dumps(decimals(model.std)),
        "user": json.dumps(dict(metadata or {})),
    }
    if model.image_size is not None:
        header["image_size"] = str(model.image_size)
    if model.token is not None:
        header["token"] = model.token
    if trunk is not None:
        header["trunk"] = trunk
    tensors = model.net.state_dict() if state is None else state
    return with_checksums(safetensors.torch.save(cpu_state(tensors), header))


def cpu_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with contiguous tensors on the CPU."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        # A parameter of several modules is stored for each: no file shares memory.
        place = tensor.untyped_storage().data_ptr() if tensor.numel() else 0
        found[key] = tensor.clone() if place in seen and place else tensor
        seen.add(place)
    return found


def decimals(values: Tensor) -> list[float]:
    """Return the shortest decimals of each float32: 0.485, not 0.48500001430511475."""
    return [float(str(value)) for value in values.float().cpu().numpy()]


def state_hash(model: nn.Module) -> str:
    """Return a SHA-256 (64 hexadecimal digits) of names and values of a state dict.

    It does not depend on device, memory format or file; equal hashes mean that weights
    and buffers are equal to the bit.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_model(
    source: str | os.PathLike[str],
    arch: str | nn.Module | Callable[..., nn.Module] | None = None,
    num_classes: int | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    download: bool = False,
) -> NormalizedModel:
    """Load a model, in eval mode, on the CPU.

    Args:
        source: A file of `save_model`; a run folder (its `checkpoints/best`, else
            `last`); a published checkpoint: a torchvision state dict, or the files
            of Salman et al. and MadryLab's `robustness` with their wrappers; or a name:
            `torchvision:resnet18`, `timm:NAME`, `hf:org/name` (see `weights.py`, also
            for options such as `,input=caffe` after it).
        arch: Architecture, where neither the file nor its name says
            (`{arch}_l2_eps3.ckpt`). If the file says otherwise it is refused. Of a
            network of your own: its name, the function or class that builds it, or a
            network of the kind, which is copied.
        num_classes: Number of classes that the head must have; None accepts any.
        mean: Per-channel mean in [0, 1] units, where the file does not say; the
            default is ImageNet's. If the file says otherwise it is refused.
        std: Per-channel standard deviation, for which the same holds.
        download: Fetch the file that a name stands for if it is not on this machine.

    Raises:
        CheckpointError: The file is missing, damaged (its content and the checksum in it, or
            in the SHA256SUMS or the card beside it, differ), not a checkpoint, needs code to
            be run, or is of another architecture, class count or normalisation.
        ConfigError: `arch` or the name is unknown.

    Example:
        >>> model = load_model("resnet18_l2_eps3.ckpt")  # doctest: +SKIP
        >>> model.arch, model.num_classes  # doctest: +SKIP
        ('resnet18', 1000)
    """
    weights = find_weights(os.fspath(source), download=download)
    given = weights.arch if arch is None else arch_name(arch)
    return read_model(replace(weights, arch=given), num_classes, mean=mean, std=std)


def read_model(
    weights: Weights,
    num_classes: int | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    quiet: bool = False,
) -> NormalizedModel:
    """Load a model from a file that `find_weights` found; see `load_model`.

    Args:
        weights: The file, and what is known of it.
        num_classes: As `load_model` takes it.
        mean: As `load_model` takes it.
        std: As `load_model` takes it.
        quiet: Do not say again what was chosen.
    """
    file = weights.file
    read = read_checkpoint(file)
    tensors = read.contents.tensors
    if weights.trunk is not None:
        below = read_model(weights.trunk, quiet=True).net.state_dict()
        tensors = dict(below) | tensors
    tensors = without(tensors, weights.ignored, file)
    try:
        filled = fill_network(
            tensors,
            _stated_arch(weights, read),
            file,
            names=read.contents.names,
            which=weights.which,
        )
    finally:
        read.check()  # damage is the reason of whatever else is wrong
    found = filled.fit.classes
    if num_classes not in (None, found):
        raise CheckpointError(
            f"{file} classifies {found} classes, not {num_classes}; load it without "
            "num_classes and call model.replace_head to transfer it"
        )
    notes = list(filled.notes)
    stated = weights.convention
    if stated is not None:
        mean, std = mean or stated.mean, std or stated.std
        if stated.bgr:
            make_rgb(filled.net)
    mean, std, note = _decide_statistics(read, tensors, filled, (mean, std), file)
    mean, std = (_for_each_channel(values, filled.net) for values in (mean, std))
    first = first_convolution(filled.net)
    if len(mean) == 3 and first is not None and first[1].in_channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)  # those of grey images
    spec = filled.spec
    try:
        model = NormalizedModel(filled.net, mean, std, spec.name, found, spec=spec)
        if side := our_header(file).get("image_size"):
            model.image_size = int(side)
        model.token = filled.token
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    model.set_token(weights.token)
    if found == 0 and model.token is None and (token := token_of(filled.net)):
        others = " or ".join(f",token={each}" for each in TOKENS if each != token)
        what = "class token" if token == "class" else "mean of the patches' tokens"
        notes.append(
            f"its embedding is the {what}; write {others} after its name to take another"
        )
    if risky := read.contents.risky:
        notes.append(f"it names {risky[0]}, which weights do not need; it was not run")
    notes += [*note, *read.notes]
    if notes and not quiet:
        log.warning("%s: %s", file, "; ".join(notes))
    return model.eval()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header that `save_model` wrote, without reading the weights.

    Returns:
        `arch`, `num_classes`, `mean`, `std`, `fastadv_format`, and `user`: the
        `metadata` given to `save_model`.

    Raises:
        CheckpointError: The file is not one of `save_model`, or is damaged.
    """
    file = resolve_checkpoint(os.fspath(path))
    header = read_header(file) if file.suffix == ".safetensors" else {}
    if "fastadv_format" not in header:
        raise CheckpointError(
            f"{file} carries no fastadv metadata; only files of save_model do"
        )
    return header


def _stated_arch(weights: Weights, read: FileContents) -> str | None:
    """Return the architecture that the file, the user or the file's name states, if any."""
    file, given = weights.file, weights.arch
    if read.arch is not None and given not in (None, read.arch):
        if own_network(given or "") is None or read.arch in ARCHITECTURES:
            raise CheckpointError(f"{file} is a {read.arch}, not a {given}")
        return str(given)  # a network of your own may have got another name
    guess = str(facts_from_filename(file).get("arch"))
    if guess not in ARCHITECTURES and not guess.startswith(TIMM_PREFIX):
        guess = ""
    return read.arch or given or guess or None


def _for_each_channel(values: Sequence[float], net: nn.Module) -> Sequence[float]:
    """Repeat a single value for the channels that the first convolution takes."""
    if len(values) > 1:
        return values
    kernels = [tensor for tensor in net.parameters() if tensor.dim() == 4]
    return tuple(values) * (kernels[0].shape[1] if kernels else 1)


Values = Sequence[float] | None


def _decide_statistics(
    read: FileContents,
    tensors: Mapping[str, Tensor],
    filled: Filled,
    given: tuple[Values, Values],
    file: Path,
) -> tuple[Sequence[float], Sequence[float], list[str]]:
    """Return the mean and the deviation, and what is to be said of where they come from."""
    try:
        found = find_statistics(read.contents, tensors, filled.fit, file)
    except CheckpointError:
        if given[0] is None or given[1] is None:
            raise
        return given[0], given[1], []
    if found is not None:
        mean = _agreed("mean", given[0], found.mean, file)
        std = _agreed("std", given[1], found.std, file)
        where = f"its normalisation is what {found.path} in it says"
        return mean, std, [where] if read.arch is None and not found.in_tensors else []
    own = own_network(filled.spec.name)
    if own is not None and own.mean is not None and own.std is not None:
        return given[0] or own.mean, given[1] or own.std, []
    usual = IMAGENET_MEAN, IMAGENET_STD
    assumed = timm_models.statistics(filled.net) or usual
    mean, std = given[0] or assumed[0], given[1] or assumed[1]
    if None not in given or (facts_from_filename(file) and assumed == usual):
        return mean, std, []
    if read.input:
        said = f"it says its input is {read.input!r}; it gets RGB images with"
    else:
        said = "it does not say how its images were normalised; assumed are"
    name = filled.spec.name.removeprefix(TIMM_PREFIX)
    whose = "ImageNet's" if assumed == usual else f"timm's ({name})"
    return (
        mean,
        std,
        [
            f"{said} {whose} mean and std. If that is not right, add to its name: ,input="
            f"{'|'.join(CONVENTIONS)}, or ,mean=R,G,B,std=R,G,B with numbers in [0, 1]"
        ],
    )


def _agreed(
    name: str, given: Values, stored: Sequence[float], file: Path
) -> Sequence[float]:
    equal = given is None or torch.allclose(
        torch.tensor(list(given)), torch.tensor(list(stored)), atol=1e-5
    )
    if not equal:
        raise CheckpointError(
            f"{file} was trained with {name} {tuple(stored)}, not {tuple(given or ())};"
            f" leave {name} out to use its own"
        )
    return stored
