"""Every method against its formula written out in plain PyTorch, and that it learns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import tiny
from torch import Tensor

from fastadv.kernels import ball_init
from fastadv.models import NormalizedModel, create_model, save_model
from fastadv.runs.distributed import World
from fastadv.training import TrainConfig, Trainer, train
from fastadv.training.learner import Learner
from fastadv.training.method_config import METHODS
from fastadv.training.methods import CLASSES, Part
from fastadv.training.overfit import OverfitWatch
from fastadv.training.stages import radius_at
from fastadv.training.step import train_step

# With other seeds a pixel without a gradient may start the attack of discrepancy elsewhere.
EPS, N, K, SEED = 8 / 255, 6, 6, 3
Loss = Callable[[Tensor], Tensor]


def _batch(side: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, side, side), generator=generator)
    return images.to(torch.uint8), torch.arange(N) % K


def _model() -> NormalizedModel:
    model = create_model("resnet8_cifar", K, seed=1)
    with torch.no_grad():  # a head that is sure of something
        model.head.weight *= 4
    return model.to(memory_format=torch.channels_last).train()


def _learner(model: NormalizedModel, **choices: Any) -> Learner:
    given = {"arch": "resnet8_cifar", "norm": "linf", "eps": EPS, "device": "cpu"}
    return Learner(TrainConfig(**(given | choices)), model, 16, World())


# ---- the formulas, in float images and without a view ----
# They follow the papers and the public code of the authors, which each docstring names.


def _ascend(
    model: NormalizedModel,
    x: Tensor,
    start: Tensor,
    loss: Loss,
    k: int,
    step: float,
    train: bool = False,
) -> Tensor:
    """Linf ascent by the book, on a copy in evaluation mode or in train mode."""
    frozen = copy.deepcopy(model).train(train)
    adv = start
    for _ in range(k):
        adv = adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(frozen(adv)), adv)
        moved = adv.detach() + step * grad.sign()
        adv = torch.min(torch.max(moved, x - EPS), x + EPS).clamp(0, 1)
    return adv.detach()


def _near(images: Tensor, eps: float = 0.001 * 3**0.5) -> Tensor:
    return ball_init(images, norm="linf", eps=eps, seed=SEED)


def _kl(clean: Tensor, adv: Tensor) -> Tensor:
    p = clean.softmax(1)
    return (p * (clean.log_softmax(1) - adv.log_softmax(1))).sum(1)


def _pgd_at(model: NormalizedModel, images: Tensor, y: Tensor) -> Tensor:
    """As `robustness/attacker.py` of MadryLab/robustness: the model attacks in eval mode."""
    x = images / 255
    adv = _ascend(model, x, x, lambda out: F.cross_entropy(out, y), 3, 2 / 3 * EPS)
    return F.cross_entropy(model(adv), y)


def _standard(model: NormalizedModel, images: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(images / 255), y)


def _rs_fgsm(model: NormalizedModel, images: Tensor, y: Tensor) -> Tensor:
    start = _near(images, EPS)
    adv = _ascend(
        model,
        images / 255,
        start,
        lambda out: F.cross_entropy(out, y),
        1,
        1.25 * EPS,
        train=True,
    )
    return F.cross_entropy(model(adv), y)


def _n_fgsm(model: NormalizedModel, images: Tensor, y: Tensor) -> Tensor:
    start = _near(images, 2 * EPS).requires_grad_()
    frozen = copy.deepcopy(model)
    (grad,) = torch.autograd.grad(F.cross_entropy(frozen(start), y), start)
    adv = (start + EPS * grad.sign()).clamp(0, 1).detach()  # not projected
    assert (adv - images / 255).abs().max() > 2 * EPS
    return F.cross_entropy(model(adv), y)


def _trades(model: NormalizedModel, images: Tensor, y: Tensor) -> Tensor:
    """As `trades.py` of yaodongyu/TRADES, in the order: step, ball, pixels.

    Theirs starts from normal noise of SD 0.001, ours from uniform noise of that SD, and it
    computes the clean logits once more for the divergence: the same values, but BatchNorm's
    running statistics see the clean images twice.
    """
    x = images / 255
    with torch.no_grad():
        clean = copy.deepcopy(model).eval()(x)
    adv = _ascend(
        model, x, _near(images), lambda out: _kl(clean, out).sum(), 10, EPS / 4
    )
    out, out_adv = model(x), model(adv)
    return F.cross_entropy(out, y) + 6 * _kl(out, out_adv).mean()


def _mart(model: NormalizedModel, images: Tensor, y: Tensor) -> Tensor:
    """As `mart.py` of YisenWang/MART, without the 1e-12 and 1e-7 that it adds.

    Theirs starts from normal noise of SD 0.001, ours from uniform noise of that SD.
    """
    x = images / 255
    adv = _ascend(
        model, x, _near(images), lambda out: F.cross_entropy(out, y), 10, EPS / 4
    )
    out, out_adv = model(x), model(adv)
    p, p_adv = out.softmax(1), out_adv.softmax(1)
    total = torch.zeros(())
    for i, true in enumerate(y.tolist()):
        others = [p_adv[i, k] for k in range(K) if k != true]
        bce = -p_adv[i, true].log() - (1.0001 - torch.stack(others).max()).log()
        total = total + bce + 5 * _kl(out, out_adv)[i] * (1 - p[i, true])
    return total / N


def _eta(images: Tensor, seed: int) -> Tensor:
    """Uniform noise within eps, whatever the pixels."""
    grey = torch.full((N, 3, *images.shape[2:]), 0.5)
    return ball_init(grey, norm="linf", eps=EPS, seed=seed + 1) - 0.5


def _gradalign(model: NormalizedModel, images: Tensor, y: Tensor) -> Tensor:
    """As `train.py` of tml-epfl/understanding-fast-adv-training with a start of zero.

    Theirs takes a step of 1.25 eps, which the ball cuts to eps: signs are the same.
    """
    x = images / 255
    adv = _ascend(model, x, x, lambda out: F.cross_entropy(out, y), 1, EPS, train=True)
    loss = F.cross_entropy(model(adv), y)
    grads = []
    for each, graph in ((x, False), (x + _eta(images, SEED), True)):
        each = each.clone().requires_grad_()
        summed = F.cross_entropy(model(each), y, reduction="sum")
        grads.append(torch.autograd.grad(summed, each, create_graph=graph)[0])
    cosine = F.cosine_similarity(grads[0].flatten(1), grads[1].flatten(1))
    return loss + 0.2 * (1 - cosine.mean())


@pytest.mark.parametrize("source", [False, True])
def test_discrepancy_wants_a_source(
    source: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = tmp_path / "source.safetensors"
    save_model(create_model("resnet8_cifar", 10), start)
    choices = {"init_from": str(start)} if source else {}
    config = tiny(tmp_path / "run", method="discrepancy", **choices)
    Trainer(config, dry_run=True).describe()
    assert ("without `init_from`" in caplog.text) != source


def _discrepancy(model: NormalizedModel, images: Tensor, y: Tensor) -> Tensor:
    """As `train_dm.py` of jiamingzhang94/ImageNet-Pretraining-transfers-non-robustness.

    Theirs works on images in [-1, 1], so its noise of SD 0.001 is 0.0005 in pixel units,
    and starts from normal noise, ours from uniform noise of that SD. It computes the clean
    embedding once more for the distance and the clean logits once more after the update:
    BatchNorm's running statistics see the clean images three times for each attacked one.
    """
    x, frozen = images / 255, copy.deepcopy(model).eval()
    with torch.no_grad():
        clean = frozen.features(x)
    adv = _near(images, 0.0005 * 3**0.5)
    for _ in range(10):
        adv = adv.detach().requires_grad_()
        distance = (frozen.features(adv) - clean).square().mean()
        (grad,) = torch.autograd.grad(distance, adv)
        moved = adv.detach() + EPS / 8 * grad.sign()
        adv = torch.min(torch.max(moved, x - EPS), x + EPS).clamp(0, 1)
    h, h_adv = model.features(x), model.features(adv.detach())
    return F.cross_entropy(model.head(h), y) + 500 / N * (h_adv - h).square().mean()


FORMULAS = {
    "pgd_at": _pgd_at,
    "standard": _standard,
    "rs_fgsm": _rs_fgsm,
    "n_fgsm": _n_fgsm,
    "trades": _trades,
    "mart": _mart,
    "gradalign": _gradalign,
    "discrepancy": _discrepancy,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_loss_and_its_gradient_are_those_of_the_paper(name: Any) -> None:
    images, labels = _batch()
    model, plain = _model(), _model()
    choices: dict[str, Any] = {} if name != "standard" else {"eps": None}
    learner = _learner(model, method=name, **choices)
    ((loss, logits),) = learner.method.losses(
        Part(images, labels, labels, seed=SEED, batch=N)
    )
    expected = FORMULAS[name](plain, images, labels)
    assert logits.shape == (N, K)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    if name not in ("standard", "pgd_at"):  # it is not one of the others by mistake
        assert loss.item() != pytest.approx(_pgd_at(_model(), images, labels).item())
    loss.backward()
    expected.backward()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        error = (mine.grad - theirs.grad).norm() / theirs.grad.norm().clamp_min(1e-6)
        # A pixel whose gradient is 1e-9 may step the other way: 3e-4 were seen.
        assert error < 5e-3


def _published_loop(
    name: str, model: NormalizedModel, batches: list[tuple[Tensor, Tensor]], lr: float
) -> None:
    """Train as the authors' scripts do: one model, in train mode in every pass.

    The order of steps, signs and clamps is that of

    * rs_fgsm: `CIFAR10/train_fgsm.py` of locuslab/fast_adversarial. The start is cut to the
      pixels; after the step comes the ball, then the pixels.
    * n_fgsm: `train.py` of pdejorge/N-FGSM with its default `--clip -1`. The start is cut
      to the pixels; after the step come the pixels alone.
    * gradalign: `train.py` of tml-epfl/understanding-fast-adv-training with
      `--attack_init=zero`. The second gradient is at noise that pixels do not cut, and is
      taken after the pass of the attacked images.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    alpha = 1.25 * EPS if name == "rs_fgsm" else EPS
    model.train()
    for seed, (images, y) in enumerate(batches):
        x = images / 255
        delta = torch.zeros_like(x)
        if name != "gradalign":
            delta = _start(images, 2 * EPS if name == "n_fgsm" else EPS, seed) - x
        delta.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
        moved = delta.detach() + alpha * grad.sign()
        if name != "n_fgsm":
            moved = moved.clamp(-EPS, EPS)
        loss = F.cross_entropy(model((x + moved).clamp(0, 1)), y)
        if name == "gradalign":
            eta = _eta(images, seed).requires_grad_()
            there = F.cross_entropy(model(x + eta), y)
            (grad2,) = torch.autograd.grad(there, eta, create_graph=True)
            cosine = F.cosine_similarity(grad.flatten(1), grad2.flatten(1))
            loss = loss + 0.2 * (1 - cosine.mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _weights(model: NormalizedModel) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def _start(images: Tensor, eps: float, seed: int) -> Tensor:
    return ball_init(images, norm="linf", eps=eps, seed=seed)


@pytest.mark.parametrize("name", ["rs_fgsm", "n_fgsm", "gradalign"])
def test_single_steps_train_as_their_authors_do(name: Any) -> None:
    """Weights and BatchNorm statistics after three updates; with eval they differ."""
    generator = torch.Generator().manual_seed(4)
    shape = (N, 3, 16, 16)
    batches = [
        (torch.randint(0, 256, shape, generator=generator).byte(), torch.arange(N) % K)
        for _ in range(3)
    ]
    theirs, lr = _model(), 0.01
    began = _weights(theirs)
    _published_loop(name, theirs, batches, lr)
    errors = {}
    for mode in ("train", "eval"):
        mine = _model()
        method = _learner(mine, method=name, bn_mode=mode).method
        optimizer = torch.optim.SGD(mine.parameters(), lr=lr, momentum=0.9)
        for seed, (images, y) in enumerate(batches):
            train_step(mine, images, y, optimizer, method=method, seed=seed)
        weights = _weights(mine)
        expected = _weights(theirs)
        moved = (expected - began).norm()
        wrong = {"weights": ((weights - expected).norm() / moved).item()}
        for key, value in mine.net.named_buffers():
            other = theirs.net.get_buffer(key).float()
            kind = key.rpartition(".")[2]
            error = ((value.float() - other).norm() / other.norm()).item()
            wrong[kind] = max(wrong.get(kind, 0.0), error)
        errors[mode] = wrong
    # A pixel whose gradient is 1e-9 may step the other way.
    assert errors["train"]["weights"] < 0.01
    assert errors["train"]["running_mean"] < 1e-3
    assert errors["train"]["running_var"] < 1e-3
    assert errors["train"]["num_batches_tracked"] == 0
    assert errors["eval"]["running_var"] > 0.01
    # In both modes gradalign passes the network itself three times.
    assert (errors["eval"]["num_batches_tracked"] > 0) == (name != "gradalign")


def test_the_weight_of_gradalign_grows_with_the_radius_as_published() -> None:
    """The list of weights for 1..16/255 in the README of the authors' code."""
    listed = [
        0.03,
        0.04,
        0.05,
        0.06,
        0.08,
        0.11,
        0.15,
        0.2,
        0.27,
        0.36,
        0.47,
        0.63,
        0.84,
    ]
    for radius, beta in enumerate([*listed, 1.12, 1.5, 2.0], start=1):
        config = TrainConfig(method="gradalign", norm="linf", eps=radius / 255)
        assert config.beta == pytest.approx(beta, abs=0.0051)
    assert TrainConfig(method="gradalign", norm="linf", eps=0.1, beta=0.3).beta == 0.3


def test_the_table_of_methods_is_complete() -> None:
    assert set(METHODS) == set(CLASSES) == {*FORMULAS, "free"}


def test_free_trains_as_its_authors_do() -> None:
    """The order of `main_free.py` of mahyarnajibi/FreeAdversarialTraining.

    There the noise is carried without regard to the pixels, and gets no gradient where it
    leaves them, so images are compared that stay clear of black and white.
    """
    generator = torch.Generator().manual_seed(4)
    shape = (2, N, 3, 16, 16)
    batches = torch.randint(40, 216, shape, generator=generator).byte()
    y = torch.arange(N) % K
    mine, theirs, lr = _model(), _model(), 0.02
    began = _weights(theirs)
    method = _learner(mine, method="free", replays=3).method
    ours = torch.optim.SGD(mine.parameters(), lr=lr, momentum=0.9)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=lr, momentum=0.9)
    carried = torch.zeros(shape[1:])
    for seed, images in enumerate(batches):
        train_step(mine, images, y, ours, method=method, seed=seed)
        for _ in range(3):
            noise = carried.clone().requires_grad_()
            loss = F.cross_entropy(theirs((images / 255 + noise).clamp(0, 1)), y)
            optimizer.zero_grad()
            loss.backward()
            assert noise.grad is not None
            carried = (carried + EPS * noise.grad.sign()).clamp(-EPS, EPS)
            optimizer.step()
    moved = (_weights(theirs) - began).norm()
    assert (_weights(mine) - _weights(theirs)).norm() / moved < 0.01
    for name, value in mine.net.named_buffers():
        other = theirs.net.get_buffer(name).float()
        assert (value - other).norm() / other.norm() < 1e-3, name


def test_free_updates_weights_and_perturbation_by_one_gradient() -> None:
    """Algorithm 1 of the paper on two batches, written out."""
    model, plain = _model(), _model()
    learner = _learner(model, method="free", replays=3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    mine = torch.optim.SGD(model.parameters(), lr=0.05)
    delta = torch.zeros(N, 3, 16, 16)
    images, labels = _batch()
    for batch in (images, images.flip(0)):
        x = batch / 255
        passes = learner.method.losses(Part(batch, labels, labels, seed=0))
        replays = 0
        for loss, _ in passes:
            adv = (x + delta).clamp(0, 1).requires_grad_()
            expected = F.cross_entropy(plain(adv), labels)
            assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
            for opt, value in ((optimizer, expected), (mine, loss)):
                opt.zero_grad()
                value.backward()
                opt.step()
            assert adv.grad is not None
            moved = (adv.detach() + EPS * adv.grad.sign()).clamp(0, 1)
            delta = torch.min(torch.max(moved, x - EPS), x + EPS).clamp(0, 1) - x
            replays += 1
        assert replays == 3
    carried = learner.method.state_dict()["deltas"][0]
    assert (carried - delta).abs().max() <= 2 * EPS + 1e-6
    assert ((carried - delta).abs() < 1e-5).float().mean() > 0.99
    again = _learner(_model(), method="free").method
    again.load_state_dict(learner.method.state_dict())
    assert torch.equal(again.state_dict()["deltas"][0], carried)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"standard"}))
def test_it_learns(name: Any, tmp_path: Path) -> None:
    """Two epochs of 390 digits; chance is 10 %."""
    run = tmp_path / "run"
    steps = None if METHODS[name].one_step else 2
    choices = {"num_train": 400, "lr": 0.05, "val_size": 10, "num_steps": steps}
    summary = train(tiny(run, method=name, **choices))
    assert summary.clean_acc > 0.25
    assert summary.robust_acc is not None


def test_it_begins_with_the_weights_given(tmp_path: Path) -> None:
    """Adversarial fine-tuning: 20 updates from a clean network, not from scratch."""
    clean, tuned = tmp_path / "clean", tmp_path / "tuned"
    train(tiny(clean, eps=0, num_train=600, epochs=3))
    summary = train(tiny(tuned, init_from=str(clean), epochs=1, lr=1e-4))
    scratch = train(tiny(tmp_path / "scratch", epochs=1, lr=1e-4))
    assert summary.clean_acc > scratch.clean_acc + 0.2


# ---- over a run ----


def test_the_radius_warms_up_and_follows_the_side() -> None:
    config = TrainConfig(norm="linf", eps_warmup=3)
    radii = [radius_at(config, 32, 32, epoch) for epoch in range(5)]
    assert radii == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert radius_at(TrainConfig(norm="linf"), 16, 32, 0) == 1.0
    assert radius_at(TrainConfig(norm="l2"), 16, 32, 0) == 0.5
    learner = _learner(_model(), eps_warmup=3)
    images, labels = _batch()
    for scale in (0.25, 1.0):
        learner.begin_epoch(scale)
        assert learner.view is not None
        assert learner.method.attack is not None
        x_adv, _ = learner.method.attack.perturb(learner.view, images, labels)
        far = (x_adv - images / 255).abs().max().item()
        assert far == pytest.approx(scale * EPS, rel=1e-3)


def test_the_watch_keeps_a_copy() -> None:
    images, labels = _batch()
    learner = _learner(_model(), method="rs_fgsm")
    watch = OverfitWatch(images, labels, learner.config.threat, every=10, seed=0)
    weights = learner.model.state_dict()
    watch.remember(weights)
    assert watch.weights is not None
    name = next(iter(weights))
    before = watch.weights[name].clone()
    with torch.no_grad():
        weights[name] += 1
    assert torch.equal(watch.weights[name], before)
    assert [step for step in range(1, 41) if watch.due(step)] == [10, 20, 30, 40]
