"""What an attack differentiates instead of a detector: its losses, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from fastadv.detection.rois import quick_rois
from fastadv.models.quick_convs import quick_convs
from fastadv.models.view import AttackView

Target: TypeAlias = Mapping[str, Any]
"""Objects of one image by torchvision's convention; see `fastadv.detection.metrics`."""

LOSSES: Final = {
    "classification": ("loss_classifier", "loss_objectness"),
    "regression": ("loss_box_reg", "loss_rpn_box_reg"),
    "both": ("loss_classifier", "loss_objectness", "loss_box_reg", "loss_rpn_box_reg"),
    "all": (
        *("loss_classifier", "loss_objectness", "loss_box_reg", "loss_rpn_box_reg"),
        "loss_mask",
    ),
}
"""The losses of torchvision's detectors that an attack adds up, by the name of the choice.
`classification` is of classes and of whether there is an object, `regression` of where its
box is, `both` of these four, and `all` also of masks."""


class DetectorView(nn.Module):
    """A frozen image of a detector, which follows its weights and never touches it.

    Weights need no gradients, BatchNorm of the backbone is folded and its convolutions are
    the quicker ones of `AttackView`, and the mask head does not run where its loss does
    not count. The detector keeps its mode, its statistics and its `.grad`.

    Args:
        detector: A Faster or Mask R-CNN of torchvision.
        losses: A key of `LOSSES`.

    Raises:
        TypeError: The detector has not the parts of torchvision's R-CNNs.
        ValueError: `losses` is no key, or asks for masks that the detector does not find.
    """

    def __init__(self, detector: nn.Module, losses: str = "both") -> None:
        super().__init__()
        parts = ("transform", "backbone", "rpn", "roi_heads")
        missing = [name for name in parts if not hasattr(detector, name)]
        if missing:
            raise TypeError(
                f"{type(detector).__name__} has no {', '.join(missing)}; attacks on "
                "detectors need a Faster or Mask R-CNN of torchvision"
            )
        if losses not in LOSSES:
            raise ValueError(
                f"loss={losses!r} is unknown; accepted: {', '.join(LOSSES)}"
            )
        self.losses = losses
        self._live = (detector,)
        self._whole = AttackView(detector, fold=False)
        net: Any = self._whole.net
        self.backbone = AttackView(detector.backbone)  # type: ignore[arg-type]
        net.backbone = nn.Identity()  # the view above takes its place
        if "loss_mask" not in LOSSES[losses]:
            net.roi_heads.mask_roi_pool = None
            net.roi_heads.mask_head = None
            net.roi_heads.mask_predictor = None
        elif not net.roi_heads.has_mask():
            raise ValueError(
                f"loss={losses!r} counts the loss of masks, but the detector has no mask "
                "head; take classification, regression or both"
            )
        # Losses are computed in training mode; that of the layers stays evaluation.
        net.rpn.training = net.roi_heads.training = True
        self.net = net

    @property
    def live(self) -> nn.Module:
        """The detector whose weights the view follows."""
        return self._live[0]

    def refresh_if_stale(self) -> None:
        """Follow the weights if one was written to; see `AttackView.refresh_if_stale`."""
        self._whole.refresh_if_stale()
        self.backbone.refresh_if_stale()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the input, float32 [3], in [0, 1]."""
        like = next(self.live.parameters())
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=like.device)
            for values in (self.net.transform.image_mean, self.net.transform.image_std)
        )
        return mean, std

    def resized(
        self, targets: Sequence[Target], sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the objects that losses count, in the pixels of the network's input.

        Crowd regions and boxes without area are left out, as in training.
        """
        device = next(self.live.parameters()).device
        found = []
        for target, (height, width) in zip(targets, sizes, strict=True):
            boxes = torch.as_tensor(target["boxes"]).reshape(-1, 4)
            kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
            if (crowd := target.get("iscrowd")) is not None:
                kept &= torch.as_tensor(crowd, device=kept.device) == 0
            names = ["boxes", "labels"]
            if "loss_mask" in LOSSES[self.losses]:
                names.append("masks")
            objects = {name: torch.as_tensor(target[name])[kept] for name in names}
            objects = {name: value.to(device) for name, value in objects.items()}
            blank = torch.empty(3, height, width, device=device)
            found.append(self.net.transform.resize(blank, objects)[1])
        return found

    def forward(
        self,
        z: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        """Return the sum of the losses that count.

        Args:
            z: Normalised images, float [N, 3, H, W], each in the upper left corner.
            sizes: Height and width of each image.
            targets: What `resized` returned.

        Returns:
            A number with its graph, the mean over sampled proposals as in training.
        """
        transform = self.net.transform
        images = [
            transform.resize(each[:, :height, :width])[0]
            for each, (height, width) in zip(z, sizes, strict=True)
        ]
        shapes = [(each.shape[-2], each.shape[-1]) for each in images]
        batch = transform.batch_images(images, size_divisible=transform.size_divisible)
        batch = batch.contiguous(memory_format=torch.channels_last)
        features: Any = self.backbone(batch)
        if isinstance(features, Tensor):
            features = {"0": features}
        with quick_convs(z.device), quick_rois(z.device):
            proposals, losses = self.net.rpn(
                ImageList(batch, shapes), features, targets
            )
            _, more = self.net.roi_heads(features, proposals, shapes, targets)
        found = losses | more
        total: Tensor = sum(found[name] for name in LOSSES[self.losses])
        return total


@contextlib.contextmanager
def seeded_sampling(seed: int, device: torch.device) -> Iterator[None]:
    """Draw the proposals that losses count from `seed`, then restore the generators."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
