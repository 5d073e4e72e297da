"""What decides how often the most influential image is of the same class: the head.

    python bench/influence_heads.py runs/standard runs/robust --data cifar10-jpeg-12k.zip

Linear heads are fitted to the frozen features of each network with several inverse
strengths C of the L2 penalty. A line says how sure a head is of the classes of the 1,600
training images, how many eigenvalues of its Hessian exceed 5 % of the largest, and for how
many test images the most influential training image, the tenth and the hundredth are of the
same class.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression

from fastadv.analysis.analyze_influence import most_influential
from fastadv.analysis.influence import Hessian, LastLayer, influence
from fastadv.data import ImageSet, make_loader, open_dataset
from fastadv.data.sets.subsets import subset
from fastadv.models.source import Source, open_source
from fastadv.text_tables import text_table
from fastadv.transfer.features import embedder

# Inverse strengths, and factors of the weights, which make a head surer without changing
# its decisions, as long training does.
HEADS = ((1e-3, 1), (1e-2, 1), (1e-1, 1), (1, 1), (10, 1), (100, 1), (100, 2), (100, 4))
CUTOFF = 0.05


def embedded(source: Source, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings of images as the network sees them, and their classes."""
    embed = embedder(source.load())
    loader = make_loader(
        images,
        batch_size=100,
        resolution=source.resolution,
        train=False,
        augment=source.augment,
        device="cpu",
    )
    found = [(np.asarray(embed(batch)), batch.labels.numpy()) for batch in loader]
    values, labels = zip(*found, strict=True)
    return np.concatenate(values), np.concatenate(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", required=True)
    given = parser.parse_args()
    warnings.filterwarnings(
        "ignore", module="sklearn"
    )  # separable images never converge
    lines = []
    for name in given.runs:
        source = open_source(name)
        splits = open_dataset(given.data, resolution=source.resolution)
        h, labels = embedded(source, subset(splits.train, 1600, 0))
        others, classes = embedded(source, splits.test)
        for strength, factor in HEADS:
            head = LogisticRegression(C=strength, max_iter=600).fit(h, labels)
            weights = factor * head.coef_, factor * head.intercept_
            train = LastLayer.from_embeddings(h, labels, *weights)
            test = LastLayer.from_embeddings(others, classes, *weights)
            sure = train.probabilities[np.arange(len(labels)), labels].mean()
            kept = len(Hessian(train).largest(CUTOFF)[0])
            top = most_influential(influence(train, test, cutoff=CUTOFF), 100)
            same = 100 * (labels[top] == classes[:, None]).mean(0)
            shares = [round(float(same[rank - 1]), 1) for rank in (1, 10, 100)]
            accuracy = round(100 * head.score(others, classes), 1)
            fit = (strength, factor, accuracy, round(float(sure), 4), kept)
            lines.append([source.name, *fit, *shares])
    columns = ["source", "C", "factor", "test accuracy", "p of the class", "kept"]
    print(text_table([*columns, "rank 1", "rank 10", "rank 100"], lines))


if __name__ == "__main__":
    main()
