"""The operands of a step and of a random start, as every backend receives them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

IMAGES = ("x", "x_prev", "x0", "grad", "z")


@dataclass(frozen=True)
class Step:
    """One projected ascent step, or one step of APGD if there is an `x_prev`.

    `fastadv.kernels.pgd_step_` and `apgd_step_` describe what the operands mean.

    Attributes:
        x: State [N, C, H, W]; the step overwrites it.
        x0: Clean images, like `x`.
        grad: Gradient with respect to the normalised input, like `x`.
        step_size: Step size of each sample in pixel units, float [N].
        eps: Radius of each sample in pixel units, float [N].
        mean: Mean of each channel in pixel units, float [C].
        std: Standard deviation of each channel in pixel units, float [C].
        norm: `"linf"` or `"l2"`.
        z: Next normalised input, like `x`; the step overwrites it. None writes nothing.
        nonfinite: int64 [1] counter of ignored elements; None counts nothing.
        x_prev: Iterate before `x`; the step overwrites it. None makes a PGD step.
        momentum: Weight of the new direction in [0, 1]; PGD has no use for it.
    """

    x: Tensor
    x0: Tensor
    grad: Tensor
    step_size: Tensor
    eps: Tensor
    mean: Tensor
    std: Tensor
    norm: str
    z: Tensor | None = None
    nonfinite: Tensor | None = None
    x_prev: Tensor | None = None
    momentum: float = 1.0

    @property
    def op(self) -> str:
        """Name of the operator, as launch counts and error messages give it."""
        return "pgd_step" if self.x_prev is None else "apgd_step"

    def images(self) -> dict[str, Tensor]:
        """Return the image tensors that are present, [N, C, H, W] each, by their names."""
        found = vars(self)
        return {name: found[name] for name in IMAGES if found[name] is not None}


@dataclass(frozen=True)
class Start:
    """The random start of an attack; see `fastadv.kernels.ball_init`.

    Attributes:
        x0: Clean images [N, C, H, W].
        eps: Radius of each sample in pixel units, float [N].
        norm: `"linf"` or `"l2"`.
        seed: Key of the random numbers, counted modulo 2^64.
        offset: Number of the first sample.
    """

    x0: Tensor
    eps: Tensor
    norm: str
    seed: int
    offset: int
