"""Image folders and zip archives in the layout `split/class/image`.

Both are listed first and judged by the same code. Class ids follow the bytewise order of
the training class names, never the order of a listing. Nothing is unpacked or written.
"""

from __future__ import annotations

import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastadv.data.sets.image_set import FileSet, SharedFile, option_hint
from fastadv.errors import DataError, first_few

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
EVAL_FOLDERS = ("val", "test", "valid", "validation")
_EXPECTED = "expected train/<class>/<image> and val/<class>/<image> (or test/, valid/)"

Members = dict[str, list[str]]  # class -> image paths below the root, '/'-separated
Layout = dict[str, Members]  # by split


def _skipped(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


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
        return (self.root / self.members[index]).read_bytes()

    def sizes(self) -> list[int]:
        """Return the size of every encoded image in bytes."""
        return [(self.root / m).stat().st_size for m in self.members]


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


def open_folder(
    root: Path, eval_split: str | None = None
) -> tuple[FolderSet, FolderSet]:
    """Open an image folder.

    Args:
        root: Folder holding `train/` and an evaluation split.
        eval_split: Which evaluation split, where there are several; None takes the first.

    Returns:
        (train, evaluation).

    Raises:
        DataError: The layout is not `split/class/image`, or classes disagree.
    """
    top = sorted((e.name for e in os.scandir(root) if e.is_dir()), key=os.fsencode)
    splits = [name for name in top if name in ("train", *EVAL_FOLDERS)]
    layout = {split: _list_classes(root, split) for split in splits}
    classes, evaluation = _judge(layout, top, str(root), eval_split)
    return (
        FolderSet(root, "train", classes, layout["train"]),
        FolderSet(root, evaluation, classes, layout[evaluation]),
    )


def open_zip(path: Path, eval_split: str | None = None) -> tuple[ZipSet, ZipSet]:
    """Open a zip archive of the same layout, with or without one folder on top.

    Args:
        path: The archive; members stored or deflated.
        eval_split: Which evaluation split, where there are several; None takes the first.

    Returns:
        (train, evaluation).

    Raises:
        DataError: Not a readable zip, an unsafe member path, a member
            that is encrypted or compressed otherwise, or a wrong layout.
    """
    infos = _infos(path)
    prefix = _common_folder([i.filename for i in infos])
    layout: Layout = {}
    entries: dict[str, ZipEntry] = {}
    top = set()
    for info in infos:
        member = info.filename[len(prefix) :]
        parts = member.split("/")
        if len(parts) == 1:
            continue
        top.add(parts[0])
        if parts[0] not in ("train", *EVAL_FOLDERS):
            continue
        classes_of = layout.setdefault(parts[0], {})
        if len(parts) == 2:
            continue
        images = classes_of.setdefault(parts[1], [])
        if Path(member).suffix.lower() in IMAGE_SUFFIXES and not info.is_dir():
            images.append(member)
            entries[member] = _entry(info, path)
    classes, evaluation = _judge(
        layout, sorted(top, key=os.fsencode), str(path), eval_split
    )
    return (
        ZipSet(path, "train", classes, layout["train"], entries),
        ZipSet(path, evaluation, classes, layout[evaluation], entries),
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
        members = sorted(p.relative_to(path).as_posix() for p in _images_below(path))
    else:
        entries = {
            info.filename: _entry(info, path)
            for info in _infos(path)
            if Path(info.filename).suffix.lower() in IMAGE_SUFFIXES
            and not info.is_dir()
        }
        members = sorted(entries)
    if not members:
        raise DataError(f"{path} has no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
    if entries:
        return ZipSet(path, "all", ["all"], {"all": members}, entries)
    return FolderSet(path, "all", ["all"], {"all": members})


def _infos(path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of an archive that may be images, or raise DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path} as a zip archive: {error}") from error
    _refuse_unsafe(infos, path)
    return [i for i in infos if not any(map(_skipped, i.filename.split("/")))]


def _list_classes(root: Path, split: str) -> dict[str, list[str]]:
    folder = root / split
    return {
        e.name: [p.relative_to(root).as_posix() for p in _images_below(Path(e.path))]
        for e in os.scandir(folder)
        if e.is_dir() and not _skipped(e.name)
    }


def _images_below(folder: Path) -> Iterator[Path]:
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a symbolic link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [f for f in folders if not _skipped(f)]
        for file in files:
            if not _skipped(file) and Path(file).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(here, file)


def _judge(
    layout: Layout, top: Sequence[str], where: str, eval_split: str | None
) -> tuple[list[str], str]:
    """Return (classes in id order, evaluation split), or raise DataError."""
    found = f"found {abridged(top)}" if top else "found no folders"
    if "train" not in layout:
        raise DataError(f"{where} has no train/ folder: {_EXPECTED}; {found}")
    if not layout["train"]:
        raise DataError(f"{where}: train/ has no class folders; {_EXPECTED}")
    candidates = [s for s in EVAL_FOLDERS if s in layout]
    if not candidates:
        raise DataError(
            f"{where} has no evaluation split: {_EXPECTED}; {found}. Make a val/ "
            "folder with images held out of train/"
        )
    if eval_split is not None and eval_split not in candidates:
        raise DataError(
            f"{where} has no folder {eval_split}/, which eval_split names; it has "
            f"{', '.join(f'{name}/' for name in candidates)}"
        )
    evaluation = eval_split or candidates[0]
    if len(candidates) > 1 and eval_split is None:
        log.warning(
            "%s: evaluating on %s/; %s ignored. To evaluate there, give %s",
            where,
            evaluation,
            candidates[1:],
            option_hint("eval_split", candidates[1]),
        )
    train, held = layout["train"], layout[evaluation]
    return agreed_classes(train, held, where, evaluation), evaluation


def agreed_classes(
    train: Members, held: Members, where: str, evaluation: str
) -> list[str]:
    """Return the classes of both splits in id order, which is bytewise.

    Args:
        train: Training images per class.
        held: Evaluation images per class.
        where: The data set in messages.
        evaluation: The evaluation split in messages.

    Raises:
        DataError: A class has no training images, or is of the evaluation split only.
    """
    if empty := [c for c in train if not train[c]]:
        raise DataError(
            f"{where}: no images in the training class folder(s) {abridged(empty)}; add "
            f"images ({' '.join(sorted(IMAGE_SUFFIXES))}) or remove the folder"
        )
    if unknown := [c for c in held if c not in train]:
        raise DataError(
            f"{where}: class folder(s) {abridged(unknown)} are in {evaluation}/ but "
            f"not in train/ ({len(held)} classes against {len(train)}); class ids come "
            "from train/, so add or remove them"
        )
    if not any(held.values()):
        raise DataError(f"{where}: {evaluation}/ has no images; {_EXPECTED}")
    return sorted(train, key=os.fsencode)


def abridged(names: Sequence[str], limit: int = 8) -> str:
    """Return the first names, quoted, and how many more there are."""
    return first_few([repr(name) for name in sorted(names, key=os.fsencode)], limit)


def _refuse_unsafe(infos: Sequence[zipfile.ZipInfo], path: Path) -> None:
    for info in infos:
        # orig_filename: zipfile itself already rewrites some of these.
        name = info.orig_filename.replace("\\", "/")
        if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
            raise DataError(
                f"{path} has the member {info.orig_filename!r}, which points outside "
                "the archive; refusing it. Pack the folder again"
            )


def _common_folder(names: Sequence[str]) -> str:
    tops = {n.split("/", 1)[0] for n in names if "/" in n}
    if len(tops) == 1 and not tops & {"train", *EVAL_FOLDERS}:
        return f"{tops.pop()}/"
    return ""


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
