"""Files by name: which format a name stands for, and which files a pattern names.

`shards-{000000..000012}.tar`, `{train,val}-*.tar`; at http(s) addresses braces only. Files
behind addresses are fetched once into the cache folder, with permission, and are there
whole or not at all; once there, the address is the identity of a file.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import http.client
import os
import re
import shutil
import urllib.request
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fastadv.data.cache import text_key
from fastadv.errors import DataError
from fastadv.files import atomic, fastadv_cache_dir

_TIMEOUT = 60  # seconds without a byte

_MAX_EXPANDED = 1_000_000  # files of one pattern: more is a typing error

# Format by file name. ImageNet's TFRecords are called train-00000-of-01024.
_FORMATS = {
    "tar": re.compile(r"\.tar(\.\w+)?$|\.tgz$"),
    "tfrecord": re.compile(r"\.tfrecords?(-\d+-of-\d+)?$|^[^.]*-\d{5}-of-\d{5}$"),
    "recordio": re.compile(r"\.rec$"),
    "columns": re.compile(r"\.(parquet|arrow)$"),
    "npz": re.compile(r"\.npz$"),
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
        text: The pattern. In an http(s) address only braces are patterns.
        download: Fetch the files of an address that are not in the cache folder.

    Raises:
        DataError: A file the braces name is not there, or nothing matches.
    """
    if is_address(text):
        addresses = _braces(text)
        if any(c in text for c in "*[") or not all(
            file_format(file_name(address)) for address in addresses
        ):
            raise DataError(
                f"{text} does not name data files: an address needs a file name of "
                f"{', '.join(_FORMATS)}, and of patterns only braces, like "
                "https://host/train-{000000..000012}.tar"
            )
        return local_copies(text, addresses, download=download)
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


def is_address(text: str) -> bool:
    """Return whether `text` is an http or https address."""
    return text.startswith(("http://", "https://"))


def file_name(address: str) -> str:
    """Return the name of the file behind an address."""
    return PurePosixPath(unquote(urlsplit(address).path)).name


def fetch_hint(name: str) -> str:
    """Return how a data set that is not on this machine is fetched."""
    return (
        "nothing is downloaded without permission: fetch it once with `fastadv-data stats "
        f"'{name}' --dataset-option download=true` (Python: open_dataset(..., "
        "download=True))"
    )


def local_copies(
    pattern: str, addresses: Sequence[str], *, download: bool
) -> list[Path]:
    """Return the file of each address in the cache folder.

    Args:
        pattern: The pattern as the user wrote it, for messages.
        addresses: The addresses that it stands for.
        download: Fetch the files that are not in the cache folder.

    Raises:
        DataError: A file is absent and must not or cannot be fetched.
    """
    folder = fastadv_cache_dir() / "remote"
    paths = [folder / text_key(a) / file_name(a) for a in addresses]
    absent = [i for i, path in enumerate(paths) if not path.exists()]
    if absent and not download:
        raise DataError(
            f"{addresses[absent[0]]} is not on this machine ({len(absent)} of "
            f"{len(paths)} files are not); {fetch_hint(pattern)}. Every command then "
            f"reads the copies in {fastadv_cache_dir()}"
        )
    for i in absent:
        _fetch(addresses[i], paths[i])
    return paths


def _fetch(address: str, target: Path) -> None:
    try:
        with (
            atomic(target) as temporary,
            urllib.request.urlopen(address, timeout=_TIMEOUT) as response,
            open(temporary, "wb") as file,
        ):
            shutil.copyfileobj(response, file, 1 << 20)
            announced = response.headers.get("Content-Length")
            # A connection that was cut ends like a file that ends.
            if announced is not None and file.tell() != int(announced):
                raise OSError(f"{file.tell()} of {announced} bytes came")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(
            f"cannot fetch {address}: {error}; check the address and the network, and run "
            "the command again: files already fetched are kept"
        ) from error
