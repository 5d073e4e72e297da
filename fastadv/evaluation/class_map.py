"""Class maps: which outputs of a network stand for the classes of a data set.

They let a network of ImageNet's thousand classes be judged on data of two hundred of them
(ImageNet-R, -A), on folders that are called by names or numbers, and on categories of
several classes each. The network then chooses among the classes of the data alone.
"""

from __future__ import annotations

import csv
import difflib
import functools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastadv.data.sets.class_order import abridged
from fastadv.errors import ConfigError, DataError
from fastadv.models.source import Source
from fastadv.results.identity import digest

log = logging.getLogger(__name__)

_WNID = re.compile(r"n\d{8}")
_FORMS = (
    "expected a .csv file with a class of the data and a class of the network in each "
    'line, or a .json file like {"bear": ["n02132136", "n02133161"]} or '
    '{"0": ["n01440764", "tench"], ...}, which names the outputs'
)


@dataclass(frozen=True)
class ClassMap:
    """The classes of a data set that a network can tell apart, and by which outputs.

    Attributes:
        classes: Names of the classes that the network knows, in the order of their ids.
        ids: Id of each in the data set.
        outputs: Outputs of the network that stand for each, at least one.
        left_out: Names of the classes that the network does not know.
        num_outputs: Number of outputs of the network.
    """

    classes: tuple[str, ...]
    ids: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]
    left_out: tuple[str, ...]
    num_outputs: int

    @property
    def is_identity(self) -> bool:
        """Whether the classes of the data are the outputs of the network, in order."""
        return self.outputs == tuple((i,) for i in range(self.num_outputs))

    @property
    def digest(self) -> str | None:
        """Hash of the outputs of each class; None where it is the identity."""
        return None if self.is_identity else digest([self.ids, self.outputs])

    def positions(self) -> dict[int, int]:
        """Return the position among `classes` by the id of a class in the data set."""
        return {class_id: place for place, class_id in enumerate(self.ids)}

    def scores(self, logits: Tensor) -> Tensor:
        """Return logits of the classes of the data, [n, len(classes)].

        The probability of a class of several outputs is the sum of theirs.

        Args:
            logits: Logits of the network, [n, num_outputs].
        """
        if self.is_identity:
            return logits
        first = torch.tensor([each[0] for each in self.outputs], device=logits.device)
        found = logits[:, first]
        for place, outputs in enumerate(self.outputs):
            if len(outputs) > 1:
                found[:, place] = logits[:, list(outputs)].logsumexp(1)
        return found

    def __str__(self) -> str:
        used = sum(map(len, self.outputs))
        text = f"{len(self.classes)} classes by {used} of {self.num_outputs} outputs"
        if self.left_out:
            text += (
                f"; the network does not know {len(self.left_out)} classes of the data: "
                f"{abridged(self.left_out)}"
            )
        return text


def class_map_for(
    source: Source, classes: Sequence[str], file: str | None = None
) -> ClassMap:
    """Return which outputs of a network stand for the classes of a data set.

    Without a file, classes belong together that have one name: as it is, but for case and
    underscores; an ImageNet class by its WordNet identifier or an English name; or, where
    all classes are called by numbers and the network's are not, the output of that
    number. Where the network states no names and has as many outputs as there are
    classes, these are in the same order.

    Args:
        source: The network.
        classes: Names of the classes of the data, in the order of their ids.
        file: A .csv or .json file that says it instead.

    Raises:
        ConfigError: The network knows fewer than two of the classes, two classes have one
            output, or the file leaves a class out.
        DataError: The file cannot be read.
    """
    source.require_classifier()
    names = [[name] for name in output_names(source)]
    stated = None
    if file is not None:
        found = _read(Path(file).expanduser())
        if isinstance(found, dict):
            stated = found
        else:
            names = found
            if len(names) != source.num_classes:
                raise ConfigError(
                    f"{file} names {len(names)} outputs, and {source.name} has "
                    f"{source.num_classes}"
                )
    if stated is not None:
        outputs = _stated(source, classes, stated, names, str(file))
    elif not names:
        if all(name.isdecimal() for name in classes) and len(classes) > 1:
            numbers = [int(name) for name in classes]
            if len(numbers) < source.num_classes and max(numbers) < source.num_classes:
                outputs = {place: (number,) for place, number in enumerate(numbers)}
                return _checked(source, classes, outputs, names)
        if len(classes) != source.num_classes:
            raise ConfigError(
                f"{source.name} does not state the names of its {source.num_classes} "
                f"classes, so that the {len(classes)} of the data cannot be found among "
                "them; `class_map` names a file that does (the names of ImageNet's classes "
                "come with timm: pip install 'fastadv[timm]')"
            )
        outputs = {i: (i,) for i in range(len(classes))}
    else:
        outputs = _by_name(classes, names)
    return _checked(source, classes, outputs, names)


def output_names(source: Source) -> list[str]:
    """Return the names of a network's classes; empty if they are unknown.

    Those of a network with a thousand classes that states no names are the WordNet
    identifiers of ImageNet, if timm is installed.
    """
    if source.classes or source.num_classes != 1000:
        return list(source.classes)
    return sorted(_english())


def _read(path: Path) -> dict[str, list[Any]] | list[list[str]]:
    """Return the outputs of each class, or the names of each output."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return _from_lines(csv.reader(text.splitlines()), path)
        found = json.loads(text, object_pairs_hook=_once)
        if not isinstance(found, dict) or not found:
            raise ValueError("it is no object with an entry for each class")
        lists = {
            key: list(each) if isinstance(each, list) else [each]
            for key, each in found.items()
        }
        for key, each in lists.items():
            if not all(isinstance(name, str | int) for name in each):
                raise ValueError(f"the entry of {key!r} holds no names or numbers")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no class map: {error}; {_FORMS}") from None
    numbered = {str(i) for i in range(len(lists))} == lists.keys()
    if numbered and all(
        isinstance(name, str) for each in lists.values() for name in each
    ):
        return [lists[str(i)] for i in range(len(lists))]
    return lists


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"{abridged(twice)} is there twice")
    return found


def _from_lines(lines: Iterable[list[str]], path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for number, cells in enumerate(lines, 1):
        cells = [cell.strip() for cell in cells]
        if not any(cells) or cells[0].startswith("#"):
            continue
        if len(cells) != 2 or not cells[0]:
            raise ValueError(f"line {number} has {len(cells)} cells: {','.join(cells)}")
        outputs = found.setdefault(cells[0], [])
        if cells[1] in outputs:
            raise ValueError(f"line {number} is there twice: {','.join(cells)}")
        outputs += [cells[1]] if cells[1] else []
    if not found:
        raise ValueError("it is empty")
    return found


def _stated(
    source: Source,
    classes: Sequence[str],
    stated: Mapping[str, Sequence[Any]],
    names: Sequence[Sequence[str]],
    where: str,
) -> dict[int, tuple[int, ...]]:
    """Return the outputs that a file states for each class."""
    if missing := [name for name in classes if name not in stated]:
        raise ConfigError(
            f"{where} has no entry for {len(missing)} of the {len(classes)} classes of "
            f"the data: {abridged(missing)}; an entry without a class of the network "
            "leaves a class out"
        )
    known = _table(names)
    found: dict[int, tuple[int, ...]] = {}
    for place, name in enumerate(classes):
        outputs = []
        for given in stated[name]:
            hits = known.get(_plain(str(given)), [])
            if str(given).isdecimal() and not hits:
                hits = [int(given)] if int(given) < source.num_classes else []
            if len(hits) != 1:
                near = difflib.get_close_matches(_plain(str(given)), known, 3)
                what = "several classes" if hits else "no class"
                hint = f"; similar are {', '.join(near)}" if near and not hits else ""
                raise ConfigError(
                    f"{where}: {given!r}, which stands for {name!r}, is {what} of "
                    f"{source.name}{hint}"
                )
            outputs += hits
        if outputs:
            found[place] = tuple(dict.fromkeys(outputs))
    return found


def _by_name(
    classes: Sequence[str], names: Sequence[Sequence[str]]
) -> dict[int, tuple[int, ...]]:
    """Return the output that has the name of each class, where one alone does."""
    known = _table(names)
    found: dict[int, tuple[int, ...]] = {}
    for place, name in enumerate(classes):
        hits = known.get(_plain(name), [])
        if not hits and (english := _english().get(name)):
            also = {i for each in english for i in known.get(_plain(each), [])}
            hits = sorted(also)
        if len(hits) == 1:
            found[place] = (hits[0],)
    if not found and all(name.isdecimal() for name in classes):
        numbers = [int(name) for name in classes]
        first = 0
        if sorted(numbers) == list(range(1, len(names) + 1)):
            first = 1
            log.warning(
                "the classes of the data are 1 to %d: class 1 is taken for output 0, %s",
                *(len(names), names[0][0]),
            )
        if max(numbers) - first < len(names):
            return {place: (number - first,) for place, number in enumerate(numbers)}
    return found


def _table(names: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Return the outputs by each name that they have."""
    known: dict[str, list[int]] = {}
    for output, own in enumerate(names):
        for name in {_plain(each) for each in own}:
            known.setdefault(name, []).append(output)
    # English names where they take no other output's own.
    english: dict[str, list[int]] = {}
    for output, own in enumerate(names):
        more = (each for name in own for each in _english().get(name, ()))
        for name in {_plain(each) for each in more}:
            english.setdefault(name, []).append(output)
    return english | known


@functools.cache
def _english() -> dict[str, tuple[str, ...]]:
    """Return the English names of ImageNet's classes by identifier; none without timm."""
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError:
        return {}
    about: Any = ImageNetInfo("imagenet-1k")
    return {
        name: tuple(
            each.strip() for each in about.label_name_to_description(name).split(",")
        )
        for name in about.label_names()
    }


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))


def _checked(
    source: Source,
    classes: Sequence[str],
    outputs: Mapping[int, tuple[int, ...]],
    names: Sequence[Sequence[str]],
) -> ClassMap:
    left_out = tuple(name for i, name in enumerate(classes) if i not in outputs)
    if len(outputs) < 2:
        own = abridged([each[0] for each in names], 4) if names else "unknown"
        more = ""
        if not _english() and any(_WNID.fullmatch(each[0]) for each in names):
            more = (
                "; English names of ImageNet's classes need timm: pip install "
                "'fastadv[timm]'"
            )
        raise ConfigError(
            f"{source.name} knows {len(outputs)} of the {len(classes)} classes of the "
            f"data ({abridged(classes, 4)}); its own are {own}. `class_map` names a file "
            f"that says which belong together{more}"
        )
    owner: dict[int, int] = {}
    for place, each in outputs.items():
        for output in each:
            if (other := owner.setdefault(output, place)) != place:
                raise ConfigError(
                    f"classes {classes[other]!r} and {classes[place]!r} of the data both "
                    f"stand for output {output} of {source.name}, which cannot tell them "
                    "apart"
                )
    ids = sorted(outputs)
    return ClassMap(
        classes=tuple(classes[i] for i in ids),
        ids=tuple(ids),
        outputs=tuple(outputs[i] for i in ids),
        left_out=left_out,
        num_outputs=source.num_classes,
    )
