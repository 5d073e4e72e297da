"""Embeddings of a frozen network, computed once and kept on disk.

The file of a set of embeddings is named by the content of the weights and of the images, so
nothing that is renamed, moved or run anew is computed again, and nothing that changed is
taken for what it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.data import BadImage, ImageSet, Loader, LoaderOptions, make_loader
from fastadv.data.cache import read_array, write_array
from fastadv.data.choice import choose_backend
from fastadv.data.geometry import plain_geometry
from fastadv.data.sources import FileSet
from fastadv.data.subsets import Subset
from fastadv.files import fastadv_cache_dir
from fastadv.kernels import normalize
from fastadv.models import NormalizedModel, state_hash
from fastadv.models.view import AttackView
from fastadv.training.progress import Progress
from fastadv.transfer.downscale import Downscaled

log = logging.getLogger(__name__)

# Raised when the same weights and images begin to give other embeddings.
_VERSION = 1


@dataclass(frozen=True)
class Features:
    """Embeddings of an image set.

    Attributes:
        values: float32 [n, D]; mapped from the cache, where there is one.
        labels: int64 [n].
        bad_images: (name, reason) of images that others of their class stand in for.
    """

    values: NDArray[np.float32]
    labels: NDArray[np.int64]
    bad_images: tuple[tuple[str, str], ...] = ()

    def of(self, part: ImageSet) -> Features:
        """The rows of `part`, a (nested) subset of the set these were computed on."""
        rows = rows_of(part, len(self.labels))
        return Features(self.values[rows], self.labels[rows], self.bad_images)


def rows_of(part: ImageSet, n: int) -> NDArray[np.int64]:
    """Positions of the images of `part` in the set of `n` it is a (nested) subset of."""
    steps = []
    while isinstance(part, Subset):
        steps.append(part.indices)
        part = part.base
    rows = np.arange(n)
    for chosen in reversed(steps):
        rows = rows[chosen]
    return rows


@torch.no_grad()
def extract(model: NormalizedModel, loader: Loader, what: str) -> Features:
    """Embed every image of an evaluation loader with the frozen network.

    Eval mode throughout: BatchNorm statistics are the source's, and stay so.
    """
    model.eval()
    # The folded view gives the same features with less work; a head that is no linear
    # function of them (SqueezeNet) has its own definition of the embedding.
    embed = AttackView(model).features
    labels = loader.imageset.labels
    values = np.empty((len(labels), model.embedding_dim), np.float32)
    progress = Progress(len(loader))
    began, done = time.monotonic(), 0
    for number, batch in enumerate(loader, start=1):
        z = normalize(batch.images, mean=model.mean, std=model.std)
        rows = slice(done, done + len(batch.labels))
        values[rows] = embed(z).float().cpu().numpy()
        done = rows.stop
        rate = done / (time.monotonic() - began)
        progress.update(number, f"{what}  {rate:.1f} images/s")
    return Features(values, labels, tuple(loader.bad_images))


def content_hash(images: ImageSet) -> str:
    """Hash of the images themselves, their order and labels: 64 hexadecimal digits.

    Encoded images are read (not decoded), which takes a small part of the time that
    embedding them does; `ImageSet.fingerprint` takes sizes and names for their content.
    """
    digest = hashlib.sha256()
    if isinstance(images, FileSet):
        for index in range(len(images)):
            try:
                data = images.read(index)
            except BadImage as error:
                data = f"bad: {error.reason}".encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        digest.update(images.labels.tobytes())
    elif isinstance(images, Downscaled):
        digest.update(f"{images.side} {content_hash(images.base)}".encode())
    elif isinstance(images, Subset):
        digest.update(content_hash(images.base).encode() + images.indices.tobytes())
    else:  # in memory or drawn: its fingerprint covers pixels, or all parameters
        digest.update(images.fingerprint.encode())
    return digest.hexdigest()


class FeatureCache:
    """Embeddings on disk: `KEY.npy`, mapped when read, and `KEY.bad.npy`.

    Files are written whole under another name and renamed, so that of two processes
    computing the same one wins and both have all of it. What is damaged is made again.

    Args:
        folder: where; made at the first write. None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def at(cls, where: str) -> FeatureCache:
        """The cache that `--feature-cache` names: a folder, `auto` or `off`."""
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
    ) -> Features:
        """Embeddings of all images, from the cache where they are there.

        Args:
            model: the network.
            images: in the order wanted.
            options: of the loader, in evaluation; it is only made (and images decoded)
                where there is something to compute.
            what: what progress calls this.
        """
        if self.folder is None:
            return extract(model, make_loader(images, **vars(options)), what)
        key = feature_key(model, images, options)
        path, bad_path = self.folder / f"{key}.npy", self.folder / f"{key}.bad.npy"
        found = self._read(path, bad_path, images, options)
        if found is not None:
            return found
        made = extract(model, make_loader(images, **vars(options)), what)
        bad = json.dumps(made.bad_images).encode()
        try:
            # The embeddings last: where they are, the rest is.
            write_array(bad_path, np.frombuffer(bad, np.uint8))
            write_array(path, made.values)
        except OSError as error:
            log.warning(
                "features cannot be cached in %s (%s); choose another --feature-cache",
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
        bad: list[list[Any]] = json.loads(stored.tobytes())
        if bad and options.on_bad_image == "fail":
            return None  # embedding them names the image and stops
        pairs = tuple((str(name), str(reason)) for name, reason in bad)
        return Features(values, images.labels, pairs)


def feature_key(
    model: NormalizedModel, images: ImageSet, options: LoaderOptions
) -> str:
    """Hash of all that embeddings depend on, 32 hexadecimal digits."""
    augment = images.augment_default if options.augment == "auto" else options.augment
    what = {
        "version": _VERSION,
        "arch": model.arch,
        "weights": state_hash(model),  # with the normalisation
        "images": content_hash(images),
        "resize": plain_geometry(augment, options.resolution),
        "seed": options.seed,  # of what stands in for bad images
        # Both differ by rounding; the loaders on the host do not.
        "dali": choose_backend(images, options) == "dali",
        "device": torch.device(options.device).type,
    }
    text = json.dumps(what, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
