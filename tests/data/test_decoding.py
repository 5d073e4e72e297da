"""Every colour mode ends in the right RGB; every damaged file is named."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from fastadv.data import decoding as images
from fastadv.data.decoding import BadImage, decode_rgb


def encoded(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def gradient(height: int = 12, width: int = 17) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 9, y * 11, 255 - x * 5], axis=2).astype(np.uint8)


def test_rgb_is_unchanged():
    rgb = gradient()
    out = decode_rgb(encoded(Image.fromarray(rgb)), "a.png")
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out, rgb)


def test_gray_is_repeated():
    gray = gradient()[:, :, 0]
    out = decode_rgb(encoded(Image.fromarray(gray)), "a.png")
    np.testing.assert_array_equal(out, np.repeat(gray[:, :, None], 3, axis=2))


def test_sixteen_bit_gray_is_scaled_not_clipped():
    wide = np.array([[0, 128, 257, 25700, 40000, 65535]], dtype=np.uint16)
    out = decode_rgb(encoded(Image.fromarray(wide)), "a.png")
    expected = np.rint(wide / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(out[:, :, 0], expected)
    np.testing.assert_array_equal(out[:, :, 1], out[:, :, 2])


def test_alpha_is_composited_over_white():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], np.uint8)
    out = decode_rgb(encoded(Image.fromarray(rgba)), "a.png")
    np.testing.assert_array_equal(
        out, [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]]
    )


def test_gray_with_alpha():
    la = np.array([[[40, 255], [40, 0]]], dtype=np.uint8)
    out = decode_rgb(encoded(Image.fromarray(la, "LA")), "a.png")
    np.testing.assert_array_equal(out, [[[40] * 3, [255] * 3]])


def test_palette_and_its_transparency():
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opaque = decode_rgb(encoded(image), "a.png")
    np.testing.assert_array_equal(opaque, [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    clear = decode_rgb(encoded(image, transparency=1), "a.png")
    np.testing.assert_array_equal(clear, [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]])


def test_cmyk_jpeg_including_adobe_inversion():
    # Pillow writes CMYK JPEGs with the Adobe marker, hence inverted.
    inks = {(0, 0, 0, 0): 255, (0, 0, 0, 255): 0, (0, 0, 0, 128): 127}
    for cmyk, level in inks.items():
        data = encoded(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=100)
        assert b"Adobe" in data
        assert abs(decode_rgb(data, "a.jpg").astype(int) - level).max() <= 2
    red = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert abs(decode_rgb(red, "a.jpg").astype(int) - [255, 0, 0]).max() <= 3


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    data = encoded(Image.fromarray(gradient(8, 16)), "JPEG", exif=exif)
    assert decode_rgb(data, "a.jpg").shape == (8, 16, 3)


def test_path_and_bytes_agree(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(gradient())))
    np.testing.assert_array_equal(decode_rgb(path), decode_rgb(path.read_bytes()))


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "GIF", "BMP"])
def test_truncated_file_is_named(fmt):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), fmt)
    with pytest.raises(BadImage, match=r"train/cat/7\.img") as info:
        decode_rgb(data[: len(data) // 2], "train/cat/7.img")
    assert info.value.name == "train/cat/7.img"
    assert info.value.reason


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\nrubbish"]
)
def test_corrupt_file_is_bad(data):
    with pytest.raises(BadImage):
        decode_rgb(data, "x")


def test_missing_file_is_bad(tmp_path):
    with pytest.raises(BadImage, match="No such file"):
        decode_rgb(tmp_path / "none.png")


def test_float_pixels_and_wide_integers_are_refused():
    with pytest.raises(BadImage, match="floating-point"):
        decode_rgb(encoded(Image.new("F", (2, 2), 0.5), "TIFF"), "x")
    with pytest.raises(BadImage, match="16 bit"):
        decode_rgb(encoded(Image.new("I", (2, 2), 70000), "TIFF"), "x")


def test_pixel_limit(monkeypatch):
    data = encoded(Image.new("RGB", (30, 30)))
    monkeypatch.setattr(images, "MAX_PIXELS", 899)
    with pytest.raises(BadImage, match="30 x 30"):
        decode_rgb(data, "x")
    monkeypatch.setattr(images, "MAX_PIXELS", 900)
    assert decode_rgb(data, "x").shape == (30, 30, 3)


def test_bad_image_survives_pickling():
    copy = pickle.loads(pickle.dumps(BadImage("a.png", "cut short")))
    assert (copy.name, copy.reason) == ("a.png", "cut short")
    assert "a.png" in str(copy)
