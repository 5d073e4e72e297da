"""What a training run is: every choice, its default and its help text. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from fastadv.data.config import Backend, TrainingImagesConfig
from fastadv.device import DeviceConfig
from fastadv.errors import ConfigError
from fastadv.flags import arg
from fastadv.models.own_networks import check_arch
from fastadv.ranges import AT_LEAST_0, AT_LEAST_1, Range, ordered_values
from fastadv.training.method_config import MethodConfig
from fastadv.training.optimizer_config import OptimizerConfig

# Sets below this size train with smaller batches than the published recipe: 512 of
# 4,000 images would be eight updates an epoch.
_SMALL_SET = 50_000
# Sides in pixels at which procedural images are drawn; the second for *_cifar networks.
DRAWN, DRAWN_SMALL = 64, 32


@dataclass(frozen=True, kw_only=True)
class TrainConfig(MethodConfig, OptimizerConfig, TrainingImagesConfig, DeviceConfig):
    """Pretrain a classifier, adversarially unless --eps is 0.

    The defaults are the recipe of Salman et al. 2020, its colour augmentation included:
    SGD with learning rate 0.1, momentum 0.9 and weight decay 1e-4, 90 epochs, the learning
    rate multiplied by 0.1 after every third of the run, and an attack of three steps of
    2/3 eps. One thing departs from it: training takes the last iterate of the attack, theirs
    the iterate of the highest loss, the image itself included. --help-all shows the rarer
    flags, too: augmentation, the parameters of single methods, validation, ranks.

    Raises:
        ConfigError: A value that cannot work, or values that do not go together.
    """

    # Flags that only --help-all shows.
    RARE: ClassVar[tuple[str, ...]] = (
        "resize", "interpolation", "color_jitter", "lighting", "noise", "replays",
        "num_restarts", "clean_epochs", "eps_warmup", "accumulate", "clip_grad",
        "label_smoothing", "mixup", "cutmix", "progressive", "on_overfit", "bn_mode",
        "milestones", "peak", "val_size", "eval_every", "eval_steps", "eval_images",
        "pictures_every", "keep_every", "sync_bn", "parallel", "grey", "autotune",
    )  # fmt: skip

    arch: str = "resnet18"
    """Architecture: a torchvision name, a *_cifar variant, timm/NAME, or a network of your
    own as package.module:function."""
    grey: bool = False
    """Train a network of one channel on grey images; those in colour are converted."""
    data: str = "shapetex"
    """A data set name (`fastadv-data list`), an ImageFolder (train/, val/) or a .zip of one,
    packed shards, TFRecord, RecordIO or hf:NAME. Without it and --config, the command is a
    try-out on the built-in set shapetex_bold, with defaults of its own for
    resolution, epochs, batches, optimiser, schedule and the growth of the radius."""
    epochs: Annotated[int, AT_LEAST_1] = 90
    """Number of passes over the training set."""
    batch_size: Annotated[int | None, AT_LEAST_1] = None
    """Images per update, over all ranks together; a multiple of their number. Default: 512,
    or 128 for sets under 50,000 images."""
    init_from: str | None = None
    """Begin with the weights of a run or a checkpoint, or with those that torchvision or
    timm publish. A head of another number of classes is replaced. Default: random
    weights."""
    resolution: Annotated[int | None, AT_LEAST_1] = None
    """Side of the training images in pixels. Default: that of the images, at most 224;
    procedural images are drawn at 64 px, for *_cifar architectures at 32."""
    color_jitter: Annotated[float | None, Range(0, 1, "[]")] = None
    """Share by which brightness, contrast and saturation vary. Default: 0.1 with random
    resized crops (rrc), as published, else 0."""
    lighting: Annotated[float | None, Range(0, 1, "[]")] = None
    """Standard deviation of the noise along the principal components of ImageNet's
    colours. Default: 0.05 with random resized crops (rrc), as published, else 0."""
    loader: Backend = "auto"
    """How images are loaded. With auto, sets that fit are kept in memory; others are
    decoded by dali on CUDA, where it runs, else by torchvision."""
    progressive: Annotated[int | None, AT_LEAST_1] = None
    """Side of the images in the first quarter of the epochs; it grows to --resolution in
    the last. An l2 radius shrinks with the side. Default: the side is constant."""
    clean_epochs: Annotated[int, AT_LEAST_0] = 0
    """Number of first epochs without an attack. Deep networks that find no start under a
    large radius learn something first, in a quarter of the time of attacked epochs."""
    eps_warmup: Annotated[int, AT_LEAST_0] = 0
    """Number of epochs, after the clean ones, over which the radius grows linearly to eps."""
    label_smoothing: Annotated[float, Range(0, 1)] = 0.0
    """Share of each label that is spread over all classes, for the attack as well."""
    mixup: Annotated[float, AT_LEAST_0] = 0.0
    """Alpha of mixup; 0 turns it off. The attack maximises the mixed loss."""
    cutmix: Annotated[float, AT_LEAST_0] = 0.0
    """Alpha of CutMix; 0 turns it off. If mixup is on as well, each batch gets one of the
    two at random."""
    accumulate: Annotated[int, AT_LEAST_1] = 1
    """Split each batch into N parts that pass the network one after the other, to save
    memory (gradient accumulation); all of them make one update."""
    ema: Annotated[float | None, Range(0, 1, "()")] = None
    """Decay of an exponential moving average of the weights, for example 0.999. The average
    is then validated, tested and published. Default: no average."""
    on_overfit: Literal["fallback", "stop", "warn"] = "fallback"
    """What happens if a method of a single step overfits catastrophically: go back to the
    weights before and train on with PGD (fallback), stop, or warn and train on."""
    val_size: Annotated[int | None, AT_LEAST_1] = None
    """Number of training images held out to choose the best epoch. Default: 5 %, at most
    10,000."""
    eval_every: Annotated[int, AT_LEAST_1] = 1
    """Number of epochs between validations."""
    eval_steps: Annotated[int, AT_LEAST_1] = 10
    """Number of PGD steps in validations and the final test."""
    eval_images: Annotated[int, AT_LEAST_1] = 1000
    """Maximum number of images attacked in a validation or the final test."""
    seed: int = 0
    """Random seed of initialisation, order, augmentation and random starts."""
    out: Annotated[str | None, arg(aliases=["--out-dir"])] = None
    """Run directory. Default: runs/ARCH_NORM_EPS_DATA_sSEED."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, bit for bit. `--resume auto` also
    starts the run if there is none, for jobs that are requeued."""
    pictures_every: Annotated[int | None, AT_LEAST_1] = None
    """Draw adversarial examples and gradients every N epochs, in RUN/pictures. Default:
    never."""
    tensorboard: bool = False
    """Also log curves and pictures for TensorBoard, in RUN/tensorboard."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases; WANDB_MODE is respected."""
    save_minutes: Annotated[float, Range(0, ends="[]")] = 10.0
    """Minutes between checkpoints within an epoch; one is saved after each epoch, too."""
    keep_every: Annotated[int | None, AT_LEAST_1] = None
    """Keep the checkpoint of every Nth epoch, besides the best and the last two."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks (torchrun, --nproc) share the work. fsdp spreads gradients and the
    state of the optimiser over them."""
    autotune: bool = False
    """Let cuDNN time its algorithms for each shape of batch on a GPU and take the quickest.
    That saves some time with images of one size, and costs the equality of a resumed run to
    the bit, since the choice may differ in the next process."""
    sync_bn: bool = False
    """Compute BatchNorm statistics over the batch of all ranks, not of each."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Data type of network passes; weights stay float32, and fp16 scales the loss. With
    auto, it is bf16 on CUDA devices that have it, else fp32. There, fp32 convolves in TF32
    (10 bits of mantissa), as torch does by default; validations and tests do not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arch(self.arch)
        if self.clean_epochs + self.eps_warmup >= self.epochs:
            clean = (
                f"`clean_epochs={self.clean_epochs}` and " if self.clean_epochs else ""
            )
            raise ConfigError(
                f"{clean}`eps_warmup={self.eps_warmup}` never reaches eps in "
                f"`epochs={self.epochs}`; {'their sum' if clean else 'it'} must be below "
                "`epochs`"
            )
        mixes_labels = bool(self.label_smoothing or self.mixup or self.cutmix)
        if mixes_labels and not self.entry.soft_labels:
            raise ConfigError(
                f"`method={self.method}` needs one true class per image; leave out "
                "`label_smoothing`, `mixup` and `cutmix`"
            )
        self._check_used()
        if self.precision == "fp16" and self.method == "gradalign":
            raise ConfigError(
                "`precision=fp16` cannot hold the second derivatives of "
                "`method=gradalign`; use bf16 or fp32"
            )

    def _usual_side(self) -> int:
        if self.resolution is not None:
            return self.resolution
        if self.arch.endswith("_cifar"):
            return DRAWN_SMALL
        return DRAWN if self.data.startswith("shapetex") else super()._usual_side()

    def _check_used(self) -> None:
        """Refuse values that the method would silently ignore."""
        if not self.entry.attacks:
            given = {
                "num_steps": self.num_steps != self.entry.num_steps,
                "step_size": self.step_size is not None,
                "random_start": self.random_start,
                "clean_epochs": self.clean_epochs > 0,
                "eps_warmup": self.eps_warmup > 0,
            }
            if idle := ", ".join(f"`{name}`" for name, used in given.items() if used):
                raise ConfigError(
                    f"`method={self.method}` does not attack, so {idle} would do "
                    "nothing; leave it out, or choose another `method`"
                )
        if self.on_overfit != "fallback" and not self.entry.one_step:
            raise ConfigError(
                f"`on_overfit={self.on_overfit}` is for methods that attack in one step, "
                f"which `method={self.method}` is not; leave it out"
            )

    @property
    def out_path(self) -> Path:
        """Folder in which the run is kept."""
        if self.out:
            return Path(self.out).expanduser()
        data = Path(self.data).stem
        threat = str(self.threat).replace(" ", "").replace("/", "-")
        threat = threat if self.adversarial else "standard"
        method = f"_{self.method.rpartition(':')[2]}"
        method = method if self.method not in ("pgd_at", "standard") else ""
        name = f"{self.arch}_{threat}{method}_{data}_s{self.seed}"
        return Path("runs") / re.sub("[/:]", "-", name)

    def resolve_batch_size(self, num_images: int, ranks: int = 1) -> int:
        """Return `batch_size`, or its default for a training set of `num_images`.

        The default, and a set smaller than the batch, are rounded down to what `ranks` can
        share equally.
        """
        default = 512 if num_images >= _SMALL_SET else 128
        size = min(self.batch_size or default, num_images)
        if size != self.batch_size:
            size = max(size - size % ranks, ranks)
        return size

    def to_dict(self) -> dict[str, Any]:
        """Return plain values in the order of the flags, for config.yaml."""
        return ordered_values(self, type(self))
