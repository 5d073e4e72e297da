"""Files behind http(s) addresses, fetched once into the cache folder with permission.

A file is there whole or not at all; once there, its address is its identity.
"""

from __future__ import annotations

import http.client
import shutil
import urllib.request
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fastadv.data.cache import text_key
from fastadv.errors import DataError
from fastadv.files import atomic, fastadv_cache_dir

_TIMEOUT = 60  # seconds without a byte


def is_address(text: str) -> bool:
    """Whether `text` is an http or https address."""
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
