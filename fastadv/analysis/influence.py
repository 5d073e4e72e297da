"""Influence of training images on test images, through the last layer of a network.

The influence of training image j on test image t is `g_t^T H^-1 g_j`, with the gradients g
of the cross-entropy of each image by the weights of the last layer, and the Hessian H of
the training loss (Koh and Liang 2017; Utrera et al. 2021, section 5). It estimates by how
much the loss of t grows when j is removed from training: a positive influence helps.

With an embedding h, u = [h; 1] and the softmax p, both have a closed form:

    g = (p - e_y) (x) u             H = sum_i (diag p_i - p_i p_i^T) (x) u_i u_i^T

The logits of all classes may be shifted together without any effect, so that H is singular
in that direction and no gradient has a part in it. All work is done in the C - 1 other
directions, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import scipy.special
from numpy.typing import NDArray

Array = NDArray[np.float64]

# A Hessian of at most this many rows is decomposed whole, in seconds.
_DENSE = 3000


@dataclass(frozen=True)
class LastLayer:
    """What the last layer of a network read and predicted.

    Attributes:
        inputs: Embeddings followed by a one, float64 [n, D + 1].
        probabilities: Softmax of the logits, float64 [n, C].
        labels: Classes of the images, int64 [n].
    """

    inputs: Array
    probabilities: Array
    labels: NDArray[np.int64]

    @classmethod
    def from_embeddings(
        cls,
        embeddings: NDArray[np.floating],
        labels: NDArray[np.int64],
        weight: NDArray[np.floating],
        bias: NDArray[np.floating] | None = None,
    ) -> LastLayer:
        """Apply a linear layer to embeddings.

        Args:
            embeddings: Embeddings, [n, D].
            labels: Classes, int64 [n], each in [0, C).
            weight: Weights of the layer, [C, D].
            bias: Its bias, [C]; None means zeros.

        Raises:
            ValueError: Shapes do not fit together, an embedding is not finite (the error
                says how many are not), or a label is no class.
        """
        h, w = np.asarray(embeddings, np.float64), np.asarray(weight, np.float64)
        if h.ndim != 2 or w.ndim != 2 or h.shape[1] != w.shape[1] or not len(h):
            raise ValueError(
                f"embeddings of shape {h.shape} do not fit weights of shape {w.shape}; "
                "they must be [n, D] and [C, D], with n >= 1"
            )
        if len(labels) != len(h):
            raise ValueError(f"there are {len(h)} embeddings and {len(labels)} labels")
        finite = np.isfinite(h).all(1)
        if not finite.all():
            raise ValueError(
                f"{int((~finite).sum())} of {len(h)} embeddings are not finite, the "
                f"first at position {int(np.argmin(finite))}; the network overflows"
            )
        if labels.min() < 0 or labels.max() >= len(w):
            raise ValueError(
                f"labels reach from {labels.min()} to {labels.max()}; the layer has "
                f"classes 0 to {len(w) - 1}"
            )
        logits = h @ w.T + (0 if bias is None else np.asarray(bias, np.float64))
        probabilities = np.exp(logits - scipy.special.logsumexp(logits, 1)[:, None])
        return cls(np.column_stack([h, np.ones(len(h))]), probabilities, labels)

    def residuals(self) -> Array:
        """Return p - e_y in the C - 1 directions that matter, [n, C - 1]."""
        found = self.probabilities.copy()
        found[np.arange(len(found)), self.labels] -= 1
        return found @ _contrasts(found.shape[1])


def _contrasts(classes: int) -> Array:
    """Return an orthonormal basis of the vectors that sum to zero, [C, C - 1]."""
    return np.asarray(scipy.linalg.helmert(classes).T)


class Hessian:
    """The Hessian of the summed cross-entropy by the weights of the last layer.

    Vectors of parameters have (C - 1) D' components: for each direction in which classes
    differ, a weight of each input.

    Args:
        train: The training images.
    """

    def __init__(self, train: LastLayer) -> None:
        self.inputs = train.inputs
        self.basis = _contrasts(train.probabilities.shape[1])
        self.probabilities = train.probabilities
        self.shape = (self.basis.shape[1], self.inputs.shape[1])

    @property
    def size(self) -> int:
        """The number of rows, which is that of columns."""
        return int(np.prod(self.shape))

    def times(self, vector: Array) -> Array:
        """Return the product with a vector, [(C - 1) D'], without forming the Hessian."""
        scores = self.inputs @ vector.reshape(self.shape).T @ self.basis.T
        scores *= self.probabilities
        scores -= self.probabilities * scores.sum(1, keepdims=True)
        return np.asarray((self.inputs.T @ (scores @ self.basis)).T.ravel())

    def dense(self) -> Array:
        """Return the matrix, [(C - 1) D', (C - 1) D']; only its lower half is filled."""
        rows, width = self.shape
        p, basis = self.probabilities, self.basis
        centred = p @ basis
        matrix = np.zeros((self.size, self.size), order="F")
        for i in range(rows):
            for j in range(i + 1):
                weights = (
                    p @ (basis[:, i] * basis[:, j]) - centred[:, i] * centred[:, j]
                )
                matrix[i * width : (i + 1) * width, j * width : (j + 1) * width] = (
                    self.inputs * weights[:, None]
                ).T @ self.inputs
        return matrix

    def largest(self, cutoff: float) -> tuple[Array, Array]:
        """Return the eigenvalues above `cutoff` times the largest, and their vectors.

        Returns:
            The eigenvalues, float64 [k], and the eigenvectors, float64 [(C - 1) D', k].
        """
        if self.size <= _DENSE:
            values, vectors = scipy.linalg.eigh(self.dense(), lower=True)
        else:
            values, vectors = self._lanczos(cutoff)
        kept = values > cutoff * values.max()
        return values[kept], vectors[:, kept]

    def _lanczos(self, cutoff: float) -> tuple[Array, Array]:
        """Return the largest eigenpairs, as many as reach below the cutoff."""
        operator = scipy.sparse.linalg.LinearOperator(
            (self.size, self.size), matvec=self.times, dtype=np.float64
        )
        start = np.random.default_rng(0).standard_normal(self.size)
        count = 32
        while count < self.size // 4:
            values, vectors = scipy.sparse.linalg.eigsh(
                operator, k=count, which="LA", v0=start
            )
            if values.min() <= cutoff * values.max():
                return values, vectors
            count *= 3
        values, vectors = scipy.linalg.eigh(self.dense(), lower=True, overwrite_a=True)
        return values, vectors


def influence(
    train: LastLayer,
    test: LastLayer,
    *,
    cutoff: float = 0.05,
    damping: float | None = None,
) -> Array:
    """Compute the influence of every training image on every test image.

    Args:
        train: Training images of the last layer.
        test: Test images, of the same layer.
        cutoff: Eigenvalues of the Hessian at or below this share of the largest count as
            zero in the pseudo-inverse, in (0, 1); 0.05 as published.
        damping: Number above 0 that is added to the diagonal of the Hessian, whose whole
            inverse is then used; None for the pseudo-inverse. An L2 penalty of the
            training loss summed over images, `damping / 2 * |w|^2`, is one.

    Returns:
        float64 [n_test, n_train]; positive where the training image lowers the loss of
        the test image.

    Raises:
        ValueError: The layers do not fit together, a parameter is out of range, or the
            Hessian is zero, or stays singular with the damping.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> h, y = rng.standard_normal((20, 3)), np.arange(20) % 4
        >>> layer = LastLayer.from_embeddings(h, y, rng.standard_normal((4, 3)))
        >>> found = influence(layer, layer)
        >>> found.shape, bool((found.diagonal() >= 0).all())
        ((20, 20), True)
    """
    if train.inputs.shape[1] != test.inputs.shape[1] or (
        train.probabilities.shape[1] != test.probabilities.shape[1]
    ):
        raise ValueError(
            f"training images have embeddings of {train.inputs.shape[1] - 1} numbers and "
            f"{train.probabilities.shape[1]} classes, test images of "
            f"{test.inputs.shape[1] - 1} and {test.probabilities.shape[1]}; both must "
            "come from one network"
        )
    if not 0 < cutoff < 1:
        raise ValueError(f"cutoff={cutoff} must be above 0 and below 1")
    if damping is not None and not 0 < damping < np.inf:
        raise ValueError(f"damping={damping} must be a number above 0, or None")
    train, test = _in_row_space(train, test)
    hessian = Hessian(train)
    _refuse_zero(train)
    if damping is None:
        values, vectors = hessian.largest(cutoff)
        right = _project(train, vectors, hessian.shape)
        return np.asarray((_project(test, vectors, hessian.shape) / values) @ right.T)
    matrix = hessian.dense()
    matrix[np.diag_indices(hessian.size)] += damping
    try:
        factor = scipy.linalg.cho_factor(matrix, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"damping={damping:g} is too small: the Hessian stays singular to rounding; "
            "use a larger one, or none for the pseudo-inverse"
        ) from None
    gradients = np.asfortranarray(
        (train.residuals()[:, :, None] * train.inputs[:, None, :])
        .reshape(len(train.labels), -1)
        .T
    )
    solved = scipy.linalg.cho_solve(factor, gradients, overwrite_b=True)
    return _project(test, solved, hessian.shape)


def _project(layer: LastLayer, vectors: Array, shape: tuple[int, int]) -> Array:
    """Return the products of every image's gradient with vectors, [n, k]."""
    residuals = layer.residuals()
    found = np.zeros((len(residuals), vectors.shape[1]))
    for index, of_class in enumerate(vectors.reshape(*shape, -1)):
        found += residuals[:, index, None] * (layer.inputs @ of_class)
    return found


def _in_row_space(train: LastLayer, test: LastLayer) -> tuple[LastLayer, LastLayer]:
    """Express inputs in a basis of the training inputs, where that is narrower.

    The gradients of training images have no part outside of it.
    """
    count, width = train.inputs.shape
    if count >= width:
        return train, test
    basis = np.linalg.qr(train.inputs.T)[0]
    return tuple(  # type: ignore[return-value]
        replace(layer, inputs=layer.inputs @ basis) for layer in (train, test)
    )


def _refuse_zero(train: LastLayer) -> None:
    p = train.probabilities
    if (p * (1 - p)).max() < 1e-12:
        raise ValueError(
            "the network is certain of every training image (all its probabilities are 0 "
            "or 1), so that the Hessian is zero and has no inverse; use a network that "
            "was trained with weight decay, or other images"
        )
