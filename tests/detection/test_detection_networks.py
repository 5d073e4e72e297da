"""Detectors on the stages of classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from fastadv.detection.attack import DetectorAttack
from fastadv.detection.config import DetectorConfig
from fastadv.detection.networks import (
    StageBackbone,
    build_detector,
    pyramid_stages,
)
from fastadv.errors import ConfigError
from fastadv.models import NormalizedModel, create_model, get_spec
from fastadv.models.intermediate import Stage, activations
from fastadv.models.registry import ArchSpec
from fastadv.models.timm_models import stages as timm_stages
from fastadv.threat import ThreatModel

TINY: dict[str, Any] = {
    "min_size": (64,), "max_size": 96, "width": 8, "sampled_boxes": 8, "proposals": 20
}  # fmt: skip


def example(masks: bool = False) -> tuple[list[Tensor], list[dict[str, Any]]]:
    draw = torch.Generator().manual_seed(3)
    image = torch.rand(3, 64, 80, generator=draw)
    target = {"boxes": torch.tensor([[8.0, 10, 40, 50]]), "labels": torch.tensor([2])}
    if masks:
        target["masks"] = torch.zeros(1, 64, 80, dtype=torch.uint8)
        target["masks"][:, 10:50, 8:40] = 1
    return [image], [target]


def swin() -> NormalizedModel:
    """torchvision's Swin, whose stages give [N, H, W, C], with fewer channels."""
    net = torchvision.models.SwinTransformer(
        [4, 4], 24, [1, 1, 2, 1], [1, 2, 4, 8], [7, 7], num_classes=5
    )
    spec = ArchSpec(
        name="swin",
        build=lambda _: net,
        head="head",
        features=lambda net, z: z,
        stages=tuple(Stage(f"features.{2 * i + 1}", 4 * 2**i) for i in range(4)),
    )
    return NormalizedModel(net, [0.5] * 3, [0.5] * 3, "swin", 5, spec=spec)


def test_an_fpn_on_resnet50_is_torchvisions() -> None:
    """The same weights give the same losses and the same trainable layers."""
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    model = create_model("resnet50", 10, seed=0)
    theirs.backbone.body.load_state_dict(model.net.state_dict(), strict=False)
    ours = build_detector(model, 2)
    for part in ("rpn", "roi_heads"):
        getattr(theirs, part).load_state_dict(getattr(ours, part).state_dict())
    theirs.backbone.fpn.load_state_dict(ours.backbone.fpn.state_dict())
    kept = {n for n, p in ours.backbone.body.named_parameters() if p.requires_grad}
    trains = ("layer2", "layer3", "layer4")
    assert kept == {
        name
        for name, parameter in model.net.named_parameters()
        if name.startswith(trains) and parameter.dim() > 1
    }
    images, targets = example()
    for detector in (ours, theirs):
        # Small images and few proposals, or it would take seconds.
        detector.roi_heads.fg_bg_sampler.batch_size_per_image = 16
        detector.transform.min_size, detector.transform.max_size = (128,), 160
        detector.train()
    for module in theirs.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    found = []
    for detector in (ours, theirs):
        torch.manual_seed(0)
        found.append(detector(images, targets))
    for name, loss in found[1].items():
        torch.testing.assert_close(found[0][name], loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "arch", ["resnet8_cifar", "mobilenet_v2", "swin", "timm/convnext_atto"]
)
def test_backbones_give_what_the_stages_of_the_classifier_do(arch: str) -> None:
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    model = swin() if arch == "swin" else create_model(arch, 5, seed=0)
    stages = pyramid_stages(model)
    backbone = StageBackbone(model, stages, frozen_stages=1, frozen_norm=True)
    z = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    names = [stage.name for stage in stages]
    with torch.no_grad():
        wanted = activations(model.eval(), z, names)
        found = backbone.eval().body(z)
        levels = backbone(z)
    for name in names:
        assert torch.equal(found[name], wanted[name])
    sides = [tuple(level.shape[1:]) for level in levels.values()]
    strides = [stage.stride for stage in stages]
    expected = [(256, 64 // stride, 96 // stride) for stride in strides]
    last = 2 * strides[-1]
    assert sides == [*expected, (256, -(-64 // last), -(-96 // last))]


def test_swin_of_torchvision_has_these_stages() -> None:
    stages = swin().spec.stages
    for name in ("swin_t", "swin_b", "swin_v2_s"):
        assert get_spec(name).stages == stages


def test_layers_without_padding_feed_a_pyramid_too() -> None:
    """The maps of SqueezeNet are a pixel or two smaller than its strides say."""
    model = create_model("squeezenet1_0", 5, seed=0)
    detector = build_detector(model, 2, DetectorConfig(**TINY))
    with torch.no_grad():
        levels = detector.backbone(torch.zeros(1, 3, 96, 160))
    sides = [tuple(level.shape[2:]) for level in levels.values()]
    assert sides[:3] == [(22, 38), (11, 19), (5, 9)]
    images, targets = example()
    losses = detector.train()(images, targets)
    sum(losses.values()).backward()
    last = model.net.features[12].expand3x3.weight.grad
    assert last is not None
    assert 0 < last.abs().max() < float("inf")


@pytest.mark.parametrize(
    ("name", "window", "size"),
    [
        ("swin_tiny_patch4_window7_224", 7, (448, 480)),
        ("swinv2_tiny_window8_256", 8, (512, 544)),
    ],
)
def test_swin_of_timm_takes_images_of_any_size(
    name: str, window: int, size: tuple[int, int]
) -> None:
    """Its stages are those of timm's network that was built for these sizes."""
    timm = pytest.importorskip("timm")
    small: dict[str, Any] = {
        "embed_dim": 12, "depths": (1, 1, 2, 2), "num_heads": (1, 2, 3, 4),
        "num_classes": 5, "window_size": window,
    }  # fmt: skip
    net = timm.create_model(name, **small)
    spec = ArchSpec(
        name="swin",
        build=lambda _: net,
        head="head.fc",
        features=lambda net, z: z,
        stages=timm_stages(net),
    )
    model = NormalizedModel(net, [0.5] * 3, [0.5] * 3, "swin", 5, spec=spec).eval()
    z = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    square = torch.randn(1, 3, net.patch_embed.img_size[0], net.patch_embed.img_size[1])
    detector = build_detector(model, 2, DetectorConfig(**TINY)).eval()
    built = timm.create_model(name, img_size=size, **small).eval()
    built.load_state_dict(net.state_dict())
    recorded: dict[str, Tensor] = {}
    for number, layer in enumerate(built.layers):
        layer.register_forward_hook(
            lambda _, inputs, output, key=f"layers.{number}": recorded.update(
                {key: output}
            )
        )
    with torch.no_grad():
        before = net(square)
        built(z)
        found = detector.backbone.body(z)
        assert torch.equal(net(square), before)  # the classifier is as it was
    assert set(found) == set(recorded)
    for stage, value in recorded.items():
        torch.testing.assert_close(found[stage], value, rtol=1e-5, atol=1e-5)
    weights = {id(p) for p in net.parameters()}
    assert {id(p) for p in detector.backbone.body.parameters()} < weights
    images, targets = example()
    losses = detector.train()(images, targets)
    sum(losses.values()).backward()
    assert net.layers[1].downsample.reduction.weight.grad.abs().max() > 0
    # Its attack view follows the size of the images, too.
    attack = DetectorAttack(ThreatModel("linf", "4/255"), 2)
    moved = attack(detector, images, targets)
    assert moved.images[0].shape == images[0].shape
    assert moved.losses[1] > moved.losses[0]


def test_normalisation_is_that_of_the_source() -> None:
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    for scratch in (False, True):
        model = create_model("resnet8_cifar", 5, mean=mean, std=std, seed=0)
        detector = build_detector(model, 2, DetectorConfig(scratch=scratch))
        torch.testing.assert_close(detector.transform.image_mean, mean)
        torch.testing.assert_close(detector.transform.image_std, std)


def trained_and_moved(config: DetectorConfig) -> tuple[set[str], set[str]]:
    """Train one step; return the stages whose weights and whose statistics changed."""
    model = create_model("resnet8_cifar", 5, seed=0)
    detector = build_detector(model, 2, config, masks=True).train()
    body = detector.backbone.body
    before = {name: value.clone() for name, value in body.state_dict().items()}
    parameters = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    images, targets = example(masks=True)
    losses = detector(images, targets)
    assert {"loss_mask", "loss_box_reg", "loss_objectness"} < set(losses)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in parameters)
    optimizer.step()
    weights, statistics = set(), set()
    for name, value in body.state_dict().items():
        if not torch.equal(value, before[name]):
            kind = statistics if "running" in name else weights
            kind.add(name.split(".")[0])
    return weights, statistics - {"num_batches_tracked"}


def test_what_is_frozen_stays() -> None:
    every = {"conv1", "bn1", "layer1", "layer2", "layer3"}
    later = {"layer2", "layer3"}
    assert trained_and_moved(DetectorConfig(**TINY)) == (later, set())
    assert trained_and_moved(DetectorConfig(scratch=True, **TINY))[0] == every
    thawed = DetectorConfig(frozen_stages=0, frozen_norm=False, **TINY)
    assert trained_and_moved(thawed) == (every, every - {"conv1"})
    part = DetectorConfig(frozen_stages=2, frozen_norm=False, **TINY)
    assert trained_and_moved(part) == ({"layer3"}, {"layer3"})


def test_scratch_has_other_weights_of_the_same_architecture() -> None:
    model = create_model("resnet8_cifar", 5, seed=0)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    config = DetectorConfig(scratch=True, **TINY)
    one, again = (build_detector(model, 2, config, seed=4) for _ in range(2))
    other = build_detector(model, 2, config, seed=5)
    first = "backbone.body.conv1.weight"
    states = [each.state_dict()[first] for each in (one, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert not torch.equal(states[0], before["conv1.weight"])
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_built_detector_leaves_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_detector(create_model("resnet8_cifar", 5, seed=0), 2, DetectorConfig(**TINY))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_size": ()}, "`min_size` is empty"),
        (
            {"min_size": (900,), "max_size": 800},
            "`min_size=900` is above `max_size=800`",
        ),
        ({"scratch": True, "frozen_stages": 1}, "would keep random weights"),
        ({"scratch": True, "frozen_norm": True}, "statistics of an untrained network"),
        ({"anchor_scale": 0.0}, "anchor_scale"),
        ({"frozen_stages": -1}, "frozen_stages"),
    ],
)
def test_choices_that_cannot_work_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectorConfig(**values)


def test_sources_and_sizes_that_cannot_work_are_refused() -> None:
    model = create_model("resnet8_cifar", 5, seed=0)
    with pytest.raises(ValueError, match="num_classes=0 leaves nothing to detect"):
        build_detector(model, 0)
    tiny = DetectorConfig(min_size=(64, 15), max_size=96)
    with pytest.raises(
        ConfigError, match=r"`min_size=15` is below the smallest anchor of 16"
    ):
        build_detector(model, 2, tiny)
    with pytest.raises(ConfigError, match="is more than the 3 stages of resnet8_cifar"):
        build_detector(model, 2, DetectorConfig(frozen_stages=4))
    spec = get_spec("resnet8_cifar")
    bare = ArchSpec(
        name="bare", build=spec.build, head=spec.head, features=spec.features
    )
    model = NormalizedModel(spec.build(5), [0.5] * 3, [0.5] * 3, "bare", 5, spec=bare)
    with pytest.raises(ConfigError, match="the stages of bare are not known"):
        build_detector(model, 2)


def test_a_vision_transformer_has_no_pyramid() -> None:
    pytest.importorskip("timm")
    model = create_model("timm/vit_tiny_patch16_224", 5, seed=0)
    with pytest.raises(ConfigError, match=r"all of stride 16, so there is no pyramid"):
        build_detector(model, 2)
