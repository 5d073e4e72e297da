"""`fastadv-detect eval`, and training on attacked images, on a small set."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from detection_files import voc_object, write_coco, write_voc_image

from fastadv.cli import detect
from fastadv.detection.attack import DetectorAttack
from fastadv.detection.attack_config import LossChoice
from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.eval_config import DetectEvalConfig
from fastadv.detection.evaluating import evaluate_detector_file
from fastadv.detection.opening import open_detection
from fastadv.detection.saving import open_detector
from fastadv.detection.trainer import DetectorTrainer, train_detector
from fastadv.detection.view import LOSSES
from fastadv.errors import ConfigError, Preempted
from fastadv.models.checkpoint import state_hash
from fastadv.results.detection_settings import DetectionSetting, TrainingAttack
from fastadv.results.table import ResultsTable

TINY: dict[str, Any] = {
    "min_size": (64,), "max_size": 96, "width": 8, "sampled_boxes": 16, "proposals": 20,
    "masks": True, "batch_size": 4, "epochs": 1, "lr": 0.02, "workers": 0, "device": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def attacked_run(
    rectangles: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A detector that was trained on attacked images."""
    out = tmp_path_factory.mktemp("attacked") / "run"
    paths = {"source": str(classifier), "data": str(rectangles), "out": str(out)}
    attack = {"eps": 4 / 255, "num_steps": 1, "attack_loss": "all", "split_seed": 3}
    train_detector(DetectTrainConfig(**TINY | paths | attack))
    return out


def test_names_of_losses_are_those_of_the_view() -> None:
    assert get_args(LossChoice) == tuple(LOSSES)


def test_training_on_attacked_images_resumes_to_the_bit_and_differs(
    attacked_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = open_detector(attacked_run).facts.training
    known = {name: trained[name] for name in ("source", "data", "split_seed")}
    config = DetectTrainConfig(
        **TINY | known | {"out": str(tmp_path / "run")},
        eps=4 / 255,
        num_steps=1,
        attack_loss="all",
    )
    update = DetectorTrainer.update

    def stopped(self: DetectorTrainer, batch: Any) -> Any:
        losses = update(self, batch)
        if self.step == 1:
            signal.raise_signal(signal.SIGTERM)
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(DetectorTrainer, "update", stopped)
        with pytest.raises(Preempted):
            train_detector(config)
    train_detector(replace(config, resume=True))
    plain = replace(
        config, out=str(tmp_path / "plain"), eps=0.0, num_steps=None, attack_loss="both"
    )
    train_detector(plain)
    whole, resumed, other = (
        state_hash(open_detector(folder).detector)
        for folder in (attacked_run, config.out_path, plain.out_path)
    )
    assert whole == resumed != other


def test_the_final_test_is_in_the_table_of_the_run(attacked_run: Path) -> None:
    table = ResultsTable(attacked_run / "results")
    rows = {row.metric: row for row in table.rows()}
    lines = (attacked_run / "log.jsonl").read_text().splitlines()
    [tested] = [e for e in map(json.loads, lines) if e["event"] == "test"]
    for metric in ("box_ap", "box_ap50", "mask_ap"):
        row = rows[metric]
        assert row.value == pytest.approx(100 * tested[metric])
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.high
    assert rows["box_ap"].source.given == str(attacked_run)
    assert table.arrays(rows["box_ap"])["image_ids"].shape == (3,)
    # An evaluation of the run finds the same numbers there and computes none again.
    config = DetectEvalConfig(
        checkpoint=str(attacked_run), results=str(table.path), workers=0, device="cpu"
    )
    (found,) = evaluate_detector_file(config).values()
    assert {row.metric: row for row in found} == rows
    assert len(table.rows()) == len(rows)


def test_the_command_stores_every_condition_once(
    attacked_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["eval", "--checkpoint", str(attacked_run), "--workers", "0"]
    argv += ["--results", str(tmp_path), "--resamples", "20", "--device", "cpu"]
    argv += [
        "--eps",
        "4/255",
        "--num-steps",
        "2",
        "--corruption",
        "fog",
        "--severity",
        "3",
    ]
    assert detect.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "as they are",
        "pgd, linf 4/255, 2 steps, both loss",
        "fog 3",
        "rows",
    ]
    assert "box AP50" in lines[0]
    table = ResultsTable(tmp_path)
    rows = table.rows()
    assert len({row.experiment for row in rows}) == 3
    assert len({row.identity for row in rows}) == len(rows)
    clean = {row.metric: row for row in rows if row.experiment == rows[0].experiment}
    assert {"box_ap", "mask_ap", "box_ap50", "box_ap:object"} <= set(clean)
    row = clean["box_ap"]
    assert isinstance(row.setting, DetectionSetting)
    assert row.setting.attack == TrainingAttack(
        norm="linf", eps=4 / 255, num_steps=1, loss="all"
    )
    assert (row.setting.detector, row.setting.min_size, row.n) == ("mask_rcnn", 64, 3)
    # The images that it was not trained on, by the split of its training.
    facts = open_detector(attacked_run).facts
    test = open_detection(facts.training["data"], split_seed=3).test
    arrays = table.arrays(row)
    assert arrays["image_ids"].tolist() == [each.image_id for each in test.annotated]
    assert len(arrays["boxes"]) == len(arrays["mask_runs"])
    assert detect.main([*argv, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["as they are"]["box_ap"] == [row.value, row.low, row.high]
    assert len(ResultsTable(tmp_path).rows()) == len(rows)


def test_an_evaluation_that_was_killed_goes_on_with_the_next_batch(
    attacked_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DetectEvalConfig(
        checkpoint=str(attacked_run), workers=0, device="cpu", resamples=20,
        results=str(tmp_path / "whole"), eps=4 / 255, num_steps=1,
    )  # fmt: skip
    whole = evaluate_detector_file(config)
    stopped = replace(config, results=str(tmp_path / "stopped"))
    real, done = DetectorAttack.__call__, list[int]()

    def dies(self: DetectorAttack, *args: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(options["offset"])
        return real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(DetectorAttack, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            evaluate_detector_file(stopped)
    assert done == [0, 1]
    attacked = len(ResultsTable(tmp_path / "stopped").rows())

    def counts(self: DetectorAttack, *args: Any, **options: Any) -> Any:
        done.append(options["offset"])
        return real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(DetectorAttack, "__call__", counts)
        again = evaluate_detector_file(stopped)
    assert done == [0, 1, 2]  # the last image alone
    assert attacked < len(ResultsTable(tmp_path / "stopped").rows())
    assert not (tmp_path / "stopped" / "_unfinished").exists()
    for condition, rows in whole.items():
        found = {row.metric: row for row in again[condition]}
        for row in rows:
            other = found[row.metric]
            assert (row.identity, row.value, row.low, row.n) == (
                (other.identity, other.value, other.low, other.n)
            )
        arrays = [
            ResultsTable(folder).arrays(each[0])
            for folder, each in (
                (config.results, rows),
                (stopped.results, again[condition]),
            )
        ]
        for name, value in arrays[0].items():
            np.testing.assert_array_equal(arrays[1][name], value)


def test_the_command_exports_what_another_runtime_runs(
    attacked_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "detector.onnx"
    argv = ["export", "--checkpoint", str(attacked_run), "--out", str(out)]
    argv += ["--size", "80", "96"]
    assert detect.main(argv) == 0
    assert f"written: {out}" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == ["object"]
    opened = open_detector(attacked_run)
    test = open_detection(opened.facts.training["data"], split_seed=3).test
    image = test.image(0).float() / 255
    names = [each.name for each in session.get_outputs()]
    assert names == ["boxes", "labels", "scores", "masks"]
    found = dict(zip(names, session.run(None, {"image": image.numpy()}), strict=True))
    with torch.no_grad():
        (wanted,) = opened.detector([image])
    best = wanted["scores"].max().item()
    assert found["scores"].max() == pytest.approx(best, abs=1e-3)
    assert detect.main(argv) == 2
    assert "exists; add --force to replace it" in capsys.readouterr().err
    assert detect.main(["export", "--checkpoint", str(tmp_path), "--force"]) == 1
    assert "there is no detector in" in capsys.readouterr().err


def test_a_part_of_the_images_is_another_number(
    attacked_run: Path, tmp_path: Path
) -> None:
    config = DetectEvalConfig(
        checkpoint=str(attacked_run),
        results=str(tmp_path),
        workers=0,
        device="cpu",
        resamples=0,
        num_images=2,
    )
    (rows,) = evaluate_detector_file(config).values()
    (whole,) = evaluate_detector_file(replace(config, num_images=None)).values()
    assert (rows[0].n, whole[0].n) == (2, 3)
    assert rows[0].identity != whole[0].identity
    assert rows[0].low is None
    arrays = ResultsTable(tmp_path).arrays(rows[0])
    assert np.isin(arrays["image_ids"], np.arange(100)).all()


def test_a_set_without_masks_judges_boxes_alone(
    attacked_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for stem in "abc":
        box = voc_object("object", (5, 5, 60, 50))
        write_voc_image(tmp_path / "voc", stem, [box], (96, 80))
    config = DetectEvalConfig(
        checkpoint=str(attacked_run), data=str(tmp_path / "voc"), workers=0,
        results=str(tmp_path / "rows"), device="cpu", resamples=0,
    )  # fmt: skip
    (rows,) = evaluate_detector_file(config).values()
    names = {row.metric for row in rows}
    assert "box_ap" in names
    assert not [name for name in names if name.startswith("mask")]
    assert "has segmented objects" in caplog.text
    assert "boxes alone are judged" in caplog.text


def test_choices_that_do_not_fit_are_refused(
    attacked_run: Path, rectangles: Path, classifier: Path, tmp_path: Path
) -> None:
    config = DetectEvalConfig(
        checkpoint=str(attacked_run), results=str(tmp_path / "r"), workers=0
    )
    other = write_coco(tmp_path / "coco")
    with pytest.raises(ConfigError, match="the detector knows object"):
        evaluate_detector_file(replace(config, data=str(other)))
    with pytest.raises(ConfigError, match="corruption"):
        evaluate_detector_file(replace(config, corruption=("mist",)))
    with pytest.raises(ConfigError, match="`num_steps` belongs to the attack"):
        replace(config, num_steps=3)
    with pytest.raises(ConfigError, match="`severity` is empty"):
        replace(config, severity=())
    with pytest.raises(ConfigError, match="`attack_loss=all` counts the loss of masks"):
        DetectTrainConfig(
            source=str(classifier), data=str(rectangles), eps=0.1, attack_loss="all"
        )
