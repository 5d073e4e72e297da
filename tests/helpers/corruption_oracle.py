"""Write what the package imagecorruptions-imaug makes of a drawn image.

    python tests/helpers/corruption_oracle.py tests/data/corruptions.npz

It needs `pip install imagecorruptions-imaug` (with OpenCV and scikit-image), so the tests
read its numbers from the file.
"""

from __future__ import annotations

import sys

import numpy as np

SIDE, STEP = 224, 14  # pixels; every fourteenth in each direction is kept
DRAWS = 8  # images of each corruption that is random
DRAWN_FROM_NOTHING = (
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"
)  # fmt: skip


def drawn_image(side: int = SIDE) -> np.ndarray:
    """Return an image of shapes, edges and colours at several scales, uint8 [H, W, 3]."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(f * x + g * y) for f, g in ((9, 4), (31, -17), (3, 60))]
    image = 0.5 + 0.22 * np.stack(waves, 2)
    image += 0.2 * ((x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.06)[..., None] * (1, -0.5, 0.3)
    image -= 0.25 * ((x * 8 % 1 < 0.2) & (y > 0.5))[..., None]
    return (image.clip(0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    from imagecorruptions import corrupt, get_corruption_names

    np.random.seed(0)
    image = drawn_image()
    found = {}
    for kind in get_corruption_names():
        exact = kind in DRAWN_FROM_NOTHING
        for severity in range(1, 6):
            made = [corrupt(image, severity, kind) for _ in range(DRAWS)]
            change = [np.abs(each.astype(float) - image).mean() for each in made]
            means = [each.mean() for each in made]
            found[f"{kind} {severity}"] = np.array([change, means])
            if exact:
                found[f"{kind} {severity} pixels"] = made[0][::STEP, ::STEP]
    np.savez_compressed(sys.argv[1], **found)
