"""From a path or a pattern to both splits of a data set, whatever its format.

A folder is looked into, a file goes by its ending, `shards-{000000..000012}.tar` and
`train-*.tfrecord` are expanded. Which split a file is of stands in its name or its
folder's (`train`, `val`, `test`); data without splits get a seeded stratified part held
out. Not here: names of known data sets (`catalog`), or the formats themselves.
"""

from __future__ import annotations

import difflib
import glob
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from fastadv.data import recordio, records, shards, tfrecord
from fastadv.data.folders import EVAL_FOLDERS, open_folder, open_zip
from fastadv.data.sources import DatasetSplits, ImageSet, Metric
from fastadv.data.subsets import train_val_split
from fastadv.errors import ConfigError, DataError, unknown_name

_log = logging.getLogger(__name__)

# What the transfer literature reports; everything else is top-1.
_MEAN_PER_CLASS = ("aircraft", "caltech", "flowers", "oxford_pets", "pets")
_TRAIN_WORDS = ("train", "training")
_MAX_EXPANDED = 1_000_000  # files of one pattern: more is a typing error

Groups = dict[str, list[Path]]

# Format by file name. ImageNet's TFRecords are called train-00000-of-01024.
_FORMATS = {
    "tar": re.compile(r"\.tar(\.\w+)?$|\.tgz$"),
    "tfrecord": re.compile(r"\.tfrecords?(-\d+-of-\d+)?$|^[^.]*-\d{5}-of-\d{5}$"),
    "recordio": re.compile(r"\.rec$"),
    "columns": re.compile(r"\.(parquet|arrow)$"),
    "npz": re.compile(r"\.npz$"),
    "zip": re.compile(r"\.zip$"),
}
_IN_FOLDERS = ("tar", "tfrecord", "recordio", "columns")


def looks_like_a_path(text: str) -> bool:
    """Whether `text` can only be a path or pattern, not a mistyped name."""
    return os.sep in text or file_format(text) is not None or _is_pattern(text)


def file_format(name: str) -> str | None:
    """Return the format a file name stands for, or None."""
    found = (f for f, pattern in _FORMATS.items() if pattern.search(name.lower()))
    return next(found, None)


def open_path(
    text: str,
    *,
    metric: Metric | None = None,
    test: str | os.PathLike[str] | None = None,
    holdout: float = 0.1,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DatasetSplits:
    """Open a data set by path or pattern.

    Args:
        text: A folder (images, shards, records, Parquet), an archive or file, or a
            pattern of files.
        metric: The accuracy to report; by default the one of its literature.
        test: Path or pattern of the evaluation files, where the first is of training.
        holdout: Share held out for evaluation where the data have one split only.
        image_column: Parquet and Arrow: the column of images.
        label_column: Parquet and Arrow: the column of labels.

    Raises:
        DataError: There is nothing, or its layout is wrong.
        ConfigError: An option that cannot work.
    """
    if metric is not None and metric not in get_args(Metric):
        raise ConfigError(unknown_name("metric", str(metric), get_args(Metric)))
    if not 0.0 < holdout < 1.0:
        raise ConfigError(f"holdout={holdout} is outside (0, 1); use for example 0.1")
    columns = {"image_column": image_column, "label_column": label_column}
    name, sets = _open(text, os.fspath(test) if test is not None else None, columns)
    train, held = pair_splits(name, sets, holdout)
    usual: Metric = (
        "mean_per_class" if name.lower().startswith(_MEAN_PER_CLASS) else "top1"
    )
    packed = _manifest_metric(Path(text).expanduser())
    return DatasetSplits(name, train, held, metric or packed or usual)


def _open(
    text: str, test: str | None, columns: dict[str, str | None]
) -> tuple[str, dict[str, ImageSet]]:
    path = Path(text).expanduser()
    if path.is_dir():
        path = path.resolve()  # "." has no name
        found = _files_in(path)
        if not found and test is None:
            return path.name, _named(open_folder(path))
        name, files = path.name, found
    elif _is_pattern(text) and not path.exists():
        files = expand(text)
        name = re.split(r"[{*?\[]", path.name)[0].strip("-_.") or path.parent.name
    else:
        path = existing(text)
        name, files = path.name.partition(".")[0], [path]
        kind = file_format(path.name)
        if kind == "zip":
            return path.stem, _named(open_zip(path))
        if kind == "npz":
            from fastadv.data.arrays import open_npz

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
        held = _files_in(Path(test)) if Path(test).is_dir() else expand(test)
        groups = {"train": files, "test": held}
    else:
        groups = _by_split(files)
    return name, _READERS[kind](name, groups, columns)


def _named(pair: tuple[ImageSet, ImageSet]) -> dict[str, ImageSet]:
    return {part.split: part for part in pair}


def _open_tar(
    name: str, groups: Groups, columns: dict[str, str | None]
) -> dict[str, ImageSet]:
    names = shards.class_names([f for files in groups.values() for f in files])
    return _open_records(name, groups, shards.scan_tar, names=names)


def _open_tfrecord(
    name: str, groups: Groups, columns: dict[str, str | None]
) -> dict[str, ImageSet]:
    return _open_records(name, groups, tfrecord.scan_tfrecord, from_one=True)


def _open_recordio(
    name: str, groups: Groups, columns: dict[str, str | None]
) -> dict[str, ImageSet]:
    return _open_records(
        name, groups, recordio.scan_recordio, kind=recordio.RecordIOSet
    )


def _open_columns(
    name: str, groups: Groups, columns: dict[str, str | None]
) -> dict[str, ImageSet]:
    from fastadv.data.columns import open_columns

    return open_columns(name, groups, **columns)


_READERS: dict[
    str, Callable[[str, Groups, dict[str, str | None]], dict[str, ImageSet]]
] = {
    "tar": _open_tar,
    "tfrecord": _open_tfrecord,
    "recordio": _open_recordio,
    "columns": _open_columns,
}


def _open_records(
    name: str,
    groups: Groups,
    scan: records.Scanner,
    *,
    names: Sequence[str] | None = None,
    from_one: bool = False,
    kind: type[records.RecordSet] = records.RecordSet,
) -> dict[str, ImageSet]:
    tables = {s: records.scan_files(files, scan) for s, files in groups.items()}
    texts = {split: records.label_texts(parts) for split, parts in tables.items()}
    classes, ids = records.resolve_labels(texts, name, names=names, from_one=from_one)
    return {
        split: kind(name, split or "all", classes, ids[split], files, tables[split])
        for split, files in groups.items()
    }


def pair_splits(
    name: str, sets: dict[str, ImageSet], holdout: float
) -> tuple[ImageSet, ImageSet]:
    """Return (training, evaluation) split; holds a part out where there is one only."""
    if len(sets) > 1:
        first = "train" if "train" in sets else next(iter(sets))
        held = next((s for s in EVAL_FOLDERS if s in sets and s != first), None)
        return sets[first], sets[held or next(s for s in sets if s != first)]
    (only,) = sets.values()
    _log.warning(
        "%s has one split only (%d images): %g of it, stratified, with seed 0, is held "
        "out for evaluation; give the evaluation data with test=, or holdout= another "
        "share",
        name,
        len(only),
        holdout,
    )
    return train_val_split(only, holdout, seed=0)


def _by_split(files: Sequence[Path]) -> Groups:
    """Group files by the split in their names, the training split first."""
    groups: Groups = {}
    for file in files:
        groups.setdefault(_split_of(file), []).append(file)
    # Without a training split, the first is the only one there is.
    order = [s for s in ("train", "", *EVAL_FOLDERS) if s in groups]
    if order[2:]:
        _log.warning("evaluating on %s; %s ignored", order[1] or "the rest", order[2:])
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
    """Return the files of a known format in a folder or one below; none if it has
    classes.
    """
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


def _is_pattern(text: str) -> bool:
    return any(c in text for c in "{*?[")


def expand(text: str) -> list[Path]:
    """Return the files of a pattern with `{a,b}`, `{000..012}`, `*`, `?` and `[...]`.

    Raises:
        DataError: A file the braces name is not there, or nothing matches.
    """
    paths: list[Path] = []
    for name in _braces(os.path.expanduser(text)):
        if glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True), key=os.fsencode)
        else:
            found = [name] if os.path.exists(name) else []
        if not found:
            raise DataError(
                f"{text}: no such file {name}"
                if name != text
                else f"no file matches {text}"
            )
        paths += map(Path, found)
    return paths


def _braces(text: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        low, high = int(span[1]), int(span[2])
        if high - low >= _MAX_EXPANDED or high < low:
            raise DataError(f"{{{match[1]}}} in {text} is no range of files")
        inner = [str(i).zfill(len(span[1])) for i in range(low, high + 1)]
    else:
        inner = match[1].split(",")
    return [
        text[: match.start()] + middle + rest
        for middle in inner
        for rest in _braces(text[match.end() :])
    ]


def existing(text: str) -> Path:
    """Return the path, which is there.

    Raises:
        DataError: It is not; names what is near.
    """
    path = Path(text).expanduser()
    if path.exists():
        return path
    message = f"no data set at {path.absolute()}: no such folder or zip archive"
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, os.listdir(path.parent))
        if near:
            message += f"; perhaps you meant: {', '.join(near)}"
    raise DataError(message)


def _manifest_metric(path: Path) -> Metric | None:
    """Return the metric in the manifest of packed shards, if there is one."""
    try:
        stored = json.loads((path / shards.MANIFEST).read_text()).get("metric")
    except (OSError, ValueError, AttributeError):
        return None
    return next((m for m in get_args(Metric) if m == stored), None)
