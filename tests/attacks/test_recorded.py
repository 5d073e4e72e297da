"""Attacks replayed from a recording, a CUDA graph where there is a GPU.

On the CPU `record_operators` takes its place, so that all but the recording itself is
tested there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_nets import SmallNet, batch, small_model
from compile_cases import (
    IMAGES,
    THREAT,
    attack,
    record_operators,
    said,
    setting,
    shrink,
)
from torch import Tensor

from fastadv.attacks import PGD, compiled
from fastadv.models import NormalizedModel
from fastadv.models.view import AttackView


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiled.RECORDERS, "cpu", record_operators)


def assert_same_results(got: Any, expected: Any) -> None:
    for name in ("x_adv", "success", "loss", "nonfinite", "fell_to"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


GRAPHS = {
    "last": {},
    "best": {"keep": "best", "random_start": True, "num_restarts": 2},
    "kl": {"objective": "kl"},
    "features": {"objective": "feature_distance"},
    "train-bn": {"bn_mode": "train"},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize("options", GRAPHS.values(), ids=GRAPHS)
def test_replayed_batches_are_attacked_as_single_steps_would(
    options: dict[str, Any],
) -> None:
    """New images, labels and weights each time; the recording is made once."""
    model, _, labels = setting()
    mode, dtype = options.get("bn_mode", "eval"), options.get("dtype")
    view = AttackView(model, mode=mode, dtype=dtype)
    fast, plain = attack("graph", **options), attack(**options)
    modes = []
    for seed in range(4):
        images = batch(6, seed=seed)[0].contiguous(memory_format=torch.channels_last)
        before = images.clone()
        found = fast(view, images, labels, offset=seed)
        fresh = AttackView(model, mode=mode, dtype=dtype)
        assert_same_results(found, plain(fresh, images, labels, offset=seed))
        assert torch.equal(images, before)
        modes.append(fast.compile_report().mode)
        labels = labels.roll(1)
        shrink(model, view)
    assert modes[1:] == ["graph"] * 3
    assert fast.compile_report().captured == 1
    assert fast.compile_report().recompiles == 0


@pytest.mark.usefixtures("recorder")
def test_results_are_not_overwritten_by_the_next_replay() -> None:
    _, view, labels = setting()
    fast = attack("auto")
    results = [fast.perturb(view, batch(6, seed=s)[0], labels) for s in range(5)]
    assert fast.compile_report().mode == "graph"
    for seed, (x_adv, z) in enumerate(results):
        expected = attack().perturb(view, batch(6, seed=seed)[0], labels)
        assert torch.equal(x_adv, expected[0])
        assert torch.equal(z, expected[1])
        assert x_adv.stride() == expected[0].stride()


@pytest.mark.usefixtures("recorder")
def test_odd_batches_run_eagerly_and_new_sizes_are_recorded() -> None:
    _, view, labels = setting()
    fast, plain = attack("graph"), attack()
    modes = []
    for n, side in [*[(6, 16), (6, 16), (4, 16)] * 2, *[(6, 20)] * 3]:
        images = batch(n, side)[0]
        x_adv = fast.perturb(view, images, labels[:n])[0]
        assert torch.equal(x_adv, plain.perturb(view, images, labels[:n])[0])
        modes.append(fast.compile_report().mode)
    epoch = ["eager", "graph", "eager"]
    assert modes == [*epoch, "graph", "graph", "eager", "eager", "graph", "graph"]
    assert fast.compile_report().captured == 2
    assert fast.compile_report().recompiles == 1


@pytest.mark.usefixtures("recorder")
def test_weights_that_moved_are_recorded_anew() -> None:
    model, view, labels = setting()
    fast, plain = attack("graph"), attack()
    for other in (0, 1):
        state = small_model(other).state_dict()
        model.load_state_dict(state, assign=True)
        view.refresh()
        expected = plain.perturb(AttackView(model), IMAGES, labels)[0]
        for mode in ("eager", "graph"):
            assert torch.equal(fast.perturb(view, IMAGES, labels)[0], expected)
            assert fast.compile_report().mode == mode
    assert fast.compile_report().captured == 2


@pytest.mark.usefixtures("recorder")
def test_another_network_at_the_same_addresses_is_recorded_anew() -> None:
    """What was recorded are the operators of one network, not of another with its weights."""
    model, view, labels = setting()
    fast = attack("graph")
    for _ in range(2):
        fast.perturb(view, IMAGES, labels)
    assert fast.compile_report().mode == "graph"
    net = SmallNet()
    net.load_state_dict(model.net.state_dict(), assign=True)
    net.act = torch.nn.ReLU()
    other = AttackView(small_model(net=net.eval()))
    # As if the allocator had put the weights of the view where those of the first lay.
    with torch.no_grad():
        theirs = dict(view.net.named_parameters())
        for name, parameter in other.net.named_parameters():
            parameter.data = theirs[name].data
    addresses = [p.data_ptr() for p in view.parameters()]
    assert [p.data_ptr() for p in other.parameters()] == addresses
    expected = attack().perturb(other, IMAGES, labels)[0]
    assert torch.equal(fast.perturb(other, IMAGES, labels)[0], expected)
    assert not torch.equal(attack().perturb(view, IMAGES, labels)[0], expected)


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("mode", ["off", "graph"])
def test_gradients_that_are_no_numbers_are_counted_over_all_restarts(
    mode: str, keep: str
) -> None:
    class Broken(SmallNet):
        def forward(self, z: Tensor) -> Tensor:
            # Infinitely steep where z is at its own value: the gradient is no number.
            steep = (z[:, :, 0, 0] - z[:, :, 0, 0].detach()).sqrt()
            return super().forward(z) + steep.sum(1, keepdim=True)

    view = AttackView(small_model(net=Broken()))
    labels = torch.zeros(6, dtype=torch.int64)
    options = {"random_start": True, "num_restarts": 3, "keep": keep}
    fast = attack(mode, **options)
    for _ in range(3):
        found = fast(view, IMAGES, labels)
        # 3 restarts of 3 steps, 6 images, the first pixel of 3 channels.
        assert found.nonfinite.item() == 3 * 3 * 6 * 3
    assert fast.compile_report().mode == {"off": "eager"}.get(mode, mode)


@pytest.mark.usefixtures("recorder")
def test_what_is_recorded_follows_the_attacks_own_numbers() -> None:
    _, view, labels = setting()
    fast = attack("graph")
    for step_size in (0.5, 0.1):
        fast.step_size = step_size
        plain = PGD(THREAT, 3, step_size, compile="off")
        for _ in range(2):
            x_adv = fast.perturb(view, IMAGES, labels)[0]
            assert torch.equal(x_adv, plain.perturb(view, IMAGES, labels)[0])


@pytest.mark.usefixtures("recorder")
def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_MOST_CAPTURES", 2)
    _, view, labels = setting()
    fast = attack("graph")
    for n in (6, 6, 5, 5, 4, 4, 3, 3):
        fast.perturb(view, IMAGES[:n], labels[:n])
    report = fast.compile_report()
    assert (report.mode, report.captured) == ("eager", 2)
    assert report.reason == "graph failed: it was recorded 2 times already"


def test_a_recording_that_fails_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
        call()
        raise RuntimeError("operation not permitted when stream is capturing\nat ...")

    monkeypatch.setitem(compiled.RECORDERS, "cpu", fail)
    _, view, labels = setting()
    fast = attack("graph")
    expected = attack().perturb(view, IMAGES, labels)
    for _ in range(4):
        assert torch.equal(fast.perturb(view, IMAGES, labels)[0], expected[0])
    report = fast.compile_report()
    assert (report.mode, report.captured) == ("eager", 0)
    assert report.reason == (
        "graph failed: operation not permitted when stream is capturing"
    )
    assert [report.reason in message for message in said(caplog)] == [True]


# ---- on a GPU ----

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(**options: Any) -> tuple[NormalizedModel, AttackView, Tensor, Tensor]:
    model = small_model().to("cuda")
    images = IMAGES.to("cuda").contiguous(memory_format=torch.channels_last)
    view = AttackView(
        model, mode=options.get("bn_mode", "eval"), dtype=options.get("dtype")
    )
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(1)
    return model, view, images, labels


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("options", GRAPHS.values(), ids=GRAPHS)
def test_cuda_graphs_replay_the_single_steps(options: dict[str, Any]) -> None:
    model, view, images, labels = on_gpu(**options)
    fast, plain = attack("auto", **options), attack(**options)
    for number in range(4):
        found = fast(view, images, labels, offset=number)
        expected = plain(view, images, labels, offset=number)
        # The same kernels on the same numbers; but a library may choose its algorithm
        # anew in another workspace, so not bit by bit.
        near = 2e-2 if view.dtype == torch.bfloat16 else 1e-4
        assert (found.x_adv - expected.x_adv).abs().max() < near
        assert torch.equal(found.nonfinite, expected.nonfinite)
        images, labels = images.roll(1, 0), labels.roll(2)
        shrink(model, view)
    report = fast.compile_report()
    assert (report.mode, report.captured, report.reason) == ("graph", 1, None)


@pytest.mark.gpu
@CUDA
def test_odd_batches_beside_a_cuda_graph() -> None:
    _, view, images, labels = on_gpu()
    fast, plain = attack("auto"), attack()
    for n in (6, 6, 4, 6, 6, 4):
        x_adv = fast.perturb(view, images[:n], labels[:n])[0]
        expected = plain.perturb(view, images[:n], labels[:n])[0]
        assert (x_adv - expected).abs().max() < 1e-4
    assert fast.compile_report().captured == 1


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("mode", ["inductor", "full"])
def test_inductor_on_a_gpu(mode: str) -> None:
    model, view, images, labels = on_gpu()
    fast, plain = attack(mode), attack()
    for _ in range(3):
        x_adv = fast.perturb(view, images, labels)[0]
        expected = plain.perturb(view, images, labels)[0]
        # Convolutions in TF32 or another order differ more than on the CPU.
        assert (x_adv - expected).flatten(1).norm(dim=1).max() < 0.02
        shrink(model, view)
    report = fast.compile_report()
    assert (report.mode, report.compiled, report.recompiles) == (mode, 1, 0)


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("options", GRAPHS.values(), ids=GRAPHS)
def test_nothing_waits_for_the_gpu(mode: str, options: dict[str, Any]) -> None:
    _, view, images, labels = on_gpu(**options)
    fast = attack(mode, **options)
    for _ in range(3):  # tuning and recording may wait
        fast.perturb(view, images, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(2):
            fast.perturb(view, images, labels, offset=number)
            view.refresh()
        with pytest.raises(RuntimeError, match="synchroniz"):
            labels.sum().item()  # the instrument does see a wait
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert fast.compile_report().mode == {"off": "eager", "graph": "graph"}[mode]
