"""Labels that stand in the names of images: `cat.0.jpg`, `dog (12).png`, or by a pattern.

Without a pattern, a name counts that is a word and a number. The names of cameras and
programs (`IMG_0001`, `frame_12`) are no labels.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from fastadv.data.sets.image_set import option_hint
from fastadv.errors import ConfigError

log = logging.getLogger(__name__)

Pairs = list[tuple[str, str]]  # (path, label as text)
# A word of letters, and what counts the images of its class; or a WordNet identifier.
_NAME = re.compile(
    r"(?P<word>[^\W\d_](?:.*[^\W\d_])?)[\s._-]*\(?\d+\)?|(?P<wnid>n\d{8})[._-]\w+"
)
_NO_LABELS = frozenset(
    (
        *("img", "image", "images", "imag", "picture", "pic", "pict", "photo", "foto"),
        *(
            "dsc",
            "dscn",
            "dscf",
            "dcim",
            "pxl",
            "mvi",
            "gopr",
            "im",
            "p",
            "vid",
            "video",
        ),
        *("frame", "scan", "screenshot", "file", "sample", "example", "tile", "patch"),
        *("crop", "jpg", "png", "data", "train", "val", "valid", "validation", "test"),
        *("eval", "ilsvrc", "coco"),
    )
)
_ENOUGH = 0.9  # share of images whose names hold a label


def label_pattern(text: str | None) -> re.Pattern[str] | None:
    """Return the compiled pattern that a user gave; None without one.

    Raises:
        ConfigError: It is no regular expression, or has no group.
    """
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(
            f"label_pattern={text!r} is no regular expression: {error}"
        ) from None
    if not pattern.groups:
        raise ConfigError(
            f"label_pattern={text!r} has no group, and the label is what its first group "
            "matches: for cat_001.jpg write ([a-z]+)_"
        )
    return pattern


def labels_of_names(
    images: Sequence[str],
    where: str,
    pattern: re.Pattern[str] | None,
    known: Collection[str] | None = None,
) -> Pairs:
    """Return path and label of images whose names hold their labels; else nothing.

    Args:
        images: Paths of the images of a split.
        where: The split in messages.
        pattern: The pattern that a user gave, which is looked for in each path. Images that
            it does not match have no label.
        known: Classes that labels must be among; None accepts any.
    """
    if pattern is not None:
        matches = [(path, pattern.search(path)) for path in images]
        found = [(path, (m[1] or "") if m else "") for path, m in matches]
        return found if any(label for _, label in found) else []
    names = [(path, _NAME.fullmatch(PurePosixPath(path).stem)) for path in images]
    pairs = [(path, m["word"] or m["wnid"] if m else "") for path, m in names]
    counts = Counter(label for _, label in pairs if label)
    first = {re.split(r"[\W_\d]+", label.lower())[0] for label in counts}
    usable = len(counts) >= 2 and min(counts.values()) >= 2 and not first & _NO_LABELS
    if not usable or sum(counts.values()) < _ENOUGH * len(images):
        return []
    if known is not None and not counts.keys() <= set(known):
        return []
    example = next(path for path, label in pairs if label)
    log.warning(
        "%s: labels are taken from the names of the images, %r of %s (%d classes); %s "
        "states otherwise what they are, and a list of labels replaces them",
        *(where, dict(pairs)[example], example, len(counts)),
        option_hint("label_pattern", "REGEX"),
    )
    return pairs
