"""`open_path` opens both splits of a data set by path or pattern, whatever its format.

A file's split stands in its name or its folder's; of data without, a part is held out.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastadv.addresses import is_address
from fastadv.data.files import recordio, records, shards, tfrecord
from fastadv.data.files.array_files import open_arrays
from fastadv.data.files.patterns import (
    existing,
    expand,
    file_format,
    is_pattern,
    names_file,
)
from fastadv.data.metric import is_own
from fastadv.data.sets.depth import set_depth
from fastadv.data.sets.endings import is_image
from fastadv.data.sets.folders import (
    FolderOptions,
    FolderSet,
    ZipSet,
    open_folder,
    open_zip,
)
from fastadv.data.sets.image_set import Damage, ImageSet, option_hint
from fastadv.data.sets.label_lists import Columns
from fastadv.data.sets.label_rule import resolve_labels
from fastadv.data.sets.name_labels import label_pattern as compiled
from fastadv.data.sets.split_names import (
    EVAL_WORDS,
    evaluation_order,
    exact_role,
    training_name,
)
from fastadv.data.sets.splitting import SplitSets, say_ignored, split_order
from fastadv.data.sets.tree import is_hidden
from fastadv.errors import ConfigError, DataError, unknown_name
from fastadv.files import loads_json
from fastadv.groups import grouped

log = logging.getLogger(__name__)

# Sets of which the transfer literature reports the mean of the accuracies of the classes,
# under the names that their folders usually have, in lower case and with underscores.
_MEAN_PER_CLASS = frozenset(
    {
        *("aircraft", "fgvc_aircraft", "fgvc_aircraft_2013b"),
        *("caltech101", "caltech_101", "caltech256", "caltech_256"),
        *("flowers", "flowers102", "oxford_flowers102", "flowers_102"),
        *("oxford_pets", "pets", "oxford_iiit_pet"),
    }
)
# Older versions took every name that begins so for one of them.
_BEGINNINGS = ("aircraft", "caltech", "flowers", "oxford_pets", "pets")
_ORDERS = ("text", "number")

_IN_FOLDERS = ("tar", "tfrecord", "recordio", "columns")  # formats

Groups = dict[str, list[Path]]


def open_path(
    text: str,
    damage: Damage | None = None,
    *,
    metric: str | None = None,
    test: str | os.PathLike[str] | None = None,
    holdout: float = 0.1,
    image_column: str | None = None,
    label_column: str | None = None,
    label_pattern: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    class_order: str = "text",
    severity: int | None = None,
    bits: int | None = None,
    strict: bool = True,
    download: bool = False,
    eval_split: str | None = None,
) -> SplitSets:
    """Open a data set by path or pattern.

    Args:
        text: A folder (images, shards, records, Parquet, arrays), an archive or file, or a
            pattern of files.
        damage: List to which files that are missing or cannot be scanned are added; they
            are then left out instead of raising an error.
        metric: The accuracy to report; by default that of the literature for a folder
            with the usual name of one of its data sets, else top-1. Checked before; see
            `open_dataset`.
        test: Path or pattern of the evaluation files; `text` then names the training
            files.
        holdout: Share held out for evaluation where the data have one split only.
        image_column: Tables and lists: the column of images. WebDataset: the ending of
            the images, for example `input.jpg`.
        label_column: The same of labels, for example `target.cls`.
        label_pattern: Folders and archives of images: a regular expression that is looked
            for in the path of each image, and whose first group is its label, for example
            `([a-z]+)_[0-9]+`.
        image_root: Tables whose rows hold paths: the folder that these start from.
        class_order: Order of class folders that are called by numbers: `text`, as
            torchvision's ImageFolder has it, or `number`.
        severity: Arrays like those of CIFAR-10-C: take the images of this severity, 1 to 5.
        bits: Number of bits that 16-bit images fill: 8, 10, 12, 14 or 16; by default the
            smallest that holds the values of some that are looked at.
        strict: Refuse an evaluation split that lacks classes, instead of warning.
        download: Fetch what addresses name; without, only the cache is read.
        eval_split: Name of the evaluation split where there are several; by default the
            first with labels, validation splits before test splits.

    Raises:
        DataError: There is no data set, or its layout is wrong; shards that its manifest
            lists are missing.
        ConfigError: An option cannot work.
    """
    if not 0.0 < holdout < 1.0:
        raise ConfigError(f"holdout={holdout} is outside (0, 1); use for example 0.1")
    if class_order not in _ORDERS:
        raise ConfigError(unknown_name("class_order", class_order, _ORDERS))
    held_out = os.fspath(test) if test is not None else None
    if eval_split is not None and not evaluation_order([eval_split]):
        raise ConfigError(unknown_name("eval_split", eval_split, EVAL_WORDS))
    if eval_split is not None and test is not None:
        raise ConfigError(
            f"eval_split={eval_split} and test={held_out} both name the evaluation split; "
            "give one of them"
        )
    how = _How(
        columns=Columns(image_column, label_column, compiled(label_pattern)),
        image_root=None if image_root is None else Path(image_root).expanduser(),
        by_number=class_order == "number",
        severity=severity,
        eval_split=eval_split,
        download=download,
        damage=damage,
    )
    name, sets = _open(text, held_out, how)
    set_depth(sets.values(), name, bits)
    given = metric or _manifest_metric(Path(text).expanduser())
    if given is None and name.lower().replace("-", "_") in _MEAN_PER_CLASS:
        given = "mean_per_class"
    if given is None and once_mean_per_class(name):
        log.warning(
            "%s: accuracy is top-1; if this is the data set that its name resembles, its "
            "literature reports the mean per class: give %s",
            name,
            option_hint("metric", "mean_per_class"),
        )
    folders = any(isinstance(part, FolderSet | ZipSet) for part in sets.values())
    return SplitSets(
        name, sets, given or "top1", holdout, strict, needs_training=folders
    )


@dataclass(frozen=True)
class _How:
    """How files are read, see `open_path`."""

    columns: Columns
    image_root: Path | None
    by_number: bool
    severity: int | None
    eval_split: str | None
    download: bool
    damage: Damage | None

    @property
    def folder(self) -> FolderOptions:
        return FolderOptions(self.eval_split, self.columns, self.by_number)


def once_mean_per_class(name: str) -> bool:
    """Return whether older versions reported the mean per class for this name of a path."""
    return name.lower().startswith(_BEGINNINGS)


def _open(text: str, test: str | None, how: _How) -> tuple[str, dict[str, ImageSet]]:
    path = Path(text).expanduser()
    damage = how.damage
    if path.is_dir():
        path = path.resolve()  # "." has no name
        _check_whole(path, damage)
        found = _files_in(path)
        if not found and test is None:
            arrays = open_arrays(path, how.severity, how.eval_split)
            return path.name, arrays or _by_split_name(open_folder(path, how.folder))
        name, files = path.name, found
    elif is_pattern(text) and not path.exists():
        _check_whole(path.parent, damage, pattern=text)
        files = expand(text, download=how.download)
        name = re.split(r"[{*?\[]", path.name)[0].strip("-_.") or path.parent.name
    else:
        if is_address(text):
            files = expand(text, download=how.download)
            path = files[0] if len(files) == 1 else Path(text.rstrip("/"))
        else:
            path = existing(text)
            files = [path]
        name = path.name.partition(".")[0]
        if file_format(path.name) == "zip":
            return path.stem, _by_split_name(open_zip(path, how.folder))
        if arrays := open_arrays(path, how.severity, how.eval_split):
            return path.stem, arrays
    kinds = {file_format(file.name) for file in files}
    if len(kinds) > 1:
        listed = ", ".join(sorted(str(k) for k in kinds))
        raise DataError(f"{text} holds files of several formats ({listed}); name one")
    kind = kinds.pop() if kinds else None
    if kind not in _IN_FOLDERS:
        raise DataError(
            f"{text} is neither a folder nor a .zip archive, nor files of .tar, "
            ".tfrecord, .rec, .parquet, .arrow, .npz, .npy, .mat, .h5 or idx; expected one "
            "of them, or a folder with train/<class>/<image> and val/<class>/<image> in it"
        )
    if test is not None:
        folder = Path(test).expanduser()
        if folder.is_dir():
            _check_whole(folder, damage)
            held = _files_in(folder)
        else:
            held = expand(test, download=how.download)
        groups = {"train": files, "test": held}
    else:
        groups = _by_split(files)
    return name, _read_first(kind, name, groups, how)


def _by_split_name(parts: Sequence[ImageSet]) -> dict[str, ImageSet]:
    return {part.split: part for part in parts}


def _read_first(kind: str, name: str, groups: Groups, how: _How) -> dict[str, ImageSet]:
    """Read the training split, where there is one, and the first other one with labels."""
    train, held = split_order(groups, how.eval_split, name)
    before = {} if train is None else {train: groups[train]}
    for number, split in enumerate(held):
        sets = _read(kind, name, before | {split: groups[split]}, how)
        if split not in sets:
            continue
        say_ignored(name, split, held[number + 1 :])
        return sets
    return _read(kind, name, before, how)


def _check_whole(folder: Path, damage: Damage | None, pattern: str = "") -> None:
    """Raise or collect the files that a pack lacks, among those that a pattern names."""
    missing = shards.missing_shards(folder)
    if (folder / shards.PACKING).is_dir() and not (folder / shards.MANIFEST).exists():
        missing = [shards.MANIFEST]
    if pattern:
        missing = [name for name in missing if names_file(pattern, folder / name)]
    if missing and damage is None:
        raise DataError(
            f"{folder} is not whole: {len(missing)} file(s) of the pack are missing, "
            f"{', '.join(missing[:8])}{', ...' * (len(missing) > 8)}; restore them, or "
            "run the fastadv-data pack that made it again, which writes what is missing"
        )
    if damage is not None:
        what = f"is in {shards.MANIFEST} but not there"
        if missing == [shards.MANIFEST]:
            what = "is not there: the pack was not finished"
        damage += [(str(folder / name), what) for name in missing]


# How the records of a file are listed, and the set that reads them.
_SCANNERS: dict[str, tuple[records.Scanner, type[records.RecordSet]]] = {
    "tar": (shards.scan_tar, records.RecordSet),
    "tfrecord": (tfrecord.scan_tfrecord, records.RecordSet),
    "recordio": (recordio.scan_recordio, recordio.RecordIOSet),
}


def _read(kind: str, name: str, groups: Groups, how: _How) -> dict[str, ImageSet]:
    if kind == "columns":
        from fastadv.data.files.parquet import open_columns

        return open_columns(
            name,
            groups,
            image_column=how.columns.image,
            label_column=how.columns.label,
            image_root=how.image_root,
            damage=how.damage,
        )
    files = [file for group in groups.values() for file in group]
    names = shards.class_names(files) if kind == "tar" else None
    scan, made = _SCANNERS[kind]
    more = how.columns if kind == "tar" else None
    tables = records.read_splits(
        name, groups, lambda file: records.records_of(file, scan, more), how.damage
    )
    if kind == "tar":
        shards.refuse_unlabelled(tables, how.damage)
    texts = {split: records.label_texts(t.values()) for split, t in tables.items()}
    classes, ids = resolve_labels(texts, name, names=names, from_one=kind == "tfrecord")
    return {
        split: made(name, split or "all", classes, ids[split], tables[split])
        for split in ids
    }


def _by_split(files: Sequence[Path]) -> Groups:
    """Group files by the split in their names, the training split first."""
    groups = grouped(files, _split_of)
    # Without a training split, the first is the only one there is.
    train = training_name(groups)
    order = [*([train] if train else []), "", *evaluation_order(groups)]
    return {split: groups[split] for split in order if split in groups}


def _split_of(file: Path) -> str:
    """Return the split that a file belongs to as its name spells it, or nothing."""
    words = [*re.split(r"[^a-z]+", file.name.lower()), file.parent.name.lower()]
    for word in words:
        if role := exact_role(word):
            return "train" if role == "train" else word
    return ""


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a known format in a folder or one below, if without classes."""
    for inner in os.scandir(folder):
        if exact_role(inner.name) != "train" or not inner.is_dir():
            continue
        if any(e.is_dir() and not is_hidden(e.name) for e in os.scandir(inner.path)):
            return []
    found = [
        path
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if file_format(path.name) in _IN_FOLDERS
        and not path.name.startswith(".")
        and path.is_file()
    ]
    if any(file_format(path.name) == "tar" for path in found) and _has_images(folder):
        # What folders of images were unpacked from often lies beside them.
        found = [path for path in found if file_format(path.name) != "tar"]
    return sorted(found, key=os.fsencode)


def _has_images(folder: Path) -> bool:
    """Return whether there are images in the folders of a folder, or in theirs."""
    return any(
        is_image(path.name) for depth in ("*/*", "*/*/*") for path in folder.glob(depth)
    )


def _manifest_metric(path: Path) -> str | None:
    try:
        stored = loads_json((path / shards.MANIFEST).read_text()).get("metric")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(stored, str) and is_own(stored):
        log.warning(
            "%s was packed with the metric %s, which a file does not import; give %s",
            path,
            stored,
            option_hint("metric", stored),
        )
        return None
    return stored if isinstance(stored, str) else None
