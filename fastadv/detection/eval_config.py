"""The choices of what is done with a trained detector, which flags set. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fastadv.data.config import OnBadImage
from fastadv.detection.attack_config import DetectorAttackConfig
from fastadv.device import DeviceConfig
from fastadv.errors import ConfigError
from fastadv.flags import arg
from fastadv.ranges import AT_LEAST_0, AT_LEAST_1, Checked, Range
from fastadv.results.config import KeepConfig


@dataclass(frozen=True, kw_only=True)
class DetectEvalConfig(DetectorAttackConfig, DeviceConfig, KeepConfig):
    """Measure average precision of a detector: clean, under attack, and corrupted.

    Images as they are always come first. --eps adds an attack on them, --corruption the
    corruptions of ImageNet-C. Rows of kind "detection" go to the results table, with the
    detections beside them; a condition whose rows are there is not computed again.

    Raises:
        ConfigError: A value that cannot work, or values that do not go together.
    """

    # Flags that only --help-all shows.
    RARE: ClassVar[tuple[str, ...]] = (
        "test_share", "split_seed", "origin", "class_name", "keep_limit", "resamples",
    )  # fmt: skip

    checkpoint: Annotated[str, arg(aliases=["--source", "--model-path"])]
    """The detector: a run directory of fastadv-detect train, or its file
    detector.safetensors."""
    data: Annotated[str | None, arg(aliases=["--dataset"])] = None
    """The set to test on, as in training. Default: that of its training."""
    test_share: Annotated[float | None, Range(0, 1, "()")] = None
    """Share of the images to test on, where the set has no splits of its own. Default: that
    of its training."""
    split_seed: int | None = None
    """Seed of that choice. Default: that of its training, whose test images are then those
    that were not trained on."""
    origin: Literal[0, 1] | None = None
    """Coordinate of the first pixel in VOC's files. Default: that of its training."""
    class_name: str | None = None
    """Name of the only class of instance masks. Default: that of its training."""
    corruption: tuple[str, ...] = ()
    """Kinds of corruption, for example `fog snow`; all stands for all fifteen."""
    severity: Annotated[tuple[int, ...], Range(1, 5, "[]")] = (1, 2, 3, 4, 5)
    """Severities of each."""
    num_images: Annotated[int | None, AT_LEAST_1] = None
    """Test on a seeded subset of N images. Default: all."""
    batch_size: Annotated[int, AT_LEAST_1] = 1
    """Images per batch. Detections depend on it a little, because a batch is padded to the
    size of its largest image."""
    resamples: Annotated[int, AT_LEAST_0] = 1000
    """Number of samples of the images for intervals; 0 for none. A thousand of 10,000
    detections take twelve seconds on one core, and masks as long again."""
    workers: Annotated[int | None, AT_LEAST_0] = None
    """Number of decoding processes. Default: one per core, at most 8."""
    on_bad_image: OnBadImage = "skip"
    """What happens at an unreadable image. With skip, it is counted, named and left out;
    with fail, the command stops."""
    seed: int = 0
    """Random seed of the subset, the attack and the corruptions."""
    results: str = "results"
    """Results table: a directory of Parquet files to which rows are added."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.severity:
            raise ConfigError("`severity` is empty; leave it out for all five")


@dataclass(frozen=True, kw_only=True)
class DetectExportConfig(Checked):
    """Write a detector as an ONNX file, for programs without PyTorch.

    The input is one float32 image [3, H, W] of any size, RGB in [0, 1]; it is normalised and
    resized inside. The outputs are boxes in pixels, labels, scores and, of Mask R-CNN, masks.
    The file also names the classes.

    Raises:
        ConfigError: A value that cannot work.
    """

    checkpoint: Annotated[str, arg(aliases=["--source", "--model-path"])]
    """The detector: a run directory of fastadv-detect train, or its file
    detector.safetensors."""
    out: str = "detector.onnx"
    """The file to write."""
    size: Annotated[tuple[int, int], AT_LEAST_1] = (480, 640)
    """Height and width in pixels of the image that the network is traced with; the file
    takes others, too."""
    force: bool = False
    """Replace a file that is there."""
