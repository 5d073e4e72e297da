"""The setting of each kind of result, as typed records.

To add a kind, write a frozen dataclass here (or beside its experiment) with a class
attribute `kind`, a `key` and a `label`, and add it to `KINDS`. Each kind is one struct
column of the stored table, named by `kind`. A field that is added later needs a default,
which rows written before it are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

_MODE_LABELS = {
    "fixed_feature": "fixed features",
    "full_network": "full network",
    "scratch": "from scratch",
}


class Setting(Protocol):
    """How a number was obtained, apart from its source and its target."""

    kind: ClassVar[str]

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers of this kind to be compared.

        What was chosen by the experiment itself and the number of training images are
        left out: they vary within one setting.
        """

    def label(self) -> str:
        """Return a short description for people; no code reads it."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A named number, for example a parameter of a training method."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class MethodRecord:
    """The training method of a network that was fine-tuned on adversarial images.

    Attributes:
        name: Name of the method, for example `pgd_at`.
        norm: Norm of the attack, `l2` or `linf`.
        eps: Radius in pixel units.
        num_steps: Steps of the attack.
        parameters: What the method takes besides the attack, for example `beta`.
    """

    name: str
    norm: str
    eps: float
    num_steps: int
    parameters: tuple[Parameter, ...] = ()

    def __str__(self) -> str:
        more = "".join(f", {p.name} {p.value:g}" for p in self.parameters)
        return f"{self.name}, {self.norm} {self.eps:g}, {self.num_steps} steps{more}"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation that inputs were normalised by.

    Attributes:
        mean: One value per channel, for pixels in [0, 1].
        std: One value per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TransferSetting:
    """How a source was transferred to a target.

    Attributes:
        mode: What trained: `fixed_feature`, `full_network`, `last_k_blocks` or `scratch`.
        k_blocks: Number of trained blocks before the head, in mode `last_k_blocks`.
        protocol: Where the settings came from, for example `salman2020`.
        select_on: What hyper-parameters were chosen on: `val`, `test` or `none`.
        solver: `lbfgs` or `sgd` for a head on cached features; None for a network that
            trained.
        num_train: Number of images trained on.
        num_val: Number of images held out to choose hyper-parameters.
        num_pool: Number of images asked for: `num_train + num_val`.
        num_available: Number of training images the target has; None if unknown.
        val_fraction: Share of the training images to hold out, as it was asked for.
        augment: Augmentation in training.
        epochs: Epochs of SGD; None where there were none.
        published_epochs: Epochs that the protocol publishes for this number of images;
            None where its epochs do not depend on that number.
        batch_size: Batch size of SGD.
        lrs: Learning rates that were tried.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        schedule: When the learning rate falls by ten: `thirds` of the epochs, or
            `floored_thirds` (every `epochs // 3` epochs).
        frozen_bn: Mode of the BatchNorm of frozen layers, `eval` or `train`.
        select_every: Number of epochs between evaluations of which the best counts; None
            if the last epoch counts.
        statistics: What inputs were normalised by; None for the source's own.
        freeze_by_name: Whether layers were frozen by their names.
        normal_head: Whether the weights of the head began as N(0, 1).
        precision: `fp32`, `bf16` or `fp16`, of a network that trained.
        method: Training method; None for standard training.
        depends_on_seed: Whether another seed could give another number.
        chosen_c: Inverse regularisation strength that was chosen (`lbfgs`).
        chosen_lr: Learning rate that was chosen.
        chosen_epoch: Epoch that was chosen, counted from 1.
    """

    kind: ClassVar[str] = "transfer"

    mode: str
    k_blocks: int | None = None
    protocol: str
    select_on: str
    solver: str | None = None
    num_train: int
    num_val: int
    num_pool: int
    num_available: int | None = None
    val_fraction: float | None = None
    augment: str | None = None
    epochs: int | None = None
    published_epochs: int | None = None
    batch_size: int | None = None
    lrs: tuple[float, ...] = ()
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    frozen_bn: str | None = None
    select_every: int | None = None
    statistics: Statistics | None = None
    freeze_by_name: bool | None = None
    normal_head: bool | None = None
    precision: str | None = None
    method: MethodRecord | None = None
    depends_on_seed: bool = True
    chosen_c: float | None = None
    chosen_lr: float | None = None
    chosen_epoch: int | None = None

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
        return ", ".join(self._phrases())

    def _phrases(self) -> Iterator[str]:
        if self.mode == "last_k_blocks":
            named = {0: "head only", 1: "last block"}
            yield named.get(self.k_blocks or 0, f"last {self.k_blocks} blocks")
        else:
            yield _MODE_LABELS.get(self.mode, self.mode)
        if self.protocol != "fastadv":
            yield f"protocol {self.protocol}"
        if self.solver == "sgd":
            yield "SGD"
        if self.method is not None:
            yield str(self.method)


@dataclass(frozen=True, kw_only=True)
class EvaluationSetting:
    """Which images a network was evaluated on, and how they were prepared.

    Attributes:
        split: Split of the data set, for example `test`.
        num_images: Size of the stratified, seeded subset that was asked for; None for
            all images.
        augment: Augmentation of the network's training, which decides how images are
            cropped for evaluation.
        batch_size: Images per batch.
        checked: Whether the network was checked for what makes robust accuracies
            misleading.
    """

    kind: ClassVar[str] = "evaluation"

    split: str = "test"
    num_images: int | None = None
    augment: str | None = None
    batch_size: int | None = None
    checked: bool = False

    def key(self) -> tuple[Any, ...]:
        """Return the images and their preparation; the batch size does not count."""
        return self.split, self.num_images, self.augment

    def label(self) -> str:
        """Return which images were evaluated."""
        if self.num_images is None:
            return f"all {self.split} images"
        return f"{self.num_images} {self.split} images"


KINDS: dict[str, type[TransferSetting] | type[EvaluationSetting]] = {
    setting.kind: setting for setting in (TransferSetting, EvaluationSetting)
}
