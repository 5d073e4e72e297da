"""The settings of analyses under shift: corruptions, calibration, effective robustness.

`fastadv.results.settings` lists them among all kinds of rows and says what each needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fastadv.preparation import Preparation


@dataclass(frozen=True, kw_only=True)
class ShiftSetting:
    """On which images a network was judged, and how they were corrupted."""

    kind: ClassVar[str] = "shift"

    num_images: int  # Number of images, each under every corruption.
    # Kinds of corruption; none where images were judged as they are.
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = ()  # Severities of each, from 1 to 5.
    # Side in pixels of the images whose published severities were used: 32, 64 or 224.
    # None where the corrupted images are files.
    parameters: int | None = None
    num_classes: int  # Number of classes that were told apart.
    # Hash of which outputs of the network stand for which class; None where the classes
    # are those of the network.
    class_map: str | None = None
    left_out: int = 0  # Number of classes of the data that the network does not know.
    preparation: Preparation | None = None  # How images were resized and cropped.

    def key(self) -> tuple[Any, ...]:
        """Return the images, corruptions and classes."""
        return (
            self.num_images,
            self.corruptions,
            self.severities,
            self.parameters,
            self.num_classes,
            self.left_out,
        )

    def label(self) -> str:
        """Return how many images, classes and corruptions there are."""
        what = f"{self.num_images} images of {self.num_classes} classes"
        if not self.corruptions:
            return what
        kinds, severities = len(self.corruptions), len(self.severities)
        how = "" if self.parameters is None else f", as for {self.parameters} px"
        one = self.corruptions[0] if kinds == 1 else f"{kinds} corruptions"
        return f"{what}, {one} in {severities} severities{how}"


@dataclass(frozen=True, kw_only=True)
class CorruptionErrorSetting:
    """Which reference errors under corruption were divided by."""

    kind: ClassVar[str] = "corruption_error"

    measured: str  # Identity of the row of kind `shift` that has the errors.
    reference: str  # Name of the reference in tables.
    # Identity of the reference's row of kind `shift`; None for published errors.
    reference_row: str | None = None
    num_images: int  # Number of images.
    corruptions: tuple[str, ...]  # Kinds of corruption.
    severities: tuple[int, ...]  # Severities that errors were added over.

    def key(self) -> tuple[Any, ...]:
        """Return the reference, the images and the corruptions."""
        return (
            self.reference,
            self.reference_row,
            self.num_images,
            self.corruptions,
            self.severities,
        )

    def label(self) -> str:
        """Return what the errors are relative to as a text."""
        return f"errors relative to {self.reference}"


@dataclass(frozen=True, kw_only=True)
class CalibrationSetting:
    """The row whose kept logits were examined, and how."""

    kind: ClassVar[str] = "calibration"

    measured: str  # Identity of the row whose logits were kept.
    measured_kind: str  # Its kind, for example `evaluation`.
    measured_label: str  # Its label.
    num_images: int  # Number of images.
    bins: int  # Number of bins of the expected calibration error.
    # Whether a temperature was fitted to one half of the images for the other half.
    scaled: bool = False

    def key(self) -> tuple[Any, ...]:
        """Return the kind of the row, the number of images and the bins."""
        return (
            self.measured_kind,
            self.measured_label,
            self.num_images,
            self.bins,
            self.scaled,
        )

    def label(self) -> str:
        """Return what the logits are of."""
        return f"calibration of {self.measured_kind}: {self.measured_label}"


@dataclass(frozen=True, kw_only=True)
class EffectiveSetting:
    """What accuracy under shift is compared with what standard networks lead to expect."""

    kind: ClassVar[str] = "effective_robustness"

    shifted: str  # Identity of the row of the accuracy under shift.
    shift_label: str  # The shift, for people.
    standard: str  # Identity of the row of the standard accuracy.
    standard_label: str  # The images of the standard accuracy, for people.
    scale: str  # Scale of the fit, `logit` or `probit`.
    # Identities of the rows of accuracy under shift of the networks that were fitted.
    fitted: tuple[str, ...]

    def key(self) -> tuple[Any, ...]:
        """Return both sets of images, the scale and the networks that were fitted."""
        return self.shift_label, self.standard_label, self.scale, self.fitted

    def label(self) -> str:
        """Return both sets of images and the number of fitted networks."""
        return (
            f"{self.shift_label} given {self.standard_label}, {self.scale} fit to "
            f"{len(self.fitted)} standard networks"
        )
