"""The report's section on detection, from rows that nobody measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastadv.reporting import report_sections
from fastadv.reporting.literature import read_published
from fastadv.results.detection_settings import DetectionSetting, TrainingAttack
from fastadv.results.row import AttackRecord, Row, SourceRecord, TargetRecord
from fastadv.results.table import ResultsTable

SETTING = DetectionSetting(
    detector="faster_rcnn", epochs=12, min_size=800, frozen_stages=1, lr=0.02
)
ATTACK = AttackRecord(
    name="pgd", norm="linf", eps=4 / 255, num_steps=10, objective="both"
)


def detected(eps: float, value: float, metric: str = "box_ap", **changes: Any) -> Row:
    seed = changes.get("seed", 0)
    source = SourceRecord(
        name="resnet50",
        digest=f"{eps}{seed}",
        arch="resnet50",
        norm="l2",
        eps=eps,
    )
    row = Row(
        identity=f"{eps}{metric}{changes}",
        source=source,
        target=TargetRecord(name="VOC2007", class_names=("cat", "dog")),
        setting=SETTING,
        metric=metric,
        value=value,
        low=value - 1,
        high=value + 1,
        n=4952,
    )
    return replace(row, setting_key="", setting_label="", **changes)


def tables(rows: list[Row]) -> dict[str, list[dict[str, Any]]]:
    (section,) = report_sections(rows)
    return {
        table.caption.split(",")[0].split(" (")[0]: [
            dict(zip(table.columns, line, strict=True)) for line in table.rows
        ]
        for table in section.tables
    }


def test_seeds_are_averaged_and_published_values_stand_beside() -> None:
    rows = [detected(0.0, 50.0 + seed, seed=seed) for seed in range(3)]
    rows += [detected(3.0, 55.0), detected(3.0, 30.0, "box_ap:dog")]
    rows.append(detected(3.0, 40.0, "box_ap:cat"))
    found = tables(rows)
    plain = found["Average precision on images as they are"]
    assert [line["source"] for line in plain] == [
        "resnet50, standard",
        "resnet50, l2 3",
    ]
    assert plain[0]["seeds"] == 3
    # 51 plus and minus t(2) / sqrt(3)
    assert plain[0]["box AP"] == "51.0% [48.5, 53.5]"
    assert plain[1]["box AP"] == "55.0% [54.0, 56.0]"
    assert plain[1]["images"] == 4952
    of_class = found["Average precision of each class"]
    assert {line["class"]: line["box AP"] for line in of_class} == {
        "dog": "30.0% [29.0, 31.0]",
        "cat": "40.0% [39.0, 41.0]",
    }
    published = found["Published average precisions of Salman et al. 2020"]
    assert [(p["data"], p["task"], p["standard"], p["robust"]) for p in published] == [
        ("VOC", "detection", "52.80", "53.87"),
        ("COCO", "detection", "39.61", "40.13"),
        ("COCO", "instance segmentation", "40.74", "41.04"),
        ("COCO", "instance segmentation", "36.98", "37.23"),
    ]
    assert published[0]["difference"] == "+1.07"
    assert "resnet50, l2 3: 55.0%" in published[0]["ours"]
    assert published[1]["ours"] is None


def test_attacks_and_corruptions_stand_beside_images_as_they_are() -> None:
    rows = [detected(0.0, 40.0), detected(0.0, 5.0, attack=ATTACK)]
    rows.append(detected(0.0, 9.0, attack=replace(ATTACK, objective="classification")))
    for kind, severity, value in (
        ("fog", 1, 30.0),
        ("fog", 5, 10.0),
        ("snow", 1, 20.0),
    ):
        setting = replace(SETTING, corruption=kind, severity=severity)
        rows.append(detected(0.0, value, setting=setting))
    found = tables(rows)
    under = found["Average precision under attack"]
    assert [line["attack"] for line in under] == [
        "pgd, linf 4/255, 10 steps, both loss",
        "pgd, linf 4/255, 10 steps, classification loss",
    ]
    assert [line["box AP attacked"] for line in under] == [
        "5.0% [4.0, 6.0]",
        "9.0% [8.0, 10.0]",
    ]
    assert {line["box AP"] for line in under} == {"40.0% [39.0, 41.0]"}
    (mean,) = found["Box AP under corruption"]
    assert (mean["corrupted"], mean["share"]) == ("20.0%", "50%")
    assert (mean["corruptions"], mean["severities"]) == (2, "1, 5")
    kinds = found["Box AP under each corruption"]
    assert {line["corruption"]: line["box AP"] for line in kinds} == {
        "fog": "20.0%",
        "snow": "20.0%",
    }


def test_other_trainings_are_other_lines_and_keys() -> None:
    attacked = TrainingAttack(norm="linf", eps=0.01, num_steps=1, loss="both")
    settings = [
        SETTING,
        replace(SETTING, epochs=3),
        replace(SETTING, attack=attacked),
        replace(SETTING, scratch=True),
        replace(SETTING, frozen_stages=0),
    ]
    rows = [
        detected(0.0, 40.0, setting=setting, identity=str(i))
        for i, setting in enumerate(settings)
    ]
    assert len({row.setting_key for row in rows}) == len(settings)
    lines = tables(rows)["Average precision on images as they are"]
    assert len({line["detector"] for line in lines}) == len(settings)
    assert lines[3]["source"] == "resnet50, from scratch"
    same = replace(SETTING, num_train=7, num_images=9)
    assert same.key() == SETTING.key()


def test_rows_come_back_from_the_table(tmp_path: Path) -> None:
    setting = replace(
        SETTING,
        corruption="fog",
        severity=2,
        attack=TrainingAttack(norm="l2", eps=1.0, num_steps=2, loss="all"),
    )
    rows = [detected(0.0, 40.0, setting=setting), detected(0.0, 5.0, attack=ATTACK)]
    table = ResultsTable(tmp_path)
    table.append(rows)
    assert [row.setting for row in table.rows()] == [setting, SETTING]


def test_published_table_is_shipped() -> None:
    lines = read_published("salman2020_detection")
    assert len(lines) == 29
    assert {line["metric"] for line in lines} == {"box_ap", "mask_ap"}
    (voc,) = (
        float(line["value"])
        for line in lines
        if line["dataset"] == "voc" and line["eps"] == "best"
    )
    assert voc == pytest.approx(53.87)
