"""WebDataset tar shards, read in place and in any order; `packing` writes them.

A sample is the consecutive members of one key, which is the path up to the first dot
of the file name: an image, and its class as `.cls`, `.json` or `.txt`. Longer endings
(`input.jpg`, `target.cls`) are taken where one member alone has a known last part, or as
the options `image_column` and `label_column` name them.

Source: the WebDataset format, github.com/webdataset/webdataset.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fastadv.data.files.records import Record, Table
from fastadv.data.sets.endings import IMAGE_SUFFIXES, USUAL
from fastadv.data.sets.image_set import Damage, option_hint
from fastadv.data.sets.label_lists import Columns
from fastadv.errors import DataError
from fastadv.files import loads_json

MANIFEST = "manifest.json"
PACKING = ".packing"  # the folder of a pack that is not finished
_IMAGE_ENDINGS = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
_LABEL_ENDINGS = ("cls", "json", "txt")  # in order of preference
_JSON_LABELS = ("label", "cls", "class", "class_name", "target")
_MAX_LABEL = 1 << 20  # bytes: anything longer is no label

_UNLABELLED = "\1"  # begins the label of a sample without one; the reason follows
_MARK = _UNLABELLED.encode()

Member = tuple[str, int, int]  # ending, offset, size


def scan_tar(path: Path, chosen: Columns | None = None) -> list[Record]:
    """List the samples of one shard.

    Args:
        path: The shard.
        chosen: Endings of the members that are image and label.

    Raises:
        DataError: Not an uncompressed tar file, or cut short; a sample lacks its image,
            or has one twice, or lacks a label that others have. Where all lack one, their
            labels are the reason, which `refuse_unlabelled` understands.
    """
    records = []
    seen = set()
    with open(path, "rb") as file:
        _check_end(path)
        for key, members in _samples(path):
            try:
                if key in seen:
                    raise ValueError("occurs twice; keys must be unique and together")
                seen.add(key)
                records.append(
                    _record(key, members, file.fileno(), chosen or Columns())
                )
            except ValueError as error:
                raise DataError(
                    f"shard {path}: sample {key!r} {error}; pack the shard again"
                ) from error
    bare = [record for record in records if record.label.startswith(_UNLABELLED)]
    if bare and len(bare) < len(records):
        raise DataError(
            f"shard {path}: sample {bare[0].key!r} {bare[0].label[1:]}; pack the shard again"
        )
    return records


def class_names(files: list[Path]) -> list[str] | None:
    """Return the class names in a manifest or `classes.txt` beside the shards."""
    for folder in dict.fromkeys(p for f in files for p in (f.parent, f.parent.parent)):
        try:
            if (folder / MANIFEST).is_file():
                manifest = loads_json((folder / MANIFEST).read_text())
                if "classes" in manifest:  # else another program's
                    return [str(name) for name in manifest["classes"]]
            if (folder / "classes.txt").is_file():
                return (folder / "classes.txt").read_text().split("\n")[:-1]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"cannot read the class names of {folder} ({error}); restore or remove "
                f"{MANIFEST}"
            ) from error
    return None


def missing_shards(folder: Path) -> list[str]:
    """Return the names of the shards that a manifest in `folder` lists and lacks."""
    try:
        listed = loads_json((folder / MANIFEST).read_text())["shards"]
        return [e["file"] for e in listed if not (folder / e["file"]).exists()]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # none, or another program's


def _check_end(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(2)
        file.seek(max(0, size - 1024))
        end = file.read()
    if start in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        raise DataError(
            f"shard {path} is compressed, so single images cannot be read from it; "
            "decompress it first (gunzip, unzstd)"
        )
    # Without the two blocks of zeros, a shard cut at a member would look whole.
    if size < 1024 or any(end):
        raise DataError(
            f"shard {path} is cut short or no tar file: it does not end with the mark "
            "of a tar archive; fetch or pack it again"
        )


def _samples(path: Path) -> Iterator[tuple[str, list[Member]]]:
    """Yield (key, members) of each group of consecutive members."""
    current: str | None = None
    members: list[Member] = []
    whole = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # it would keep all
                folder, _, file = info.name.rpartition("/")
                stem, dot, ending = file.partition(".")
                if info.issparse():
                    raise DataError(
                        f"shard {path}: {info.name!r} is a sparse file; pack it again"
                    )
                if not info.isreg() or not stem or not dot:
                    continue  # folders, hidden files, files without an ending
                key = f"{folder}/{stem}" if folder else stem
                if key != current:
                    if current is not None:
                        yield current, members
                    current, members = key, []
                if info.offset_data + info.size > whole:
                    raise DataError(
                        f"shard {path}: {info.name!r} would have {info.size} bytes, and the "
                        f"shard has {whole}; fetch or pack it again"
                    )
                members.append((ending.lower(), info.offset_data, info.size))
    # Sizes in extended headers that cannot be raise anything from ValueError on.
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"cannot read {path} as a tar shard: {error}; fetch or pack it again"
        ) from error
    if current is not None:
        yield current, members


def refuse_unlabelled(
    tables: dict[str, dict[Path, Table]], damage: Damage | None = None
) -> None:
    """Let splits without any label member have empty labels; refuse single shards without.

    The first split must have labels.

    Args:
        tables: The samples of each shard of each split, which are changed.
        damage: List to which shards without labels are added; they are then left out.

    Raises:
        DataError: A shard has no label members, where it must.
    """
    for number, parts in enumerate(tables.values()):
        bare = [f for f, t in parts.items() if t["label"][0].startswith(_MARK)]
        refused = number == 0 or len(bare) < len(parts)
        for file in bare:
            row = parts[file][0]
            if not refused:
                parts[file] = parts[file].copy()
                parts[file]["label"] = b""
                continue
            key, reason = row["key"].decode("utf-8", "replace"), row["label"].decode()
            what = f"shard {file}: sample {key!r} {reason[1:]}; pack the shard again"
            if damage is None or len(bare) == len(parts):
                raise DataError(what)
            damage.append((str(file), what))
            del parts[file]


def _record(
    key: str, members: list[Member], descriptor: int, chosen: Columns
) -> Record:
    found = {ending: (offset, size) for ending, offset, size in members}
    if len(found) < len(members):
        raise ValueError("has a member twice")
    listed = f"(members: {', '.join(sorted(found))})"
    images = [e for e in found if e.rpartition(".")[2] in _IMAGE_ENDINGS]
    if chosen.image is not None:
        images = [e for e in found if e == chosen.image.lower().lstrip(".")]
    if len(images) != 1:
        hint = ""
        if len(images) > 1:
            hint = f"; choose with {option_hint('image_column', images[0])}"
        raise ValueError(
            f"has {len(images)} images {listed}; expected one of "
            f"{chosen.image or USUAL}{hint}"
        )
    endings = _label_endings(found, chosen)
    if not endings:
        what = chosen.label or ".cls, .json or .txt"
        reason = f"has no label member {listed}; expected {what}"
        if "/" in key:
            reason += ". If folders are its classes, unpack it and name the folder"
        return Record(key, f"{_UNLABELLED}{reason}", *found[images[0]])
    if len(endings) > 1:
        raise ValueError(
            f"has {len(endings)} members that may be its label {listed}; choose with "
            f"{option_hint('label_column', endings[0])}"
        )
    offset, size = found[endings[0]]
    data = os.pread(descriptor, min(size, _MAX_LABEL), offset)
    text = data.decode("utf-8", "replace")
    if endings[0].endswith("json"):
        label = _json_label(text)
    elif not (label := text.strip()):
        raise ValueError(f"has an empty .{endings[0]} member")
    return Record(key, label, *found[images[0]])


def _label_endings(found: Collection[str], chosen: Columns) -> list[str]:
    """Return the endings of members that may be the label; one, where it is clear."""
    if chosen.label is not None:
        return [e for e in found if e == chosen.label.lower().lstrip(".")]
    for ending in _LABEL_ENDINGS:
        if ending in found:
            return [ending]
    for last in _LABEL_ENDINGS:
        if longer := [e for e in found if e.rpartition(".")[2] == last]:
            return longer
    return []


def _json_label(text: str) -> str:
    try:
        values: Any = loads_json(text)
    except ValueError as error:
        raise ValueError(f"has a .json member that is not JSON ({error})") from error
    if isinstance(values, dict):
        field = next((f for f in _JSON_LABELS if f in values), None)
        if field is None:
            raise ValueError(
                f"has no label in its .json member (fields: {', '.join(values)}); "
                f"expected one of {', '.join(_JSON_LABELS)}"
            )
        values = values[field]
    if values is None:
        return ""
    if isinstance(values, bool) or not isinstance(values, int | float | str):
        raise ValueError(f"has the label {values!r} in .json; use a name or an id")
    return str(values).strip()
