"""Images of other sizes and of one channel, from building a network to its evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fastadv.cli.eval import main as evaluate
from fastadv.cli.train import main as train
from fastadv.data import make_loader, open_dataset
from fastadv.errors import ConfigError
from fastadv.models import (
    AttackView,
    create_model,
    export_model,
    load_model,
    open_source,
    save_model,
)

GREY = {"mean": (0.4,), "std": (0.2,)}


def images(side: int, channels: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(2, channels, side, side, generator=draw)


@pytest.mark.parametrize(
    "arch",
    ["resnet20_cifar", "preact_resnet18_cifar", "squeezenet1_1", "timm/test_vit"],
)
def test_a_grey_network_sees_what_the_same_in_colour_sees(
    arch: str, tmp_path: Path
) -> None:
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    side = 160 if "vit" in arch else 64
    grey = create_model(arch, 5, **GREY, seed=0).eval()
    colour = create_model(arch, 5, mean=(0.4,) * 3, std=(0.2,) * 3, seed=0).eval()
    x = images(side, 1)
    expected = colour(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey(x), expected, rtol=1e-4, atol=1e-5)
    view = AttackView(grey)
    torch.testing.assert_close(view(view.normalize(x)), grey(x), rtol=1e-4, atol=1e-5)
    save_model(grey, tmp_path / "grey.safetensors")
    back = load_model(tmp_path / "grey.safetensors")
    assert back.channels == 1
    assert torch.equal(back(x), grey(x))


def test_a_grey_state_dict_of_others_opens(tmp_path: Path) -> None:
    net = create_model("resnet18_cifar", 3, **GREY, seed=0).net
    torch.save(net.state_dict(), tmp_path / "grey.pt")
    model = load_model(tmp_path / "grey.pt", arch="resnet18_cifar")
    assert model.channels == 1
    assert model.mean.item() == pytest.approx(0.449, abs=1e-3)  # of ImageNet in grey
    source = open_source(f"{tmp_path / 'grey.pt'},arch=resnet18_cifar,mean=0.1,std=0.3")
    assert source.channels == 1
    assert source.statistics == (pytest.approx((0.1,)), pytest.approx((0.3,)))


def test_grey_exports_read_one_channel(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = create_model("resnet8_cifar", 3, **GREY, seed=0).eval()
    export_model(model, tmp_path / "grey.onnx", "onnx", resolution=32)
    session = runtime.InferenceSession(str(tmp_path / "grey.onnx"))
    [logits] = session.run(None, {"images": images(32, 1).numpy()})
    torch.testing.assert_close(
        torch.from_numpy(logits), model(images(32, 1)), rtol=1e-3, atol=1e-4
    )


def test_a_loader_gives_luma_as_pillow_does() -> None:
    found = open_dataset("shapetex", resolution=16).test
    options = {"batch_size": 8, "resolution": 16, "train": False}
    colour = next(iter(make_loader(found, **options))).images
    grey = next(iter(make_loader(found, channels=1, **options))).images
    assert grey.shape == (8, 1, 16, 16)
    for mine, image in zip(grey, colour, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
        assert bytes(mine[0].contiguous().numpy()) == pillow.tobytes()


def test_grey_networks_train_and_are_judged_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        *("--arch", "resnet8_cifar", "--grey", "--data", "shapetex", "--resolution"),
        *("16", "--num-train", "48", "--epochs", "1", "--eps", "0.1", "--num-steps"),
        *("1", "--batch-size", "16", "--eval-images", "16", "--out", "run"),
    ]
    assert train(words) == 0
    assert open_source("run").channels == 1
    judged = ["--checkpoint", "run", "--data", "shapetex", "--resolution", "16"]
    assert evaluate([*judged, "--num-images", "20", "--num-steps", "2", "--json"]) == 0
    assert '"n": 20' in capsys.readouterr().out


@pytest.mark.parametrize("arch", ["mixed", "linear"])
def test_what_cannot_be_grey_is_refused(arch: str) -> None:
    from fastadv.models.input_shapes import set_channels

    net = nn.Conv2d(4, 8, 3) if arch == "mixed" else nn.Linear(4, 3)
    with pytest.raises(ConfigError, match="cannot read images of 1 channel"):
        set_channels(nn.Sequential(net), 1)


@pytest.mark.parametrize("arch", ["timm/test_vit", "timm/test_vit3"])
def test_transformers_take_another_size_and_come_back_so(
    arch: str, tmp_path: Path
) -> None:
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    model = create_model(arch, 5, seed=0, image_size=64).eval()
    x = images(64)
    save_model(model, tmp_path / "small.safetensors")
    back = load_model(tmp_path / "small.safetensors")
    assert back.image_size == 64
    assert torch.equal(back(x), model(x))
    back.set_image_size(96)  # and on to another
    assert back(images(96)).shape == (2, 5)


def test_position_embeddings_are_interpolated_as_torchvision_does() -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    model = create_model("vit_b_32", 5, seed=0)
    expected = interpolate_embeddings(96, 32, dict(model.net.state_dict()))
    model.set_image_size(96)
    key = "encoder.pos_embedding"
    torch.testing.assert_close(model.net.state_dict()[key], expected[key])


@pytest.mark.parametrize(
    ("arch", "side"),
    [("timm/test_vit", 8), ("alexnet", 16), ("inception_v3", 32), ("vit_b_32", 40)],
)
def test_sizes_that_no_image_of_it_has_are_refused_in_a_line(
    arch: str, side: int
) -> None:
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=f"cannot take images of {side} px") as error:
        create_model(arch, 5, image_size=side)
    assert "\n" not in str(error.value)


def test_a_vit_trains_at_the_size_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    words = [
        *("--arch", "timm/test_vit", "--data", "shapetex", "--resolution", "32"),
        *("--num-train", "48", "--epochs", "1", "--eps", "0", "--batch-size", "16"),
        *("--eval-images", "16", "--out", "run"),
    ]
    assert train(words) == 0
    assert load_model("run").image_size == 32
