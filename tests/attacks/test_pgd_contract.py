"""What an attack may not do: touch the model, wait for the device, work in vain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attack_nets import (
    SmallNet,
    batch,
    predicted,
    same_bits,
    small_model,
    snapshot,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastadv.attacks import PGD, Context, Objective, ThreatModel
from fastadv.kernels import (
    BACKENDS,
    launch_counts,
    reset_launch_counts,
    use_backend,
)
from fastadv.models import NormalizedModel, create_model
from fastadv.models.view import AttackView

CONVOLUTIONS = 2  # of SmallNet
THREAT = ThreatModel("l2", 1.0)
IMAGES = batch(6)[0]


def labels_of(model: nn.Module) -> Tensor:
    was = model.training
    labels = predicted(model.eval(), IMAGES)
    model.train(was)
    return labels


class Trace(TorchDispatchMode):
    """Counts operators by name and keeps what convolution backward computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.masks: list[list[bool]] = []
        self.kernels = 0  # calls that are not mere views of their argument

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = func.name()
        self.calls[name] += 1
        self.kernels += not func.is_view
        if name == "aten::convolution_backward":
            self.masks.append(list(args[-1]))
        return func(*args, **(kwargs or {}))

    @property
    def forwards(self) -> float:
        return self.calls["aten::convolution"] / CONVOLUTIONS


# ---- the model is left alone ----

ATTACKS = {
    "plain": {},
    "restarts": {"random_start": True, "num_restarts": 2},
    "best": {"keep": "best"},
    "kl": {"objective": "kl"},
    "features": {"objective": "feature_distance"},
    "train-bn": {"bn_mode": "train"},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", ATTACKS.values(), ids=ATTACKS)
def test_model_is_bitwise_unchanged(options: dict[str, Any], training: bool) -> None:
    model = small_model()
    labels = labels_of(model)
    model.train(training)
    model.net.bn1.eval()  # a mode of its own, which must come back too
    modes = [m.training for m in model.modules()]
    before = snapshot(model)
    preset = torch.full_like(model.net.conv1.weight, 3.0)
    model.net.conv1.weight.grad = preset
    PGD(THREAT, 2, **options)(model, IMAGES, labels)
    PGD(THREAT, 2, **options).perturb(model, IMAGES, labels)
    assert same_bits(before, snapshot(model))
    assert [m.training for m in model.modules()] == modes
    assert model.net.conv1.weight.grad is preset
    assert torch.equal(preset, torch.full_like(preset, 3.0))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert name == "net.conv1.weight" or parameter.grad is None


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
@pytest.mark.parametrize("fail_at", [1, 2])
def test_model_is_unchanged_after_an_exception(bn_mode: Any, fail_at: int) -> None:
    calls = 0

    def explode(logits: Tensor, context: Context) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise RuntimeError("objective failed")
        return logits.sum(1)

    model = small_model().train()
    before, labels = snapshot(model), torch.zeros(6, dtype=torch.int64)
    attack = PGD(THREAT, 3, objective=Objective("explode", explode), bn_mode=bn_mode)
    with pytest.raises(RuntimeError, match="objective failed"):
        attack(model, IMAGES, labels)
    assert same_bits(before, snapshot(model))
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


def test_train_mode_attacks_the_batch_statistics() -> None:
    """One step on batch statistics, against autograd on a copy in train mode."""
    model = small_model()
    labels = labels_of(model)
    copy = NormalizedModel(SmallNet(), model.mean, model.std, "small_net", 10)
    copy.load_state_dict(model.state_dict())
    x = (IMAGES.float() / 255).requires_grad_()
    loss = nn.functional.cross_entropy(copy.train()(x), labels, reduction="sum")
    (grad,) = torch.autograd.grad(loss, x)
    unit = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = (x + 0.5 * unit).clamp(0, 1).detach()

    batched = PGD(THREAT, 1, 0.5, bn_mode="train").perturb(model, IMAGES, labels)[0]
    running = PGD(THREAT, 1, 0.5, bn_mode="eval").perturb(model, IMAGES, labels)[0]
    assert (batched - expected).abs().max() < 1e-6
    assert (running - expected).abs().max() > 1e-3


def test_train_mode_concerns_batchnorm_only() -> None:
    """Dropout stays off: otherwise the attack would not be the same under a seed."""
    model = small_model()
    model.net.pool = nn.Sequential(model.net.pool, nn.Dropout(0.5))
    labels = labels_of(model)
    attack = PGD(THREAT, 2, bn_mode="train")
    first = attack(model, IMAGES, labels)
    second = attack(model, IMAGES, labels)
    assert torch.equal(first.x_adv, second.x_adv)
    assert torch.equal(first.loss, second.loss)


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(grad_mode: Any) -> None:
    model = small_model()
    labels = labels_of(model)
    expected = PGD(THREAT, 2)(model, IMAGES, labels)
    with grad_mode():
        result = PGD(THREAT, 2)(model, IMAGES, labels)
    assert torch.equal(result.x_adv, expected.x_adv)
    assert not result.x_adv.requires_grad
    assert not result.loss.requires_grad


def test_frozen_parameters_can_be_attacked() -> None:
    model = small_model()
    labels = labels_of(model)
    expected = PGD(THREAT, 2)(model, IMAGES, labels)
    model.requires_grad_(False)
    assert torch.equal(PGD(THREAT, 2)(model, IMAGES, labels).x_adv, expected.x_adv)
    assert not any(p.requires_grad for p in model.parameters())


# ---- the work that is done ----


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_perturb_costs_one_forward_and_input_gradient_a_step(
    num_steps: int, bn_mode: Any
) -> None:
    model = small_model().train()
    labels = labels_of(model)
    view = AttackView(model, mode=bn_mode)
    view.compare(IMAGES)  # which is done once
    with Trace() as trace:
        attack = PGD(THREAT, num_steps, random_start=True, bn_mode=bn_mode)
        attack.perturb(view, IMAGES, labels)
    assert trace.forwards == num_steps
    assert trace.masks == [[True, False, False]] * (num_steps * CONVOLUTIONS)
    assert trace.calls["fastadv::pgd_step_"] == num_steps
    assert trace.calls["fastadv::normalize"] == 1
    assert trace.calls["fastadv::ball_init"] == 1
    assert trace.calls["aten::_local_scalar_dense"] == 0
    assert trace.calls["aten::native_batch_norm"] == 0 or bn_mode == "train"
    # The image is normalised by our operators alone: no eager arithmetic beside them.
    assert trace.calls["aten::sub.Tensor"] == trace.calls["aten::clamp"] == 0


@pytest.mark.parametrize(
    ("options", "forwards"),
    [
        ({"keep": "last"}, 5),
        ({"keep": "best"}, 5),
        ({"random_start": True, "num_restarts": 3}, 13),
        ({"random_start": True, "num_restarts": 3, "keep": "best"}, 13),
        ({"objective": "kl"}, 6),
    ],
    ids=["last", "best", "restarts", "restarts-best", "clean-outputs"],
)
def test_attack_costs_two_more_forwards(options: dict[str, Any], forwards: int) -> None:
    """The last iterate of each run, and the verdict of the model itself."""
    model = small_model()
    view, labels = AttackView(model), labels_of(model)
    view.compare(IMAGES)
    with Trace() as trace:
        PGD(THREAT, 3, **options)(view, IMAGES, labels)
    assert trace.forwards == forwards
    assert {tuple(mask) for mask in trace.masks} == {(True, False, False)}
    # Byte images need no look at their range; nothing else may wait either.
    assert trace.calls["aten::_local_scalar_dense"] == 0


@pytest.mark.parametrize("arch", ["small", "resnet18", "densenet121"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_adds_two_kernels_at_most_to_the_network(arch: str, norm: Any) -> None:
    model = small_model() if arch == "small" else create_model(arch, 10, seed=0)
    view, labels = AttackView(model), torch.zeros(6, dtype=torch.int64)
    images = batch(6, 16 if arch == "small" else 64)[0]
    view.compare(images)
    kernels = {}
    for num_steps in (2, 3):
        with Trace() as trace:
            PGD(ThreatModel(norm, 0.1), num_steps).perturb(view, images, labels)
        kernels[num_steps] = trace.kernels
        assert trace.calls["aten::_local_scalar_dense"] == 0
        assert all(mask == [True, False, False] for mask in trace.masks)
    z = model.normalize(images.float() / 255)
    z = z.contiguous(memory_format=torch.channels_last).requires_grad_()
    with Trace() as network:
        loss = nn.functional.cross_entropy(view(z), labels, reduction="sum")
        torch.autograd.grad(loss, z)
    assert kernels[3] - kernels[2] <= network.kernels + 2


def test_the_trace_sees_weight_gradients_and_waits() -> None:
    """The instrument itself: a plain `.backward()` and `.item()` do show up."""
    model = small_model().train()
    with Trace() as trace:
        x = (IMAGES.float() / 255).requires_grad_()
        loss = nn.functional.cross_entropy(model(x), labels_of(model))
        loss.backward()
        loss.item()
    assert trace.masks == [[True, True, True], [True, True, False]]
    assert trace.calls["aten::_local_scalar_dense"] == 1
    assert trace.calls["aten::native_batch_norm"] > 0
    with Trace() as trace:
        x.detach().view(-1).relu_()
    assert trace.kernels == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_the_backend_that_was_asked_for_runs_every_step(
    backend: str, norm: Any
) -> None:
    missing = BACKENDS[backend].unavailable_reason()
    if missing:
        pytest.skip(missing)
    model = small_model()
    labels = labels_of(model)
    attack = PGD(ThreatModel(norm, 0.1), 4, random_start=True, num_restarts=2)
    view = AttackView(model)
    view.compare(IMAGES)
    with use_backend("reference"):
        expected = attack(view, IMAGES, labels)
    with use_backend(backend):
        reset_launch_counts()
        result = attack(view, IMAGES, labels)
    assert launch_counts() == {
        (backend, "pgd_step"): 8,
        (backend, "ball_init"): 2,
        (backend, "normalize"): 3,  # one for the verdict
    }
    # sign() may turn where a gradient is rounding noise; see test_peers.py.
    close = (result.x_adv - expected.x_adv).abs() < 1e-6
    assert close.float().mean() >= (0.999 if norm == "linf" else 1)


def test_without_a_choice_the_native_cpu_backend_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FASTADV_BACKEND", raising=False)
    if BACKENDS["cpp"].unavailable_reason():
        pytest.skip(str(BACKENDS["cpp"].unavailable_reason()))
    model = small_model()
    view = AttackView(model)
    view.compare(IMAGES)
    reset_launch_counts()
    PGD(THREAT, 3)(view, IMAGES, labels_of(model))
    assert launch_counts() == {("cpp", "pgd_step"): 3, ("cpp", "normalize"): 2}
