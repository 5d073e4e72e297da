"""Image folders and zip archives: their sets, and how they are opened.

Both are listed first and judged by the same code, see `layouts`. Nothing is unpacked or
written.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastadv.data.sets.class_order import Members
from fastadv.data.sets.endings import USUAL, is_image
from fastadv.data.sets.image_set import FileSet, SharedFile
from fastadv.data.sets.label_lists import Columns
from fastadv.data.sets.layouts import Layout, find_layout
from fastadv.data.sets.tree import Tree, folder_tree, zip_tree
from fastadv.errors import DataError
from fastadv.files import read_regular, refuse_large


@dataclass(frozen=True)
class FolderOptions:
    """How the layout of a folder or an archive is read.

    Attributes:
        eval_split: Name of the evaluation split; None takes the first that has labels.
        columns: Columns of a list of labels.
        by_number: Order class folders that are called by numbers as numbers.
    """

    eval_split: str | None = None
    columns: Columns | None = None
    by_number: bool = False


def in_id_order(
    classes: Sequence[str], members: Members
) -> tuple[list[str], NDArray[np.int64]]:
    """Return all image paths, by class and then bytewise, and their labels."""
    paths = [p for c in classes for p in sorted(members.get(c, ()), key=os.fsencode)]
    counts = [len(members.get(c, ())) for c in classes]
    return paths, np.repeat(np.arange(len(counts), dtype=np.int64), counts)


class FolderSet(FileSet):
    """One split of a folder on disk.

    Args:
        root: The folder that image paths start from; names the data set by default.
        split: The split.
        classes: All class names, in id order.
        members: Image paths per class, '/'-separated, below the root.
        name: The data set.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        classes: Sequence[str],
        members: Members,
        *,
        name: str = "",
    ) -> None:
        name = name or root.name
        super().__init__(name, split, classes, *in_id_order(classes, members))
        self.root = root

    def _encoded(self, index: int) -> bytes:
        return read_regular(self.root / self.members[index])

    def sizes(self) -> list[int]:
        """Return the size of every encoded image in bytes."""
        return [_size(self.root / member) for member in self.members]


def _size(path: Path) -> int:
    """Return the size of a file; 0 where it is not there, or a link to nowhere."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass(frozen=True)
class ZipEntry:
    """Where one stored or deflated member lies in its archive."""

    offset: int
    packed: int
    size: int
    crc: int
    deflated: bool


class ZipSet(FileSet):
    """One split of a zip archive, read in place.

    Offsets are taken from the directory once, so no worker parses the directory of a
    large archive again.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        classes: Sequence[str],
        members: Members,
        entries: dict[str, ZipEntry],
    ) -> None:
        super().__init__(path.stem, split, classes, *in_id_order(classes, members))
        self.entries = [entries[m] for m in self.members]
        self._archive = SharedFile(path)

    def _encoded(self, index: int) -> bytes:
        entry = self.entries[index]
        refuse_large(max(entry.packed, entry.size))
        header = self._archive.read(30, entry.offset)
        if header[:4] != b"PK\3\4":
            raise OSError("no member where the directory of the archive says")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = entry.offset + 30 + name_length + extra_length
        data = self._archive.read(entry.packed, start)
        if entry.deflated:
            # Never more than the declared size: a bomb stops here.
            data = zlib.decompressobj(-15).decompress(data, entry.size + 1)
        if len(data) != entry.size or zlib.crc32(data) != entry.crc:
            raise ValueError("CRC mismatch: the archive is damaged")
        return data

    def sizes(self) -> list[int]:
        """Return the size of every encoded image in bytes."""
        return [e.size for e in self.entries]


def open_folder(root: Path, options: FolderOptions | None = None) -> list[FolderSet]:
    """Open a folder of image files, of any layout that `find_layout` knows.

    Args:
        root: The folder.
        options: How its layout is read.

    Returns:
        The splits, the training split first where there is one; see `Layout.splits`.

    Raises:
        DataError: The layout is not known, or classes disagree.
    """
    layout = _layout(folder_tree(root), options)
    base = root / layout.prefix
    return [
        FolderSet(base, split, layout.classes, members, name=root.name)
        for split, members in layout.splits.items()
    ]


def open_zip(path: Path, options: FolderOptions | None = None) -> list[ZipSet]:
    """Open a zip archive of image files; see `open_folder`.

    Args:
        path: The archive; members stored or deflated.
        options: How its layout is read.

    Raises:
        DataError: Not a readable zip, an unsafe member path, a member
            that is encrypted or compressed otherwise, or a wrong layout.
    """
    tree, infos = zip_tree(path)
    layout = _layout(tree, options)
    n = len(layout.prefix)
    used = {p for m in layout.splits.values() for paths in m.values() for p in paths}
    entries = {
        name[n:]: _entry(info, path)
        for name, info in infos.items()
        if name.startswith(layout.prefix) and name[n:] in used
    }
    return [
        ZipSet(path, split, layout.classes, members, entries)
        for split, members in layout.splits.items()
    ]


def _layout(tree: Tree, options: FolderOptions | None) -> Layout:
    options = options or FolderOptions()
    return find_layout(
        tree,
        eval_split=options.eval_split,
        columns=options.columns,
        by_number=options.by_number,
    )


def open_all(path: Path) -> FileSet:
    """Open every image below a folder or in a .zip archive as images of one class.

    Args:
        path: The folder or the archive, of any layout.

    Returns:
        The images, whose `members` are their paths; split and class are called `all`.

    Raises:
        DataError: There are no images, or the archive is unusable; see `open_zip`.
    """
    entries: dict[str, ZipEntry] = {}
    if path.is_dir():
        members = [p for p in folder_tree(path).files if is_image(p)]
    else:
        tree, infos = zip_tree(path)
        members = [p for p in tree.files if is_image(p)]
        entries = {name: _entry(infos[name], path) for name in members}
    if not members:
        raise DataError(f"{path} has no images ({USUAL})")
    if entries:
        return ZipSet(path, "all", ["all"], {"all": members}, entries)
    return FolderSet(path, "all", ["all"], {"all": members})


def _entry(info: zipfile.ZipInfo, path: Path) -> ZipEntry:
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if info.compress_type not in methods or info.flag_bits & 1:
        raise DataError(
            f"{path}: member {info.filename} is encrypted or compressed by method "
            f"{info.compress_type}; stored (0) and deflated (8) are accepted. Pack it "
            "again, for example with zip -0"
        )
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    return ZipEntry(
        info.header_offset, info.compress_size, info.file_size, info.CRC, deflated
    )
