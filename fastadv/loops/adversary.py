"""The adversarial step of a training loop that is not ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastadv.attacks.pgd import PGD
from fastadv.data.any_batch import AnyBatch, images_and_labels
from fastadv.device import differentiable
from fastadv.kernels.arguments import memory_order
from fastadv.kernels.pixels import to_pixels
from fastadv.models.live_view import LiveView
from fastadv.models.normalized import NormalizedModel
from fastadv.models.view import AttackView

# Rounding moves a pixel value out of [0, 1] when a normalisation is undone; half
# precision, by up to three thousandths.
_ROUNDING = 1e-5
_HALF_ROUNDING = 0.02
_RANK_OFFSET = 1 << 16  # more images than a rank has in a batch


class Adversary:
    """Replaces the images of a batch by adversarial ones, in anyone's training loop.

    Each call refreshes the attack's view of the weights, so that it cannot be stale, draws
    another random start, and leaves the network, its `.grad`, its mode and its BatchNorm
    statistics as they were. Ranks of `torch.distributed` draw different starts. Wrappers
    (`DistributedDataParallel`, `DataParallel`, `torch.compile`) are taken off, so that an
    attack exchanges nothing between ranks.

    Args:
        attack: The training attack.
        mean: Mean of each channel in [0, 1] pixel units, by which the images of the loop
            are normalised; None means that they are not: they lie in [0, 1] or are uint8.
        std: Standard deviation of each channel, likewise.
        live: Attack the network itself (`LiveView`) instead of a folded copy. None
            decides: the network itself where its `forward` was replaced, as Accelerate
            does for mixed precision, and for a LightningModule, which holds its trainer.

    Raises:
        ValueError: Only one of `mean` and `std` is given.

    Example:
        >>> threat = ThreatModel("linf", "4/255")
        >>> adversary = Adversary(PGD(threat, num_steps=3, random_start=True))
        >>> for images, labels in loader:
        ...     images = adversary(model, images, labels)
        ...     loss = criterion(model(images), labels)  # from here as it was
    """

    def __init__(
        self,
        attack: PGD,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        live: bool | None = None,
    ) -> None:
        if (mean is None) != (std is None):
            raise ValueError(
                f"mean={mean}, std={std}: give both, by which the images of the loop are "
                "normalised, or none"
            )
        self.attack = attack
        self.mean = None if mean is None else tuple(float(v) for v in mean)
        self.std = None if std is None else tuple(float(v) for v in std)
        self.live = live
        self._view: tuple[nn.Module, AttackView] | None = None

    @differentiable
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the adversarial images of a batch.

        Args:
            model: The network in training, with its wrappers.
            x: Images [N, C, H, W] as the loop has them: normalised where `mean` and
                `std` were given, else float in [0, 1] or uint8.
            y: Classes, int64 [N], or class probabilities [N, K].

        Returns:
            Images like `x`, in its dtype (float32 for uint8) and memory layout, which the
            network takes in place of `x`.

        Raises:
            ValueError: The images, once a normalisation is undone, are outside [0, 1].
            TypeError: The model does not return logits [N, K].
        """
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        view = self.view(model)
        x_adv, z = self.attack.perturb(
            view, self.pixels(x), y, offset=rank * _RANK_OFFSET
        )
        found = x_adv if self.mean is None else z
        return found.to(
            dtype=x.dtype if x.is_floating_point() else torch.float32,
            memory_format=memory_order(x) or torch.contiguous_format,
        )

    def view(self, model: nn.Module) -> AttackView:
        """Return the view of a network that the attack works on, with present weights.

        `evaluate` takes it in place of the network, with `batches` of the same loop.
        """
        network = bare_network(model)
        if self._view is not None and self._view[0] is network:
            self._view[1].refresh()
            return self._view[1]
        subject = network
        if self.mean is not None and self.std is not None:
            device = next(network.parameters(), torch.zeros(())).device
            normalized = NormalizedModel(network, self.mean, self.std, "of a loop", 1)
            normalized.mean = normalized.mean.to(device)
            normalized.std = normalized.std.to(device)
            # Unknown before a pass; attacks take it from the logits.
            normalized.num_classes = None  # type: ignore[assignment]
            subject = normalized
        live = _needs_live(network) if self.live is None else self.live
        if live:
            view: AttackView = LiveView(subject)
        else:
            options = {"mode": self.attack.bn_mode, "dtype": self.attack.dtype}
            view = AttackView(subject, **options)  # type: ignore[arg-type]
        self._view = network, view
        return view

    def pixels(self, x: Tensor) -> Tensor:
        """Return images of the loop as images in [0, 1], float32 (uint8 stays uint8).

        Raises:
            ValueError: They are outside [0, 1].
        """
        if self.mean is None:
            return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if not x.is_floating_point():
            raise ValueError(
                f"x is {x.dtype}, and mean and std were given: normalised images are "
                "floating point; leave mean and std out, or give normalised images"
            )
        mean, std = (
            torch.tensor(v, device=x.device, dtype=torch.float32).view(1, -1, 1, 1)
            for v in (self.mean, self.std)
        )
        pixels = x.float() * std + mean
        if x.device.type == "cpu" and x.numel():
            low, high = (float(v) for v in torch.aminmax(pixels))
            room = _HALF_ROUNDING if x.element_size() < 4 else _ROUNDING
            if not (low >= -room and high <= 1 + room):
                raise ValueError(
                    f"the images lie in [{low:.3g}, {high:.3g}] once their normalisation "
                    f"by mean={self.mean} and std={self.std} is undone; that should be "
                    "[0, 1]. Give the mean and std of the loop's transform"
                )
        return pixels.clamp_(0, 1)

    def batches(self, loader: Iterable[AnyBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of the loop's loader as `evaluate` takes them, in [0, 1]."""
        for batch in loader:
            images, labels = images_and_labels(batch)
            yield to_pixels(self.pixels(images), torch.float32), labels


def bare_network(model: nn.Module) -> nn.Module:
    """Return a network without wrappers of `torch.nn.parallel` and `torch.compile`."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _needs_live(network: nn.Module) -> bool:
    """Return whether a copy of a network would not compute what the network does."""
    names = {kind.__name__ for kind in type(network).__mro__}
    return "LightningModule" in names or any(
        "forward" in vars(module) for module in network.modules()
    )
