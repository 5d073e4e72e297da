"""The threat model: which norm, how large, in which unit. Needs no torch."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from fastadv.errors import ConfigError

Norm = Literal["linf", "l2"]
TrainingKind = Literal["standard", "robust", "texture", "other"]

TRAINING_KINDS: Final = {
    "standard": "trained on images as they are",
    "robust": "trained on adversarial images",
    "texture": "trained on stylized images, whose texture does not give the class away",
    "other": "trained in another way",
}
"""How pretrained networks were trained. Only `standard` ones are the baseline that robust
ones are compared with, and only `robust` ones are compared with it."""

_NORM_ALIASES = {"linf": "linf", "inf": "linf", "l2": "l2", "2": "l2"}


# Radii of l2 that are usual in the literature, by the side of the images in pixels.
USUAL_L2 = {224: 3.0, 32: 0.5}
# The largest ones are 5 at 224 px and 1 at 32 px, which is as much per pixel as 7 at 224.
_LARGEST_AT_224 = 7.0
# Smallest perturbation of a pixel value that survives rounding, in spacings of the dtype
# at 1. Two roundings of values of about one standard deviation, 0.23 of the pixel range,
# err by 0.06 spacings; a quarter of the perturbation is the sine of a cosine of 0.97.
_ROUNDED = 0.25
# Radii of linf that are usual, in 255ths.
_LINF_LEVELS = (0.5, *range(1, 33))


def usual_l2(side: int) -> float:
    """Return the l2 radius that is usual at `side` pixels; 3 at 224 px sets the scale."""
    return USUAL_L2.get(side, float(f"{USUAL_L2[224] * side / 224:.2g}"))


def parse_norm(text: str) -> Norm:
    """Return `"linf"` or `"l2"` for any accepted spelling (`inf`, `2`, `L2`, ...)."""
    norm = _NORM_ALIASES.get(str(text).lower().replace("_", ""))
    if norm is None:
        raise ValueError(
            f"norm={text!r} is unknown; accepted: l2 (or 2), linf (or inf)"
        )
    return norm  # type: ignore[return-value]


def parse_pixels(value: str | float) -> float:
    """Parse a length in pixel units: `"8/255"`, `"0.5"`, `3` or `0.03`.

    Only numbers and one division are understood; nothing is evaluated.

    Raises:
        ValueError: It is not a number, negative, or not finite.
    """
    text = str(value).strip()
    try:
        if "/" in text:
            top, bottom = (Fraction(part.strip()) for part in text.split("/"))
            number = float(top / bottom)
        else:
            number = float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"{value!r} is not a length in pixel units; write 3, 0.5 or 8/255"
        ) from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} must be a finite number >= 0, in pixel units")
    return number


def parse_training_kind(text: str) -> TrainingKind:
    """Return the kind of training that `text` names.

    Raises:
        ValueError: It names none; the message lists them.
    """
    if text not in TRAINING_KINDS:
        listed = ", ".join(f"{name} ({what})" for name, what in TRAINING_KINDS.items())
        raise ValueError(f"kind={text!r} is unknown; accepted: {listed}")
    return text  # type: ignore[return-value]


def training_kind(kind: str | None, eps: float | None) -> str | None:
    """Return the kind of training of a network, from what is stated of it.

    Args:
        kind: Kind that is stated, or None.
        eps: Radius of its training in pixel units, or None where it is unknown. It
            decides where no kind is stated.

    Returns:
        A key of `TRAINING_KINDS`, or None where nothing is known.

    Example:
        >>> training_kind(None, 0.5), training_kind("texture", 0.0)
        ('robust', 'texture')
    """
    if kind is not None or eps is None:
        return kind
    return "robust" if eps else "standard"


@dataclass(frozen=True)
class ThreatModel:
    """A ball of radius `eps` around an image, intersected with the pixel box [0, 1].

    Attributes:
        norm: The norm, `"linf"` or `"l2"` (aliases `inf`, `2` are accepted).
        eps: Radius in [0, 1] pixel units; `"8/255"` is accepted. For `l2` it is the
            length of the whole perturbation vector, so values above 1 are usual.

    Raises:
        ValueError: The norm is unknown, the radius is negative, or an `linf` radius is
            above 1, which is nearly always a radius in 0..255 units.

    Example:
        >>> ThreatModel("linf", "8/255").eps
        0.03137254901960784
    """

    norm: Norm = "l2"
    eps: float = 3.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", parse_norm(self.norm))
        object.__setattr__(self, "eps", parse_pixels(self.eps))
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(
                f'eps={self.eps:g} with norm="linf" is outside [0, 1]: eps is in pixel '
                f"units, so {self.eps:g} of 255 is {self.eps:g}/255 "
                f"({self.eps / 255:.4f}). For l2 use `norm=l2`."
            )
        if slip := self._slip():
            # The commands say it in their own way, see `doubt`.
            caller = sys._getframe(2).f_globals.get("__name__", "")
            if caller.partition(".")[0] != "fastadv":
                warnings.warn(slip, stacklevel=3)

    def check_side(self, side: int) -> None:
        """Refuse an `l2` radius that no image of `side` x `side` pixels has room for.

        Raises:
            ConfigError: The radius is longer than the diagonal of the image box, which is
                nearly always a radius in 0..255 units.
        """
        diagonal = math.sqrt(3 * side**2)
        if self.norm == "l2" and self.eps > diagonal:
            raise ConfigError(
                f"`eps={self.eps:g}` with `norm=l2` is longer than the diagonal of the "
                f"image box, sqrt(3 * {side}^2) = {diagonal:.1f}: eps is in [0, 1] pixel "
                f"units, so {self.eps:g} of 255 is {self.eps / 255:.3g}"
            )

    def survives(self, side: int, spacing: float) -> bool:
        """Return whether images that are rounded still show a perturbation of this radius.

        It compares the error of rounding with a perturbation that is spread evenly over
        the image: they must leave a cosine of 0.97 with what was meant.

        Args:
            side: Side of the images in pixels.
            spacing: Distance from 1 to the next number of the dtype, `torch.finfo().eps`.
        """
        values = math.sqrt(3 * side**2) if self.norm == "l2" else 1.0
        return self.eps / values >= _ROUNDED * spacing

    def doubt(self, side: int) -> str | None:
        """Return a remark on a radius that may be a mistake for images of `side`, or None.

        It may be meant in 0..255 units, for the other norm, or for larger images.
        """
        if slip := self._slip():
            return slip
        if self.norm == "linf":
            large = self.eps > 0.25
        else:
            large = self.eps > math.sqrt(3 * side**2) / 4
        if large:
            return (
                f"eps={self.eps:g} ({self.norm}) reaches across much of the image box; if "
                f"it was meant in 0..255 units, write {self.eps:g}/255"
            )
        at_224 = self.eps * 224 / side
        if self.norm == "l2" and at_224 > _LARGEST_AT_224:
            return (
                f"eps {self.eps:g} at {side} px is as large per pixel as eps {at_224:.3g} "
                f"at 224 px; {usual_l2(side):g} is usual for {side} px"
            )
        return None

    def _slip(self) -> str | None:
        """Return a remark on an l2 radius of a few 255ths, which is usual for linf alone."""
        levels = self.eps * 255
        if self.norm != "l2" or not any(math.isclose(levels, n) for n in _LINF_LEVELS):
            return None
        return (
            f"l2 radius {self.eps:.3f} ({levels:g}/255) is the length of the whole "
            f"perturbation, {levels / (224 * math.sqrt(3)):.2g}/255 per value at 224 px; "
            "did you mean `norm=linf`?"
        )

    def __str__(self) -> str:
        if self.norm == "linf":
            return f"linf {self.eps * 255:g}/255"
        return f"l2 {self.eps:g}"
