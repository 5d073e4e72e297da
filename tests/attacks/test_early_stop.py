"""PGD with early_stop: the verdicts of the whole run, image by image, for less work."""

from __future__ import annotations

import pytest
import torch
from attack_nets import batch, predicted, small_model
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from fastadv.attacks import PGD, ThreatModel, early, make_attack
from fastadv.attacks.package import Budget
from fastadv.evaluation import evaluate
from fastadv.models import NormalizedModel

MODEL = small_model()
IMAGES = batch(12)[0]
LABELS = predicted(MODEL, IMAGES)
# Radii at which some of these images are fooled, and some are not.
THREATS = {"linf": ThreatModel("linf", 0.004), "l2": ThreatModel("l2", 0.05)}


class Linear(nn.Module):
    """A network of two classes whose gradient is the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.way = nn.Parameter(torch.randn(3 * 8 * 8, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.way
        return torch.stack([score, -score], dim=1)


class Noisy(Linear):
    """The same, with noise that is drawn anew in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + 0.1 * torch.randn_like(logits)


def both(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, **more):
    """Return the results of the whole run and of the one that stops early."""
    steps, call = more.pop("num_steps", 6), more.pop("call", {})
    return [
        PGD.judge(threat, steps, early_stop=stop, **more)(model, x, y, **call)
        for stop in (False, True)
    ]


@settings(derandomize=True, max_examples=30, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    share=st.sampled_from([0.2, 1.0, 4.0]),
    num_steps=st.integers(1, 12),
    num_restarts=st.integers(1, 3),
    objective=st.sampled_from(["cross_entropy", "margin", "dlr", "kl"]),
    as_bytes=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_verdicts_are_those_of_the_whole_run(
    norm, share, num_steps, num_restarts, objective, as_bytes, seed
) -> None:
    threat = ThreatModel(norm, THREATS[norm].eps * share)
    x = IMAGES if as_bytes else IMAGES.float() / 255
    more = {"num_restarts": num_restarts, "objective": objective, "seed": seed}
    whole, early_one = both(MODEL, x, LABELS, threat, num_steps=num_steps, **more)
    assert torch.equal(whole.success, early_one.success)
    held = ~whole.success
    # The same iterates in batches of other sizes round differently.
    assert torch.allclose(whole.loss[held], early_one.loss[held], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        decided = MODEL(early_one.x_adv).argmax(1)
    assert torch.equal(early_one.success, decided != LABELS)
    assert early_one.passes <= whole.passes == 12 * num_restarts * (num_steps + 1)


def test_some_images_are_fooled_and_some_hold() -> None:
    for threat in THREATS.values():
        whole, early_one = both(MODEL, IMAGES, LABELS, threat, num_restarts=3)
        assert 0 < int(whole.success.sum()) < len(LABELS)
        assert early_one.passes < whole.passes


def test_an_image_that_falls_at_once_takes_one_pass() -> None:
    wrong = (LABELS + 1) % 10
    threat = THREATS["linf"]
    found = PGD.judge(threat, 50, num_restarts=5)(MODEL, IMAGES, wrong)
    assert found.success.all()
    assert found.passes == len(wrong)


def test_radii_of_images_and_own_starts_are_kept() -> None:
    eps = torch.linspace(0, 0.016, 12)
    start = (IMAGES.float() / 255 + 0.002).clamp(0, 1)
    call = {"eps": eps, "start": start}
    whole, early_one = both(MODEL, IMAGES, LABELS, THREATS["linf"], call=call)
    assert torch.equal(whole.success, early_one.success)
    assert 0 < int(whole.success.sum()) < len(LABELS)
    far = (early_one.x_adv - IMAGES / 255).abs().flatten(1).amax(1)
    assert (far <= eps + 1e-6).all()


def test_inactive_images_are_left_alone() -> None:
    active = torch.arange(12) % 3 == 0
    attack = PGD.judge(THREATS["linf"], 6)
    found = attack(MODEL, IMAGES, LABELS, active=active)
    alone = attack(MODEL, IMAGES, LABELS)
    assert torch.equal(found.success, alone.success & active)
    assert torch.equal(found.x_adv[~active], (IMAGES / 255)[~active])
    assert found.passes < alone.passes
    assert attack(MODEL, IMAGES, LABELS, active=torch.zeros_like(active)).passes == 0


def linear_images(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Return images far from the boundary of a linear network, and their classes."""
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, Linear().forward(x).argmax(1)


def test_an_attack_that_repeats_itself_ends() -> None:
    """On a linear network, iterates rest in a corner of the ball."""
    net = Linear()
    x, y = linear_images(net)
    threat = ThreatModel("linf", 1e-4)
    whole, early_one = both(net, x, y, threat, num_steps=1000, step_size=2.5e-5)
    assert not whole.success.any()
    assert torch.equal(whole.x_adv, early_one.x_adv)
    assert torch.equal(whole.loss, early_one.loss)
    assert early_one.passes < 0.03 * whole.passes


def test_a_cycle_of_several_steps_is_found() -> None:
    """Steps that are too long for a narrow crest go to and fro across it."""
    from fastadv.attacks import Objective
    from fastadv.attacks.objectives import margin

    crest = Objective("crest", lambda z, c: -(margin(z, c) + 3).square())
    net = Linear()
    x, y = linear_images(net)
    more = {"num_steps": 400, "step_size": 0.004, "objective": crest}
    whole, early_one = both(net, x, y, ThreatModel("linf", 0.02), **more)
    assert torch.equal(whole.success, early_one.success)
    held = ~whole.success
    assert torch.allclose(whole.loss[held], early_one.loss[held])
    assert early_one.passes < 0.5 * whole.passes


def test_a_random_network_never_repeats_itself() -> None:
    torch.manual_seed(0)
    net = Noisy()
    x, y = linear_images(net)
    found = PGD.judge(ThreatModel("linf", 1e-4), 100, step_size=1e-4)(net, x, y)
    assert found.passes == 6 * 101


def test_l2_steps_are_never_taken_for_a_cycle() -> None:
    net = Linear()
    x, y = linear_images(net)
    found = PGD.judge(ThreatModel("l2", 1e-3), 100)(net, x, y)
    assert found.passes == 6 * 101


def test_gradients_that_are_not_finite_change_no_verdict() -> None:
    class Broken(Linear):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            # The square root has no gradient at zero.
            return logits + (x.flatten(1)[:, :1] * 0).abs().sqrt()

    net = Broken()
    x, y = linear_images(net)
    whole, early_one = both(net, x, y, ThreatModel("linf", 0.01), num_steps=40)
    assert int(whole.nonfinite) > 0
    assert int(early_one.nonfinite) > 0
    assert torch.equal(whole.success, early_one.success)


def test_looking_seldom_changes_nothing(monkeypatch) -> None:
    """Off the CPU, images that are done stay in the batch for a while."""
    attack = PGD.judge(THREATS["linf"], 25, num_restarts=2)
    often = attack(MODEL, IMAGES, LABELS)
    monkeypatch.setattr(early, "_looks", lambda device, step: step % 10 == 0)
    seldom = attack(MODEL, IMAGES, LABELS)
    assert torch.equal(often.success, seldom.success)
    fooled = often.success
    assert torch.allclose(often.x_adv[fooled], seldom.x_adv[fooled], atol=1e-3)
    assert often.passes < seldom.passes


def test_batch_statistics_keep_the_batch_whole() -> None:
    attack = PGD.judge(THREATS["linf"], 4, bn_mode="train")
    assert attack(MODEL, IMAGES, LABELS).passes == 12 * 5


def test_the_last_iterate_cannot_be_judged_early() -> None:
    with pytest.raises(ValueError, match="keep='best'"):
        PGD(THREATS["linf"], keep="last", early_stop=True)
    assert not PGD.judge(THREATS["linf"], 5, keep="last").early_stop


def test_evaluation_counts_passes_and_attacks_no_image_that_is_wrong() -> None:
    labels = LABELS.clone()
    labels[:6] = (labels[:6] + 1) % 10
    attack = PGD.judge(THREATS["linf"], 6)
    found = evaluate(MODEL, [(IMAGES, labels)], attack)
    alone = attack(MODEL, IMAGES, labels, active=torch.arange(12) >= 6)
    assert found.passes == alone.passes
    assert found.clean.top1 == 0.5
    assert found.robust.top1 == pytest.approx(float((~alone.success[6:]).sum()) / 12)


def test_passes_of_every_attack_are_those_of_a_counting_network() -> None:
    """AutoAttack, with its parts of the package, on the model itself."""
    pytest.importorskip("pyautoattack")
    counts = [0]

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = MODEL.net

        def forward(self, x: Tensor) -> Tensor:
            counts[0] += len(x)
            return self.net(x)

    from fastadv.models.live_view import LiveView

    net = NormalizedModel(Counted(), MODEL.mean, MODEL.std).eval()
    budget = Budget(num_steps=5, num_targets=2, num_queries=8)
    attack = make_attack("autoattack", THREATS["linf"], budget)
    view = LiveView(net)
    counts[0] = 0
    found = attack(view, IMAGES, LABELS)
    assert found.passes == counts[0]
