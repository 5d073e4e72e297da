"""Files by name: which format a name stands for, and which files a pattern names.

`shards-{000000..000012}.tar`, `{train,val}-*.tar`; at http(s) addresses braces only. Files
behind addresses are fetched once into the cache folder, see `fastadv.addresses`.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import os
import re
from pathlib import Path

from fastadv.addresses import (
    file_name,
    is_address,
    is_http,
    listed as addresses_in,
    local_copies,
)
from fastadv.errors import DataError

_MAX_EXPANDED = 1_000_000  # files of one pattern: more is a typing error

# Format by file name. ImageNet's TFRecords are called train-00000-of-01024.
_FORMATS = {
    "tar": re.compile(r"\.tar(\.\w+)?$|\.tgz$"),
    "tfrecord": re.compile(r"\.tfrecords?(-\d+-of-\d+)?$|^[^.]*-\d{5}-of-\d{5}$"),
    "recordio": re.compile(r"\.rec$"),
    "columns": re.compile(r"\.(parquet|arrow)$"),
    "npz": re.compile(r"\.np[zy]$|\.mat$|idx[13]-ubyte(\.gz)?$"),
    "zip": re.compile(r"\.zip$"),
}


def looks_like_a_path(text: str) -> bool:
    """Return whether `text` can only be a path or pattern, not a mistyped name."""
    return os.sep in text or file_format(text) is not None or is_pattern(text)


def file_format(name: str) -> str | None:
    """Return the format a file name stands for, or None."""
    found = (f for f, pattern in _FORMATS.items() if pattern.search(name.lower()))
    return next(found, None)


def is_pattern(text: str) -> bool:
    """Return whether `text` has characters of a pattern."""
    return any(c in text for c in "{*?[")


def expand(text: str, *, download: bool = False) -> list[Path]:
    """Return the files of a pattern with `{a,b}`, `{000..012}`, `*`, `?` and `[...]`.

    Args:
        text: The pattern. In an http(s) address only braces are patterns; an address of
            another scheme may be a folder.
        download: Fetch the files of an address that are not in the cache folder.

    Raises:
        DataError: A file the braces name is not there, or nothing matches.
    """
    if is_address(text):
        return _fetched(text, download)
    paths: list[Path] = []
    for name in _braces(os.path.expanduser(text)):
        if glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True), key=os.fsencode)
        else:
            found = [name] if os.path.exists(name) else []
        if not found:
            one = f"{text}: no such file {name}"
            raise DataError(one if name != text else f"no file matches {text}")
        paths += map(Path, found)
    return paths


def _fetched(text: str, download: bool) -> list[Path]:
    """Return the copies of the files that an address or a pattern of addresses names."""
    hint = fetch_hint(text)
    addresses = []
    for each in _braces(text):
        name = file_name(each)
        if not is_http(each) and (
            any(c in each for c in "*?[") or not file_format(name)
        ):
            found = addresses_in(
                each, lambda n: file_format(n) is not None, download=download, hint=hint
            )
            if not found:
                raise DataError(
                    f"{each} holds no data files, which end in one of "
                    f"{', '.join(_FORMATS)}"
                )
            addresses += found
            continue
        if any(c in each for c in "*[") or file_format(name) is None:
            raise DataError(
                f"{text} does not name data files: an address needs a file name of "
                f"{', '.join(_FORMATS)}, and at http of patterns only braces, like "
                "https://host/train-{000000..000012}.tar"
            )
        addresses.append(each)
    return local_copies(addresses, download=download, hint=hint)


def _braces(text: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        low, high = int(span[1]), int(span[2])
        if high - low >= _MAX_EXPANDED or high < low:
            raise DataError(f"{{{match[1]}}} in {text} is no range of files")
        inner = [str(i).zfill(len(span[1])) for i in range(low, high + 1)]
    else:
        inner = match[1].split(",")
    return [
        text[: match.start()] + middle + rest
        for middle in inner
        for rest in _braces(text[match.end() :])
    ]


def names_file(text: str, path: Path) -> bool:
    """Return whether a pattern stands for `path`, which need not be there."""
    alternatives = _braces(os.path.expanduser(text))
    return any(fnmatch.fnmatchcase(str(path), str(Path(a))) for a in alternatives)


def existing(text: str) -> Path:
    """Return a text as a path that exists.

    Raises:
        DataError: There is no such path; the message names similar ones.
    """
    path = Path(text).expanduser()
    if path.exists():
        return path
    message = f"no data set at {path.absolute()}: no such folder or zip archive"
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, os.listdir(path.parent))
        if near:
            message += f"; perhaps you meant: {', '.join(near)}"
    raise DataError(message)


def fetch_hint(name: str) -> str:
    """Return how a data set that is not on this machine is fetched."""
    return (
        "nothing is downloaded without permission: fetch it once with `fastadv-data stats "
        f"'{name}' --dataset-option download=true` (Python: open_dataset(..., "
        "download=True))"
    )
