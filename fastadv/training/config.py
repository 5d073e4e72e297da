"""What a training run is: every choice, its default and its help text. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from fastadv.errors import ConfigError, unknown_name
from fastadv.models.names import ARCHITECTURES
from fastadv.threat import ThreatModel, parse_norm, parse_pixels

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

    Defaults are the recipe of Salman et al. 2020 but for its colour jitter: SGD, lr 0.1,
    momentum 0.9, weight decay 1e-4, 90 epochs, lr x 0.1 every third of the run, three
    attack steps of 2/3 eps.
    """

    arch: str = "resnet18"
    """Architecture: a torchvision name, a *_cifar variant or timm/NAME."""
    data: str = "shapetex"
    """A data set name, an ImageFolder (train/, val/) or a .zip of one."""
    resolution: int | None = None
    """Side of the training images in pixels; default that of the images, at most 224.
    Procedural images are drawn at 64 px, for *_cifar architectures at 32."""
    num_train: int | None = None
    """Train on a stratified, seeded subset of so many images."""
    augment: Literal["auto", "none", "crop_flip", "rrc"] = "auto"
    """Random crops and flips; auto is what suits the data set."""
    norm: Annotated[NormName, arg(aliases=["--constraint"])] = "l2"
    """Norm of the perturbation."""
    eps: Pixels | None = None
    """Radius in pixel units, e.g. 3 (l2) or 4/255 (linf); 0 trains without attack.
    Default: 3 for l2, 4/255 for linf."""
    num_steps: Annotated[int, arg(aliases=["--attack-steps"])] = 3
    """Attack steps per training step."""
    step_size: Annotated[Pixels | None, arg(aliases=["--attack-lr"])] = None
    """Length of an attack step in pixel units; default 2/3 of eps, or as much as fewer
    than three steps need to cross the ball."""
    random_start: bool = False
    """Begin the attack at a random point of the ball."""
    epochs: int = 90
    """Passes over the training set."""
    batch_size: int | None = None
    """Images per update; default 512, or 128 for sets under 50,000 images."""
    lr: float = 0.1
    """Initial (for onecycle: highest) learning rate."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    """Of SGD."""
    schedule: Literal["step", "cosine", "onecycle", "constant"] = "step"
    """Learning rate over the run; step: x 0.1 at each third."""
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
    """Continue the run in --out from its last checkpoint, bit for bit."""
    save_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; each epoch's end saves too."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU when there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Compute type of network passes; weights stay float32."""
    compile: CompileName = "auto"
    """How the steps of an attack run; inductor: the network by torch.compile; graph: all of
    them as a CUDA graph, which keeps the memory of a batch; full: both; off: one by one;
    auto: graph on CUDA, else off."""
    backend: str = "auto"
    """Kernel backend (see fastadv-doctor); auto takes the first that can run."""
    loader: Literal["auto", "memory", "torchvision"] = "auto"
    """How batches arrive; auto keeps sets that fit in memory there."""
    workers: int | None = None
    """Decoding threads or processes; default one per core, at most 8."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """skip: count, name and replace by one of its class; fail: stop."""

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES and not self.arch.startswith("timm/"):
            raise ConfigError(unknown_name("architecture", self.arch, ARCHITECTURES))
        for name in ("epochs", "num_steps", "eval_every", "eval_steps", "eval_images"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("batch_size", "resolution", "num_train", "val_size"):
            value = getattr(self, name)
            _require(name, value, value is None or value >= 1, "at least 1")
        _require("lr", self.lr, math.isfinite(self.lr) and self.lr > 0, "above 0")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _require(
            "weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0"
        )
        _require(
            "save_minutes", self.save_minutes, self.save_minutes >= 0, "at least 0"
        )
        try:
            object.__setattr__(self, "norm", parse_norm(self.norm))
            if self.eps is None:
                object.__setattr__(self, "eps", DEFAULT_EPS[self.norm])
            object.__setattr__(self, "eps", self.threat.eps)
            if self.step_size is not None:
                object.__setattr__(self, "step_size", parse_pixels(self.step_size))
        except ValueError as error:
            raise ConfigError(str(error)) from None

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
        name = f"{self.arch.replace('/', '-')}_{threat}_{data}_s{self.seed}"
        return Path("runs") / name

    def resolve_batch_size(self, num_images: int) -> int:
        """`batch_size`, or its default for a training set of `num_images`."""
        if self.batch_size is not None:
            return min(self.batch_size, num_images)
        return min(512 if num_images >= _SMALL_SET else 128, num_images)

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
    return scheduled(config.lr, config.schedule, step, total_steps)


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
        return lr * 0.5 * (1 + math.cos(math.pi * step / total))
    if schedule == "onecycle":
        return lr * min(max(step, 1) / total / 0.3, (1 - step / total) / 0.7, 1.0)
    return lr
