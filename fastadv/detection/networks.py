"""Faster R-CNN and Mask R-CNN with a feature pyramid on the stages of any of our networks.

The detectors are torchvision's; the backbone is cut out of a classifier behind its last
stage, so that its weights keep their names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
)

from fastadv.detection.config import DetectorConfig
from fastadv.errors import ConfigError
from fastadv.models import NormalizedModel, create_model
from fastadv.models.intermediate import Stage
from fastadv.models.normalized import seeded_init
from fastadv.models.timm_models import layers_in_use, of_any_size

_LEVELS = 4  # of the published pyramids: strides 4 to 32
_MASK_LAYERS = 4
_RATIOS = (0.5, 1.0, 2.0)
_PROBE = (96, 160)  # pixels; sides that no stage maps to one length
_LOST = 2  # pixels of a map, to layers without padding: SqueezeNet's


class StageBackbone(nn.Module):
    """The stages of a classifier with a feature pyramid on them.

    Args:
        model: The classifier; its weights are shared, not copied.
        stages: Stages of rising stride whose outputs the pyramid takes.
        frozen_stages: Number of `model.stages()` that do not train, from the input on.
        frozen_norm: Whether no BatchNorm layer changes.
        width: Channels of each level of the pyramid.

    Attributes:
        body: The network up to its last stage; its weights have the names of the classifier.
        fpn: The pyramid.
        out_channels: Channels of each of its levels.

    Raises:
        ConfigError: The network cannot be cut at its stages.
    """

    def __init__(
        self,
        model: NormalizedModel,
        stages: Sequence[Stage],
        *,
        frozen_stages: int,
        frozen_norm: bool,
        width: int = 256,
    ) -> None:
        super().__init__()
        names = [stage.name for stage in stages]
        self.body = _cut(model, names)
        shapes = _shapes(self.body, model.mean.device)
        self.channels_last: list[bool] = []  # whether a stage gives [N, H, W, C]
        widths = []
        for stage, shape in zip(stages, shapes, strict=True):
            wanted = tuple(-(-side // stage.stride) for side in _PROBE)
            if len(shape) != 4 or not (
                _near(shape[2:], wanted) or _near(shape[1:3], wanted)
            ):
                raise ConfigError(
                    f"stage {stage.name} of {model.arch} gives {list(shape)} for images of "
                    f"{_PROBE[0]} x {_PROBE[1]} pixels and not maps of "
                    f"{wanted[0]} x {wanted[1]}, so it cannot feed a pyramid; use a source "
                    "with convolutional stages"
                )
            self.channels_last.append(not _near(shape[2:], wanted))
            widths.append(shape[3] if self.channels_last[-1] else shape[1])
        self.fpn = FeaturePyramidNetwork(widths, width, extra_blocks=LastLevelMaxPool())
        self.out_channels = width
        self._frozen: list[_BatchNorm] = []
        frozen = [stage.name for stage in model.stages()[:frozen_stages]]
        self._freeze(model, frozen, frozen_norm)

    def _freeze(
        self, model: NormalizedModel, names: Sequence[str], frozen_norm: bool
    ) -> None:
        begin = _cut(model, names) if names else nn.Module()
        for parameter in begin.parameters():
            parameter.requires_grad_(False)
        inner = set(begin.modules())
        for module in self.body.modules():
            if isinstance(module, _BatchNorm) and (frozen_norm or module in inner):
                self._frozen.append(module)
                for parameter in module.parameters():
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> StageBackbone:
        """Switch the mode; frozen BatchNorm layers stay in evaluation mode."""
        super().train(mode)
        for norm in self._frozen:
            norm.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels of the pyramid for normalised images [N, 3, H, W]."""
        images = images.contiguous(memory_format=torch.channels_last)
        found: dict[str, Tensor] = self.body(images)
        maps = OrderedDict(
            (name, value.permute(0, 3, 1, 2) if last else value)
            for (name, value), last in zip(
                found.items(), self.channels_last, strict=True
            )
        )
        levels: dict[str, Tensor] = self.fpn(maps)
        return levels


def pyramid_stages(model: NormalizedModel) -> tuple[Stage, ...]:
    """Return the stages of a network that a pyramid is built on: the last four strides.

    Of stages with one stride the last is taken. For ResNets these are layer1 to layer4, of
    strides 4 to 32. A stage of stride 1, which networks for small images begin with, is left
    out: a level at full resolution costs more than all others together.

    Raises:
        ConfigError: The stages are not known, or are all of one stride.
    """
    by_stride = {stage.stride: stage for stage in model.stages()}
    if len(by_stride) > 2:
        by_stride.pop(1, None)
    if len(by_stride) < 2:
        raise ConfigError(
            f"the stages of {model.arch} are all of stride {next(iter(by_stride))}, so there "
            "is no pyramid to detect objects with; use a source whose resolution falls from "
            "stage to stage, such as a ResNet, ConvNeXt or Swin"
        )
    return tuple(by_stride[stride] for stride in sorted(by_stride)[-_LEVELS:])


def build_detector(
    model: NormalizedModel,
    num_classes: int,
    config: DetectorConfig | None = None,
    *,
    masks: bool = False,
    seed: int = 0,
) -> FasterRCNN:
    """Build torchvision's Faster R-CNN or Mask R-CNN on the stages of a network.

    In train mode the detector maps a list of images, float [3, H, W] in [0, 1], and their
    targets to a dictionary of losses; in evaluation mode it maps images to dictionaries of
    boxes, labels, scores and, with masks, masks [N, 1, H, W] in [0, 1]. It normalises
    images as `model` does.

    Args:
        model: The network; its weights become part of the detector.
        num_classes: Number of classes without the background.
        config: How it is built; None takes torchvision's and Detectron2's defaults.
        masks: Whether it also predicts masks (Mask R-CNN).
        seed: Makes the weights of the new layers reproducible.

    Raises:
        ConfigError: The network has no stages of several strides, images are smaller than
            the smallest anchor, or more stages are to be frozen than there are.
        ValueError: `num_classes` is below 1.
    """
    config = config or DetectorConfig()
    if num_classes < 1:
        raise ValueError(
            f"num_classes={num_classes} leaves nothing to detect; give the number of "
            "classes without the background, at least 1"
        )
    stages = pyramid_stages(model)
    frozen_stages, frozen_norm = config.frozen
    if frozen_stages > (known := len(model.stages())):
        raise ConfigError(
            f"`frozen_stages={frozen_stages}` is more than the {known} stages of "
            f"{model.arch}"
        )
    strides = [stage.stride for stage in stages]
    sizes = [config.anchor_scale * stride for stride in (*strides, 2 * strides[-1])]
    if min(config.min_size) < sizes[0]:
        raise ConfigError(
            f"`min_size={min(config.min_size)}` is below the smallest anchor of "
            f"{sizes[0]:g} pixels (`anchor_scale={config.anchor_scale:g}` times the stride "
            f"{strides[0]}); use larger images or a smaller `anchor_scale`"
        )
    names, width = [stage.name for stage in stages], config.width
    with seeded_init(seed):
        kind = MaskRCNN if masks else FasterRCNN
        parts: dict[str, Any] = {
            "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)
        }
        if masks:
            parts["mask_head"] = MaskRCNNHeads(width, (width,) * _MASK_LAYERS, 1)
            parts["mask_roi_pool"] = MultiScaleRoIAlign(
                names, output_size=14, sampling_ratio=2
            )
        if config.scratch:
            mean, std = model.mean.tolist(), model.std.tolist()
            model = create_model(model.arch, mean=mean, std=std, seed=seed)
        backbone = StageBackbone(
            model,
            stages,
            frozen_stages=frozen_stages,
            frozen_norm=frozen_norm,
            width=width,
        )
        detector: FasterRCNN = kind(
            backbone,
            num_classes + 1,
            min_size=config.min_size,
            max_size=config.max_size,
            image_mean=model.mean.tolist(),
            image_std=model.std.tolist(),
            rpn_anchor_generator=AnchorGenerator(
                tuple((size,) for size in sizes), (_RATIOS,) * len(sizes)
            ),
            box_batch_size_per_image=config.sampled_boxes,
            rpn_pre_nms_top_n_train=2 * config.proposals,
            rpn_pre_nms_top_n_test=config.proposals,
            rpn_post_nms_top_n_train=2 * config.proposals,
            rpn_post_nms_top_n_test=config.proposals,
            **parts,
        )
        if masks:  # torchvision's own is for 256 channels
            detector.roi_heads.mask_predictor = MaskRCNNPredictor(
                width, width, num_classes + 1
            )
    return detector


def _cut(model: NormalizedModel, names: Sequence[str]) -> nn.Module:
    """Return the network up to the last of some modules, giving the output of each."""
    timm = layers_in_use()
    net, blocks = of_any_size(model.net)
    tracer = {
        "leaf_modules": [*timm.leaves, *blocks],
        "autowrap_functions": tuple(timm.functions),
    }
    try:
        body: nn.Module = create_feature_extractor(
            net,
            return_nodes=list(names),
            tracer_kwargs=tracer,
            suppress_diff_warning=True,
        )
    except Exception as error:  # its type depends on the network's own code
        raise ConfigError(
            f"{model.arch} cannot be cut at its stages {', '.join(names)}: {error}"
        ) from error
    return body


def _near(sides: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether two sides are those wanted, but for layers without padding."""
    return all(abs(a - b) <= _LOST for a, b in zip(sides, wanted, strict=True))


@torch.no_grad()
def _shapes(body: nn.Module, device: torch.device) -> list[tuple[int, ...]]:
    """Return the shape of what each stage gives for one image of `_PROBE` pixels."""
    training = body.training
    body.eval()
    try:
        found = body(torch.zeros(1, 3, *_PROBE, device=device))
    except Exception as error:  # for example fixed positions of a transformer
        raise ConfigError(
            f"the backbone takes no images of {_PROBE[0]} x {_PROBE[1]} pixels: {error}; "
            "use a source that takes images of any size"
        ) from error
    finally:
        body.train(training)
    return [tuple(value.shape) for value in found.values()]
