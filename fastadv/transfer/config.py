"""What a transfer experiment is: every choice, its default and its help text. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from fastadv.errors import ConfigError

Mode = Literal["fixed_feature", "full_network"]


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Transfer a pretrained model to a data set and append the result to a table.

    fixed_feature: features of the frozen network are computed once; a logistic
    regression is fitted on them, its regularisation chosen on a validation split.
    full_network: everything is fine-tuned with SGD (Salman et al. 2020: batch 64, weight
    decay 5e-4, lr x 0.1 every third of the run), the learning rate chosen on the same.
    """

    source: Annotated[str, arg(aliases=["--model-path"])]
    """A run directory of fastadv-train, or a checkpoint file."""
    dataset: str
    """A data set name, an ImageFolder (train/, val/ or test/) or a .zip of one."""
    mode: Mode = "fixed_feature"
    """What is trained: a new head on frozen features, or everything."""
    name: str | None = None
    """What to call the source in the table; default its file or directory name."""
    arch: str | None = None
    """Architecture, where the checkpoint does not say."""
    resolution: int | None = None
    """Side of the images in pixels; default that of the source's training."""
    num_train: int | None = None
    """Use a stratified, seeded subset of so many training images."""
    seeds: tuple[int, ...] = (0,)
    """One row per seed: of subset, validation split, head and order."""
    val_fraction: float = 0.1
    """Share of the training images held out to choose hyper-parameters."""
    select_on: Literal["val", "test"] = "val"
    """What chooses hyper-parameters; test only to compare with published numbers."""
    epochs: int = 150
    """Of full_network."""
    batch_size: int = 64
    """Of full_network."""
    lrs: tuple[float, ...] = (0.01, 0.001)
    """Learning rates full_network chooses from."""
    momentum: float = 0.9
    """Of full_network."""
    weight_decay: float = 5e-4
    """Of full_network."""
    augment: Literal["auto", "none", "crop_flip", "rrc"] = "auto"
    """Augmentation of full_network; auto is what suits the data set. In both modes it also
    decides how images are cropped for evaluation."""
    results: str = "results"
    """Results table: a directory of Parquet files, appended to."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU when there is one."""
    backend: str = "auto"
    """Kernel backend (see fastadv-doctor)."""
    workers: int | None = None
    """Decoding threads or processes; default one per core, at most 8."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """skip: count, name and replace by one of its class; fail: stop."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "resolution", "num_train"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value} must be at least 1")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"--momentum {self.momentum} must be in [0, 1)")
        if not self.weight_decay >= 0:
            raise ConfigError(f"--weight-decay {self.weight_decay} must be at least 0")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"--val-fraction {self.val_fraction} must be in (0, 1)")
        if not self.seeds or not self.lrs:
            raise ConfigError("--seeds and --lrs need at least one value each")
        for lr in self.lrs:
            if not (math.isfinite(lr) and lr > 0):
                raise ConfigError(f"--lrs {lr} must be above 0")
