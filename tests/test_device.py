"""Float32 on a GPU: TF32 only where it was not excluded, and back as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from fastadv.attacks import PGD
from fastadv.device import autotuned, exact_float32, float32_precision
from fastadv.environment import commit
from fastadv.evaluation.judging import evaluate
from fastadv.threat import ThreatModel

CUDNN, PRODUCTS = torch.backends.cudnn, torch.backends.cuda.matmul


def switches() -> tuple[str, ...]:
    # Reading the older one also proves that it does not contradict the newer ones.
    older = str(CUDNN.allow_tf32)
    return (CUDNN.conv.fp32_precision, PRODUCTS.fp32_precision, older)


@pytest.mark.parametrize("products", ["none", "tf32", "ieee"])
def test_tf32_is_off_within_and_as_before_after(
    products: str, request: pytest.FixtureRequest
) -> None:
    usual = PRODUCTS.fp32_precision
    request.addfinalizer(lambda: setattr(PRODUCTS, "fp32_precision", usual))
    PRODUCTS.fp32_precision = products
    before = switches()
    with exact_float32():
        assert float32_precision() == "ieee"
        assert "tf32" not in switches()
        with exact_float32():
            pass
        assert "tf32" not in switches()
    assert switches() == before
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert switches() == before
    assert float32_precision() == "tf32"  # what torch does by default


SEEN: set[str] = set()


class _Told(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.add(float32_precision())  # of copies, too
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("before", [False, True])
def test_autotuning_is_on_within_where_wanted(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CUDNN, "benchmark", before)
    for on in (False, True):
        with autotuned(on):
            assert (on or before) == CUDNN.benchmark
        assert before == CUDNN.benchmark


def test_networks_are_judged_without_tf32() -> None:
    told = _Told().eval()
    # A hook keeps torch.fx from tracing it, so that the attack calls it, too.
    told.register_forward_hook(lambda *_: None)
    attack = PGD.judge(ThreatModel("linf", 0.1), 2)
    seen: list[tuple[Tensor, Tensor]] = [
        (torch.rand(3, 3, 2, 2), torch.zeros(3, dtype=torch.int64))
    ]
    SEEN.clear()
    evaluate(told, seen, attack)
    assert {"ieee"} == SEEN
    attack.perturb(told, *seen[0])
    assert {"ieee", "tf32"} == SEEN


def test_a_checkout_without_history_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_COMMIT", "0123456789ab+")
    assert commit() == "0123456789ab+"


_WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tyro", "docstring_parser", "typeguard"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import fastadv
from fastadv.analysis import running
from fastadv.detection import trainer
from fastadv.evaluation import source
from fastadv.training import TrainConfig, Trainer
from fastadv.transfer import experiment, sweep
assert TrainConfig(data="synthetic", out="o", eps="8/255", norm="linf").epochs > 0
assert "tyro" not in sys.modules
"""


def test_libraries_need_no_reader_of_flags() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
