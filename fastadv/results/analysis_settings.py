"""The settings of analyses: what was computed of a network, beside its accuracy.

`fastadv.results.settings` lists them among all kinds of rows and says what each needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fastadv.preparation import Preparation

# Places on the way in the direction of an attack, in radii, at which rows of kind
# `vulnerability` keep the margin of each image.
PROFILE_RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)


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
class ShapeSetting:
    """Which images with a shape and a texture were classified into which categories."""

    kind: ClassVar[str] = "shape"

    num_images: int  # Number of images whose shape and texture are of known categories.
    categories: tuple[str, ...]  # Categories that the network tells apart.
    preparation: Preparation | None = None  # How images were resized and cropped.

    def key(self) -> tuple[Any, ...]:
        """Return the images and the categories."""
        return self.num_images, self.categories

    def label(self) -> str:
        """Return how many images and categories there are."""
        return f"{self.num_images} cue conflicts of {len(self.categories)} categories"


@dataclass(frozen=True, kw_only=True)
class VulnerabilitySetting:
    """How a network was attacked, and how far its decision boundary was searched."""

    kind: ClassVar[str] = "vulnerability"

    role: str  # What the network is: `source`, `fine_tuned` or `scratch`.
    # What attacks turn away from: `true` classes, or the `own` decisions of a network
    # that does not know them.
    labels: str = "true"
    num_images: int  # Number of images.
    norm: str  # Norm of all perturbations, `l2` or `linf`.
    eps: float  # Radius of PGD in pixel units.
    num_steps: int  # Number of steps of PGD.
    step_size: float  # Length of a step of PGD in pixel units.
    # What searched for the shortest perturbation: `deepfool`, `fmn` or `ddn`.
    distance: str
    distance_steps: int  # Largest number of its steps.
    preparation: Preparation | None = None  # How images were resized and cropped.

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers to be compared."""
        return (
            self.labels,
            self.num_images,
            self.norm,
            self.eps,
            self.num_steps,
            self.step_size,
            self.distance,
            self.distance_steps,
        )

    def label(self) -> str:
        """Return the role of the network, and the attack."""
        radius = f"{self.eps * 255:g}/255" if self.norm == "linf" else f"{self.eps:g}"
        return f"{self.role.replace('_', '-')}, {self.norm} {radius}"


@dataclass(frozen=True, kw_only=True)
class UniversalSetting:
    """How a universal perturbation was crafted on the source, and what it was shown to."""

    kind: ClassVar[str] = "universal"

    role: str  # What the source is: `source`, `fine_tuned` or `scratch`.
    # Digest of the weights of the network that the perturbation was shown to.
    other_digest: str
    other: str  # What tables and figures call it.
    other_role: str  # What it is.
    labels: str = "true"  # Whether it knows the classes; see `VulnerabilitySetting`.
    resolution: int  # Side in pixels of the images that it was crafted on.
    num_images: int  # Number of images that it was shown with.
    num_train: int  # Number of images that it was crafted on.
    num_epochs: int  # Number of passes over these.
    norm: str  # Norm of the perturbation, `l2` or `linf`.
    eps: float  # Its radius in pixel units.
    step_size: float  # Length of the first step in pixel units.
    batch_size: int  # Number of images per step.
    preparation: Preparation | None = None  # How images of the source were prepared.
    other_preparation: Preparation | None = None  # Those of the other network.

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers to be compared."""
        return (
            self.num_images,
            self.num_train,
            self.num_epochs,
            self.norm,
            self.eps,
            self.step_size,
            self.batch_size,
        )

    def label(self) -> str:
        """Return what the perturbation was shown to, and its radius."""
        radius = f"{self.eps * 255:g}/255" if self.norm == "linf" else f"{self.eps:g}"
        return f"universal {self.norm} {radius}, shown to {self.other}"
