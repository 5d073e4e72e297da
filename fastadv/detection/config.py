"""The choices of a detector and of its training, with their help texts. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from fastadv.data.config import OnBadImage
from fastadv.detection.attack_config import DetectorAttackConfig
from fastadv.device import DeviceConfig
from fastadv.errors import ConfigError
from fastadv.flags import arg
from fastadv.ranges import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    Checked,
    Range,
    ordered_values,
)
from fastadv.training.optimizer_config import OptimizerConfig, default_lr

# Learning rate of SGD for 16 images per update: torchvision's and Detectron2's.
_RATE, _RATE_BATCH = 0.02, 16
# Shares of the run after which Detectron2's 1x schedule lowers the rate: 60,000 and 80,000
# of 90,000 updates.
_MILESTONES = (2 / 3, 8 / 9)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(Checked):
    """How a detector is built on a network and sees its images."""

    scratch: bool = False
    """Begin with random weights of the same architecture instead of those of the source."""
    frozen_stages: Annotated[int | None, AT_LEAST_0] = None
    """Number of stages that do not train, from the input on; the stem belongs to the first.
    Default: 1, as in torchvision (trainable_backbone_layers=3) and Detectron2
    (FREEZE_AT=2: stem and res2); 0 from scratch."""
    frozen_norm: bool | None = None
    """Keep weights and statistics of all BatchNorm layers of the backbone. Default: yes, as
    torchvision (FrozenBatchNorm2d) and Detectron2 (FrozenBN) do; from scratch they train."""
    min_size: Annotated[tuple[int, ...], AT_LEAST_1] = (800,)
    """Length in pixels to which the shorter side of an image is resized. In training one of
    several is drawn for each batch (multi-scale; Detectron2: 640 672 704 736 768 800); the
    last one counts in evaluation."""
    max_size: Annotated[int, AT_LEAST_1] = 1333
    """Greatest length in pixels of the longer side after that."""
    anchor_scale: Annotated[float, ABOVE_0] = 8.0
    """Side of the anchors of a level of the pyramid in units of its stride. With 8 they
    are the published 32, 64, 128, 256 and 512 pixels at strides 4 to 64."""

    width: Annotated[int, AT_LEAST_1] = 256
    """Channels of the pyramid and of the convolutions of the heads. 256 as published; 64
    trains several times as fast on a processor."""
    sampled_boxes: Annotated[int, AT_LEAST_1] = 512
    """Number of proposals per image that the heads train on, a quarter of them on objects.
    512 in torchvision and Detectron2."""
    proposals: Annotated[int, AT_LEAST_1] = 1000
    """Number of proposals per image that the heads judge in evaluation; training samples
    from twice as many. 1000 in torchvision and Detectron2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min_size:
            raise ConfigError(
                "`min_size` is empty; give at least one length, such as 800"
            )
        if max(self.min_size) > self.max_size:
            raise ConfigError(
                f"`min_size={max(self.min_size)}` is above `max_size={self.max_size}`; "
                "raise `max_size`"
            )
        if self.scratch and self.frozen_stages:
            raise ConfigError(
                f"`frozen_stages={self.frozen_stages}` would keep random weights with "
                "`scratch`; leave it out"
            )
        if self.scratch and self.frozen_norm:
            raise ConfigError(
                "`frozen_norm` would keep the statistics of an untrained network with "
                "`scratch`; leave it out"
            )

    @property
    def frozen(self) -> tuple[int, bool]:
        """Number of frozen stages, and whether BatchNorm is frozen everywhere."""
        stages = self.frozen_stages
        norm = self.frozen_norm
        return (
            (0 if self.scratch else 1) if stages is None else stages,
            not self.scratch if norm is None else norm,
        )


@dataclass(frozen=True, kw_only=True)
class DetectionImages(Checked):
    """The images with objects of a command, and how they are read."""

    data: Annotated[str, arg(aliases=["--dataset"])]
    """A folder or a .zip in COCO's layout (annotations/instances_train*.json), in VOC's
    (Annotations, JPEGImages, ImageSets/Main), or of images/ beside instance masks/."""
    masks: bool = False
    """Also segment instances (Mask R-CNN); the set must have masks."""
    test_share: Annotated[float, Range(0, 1, "()")] = 0.3
    """Share of the images to test on, where the set has no splits of its own."""
    split_seed: int = 0
    """Seed of that choice."""
    origin: Literal[0, 1] = 1
    """Coordinate of the first pixel in VOC's files: 1, or 0 as some tools write."""
    class_name: str = "object"
    """Name of the only class of a set of instance masks."""
    workers: Annotated[int | None, AT_LEAST_0] = None
    """Number of decoding processes. Default: one per core, at most 8."""
    on_bad_image: OnBadImage = "skip"
    """What happens at an unreadable image. With skip, it is counted, named, and in training
    replaced by another, in tests left out; with fail, the command stops."""


@dataclass(frozen=True, kw_only=True)
class DetectTrainConfig(
    DetectorConfig, OptimizerConfig, DetectionImages, DetectorAttackConfig, DeviceConfig
):
    """Train torchvision's Faster R-CNN or Mask R-CNN on the stages of a source.

    The defaults are the published schedule: SGD with momentum 0.9, weight decay 1e-4 and
    learning rate 0.02 for 16 images, which rises linearly in the first 1,000 updates and
    falls by ten after 2/3 and 8/9 of the run (Detectron2's 1x; Salman et al. 2020 used
    Detectron2). recipes/detect-short.yaml is a short run for small sets. With --eps, every
    update is on images that an attack made from its batch.

    Raises:
        ConfigError: A value that cannot work, or values that do not go together.
    """

    USUAL_STEPS: ClassVar[int] = 3

    # Flags that only --help-all shows.
    RARE: ClassVar[tuple[str, ...]] = (
        "split_seed", "origin", "clip_grad", "milestones", "peak", "keep_every",
        "anchor_scale", "width", "sampled_boxes", "proposals", "empty_images", "warmup_steps",
        "aspect_factor",
        "tensorboard", "wandb",
    )  # fmt: skip

    source: Annotated[str | None, arg(aliases=["--model-path", "--checkpoint"])] = None
    """The pretrained model: a run directory, a checkpoint file, torchvision:NAME, timm:NAME,
    salman2020:resnet50_l2_eps3 and so on. `fastadv-models show SOURCE` describes it."""
    arch: str | None = None
    """Architecture that begins with random weights, instead of a source. --scratch does the
    same for the architecture of a source."""
    epochs: Annotated[int, AT_LEAST_1] = 12
    """Number of passes over the training set. Detectron2's 1x is 12 of COCO, torchvision
    takes 26."""
    batch_size: Annotated[int, AT_LEAST_1] = 16
    """Images per update, over all ranks together; a multiple of their number."""
    warmup_steps: Annotated[int, AT_LEAST_0] = 1000
    """Number of updates over which the learning rate rises linearly from a thousandth; at
    most those of the first epoch."""
    augment: Literal["flip", "ssd", "none"] = "flip"
    """Augmentation: horizontal flips, as published, or also photometric distortion, zooming
    out and random crops around objects (ssd)."""
    aspect_factor: Annotated[int | None, AT_LEAST_0] = None
    """Make batches of images of like ratio of width to height, which pads them less: 0
    tells tall from wide ones (Detectron2), 3 makes the eight groups of torchvision's
    reference. Default: batches of any images."""
    empty_images: Literal["leave_out", "train"] = "leave_out"
    """What happens to training images without objects. torchvision and Detectron2 leave them
    out."""
    ema: Annotated[float | None, Range(0, 1, "()")] = None
    """Decay of an exponential moving average of the weights, for example 0.999, which is then
    tested and kept. Default: no average."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Data type of network passes; weights stay float32, and fp16 scales the loss. With
    auto, it is bf16 on CUDA devices that have it, else fp32."""
    eval_every: Annotated[int | None, AT_LEAST_1] = None
    """Test after every N epochs, too, for curves. The last weights are kept whatever that
    finds: nothing is chosen on test images. Default: test once, at the end."""
    seed: int = 0
    """Random seed of new layers, order, augmentation and sampling."""
    out: Annotated[str | None, arg(aliases=["--out-dir"])] = None
    """Run directory. Default: runs/detect_SOURCE_DATA_sSEED."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, bit for bit. `--resume auto` also
    starts the run if there is none, for jobs that are requeued."""
    save_minutes: Annotated[float, Range(0, ends="[]")] = 10.0
    """Minutes between checkpoints within an epoch; one is saved after each epoch, too."""
    keep_every: Annotated[int | None, AT_LEAST_1] = None
    """Keep the checkpoint of every Nth epoch, besides the last two."""
    tensorboard: bool = False
    """Also log curves for TensorBoard, in RUN/tensorboard."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases; WANDB_MODE is respected."""

    def __post_init__(self) -> None:
        if self.lr is None:
            rate = _RATE * self.batch_size / _RATE_BATCH
            adaptive = default_lr(self.optimizer) != default_lr("sgd")
            object.__setattr__(self, "lr", 1e-4 if adaptive else rate)
        if self.schedule == "step" and self.milestones is None:
            object.__setattr__(self, "milestones", _MILESTONES)
        super().__post_init__()
        if self.attack_loss == "all" and not self.masks:
            raise ConfigError(
                "`attack_loss=all` counts the loss of masks, which are not trained; add "
                "`masks`, or take `attack_loss=both`"
            )
        if (self.source is None) == (self.arch is None):
            given = "neither" if self.source is None else "both"
            raise ConfigError(
                f"{given} of `source` and `arch` are given; give `source` for pretrained "
                "weights, or `arch` for random ones"
            )
        if self.arch is not None and not self.scratch:
            object.__setattr__(self, "scratch", True)
            DetectorConfig.__post_init__(self)

    @property
    def out_path(self) -> Path:
        """Folder in which the run is kept."""
        if self.out:
            return Path(self.out).expanduser()
        begin = Path(self.source or self.arch or "").name.replace(":", "-")
        begin += "-scratch" if self.scratch else ""
        return Path("runs") / f"detect_{begin}_{Path(self.data).stem}_s{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values in the order of the flags, for config.yaml."""
        return ordered_values(self, type(self))
