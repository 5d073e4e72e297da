"""Table and figure of detectors by the initialisation of their backbone.

    python bench/detect_study.py RUNS [--data pennfudan.zip] [--out docs/studies]

RUNS holds run directories of `fastadv-detect train` named KIND-sSEED, such as robust-s0. The
table gives the mean over seeds with their standard deviation, for every epoch that was tested
(`--eval-every`). The figure draws boxes and masks with scores of at least one half, of the
first seed of each kind, on three test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from fastadv.detection.opening import open_detection
from fastadv.detection.saving import open_detector
from fastadv.text_tables import text_table

KINDS = ("standard", "robust", "scratch")
METRICS = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
DRAWN, SCORE = 3, 0.5


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


def figure(first: dict[str, Path], data: str | None, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    opened = {kind: open_detector(run) for kind, run in first.items()}
    training = next(iter(opened.values())).facts.training
    chosen = {
        k: training[k] for k in ("test_share", "split_seed", "class_name", "masks")
    }
    test = open_detection(data or training["data"], **chosen).test
    indices = sorted(range(len(test)), key=lambda i: -len(test.annotated[i].labels))[
        :DRAWN
    ]
    titles = ["annotated", *opened]
    _, axes = plt.subplots(DRAWN, len(titles), figsize=(3 * len(titles), 3 * DRAWN))
    for row, index in zip(axes, indices, strict=True):
        image, target = test[index]
        for axis, title in zip(row, titles, strict=True):
            found = target
            if title != "annotated":
                with torch.no_grad():
                    [found] = opened[title].detector([image.float() / 255])
                keep = found["scores"] >= SCORE
                found = {name: value[keep] for name, value in found.items()}
            drawn = image
            if len(found["boxes"]):
                masks = found["masks"].reshape(-1, *image.shape[1:]) > 0.5
                drawn = draw_segmentation_masks(drawn, masks, alpha=0.5)
                drawn = draw_bounding_boxes(drawn, found["boxes"], colors="yellow")
            axis.imshow(drawn.permute(1, 2, 0).numpy())
            axis.set_title(title)
            axis.axis("off")
    plt.tight_layout()
    plt.savefig(out / "detection.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data")
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
    )


if __name__ == "__main__":
    main()
