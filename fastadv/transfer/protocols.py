"""What protocols prescribe: those of publications, to the letter, and your own.

A protocol is a function from a `Task` to a `Procedure`. Flags override what it says, and
each row lists such departures. This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from fastadv.errors import ConfigError
from fastadv.extensions import look_up
from fastadv.reporting.literature import PUBLISHED_SIDE
from fastadv.results.row import Defect, Departure
from fastadv.results.settings import Statistics
from fastadv.training.optimizer_config import scheduled

# Salman et al. normalised these two by their own statistics, every other set not at all.
_PUBLISHED_STATISTICS = {
    "cifar10": Statistics(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Statistics(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
}
_NO_STATISTICS = Statistics(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
# Zhang et al. normalised every set by these.
_HALVES = Statistics(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_UTRERA_FEW = 1600  # images, and fewer epochs up to that number
# Their code only resized these, and augmented every other set, svhn included.
# scikit-learn's digits are of the same kind.
_UTRERA_GREY = ("mnist", "kmnist", "fashion_mnist", "digits")


TRAIN_BN = Defect(
    code="frozen_bn_in_train_mode", text="BatchNorm of frozen layers in train mode"
)
ON_TEST = Defect(
    code="selected_on_test", text="epoch and learning rate chosen on the test set"
)
_NOT_NORMALISED = Defect(
    code="inputs_not_normalised", text="inputs normalised by mean 0, std 1"
)
_NORMALISED_BY_HALVES = Defect(
    code="normalised_by_halves",
    text="inputs normalised by mean 0.5, std 0.5, not as the source's",
)
_TARGET_STATISTICS = Defect(
    code="target_statistics", text="inputs normalised by the target's statistics"
)


@dataclass(frozen=True)
class Rates:
    """Initial learning rates of one training.

    Attributes:
        lr: Learning rate of all that trains, or of all but the head.
        head: Learning rate of the head, where it has another; None if not.
    """

    lr: float
    head: float | None = None

    def __str__(self) -> str:
        return (
            f"{self.lr:g}" if self.head is None else f"{self.lr:g}, head {self.head:g}"
        )


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """Every setting of a transfer.

    Attributes:
        epochs: Epochs of SGD.
        batch_size: Images per step of SGD.
        optimizer: Name of the optimiser.
        lrs: Learning rates to choose from.
        lrs_head: Those of the head, each of which is tried with each of `lrs`; empty
            where the head has that of the rest.
        momentum: Momentum of SGD; beta1 of adaptive optimisers.
        weight_decay: Weight decay of the optimiser.
        schedule: Learning rate over the run, a name of `optimizer_config.scheduled`.
            With `floored_thirds` it falls every `epochs // 3` epochs, and so once more
            in what that leaves over.
        warmup_epochs: Epochs over which the learning rate rises linearly from 0.
        lowest_rate: What the schedule adds to at its end.
        augment: Augmentation of the training images.
        frozen_bn: Mode of the BatchNorm of frozen layers.
        select_on: Images that learning rate and epoch are chosen on. With `none` there is
            one learning rate, the last epoch counts, and no image is held out.
        select_by: Accuracy on them that counts: `clean`, or `robust` under attack.
        refit: Whether the chosen network is fitted again to all images of the pool.
        select_every: Epochs between evaluations of which the best counts; None if the
            last epoch counts.
        statistics: Mean and standard deviation of the inputs; None for the source's.
        freeze_by_name: Whether to freeze as `freezing.published_names` says.
        normal_head: Whether the weights of the head begin as N(0, 1), its bias as 0.
        published_epochs: Epochs that the protocol publishes for this number of images;
            None where its epochs do not depend on that number.
        defects: Known flaws of the published protocol that are reproduced.
        departures: Choices that are not the published ones.
    """

    epochs: int = 150
    batch_size: int = 64
    optimizer: str = "sgd"
    lrs: tuple[float, ...] = (0.01, 0.001)
    lrs_head: tuple[float, ...] = ()
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"
    warmup_epochs: int = 0
    lowest_rate: float = 0.0
    augment: Literal["auto", "none", "crop_flip", "rrc", "utrera"] = "auto"
    frozen_bn: Literal["eval", "train"] = "eval"
    select_on: Literal["val", "test", "none"] = "val"
    select_by: Literal["clean", "robust"] = "clean"
    refit: bool = False
    select_every: int | None = None
    statistics: Statistics | None = None
    freeze_by_name: bool = False
    normal_head: bool = False
    published_epochs: int | None = None
    defects: tuple[Defect, ...] = ()
    departures: tuple[Departure, ...] = ()

    def for_setting(self) -> dict[str, Any]:
        """Return the fields of a `TransferSetting` that say how SGD trained."""
        chosen_by = {"select_on", "select_by", "refit"}
        left_out = {"defects", "departures", "lowest_rate"} | chosen_by
        names = {field.name for field in fields(self)} - left_out
        schedule = "thirds" if self.schedule == "step" else self.schedule
        return {name: getattr(self, name) for name in names} | {"schedule": schedule}

    def candidates(self) -> list[Rates]:
        """Return the learning rates to choose from, those of the head varying fastest."""
        heads: tuple[float | None, ...] = self.lrs_head or (None,)
        return [Rates(lr, head) for lr in self.lrs for head in heads]

    def rate(self, lr: float, epoch: float) -> float:
        """Return the learning rate of an update of a run that begins with `lr`.

        Args:
            lr: Initial learning rate.
            epoch: Epochs before the update, a fraction within an epoch. The rate that
                falls by ten does so between epochs.
        """
        warmup = self.warmup_epochs
        if epoch < warmup:
            return lr * epoch / warmup
        epoch, epochs = epoch - warmup, self.epochs - warmup
        if self.schedule == "floored_thirds":
            period = epochs // 3
            return lr * 0.1 ** (int(epoch) // period) if period else lr
        if self.schedule == "step":
            epoch = int(epoch)
        lowest = min(self.lowest_rate, lr)
        # In thousandths of an epoch: `onecycle` begins one step into its rise.
        now, total = 1000 * epoch, 1000 * epochs
        return lowest + scheduled(lr - lowest, self.schedule, now, total)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a protocol may depend on.

    Attributes:
        dataset: Name of the data set.
        num_pool: Number of images to train on, those for validation included.
        mode: What trains: `fixed_feature`, `last_k_blocks`, `full_network` or `scratch`.
        k: Number of blocks before the head that `last_k_blocks` trains.
        resolution: Side of the images in pixels.
        misfreezing: What freezing by the names of layers does wrong to the network.
    """

    dataset: str
    num_pool: int
    mode: str
    k: int | None = None
    resolution: int = PUBLISHED_SIDE
    misfreezing: Defect | None = None

    @property
    def frozen(self) -> bool:
        """Whether a part of the network is frozen."""
        return self.mode in ("fixed_feature", "last_k_blocks")


@dataclass(frozen=True)
class Protocol:
    """An experiment that supplies the settings that are not given.

    Attributes:
        procedure: Function from the task to every setting. What the procedure says of
            `select_on`, `select_by` and `refit` does not count: the next attribute and
            the choices of the experiment do.
        select_on: Images that learning rate and epoch are chosen on.
        side: Side of the images in pixels; None stands for that of the source.
        name: What rows call it, where it is handed in as an object.
    """

    procedure: Callable[[Task], Procedure]
    select_on: Literal["val", "test", "none"] = "val"
    side: int | None = None
    name: str | None = None


def protocol_named(name: str) -> Protocol:
    """Return the protocol of a name.

    Args:
        name: A key of `PROTOCOLS`; `module:name`, which is imported; or the name of an entry
            point in the group `fastadv.protocols`. The latter two name a `Protocol`, or a
            function from a `Task` to a `Procedure`.

    Raises:
        ConfigError: Nothing has this name, it cannot be imported, or is neither.
    """
    try:
        found = look_up("`protocol`", name, PROTOCOLS, "protocols")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if isinstance(found, Protocol):
        return found
    if not callable(found) or isinstance(found, type):
        raise ConfigError(
            f"`protocol={name}` names a {type(found).__name__}; a protocol is a function "
            "from fastadv.transfer.protocols.Task to Procedure, or a Protocol"
        )
    return Protocol(found)


def prescribed(name: str, task: Task) -> Procedure:
    """Return the settings that a protocol prescribes for a task.

    Raises:
        ConfigError: A protocol of your own returns something else.
    """
    found: object = protocol_named(name).procedure(task)
    if isinstance(found, Procedure):
        return found
    raise ConfigError(
        f"`protocol={name}` returned a {type(found).__name__}; it must return a "
        "fastadv.transfer.protocols.Procedure"
    )


def _salman(task: Task) -> Procedure:
    """Return the procedure of Salman et al. 2020.

    Source: their appendix A, and their code for what that leaves out.
    """
    statistics = _PUBLISHED_STATISTICS.get(task.dataset)
    defects = [TRAIN_BN] if task.frozen else []
    defects.append(_TARGET_STATISTICS if statistics else _NOT_NORMALISED)
    by_name = task.mode == "fixed_feature"
    if by_name and task.misfreezing is not None:
        defects.append(task.misfreezing)
    return Procedure(
        augment="rrc",
        frozen_bn="train",
        select_on="test",
        select_every=5,  # `log_iters` of the robustness package
        statistics=statistics or _NO_STATISTICS,
        freeze_by_name=by_name,
        defects=(*defects, ON_TEST),
    )


def _utrera(task: Task) -> Procedure:
    """Return the procedure of Utrera et al. 2021.

    Source: their appendix A, and their code for what that leaves out. Inputs are
    normalised as the source's, as in that code when it loaded models for ImageNet. A
    later state of it loaded them for the target, which gave natural sources the target's
    statistics and left robust ones theirs; that is not reproduced.
    """
    epochs = 100 if task.num_pool <= _UTRERA_FEW else 150
    return Procedure(
        epochs=epochs,
        published_epochs=epochs,
        batch_size=128,
        lrs=(0.1,),
        augment="none" if task.dataset in _UTRERA_GREY else "utrera",
        frozen_bn="train",
        schedule="floored_thirds",  # StepLR(epochs // 3) in their code
        select_on="none",
        normal_head=True,
        defects=(TRAIN_BN,) if task.frozen else (),
    )


def _zhang(task: Task) -> Procedure:
    """Return the procedure of Zhang et al. 2023.

    Source: `train.py` and `train_dm.py` of their code (AAAI 2023, 2106.10989), whose
    weights of the best epoch on the test images were kept.
    """
    return Procedure(
        epochs=90,
        batch_size=128,
        optimizer="adam",
        lrs=(3e-4,),
        weight_decay=0.0,
        schedule="cosine",
        lowest_rate=1e-6,
        augment="crop_flip",
        frozen_bn="train",
        select_on="test",
        select_every=1,
        statistics=_HALVES,
        defects=(*((TRAIN_BN,) if task.frozen else ()), _NORMALISED_BY_HALVES, ON_TEST),
    )


PROTOCOLS = {
    "fastadv": Protocol(lambda task: Procedure()),
    "salman2020": Protocol(_salman, "test", PUBLISHED_SIDE),
    "utrera2021": Protocol(_utrera, "none", PUBLISHED_SIDE),
    "zhang2023": Protocol(_zhang, "test", PUBLISHED_SIDE),
}
