"""The images of a run: its splits, and the loaders that deliver them to a rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastadv.data import (
    ImageSet,
    Loader,
    make_loader,
    native_resolution,
    open_dataset,
    subset,
    train_val_split,
)
from fastadv.data.config import Backend
from fastadv.data.loading.geometry import usual_preparation
from fastadv.data.sets.image_set import Augment, sampled_sizes
from fastadv.errors import ConfigError
from fastadv.evaluation.preparing import Prepared, overruled
from fastadv.preparation import Preparation
from fastadv.runs.distributed import World
from fastadv.training.config import DRAWN, DRAWN_SMALL, TrainConfig

EVAL_BATCH = 128
_VAL_SHARE, _VAL_MOST = 0.05, 10_000
# Square images up to this side are not cropped at random sizes for a *_cifar network: the
# field pads and shifts those of CIFAR and Tiny ImageNet.
_SMALL = 64  # pixels
_SAMPLE = 64  # images looked at to learn that


class RunImages:
    """The images that a run trains, validates and is tested on.

    Args:
        config: Choices of the run.
        device: Device that batches are put on.
        world: The ranks that share them.

    Attributes:
        resolution: Side of the images in pixels.
        augment: Augmentation of the training images.
        prepared: How images are resized and cropped to judge the network.
        train: Training images.
        val: Images held out of the training images, to choose the best epoch.
        test: The evaluation split.
        batch_size: Images per update, over all ranks.

    Raises:
        ConfigError: Choices do not go together.
        DataError: The data set cannot be used.
    """

    def __init__(self, config: TrainConfig, device: torch.device, world: World) -> None:
        self.config, self.device, self.world = config, device, world
        drawn = DRAWN_SMALL if config.arch.endswith("_cifar") else DRAWN
        side = config.resolution or drawn
        splits = open_dataset(config.data, resolution=side, **config.options)
        native = config.resolution or native_resolution(config.data, splits)
        self.resolution = native or drawn
        self.channels = 1 if config.grey else 3
        if (config.progressive or 0) > self.resolution:
            raise ConfigError(
                f"`progressive={config.progressive}` is above the {self.resolution} px "
                "of the run; it is the side to begin with: choose a smaller one, or a "
                "larger `resolution`"
            )
        config.threat.check_side(self.resolution)
        pool = subset(splits.train, config.num_train, config.seed)
        self.train, self.val = self._hold_out(pool)
        self.test = splits.test
        self.augment_as(self._usual_augment())
        self.batch_size = config.resolve_batch_size(len(self.train), world.size)

    def _hold_out(self, pool: ImageSet) -> tuple[ImageSet, ImageSet]:
        wanted = self.config.val_size
        if wanted is None:
            wanted = min(round(_VAL_SHARE * len(pool)), _VAL_MOST)
        wanted = max(wanted, len(pool.classes))
        if wanted >= len(pool):
            raise ConfigError(
                f"{len(pool)} training images cannot give {wanted} for validation; "
                "use more images or a smaller `val_size`"
            )
        return train_val_split(pool, wanted / len(pool), self.config.seed)

    def _usual_augment(self) -> Augment:
        """Return what `config.augment` stands for."""
        if self.config.augment != "auto":
            return self.config.augment
        usual = self.train.augment_default
        if usual == "rrc" and self.config.arch.endswith("_cifar"):
            sizes = sampled_sizes(self.train, _SAMPLE)
            if all(height == width <= _SMALL for height, width in sizes):
                return "crop_flip"
        return usual

    def augment_as(self, augment: Augment | None) -> bool:
        """Augment training images in a given way, and judge the network accordingly.

        Args:
            augment: The augmentation of a run that is resumed; None for an older run,
                which took the usual one of the data set whatever the network.

        Returns:
            Whether that is another augmentation than before.
        """
        before = getattr(self, "augment", None)
        if augment is None:
            augment = self.train.augment_as(self.config.augment)
        self.augment: Augment = augment
        usual = Prepared(
            usual_preparation(augment, self.resolution), f"as after {augment}"
        )
        self.prepared = overruled(usual, self.config)
        return before not in (None, augment)

    @property
    def unusual_preparation(self) -> Preparation | None:
        """The preparation, where it is not the usual one after `config.augment`."""
        augment = self.test.augment_as(self.config.augment)
        usual = usual_preparation(augment, self.resolution)
        return None if self.prepared.how == usual else self.prepared.how

    def check_classes(self, began_with: Sequence[str]) -> None:
        """Refuse to continue a run that was begun on classes of other names.

        Raises:
            ConfigError: The names, their number or their order differ.
        """
        if (mine := self.test.classes) != tuple(began_with):
            raise ConfigError(
                f"`data={self.config.data}` has {_named(mine)}, the run was begun on "
                f"{_named(began_with)}; resume with the images it was begun on (they may "
                "have moved), or start another `out`"
            )

    def eval_loader(self, images: ImageSet) -> Loader:
        """Return the loader of all of `images`; validation shares them out itself."""
        return self._loader(
            images, World(), EVAL_BATCH, self.config.loader, train=False
        )

    def train_loader(self, *, backend: Backend | None = None) -> Loader:
        """Return the loader of this rank's training images. Every rank must call it.

        Without a `backend` it is the configured one.
        """
        mine = self.train, self.world, self.world.per_rank(self.batch_size)
        loader = self._loader(*mine, backend or self.config.loader, train=True)
        # `auto` looks at the memory that is free, which ranks may see differently.
        common = self.world.share(loader.backend)
        if common != loader.backend:
            loader = self._loader(*mine, common, train=True)
        return loader

    def _loader(
        self,
        images: ImageSet,
        world: World,
        batch_size: int,
        backend: Backend,
        train: bool,
    ) -> Loader:
        config = self.config
        return make_loader(
            images,
            backend=backend,
            batch_size=batch_size,
            rank=world.rank,
            world_size=world.size,
            resolution=self.resolution,
            train=train,
            seed=config.seed,
            augment=self.augment,
            preparation=self.prepared.how,
            color_jitter=config.color_jitter,
            lighting=config.lighting,
            channels=self.channels,
            device=self.device,
            workers=config.workers,
            on_bad_image=config.on_bad_image,
        )

    def describe(self) -> str:
        """Return a line on the number of images and classes."""
        return (
            f"{len(self.train)} training, {len(self.val)} validation, "
            f"{len(self.test)} test images, {len(self.test.classes)} classes; augmentation "
            f"{self.augment}; judged with the {self.prepared.how}"
        )


def _named(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes)} classes ({shown})"
