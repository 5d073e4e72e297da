"""How an image becomes the square that a network is judged on. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from fastadv.errors import ConfigError, unknown_name
from fastadv.ranges import AT_LEAST_1

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Resizing of an image and the central crop after it, without any augmentation.

    Images are filtered against aliasing when they are reduced, as Pillow does.

    Attributes:
        resize: Shorter side of the image after resizing, in pixels.
        crop: Side of the central square that is then cut out, in pixels.
        interpolation: Filter of the resizing.
        squash: Whether both sides become `resize`, whatever the shape of the image.
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    squash: bool = False

    def check(self) -> None:
        """Check that images can be prepared so; a stored record need not be right.

        Raises:
            ConfigError: The crop is larger than the resized image, a side is below 1, or
                the filter is unknown.
        """
        for name in ("resize", "crop"):
            if getattr(self, name) not in AT_LEAST_1:
                raise ConfigError(
                    f"`{name}={getattr(self, name)}` must be at least 1 pixel"
                )
        if self.resize < self.crop:
            raise ConfigError(
                f"`crop={self.crop}` is larger than the resized image, whose shorter side "
                f"is `resize={self.resize}` pixels; use a smaller `crop`, or `resize` of "
                f"at least {self.crop}"
            )
        known = get_args(Interpolation)
        if self.interpolation not in known:
            raise ConfigError(
                unknown_name("`interpolation`", self.interpolation, known)
            )

    def at(self, side: int) -> Preparation:
        """Return the same proportions with a crop of `side` pixels."""
        if side == self.crop:
            return self
        return replace(self, resize=round(self.resize * side / self.crop), crop=side)

    def __str__(self) -> str:
        what = "both sides" if self.squash else "shorter side"
        return (
            f"{what} resized to {self.resize} px ({self.interpolation}), centre cropped to "
            f"{self.crop} px"
        )
