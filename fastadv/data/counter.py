"""Random numbers as a pure function of (key, index): no state to save or share.

Everything random in `fastadv.data` comes from here, so neither skipping to batch k nor
the number of workers can change what another index sees. Not for cryptography.

Source: the SplitMix64 finaliser (Steele, Lea and Flood 2014), used as a hash. Being
integer arithmetic, it gives the same numbers on every machine and NumPy version.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash every element of `z` (uint64, at least one dimension) to 64 bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return out


def derive_key(*parts: int | str) -> int:
    """Fold integers and labels into one 64-bit key; order matters.

    Example:
        >>> derive_key(0, "crop", 3) == derive_key(0, "crop", 4)
        False
    """
    key = 0
    for part in parts:
        word = zlib.crc32(part.encode()) if isinstance(part, str) else int(part)
        state = np.array([(key + word * _GOLDEN + _GOLDEN) & _MASK], dtype=np.uint64)
        key = int(mix64(state)[0])
    return key


def uniforms(key: int, indices: ArrayLike, k: int) -> NDArray[np.float64]:
    """Draw `k` numbers for each index.

    Args:
        key: 64-bit stream key from `derive_key`.
        indices: Integers [n], non-negative.
        k: Draws per index.

    Returns:
        float64 [n, k], uniform in [0, 1). Row i depends on `key` and
        `indices[i]` alone; a larger `k` keeps the first columns.
    """
    golden = np.uint64(_GOLDEN)
    index = np.asarray(indices, dtype=np.uint64).reshape(-1)
    state = mix64((index + np.uint64(1)) * golden + np.uint64(key & _MASK))
    steps = np.arange(1, k + 1, dtype=np.uint64) * golden
    bits = mix64(state[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, n: int) -> NDArray[np.int64]:
    """Return a random order of 0..n-1, int64 [n]."""
    order: NDArray[Any] = np.argsort(
        uniforms(key, np.arange(n), 1)[:, 0], kind="stable"
    )
    return order.astype(np.int64)
