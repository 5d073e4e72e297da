"""Read a file of weights of whatever program, and say what is wrong with what is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fastadv.checksums import check_beside, sums_gap
from fastadv.errors import CheckpointError, first_few
from fastadv.models.checkpoint_contents import Contents, Statistics, read_contents
from fastadv.models.checkpoint_files import shards
from fastadv.models.file_checksums import (
    check_tensors,
    read_texts,
    states_checksum,
    without_checksums,
)
from fastadv.models.safe_pickle import read_pickle

FORMAT_VERSION = 1
_FEW = 4  # names that a message lists
_NO_HASH = (
    "an older version wrote it, without a checksum: damage to it cannot be noticed "
    "(fastadv-models convert --to safetensors writes it with one)"
)
# Files of weights of other programs, and what makes one of them readable.
_FOREIGN = {
    ".onnx": "give what it was converted from",
    ".h5": "it is Keras'; convert it to PyTorch first",
    ".keras": "it is Keras'; convert it to PyTorch first",
    ".msgpack": "it is Flax'; convert it to PyTorch first",
    ".tflite": "give what it was converted from",
    ".engine": "give what it was converted from",
    ".gguf": "give what it was converted from",
    ".distcp": "join its parts: python -m torch.distributed.checkpoint.format_utils "
    "dcp_to_torch FOLDER FILE",
}


@dataclass(frozen=True, slots=True)
class FileContents:
    """The contents of a file, and what its header says.

    Attributes:
        contents: Its tensors by path, and what describes them.
        arch: The architecture, which only files of `save_model` state.
        input: The text about the input that a header of another program holds.
        notes: What a user should know of the file, as sentences without a full stop.
        check: Waits until the tensors were compared with the checksum in the file, and raises
            CheckpointError if they differ. Whoever uses the tensors must call it.
    """

    contents: Contents
    arch: str | None = None
    input: str | None = None
    notes: tuple[str, ...] = ()
    check: Callable[[], object] = lambda: None


def read_checkpoint(file: Path) -> FileContents:
    """Read a file of weights; nothing that it names is run.

    Args:
        file: A safetensors file, the index of several, or what `torch.save` or `pickle`
            wrote.

    Raises:
        CheckpointError: It is damaged, no such file, a program, or holds no tensors; or it
            is not what the checksum in it, or that beside it, says.
    """
    refuse_lookalikes(file)
    if file.suffix != ".safetensors":
        check_beside(file)
    if parts := shards(file):
        merged: dict[str, Tensor] = {}
        for part in parts:
            read = read_checkpoint(part)
            read.check()
            merged |= read.contents.tensors
        return FileContents(read_contents(merged))
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        contents = read_contents(read_pickle(file))
    except NotImplementedError:
        raise CheckpointError(
            f"{file} is a TorchScript archive, a program that cannot be read without being "
            "run, which is refused; save model.state_dict() where the model is built"
        ) from None
    except Exception as error:  # what a damaged pickle raises depends on the bytes
        raise damaged(file, error) from error
    if not contents.tensors:
        raise _no_weights(file, contents)
    return FileContents(contents)


def _no_weights(file: Path, contents: Contents) -> CheckpointError:
    if contents.stubs:
        names = first_few(sorted(contents.stubs), _FEW)
        return CheckpointError(
            f"{file} needs code to be run to read it (it names {names}), which is refused: "
            "such code could do anything. If you trust its source, open it there and "
            "save model.state_dict() alone"
        )
    return CheckpointError(
        f"{file} holds no weights: found {contents.what}; expected a state dict, bare or "
        "inside of other containers"
    )


def _read_safetensors(file: Path) -> FileContents:
    header = read_header(file)
    try:
        texts = read_texts(file)
        check: Callable[[], object] = bool
        if hashed := states_checksum(texts):
            # A network is built while another thread reads the file.
            pool = ThreadPoolExecutor(1)
            check = pool.submit(check_tensors, file, texts).result
            pool.shutdown(wait=False)
        else:
            hashed = bool(check_beside(file))
        state = safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise damaged(file, error) from error
    contents = read_contents(state)
    if "fastadv_format" not in header:
        return FileContents(contents, input=header.get("input"), check=check)
    mean, std = tuple(header["mean"]), tuple(header["std"])
    contents.statistics.append(Statistics("", mean, std))
    notes: tuple[str, ...] = () if hashed else (_NO_HASH,)
    if (file.parent / "state.pt").exists() and (gap := sums_gap(file)):
        notes += (gap,)
    return FileContents(contents, header["arch"], notes=notes, check=check)


def refuse_lookalikes(file: Path) -> None:
    """Refuse what is no file of weights at all: an empty file, a web page, a pointer.

    Raises:
        CheckpointError: It is one of them, or cannot be opened.
    """
    if how := _FOREIGN.get(file.suffix):
        raise CheckpointError(
            f"{file} is no checkpoint that can be read here: {file.suffix} is a format of "
            f"other programs; {how}"
        )
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


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a file of `save_model`; of other files, the text in theirs.

    Raises:
        CheckpointError: The file is damaged, or of a later version.
    """
    try:
        read_texts(file)
        with safetensors.safe_open(file, framework="pt") as handle:
            raw: dict[str, Any] = handle.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise damaged(file, error) from error
    if "fastadv_format" not in raw:
        return without_checksums(raw)
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
        if not isinstance(header["user"], dict):
            raise TypeError("its `user` is no mapping")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise damaged(file, error) from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format {version}, this fastadv reads up to {FORMAT_VERSION}; "
            "upgrade fastadv"
        )
    return header


def damaged(file: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that cannot be read to its end."""
    if file.suffix == ".pkl":
        return CheckpointError(
            f"{file} is no pickle of weights that can be read here; give what it was "
            "converted from"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {(lines or ['?'])[0].rstrip('.')}"
    return CheckpointError(
        f"{file} is damaged, cut short, or no checkpoint at all ({reason}); "
        "download or write it again"
    )
