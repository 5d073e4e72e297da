"""What PGD finds: inside the ball, as strong as promised, the same under a seed."""

from __future__ import annotations

import pytest
import torch
from attack_nets import batch, predicted, small_model
from hypothesis import given, settings, strategies as st
from torch import Tensor

from fastadv.attacks import OBJECTIVES, PGD, AttackResult, Objective, ThreatModel
from fastadv.attacks.objectives import margin
from fastadv.threat import Norm

GOLDEN = 0x9E3779B97F4A7C15  # the step between the keys of two restarts
FLOAT32 = 6e-8  # rounding of one pixel in [0, 1]

MODEL = small_model()
IMAGES = batch(8)[0]
LABELS = predicted(MODEL, IMAGES)
THREATS = [
    pytest.param(ThreatModel("linf", "8/255"), id="linf"),
    pytest.param(ThreatModel("l2", 1.0), id="l2"),
]

# Long steps jump over its crests, so that a later iterate is often a worse one.
WAVY = Objective("wavy", lambda logits, context: (9 * margin(logits, context)).sin())


def lengths(x_adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Size of each perturbation [N] in its norm, in float64 against exact pixels."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)


def equal(a: AttackResult, b: AttackResult) -> bool:
    return (
        torch.equal(a.x_adv, b.x_adv)
        and torch.equal(a.success, b.success)
        and torch.equal(a.loss, b.loss)
    )


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    share=st.floats(0, 1),
    num_steps=st.integers(1, 4),
    relative_step=st.floats(0, 4),
    random_start=st.booleans(),
    keep=st.sampled_from(["last", "best"]),
    objective=st.sampled_from(sorted(OBJECTIVES)),
    as_bytes=st.booleans(),
    seed=st.integers(-(2**63), 2**64),
)
def test_result_stays_in_ball_and_box(
    norm, share, num_steps, relative_step, random_start, keep, objective, as_bytes, seed
) -> None:
    eps = share * (1.0 if norm == "linf" else 12.0)
    attack = PGD(
        ThreatModel(norm, eps),
        num_steps=num_steps,
        step_size=relative_step * eps,
        random_start=random_start,
        objective=objective,
        keep=keep,
        seed=seed,
    )
    pixels = IMAGES[:3].float() / 255
    x = IMAGES[:3] if as_bytes else pixels
    result = attack(MODEL, x, LABELS[:3])
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    # Rounding of every pixel, 768 of them in the l2 norm, and of eps itself.
    slack = FLOAT32 * (2 if norm == "linf" else 2 * 768**0.5) + eps * 2e-7
    assert (lengths(result.x_adv, pixels, norm) <= eps + slack).all()
    with torch.no_grad():
        logits = MODEL(result.x_adv)
    hit = logits.argmax(1) == LABELS[:3]
    assert torch.equal(result.success, hit if objective == "targeted" else ~hit)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_radius_zero_returns_the_clean_images(norm, random_start, keep) -> None:
    attack = PGD(ThreatModel(norm, 0), random_start=random_start, keep=keep)
    result = attack(MODEL, IMAGES, LABELS)
    assert torch.equal(result.x_adv, IMAGES.float() / 255)
    assert not result.success.any()


@pytest.mark.parametrize("threat", THREATS)
def test_full_steps_end_on_the_sphere_or_the_box(threat: ThreatModel) -> None:
    """A loss that keeps growing pushes the iterate to the boundary of ball and box."""
    images = IMAGES // 2 + 64  # 64..191: the box is out of reach
    x_adv = PGD(threat, num_steps=4)(MODEL, images, LABELS).x_adv
    size = lengths(x_adv, images.double() / 255, threat.norm)
    assert torch.allclose(size, torch.full_like(size, threat.eps), rtol=1e-5)


@pytest.mark.parametrize("threat", THREATS)
def test_bytes_and_floats_agree(threat: ThreatModel) -> None:
    attack = PGD(threat, num_steps=4, random_start=True)
    from_bytes = attack(MODEL, IMAGES, LABELS)
    from_floats = attack(MODEL, IMAGES.float() / 255, LABELS)
    assert equal(from_bytes, from_floats)
    assert from_bytes.success.any()


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_layouts_agree_and_come_back(threat: ThreatModel, as_bytes: bool) -> None:
    x = IMAGES if as_bytes else IMAGES.float() / 255
    attack = PGD(threat, num_steps=3, random_start=True)
    nchw = attack(MODEL, x, LABELS)
    nhwc = attack(MODEL, x.contiguous(memory_format=torch.channels_last), LABELS)
    strided = attack(MODEL, x.repeat_interleave(2, 3)[..., ::2], LABELS)
    assert torch.equal(nchw.x_adv, nhwc.x_adv)
    assert torch.equal(nchw.x_adv, strided.x_adv)
    assert nchw.x_adv.is_contiguous()
    assert nhwc.x_adv.is_contiguous(memory_format=torch.channels_last)
    assert not nhwc.x_adv.is_contiguous()


@pytest.mark.parametrize("threat", THREATS)
def test_inputs_are_not_written_to(threat: ThreatModel) -> None:
    for order in (torch.contiguous_format, torch.channels_last):
        x = (IMAGES.float() / 255).contiguous(memory_format=order)
        before, labels = x.clone(), LABELS.clone()
        PGD(threat)(MODEL, x, labels)
        PGD(threat).perturb(MODEL, x, labels)
        assert torch.equal(x, before)
        assert torch.equal(labels, LABELS)
        assert not x.requires_grad


@pytest.mark.parametrize("threat", THREATS)
def test_seed_decides_the_random_start(threat: ThreatModel) -> None:
    def run(seed: int) -> AttackResult:
        attack = PGD(threat, num_steps=2, random_start=True, seed=seed)
        torch.rand(5)  # the global generator has no say
        return attack(MODEL, IMAGES, LABELS)

    first = run(7)
    assert equal(first, run(7))
    other = run(8)
    apart = (first.x_adv - other.x_adv).flatten(1).norm(dim=1)
    assert (apart > 0.05 * threat.eps).all()


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    PGD(ThreatModel("l2", 1.0), random_start=True)(MODEL, IMAGES, LABELS)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("threat", THREATS)
def test_offset_splits_a_batch(threat: ThreatModel) -> None:
    attack = PGD(threat, num_steps=2, random_start=True, num_restarts=2)
    whole = attack(MODEL, IMAGES, LABELS)
    low = attack(MODEL, IMAGES[:4], LABELS[:4], offset=0)
    high = attack(MODEL, IMAGES[4:], LABELS[4:], offset=4)
    both = torch.cat([low.x_adv, high.x_adv])
    # Not bit by bit: convolutions may round otherwise in another batch size.
    assert (whole.x_adv - both).abs().max() < 1e-6
    assert torch.equal(whole.success, torch.cat([low.success, high.success]))
    same_numbers = attack(MODEL, IMAGES[4:], LABELS[4:], offset=0)
    assert (high.x_adv - same_numbers.x_adv).abs().max() > 1e-3


def worst(results: list[AttackResult]) -> AttackResult:
    """Per sample: success first, then the loss; ties go to the earlier run."""
    picks = []
    for n in range(len(LABELS)):
        keys = [(bool(r.success[n]), float(r.loss[n])) for r in results]
        picks.append(keys.index(max(keys)))
    rows = [(results[p], n) for n, p in enumerate(picks)]
    return AttackResult(
        torch.stack([r.x_adv[n] for r, n in rows]),
        torch.stack([r.success[n] for r, n in rows]),
        torch.stack([r.loss[n] for r, n in rows]),
        results[0].nonfinite,
    )


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("objective", ["cross_entropy", "kl"])
def test_restarts_keep_the_worst_per_sample(
    threat: ThreatModel, objective: str
) -> None:
    # A radius at which some samples give way and others hold, from start to start.
    small = ThreatModel(threat.norm, threat.eps * 0.6)
    options = {"num_steps": 1, "random_start": True, "objective": objective}
    together = PGD(small, num_restarts=4, seed=5, **options)(MODEL, IMAGES, LABELS)
    alone = [
        PGD(small, seed=5 + r * GOLDEN, **options)(MODEL, IMAGES, LABELS)
        for r in range(4)
    ]
    assert equal(together, worst(alone))
    assert not any(equal(together, one) for one in alone)
    assert len({float(r.loss.sum()) for r in alone}) == 4


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("objective", ["cross_entropy", "feature_distance", WAVY])
def test_best_is_the_worst_iterate(
    threat: ThreatModel, objective: str | Objective
) -> None:
    """`keep="best"` equals judging the last iterate of every number of steps."""
    options = {
        "step_size": 1.7 * threat.eps,
        "objective": objective,
        "random_start": True,
    }
    best = PGD(threat, 4, keep="best", **options)(MODEL, IMAGES, LABELS)
    lasts = [
        PGD(threat, k, keep="last", **options)(MODEL, IMAGES, LABELS)
        for k in range(1, 5)
    ]
    options |= {"step_size": 0.0}
    start = PGD(threat, 1, keep="last", **options)(MODEL, IMAGES, LABELS)
    expected = worst([start, *lasts])
    assert torch.equal(best.success, expected.success)
    assert torch.allclose(best.loss, expected.loss, rtol=1e-5, atol=1e-7)
    assert torch.allclose(best.x_adv, expected.x_adv, atol=1e-6)
    last = lasts[-1]
    stronger = (best.success & ~last.success) | (
        (best.success == last.success) & (best.loss >= last.loss)
    )
    assert stronger.all()
    if objective is WAVY:
        assert not equal(best, last)


@pytest.mark.parametrize("threat", THREATS)
def test_more_steps_reach_a_higher_loss(threat: ThreatModel) -> None:
    def mean_loss(num_steps: int) -> float:
        attack = PGD(threat, num_steps=num_steps, step_size=threat.eps / 5)
        return attack(MODEL, IMAGES, LABELS).loss.mean().item()

    clean = PGD(threat, 1, 0.0)(MODEL, IMAGES, LABELS).loss.mean().item()
    gains = [mean_loss(k) - clean for k in (1, 2, 4, 8)]
    assert gains == sorted(gains)
    # One step of a fifth of the way against the whole way, on a nearly linear loss.
    assert gains[-1] > 3 * gains[0] > 0


@pytest.mark.parametrize("threat", THREATS)
def test_targeted_attack_reaches_its_target(threat: ThreatModel) -> None:
    target = (LABELS + 3) % 10
    wide = ThreatModel(threat.norm, threat.eps * 8)
    attack = PGD(wide, num_steps=20, step_size=wide.eps / 8, objective="targeted")
    result = attack(MODEL, IMAGES, target)
    assert result.success.all()
    assert torch.equal(predicted(MODEL, result.x_adv * 255), target)


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("objective", ["kl", "feature_distance"])
@pytest.mark.parametrize("random_start", [False, True])
def test_objectives_without_gradient_at_the_clean_image_leave_it(
    threat: ThreatModel, objective: str, random_start: bool
) -> None:
    """Distance to the clean output is flat there: the attack has to start beside it."""
    attack = PGD(threat, 10, objective=objective, random_start=random_start)
    result = attack(MODEL, IMAGES, LABELS)
    moved = lengths(result.x_adv, IMAGES.double() / 255, threat.norm)
    assert (moved > 0.5 * threat.eps).all()
    noise = PGD(threat, 1, 0.0, True, objective=objective)(MODEL, IMAGES, LABELS)
    assert (noise.loss > 0).all()
    assert (result.loss > 5 * noise.loss).all()


@pytest.mark.parametrize("threat", THREATS)
def test_a_label_free_attack_ignores_the_labels(threat: ThreatModel) -> None:
    attack = PGD(threat, 3, objective="feature_distance")
    right = attack(MODEL, IMAGES, LABELS)
    wrong = attack(MODEL, IMAGES, (LABELS + 1) % 10)
    assert torch.equal(right.x_adv, wrong.x_adv)
    assert torch.equal(right.success, predicted(MODEL, right.x_adv * 255) != LABELS)


@pytest.mark.parametrize("threat", THREATS)
def test_perturb_is_the_attack_without_the_verdict(threat: ThreatModel) -> None:
    attack = PGD(threat, 3, random_start=True, seed=4)
    x_adv, z = attack.perturb(MODEL, IMAGES, LABELS, offset=9)
    assert torch.equal(x_adv, attack(MODEL, IMAGES, LABELS, offset=9).x_adv)
    assert (z - MODEL.normalize(x_adv)).abs().max() < 1e-6
    assert not x_adv.requires_grad
    assert not z.requires_grad
    reseeded, _ = attack.perturb(MODEL, IMAGES, LABELS, seed=5, offset=9)
    other = PGD(threat, 3, random_start=True, seed=5)
    assert torch.equal(reseeded, other(MODEL, IMAGES, LABELS, offset=9).x_adv)
    assert not torch.equal(reseeded, x_adv)


@pytest.mark.parametrize("threat", THREATS)
def test_training_takes_the_worst_of_several_starts(threat: ThreatModel) -> None:
    options = {"num_steps": 1, "step_size": 0.2 * threat.eps, "random_start": True}
    several = PGD(threat, num_restarts=3, seed=5, **options)
    x_adv, z = several.perturb(MODEL, IMAGES, LABELS, seed=5)
    found = [
        PGD(threat, seed=(5 + k * GOLDEN) % 2**64, **options).perturb(
            MODEL, IMAGES, LABELS
        )
        for k in range(3)
    ]

    def losses(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(
                MODEL(images), LABELS, reduction="none"
            )

    each = torch.stack([losses(image) for image, _ in found])
    best = each.argmax(0)
    assert len(best.unique()) > 1
    for row, k in enumerate(best.tolist()):
        assert torch.equal(x_adv[row], found[k][0][row])
        assert torch.equal(z[row], found[k][1][row])
    one, _ = PGD(threat, seed=5, **options).perturb(MODEL, IMAGES, LABELS)
    assert torch.equal(one, found[0][0])
    # Without a seed, every call draws starts that none before has drawn.
    assert torch.equal(several.perturb(MODEL, IMAGES, LABELS)[0], x_adv)
    assert not torch.equal(several.perturb(MODEL, IMAGES, LABELS)[0], x_adv)


def test_the_default_step_is_that_of_the_papers_and_crosses_the_ball() -> None:
    """Salman et al. take three steps of 2/3 eps, Madry et al. K of 2.5 eps / K."""
    for num_steps in (1, 2, 3, 4, 5, 20):
        attack = PGD(ThreatModel("l2", 3.0), num_steps=num_steps)
        assert attack.step_size * num_steps >= 2 * 3.0 * (1 - 1e-12)
        if num_steps > 3:
            assert attack.step_size == pytest.approx(2.5 * 3.0 / num_steps)
    assert PGD(ThreatModel("l2", 3.0), num_steps=3).step_size == pytest.approx(2.0)


def test_plain_modules_take_images_as_they_are() -> None:
    """A module that is no NormalizedModel gets [0, 1] images: the same attack."""
    plain = torch.nn.Sequential(MODEL).eval()
    attack = PGD(ThreatModel("l2", 1.0), 3)
    ours, theirs = attack(MODEL, IMAGES, LABELS), attack(plain, IMAGES, LABELS)
    assert (ours.x_adv - theirs.x_adv).abs().max() < 1e-6
    with pytest.raises(TypeError, match="features need a NormalizedModel"):
        PGD(ThreatModel(), objective="feature_distance")(plain, IMAGES, LABELS)


def test_an_empty_batch_gives_an_empty_result() -> None:
    for objective in ("cross_entropy", "margin"):
        for random_start in (False, True):
            attack = PGD(ThreatModel(), random_start=random_start, objective=objective)
            result = attack(MODEL, IMAGES[:0], LABELS[:0])
            assert result.x_adv.shape == (0, 3, 16, 16)
            assert result.x_adv.dtype == torch.float32
            assert result.success.shape == result.loss.shape == (0,)


def test_non_finite_gradients_move_nothing() -> None:
    """One broken sample neither moves nor disturbs its neighbours."""

    class Broken(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            factor = torch.ones(len(x), 1)
            factor[2] = float("inf")
            return MODEL(x) * factor

    attack = PGD(ThreatModel("l2", 1.0), 3)
    result = attack(Broken().eval(), IMAGES, LABELS)
    healthy = attack(MODEL, IMAGES, LABELS)
    assert torch.equal(result.x_adv[2], IMAGES[2].float() / 255)
    rest = torch.arange(8) != 2
    assert (result.x_adv[rest] - healthy.x_adv[rest]).abs().max() < 1e-6


def test_bfloat16_attack_is_nearly_as_strong() -> None:
    threat = ThreatModel("l2", 2.0)
    exact = PGD(threat, 5)(MODEL, IMAGES, LABELS)
    half = PGD(threat, 5, dtype=torch.bfloat16)(MODEL, IMAGES, LABELS)
    assert half.x_adv.dtype == torch.float32
    assert half.loss.dtype == torch.float32
    with torch.no_grad():
        judged = torch.nn.functional.cross_entropy(
            MODEL(half.x_adv), LABELS, reduction="none"
        )
    clean = PGD(ThreatModel("l2", 0), 1)(MODEL, IMAGES, LABELS)
    gain = (judged - clean.loss) / (exact.loss - clean.loss)
    assert (gain > 0.97).all()


# ---- what is refused, and in which words ----


def test_refusals_name_the_value_and_the_way_out() -> None:
    with pytest.raises(ValueError, match="num_restarts=3 without random_start"):
        PGD(ThreatModel(), num_restarts=3)
    with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
        PGD(ThreatModel(), num_steps=0)
    with pytest.raises(ValueError, match="num_restarts=0 must be at least 1"):
        PGD(ThreatModel(), num_restarts=0)
    with pytest.raises(
        ValueError, match="keep='first' is unknown; accepted: last, best"
    ):
        PGD(ThreatModel(), keep="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="perhaps you meant: cross_entropy"):
        PGD(ThreatModel(), objective="cross_entropi")
    with pytest.raises(
        ValueError, match="unknown objective 'zzz'; known: cross_entropy"
    ):
        PGD(ThreatModel(), objective="zzz")
    for step in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"step_size=.* must be a finite number"):
            PGD(ThreatModel(), step_size=step)
    with pytest.raises(ValueError, match="mode='frozen' is unknown"):
        PGD(ThreatModel(), bn_mode="frozen")(MODEL, IMAGES, LABELS)  # type: ignore[arg-type]


def test_images_outside_the_box_are_refused_with_the_remedy() -> None:
    attack = PGD(ThreatModel())
    normalised = MODEL.normalize(IMAGES.float() / 255)
    with pytest.raises(ValueError, match=r"values in \[-.*\]; attacks need images in"):
        attack(MODEL, normalised, LABELS)
    with pytest.raises(ValueError, match="Remove Normalize from the transform"):
        attack(MODEL, IMAGES.float(), LABELS)
    broken = IMAGES.float() / 255
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"infinite in 1 of 8 images \(of index 0"):
        attack(MODEL, broken, LABELS)


def test_shapes_that_do_not_fit_are_refused() -> None:
    attack = PGD(ThreatModel())
    with pytest.raises(ValueError, match=r"x has shape \[3, 16, 16\]"):
        attack(MODEL, IMAGES[0], LABELS[:1])
    with pytest.raises(ValueError, match=r"y \[5\]; expected \[N, C, H, W\] and \[N\]"):
        attack(MODEL, IMAGES, LABELS[:5])
    with pytest.raises(ValueError, match=r"y \[8, 1\]"):
        attack(MODEL, IMAGES, LABELS[:, None])
