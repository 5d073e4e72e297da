"""Classes of folders: their order, and whether the splits have the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence

from fastadv.data.sets.endings import USUAL
from fastadv.data.sets.image_set import option_hint
from fastadv.errors import ConfigError, DataError, first_few

log = logging.getLogger(__name__)

Members = dict[str, list[str]]  # class -> image paths below the root, '/'-separated
EXPECTED = "expected train/<class>/<image> and val/<class>/<image> (or test/, valid/)"


def ordered_classes(
    names: Iterable[str], where: str, by_number: bool = False
) -> list[str]:
    """Return class names in id order: bytewise, or by number where that is wanted.

    Names that are all whole numbers, whose order as text is another one, are warned of.
    """
    names = sorted(names, key=os.fsencode)
    if not all(name.isdecimal() for name in names):
        if by_number:
            raise ConfigError(
                f"{where}: class_order=number needs classes that are called by numbers; "
                f"they are {abridged(names)}"
            )
        return names
    numeric = sorted(names, key=lambda name: (int(name), name))
    if by_number:
        return numeric
    if numeric != names:
        log.warning(
            "%s: classes are called by numbers and sorted as text, as torchvision's "
            "ImageFolder sorts them: class %s has the id 2. If a network's ids are these "
            "numbers, give %s",
            where,
            names[2],
            option_hint("class_order", "number"),
        )
    return names


def abridged(names: Sequence[str], limit: int = 8) -> str:
    """Return the first names, quoted, and how many more there are."""
    return first_few([repr(name) for name in sorted(names, key=os.fsencode)], limit)


def agreed_classes(
    train: Members, held: Members, where: str, evaluation: str, by_number: bool = False
) -> list[str]:
    """Return the classes of both splits in id order, which is bytewise.

    Args:
        train: Training images per class.
        held: Evaluation images per class.
        where: The data set in messages.
        evaluation: The evaluation split in messages.
        by_number: Order classes that are called by numbers as numbers.

    Raises:
        DataError: A class has no training images, or is of the evaluation split only.
    """
    refuse_empty(train, where)
    if unknown := [c for c in held if c not in train]:
        raise DataError(
            f"{where}: class folder(s) {abridged(unknown)} are in {evaluation}/ but "
            f"not in train/ ({len(held)} classes against {len(train)}); class ids come "
            "from train/, so add or remove them"
        )
    if not any(held.values()):
        raise DataError(f"{where}: {evaluation}/ has no images; {EXPECTED}")
    return ordered_classes(train, where, by_number)


def refuse_empty(train: Members, where: str) -> None:
    """Raise DataError where a class has no training images."""
    if empty := [c for c in train if not train[c]]:
        raise DataError(
            f"{where}: no images in the training class folder(s) {abridged(empty)}; add "
            f"images ({USUAL}) or remove the folder"
        )
