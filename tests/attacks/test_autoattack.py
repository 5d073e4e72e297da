"""The package's attacks and the cascade: who attacks what, and what is left behind."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from attack_nets import batch, predicted, same_bits, small_model, snapshot
from torch import Tensor, nn

from fastadv.attacks import (
    APGD,
    AttackResult,
    Budget,
    Cascade,
    PackageAttack,
    ThreatModel,
    make_attack,
)
from fastadv.attacks.package import FrozenCopy, PixelModel, check_classes
from fastadv.errors import ConfigError
from fastadv.models.view import AttackView
from fastadv.threat import Norm

pyautoattack = pytest.importorskip("pyautoattack", reason="make test installs it")

MODEL = small_model()
IMAGES = batch(12)[0]
PIXELS = IMAGES.float() / 255
LABELS = predicted(MODEL, IMAGES)
LABELS[3] = (LABELS[3] + 1) % 10  # wrong to begin with
SMALL = Budget(num_steps=8, num_targets=2, num_queries=40)
NAMES = ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "square"]


def attack_of(name: str, threat: ThreatModel, **options: Any) -> PackageAttack:
    return PackageAttack(name, threat, SMALL, **options)  # type: ignore[arg-type]


# ---- the package's attacks ----


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_verdicts_are_those_of_the_model(
    name: str, norm: Norm, independent: bool
) -> None:
    eps = 4 / 255 if norm == "linf" else 0.3
    attack = attack_of(name, ThreatModel(norm, eps), independent=independent)
    result = attack(MODEL, IMAGES, LABELS)
    with torch.no_grad():
        assert torch.equal(result.success, MODEL(result.x_adv).argmax(1) != LABELS)
    assert result.success[3]
    assert torch.equal(result.x_adv[3], PIXELS[3])
    assert int(result.success.sum()) > 1
    delta = (result.x_adv.double() - PIXELS.double()).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert (size <= eps * (1 + 1e-5) + 1e-7).all()
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_judge_is_the_package_in_its_standard_version(norm: Norm) -> None:
    """Same verdicts, same images, as from its own `run_standard_evaluation`."""
    eps = 1 / 255 if norm == "linf" else 0.08
    theirs = pyautoattack.AutoAttack(
        MODEL, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=7
    )
    theirs.fab.n_target_classes = theirs.apgd_targeted.n_target_classes = 2
    theirs.square.n_queries = 60
    x_adv, y_adv = theirs.run_standard_evaluation(PIXELS, LABELS, batch_size=12)
    budget = Budget(num_targets=2, num_queries=60)
    judge = make_attack(
        "autoattack", ThreatModel(norm, eps), budget, judge="package", seed=7
    )
    ours = judge(MODEL, IMAGES, LABELS)
    assert torch.equal(ours.success, y_adv != LABELS)
    assert 1 < int(ours.success.sum()) < len(LABELS)
    assert torch.equal(ours.x_adv[ours.success], x_adv[ours.success])


def test_the_view_and_the_copy_are_the_model() -> None:
    with torch.no_grad():
        expected = MODEL(PIXELS)
        assert torch.equal(FrozenCopy(MODEL)(PIXELS), expected)
        viewed = PixelModel(AttackView(MODEL))(PIXELS)
        low = PixelModel(AttackView(MODEL, dtype=torch.bfloat16))(PIXELS)
    torch.testing.assert_close(viewed, expected, rtol=1e-5, atol=1e-5)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("name", ["apgd-ce", "fab", "square"])
def test_model_and_random_state_are_left_alone(name: str, independent: bool) -> None:
    """FAB calls `.backward()`, and all of them seed the global generator."""
    model = small_model().train()
    before, random = snapshot(model), torch.random.get_rng_state()
    attack_of(name, ThreatModel("l2", 0.2), independent=independent)(
        model, IMAGES, LABELS
    )
    assert same_bits(before, snapshot(model))
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("name", ["fab", "square"])
def test_model_is_unchanged_after_an_exception(name: str, independent: bool) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_model()

        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) == 5:
                raise RuntimeError("out of memory, say")
            return self.inner(x)

    calls: list[int] = []
    model = Failing().train()
    model.register_forward_hook(lambda *_: None)  # not traced: every call is counted
    before, random = snapshot(model), torch.random.get_rng_state()
    attack = attack_of(name, ThreatModel("l2", 0.01), independent=independent)
    with pytest.raises(RuntimeError, match="out of memory, say"):
        attack(model, IMAGES, LABELS)
    assert same_bits(before, snapshot(model))
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [0, 1])
def test_few_samples(name: str, rows: int) -> None:
    attack = attack_of(name, ThreatModel("l2", 0.01))
    result = attack(MODEL, IMAGES[:rows], LABELS[:rows])
    assert result.x_adv.shape == IMAGES[:rows].shape
    assert result.success.tolist() == [False] * rows


# ---- the cascade ----


class Scripted:
    """Fools the samples it is told to, and remembers which it was asked to attack."""

    def __init__(self, *fools: int) -> None:
        self.fools = torch.tensor(fools, dtype=torch.int64)
        self.seen: list[list[int]] = []
        self.offsets: list[int] = []

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        offset: int = 0,
        active: Tensor | None = None,
    ) -> AttackResult:
        assert active is not None
        self.seen.append(active.nonzero().squeeze(1).tolist())
        self.offsets.append(offset)
        success = torch.isin(torch.arange(len(y)), self.fools) & active
        return AttackResult(
            x / 255 + 0.001, success, torch.full((len(y),), 2.0), torch.tensor([3])
        )


def test_each_attack_gets_what_survived() -> None:
    stages = [Scripted(1, 4), Scripted(0, 1), Scripted(), Scripted(5)]
    cascade = Cascade([(f"s{i}", stage) for i, stage in enumerate(stages)])
    x, y = IMAGES[:6], LABELS[:6]
    result = cascade(MODEL, x, y, offset=30)
    assert [stage.seen for stage in stages] == [
        [[0, 1, 2, 3, 4, 5]],
        [[0, 2, 3, 5]],
        [[2, 3, 5]],
        [[2, 3, 5]],
    ]
    assert all(stage.offsets == [30] for stage in stages)
    assert result.fell_to.tolist() == [1, 0, 4, 4, 0, 3]
    assert result.success.tolist() == [True, True, False, False, True, True]
    assert len(result.seconds) == 4
    assert result.nonfinite.item() == 12
    assert cascade.names == ("s0", "s1", "s2", "s3")


def test_nothing_is_attacked_once_all_are_fooled() -> None:
    last = Scripted()
    result = Cascade([("first", Scripted(0, 1)), ("last", last)])(
        MODEL, IMAGES[:2], LABELS[:2]
    )
    assert last.seen == []
    assert result.fell_to.tolist() == [0, 0]
    with pytest.raises(ValueError, match="at least one attack"):
        Cascade([])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_both_judges_agree_and_theirs_do_not_share_ours(norm: Norm) -> None:
    eps = 1 / 255 if norm == "linf" else 0.08
    threat = ThreatModel(norm, eps)
    budget = Budget(num_steps=40, num_targets=3, num_queries=100)
    ours, theirs = (
        make_attack("autoattack", threat, budget, judge=judge)
        for judge in ("fastadv", "package")
    )
    assert isinstance(ours.stages[0], APGD)
    assert isinstance(ours.stages[1], APGD)
    assert all(isinstance(stage, PackageAttack) for stage in theirs.stages)
    assert isinstance(ours.prepare(MODEL), AttackView)
    assert isinstance(theirs.prepare(MODEL), FrozenCopy)
    a, b = ours(MODEL, IMAGES, LABELS), theirs(MODEL, IMAGES, LABELS)
    assert torch.equal(a.success, b.success)
    assert 1 < int(a.success.sum()) < len(LABELS)


def test_the_standard_version_is_the_papers() -> None:
    cascade = make_attack("autoattack", ThreatModel("linf", "8/255"))
    assert cascade.names == ("apgd-ce", "apgd-t", "fab", "square")
    ce, targeted, fab, square = cascade.stages
    theirs = pyautoattack.AutoAttack(MODEL, version="standard")
    assert isinstance(ce, APGD)
    assert isinstance(targeted, APGD)
    assert (ce.num_steps, ce.num_restarts) == (100, theirs.apgd.n_restarts)
    assert targeted.num_targets == theirs.apgd_targeted.n_target_classes
    built = fab.build(MODEL, 10, 0)  # type: ignore[attr-defined]
    same = ("n_iter", "alpha_max", "eta", "beta", "n_target_classes", "n_restarts")
    assert [getattr(built, k) for k in same] == [getattr(theirs.fab, k) for k in same]
    built = square.build(MODEL, 10, 0)  # type: ignore[attr-defined]
    same = ("n_queries", "p_init", "rescale_schedule", "loss", "n_restarts")
    assert [getattr(built, k) for k in same] == [
        getattr(theirs.square, k) for k in same
    ]


# ---- bad input ----


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    threat = ThreatModel("l2", 0.1)
    for name in ("autoattack", "fab", "square"):
        with pytest.raises(ConfigError, match=r"pip install 'fastadv\[autoattack\]'"):
            make_attack(name, threat)
    with pytest.raises(ConfigError, match="pyautoattack"):
        make_attack("apgd-ce", threat, judge="package")
    assert make_attack("apgd-t", threat).names == ("apgd-t",)  # needs none


def test_names_and_budgets() -> None:
    threat = ThreatModel("l2", 0.1)
    with pytest.raises(ValueError, match="perhaps you meant: apgd-ce"):
        make_attack("apgd_ce", threat)
    with pytest.raises(ValueError, match="unknown judge 'pakage'"):
        make_attack("autoattack", threat, judge="pakage")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown attack 'fap'"):
        PackageAttack("fap", threat)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_queries=0 must be at least 1"):
        PackageAttack("square", threat, Budget(num_queries=0))


@pytest.mark.parametrize(("name", "least"), [("apgd-dlr", 3), ("apgd-t", 4)])
def test_too_few_classes(name: str, least: int) -> None:
    check_classes(["apgd-ce", name, "fab", "square"], least)
    check_classes(["apgd-ce", "fab", "square"], 2)
    with pytest.raises(ValueError, match=f"{name} needs at least {least} classes"):
        check_classes(["square", name], least - 1)


def test_the_package_gets_no_bad_labels_or_outputs() -> None:
    attack = attack_of("square", ThreatModel("l2", 0.1))
    with pytest.raises(ValueError, match=r"expected class ids in 0\.\.9"):
        attack(MODEL, IMAGES, LABELS + 10)

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, x

    with pytest.raises(TypeError, match="the model returned a tuple of 2"):
        attack(Pair(), IMAGES, LABELS)
