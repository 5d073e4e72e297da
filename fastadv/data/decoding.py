"""From the bytes of an image file to 8-bit RGB, or a `BadImage` that names it.

Every colour mode Pillow knows ends in the same [H, W, 3] uint8 array.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastadv.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

# 8192 x 8192: above any photograph in the supported data sets, and 200 MB as RGB.
MAX_PIXELS = 1 << 26

_WIDE_GRAY = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR = (2, 6)  # colour types: RGB, RGB with alpha
_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners fill of 16


class BadImage(DataError):
    """One image that cannot be decoded.

    Attributes:
        name: File name or description of the image.
        reason: What is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot decode image {name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        # Loader workers send it between processes; the default would replay
        # __init__ with the formatted message alone.
        return type(self), (self.name, self.reason)


def decode_rgb(
    data: bytes | str | os.PathLike[str], name: str | None = None, bits: int = 16
) -> NDArray[np.uint8]:
    """Decode one image to RGB.

    Gray, palette, CMYK (with Adobe's inverted JPEGs) and alpha modes are
    converted; transparency is composited over white. 16-bit gray is scaled,
    2**bits - 1 becoming 255. The first frame of an animation is used. The EXIF
    orientation is ignored, as torchvision's ImageFolder ignores it: published
    accuracies were measured so. Colour profiles are ignored for the same reason.

    Args:
        data: Encoded bytes, or the path of a file.
        name: Name of the image in errors; the path by default.
        bits: Number of bits that 16-bit images fill, see `filled_bits`.

    Returns:
        uint8 [H, W, 3] in 0..255, C-contiguous.

    Raises:
        BadImage: The file is unreadable, truncated, damaged, larger than
            `MAX_PIXELS`, or of floating-point pixels (no defined range).

    Example:
        >>> decode_rgb(b"GIF89a", "x.gif")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        fastadv.data.decoding.BadImage: cannot decode image x.gif: ...
    """
    from PIL import Image, UnidentifiedImageError

    if name is None:
        name = "<bytes>" if isinstance(data, bytes) else os.fspath(data)
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with Image.open(source) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(
                    name,
                    f"{width} x {height} pixels are more than the {MAX_PIXELS} "
                    "accepted; shrink it, or remove it as a decompression bomb",
                )
            if bits < 16 and isinstance(data, bytes) and _is_wide_png(data):
                return _scaled(_wide_png(data), name, bits)
            return pixels_of(image, name, bits)
    except BadImage:
        raise
    # Decoders of damaged files raise anything from SyntaxError to struct.error.
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # it would show an address
            reason = "not an image of a known format" if data else "the file is empty"
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror or reason
        raise BadImage(name, reason) from error


def filled_bits(data: bytes) -> int | None:
    """Return how many bits the pixels of an encoded 16-bit image fill; None for others.

    Returns:
        8, 10, 12, 14 or 16, the smallest that holds the largest value; None where the
        image is not of 16 bits, or cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            if _is_wide_png(data):
                wide = _wide_png(data)
            elif image.mode in _WIDE_GRAY:
                wide = np.asarray(image).astype(np.int64)
            else:
                return None
    except Exception:  # of damaged files, which the loader will name
        return None
    top = int(wide.max(initial=0))
    return next((bits for bits in _DEPTHS if top < 1 << bits), None)


def _is_wide_png(data: bytes) -> bool:
    """Return whether an encoded image is a colour PNG of 16 bits per channel."""
    return data[:8] == _PNG and data[24] == 16 and data[25] in _PNG_COLOUR


def _wide_png(data: bytes) -> NDArray[np.int64]:
    """Return the pixels of a colour PNG of 16 bits, int64 [H, W, 3]; alpha is left out."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels = decode_png(encoded, ImageReadMode.UNCHANGED)
    wide: NDArray[np.int64] = pixels[:3].permute(1, 2, 0).to(torch.int64).numpy()
    return wide


def _scaled(wide: NDArray[np.int64], name: str, bits: int) -> NDArray[np.uint8]:
    """Return values of up to `bits` bits as 8-bit ones."""
    high = (1 << bits) - 1
    if wide.size and (wide.min() < 0 or wide.max() > high):
        span = f"[{wide.min()}, {wide.max()}]"
        if bits == 16:
            raise BadImage(name, f"gray values span {span}; at most 16 bit accepted")
        raise BadImage(
            name,
            f"values span {span}, and the other 16-bit images of this set hold at most "
            f"{bits} bits; give the option bits=16 for all of them",
        )
    return ((wide * 255 + high // 2) // high).astype(np.uint8)


def pixels_of(image: Image.Image, name: str, bits: int = 16) -> NDArray[np.uint8]:
    """Return an opened image as RGB, as `decode_rgb` returns it."""
    if image.mode in _WIDE_GRAY:
        # Pillow's convert("RGB") clips these modes at 255 instead of scaling.
        gray = _scaled(np.asarray(image).astype(np.int64), name, bits)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise BadImage(name, "floating-point pixels have no defined range; use 8 bit")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint32)
        alpha = rgba[:, :, 3:]
        over_white = (rgba[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
        return np.ascontiguousarray(over_white.astype(np.uint8))
    return np.array(image.convert("RGB"), dtype=np.uint8, order="C")
