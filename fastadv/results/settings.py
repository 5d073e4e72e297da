"""The setting of each kind of result, as typed records.

To add a kind, write a frozen dataclass here (or beside its experiment) and add it to
`Setting` and `KINDS`. It has:

* a class attribute `kind`, which names its struct column in the stored table;
* a method `key`: what must be equal for two numbers of this kind to be compared. What was
  chosen by the experiment itself and the number of training images are left out, since
  they vary within one setting;
* a method `label`: a short description for people, which no code reads.

A field that is added later needs a default, which rows written before it are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from fastadv.results.analysis_settings import InfluenceSetting, SimilaritySetting

_MODE_LABELS = {
    "fixed_feature": "fixed features",
    "full_network": "full network",
    "scratch": "from scratch",
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A named number, for example a parameter of a training method."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class MethodRecord:
    """The training method of a network that was fine-tuned on adversarial images."""

    name: str  # Name of the method, for example `pgd_at`.
    norm: str  # Norm of the attack, `l2` or `linf`.
    eps: float  # Radius in pixel units.
    num_steps: int  # Steps of the attack.
    # What the method takes besides the attack, for example `beta`.
    parameters: tuple[Parameter, ...] = ()

    def __str__(self) -> str:
        more = "".join(f", {p.name} {p.value:g}" for p in self.parameters)
        return f"{self.name}, {self.norm} {self.eps:g}, {self.num_steps} steps{more}"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation that inputs were normalised by."""

    mean: tuple[float, ...]  # One value per channel, for pixels in [0, 1].
    std: tuple[float, ...]  # One value per channel.


@dataclass(frozen=True, kw_only=True)
class TransferSetting:
    """How a source was transferred to a target."""

    kind: ClassVar[str] = "transfer"

    # What trained: `fixed_feature`, `full_network`, `last_k_blocks` or `scratch`.
    mode: str
    k_blocks: int | None = None  # Trained blocks before the head, in `last_k_blocks`.
    protocol: str  # Where the settings came from, for example `salman2020`.
    select_on: str  # What chose hyper-parameters: `val`, `test` or `none`.
    # `lbfgs` or `sgd` for a head on cached features; None for a network that trained.
    solver: str | None = None
    num_train: int  # Number of images trained on.
    num_val: int  # Number of images held out to choose hyper-parameters.
    num_pool: int  # Number of images to use: `num_train + num_val`.
    num_available: int | None = None  # Training images of the target; None if unknown.
    val_fraction: float | None = None  # Share of training images asked to be held out.
    augment: str | None = None  # Augmentation in training.
    epochs: int | None = None  # Epochs of SGD; None where there were none.
    # Epochs that the protocol publishes for this number of images; None where its epochs
    # do not depend on that number.
    published_epochs: int | None = None
    batch_size: int | None = None  # Batch size of SGD.
    lrs: tuple[float, ...] = ()  # Learning rates that were tried.
    momentum: float | None = None  # Momentum of SGD.
    weight_decay: float | None = None  # Weight decay of SGD.
    # When the learning rate falls by ten: `thirds` of the epochs, or `floored_thirds`
    # (every `epochs // 3` epochs).
    schedule: str | None = None
    frozen_bn: str | None = None  # Mode of frozen layers' BatchNorm, `eval` or `train`.
    # Epochs between evaluations of which the best counts; None if the last epoch counts.
    select_every: int | None = None
    statistics: Statistics | None = None  # What normalised inputs; None: its own.
    freeze_by_name: bool | None = None  # Whether layers were frozen by their names.
    normal_head: bool | None = None  # Whether the head's weights began as N(0, 1).
    precision: str | None = None  # `fp32`, `bf16` or `fp16`, of a network that trained.
    method: MethodRecord | None = None  # Training method; None for standard training.
    depends_on_seed: bool = True  # Whether another seed could give another number.
    chosen_c: float | None = None  # Inverse regularisation that was chosen (`lbfgs`).
    chosen_lr: float | None = None  # Learning rate that was chosen.
    chosen_epoch: int | None = None  # Epoch that was chosen, counted from 1.

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers to be compared.

        A learning rate counts where nothing was chosen, the share of validation images
        where they chose. Epochs do not count where they are the number the protocol
        publishes for so many images, so that a curve over that number is one setting.
        """
        as_published = self.epochs is not None and self.epochs == self.published_epochs
        return (
            self.mode,
            self.k_blocks,
            self.protocol,
            self.select_on,
            self.solver,
            self.val_fraction if self.select_on == "val" else None,
            self.augment,
            None if as_published else self.epochs,
            self.batch_size,
            self.chosen_lr if self.select_on == "none" else None,
            self.momentum,
            self.weight_decay,
            self.schedule,
            self.frozen_bn,
            self.select_every,
            self.statistics,
            self.freeze_by_name,
            self.normal_head,
            self.precision,
            self.method,
        )

    def label(self) -> str:
        """Return what trained, and the protocol, solver and method that are not usual."""
        if self.mode == "last_k_blocks":
            named = {0: "head only", 1: "last block"}
            phrases = [named.get(self.k_blocks or 0, f"last {self.k_blocks} blocks")]
        else:
            phrases = [_MODE_LABELS.get(self.mode, self.mode)]
        if self.protocol != "fastadv":
            phrases.append(f"protocol {self.protocol}")
        if self.solver == "sgd":
            phrases.append("SGD")
        if self.method is not None:
            phrases.append(str(self.method))
        return ", ".join(phrases)


@dataclass(frozen=True, kw_only=True)
class EvaluationSetting:
    """Which images a network was evaluated on, and how they were prepared."""

    kind: ClassVar[str] = "evaluation"

    split: str = "test"  # Split of the data set.
    # Size of the stratified, seeded subset to evaluate on; None for all images.
    num_images: int | None = None
    # Augmentation of the network's training, which decides how images are cropped.
    augment: str | None = None
    batch_size: int | None = None  # Images per batch.
    # Whether the network was checked for what makes robust accuracies misleading.
    checked: bool = False

    def key(self) -> tuple[Any, ...]:
        """Return the images and their preparation; the batch size does not count."""
        return self.split, self.num_images, self.augment

    def label(self) -> str:
        """Return which images were evaluated."""
        if self.num_images is None:
            return f"all {self.split} images"
        return f"{self.num_images} {self.split} images"


Setting = TransferSetting | EvaluationSetting | InfluenceSetting | SimilaritySetting
KINDS: dict[str, type[Setting]] = {kind.kind: kind for kind in get_args(Setting)}
