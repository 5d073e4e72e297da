"""Adversarial training and validation in Lightning, as a callback."""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from typing import Any

from torch import Tensor, nn

from fastadv.attacks.contract import Attack
from fastadv.data import Batch
from fastadv.data.any_batch import image_and_label_keys, images_and_labels
from fastadv.errors import ConfigError
from fastadv.loops.adversary import Adversary

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ConfigError(
            "fastadv.loops.lightning needs the package lightning, which cannot be imported "
            f"({error}); install it with: pip install lightning"
        ) from error


class AdversarialTraining(Callback):  # type: ignore[misc]
    """Attacks each training batch before `training_step`, and validation if wished.

    The batch that `training_step` receives holds adversarial images. Batches are lists
    (as PyTorch's own collation makes them) or mappings, in which the images are replaced.
    With several devices each draws starts of its own.

    Args:
        adversary: The adversarial step.
        network: Name of the module's attribute that holds the network, for example
            `"model"`: its frozen and folded copy is attacked, which is faster. None
            attacks the `forward` of the LightningModule itself.
        training: Whether training batches are attacked; without it only validation is.
        validation: Attack that judges each validation batch, for example `PGD.judge`.
        name: Name under which the robust accuracy in [0, 1] is logged.

    Example:
        >>> adversary = Adversary(PGD(threat, num_steps=3, random_start=True))
        >>> robust = AdversarialTraining(
        ...     adversary, network="model", validation=PGD.judge(threat, num_steps=10)
        ... )
        >>> Trainer(callbacks=[robust]).fit(module, train_loader, val_loader)
    """

    def __init__(
        self,
        adversary: Adversary,
        network: str | None = None,
        *,
        training: bool = True,
        validation: Attack | None = None,
        name: str = "val_robust_acc",
    ) -> None:
        super().__init__()
        self.adversary, self.network = adversary, network
        self.training, self.validation, self.name = training, validation, name

    def _network(self, module: nn.Module) -> nn.Module:
        if self.network is None:
            return module
        found = getattr(module, self.network, None)
        if isinstance(found, nn.Module):
            return found
        children = ", ".join(name for name, _ in module.named_children())
        raise ConfigError(
            f"`network={self.network}` is no network of {type(module).__name__}; it has: "
            f"{children}"
        )

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Refuse a name of a network that the module does not have, before work begins."""
        self._network(pl_module)

    def on_train_batch_start(
        self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int
    ) -> None:
        """Replace the images of a training batch by adversarial ones."""
        if not self.training:
            return
        images, labels = images_and_labels(batch)
        replace_images(batch, self.adversary(self._network(pl_module), images, labels))

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Attack a validation batch, and log the share that is classified correctly."""
        if self.validation is None:
            return
        images, labels = images_and_labels(batch)
        view = self.adversary.view(self._network(pl_module))
        found = self.validation(view, self.adversary.pixels(images), labels)
        pl_module.log(
            self.name,
            (~found.success).float().mean(),
            on_epoch=True,
            sync_dist=True,
            batch_size=len(labels),
        )


def replace_images(batch: Any, images: Tensor) -> None:
    """Put images into a batch in the place of its own.

    Raises:
        TypeError: The batch is a tuple, or something else that cannot be changed.
    """
    if isinstance(batch, Batch):
        batch.images = images
    elif isinstance(batch, MutableMapping):
        batch[image_and_label_keys(batch)[0]] = images
    elif isinstance(batch, MutableSequence):
        batch[0] = images
    else:
        raise TypeError(
            f"a batch is a {type(batch).__name__}, which cannot be changed; let the "
            "`collate_fn` of the loader return a list [images, labels] or a dict"
        )
