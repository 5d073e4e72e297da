"""Training of detectors: resuming to the bit, stopping, ranks, what is kept, refusals."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import detector_pair
import pytest
import torch
import yaml
from detection_files import write_coco, write_masks

from fastadv.cli import detect
from fastadv.detection import trainer
from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.plan import plan_detection
from fastadv.detection.saving import open_detector
from fastadv.detection.trainer import DetectorTrainer, train_detector
from fastadv.errors import CheckpointError, ConfigError, DataError, Preempted
from fastadv.models.checkpoint import state_hash
from fastadv.runs.launch import launch

TINY: dict[str, Any] = {
    "min_size": (64,), "max_size": 96, "width": 8, "sampled_boxes": 16, "proposals": 20,
    "masks": True, "batch_size": 2, "epochs": 2, "lr": 0.02, "workers": 0, "device": "cpu",
}  # fmt: skip
# What draws random numbers, or has a state of its own.
EVERYTHING = {"min_size": (64, 72), "augment": "ssd", "ema": 0.9, "precision": "bf16"}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(rectangles: Path, classifier: Path, tmp_path: Path) -> dict[str, Any]:
    paths = {"source": str(classifier), "data": str(rectangles)}
    return TINY | paths | {"out": str(tmp_path / "run")}


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == name]


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process within update number `steps`."""
    update = DetectorTrainer.update

    def signalled(self: DetectorTrainer, batch: Any) -> Any:
        losses = update(self, batch)
        if self.step == steps:
            signal.raise_signal(signal.SIGTERM)
        return losses

    monkeypatch.setattr(DetectorTrainer, "update", signalled)


def words(values: dict[str, Any]) -> list[str]:
    result = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        parts = value if isinstance(value, tuple) else [value]
        result += [flag] if value is True else [flag, *map(str, parts)]
    return result


@pytest.mark.parametrize("steps", [2, 3])
def test_a_stopped_run_goes_on_to_the_bit(
    steps: int, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped within the first epoch, and after its last update."""
    config = tiny | EVERYTHING
    whole = tmp_path / "whole"
    train_detector(DetectTrainConfig(**config | {"out": str(whole)}))
    with monkeypatch.context() as patch:
        stop_after(steps, patch)
        with pytest.raises(Preempted, match="SIGTERM: saved step"):
            train_detector(DetectTrainConfig(**config))
    run = Path(config["out"])
    torch.rand(7)  # the state of the generator is the run's
    train_detector(DetectTrainConfig(**config | {"resume": True}))
    assert [e["step"] for e in events(run, "preempted")] == [steps]
    one, other = (open_detector(folder).detector for folder in (whole, run))
    assert state_hash(one) == state_hash(other)
    states = [
        torch.load(folder / "checkpoints" / "last" / "state.pt", weights_only=True)
        for folder in (whole, run)
    ]
    for name, value in states[0]["weights"].items():
        assert torch.equal(states[1]["weights"][name], value)
    tested = [events(folder, "test")[-1] for folder in (whole, run)]
    assert tested[0]["box_ap"] == tested[1]["box_ap"]


def test_a_run_that_stops_while_it_judges_goes_on_there(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in a test between epochs and in the one at the end."""
    config = tiny | {"eval_every": 1}
    real = trainer.evaluate_detector

    def signalled(*args: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(*args, **options)

    run = Path(config["out"])
    for stopped, resume in ((3, False), (6, True)):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "evaluate_detector", signalled)
            with pytest.raises(Preempted, match=f"saved step {stopped}"):
                train_detector(DetectTrainConfig(**config | {"resume": resume}))
        if not resume:  # the test between epochs, and then the second epoch
            assert not events(run, "val")
            with monkeypatch.context() as patch:
                stop_after(4, patch)
                with pytest.raises(Preempted):
                    train_detector(DetectTrainConfig(**config | {"resume": True}))
            assert [e["step"] for e in events(run, "val")] == [3]
    assert not events(run, "test")
    train_detector(DetectTrainConfig(**config | {"resume": True}))
    assert [e["step"] for e in events(run, "test")] == [6]
    assert len(events(run, "val")) == 1


def test_the_command_stops_with_75_and_resumes(
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["train", *words(tiny)]
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert detect.main(argv) == 75
    assert "continue with --resume --out" in capsys.readouterr().err
    assert detect.main(argv) == 2
    assert "already holds a run; add --resume" in capsys.readouterr().err
    assert detect.main(["train", "--resume", "--out", tiny["out"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == tiny["out"]
    assert 0 <= found["metrics"]["mask_ap50"] <= 1
    # The configuration in the folder runs the same again.
    saved = yaml.safe_load((Path(tiny["out"]) / "config.yaml").read_text())
    assert saved["min_size"] == [64]
    other = [
        "train",
        "--config",
        f"{tiny['out']}/config.yaml",
        "--out",
        tiny["out"] + "2",
    ]
    assert detect.main([*other, "--profile", "1"]) == 0
    profile = json.loads((Path(tiny["out"] + "2") / "profile.json").read_text())
    assert sum(profile["shares"].values()) == pytest.approx(1)
    assert profile["shares"]["train"] > profile["shares"]["data"]
    one, two = (open_detector(tiny["out"] + end).detector for end in ("", "2"))
    assert state_hash(one) == state_hash(two)


def test_training_learns(tiny: dict[str, Any]) -> None:
    config = tiny | {"epochs": 6, "eval_every": 3, "optimizer": "adamw", "lr": 2e-3}
    config |= {"frozen_stages": 0, "frozen_norm": False}
    train_detector(DetectTrainConfig(**config))
    run = Path(config["out"])
    last = {e["epoch"]: e for e in events(run, "train")}
    assert last[5]["loss"] < last[0]["loss"]
    [between], [end] = events(run, "val"), events(run, "test")
    assert between["epoch"] == 3
    # Untrained heads find 3 % of the boxes by AP50.
    assert end["box_ap"] > between["box_ap"]
    assert end["box_ap50"] > 0.3
    assert end["mask_ap50"] > 0.1
    # Three updates an epoch: warm-up over those of the first, a tenth from update 12 on,
    # a hundredth from 16 on.
    rates = [last[epoch]["lr"] for epoch in range(6)]
    first = 2e-3 * (1e-3 / 3 + 2 / 3)
    assert rates == pytest.approx([first, 2e-3, 2e-3, 2e-3, 2e-4, 2e-5])


def test_two_ranks_share_a_batch(tiny: dict[str, Any]) -> None:
    assert detect.main(["train", *words(tiny | {"epochs": 1}), "--nproc", "2"]) == 0
    run = Path(tiny["out"])
    # Seven images in batches of one per rank, of which the last is padded.
    assert events(run, "train")[-1]["step"] == 4
    opened = open_detector(run)
    assert opened.facts.training["step"] == 4
    assert events(run, "test")


def test_two_ranks_equal_one(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same updates as one process makes of the same batches, but for rounding.

    Detectors average losses over the boxes that each rank draws, so it is so only where
    every image counts equally many; see `detector_pair`.
    """
    data = write_masks(tmp_path / "set", images=8, objects=1)
    helpers = str(Path(detector_pair.__file__).parent)
    paths = os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", paths)
    names = [str(tmp_path / "two"), str(classifier), str(data)]
    assert launch("detector_pair", 2, names) == 0
    names[0] = str(tmp_path / "one")
    alone = detector_pair.trainer(detector_pair.config(*names))
    before = {n: v.clone() for n, v in alone.detector.state_dict().items()}
    alone.fit()
    one, two = (
        open_detector(tmp_path / name).detector.state_dict() for name in ("one", "two")
    )
    moved = {n: (one[n] - value).abs().max() for n, value in before.items()}
    assert max(moved.values()) > 0.01
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_kept_describes_itself(tiny: dict[str, Any], tmp_path: Path) -> None:
    training = DetectorTrainer(
        DetectTrainConfig(**tiny | {"epochs": 1, "masks": False})
    )
    training.fit()
    run = Path(tiny["out"])
    opened = open_detector(run)
    facts = opened.facts
    assert (facts.arch, facts.classes, facts.masks) == (
        "resnet8_cifar",
        ["object"],
        False,
    )
    assert facts.source["name"] == "small"
    assert facts.training["epoch"] == 1
    image = torch.rand(3, 80, 96, generator=torch.Generator().manual_seed(0))
    training.detector.eval()
    with torch.no_grad():
        [expected], [found] = (d([image]) for d in (training.detector, opened.detector))
    assert torch.equal(found["boxes"], expected["boxes"])
    assert torch.equal(found["scores"], expected["scores"])
    with pytest.raises(CheckpointError, match="there is no detector in"):
        open_detector(tmp_path)
    with pytest.raises(CheckpointError, match="no detector of fastadv-detect"):
        open_detector(tiny["source"])
    damaged = tmp_path / "detector.safetensors"
    damaged.write_bytes(opened.file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        open_detector(damaged)


def test_a_plan_measures_and_writes_nothing(tiny: dict[str, Any]) -> None:
    found = plan_detection(DetectTrainConfig(**tiny | {"eval_every": 1}), (1, 8))
    assert not Path(tiny["out"]).exists()
    assert found.steps == 6
    assert found.trained_parameters < found.parameters
    assert found.parts["training"] == pytest.approx(6 * found.step_seconds)
    first, second = found.to_dict()["projection"]
    assert first["seconds"] == pytest.approx(sum(found.parts.values()))
    assert second["seconds"] < first["seconds"]
    assert "6 steps in all" in found.text()


def test_published_defaults() -> None:
    """Detectron2's 1x schedule, and what both libraries freeze."""
    config = DetectTrainConfig(source="x", data="y")
    assert (config.lr, config.momentum, config.weight_decay) == (0.02, 0.9, 1e-4)
    assert config.milestones == pytest.approx((60_000 / 90_000, 80_000 / 90_000))
    assert config.frozen == (1, True)
    assert DetectTrainConfig(source="x", data="y", batch_size=4).lr == 0.005
    assert DetectTrainConfig(source="x", data="y", optimizer="adamw").lr == 1e-4
    scratch = DetectTrainConfig(arch="resnet50", data="y")
    assert (scratch.scratch, scratch.frozen) == (True, (0, False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "neither of `source` and `arch`"),
        ({"arch": "resnet18"}, "both of `source` and `arch`"),
        ({"source": None, "arch": "resnet18", "frozen_stages": 1}, "would keep random"),
        ({"augment": "crop"}, "`augment`"),
        ({"batch_size": 0}, "`batch_size=0`"),
        ({"ema": 1.0}, "`ema=1.0`"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(
    changes: dict[str, Any], message: str, tiny: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectTrainConfig(**tiny | changes)


def test_a_run_is_not_resumed_on_another_set(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Preempted):
            train_detector(DetectTrainConfig(**tiny))
    tiny["resume"] = True
    other = write_masks(tmp_path / "other", images=10, seed=5)
    with pytest.raises(DataError, match="changed since the state was saved"):
        train_detector(DetectTrainConfig(**tiny | {"data": str(other)}))
    coco = write_coco(tmp_path / "coco")
    with pytest.raises(ConfigError, match="the run was begun on"):
        train_detector(DetectTrainConfig(**tiny | {"data": str(coco)}))
    with pytest.raises(ConfigError, match="lr"):
        train_detector(DetectTrainConfig(**tiny | {"lr": 0.5}))


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert detect.main([]) == 2
    assert detect.main(["--help"]) == 0
    assert "fastadv-detect COMMAND" in capsys.readouterr().out
    assert detect.main(["trian"]) == 2
    assert "perhaps you meant: train" in capsys.readouterr().err
    began = time.monotonic()
    with pytest.raises(SystemExit):
        detect.main(["train", "--help-all"])
    assert time.monotonic() - began < 30
    text = " ".join(capsys.readouterr().out.split())
    assert "FREEZE_AT=2" in text
    assert "trainable_backbone_layers=3" in text


@pytest.mark.parametrize("name", ["detect-published", "detect-short"])
def test_recipes_are_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / f"{name}.yaml"
    with pytest.raises(SystemExit):
        detect.main(["train", "--config", str(recipe), "--print-config"])
    values = yaml.safe_load(capsys.readouterr().out)
    plain = DetectTrainConfig(source="x", data="y")
    if name == "detect-published":
        same = ("lr", "epochs", "batch_size", "momentum", "weight_decay", "max_size")
        assert {n: values[n] for n in same} == {n: getattr(plain, n) for n in same}
        assert values["milestones"] == list(plain.milestones or ())
        assert values["min_size"] == [640, 672, 704, 736, 768, 800]
    else:
        assert (values["width"], values["epochs"]) == (64, 12)
