"""Images with the texture of another: a view of any set, as a stylised data set.

The texture is the Fourier amplitude of another image: the strength of every frequency and
direction in every colour channel, and the mean colour. The phases, which place edges and
so draw the shape, stay. No network and no weights are needed. It is not a style transfer
as in Stylized-ImageNet: statistics beyond the spectrum, such as strokes, are not carried
over, and outlines stay visible.

Source: Oppenheim and Lim 1981 (phases carry the structure of an image); Chen et al. 2021,
"Amplitude-phase recombination", who exchange amplitudes between training images.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastadv.data.cache import text_key
from fastadv.data.counter import derive_key, permutation, uniforms
from fastadv.data.decoding import BadImage
from fastadv.data.sets.folders import open_all
from fastadv.data.sets.image_set import DatasetSplits, ImageSet, checked_index
from fastadv.errors import ConfigError

EXCHANGE = "exchange"
"""The value of the option `texture` that takes textures from the images of the set."""


class TextureExchanged(ImageSet):
    """The images of another set, each with the texture of a partner.

    Labels and classes are those of the shapes. Within a set, every image is the partner
    of exactly one other, chosen without regard to classes, so that textures are as
    frequent as before and say nothing about the label.

    Args:
        base: Where the shapes come from.
        textures: Where the textures come from, of any size and number; None takes those
            of `base`, in another order.
        seed: Chooses the partners.

    Attributes:
        partners: Position of each image's partner in `textures`, int64 [n].
        texture_labels: Classes of the partners, int64 [n]; None where the textures come
            from elsewhere.

    Raises:
        ConfigError: There is no other image to take a texture from.
    """

    def __init__(
        self, base: ImageSet, textures: ImageSet | None = None, *, seed: int = 0
    ) -> None:
        self.base, self.seed = base, seed
        self.textures = base if textures is None else textures
        self.name, self.split = base.name, base.split
        self.classes, self.labels = base.classes, base.labels
        self.augment_default = base.augment_default
        n, key = len(base), derive_key(seed, "textures", base.split)
        self.texture_labels: NDArray[np.int64] | None = None
        if textures is None:
            if n < 2:
                raise ConfigError(
                    f"{base.name}/{base.split} has {n} image(s); an exchange of textures "
                    "needs two"
                )
            order = permutation(key, n)
            self.partners = np.empty(n, np.int64)
            self.partners[order] = np.roll(order, 1)
            self.texture_labels = base.labels[self.partners]
        else:
            draws = uniforms(key, np.arange(n), 1)[:, 0]
            self.partners = (draws * len(textures)).astype(np.int64)

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` with the texture of its partner, uint8 [H, W, 3] RGB."""
        index = checked_index(index, len(self))
        image = self.base.load(index)
        try:
            texture = self.textures.load(int(self.partners[index]))
        except BadImage as error:
            reason = f"its texture, {error.name}: {error.reason}"
            raise BadImage(self.describe(index), reason) from error
        return with_texture(image, texture)

    def describe(self, index: int) -> str:
        """Return the name the base set gives the image."""
        return self.base.describe(index)

    def prepare(self) -> None:
        """Prepare both sets; see `ImageSet.prepare`."""
        self.base.prepare()
        self.textures.prepare()

    def part_hash(self, part: ImageSet, positions: NDArray[np.int64]) -> str:
        """Return the `content_hash` of `part`, the images at `positions` of this set."""
        digest = hashlib.sha256(self.fingerprint.encode() + positions.tobytes())
        for images in (self.base, self.textures):
            digest.update(images.content_hash().encode())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Key of both sets and the seed, hex."""
        both = f"{self.base.fingerprint} {self.textures.fingerprint}"
        return text_key(f"textures exchanged {self.seed} {both}")


def with_texture(
    image: NDArray[np.uint8], texture: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return an image with the Fourier amplitudes of another.

    Args:
        image: Where the phases come from, uint8 [H, W, 3].
        texture: Where the amplitudes come from, uint8 [H', W', 3]; resized to [H, W].

    Returns:
        uint8 [H, W, 3]; values outside of 0..255 are clipped.
    """
    if texture.shape != image.shape:
        texture = _resized(texture, image.shape[:2])
    spectrum, other = (
        np.fft.rfft2(x.astype(np.float64), axes=(0, 1)) for x in (image, texture)
    )
    size = np.abs(spectrum)
    phase = np.divide(spectrum, size, where=size > 0, out=np.ones_like(spectrum))
    mixed = np.fft.irfft2(phase * np.abs(other), image.shape[:2], axes=(0, 1))
    return np.asarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))


def _resized(image: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    import torch
    from torchvision.transforms.v2 import functional

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    found = functional.resize(pixels, list(size), antialias=True)
    return np.ascontiguousarray(found.permute(1, 2, 0).numpy())


def exchange_textures(
    splits: DatasetSplits, *, texture: str | None = None, texture_seed: int = 0
) -> DatasetSplits:
    """Return a data set whose images have the textures of others.

    Args:
        splits: The data set.
        texture: `exchange` takes textures from the same split; a folder or a .zip
            archive of images takes them from there; None changes nothing.
        texture_seed: Chooses which image has which texture.

    Raises:
        DataError: There are no images at the path.
    """
    if texture is None:
        return splits
    textures = None if texture == EXCHANGE else open_all(Path(texture).expanduser())
    train, test = (
        TextureExchanged(images, textures, seed=texture_seed)
        for images in (splits.train, splits.test)
    )
    return replace(splits, train=train, test=test)
