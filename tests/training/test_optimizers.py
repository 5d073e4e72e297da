"""Optimisers, averages, mixed labels and parts of a batch, against their equations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadv.errors import ConfigError
from fastadv.models import NormalizedModel, create_model
from fastadv.models.view import AttackView
from fastadv.runs.distributed import World
from fastadv.training import TrainConfig, train_step
from fastadv.training.ema import EMA
from fastadv.training.learner import Learner
from fastadv.training.mixing import Mixing
from fastadv.training.optimizers import LAMB, LARS, apex_optimizer, make_optimizer
from fastadv.training.step import Update


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def _free_of_norms(seed: int = 0) -> NormalizedModel:
    torch.manual_seed(seed)
    return NormalizedModel(_net(), [0.4] * 3, [0.25] * 3, "own", 5)


def _batch(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=generator)
    return images.to(torch.uint8), torch.arange(n) % 5


# ---- optimisers ----


def _updates(optimizer: torch.optim.Optimizer, net: nn.Module, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in net.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def test_lars_is_algorithm_1() -> None:
    net, plain = _net(), _net()
    optimizer = make_optimizer("lars", net, lr=2.0, momentum=0.9, weight_decay=1e-2)
    assert isinstance(optimizer, LARS)
    _updates(optimizer, net, 3)
    generator = torch.Generator().manual_seed(1)
    velocity = [torch.zeros_like(w) for w in plain.parameters()]
    with torch.no_grad():
        for _ in range(3):
            for w, v in zip(plain.parameters(), velocity, strict=True):
                g = torch.randn(w.shape, generator=generator)
                rate = torch.tensor(2.0)
                if w.dim() > 1:
                    rate = rate * 0.001 * w.norm() / (g.norm() + 1e-2 * w.norm())
                    g = g + 1e-2 * w
                v.mul_(0.9).add_(rate * g)
                w -= v
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_lamb_is_algorithm_2() -> None:
    net, plain = _net(), _net()
    optimizer = make_optimizer("lamb", net, lr=0.01, momentum=0.9, weight_decay=1e-2)
    assert isinstance(optimizer, LAMB)
    _updates(optimizer, net, 3)
    generator = torch.Generator().manual_seed(1)
    first = [torch.zeros_like(w) for w in plain.parameters()]
    second = [torch.zeros_like(w) for w in plain.parameters()]
    with torch.no_grad():
        for t in range(1, 4):
            for w, m, v in zip(plain.parameters(), first, second, strict=True):
                g = torch.randn(w.shape, generator=generator)
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.999 * v + 0.001 * g * g)
                root = (v / (1 - 0.999**t)).sqrt() + 1e-6
                step = m / (1 - 0.9**t) / root
                if w.dim() > 1:
                    step = step + 1e-2 * w
                    step = step * w.norm() / step.norm()
                w -= 0.01 * step
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_a_layer_without_weights_or_gradient_moves_as_plain_sgd_would(
    kind: Any,
) -> None:
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = kind([weight], lr=0.1)
    weight.grad = torch.zeros(3, 3)
    optimizer.step()
    assert weight.eq(0).all()
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert weight.lt(0).all()
    assert weight.isfinite().all()


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
def test_optimizers_descend_and_resume(name: str) -> None:
    images, labels = _batch()
    losses = []
    model = _free_of_norms()
    choices = {"lr": 0.02 if name != "lars" else 5.0, "momentum": 0.9}
    optimizer = make_optimizer(name, model, weight_decay=1e-4, **choices)
    for step in range(12):
        if step == 6:  # the state survives the way through a checkpoint
            saved = optimizer.state_dict()
            optimizer = make_optimizer(name, model, weight_decay=1e-4, **choices)
            optimizer.load_state_dict(saved)
        losses.append(train_step(model, images, labels, optimizer).loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_apex_of_the_index_is_another_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match="NVIDIA apex cannot be imported"):
        apex_optimizer("FusedSGD")
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("'An OpenID account server.'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="another project of that name"):
        apex_optimizer("FusedSGD")
    for name in ("apex", "apex.optimizers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "apex" / "optimizers.py").write_text(
        "from torch.optim import SGD as FusedSGD\n"
    )
    assert apex_optimizer("FusedSGD") is torch.optim.SGD
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        make_optimizer("apex_fused_sgd", _net(), lr=0.1, momentum=0.9, weight_decay=0.0)
    monkeypatch.delitem(sys.modules, "apex")
    monkeypatch.delitem(sys.modules, "apex.optimizers")


# ---- the update ----


def _learner(model: NormalizedModel, **choices: Any) -> Learner:
    config = TrainConfig(arch="resnet8_cifar", norm="linf", device="cpu", **choices)
    return Learner(config, model, 8, World())


@pytest.mark.parametrize("method", ["pgd_at", "trades", "n_fgsm", "free"])
@pytest.mark.parametrize("parts", [2, 5])
def test_parts_make_the_update_of_the_batch(method: Any, parts: int) -> None:
    """Twelve images in parts of six, or of three: up to rounding, the whole batch."""
    images, labels = _batch()
    whole, split = _free_of_norms(), _free_of_norms()
    results = []
    for model, count in ((whole, 1), (split, parts)):
        learner = _learner(model, method=method, accumulate=count, lr=0.01)
        for seed in (3, 4):
            result = train_step(
                model,
                images,
                labels,
                learner.optimizer,
                method=learner.method,
                update=learner.update,
                seed=seed,
            )
        results.append(result)
    assert results[0].loss.item() == pytest.approx(results[1].loss.item(), rel=1e-4)
    assert results[0].correct == results[1].correct
    for one, other in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not torch.equal(whole.net[0].weight, _free_of_norms().net[0].weight)


def test_clipping_bounds_the_whole_gradient() -> None:
    images, labels = _batch()
    moved = []
    for clip in (None, 0.05):
        model = _free_of_norms()
        before = [w.clone() for w in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        train_step(model, images, labels, optimizer, update=Update(clip_grad=clip))
        steps = [w - b for w, b in zip(model.parameters(), before, strict=True)]
        moved.append(torch.cat([step.flatten() for step in steps]))
    assert moved[0].norm() > 0.1
    assert moved[1].norm().item() == pytest.approx(0.05, rel=1e-3)
    assert F.cosine_similarity(moved[0], moved[1], dim=0) > 0.9999


def test_fp16_scales_the_loss_and_leaves_out_a_step_that_overflows() -> None:
    images, labels = _batch()
    model = _free_of_norms()
    learner = _learner(model, precision="fp16", lr=0.05)
    scaler = learner.update.scaler
    assert scaler is not None
    assert learner.view is not None
    assert learner.view.dtype == torch.float16

    def step() -> float:
        result = train_step(
            model,
            images,
            labels,
            learner.optimizer,
            method=learner.method,
            update=learner.update,
        )
        return result.loss.item()

    losses = [step() for _ in range(8)]
    assert losses[-1] < losses[0] - 0.05
    plain = _learner(_free_of_norms(), lr=0.05)
    full = train_step(plain.model, images, labels, plain.optimizer, method=plain.method)
    assert losses[0] == pytest.approx(full.loss.item(), rel=2e-2)
    before = model.net[0].weight.clone()
    scaler.update(2.0**40)  # overflows in float16
    step()
    assert torch.equal(model.net[0].weight, before)
    assert scaler.get_scale() == 2.0**39


def test_ema_is_the_average_of_its_equation() -> None:
    model = create_model("resnet8_cifar", 4, seed=0)
    ema = EMA(model, 0.5)
    expected = {k: v.clone().double() for k, v in model.state_dict().items()}
    for step in range(20):
        with torch.no_grad():
            for value in model.state_dict().values():
                value += 1
        ema.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            old = expected[key] * decay + (1 - decay) * value
            expected[key] = old if value.is_floating_point() else value.double()
    assert (1 + 19) / (10 + 19) > 0.5  # both ends of the warm-up were met
    for key, value in ema.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-5)
    assert not any(w.requires_grad for w in ema.model.parameters())
    assert all(w.requires_grad for w in model.parameters())


# ---- mixed labels ----


def test_nothing_is_mixed_unless_asked() -> None:
    images, labels = _batch()
    same, targets = Mixing()(images, labels, 5, 0)
    assert same is images
    assert targets is labels


def test_mixup_mixes_images_as_it_mixes_labels() -> None:
    images, labels = _batch()
    shares = set()
    for seed in range(5):
        mixed, targets = Mixing(mixup=1.0)(images, labels, 5, seed)
        assert targets.sum(1).allclose(torch.ones(12))
        kept = targets[0, 0].item()  # image 0 is of class 0, its partner of class 1
        expected = kept * images / 255 + (1 - kept) * images.flip(0) / 255
        torch.testing.assert_close(mixed, expected)
        assert targets[0, 1].item() == pytest.approx(1 - kept)
        shares.add(round(kept, 4))
    assert len(shares) == 5
    again, _ = Mixing(mixup=1.0)(images, labels, 5, 4)
    assert torch.equal(mixed, again)


def test_cutmix_counts_the_pixels_it_keeps() -> None:
    images, labels = _batch()
    images[:6], images[6:] = 10, 20  # partners differ everywhere
    for seed in range(8):
        mixed, targets = Mixing(cutmix=1.0)(images, labels, 5, seed)
        assert mixed.dtype == torch.uint8
        kept = (mixed == images).float().mean((1, 2, 3))
        torch.testing.assert_close(targets[0, 0], kept[0])
        assert (mixed[0] == images[-1])[:, (mixed[0] != images[0]).any(0)].all()
    both = {
        Mixing(mixup=1.0, cutmix=1.0)(images, labels, 5, seed)[0].dtype
        for seed in range(8)
    }
    assert both == {torch.uint8, torch.float32}


def test_smoothing_is_torchs() -> None:
    images, labels = _batch()
    _, targets = Mixing(label_smoothing=0.1)(images, labels, 5, 0)
    logits = torch.randn(12, 5)
    torch.testing.assert_close(
        F.cross_entropy(logits, targets),
        F.cross_entropy(logits, labels, label_smoothing=0.1),
    )


def test_the_attack_maximises_the_mixed_loss() -> None:
    """Its step follows the gradient of the loss that is descended on, not of a label's."""
    images, labels = _batch()
    model = _free_of_norms()
    learner = _learner(model, num_steps=1, eps=0.05, step_size=0.05)
    mixed, targets = Mixing(mixup=1.0)(images, labels, 5, 0)
    assert learner.attack is not None
    x_adv, _ = learner.attack.perturb(AttackView(model), mixed, targets)
    x = mixed.clone().requires_grad_()
    loss = -(targets * model(x).log_softmax(1)).sum()
    (grad,) = torch.autograd.grad(loss, x)
    expected = (mixed + 0.05 * grad.sign()).clamp(0, 1)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-5)
    hard, _ = learner.attack.perturb(AttackView(model), mixed, labels)
    assert (hard - expected).abs().max() > 0.05
