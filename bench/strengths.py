"""Which C a head takes where no images can be held out to choose it.

    python bench/strengths.py DATA_FOLDER NETWORK ...
    python bench/tables.py

DATA_FOLDER holds the zips named below; a NETWORK is what `fastadv-transfer --source` takes.
Heads are fitted exactly to frozen features of few images per class, with every C of the
grid, and judged on all test images. Nothing is timed, so other programs may run meanwhile.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from harness import Results

from fastadv.data import subset
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.experiment import Experiment
from fastadv.transfer.heads import fit_exact

TARGETS = ("caltech101-96px", "cifar10-jpeg-12k", "trashnet6-128px")
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
PER_CLASS = (1, 2, 5, 10, None)  # None: all images


def accuracies(
    experiment: Experiment, per_class: int | None, seeds: int
) -> dict[float, list[float]]:
    """Return accuracies on the test images in percent, one per seed, by C."""
    train, classes = experiment.splits.train, experiment.num_classes
    found: dict[float, list[float]] = {c: [] for c in STRENGTHS}
    test = experiment.features.test()
    for seed in range(seeds if per_class else 1):
        part = subset(train, per_class and per_class * classes, seed)
        features = experiment.features.of(part, seed)
        for c, head in fit_exact(features, classes, seed, STRENGTHS).items():
            accuracy = head.evaluate(test).clean.value(experiment.splits.metric)
            found[c].append(100 * accuracy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    parser.add_argument("--resolution", type=int, help="side of the images in pixels")
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    results = Results("strengths")
    for network in given.networks:
        for target in TARGETS:
            config = TransferConfig(
                source=network,
                dataset=str(given.folder / f"{target}.zip"),
                mode="fixed_feature",
                resolution=given.resolution,
                select_on="none",
                feature_cache="off",
            )
            experiment = Experiment(config)
            for per_class in PER_CLASS:
                for c, values in accuracies(experiment, per_class, given.seeds).items():
                    results.add(
                        network=experiment.source.name,
                        target=target,
                        resolution=experiment.resolution,
                        per_class=per_class,
                        c=c,
                        seeds=len(values),
                        mean=float(np.mean(values)),
                        std=float(np.std(values, ddof=1)) if values[1:] else None,
                    )
                    print(experiment.source.name, target, per_class, c, np.mean(values))
    results.write()


if __name__ == "__main__":
    main()
