"""Which images a command reads, and how. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastadv.data.handed_in import named_data
from fastadv.errors import ConfigError
from fastadv.flags import Pairs
from fastadv.preparation import Interpolation
from fastadv.ranges import AT_LEAST_0, AT_LEAST_1, Checked

AugmentName = Literal["auto", "none", "crop_flip", "rrc"]
Backend = Literal["auto", "dali", "memory", "torchvision"]
OnBadImage = Literal["skip", "fail"]
# These options say where images are or what is put up with. They do not define which
# images there are, which the fingerprint of the data set does.
_NOT_DEFINING = frozenset({"root", "cache", "download", "strict"})


def dataset_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse the texts KEY=VALUE of `--dataset-option` into options of `open_dataset`.

    Values stay text; `open_dataset` gives each option its type.

    Raises:
        ConfigError: A text without a key or a `=`, or a key given twice.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigError(
                f"`dataset_option={pair}` must be KEY=VALUE, e.g. partition=2"
            )
        if key in options:
            raise ConfigError(
                f"`dataset_option={pair}`: {key} was already given as {options[key]}; "
                "give each option once"
            )
        options[key] = value
    return options


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(Checked):
    """The images of a data set, and how they are read.

    In Python, the data set may also be a map-style data set of PyTorch, or a dictionary of
    such by split: see `open_dataset`.
    """

    dataset_option: Pairs = ()
    """Option KEY=VALUE of the data set, for example partition=2 or root=DIR."""
    resolution: Annotated[int | None, AT_LEAST_1] = None
    """Side of the images in pixels."""
    resize: Annotated[int | None, AT_LEAST_1] = None
    """Shorter side in pixels to which images are resized before their centre is cropped,
    when a network is judged. Default: what the network expects."""
    interpolation: Interpolation | None = None
    """Filter with which images are resized then. Default: what the network expects, else
    bilinear."""
    workers: Annotated[int | None, AT_LEAST_0] = None
    """Number of decoding threads or processes. Default: one per core, at most 8."""
    on_bad_image: OnBadImage = "skip"
    """What happens at an unreadable image. With skip, it is counted, named, and in training
    replaced by another of its class, in tests left out; with fail, the command stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("data", "dataset"):
            if (data := getattr(self, name, None)) is not None:
                object.__setattr__(self, name, named_data(data))
        dataset_options(self.dataset_option)  # raises where one is no KEY=VALUE

    @property
    def options(self) -> dict[str, Any]:
        """The options of the data set, as `open_dataset` takes them."""
        return dataset_options(self.dataset_option)

    @property
    def defining_options(self) -> dict[str, Any]:
        """The options that define which images there are, in order of their names."""
        given = self.options
        return {key: given[key] for key in sorted(given) if key not in _NOT_DEFINING}

    def name_with_options(self, name: str) -> str:
        """Return what tables call the data set `name`, for example `dtd (partition 2)`."""
        given = [f"{key} {value}" for key, value in self.defining_options.items()]
        return f"{name} ({', '.join(given)})" if given else name


@dataclass(frozen=True, kw_only=True)
class TrainingImagesConfig(ImagesConfig):
    """The images that a network is trained on."""

    num_train: Annotated[int | None, AT_LEAST_1] = None
    """Train on a stratified, seeded subset of N images. Default: all of them."""
    augment: AugmentName = "auto"
    """Augmentation of the training images: random crops of padded images and flips
    (crop_flip), or random resized crops and flips (rrc). With auto, it is the usual one of
    the data set."""
