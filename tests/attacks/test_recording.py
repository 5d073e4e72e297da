"""Giving up a recording: before a capture that cannot work, and after one that failed.

What a failed capture leaves in torch shows on a GPU alone, in a process of its own, which
it might spoil. On the CPU stand-ins of torch's functions show what is called, in order.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastadv.attacks import recording
from fastadv.attacks.recording import waits_counted

WAIT = "called a synchronizing CUDA operation (Triggered internally)"


def test_only_the_own_waits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str | int] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def warn() -> None:
        warnings.warn(WAIT, UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as shown, waits_counted() as waits:
        other = threading.Thread(target=warn)
        other.start()
        other.join()
        assert waits == []
        warnings.warn("another matter", UserWarning, stacklevel=1)
        warn()
        warn()  # the same once more: it is not told once only
    assert waits == [WAIT] * 2
    assert [str(each.message) for each in shown] == ["another matter"]
    assert modes == ["warn", 0]


class _Fake:
    """Stands in for torch.cuda while a capture fails, and notes what is called."""

    def __init__(self, ends_itself: bool) -> None:
        self.ends_itself, self.said = ends_itself, list[str]()
        self.users = 1 if ends_itself else 2
        self.id = (0, 7)

    def use_count(self) -> int:
        return self.users

    def end(self, device: int, pool: tuple[int, int]) -> None:
        self.said.append(f"end {device} {pool}")
        if self.ends_itself:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def release(self, device: int, pool: tuple[int, int]) -> None:
        self.said.append(f"release {device} {pool}")
        self.users -= 1

    @contextlib.contextmanager
    def graph(self, _graph: Any, **options: Any) -> Iterator[None]:
        own = options.pop("pool", None)
        assert options.pop("stream").device.index == 1
        self.said.append(f"capture into {own}")
        yield
        if own:
            raise RuntimeError("operation failed due to a previous error")
        self.said.append("ended")


@pytest.mark.parametrize("ends_itself", [False, True], ids=["torch 2.11", "later"])
def test_a_failed_capture_is_ended_released_and_told(
    ends_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = _Fake(ends_itself)
    graph = SimpleNamespace(reset=lambda: fake.said.append("reset"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "MemPool", lambda: fake)
    monkeypatch.setattr(torch.cuda, "graph", fake.graph)
    for name, act in (
        ("_cuda_endAllocateToPool", fake.end),
        ("_cuda_releasePool", fake.release),
    ):
        monkeypatch.setattr(torch._C, name, act, raising=False)
    stream: Any = SimpleNamespace(device=torch.device("cuda", 1))
    with pytest.raises(RuntimeError, match="due to a previous error"):
        recording._captured(lambda: (), stream)
    released = [] if ends_itself else ["release 1 (0, 7)"]
    assert fake.said == [
        "capture into (0, 7)",
        "reset",
        "end 1 (0, 7)",
        *released,
        "capture into None",  # an empty one, which ends that of the generator
        "ended",
    ]


_CHILD = """
import sys
import torch
from attack_nets import SmallNet, batch, randomise_bn, small_model
from fastadv.attacks import PGD, ThreatModel, compiled, recording
from fastadv.models.view import AttackView


class Reading(SmallNet):
    def forward(self, z):
        if z.sum().item() > 1e9:  # waits for the device: not to be captured
            return z.flatten(1)[:, :10]
        return super().forward(z)


net = Reading()
randomise_bn(net)
view = AttackView(small_model(net=net).to("cuda"))
images, labels = batch(6)[0].to("cuda"), torch.zeros(6, dtype=torch.int64, device="cuda")


def attack(mode):
    return PGD(ThreatModel("l2", 1.0), 3, compile=mode)


expected = attack("off").perturb(view, images, labels)[0]
if sys.argv[1] == "captured":  # as where torch does not notice that a call waits
    recording.waits_counted = lambda: recording.contextlib.nullcontext([])
before = torch.cuda.memory_reserved()
fast, stream = attack("auto"), torch.cuda.current_stream()
for _ in range(3):
    x_adv = fast.perturb(view, images, labels)[0]
    assert (x_adv - expected).abs().max() < 1e-4
    assert torch.cuda.current_stream() == stream
report = fast.compile_report()
assert (report.mode, report.captured) == ("eager", 0), report
waits = "waits for the device" in report.reason
assert waits == (sys.argv[1] == "refused"), report
# The process is whole: memory is freed, dropout draws, and the next graph is recorded.
torch.cuda.empty_cache()
assert torch.cuda.memory_reserved() <= before + 2**21, torch.cuda.memory_summary()
torch.nn.functional.dropout(torch.ones(64, device="cuda"), 0.5, True).sum().item()
plain = AttackView(small_model().to("cuda"))
fast = attack("auto")
for _ in range(3):
    x_adv = fast.perturb(plain, images, labels)[0]
assert (x_adv - attack("off").perturb(plain, images, labels)[0]).abs().max() < 1e-4
assert fast.compile_report().mode == "graph", fast.compile_report()
side = torch.cuda.Stream()
with torch.cuda.stream(side):
    held = torch.empty(2**20, device="cuda")
held.record_stream(torch.cuda.current_stream())
del held
torch.cuda.synchronize()
torch.cuda.empty_cache()
print("whole")
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", ["refused", "captured"])
def test_a_failed_recording_leaves_the_process_whole(how: str) -> None:
    helpers = Path(__file__).resolve().parents[1] / "helpers"
    program = f"import sys; sys.path.insert(0, {str(helpers)!r})\n" + _CHILD
    done = subprocess.run(
        [sys.executable, "-c", program, how],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout.endswith("whole\n"), done.stdout + done.stderr
