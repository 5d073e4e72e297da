"""Endings of file names: which are images that Pillow reads, and what is left out.

Left out are formats that Pillow only recognises, films, and those that it hands to
another program (EPS).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

log = logging.getLogger(__name__)

# What Pillow 10 to 13 can decode to pixels.
IMAGE_SUFFIXES = frozenset(
    f".{ending}"
    for ending in [
        "apng",
        "avif",
        "avifs",
        "blp",
        "bmp",
        "bw",
        "cur",
        "dcx",
        "dds",
        "dib",
        "flc",
        "fli",
        "ftc",
        "ftu",
        "gbr",
        "gif",
        "icb",
        "icns",
        "ico",
        "im",
        "j2c",
        "j2k",
        "jfif",
        "jp2",
        "jpc",
        "jpe",
        "jpeg",
        "jpf",
        "jpg",
        "jpx",
        "mpo",
        "msp",
        "pbm",
        "pcd",
        "pcx",
        "pgm",
        "png",
        "pnm",
        "ppm",
        "psd",
        "pxr",
        "qoi",
        "ras",
        "rgb",
        "rgba",
        "sgi",
        "tga",
        "tif",
        "tiff",
        "vda",
        "vst",
        "webp",
        "xbm",
        "xpm",
    ]
)
USUAL = ".bmp .gif .jfif .jpeg .jpg .png .tif .tiff .webp and others that Pillow reads"
# What lies beside images and is none of them.
_NOTES = frozenset(
    [
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".xml",
        ".md",
        ".rst",
        ".html",
        ".yaml",
        ".yml",
        ".ini",
        ".db",
        ".mat",
        ".log",
        ".py",
        ".ipynb",
        ".url",
        ".lnk",
        ".pdf",
        ".npy",
        ".npz",
        ".pkl",
        ".parquet",
        ".sh",
        ".m",
        ".names",
        ".cfg",
    ]
)


def suffix_of(path: str) -> str:
    """Return the ending of a path in lower case, with its dot; empty without one."""
    name = path[path.rfind("/") + 1 :]  # quicker than pathlib, for millions of files
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def is_image(path: str) -> bool:
    """Return whether a path ends like an image that Pillow reads."""
    return suffix_of(path) in IMAGE_SUFFIXES


def left_out(paths: Iterable[str]) -> dict[str, int]:
    """Count the files that are no images by ending, most frequent first.

    Notes and lists (.txt, .csv, ...) are not counted; files without an ending are, as
    `(none)`.
    """
    counts = Counter(
        suffix_of(path) or "(none)"
        for path in paths
        if not is_image(path) and suffix_of(path) not in _NOTES
    )
    return dict(counts.most_common())


def report_left_out(where: str, counts: Mapping[str, int]) -> None:
    """Warn of files that were left out, if there are any."""
    if not counts:
        return
    listed = ", ".join(f"{ending} {count}" for ending, count in counts.items())
    log.warning(
        "%s: %d file(s) are left out, since Pillow reads no images of their endings: %s. "
        "Convert what should be read, for example to PNG",
        where,
        sum(counts.values()),
        listed,
    )
