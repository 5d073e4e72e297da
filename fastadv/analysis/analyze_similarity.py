"""The analysis of similarity: which layers of two networks represent images alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.analysis.config import SimilarityConfig
from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.images import options_for, seen_by
from fastadv.analysis.portions import numbered_batches
from fastadv.analysis.similarity import SVCCA, LinearCKA, alignment, pool
from fastadv.data import Batch, make_loader
from fastadv.data.sets.subsets import at_most
from fastadv.errors import ConfigError, unknown_name
from fastadv.evaluation.rows import source_record, target_record
from fastadv.evaluation.source import open_for
from fastadv.models import NormalizedModel, activations
from fastadv.models.intermediate import EMBEDDING, activation_names
from fastadv.models.source import Source, open_source
from fastadv.results.analysis_settings import SimilaritySetting
from fastadv.results.portions import Portions

Both: TypeAlias = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Activations of both networks for the same images, by layer."""


def prepare(config: SimilarityConfig, name: str) -> Analysis:
    """Prepare to compare the layers of a source with those of another network.

    Both see the same test images, each at its own resolution unless one is given.

    Args:
        config: The choices.
        name: The source, one of `config.source`.

    Returns:
        The analysis. It has one row for every layer that both networks have
        (`cka:layer1`, ...), or if there is none for the last of each. Arrays beside them:
        `matrix` float64 [layers, other layers], `layers`, `other_layers`.

    Raises:
        CheckpointError, DataError, ConfigError: A network or the data set is unusable, a
            layer does not exist or is constant, or there are too few images.
    """
    sources = [
        open_source(each, download=config.download) for each in (name, config.other)
    ]
    layers, others = _layers_of_both(config, sources)
    sides = [config.resolution or source.resolution for source in sources]
    tests = [
        open_for(sources[0], config.data, side, config.options).test for side in sides
    ]
    images = [
        seen_by(source, at_most(test, config.num_images, config.seed))
        for source, test in zip(sources, tests, strict=True)
    ]
    options = [options_for(*pair, config) for pair in zip(sources, tests, strict=True)]

    def activations_of(first: int) -> Iterator[tuple[int, Both]]:
        models = [
            source.load().eval().to(each.device)
            for source, each in zip(sources, options, strict=True)
        ]
        streams = [
            numbered_batches(make_loader(part, **vars(each)), first)
            for part, each in zip(images, options, strict=True)
        ]
        for (number, ours), (_, theirs) in zip(*streams, strict=True):
            yield (
                number,
                (
                    _record(models[0], ours, layers),
                    _record(models[1], theirs, others),
                ),
            )

    def compute(portions: Portions) -> Findings:
        work = portions, len(images[0]), activations_of
        try:
            if config.measure == "cka":
                sums = _hsic_sums(*work, config.batch_size)
                matrix = alignment(sums, layers, others)
            else:
                matrix = _svcca(config.variance, *work, config.batch_size)
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

    return Analysis(
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
        compute=compute,
        seed=config.seed,
    )


def _hsic_sums(
    portions: Portions,
    n: int,
    activations_of: Callable[[int], Iterable[tuple[int, Both]]],
    batch_size: int,
) -> NDArray[np.float64]:
    """Return `LinearCKA.sums` of all n images; each batch is a portion."""
    # A last batch of fewer than four images joins the one before it.
    last = max(0, (n + batch_size - 4) // batch_size - 1)

    def sums(first: int) -> Iterator[tuple[int, dict[str, NDArray[np.float64]]]]:
        final = LinearCKA()
        for number, both in activations_of(first):
            if number >= last:
                final.update(*both)
                continue
            measure = LinearCKA()
            measure.update(*both)
            yield number, {"sums": measure.sums()}
        yield last, {"sums": final.sums()}

    found = [each["sums"] for each in portions.each("cka", last + 1, sums)]
    return np.asarray(functools.reduce(np.add, found))


def _svcca(
    variance: float,
    portions: Portions,
    n: int,
    activations_of: Callable[[int], Iterable[tuple[int, Both]]],
    batch_size: int,
) -> NDArray[np.float64]:
    """Return the SVCCA of all n images; each batch's pooled activations are a portion."""

    def pooled(first: int) -> Iterator[tuple[int, dict[str, NDArray[np.float64]]]]:
        for number, both in activations_of(first):
            yield (
                number,
                {
                    f"{side} {layer}": pool(x).cpu().numpy()
                    for side, of_side in enumerate(both)
                    for layer, x in of_side.items()
                },
            )

    measure = SVCCA(variance)
    key, total = f"pooled-batches-of-{batch_size}", -(-n // batch_size)
    for found in portions.each(key, total, pooled):
        both: Both = {}, {}
        for name, values in found.items():
            side, _, layer = name.partition(" ")
            both[int(side)][layer] = torch.from_numpy(values)
        measure.update(*both)
    return measure.matrix()


def _layers_of_both(
    config: SimilarityConfig, sources: Sequence[Source]
) -> tuple[list[str], list[str]]:
    """Return the layers of each network that are compared."""
    models = [source.load() for source in sources]
    layers = _layers(models[0], sources[0], config.layers)
    others = config.other_layers or _same(models[1], layers)
    return layers, _layers(models[1], sources[1], others)


def _layers(model: NormalizedModel, source: Source, wanted: Sequence[str]) -> list[str]:
    """Return the layers that are wanted, or the stages and the embedding."""
    if not wanted:
        return [*(stage.name for stage in model.stages()), EMBEDDING]
    known = activation_names(model.net)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"{source.name}: {unknown_name('layer', name, known)}")
    return list(dict.fromkeys(wanted))


def _same(model: NormalizedModel, layers: Sequence[str]) -> Sequence[str]:
    """Return the layers if the model has all of them, else none."""
    return layers if activation_names(model.net).issuperset(layers) else ()


@torch.no_grad()
def _record(
    model: NormalizedModel, batch: Batch, layers: Sequence[str]
) -> dict[str, Tensor]:
    z = model.normalize(batch.images.float() / 255)
    return activations(model, z, layers)
