"""APGD: the authors' own iterates from the same start, inside the ball, deterministic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_nets import batch, predicted, same_bits, small_model, snapshot
from hypothesis import given, settings, strategies as st
from test_pgd_contract import Trace
from torch import Tensor, nn

from fastadv.attacks import APGD, PGD, Context, Objective, ThreatModel
from fastadv.attacks.apgd import checkpoints
from fastadv.attacks.objectives import DLR_TARGETED, dlr_targeted, get_objective
from fastadv.kernels import (
    BACKENDS,
    ball_init,
    launch_counts,
    reset_launch_counts,
    use_backend,
)
from fastadv.models import AttackView, NormalizedModel
from fastadv.threat import Norm

FLOAT32 = 6e-8  # rounding of one pixel in [0, 1]
MODEL = small_model()
IMAGES = batch(8)[0]
PIXELS = IMAGES.float() / 255
LABELS = predicted(MODEL, IMAGES)
THREATS = [
    pytest.param(ThreatModel("linf", "4/255"), id="linf"),
    pytest.param(ThreatModel("l2", 0.5), id="l2"),
]
OBJECTIVES = ["cross_entropy", "dlr", "dlr_targeted"]


def lengths(x_adv: Tensor, norm: Norm, clean: Tensor = PIXELS) -> Tensor:
    delta = (x_adv.double() - clean.double()).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)


def sure_model() -> NormalizedModel:
    """`MODEL`, but so sure of one class that no step fools it."""
    model = small_model()
    model.net.head.bias.data[int(LABELS[0])] += 4
    return model


# ---- against the authors' code ----


def test_checkpoints_are_those_of_the_paper() -> None:
    """p0 = 0, p1 = 0.22, then gaps shrink by 0.03 down to 0.06; of 100 steps."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    for num_steps in (1, 2, 7, 20, 333):
        found = checkpoints(num_steps)
        assert found == sorted(set(found))
        assert 1 <= found[0] <= found[-1] <= num_steps


def authors_run(
    model: NormalizedModel,
    threat: ThreatModel,
    num_steps: int,
    objective: str,
    start: Tensor,
    context: Context,
) -> tuple[Tensor, Tensor]:
    """Best iterate and its loss of one run of `pyautoattack` from `start`.

    Its first checkpoint looks up the loss before the first step at index -1 and finds 0,
    so that the first step counts as a rise if the loss is positive. The paper, like us,
    compares with the loss of the start, which is put there.
    """
    apgd = pytest.importorskip("pyautoattack.autopgd_base", reason="make test has it")
    targeted = objective == "dlr_targeted"
    kind = apgd.APGDAttack_targeted if targeted else apgd.APGDAttack

    class AsInThePaper(kind):
        def check_oscillation(self, x: Tensor, j: int, k: int, *rest: Any, **more: Any):
            if j + 1 == k < len(x):
                x[-1] = first
            return super().check_oscillation(x, j, k, *rest, **more)

    with torch.no_grad():
        loss_of = DLR_TARGETED if targeted else get_objective(objective)
        first = loss_of.per_sample(model(start), context)
    attack = AsInThePaper(
        model,
        n_iter=num_steps,
        norm={"linf": "Linf", "l2": "L2"}[threat.norm],
        eps=threat.eps,
        device="cpu",
    )
    if not targeted:
        attack.loss = {"cross_entropy": "ce", "dlr": "dlr"}[objective]
    attack.y_target = context.targets
    attack.init_hyperparam(PIXELS)
    best, kept, loss, _ = attack.attack_single_run(PIXELS, context.labels, x_init=start)
    assert kept.all()  # nothing is fooled, so that no run is cut short
    return best, loss


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("num_steps", [1, 2, 5, 12, 20])
def test_iterates_are_the_authors(
    threat: ThreatModel, num_steps: int, objective: str
) -> None:
    """With 12 steps a checkpoint follows nearly every step: halving is what is tested."""
    model = sure_model()
    start = ball_init(IMAGES, norm=threat.norm, eps=threat.eps, seed=5)
    with torch.no_grad():
        labels, targets = model(PIXELS).topk(2, dim=1).indices.unbind(1)
    context = Context(labels, targets=targets)
    best, loss = authors_run(model, threat, num_steps, objective, start, context)
    attack = APGD(threat, num_steps, objective, num_targets=1, seed=5)
    ours = attack(model, IMAGES, labels)
    assert not ours.success.any()
    assert (lengths(best, threat.norm) > 0.8 * threat.eps).all()
    # Losses up to 2: 3.2e-7 was measured.
    torch.testing.assert_close(ours.loss, loss, rtol=2e-6, atol=1e-6)
    gap = (ours.x_adv - best).abs()
    if threat.norm == "l2":  # 4.8e-7 was measured
        assert gap.max() < 2e-6
    else:  # sign() turns rounding around zero into 2 * step_size; see test_peers.py
        assert (gap < 1e-6).float().mean() >= 0.998


# ---- what it finds ----


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    share=st.floats(0, 1),
    num_steps=st.integers(1, 12),
    objective=st.sampled_from(OBJECTIVES),
    num_restarts=st.integers(1, 2),
    as_bytes=st.booleans(),
    seed=st.integers(-(2**63), 2**64),
)
def test_result_stays_in_ball_and_box(
    norm, share, num_steps, objective, num_restarts, as_bytes, seed
) -> None:
    eps = share * (1.0 if norm == "linf" else 12.0)
    attack = APGD(
        ThreatModel(norm, eps), num_steps, objective, num_restarts, 2, seed=seed
    )
    x = IMAGES[:3] if as_bytes else PIXELS[:3]
    result = attack(MODEL, x, LABELS[:3])
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    slack = FLOAT32 * (2 if norm == "linf" else 2 * 768**0.5) + eps * 2e-7
    assert (lengths(result.x_adv, norm, PIXELS[:3]) <= eps + slack).all()
    with torch.no_grad():
        wrong = MODEL(result.x_adv).argmax(1) != LABELS[:3]
    assert torch.equal(result.success, wrong)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radius_zero_returns_the_clean_images(norm: Norm, objective: str) -> None:
    result = APGD(ThreatModel(norm, 0), 10, objective)(MODEL, IMAGES, LABELS)
    assert torch.equal(result.x_adv, PIXELS)
    assert not result.success.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_wrong_already_is_left_alone(objective: str) -> None:
    labels = LABELS.clone()
    labels[[1, 4]] = (labels[[1, 4]] + 1) % 10
    result = APGD(ThreatModel("l2", 0.02), 5, objective)(MODEL, IMAGES, labels)
    assert result.success.tolist() == [False, True, False, False, True] + [False] * 3
    assert torch.equal(result.x_adv[[1, 4]], PIXELS[[1, 4]])
    assert (lengths(result.x_adv, "l2")[[0, 2, 3]] > 0.004).all()
    assert result.loss.isfinite().all()


def test_only_active_samples_are_attacked_and_draw_the_same_starts() -> None:
    attack = APGD(ThreatModel("l2", 0.6), 10, num_restarts=2)
    whole = attack(MODEL, IMAGES, LABELS)
    active = torch.tensor([True, False] * 4)
    half = attack(MODEL, IMAGES, LABELS, active=active)
    assert torch.equal(half.success, whole.success & active)
    assert torch.equal(half.x_adv[~active], PIXELS[~active])
    torch.testing.assert_close(
        half.x_adv[active], whole.x_adv[active], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batches_and_samples_that_leave_change_nothing(objective: str) -> None:
    """At this radius samples fall one after another, and leave at the boundaries."""
    attack = APGD(ThreatModel("l2", 0.35), 14, objective, num_targets=3)
    whole = attack(MODEL, IMAGES, LABELS)
    assert 0 < int(whole.success.sum()) < len(LABELS)
    for n in range(len(LABELS)):
        alone = attack(MODEL, IMAGES[n : n + 1], LABELS[n : n + 1], offset=n)
        assert alone.success == whole.success[n]
        assert alone.loss == pytest.approx(whole.loss[n].item(), rel=1e-3, abs=1e-4)


def test_the_seed_decides() -> None:
    def run(seed: int) -> Tensor:
        return APGD(ThreatModel("l2", 0.3), 4, seed=seed)(MODEL, IMAGES, LABELS).x_adv

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_more_restarts_only_raise_the_loss() -> None:
    losses = [
        APGD(ThreatModel("l2", 0.2), 4, num_restarts=n)(MODEL, IMAGES, LABELS).loss
        for n in (1, 2, 4)
    ]
    assert (losses[0] <= losses[1]).all()
    assert (losses[1] <= losses[2]).all()
    assert (losses[0] < losses[2]).any()


@pytest.mark.parametrize("threat", THREATS)
def test_it_finds_its_step_size_where_pgd_must_be_told(threat: ThreatModel) -> None:
    """As high as PGD with a good step size, above PGD with one that is far too short."""

    def climbed(attack: Any) -> Tensor:
        return attack(model, IMAGES, labels).loss - clean

    model = sure_model()
    labels = predicted(model, IMAGES)
    with torch.no_grad():
        clean = nn.functional.cross_entropy(model(PIXELS), labels, reduction="none")
    ours = climbed(APGD(threat, 20))
    good, short = (
        climbed(PGD(threat, 20, threat.eps / share, keep="best")) for share in (4, 400)
    )
    assert (ours >= 0.99 * good).all()
    assert (ours > 5 * short).all()
    assert (short > 0).all()


# ---- targets ----


class Fan(nn.Module):
    """Four logits of the mean colour; which class is near is not which one is likely.

    At grey 0.5, class 0 leads; 1 is the runner-up but constant and out of reach, 2 grows
    with blue, 3 is far behind.
    """

    def forward(self, z: Tensor) -> Tensor:
        red, _, blue = z.mean((2, 3)).unbind(1)
        still = torch.zeros_like(red)
        return torch.stack([still + 1, still + 0.9, 20 * (blue - 0.46), red - 5], 1)


FAN = NormalizedModel(Fan(), (0.0,) * 3, (1.0,) * 3, "fan", 4).eval()


def test_targets_are_tried_from_the_likeliest_down() -> None:
    x, y = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel("linf", 0.03)
    first = APGD(threat, 10, "dlr_targeted", num_targets=1)(FAN, x, y)
    assert not first.success.any()  # class 1 cannot be reached
    second = APGD(threat, 10, "dlr_targeted", num_targets=2)(FAN, x, y)
    assert second.success.all()
    assert (FAN(second.x_adv).argmax(1) == 2).all()


def test_each_target_is_tried_once_per_restart() -> None:
    seen: list[list[int]] = []

    def watch(logits: Tensor, context: Context) -> Tensor:
        assert context.targets is not None
        seen.append(context.targets.tolist())
        return dlr_targeted(logits, context)

    objective = Objective("watch", watch, needs_targets=True)
    x, y = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    attack = APGD(ThreatModel("linf", 0.001), 1, objective, 2, num_targets=9)
    attack(FAN, x, y)
    # The clean loss, then two losses (start, one step) per run; of 4 classes 3 are wrong.
    expected = [[1]] + [[t] for t in (1, 2, 3) for _ in range(2 * 2)]
    assert seen == expected


# ---- the work that is done ----


def test_the_host_waits_at_boundaries_only() -> None:
    """Before the run, after steps 3 and 10, and at checkpoints."""
    boundaries = len({3, 10, *checkpoints(30)})
    view = AttackView(MODEL)
    view.compare(IMAGES)  # waits, the first time
    with Trace() as trace:
        result = APGD(ThreatModel("l2", 0.01), 30)(view, IMAGES, LABELS)
    assert not result.success.any()  # or more waits, to report what is fooled
    assert trace.calls["aten::nonzero"] == 1 + boundaries
    assert trace.calls["aten::_local_scalar_dense"] == 0
    # Clean outputs, the start, 30 steps, of which the last one needs no gradient, and the
    # verdict of the model itself.
    assert trace.forwards == 33
    assert trace.masks == [[True, False, False]] * (30 * 2)
    assert trace.calls["fastadv::apgd_step_"] == 30
    assert trace.calls["fastadv::normalize"] == 3


def test_fooled_samples_cost_no_more_steps() -> None:
    with Trace() as trace:
        result = APGD(ThreatModel("l2", 6.0), 100)(MODEL, IMAGES, LABELS)
    assert result.success.all()
    assert trace.calls["fastadv::apgd_step_"] == 3


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_the_backend_that_was_asked_for_runs_every_step(backend: str) -> None:
    missing = BACKENDS[backend].unavailable_reason()
    if missing:
        pytest.skip(missing)
    attack = APGD(ThreatModel("l2", 0.05), 6)
    view = AttackView(MODEL)
    view.compare(IMAGES)
    with use_backend("reference"):
        expected = attack(view, IMAGES, LABELS)
    with use_backend(backend):
        reset_launch_counts()
        result = attack(view, IMAGES, LABELS)
    assert launch_counts() == {
        (backend, "apgd_step"): 6,
        (backend, "ball_init"): 1,
        (backend, "normalize"): 3,
    }
    torch.testing.assert_close(result.x_adv, expected.x_adv, rtol=0, atol=1e-6)


# ---- the model is left alone ----


@pytest.mark.parametrize("training", [True, False])
def test_model_is_bitwise_unchanged(training: bool) -> None:
    model = small_model().train(training)
    model.net.bn1.eval()
    modes = [m.training for m in model.modules()]
    before = snapshot(model)
    APGD(ThreatModel("l2", 0.5), 4, "dlr_targeted")(model, IMAGES, LABELS)
    assert same_bits(before, snapshot(model))
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("fail_at", [1, 2, 4])
def test_model_is_unchanged_after_an_exception(fail_at: int) -> None:
    calls = 0

    def explode(logits: Tensor, context: Context) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise RuntimeError("objective failed")
        return logits.sum(1)

    model = small_model().train()
    before = snapshot(model)
    attack = APGD(ThreatModel("l2", 0.1), 3, Objective("explode", explode))
    with pytest.raises(RuntimeError, match="objective failed"):
        attack(model, IMAGES, LABELS)
    assert same_bits(before, snapshot(model))
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_targets": 0}, "num_targets=0 must be at least 1"),
        ({"objective": "dlr_targetted"}, "unknown objective 'dlr_targetted'"),
        ({"objective": "feature_distance"}, "looks at the embedding"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        APGD(ThreatModel("l2", 0.1), **options)


def test_targeted_dlr_needs_four_classes() -> None:
    logits = torch.randn(2, 3)
    y = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="needs at least 4 classes, got 3"):
        DLR_TARGETED.per_sample(logits, Context(y, targets=y))
    with pytest.raises(ValueError, match="fill `targets`"):
        DLR_TARGETED.per_sample(torch.randn(2, 4), Context(y))
    with pytest.raises(ValueError, match="fill `targets`"):
        PGD(ThreatModel("l2", 0.1), 1, objective=DLR_TARGETED)(MODEL, IMAGES, LABELS)


def test_targeted_dlr_is_the_formula() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, -1.0, 0.5], [0.0, 4.0, 1.0, 2.0, 3.0]])
    y, t = torch.tensor([0, 3]), torch.tensor([2, 1])
    got = dlr_targeted(logits, Context(y, targets=t))
    # (z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2)
    expected = [(2 - 3) / (3 - (1 + 0.5) / 2), (4 - 2) / (4 - (2 + 1) / 2)]
    assert got.tolist() == pytest.approx(expected)
