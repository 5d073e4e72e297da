"""The choices of the analyses that show what a network sees. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastadv.analysis.config import AnalysisConfig
from fastadv.flags import Pixels
from fastadv.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Range


@dataclass(frozen=True, kw_only=True)
class GradientsConfig(AnalysisConfig):
    """Show the gradient of the loss with respect to the pixels, and how like the image it is.

    Gradients of robust networks follow the object (Tsipras et al. 2019). The number is the
    alignment of Etmann et al. 2019: how much of the image lies along the gradient of the
    predicted class.
    """

    num_images: Annotated[int | None, AT_LEAST_1] = 1000
    """Number of test images, a stratified, seeded subset; fewer are used where the data
    set has fewer."""
    batch_size: Annotated[int, AT_LEAST_1] = 64
    """Images per batch; it changes the memory that is needed, and no number."""


@dataclass(frozen=True, kw_only=True)
class AscentConfig(AnalysisConfig):
    """How far images are moved, by gradient ascent in an L2 ball."""

    eps: Annotated[Pixels | None, ABOVE_0] = None
    """Radius of the L2 ball around the starting image, in pixel units."""
    num_steps: Annotated[int, AT_LEAST_1] = 200
    """Number of gradient steps."""
    step_size: Annotated[Pixels | None, ABOVE_0] = None
    """L2 length of a step in pixel units. Default: 1 at 224 px, and in proportion to the
    side of the images."""
    batch_size: Annotated[int, AT_LEAST_1] = 16
    """Images per batch; it changes the memory that is needed, and no number."""

    def budget(self, side: int, usual: float) -> dict[str, Any]:
        """Return radius and steps for images of a side.

        Args:
            side: Side of the images in pixels.
            usual: Radius where none is chosen, in pixel units.
        """
        return {
            "eps": usual if self.eps is None else self.eps,
            "num_steps": self.num_steps,
            "step_size": self.step_size or side / 224,
        }


@dataclass(frozen=True, kw_only=True)
class VisualizationConfig(AscentConfig):
    """Show images that maximise units of a layer, or the probability of classes.

    Each starting image is moved by gradient ascent: towards a larger unit (feature
    visualisation, Engstrom et al. 2019), or with --classes towards a class (Santurkar et al.
    2019 start from a Gaussian fitted to its images).
    """

    layer: str = "embedding"
    """Layer whose units are maximised: the dotted path of a module, `embedding`, which is
    what the head reads, or `logits`. A unit of maps is the mean of a channel."""
    units: Annotated[tuple[int, ...], AT_LEAST_0] = ()
    """Units of the layer, counted from 0. Default: eight of them, evenly spaced."""
    classes: tuple[str, ...] = ()
    """Classes whose log-probability is maximised instead, by name or number."""
    start: Literal["noise", "images", "gaussian"] = "noise"
    """Starting images: gray with noise, test images, or drawn from a Gaussian that is
    fitted to the training images (those of the class, with --classes)."""
    num_images: Annotated[int, AT_LEAST_1] = 1
    """Number of starting images of each unit or class, the same for all of them."""
    eps: Annotated[Pixels | None, ABOVE_0] = None
    """Radius of the L2 ball around the starting image, in pixel units. Default: 40 at
    224 px (Santurkar et al. 2019), and in proportion to the side of the images."""
    grain: Annotated[int | None, AT_LEAST_1] = None
    """Side in pixels of the blocks that the Gaussian averages. Default: 4 at 224 px
    (Santurkar et al. 2019), and in proportion to the side of the images, at least 1."""
    num_fitted: Annotated[int, Range(2)] = 500
    """Largest number of images that a Gaussian is fitted to."""


@dataclass(frozen=True, kw_only=True)
class InversionConfig(AscentConfig):
    """Show images that a network represents like another image.

    Each starting image is moved until its representation is that of a target image. What
    both then have in common is what the network sees of the target (Engstrom et al. 2019).
    With several --blends, representations between two images are matched: interpolation.
    """

    layer: str = "embedding"
    """Layer that represents images: the dotted path of a module, `embedding`, which is
    what the head reads, or `logits`. All values of the layer count."""
    start: Literal["images", "noise"] = "images"
    """Starting images: other test images, or gray with noise."""
    blends: Annotated[tuple[float, ...], Range(0, 1, "[]")] = (1.0,)
    """Shares of the target in the representation that is matched; the rest is that of the
    other image."""
    num_images: Annotated[int, AT_LEAST_1] = 8
    """Number of target images; twice as many test images are needed, and fewer are used
    where there are fewer."""
    eps: Annotated[Pixels | None, ABOVE_0] = None
    """Radius of the L2 ball around the starting image, in pixel units. Default: the
    diagonal of the image box, which limits nothing; `robustness` takes 1000 at 224 px."""
