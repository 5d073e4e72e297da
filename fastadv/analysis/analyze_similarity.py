"""The analysis of similarity: which layers of two networks represent images alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastadv.analysis.config import SimilarityConfig
from fastadv.analysis.contract import Findings, Measured, measure_once
from fastadv.analysis.images import options_for
from fastadv.analysis.similarity import SVCCA, LinearCKA
from fastadv.data import Batch, make_loader, open_dataset
from fastadv.data.sets.subsets import at_most
from fastadv.errors import ConfigError, unknown_name
from fastadv.evaluation.rows import source_record, target_record
from fastadv.models import NormalizedModel, activations
from fastadv.models.intermediate import EMBEDDING
from fastadv.models.source import Source, open_source
from fastadv.progress import Progress
from fastadv.results.analysis_settings import SimilaritySetting
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable


def analyze_similarity(
    config: SimilarityConfig, name: str, table: ResultsTable
) -> list[Row]:
    """Compare the layers of a source with those of another network.

    Both see the same test images, each at its own resolution unless one is given.

    Args:
        config: The choices.
        name: The source, one of `config.source`.
        table: Results table of the rows.

    Returns:
        One row for every layer that both networks have (`cka:layer1`, ...), or if there
        is none for the last of each. Arrays beside them: `matrix` float64 [layers, other
        layers], `layers`, `other_layers`.

    Raises:
        CheckpointError, DataError, ConfigError: A network or the data set is unusable, a
            layer does not exist or is constant, or there are too few images.
    """
    sources = [
        open_source(each, download=config.download) for each in (name, config.other)
    ]
    models = [source.load().eval() for source in sources]
    layers = _layers(models[0], sources[0], config.layers)
    others = config.other_layers or _same(models[1], layers)
    others = _layers(models[1], sources[1], others)
    sides = [config.resolution or source.resolution for source in sources]
    tests = [
        open_dataset(config.data, resolution=side, **config.options).test
        for side in sides
    ]
    images = [at_most(test, config.num_images, config.seed) for test in tests]
    options = [options_for(*pair, config) for pair in zip(sources, tests, strict=True)]

    def batches(which: int) -> Iterator[dict[str, Tensor]]:
        loader = make_loader(images[which], **vars(options[which]))
        model = models[which].to(options[which].device)
        return (_record(model, batch, (layers, others)[which]) for batch in loader)

    def compute() -> Findings:
        measure = LinearCKA() if config.measure == "cka" else SVCCA(config.variance)
        progress = Progress(-(-len(images[0]) // config.batch_size))
        try:
            for number, pair in enumerate(zip(batches(0), batches(1), strict=True)):
                measure.update(*pair)
                progress.update(number + 1, "batches")
            matrix = measure.matrix()
        except ValueError as error:
            raise ConfigError(f"{name} and {config.other}: {error}") from None
        pairs = [(layer, layer) for layer in layers if layer in others]
        numbers = [
            Measured(
                f"{config.measure}:{ours if ours == theirs else f'{ours}~{theirs}'}",
                float(matrix[layers.index(ours), others.index(theirs)]),
                n=len(images[0]),
            )
            for ours, theirs in pairs or [(layers[-1], others[-1])]
        ]
        arrays = {
            "matrix": matrix,
            "layers": np.array(layers),
            "other_layers": np.array(others),
        }
        return Findings(numbers, arrays)

    return measure_once(
        table,
        compute,
        source=source_record(sources[0]),
        target=target_record(
            images[0], sides[0], config.name_with_options(images[0].name)
        ),
        setting=SimilaritySetting(
            other=sources[1].name,
            other_digest=sources[1].digest,
            other_resolution=sides[1],
            measure=config.measure,
            num_images=len(images[0]),
            preparation=options[0].preparation,
            other_preparation=options[1].preparation,
            layers=tuple(layers),
            other_layers=tuple(others),
            batch_size=config.batch_size if config.measure == "cka" else None,
            variance=config.variance if config.measure == "svcca" else None,
        ),
        seed=config.seed,
    )


def _layers(model: NormalizedModel, source: Source, wanted: Sequence[str]) -> list[str]:
    """Return the layers that are wanted, or the stages and the embedding."""
    if not wanted:
        return [*(stage.name for stage in model.stages()), EMBEDDING]
    known = {EMBEDDING, *(name for name, _ in model.net.named_modules() if name)}
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"{source.name}: {unknown_name('layer', name, sorted(known))}"
            )
    return list(dict.fromkeys(wanted))


def _same(model: NormalizedModel, layers: Sequence[str]) -> Sequence[str]:
    """Return the layers if the model has all of them, else none."""
    known = {EMBEDDING, *(name for name, _ in model.net.named_modules())}
    return layers if known.issuperset(layers) else ()


@torch.no_grad()
def _record(
    model: NormalizedModel, batch: Batch, layers: Sequence[str]
) -> dict[str, Tensor]:
    z = model.normalize(batch.images.float() / 255)
    return activations(model, z, layers)
