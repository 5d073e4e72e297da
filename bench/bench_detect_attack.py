"""Attacks on a detector against a plain autograd loop on the same one, images per second.

    python bench/bench_detect_attack.py [--arch resnet18 resnet50] [--masks] [--side 320 400]
        [--width 256] [--batch 2] [--steps 3] [--repeats 5] [--device cuda]
    python bench/bench_detect_attack.py --arch resnet18 --side 96 128 --batch 1 --repeats 3

Faster R-CNN (with --masks Mask R-CNN) of random weights on the pyramid of a network, random
images, eight boxes each. All cases run in one process, in turn, on the same images, from the
images themselves, with the same steps of l2, and sample proposals from the same seed.
`loop` asks autograd for the input gradient alone, and `loop, backward` calls `backward`,
which computes the gradients of the weights, too; both add the same losses as `fastadv`.
`train` is a training step of torchvision's detector as it is, and `train, quick` the same
with the convolutions and the pooling of regions of this package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results, interleaved

from fastadv import ThreatModel, create_model
from fastadv.detection.attack import DetectorAttack
from fastadv.detection.config import DetectorConfig
from fastadv.detection.networks import build_detector
from fastadv.detection.rois import quick_rois
from fastadv.detection.view import LOSSES, seeded_sampling
from fastadv.models.quick_convs import quick_convs

EPS = 2.0
Images = tuple[list[Tensor], list[dict[str, Any]]]


def images_with_boxes(options: argparse.Namespace, device: torch.device) -> Images:
    draw = torch.Generator().manual_seed(0)
    height, width = options.side
    images, targets = [], []
    for _ in range(options.batch):
        pixels = torch.randint(0, 256, (3, height, width), generator=draw)
        corner = torch.rand(8, 2, generator=draw) * torch.tensor([width, height]) * 0.6
        side = 16 + torch.rand(8, 2, generator=draw) * min(height, width) * 0.35
        boxes = torch.cat([corner, corner + side], 1)
        masks = torch.zeros(8, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(1, 21, (8,), generator=draw)
        target = {"boxes": boxes, "labels": labels, "masks": masks}
        images.append(pixels.to(device, torch.uint8))
        targets.append({name: value.to(device) for name, value in target.items()})
    return images, targets


def plain_loop(
    detector: nn.Module, given: Images, attack: DetectorAttack, *, backward: bool
) -> list[Tensor]:
    """The attack in plain PyTorch on torchvision's detector."""
    images, targets = given
    clean = [image.float() / 255 for image in images]
    x = [image.clone() for image in clean]
    with seeded_sampling(attack.seed, x[0].device):
        for _ in range(attack.num_steps):
            x = [image.detach().requires_grad_() for image in x]
            losses = detector(x, targets)
            total = sum(losses[name] for name in LOSSES[attack.loss])
            if backward:
                total.backward()
                gradients = [image.grad for image in x]
            else:
                gradients = torch.autograd.grad(total, x)
            with torch.no_grad():
                for i, gradient in enumerate(gradients):
                    step = attack.step_size * gradient / (gradient.norm() + 1e-12)
                    moved = x[i] + step - clean[i]
                    moved *= (EPS / moved.norm().clamp_min(1e-12)).clamp_max(1)
                    x[i] = (clean[i] + moved).clamp(0, 1)
    detector.zero_grad(set_to_none=True)
    return x


def train_step(detector: nn.Module, given: Images) -> None:
    images, targets = given
    losses = detector([image.float() / 255 for image in images], targets)
    sum(losses.values()).backward()
    detector.zero_grad(set_to_none=True)


def quick_step(detector: nn.Module, given: Images) -> None:
    device = given[0][0].device
    with quick_convs(device), quick_rois(device):
        train_step(detector, given)


def bench(arch: str, options: argparse.Namespace, results: Results) -> None:
    device = torch.device(options.device)
    config = DetectorConfig(
        min_size=(min(options.side),), max_size=max(options.side), width=options.width
    )
    model = create_model(arch, seed=0)
    detector = build_detector(model, 20, config, masks=options.masks, seed=0)
    detector.to(device).train()
    given = images_with_boxes(options, device)
    attack = DetectorAttack(
        ThreatModel("l2", EPS), options.steps, random_start=False, loss=options.loss
    )
    view = attack.prepare(detector)
    cases: dict[str, Callable[[], object]] = {
        "fastadv": lambda: attack(view, *given),
        "loop": lambda: plain_loop(detector, given, attack, backward=False),
        "loop, backward": lambda: plain_loop(detector, given, attack, backward=True),
        "train": lambda: train_step(detector, given),
        "train, quick": lambda: quick_step(detector, given),
    }
    found = attack(view, *given)
    print(
        f"{arch}: losses before each step {[round(x, 3) for x in found.losses.tolist()]}"
    )
    times = interleaved(cases, repeats=options.repeats, warmup=1, device=device)
    for name, timing in times.items():
        mine = times["train, quick" if name.startswith("train") else "fastadv"]
        results.compare(
            name,
            timing,
            mine,
            images=options.batch,
            arch=arch,
            device=str(device),
            masks=options.masks,
            side=options.side,
            width=options.width,
            batch=options.batch,
            steps=options.steps,
            loss=options.loss,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--loss", choices=[*LOSSES], default="both")
    parser.add_argument("--side", type=int, nargs=2, default=[320, 400])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="detect_attack")
    options = parser.parse_args()
    results = Results(options.name)
    for arch in options.arch:
        bench(arch, options, results)
    results.write()


if __name__ == "__main__":
    main()
