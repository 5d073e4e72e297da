"""Checkpoints as other programs write them: wrappers, copies, normalisers, missing heads."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from source_files import MEAN, STD, refused
from torch import Tensor, nn

from fastadv.errors import ConfigError
from fastadv.evaluation.matching import match_classes
from fastadv.models import NormalizedModel, create_model, load_model, state_hash
from fastadv.models.source import open_source

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> NormalizedModel:
    torch.set_num_threads(1)
    return create_model("resnet8_cifar", 10, mean=MEAN, std=STD, seed=0).eval()


@pytest.fixture(scope="module")
def other() -> NormalizedModel:
    return create_model("resnet8_cifar", 10, mean=MEAN, std=STD, seed=1).eval()


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def trunk(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("linear.")}


def _adam(net: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def same_weights(loaded: NormalizedModel, state: State) -> bool:
    found = loaded.net.state_dict()
    return all(torch.equal(found[key], state[key]) for key in state)


# ---- where the weights lie in a file ----

WRAPPED: dict[str, Callable[[NormalizedModel, State], Any]] = {
    "torchvision": lambda m, s: {"model": s, "args": argparse.Namespace(lr=0.1)},
    "pytorch-cifar": lambda m, s: {"net": under("module.", s), "acc": 91.2, "epoch": 3},
    "saver": lambda m, s: {"model_state_dict": s, "loss": torch.tensor(0.1)},
    "optimiser first": lambda m, s: {"optimizer": _adam(m.net), "weights": s},
    "deep": lambda m, s: {"classy_state_dict": {"base_model": {"model": {"trunk": s}}}},
    "in a list": lambda m, s: [{"epoch": 1}, (3, {"params": s})],
    "deepspeed": lambda m, s: {"module": under("_forward_module.", s), "dp": 1},
    "lightning": lambda m, s: {
        "state_dict": {**under("model.", s), "criterion.weight": torch.ones(10)},
        "callbacks": {"ModelCheckpoint": {"best_model_path": "a.ckpt"}},
    },
    "loss beside": lambda m, s: {**s, "loss_fn.weight": torch.ones(10)},
    "metric beside": lambda m, s: {**under("net.", s), "val_acc.total": torch.ones(5)},
    "compiled": lambda m, s: under("_orig_mod.", s),
    "compiled inside": lambda m, s: {
        key.replace("layer1.", "layer1._orig_mod."): value for key, value in s.items()
    },
    "fsdp": lambda m, s: {
        key.replace("layer1.0.", "layer1.0._fsdp_wrapped_module."): value
        for key, value in under("_fsdp_wrapped_module.", s).items()
    },
    "recomputed": lambda m, s: {
        key.replace("layer2.", "layer2._checkpoint_wrapped_module."): value
        for key, value in s.items()
    },
    "parallel inside": lambda m, s: {
        key.replace("layer1.", "layer1.module."): value for key, value in s.items()
    },
    "profiled": lambda m, s: {**s, "layer1.total_ops": torch.zeros(1)},
    "whole network": lambda m, s: m.net,
    "whole network in a dict": lambda m, s: {"epoch": 1, "net": nn.DataParallel(m.net)},
}


@pytest.mark.parametrize("layout", WRAPPED)
def test_weights_are_found_wherever_they_lie(
    model: NormalizedModel, tmp_path: Path, layout: str
) -> None:
    state = model.net.state_dict()
    path = tmp_path / "w.pt"
    torch.save(WRAPPED[layout](model, state), path)
    source = f"{path},mean=0.1,0.2,0.3,std=0.4,0.5,0.6"
    assert state_hash(load_model(source)) == state_hash(model)


@pytest.mark.parametrize(
    "key", ["layer1.1.conv1.weight", "attention.weight", "fc2.bias"]
)
def test_a_layer_more_is_another_network(
    model: NormalizedModel, tmp_path: Path, key: str
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"net": {**model.net.state_dict(), key: torch.ones(3, 3)}}, path)
    assert f"resnet8_cifar would fit, but for {key}" in refused(str(path))
    message = refused(f"{path},arch=resnet8_cifar")
    assert f"1 unexpected ({key}), as net.{key} in the file" in message


def test_a_missing_layer_is_another_network(
    model: NormalizedModel, tmp_path: Path
) -> None:
    state = model.net.state_dict()
    del state["layer3.0.bn2.running_var"]
    torch.save({"state_dict": under("model.", state)}, tmp_path / "w.pt")
    message = refused(f"{tmp_path / 'w.pt'},arch=resnet8_cifar")
    assert "1 missing (layer3.0.bn2.running_var)." in message


# ---- the classifier ----


@pytest.mark.parametrize("name", ["linear.1.", "fc.", "last_linear.", "classifier."])
def test_a_classifier_of_another_name(
    model: NormalizedModel, tmp_path: Path, name: str
) -> None:
    state = model.net.state_dict()
    head = {f"{name}{key}": state[f"linear.{key}"] for key in ("weight", "bias")}
    for place, body in (("", trunk(state)), ("x.", under("x.", trunk(state)))):
        torch.save({**body, **under(place, head)}, tmp_path / "w.pt")
        assert same_weights(load_model(tmp_path / "w.pt"), state)
    torch.save({**under("backbone.", trunk(state)), **head}, tmp_path / "w.pt")
    if name != "linear.1.":
        assert same_weights(load_model(tmp_path / "w.pt"), state)


TRUNKS: dict[str, Callable[[State, State], Any]] = {
    "moco": lambda a, b: {
        "state_dict": {
            **under("module.encoder_q.", trunk(a)),
            **under("module.encoder_k.", trunk(b)),
            "module.encoder_q.linear.0.weight": torch.ones(64, 64),
            "module.encoder_q.linear.2.weight": torch.ones(128, 64),
            "module.queue": torch.ones(128, 512),
        }
    },
    "moco, a layer as head": lambda a, b: {
        "state_dict": under("module.encoder_q.", a) | under("module.encoder_k.", b)
    },
    "dino": lambda a, b: {
        "student": {
            **under("module.backbone.", trunk(a)),
            "module.head.mlp.0.weight": torch.ones(64, 64),
        },
        "teacher": under("backbone.", trunk(b)),
    },
    "swav": lambda a, b: {
        **under("module.", trunk(a)),
        "module.projection_head.0.weight": torch.ones(32, 64),
        "module.prototypes.weight": torch.ones(30, 32),
    },
    "simclr": lambda a, b: {
        **under("backbone.", trunk(a)),
        "projector.0.weight": torch.ones(32, 64),
    },
    "vissl": lambda a, b: {"model": {"trunk": under("_feature_blocks.", trunk(a))}},
    "bare": lambda a, b: trunk(a),
}


@pytest.mark.parametrize("layout", TRUNKS)
def test_trunks_without_a_classifier(
    model: NormalizedModel,
    other: NormalizedModel,
    tmp_path: Path,
    layout: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "w.pt"
    state = model.net.state_dict()
    torch.save(TRUNKS[layout](state, other.net.state_dict()), path)
    source = open_source(f"{path},mean=0.1,0.2,0.3,std=0.4,0.5,0.6")
    assert "it serves as a source of features and of transfer alone" in caplog.text
    assert source.num_classes == 0
    loaded = source.load()
    assert same_weights(loaded, trunk(state))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.features(x), model.features(x))
    assert loaded(x).shape == (2, 0)
    loaded.replace_head(7, seed=0)
    assert loaded(x).shape == (2, 7)


def test_a_trunk_is_not_evaluated(model: NormalizedModel, tmp_path: Path) -> None:
    torch.save(trunk(model.net.state_dict()), tmp_path / "w.pt")
    source = open_source(str(tmp_path / "w.pt"))
    images: Any = SimpleNamespace(classes=("a", "b"), name="two")
    with pytest.raises(
        ConfigError, match="w has no classifier, so there is nothing to"
    ):
        match_classes(source, images)


# ---- several weights in a file ----

SEVERAL: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "timm": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "ema", "raw"),
    "ema first": (lambda a, b: {"model_ema": b, "model": a}, "model_ema", "model"),
    "swa": (
        lambda a, b: {
            "net": a,
            "swa": {**under("module.", b), "n_averaged": torch.ones(())},
        },
        "swa",
        "net",
    ),
    "lightning": (lambda a, b: under("model.", a) | under("ema.", b), "ema", "model"),
    "ema-pytorch": (
        lambda a, b: under("online_model.", a) | under("ema_model.", b),
        "ema",
        "online",
    ),
    "parameters alone": (
        lambda a, b: {
            "model": a,
            "ema": {"decay": 0.9, "shadow": {k: b[k] for k in b if "running" not in k}},
        },
        "ema",
        "raw",
    ),
    "camel": (lambda a, b: {"model": a, "modelEMA": b}, "modelEMA", "model"),
    "mean teacher": (lambda a, b: {"student": a, "teacher": b}, "teacher", "student"),
}


@pytest.mark.parametrize("layout", SEVERAL)
def test_raw_weights_are_taken_and_averaged_ones_can_be(
    model: NormalizedModel,
    other: NormalizedModel,
    tmp_path: Path,
    layout: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "w.pt"
    write, averaged, raw = SEVERAL[layout]
    a, b = model.net.state_dict(), other.net.state_dict()
    torch.save(write(a, b), path)
    plain = open_source(str(path))
    assert "it holds several weights (" in caplog.text
    assert ",weights=" in caplog.text
    assert same_weights(plain.load(), a)
    caplog.clear()
    chosen = open_source(f"{path},weights={averaged}")
    assert "several weights" not in caplog.text
    assert same_weights(chosen.load(), b)
    assert chosen.digest != plain.digest
    assert same_weights(load_model(f"{path},weights={raw}"), a)
    assert "names none of the weights in it: " in refused(f"{path},weights=best")


def test_models_without_a_role_are_not_chosen_among(
    model: NormalizedModel, other: NormalizedModel, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    a, b = model.net.state_dict(), other.net.state_dict()
    torch.save({"natural": a, "robust": b}, path)
    message = refused(str(path))
    assert "holds two different models, natural and robust" in message
    assert same_weights(load_model(f"{path},weights=robust"), b)
    torch.save({"last": a, "best": {key: v.clone() for key, v in a.items()}}, path)
    assert same_weights(load_model(path), a)  # copies are one


# ---- normalisation ----


def _stats(mean: str, std: str, scale: float = 1) -> State:
    shape = (1, 3, 1, 1)
    return {
        mean: torch.tensor(MEAN).view(shape) * scale,
        std: torch.tensor(STD).view(shape) * scale,
    }


NORMALIZED: dict[str, Callable[[State], Any]] = {
    "Sequential": lambda s: _stats("0.mean", "0.std") | under("1.", s),
    "named": lambda s: _stats("normalize.mu", "normalize.sigma") | under("model.", s),
    "robustness": lambda s: (
        _stats("attacker.normalizer.new_mean", "attacker.normalizer.new_std")
        | _stats("normalizer.new_mean", "normalizer.new_std")
        | under("model.", s)
    ),
    "of 255": lambda s: _stats("pixel_mean", "pixel_std", 255) | under("backbone.", s),
    "in the network": lambda s: _stats("mean", "std") | s,
    "among the options": lambda s: {
        "state_dict": s,
        "hyper_parameters": {"mean": list(MEAN), "std": list(STD), "lr": 0.1},
    },
    "in a namespace": lambda s: {
        "state_dict": s,
        "args": argparse.Namespace(mean=MEAN, std=STD),
    },
}


@pytest.mark.parametrize("layout", NORMALIZED)
def test_normalisers_are_found(
    model: NormalizedModel, tmp_path: Path, layout: str
) -> None:
    path = tmp_path / "w.pt"
    torch.save(NORMALIZED[layout](model.net.state_dict()), path)
    loaded = load_model(path)
    torch.testing.assert_close(loaded.mean, model.mean)
    torch.testing.assert_close(loaded.std, model.std)
    assert "was trained with mean" in refused(f"{path},mean=0.5,std=0.5")


def test_statistics_are_assumed_aloud_and_can_be_given(
    model: NormalizedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.pt"
    torch.save(model.net.state_dict(), path)
    with caplog.at_level(logging.WARNING):
        assert load_model(path).mean.tolist() == pytest.approx((0.485, 0.456, 0.406))
        assert "assumed are ImageNet's mean and std" in caplog.text
        assert ",mean=R,G,B,std=R,G,B" in caplog.text
        caplog.clear()
        given = load_model(f"{path},mean=0.1/0.2/0.3,std=0.4,arch=resnet8_cifar")
        assert caplog.text == ""
    assert given.mean.tolist() == pytest.approx(MEAN)
    assert given.std.tolist() == pytest.approx([0.4] * 3)
    cifar = load_model(f"{path},input=cifar10")
    assert cifar.std.tolist() == pytest.approx((0.2470, 0.2435, 0.2616))
    assert open_source(str(path)).digest != open_source(f"{path},input=cifar10").digest


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("mean=0.5", "give both mean= and std="),
        ("mean=0.5,std=0.5,input=half", "and not input= beside them"),
        ("mean=123.7,116.3,103.5,std=0.2", "divide those for 0..255 by 255"),
        ("mean=0.1,0.2,std=0.5", "one number for all channels or one for each"),
        ("mean=a,std=b", "'b' is no mean or std"),
        ("mean=0.5,std=0", "std > 0"),
    ],
)
def test_statistics_that_cannot_be(
    model: NormalizedModel, tmp_path: Path, options: str, complaint: str
) -> None:
    path = tmp_path / "w.pt"
    torch.save(model.net.state_dict(), path)
    assert complaint in refused(f"{path},{options}")
