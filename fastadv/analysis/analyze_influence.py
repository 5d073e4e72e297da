"""The analysis of influence: which training images a prediction rests on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fastadv.analysis.config import InfluenceConfig
from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.images import options_for, pixels, seen_by
from fastadv.analysis.influence import Array, LastLayer, influence
from fastadv.analysis.portions import numbered_batches
from fastadv.data import ImageSet, Loader, LoaderOptions, open_dataset
from fastadv.data.sets.subsets import Subset, at_most
from fastadv.errors import CheckpointError, ConfigError
from fastadv.evaluation.rows import source_record, target_record
from fastadv.evaluation.source import check_same_classes
from fastadv.models import NormalizedModel
from fastadv.models.source import Source, open_source
from fastadv.results.analysis_settings import InfluenceSetting
from fastadv.results.portions import Portions
from fastadv.transfer.features import FeatureCache, Features, completed, embedder

RANKS = 100  # The most influential training images that are kept of each test image.
_MAP = 200  # Side of the heat map in cells.
_EXAMPLES = 8  # Pairs of images that are kept to be looked at.


def prepare(config: InfluenceConfig, name: str) -> Analysis:
    """Prepare to compute the influence of training images on predictions of a source.

    Args:
        config: The choices.
        name: The source, one of `config.source`.

    Returns:
        The analysis. Its rows are the share of test images whose most influential
        training image is of their class (`same_class_top1`), and the share of those with
        at least three of the top five (`same_class_3_of_5`), in percent. Arrays beside
        them: `top`, positions of the most influential training images int32 [n_test, k],
        best first, and `influence`, theirs float32 [n_test, k]; `share_by_rank` [k];
        `map`, the class-sorted heat map; `labels`, `train_labels`; `pairs`, test images
        and their most helpful one.

    Raises:
        CheckpointError, DataError, ConfigError: The source or the data set is unusable,
            or they do not fit together.
    """
    source = open_source(name, download=config.download)
    side = config.resolution or source.resolution
    splits = open_dataset(config.data, resolution=side, **config.options)
    check_same_classes(source, splits.test)
    judged = seen_by(source, splits.test)
    options = options_for(source, splits.test, config)
    train = at_most(seen_by(source, splits.train), config.num_train, config.seed)
    test = at_most(judged, config.num_test, config.seed)
    if config.queries == "train":
        test = train
    setting = InfluenceSetting(
        num_train=len(train),
        num_test=len(test),
        queries=config.queries,
        cutoff=config.cutoff if config.damping is None else None,
        damping=config.damping,
    )

    def compute(portions: Portions) -> Findings:
        model = source.load().to(options.device)
        cache = FeatureCache.at(config.feature_cache)
        read: dict[str, ImageSet] = {}
        layers: dict[str, LastLayer] = {}
        try:
            for images in (train, test):
                extractor = partial(_extract, portions, images.split)
                what = f"{source.name}, {images.split}"
                found = cache.features(model, images, options, what, extractor)
                if found.stands_in is not None:  # no image may count twice
                    images = Subset(images, np.flatnonzero(~found.stands_in))
                read[images.split] = images
                layers[images.split] = _last_layer(model, source, found.judged())
            influences = influence(
                layers[train.split],
                layers[test.split],
                cutoff=config.cutoff,
                damping=config.damping,
            )
        except ValueError as error:
            raise ConfigError(f"{source.name}: {error}") from None
        return _summarize(influences, read[train.split], read[test.split], options)

    return Analysis(
        source=source_record(source),
        target=target_record(test, side, config.name_with_options(splits.name)),
        setting=setting,
        compute=compute,
        seed=config.seed,
        shared=False,  # the process that fills the cache of features computes all
    )


def _extract(
    portions: Portions, name: str, model: NormalizedModel, loader: Loader, what: str
) -> Features:
    """Embed the images of a loader as `extract` does; each batch is a portion."""
    images, size = loader.imageset, loader.options.batch_size

    def embed(first: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        embed_batch = embedder(model)
        for number, batch in numbered_batches(loader, first):
            rows = batch.indices.cpu().numpy()
            yield number, {"rows": rows, "values": embed_batch(batch)}

    values = np.empty((len(images), model.embedding_dim), np.float32)
    read = np.zeros(len(images), dtype=np.bool_)
    key = f"embeddings-{name}-{size}"
    for found in portions.each(key, len(loader), embed, f"batches of {what}"):
        values[found["rows"]], read[found["rows"]] = found["values"], True
    return completed(loader, values, read)


def _last_layer(model: NormalizedModel, source: Source, found: Features) -> LastLayer:
    if not model.head_is_linear:
        raise CheckpointError(
            f"{source.name}: the last layer of {source.arch} is not a linear function of an "
            "embedding, so that influence has no closed form; use another architecture"
        )
    weight = model.head.weight.detach().float().flatten(1).cpu().numpy()
    bias = model.head.bias
    return LastLayer.from_embeddings(
        found.values,
        found.labels,
        weight,
        None if bias is None else bias.detach().float().cpu().numpy(),
    )


def most_influential(found: Array, count: int) -> NDArray[np.int64]:
    """Return the positions of the training images with the largest influence.

    Args:
        found: What `influence` returned, [n_test, n_train].
        count: Number of images; at most all are returned.

    Returns:
        int64 [n_test, count], the most helpful first; of equal ones the first.
    """
    return np.argsort(-found, axis=1, kind="stable")[:, :count]


def _summarize(
    found: Array, train: ImageSet, test: ImageSet, options: LoaderOptions
) -> Findings:
    """Return what is kept of the influences."""
    top = most_influential(found, RANKS)
    same = train.labels[top] == test.labels[:, None]
    n = len(test)
    numbers = [Measured.share_of("same_class_top1", int(same[:, 0].sum()), n)]
    if top.shape[1] >= 5:
        count = int((same[:, :5].sum(1) >= 3).sum())
        numbers.append(Measured.share_of("same_class_3_of_5", count, n))
    arrays = {
        "top": top.astype(np.int32),
        "influence": np.take_along_axis(found, top, 1).astype(np.float32),
        "share_by_rank": same.mean(0),
        "map": heat_map(found, test.labels, train.labels),
        "labels": test.labels,
        "train_labels": train.labels,
        "pairs": _pairs(top[:, 0], train, test, options),
    }
    return Findings(numbers, arrays)


def heat_map(
    found: Array, labels: NDArray[np.int64], train_labels: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the influences, sorted by class, as a picture of at most 200 x 200 cells.

    Each test image's influences are divided by the largest of their absolute values;
    cells are means.

    Args:
        found: What `influence` returned, [n_test, n_train].
        labels: Classes of the test images, int64 [n_test].
        train_labels: Classes of the training images, int64 [n_train].
    """
    rows = np.argsort(labels, kind="stable")
    columns = np.argsort(train_labels, kind="stable")
    largest = np.abs(found).max(1, keepdims=True)
    scaled = found / np.where(largest > 0, largest, 1)
    ends = [
        np.linspace(0, size, min(size, _MAP) + 1).astype(int) for size in found.shape
    ]
    sums = np.add.reduceat(scaled[rows], ends[0][:-1], axis=0)
    sums = np.add.reduceat(sums[:, columns], ends[1][:-1], axis=1)
    cells = np.outer(np.diff(ends[0]), np.diff(ends[1]))
    return np.asarray(sums / cells, np.float32)


def _pairs(
    best: NDArray[np.int64], train: ImageSet, test: ImageSet, options: LoaderOptions
) -> NDArray[np.uint8]:
    """Return test images of different classes beside their most helpful training image.

    Returns:
        uint8 [m, 2, C, H, W].
    """
    _, first = np.unique(test.labels, return_index=True)
    shown = first[:: max(1, len(first) // _EXAMPLES)][:_EXAMPLES]
    chosen = ((test, shown), (train, best[shown]))
    return np.stack([pixels(*each, options).numpy() for each in chosen], 1)
