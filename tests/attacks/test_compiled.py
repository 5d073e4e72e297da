"""Compiled steps give what single steps give, or say why they are not used."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

import pytest
import torch
from attack_nets import SmallNet, predicted, randomise_bn, small_model
from compile_cases import IMAGES, attack, record_operators, said, setting, shrink
from torch import Tensor

from fastadv.attacks import compiled
from fastadv.models.view import AttackView


@pytest.mark.skipif(not shutil.which("c++"), reason="Inductor needs a C++ compiler")
def test_inductor_gives_what_single_steps_give() -> None:
    model, view, labels = setting()
    fast, plain = attack("inductor"), attack()
    for _ in range(2):
        for got, expected in zip(
            fast.perturb(view, IMAGES, labels),
            plain.perturb(view, IMAGES, labels),
            strict=True,
        ):
            assert (got - expected).abs().max() < 1e-5
            assert got.stride() == expected.stride()
        shrink(model, view)  # new weights need no new compilation
    report = fast.compile_report()
    assert asdict(report) == {
        "mode": "inductor",
        "reason": None,
        "compiled": 1,
        "captured": 0,
        "recompiles": 0,
    }


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tracing and differentiation, without generating code."""
    monkeypatch.setattr(compiled, "COMPILER", "aot_eager")


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize(
    "options",
    [
        {"keep": "best", "random_start": True, "num_restarts": 2},
        {"objective": "kl"},
        {"objective": "feature_distance"},
        {"objective": "dlr"},
        {"bn_mode": "train"},
    ],
    ids=["best", "kl", "features", "dlr", "train-bn"],
)
def test_every_kind_of_attack_compiles(options: dict[str, Any]) -> None:
    model, _, labels = setting()
    view = AttackView(model, mode=options.get("bn_mode", "eval"))
    fast = attack("inductor", **options)
    found = fast(view, IMAGES, labels)
    expected = attack(**options)(view, IMAGES, labels)
    assert fast.compile_report().mode == "inductor"
    assert torch.equal(found.success, expected.success)
    assert (found.x_adv - expected.x_adv).abs().max() < 1e-5
    assert (found.loss - expected.loss).abs().max() < 1e-5


@pytest.mark.usefixtures("quick_compiler")
def test_recompiles_are_counted_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    _, view, labels = setting()
    fast = attack("inductor")
    for n in (6, 2, 6, 2):
        fast.perturb(view, IMAGES[:n], labels[:n])
    assert fast.compile_report().compiled == 2
    assert fast.compile_report().recompiles == 1
    for n in (3, 4, 5, 1, 5, 1):
        x_adv = fast.perturb(view, IMAGES[:n], labels[:n])[0]
        expected = attack().perturb(view, IMAGES[:n], labels[:n])[0]
        assert torch.equal(x_adv, expected)
    report = fast.compile_report()
    assert (report.mode, report.compiled, report.recompiles) == ("eager", 4, 3)
    assert said(caplog) == [
        "compile=inductor: it is compiled for 4 shapes of batches already; attack steps "
        "run eagerly"
    ]
    fast.perturb(view, IMAGES, labels)
    assert fast.compile_report().mode == "inductor"


class Branching(SmallNet):
    def forward(self, z: Tensor) -> Tensor:
        logits = super().forward(z)
        return logits * 2 if logits.sum() > -1e9 else logits


@pytest.mark.usefixtures("quick_compiler")
def test_what_cannot_be_compiled_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    net = Branching()
    randomise_bn(net)
    model = small_model(net=net)
    view, labels = AttackView(model), predicted(model, IMAGES)
    fast = attack("inductor")
    expected = attack()(view, IMAGES, labels)
    for _ in range(3):
        found = fast(view, IMAGES, labels)
        assert torch.equal(found.x_adv, expected.x_adv)
    report = fast.compile_report()
    assert (report.mode, report.compiled) == ("eager", 0)
    assert (report.reason or "").startswith("inductor failed: Data-dependent branching")
    (message,) = said(caplog)  # once, not for every step or batch
    assert message == f"compile=inductor: {report.reason}; attack steps run eagerly"


@pytest.mark.usefixtures("quick_compiler")
def test_an_error_of_the_model_is_not_the_compilers() -> None:
    _, view, labels = setting()
    fast = attack("inductor")
    fast.perturb(view, IMAGES, labels)
    labels[0] = 10
    with pytest.raises(ValueError, match=r"0\.\.9"):
        fast.perturb(view, IMAGES, labels)
    assert fast.compile_report().reason is None
    labels[0] = 0
    fast.perturb(view, IMAGES, labels)
    assert fast.compile_report().mode == "inductor"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiled.RECORDERS, "cpu", record_operators)


def test_modes() -> None:
    with pytest.raises(ValueError, match="'jit' is unknown; accepted: auto, off, ind"):
        attack("jit")


def test_without_a_gpu_steps_run_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    _, view, labels = setting()
    for mode, reason in (
        ("auto", None),
        ("off", None),
        ("graph", "a CUDA graph needs a CUDA device, the images are on cpu"),
    ):
        fast = attack(mode)
        for _ in range(2):
            fast.perturb(view, IMAGES, labels)
        report = fast.compile_report()
        assert (report.mode, report.reason) == ("eager", reason)
    assert len(said(caplog)) == 1


@pytest.mark.usefixtures("recorder", "quick_compiler")
@pytest.mark.parametrize("mode", ["inductor", "graph"])
def test_a_model_is_not_compiled_for_one_batch(mode: str) -> None:
    model, _, labels = setting()
    fast = attack(mode)
    for _ in range(3):
        fast.perturb(model, IMAGES, labels)
    report = fast.compile_report()
    assert (report.mode, report.compiled, report.captured) == ("eager", 0, 0)
    assert report.reason == "what is compiled serves one AttackView; a model was given"
