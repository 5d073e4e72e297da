"""How a transfer is carried out, after protocol and flags.

The published procedures are to the letter. Their flaws, and what flags changed in them,
are kept as data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from fastadv.data.loading.geometry import usual_preparation
from fastadv.errors import ConfigError
from fastadv.reporting.literature import PUBLISHED_SIDE
from fastadv.results.row import Defect, Departure
from fastadv.results.settings import Statistics
from fastadv.training.optimizer_config import scheduled
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.tuning_config import SGD_CHOICES

# Salman et al. normalised these two by their own statistics, every other set not at all.
_PUBLISHED_STATISTICS = {
    "cifar10": Statistics(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Statistics(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
}
_NO_STATISTICS = Statistics(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
# Zhang et al. normalised every set by these.
_HALVES = Statistics(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_SALMAN_MODES = ("fixed_feature", "full_network")

_ZHANG_METHODS = ("standard", "pgd_at", "trades", "discrepancy")
# Their images were resized without keeping the aspect ratio.
_ZHANG_AUGMENT = Departure(
    name="augment",
    ours="flips and crops of padded images",
    published="flips and crops of 224 px from images resized to 256 x 256",
)

_UTRERA_BLOCKS = (0, 1, 3, 9)
_UTRERA_FEW = 1600  # images, and fewer epochs up to that number
# Their code only resized these, and augmented every other set, svhn included.
# scikit-learn's digits are of the same kind.
_UTRERA_GREY = ("mnist", "kmnist", "fashion_mnist", "digits")

_TRAIN_BN = Defect(
    code="frozen_bn_in_train_mode", text="BatchNorm of frozen layers in train mode"
)
_ON_TEST = Defect(
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
# The choices that repair a defect.
_REPAIRS = {
    _TRAIN_BN: ("frozen_bn", ("eval",)),
    _ON_TEST: ("select_on", ("val", "none")),
}


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


def make_procedure(
    config: TransferConfig,
    dataset: str,
    num_pool: int,
    resolution: int,
    *,
    misfreezing: Defect | None = None,
) -> Procedure:
    """Return how `config` is carried out on `dataset`.

    Args:
        config: The choices of the experiment.
        dataset: Name of the data set.
        num_pool: Number of images to train on, those for validation included.
        resolution: Side of the images in pixels.
        misfreezing: What freezing by name does wrong to the network.

    Raises:
        ConfigError: There are several learning rates and nothing to choose one on, or
            the learning rate rises to the end.
    """
    frozen = config.mode in ("fixed_feature", "last_k_blocks")
    if config.protocol == "salman2020":
        published = _salman(dataset, frozen, config.freezes_by_name, misfreezing)
    elif config.protocol == "utrera2021":
        published = _utrera(dataset, num_pool, frozen)
    elif config.protocol == "zhang2023":
        published = _zhang(frozen)
    else:
        published = Procedure()
    given: dict[str, Any] = {
        name: getattr(config, name)
        for name in (*SGD_CHOICES, "optimizer", "lrs_head")
        if getattr(config, name) is not None
    }
    given |= {"select_on": config.selects_on, "select_by": config.selects_by}
    given |= {"refit": config.refits}
    if config.frozen_bn is not None:
        given["frozen_bn"] = config.frozen_bn
    if config.rates is not None:
        given["lrs"] = config.rates
    if config.selects_on == "none":
        given["select_every"] = None
    if config.augment != "auto":
        given["augment"] = config.augment
    departures = _never_run(config)
    if config.protocol == "zhang2023" and "augment" not in given:
        departures.append(_ZHANG_AUGMENT)
    if config.protocol != "fastadv":
        ours = given | {"resolution": resolution}
        ours |= {name: getattr(config, name) for name in ("precision", "method")}
        theirs = vars(published) | {"precision": "fp32", "method": "standard"}
        theirs["resolution"] = PUBLISHED_SIDE
        augment: Any = published.augment
        if config.protocol == "zhang2023":
            ours["robust_steps"], theirs["robust_steps"] = config.judge_steps, 10
            if config.method in _ZHANG_METHODS:
                theirs["method"] = config.method
            if config.lrs_trunk is not None:  # a grid of both rates was published, too
                theirs |= {name: ours[name] for name in ("lrs", "lrs_head")}
            augment = "rrc"  # test images are resized to 256 px, as those are for
        theirs |= asdict(usual_preparation(augment, resolution))
        for name in ("resize", "interpolation"):
            if getattr(config, name) is not None:
                ours[name] = getattr(config, name)
        departures += [
            Departure(name=name, ours=_text(value), published=_text(theirs[name]))
            for name, value in ours.items()
            if value != theirs[name]
        ]
    repaired = [d for d, (name, good) in _REPAIRS.items() if given.get(name) in good]
    defects = tuple(d for d in published.defects if d not in repaired)
    given |= {"defects": defects, "departures": tuple(departures)}
    found = replace(published, **given)
    if found.warmup_epochs >= found.epochs:
        raise ConfigError(
            f"`warmup_epochs={found.warmup_epochs}` leaves none of the {found.epochs} "
            "`epochs` at the full learning rate; it must be below"
        )
    exact = config.on_cached_features and config.exact
    if found.select_on == "none" and len(found.lrs) > 1 and not exact:
        raise ConfigError(
            f"`lrs={_text(found.lrs)}`: `protocol={config.protocol}` with "
            "`select_on=none` has one learning rate and chooses nothing; give one, or "
            "`select_on=val`"
        )
    return found


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _never_run(config: TransferConfig) -> list[Departure]:
    """Return the departure of a mode that the paper has no experiment of."""
    mode, k = config.mode, config.k
    if config.protocol == "salman2020" and mode not in _SALMAN_MODES:
        published = " or ".join(_SALMAN_MODES)
        return [Departure(name="mode", ours=mode, published=published)]
    # Fixed features are the last 0 blocks: the head on a network that is frozen.
    blocks = 0 if mode == "fixed_feature" else k
    if config.protocol != "utrera2021" or blocks in _UTRERA_BLOCKS:
        return []
    name, ours = ("mode", mode) if blocks is None else ("k", str(blocks))
    published = f"the last {_text(_UTRERA_BLOCKS)} blocks"
    return [Departure(name=name, ours=ours, published=published)]


def _salman(
    dataset: str, frozen: bool, by_name: bool, misfreezing: Defect | None
) -> Procedure:
    """Return the procedure of Salman et al. 2020.

    Source: their appendix A, and their code for what that leaves out.
    """
    statistics = _PUBLISHED_STATISTICS.get(dataset)
    defects = [_TRAIN_BN] if frozen else []
    defects.append(_TARGET_STATISTICS if statistics else _NOT_NORMALISED)
    if by_name and misfreezing is not None:
        defects.append(misfreezing)
    return Procedure(
        augment="rrc",
        frozen_bn="train",
        select_on="test",
        select_every=5,  # `log_iters` of the robustness package
        statistics=statistics or _NO_STATISTICS,
        freeze_by_name=by_name,
        defects=(*defects, _ON_TEST),
    )


def _utrera(dataset: str, num_pool: int, frozen: bool) -> Procedure:
    """Return the procedure of Utrera et al. 2021.

    Source: their appendix A, and their code for what that leaves out. Inputs are
    normalised as the source's, as in that code when it loaded models for ImageNet. A
    later state of it loaded them for the target, which gave natural sources the target's
    statistics and left robust ones theirs; that is not reproduced.
    """
    epochs = 100 if num_pool <= _UTRERA_FEW else 150
    return Procedure(
        epochs=epochs,
        published_epochs=epochs,
        batch_size=128,
        lrs=(0.1,),
        augment="none" if dataset in _UTRERA_GREY else "utrera",
        frozen_bn="train",
        schedule="floored_thirds",  # StepLR(epochs // 3) in their code
        select_on="none",
        normal_head=True,
        defects=(_TRAIN_BN,) if frozen else (),
    )


def _zhang(frozen: bool) -> Procedure:
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
        defects=(*((_TRAIN_BN,) if frozen else ()), _NORMALISED_BY_HALVES, _ON_TEST),
    )
