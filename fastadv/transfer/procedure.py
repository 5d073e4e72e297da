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
from fastadv.transfer.config import SGD_CHOICES, TransferConfig

# Salman et al. normalised these two by their own statistics, every other set not at all.
_PUBLISHED_STATISTICS = {
    "cifar10": Statistics(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Statistics(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
}
_NO_STATISTICS = Statistics(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_SALMAN_MODES = ("fixed_feature", "full_network")

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
_TARGET_STATISTICS = Defect(
    code="target_statistics", text="inputs normalised by the target's statistics"
)
# The choices that repair a defect.
_REPAIRS = {
    _TRAIN_BN: ("frozen_bn", ("eval",)),
    _ON_TEST: ("select_on", ("val", "none")),
}


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """Every setting of a transfer.

    Attributes:
        epochs: Epochs of SGD.
        batch_size: Images per step of SGD.
        lrs: Learning rates to choose from.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        augment: Augmentation of the training images.
        frozen_bn: Mode of the BatchNorm of frozen layers.
        select_on: Images that learning rate and epoch are chosen on. With `none` there is
            one learning rate, the last epoch counts, and no image is held out.
        select_by: Accuracy on them that counts: `clean`, or `robust` under attack.
        refit: Whether the chosen network is fitted again to all images of the pool.
        floored_thirds: Whether the learning rate falls every `epochs // 3` epochs, and so
            once more in what that leaves over; otherwise it falls after each third.
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
    lrs: tuple[float, ...] = (0.01, 0.001)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: Literal["auto", "none", "crop_flip", "rrc", "utrera"] = "auto"
    frozen_bn: Literal["eval", "train"] = "eval"
    select_on: Literal["val", "test", "none"] = "val"
    select_by: Literal["clean", "robust"] = "clean"
    refit: bool = False
    floored_thirds: bool = False
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
        left_out = {"defects", "departures", "floored_thirds"} | chosen_by
        names = {field.name for field in fields(self)} - left_out
        schedule = "floored_thirds" if self.floored_thirds else "thirds"
        return {name: getattr(self, name) for name in names} | {"schedule": schedule}

    def rate(self, lr: float, epoch: int) -> float:
        """Return the learning rate in `epoch` (from 0) of a run that begins with `lr`."""
        if not self.floored_thirds:
            return scheduled(lr, "step", epoch, self.epochs)
        period = self.epochs // 3
        return lr * 0.1 ** (epoch // period) if period else lr


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
        ConfigError: There are several learning rates and nothing to choose one on.
    """
    frozen = config.mode in ("fixed_feature", "last_k_blocks")
    if config.protocol == "salman2020":
        published = _salman(dataset, frozen, config.freezes_by_name, misfreezing)
    elif config.protocol == "utrera2021":
        published = _utrera(dataset, num_pool, frozen)
    else:
        published = Procedure()
    given: dict[str, Any] = {
        name: getattr(config, name)
        for name in SGD_CHOICES
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
    if config.protocol != "fastadv":
        ours = given | {"resolution": resolution}
        ours |= {name: getattr(config, name) for name in ("precision", "method")}
        theirs = vars(published) | {"precision": "fp32", "method": "standard"}
        theirs["resolution"] = PUBLISHED_SIDE
        augment: Any = published.augment
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
        return ", ".join(map(_text, value))
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
        floored_thirds=True,  # StepLR(epochs // 3) in their code
        select_on="none",
        normal_head=True,
        defects=(_TRAIN_BN,) if frozen else (),
    )
