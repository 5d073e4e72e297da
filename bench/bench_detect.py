"""Training and evaluation of detectors against torchvision's reference, images per second.

    python bench/bench_detect.py --data pennfudan.zip [--arch resnet18] [--masks]
        [--side 160 256] [--width 256] [--batch 4] [--steps 4] [--repeats 3] [--workers 1]
        [--device cuda]
    python bench/bench_detect.py --data pennfudan.zip --side 64 96 --batch 1 --steps 2
        --repeats 2 --workers 0

All loops run detectors of the same weights on the same images in one process, in turn.
`reference` is what torchvision's references/detection/engine.py does: images become float32
in decoding processes, every step reads its losses, and an evaluation judges its detections
by pycocotools. A repeat is one epoch of `--steps` batches, or an evaluation of as many
images in batches of one; the data wait is the share of our training that was spent waiting
for batches.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results, interleaved

from fastadv import create_model
from fastadv.detection.augment import augment, without_crowds
from fastadv.detection.batches import DetectionLoader, DetectionLoaderOptions
from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.judging import evaluate_detector
from fastadv.detection.learner import DetectorLearner
from fastadv.detection.networks import build_detector
from fastadv.detection.opening import open_detection
from fastadv.detection.sets import DetectionSet
from fastadv.runs.distributed import World


class FloatImages(Dataset):
    """The images as the reference's presets give them: float32 in [0, 1]."""

    def __init__(self, images: DetectionSet, *, train: bool) -> None:
        self.images, self.train = images, train

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image, target = self.images[index]
        if self.train:
            image, target = augment(image, without_crowds(target), "flip", 0, 0, index)
        return image.float() / 255, target


def collate(batch):
    return tuple(zip(*batch, strict=True))


def reference_epoch(detector, optimizer, loader, device) -> None:
    """Train an epoch as `train_one_epoch` does."""
    detector.train()
    for images, targets in loader:
        images = [image.to(device) for image in images]
        targets = [
            {k: v.to(device) if torch.is_tensor(v) else v for k, v in t.items()}
            for t in targets
        ]
        losses = detector(images, targets)
        total = sum(losses.values())
        if not torch.isfinite(total.detach()).item():
            raise SystemExit("the reference diverged")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def as_coco(image_id: int, found: dict[str, Tensor], masks: bool) -> list[dict]:
    """Return objects as `CocoEvaluator` gives them to pycocotools."""
    from pycocotools import mask as tools

    results = []
    for i, (x1, y1, x2, y2) in enumerate(found["boxes"].tolist()):
        one: dict[str, Any] = {"image_id": image_id, "area": (x2 - x1) * (y2 - y1)}
        one |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        one["category_id"] = int(found["labels"][i])
        if "scores" in found:
            one["score"] = float(found["scores"][i])
        if masks:
            shape = found["masks"][i].reshape(found["masks"].shape[-2:]) > 0.5
            pixels = np.asfortranarray(shape.numpy().astype(np.uint8))
            one["segmentation"] = tools.encode(pixels)
        results.append(one)
    return results


def reference_evaluation(detector, loader, classes: int, device, masks: bool) -> None:
    """Judge a detector as `evaluate` does."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    detector.eval()
    true, detected, sizes = [], [], []
    with torch.inference_mode():
        for images, targets in loader:
            outputs = detector([image.to(device) for image in images])
            for image, target, output in zip(images, targets, outputs, strict=True):
                output = {k: v.cpu() for k, v in output.items()}
                detected += as_coco(target["image_id"], output, masks)
                true += as_coco(target["image_id"], target, masks)
                height, width = image.shape[-2:]
                sizes.append(
                    {"id": target["image_id"], "height": height, "width": width}
                )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": sizes,
            "categories": [{"id": k + 1} for k in range(classes)],
            "annotations": [each | {"id": i} for i, each in enumerate(true, start=1)],
        }
        truth.createIndex()
        for kind in ("bbox", "segm") if masks else ("bbox",):
            judge = COCOeval(truth, truth.loadRes(detected), kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--side", type=int, nargs=2, default=[160, 256])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="detect")
    o = parser.parse_args()
    device = torch.device(o.device)
    config = DetectTrainConfig(
        arch=o.arch, data=o.data, masks=o.masks, min_size=(o.side[0],), max_size=o.side[1],
        width=o.width, batch_size=o.batch, lr=1e-4, warmup_steps=0, precision="fp32",
    )  # fmt: skip
    images = open_detection(o.data, masks=o.masks).train.without_empty()
    images = images.subset(range(min(o.batch * o.steps, len(images))))
    model = create_model(o.arch, seed=0)
    detector = build_detector(model, len(images.classes), config, masks=o.masks)
    detector.to(device)
    theirs = copy.deepcopy(detector)
    learner = DetectorLearner(config, detector, World(), 10**6, 0)

    def loader(batch: int, *, train: bool) -> DetectionLoader:
        options = DetectionLoaderOptions(
            batch_size=batch, train=train, augment="flip" if train else "none",
            device=device, workers=o.workers,
        )  # fmt: skip
        return DetectionLoader(images, options)

    def plain(batch: int, *, train: bool) -> DataLoader:
        return DataLoader(
            FloatImages(images, train=train), batch, shuffle=train,
            num_workers=o.workers, collate_fn=collate, persistent_workers=o.workers > 0,
        )  # fmt: skip

    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)
    train_loader, test_loader = loader(o.batch, train=True), loader(1, train=False)
    plain_train, plain_test = plain(o.batch, train=True), plain(1, train=False)
    waits: list[float] = []

    def ours() -> None:
        detector.train()
        began, waited, batches = time.perf_counter(), 0.0, iter(train_loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            losses = learner.update(batch, 1)
        # As in a run: the losses of several steps are read together.
        if not all(torch.stack([*losses.values()]).isfinite().tolist()):
            raise SystemExit("ours diverged")
        waits.append(waited / (time.perf_counter() - began))

    def judged(network: nn.Module) -> None:
        found = evaluate_detector(network, test_loader, images.classes, masks=o.masks)
        found.findings.metrics(resamples=0)

    cases = {
        "train": ours,
        "train, reference": lambda: reference_epoch(
            theirs, optimizer, plain_train, device
        ),
        "evaluate": lambda: judged(detector),
        "evaluate, reference": lambda: reference_evaluation(
            theirs, plain_test, len(images.classes), device, o.masks
        ),
    }
    times = interleaved(cases, repeats=o.repeats, warmup=1, device=device)
    results = Results(o.name)
    wait = statistics.median(waits[1:])
    for name, timing in times.items():
        results.compare(
            name,
            timing,
            times[name.split(",")[0]],
            images=len(images),
            arch=o.arch,
            device=str(device),
            masks=o.masks,
            side=o.side,
            width=o.width,
            batch=o.batch,
            workers=o.workers,
            data_wait=wait if name == "train" else None,
        )
    print(f"data wait {100 * wait:.1f} %")
    results.write()


if __name__ == "__main__":
    main()
