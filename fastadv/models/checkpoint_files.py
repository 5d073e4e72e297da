"""Which file of weights a path stands for, and what the header of a file says."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path

from fastadv.errors import CheckpointError, first_few
from fastadv.files import file_sha256
from fastadv.models.architecture_names import ARCHITECTURES, MODEL_FILE
from fastadv.models.file_checksums import read_texts

WEIGHT_SUFFIXES = (
    ".safetensors",
    ".ckpt",
    ".pth",
    ".pt",
    ".th",
    ".tar",
    ".bin",
    ".pkl",
)
"""How names of files of weights end; `.tar` is that of `model.pth.tar`."""

_INDEX = ".index.json"
WEIGHT_FILES = (
    *(MODEL_FILE, f"{MODEL_FILE}{_INDEX}"),
    *("pytorch_model.bin", f"pytorch_model.bin{_INDEX}"),
)
"""Names of weights in a folder of the Hugging Face layout, in order of preference."""


def resolve_checkpoint(path: str | Path) -> Path:
    """Return the weights file that `path`, a file or a run folder, stands for.

    Raises:
        CheckpointError: There is no such file, or the folder holds no checkpoint.
    """
    given = Path(path)
    if given.is_file():
        return given
    if not given.exists():
        raise CheckpointError(
            f"there is no file or folder {given}{_near_paths(given)}; give a checkpoint "
            "file, the folder of a training run, or a name such as torchvision:resnet18, "
            "timm:NAME, salman2020:resnet50_l2_eps3 or hf:org/name"
        )
    if not given.is_dir():
        raise CheckpointError(
            f"{given} is a pipe, a socket or a device; give a file of weights, or a folder"
        )
    choices = [given / "checkpoints" / which / MODEL_FILE for which in ("best", "last")]
    choices += [given / name for name in WEIGHT_FILES]
    for choice in choices:
        if choice.is_file():
            return choice
    single = [
        path for path in sorted(given.iterdir()) if path.suffix in WEIGHT_SUFFIXES
    ]
    if len(single) == 1:
        return single[0]
    if single:
        names = first_few([path.name for path in single], 4)
        raise CheckpointError(
            f"the folder {given} holds several checkpoints ({names}); give the path of one"
        )
    raise CheckpointError(
        f"the folder {given} holds no checkpoint; looked for "
        + ", ".join(str(choice.relative_to(given)) for choice in choices)
    )


def _near_paths(missing: Path) -> str:
    """Return `; perhaps you meant: ...` with paths like `missing`, or nothing."""
    hints = []
    if missing.parent.is_dir():
        names = [path.name for path in missing.parent.iterdir()]
        near = difflib.get_close_matches(missing.name, names, n=3, cutoff=0.6)
        hints = [str(missing.parent / name) for name in near]
    if str(missing) in ARCHITECTURES:
        hints.append(f"torchvision:{missing}")
    return f"; perhaps you meant: {', '.join(hints)}" if hints else ""


def our_header(file: Path) -> dict[str, str]:
    """Return the texts in the header of a file of `save_model`; of others, nothing.

    Raises:
        CheckpointError: The header is damaged.
    """
    if file.suffix != ".safetensors":
        return {}
    texts = read_texts(file)
    return texts if "fastadv_format" in texts else {}


def shards(file: Path) -> list[Path]:
    """Return the files that an index lists (`model.safetensors.index.json`); else nothing.

    Raises:
        CheckpointError: It is no such index, or a file that it lists is missing.
    """
    parts = [file.parent / part for part in listed_parts(file)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise CheckpointError(
            f"{file} lists {len(parts)} files, of which {first_few(missing, 4)} "
            f"{'are' if len(missing) > 1 else 'is'} missing; download all of them"
        )
    return parts


def listed_parts(file: Path) -> list[str]:
    """Return the names of the files that an index lists; nothing for another file.

    Raises:
        CheckpointError: It is JSON, but no such index.
    """
    if file.suffix != ".json":
        return []
    try:
        names = set(json.loads(file.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{file} is no index of weights (no `weight_map` in it); give the weights"
        ) from None
    return sorted(Path(str(name)).name for name in names)


def checkpoint_sha256(file: Path) -> str:
    """Return the SHA-256 of a file of weights; that of an index is one of its files, too."""
    parts = shards(file)
    if not parts:
        return file_sha256(file)
    sums = "".join(file_sha256(part) for part in (file, *parts))
    return hashlib.sha256(sums.encode()).hexdigest()
