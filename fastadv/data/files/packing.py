"""Packing a data set into WebDataset shards: deterministic, parallel, resumable.

Every shard depends on the data and the plan alone and is renamed when whole, so the same
command writes the missing ones. Each has an `.idx` (wds2idx v1.2, which DALI reads).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.data.counter import derive_key, permutation
from fastadv.data.decoding import BadImage, decode_rgb
from fastadv.data.files.shards import MANIFEST, PACKING
from fastadv.data.sets.endings import is_image, suffix_of
from fastadv.data.sets.image_set import DatasetSplits, FileSet, ImageSet
from fastadv.data.sets.split_names import exact_role
from fastadv.data.sets.subsets import files_and_positions
from fastadv.errors import ConfigError, DataError
from fastadv.files import atomic, file_sha256, loads_json, lock_folder, replace_file
from fastadv.progress import track

log = logging.getLogger(__name__)

FORMAT = "fastadv-shards/1"
CHECKSUMS = "SHA256SUMS"
_PLAIN_SHARD = 10_000  # images per shard of sets whose encoded sizes are not known
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"RIFF", "webp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"P5", "pgm"),
    (b"P6", "ppm"),
)


@dataclass(frozen=True)
class Shard:
    """One file to write: the images at `indices` of a split, in that order."""

    split: str
    name: str
    images: ImageSet
    indices: NDArray[np.int64]
    first: int  # the number of its first image within the split


def pack(
    splits: DatasetSplits,
    out: Path,
    *,
    shard_bytes: int = 256 << 20,
    seed: int = 0,
    jobs: int = 1,
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Write a data set as shards.

    Args:
        splits: The data set.
        out: Folder to write to, made if absent. A pack begun there is continued.
        shard_bytes: Size of a shard to aim at, in bytes.
        seed: Chooses the random order of the images, which sequential readers need.
        jobs: Number of shards written at once.
        done: Function that is called with the name of every shard that was written.

    Returns:
        The manifest.

    Raises:
        ConfigError: `out` holds something else, or the pack of another plan; or another
            process packs there.
        BadImage: An image cannot be read.
        DataError: An image is of no known format.
    """
    plan = {
        "format": FORMAT,
        "name": splits.name,
        "metric": splits.metric,
        "classes": list(splits.train.classes),
        "fingerprints": [splits.train.fingerprint, splits.test.fingerprint],
        "shard_bytes": shard_bytes,
        "seed": seed,
    }
    shards = [*_shards(splits.train, shard_bytes, seed)]
    shards += _shards(splits.test, shard_bytes, seed)
    records = _records(out, plan)
    state = out / PACKING

    def write(shard: Shard) -> str:
        entry = _write_shard(out, shard)
        replace_file(state / f"{shard.name}.json", json.dumps(entry).encode())
        records[shard.name] = entry
        return shard.name

    advice = "wait until it ends, or choose another folder"
    lock = lock_folder(state, f"{out} is being packed", advice)
    with lock or contextlib.nullcontext(), ThreadPoolExecutor(jobs) as pool:
        for temporary in out.glob(".*.tmp"):
            temporary.unlink(missing_ok=True)
        whole = pool.map(lambda shard: _is_whole(out, records.get(shard.name)), shards)
        checked = zip(shards, track(whole, len(shards), "checking shards"), strict=True)
        todo = [shard for shard, good in checked if not good]
        if todo:
            replace_file(state / "plan.json", json.dumps(plan).encode())
        for name in pool.map(write, todo):
            done(name)  # from one thread: what it prints stays in lines
        entries = [records[shard.name] for shard in shards]
        manifest = plan | {"shards": entries}
        lines = "".join(f"{e['sha256']}  {e['file']}\n" for e in entries)
        replace_file(out / CHECKSUMS, lines.encode())
        replace_file(out / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
        shutil.rmtree(state, ignore_errors=True)
    return manifest


def _shards(images: ImageSet, shard_bytes: int, seed: int) -> Iterator[Shard]:
    n = len(images)
    if isinstance(images, FileSet):
        count = -(-sum(s + 2048 for s in images.sizes()) // shard_bytes)
    else:
        count = -(-n // _PLAIN_SHARD)
    split = images.split if exact_role(images.split) else ""
    split = split or ("train" if images.split.endswith("train") else "test")
    order = permutation(derive_key(seed, "pack", split), n)
    first = 0
    for number, part in enumerate(np.array_split(order, min(max(1, count), n))):
        yield Shard(split, f"{split}-{number:06d}.tar", images, part, first)
        first += len(part)


def _records(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the records of finished shards; refuse a folder of something else."""
    state = out / PACKING
    finished: dict[str, Any] = {}
    if (out / MANIFEST).exists():
        stored = _json(out / MANIFEST)
        finished = {e["file"]: e for e in stored.pop("shards", [])}
    elif (state / "plan.json").exists():
        stored = _json(state / "plan.json")
        for record in state.glob("*.tar.json"):
            with contextlib.suppress(DataError):
                finished[record.name.removesuffix(".json")] = _json(record)
    elif out.exists() and (not out.is_dir() or {*os.listdir(out)} - {PACKING}):
        raise ConfigError(
            f"{out} is not empty and holds no pack of ours; choose a new folder"
        )
    else:
        return {}
    if stored != plan:
        changed = [k for k in plan if stored.get(k) != plan[k]]
        raise ConfigError(
            f"{out} holds a pack of other {', '.join(changed)}; choose a new folder, or "
            "remove it"
        )
    return finished


def _is_whole(out: Path, entry: dict[str, Any] | None) -> bool:
    """Return whether a shard and its index are there, the shard as it was written."""
    if entry is None:
        return False
    path = out / entry["file"]
    # An index is renamed before its shard, so a whole shard has one.
    there = path.with_suffix(".idx").exists() and path.exists()
    same = there and path.stat().st_size == entry["bytes"]
    return same and file_sha256(path) == str(entry["sha256"])


def _json(path: Path) -> dict[str, Any]:
    try:
        values = loads_json(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; remove it") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is no JSON object; remove it")
    return values


class _Digesting(io.RawIOBase):
    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


def _write_shard(out: Path, shard: Shard) -> dict[str, Any]:
    path = out / shard.name
    index: list[str] = []
    with atomic(path) as temporary:
        with open(temporary, "wb") as file:
            sink = _Digesting(file)
            encoded = _encoder(shard.images)
            for position, image in enumerate(shard.indices.tolist(), shard.first):
                index.append(_add_sample(sink, *encoded(image), position))
            sink.write(bytes(2 * tarfile.BLOCKSIZE))
        lines = "\n".join([f"v1.2 {len(index)}", *index]) + "\n"
        replace_file(path.with_suffix(".idx"), lines.encode())
    return {
        "file": shard.name,
        "split": shard.split,
        "samples": len(index),
        "bytes": sink.size,
        "sha256": sink.digest.hexdigest(),
    }


def _encoder(images: ImageSet) -> Callable[[int], tuple[bytes, str, str, int]]:
    """Return a function of an index: encoded bytes, file ending, name and class id."""
    from PIL import Image

    found = files_and_positions(images)

    def encoded(i: int) -> tuple[bytes, str, str, int]:
        if found is None:
            buffer = io.BytesIO()
            Image.fromarray(images.load(i)).save(buffer, "PNG")
            data, name = buffer.getvalue(), images.split
        else:
            base, index = found[0], int(found[1][i])
            data, name = base.read(index), Path(base.members[index]).name
        ending = next((e for magic, e in _MAGIC if data.startswith(magic)), None)
        if ending is None and is_image(name):  # a rarer format, by its name
            with contextlib.suppress(BadImage):
                decode_rgb(data, images.describe(i), base.bits)
                ending = suffix_of(name)[1:]
        if ending is None:
            raise DataError(
                f"{images.describe(i)} is of no known image format; remove it, or see "
                "what else is damaged with fastadv-data verify"
            )
        return data, ending, name, int(images.labels[i])

    return encoded


def _add_sample(
    sink: _Digesting, data: bytes, ending: str, name: str, label: int, position: int
) -> str:
    """Write one sample; return its line of the index."""
    # Any other character could end the key, or a field of the index.
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", name.partition(".")[0])[:60]
    key = f"{position:08d}_{stem}"
    parts = []
    for end, content in ((ending, data), ("cls", str(label).encode())):
        header = tarfile.TarInfo(f"{key}.{end}")
        header.size = len(content)
        sink.write(header.tobuf(tarfile.USTAR_FORMAT))
        parts.append(f"{end} {sink.size} {len(content)} {header.name}")
        sink.write(content)
        sink.write(bytes(-len(content) % tarfile.BLOCKSIZE))
    return " ".join(parts)
