"""The one rule by which stored labels of any type become class ids.

Whole numbers are ids, also as floats (`3.0`) and as text; other text names a class. Missing
labels (null, NaN, empty text, -1) belong to images that are left out and counted. Lists,
bytes and measurements are refused.
"""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from fastadv.errors import DataError, first_few

log = logging.getLogger(__name__)

MISSING = -1  # the id of an image without a label
_SHOWN = 8
_MOST_NUMBERED = 1_000_000  # classes, most of them without images; ImageNet has 21,841

Parsed = int | str | None


def resolve_labels(
    splits: Mapping[str, Sequence[object]],
    where: str,
    *,
    names: Sequence[str] | None = None,
    from_one: bool = False,
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """Turn labels into class ids that all splits share.

    Labels that are all whole numbers are ids, others are names, sorted bytewise. Without
    known names, ids that begin with 1 or leave numbers out become classes that are called
    by their numbers, in the order of the numbers, which is said.

    Args:
        splits: Labels of each split; the first split decides which classes there are.
        where: The data set in messages.
        names: Class names by id, if they are known.
        from_one: Ids that begin with 1 are lowered by one in silence (ImageNet's
            TFRecords).

    Returns:
        Class names in id order, and int64 ids for each split with any label, -1 where an
        image has none. A split without labels is left out, which is said.

    Raises:
        DataError: The first split has no labels, a label is no id and no name, or a class
            is not one of the first split.
    """
    parsed = {
        split or "all": _parsed(values, f"{where}/{split or 'all'}")
        for split, values in splits.items()
    }
    spelled = dict(zip(parsed, splits, strict=True))
    first = next(iter(parsed))
    parsed = _labelled(parsed, first, where)
    every = {split: set(values) - {None} for split, values in parsed.items()}
    if all(isinstance(v, int) for found in every.values() for v in found):
        classes, position = _by_number(every, first, where, names, from_one)
    else:
        known = names or sorted({str(v) for v in every[first]}, key=str.encode)
        classes = list(known)
        position = {name: i for i, name in enumerate(classes)}
        position |= {v: position.get(str(v), -1) for f in every.values() for v in f}
    for split, found in every.items():
        strange = [v for v in found if not 0 <= position.get(v, -1) < len(classes)]
        if strange:
            listed = first_few([repr(str(v)) for v in sorted(strange, key=str)], _SHOWN)
            raise DataError(
                f"{where}: label(s) {listed} are in {split} but not among the "
                f"{len(classes)} classes of {first}; the splits' classes differ: remove "
                "those images or add the classes"
            )
    ids = {
        spelled[split]: np.array(
            [MISSING if v is None else position[v] for v in values], dtype=np.int64
        )
        for split, values in parsed.items()
    }
    return classes, ids


def _labelled(
    parsed: dict[str, list[Parsed]], first: str, where: str
) -> dict[str, list[Parsed]]:
    """Return the splits that have labels; say what is left out."""
    kept = {}
    for split, values in parsed.items():
        missing = sum(v is None for v in values)
        if missing == len(values):
            if split == first:
                raise DataError(
                    f"{where}: none of the {missing} images of {split} has a label "
                    "(missing, or -1); a list or column of labels is needed"
                )
            log.warning(
                "%s: %s has no labels (%d images); it is passed over",
                *(where, split, missing),
            )
            continue
        if missing:
            log.warning(
                "%s: %d of %d images of %s have no label (missing, or -1) and are left out",
                *(where, missing, len(values), split),
            )
        kept[split] = values
    return kept


def _by_number(
    every: Mapping[str, set[Parsed]],
    first: str,
    where: str,
    names: Sequence[str] | None,
    from_one: bool,
) -> tuple[list[str], dict[Parsed, int]]:
    """Return the classes of labels that are all numbers, and the id of each label."""
    found = sorted(
        {v for values in every.values() for v in values if isinstance(v, int)}
    )
    mine = sorted(v for v in every[first] if isinstance(v, int))
    if (low := found[0]) < 0:
        raise DataError(
            f"{where}: class id {low} is negative; ids start at 0, and -1 means no label"
        )
    beyond = names is not None and low >= 1 and found[-1] == len(names)
    if low == 1 and (from_one or beyond):
        if not from_one:
            log.warning(
                "%s: labels are 1 to %d for %d names of classes: each stands for the name "
                "before, so that label 1 is %r",
                *(where, found[-1], len(names or ()), (names or ("",))[0]),
            )
        position: dict[Parsed, int] = {v: v - 1 for v in found}
        return list(names or _numbered(mine[-1], where)), position
    whole = len(mine) == mine[-1] + 1
    if names is not None or whole or len(mine) < 2:
        return list(names or _numbered(mine[-1] + 1, where)), {v: v for v in found}
    gaps = (v for a, b in pairwise([-1, *mine]) for v in range(a + 1, b))
    absent = [*islice(gaps, _SHOWN), *["..."] * (mine[-1] + 1 - len(mine) > _SHOWN)]
    log.warning(
        "%s: no image of %s has the label(s) %s; the %d numbers that occur are the classes, "
        "in their order and called by them, so that label %d has the class id 0",
        where,
        first,
        ", ".join(map(str, absent)),
        len(mine),
        mine[0],
    )
    return list(map(str, mine)), {v: i for i, v in enumerate(mine)}


def _numbered(count: int, where: str) -> list[str]:
    """Return the names of classes that are called by their numbers from 0 on."""
    if count > _MOST_NUMBERED:
        raise DataError(
            f"{where}: the label {count - 1} would make {count} classes, of which hardly any "
            "has images; number the classes from 0 on"
        )
    return list(map(str, range(count)))


def _parsed(values: Sequence[object], where: str) -> list[Parsed]:
    """Return labels as ids, names or None; all are names where one is."""
    known: dict[tuple[type, object], Parsed] = {}
    found: list[Parsed] = []
    for value in values:
        key = (type(value), value)
        try:
            if key not in known:
                known[key] = _label(value, where)
            found.append(known[key])
        except TypeError:  # lists and dictionaries have no hash
            raise DataError(_refusal(value, where)) from None
    texts = {v for v in known.values() if isinstance(v, str)}
    as_numbers = {text: _number(text) for text in texts}
    if all(number is not None for number in as_numbers.values()):
        as_ids = {
            t: _whole(n, t, where) for t, n in as_numbers.items() if n is not None
        }
        found = [as_ids[v] if isinstance(v, str) else v for v in found]
    else:
        found = [str(v) if isinstance(v, int) else v for v in found]
    return [None if v in (-1, "-1") else v for v in found]


def _label(value: object, where: str) -> Parsed:
    if value is None or isinstance(value, str):
        return value.strip() or None if isinstance(value, str) else None
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _whole(float(value), value, where)
    raise DataError(_refusal(value, where))


def _number(text: str) -> float | None:
    try:
        return float(text) if text.isascii() else None
    except ValueError:
        return None


def _whole(number: float, given: object, where: str) -> int | None:
    if math.isnan(number):
        return None
    if number != int(number) if math.isfinite(number) else True:
        raise DataError(
            f"{where}: the label {given} is no whole number, so it measures something; "
            "expected class ids (0, 1, 2, ...) or names"
        )
    return int(number)


def _refusal(value: object, where: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    if isinstance(value, bytes | bytearray):
        what, advice = "bytes", "store them as whole numbers or text"
    elif isinstance(value, list | tuple | np.ndarray):
        what = "lists"
        advice = "an image has one class here: store one id or name for each"
    else:
        what, advice = type(value).__name__, "store one id or name for each image"
    return f"{where}: labels are {what}, like {shown}; {advice}"
