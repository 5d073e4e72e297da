"""Files at addresses: fetched once into the cache folder, with permission, and checked.

http and https are read directly, every other scheme (s3://, gs://, hf://, ...) by fsspec and
the package that it needs for it. A file is there whole or not at all. Once it is there, the
address is its identity; its size is compared each time, and its SHA-256 lies beside it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from fastadv.errors import DataError
from fastadv.files import atomic, fastadv_cache_dir, file_sha256, replace_file

CHECKSUMS = "SHA256SUMS"
_TIMEOUT = 60  # seconds without a byte
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)
_SIZE = "size.json"


def is_address(text: str) -> bool:
    """Return whether a text begins with a scheme, like `https://` or `s3://`."""
    return _SCHEME.match(text) is not None


def file_name(address: str) -> str:
    """Return the name of the file behind an address."""
    return PurePosixPath(unquote(urlsplit(address).path or address)).name


def is_http(address: str) -> bool:
    """Return whether an address is one of http or https."""
    return address.lower().startswith(("http://", "https://"))


def local_copies(addresses: Sequence[str], *, download: bool, hint: str) -> list[Path]:
    """Return the file of each address in the cache folder.

    Args:
        addresses: The addresses.
        download: Fetch the files that are not in the cache folder.
        hint: How to give that permission, for the message.

    Raises:
        DataError: A file is absent and must not or cannot be fetched, or the copy in the
            cache has another size than it had.
    """
    paths = [_place(address) / file_name(address) for address in addresses]
    absent = [i for i, path in enumerate(paths) if not path.exists()]
    if absent and not download:
        raise DataError(
            f"{addresses[absent[0]]} is not on this machine ({len(absent)} of "
            f"{len(paths)} files are not); {hint}. Every command then reads the copies in "
            f"{fastadv_cache_dir()}"
        )
    for i in absent:
        _fetch(addresses[i], paths[i])
    for path in paths:
        _check(path)
    return paths


def listed(
    address: str, wanted: Callable[[str], bool], *, download: bool, hint: str
) -> list[str]:
    """Return the addresses of the files in a folder, or of those that a pattern names.

    The list is kept in the cache folder.

    Args:
        address: A folder, or a pattern with `*`, `?` or `[...]`; not of http.
        wanted: Function of a file's name that tells whether it is listed.
        download: Ask for the list where it is not in the cache folder.
        hint: How to give that permission, for the message.

    Raises:
        DataError: The list is not on this machine, or cannot be had.
    """
    stored = _place(address) / "listing.json"
    if not stored.exists():
        if not download:
            raise DataError(f"the list of {address} is not on this machine; {hint}")
        system, path = _system(address)
        try:
            is_pattern = any(mark in path for mark in "*?[")
            found = system.glob(path) if is_pattern else system.find(path)
        except Exception as error:  # whatever a file system raises
            raise _unreachable(address, error) from error
        names = [system.unstrip_protocol(each) for each in sorted(found)]
        replace_file(stored, json.dumps(names).encode())
    names = json.loads(stored.read_text())
    return [name for name in names if wanted(file_name(name))]


def _place(address: str) -> Path:
    key = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return fastadv_cache_dir() / "remote" / key


def _check(path: Path) -> None:
    """Compare the size of a copy with what was fetched."""
    try:
        size = json.loads((path.parent / _SIZE).read_text())["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # of an older version
    if path.stat().st_size != size:
        raise DataError(
            f"the copy {path} has {path.stat().st_size} bytes and had {size} when it was "
            "fetched; remove it, and fetch it again"
        )


def _fetch(address: str, target: Path) -> None:
    copy = _copy_http if is_http(address) else _copy
    try:
        with atomic(target) as temporary:
            copy(address, temporary)
            size, digest = temporary.stat().st_size, file_sha256(temporary)
            facts = json.dumps({"address": address, "size": size})
            replace_file(target.with_name(_SIZE), facts.encode())
            line = f"{digest}  {target.name}\n"
            replace_file(target.with_name(CHECKSUMS), line.encode())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(address, error) from error


def _copy_http(address: str, target: Path) -> None:
    with (
        urllib.request.urlopen(address, timeout=_TIMEOUT) as response,
        open(target, "wb") as file,
    ):
        shutil.copyfileobj(response, file, 1 << 20)
        announced = response.headers.get("Content-Length")
        # A connection that was cut ends like a file that ends.
        if announced is not None and file.tell() != int(announced):
            raise OSError(f"{file.tell()} of {announced} bytes came")


def _copy(address: str, target: Path) -> None:
    system, path = _system(address)
    try:
        announced = system.info(path).get("size")
        with system.open(path, "rb") as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            if announced is not None and file.tell() != announced:
                raise OSError(f"{file.tell()} of {announced} bytes came")
    except Exception as error:  # whatever a file system raises
        raise _unreachable(address, error) from error


def _system(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"cannot read {address}: {error}; fsspec reads it once the package for its "
            "scheme is installed (s3://: s3fs, gs://: gcsfs, hf://: huggingface-hub)"
        ) from error
    except Exception as error:  # credentials that are missing, for example
        raise _unreachable(address, error) from error
    return system, path


def _unreachable(address: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    reason = str(error) or type(error).__name__
    return DataError(
        f"cannot fetch {address}: {reason}; check the address and the network, and run "
        "the command again: files already fetched are kept"
    )
