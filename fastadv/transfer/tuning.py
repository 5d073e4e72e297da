"""Fine-tuning a network, or a part of it, on the target: what trains, how, and on which
images. What is chosen among the results is `protocol.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastadv.data import Loader
from fastadv.data.counter import derive_key
from fastadv.data.loading.torchvision_loader import Decoder, TorchvisionLoader
from fastadv.errors import ConfigError, TrainingDiverged
from fastadv.models import NormalizedModel
from fastadv.models.normalized import seeded_init
from fastadv.models.view import AttackView
from fastadv.runs.progress import Progress
from fastadv.training.learner import training_attack
from fastadv.training.method_config import MethodConfig
from fastadv.training.methods import CLASSES, DTYPES, Method, Net
from fastadv.training.step import train_step
from fastadv.transfer.settings import Settings, published_names


@dataclass(frozen=True)
class Trained:
    """Which part of a network trains.

    Attributes:
        parameters: that the optimiser updates.
        frozen: modules all of whose parameters are fixed.
    """

    parameters: list[nn.Parameter]
    frozen: list[nn.Module]

    def set_mode(self, model: NormalizedModel, frozen_bn: str) -> None:
        """Train mode; frozen modules in eval mode unless `frozen_bn` is `"train"`.

        What has no weights (the dropout before a head) trains with what does.
        """
        model.train()
        if frozen_bn == "eval":
            for module in self.frozen:
                module.eval()


def choose_trained(
    model: NormalizedModel, mode: str, k: int | None = None, *, by_name: bool = False
) -> Trained:
    """Freeze all of `model` but what `mode` trains.

    Args:
        model: with its new head.
        mode: fixed_feature (the head), last_k_blocks (the last k blocks and the head),
            full_network or scratch (everything).
        k: of last_k_blocks.
        by_name: freeze as the code of Salman et al. did, see `published_names`.

    Raises:
        ConfigError: `k` is more than the network has.
    """
    blocks = model.blocks()
    if mode == "last_k_blocks" and k is not None and k > len(blocks):
        raise ConfigError(
            f"--k {k}: {model.arch} has {len(blocks)} blocks before its head; use at most "
            "as many, or --mode full_network"
        )
    counts = {"fixed_feature": 0, "last_k_blocks": k or 0}
    first = len(blocks) - counts.get(mode, len(blocks))
    frozen = [module for _, modules in blocks[:first] for module in modules]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for module in frozen:
        module.requires_grad_(False)
    if by_name:
        named = dict(model.net.named_parameters())
        names = published_names(list(named))
        for name, parameter in named.items() if names is not None else ():
            parameter.requires_grad_(name in (names or ()))
    return Trained([p for p in model.parameters() if p.requires_grad], frozen)


def misfrozen(model: NormalizedModel) -> str | None:
    """What freezing by name does wrong to `model`, in words; None for ResNets."""
    named = dict(model.net.named_parameters())
    trained = published_names(list(named))
    if trained is None:
        return "the published code stops with an error here, this trains the head alone"
    head = {id(parameter) for parameter in model.head.parameters()}
    left = sum(named[n].numel() for n in trained if id(named[n]) not in head)
    if not left:
        return None
    return f"freezing by layer name left {left:,} parameters of the trunk training"


def prepare_model(
    model: NormalizedModel, classes: int, seed: int, settings: Settings
) -> NormalizedModel:
    """Put a new head on `model` and normalise as `settings` says, in place."""
    model.replace_head(classes, seed=seed)
    if settings.normal_head:
        head = model.head
        with torch.no_grad(), seeded_init(seed):
            drawn = torch.empty(head.weight.shape).normal_()
        with torch.no_grad():
            head.weight.copy_(drawn)
            if head.bias is not None:
                head.bias.zero_()
    if settings.statistics is not None:
        mean, std = settings.statistics
        model.mean.copy_(torch.tensor(mean))
        model.std.copy_(torch.tensor(std))
    return model


def make_method(
    model: NormalizedModel,
    config: MethodConfig | None,
    side: int,
    precision: str = "fp32",
) -> Method:
    """The training method, on `model`; None is standard training."""
    net = Net(model, precision)
    if config is None:
        return Method(net)
    dtype = DTYPES.get(precision)
    attack = training_attack(config, side, dtype)
    kind = CLASSES[config.method if attack else "standard"]
    view = AttackView(model, dtype=dtype) if attack else None
    return kind(net, attack, view, **config.parameters)


def fine_tune(
    model: NormalizedModel,
    trained: Trained,
    loader: Loader,
    lr: float,
    settings: Settings,
    method: Method,
    words: str,
) -> Iterator[int]:
    """Train; yields the number of finished epochs after each.

    Args:
        model: prepared and frozen.
        trained: what trains.
        loader: training batches.
        lr: initial learning rate.
        settings: the other ones.
        method: what is descended on.
        words: what progress calls this.

    Raises:
        TrainingDiverged: a loss, a weight or a logit is not finite.
    """
    optimizer = torch.optim.SGD(
        trained.parameters,
        lr=lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    progress = Progress(settings.epochs * len(loader))
    began = time.monotonic()
    step, images_seen = 0, 0
    for epoch in range(settings.epochs):
        trained.set_mode(model, settings.frozen_bn)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(lr, epoch)
        for batch in loader:
            result = train_step(
                model,
                batch.images,
                batch.labels,
                optimizer,
                method=method,
                seed=derive_key(loader.options.seed, "start", step),
            )
            step += 1
            images_seen += len(batch.labels)
            rate = images_seen / (time.monotonic() - began)
            progress.update(
                step,
                f"{words}, lr {lr:g}, epoch {epoch + 1}/{settings.epochs}"
                f"  {rate:.1f} images/s",
            )
        sound = bool(result.loss.isfinite()) and _finite(trained.parameters)
        if sound and epoch + 1 == settings.epochs:
            # No loss is of the weights that the last update left.
            sound = _finite([_logits(model, batch.images)])
        if not sound:
            raise TrainingDiverged(
                f"fine-tuning with lr {lr:g} diverged in epoch {epoch + 1}; leave that "
                "value out of --lrs"
            )
        yield epoch + 1


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _logits(model: NormalizedModel, images: Tensor) -> Tensor:
    """As the result will be evaluated, of uint8 `images`."""
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(images.float() / 255)
    return logits


# ---- the augmentation of Utrera et al. ----


class _UtreraDecoder(Decoder):
    """Resize, padded random crop, flip, colour jitter .25 and rotation by up to 2 degrees.

    torchvision's own transforms, on Pillow images as published; their random numbers are
    those of (seed, epoch, image), and global random state stays as it was.
    """

    def _cut(
        self, image: NDArray[np.uint8], epoch: int, side: int, index: int
    ) -> NDArray[np.uint8]:
        from PIL import Image

        transform = utrera_transform(side)
        with torch.random.fork_rng(devices=[]):
            key = derive_key(self.options.seed, "utrera", epoch, index)
            torch.default_generator.manual_seed(key)
            return np.array(transform(Image.fromarray(image)), dtype=np.uint8)


class UtreraLoader(TorchvisionLoader):
    """Training batches as Utrera et al. 2021 augmented them; see `_UtreraDecoder`."""

    decoder = _UtreraDecoder


def utrera_transform(side: int) -> Callable[[Any], Any]:
    """The published transforms, of Pillow images to Pillow images of `side` pixels."""
    from torchvision import transforms

    found: Callable[[Any], Any] = transforms.Compose(
        [
            transforms.Resize(side),
            transforms.RandomCrop(side, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.25, 0.25, 0.25),
            transforms.RandomRotation(2),
        ]
    )
    return found
