"""Which file of weights a path stands for, and what the header of a file says."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from fastadv.errors import CheckpointError
from fastadv.models.architecture_names import ARCHITECTURES, MODEL_FILE

_LONGEST_HEADER = 100 << 20  # what safetensors itself accepts, bytes


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
    choices = [given / "checkpoints" / which / MODEL_FILE for which in ("best", "last")]
    for choice in (*choices, given / MODEL_FILE):
        if choice.is_file():
            return choice
    raise CheckpointError(
        f"the folder {given} holds no checkpoint; looked for "
        + ", ".join(str(choice.relative_to(given)) for choice in choices)
        + f", {MODEL_FILE}"
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
    """Return the texts in the header of a file of `save_model`; of others, nothing."""
    if file.suffix != ".safetensors":
        return {}
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        start = stream.read(min(size, _LONGEST_HEADER))
    try:
        texts = json.loads(start)["__metadata__"]
        return dict(texts) if "fastadv_format" in texts else {}
    except (ValueError, KeyError, TypeError):
        return {}
