"""Colour changes of augmentation: jitter and lighting, as one affine map per image.

The draws are given, so every loader changes the same image of the same epoch alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# What the published robust ImageNet models were trained with (Salman et al. 2020).
PUBLISHED_JITTER, PUBLISHED_LIGHTING = 0.1, 0.05
COLOUR_DRAWS = 7
# Principal components of ImageNet's RGB values in [0, 1] (Krizhevsky et al. 2012), with
# the figures that fb.resnet.torch made common. Columns are the components.
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


def colour_changes(
    draws: NDArray[np.float64], jitter: float, lighting: float
) -> NDArray[np.float32]:
    """Return what `kernels.crops.resized_crops` does to the colours of n images.

    Brightness, contrast and saturation factors are uniform in [1 - jitter, 1 + jitter],
    as in torchvision's ColorJitter: b scales, c moves away from the mean gray m of the
    crop, s from the pixel's own gray g. Without rounding and clamping in between, which
    happen once, at the end, the three commute,

        b (c (s x + (1 - s) g) + (1 - c) m),

    so their order, which ColorJitter shuffles, needs no draw. Lighting then adds the
    principal components times N(0, lighting) times their eigenvalues.

    Args:
        draws: Random numbers, float64 [n, COLOUR_DRAWS] in [0, 1).
        jitter: In [0, 1]; 0 leaves out the jitter.
        lighting: Standard deviation, at least 0; 0 leaves out the lighting.

    Returns:
        float32 [n, 6]: factors of x, g and m, then the shift of R, G and B in 0..255.
    """
    brightness, contrast, saturation = (1 + jitter * (2 * draws[:, :3] - 1)).T
    # Box and Muller 1958; 1 - u is never 0.
    radius, angle = np.sqrt(-2 * np.log1p(-draws[:, 3:5])), 2 * np.pi * draws[:, 5:7]
    pairs = [radius * np.cos(angle), radius * np.sin(angle)]
    normal = np.concatenate(pairs, axis=1)[:, :3]
    shift = 255 * lighting * (normal * _EIGENVALUES) @ _EIGENVECTORS.T
    own = brightness * contrast * saturation
    gray = brightness * contrast * (1 - saturation)
    mean = brightness * (1 - contrast)
    return np.column_stack([own, gray, mean, shift]).astype(np.float32)
