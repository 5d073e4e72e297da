"""The cache folder, files that are written whole or not at all, and a lock on a folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fastadv.errors import ConfigError, OutputError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 28
"""Most bytes of one image or list that are read: those of 8192 x 8192 pixels, and more."""

_STALE_SECONDS = 24 * 3600.0


def fastadv_cache_dir() -> Path:
    """Return the cache folder; it need not exist yet.

    `FASTADV_CACHE` if set, else `$XDG_CACHE_HOME/fastadv`, else
    `~/.cache/fastadv`.
    """
    explicit = os.environ.get("FASTADV_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastadv"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends, what was written there is `path`.

    The temporary file lies in the same folder. It is synced and renamed over `path`;
    then the folder is synced. Missing folders are made. Of several processes that write
    one path, one wins; none sees a mixture.

    Raises:
        OSError: The file cannot be written. As after any exception in the block, the old
            file is untouched and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def replace_file(path: Path, *chunks: bytes | memoryview) -> None:
    """Write `chunks` so that `path` holds either all of them or what it held before.

    Raises:
        OSError: The file cannot be written; see `atomic`.
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.writelines(chunks)


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` so that `path` holds either all of it or what it held before.

    Raises:
        OutputError: The file cannot be written (full disk, no permission). The
            old file is untouched and no temporary file is left.
    """
    try:
        replace_file(Path(path), data)
    except OSError as error:
        raise OutputError(
            f"could not write {os.fspath(path)} ({len(data)} bytes): "
            f"{error.strerror or error}; the previous file, if any, is unchanged. "
            "Free space or choose another folder"
        ) from error


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file of at most `MOST_BYTES`.

    A pipe would be waited for, and a device may never end.

    Raises:
        OSError: It cannot be read, is of another kind, or is larger.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(
                errno.EINVAL, "it is a pipe, a device or a folder, not a file"
            )
        refuse_large(about.st_size)
        return file.read(MOST_BYTES)


def refuse_large(size: int) -> None:
    """Raise OSError if more than `MOST_BYTES` would be read of an image or a list."""
    if size > MOST_BYTES:
        what = f"it has {size} bytes, and at most {MOST_BYTES} of a file are read"
        raise OSError(errno.EFBIG, what)


def loads_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, as `json.loads` does.

    Raises:
        ValueError: It is no JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def remove_stale(paths: Iterable[Path]) -> None:
    """Remove files that were written more than a day ago, as far as that is possible."""
    for path in paths:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the file system supports it."""
    # Some network file systems cannot sync a folder; the rename itself has happened.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(file: int, *part: int, waits: bool = False) -> None:
    """Take the record lock of an open file, or of a part of it (length, first byte).

    Raises:
        BlockingIOError, PermissionError: Another process holds it.
        OSError: The file system, or the platform, has no such locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "this platform has no record locks")
    fcntl.lockf(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB), *part)


class FolderLock(contextlib.AbstractContextManager["FolderLock"]):
    """A lock of the one process that may write a folder; it ends with the process.

    A POSIX record lock on `FOLDER/.lock`: unlike flock's, decoding processes do not
    inherit it, and those live on for seconds when their parent is killed. Within one
    process it excludes nobody.

    Args:
        folder: The folder, which is made if it is missing.

    Raises:
        BlockingIOError: Another process holds the lock; the text says which.
        OSError: The file cannot be written, or the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(self._file)
            holder = f"process {os.getpid()} on {socket.gethostname()}"
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, holder.encode(), 0)
        except OSError as error:
            holder = ""
            if fcntl is not None:
                holder = os.pread(self._file, 200, 0).decode(errors="replace")
            self.release()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, holder) from None
            raise

    def release(self) -> None:
        """Release the lock, so that another process may write."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def claimed(
    folder: Path, number: int, *, wait: Callable[[], object] | None = None
) -> Iterator[bool]:
    """Let one process at a time do the work of a number; the others pass or wait.

    This is a record lock on a byte of `FOLDER/.lock`. It ends with its process, whatever
    decoding processes that leaves. Where a file system has no locks, the same may be
    done twice.

    Args:
        folder: The folder, which is made if it is missing.
        number: Which work; at least 0 and below 2^31, beyond which some file systems lock
            nothing.
        wait: Called before waiting for the process that does the work; None passes.

    Yields:
        Whether no other process does the work now.
    """
    with contextlib.ExitStack() as stack:
        free = True
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, file)
            try:
                _lock(file, 1, number)
            except (BlockingIOError, PermissionError):
                free = wait is not None
                if wait is not None:
                    wait()
                    _lock(file, 1, number, waits=True)
        yield free


def lock_folder(folder: Path, problem: str, advice: str) -> FolderLock | None:
    """Lock a folder; return None, after a warning, where the file system has no locks.

    A folder that cannot be written is not reported: writing to it fails with a better
    message.

    Raises:
        ConfigError: Another process holds the lock. The message consists of `problem`,
            such as "PATH is being written", the other process, and `advice`.
    """
    try:
        return FolderLock(folder)
    except BlockingIOError as error:
        raise ConfigError(f"{problem} by {error.strerror}; {advice}") from None
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            log.warning(
                "%s is on a file system without locks (%s): nothing keeps a second "
                "process from writing there",
                folder,
                error.strerror,
            )
    return None
