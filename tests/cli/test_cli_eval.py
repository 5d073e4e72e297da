"""fastadv-eval and fastadv-doctor: what they print is what is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Caller
from small_runs import DEFAULT_BACKEND, tiny

from fastadv.cli.doctor import examine
from fastadv.data import open_dataset
from fastadv.files import file_sha256
from fastadv.kernels import BACKENDS, _cpp, use_backend
from fastadv.models import create_model, load_model, save_model
from fastadv.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is mostly right on digits, and not at all robust."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "standard"
    train(tiny(out, eps=0, num_train=600, epochs=2))
    return out


def _evaluated(call: Caller, run: Path, words: str) -> dict[str, Any]:
    common = ["--checkpoint", run, "--data", "digits", "--device", "cpu", "--json"]
    result = call("eval", *common, *words.split())
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_clean_accuracy_is_that_of_the_model(call: Caller, run: Path) -> None:
    found = _evaluated(call, run, "")
    test = open_dataset("digits").test
    images = torch.stack([torch.from_numpy(test.load(i)) for i in range(len(test))])
    small = images.permute(0, 3, 1, 2) / 255
    assert found["resolution"] == 16  # as it was trained; digits are 8 px wide
    grown = torch.nn.functional.interpolate(small, size=16, mode="bilinear")
    predicted = load_model(run)(grown).argmax(1).numpy()
    expected = (predicted == test.labels).mean()
    assert found["clean_acc"] == pytest.approx(expected, abs=0.01)  # other resampling
    assert found["clean_acc"] > 0.7
    assert found["n"] == 500
    low, high = found["clean_ci"]
    assert low < found["clean_acc"] < high
    file = run / "checkpoints" / "best" / "model.safetensors"
    assert found["checkpoint_sha256"] == file_sha256(file)
    assert found["source_hash"] == found["checkpoint_sha256"]  # the file says it all
    assert "robust_acc" not in found  # trained without attack, evaluated without one


def test_attacks_only_take_away(call: Caller, run: Path) -> None:
    words = "--norm l2 --num-images 200 --num-steps 5 --eps "
    shares = [_evaluated(call, run, words + eps) for eps in ("0.1", "0.3", "1.0")]
    robust = [found["robust_acc"] for found in shares]
    assert all(found["robust_acc"] <= found["clean_acc"] for found in shares)
    assert robust[0] > robust[1] > robust[2]
    assert len({found["clean_acc"] for found in shares}) == 1
    assert shares[0]["n"] == 200
    assert shares[0]["step_size"] == pytest.approx(2.5 * 0.1 / 5)


def test_restarts_only_take_away(call: Caller, run: Path) -> None:
    # Steps of no length: noise alone, of which six draws find far more than one.
    words = (
        "--norm linf --eps 96/255 --step-size 0 --num-steps 1 --num-images 200 "
        "--num-restarts "
    )
    once, twice, often = (_evaluated(call, run, words + str(n)) for n in (1, 2, 6))
    assert once["robust_acc"] >= twice["robust_acc"] >= often["robust_acc"]
    assert once["robust_acc"] > often["robust_acc"]
    assert (often["num_restarts"], often["norm"]) == (6, "linf")


def test_batch_size_changes_nothing(call: Caller, run: Path) -> None:
    # Noise alone: the random starts, numbered through the set, decide.
    words = "--norm linf --eps 96/255 --step-size 0 --num-steps 1 --batch-size "
    found = [_evaluated(call, run, words + str(size)) for size in (7, 64, 500)]
    for result in found:
        del result["stages"]  # has wall times
    assert found[0] == found[1] == found[2]
    other = _evaluated(call, run, words + "64 --seed 1")
    assert other["robust_acc"] != found[0]["robust_acc"]  # other starts


def test_a_zero_step_goes_nowhere(call: Caller, run: Path) -> None:
    """Given is given: 0 does not mean "the default"."""
    words = "--norm l2 --eps 1.0 --num-images 50 --num-steps 2 "
    strong = _evaluated(call, run, words)
    still = _evaluated(call, run, words + "--step-size 0")
    assert still["step_size"] == 0
    assert still["robust_acc"] > strong["robust_acc"]


def test_lines_for_people(call: Caller, run: Path) -> None:
    words = "--data digits --eps 4/255 --norm inf --num-images 50 --num-steps 2"
    result = call("eval", "--checkpoint", run, *words.split())
    assert result.code == 0
    lines = result.out.splitlines()
    assert "(resnet8_cifar) on digits" in lines[0]
    assert lines[1].startswith("  images: shorter side resized to 16 px")
    assert lines[2].startswith("  clean: ")
    assert "PGD-2 linf 4/255, 1 restart(s), cross_entropy: " in lines[3]
    assert lines[3].endswith(" of 50")


def test_the_threat_of_training_is_the_default(call: Caller, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", num_train=40, epochs=1, norm="linf", eps="2/255"))
    words = "--num-images 20 --num-steps 1 "
    found = _evaluated(call, tmp_path / "run", words)
    assert (found["norm"], found["eps"]) == ("linf", 2 / 255)
    refused = call(
        "eval", "--checkpoint", tmp_path / "run", "--data", "digits", "--norm", "l2"
    )
    assert refused.code == 2
    assert "--norm l2 needs --eps, e.g. 0.5 or 4/255" in refused.error


def test_another_number_of_classes(call: Caller, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(create_model("resnet8_cifar", 7, seed=0), path)
    result = call("eval", "--checkpoint", path, "--data", "digits")
    assert result.code == 2
    assert "has 7 classes, digits has 10; evaluate on the data" in result.error


def test_a_radius_in_other_units(call: Caller, run: Path) -> None:
    words = ["--checkpoint", run, "--data", "digits"]
    result = call("eval", *words, "--norm", "linf", "--eps", "8")
    assert result.code == 2
    assert "8 of 255 is 8/255 (0.0314)" in result.error
    result = call("eval", *words, "--norm", "l2", "--eps", "128")
    assert result.code == 2
    assert "sqrt(3 * 16^2) = 27.7" in result.error


def test_an_unknown_backend(call: Caller, run: Path) -> None:
    words = ["--checkpoint", run, "--data", "digits", "--backend", "ccp"]
    result = call("eval", *words)
    assert result.code == 1
    assert "unknown kernel backend 'ccp'; perhaps you meant: cpp" in result.error


# ---- doctor ----


def test_doctor_says_what_runs(call: Caller) -> None:
    result = call("doctor", "--json")
    assert result.code == 0
    report = json.loads(result.out)
    assert report["runs"]["cpu"] == DEFAULT_BACKEND
    assert list(report["backends"]) == list(BACKENDS)
    assert report["environment"]["torch"] == torch.__version__.split("+")[0]
    for name, info in report["backends"].items():
        assert info["declines"] == BACKENDS[name].unavailable_reason()
    text = call("doctor").out
    assert f"  cpu{'':17} {DEFAULT_BACKEND}" in text
    assert f"  torch{'':15} " in text


def test_doctor_names_a_forced_backend(
    call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTADV_BACKEND", "reference")
    text = call("doctor").out
    assert "forced by FASTADV_BACKEND: reference" in text
    assert f"  cpu{'':17} reference" in text
    monkeypatch.setenv("FASTADV_BACKEND", "refrence")
    refused = call("doctor")
    assert refused.code == 1
    assert "perhaps you meant: reference" in refused.error


def test_doctor_without_the_native_library(
    call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_cpp, "LIBRARY", tmp_path / "fastadv_cpu.so")
    _cpp._load.cache_clear()
    try:
        report = examine()
        text = call("doctor").out
        with use_backend("cpp"):
            forced = examine()["runs"]["cpu"]
    finally:
        _cpp._load.cache_clear()
    assert report["runs"]["cpu"] == "numba"
    assert forced.startswith("nothing: no backend can run pgd_step(")
    assert "cpp: fastadv_cpu.so was not built" in forced
    assert "fastadv_cpu.so was not built" in report["backends"]["cpp"]["declines"]
    assert "cpp                  no: fastadv_cpu.so was not built (no C++" in text
    assert f"  cpu{'':17} numba" in text


def test_doctor_shows_a_library_that_does_not_load(
    call: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "fastadv_cpu.so"
    broken.write_bytes(b"\x7fELF not really")
    monkeypatch.setattr(_cpp, "LIBRARY", broken)
    _cpp._load.cache_clear()
    try:
        result = call("doctor")
    finally:
        _cpp._load.cache_clear()
    assert result.code == 0
    assert "no: fastadv_cpu.so does not load" in result.out
