"""How a network is fine-tuned: optimiser, learning rates and training method. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastadv.errors import ConfigError
from fastadv.extensions import name_of
from fastadv.flags import NormName, Pairs, Pixels, arg
from fastadv.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Checked, Range
from fastadv.training.method_config import METHODS, MethodConfig, MethodName, entry_of
from fastadv.training.optimizer_config import OptimizerName, ScheduleName

# Choices of fine-tuning and of the sgd solver; None stands for what the protocol says.
SGD_CHOICES = (
    "epochs", "batch_size", "lrs", "momentum", "weight_decay", "schedule", "warmup_epochs",
)  # fmt: skip
# Choices of fine-tuning alone.
TUNING_CHOICES = ("optimizer", "lrs_head", "lrs_trunk")
_OF_ATTACK = (
    "eps", "num_steps", "beta", "step_size", "random_start", "num_restarts",
    "method_option",
)  # fmt: skip
_PUBLISHED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class TuningConfig(Checked):
    """The choices of fine-tuning. None stands for what the protocol says."""

    epochs: Annotated[int | None, AT_LEAST_1] = None
    """Number of epochs of SGD. Default: 150; with utrera2021 100 up to 1,600 images, with
    zhang2023 90."""
    batch_size: Annotated[int | None, AT_LEAST_1] = None
    """Batch size of SGD. Default: 64; with utrera2021 and zhang2023 128."""
    optimizer: OptimizerName | None = None
    """Optimiser of networks that train. Default: sgd; with zhang2023 adam."""
    lrs: Annotated[tuple[float, ...] | None, ABOVE_0] = None
    """Learning rates to choose from. Default: 0.01 and 0.001, for scratch 0.1 and 0.01,
    for adaptive optimisers 0.001 and 0.0001; with utrera2021 0.1, with zhang2023 3e-4."""
    lrs_head: Annotated[
        tuple[float, ...] | None, ABOVE_0, arg(aliases=["--lr-head"])
    ] = None
    """Learning rates of the head to choose from, where it has another than the trunk;
    each is tried with each of --lrs-trunk. Both replace --lrs."""
    lrs_trunk: Annotated[
        tuple[float, ...] | None, ABOVE_0, arg(aliases=["--lr-trunk"])
    ] = None
    """Learning rates of all that trains but the head; see --lrs-head."""
    schedule: ScheduleName | None = None
    """Learning rate over the epochs; step multiplies it by 0.1 after each third. Default:
    step; with zhang2023 cosine."""
    warmup_epochs: Annotated[int | None, AT_LEAST_0] = None
    """Number of epochs at the beginning over which the learning rate rises linearly from
    0; the schedule covers the rest. Default: 0."""
    momentum: Annotated[float | None, Range(0, 1)] = None
    """Momentum of SGD; beta1 of adaptive optimisers. Default: 0.9."""
    weight_decay: Annotated[float | None, AT_LEAST_0] = None
    """Weight decay. Default: 5e-4; with zhang2023 0."""
    method: MethodName = "standard"
    """Training method; all but standard fine-tune adversarially. MODULE:NAME imports a method
    of your own; so does a name that an installed package adds."""
    method_option: Pairs = ()
    """Parameter KEY=NUMBER of a method of your own."""
    norm: NormName = "l2"
    """Norm of --eps and --robust-eps."""
    eps: Pixels | None = None
    """Radius of adversarial fine-tuning in [0, 1] pixel units. Default: 3 for l2, 4/255 for
    linf."""
    num_steps: Annotated[int | None, AT_LEAST_1, arg(aliases=["--attack-steps"])] = None
    """Number of attack steps of adversarial fine-tuning. Default: that of the method."""
    step_size: Annotated[Pixels | None, arg(aliases=["--attack-lr"])] = None
    """Length of a step of that attack in [0, 1] pixel units. Default: that of the method;
    for pgd_at 2/3 of eps in up to three steps, and in more 2.5 eps / num_steps from a
    random start."""
    random_start: bool = False
    """Begin that attack at a random point of the ball."""
    num_restarts: Annotated[int, AT_LEAST_1] = 1
    """Number of random starts of that attack per update, of which the worst counts."""
    beta: Annotated[float | None, ABOVE_0] = None
    """Weight of the second term of trades, mart, gradalign and discrepancy. Default: that
    of the method."""

    def check_method(self) -> None:
        """Refuse choices that do not go with the training method.

        Raises:
            ConfigError: A value that the method does not use, or that cannot work.
        """
        object.__setattr__(self, "method", name_of(self.method, METHODS, "methods"))
        if self.method == "standard":
            for name in _OF_ATTACK:
                if getattr(self, name) != getattr(TuningConfig, name):
                    raise ConfigError(
                        f"`{name}` belongs to adversarial fine-tuning; add "
                        "`method=pgd_at`, or another method that attacks"
                    )
        # Building it raises where the method does not go with its parameters.
        _ = self.method_config

    @property
    def method_config(self) -> MethodConfig | None:
        """The method of adversarial fine-tuning; None trains in the standard way.

        Raises:
            ConfigError: The method does not go with its parameters.
        """
        if self.method == "standard":
            return None
        # In more steps than were published, it begins at a random point, as is usual.
        longer = self.method == "pgd_at" and (self.num_steps or 0) > _PUBLISHED_STEPS
        return MethodConfig(
            method=self.method,
            method_option=self.method_option,
            norm=self.norm,
            eps=self.eps,
            num_steps=self.num_steps,
            step_size=self.step_size,
            random_start=self.random_start or (longer and self.step_size is None),
            num_restarts=self.num_restarts,
            beta=self.beta,
            # Trunks may be frozen, with the statistics of their source.
            bn_mode="eval" if entry_of(self.method).bn_mode else None,
        )
