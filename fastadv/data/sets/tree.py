"""The files below a folder or in a zip archive, which layouts are recognised by."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastadv.data.sets.endings import is_image
from fastadv.errors import DataError
from fastadv.files import read_regular, refuse_large

_LOCAL_HEADER = 30  # bytes before the name and the data of a member, at least


@dataclass(frozen=True)
class Tree:
    """Files and folders by their paths below a root, '/'-separated.

    Attributes:
        where: The root in messages.
        files: Paths of all files but hidden ones, in bytewise order.
        folders: Paths of all folders but hidden ones, in bytewise order.
        read: Function that returns the content of a file.
    """

    where: str
    files: Sequence[str]
    folders: Sequence[str]
    read: Callable[[str], bytes]

    def below(self, prefix: str) -> Tree:
        """Return the files and folders below a folder; `prefix` ends with '/'."""
        if not prefix:
            return self
        n = len(prefix)
        return Tree(
            f"{self.where}/{prefix.rstrip('/')}",
            [p[n:] for p in self.files if p.startswith(prefix)],
            [p[n:] for p in self.folders if p.startswith(prefix) and p != prefix],
            lambda path: self.read(prefix + path),
        )

    @property
    def top(self) -> list[str]:
        """Names of the folders directly below the root."""
        return [path for path in self.folders if "/" not in path]


def is_hidden(part: str) -> bool:
    """Return whether a name is that of a hidden file, or of what macOS packs along."""
    return part.startswith(".") or part == "__MACOSX"


def folder_tree(root: Path) -> Tree:
    """List a folder; symbolic links are followed, but not back up.

    Raises:
        DataError: A folder cannot be listed.
    """
    files: list[str] = []
    folders: list[str] = []
    real = os.path.realpath(root)
    for path, is_folder in _walk(root, "", (real,)):
        (folders if is_folder else files).append(path)
    files.sort(key=os.fsencode)
    folders.sort(key=os.fsencode)

    def read(path: str) -> bytes:
        try:
            return read_regular(root / path)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"cannot read {root / path}: {reason}") from error

    return Tree(str(root), files, folders, read)


def _walk(
    folder: Path, prefix: str, above: tuple[str, ...]
) -> Iterator[tuple[str, bool]]:
    """Yield (path, whether it is a folder) of all below; `above` are real folders."""
    try:
        entries = [e for e in os.scandir(folder) if not is_hidden(e.name)]
    except OSError as error:
        raise DataError(
            f"cannot list the folder {folder}: {error.strerror or error}"
        ) from error
    for entry in entries:
        path = f"{prefix}{entry.name}"
        if not _is_folder(entry) or _is_no_image(entry):
            yield path, False
            continue
        real = f"{above[-1]}{os.sep}{entry.name}"
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if real in above:
                continue
        yield path, True
        yield from _walk(Path(entry.path), f"{path}/", (*above, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_no_image(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder is called like an image, and holds none: a bad image."""
    if not is_image(entry.name):
        return False
    try:
        return not any(is_image(name) for name in os.listdir(entry.path))
    except OSError:
        return True


def zip_tree(path: Path) -> tuple[Tree, dict[str, zipfile.ZipInfo]]:
    """List a zip archive; also return its members by path.

    Raises:
        DataError: It is no readable zip archive, or a member's path leaves it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path} as a zip archive: {error}") from error
    refuse_unsafe(infos, path)
    refuse_overlaps(infos, path)
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for info in infos:
        name = info.filename.strip("/")
        parts = name.split("/")
        if not name or any(map(is_hidden, parts)):
            continue
        folders |= {"/".join(parts[:n]) for n in range(1, len(parts))}
        if info.is_dir():
            folders.add(name)
        else:
            members[name] = info

    def read(name: str) -> bytes:
        try:
            refuse_large(members[name].file_size)
            with zipfile.ZipFile(path) as archive:
                return archive.read(members[name])
        except (
            OSError,
            RuntimeError,
            zipfile.BadZipFile,
            NotImplementedError,
        ) as error:
            raise DataError(f"cannot read {name} in {path}: {error}") from error

    listed = sorted(members, key=os.fsencode)
    return Tree(str(path), listed, sorted(folders, key=os.fsencode), read), members


def refuse_overlaps(infos: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Raise DataError where two members of a zip archive share a name, or their bytes."""
    names: set[str] = set()
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename
        if name in names and not info.is_dir():
            raise DataError(
                f"{path} has the member {name!r} twice; refusing it. Pack the folder again"
            )
        names.add(name)
        if info.header_offset < end:
            raise DataError(
                f"{path} has the member {name!r}, which overlaps another; refusing it. "
                "Pack the folder again"
            )
        end = info.header_offset + _LOCAL_HEADER + info.compress_size


def refuse_unsafe(infos: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Raise DataError where the path of a member leaves the archive."""
    for info in infos:
        # orig_filename: zipfile itself already rewrites some of these.
        name = info.orig_filename.replace("\\", "/")
        if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
            raise DataError(
                f"{path} has the member {info.orig_filename!r}, which points outside "
                "the archive; refusing it. Pack the folder again"
            )
