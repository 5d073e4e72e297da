"""fastadv-eval with losses and attacks of one's own: the worked examples, and refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Caller, image_folder

from fastadv.attacks import PGD, Objective, ThreatModel, make_attack
from fastadv.errors import ConfigError
from fastadv.evaluation.config import ATTACKS, OBJECTIVES, EvaluationConfig
from fastadv.evaluation.source import evaluate_checkpoint
from fastadv.extensions import load_reference
from fastadv.models import create_model, save_model
from fastadv.results import ResultsTable

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LOSS, ATTACK = EXAMPLES / "own_loss.py", EXAMPLES / "own_attack.py"


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that evaluate an untrained network on two classes of images."""
    folder = tmp_path_factory.mktemp("own")
    save_model(create_model("resnet8_cifar", 2, seed=0), folder / "m.safetensors")
    data = image_folder(folder / "data")
    return [
        *("--checkpoint", str(folder / "m.safetensors"), "--data", str(data)),
        *("--resolution", "16", "--norm", "linf", "--eps", "8/255", "--num-steps", "3"),
        *("--device", "cpu"),
    ]


def _evaluated(call: Caller, *words: str) -> dict[str, Any]:
    result = call("eval", *words, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_a_loss_of_ones_own(call: Caller, common: list[str]) -> None:
    name = f"{LOSS}:hinge"
    found = _evaluated(call, *common, "--objective", name)
    assert found["objective"] == name
    margin = _evaluated(call, *common, "--objective", "margin")
    assert found["robust_acc"] == margin["robust_acc"]  # the same for two classes
    rows = ResultsTable("results").rows()
    assert name in {row.attack.objective for row in rows if row.attack}


def test_an_attack_of_ones_own(call: Caller, common: list[str]) -> None:
    name = f"{ATTACK}:Noise"
    found = _evaluated(call, *common, "--attack", name, "--num-restarts", "5")
    assert found["attack"] == name
    assert found["num_restarts"] == 5
    assert [stage["name"] for stage in found["stages"]] == [name]
    strong = _evaluated(call, *common)
    assert strong["robust_acc"] <= found["robust_acc"] <= found["clean_acc"]
    shown = call("eval", *common, "--attack", name)
    assert f"{name} linf 8/255" in shown.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--objective hing", "unknown --objective 'hing'; known: cross_entropy"),
        ("--objective targeted", "unknown --objective 'targeted'"),
        ("--objective no_such:loss", "there is no module 'no_such'"),
        (f"--objective {LOSS}:hing", "unknown name 'hing'; perhaps you meant: hinge"),
        (f"--objective {LOSS}:attack", "cannot be called as"),
        (f"--objective {LOSS}:targeted_hinge", "is targeted, and evaluate gives"),
        ("--attack nois", "unknown --attack 'nois'"),
        (f"--attack {ATTACK}:Nois", "unknown name 'Nois'; perhaps you meant: Noise"),
        (f"--attack {LOSS}:hinge", "hinge"),
        (f"--attack {ATTACK}:SingleAttack", "SingleAttack"),
        (f"--attack {ATTACK}:Noise --judge package", "--judge package has no"),
        (f"--attack {ATTACK}:Noise --step-size 0.1", "belong to pgd"),
    ],
)
def test_refusals(call: Caller, common: list[str], words: str, said: str) -> None:
    result = call("eval", *common, *words.split())
    assert result.code in (1, 2)
    assert said in result.error


def test_attacks_by_name_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    threat = ThreatModel("l2", 0.5)
    monkeypatch.setitem(sys.modules, "mine_of_test", mine := type(sys)("mine_of_test"))
    mine.made = PGD.judge(threat, 3)  # type: ignore[attr-defined]
    mine.make = lambda threat, num_steps: PGD(threat, num_steps)  # type: ignore[attr-defined]
    mine.number = 3  # type: ignore[attr-defined]
    mine.nothing = lambda threat: None  # type: ignore[attr-defined]
    assert make_attack("mine_of_test:made", threat).describe()["num_steps"] == 3
    assert make_attack("mine_of_test:make", threat).describe()["num_steps"] == 100
    assert make_attack("mine_of_test:make", threat).names == ("mine_of_test:make",)
    with pytest.raises(ConfigError, match="is int; expected an attack, or a function"):
        make_attack("mine_of_test:number", threat)
    with pytest.raises(ConfigError, match="made NoneType, which is no attack"):
        make_attack("mine_of_test:nothing", threat)
    with pytest.raises(ValueError, match="unknown attack 'aa'"):
        make_attack("aa", threat)


def test_a_loss_and_an_attack_as_objects(call: Caller, common: list[str]) -> None:
    """In Python, `EvaluationConfig` takes them as they are; the numbers are the same."""
    words = dict(zip(common[::2], common[1::2], strict=True))
    base: dict[str, Any] = {
        "checkpoint": words["--checkpoint"], "data": words["--data"], "resolution": 16,
        "norm": "linf", "eps": 8 / 255, "num_steps": 3, "device": "cpu",
    }  # fmt: skip
    loss, attack = f"{LOSS}:hinge", f"{ATTACK}:Noise"
    for more, flags in (
        ({"objective": load_reference(loss, "loss")}, ["--objective", loss]),
        ({"attack": load_reference(attack, "attack")}, ["--attack", attack]),
    ):
        found = evaluate_checkpoint(EvaluationConfig(**base | more))
        named = _evaluated(call, *common, *flags)
        assert found.result["robust_acc"] == named["robust_acc"]
        assert found.rows[1].attack is not None
    with pytest.raises(ConfigError, match="'margin' is built in; give the Objective"):
        EvaluationConfig(**base, objective=Objective("margin", lambda x, y: x[:, 0]))


def test_the_help_names_them(call: Caller) -> None:
    text = call("eval", "--help").out
    assert "MODULE:NAME" in text
    for name in (*ATTACKS, *OBJECTIVES):
        assert name in text
