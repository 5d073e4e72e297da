"""Similarity of representations: linear CKA and SVCCA between layers, batch by batch.

Both take any number of layers of two networks at once and need memory for one batch and
for matrices of layers, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Layers = Mapping[str, Tensor]
"""Activations [n, ...] of the same n images, by the name of their layer."""


class LinearCKA:
    """Linear centred kernel alignment, from unbiased estimates of every batch.

    CKA is `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))` of the Gram matrices K and L of two
    layers. HSIC is estimated without bias on each batch and averaged over batches
    (weighted by their number of images), so that it does not depend on the batch size but
    for noise. Maps are compared with all their positions.

    Source:
        Kornblith et al. 2019; the estimate is that of Song et al. 2012 as in Nguyen et
        al. 2021.

    Example:
        >>> cka = LinearCKA()
        >>> x = torch.randn(64, 10)
        >>> cka.update({"a": x}, {"b": 3 * x + 1})
        >>> round(float(cka.matrix()[0, 0]), 6)
        1.0
    """

    def __init__(self) -> None:
        self._names: tuple[list[str], list[str]] = [], []
        self._sums: NDArray[np.float64] | None = None
        self._held: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    def update(self, ours: Layers, theirs: Layers) -> None:
        """Add a batch; one of fewer than four images joins the batch before it.

        Args:
            ours: Activations of the first network, [n, ...] by layer.
            theirs: Those of the second network, of the same images.

        Raises:
            ValueError: An activation is not finite, or numbers of images differ; the
                layer is named.
        """
        new = _flat(ours), _flat(theirs)
        _check_batch(*new)
        self._names = list(ours), list(theirs)
        if self._held is not None and _size(self._held) >= 4 <= _size(new):
            self._sums = self.sums()
        elif self._held is not None:
            first, second = (
                {name: torch.cat([each[name], x]) for name, x in more.items()}
                for each, more in zip(self._held, new, strict=True)
            )
            new = first, second
        self._held = new

    def sums(self) -> NDArray[np.float64]:
        """Return the HSIC of every pair of layers, summed over images.

        Those of several parts of the images can be added and given to `alignment`.

        Returns:
            float64 [L, L], for the layers of the first network followed by the second's.

        Raises:
            ValueError: There were fewer than four images.
        """
        if self._held is None or _size(self._held) < 4:
            raise ValueError("CKA needs at least four images")
        grams = [_gram(x) for each in self._held for x in each.values()]
        found = _size(self._held) * _hsic(torch.stack(grams)).cpu().numpy()
        return np.asarray(found if self._sums is None else self._sums + found)

    def matrix(self) -> NDArray[np.float64]:
        """Return the similarity of every layer of the first network with the second's.

        Returns:
            float64 [layers of the first, layers of the second]; 1 for equal ones, about 0
            for independent ones, which noise may take below 0.

        Raises:
            ValueError: There were fewer than four images, or the outputs of a layer do
                not differ between images; the error names the layers.
        """
        return alignment(self.sums(), *self._names)


def alignment(
    sums: NDArray[np.float64], ours: Sequence[str], theirs: Sequence[str]
) -> NDArray[np.float64]:
    """Return the linear CKA of layers from sums of their HSIC; see `LinearCKA.matrix`.

    Args:
        sums: What `LinearCKA.sums` returned, or the sum of several of them.
        ours: Names of the layers of the first network.
        theirs: Names of those of the second.

    Raises:
        ValueError: The outputs of a layer do not differ between images.
    """
    scale = np.diag(sums)
    _refuse_constant([*ours, *theirs], scale)
    split, root = len(ours), np.sqrt(scale)
    found: NDArray[np.float64] = sums[:split, split:] / np.outer(
        root[:split], root[split:]
    )
    return found


class SVCCA:
    """Mean canonical correlation of the leading principal components of two layers.

    Maps [n, C, H, W] are averaged over their positions, tokens [n, T, D] over the tokens.

    Args:
        variance: Share of each layer's variance that its components keep, in (0, 1]; 1
            keeps all and gives the mean CCA.

    Source:
        Raghu et al. 2017.
    """

    def __init__(self, variance: float = 0.99) -> None:
        if not 0 < variance <= 1:
            raise ValueError(f"variance={variance} must be above 0 and at most 1")
        self.variance = variance
        self._count = 0
        self._layers: tuple[list[str], list[str]] = [], []
        self._shift: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._products: dict[tuple[int, int], Tensor] = {}

    def update(self, ours: Layers, theirs: Layers) -> None:
        """Add a batch; arguments and errors are those of `LinearCKA.update`."""
        pooled = [{k: pool(v) for k, v in each.items()} for each in (ours, theirs)]
        _check_batch(*pooled)
        values = [x for each in pooled for x in each.values()]
        split = len(ours)
        if not self._shift:  # Sums of what is nearly centred lose no digits.
            self._layers = list(ours), list(theirs)
            self._shift = [x.mean(0) for x in values]
            self._sums = [torch.zeros_like(shift) for shift in self._shift]
        values = [x - shift for x, shift in zip(values, self._shift, strict=True)]
        self._count += len(values[0])
        for i, x in enumerate(values):
            self._sums[i] += x.sum(0)
            others = [i, *range(split, len(values))] if i < split else [i]
            for j in others:
                product = x.T @ values[j]
                known = self._products.get((i, j))
                self._products[i, j] = product if known is None else known + product

    def matrix(self) -> NDArray[np.float64]:
        """Return the similarity of every layer of the first network with the second's.

        Returns:
            float64 [layers of the first, layers of the second], each in [0, 1].

        Raises:
            ValueError: There are too few images for the components of a pair of layers
                (the error says how many are needed), or the outputs of a layer do not
                differ between images.
        """
        ours, theirs = self._layers
        names = [*ours, *theirs]
        if not names:
            raise ValueError("SVCCA needs images")
        variances = [self._covariance(i, i) for i in range(len(names))]
        _refuse_constant(names, np.array([float(v.trace()) for v in variances]))
        parts = [self._components(v) for v in variances]
        found = np.empty((len(ours), len(theirs)))
        for i in range(len(ours)):
            for j in range(len(theirs)):
                other = len(ours) + j
                needed = parts[i].shape[1] + parts[other].shape[1] + 1
                if self._count < needed:
                    raise ValueError(
                        f"the canonical correlations of {names[i]} and {names[other]} need "
                        f"at least {needed} images, there are {self._count}: with fewer "
                        "they would be 1 whatever the layers; use more images, or keep "
                        "a smaller share of the variance"
                    )
                between = parts[i].T @ self._covariance(i, other) @ parts[other]
                found[i, j] = float(torch.linalg.svdvals(between).clamp(max=1).mean())
        return found

    def _covariance(self, i: int, j: int) -> Tensor:
        means = self._sums[i] / self._count, self._sums[j] / self._count
        return self._products[i, j] / self._count - torch.outer(*means)

    def _components(self, covariance: Tensor) -> Tensor:
        """Return the principal directions that are kept, scaled to unit variance."""
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0), vectors.flip(1)
        share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
        kept = int((share < self.variance - 1e-12).sum()) + 1
        kept = min(kept, int((values > 1e-10 * values[0]).sum()))
        return torch.div(vectors[:, :kept], values[:kept].sqrt())


def _flat(layers: Layers) -> dict[str, Tensor]:
    return {name: x.detach().flatten(1).double() for name, x in layers.items()}


def _size(batch: tuple[dict[str, Tensor], dict[str, Tensor]]) -> int:
    return len(next(iter(batch[0].values())))


def pool(x: Tensor) -> Tensor:
    """Average maps [n, C, H, W] and tokens [n, T, D] over positions, in float64."""
    x = x.detach().double()
    if x.dim() == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.dim() == 3 else x


def _check_batch(ours: Layers, theirs: Layers) -> None:
    counts = {name: len(x) for each in (ours, theirs) for name, x in each.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"layers have different numbers of images: {counts}")
    bad = [
        name
        for each in (ours, theirs)
        for name, x in each.items()
        if not bool(torch.isfinite(x).all())
    ]
    if bad:
        raise ValueError(f"activations of {', '.join(bad)} are not finite")


def _gram(x: Tensor) -> Tensor:
    """Return the products of all pairs of images without the diagonal, float64 [n, n].

    Centring changes nothing of what follows but its rounding.
    """
    x = x - x.mean(0)
    gram: Tensor = x @ x.T
    return gram.fill_diagonal_(0)


def _hsic(grams: Tensor) -> Tensor:
    """Return the unbiased HSIC of every pair of Gram matrices [L, n, n], float64 [L, L]."""
    n = grams.shape[1]
    flat, rows = grams.flatten(1), grams.sum(2)
    totals = rows.sum(1)
    return (
        flat @ flat.T
        + torch.outer(totals, totals) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (rows @ rows.T)
    ) / (n * (n - 3))


def _refuse_constant(names: list[str], scale: NDArray[np.float64]) -> None:
    constant = [name for name, value in zip(names, scale, strict=True) if not value > 0]
    if constant:
        raise ValueError(
            f"the outputs of {', '.join(constant)} do not differ between images, so that "
            "nothing is similar to them; leave these layers out"
        )
