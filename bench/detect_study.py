"""Table and figure of detectors by the initialisation of their backbone.

    python bench/detect_study.py RUNS [--data pennfudan.zip] [--out docs/studies]
        [--eps 2/255]

RUNS holds run directories of `fastadv-detect train` named KIND-sSEED, such as robust-s0. The
table gives the mean over seeds with their standard deviation, for every epoch that was tested
(`--eval-every`). The figure draws boxes and masks with scores of at least one half, of the
first seed of each kind, on three test images; with --eps, those images under an attack of ten
steps (linf) stand beside the clean ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from fastadv import ThreatModel
from fastadv.detection.attack import DetectorAttack
from fastadv.detection.batches import DetectionBatch
from fastadv.detection.judging import judged_batches
from fastadv.detection.opening import open_detection
from fastadv.detection.saving import open_detector
from fastadv.reporting.figures.detections import detections
from fastadv.text_tables import text_table

KINDS = ("standard", "robust", "scratch")
METRICS = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
DRAWN = 3


def tested(run: Path) -> dict[int, dict[str, float]]:
    """Return the average precisions of a finished run by epoch."""
    lines = (run / "log.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    if not any(event["event"] == "test" for event in found):
        return {}
    return {e["epoch"]: e for e in found if e["event"] in ("val", "test")}


def table(runs: dict[str, dict[str, dict[int, Any]]]) -> str:
    rows = []
    for kind in KINDS:
        seeds = list(runs[kind].values())
        for epoch in sorted(set.intersection(*map(set, seeds))) if seeds else ():
            row: list[Any] = [kind, epoch, len(seeds)]
            for metric in METRICS:
                values = [100 * seed[epoch][metric] for seed in seeds]
                text = f"{statistics.mean(values):.1f}"
                if len(values) > 1:
                    text += f" +- {statistics.stdev(values):.1f}"
                row.append(text)
            rows.append(row)
    columns = ["initialisation", "epoch", "seeds", "box AP", "box AP50", "mask AP"]
    return text_table([*columns, "mask AP50"], rows)


def figure(
    first: dict[str, Path], data: str | None, out: Path, threat: ThreatModel | None
) -> None:
    """Draw what the first seeds find in the test images with the most objects.

    With `threat` the images of each kind are attacked, too, and stand beside the clean ones.
    """
    opened = {kind: open_detector(run) for kind, run in first.items()}
    training = next(iter(opened.values())).facts.training
    chosen = {
        k: training[k] for k in ("test_share", "split_seed", "class_name", "masks")
    }
    test = open_detection(data or training["data"], **chosen).test
    most = sorted(range(len(test)), key=lambda i: -len(test.annotated[i].labels))
    images = [test[i] for i in most[:DRAWN]]
    batches = [
        DetectionBatch([image], [true], [i]) for i, (image, true) in enumerate(images)
    ]
    columns: dict[str, list[Any]] = {"annotated": list(images)}
    attack = None if threat is None else DetectorAttack(threat, num_steps=10)
    for kind, each in opened.items():
        attacks = {kind: None} | ({f"{kind}, attacked": attack} if attack else {})
        for title, made in attacks.items():
            columns[title] = [
                (judged.images[0], judged.found[0])
                for judged in judged_batches(each.detector, batches, attack=made)
            ]
    name = "detection.png" if threat is None else "detection-attacked.png"
    detections(columns).savefig(out / name, dpi=90, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--eps")
    parser.add_argument("--out", type=Path, default=Path("docs/studies"))
    options = parser.parse_args()
    runs: dict[str, dict[str, dict[int, Any]]] = defaultdict(dict)
    first: dict[str, Path] = {}
    for run in sorted(options.runs.iterdir()):
        kind, _, seed = run.name.rpartition("-s")
        if kind in KINDS and (run / "log.jsonl").exists() and (found := tested(run)):
            runs[kind][seed] = found
            first.setdefault(kind, run)
    if not first:
        raise SystemExit(f"{options.runs} has no finished run named KIND-sSEED")
    text = table(runs)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "detection-table.txt").write_text(text + "\n")
    print(text)
    figure(
        {k: first[k] for k in KINDS if k in first},
        options.data,
        options.out,
        ThreatModel("linf", options.eps) if options.eps else None,
    )


if __name__ == "__main__":
    main()
