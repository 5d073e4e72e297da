"""One row of the results table: one number, and everything needed to obtain it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from fastadv.results.identity import digest
from fastadv.results.settings import EvaluationSetting, TransferSetting


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """The network that a number is about.

    Attributes:
        name: What tables and figures call it.
        given: What the user named it by; it opens the network again.
        path: The weights file at the time.
        digest: SHA-256 of the weights (and of the input convention, where the file does
            not state one).
        arch: Architecture.
        norm: Norm of its adversarial training; None for standard training or if unknown.
        eps: Radius of its training in pixel units; 0 for standard training, None if
            unknown.
        accuracy: Accuracy on its own test images in percent, if it is known.
    """

    name: str
    given: str | None = None
    path: str | None = None
    digest: str | None = None
    arch: str | None = None
    norm: str | None = None
    eps: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """The data set that a number was measured on.

    Attributes:
        name: Name of the data set, with the options that define its images.
        fingerprint: Hash that tells apart data sets of one name.
        resolution: Side of the images in pixels.
        downscale: Side in pixels that images were first reduced to; None if they were not.
        num_test: Number of images of the evaluation split.
        num_classes: Number of classes.
        class_names: Names of the classes, in the order of their labels.
    """

    name: str
    fingerprint: str | None = None
    resolution: int | None = None
    downscale: int | None = None
    num_test: int | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Option:
    """A named choice or fact as text."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """The attack that a robust accuracy was measured under. None: does not apply.

    Attributes:
        name: `pgd`, `autoattack`, `apgd-ce`, ...
        norm: `l2` or `linf`.
        eps: Radius in pixel units.
        num_steps: Gradient steps per run.
        step_size: Length of a step in pixel units.
        num_restarts: Number of random restarts.
        random_start: Whether it starts from a random point of the ball.
        keep: Which iterate counts, for example `best`.
        objective: What it maximises, for example `cross_entropy`.
        judge: Whose implementation: `fastadv` or `package`.
        num_targets: Number of wrong classes that targeted attacks try.
        num_queries: Forward passes of a black-box attack.
        options: Any other choice.
    """

    name: str | None = None
    norm: str | None = None
    eps: float | None = None
    num_steps: int | None = None
    step_size: float | None = None
    num_restarts: int | None = None
    random_start: bool | None = None
    keep: str | None = None
    objective: str | None = None
    judge: str | None = None
    num_targets: int | None = None
    num_queries: int | None = None
    options: tuple[Option, ...] = ()

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> AttackRecord:
        """Return the record of what `Attack.describe()` gives.

        Args:
            description: Choices by name; those that are no attribute become `options`.
        """
        known = {f.name for f in fields(cls)} - {"options"}
        return cls(
            **{name: value for name, value in description.items() if name in known},
            options=tuple(
                Option(name=name, value=str(value))
                for name, value in sorted(description.items())
                if name not in known and value is not None
            ),
        )

    def __str__(self) -> str:
        radius = f"{self.eps or 0:g}"
        if self.norm == "linf" and self.eps:
            radius = f"{self.eps * 255:.4g}/255"
        steps = f", {self.num_steps} steps" if self.num_steps else ""
        return f"{self.name or 'attack'}, {self.norm} {radius}{steps}"


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One attack of several that ran in turn.

    Attributes:
        name: Name of the attack.
        attacked: Number of images that reached it.
        value: Percent classified correctly after it and all attacks before it.
        low: Lower end of the 95 % interval, percent.
        high: Upper end, percent.
        seconds: Wall time.
    """

    name: str
    attacked: int
    value: float
    low: float | None = None
    high: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ChecksRecord:
    """What was found of that which makes robust accuracies misleading.

    Attributes:
        probabilities: Whether every output row is a probability distribution.
        randomised: Whether two passes over the same images differ.
        train_mode: Whether a module was in training mode when it was given.
        zero_gradient_share: Share of images whose input gradient is zero, in [0, 1].
        black_box_gain: Share of images that fell to a black-box attack after white-box
            ones, in [0, 1]; None where there was no such attack.
    """

    probabilities: bool
    randomised: bool
    train_mode: bool
    zero_gradient_share: float
    black_box_gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Departure:
    """One choice that is not the published one of the protocol.

    Attributes:
        name: Name of the choice, for example `lrs`.
        ours: What was run, as text.
        published: What the protocol publishes, as text.
    """

    name: str
    ours: str
    published: str


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A known flaw of a published protocol that was reproduced.

    Attributes:
        code: Stable name of the flaw, for example `selected_on_test`.
        text: A description for people.
    """

    code: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a number was computed with.

    Attributes:
        command: What wrote the row, for example `fastadv-transfer`.
        fastadv: Version of fastadv.
        commit: Commit of the checkout, with `+` if it was changed.
        python: Version of Python.
        torch: Version of PyTorch.
        packages: Versions of other packages that matter.
        cpu: Name of the processor.
        cores: Number of usable cores.
        threads: Number of threads of PyTorch.
        gpu: Name of the GPU.
        cuda: Version of CUDA.
    """

    command: str | None = None
    fastadv: str | None = None
    commit: str | None = None
    python: str | None = None
    torch: str | None = None
    packages: tuple[Option, ...] = ()
    cpu: str | None = None
    cores: int | None = None
    threads: int | None = None
    gpu: str | None = None
    cuda: str | None = None

    @classmethod
    def from_facts(
        cls, facts: Mapping[str, Any], command: str | None = None
    ) -> Provenance:
        """Return the record of what `fastadv.environment.provenance()` gives.

        Args:
            facts: Facts by name; those that are no attribute are packages.
            command: What writes the row.
        """
        known = {f.name for f in fields(cls)} - {"packages", "command"}
        return cls(
            command=command,
            **{name: value for name, value in facts.items() if name in known},
            packages=tuple(
                Option(name=name, value=str(version))
                for name, version in facts.items()
                if name not in known and version is not None
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number with its circumstances. Values and intervals are in percent.

    Attributes:
        time: When it was written.
        identity: Hash of what defines the number; a `once` table holds it once.
        experiment: Identity shared by the rows of one experiment, such as the clean and
            the robust accuracy of one network; the identity of its first row.
        source: The network.
        target: The data set.
        setting: How the number was obtained; its type is the kind of the row.
        seed: Seed of everything that was drawn.
        metric: What `value` is: `top1`, `mean_per_class`, ...
        attack: The attack the number was measured under; None for clean images.
        value: The number.
        low: Lower end of its 95 % interval over the draw of test images.
        high: Upper end.
        n: Number of images it is over.
        per_class_correct: Number of correct images of each class.
        per_class_total: Number of images of each class.
        stages: The attacks in turn, where there were several.
        checks: What was checked of the network under attack.
        departures: Choices that are not the published ones of the protocol.
        defects: Known flaws of the published protocol that were reproduced.
        val_value: The value that hyper-parameters were chosen on; None without a choice.
        bad_images: Number of unreadable images that were replaced.
        wall_seconds: Wall time.
        provenance: Versions, machine and commit.
        arrays: Name of the file with the arrays of the row; None if there is none.
        setting_key: Hash of what must be equal for two numbers to be compared: kind,
            target, metric and `setting.key()`; not the source, the seed, the number of
            training images or the attack. It is computed where it is not given, so
            `dataclasses.replace` of a setting needs `setting_key=""`, too.
        setting_label: Target and setting in a few words, for people; computed likewise.
    """

    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    identity: str | None = None
    experiment: str | None = None
    source: SourceRecord
    target: TargetRecord
    setting: TransferSetting | EvaluationSetting
    seed: int = 0
    metric: str = "top1"
    attack: AttackRecord | None = None
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    per_class_correct: tuple[int, ...] = ()
    per_class_total: tuple[int, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    checks: ChecksRecord | None = None
    departures: tuple[Departure, ...] = ()
    defects: tuple[Defect, ...] = ()
    val_value: float | None = None
    bad_images: int | None = None
    wall_seconds: float | None = None
    provenance: Provenance = Provenance()
    arrays: str | None = None
    setting_key: str = ""
    setting_label: str = ""

    def __post_init__(self) -> None:
        if self.experiment is None:
            object.__setattr__(self, "experiment", self.identity)
        if not self.setting_key:
            object.__setattr__(self, "setting_key", self._key())
        if not self.setting_label:
            label = f"{self.target.name}, {self.setting.label()}"
            object.__setattr__(self, "setting_label", label)

    @property
    def kind(self) -> str:
        """Kind of the result: `transfer`, `evaluation`, ..."""
        return self.setting.kind

    def _key(self) -> str:
        target = self.target
        where = (target.name, target.fingerprint, target.resolution, target.downscale)
        parts = (self.kind, *where, self.metric, *self.setting.key())
        return digest(_plain(parts))


def _plain(value: Any) -> Any:
    """Return records as lists and whole numbers as floats: 1 and 1.0 are one setting."""
    if is_dataclass(value):
        return [_plain(getattr(value, f.name)) for f in fields(value)]
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
