"""Headless encoders as sources: DINOv2, MAE and CLIP towers, and which token is taken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastadv.errors import CheckpointError, ConfigError
from fastadv.models import (
    AttackView,
    NormalizedModel,
    as_model,
    create_model,
    load_model,
    own_networks,
    register_arch,
    save_model,
)
from fastadv.models.fill_network import fill_network
from fastadv.models.source import open_source
from fastadv.models.tokens import TOKENS, set_token, token_of

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

HALF = (0.5,) * 3
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
NAMES = {
    "dino": {**TINY, "img_size": 56, "patch_size": 14, "init_values": 1e-5},
    "dino_reg": {
        **{**TINY, "img_size": 56, "patch_size": 14, "init_values": 1e-5},
        **{"reg_tokens": 4, "no_embed_class": True},
    },
    "mae": {**TINY, "img_size": 32, "patch_size": 8},
    "clip": {
        **{**TINY, "img_size": 32, "patch_size": 8, "pre_norm": True},
        **{"act_layer": "quick_gelu", "norm_layer": partial(nn.LayerNorm, eps=1e-5)},
    },
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
Net = nn.Module


def _build(name: str, num_classes: int) -> Net:
    net: Net = timm.models.vision_transformer.VisionTransformer(
        num_classes=num_classes, **NAMES[name]
    )
    return net


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_networks, "_OWN", dict(own_networks._OWN))
    for name, options in NAMES.items():
        side = int(options["img_size"])
        build = partial(_build, name)
        register_arch(name, build, mean=HALF, std=HALF, image_size=side)


def drawn(net: Net) -> Net:
    """Give every parameter a value of its own, so that none can take another's place."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return net.eval()


def images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


# ---- files of transformers: its own networks are the oracle ----


def dinov2() -> Net:
    config = transformers.Dinov2Config(image_size=56, patch_size=14, **SIZES)
    return drawn(transformers.Dinov2Model(config))


def dinov2_with_registers() -> Net:
    config = transformers.Dinov2WithRegistersConfig(
        image_size=56, patch_size=14, num_register_tokens=4, **SIZES
    )
    return drawn(transformers.Dinov2WithRegistersModel(config))


def mae() -> Net:
    config = transformers.ViTMAEConfig(
        **{**SIZES, "intermediate_size": 128, "image_size": 32, "patch_size": 8},
        **{"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1},
        **{"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32},
        mask_ratio=0.0,
    )
    return drawn(transformers.ViTMAEForPreTraining(config))


def clip_tower() -> Net:
    config = transformers.CLIPVisionConfig(
        intermediate_size=128, image_size=32, patch_size=8, **SIZES
    )
    return drawn(transformers.CLIPVisionModel(config))


def clip_whole() -> Net:
    tower = {**SIZES, "intermediate_size": 128, "image_size": 32, "patch_size": 8}
    text = {**SIZES, "intermediate_size": 64, "vocab_size": 8}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config=tower)
    return drawn(transformers.CLIPModel(config))


def _tokens(net: Any, z: Tensor) -> Tensor:
    """Return the normalised tokens [N, T, D] as transformers computes them."""
    found: Tensor
    if hasattr(net, "vit"):
        noise = torch.arange(16.0).expand(len(z), -1)  # patches stay in their order
        found = net.vit(pixel_values=z, noise=noise).last_hidden_state
    elif hasattr(net, "vision_model"):
        found = net.vision_model(pixel_values=z).last_hidden_state
        found = net.vision_model.post_layernorm(found)
    else:
        found = net(pixel_values=z).last_hidden_state
        if hasattr(net, "post_layernorm"):
            found = net.post_layernorm(found)
    return found


THEIRS: dict[str, tuple[Callable[[], Net], str, int]] = {
    "DINOv2": (dinov2, "dino", 1),
    "DINOv2 with registers": (dinov2_with_registers, "dino_reg", 5),
    "MAE": (mae, "mae", 1),
    "tower of CLIP": (clip_tower, "clip", 1),
    "CLIP": (clip_whole, "clip", 1),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_encoders_of_transformers_embed_as_there(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, arch, first = THEIRS[kind]
    net = make()
    torch.save(net.state_dict(), tmp_path / "encoder.pt")
    x = images(int(NAMES[arch]["img_size"]))  # type: ignore[call-overload]
    with torch.no_grad():
        tokens = _tokens(net, (x - 0.5) / 0.5)
    expected = {"class": tokens[:, 0], "mean": tokens[:, first:].mean(1)}
    for token, features in expected.items():
        model = load_model(f"{tmp_path / 'encoder.pt'},arch={arch},token={token}")
        torch.testing.assert_close(model.features(x), features, rtol=1e-4, atol=1e-5)
        assert model.num_classes == 0
    left = (
        caplog.text.partition("left out:")[2]
        .replace("decoder", "")
        .replace("text_model.encoder", "")
    )
    assert "encoder.layer" not in left  # all of the trunk was taken
    assert float((expected["class"] - expected["mean"]).abs().max()) > 0.1


# ---- files of the authors, by the names of their layers ----


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def _trunk(net: Net) -> dict[str, Tensor]:
    return {k: v for k, v in net.state_dict().items() if not k.startswith("head.")}


def dinov2_hub(net: Net) -> dict[str, Any]:
    return {**_trunk(net), "mask_token": torch.ones(1, 32)}


def dinov2_training(net: Net) -> dict[str, Any]:
    chunks = {
        key.replace("blocks.0.", "blocks.0.0.").replace(
            "blocks.1.", "blocks.1.1."
        ): value
        for key, value in dinov2_hub(net).items()
    }
    head = {"dino_head.mlp.0.weight": torch.ones(8, 32)}
    return {"teacher": {**_under("backbone.", chunks), **head}, "iteration": 3}


def mae_pretraining(net: Net) -> dict[str, Any]:
    decoder = {
        "mask_token": torch.ones(1, 1, 16),
        "decoder_pos_embed": torch.ones(1, 17, 16),
        "decoder_embed.weight": torch.ones(16, 32),
        "decoder_blocks.0.norm1.weight": torch.ones(16),
        "decoder_norm.weight": torch.ones(16),
        "decoder_pred.weight": torch.ones(192, 16),
    }
    return {"model": {**_trunk(net), **decoder}, "epoch": 3}


_OPENAI = (
    ("pos_embed", "positional_embedding"),
    ("cls_token", "class_embedding"),
    ("patch_embed.proj.", "conv1."),
    ("norm_pre.", "ln_pre."),
    ("blocks.", "transformer.resblocks."),
    (".norm1.", ".ln_1."),
    (".norm2.", ".ln_2."),
    (".attn.qkv.", ".attn.in_proj_"),
    (".attn.proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def openai_tower(net: Net) -> dict[str, Any]:
    found = {}
    for key, value in _trunk(net).items():
        name = f"ln_post.{key[5:]}" if key.startswith("norm.") else key
        for ours, theirs in _OPENAI:
            name = name.replace(ours, theirs)
        found[name] = value.squeeze() if name.endswith("embedding") else value
    return {**found, "proj": torch.ones(32, 24)}


def open_clip(net: Net) -> dict[str, Any]:
    text = {
        "positional_embedding": torch.ones(77, 16),
        "text_projection": torch.ones(16, 24),
        "token_embedding.weight": torch.ones(49, 16),
        "transformer.resblocks.0.ln_1.weight": torch.ones(16),
        "ln_final.weight": torch.ones(16),
        "logit_scale": torch.ones(()),
    }
    state = _under("module.", {**text, **_under("visual.", openai_tower(net))})
    return {"epoch": 32, "name": "run", "state_dict": state}


def open_clip_of_timm(net: Net) -> dict[str, Any]:
    beside = {
        "visual.head.proj.weight": torch.ones(24, 32),
        "logit_scale": torch.ones(()),
    }
    return {**_under("visual.trunk.", _trunk(net)), **beside}


OWN: dict[str, tuple[Callable[[Net], dict[str, Any]], str]] = {
    "DINOv2, hub": (dinov2_hub, "dino"),
    "DINOv2, training": (dinov2_training, "dino"),
    "MAE": (mae_pretraining, "mae"),
    "CLIP, tower": (openai_tower, "clip"),
    "open_clip": (open_clip, "clip"),
    "open_clip with a tower of timm": (open_clip_of_timm, "clip"),
}


@pytest.mark.parametrize("kind", OWN)
def test_encoders_of_their_authors_open(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, arch = OWN[kind]
    net = drawn(_build(arch, 5))
    path = tmp_path / "encoder.pt"
    torch.save(write(net), path)
    source = open_source(f"{path},arch={arch}")
    assert "its embedding is the class token; write ,token=mean or ,tok" in caplog.text
    assert source.num_classes == 0  # a projection is no classifier
    model = source.load()
    x = images(int(NAMES[arch]["img_size"]))  # type: ignore[call-overload]
    found: Any = net
    expected = found.forward_features((x - 0.5) / 0.5)
    torch.testing.assert_close(model.features(x), expected[:, 0])
    mean = open_source(f"{path},arch={arch},token=mean")
    assert mean.digest != source.digest
    torch.testing.assert_close(mean.load().features(x), expected[:, 1:].mean(1))


def test_registers_of_the_authors_have_their_place(tmp_path: Path) -> None:
    """Their class token has a position of its own, which timm adds to the token."""
    net: Any = drawn(_build("dino_reg", 5))
    state = _trunk(net)
    place = torch.full((1, 1, 32), 0.25)
    state["register_tokens"] = state.pop("reg_token")
    state["cls_token"] = state["cls_token"] - place
    state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    torch.save({**state, "mask_token": torch.ones(1, 32)}, tmp_path / "reg.pt")
    model = load_model(f"{tmp_path / 'reg.pt'},arch=dino_reg")
    x = images(56)
    expected = net.forward_features((x - 0.5) / 0.5)[:, 0]
    torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_small_patch14_dinov2", "teacher.backbone."),
        ("vit_base_patch14_reg4_dinov2", ""),
        ("vit_large_patch16_224", "model."),
        ("vit_base_patch32_clip_224", "visual.trunk."),
    ],
)
def test_a_transformer_without_a_name_is_described(name: str, prefix: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    with pytest.raises(CheckpointError, match=f"perhaps timm/{name}[.]"):
        fill_network(_under(prefix, state), None, Path("encoder.pth"))


# ---- the token is part of a network, wherever it goes ----


def _embedded(net: Any, x: Tensor, token: str) -> Tensor:
    """Compute an embedding by the definition of its token."""
    norm = net.norm if not isinstance(net.norm, nn.Identity) else net.fc_norm
    held, net.norm = net.norm, nn.Identity()
    tokens: Tensor = net.forward_features(x)
    net.norm = held
    first = net.num_prefix_tokens
    if token == "pooled":
        return norm(tokens[:, first:].mean(1))  # type: ignore[no-any-return]
    tokens = norm(tokens)
    return tokens[:, 0] if token == "class" else tokens[:, first:].mean(1)


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_stays_with_a_network(token: str, tmp_path: Path) -> None:
    model = create_model("mae", 5).eval()
    drawn(model.net)
    x = images(32)
    expected = _embedded(model.net, model.normalize(x), token)
    model.set_token(token)
    torch.testing.assert_close(model.features(x), expected)
    view = AttackView(model)
    torch.testing.assert_close(view.features(view.normalize(x)), expected)
    save_model(model, tmp_path / "model.safetensors")
    back = load_model(tmp_path / "model.safetensors")
    assert back.token == token
    assert token_of(back.net) == token
    assert torch.equal(back(x), model(x))
    for other in TOKENS:  # from each to each, and back
        back.set_token(other)
        back.set_token(token)
        assert torch.equal(back(x), model(x))


def test_a_file_that_normalises_the_mean_says_so(tmp_path: Path) -> None:
    """The fine-tuning of MAE has its last layer as `fc_norm`."""
    net: Any = drawn(_build("mae", 5))
    state = {k.replace("norm.", "fc_norm.") if k[:5] == "norm." else k: v
             for k, v in net.state_dict().items()}  # fmt: skip
    torch.save({"model": state}, tmp_path / "tuned.pth")
    model = load_model(f"{tmp_path / 'tuned.pth'},arch=mae")
    assert model.token == "pooled"
    x = images(32)
    z = model.normalize(x)
    torch.testing.assert_close(model.features(x), _embedded(net, z, "pooled"))
    torch.testing.assert_close(model(x), net.head(_embedded(net, z, "pooled")))


FAMILIES: dict[str, dict[str, Any]] = {
    "beit.Beit": {**TINY, "img_size": 32, "patch_size": 8},
    "eva.Eva": {**TINY, "img_size": 32, "patch_size": 8},
    "cait.Cait": {**TINY, "img_size": 32, "patch_size": 8, "depth_token_only": 1},
    "xcit.Xcit": {**TINY, "img_size": 32, "patch_size": 8},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_transformers_have_both_tokens(name: str) -> None:
    module, _, kind = name.partition(".")
    family = getattr(getattr(timm.models, module), kind)
    model = as_model(drawn(family(num_classes=3, **FAMILIES[name])))
    net: Any = model.net
    x = images(32)
    for token in ("class", "mean"):
        model.set_token(token)
        tokens = net.forward_features(x)
        expected = tokens[:, 0] if token == "class" else tokens[:, 1:].mean(1)
        torch.testing.assert_close(model.features(x), expected)


def test_torchvisions_transformer_has_both_tokens() -> None:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=3)
    model = NormalizedModel(drawn(net), HALF, HALF, "vit_b_16", 3)
    x = images(32)
    seen = []
    net.encoder.register_forward_hook(lambda _, inputs, output: seen.append(output))
    for token in ("class", "mean", "class"):
        model.set_token(token)
        features = model.features(x)
        expected = seen[-1][:, 0] if token == "class" else seen[-1][:, 1:].mean(1)
        torch.testing.assert_close(features, expected)
        torch.testing.assert_close(model(x), net.heads(expected))


@pytest.mark.parametrize(
    ("build", "token", "message"),
    [
        (lambda: nn.Linear(3, 2), "mean", "Linear has no choice of tokens"),
        (lambda: timm.create_model("test_resnet"), "class", "ResNet has no choice of"),
        (lambda: timm.create_model("test_vit_relpos"), "class", "has no choice of"),
        (lambda: create_model("vit_b_32").net, "pooled", "has no choice of tokens"),
    ],
)
def test_networks_without_such_a_token_are_refused(
    build: Callable[[], Net], token: str, message: str
) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        set_token(build(), token)


@pytest.mark.parametrize("token", ["cls", "avg", ""])
def test_a_token_of_another_name_is_refused(token: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of class, mean, pooled"):
        open_source(f"{tmp_path},token={token}")


def test_an_encoder_is_transferred_with_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The row keeps the head alone, and opens the trunk again with the same token."""
    from fastadv.cli.transfer import main
    from fastadv.results.table import ResultsTable

    monkeypatch.chdir(tmp_path)
    net: Any = drawn(_build("mae", 5))
    torch.save(_trunk(net), "mae.pth")
    caplog.set_level(logging.WARNING)
    words = ["--dataset", "digits", "--resolution", "32", "--num-train", "60"]
    for token in ("class", "mean"):
        source = f"mae.pth,arch=mae,token={token}"
        assert main(["--source", source, *words, "--mode", "fixed_feature"]) == 0
    rows = sorted(ResultsTable("results").rows(), key=lambda row: row.time)
    assert len({row.identity for row in rows}) == len(rows) == 2
    x = images(32)
    for row, token in zip(rows, ("class", "mean"), strict=True):
        model = open_source(f"row:{row.identity[:12]}").load()
        assert model.token == token
        expected = _embedded(net, model.normalize(x), token)
        torch.testing.assert_close(model.features(x), expected)
