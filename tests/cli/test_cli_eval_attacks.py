"""fastadv-eval --attack: every attack by name, resuming after kill -9, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from command_line import Caller, image_folder
from small_runs import environment, script, tiny

from fastadv.attacks.autoattack import MinimalName
from fastadv.attacks.package import AttackName
from fastadv.evaluation.config import ATTACKS, MINIMAL
from fastadv.models import create_model, save_model
from fastadv.training import train

pytest.importorskip("pyautoattack", reason="make test installs it")

SMALL = "--norm linf --eps 10/255 --num-steps 8 --num-targets 2 --num-queries 20 "


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is mostly right on digits, and not at all robust."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "standard"
    train(tiny(out, eps=0, num_train=600, epochs=2))
    return out


def _words(run: Path, words: str) -> list[str]:
    common = ["--checkpoint", str(run), "--data", "digits", "--device", "cpu"]
    return [*common, *words.split()]


def _evaluated(call: Caller, run: Path, words: str) -> dict[str, Any]:
    result = call("eval", *_words(run, words + " --json"))
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def _timeless(found: dict[str, Any]) -> dict[str, Any]:
    """Without wall times."""
    stages = [{k: v for k, v in s.items() if k != "seconds"} for s in found["stages"]]
    return found | {"stages": stages}


def test_the_names_are_the_librarys() -> None:
    assert set(MINIMAL) == set(get_args(MinimalName))
    assert set(ATTACKS) == {"pgd", "autoattack", *get_args(AttackName), *MINIMAL}


@pytest.mark.parametrize("judge", ["fastadv", "package"])
@pytest.mark.parametrize(
    "attack", [name for name in ATTACKS if name not in ("pgd", *MINIMAL)]
)
def test_every_attack_by_name(call: Caller, run: Path, attack: str, judge: str) -> None:
    words = f"{SMALL} --num-images 60 --attack {attack} --judge {judge}"
    found = _evaluated(call, run, words)
    names = [stage["name"] for stage in found["stages"]]
    standard = ["apgd-ce", "apgd-t", "fab", "square"]
    assert names == (standard if attack == "autoattack" else [attack])
    shares = [found["clean_acc"], *(s["robust_acc"] for s in found["stages"])]
    assert shares == sorted(shares, reverse=True)
    assert found["robust_acc"] == shares[-1] < found["clean_acc"]
    attacked = [round(60 * share) for share in shares[:-1]]
    assert [s["attacked"] for s in found["stages"]] == attacked
    for stage in found["stages"]:
        low, high = stage["robust_ci"]
        assert low <= stage["robust_acc"] <= high
        assert stage["seconds"] >= 0
    assert (found["attack"], found["judge"]) == (attack, judge)
    assert found["checks"]["probabilities"] is False
    assert found["checks"]["train_mode"] is False


@pytest.mark.parametrize("attack", MINIMAL)
def test_attacks_that_minimise_the_norm(call: Caller, run: Path, attack: str) -> None:
    """They fool about as many within a radius as the attack that is made for it."""
    words = "--norm l2 --eps 0.3 --num-images 60 --num-steps 40 --attack"
    found, other = (
        _evaluated(call, run, f"{words} {name}") for name in (attack, "apgd-ce")
    )
    assert found["robust_acc"] < found["clean_acc"]
    assert abs(found["robust_acc"] - other["robust_acc"]) <= 0.15
    assert found["attack"] == attack


def test_ours_and_theirs_find_the_same(call: Caller, run: Path) -> None:
    words = "--norm l2 --eps 0.5 --num-steps 20 --num-queries 50 --num-targets 2 "
    words += "--num-images 100 --attack autoattack --judge "
    ours, theirs = (_evaluated(call, run, words + j) for j in ("fastadv", "package"))
    assert 0.1 < theirs["robust_acc"] < theirs["clean_acc"] - 0.1
    assert abs(ours["robust_acc"] - theirs["robust_acc"]) <= 2 / 100
    assert ours["clean_acc"] == theirs["clean_acc"]


@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-dlr", "apgd-t"])
def test_batch_size_changes_nothing(call: Caller, run: Path, attack: str) -> None:
    words = f"{SMALL} --num-images 90 --attack {attack} --batch-size "
    found = [_timeless(_evaluated(call, run, words + str(n))) for n in (7, 90)]
    assert found[0] == found[1]


def test_lines_for_people(call: Caller, run: Path) -> None:
    words = f"{SMALL} --num-images 30 --attack autoattack"
    result = call("eval", *_words(run, words))
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[1].startswith("  images: ")
    assert lines[2].startswith("  clean: ")
    for line, name in zip(
        lines[3:], ("apgd-ce", "apgd-t", "fab", "square"), strict=False
    ):
        assert line.startswith(f"  after {name} (")
        assert line.endswith("of 30")
    assert lines[7].startswith("  autoattack linf 10/255: ")
    assert "batches" in result.err


def test_warnings_for_people(call: Caller, run: Path, tmp_path: Path) -> None:
    """A saturated softmax: the cross-entropy has no gradient left."""
    from fastadv.models import load_model

    model = load_model(run)
    head = model.head
    head.weight.data *= 1e5
    head.bias.data *= 1e5
    path = tmp_path / "saturated.safetensors"
    metadata = {"resolution": 16, "config": {"augment": "none"}}
    save_model(model, path, metadata)
    words = f"{SMALL} --num-images 40 --attack apgd-ce"
    result = call("eval", *_words(path, words))
    assert "  warning: " in result.out
    assert "zero cross-entropy gradient" in result.out
    found = _evaluated(call, path, words)
    assert found["checks"]["zero_gradient_share"] > 0.5
    assert len(found["warnings"]) == 1
    again = _evaluated(call, path, words.replace("apgd-ce", "apgd-t"))
    assert again["robust_acc"] < found["robust_acc"] - 0.2


# ---- kill -9, and on ----

EVALUATION = (
    "--norm l2 --eps 0.5 --num-steps 10 --num-targets 2 --num-queries 30 "
    "--num-images 80 --batch-size 10 --attack autoattack --json "
)


def _batches(out: Path) -> list[int]:
    """Numbers of the batches whose verdicts are on disk, in the order they came."""
    try:
        text = (out / "log.jsonl").read_text()
    except FileNotFoundError:
        return []
    whole = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    events = [json.loads(line) for line in whole]
    return [event["number"] for event in events if event["event"] == "batch"]


def _killed(run: Path, out: Path, words: str, batches: int, delay: float) -> None:
    """Start an evaluation, and kill it once so many batches are on disk."""
    process = subprocess.Popen(
        [script("fastadv-eval"), *_words(run, words)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and len(_batches(out)) < batches:
            assert time.monotonic() < deadline, "no verdict within a minute"
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed"


def test_kill_and_resume_gives_the_same(
    call: Caller, run: Path, tmp_path: Path
) -> None:
    whole = _evaluated(call, run, EVALUATION)
    out = tmp_path / "eval"
    words = f"{EVALUATION} --out {out} "
    _killed(run, out, words, batches=1, delay=0.0)  # right after a verdict
    first = _batches(out)
    assert first == list(range(len(first)))
    _killed(run, out, words + "--resume", batches=len(first) + 1, delay=0.05)
    second = _batches(out)
    assert second[: len(first)] == first
    assert len(first) < len(second) < 8
    with open(out / "log.jsonl", "a") as file:
        file.write('{"event": "batch", "number": 7, "lab')  # torn in the middle
    resumed = _evaluated(call, run, words + "--resume")
    assert _timeless(resumed) == _timeless(whole)
    lines = (out / "log.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.endswith("}")]
    numbers = [event["number"] for event in events if event["event"] == "batch"]
    assert numbers == list(range(8))  # no batch was done twice
    again = _evaluated(call, run, words + "--resume")
    assert _timeless(again) == _timeless(whole)
    assert (
        again["stages"] == resumed["stages"]
    )  # nothing ran: the times are the old ones


def test_a_finished_or_other_evaluation_is_refused(
    call: Caller, run: Path, tmp_path: Path
) -> None:
    words = f"--norm l2 --eps 0.1 --num-steps 2 --num-images 20 --out {tmp_path / 'e'} "
    assert call("eval", *_words(run, words)).code == 0
    result = call("eval", *_words(run, words))
    assert result.code == 2
    assert "already holds an evaluation; add --resume to continue it" in result.error
    for change, said in (
        ("--seed 1", "seed: 0 -> 1"),
        ("--eps 0.2", "eps: 0.1 -> 0.2"),
        ("--attack apgd-ce", "attack: pgd -> apgd-ce"),
        ("--batch-size 7", "batch_size: 64 -> 7"),
        ("--num-images 19", "data_fingerprint: "),
    ):
        result = call("eval", *_words(run, f"{words} --resume {change}"))
        assert result.code == 2
        assert "--resume would change what" in result.error
        assert said in result.error
    result = call("eval", *_words(run, "--eps 0.1 --norm l2 --resume"))
    assert result.code == 2
    assert "--resume needs --out" in result.error


# ---- refusals ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--attack apgdt", "unknown --attack 'apgdt'; perhaps you meant: apgd-t"),
        ("--attack auto-attack", "perhaps you meant: autoattack"),
        ("--attack pgd --judge package", "--judge package has no pgd"),
        ("--attack deepfool --judge package", "--judge package has no deepfool"),
        ("--attack fmn --num-restarts 2", "--num-restarts 2: fmn draws nothing"),
        ("--attack ddn --norm linf --eps 0.1", "--attack ddn minimises l2"),
        (
            "--attack fab --step-size 0.1",
            "--step-size and --objective belong to pgd, fab",
        ),
        ("--attack apgd-t --objective margin", "belong to pgd, apgd-t chooses its own"),
        ("--num-queries 0", "--num-queries 0 cannot work; it must be at least 1"),
        ("--num-targets 0", "--num-targets 0 cannot work; it must be at least 1"),
    ],
)
def test_words_that_make_no_sense(
    call: Caller, run: Path, words: str, said: str
) -> None:
    result = call("eval", *_words(run, words))
    assert result.code == 2
    assert said in result.error


def test_the_package_is_named_where_it_is_missing(
    call: Caller, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    for attack in ("autoattack", "square"):
        result = call("eval", *_words(run, f"{SMALL} --attack {attack}"))
        assert result.code == 2
        assert "pip install 'fastadv[autoattack]'" in result.error
    found = _evaluated(call, run, f"{SMALL} --num-images 20 --attack apgd-t")
    assert found["robust_acc"] < found["clean_acc"]


def test_too_few_classes(
    call: Caller, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(create_model("resnet8_cifar", 2, seed=0), path)
    data = image_folder(tmp_path / "data")
    common = ["--checkpoint", path, "--data", data, "--resolution", 16, *SMALL.split()]
    for attack, name, least in (
        ("apgd-t", "apgd-t", 4),
        ("apgd-dlr", "apgd-dlr", 3),
    ):
        result = call("eval", *common, "--attack", attack)
        assert result.code == 2
        assert f"{name} needs at least {least} classes, the model has 2" in result.error
    for attack in ("apgd-ce", "fab", "square"):
        result = call("eval", *common, "--attack", attack, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["stages"][0]["name"] == attack
    result = call("eval", *common, "--attack", "autoattack", "--json")
    stages = [stage["name"] for stage in json.loads(result.out)["stages"]]
    assert stages == ["apgd-ce", "fab", "square"]
    assert "apgd-t needs at least 4 classes, the model has 2" in caplog.text
    assert "it is left out" in caplog.text


def test_several_radii_are_a_curve(call: Caller, run: Path, tmp_path: Path) -> None:
    """A row for each radius, with its own verdicts; the smallest is as if alone."""
    from fastadv.reporting.evaluation import evaluation_sections
    from fastadv.results.table import ResultsTable

    words = "--norm linf --num-steps 4 --num-images 60 --results "
    table = tmp_path / "results"
    grid = "--radii 4/255 1/255 2/255"
    found = _evaluated(call, run, f"{grid} {words}{table}")
    curve = [stage["robust_acc"] for stage in found["stages"]]
    assert found["clean_acc"] >= curve[0] > curve[-1]
    rows = ResultsTable(table).rows()
    attacked = [row for row in rows if row.attack is not None]
    assert [row.attack.eps for row in attacked] == [1 / 255, 2 / 255, 4 / 255]
    assert [row.value / 100 for row in attacked] == pytest.approx(curve)
    for row in attacked:
        held = ResultsTable(table).arrays(row)["fell_to"] > 0
        assert held.mean() * 100 == pytest.approx(row.value)
    (section,) = evaluation_sections(rows, {})
    assert len(section.figures) == 2
    assert "every larger one" in section.figures[1][1]
    alone = tmp_path / "alone"
    _evaluated(call, run, f"--eps 1/255 {words}{alone}")
    single = ResultsTable(alone).rows()[-1]
    assert single.identity == attacked[0].identity
    assert single.value == attacked[0].value


def test_a_second_opinion_doubts_no_honest_network(call: Caller, run: Path) -> None:
    """A weak attack is completed by the margin before BPDA may speak of masking."""
    words = "--norm linf --eps 2/255 --num-steps 3 --num-images 60 --second-opinion"
    found = _evaluated(call, run, words)
    names = [stage["name"] for stage in found["stages"]]
    assert names == ["pgd", "pgd-margin", "bpda"]
    assert not any("black-box" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--radii 1/255 --eps 2/255", "--radii"),
        ("--radii 1/255 1/255", "different"),
        ("--radii 0 1/255", "above 0"),
        ("--radii 1/255 2/255 --step-size 1/255", "--step-size"),
        ("--radii 1/255 x", "x"),
    ],
)
def test_radii_that_cannot_be_meant(
    call: Caller, run: Path, words: str, error: str
) -> None:
    result = call("eval", *_words(run, f"--norm linf {words}"))
    assert result.code != 0
    assert error in result.err
