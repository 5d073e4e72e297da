"""The settings of analyses that show what a network sees: pictures and their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fastadv.preparation import Preparation


@dataclass(frozen=True, kw_only=True)
class GradientSetting:
    """Of which images the input gradients were computed."""

    kind: ClassVar[str] = "gradients"

    num_images: int  # Number of images whose gradient is compared with the image.
    # Class whose loss the gradients that are drawn are of: `label`, or `prediction` where
    # the network does not tell apart the classes of the images.
    loss_of: str = "label"
    preparation: Preparation | None = None  # How images were resized and cropped.

    def key(self) -> tuple[Any, ...]:
        """Return the number of images."""
        return (self.num_images,)

    def label(self) -> str:
        """Return how many images there are."""
        return f"input gradients of {self.num_images} images"


@dataclass(frozen=True, kw_only=True)
class VisualizationSetting:
    """Which units or classes were maximised, from which images, and how far."""

    kind: ClassVar[str] = "visualization"

    # Dotted path of the module whose units are maximised, `embedding`, `logits`, or
    # `log_softmax` where they are classes whose log-probability is.
    layer: str
    units: tuple[int, ...]  # Units of the layer, or numbers of the classes.
    start: str  # `noise`, `images` or `gaussian`.
    num_images: int  # Number of starting images of each unit.
    eps: float  # Radius of the L2 ball around the start in pixel units.
    num_steps: int  # Number of gradient steps.
    step_size: float  # L2 length of a step in pixel units.
    grain: int | None = None  # Pixels per side of what a fitted Gaussian averages.
    preparation: Preparation | None = None  # How images were resized and cropped.

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers to be compared."""
        return (
            self.layer,
            self.units,
            self.start,
            self.num_images,
            self.num_steps,
            self.grain,
        )

    def label(self) -> str:
        """Return what was maximised, and from where."""
        if self.layer == "log_softmax":
            what = f"{len(self.units)} classes"
        else:
            what = f"{len(self.units)} units of {self.layer}"
        return f"{what} from {self.start}, l2 {self.eps:.3g}, {self.num_steps} steps"


@dataclass(frozen=True, kw_only=True)
class InversionSetting:
    """Which representations were matched, from which images, and how far."""

    kind: ClassVar[str] = "inversion"

    layer: str  # Dotted path of the module, `embedding` or `logits`.
    start: str  # `noise` or `images`.
    num_images: int  # Number of images whose representation is matched.
    # Shares of the target's representation; the rest is that of another image.
    blends: tuple[float, ...]
    eps: float  # Radius of the L2 ball around the start in pixel units.
    num_steps: int  # Number of gradient steps.
    step_size: float  # L2 length of a step in pixel units.
    preparation: Preparation | None = None  # How images were resized and cropped.

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers to be compared."""
        return self.layer, self.start, self.num_images, self.blends, self.num_steps

    def label(self) -> str:
        """Return what was matched, and from where."""
        start = "noise" if self.start == "noise" else "another image"
        return (
            f"{self.num_images} images by {self.layer} from {start}, l2 {self.eps:.3g}, "
            f"{self.num_steps} steps"
        )
