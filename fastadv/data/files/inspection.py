"""Inspection of a data set: `verify` finds damage, `statistics` counts and measures.

An altered JPEG may still decode, so the checksums of zip archives, TFRecord files and
packed shards are checked, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastadv.data.decoding import BadImage, decode_rgb
from fastadv.data.files.packing import CHECKSUMS
from fastadv.data.files.records import RecordSet
from fastadv.data.files.tfrecord import damaged_records
from fastadv.data.sets.image_set import NO_IMAGES, Damage, DatasetSplits, ImageSet
from fastadv.data.sets.splitting import SplitSets
from fastadv.data.sets.subsets import base_and_positions, files_and_positions
from fastadv.errors import DataError, first_few
from fastadv.files import file_sha256
from fastadv.progress import track

_Result = TypeVar("_Result")
_DIGEST = 16  # bytes: 2**-64 at four billion images
_SHOWN = 20  # findings of a kind in a text; `as_dict` has all


@dataclass
class Findings:
    """What `verify` found.

    Attributes:
        images: Number of images that were checked, per split.
        corrupt: Pairs (image or file, reason).
        duplicates: Triples (training image, evaluation image, "bytes" or "pixels").
        repeated: Number of images per split that repeat another one; this is no failure.
    """

    images: dict[str, int] = field(default_factory=dict)
    corrupt: Damage = field(default_factory=list)
    duplicates: list[tuple[str, str, str]] = field(default_factory=list)
    repeated: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nothing is corrupt and no image is in both splits."""
        return not self.corrupt and not self.duplicates

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self) | {"clean": self.clean}

    def text(self) -> str:
        """Return the findings for a terminal, at most `_SHOWN` of each kind."""
        damage = [f"{name}: {reason}" for name, reason in self.corrupt]
        empty = [each for each in damage if f": {NO_IMAGES}" in each]
        corrupt = [each for each in damage if each not in empty]
        shared = [f"{a} = {b} (equal {how})" for a, b, how in self.duplicates]
        lines = _listed("corrupt", corrupt) + _listed("in both splits", shared)
        lines += _listed("classes without images", empty)
        for split, count in self.images.items():
            repeated = self.repeated[split]
            more = f", {repeated} of them repeated within the split" if repeated else ""
            lines.append(f"{split}: {count} images{more}")
        return "\n".join([*lines, "clean" if self.clean else "not clean"])


def _listed(title: str, findings: list[str]) -> list[str]:
    if not findings:
        return []
    lines = [f"{title}: {len(findings)}", *(f"  {each}" for each in findings[:_SHOWN])]
    left = len(findings) - _SHOWN
    return [*lines, f"  and {left} more; --json lists all"] if left > 0 else lines


def open_and_verify(
    name: str, open_splits: Callable[[Damage], DatasetSplits], jobs: int
) -> Findings:
    """Open a data set and check all of it, what cannot be opened included.

    Args:
        name: Name of the data set in the findings.
        open_splits: Function that opens it and adds the files that it leaves out to a list.
        jobs: Number of files or images read at once.
    """
    damage: Damage = []
    try:
        splits = open_splits(damage)
    except DataError as error:
        if not damage:
            raise
        # Too little is left to be opened; what is wrong with the rest is known.
        return Findings(corrupt=[*damage, (name, str(error))])
    return verify(splits, jobs=jobs, damage=damage)


def verify(
    splits: DatasetSplits, *, jobs: int = 1, damage: Sequence[tuple[str, str]] = ()
) -> Findings:
    """Check every file, decode every image of both splits and compare them by content.

    Args:
        splits: The data set.
        jobs: Number of files or images read at once.
        damage: Files that `open_dataset` left out, which become part of the findings.

    Returns:
        Every file that is damaged, every image that cannot be decoded and every
        training image that is, by its bytes or its pixels, an evaluation image too.
    """
    findings = Findings(corrupt=[*damage])
    opened: set[Path] = set()
    for images in (splits.train, splits.test):
        base, _ = base_and_positions(images)
        if len(images) and isinstance(base, RecordSet):
            opened |= {file.path for file in base.files}
    named = {Path(name) for name, _ in damage}
    findings.corrupt += _damaged_files(opened, sorted(opened | named), jobs)
    contents = []
    for images in (splits.train, splits.test):
        findings.images[images.split] = len(images)
        digests: list[tuple[bytes, bytes] | None] = []
        for result in _each("verifying", images, _digests(images), jobs):
            if isinstance(result, BadImage):
                findings.corrupt.append((result.name, result.reason))
                digests.append(None)
            else:
                digests.append(result)
        known = [d[1] for d in digests if d is not None]
        findings.repeated[images.split] = len(known) - len(set(known))
        contents.append(digests)
    findings.duplicates = _shared(splits, *contents)
    return findings


def _shared(
    splits: DatasetSplits,
    train: list[tuple[bytes, bytes] | None],
    test: list[tuple[bytes, bytes] | None],
) -> list[tuple[str, str, str]]:
    where: dict[bytes, list[int]] = {}
    for i, digests in enumerate(train):
        if digests is not None:
            where.setdefault(digests[1], []).append(i)
    found = []
    for j, digests in enumerate(test):
        for i in where.get(digests[1], ()) if digests is not None else ():
            same = train[i] == digests  # equal bytes are equal pixels
            pair = (splits.train.describe(i), splits.test.describe(j))
            found.append((*pair, "bytes" if same else "pixels"))
    return found


def _digests(images: ImageSet) -> Callable[[int], tuple[bytes, bytes] | BadImage]:
    """Return a function of an index: digests of bytes and pixels, or what is wrong."""
    found = files_and_positions(images)

    def digests(index: int) -> tuple[bytes, bytes] | BadImage:
        try:
            if found is None:
                pixels = _pixel_digest(images.load(index))
                return pixels, pixels
            base, i = found[0], int(found[1][index])
            data, name = base.read(i), base.describe(i)
            _check_encoding(data, name)
            pixels = _pixel_digest(decode_rgb(data, name, base.bits))
        except BadImage as error:
            return error
        return hashlib.blake2b(data, digest_size=_DIGEST).digest(), pixels

    return digests


def _check_encoding(data: bytes, name: str) -> None:
    """Find damage that decoding tolerates."""
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-4096:]:
        raise BadImage(name, "the JPEG data end without their end mark: truncated")
    if data.startswith(b"\x89PNG"):
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data)) as image:
                image.verify()  # the CRC of every chunk
        # Decoders of damaged files raise anything from SyntaxError to struct.error.
        except Exception as error:
            raise BadImage(name, str(error) or type(error).__name__) from error
        if b"IEND" not in data[-4096:]:
            raise BadImage(name, "the PNG data end without their end mark: truncated")


def _pixel_digest(image: NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=_DIGEST)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _damaged_files(
    opened: set[Path], files: Sequence[Path], jobs: int
) -> Iterator[tuple[str, str]]:
    """Yield the files that differ from their checksums, and records in those that open."""
    expected = {
        folder / name: checksum
        for folder in {file.parent for file in files}
        for name, checksum in _checksums(folder)
    }
    summed = [file for file in files if file in expected and file.is_file()]
    with ThreadPoolExecutor(jobs) as pool:
        sums = track(pool.map(file_sha256, summed), len(summed), "checking files")
        for file, found in zip(summed, sums, strict=True):
            if found != expected[file]:
                yield str(file), f"differs from its SHA-256 in {CHECKSUMS}"
    for file in sorted(opened):
        if "tfrecord" in file.name or "-of-" in file.name:
            for number in damaged_records(file):
                yield f"{file}: record {number}", "CRC mismatch"


def _checksums(folder: Path) -> Iterable[tuple[str, str]]:
    """Return (file name, SHA-256) of every line of the checksums in a folder."""
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
    except OSError:
        return []
    entries = [line.split(maxsplit=1) for line in lines]
    return [(e[1].lstrip("*"), e[0].lower()) for e in entries if len(e) == 2]


class _Notices(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def noticing() -> Iterator[list[str]]:
    """Yield a list of the warnings of fastadv, which are not shown meanwhile."""
    logger, handler = logging.getLogger("fastadv"), _Notices()
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield handler.texts
    finally:
        logger.handlers, logger.propagate = before


def statistics(
    opened: SplitSets, notices: list[str] | None = None, *, jobs: int = 1
) -> dict[str, Any]:
    """Return counts, sizes and channel statistics of every split, as plain values.

    `mean` and `std` are over all pixels of all images, RGB in [0, 1]; bad images are
    counted and left out.

    Args:
        opened: The data set.
        notices: What was noticed while it was opened; see `noticing`. Classes without
            images are added.
        jobs: Number of images read at once.
    """
    notices = [] if notices is None else notices
    splits = {part.split: _statistics(part, jobs) for part in opened.sets.values()}
    for split, values in splits.items():
        counts = values["classes"]
        if empty := [name for name, count in counts.items() if not count]:
            notices.append(
                f"{split} has no images of {len(empty)} of {len(counts)} classes: "
                f"{first_few([repr(name) for name in empty], 8)}"
            )
    if len(opened.sets) == 1:
        notices.append(
            "there is one split: networks are judged on all of it, or on a part held out "
            "of it where it is trained on"
        )
    return {
        "name": opened.name,
        "metric": opened.metric,
        "splits": splits,
        "noticed": list(notices),
    }


def _statistics(images: ImageSet, jobs: int) -> dict[str, Any]:
    counts = np.bincount(images.labels, minlength=len(images.classes))
    histogram = np.zeros((3, 256), dtype=np.int64)  # exact, whatever the order
    sides = []
    bad = 0
    for result in _each("reading", images, partial(_histogram, images), jobs):
        if isinstance(result, BadImage):
            bad += 1
        else:
            histogram += result[0]
            sides.append(result[1])
    if not sides:
        raise DataError(f"no image of {images.name}/{images.split} can be decoded")
    pixels = histogram.sum(axis=1)
    levels = np.arange(256) / 255
    mean = histogram @ levels / pixels
    std = np.sqrt(np.maximum(histogram @ levels**2 / pixels - mean**2, 0))
    height, width = np.array(sides).T
    return {
        "images": len(images),
        "bad_images": bad,
        "classes": dict(zip(images.classes, counts.tolist(), strict=True)),
        "height": _spread(height),
        "width": _spread(width),
        "mean": mean.tolist(),
        "std": std.tolist(),
    }


def _spread(values: NDArray[np.int64]) -> dict[str, float]:
    low, high = int(values.min()), int(values.max())
    return {"min": low, "median": float(np.median(values)), "max": high}


def _histogram(
    images: ImageSet, index: int
) -> tuple[NDArray[np.int64], tuple[int, int]] | BadImage:
    try:
        image = images.load(index)
    except BadImage as error:
        return error
    counts = [np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]
    return np.stack(counts), (image.shape[0], image.shape[1])


def _each(
    doing: str, images: ImageSet, work: Callable[[int], _Result], jobs: int
) -> Iterator[_Result]:
    """Yield `work` of every image in order, a bounded number ahead."""
    images.prepare()
    n, step = len(images), 64 * jobs
    with ThreadPoolExecutor(jobs) as pool:
        starts = range(0, n, step)
        for start in track(starts, len(starts), f"{doing} {images.split}"):
            yield from pool.map(work, range(start, min(start + step, n)))


def statistics_text(found: dict[str, Any]) -> str:
    """Return the result of `statistics` as text for a terminal."""
    lines = [f"{found['name']} (metric {found['metric']})"]
    for split, values in found["splits"].items():
        counts = list(values["classes"].values())
        lines.append(
            f"{split or 'all'}: {values['images']} images, {len(counts)} classes of "
            f"{min(counts)} to {max(counts)}"
        )
        if values["bad_images"]:
            bad = values["bad_images"]
            lines.append(f"  {bad} cannot be decoded: see fastadv-data verify")
        for side in ("width", "height"):
            low, high, median = (values[side][key] for key in ("min", "max", "median"))
            lines.append(f"  {side:6} {low} to {high} px, median {median:g}")
        for moment in ("mean", "std"):
            numbers = " ".join(f"{value:.4f}" for value in values[moment])
            lines.append(f"  {moment:6} {numbers}")
    lines += [f"noticed: {text}" for text in found["noticed"]]
    return "\n".join(lines)
