"""SHA256SUMS and cards: hashes that lie beside files of weights, and whether they hold."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from fastadv.errors import CheckpointError
from fastadv.files import file_sha256, replace_file

SUMS = "SHA256SUMS"
"""Name of the file of hashes in a folder, as `sha256sum -c` reads it."""

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *]([^/]+)")
_LONGEST = 1 << 20  # bytes of a file of hashes; each file takes about a hundred


def write_sums(folder: Path) -> None:
    """Write the hashes of all files of a folder into its SHA256SUMS.

    Raises:
        OSError: It cannot be written.
    """
    files = sorted(folder.iterdir())
    lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
    replace_file(folder / SUMS, lines.encode())


def read_sums(folder: Path) -> dict[str, str] | None:
    """Return the hash of each file that the SHA256SUMS of a folder lists; None without it.

    Raises:
        CheckpointError: It holds a line that is none of `sha256sum`, or cannot be read.
    """
    path = folder / SUMS
    if not path.exists():
        return None
    try:
        if path.stat().st_size > _LONGEST or not path.is_file():
            raise CheckpointError(f"{path} is damaged (no short list of hashes)")
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error.strerror}") from error
    found = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError(
                f"{path} is damaged (no line of hashes: {line[:40]!r})"
            )
        found[match[2]] = match[1].lower()
    return found


def check_sums(folder: Path, names: Iterable[str]) -> list[str]:
    """Check files against the hashes beside them.

    Args:
        folder: The folder, with its SHA256SUMS.
        names: The files that have to be there.

    Returns:
        The names that no hash is known of.

    Raises:
        CheckpointError: A file has another content than then, or is gone.
    """
    sums = read_sums(folder) or {}
    for name, digest in sums.items():
        _refuse_other(folder / name, digest, "")
    return [name for name in names if name not in sums]


def sums_gap(file: Path) -> str | None:
    """Return what is wrong with the SHA256SUMS beside a file, if it states no hash of it."""
    try:
        sums = read_sums(file.parent)
    except CheckpointError as error:
        return str(error)
    if sums is not None and file.name in sums:
        return None
    what = "missing" if sums is None else "empty" if not sums else "partial"
    return f"{SUMS} beside it is {what} and states no hash of it"


def check_beside(file: Path) -> str | None:
    """Check a file against the hash that lies beside it: in SHA256SUMS, or in its card.

    Returns:
        The name of the file that states the hash; None where there is none.

    Raises:
        CheckpointError: The file has another content than the one stated.
    """
    try:
        digest = (read_sums(file.parent) or {}).get(file.name)
    except CheckpointError:  # whatever it is, it states nothing of this file
        digest = None
    if digest is not None:
        _refuse_other(file, digest, f": it is not what {SUMS} beside it states")
        return SUMS
    for card in (file.with_name(f"{file.name}.json"), file.with_name("card.json")):
        digest = _on_card(card, file.name)
        if digest is not None:
            _refuse_other(
                file, digest, f": it is not what {card.name} beside it states"
            )
            return card.name
    return None


def _on_card(card: Path, name: str) -> str | None:
    """Return the hash that the card of an exported model states of a file of it."""
    try:
        if card.is_file() and card.stat().st_size <= _LONGEST:
            return str(json.loads(card.read_bytes())["files"][name])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def _refuse_other(file: Path, digest: str, why: str) -> None:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise CheckpointError(f"{file} is damaged (no regular file)")
        found = file_sha256(file)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"could not read {file}: {reason}") from error
    if found != digest:
        raise CheckpointError(f"{file} is damaged (checksum differs{why})")
