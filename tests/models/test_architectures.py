"""Every architecture keeps the contract: features feed the head, blocks cover all."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastadv.errors import ConfigError
from fastadv.models import (
    ARCHITECTURES,
    NormalizedModel,
    create_model,
    get_spec,
    list_models,
    registry,
)
from fastadv.models.architecture_names import SALMAN2020

TIMM = (
    "timm/resnet10t",
    "timm/mobilenetv3_small_050",
    "timm/convnext_atto",
    "timm/vit_tiny_patch16_224",
    "timm/test_byobnet",  # one linear layer within a module of several
    "timm/deit_tiny_distilled_patch16_224",  # two tokens, two classifiers
    "timm/mobilenetv4_conv_small_035",  # a convolution between pooling and classifier
    "timm/dla46x_c",  # a convolution
)
# One small member of every family runs with numbers (each takes less than 3 s on one
# core); the structure of all is checked on the meta device.
RUN = (
    *("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18"),
    *("resnet50", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"),
    *("vgg11_bn", "wide_resnet50_2", "resnet8_cifar", "resnet20_cifar"),
    *("resnet18_cifar", "wide_resnet28_4_cifar", "preact_resnet18_cifar"),
)


@pytest.fixture(autouse=True)
def _one_thread_and_timm(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(1)
    if "timm/" in request.node.name:
        pytest.importorskip("timm")


def images(arch: str) -> Tensor:
    side = (
        224 if "vit" in arch or "deit" in arch else min(64, get_spec(arch).image_size)
    )
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def structure(arch: str, num_classes: int = 10) -> NormalizedModel:
    """Build without memory where the library can (timm cannot always)."""
    if arch.startswith("timm/"):
        return create_model(arch, num_classes)
    with torch.device("meta"):
        return create_model(arch, num_classes)


def test_names_and_registry_agree() -> None:
    assert sorted(registry._table()) == sorted(ARCHITECTURES)
    assert len(set(ARCHITECTURES)) == len(ARCHITECTURES)
    assert set(SALMAN2020) <= set(ARCHITECTURES)


@pytest.mark.parametrize("arch", [*RUN, *TIMM])
def test_head_of_features_is_the_model(arch: str) -> None:
    model = create_model(arch, 10, seed=0).eval()
    x = images(arch).requires_grad_()
    features, logits = model.features(x), model(x)
    assert features.shape == (2, model.embedding_dim)
    assert logits.shape == (2, 10)
    if model.head_is_linear:
        if isinstance(model.head, nn.Conv2d):  # reads maps of one pixel
            features = features[..., None, None]
        head = model.head(features).flatten(1)
        torch.testing.assert_close(head, logits, rtol=0, atol=0)
    else:
        # SqueezeNet: a ReLU stands between its 1x1 convolution and the pooling.
        assert arch == "squeezenet1_1"
    features, z = model.features(x), model.normalize(x)
    torch.testing.assert_close(model.features_normalized(z), features)
    torch.testing.assert_close(model.forward_normalized(z), logits)
    (gradient,) = torch.autograd.grad(features.square().sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("arch", [*ARCHITECTURES, *TIMM])
def test_blocks_and_head_hold_every_parameter_once(arch: str) -> None:
    model = structure(arch)
    blocks = model.blocks()
    held = [p for _, modules in blocks for m in modules for p in m.parameters()]
    ids = [id(p) for p in itertools.chain(held, model.head.parameters())]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.net.parameters()}
    names = [name for name, _ in blocks]
    assert len(set(names)) == len(names)
    assert len(blocks) >= 3


@pytest.mark.parametrize("arch", RUN)
def test_blocks_run_in_the_order_they_are_listed(arch: str) -> None:
    model = create_model(arch, 10, seed=0).eval()
    ran: list[int] = []
    for index, (_, modules) in enumerate(model.blocks()):
        leaf = next(m for m in modules[0].modules() if len(m._parameters) > 0)
        leaf.register_forward_hook(lambda *_, index=index: ran.append(index))
    model(images(arch))
    assert ran == list(range(len(model.blocks())))


@pytest.mark.parametrize(
    ("arch", "last"),
    [
        ("resnet50", ["layer4.0", "layer4.1", "layer4.2"]),
        ("vgg16_bn", ["features.40", "classifier.0", "classifier.3"]),
        ("shufflenet_v2_x1_0", ["stage4.2", "stage4.3", "conv5"]),
        ("mobilenet_v2", ["features.16", "features.17", "features.18"]),
        ("mnasnet1_0", ["layers.12.3", "layers.13.0", "layers.14"]),
        ("resnet20_cifar", ["layer3.0", "layer3.1", "layer3.2"]),
    ],
)
def test_last_blocks(arch: str, last: list[str]) -> None:
    assert [name for name, _ in structure(arch).blocks()][-3:] == last


def test_resnet50_has_a_stem_and_sixteen_residual_blocks() -> None:
    model = structure("resnet50")
    names = [name for name, _ in model.blocks()]
    stages = [f"layer{s + 1}.{i}" for s, n in enumerate((3, 4, 6, 3)) for i in range(n)]
    assert names == ["conv1", *stages]
    assert model.blocks()[0][1] == [model.net.conv1, model.net.bn1]


def test_densenet_blocks_end_with_the_final_norm() -> None:
    model = structure("densenet161")
    names = [name for name, _ in model.blocks()]
    assert sum("denselayer" in name for name in names) == 6 + 12 + 36 + 24
    assert (
        sum(name.endswith(("1", "2", "3")) and "trans" in name for name in names) == 3
    )
    assert model.blocks()[-1][1][-1] is model.net.features.norm5


def test_vit_parameters_outside_modules_are_the_same_objects() -> None:
    pytest.importorskip("timm")
    model = structure("timm/vit_tiny_patch16_224")
    name, (loose,) = model.blocks()[0]
    assert name == "cls_token"
    assert next(iter(loose.parameters())) is model.net.cls_token


@pytest.mark.parametrize("arch", [*RUN, "vit_b_16", "timm/resnet10t"])
def test_replace_head_changes_only_the_head(arch: str) -> None:
    model = structure(arch)
    old = model.head
    trunk = {id(p) for p in model.parameters()} - {id(p) for p in old.parameters()}
    model.replace_head(7)
    assert model.head is not old
    assert type(model.head) is type(old)
    assert model.num_classes == 7 == len(model.head.weight)
    assert model.head.weight.device == old.weight.device
    new = {id(p) for p in model.head.parameters()}
    assert {id(p) for p in model.parameters()} == trunk | new


def test_replaced_head_classifies_and_is_seeded() -> None:
    model = create_model("squeezenet1_1", 10, seed=0).eval()
    state = torch.random.get_rng_state()
    model.replace_head(5, seed=3)
    first = model.head.weight.clone()
    model.replace_head(5, seed=3)
    assert torch.equal(model.head.weight, first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model(images("squeezenet1_1")).shape == (2, 5)


def test_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = create_model("resnet8_cifar", 10, seed=5).state_dict()
    assert torch.equal(torch.rand(3), expected)
    two = create_model("resnet8_cifar", 10, seed=5).state_dict()
    other = create_model("resnet8_cifar", 10, seed=6).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["net.conv1.weight"], other["net.conv1.weight"])


@pytest.mark.parametrize(
    ("arch", "millions"),
    [
        ("resnet18", 11.69),
        ("resnet50", 25.56),
        ("wide_resnet50_2", 68.88),
        ("densenet161", 28.68),
        ("mnasnet1_0", 4.38),
        ("mobilenet_v2", 3.50),
        ("resnext50_32x4d", 25.03),
        ("shufflenet_v2_x1_0", 2.28),
        ("vgg16_bn", 138.37),
    ],
)
def test_parameter_counts_of_salman2020(arch: str, millions: float) -> None:
    count = sum(p.numel() for p in structure(arch, 1000).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.006)


def test_wide_resnet50_4_is_four_times_as_wide_inside() -> None:
    """Count the parameters by hand: 1x1, 3x3, 1x1 and two BatchNorm values each."""
    total, inputs = 3 * 64 * 49 + 2 * 64, 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        width, outputs = 4 * 64 * 2**stage, 256 * 2**stage
        for block in range(depth):
            total += inputs * width + 9 * width**2 + width * outputs
            total += 2 * (2 * width + outputs)
            total += (inputs + 2) * outputs if block == 0 else 0
            inputs = outputs
    total += 2048 * 1000 + 1000
    assert sum(p.numel() for p in structure("wide_resnet50_4", 1000).parameters()) == (
        total
    )


@pytest.mark.parametrize(
    ("arch", "thousands"),
    [
        ("resnet20_cifar", 269.7),
        ("resnet32_cifar", 464.2),
        ("resnet44_cifar", 658.6),
        ("resnet56_cifar", 853.0),
        ("wide_resnet28_10_cifar", 36479.2),
    ],
)
def test_parameter_counts_of_cifar_networks(arch: str, thousands: float) -> None:
    count = sum(p.numel() for p in structure(arch).parameters())
    assert count / 1e3 == pytest.approx(thousands, abs=0.1)


def test_small_stem_keeps_the_resolution() -> None:
    model = structure("resnet18_cifar")
    assert model.net.conv1.stride == (1, 1)
    assert isinstance(model.net.maxpool, nn.Identity)


def test_forward_normalises_like_torchvision() -> None:
    model = create_model("resnet8_cifar", 10, seed=0).eval()
    x = images("resnet8_cifar")
    normalize = torchvision.transforms.Normalize(
        [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(model(x), model.net(normalize(x)))
    assert model.mean.dtype == model.std.dtype == torch.float32
    assert model.mean.shape == model.std.shape == (3,)


def test_uint8_images_are_refused() -> None:
    model = create_model("resnet8_cifar", 10)
    with pytest.raises(TypeError, match=r"uint8.*Divide"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_network_of_your_own_classifies_but_needs_a_spec_for_more() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    model = NormalizedModel(net, [0.5] * 3, [0.5] * 3, "mine", 2)
    assert model(torch.rand(4, 3, 2, 2)).shape == (4, 2)
    with pytest.raises(ConfigError, match="unknown architecture 'mine'"):
        model.features(torch.rand(4, 3, 2, 2))
    spec = registry.ArchSpec(
        name="mine", build=lambda n: net, head="1", features=lambda net, z: net[0](z)
    )
    model = NormalizedModel(net, [0.5] * 3, [0.5] * 3, "mine", 2, spec=spec)
    x = torch.rand(4, 3, 2, 2)
    assert torch.equal(model.head(model.features(x)), model(x))


def test_features_compile_without_a_graph_break() -> None:
    model = create_model("resnet8_cifar", 10, seed=0).eval()
    x = images("resnet8_cifar")
    compiled = torch.compile(model.features, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model.features(x))


@pytest.mark.parametrize(
    ("arch", "hint"),
    [("resnet81", "resnet18"), ("wideresnet50_2", "wide_resnet50_2")],
)
def test_unknown_names_get_near_misses(arch: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown architecture '{arch}'.*{hint}"):
        create_model(arch)


def test_unknown_timm_networks_are_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="perhaps you meant"):
        create_model("timm/resnet5o")


def test_a_head_written_to_two_classifiers_is_one_linear_map() -> None:
    """DeiT returns the mean of its two classifiers, which read one token each."""
    pytest.importorskip("timm")
    model = create_model("timm/deit_tiny_distilled_patch16_224", 10, seed=0).eval()
    assert model.embedding_dim == 2 * 192
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(7, 384, generator=draw), torch.randn(7, generator=draw)
    model.replace_head(7)
    model.set_head(weight, bias)
    torch.testing.assert_close(model.head.weight, weight)
    x = images("timm/deit_tiny_distilled_patch16_224")
    expected = model.features(x) @ weight.T + bias
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_timm_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install timm"):
        create_model("timm/resnet18")


def test_library_weights_are_asked_of_the_right_library() -> None:
    for arch, library in [("resnet18", "timm"), ("wide_resnet50_4", "torchvision")]:
        with pytest.raises(ConfigError, match=f"{library} has no weights for '{arch}'"):
            create_model(arch, weights=library)


def test_library_weights_keep_their_statistics(tmp_path: Path) -> None:
    """Weights in torch.hub's cache, as if they had been downloaded."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    try:
        net = torchvision.models.squeezenet1_1()
        (tmp_path / "checkpoints").mkdir()
        torch.save(
            net.state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
        )
        model = create_model("squeezenet1_1", weights="torchvision")
        assert torch.equal(model.head.weight, net.classifier[1].weight)
        assert model.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
        own = create_model(
            *("squeezenet1_1", 5), weights="torchvision", mean=(0.5, 0.5, 0.5)
        )
        assert (own.num_classes, own.mean.tolist()) == (5, [0.5] * 3)
    finally:
        torch.hub.set_dir(before)


@pytest.mark.parametrize("num_classes", [0, -1, 2.5])
def test_bad_num_classes(num_classes: int) -> None:
    with pytest.raises(ValueError, match="num_classes"):
        create_model("resnet8_cifar", num_classes)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,), (0.5, 0.5, 0.5)), ((0.5,) * 3, (0.0, 1, 1)), ((float("nan"),), (1.0,))],
)
def test_bad_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cannot normalise"):
        create_model("resnet8_cifar", 10, mean=mean, std=std)


def test_list_models_matches_wildcards() -> None:
    assert list_models("resnet[125]?") == ["resnet18", "resnet50"]
    assert list_models() == sorted(ARCHITECTURES)
    assert list_models("nothing*") == []


def test_listing_names_imports_no_torch() -> None:
    code = (
        "import sys, fastadv.models as m; m.list_models(); m.ARCHITECTURES; "
        "m.list_models; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
