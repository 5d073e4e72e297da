"""One row of the results table: one number, and everything needed to obtain it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from fastadv.results.identity import digest
from fastadv.results.settings import Setting
from fastadv.threat import training_kind


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """The network that a number is about."""

    name: str  # What tables and figures call it.
    given: str | None = None  # What the user named it by; it opens the network again.
    path: str | None = None  # The weights file at the time.
    # SHA-256 of the weights (and of the input convention, where the file states none).
    digest: str | None = None
    arch: str | None = None  # Name of the architecture.
    # Norm of its adversarial training; None for standard training or if unknown.
    norm: str | None = None
    # Radius of its training in pixel units; 0 for standard training, None if unknown.
    eps: float | None = None
    accuracy: float | None = None  # On its own test images in percent; None if unknown.
    # How it was trained, a key of `threat.TRAINING_KINDS`; None where `eps` decides.
    kind: str | None = None

    @property
    def training(self) -> str | None:
        """How it was trained: `kind`, or what `eps` says; None if that is unknown."""
        return training_kind(self.kind, self.eps)


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """The data set that a number was measured on."""

    name: str  # Name of the data set, with the options that define its images.
    fingerprint: str | None = None  # Hash that tells apart data sets of one name.
    resolution: int | None = None  # Side of the images in pixels.
    # Side in pixels that images were first reduced to; None if they were not.
    downscale: int | None = None
    num_test: int | None = None  # Number of images of the evaluation split.
    num_classes: int | None = None  # Number of classes.
    class_names: tuple[str, ...] = ()  # In the order of their labels.


@dataclass(frozen=True, kw_only=True)
class Option:
    """A named choice or fact as text."""

    name: str
    value: str


def _split(
    record: type, values: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[Option, ...]]:
    """Return the values that are fields of a record, and all others as options."""
    known = {f.name for f in fields(record)} - {"options", "packages", "command"}
    given = {name: value for name, value in values.items() if name in known}
    return given, tuple(
        Option(name=name, value=str(value))
        for name, value in values.items()
        if name not in known and value is not None
    )


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """The attack that a robust accuracy was measured under. None: does not apply."""

    name: str | None = None  # `pgd`, `autoattack`, `apgd-ce`, ...
    norm: str | None = None  # `l2` or `linf`.
    eps: float | None = None  # Radius in pixel units.
    num_steps: int | None = None  # Gradient steps per run.
    step_size: float | None = None  # Length of a step in pixel units.
    num_restarts: int | None = None  # Number of random restarts.
    random_start: bool | None = None  # Whether it starts at a random point of the ball.
    keep: str | None = None  # Which iterate counts, for example `best`.
    objective: str | None = None  # What it maximises, for example `cross_entropy`.
    judge: str | None = None  # Whose implementation: `fastadv` or `package`.
    num_targets: int | None = None  # Wrong classes that targeted attacks try.
    num_queries: int | None = None  # Forward passes of a black-box attack.
    options: tuple[Option, ...] = ()  # Any other choice.

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> AttackRecord:
        """Return the record of an `Attack.describe()`; unknown names become `options`."""
        given, options = _split(cls, dict(sorted(description.items())))
        return cls(**given, options=options)

    def __str__(self) -> str:
        radius = f"{self.eps or 0:g}"
        if self.norm == "linf" and self.eps:
            radius = f"{self.eps * 255:.4g}/255"
        steps = f", {self.num_steps} steps" if self.num_steps else ""
        return f"{self.name or 'attack'}, {self.norm} {radius}{steps}"


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One attack of several that ran in turn."""

    name: str  # Name of the attack.
    attacked: int  # Number of images that reached it.
    value: float  # Percent classified correctly after it and all attacks before it.
    low: float | None = None  # Lower end of the 95 % interval, percent.
    high: float | None = None  # Upper end, percent.
    seconds: float | None = None  # Wall time.


@dataclass(frozen=True, kw_only=True)
class ChecksRecord:
    """Results of the checks for reasons why a robust accuracy may mislead."""

    probabilities: bool  # Whether every output row is a probability distribution.
    randomised: bool  # Whether two passes over the same images differ.
    train_mode: bool  # Whether a module was in training mode when it was given.
    zero_gradient_share: float  # Share of images with zero input gradient, in [0, 1].
    # Share of images that fell to a black-box attack after white-box ones, in [0, 1];
    # None where there was no such attack.
    black_box_gain: float | None = None
    # Share of images at which a small step along the gradient does not raise the loss.
    misleading_gradient_share: float = 0.0
    # Why the model itself was attacked in place of a folded copy; None where it was not.
    live_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The value of a row's metric after some epoch of the same training."""

    epoch: int  # Number of epochs that were finished.
    value: float  # Percent, on the images of the row.


@dataclass(frozen=True, kw_only=True)
class Departure:
    """One choice that is not the published one of the protocol."""

    name: str  # Name of the choice, for example `lrs`.
    ours: str  # What was run, as text.
    published: str  # What the protocol publishes, as text.

    def __str__(self) -> str:
        return f"{self.name} {self.ours} instead of {self.published}"


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A known flaw of a published protocol that was reproduced."""

    code: str  # Stable name of the flaw, for example `selected_on_test`.
    text: str  # A description for people.


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a number was computed with."""

    command: str | None = None  # What wrote the row, for example `fastadv-transfer`.
    fastadv: str | None = None  # Version of fastadv.
    commit: str | None = None  # Commit of the checkout, with `+` if it was changed.
    python: str | None = None  # Version of Python.
    torch: str | None = None  # Version of PyTorch.
    packages: tuple[Option, ...] = ()  # Versions of other packages that matter.
    cpu: str | None = None  # Name of the processor.
    cores: int | None = None  # Number of usable cores.
    threads: int | None = None  # Number of threads of PyTorch.
    gpu: str | None = None  # Name of the GPU.
    cuda: str | None = None  # Version of CUDA.

    @classmethod
    def from_facts(
        cls, facts: Mapping[str, Any], command: str | None = None
    ) -> Provenance:
        """Return the record of `fastadv.environment.provenance()`, written by `command`.

        Unknown names of facts become `packages`.
        """
        given, packages = _split(cls, facts)
        return cls(command=command, **given, packages=packages)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number with its circumstances. Values and intervals are in percent."""

    # When the row was written.
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    # Hash of what defines the number; a `once` table holds it once.
    identity: str | None = None
    # Identity shared by the rows of one experiment, such as the clean and the robust
    # accuracy of one network, known before anything is computed. It is the identity of
    # the first row, unless images were unreadable (`identity.measured_identity`).
    experiment: str | None = None
    source: SourceRecord
    target: TargetRecord
    # How the number was obtained; its type is the kind of the row.
    setting: Setting
    seed: int = 0  # Seed of everything that was drawn.
    metric: str = "top1"  # What `value` is: `top1`, `mean_per_class`, ...
    attack: AttackRecord | None = None  # None for clean images.
    value: float  # The number.
    # Lower end of its 95 % interval over the draw of test images.
    low: float | None = None
    high: float | None = None  # Upper end.
    n: int | None = None  # Number of images that the number is over.
    per_class_correct: tuple[int, ...] = ()  # Number of correct images of each class.
    per_class_total: tuple[int, ...] = ()  # Number of images of each class.
    stages: tuple[StageRecord, ...] = ()  # The attacks in turn, where several ran.
    checks: ChecksRecord | None = None  # What was checked of the network under attack.
    # Reasons to doubt the value, by name, such as `zero_gradients`; see `Checks.flags`.
    flags: tuple[str, ...] = ()
    # Number of images with logits that are NaN or infinite, which count as misclassified;
    # None where that was not counted.
    nonfinite_logits: int | None = None
    # Choices that are not the published ones of the protocol.
    departures: tuple[Departure, ...] = ()
    # Known flaws of the published protocol that were reproduced.
    defects: tuple[Defect, ...] = ()
    # The metric after other epochs of the training that gave the value.
    history: tuple[EpochRecord, ...] = ()
    # The value that hyper-parameters were chosen on; None without a choice.
    val_value: float | None = None
    bad_images: int | None = None  # Number of unreadable images met.
    wall_seconds: float | None = None  # Wall time.
    provenance: Provenance = Provenance()  # Versions, machine and commit.
    arrays: str | None = None  # Name of the file with its arrays; None without one.
    weights: str | None = None  # Name of the file of its network; None without one.
    # Why arrays or weights that `keep` includes are missing; None if none is.
    not_kept: str | None = None
    # Hash of what must be equal for two numbers to be compared: kind, target, metric and
    # `setting.key()`; not the source, the seed, the number of training images or the
    # attack. It is computed where it is not given, so `dataclasses.replace` of a setting
    # needs `setting_key=""`, too.
    setting_key: str = ""
    setting_label: str = ""  # Target and setting for people; computed likewise.

    def __post_init__(self) -> None:
        target = self.target
        if self.experiment is None:
            object.__setattr__(self, "experiment", self.identity)
        if not self.setting_key:
            where = (target.name, target.fingerprint, target.resolution)
            setting = (target.downscale, self.metric, *self.setting.key())
            key = digest(_plain((self.kind, *where, *setting)))
            object.__setattr__(self, "setting_key", key)
        if not self.setting_label:
            label = f"{target.name}, {self.setting.label()}"
            object.__setattr__(self, "setting_label", label)

    @property
    def kind(self) -> str:
        """Kind of the result: `transfer`, `evaluation`, ..."""
        return self.setting.kind


def _plain(value: Any) -> Any:
    """Return records as lists and whole numbers as floats: 1 and 1.0 are one setting."""
    if is_dataclass(value):
        return [_plain(getattr(value, f.name)) for f in fields(value)]
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
