"""Layouts of image files: which files are images of which split and class.

`split/class/image` under any usual spelling; flat folders with a list of labels; class
folders without splits; CUB's three lists; one more folder on top of any of them. The code
sees paths alone, so that folders and archives are judged alike.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastadv.data.sets.class_order import (
    EXPECTED,
    Members,
    abridged,
    agreed_classes,
    ordered_classes,
    refuse_empty,
)
from fastadv.data.sets.endings import is_image, left_out, report_left_out
from fastadv.data.sets.image_set import option_hint
from fastadv.data.sets.label_lists import Columns
from fastadv.data.sets.label_rule import resolve_labels
from fastadv.data.sets.layout_lists import (
    FlatLabels,
    cub_layout,
    splits_of_lists,
)
from fastadv.data.sets.name_labels import labels_of_names
from fastadv.data.sets.split_folders import SplitFiles, are_classes, files_of_split
from fastadv.data.sets.split_names import (
    EVAL_WORDS,
    Role,
    evaluation_order,
    roles_of,
    training_name,
)
from fastadv.data.sets.tree import Tree
from fastadv.errors import ConfigError, DataError, unknown_name

log = logging.getLogger(__name__)

_SEVERITIES = ("1", "2", "3", "4", "5")
_IN_NAMES = "If labels stand in the names of images, give " + option_hint(
    "label_pattern", "REGEX"
)


@dataclass(frozen=True)
class Layout:
    """What a folder or an archive holds.

    Attributes:
        prefix: The folders on top of the data set, ending with '/', or nothing.
        classes: Class names in id order.
        splits: Images of each class by split, below `prefix`; the training split first.
            The name of the only split of data without splits is empty.
    """

    prefix: str
    classes: list[str]
    splits: dict[str, Members]


def find_layout(
    tree: Tree,
    *,
    eval_split: str | None = None,
    columns: Columns | None = None,
    by_number: bool = False,
) -> Layout:
    """Recognise the layout of a folder or an archive.

    Args:
        tree: Its files.
        eval_split: Name of the split to evaluate on; None takes the first with labels, in
            the order of `evaluation_order`.
        columns: Columns of the list of labels that a user named.
        by_number: Order class folders that are called by numbers as numbers.

    Raises:
        DataError: There is no layout that is known, or splits do not fit together.
        ConfigError: `eval_split` is no name of a split.
    """
    columns = columns or Columns()
    if eval_split is not None and not evaluation_order([eval_split]):
        raise ConfigError(unknown_name("eval_split", eval_split, EVAL_WORDS))
    prefix = ""
    while True:
        here = tree.below(prefix)
        roles = roles_of(here.top)
        found = cub_layout(here)
        if found is None and roles and not _is_class_list(here, roles):
            by_folder = _by_folders(here, roles, eval_split, columns, by_number)
            return Layout(prefix, *by_folder)
        if found is None:
            found = splits_of_lists(here, columns)
        if found is not None:
            return Layout(prefix, *_chosen(found, eval_split, tree.where))
        inner = _only_folder(here)
        if inner is None:
            return Layout(prefix, *_without_splits(here, by_number, columns))
        prefix += f"{inner}/"


def _is_class_list(tree: Tree, roles: Mapping[str, Role]) -> bool:
    """Return whether a folder with the name of a split is one class among others.

    So it is with `train` between `sofa` and `tvmonitor`: it holds images alone, and so do
    at least two others, none of which has the name of a split.
    """
    if len(roles) > 1:
        return False
    (name,) = roles
    tops = {
        path.split("/")[0] for path in tree.files if path.count("/") and is_image(path)
    }
    nested = {path.split("/")[0] for path in tree.folders if "/" in path}
    return name in tops and name not in nested and len(tops - {name}) >= 2


def _only_folder(tree: Tree) -> str | None:
    """Return the folder on top of all images, if there are folders of images in it."""
    images = [path for path in tree.files if is_image(path)]
    tops = {path.split("/", 1)[0] for path in images}
    if len(tops) != 1 or any("/" not in path for path in images):
        return None
    (top,) = tops
    direct = any(path.count("/") == 1 for path in images)
    return None if direct else top


def _by_folders(
    tree: Tree,
    roles: Mapping[str, Role],
    eval_split: str | None,
    columns: Columns,
    by_number: bool,
) -> tuple[list[str], dict[str, Members]]:
    """Return classes and splits of a folder with folders of splits."""
    where = tree.where
    train_name = training_name(roles)
    candidates = evaluation_order(roles)
    if eval_split is not None:
        if eval_split not in candidates:
            raise DataError(
                f"{where} has no folder {eval_split}/, which eval_split names; it has "
                f"{', '.join(f'{name}/' for name in candidates)}"
            )
        candidates = [eval_split]
    parts = {name: files_of_split(tree, name) for name in roles}
    for name, part in parts.items():
        report_left_out(f"{where}: {name}/", left_out(part.others))
    _say_beside(tree, roles)
    flat = FlatLabels(tree, columns)
    train: Members | None = None
    listed: dict[str, list[tuple[str, str]]] = {}
    if train_name is not None:
        part = parts[train_name]
        if part.folders:
            _note_loose(part, f"{where}: {train_name}/")
            train = part.folders
            refuse_empty(train, where)
        elif part.loose:
            listed[train_name] = _flat(flat, train_name, part, where, required=True)
        else:
            raise DataError(f"{where}: {train_name}/ has no class folders; {EXPECTED}")
    held_name, held = None, None
    for name in candidates:
        part = parts[name]
        alone = len(candidates) == 1
        if are_classes(part, train):
            _note_loose(part, f"{where}: {name}/")
            held_name, held = name, part.folders
        elif part.images and (pairs := _flat(flat, name, part, where, train)):
            held_name, listed[name] = name, pairs
        elif not part.images and alone:
            raise DataError(f"{where}: {name}/ has no images; {EXPECTED}")
        else:
            if eval_split is not None:
                raise DataError(
                    f"{where}: {name}/, which eval_split names, has no labels: neither "
                    "folders of classes nor a list"
                )
            _say_unlabelled(where, name, len(part.images))
            continue
        break
    later = candidates[candidates.index(held_name) + 1 :] if held_name else []
    bare = [name for name in later if not _has_labels(parts[name], train, flat, name)]
    for name in bare:
        _say_unlabelled(where, name, len(parts[name].images))
    _say_ignored(where, held_name, [n for n in candidates if n not in bare], eval_split)
    if train_name is None and held_name is None:
        raise DataError(f"{where} has no train/ folder: {EXPECTED}")
    if not listed and train is not None and train_name is not None:
        if held is None or held_name is None:
            classes = ordered_classes(train, where, by_number)
            return classes, {train_name: train}
        classes = agreed_classes(train, held, where, held_name, by_number)
        return classes, {train_name: train, held_name: held}
    if not listed and held is not None and held_name is not None:
        held = {name: paths for name, paths in held.items() if paths}
        return ordered_classes(held, where, by_number), {held_name: held}
    names = flat.class_names()
    if train is not None and train_name is not None and held_name is not None:
        classes = ordered_classes(train, where, by_number)
        return classes, {
            train_name: train,
            held_name: _as_train(listed[held_name], classes, where, held_name),
        }
    if held is not None and held_name is not None:  # a list beside folders of classes
        listed[held_name] = [(p, c) for c, paths in held.items() for p in paths]
    order = [n for n in (train_name, held_name) if n is not None and n in listed]
    return _resolved({name: listed[name] for name in order}, where, names)


def _resolved(
    listed: Mapping[str, Sequence[tuple[str, str]]],
    where: str,
    names: Sequence[str] | None,
) -> tuple[list[str], dict[str, Members]]:
    """Return classes and members of images with labels as a list has them."""
    texts = {split: [label for _, label in pairs] for split, pairs in listed.items()}
    if not all(text.isdecimal() for part in texts.values() for text in part if text):
        names = None  # these are names themselves
    classes, ids = resolve_labels(texts, where, names=names)
    splits: dict[str, Members] = {}
    for split, found in ids.items():
        members: Members = {}
        for (path, _), label in zip(listed[split], found.tolist(), strict=True):
            if label >= 0:
                members.setdefault(classes[label], []).append(path)
        splits[split] = members
    return classes, splits


def _as_train(
    pairs: Sequence[tuple[str, str]], classes: Sequence[str], where: str, name: str
) -> Members:
    """Return the members of a split whose list names the classes of training folders."""
    known = set(classes)
    labels = {label for _, label in pairs if label}
    if not labels & known and all(label.isdecimal() for label in labels):
        log.warning(
            "%s: the list of %s/ has numbers for the %d class folders: they are taken for "
            "places in the order of their names, %s is %r",
            *(where, name, len(classes), min(labels, key=int)),
            classes[0],
        )
        _, splits = _resolved({name: pairs}, where, classes)
        return splits[name]
    found = {label: [p for p, other in pairs if other == label] for label in labels}
    if unknown := sorted(labels - known):
        raise DataError(
            f"{where}: class(es) {abridged(unknown)} are in the list of {name}/ but not in "
            f"train/ ({len(classes)} classes); class ids come from train/, so add or remove "
            "them"
        )
    return found


def _has_labels(
    part: SplitFiles, train: Members | None, flat: FlatLabels, name: str
) -> bool:
    """Return whether a split that is not evaluated on could be."""
    return are_classes(part, train) or bool(flat.of_split(name, part.images, train))


def _say_beside(tree: Tree, roles: Mapping[str, Role]) -> None:
    """Warn of folders of images beside those of splits."""
    beside = {p.split("/")[0] for p in tree.files if "/" in p and is_image(p)} - set(
        roles
    )
    if beside:
        log.warning(
            "%s: the images in %s are of no split and left out",
            tree.where,
            abridged(sorted(beside)),
        )


def _say_unlabelled(where: str, name: str, count: int) -> None:
    log.warning(
        "%s: %s/ has no labels (%d images); it is passed over", where, name, count
    )


def _flat(
    flat: FlatLabels,
    name: str,
    part: SplitFiles,
    where: str,
    train: Members | None = None,
    *,
    required: bool = False,
) -> list[tuple[str, str]]:
    """Return (path, label) of the images of a split by a list or their names, if any."""
    found = flat.of_split(name, part.images, train)
    if not found and required:
        raise DataError(
            f"{where}: {name}/ has no class folders, and no list beside it names labels of "
            f"its {len(part.images)} images; {EXPECTED}, or a CSV or text file with a file "
            f"and a class in each line. {_IN_NAMES}"
        )
    return found


def _note_loose(part: SplitFiles, where: str) -> None:
    if part.loose:
        log.warning(
            "%s: %d image(s) outside of any class folder are left out, like %s",
            *(where, len(part.loose), part.loose[0]),
        )


def _say_ignored(
    where: str,
    chosen: str | None,
    candidates: Sequence[str],
    eval_split: str | None,
) -> None:
    if chosen is None or eval_split is not None:
        return
    ignored = list(candidates[candidates.index(chosen) + 1 :])
    if ignored:
        log.warning(
            "%s: evaluating on %s/; %s ignored. To evaluate there, give %s",
            where,
            chosen,
            ignored,
            option_hint("eval_split", ignored[0]),
        )


def _chosen(
    found: tuple[dict[str, list[tuple[str, str]]], list[str] | None],
    eval_split: str | None,
    where: str,
) -> tuple[list[str], dict[str, Members]]:
    """Return classes, and the training and the evaluation split that lists name."""
    listed, names = found
    held = evaluation_order(listed)
    if eval_split is not None:
        if eval_split not in held:
            raise DataError(
                f"{where} has no split {eval_split}, which eval_split names; it has "
                f"{', '.join(held) or 'none'}"
            )
        held = [eval_split]
    labelled = [name for name in held if any(label for _, label in listed[name])]
    for name in held:
        if name not in labelled:
            log.warning(
                "%s: the list of %s has no labels; it is passed over", where, name
            )
    train = training_name(listed)
    order = [name for name in (train, *labelled[:1]) if name is not None]
    _say_ignored(where, labelled[0] if labelled else None, labelled, eval_split)
    order = order or list(listed)[:1]
    return _resolved({name: listed[name] for name in order}, where, names)


def _without_splits(
    tree: Tree, by_number: bool, columns: Columns
) -> tuple[list[str], dict[str, Members]]:
    """Return classes and the only split of folders of classes."""
    where = tree.where
    found = f"found {abridged(tree.top)}" if tree.top else "found no folders"
    images = [path for path in tree.files if is_image(path)]
    members: Members = {name: [] for name in tree.top}
    loose = [path for path in images if "/" not in path]
    for path in images:
        if "/" in path:
            members[path.split("/", 1)[0]].append(path)
    members = {name: paths for name, paths in members.items() if paths}
    # The folders of a data set of two classes or more say the classes, unless told else.
    flat = columns.pattern is not None or len(members) < 2
    if flat and (pairs := labels_of_names(images, where, columns.pattern)):
        report_left_out(where, left_out(tree.files))
        return _resolved({"": pairs}, where, None)
    if not members or len(loose) > len(images) // 2:
        what = f"{len(loose)} images without a list of labels" if loose else "no images"
        raise DataError(
            f"{where} has no train/ folder and {what}: {EXPECTED}, or <class>/<image>; "
            f"{found}" + (f". {_IN_NAMES}" if loose else "")
        )
    report_left_out(where, left_out(tree.files))
    _note_loose(SplitFiles(loose=loose), where)
    _refuse_corruptions(images, where)
    _refuse_domains(members, where)
    return ordered_classes(members, where, by_number), {"": members}


def _refuse_corruptions(images: Sequence[str], where: str) -> None:
    """Refuse folders like ImageNet-C, whose folders are corruptions and severities."""
    parts = [path.split("/") for path in images]
    if all(len(each) >= 3 and each[-3] in _SEVERITIES for each in parts):
        one = "/".join(parts[0][:-2])
        raise DataError(
            f"{where} holds corruptions in severities like ImageNet-C; open one of them, "
            f"for example {where}/{one}, or judge on all with fastadv-analyze shift"
        )


def _refuse_domains(members: Members, where: str) -> None:
    """Refuse folders that all hold the same class folders, like Office-Home's domains."""
    inner = [
        {path.split("/")[1] for path in paths if path.count("/") >= 2}
        for paths in members.values()
    ]
    if len(inner) < 2 or any(len(each) < 2 for each in inner):
        return
    if shared := set.intersection(*inner):
        first = sorted(members)[0]
        raise DataError(
            f"{where}: its folders {abridged(list(members))} hold the same folders "
            f"({abridged(sorted(shared), 4)}), so they are no classes; open one of them, "
            f"for example {where}/{first}"
        )
