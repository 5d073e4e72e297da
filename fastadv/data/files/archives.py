"""Unpacking of zip and tar archives that cannot be trusted.

Every member is judged before it is written, files and bytes that come out are limited,
and all goes to a temporary folder first: a refused archive leaves nothing behind.
"""

from __future__ import annotations

import lzma
import os
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from fastadv.errors import ConfigError, DataError

_CHUNK = 1 << 20
_SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz")


class _Member(NamedTuple):
    name: str
    size: int  # as declared
    stream: IO[bytes] | None  # of a file, not of a folder


def unpack(
    archive: Path, out: Path, *, max_bytes: int, max_files: int
) -> tuple[int, int]:
    """Unpack an archive into a new folder.

    Args:
        archive: A zip file, or a tar file, compressed or not.
        out: The folder, which must not exist, or be empty.
        max_bytes: Refuse an archive that unpacks to more.
        max_files: Refuse an archive of more files and folders.

    Returns:
        The number of files and the number of bytes written.

    Raises:
        ConfigError: `out` holds something.
        DataError: The archive cannot be read, or a member is refused.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; choose a new folder")
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        files, size = _write(archive, temporary, max_bytes, max_files)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return files, size


def _write(
    archive: Path, root: Path, max_bytes: int, max_files: int
) -> tuple[int, int]:
    files = size = 0
    too_many = f"more than {max_files} members (--max-files)"
    too_large = f"more than {max_bytes / 1e9:g} GB in all (--max-gb)"
    try:
        for number, member in enumerate(_members(archive), start=1):
            parts = _safe_parts(archive, member.name)
            if number > max_files:
                raise _refused(archive, too_many, member.name)
            if size + member.size > max_bytes:
                raise _refused(archive, too_large, member.name)
            if not parts:
                continue
            target = root.joinpath(*parts)
            if member.stream is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            # x: a second member of that name is not to replace the first.
            with open(target, "xb") as file:
                while data := member.stream.read(_CHUNK):
                    size += len(data)
                    # What a header declares is only a claim: a bomb ends at the limit.
                    if size > max_bytes:
                        raise _refused(archive, too_large, member.name)
                    file.write(data)
            files += 1
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
    ) as error:
        raise DataError(f"cannot read {archive}: {error}; fetch it again") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(
            f"{archive} has the path {os.path.relpath(str(error.filename), root)!r} twice; "
            "refusing it. Pack the archive again"
        ) from error
    except OSError as error:
        raise DataError(f"cannot unpack {archive}: {error}") from error
    return files, size


def _members(archive: Path) -> Iterator[_Member]:
    if not archive.is_file():
        raise DataError(f"no archive at {archive.absolute()}")
    if zipfile.is_zipfile(archive):
        yield from _zip_members(archive)
    elif tarfile.is_tarfile(archive):
        yield from _tar_members(archive)
    else:
        raise DataError(
            f"{archive} is neither a zip nor a tar archive ({', '.join(_SUFFIXES)}); "
            "fetch it again"
        )


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        for info in infos:  # before the first is written
            _safe_parts(archive, info.orig_filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, "a link or special file", info.filename)
            if info.flag_bits & 1:
                raise _refused(archive, "an encrypted member", info.filename)
        for info in infos:
            if info.is_dir():
                yield _Member(info.filename, 0, None)
                continue
            with opened.open(info) as stream:
                yield _Member(info.filename, info.file_size, stream)


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:*") as opened:
        while (info := opened.next()) is not None:
            opened.members.clear()  # type: ignore[attr-defined] # it would keep all
            if info.isdir():
                yield _Member(info.name, 0, None)
            elif info.isreg() and not info.issparse():
                yield _Member(info.name, info.size, opened.extractfile(info))
            else:
                raise _refused(archive, "a link or special file", info.name)


def _safe_parts(archive: Path, name: str) -> list[str]:
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or plain[1:2] == ":" or ".." in parts or "\0" in plain:
        raise _refused(archive, "a path outside the folder", name)
    return parts


def _refused(archive: Path, what: str, name: str) -> DataError:
    return DataError(
        f"{archive} has {what}, at member {name!r}; refusing it, nothing was written"
    )
