"""Embeddings of a frozen network, computed once and kept on disk.

Their file is named by the content of the weights and of the images. So renaming or moving
those computes nothing again, and changing them does.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.data import (
    Batch,
    DatasetSplits,
    ImageSet,
    Loader,
    LoaderOptions,
    make_loader,
    subset,
)
from fastadv.data.cache import read_array, write_array
from fastadv.data.loading.loader import no_readable_image, replacements
from fastadv.data.loading.make_loader import choose_backend
from fastadv.data.sets.subsets import base_and_positions
from fastadv.device import exact_float32
from fastadv.files import claimed, fastadv_cache_dir
from fastadv.kernels import normalize
from fastadv.models import NormalizedModel, state_hash
from fastadv.models.view import AttackView
from fastadv.preparation import Preparation
from fastadv.progress import Progress
from fastadv.results.identity import digest

log = logging.getLogger(__name__)

# This number grows when the same weights and images begin to give other embeddings.
_VERSION = 1
# A subset of at most this share of the training images is embedded alone. Ten seeds, the
# most of any protocol, then cost no more than the whole set would, and the features of a
# seed do not depend on which others run with it.
FEW = 1 / 10


@dataclass(frozen=True)
class Features:
    """Embeddings of an image set.

    Attributes:
        values: Embeddings, float32 [n, D]; mapped from the cache if there is one.
        labels: Classes, int64 [n].
        bad_images: (name, reason) of images that others of their class replace.
        stands_in: Which rows are those replacements, bool [n]; None if there are none.
    """

    values: NDArray[np.float32]
    labels: NDArray[np.int64]
    bad_images: tuple[tuple[str, str], ...] = ()
    stands_in: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls,
        images: ImageSet,
        values: NDArray[np.float32],
        bad: Sequence[tuple[str, str]],
    ) -> Features:
        """Return the embeddings `values` of `images`, of which `bad` were replaced."""
        names = {name for name, _ in bad}
        stands_in = None
        if names:
            found = [images.describe(i) in names for i in range(len(images))]
            stands_in = np.array(found, dtype=np.bool_)
        return cls(values, images.labels, tuple(bad), stands_in)

    def judged(self) -> Features:
        """Return the features without replacements, so that no image is judged twice."""
        if self.stands_in is None or not self.stands_in.any():
            return self
        return self.at(np.flatnonzero(~self.stands_in))

    def at(self, rows: NDArray[np.int64]) -> Features:
        """Return the features of the images at the positions `rows`, int64 [m]."""
        stands_in = None if self.stands_in is None else self.stands_in[rows]
        return Features(
            self.values[rows], self.labels[rows], self.bad_images, stands_in
        )


def rows_of(part: ImageSet, held: ImageSet) -> NDArray[np.int64]:
    """Return the positions in `held` of the images of `part`, int64 [len(part)].

    Both are the same set or (nested) subsets of it.

    Raises:
        ValueError: `held` lacks an image of `part`.
    """
    (_, wanted), (_, there) = base_and_positions(part), base_and_positions(held)
    order = np.argsort(there)
    found: NDArray[np.int64] = np.searchsorted(there, wanted, sorter=order)
    rows: NDArray[np.int64] = order[np.minimum(found, len(there) - 1)]
    if not np.array_equal(there[rows], wanted):
        raise ValueError(f"not all images of {part.split} are among those embedded")
    return rows


def embedder(model: NormalizedModel) -> Callable[[Batch], NDArray[np.float32]]:
    """Return the function from a batch to its embeddings [n, D] by a frozen network.

    The network is in eval mode: its BatchNorm statistics are used and do not change.
    """
    model.eval()
    # The folded view gives the same features with less work; a head that is no linear
    # function of them (SqueezeNet) has its own definition of the embedding.
    features = AttackView(model).features

    @torch.no_grad()
    @exact_float32()
    def embed(batch: Batch) -> NDArray[np.float32]:
        z = normalize(batch.images, mean=model.mean, std=model.std)
        return np.asarray(features(z).float().cpu().numpy())

    return embed


def extract(model: NormalizedModel, loader: Loader, what: str) -> Features:
    """Embed every image of an evaluation loader with the frozen network."""
    embed, images = embedder(model), loader.imageset
    values = np.empty((len(images), model.embedding_dim), np.float32)
    read = np.zeros(len(images), dtype=np.bool_)
    progress = Progress(len(loader))
    began, done = time.monotonic(), 0
    for number, batch in enumerate(loader, start=1):
        rows = batch.indices.cpu().numpy()
        values[rows], read[rows] = embed(batch), True
        done += len(rows)
        rate = done / (time.monotonic() - began)
        progress.update(number, f"{what}  {rate:.1f} images/s")
    return completed(loader, values, read)


def completed(
    loader: Loader, values: NDArray[np.float32], read: NDArray[np.bool_]
) -> Features:
    """Return the embeddings of all images; one that was not read has another's.

    Args:
        loader: The loader of the images, which knows why some could not be read.
        values: Embeddings, float32 [n, D]; rows that were not read are filled.
        read: Which images could be read, bool [n].
    """
    images, bad = loader.imageset, list(loader.bad_images)
    named = {name for name, _ in bad}
    for row in np.flatnonzero(~read):
        others = replacements(images, int(row), loader.options.seed)
        other = next((other for other in others if read[other]), None)
        if other is None:
            raise no_readable_image(images, int(row), bad)
        values[row] = values[other]
        if (name := images.describe(int(row))) not in named:
            bad.append((name, "it could not be read before an interruption"))
    return Features.of(images, values, bad)


class FeatureCache:
    """Embeddings on disk: `KEY.npy`, mapped when read, and `KEY.bad.npy`.

    If several processes want the same embeddings at once, one computes them and the
    others wait for it. Files are written under another name and renamed, so that each is
    complete even where the file system has no locks. A damaged file is made again.

    Args:
        folder: Folder of the files, made when there is something to compute; None keeps
            nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def at(cls, where: str) -> FeatureCache:
        """Return the cache that `--feature-cache` names: a folder, `auto` or `off`."""
        if where == "off":
            return cls(None)
        auto = fastadv_cache_dir() / "features"
        return cls(auto if where == "auto" else Path(where).expanduser())

    def features(
        self,
        model: NormalizedModel,
        images: ImageSet,
        options: LoaderOptions,
        what: str,
        extractor: Callable[[NormalizedModel, Loader, str], Features] | None = None,
    ) -> Features:
        """Return the embeddings of all images, from the cache if they are there.

        Args:
            model: The network.
            images: The images, in the order of the result.
            options: Options of an evaluation loader, which is only made (and images
                decoded) if there is something to compute.
            what: Name of this work in progress messages.
            extractor: What embeds the images of a loader; None stands for `extract`.
        """
        compute = extractor or extract
        if self.folder is None:
            return compute(model, make_loader(images, **vars(options)), what)
        key = feature_key(model, images, options)
        path, bad_path = self.folder / f"{key}.npy", self.folder / f"{key}.bad.npy"
        read = partial(self._read, path, bad_path, images, options)
        if found := read():
            return found
        note = f"{what}: another process computes them; waiting"
        with claimed(
            self.folder, int(key[:7], 16), wait=lambda: Progress(1).note(note)
        ):
            if found := read():  # the process that had the lock has made them
                return found
            made = compute(model, make_loader(images, **vars(options)), what)
            bad = json.dumps(made.bad_images).encode()
            try:
                # The embeddings are written last: where they are, the rest is.
                write_array(bad_path, np.frombuffer(bad, np.uint8))
                write_array(path, made.values)
            except OSError as error:
                log.warning(
                    "features cannot be cached in %s (%s); choose another "
                    "`feature_cache`",
                    self.folder,
                    error,
                )
        return made

    def _read(
        self, path: Path, bad_path: Path, images: ImageSet, options: LoaderOptions
    ) -> Features | None:
        values = read_array(path, mapped=True)
        stored = read_array(bad_path)
        if values is None or stored is None or len(values) != len(images):
            return None
        bad = json.loads(stored.tobytes())
        if bad and options.on_bad_image == "fail":
            return None  # embedding them names the image and stops
        return Features.of(images, values, [(name, reason) for name, reason in bad])


def feature_key(
    model: NormalizedModel, images: ImageSet, options: LoaderOptions
) -> str:
    """Return a hash of all that embeddings depend on, 32 hexadecimal digits."""
    how = options.preparation_of(images)
    more = {} if how == Preparation(resize=how.resize, crop=how.crop) else asdict(how)
    return digest(
        {
            "version": _VERSION,
            "arch": model.arch,
            "weights": state_hash(model),  # with the normalisation
            "images": images.content_hash(),
            "resize": (how.resize, how.crop),
            "seed": options.seed,  # chooses the images that replace bad ones
            # Both differ by rounding; the loaders on the host do not.
            "dali": choose_backend(images, options) == "dali",
            "device": torch.device(options.device).type,
            **({"preparation": more} if more else {}),
        }
    )


class SplitFeatures:
    """Embeddings of the parts of a data set that a run needs, each image computed once.

    Args:
        splits: The data set.
        num_train: Size of the training subsets; None for all images.
        embed: Returns the embeddings of a set.
    """

    def __init__(
        self,
        splits: DatasetSplits,
        num_train: int | None,
        embed: Callable[[ImageSet], Features],
    ) -> None:
        few = num_train is not None and num_train <= FEW * len(splits.train)
        self._test = splits.test
        # The images that are embedded for a seed: its subset, or all of them.
        self._pool = cache(partial(subset, splits.train, num_train if few else None))
        self._embed = cache(embed)

    def test(self) -> Features:
        """Return the features of the images of the evaluation split that can be read."""
        return self._embed(self._test).judged()

    def of(self, part: ImageSet, seed: int) -> Features:
        """Return the features of the evaluation split or of training images of `seed`."""
        if part is self._test:
            return self.test()
        pool = self._pool(seed)
        return self._embed(pool).at(rows_of(part, pool))

    def together(
        self, parts: Sequence[ImageSet], seeds: Sequence[int]
    ) -> tuple[Features, NDArray[np.int64]]:
        """Return one array of embeddings for all `parts`, one part per seed.

        Returns:
            The embeddings, and the rows of each part in them, int64 [len(parts), n].
        """
        pools = [self._pool(seed) for seed in seeds]
        rows = np.stack([rows_of(*pair) for pair in zip(parts, pools, strict=True)])
        found = [self._embed(pool) for pool in pools]
        if len(set(pools)) == 1:
            return found[0], rows
        starts = np.cumsum([0, *map(len, pools[:-1])])
        values = np.concatenate([each.values for each in found])
        labels = np.concatenate([each.labels for each in found])
        return Features(values, labels), rows + starts[:, None]
