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

from fastadv.preparation import Preparation
from fastadv.results.analysis_settings import (
    InfluenceSetting,
    ManipulationSetting,
    ShapeSetting,
    SimilaritySetting,
)
from fastadv.results.detection_settings import DetectionSetting
from fastadv.results.seeing_settings import (
    GradientSetting,
    InversionSetting,
    VisualizationSetting,
)
from fastadv.results.shift_settings import (
    CalibrationSetting,
    CorruptionErrorSetting,
    EffectiveSetting,
    ShiftSetting,
)
from fastadv.results.vulnerability_settings import (
    UniversalSetting,
    VulnerabilitySetting,
)

_MODE_LABELS = {
    "fixed_feature": "fixed features",
    "full_network": "full network",
    "scratch": "from scratch",
}


def mode_label(mode: str, k_blocks: int) -> str:
    """Describe what trains in a mode; `k_blocks` is the number of `last_k_blocks`."""
    if mode == "last_k_blocks":
        named = {0: "head only", 1: "last block"}
        return named.get(k_blocks, f"last {k_blocks} blocks")
    return _MODE_LABELS.get(mode, mode)


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
    # Length of a step in pixel units; None for that of the method, for example 2/3 of
    # the radius for `pgd_at`.
    step_size: float | None = None
    # Whether the attack began at a random point of the ball.
    random_start: bool = False
    num_restarts: int = 1  # Number of starts per update, of which the worst counts.
    # What the method takes besides the attack, for example `beta`.
    parameters: tuple[Parameter, ...] = ()
    # Standard deviation of the noise that the attack begins with, in pixel units, where it
    # is not the 0.001 of older rows.
    start_noise: float | None = None

    def __str__(self) -> str:
        more = "".join(f", {p.name} {p.value:g}" for p in self.parameters)
        size = f" of {self.step_size:g}" if self.step_size is not None else ""
        start = ", random start" if self.random_start else ""
        tries = f", {self.num_restarts} restarts" if self.num_restarts > 1 else ""
        steps = f"{self.num_steps} steps{size}{start}{tries}"
        return f"{self.name}, {self.norm} {self.eps:g}, {steps}{more}"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation that inputs were normalised by."""

    mean: tuple[float, ...]  # One value per channel, for pixels in [0, 1].
    std: tuple[float, ...]  # One value per channel.


# What the key of a transfer holds, in order; `fixed` is what was not chosen.
_COMPARED = (
    "mode", "k_blocks", "protocol", "select_on", "select_by", "refit", "subset", "solver",
    "val_fraction", "augment", "epochs", "batch_size", "fixed", "optimizer", "momentum",
    "weight_decay", "schedule", "warmup_epochs", "frozen_bn", "select_every", "statistics",
    "freeze_by_name", "normal_head", "precision", "method",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TransferSetting:
    """How a source was transferred to a target."""

    kind: ClassVar[str] = "transfer"

    # What trained: `fixed_feature`, `full_network`, `last_k_blocks` or `scratch`.
    mode: str
    k_blocks: int | None = None  # Trained blocks before the head, in `last_k_blocks`.
    protocol: str  # Where the settings came from, for example `salman2020`.
    select_on: str  # What chose hyper-parameters: `val`, `test` or `none`.
    # Accuracy on those images that chose: `clean`, or `robust` for that under attack.
    select_by: str = "clean"
    # Whether, after the choice, the network was fitted again to all `num_pool` images.
    refit: bool = False
    # `lbfgs` or `sgd` for a head on cached features; None for a network that trained.
    solver: str | None = None
    num_train: int  # Number of images trained on, before a refit to all of the pool.
    num_val: int  # Number of images held out to choose hyper-parameters.
    num_pool: int  # Number of images to use: `num_train + num_val`.
    num_available: int | None = None  # Training images of the target; None if unknown.
    # How a part of the training images was drawn: `stratified`, or `random` with at least
    # one image of each class.
    subset: str = "stratified"
    val_fraction: float | None = None  # Share of training images asked to be held out.
    augment: str | None = None  # Augmentation in training.
    # How images that are not augmented were resized and cropped; None: the usual way
    # after the augmentation of the protocol or the data set.
    preparation: Preparation | None = None
    chose_preparation: bool = False  # Whether flags chose it, and not the source.
    epochs: int | None = None  # Epochs of SGD; None where there were none.
    # Epochs that the protocol publishes for this number of images; None where its epochs
    # do not depend on that number.
    published_epochs: int | None = None
    batch_size: int | None = None  # Batch size of SGD.
    optimizer: str = "sgd"  # Name of the optimiser.
    lrs: tuple[float, ...] = ()  # Learning rates that were tried.
    # Learning rates of the head that were tried; empty where all of the network has one.
    lrs_head: tuple[float, ...] = ()
    strengths: tuple[float, ...] = ()  # Values of C tried; empty for the usual ones.
    momentum: float | None = None  # Momentum of SGD; beta1 of adaptive optimisers.
    weight_decay: float | None = None  # Weight decay of the optimiser.
    # When the learning rate falls by ten: `thirds` of the epochs, or `floored_thirds`
    # (every `epochs // 3` epochs); or how it changes, for example `cosine`.
    schedule: str | None = None
    warmup_epochs: int = 0  # Epochs over which the learning rate rose linearly.
    frozen_bn: str | None = None  # Mode of frozen layers' BatchNorm, `eval` or `train`.
    # Epochs between evaluations of which the best counts; None if the last epoch counts.
    select_every: int | None = None
    statistics: Statistics | None = None  # What normalised inputs; None: its own.
    freeze_by_name: bool | None = None  # Whether layers were frozen by their names.
    normal_head: bool | None = None  # Whether the head's weights began as N(0, 1).
    # `fp32`, `bf16` or `fp16`, of a network that trained; with `, inputs fp32` where small
    # perturbations needed that.
    precision: str | None = None
    method: MethodRecord | None = None  # Training method; None for standard training.
    depends_on_seed: bool = True  # Whether another seed could give another number.
    chosen_c: float | None = None  # Inverse regularisation that was chosen (`lbfgs`).
    chosen_lr: float | None = None  # Learning rate that was chosen.
    chosen_lr_head: float | None = None  # Learning rate of the head that was chosen.
    chosen_epoch: int | None = None  # Epoch that was chosen, counted from 1.

    def key(self) -> tuple[Any, ...]:
        """Return what must be equal for two numbers to be compared.

        Learning rates and C count where nothing was chosen, the share of validation
        images where they chose. Epochs do not count where they are the number the protocol
        publishes for so many images, so that a curve over that number is one setting.
        """
        as_published = self.epochs is not None and self.epochs == self.published_epochs
        fixed = (self.chosen_lr, self.chosen_lr_head, self.chosen_c)
        values = vars(self) | {
            "val_fraction": self.val_fraction if self.select_on == "val" else None,
            "epochs": None if as_published else self.epochs,
            "fixed": fixed if self.select_on == "none" else None,
        }
        prepared = (self.preparation,) if self.chose_preparation else ()
        return (*(values[name] for name in _COMPARED), *prepared)

    def label(self) -> str:
        """Return what trained, and the protocol, solver and method that are not usual."""
        phrases = [mode_label(self.mode, self.k_blocks or 0)]
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
    # Augmentation of the network's training; how images are cropped follows from it where
    # `preparation` is None.
    augment: str | None = None
    # How images were resized and cropped; None: the usual way after `augment`.
    preparation: Preparation | None = None
    chose_preparation: bool = False  # Whether flags chose it, and not the source.
    batch_size: int | None = None  # Images per batch.
    # Whether the network was checked for what makes robust accuracies misleading.
    checked: bool = False
    # Hash of the outputs that stand for each class; None where these are the classes.
    class_map: str | None = None
    left_out: int = 0  # Number of classes of the data that the network does not know.
    # Whether it chose among all of its outputs, and not those of the classes alone.
    all_outputs: bool = False

    def key(self) -> tuple[Any, ...]:
        """Return the images and what flags chose of their preparation.

        Each network is prepared for as it expects, so that does not count, and neither
        does the batch size.
        """
        chosen = (self.preparation,) if self.chose_preparation else ()
        if self.left_out or self.all_outputs:
            chosen = (*chosen, self.left_out, self.all_outputs)
        return self.split, self.num_images, self.augment, *chosen

    def label(self) -> str:
        """Return which images were evaluated."""
        how = f", {self.left_out} classes left out" if self.left_out else ""
        how += ", among all outputs" if self.all_outputs else ""
        if self.num_images is None:
            return f"all {self.split} images{how}"
        return f"{self.num_images} {self.split} images{how}"


Setting = (
    TransferSetting
    | EvaluationSetting
    | InfluenceSetting
    | ManipulationSetting
    | ShapeSetting
    | SimilaritySetting
    | ShiftSetting
    | CorruptionErrorSetting
    | CalibrationSetting
    | EffectiveSetting
    | GradientSetting
    | VisualizationSetting
    | InversionSetting
    | UniversalSetting
    | VulnerabilitySetting
    | DetectionSetting
)
KINDS: dict[str, type[Setting]] = {kind.kind: kind for kind in get_args(Setting)}
