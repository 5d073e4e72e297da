"""RobustBench's 5,000 validation images of ImageNet: where the list of them is found.

The list is a file of RobustBench and not of fastadv; its content is checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Final

from fastadv.addresses import local_copies
from fastadv.errors import DataError

NAME: Final = "robustbench"
"""What `image_list` calls the list."""

URL: Final = (
    "https://raw.githubusercontent.com/RobustBench/robustbench/"
    "78fcc9e48a07a861268f295a777b975f25155964/"
    "robustbench/helper_files/imagenet_test_image_ids.txt"
)
SHA256: Final = "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"
"""SHA-256 of the lines, joined by single line feeds."""


def robustbench_images(*, download: bool = False) -> Path:
    """Return the file that lists the images: of the installed package, or from its address.

    Args:
        download: Fetch it if it is not on this machine.

    Raises:
        DataError: It is not here and must not or cannot be fetched, or it lists other images.

    Source: Croce et al. 2021, RobustBench (2010.09670); the file
        `robustbench/helper_files/imagenet_test_image_ids.txt` of its repository.
    """
    hint = (
        "pip install robustbench, which holds it, or add `download`, or give the path of the "
        "file as `image_list`"
    )
    file = _installed() or local_copies([URL], download=download, hint=hint)[0]
    lines = file.read_text(encoding="utf-8").split()
    if hashlib.sha256("\n".join(lines).encode()).hexdigest() != SHA256:
        raise DataError(
            f"{file} lists other images than RobustBench's 5,000 of ImageNet; remove it, and "
            "fetch it again"
        )
    return file


def _installed() -> Path | None:
    """Return the list in the package robustbench, which is not imported; None without it."""
    try:
        spec = importlib.util.find_spec("robustbench")
    except (ImportError, ValueError):
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / "helper_files" / URL.rpartition("/")[2]
        if file.is_file():
            return file
    return None
