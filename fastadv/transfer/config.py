"""What a transfer experiment is: every choice, its default and its help text. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastadv.data.config import AugmentName, TrainingImagesConfig
from fastadv.device import DeviceConfig
from fastadv.errors import ConfigError
from fastadv.extensions import name_of
from fastadv.flags import Pixels, arg
from fastadv.models.handed_in import named_source
from fastadv.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Range
from fastadv.results.config import KeepConfig
from fastadv.threat import ThreatModel
from fastadv.training.optimizer_config import default_lr
from fastadv.transfer.protocols import PROTOCOLS, Protocol, protocol_named
from fastadv.transfer.tuning_config import SGD_CHOICES, TUNING_CHOICES, TuningConfig

Mode = Literal["fixed_feature", "full_network", "last_k_blocks", "scratch"]


@dataclass(frozen=True, kw_only=True)
class TransferConfig(TuningConfig, TrainingImagesConfig, DeviceConfig, KeepConfig):
    """Transfer a pretrained model to a data set and append the result to a table.

    There are four modes. fixed_feature fits a linear head to features of the frozen
    network, which are computed once and kept. full_network fine-tunes all of the network,
    last_k_blocks its last k blocks and the head. scratch trains the same network from
    random weights. Frozen parts do not change, inputs are normalised as the source's, and
    hyper-parameters are chosen on a validation split. --protocol salman2020, utrera2021 or
    zhang2023 repeats the published experiments instead, known flaws of the published code
    included; each result lists them.

    Raises:
        ConfigError: A value that cannot work, or values that do not go together.
    """

    source: Annotated[str, arg(aliases=["--model-path"])]
    """The pretrained model: a run directory, a checkpoint file, torchvision:NAME,
    timm:NAME, hf:ORG/NAME, package:NAME, salman2020:resnet50_l2_eps3, robustbench:NAME,
    or row:IDENTITY for the network of a row. `fastadv-models show SOURCE` describes it."""
    dataset: str
    """A data set name, an ImageFolder (train/, val/ or test/) or a .zip of one."""
    mode: Mode = "fixed_feature"
    """Which part of the network is trained."""
    k: Annotated[int | None, AT_LEAST_0] = None
    """Number of blocks before the head that last_k_blocks trains; 0 trains the head
    alone."""
    protocol: Annotated[
        str, arg(metavar="{" + ",".join(PROTOCOLS) + "}|MODULE:NAME")
    ] = "fastadv"
    """Which experiment supplies the settings that are not given. MODULE:NAME imports a
    protocol of your own; so does a name that an installed package adds."""
    name: str | None = None
    """Name of the source in the results. Default: its file or directory name."""
    arch: str | None = None
    """Architecture of the source, if its checkpoint does not state it."""
    download: bool = False
    """Download a named source that is not on this machine."""
    source_accuracy: Annotated[float | None, Range(0, 100, "[]")] = None
    """Accuracy of the source on its own test images in percent, stored unchanged in the
    results."""
    resolution: Annotated[int | None, AT_LEAST_1, arg(aliases=["--crop"])] = None
    """Side of the images that the network sees in pixels. Default: that of the source's
    training, 224 in the published protocols."""
    downscale: Annotated[int | None, AT_LEAST_1] = None
    """Reduce all images to this side in pixels first, for example 32."""
    num_train: Annotated[int | None, AT_LEAST_1] = None
    """Use a seeded subset of N training images: stratified, or with utrera2021 random with
    at least one of each class. Default: all of them."""
    seeds: Annotated[tuple[int, ...], Range(0, 2**32)] = ()
    """Random seeds of subset, validation split, head and order; each gives a result. Only
    the first is used if nothing depends on it. Default: 0; with utrera2021 ten seeds up to
    6,400 images, five up to 25,600, one for more or all."""
    val_fraction: Annotated[float, Range(0, 1, "()")] = 0.1
    """Share of the training images held out to choose hyper-parameters. Small sets hold out
    more: at least one image of each class that has two."""
    select_on: Literal["val", "test", "none"] | None = None
    """Images on which hyper-parameters are chosen; test is meant for comparisons with
    published numbers alone. With none, nothing is chosen and no image is held out, which
    needs one learning rate. Default: val, or none where there is nothing to choose;
    salman2020 and zhang2023 choose on test, utrera2021 chooses nothing."""
    select_by: Literal["clean", "robust"] | None = None
    """Accuracy that hyper-parameters are chosen by: on clean images, or under PGD of ten
    steps with the norm and radius of --method. Default: robust if the method attacks,
    else clean; zhang2023 always chooses by clean accuracy."""
    refit: Literal["heads", "all", "none"] = "heads"
    """What is fitted again, after the choice on validation images, to these and the
    training images together: heads on cached features (heads), networks that train as well
    (all), which doubles the time of one learning rate, or nothing (none)."""
    solver: Literal["lbfgs", "sgd"] | None = None
    """How fixed_feature fits the head: exactly, choosing the regularisation (lbfgs), or by
    SGD, choosing the learning rate. Default: lbfgs, unless an SGD flag is given."""
    strengths: Annotated[tuple[float, ...] | None, ABOVE_0] = None
    """Inverse regularisation strengths C that lbfgs chooses from. Default: 1e-4 to 1 in
    powers of ten; 0.01 alone with --select-on none."""
    frozen_bn: Literal["eval", "train"] | None = None
    """Whether BatchNorm statistics of frozen layers stay as they are (eval) or follow the
    target images (train), as in the published runs. Default: eval."""
    augment: AugmentName = "auto"
    """Augmentation of the training images. With auto, it is that of the protocol, or the
    usual one of the data set. A value that is given also decides how images are cropped for
    evaluation, instead of the source."""
    robust_eps: Pixels | None = None
    """Also measure the robust accuracy of the result, under PGD of this radius in [0, 1]
    pixel units."""
    robust_steps: Annotated[int | None, AT_LEAST_1] = None
    """Number of PGD steps with --robust-eps, from a random start. Default: 20; with
    zhang2023 10."""
    feature_cache: str = "auto"
    """Folder for the features of frozen networks. With auto, it is in the user's cache
    folder; with off, features are not kept."""
    results: str = "results"
    """Results table, a directory of Parquet files to which the results are added."""
    test_epochs: Annotated[tuple[int, ...], AT_LEAST_1] = ()
    """Also measure the accuracy on the test images after these epochs of the training,
    for example 11 21 41 81. Nothing is chosen by it."""
    save: bool = False
    """Also keep the weights of networks that were fine-tuned, the same as --keep
    networks."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Data type of fine-tuning; bf16 uses autocast. Features and accuracies are computed
    in fp32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "source", named_source(self.source))
        named = name_of(self.protocol, PROTOCOLS, "protocols")
        object.__setattr__(self, "protocol", named)
        protocol_named(named)  # raises where there is none
        if self.save:
            object.__setattr__(self, "keep", "networks")
        if not self.seeds:
            object.__setattr__(self, "seeds", self._usual_seeds())
        for seed in self.seeds:
            if self.seeds.count(seed) > 1:
                raise ConfigError(
                    f"`seeds={' '.join(map(str, self.seeds))}`: {seed} is there more "
                    "than once, and would be the same row again; give each seed once"
                )
        for name in ("lrs", "lrs_head", "lrs_trunk", "strengths"):
            if getattr(self, name) == ():
                raise ConfigError(f"`{name}` needs at least one value")
        self._check_mode()
        self._check_rates()
        self._check_attacks()
        self._check_selection()
        if self.seed_changes_nothing:
            # Rows that cannot differ would pass for a result that never varies.
            object.__setattr__(self, "seeds", self.seeds[:1])

    def _check_attacks(self) -> None:
        attacked = self.robust_eps is not None
        if self.robust_eps is not None:
            try:
                ThreatModel(self.norm, self.robust_eps)  # type: ignore[arg-type]
            except ValueError as error:
                raise ConfigError(str(error)) from None
        if self.protocol == "zhang2023" and not (attacked and self.norm == "linf"):
            raise ConfigError(
                "`protocol=zhang2023` compares accuracies under an attack within linf; "
                "add `norm=linf` and `robust_eps`, for example `robust_eps=1/255`"
            )
        if self.robust_steps is not None and not attacked:
            raise ConfigError(
                f"`robust_steps={self.robust_steps}` belongs to `robust_eps`; add that"
            )
        if self.norm != "l2" and not attacked and self.method == "standard":
            raise ConfigError(
                f"`norm={self.norm}` belongs to `eps` and `robust_eps`; add "
                "`method=pgd_at` or `robust_eps`"
            )
        self.check_method()

    def _check_selection(self) -> None:
        if self.select_by == "robust" and self.method == "standard":
            raise ConfigError(
                "`select_by=robust` chooses under the attack of the training method, and "
                "`method=standard` has none; add `method=pgd_at` or another that attacks"
            )
        if self.select_by is not None and self.selects_on == "none":
            raise ConfigError(
                f"`select_by={self.select_by}`: there is nothing to choose; give several "
                "learning rates in `lrs`, or leave `select_by` out"
            )
        if self.select_on == "none":
            given, name = (self.strengths, "strengths")
            if not (self.on_cached_features and self.exact):
                name = "lrs" if self.lrs_trunk is None else "lrs_trunk"
                given = self.rates
                if self.lrs_head is not None and len(self.lrs_head) > 1:
                    given, name = self.lrs_head, "lrs_head"
            if given is not None and len(given) > 1:
                listed = " ".join(f"{value:g}" for value in given)
                raise ConfigError(
                    f"`select_on=none` chooses nothing, but there are {len(given)} values "
                    f"of `{name}`: {listed}; give one, for example "
                    f"`{name}={given[0]:g}`"
                )

    def _check_mode(self) -> None:
        if (self.k is None) == (self.mode == "last_k_blocks"):
            raise ConfigError(
                "`mode=last_k_blocks` needs `k`, the number of blocks that train, e.g. 3"
                if self.k is None
                else f"`k={self.k}` belongs to `mode=last_k_blocks`, not to {self.mode}"
            )
        frozen = self.mode in ("fixed_feature", "last_k_blocks")
        if self.frozen_bn is not None and not frozen:
            raise ConfigError(
                f"`frozen_bn={self.frozen_bn}`: `mode={self.mode}` freezes nothing"
            )
        if self.solver is not None and not self.on_cached_features:
            raise ConfigError(
                f"`solver={self.solver}` belongs to features that are computed once: to "
                "`mode=fixed_feature`, `protocol=fastadv`, with `frozen_bn=eval`"
            )
        given = [name for name in SGD_CHOICES if getattr(self, name) is not None]
        if self.test_epochs and self.on_cached_features:
            raise ConfigError(
                "`test_epochs` belongs to networks that train; `mode=fixed_feature` fits "
                "heads to features that are computed once"
            )
        if self.precision != "fp32" and self.on_cached_features:
            raise ConfigError(
                f"`precision={self.precision}` belongs to networks that train; "
                "`mode=fixed_feature` computes features once, in fp32. In a recipe it "
                "belongs to the protocols that train"
            )
        if self.solver == "lbfgs" and given:
            raise ConfigError(
                f"`{given[0]}` belongs to `solver=sgd`; lbfgs is exact and takes no such "
                "choice"
            )
        if self.strengths is not None and not (self.on_cached_features and self.exact):
            raise ConfigError(
                "`strengths` belongs to `mode=fixed_feature` with `solver=lbfgs`, not to "
                "SGD; give learning rates in `lrs` there"
            )
        if self.on_cached_features and self.method != "standard":
            raise ConfigError(
                f"`method={self.method}` attacks the network anew in every step, so its "
                "features cannot be computed once; use `mode=last_k_blocks` `k=0`"
            )

    def _check_rates(self) -> None:
        given = [name for name in TUNING_CHOICES if getattr(self, name) is not None]
        if self.on_cached_features and given:
            raise ConfigError(
                f"`{given[0]}` belongs to networks that train; `mode=fixed_feature` fits "
                "the head alone, by lbfgs or SGD, with the learning rates in `lrs`"
            )
        both = [name for name in given if name != "optimizer"]
        if not both:
            return
        if len(both) == 1 or self.lrs is not None:
            raise ConfigError(
                f"`{both[0]}`: give `lrs_head` and `lrs_trunk` together, and no `lrs`, or "
                "`lrs` alone for one learning rate of all that trains"
            )
        if self.mode == "fixed_feature" or self.k == 0:
            raise ConfigError(
                "`lrs_trunk`: only the head trains here, so there is one learning rate; "
                "give `lrs`"
            )

    @property
    def prescribed(self) -> Protocol:
        """The protocol that `protocol` names."""
        return protocol_named(self.protocol)

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
        chosen = any(getattr(self, name) is not None for name in SGD_CHOICES)
        return self.solver != "sgd" and not chosen

    @property
    def seed_changes_nothing(self) -> bool:
        """Whether every seed gives the same row: nothing is drawn, split or ordered."""
        return (
            self.on_cached_features
            and self.exact
            and self.num_train is None
            and self.selects_on != "val"
        )

    @property
    def rates(self) -> tuple[float, ...] | None:
        """Learning rates to choose from, of the trunk where the head has its own.

        None for those of a published protocol.
        """
        if self.lrs_trunk is not None:
            return self.lrs_trunk
        if self.lrs is not None or self.protocol != "fastadv":
            return self.lrs
        if self.optimizer is not None and default_lr(self.optimizer) < 0.1:
            return (1e-3, 1e-4)  # its steps are normalised for each weight
        # A network with random weights needs longer steps than one that is fine-tuned.
        return (0.1, 0.01) if self.mode == "scratch" else (0.01, 0.001)

    @property
    def selects_on(self) -> Literal["val", "test", "none"]:
        """Images on which hyper-parameters are chosen, after protocol and flags."""
        if self.select_on is not None:
            return self.select_on
        if self.protocol != "fastadv":
            return self.prescribed.select_on
        choices = self.rates
        if self.on_cached_features and self.exact:
            choices = self.strengths
        alone = choices is not None and len(choices) == 1
        return "none" if alone and len(self.lrs_head or (0,)) == 1 else "val"

    @property
    def selects_by(self) -> Literal["clean", "robust"]:
        """Accuracy that hyper-parameters are chosen by, after method and flags."""
        if self.selects_on == "none" or self.method == "standard":
            return "clean"
        usual = "clean" if self.protocol == "zhang2023" else "robust"
        return self.select_by or usual  # type: ignore[return-value]

    @property
    def judge_steps(self) -> int:
        """Number of PGD steps under which the result is measured."""
        return self.robust_steps or (10 if self.protocol == "zhang2023" else 20)

    @property
    def subset_kind(self) -> Literal["stratified", "random"]:
        """How a part of the training images is drawn."""
        random = self.protocol == "utrera2021" and self.num_train is not None
        return "random" if random else "stratified"

    @property
    def holds_out(self) -> bool:
        """Whether hyper-parameters are chosen on a part of the training images."""
        return self.selects_on == "val"

    @property
    def refits(self) -> bool:
        """Whether the result is fitted again to training and validation images."""
        kinds = ("heads", "all") if self.on_cached_features else ("all",)
        return self.holds_out and self.refit in kinds

    def side(self, source_side: int) -> int:
        """Return the side of the images, for a source trained at `source_side` pixels."""
        return self.resolution or self.prescribed.side or source_side

    def _usual_seeds(self) -> tuple[int, ...]:
        if self.protocol != "utrera2021" or self.num_train is None:
            return (0,)
        # Published sizes end at 25,600, then comes the whole set, run once.
        most = ((6400, 10), (25600, 5))
        return tuple(range(next((c for n, c in most if self.num_train <= n), 1)))
