"""`open_path` opens both splits of a data set by path or pattern, whatever its format.

A file's split stands in its name or its folder's; of data without, a part is held out.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fastadv.data.files import recordio, records, shards, tfrecord
from fastadv.data.files.patterns import (
    existing,
    expand,
    file_format,
    is_address,
    is_pattern,
    names_file,
)
from fastadv.data.sets.folders import EVAL_FOLDERS, open_folder, open_zip
from fastadv.data.sets.image_set import (
    Damage,
    DatasetSplits,
    ImageSet,
    Metric,
    option_hint,
)
from fastadv.data.sets.subsets import pair_splits
from fastadv.errors import ConfigError, DataError, unknown_name
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
_TRAIN_WORDS = ("train", "training")

_IN_FOLDERS = ("tar", "tfrecord", "recordio", "columns")  # formats

Groups = dict[str, list[Path]]
Columns = dict[str, str | None]


def open_path(
    text: str,
    damage: Damage | None = None,
    *,
    metric: Metric | None = None,
    test: str | os.PathLike[str] | None = None,
    holdout: float = 0.1,
    image_column: str | None = None,
    label_column: str | None = None,
    strict: bool = True,
    download: bool = False,
    eval_split: str | None = None,
) -> DatasetSplits:
    """Open a data set by path or pattern.

    Args:
        text: A folder (images, shards, records, Parquet), an archive or file, or a
            pattern of files.
        damage: List to which files that are missing or cannot be scanned are added; they
            are then left out instead of raising an error.
        metric: The accuracy to report; by default that of the literature for a folder
            with the usual name of one of its data sets, else top-1.
        test: Path or pattern of the evaluation files; `text` then names the training
            files.
        holdout: Share held out for evaluation where the data have one split only.
        image_column: Parquet and Arrow: the column of images.
        label_column: Parquet and Arrow: the column of labels.
        strict: Refuse an evaluation split that lacks classes, instead of warning.
        download: Fetch what http(s) addresses name; without, only the cache is read.
        eval_split: Name of the evaluation split where there are several; by default the
            first of val, test, valid, validation.

    Raises:
        DataError: There is no data set, or its layout is wrong; shards that its manifest
            lists are missing.
        ConfigError: An option cannot work.
    """
    if metric is not None and metric not in get_args(Metric):
        raise ConfigError(unknown_name("metric", str(metric), get_args(Metric)))
    if not 0.0 < holdout < 1.0:
        raise ConfigError(f"holdout={holdout} is outside (0, 1); use for example 0.1")
    columns = {"image_column": image_column, "label_column": label_column}
    held_out = os.fspath(test) if test is not None else None
    if eval_split not in (None, *EVAL_FOLDERS):
        raise ConfigError(unknown_name("eval_split", str(eval_split), EVAL_FOLDERS))
    if eval_split is not None and test is not None:
        raise ConfigError(
            f"eval_split={eval_split} and test={held_out} both name the evaluation split; "
            "give one of them"
        )
    name, sets = _open(text, held_out, columns, download, damage, eval_split)
    train, held = pair_splits(name, sets, holdout, strict=strict, damage=damage)
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
    return DatasetSplits(name, train, held, given or "top1")


def once_mean_per_class(name: str) -> bool:
    """Return whether older versions reported the mean per class for this name of a path."""
    return name.lower().startswith(_BEGINNINGS)


def _open(
    text: str,
    test: str | None,
    columns: Columns,
    download: bool,
    damage: Damage | None,
    eval_split: str | None,
) -> tuple[str, dict[str, ImageSet]]:
    path = Path(text).expanduser()
    if path.is_dir():
        path = path.resolve()  # "." has no name
        _check_whole(path, damage)
        found = _files_in(path)
        if not found and test is None:
            return path.name, {
                part.split: part for part in open_folder(path, eval_split)
            }
        name, files = path.name, found
    elif is_pattern(text) and not path.exists():
        _check_whole(path.parent, damage, pattern=text)
        files = expand(text, download=download)
        name = re.split(r"[{*?\[]", path.name)[0].strip("-_.") or path.parent.name
    else:
        if is_address(text):
            (path,) = expand(text, download=download)
        else:
            path = existing(text)
        name, files = path.name.partition(".")[0], [path]
        kind = file_format(path.name)
        if kind == "zip":
            return path.stem, {part.split: part for part in open_zip(path, eval_split)}
        if kind == "npz":
            from fastadv.data.sets.arrays import open_npz

            return path.stem, open_npz(path)
    kinds = {file_format(file.name) for file in files}
    if len(kinds) > 1:
        listed = ", ".join(sorted(str(k) for k in kinds))
        raise DataError(f"{text} holds files of several formats ({listed}); name one")
    kind = kinds.pop() if kinds else None
    if kind not in _IN_FOLDERS:
        raise DataError(
            f"{text} is neither a folder nor a .zip archive, nor files of .tar, "
            ".tfrecord, .rec, .parquet, .arrow or .npz; expected one of them, or a "
            "folder with train/<class>/<image> and val/<class>/<image> in it"
        )
    if test is not None:
        folder = Path(test).expanduser()
        if folder.is_dir():
            _check_whole(folder, damage)
            held = _files_in(folder)
        else:
            held = expand(test, download=download)
        groups = {"train": files, "test": held}
    else:
        groups = _by_split(files, eval_split)
    return name, _read(kind, name, groups, columns, damage)


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


def _read(
    kind: str, name: str, groups: Groups, columns: Columns, damage: Damage | None
) -> dict[str, ImageSet]:
    if kind == "columns":
        from fastadv.data.files.parquet import open_columns

        return open_columns(name, groups, damage=damage, **columns)
    files = [file for group in groups.values() for file in group]
    names = shards.class_names(files) if kind == "tar" else None
    scan, made = _SCANNERS[kind]
    tables = records.read_splits(
        name, groups, lambda file: records.records_of(file, scan), damage
    )
    texts = {split: records.label_texts(t.values()) for split, t in tables.items()}
    classes, ids = records.resolve_labels(
        texts, name, names=names, from_one=kind == "tfrecord"
    )
    return {
        split: made(name, split or "all", classes, ids[split], parts)
        for split, parts in tables.items()
    }


def _by_split(files: Sequence[Path], eval_split: str | None) -> Groups:
    """Group files by the split in their names, the training split first."""
    groups = grouped(files, _split_of)
    # Without a training split, the first is the only one there is.
    order = [s for s in ("train", "", *EVAL_FOLDERS) if s in groups]
    if eval_split is not None:
        if eval_split not in groups:
            raise DataError(
                f"there are no files of eval_split={eval_split}; their splits are "
                f"{', '.join(order)}"
            )
        first = next((s for s in order if s != eval_split), eval_split)
        return {split: groups[split] for split in dict.fromkeys((first, eval_split))}
    if order[2:]:
        log.warning("evaluating on %s; %s ignored", order[1] or "the rest", order[2:])
    return {split: groups[split] for split in order[:2]}


def _split_of(file: Path) -> str:
    for part in (file.name, file.parent.name):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _TRAIN_WORDS:
                return "train"
            if word in EVAL_FOLDERS:
                return word
    return ""


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a known format in a folder or one below, if without classes."""
    train = folder / "train"
    if train.is_dir() and any(e.is_dir() for e in os.scandir(train)):
        return []
    found = [
        path
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if file_format(path.name) in _IN_FOLDERS
        and not path.name.startswith(".")
        and path.is_file()
    ]
    return sorted(found, key=os.fsencode)


def _manifest_metric(path: Path) -> Metric | None:
    try:
        stored = json.loads((path / shards.MANIFEST).read_text()).get("metric")
    except (OSError, ValueError, AttributeError):
        return None
    return next((m for m in get_args(Metric) if m == stored), None)
