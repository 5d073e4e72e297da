"""What a training run is: every choice, its default and its help text. Needs no torch."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from tyro.conf import UseAppendAction, arg

from fastadv.data.dataset_options import dataset_options
from fastadv.errors import ConfigError, unknown_name
from fastadv.models.names import ARCHITECTURES
from fastadv.threat import ThreatModel, parse_norm, parse_pixels
from fastadv.training.methodnames import (
    METHODS,
    MethodName,
    OptimizerName,
    default_lr,
    resolve_method,
)

Pixels = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PIXELS",
        instance_from_str=lambda args: parse_pixels(args[0]),
        is_instance=lambda value: isinstance(value, (int, float)),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]
# Of `fastadv.attacks.compiled`, which would import torch for --help; a test compares.
CompileName = Literal["auto", "off", "inductor", "graph", "full"]
NormName = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{l2,linf}",
        instance_from_str=lambda args: parse_norm(args[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]

# Sets below this size train with smaller batches than the published recipe: 512 of
# 4,000 images would be eight updates an epoch.
_SMALL_SET = 50_000
DEFAULT_EPS = {"l2": 3.0, "linf": 4 / 255}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Pretrain a classifier, adversarially unless --eps is 0.

    Defaults are the recipe of Salman et al. 2020, colours included: SGD, lr 0.1,
    momentum 0.9, weight decay 1e-4, 90 epochs, lr x 0.1 every third of the run, three
    attack steps of 2/3 eps. --help-all shows the rarer flags, too: augmentation, methods'
    own parameters, validation, ranks.
    """

    # Flags that only --help-all shows.
    RARE: ClassVar[tuple[str, ...]] = (
        "color_jitter", "lighting", "noise", "replays", "eps_warmup", "accumulate",
        "clip_grad", "label_smoothing", "mixup", "cutmix", "progressive", "on_overfit",
        "milestones", "val_size", "eval_every", "eval_steps", "eval_images", "pictures_every",
        "keep_every", "sync_bn", "parallel",
    )  # fmt: skip

    arch: str = "resnet18"
    """Architecture: a torchvision name, a *_cifar variant or timm/NAME."""
    data: str = "shapetex"
    """A data set name (`fastadv-data list`), an ImageFolder (train/, val/) or a .zip of one,
    packed shards, TFRecord, RecordIO or hf:NAME."""
    dataset_option: UseAppendAction[tuple[str, ...]] = ()
    """KEY=VALUE of that data set, e.g. partition=2 or root=DIR."""
    resolution: int | None = None
    """Side of the training images in pixels; default that of the images, at most 224.
    Procedural images are drawn at 64 px, for *_cifar architectures at 32."""
    num_train: int | None = None
    """Train on a stratified, seeded subset of so many images."""
    augment: Literal["auto", "none", "crop_flip", "rrc"] = "auto"
    """Random crops and flips; auto is what suits the data set."""
    color_jitter: float | None = None
    """Share by which brightness, contrast and saturation vary; default 0.1 with random
    resized crops (rrc), as published, and else 0."""
    lighting: float | None = None
    """Deviation of the noise along ImageNet's colour components; default 0.05 with random
    resized crops (rrc), as published, and else 0."""
    method: MethodName = "pgd_at"
    """What is descended on (recipes/*.yaml): pgd_at and standard, trades, mart, and with a
    single attack step free, rs_fgsm, n_fgsm, gradalign; discrepancy for fine-tuning."""
    beta: float | None = None
    """Weight of the second term; default 6 for trades, 5 for mart, 0.2 for gradalign, 500
    for discrepancy."""
    replays: int | None = None
    """Updates on each batch of free; default 4. Epochs count passes over the data."""
    noise: float | None = None
    """Radius of the random start of n_fgsm, in units of eps; default 2."""
    init_from: str | None = None
    """Begin with these weights: a run, a checkpoint, or torchvision or timm for theirs; a
    head of another number of classes is replaced."""
    norm: Annotated[NormName, arg(aliases=["--constraint"])] = "l2"
    """Norm of the perturbation."""
    eps: Pixels | None = None
    """Radius in pixel units, e.g. 3 (l2) or 4/255 (linf); 0 trains without attack.
    Default: 3 for l2, 4/255 for linf."""
    eps_warmup: int = 0
    """Epochs over which the radius grows to eps, a little with each."""
    num_steps: Annotated[int | None, arg(aliases=["--attack-steps"])] = None
    """Attack steps per training step; default 3, for trades, mart and discrepancy 10."""
    step_size: Annotated[Pixels | None, arg(aliases=["--attack-lr"])] = None
    """Length of an attack step in pixel units; default 2/3 of eps, or as much as fewer
    than three steps need to cross the ball. Other methods have defaults of their own."""
    random_start: bool = False
    """Begin the attack at a random point of the ball."""
    epochs: int = 90
    """Passes over the training set."""
    batch_size: int | None = None
    """Images per update, those of all ranks together (and a multiple of their number);
    default 512, or 128 for sets under 50,000 images."""
    optimizer: OptimizerName = "sgd"
    """lars and lamb are for large batches; apex_* need NVIDIA apex."""
    lr: float | None = None
    """Initial (for onecycle: highest) learning rate; default 0.1, for adamw and lamb
    0.001."""
    momentum: float = 0.9
    """Of SGD; beta1 of adamw and lamb."""
    weight_decay: float = 1e-4
    """Of all weights; lars and lamb leave out biases and normalisation."""
    accumulate: int = 1
    """Parts that a batch passes the network in, to save memory; one update for all."""
    clip_grad: float | None = None
    """Greatest length of the gradient of all weights; longer ones are scaled down."""
    ema: float | None = None
    """Average the weights with this decay, e.g. 0.999; the average is what is validated,
    tested and published."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes; the attack sees it, too."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off. The attack maximises the mixed loss."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off. With mixup, a coin decides for each batch."""
    progressive: int | None = None
    """Side of the images in the first quarter of the epochs; it grows to --resolution in
    the last. An l2 radius shrinks with the side."""
    on_overfit: Literal["fallback", "stop", "warn"] = "fallback"
    """When a one-step method overfits catastrophically: go back to the weights before and
    on with PGD; stop; or say so and go on."""
    schedule: Literal["step", "cosine", "onecycle", "constant"] = "step"
    """Learning rate over the run; step: x 0.1 at each third."""
    milestones: tuple[float, ...] | None = None
    """Where step takes its x 0.1 instead, as shares of the run: 0.75 0.9 is after epochs
    75 and 90 of 100."""
    val_size: int | None = None
    """Training images held out to choose the best epoch; default 5 %, at most 10,000."""
    eval_every: int = 1
    """Epochs between validations."""
    eval_steps: int = 10
    """PGD steps of validation and final test."""
    eval_images: int = 1000
    """At most so many images are attacked in a validation or the final test."""
    seed: int = 0
    """Of initialisation, order, augmentation and random starts."""
    out: Annotated[str | None, arg(aliases=["--out-dir"])] = None
    """Run directory; default runs/ARCH_NORM_EPS_DATA_sSEED."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, bit for bit; start it where
    there is none. `--resume auto` is the same."""
    pictures_every: int | None = None
    """Epochs between pictures of adversarial examples and gradients, in RUN/pictures."""
    tensorboard: bool = False
    """Write curves and pictures for TensorBoard, too, to RUN/tensorboard."""
    wandb: str | None = None
    """Send them to this project of Weights & Biases, too; WANDB_MODE is respected."""
    save_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; each epoch's end saves too."""
    keep_every: int | None = None
    """Keep the checkpoint of every so manieth epoch, besides the best and the last two."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several ranks (torchrun, --nproc); fsdp spreads gradients and the optimiser's
    state over them."""
    sync_bn: bool = False
    """BatchNorm over the batch of all ranks, not of each."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU when there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Compute type of network passes; weights stay float32. auto: bf16 on CUDA devices that
    have it, else fp32. fp16 scales the loss."""
    compile: CompileName = "auto"
    """How the steps of an attack run; inductor: the network by torch.compile; graph: all of
    them as a CUDA graph, which keeps the memory of a batch; full: both; off: one by one;
    auto: graph on CUDA, else off."""
    backend: str = "auto"
    """Kernel backend (see fastadv-doctor); auto takes the first that can run."""
    loader: Literal["auto", "dali", "memory", "torchvision"] = "auto"
    """How batches arrive; auto keeps sets that fit in memory there, and otherwise takes
    dali on CUDA where it runs."""
    workers: int | None = None
    """Decoding threads or processes; default one per core, at most 8."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """skip: count, name and replace by one of its class; fail: stop."""

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES and not self.arch.startswith("timm/"):
            raise ConfigError(unknown_name("architecture", self.arch, ARCHITECTURES))
        for name in ("epochs", "eval_every", "eval_steps", "eval_images", "accumulate"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        optional = ("batch_size", "resolution", "num_train", "val_size", "num_steps")
        for name in (
            *optional,
            "replays",
            "progressive",
            "keep_every",
            "pictures_every",
        ):
            value = getattr(self, name)
            _require(name, value, value is None or value >= 1, "at least 1")
        if self.lr is None:
            object.__setattr__(self, "lr", default_lr(self.optimizer))
        for name in ("color_jitter", "lighting"):
            value = getattr(self, name)
            _require(name, value, value is None or 0 <= value <= 1, "in [0, 1]")
        for name in ("lr", "clip_grad"):
            value = getattr(self, name)
            holds = value is None or (math.isfinite(value) and value > 0)
            _require(name, value, holds, "above 0")
        for name in ("mixup", "cutmix", "eps_warmup"):
            value = getattr(self, name)
            holds = math.isfinite(value) and value >= 0
            _require(name, value, holds, "at least 0")
        smoothing = self.label_smoothing
        _require("label_smoothing", smoothing, 0 <= smoothing < 1, "in [0, 1)")
        _require("ema", self.ema, self.ema is None or 0 < self.ema < 1, "in (0, 1)")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _require(
            "weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0"
        )
        _require(
            "save_minutes", self.save_minutes, self.save_minutes >= 0, "at least 0"
        )
        self._check_milestones()
        dataset_options(self.dataset_option)  # says what is no KEY=VALUE
        if self.eps_warmup >= self.epochs:
            raise ConfigError(
                f"--eps-warmup {self.eps_warmup} never reaches eps in --epochs "
                f"{self.epochs}; it must be below --epochs"
            )
        try:
            object.__setattr__(self, "norm", parse_norm(self.norm))
            if self.eps is None:
                eps = DEFAULT_EPS[self.norm] if METHODS[self.method].attacks else 0.0
                object.__setattr__(self, "eps", eps)
            object.__setattr__(self, "eps", self.threat.eps)
            if self.step_size is not None:
                object.__setattr__(self, "step_size", parse_pixels(self.step_size))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        resolved = resolve_method(
            self.method,
            eps=self.threat.eps,
            num_steps=self.num_steps,
            random_start=self.random_start,
            mixes_labels=bool(self.label_smoothing or self.mixup or self.cutmix),
            beta=self.beta,
            replays=self.replays,
            noise=self.noise,
        )
        for name, value in resolved.items():
            object.__setattr__(self, name, value)
        self._check_used()
        if self.precision == "fp16" and self.method == "gradalign":
            raise ConfigError(
                "--precision fp16 cannot hold the second derivatives of --method "
                "gradalign; use bf16 or fp32"
            )

    def _check_used(self) -> None:
        """Refuse what the method would leave aside in silence."""
        entry = METHODS[self.method]
        if not entry.attacks:
            given = {
                "--num-steps": self.num_steps != entry.num_steps,
                "--step-size": self.step_size is not None,
                "--random-start": self.random_start,
                "--eps-warmup": self.eps_warmup > 0,
            }
            idle = ", ".join(flag for flag, is_given in given.items() if is_given)
            if idle:
                raise ConfigError(
                    f"--method {self.method} does not attack, so {idle} would do "
                    "nothing; leave it out, or choose another --method"
                )
        if self.on_overfit != "fallback" and not entry.one_step:
            raise ConfigError(
                f"--on-overfit {self.on_overfit} is for methods that attack in one step, "
                f"which --method {self.method} is not; leave it out"
            )

    def _check_milestones(self) -> None:
        if self.milestones is None:
            return
        shares = tuple(self.milestones)
        given = " ".join(f"{share:g}" for share in shares)
        rising = all(a < b for a, b in itertools.pairwise((0.0, *shares, 1.0)))
        if not shares or not rising:
            raise ConfigError(
                f"--milestones {given} cannot work; they must be rising shares of the "
                "run, between 0 and 1: epochs 75 and 90 of 100 are 0.75 0.9"
            )
        if self.schedule != "step":
            raise ConfigError(
                f"--milestones {given} are of --schedule step, not {self.schedule}; "
                "leave them out (over a file: --milestones None)"
            )
        object.__setattr__(self, "milestones", shares)

    @property
    def attack_steps(self) -> int:
        """Steps of the training attack."""
        return self.num_steps or METHODS[self.method].num_steps

    @property
    def parameters(self) -> dict[str, float]:
        """What the method takes besides the attack, by name."""
        return {name: getattr(self, name) for name in METHODS[self.method].parameters}

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius."""
        return ThreatModel(self.norm, self.eps or 0.0)  # type: ignore[arg-type]

    @property
    def adversarial(self) -> bool:
        """Whether training attacks its images."""
        return self.threat.eps > 0

    @property
    def out_path(self) -> Path:
        """Where the run is kept."""
        if self.out:
            return Path(self.out).expanduser()
        data = Path(self.data).stem
        threat = str(self.threat).replace(" ", "").replace("/", "-")
        threat = threat if self.adversarial else "standard"
        method = f"_{self.method}" if self.method not in ("pgd_at", "standard") else ""
        name = f"{self.arch.replace('/', '-')}_{threat}{method}_{data}_s{self.seed}"
        return Path("runs") / name

    def resolve_batch_size(self, num_images: int, ranks: int = 1) -> int:
        """`batch_size`, or its default for a training set of `num_images`.

        What was not asked for (the default, or all images of a set smaller than the
        batch) is rounded down to what `ranks` can share equally.
        """
        default = 512 if num_images >= _SMALL_SET else 128
        size = min(self.batch_size or default, num_images)
        if size != self.batch_size:
            size = max(size - size % ranks, ranks)
        return size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for config.yaml."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> TrainConfig:
        """Build from what `to_dict` gave.

        Raises:
            ConfigError: a key that is no field (near misses are named).
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"{where}: {unknown_name('key', str(key), known)}")
        return cls(**values)


def _require(name: str, value: object, holds: bool, accepted: str) -> None:
    if not holds:
        flag = name.replace("_", "-")
        raise ConfigError(f"--{flag} {value} cannot work; it must be {accepted}")


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Learning rate of update `step` (from 0) of `total_steps`."""
    lr = config.lr or default_lr(config.optimizer)
    if config.milestones is not None:
        reached = (step >= round(share * total_steps) for share in config.milestones)
        return lr * 0.1 ** sum(reached)
    return scheduled(lr, config.schedule, step, total_steps)


def scheduled(lr: float, schedule: str, step: int, total: int) -> float:
    """Learning rate at `step` (from 0) of `total`: a pure function, so a resumed run needs
    no scheduler state.

    `step` falls by ten at each third (Salman et al. 2020: every 30 of 90 epochs);
    `onecycle` rises linearly over the first 30 % and falls linearly to zero.
    """
    total = max(total, 1)
    if schedule == "step":
        return lr * 0.1 ** min(3 * step // total, 2)
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
    if schedule == "onecycle":
        # More ranks may need fewer updates: a run resumed on them can pass its `total`.
        left = max(1 - step / total, 0.0)
        return lr * min(max(step, 1) / total / 0.3, left / 0.7, 1.0)
    return lr
