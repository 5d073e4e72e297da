"""What a transfer experiment is: every choice, its default and its help text. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from fastadv.data.dataset_options import dataset_options
from fastadv.errors import ConfigError
from fastadv.threat import ThreatModel, parse_norm
from fastadv.training.config import NormName, Pixels, TrainConfig
from fastadv.training.methodnames import MethodName

Mode = Literal["fixed_feature", "full_network", "last_k_blocks", "scratch"]
Protocol = Literal["fastadv", "salman2020", "utrera2021"]
PUBLISHED_SIDE = 224  # pixels
# Of fine-tuning and of the sgd solver; None stands for what the protocol says.
SGD_CHOICES = ("epochs", "batch_size", "lrs", "momentum", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Transfer a pretrained model to a data set and append the result to a table.

    fixed_feature: a linear head on features of the frozen network, which are computed
    once and kept. full_network: everything is fine-tuned; last_k_blocks: the last k
    blocks and the head; scratch: the same network from random weights. Frozen parts stay
    as they are, inputs are normalised as the source's, and hyper-parameters are chosen on
    a validation split. --protocol salman2020 or utrera2021 does as published instead,
    defects included; the row names them.
    """

    source: Annotated[str, arg(aliases=["--model-path"])]
    """A run directory, a checkpoint file, torchvision:NAME, timm:NAME, hf:ORG/NAME or
    package:NAME; `fastadv-models show SOURCE` says what it is."""
    dataset: str
    """A data set name, an ImageFolder (train/, val/ or test/) or a .zip of one."""
    dataset_option: UseAppendAction[tuple[str, ...]] = ()
    """KEY=VALUE of that data set, e.g. partition=2 or root=DIR."""
    mode: Mode = "fixed_feature"
    """What is trained."""
    k: int | None = None
    """Of last_k_blocks: so many blocks before the head, 0 for the head alone."""
    protocol: Protocol = "fastadv"
    """Where settings that are left out come from."""
    name: str | None = None
    """What to call the source in the table; default its file or directory name."""
    arch: str | None = None
    """Architecture, where the checkpoint does not say."""
    download: bool = False
    """Fetch a named source that is not on this machine."""
    source_accuracy: float | None = None
    """Percent, of the source on its own test images; goes into the row as it is."""
    resolution: int | None = None
    """Side of the images in pixels; default that of the source's training, 224 in the
    published protocols."""
    downscale: int | None = None
    """Reduce all images to this side first, e.g. 32."""
    num_train: int | None = None
    """Use a stratified, seeded subset of so many training images."""
    seeds: tuple[int, ...] = ()
    """One row per seed: of subset, validation split, head and order. Default 0;
    utrera2021: ten up to 6,400 images, five up to 25,600, one for more or all. The
    first alone, where none of that is left to a seed."""
    val_fraction: float = 0.1
    """Share of the training images held out to choose hyper-parameters; more of a few,
    since every class of two or more images gives at least one."""
    select_on: Literal["val", "test"] | None = None
    """What chooses hyper-parameters; test only to compare with published numbers.
    Default val; salman2020: test; utrera2021 chooses nothing."""
    solver: Literal["lbfgs", "sgd"] | None = None
    """Of fixed_feature: exact, the regularisation chosen, or SGD, the learning rate
    chosen; default lbfgs, unless something is said about SGD."""
    epochs: int | None = None
    """Of SGD; default 150, utrera2021: 100 up to 1,600 images. The learning rate falls
    by ten after each third."""
    batch_size: int | None = None
    """Of SGD; default 64, utrera2021: 128."""
    lrs: tuple[float, ...] | None = None
    """Learning rates to choose from; default 0.01 and 0.001, utrera2021: 0.1."""
    momentum: float | None = None
    """Of SGD; default 0.9."""
    weight_decay: float | None = None
    """Of SGD; default 5e-4."""
    frozen_bn: Literal["eval", "train"] | None = None
    """train: BatchNorm statistics of frozen layers follow the target images, as in the
    published runs; default eval: frozen means frozen."""
    augment: Literal["auto", "none", "crop_flip", "rrc"] = "auto"
    """Augmentation of training; auto is what suits the data set, or the protocol. In
    all modes it also decides how images are cropped for evaluation."""
    method: MethodName = "standard"
    """How the network is trained; the others fine-tune adversarially."""
    norm: NormName = "l2"
    """Of --eps and --robust-eps."""
    eps: Pixels | None = None
    """Radius of adversarial fine-tuning, pixel units; default 3 (l2) or 4/255 (linf)."""
    num_steps: Annotated[int | None, arg(aliases=["--attack-steps"])] = None
    """Attack steps of adversarial fine-tuning; default that of the method."""
    beta: float | None = None
    """Weight of the second term of trades, mart, gradalign and discrepancy."""
    robust_eps: Pixels | None = None
    """Measure robust accuracy of the result, too, under PGD of this radius."""
    robust_steps: int = 20
    """Steps of that attack, from a random start."""
    feature_cache: str = "auto"
    """Folder of the features of frozen networks; auto: in the user's cache; off: none."""
    results: str = "results"
    """Results table: a directory of Parquet files, appended to."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU when there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of fine-tuning; bf16 is autocast. Features and accuracies stay in fp32."""
    backend: str = "auto"
    """Kernel backend (see fastadv-doctor)."""
    workers: int | None = None
    """Decoding threads or processes; default one per core, at most 8."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """skip: count, name and replace by one of its class; fail: stop."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "resolution", "num_train", "robust_steps"):
            self._check(name, "at least 1", lambda value: value >= 1)
        self._check("downscale", "at least 1", lambda value: value >= 1)
        self._check("k", "at least 0", lambda value: value >= 0)
        self._check("momentum", "in [0, 1)", lambda value: 0 <= value < 1)
        self._check("weight_decay", "at least 0", lambda value: value >= 0)
        self._check("source_accuracy", "in [0, 100]", lambda value: 0 <= value <= 100)
        self._check("val_fraction", "in (0, 1)", lambda value: 0 < value < 1)
        dataset_options(self.dataset_option)  # says what is no KEY=VALUE
        if not self.seeds:
            object.__setattr__(self, "seeds", self._usual_seeds())
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ConfigError(f"--seeds {seed} must be in 0..{2**32 - 1}")
            if self.seeds.count(seed) > 1:
                raise ConfigError(
                    f"--seeds {' '.join(map(str, self.seeds))}: {seed} is there more "
                    "than once, and would be the same row again; give each seed once"
                )
        if self.lrs == ():
            raise ConfigError("--lrs needs at least one value")
        for lr in self.lrs or ():
            if not (math.isfinite(lr) and lr > 0):
                raise ConfigError(f"--lrs {lr} must be above 0")
        self._check_mode()
        try:
            object.__setattr__(self, "norm", parse_norm(self.norm))
            if self.robust_eps is not None:
                ThreatModel(self.norm, self.robust_eps)  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(str(error)) from None
        attacked = self.robust_eps is not None
        if self.robust_steps != 20 and not attacked:
            raise ConfigError(
                f"--robust-steps {self.robust_steps} is of --robust-eps; add that"
            )
        if self.norm != "l2" and not attacked and self.method == "standard":
            raise ConfigError(
                f"--norm {self.norm} is of --eps and --robust-eps; add --method pgd_at, "
                "or --robust-eps"
            )
        if self.method == "standard":
            for name in ("eps", "num_steps", "beta"):
                if getattr(self, name) is not None:
                    flag = name.replace("_", "-")
                    raise ConfigError(
                        f"--{flag} is of adversarial fine-tuning; add --method pgd_at, "
                        "or another that attacks"
                    )
        else:
            self.training()  # says what does not go together
        if self.seed_changes_nothing:
            # Rows that cannot differ would pass for a result that never varies.
            object.__setattr__(self, "seeds", self.seeds[:1])

    def _check(self, name: str, accepted: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {value} must be {accepted}")

    def _check_mode(self) -> None:
        if (self.k is None) == (self.mode == "last_k_blocks"):
            raise ConfigError(
                "--mode last_k_blocks needs --k, the number of blocks that train, e.g. 3"
                if self.k is None
                else f"--k {self.k} is of --mode last_k_blocks, not of {self.mode}"
            )
        frozen = self.mode in ("fixed_feature", "last_k_blocks")
        if self.frozen_bn is not None and not frozen:
            raise ConfigError(
                f"--frozen-bn {self.frozen_bn}: --mode {self.mode} freezes nothing"
            )
        if self.solver is not None and not self.on_cached_features:
            raise ConfigError(
                f"--solver {self.solver} is of features that are computed once: of "
                "--mode fixed_feature, --protocol fastadv, with --frozen-bn eval"
            )
        given = [name for name in SGD_CHOICES if getattr(self, name) is not None]
        if self.precision != "fp32" and self.on_cached_features:
            raise ConfigError(
                f"--precision {self.precision} is of networks that train; --mode "
                "fixed_feature computes features once, in fp32. In a recipe it belongs to "
                "the protocols that train"
            )
        if self.solver == "lbfgs" and given:
            flag = given[0].replace("_", "-")
            raise ConfigError(f"--{flag} is of --solver sgd; lbfgs is exact")
        if self.on_cached_features and self.method != "standard":
            raise ConfigError(
                f"--method {self.method} attacks the network anew in every step, so its "
                "features cannot be computed once; use --mode last_k_blocks --k 0"
            )

    @property
    def on_cached_features(self) -> bool:
        """Whether heads are fitted to features that are computed once."""
        return (
            self.mode == "fixed_feature"
            and self.protocol == "fastadv"
            and self.frozen_bn != "train"
        )

    @property
    def freezes_by_name(self) -> bool:
        """Whether layers are frozen as the code of Salman et al. did, by their names."""
        return self.protocol == "salman2020" and self.mode == "fixed_feature"

    @property
    def exact(self) -> bool:
        """Whether heads on cached features are fitted by the exact solver."""
        said = any(getattr(self, name) is not None for name in SGD_CHOICES)
        return self.solver != "sgd" and not said

    @property
    def seed_changes_nothing(self) -> bool:
        """Whether every seed gives the same row: nothing is drawn, split or ordered."""
        return (
            self.on_cached_features
            and self.exact
            and self.num_train is None
            and self.select_on == "test"
        )

    @property
    def holds_out(self) -> bool:
        """Whether hyper-parameters are chosen on a part of the training images."""
        usual = "val" if self.protocol == "fastadv" else None
        return (self.select_on or usual) == "val"

    def side(self, source_side: int) -> int:
        """Side of the images in pixels, for a source trained at `source_side`."""
        usual = source_side if self.protocol == "fastadv" else PUBLISHED_SIDE
        return self.resolution or usual

    def training(self) -> TrainConfig:
        """The training method as `fastadv-train` takes it.

        Raises:
            ConfigError: the method does not go with its parameters.
        """
        return TrainConfig(
            method=self.method,
            norm=self.norm,
            eps=self.eps,
            num_steps=self.num_steps,
            beta=self.beta,
        )

    def _usual_seeds(self) -> tuple[int, ...]:
        if self.protocol != "utrera2021" or self.num_train is None:
            return (0,)
        # Published sizes end at 25,600, then comes the whole set, run once.
        most = ((6400, 10), (25600, 5))
        return tuple(range(next((c for n, c in most if self.num_train <= n), 1)))
