"""Lists of labels beside images: text and CSV files as data sets are distributed with.

A column is known by what stands in it: that of the files by the files that are there, that
of the labels by its usual name, or because it is the only other one.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from fastadv.data.sets.endings import is_image
from fastadv.data.sets.image_set import option_hint
from fastadv.data.sets.json_lists import rows_of_json
from fastadv.data.sets.split_names import roles_of, word_role
from fastadv.errors import DataError, first_few
from fastadv.files import loads_json

LIST_SUFFIXES = frozenset((".csv", ".tsv", ".txt", ".json", ".jsonl"))
# Files beside data that are no lists of labels.
_NO_LISTS = re.compile(
    r"readme|licen[cs]e|copying|notice|citation|changelog|submission|requirements|"
    r"^(class(es|_names)?|categories|wnids|words|synset_words|.*_mapping)\.txt$",
    re.I,
)
_LABELS = [
    "label",
    "labels",
    "class",
    "classes",
    "classname",
    "classlabel",
    "classid",
    "category",
    "target",
    "categoryname",
    "labelname",
    "y",
    "breed",
    "species",
    "cls",
    "diagnosis",
    "dx",
    "synset",
    "wnid",
    "labelid",
]
_SPLITS = ("split", "set", "subset", "partition", "dataset", "usage")
_MOST = 64 << 20  # bytes: anything longer is no list
_PROBED = 500  # rows by which the column of files is recognised
_WNID = re.compile(r"(n\d{8})(?:\s|$)")


@dataclass(frozen=True)
class Columns:
    """Columns of a list, or members of the samples of a shard, that a user named.

    Attributes:
        image: The column of files, or the ending of images.
        label: The column of labels, or the ending of labels.
        pattern: What finds the label in the path of an image, as its first group.
    """

    image: str | None = None
    label: str | None = None
    pattern: re.Pattern[str] | None = None


@dataclass
class FileIndex:
    """Images by every name that a list may give them.

    Args:
        paths: Paths of the images, '/'-separated.

    Attributes:
        names: The path by each of its endings, with and without the ending of the file;
            None where several images share a name.
    """

    paths: Sequence[str]
    names: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.paths:
            parts = path.split("/")
            for first in range(len(parts)):
                tail = "/".join(parts[first:])
                for name in {tail, tail.rpartition(".")[0] or tail}:
                    self.names[name] = path if name not in self.names else None

    def find(self, value: str) -> str | None:
        """Return the image that a cell names, or None."""
        value = value.strip().replace("\\", "/").removeprefix("./").lstrip("/")
        found = self.names.get(value)
        return found or (self.names.get(PurePosixPath(value).name) if value else None)


@dataclass(frozen=True)
class Listed:
    """What a list says of images.

    Attributes:
        labels: Label by path; empty text where the list leaves it out.
        splits: Name of the split by path, where the list has such a column.
        rows: Number of rows of the list, of which some may name files that are not there.
    """

    labels: dict[str, str]
    splits: dict[str, str]
    rows: int


def may_be_list(path: str) -> bool:
    """Return whether a file beside images may be a list of labels, by its name."""
    name = PurePosixPath(path)
    return name.suffix.lower() in LIST_SUFFIXES and not _NO_LISTS.search(name.name)


def read_list(
    data: bytes, path: str, index: FileIndex, columns: Columns
) -> Listed | None:
    """Return what a list says of the images of an index; None if it names none of them.

    Args:
        data: Content of the file.
        path: Name of the file, whose ending tells how it is written.
        index: The images.
        columns: Columns that a user named.

    Raises:
        DataError: The list names images, and its labels cannot be told from other columns
            or are several per image.
    """
    if len(data) > _MOST or b"\0" in data[:4096]:
        return None
    rows, header = _rows(data.decode("utf-8-sig", "replace"), path, index)
    if not rows:
        return None
    place = _file_column(rows, header, index, columns)
    if place is None:
        return None
    files = [index.find(row[place]) if place < len(row) else None for row in rows]
    kept = [(f, row) for f, row in zip(files, rows, strict=True) if f is not None]
    if not kept:
        return None
    labels = _labels([row for _, row in kept], header, place, path, columns)
    splits: dict[str, str] = {}
    split = next((i for i, h in enumerate(header) if _plain(h) in _SPLITS), None)
    if split is not None:
        splits = {f: row[split] for f, row in kept if split < len(row)}
        if not roles_of(set(splits.values())) and not any(
            map(word_role, set(splits.values()))
        ):
            splits = {}
    by_path = dict(zip((f for f, _ in kept), labels, strict=True)) if labels else {}
    return Listed(by_path, splits, len(rows))


def in_order(data: bytes, paths: Sequence[str]) -> list[str] | None:
    """Return the labels of a file of one label per line for images in order of their names.

    It is None where the file has not exactly one word for each image.
    """
    lines = [line.split() for line in data.decode("utf-8", "replace").splitlines()]
    lines = [words for words in lines if words]
    if len(lines) != len(paths) or any(len(words) != 1 for words in lines):
        return None
    return [words[0] for words in lines]


def names_by_id(data: bytes, path: str) -> list[str] | None:
    """Return class names by id from a file of `name` or `id name` lines, or of JSON.

    It is None where the file is neither.
    """
    text = data.decode("utf-8-sig", "replace")
    if path.lower().endswith(".json"):
        try:
            found = loads_json(text)
        except ValueError:
            return None
        if not isinstance(found, dict):
            return None
        if all(isinstance(v, int) for v in found.values()):
            found = {str(v): k for k, v in found.items()}
        numbered = {str(i) for i in range(len(found))} == found.keys()
        return [str(found[str(i)]) for i in range(len(found))] if numbered else None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [re.split(r"[\s,;:]+", line, maxsplit=1) for line in lines]
    if lines and all(len(p) == 2 and p[0].isdecimal() for p in pairs):
        ids = [int(p[0]) for p in pairs]
        if ids in (list(range(len(ids))), list(range(1, len(ids) + 1))):
            return [p[1] for p in pairs]
        return None
    return lines or None


def _rows(text: str, path: str, index: FileIndex) -> tuple[list[list[str]], list[str]]:
    """Return the rows of a list, and its header or an empty list."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return [], []
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in (".json", ".jsonl"):
        try:
            if suffix == ".json":
                return rows_of_json(loads_json(text), path)
            return rows_of_json([loads_json(line) for line in lines], path)
        except (ValueError, AttributeError, TypeError):  # damaged, or of another form
            return [], []
    first = lines[0]
    if suffix == ".txt" and not re.search(r"[,;\t|]", first):
        return _from_words(lines, index), []
    mark = max("\t,;|", key=first.count)
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO(text), delimiter=mark)
        if any(cell.strip() for cell in row)
    ]
    if any(index.find(cell) or is_image(cell) for cell in rows[0]):
        return rows, []
    return rows[1:], rows[0]


def _from_words(lines: Sequence[str], index: FileIndex) -> list[list[str]]:
    """Split lines at blanks; names of files may have some themselves."""
    rows = []
    for line in lines:
        words = line.split()
        if not index.find(words[0]) and index.find(line):
            words = [line.strip()]
        elif not index.find(words[0]) and len(words) > 2:
            head, _, last = line.strip().rpartition(" ")
            words = [head, last] if index.find(head) else words
        rows.append(words)
    return rows


def _file_column(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    index: FileIndex,
    columns: Columns,
) -> int | None:
    if columns.image is not None and columns.image in header:
        return header.index(columns.image)
    hits: dict[int, set[str]] = {}
    named: Counter[int] = Counter()  # cells with the ending of an image
    for row in rows[:_PROBED]:
        for i, cell in enumerate(row):
            if found := index.find(cell):
                hits.setdefault(i, set()).add(found)
                named[i] += is_image(cell)
    if not hits:
        return None
    # Numbers of other columns may be names of files, too: of few different ones.
    return min(hits, key=lambda i: (-len(hits[i]), -named[i], i))


def _labels(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    place: int,
    path: str,
    columns: Columns,
) -> list[str]:
    """Return the label of each row; nothing where there is no other column."""
    width = max(map(len, rows))
    others = [i for i in range(width) if i != place]
    if not others:
        return []
    lower = [_plain(name) for name in header]
    column: int | None = None
    if columns.label is not None and header:
        if columns.label not in header:
            raise DataError(
                f"{path} has no column {columns.label!r}, which label_column names; it has "
                f"{', '.join(header)}"
            )
        column = header.index(columns.label)
    elif not header:
        column = next(i for i in others if i > place or i == others[-1])
    elif len(others) == 1:
        column = others[0]
    if column is None:
        column = next((lower.index(n) for n in _LABELS if n in lower), None)
    if column is None and (hot := _one_hot(rows, header, others, path)):
        return hot
    if column is None:
        listed = first_few([header[i] for i in others if i < len(header)], 8)
        if set(lower) & set(_SPLITS) and len(others) == 1:
            return []
        raise DataError(
            f"{path} lists images, and which of its columns is the label is not clear: "
            f"{listed}; give {option_hint('label_column', 'NAME')}"
        )
    if lower and lower[column] in _SPLITS:
        return []
    found = [row[column] if column < len(row) else "" for row in rows]
    wnids = [_WNID.match(text) for text in found]
    return [m[1] if m else t for m, t in zip(wnids, found, strict=True)]


def _plain(name: str) -> str:
    return re.sub(r"[\s_]", "", name.lower())


def _one_hot(
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    others: Sequence[int],
    path: str,
) -> list[str] | None:
    """Return the labels of columns of which one is 1 in each row; None for others."""
    places = [i for i in others if all(row[i : i + 1] and _bit(row[i]) for row in rows)]
    if len(places) < 2:
        return None
    found = []
    for row in rows:
        ones = [header[i] for i in places if float(row[i]) == 1]
        if len(ones) != 1:
            raise DataError(
                f"{path} marks {len(ones)} classes for one image ({first_few(ones, 4)}); "
                "an image has one class here"
            )
        found.append(ones[0])
    return found


def _bit(text: str) -> bool:
    return text in ("0", "1", "0.0", "1.0")


def coverage(listed: Mapping[str, str], paths: Sequence[str]) -> float:
    """Return the share of images that a list labels."""
    return sum(path in listed for path in paths) / max(len(paths), 1)
