"""The examples run with the libraries that they are for."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports an example by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return importlib.import_module


def test_the_plain_loop_learns_to_withstand(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("plain_loop")
    clean, robust = module.main(epochs=2)
    assert clean > 0.8
    assert 0.4 < robust < clean
    monkeypatch.setattr(module, "Adversary", lambda attack: lambda model, x, y: x)
    standard, broken = module.main(epochs=2)  # the same loop without the step
    assert standard > 0.8
    assert broken < robust - 0.1


def test_lightning(example: Any) -> None:
    """Also without the name of the network: the LightningModule itself is attacked then."""
    pytest.importorskip("lightning")
    main = example("lightning_callback").main
    found = main(epochs=2)
    assert found["val_acc"] > 0.7
    assert 0.2 < found["val_robust_acc"] < found["val_acc"]
    live = main(epochs=2, network=None)
    assert live["val_robust_acc"] == pytest.approx(found["val_robust_acc"], abs=0.05)


def test_lightning_refuses_what_cannot_work(example: Any) -> None:
    pytest.importorskip("lightning")
    from fastadv.errors import ConfigError
    from fastadv.loops.lightning import replace_images

    with pytest.raises(ConfigError, match="`network=backbone` is no network of Digits"):
        example("lightning_callback").main(epochs=1, network="backbone")
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(TypeError, match="a batch is a tuple, which cannot be changed"):
        replace_images((images, images), images)
    for batch in ([images, 0], {"image": images, "label": torch.zeros(2)}):
        replace_images(batch, images + 1)
        assert (
            next(iter(batch.values() if isinstance(batch, dict) else batch)).eq(1).all()
        )


@pytest.mark.parametrize("mixed_precision", [None, "bf16"])
def test_accelerate(example: Any, mixed_precision: str | None) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    clean, robust = example("accelerate_loop").main(3, mixed_precision=mixed_precision)
    assert clean > 0.8
    assert 0.35 < robust < clean
    accelerate.state.AcceleratorState._reset_state(True)


def test_the_trainer_of_transformers(example: Any) -> None:
    pytest.importorskip("transformers")
    clean, robust = example("huggingface_trainer").main(epochs=5)
    assert clean > 0.25
    assert 0.15 < robust < clean


def test_timm(example: Any) -> None:
    pytest.importorskip("timm")
    words = ["--epochs", "3", "--images", "600"]
    clean, robust = example("timm_script").main(words)
    assert clean > 0.15
    assert robust <= clean


def test_two_ranks() -> None:
    """In processes of their own, started as the example says."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-port", "0", "--standalone", str(EXAMPLES / "distributed_loop.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"loss ([\d.]+) -> ([\d.]+) on 2 ranks", done.stdout)
    assert found, done.stdout
    assert float(found[2]) < 0.7 * float(found[1])


def test_every_example_is_tried() -> None:
    own = (f"tests/cli/test_cli_own_{what}.py" for what in ("attacks", "names"))
    tests = (Path(__file__), *(ROOT / each for each in own))
    tried = "".join(path.read_text() for path in tests)
    for path in EXAMPLES.glob("*.py"):
        assert path.stem in tried or path.stem == "digits", path


def test_a_method_of_ones_own(example: Any) -> None:
    """It is the weighted mean of what its two halves alone begin with, and it learns."""
    main = example("own_method").main
    losses = main(epochs=2)
    assert losses[-1] < 0.7 * losses[0]
    clean, adversarial = (main(epochs=1, share=share)[0] for share in (0.0, 1.0))
    assert clean < adversarial
    assert losses[0] == pytest.approx((clean + adversarial) / 2, rel=1e-3)
