"""The variance of a difference as a sum of variance components, from mean squares.

Each set of things that were drawn (seeds, source runs, test images) has a mean square: the
variance of the difference if that set were all that is drawn. It holds the components of
the set and of all larger sets. What a component adds is its mean square less those of the
larger sets, where that is more than chance makes it. Where it is not, the component counts
as 0, and its mean square is pooled with the one that it then estimates as well. Without
that, components of 0 would be estimated at 0 or above, and intervals be too wide.

Source:
    Satterthwaite 1946, An approximate distribution of estimates of variance components
    (the degrees of freedom); Bozivich, Bancroft and Hartley 1956, Power of analysis of
    variance test procedures for certain incompletely specified models (pooling after a
    preliminary test, at a level of about 0.25).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Factors = tuple[int, ...]

POOLING_LEVEL: Final = 0.25
"""A component counts where its p-value is below this. The highest coverage of intervals,
in which nothing has an effect, falls with it, and so does the lowest one."""

POOLING_LEVEL_FEW: Final = 0.35
"""The same where there are at most two degrees of freedom, with which a test sees little."""


def sum_of_components(
    squares: Mapping[Factors, Sequence[tuple[Array | float, float]]],
) -> tuple[Array, Array]:
    """Return the sum of all variance components, and its degrees of freedom.

    Many experiments can be summed up at once: mean squares are then arrays.

    Args:
        squares: Of each set of factors the mean squares that add up to its own, one per
            group of networks that do not share those factors, with the degrees of freedom
            of each. There is one set that contains all others, or sets have nothing in
            common.

    Returns:
        The variance and Satterthwaite's degrees of freedom, in the shape of the mean
        squares. Both are 0 where nothing varies.
    """
    value = {
        key: _sum(np.asarray(p, float) for p, _ in squares[key]) for key in squares
    }
    dof = {key: _satterthwaite(squares[key]) for key in squares}
    components: dict[Factors, dict[Factors, Array]] = {}
    for kept in sorted(squares, key=len, reverse=True):
        larger = [c for key, c in components.items() if set(kept) < set(key)]
        ones = np.ones_like(value[kept])
        # What its mean square would be on average if its own component were 0.
        others = _added(larger)
        if not others:
            components[kept] = {kept: ones}
            continue
        parts = [(n * value[key], dof[key]) for key, n in others.items()]
        counts = _counts(value[kept], dof[kept], parts, squares[kept])
        components[kept] = {kept: counts * ones} | {
            key: -n * counts for key, n in others.items()
        }
        for key, n in others.items():
            alone = _sum(abs(m) for other, m in others.items() if other != key) == 0
            pooled = ~counts & (n == 1) & alone
            both = dof[key] + dof[kept]
            mean = (value[key] * dof[key] + value[kept] * dof[kept]) / both
            value[key] = np.where(pooled, mean, value[key])
            dof[key] = np.where(pooled, both, dof[key])
    found = _added(list(components.values()))
    parts = [(n * value[key], dof[key]) for key, n in found.items()]
    return _sum(part for part, _ in parts), _satterthwaite(parts)


def _counts(
    value: Array,
    dof: Array,
    others: Sequence[tuple[Array, Array]],
    groups: Sequence[tuple[Any, float]],
) -> NDArray[np.bool_]:
    """Return whether a mean square is larger than `others` by more than chance."""
    from scipy.special import fdtrc

    floor = _sum(part for part, _ in others)
    few = len(groups) * min(each for _, each in groups) <= 2
    level = POOLING_LEVEL_FEW if few else POOLING_LEVEL
    with np.errstate(divide="ignore", invalid="ignore"):
        p = fdtrc(dof, _satterthwaite(others), value / floor)
    return np.asarray((floor <= 0) | (p < level))


def _added(terms: Sequence[Mapping[Factors, Array]]) -> dict[Factors, Array]:
    """Return the sum of linear forms in the mean squares."""
    found: dict[Factors, Array] = {}
    for term in terms:
        for key, n in term.items():
            found[key] = found.get(key, np.zeros_like(n)) + n
    return found


def _satterthwaite(parts: Sequence[tuple[Any, Any]]) -> Array:
    """Return the degrees of freedom of a sum of mean squares; 0 where all are 0."""
    total = _sum(np.asarray(part, float) for part, _ in parts)
    spread = _sum(
        _ratio(np.square(part), np.asarray(dof, float)) for part, dof in parts
    )
    return _ratio(total**2, spread)


def _ratio(above: Array, below: Array) -> Array:
    """Return `above / below`, and 0 where nothing is below."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.divide(above, below, out=np.zeros(shape), where=below > 0)


def _sum(arrays: Any) -> Array:
    return np.asarray(sum(arrays), dtype=np.float64)
