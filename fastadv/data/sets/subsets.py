"""Sets made of another: seeded parts of it, and its images made smaller.

In a part, every class with images is represented, in proportion but for `random_subset`,
and the choice depends on labels and seed alone. For one seed a larger subset mostly adds
images to a smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.data.cache import text_key
from fastadv.data.counter import derive_key, permutation
from fastadv.data.sets.image_set import FileSet, ImageSet, checked_index
from fastadv.errors import ConfigError


class Subset(ImageSet):
    """Some images of another set, in the order given.

    Attributes:
        base: The set they come from.
        indices: Positions in `base`, int64 [n].
    """

    def __init__(
        self, base: ImageSet, indices: ArrayLike, *, split: str | None = None
    ) -> None:
        self.base = base
        self.indices = np.asarray(indices, dtype=np.int64)
        self.name, self.split = base.name, split or base.split
        self.classes, self.labels = base.classes, base.labels[self.indices]
        self.augment_default = base.augment_default

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 [H, W, 3] RGB in 0..255."""
        return self.base.load(int(self.indices[checked_index(index, len(self))]))

    def describe(self, index: int) -> str:
        """Return the name the base set gives the image."""
        return self.base.describe(int(self.indices[index]))

    def prepare(self) -> None:
        """Prepare the base set; see `ImageSet.prepare`."""
        self.base.prepare()

    def content_hash(self) -> str:
        """Hash the images taken, their order and labels; see `ImageSet.content_hash`."""
        base, positions = base_and_positions(self)
        return base.part_hash(self, positions)

    @cached_property
    def fingerprint(self) -> str:
        """Key of the base set and the positions taken, hex."""
        digest = hashlib.sha256(self.base.fingerprint.encode())
        digest.update(self.indices.tobytes())
        return digest.hexdigest()[:32]


class Downscaled(ImageSet):
    """The images of another set with their shorter side resized to `side` pixels.

    They show how fine the detail is that a transfer needs. The resizing is bilinear with
    antialiasing, as torchvision's `Resize(side)`; loaders then enlarge them to the
    resolution of the model. Smaller images are enlarged, as there.

    Args:
        base: Where the images come from.
        side: Length of the shorter side in pixels, at least 1.

    Source: Salman et al. 2020, section 4.1 (granularity), with 32 pixels.
    """

    def __init__(self, base: ImageSet, side: int) -> None:
        if side < 1:
            raise ConfigError(f"`downscale={side}` must be at least 1 pixel")
        self.base, self.side = base, side
        self.name, self.split = base.name, base.split
        self.classes, self.labels = base.classes, base.labels
        self.augment_default = base.augment_default

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 [H, W, 3] RGB, its shorter side `side`."""
        import torch
        from torchvision.transforms.v2 import functional

        image = torch.from_numpy(np.array(self.base.load(index))).permute(2, 0, 1)
        small = functional.resize(image, [self.side], antialias=True)
        pixels: NDArray[np.uint8] = small.permute(1, 2, 0).contiguous().numpy()
        return pixels

    def describe(self, index: int) -> str:
        """Return the name the base set gives the image."""
        return self.base.describe(index)

    def prepare(self) -> None:
        """Prepare the base set; see `ImageSet.prepare`."""
        self.base.prepare()

    def part_hash(self, part: ImageSet, positions: NDArray[np.int64]) -> str:
        """Return the `content_hash` of `part`, the images at `positions` of this set."""
        large = self.base if part is self else Subset(self.base, positions)
        what = f"{self.side} {large.content_hash()}"
        return hashlib.sha256(what.encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Key of the base set and the side, hex."""
        return text_key(f"downscaled {self.side} {self.base.fingerprint}")


def readable(images: ImageSet, bad: Collection[str]) -> ImageSet:
    """Return the images of a set whose names are not among those of unreadable ones."""
    if not bad:
        return images
    good = [i for i in range(len(images)) if images.describe(i) not in bad]
    if len(good) == len(images):
        return images
    return Subset(images, good, split=images.split)


def base_and_positions(images: ImageSet) -> tuple[ImageSet, NDArray[np.int64]]:
    """Return the set that `images` are a (nested) subset of, and their positions there.

    Returns:
        (the set, int64 [len(images)]); `images` itself and 0, 1, ... if it is no subset.
    """
    positions = np.arange(len(images))
    while isinstance(images, Subset):
        positions = images.indices[positions]
        images = images.base
    return images, positions


def files_and_positions(images: ImageSet) -> tuple[FileSet, NDArray[np.int64]] | None:
    """Return what `base_and_positions` does of encoded images; None for others."""
    base, positions = base_and_positions(images)
    return (base, positions) if isinstance(base, FileSet) else None


def subset(s: ImageSet, n: int | None, seed: int) -> ImageSet:
    """Return a stratified seeded subset of `n` images; `None` means all.

    Args:
        s: The set to take from.
        n: Number of images, from the number of (non-empty) classes to len(s).
        seed: Chooses the images.

    Raises:
        ConfigError: `n` is larger than the set or smaller than its classes.
    """
    if n is None:
        return s
    counts = _checked_counts(s, n)
    take = allocate(counts, n, np.minimum(counts, 1), counts)
    return Subset(s, stratified_pick(s.labels, take, seed))


def listed_subset(s: ImageSet, file: str | Path) -> ImageSet:
    """Return the images that a text file lists, in its order.

    Each line names an image by its path below the split, by its file name, or by its
    position in the set; text after a space is left out, as are empty lines.

    Args:
        s: The set to take from.
        file: The list, for example that of RobustBench's 5,000 images of ImageNet.

    Raises:
        ConfigError: The file cannot be read, lists nothing, lists an image twice, or names
            one that is not in the set or not unique.
    """
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the image list {file}: {error}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise ConfigError(f"the image list {file} is empty")
    if all(name.isdecimal() for name in names):
        positions = [int(name) for name in names]
        if max(positions) >= len(s):
            raise ConfigError(
                f"the image list {file} has position {max(positions)}, {s.name} has "
                f"{len(s)} images, from 0"
            )
    else:
        positions = _positions_of(s, names, str(file))
    if len(set(positions)) < len(positions):
        raise ConfigError(f"the image list {file} names an image twice")
    return Subset(s, positions)


def _positions_of(s: ImageSet, names: Sequence[str], file: str) -> list[int]:
    places: dict[str, list[int]] = {}
    for index in range(len(s)):
        parts = s.describe(index).replace(":", "/").split("/")
        for depth in range(1, min(len(parts), 4) + 1):
            places.setdefault("/".join(parts[-depth:]), []).append(index)
    found = []
    for name in names:
        tail = name.strip("/").split("/")
        # The name of a split may stand before, as in val/n01440764/x.JPEG.
        for begin in range(len(tail)):
            known = places.get("/".join(tail[begin:]), [])
            if known:
                break
        if len(known) != 1:
            what = "is not" if not known else f"is {len(known)} times"
            example = s.describe(0) if len(s) else "nothing"
            raise ConfigError(
                f"the image list {file} names {name!r}, which {what} in {s.name}; its "
                f"images are called like {example}"
            )
        found.append(known[0])
    return found


def random_subset(s: ImageSet, n: int | None, seed: int) -> ImageSet:
    """Return a random seeded subset of `n` images with every class; `None` means all.

    Images are taken in random order. One whose class is there already is passed over
    where only as many places are left as there are classes still missing. Classes are
    then as frequent as chance has it, unlike in `subset`.

    Args:
        s: The set to take from.
        n: Number of images, from the number of (non-empty) classes to len(s).
        seed: Chooses the images.

    Raises:
        ConfigError: As in `subset`.

    Source:
        Utrera et al. 2021 (2007.05869), the code at the time of the paper.
    """
    if n is None:
        return s
    missing = set(np.flatnonzero(_checked_counts(s, n)).tolist())
    taken: list[int] = []
    for index in permutation(derive_key(seed, "random"), len(s)).tolist():
        label = int(s.labels[index])
        if n - len(taken) > len(missing) or label in missing:
            taken.append(index)
            missing.discard(label)
        if len(taken) == n:
            break
    return Subset(s, np.sort(taken))


def _checked_counts(s: ImageSet, n: int) -> NDArray[np.int64]:
    """Return the images of each class, if a subset of `n` can have all classes."""
    counts = np.bincount(s.labels, minlength=len(s.classes))
    present = int((counts > 0).sum())
    if n > len(s):
        raise ConfigError(
            f"a subset of n={n} images is larger than {s.name}/{s.split}, which has "
            f"{len(s)}; use n <= {len(s)}, or no n for all of them"
        )
    if n < max(present, 1):
        raise ConfigError(
            f"a subset of n={n} images cannot contain all {present} classes of "
            f"{s.name}/{s.split}; use n >= {max(present, 1)}"
        )
    return counts


def at_most(images: ImageSet, n: int | None, seed: int) -> ImageSet:
    """Return a subset of `n` images as `subset` does, or all where there are no more."""
    return images if n is None or n >= len(images) else subset(images, n, seed)


def train_val_split(
    s: ImageSet, fraction: float, seed: int
) -> tuple[ImageSet, ImageSet]:
    """Split off a stratified seeded validation part.

    Args:
        s: The set to split.
        fraction: Share for validation, in (0, 1). Every class keeps at least
            one training image, and has one in validation if it has two.
        seed: Chooses the images.

    Returns:
        (train, validation), disjoint, together all of `s`.

    Raises:
        ConfigError: `fraction` is outside (0, 1), or no class has two images.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(
            f"fraction={fraction} of {s.name}/{s.split} for validation is outside "
            "(0, 1); use for example 0.1"
        )
    counts = np.bincount(s.labels, minlength=len(s.classes))
    high = np.maximum(counts - 1, 0)
    low = np.minimum(high, 1)
    if not high.any():
        raise ConfigError(
            f"{s.name}/{s.split} has no class with two images, so no validation part "
            "can be split off; add images or select on another split"
        )
    n = int(np.clip(round(fraction * len(s)), low.sum(), high.sum()))
    picked = stratified_pick(s.labels, allocate(counts, n, low, high), seed)
    rest = np.setdiff1d(np.arange(len(s)), picked)
    train_name = f"{s.split}-train"
    return Subset(s, rest, split=train_name), Subset(s, picked, split=f"{s.split}-val")


def allocate(
    counts: NDArray[np.int64], n: int, low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Share `n` images among classes, as proportional as bounds allow.

    Args:
        counts: Images per class, int64 [classes].
        n: Total to hand out, in [low.sum(), high.sum()].
        low: The least per class, int64 [classes].
        high: The most per class, int64 [classes].

    Returns:
        int64 [classes] summing to `n`.
    """
    ideal = n * counts / max(int(counts.sum()), 1)
    take = np.clip(np.floor(ideal).astype(np.int64), low, high)
    while (missing := n - int(take.sum())) != 0:
        step = 1 if missing > 0 else -1
        room = take < high if step > 0 else take > low
        # The class furthest from its share moves first; ties go to the lower id.
        gap = np.where(room, step * (ideal - take), -np.inf)
        order = np.argsort(-gap, kind="stable")[: abs(missing)]
        take[order[room[order]]] += step
    return take


def stratified_pick(
    labels: NDArray[np.int64], take: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Return `take[c]` seeded positions of every class c, sorted, int64."""
    picked = [np.empty(0, dtype=np.int64)]
    for c in np.flatnonzero(take):
        members = np.flatnonzero(labels == c)
        order = permutation(derive_key(seed, "stratified", int(c)), len(members))
        picked.append(members[order[: take[c]]])
    return np.sort(np.concatenate(picked))
