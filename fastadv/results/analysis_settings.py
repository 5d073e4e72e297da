"""The settings of analyses: what was computed of a network, beside its accuracy.

`fastadv.results.settings` lists them among all kinds of rows and says what each needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fastadv.preparation import Preparation


@dataclass(frozen=True, kw_only=True)
class InfluenceSetting:
    """Which images' influence on which others was computed, and how."""

    kind: ClassVar[str] = "influence"

    num_train: int  # Number of training images whose influence was computed.
    num_test: int  # Number of images that they influence.
    queries: str = "test"  # Split of the images that are influenced.
    # Share of the largest eigenvalue at or below which one counts as zero; None with
    # damping.
    cutoff: float | None = None
    # Number added to the diagonal of the Hessian; None for a pseudo-inverse.
    damping: float | None = None
    preparation: Preparation | None = None  # How images were resized and cropped.

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers to be compared."""
        return (
            self.num_train,
            self.num_test,
            self.queries,
            self.cutoff,
            self.damping,
        )

    def label(self) -> str:
        """Return how many images influence how many others."""
        return (
            f"{self.num_train} training images on {self.num_test} {self.queries} images"
        )


@dataclass(frozen=True, kw_only=True)
class SimilaritySetting:
    """Which two networks' layers were compared, on how many images."""

    kind: ClassVar[str] = "similarity"

    # Digest of the weights of the network that the source is compared with.
    other_digest: str
    other: str  # What tables and figures call it.
    other_resolution: int  # Side of its images in pixels.
    measure: str  # `cka` or `svcca`.
    num_images: int  # Number of images.
    layers: tuple[str, ...]  # Modules of the source.
    other_layers: tuple[str, ...]  # Modules of the other network.
    # Images per batch of the unbiased estimate of CKA, which is an average over batches.
    batch_size: int | None = None
    # Share of the variance that is kept before canonical correlations.
    variance: float | None = None
    preparation: Preparation | None = None  # How images were resized and cropped.
    other_preparation: Preparation | None = None  # Those of the other network.

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers to be compared."""
        return self.measure, self.num_images, self.batch_size, self.variance

    def label(self) -> str:
        """Return the measure and the other network."""
        return f"{self.measure} with {self.other}"


@dataclass(frozen=True, kw_only=True)
class ManipulationSetting:
    """What was taken from images before they were classified."""

    kind: ClassVar[str] = "manipulation"

    # `patch_shuffle` (the layout), `low_pass`, `high_pass` or `band_pass` (frequencies).
    how: str
    # Grids of patches per side, radii in cycles per image, or bands such as `2-4`.
    levels: tuple[str, ...]
    num_images: int  # Number of images.
    preparation: Preparation | None = None  # How images were resized and cropped.
    # Hash of which outputs stand for the classes; None where these are its outputs.
    class_map: str | None = None

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers to be compared."""
        return self.how, self.num_images, *((self.class_map,) if self.class_map else ())

    def label(self) -> str:
        """Return the manipulation and the number of images as a text."""
        return f"{self.how.replace('_', ' ')}, {self.num_images} images"


@dataclass(frozen=True, kw_only=True)
class ShapeSetting:
    """Which images with a shape and a texture were classified into which categories."""

    kind: ClassVar[str] = "shape"

    num_images: int  # Number of images whose shape and texture are of known categories.
    categories: tuple[str, ...]  # Categories that the network tells apart.
    preparation: Preparation | None = None  # How images were resized and cropped.
    # Where shape and texture come from: `cue_conflict` for the images of Geirhos et al.,
    # `shapetex` for drawn ones, `exchange` for images with the spectrum of another.
    images: str = "cue_conflict"

    def key(self) -> tuple[Any, ...]:
        """Return the images and the categories."""
        other = () if self.images == "cue_conflict" else (self.images,)
        return self.num_images, self.categories, *other

    def label(self) -> str:
        """Return how many images and categories there are."""
        what = {
            "shapetex": "drawn images",
            "exchange": "images with exchanged textures",
        }
        named = what.get(self.images, "cue conflicts")
        return f"{self.num_images} {named} of {len(self.categories)} categories"
