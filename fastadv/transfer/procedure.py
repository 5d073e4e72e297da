"""The settings of a transfer after protocol and flags: published ones to the letter,
their defects by name, and what was changed from them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastadv.errors import ConfigError
from fastadv.reporting.literature import PUBLISHED_SIDE
from fastadv.training.optimizer_config import scheduled
from fastadv.transfer.config import SGD_CHOICES, TransferConfig

# Salman et al. normalised these two by their own statistics, every other set not at all.
_PUBLISHED_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
_NO_STATISTICS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """Every setting of a run.

    Attributes:
        epochs, batch_size, lrs, momentum, weight_decay: of SGD.
        augment: of the loader.
        frozen_bn: mode of the BatchNorm of frozen layers.
        select_on: what learning rate and epoch are chosen on; `"none"`: one learning
            rate, the last epoch, and no image is held out.
        floored_thirds: the learning rate falls every `epochs // 3` epochs, and so once
            more in what that leaves over; else at each third.
        select_every: epochs between evaluations of which the best counts; None: the
            last epoch counts.
        statistics: (mean, std) of the inputs; None: the source's.
        freeze_by_name: freeze as `freezing.published_names` says.
        normal_head: the head's weights begin as N(0, 1), its bias as 0.
        defects: what is wrong with the published way, in words.
        changed: how flags depart from what was published, in words.
    """

    epochs: int = 150
    batch_size: int = 64
    lrs: tuple[float, ...] = (0.01, 0.001)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: Literal["auto", "none", "crop_flip", "rrc", "utrera"] = "auto"
    frozen_bn: Literal["eval", "train"] = "eval"
    select_on: Literal["val", "test", "none"] = "val"
    floored_thirds: bool = False
    select_every: int | None = None
    statistics: Statistics | None = None
    freeze_by_name: bool = False
    normal_head: bool = False
    defects: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def notes(self) -> str | None:
        """Defects and changes, for the row; None if there are none."""
        return "; ".join((*self.defects, *self.changed)) or None

    def for_row(self) -> dict[str, Any]:
        """Those of SGD and what goes with it, for the row."""
        left_out = ("defects", "changed", "select_on", "floored_thirds")
        found = {k: v for k, v in asdict(self).items() if k not in left_out}
        period = "epochs // 3" if self.floored_thirds else "third"
        return found | {"schedule": f"x 0.1 every {period}"}

    def rate(self, lr: float, epoch: int) -> float:
        """Learning rate in `epoch` (from 0) of a run that begins with `lr`."""
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
    misfreezing: str | None = None,
) -> Procedure:
    """The settings of `config` on `dataset`.

    Args:
        config: the experiment.
        dataset: name of the data set.
        num_pool: images to train on, those for validation included.
        resolution: side of the images, pixels.
        misfreezing: what freezing by name does to the network, in words.

    Raises:
        ConfigError: several learning rates and nothing to choose one on.
    """
    frozen = config.mode in ("fixed_feature", "last_k_blocks")
    if config.protocol == "salman2020":
        procedure = _salman(dataset, frozen, config.freezes_by_name, misfreezing)
    elif config.protocol == "utrera2021":
        procedure = _utrera(dataset, num_pool, frozen)
    else:
        procedure = Procedure()
    given: dict[str, Any] = {
        name: getattr(config, name)
        for name in (*SGD_CHOICES, "select_on", "frozen_bn")
        if getattr(config, name) is not None
    }
    if config.augment != "auto":
        given["augment"] = config.augment
    changed = _never_run(config)
    if config.seed_changes_nothing:
        changed.append("one row for all seeds, which change nothing here")
    if config.protocol != "fastadv":
        changed += [
            f"{name} {_words(value)} instead of {_words(getattr(procedure, name))}"
            for name, value in given.items()
            if value != getattr(procedure, name)
        ]
        if resolution != PUBLISHED_SIDE:
            changed.append(f"resolution {resolution} instead of {PUBLISHED_SIDE}")
        if config.precision != "fp32":
            changed.append(f"precision {config.precision} instead of fp32")
        if config.method != "standard":
            changed.append(f"method {config.method} instead of standard")
    defects = tuple(d for d in procedure.defects if not _repaired(d, given))
    merged = {f: getattr(procedure, f) for f in Procedure.__dataclass_fields__} | given
    procedure = Procedure(**merged | {"defects": defects, "changed": tuple(changed)})
    if procedure.select_on == "none" and len(procedure.lrs) > 1:
        raise ConfigError(
            f"--lrs {_words(procedure.lrs)}: --protocol {config.protocol} has one learning "
            "rate and chooses nothing; give one, or --select-on val"
        )
    return procedure


_TRAIN_BN = "BatchNorm of frozen layers in train mode"
_ON_TEST = "epoch and learning rate chosen on the test set"


def _repaired(defect: str, given: dict[str, Any]) -> bool:
    return (defect == _TRAIN_BN and given.get("frozen_bn") == "eval") or (
        defect == _ON_TEST and given.get("select_on") == "val"
    )


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _never_run(config: TransferConfig) -> list[str]:
    """What the paper of a protocol has no experiment of, in words."""
    if config.protocol == "salman2020" and config.mode not in _SALMAN_MODES:
        return [f"mode {config.mode} instead of {' or '.join(_SALMAN_MODES)}"]
    # Fixed features are the last 0 blocks: the head on a network that is frozen.
    blocks = 0 if config.mode == "fixed_feature" else config.k
    if config.protocol != "utrera2021" or blocks in _UTRERA_BLOCKS:
        return []
    what = f"mode {config.mode}" if blocks is None else f"k {blocks}"
    return [f"{what} instead of the last {_words(_UTRERA_BLOCKS)} blocks"]


_SALMAN_MODES = ("fixed_feature", "full_network")
_UTRERA_BLOCKS = (0, 1, 3, 9)
# Their code only resized these, and augmented every other set, svhn included.
# scikit-learn's digits are ours, and of the kind.
_UTRERA_GREY = ("mnist", "kmnist", "fashion_mnist", "digits")


def _salman(
    dataset: str, frozen: bool, by_name: bool, misfreezing: str | None
) -> Procedure:
    """Source: Salman et al. 2020, appendix A, and their code for what it leaves out."""
    statistics = _PUBLISHED_STATISTICS.get(dataset, _NO_STATISTICS)
    defects = [_TRAIN_BN] if frozen else []
    defects.append(
        "inputs normalised by mean 0, std 1"
        if statistics is _NO_STATISTICS
        else "inputs normalised by the target's statistics"
    )
    if by_name and misfreezing is not None:
        defects.append(misfreezing)
    return Procedure(
        augment="rrc",
        frozen_bn="train",
        select_on="test",
        select_every=5,  # `log_iters` of the robustness package
        statistics=statistics,
        freeze_by_name=by_name,
        defects=(*defects, _ON_TEST),
    )


def _utrera(dataset: str, num_pool: int, frozen: bool) -> Procedure:
    """Source: Utrera et al. 2021, appendix A, and their code for what it leaves out.

    Inputs are normalised as the source's, as in that code when it loaded models for
    ImageNet. A later state of it loaded them for the target, which gave natural sources
    the target's statistics and left robust ones theirs; that is not reproduced.
    """
    return Procedure(
        epochs=100 if num_pool <= 1600 else 150,
        batch_size=128,
        lrs=(0.1,),
        augment="none" if dataset in _UTRERA_GREY else "utrera",
        frozen_bn="train",
        floored_thirds=True,  # StepLR(epochs // 3) in their code
        select_on="none",
        normal_head=True,
        defects=(_TRAIN_BN,) if frozen else (),
    )
