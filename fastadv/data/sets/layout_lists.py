"""Layouts by lists: the labels of flat folders, splits that lists name, and CUB's lists."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import PurePosixPath

from fastadv.data.sets.endings import is_image, left_out, report_left_out
from fastadv.data.sets.label_lists import (
    Columns,
    FileIndex,
    Listed,
    in_order,
    may_be_list,
    names_by_id,
    read_list,
)
from fastadv.data.sets.name_labels import labels_of_names
from fastadv.data.sets.split_names import Role, exact_role, training_name, word_role
from fastadv.data.sets.tree import Tree
from fastadv.errors import DataError

log = logging.getLogger(__name__)

Pairs = list[tuple[str, str]]  # (path, label as text)
Found = tuple[dict[str, Pairs], list[str] | None]  # by split; names of classes by id
_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
_CUB = ("images.txt", "image_class_labels.txt")
_NAMES = ("classes.txt", "class_names.txt", "categories.txt")
_MOST_NOTES = 20  # text files in one folder: more are notes on single images
_ENOUGH = 0.5  # share of images, or of rows, by which a list is recognised


class FlatLabels:
    """Labels of flat folders of images, from the lists that lie near them.

    Args:
        tree: All files.
        columns: Columns of the lists that a user named.
    """

    def __init__(self, tree: Tree, columns: Columns) -> None:
        self.tree, self.columns = tree, columns

    @cached_property
    def lists(self) -> list[str]:
        """Paths of the files that may be lists of labels."""
        return _lists(self.tree)

    def class_names(self) -> list[str] | None:
        """Return the names of classes by id that a file beside the images states."""
        return _class_names(self.tree)

    def of_split(
        self, name: str, images: Sequence[str], known: Collection[str] | None = None
    ) -> Pairs:
        """Return path and label of the images of a split folder; nothing without labels.

        They are those of a list, or stand in the names of the images.

        Args:
            name: The folder.
            images: Paths of its images.
            known: Classes that labels in names must be among; None accepts any.

        Raises:
            DataError: A list names the images, but not clearly their labels.
        """
        by_name = self.tree.where, self.columns.pattern, known
        if self.columns.pattern is not None:
            return labels_of_names(images, *by_name)
        index = FileIndex(images)
        wanted = exact_role(name) or word_role(name)
        for path in sorted(self.lists, key=lambda p: (not p.startswith(f"{name}/"), p)):
            role = _role(path)
            inside = path.startswith(f"{name}/")
            if not inside and role not in (None, wanted):
                continue
            data = self.tree.read(path)
            if found := read_list(data, path, index, self.columns):
                if len(found.labels) < _ENOUGH * len(images):
                    continue
                missing = found.rows - len(found.labels)
                if missing and (inside or role is not None):
                    log.warning(
                        "%s: %d row(s) of %s name files that are not in %s/",
                        *(self.tree.where, missing, path, name),
                    )
                log.info(
                    "%s: labels of %s/ are those of %s", self.tree.where, name, path
                )
                return [(p, found.labels.get(p, "")) for p in images]
            if role is not None or inside or "label" in path or "synset" in path:
                ordered = sorted(images)
                if labels := in_order(data, ordered):
                    if PurePosixPath(path).name == _DEVKIT:
                        labels = _wnids(self.tree, labels)
                    log.warning(
                        "%s: the labels of %s/ are the lines of %s, in order of the names "
                        "of the images",
                        *(self.tree.where, name, path),
                    )
                    return list(zip(ordered, labels, strict=True))
        return labels_of_names(images, *by_name)


def splits_of_lists(tree: Tree, columns: Columns) -> Found | None:
    """Return the images of splits that lists name, or of one list of labels.

    Lists are called by splits (`train.txt`), or one has a column of splits, or one labels
    images that lie in no folders of classes. The result is None where there are none.

    Raises:
        DataError: A list names images, but not clearly their labels.
    """
    paths = _lists(tree)
    images = [path for path in tree.files if is_image(path)]
    if not paths or not images:
        return None
    index = FileIndex(images)
    found: dict[str, Pairs] = {}
    for path in paths:
        role = _role(path)
        if role is None or role in {exact_role(n) or word_role(n) for n in found}:
            continue
        listed = read_list(tree.read(path), path, index, columns)
        named = _files_of(tree, path, index, listed)
        if named:
            stem = PurePosixPath(path).stem
            found[stem.lower() if exact_role(stem) else role] = named
    if len(found) == 1 and training_name(found) is None:
        (pairs,) = found.values()  # a list of the only images there are
        found = {"": pairs} if len(pairs) >= _ENOUGH * len(images) else {}
    if "" in found or training_name(found) is not None:
        _report(tree, found)
        return found, _class_names(tree)
    folders = {path.rpartition("/")[0] for path in images}
    for path in paths:
        if _role(path) is not None:
            continue
        listed = read_list(tree.read(path), path, index, columns)
        if listed is None or len(listed.labels) < _ENOUGH * len(images):
            continue
        if listed.splits:
            found = _by_column(listed, path, tree.where)
        elif len(folders) == 1:
            pairs = [(p, listed.labels.get(p, "")) for p in images]
            found = {"": pairs}
        else:
            continue
        _report(tree, found)
        return found, _class_names(tree)
    return None


def cub_layout(tree: Tree) -> Found | None:
    """Return the images that the lists of CUB-200-2011 name; None where they are not there.

    Raises:
        DataError: The lists do not fit together.
    """
    if not set(_CUB) <= set(tree.files):
        return None
    files, labels = (_table(tree, name) for name in _CUB)
    split = _table(tree, "train_test_split.txt")
    names = _table(tree, "classes.txt")
    there = set(tree.files)
    found: dict[str, Pairs] = {"train": [], "test": []} if split else {"": []}
    missing = 0
    for number, path in files.items():
        path = next((p for p in (f"images/{path}", path) if p in there), "")
        if not path:
            missing += 1
            continue
        label = labels.get(number, "")
        part = ("train" if split.get(number) == "1" else "test") if split else ""
        found[part].append((path, names.get(label, label)))
    if missing:
        raise DataError(
            f"{tree.where}: {missing} of the {len(files)} images that images.txt lists are "
            "not there; unpack the original archive again"
        )
    return found, None


def _table(tree: Tree, name: str) -> dict[str, str]:
    """Return the second word of each line by the first; nothing without the file."""
    if name not in tree.files:
        return {}
    lines = tree.read(name).decode("utf-8", "replace").splitlines()
    pairs = (line.strip().split(None, 1) for line in lines)
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _lists(tree: Tree) -> list[str]:
    """Return the files that may be lists, those that lie higher first."""
    by_folder: dict[str, list[str]] = {}
    for path in tree.files:
        if may_be_list(path):
            by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    found: list[str] = []
    for paths in by_folder.values():
        notes = [p for p in paths if p.lower().endswith((".txt", ".json"))]
        crowded = len(notes) > _MOST_NOTES
        found += [p for p in paths if not (crowded and p in notes)]
    return sorted(found, key=lambda p: (p.count("/"), p))


def _role(path: str) -> Role | None:
    stem = PurePosixPath(path).stem
    return exact_role(stem) or word_role(stem)


def _class_names(tree: Tree) -> list[str] | None:
    for path in tree.files:
        name = PurePosixPath(path).name.lower()
        known = name in _NAMES or (name.endswith(".json") and "label" in name)
        if known and (names := names_by_id(tree.read(path), path)):
            return names
    return None


def _files_of(
    tree: Tree, path: str, index: FileIndex, listed: Listed | None
) -> Pairs | None:
    """Return path and label of what a list of a split names, else by the folder's name."""
    if listed is not None and listed.labels:
        enough = len(listed.labels) >= _ENOUGH * listed.rows
        return list(listed.labels.items()) if enough else None
    lines = tree.read(path).decode("utf-8", "replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    files = [file for line in lines if (file := index.find(line)) is not None]
    if not files or len(files) < _ENOUGH * len(lines):
        return None
    if any("/" not in file for file in files):
        return None  # without labels and without folders
    return [(file, file.split("/")[-2]) for file in files]


def _by_column(listed: Listed, path: str, where: str) -> dict[str, Pairs]:
    found: dict[str, Pairs] = {}
    strange = 0
    for file, label in listed.labels.items():
        split = listed.splits.get(file, "").strip().lower()
        if word_role(split) is None:
            strange += 1
            continue
        found.setdefault(split, []).append((file, label))
    if strange:
        log.warning(
            "%s: %d row(s) of %s are of no known split and left out",
            where,
            strange,
            path,
        )
    return found


def _report(tree: Tree, found: dict[str, Pairs]) -> None:
    """Say which files and images a layout by lists leaves out."""
    report_left_out(tree.where, left_out(tree.files))
    named = {path for pairs in found.values() for path, _ in pairs}
    unnamed = [p for p in tree.files if is_image(p) and p not in named]
    if unnamed:
        log.warning(
            "%s: %d image(s) are in no list and left out, like %s",
            *(tree.where, len(unnamed), unnamed[0]),
        )


def _wnids(tree: Tree, labels: Sequence[str]) -> list[str]:
    """Return the WordNet identifiers of the ids of ILSVRC's devkit.

    Raises:
        DataError: meta.mat, which says them, is not there.
    """
    meta = next((p for p in tree.files if p.rpartition("/")[2] == "meta.mat"), None)
    if meta is None:
        raise DataError(
            f"{tree.where}: the ids of {_DEVKIT} are not in the order of the WordNet "
            "identifiers; put meta.mat of the devkit beside it"
        )
    from scipy.io import loadmat

    read: Callable[..., dict[str, object]] = loadmat
    synsets: object = read(BytesIO(tree.read(meta)), squeeze_me=True)["synsets"]
    known = {str(int(s[0])): str(s[1]) for s in synsets}  # type: ignore[attr-defined]
    return [known.get(label, "") for label in labels]
