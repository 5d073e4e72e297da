"""Training and evaluation of detectors against torchvision's reference, images per second.

    python bench/bench_detect.py --data pennfudan.zip [--arch resnet18] [--masks]
        [--side 160 256] [--batch 4] [--steps 4] [--repeats 3] [--workers 1] [--device cuda]

Both loops train a detector of the same weights on the same images in one process, in turn.
`reference` is that of torchvision's references/detection/engine.py: images become float32 in
decoding processes, and every step reads its losses. A repeat is one epoch of `--steps`
batches; the data wait is the share of ours that was spent waiting for batches.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results, interleaved, ratio

from fastadv import create_model
from fastadv.detection.augment import augment, without_crowds
from fastadv.detection.batches import DetectionLoader, DetectionLoaderOptions
from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.learner import DetectorLearner
from fastadv.detection.networks import build_detector
from fastadv.detection.opening import open_detection
from fastadv.detection.rois import quick_rois
from fastadv.detection.sets import DetectionSet
from fastadv.models.quick_convs import quick_convs
from fastadv.runs.distributed import World


class FloatImages(Dataset):
    """The images as the reference's presets give them: float32 in [0, 1]."""

    def __init__(self, images: DetectionSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image, target = self.images[index]
        image, target = augment(image, without_crowds(target), "flip", 0, 0, index)
        return image.float() / 255, target


def collate(batch):
    return tuple(zip(*batch, strict=True))


def reference_epoch(detector, optimizer, loader, device) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--side", type=int, nargs=2, default=[160, 256])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    device = torch.device(o.device)
    config = DetectTrainConfig(
        arch=o.arch, data=o.data, masks=o.masks, min_size=(o.side[0],), max_size=o.side[1],
        batch_size=o.batch, lr=1e-4, warmup_steps=0, precision="fp32",
    )  # fmt: skip
    images = open_detection(o.data, masks=o.masks).train.without_empty()
    images = images.subset(range(min(o.batch * o.steps, len(images))))
    model = create_model(o.arch, seed=0)
    detector = build_detector(model, len(images.classes), config, masks=o.masks)
    detector.to(device)
    theirs = copy.deepcopy(detector)
    learner = DetectorLearner(config, detector, World(), 10**6, 0)
    loader = DetectionLoader(
        images,
        DetectionLoaderOptions(
            batch_size=o.batch, train=True, augment="flip", device=device,
            workers=o.workers,
        ),
    )  # fmt: skip
    plain = DataLoader(
        FloatImages(images), o.batch, shuffle=True, num_workers=o.workers,
        collate_fn=collate, persistent_workers=o.workers > 0,
    )  # fmt: skip
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)
    waits: list[float] = []

    def ours() -> None:
        detector.train()
        began, waited, batches = time.perf_counter(), 0.0, iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            learner.update(batch, 1)
        waits.append(waited / (time.perf_counter() - began))

    def judged(network, quick: bool) -> None:
        network.eval()
        few = [images.image(i).float().to(device) / 255 for i in range(o.batch)]
        with torch.inference_mode():
            if quick:
                with quick_convs(device), quick_rois(device):
                    network(few)
            else:
                network(few)

    cases = {
        "train, fastadv": ours,
        "train, reference": lambda: reference_epoch(theirs, optimizer, plain, device),
        "evaluate, fastadv": lambda: judged(detector, True),
        "evaluate, reference": lambda: judged(theirs, False),
    }
    times = interleaved(cases, repeats=o.repeats, warmup=1, device=device)
    results = Results("detect")
    for name, timing in times.items():
        what, loop = name.split(", ")
        count = len(images) if what == "train" else o.batch
        faster, low, high = ratio(
            times[f"{what}, reference"], times[f"{what}, fastadv"]
        )
        results.add(
            arch=o.arch, device=str(device), masks=o.masks, side=o.side, batch=o.batch,
            what=what, loop=loop, seconds=timing.median, images_per_s=count / timing.median,
            ours_is_faster=faster, ours_is_faster_range=[round(low, 3), round(high, 3)],
            data_wait=statistics.median(waits) if name == "train, fastadv" else None,
            repeats=o.repeats,
        )  # fmt: skip
        print(
            f"{name:20}{timing.median:8.3f} s{count / timing.median:8.2f} images/s   "
            f"fastadv is {faster:.2f} x [{low:.2f}, {high:.2f}] the reference"
        )
    print(f"data wait {100 * statistics.median(waits):.1f} %")
    results.write()


if __name__ == "__main__":
    main()
