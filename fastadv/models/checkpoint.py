"""Model weights in and out: safetensors written here, published files read.

Not the resume state of a training run (optimiser, loader, random state), which
belongs to `fastadv.training`. Whatever the file, no pickle is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastadv.errors import CheckpointError, ConfigError
from fastadv.files import write_atomic
from fastadv.models.architecture_names import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    TIMM_PREFIX,
)
from fastadv.models.checkpoint_files import resolve_checkpoint
from fastadv.models.fill_network import fill_network, fitting_archs
from fastadv.models.foreign_checkpoints import (
    BareWeights,
    facts_from_filename,
    find_state_dict,
    unwrap,
)
from fastadv.models.heads import classes_of
from fastadv.models.input_conventions import CONVENTIONS, make_rgb
from fastadv.models.normalized import NormalizedModel
from fastadv.models.registry import get_spec
from fastadv.models.weights import Weights, find_weights

log = logging.getLogger(__name__)

FORMAT_VERSION = 1

# How torch's restricted unpickler words a refusal, as opposed to damage.
_NEEDS_CODE = re.compile(
    r"unsupported (global|class)|call reduce|can only (build|create)|blocked", re.I
)


def save_model(
    model: NormalizedModel,
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as one safetensors file, atomically.

    Tensors carry the keys of the bare network, so any torchvision code can load them;
    architecture, classes and normalisation are in the header.

    Args:
        model: The model; its weights are stored in their own dtype.
        path: The file to write; missing folders are made.
        metadata: Anything JSON can hold (threat model, epoch, accuracy, commit).

    Raises:
        OutputError: The file cannot be written (full disk, no permission); what was at
            `path` before is unchanged.
        ConfigError: The architecture is not registered, so that `load_model` could not
            build the network again.
        TypeError: `metadata` holds something JSON cannot.
    """
    try:
        get_spec(model.arch)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. `load_model` could not build this network again, so {path} is not "
            "written. Keep a network of your own with torch.save(model.net.state_dict(), "
            "path), and give its weights back with model.net.load_state_dict"
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
    if trunk is not None:
        header["trunk"] = trunk
    tensors = model.net.state_dict() if state is None else state
    return _in_order(safetensors.torch.save(cpu_state(tensors), header))


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file with its header sorted, which safetensors does not do."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def cpu_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with contiguous tensors on the CPU."""
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}


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
    arch: str | None = None,
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
            (`{arch}_l2_eps3.ckpt`). If the file says otherwise it is refused.
        num_classes: Number of classes that the head must have; None accepts any.
        mean: Per-channel mean in [0, 1] units, where the file does not say; the
            default is ImageNet's. If the file says otherwise it is refused.
        std: Per-channel standard deviation, for which the same holds.
        download: Fetch the file that a name stands for if it is not on this machine.

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, needs code to be
            run, or is of another architecture, class count or normalisation.
        ConfigError: `arch` or the name is unknown.

    Example:
        >>> model = load_model("resnet18_l2_eps3.ckpt")  # doctest: +SKIP
        >>> model.arch, model.num_classes  # doctest: +SKIP
        ('resnet18', 1000)
    """
    weights = find_weights(os.fspath(source), download=download)
    return read_model(
        replace(weights, arch=arch or weights.arch), num_classes, mean=mean, std=std
    )


def read_model(
    weights: Weights,
    num_classes: int | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> NormalizedModel:
    """Load a model from a file that `find_weights` found; see `load_model`."""
    file = weights.file
    bare = _read(file)
    if weights.trunk is not None:
        below = read_model(weights.trunk).net.state_dict()
        bare = replace(bare, state=dict(below) | bare.state)
    spec = get_spec(_decide_arch(weights, bare))
    net = fill_network(spec, bare.state, file)
    found = classes_of(net, spec.head_paths(net))
    if num_classes not in (None, found):
        raise CheckpointError(
            f"{file} classifies {found} classes, not {num_classes}; load it without "
            "num_classes and call model.replace_head to transfer it"
        )
    stated = weights.convention
    if stated is None and bare.mean is None and bare.input:
        log.warning(
            "%s says its input is %r; it gets RGB images with ImageNet's mean and std. If "
            "that is not the same, add the convention after its name: ,input=%s",
            file,
            bare.input,
            "|".join(CONVENTIONS),
        )
    if stated is not None:
        mean, std = mean or stated.mean, std or stated.std
        if stated.bgr:
            make_rgb(net)
    mean = _decide_statistic("mean", mean, bare.mean, IMAGENET_MEAN, file)
    std = _decide_statistic("std", std, bare.std, IMAGENET_STD, file)
    try:
        model = NormalizedModel(net, mean, std, spec.name, found, spec=spec)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
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
    header = _read_header(file) if file.suffix == ".safetensors" else {}
    if "fastadv_format" not in header:
        raise CheckpointError(
            f"{file} carries no fastadv metadata; only files of save_model do"
        )
    return header


def _read(file: Path) -> BareWeights:
    _refuse_lookalikes(file)
    if file.suffix != ".safetensors":
        return unwrap(find_state_dict(_load_pickle_safely(file), file), file)
    header = _read_header(file)
    try:
        state = safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(file, error) from error
    if "fastadv_format" in header:
        mean, std = tuple(header["mean"]), tuple(header["std"])
        return BareWeights(state, mean, std, arch=header["arch"])
    return replace(unwrap(state, file), input=header.get("input"))


def _refuse_lookalikes(file: Path) -> None:
    try:
        with open(file, "rb") as stream:
            start = stream.read(256).lstrip().lower()
    except OSError as error:
        raise CheckpointError(f"could not read {file}: {error.strerror}") from error
    if not start:
        raise CheckpointError(f"{file} is empty; download or write it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            f"{file} is a web page, not a checkpoint: the download returned an error "
            "or log-in page. Open the link in a browser and save the file it offers"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{file} is a Git LFS pointer, not the weights; run: git lfs pull"
        )


def _read_header(file: Path) -> dict[str, Any]:
    """Return the header of a file of `save_model`; of other files, the text in theirs."""
    try:
        with safetensors.safe_open(file, framework="pt") as handle:
            raw: dict[str, Any] = handle.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(file, error) from error
    if "fastadv_format" not in raw:
        return raw
    try:
        version = int(raw["fastadv_format"])
        header = {
            "fastadv_format": version,
            "arch": raw["arch"],
            "num_classes": int(raw["num_classes"]),
            "mean": [float(value) for value in json.loads(raw["mean"])],
            "std": [float(value) for value in json.loads(raw["std"])],
            "user": json.loads(raw["user"]),
        }
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(file, error) from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format {version}, this fastadv reads up to {FORMAT_VERSION}; "
            "upgrade fastadv"
        )
    return header


def _load_pickle_safely(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises depends on the bytes
        reason = _reason(error)
        if not _NEEDS_CODE.search(reason):
            raise _damaged(file, error) from error
        raise CheckpointError(
            f"{file} needs code to be run to read it ({reason}), which is refused: "
            "such code could do anything. If you trust its source, open it there and "
            "save model.state_dict() alone"
        ) from error


def _reason(error: Exception) -> str:
    """Return the first sentence of the cause, without torch's advice to unpickle."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if _NEEDS_CODE.search(line)] or lines or ["?"]
    text = telling[0].removeprefix("WeightsUnpickler error: ")
    sentence = re.split(r"\.\s| was not an allowed", text, maxsplit=1)[0].rstrip(".")
    return f"{type(error).__name__}: {sentence}"


def _damaged(file: Path, error: Exception) -> CheckpointError:
    if file.suffix in (".onnx", ".pkl"):
        return CheckpointError(
            f"{file} is no checkpoint that can be read here: .onnx and Detectron2's .pkl "
            "are formats to write; give what it was converted from"
        )
    return CheckpointError(
        f"{file} is damaged, cut short, or no checkpoint at all ({_reason(error)}); "
        "download or write it again"
    )


def _decide_arch(weights: Weights, bare: BareWeights) -> str:
    file, given = weights.file, weights.arch
    if bare.arch is not None and given not in (None, bare.arch):
        raise CheckpointError(f"{file} is a {bare.arch}, not a {given}")
    guess = str(facts_from_filename(file).get("arch"))
    if guess not in ARCHITECTURES and not guess.startswith(TIMM_PREFIX):
        guess = ""
    if decided := bare.arch or given or guess:
        return decided
    fits = fitting_archs(bare.state)
    if len(fits) == 1:
        log.warning(
            "%s does not say its architecture; its weights fit %s alone, which is taken",
            file,
            fits[0],
        )
        return fits[0]
    hint = f"its weights fit {' and '.join(fits)}" if fits else "no known one fits"
    raise CheckpointError(
        f"{file} does not say its architecture; {hint}. Pass `arch=NAME`"
    )


def _decide_statistic(
    name: str,
    given: Sequence[float] | None,
    stored: Sequence[float] | None,
    default: Sequence[float],
    file: Path,
) -> Sequence[float]:
    if stored is None:
        return default if given is None else given
    equal = given is None or torch.allclose(
        torch.tensor(list(given)), torch.tensor(list(stored)), atol=1e-5
    )
    if not equal:
        raise CheckpointError(
            f"{file} was trained with {name} {tuple(stored)}, not {tuple(given or ())};"
            f" leave {name} out to use its own"
        )
    return stored
