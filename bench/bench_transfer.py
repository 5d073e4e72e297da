"""The cost of a grid of heads, beside one pass of features and the published training.

    python bench/bench_transfer.py ARCHIVE [--cases 10000x64 2000x224] [--arch resnet18]

ARCHIVE is a .zip or folder of images, split/class/image. A case is a number of training
images and a resolution. The grid is twelve learning rates by five seeds, each head trained
by the published schedule (SGD, batch 64, 150 epochs) on nine tenths of the images. Every
time is proportional to the number of images, so that ratios of times do not depend on it.
One run measures:

    features   one pass of the frozen network over the images, decoding included
    cached     finding the features again, hashing the images included
    heads      all sixty heads, and their accuracies
    published  what the published code costs per epoch: the trunk in train mode without
               gradient, on augmented images; a few batches are timed and multiplied by
               the number of batches in 150 epochs (and in sixty runs)

The weights are random, since no time depends on them.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import Results, interleaved

from fastadv.data import (
    LoaderOptions,
    make_loader,
    open_dataset,
    subset,
    train_val_split,
)
from fastadv.models import create_model
from fastadv.transfer.features import FeatureCache, Features, rows_of
from fastadv.transfer.freezing import choose_trained, prepare_model
from fastadv.transfer.heads import fit_sgd
from fastadv.transfer.protocols import Procedure, Rates
from fastadv.transfer.tuned import fine_tune, make_method

SEEDS = (0, 1, 2, 3, 4)
LRS = tuple(float(lr) for lr in np.logspace(-4, 0, 12))
GRID = Procedure(lrs=LRS, epochs=150, batch_size=64, momentum=0.9, weight_decay=5e-4)


class Case:
    """Some images at a resolution, and a network."""

    def __init__(self, words: argparse.Namespace, count: int, side: int) -> None:
        self.device, self.side = words.device, side
        self.splits = open_dataset(words.archive, resolution=side)
        self.images = subset(self.splits.train, count, 0)
        self.classes = len(self.splits.train.classes)
        self.model = create_model(words.arch, self.classes, seed=0).to(words.device)
        self.model.to(memory_format=torch.channels_last)

    def options(self, *, train: bool) -> LoaderOptions:
        return LoaderOptions(
            batch_size=64 if train else 128,
            resolution=self.side,
            train=train,
            augment="rrc" if train else "auto",
            device=self.device,
        )

    def features(self, cache: FeatureCache) -> tuple[Features, float]:
        """Return the features, and the seconds that they took."""
        began = time.perf_counter()
        options = self.options(train=False)
        found = cache.features(self.model, self.images, options, "features")
        return found, time.perf_counter() - began

    def heads(self, features: Features) -> float:
        """Return the seconds that the whole grid takes."""
        parts = [train_val_split(self.images, 0.1, seed)[0] for seed in SEEDS]
        rows = np.stack([rows_of(part, self.images) for part in parts])
        began = time.perf_counter()
        heads = fit_sgd(features, rows, self.classes, SEEDS, GRID, device=self.device)
        for head in itertools.chain(*heads):
            head.evaluate(features)
        return time.perf_counter() - began

    def published_epoch(self, batches: int) -> float:
        """Return the seconds of an epoch as published, from a few of its batches."""
        procedure = Procedure(epochs=1, frozen_bn="train")
        model = prepare_model(self.model, self.classes, 0, procedure)
        trained = choose_trained(model, "fixed_feature")
        method = make_method(model, None, self.side)
        # Kept images as `make_loader` would: decoding is no part of an epoch.
        few = subset(self.images, 64 * batches, 0)
        loader = make_loader(few, **vars(self.options(train=True)))

        def epoch() -> None:
            for _ in fine_tune(
                model, trained, loader, Rates(0.01), procedure, method, "epoch"
            ):
                pass

        timing = interleaved({"epoch": epoch}, repeats=2, warmup=1, device=self.device)[
            "epoch"
        ]
        return timing.median / len(few) * len(self.images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--cases", nargs="+", default=["10000x64", "2000x224"])
    parser.add_argument(
        "--batches",
        type=int,
        default=2,
        help="number of batches that are timed of the published training",
    )
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    results, runs = Results("transfer"), len(SEEDS) * len(LRS)
    for text in words.cases:
        count, side = map(int, text.split("x"))
        case = Case(words, count, side)
        with tempfile.TemporaryDirectory() as folder:
            cache = FeatureCache(Path(folder))
            _, one_pass = case.features(cache)
            found, cached = case.features(cache)
            solving = case.heads(found)
        epoch = case.published_epoch(words.batches)
        ours, one_run = one_pass + cached + solving, epoch * GRID.epochs
        results.add(
            arch=words.arch,
            resolution=side,
            images=count,
            heads=runs,
            epochs=GRID.epochs,
            device=words.device,
            threads=torch.get_num_threads(),
            features_s=one_pass,
            cached_s=cached,
            heads_s=solving,
            grid_of_one_pass=ours / one_pass,
            published_batches_timed=words.batches,
            published_epoch_s=epoch,
            published_run_s=one_run,
            published_grid_s=one_run * runs,
            published="a few batches timed, times those of all epochs and runs",
            run_over_ours=one_run / ours,
            grid_over_ours=one_run * runs / ours,
        )
        row = results.rows[-1]
        print({k: v for k, v in row.items() if k.endswith(("_s", "_pass", "_ours"))})
    results.write()


if __name__ == "__main__":
    main()
