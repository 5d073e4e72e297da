"""The evaluation of a pretrained network on a data set: what fastadv-eval does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastadv import __version__
from fastadv.attacks import PGD, Attack, Budget, Cascade, ThreatModel, make_attack
from fastadv.attacks.bpda import BPDA, Transfer
from fastadv.attacks.package import check_classes
from fastadv.data import (
    Batch,
    DatasetSplits,
    ImageSet,
    Loader,
    make_loader,
    open_dataset,
    open_judged_splits,
    subset,
)
from fastadv.data.metric import is_own
from fastadv.data.sets.robustbench_images import NAME as ROBUSTBENCH, robustbench_images
from fastadv.data.sets.subsets import Downscaled, listed_subset, readable
from fastadv.device import resolve_device
from fastadv.errors import ConfigError
from fastadv.evaluation.accuracy import Accuracy, Evaluation, check_on_few
from fastadv.evaluation.config import EvaluationConfig
from fastadv.evaluation.journal import Journal, KeptJournal
from fastadv.evaluation.judging import evaluate
from fastadv.evaluation.matching import Matched, check_all_outputs, match_classes
from fastadv.evaluation.preparing import preparation_for
from fastadv.evaluation.radii import RadiusGrid
from fastadv.evaluation.rows import (
    checks_record,
    evaluation_rows,
    store,
    target_record,
)
from fastadv.kernels import use_backend
from fastadv.models import NormalizedModel
from fastadv.models.source import Source, open_source
from fastadv.progress import Progress
from fastadv.results.row import Row
from fastadv.results.settings import EvaluationSetting
from fastadv.results.table import ResultsTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceEvaluation:
    """An evaluation of a pretrained network, in each form in which it is kept.

    Attributes:
        found: Accuracies, with the verdict on each image and its logits.
        result: The same in plain values without the images, as fastadv-eval prints it.
            Accuracies are shares in [0, 1].
        rows: Rows of the results table: clean accuracy, then robust accuracy.
    """

    found: Evaluation
    result: dict[str, Any]
    rows: list[Row]


def _list_file(config: EvaluationConfig) -> str | Path:
    """Return the file of the list of images that a configuration names."""
    named = str(config.image_list)
    if named == ROBUSTBENCH and not Path(named).is_file():
        return robustbench_images(download=config.download)
    return named


def evaluate_checkpoint(config: EvaluationConfig) -> SourceEvaluation:
    """Evaluate the network that a configuration names, and store rows in its table.

    Raises:
        CheckpointError, DataError, ConfigError: The network, the data set, the results
            table or the choices are unusable, or do not fit together.
    """
    source = open_source(config.checkpoint, arch=config.arch, download=config.download)
    resolution = config.resolution or source.resolution
    splits = open_for(source, config.data, resolution, config.options)
    matched = match_classes(
        source, splits.test, config.class_map, all_outputs=config.all_outputs
    )
    check_all_outputs(matched, config.all_outputs)
    attack = _attack(config, _threats(config, source, resolution))
    if config.image_list is not None:
        images = listed_subset(matched.images, _list_file(config))
    else:
        images = subset(matched.images, config.num_images, config.seed)
    side = source.downscale
    prepared = preparation_for(source, splits.test, resolution, config)
    loader = make_loader(
        images if side is None else Downscaled(images, side),
        batch_size=config.batch_size,
        resolution=resolution,
        train=False,
        augment=source.augment,
        preparation=prepared.how,
        channels=source.channels,
        device=resolve_device(config.device),
        workers=config.workers,
        on_bad_image=config.on_bad_image,
    )
    table = ResultsTable(config.results)
    table.prepare()
    kept = KeptJournal(table.path)
    journal: Callable[[dict[str, Any]], Journal] = kept
    if config.out is not None:
        folder = Path(config.out).expanduser()
        journal = partial(Journal, folder, resume=config.resume)
    with use_backend(config.backend):
        evaluated = evaluate_source(
            source,
            loader,
            attack,
            seed=config.seed,
            setting=EvaluationSetting(
                num_images=config.num_images,
                chose_preparation=prepared.chosen,
                class_map=matched.class_map.digest,
                left_out=len(matched.class_map.left_out),
                all_outputs=matched.all_outputs,
            ),
            matched=matched,
            metric=splits.metric,
            target_name=config.name_with_options(splits.name),
            journal=journal,
        )
    evaluated.result["prepared"] = str(prepared)
    judged = readable(images, {name for name, _ in loader.bad_images})
    rows = store(table, evaluated.rows, evaluated.found, judged, config)
    kept.remove()
    return replace(evaluated, rows=rows)


def evaluate_source(
    source: Source,
    loader: Loader,
    attack: Attack | None = None,
    *,
    seed: int = 0,
    setting: EvaluationSetting | None = None,
    target_name: str | None = None,
    journal: Callable[[dict[str, Any]], Journal] | None = None,
    matched: Matched | None = None,
    metric: str = "top1",
) -> SourceEvaluation:
    """Evaluate a pretrained network on images, clean and attacked.

    Args:
        source: The network.
        loader: Loader of the images in evaluation mode, on the device to compute on.
        attack: The attack; None measures clean accuracy only.
        seed: Seed that the images and the random starts were chosen with.
        setting: How the images were chosen; the rest of it is filled in.
        target_name: Name of the data set in the rows; None means that of the images.
        journal: Opens the journal for given settings, from which the evaluation resumes.
        matched: How the network was made to fit other classes than its own, which the
            labels of the images follow.
        metric: The metric of the data set; one of your own is measured, too.

    Raises:
        ConfigError: Network and images have different classes.
        ValueError: The network has too few classes for the attack.
    """
    images, options = loader.imageset, loader.options
    if matched is None or matched.groups is None:
        check_same_classes(source, images)
    if isinstance(attack, Cascade):
        attack = attack.for_classes(len(images.classes))
    if is_own(metric):
        check_on_few(metric, len(images.classes))
    if attack is not None:
        check_classes(attack.names, len(images.classes))
    unusual = options.unusual_preparation(images)
    settings: dict[str, Any] = {
        "checkpoint_sha256": source.file_digest,
        "source_hash": source.digest,
        "arch": source.arch,
        "data": images.name,
        "resolution": options.resolution,
        "seed": seed,
    }
    if attack is not None:
        described = attack.describe()
        settings["attack"] = described.pop("name")
        hidden = ("random_start", "keep")
        settings |= {k: v for k, v in described.items() if k not in hidden}
    opened = None
    if journal is not None:
        depends = {
            "data_fingerprint": images.fingerprint,
            "augment": options.augment,
            "batch_size": options.batch_size,
            "fastadv": __version__,
        }
        if matched is not None and matched.groups is not None:
            depends["outputs"] = matched.groups
        if unusual is not None:  # older journals do not have it
            depends["preparation"] = asdict(unusual)
        opened = journal(settings | depends)
    began = time.monotonic()
    model = source.load() if matched is None else matched.model(source)
    if isinstance(model, NormalizedModel):
        model.set_image_size(options.resolution)
    model = model.to(options.device).to(memory_format=torch.channels_last)
    found = evaluate(
        model,
        _with_progress(loader),
        attack,
        checks=attack is not None,
        journal=opened,
        keep_logits=True,
    )
    result = {"checkpoint": str(source.file)} | settings | _plain(found)
    rows = evaluation_rows(
        found,
        attack,
        source,
        command="fastadv-eval",
        metric=metric,
        target=target_record(images, options.resolution, target_name),
        setting=replace(
            setting or EvaluationSetting(),
            split=images.split,
            augment=options.augment,
            preparation=unusual,
            batch_size=options.batch_size,
            checked=attack is not None,
        ),
        seed=seed,
        bad_images=len(loader.bad_images),
        wall_seconds=round(time.monotonic() - began, 2),
    )
    if is_own(metric):
        own = [row for row in rows if row.metric == metric]
        for name, row in zip(("clean_metric", "robust_metric"), own, strict=False):
            ends = [end / 100 for end in (row.low, row.high) if end is not None]
            result |= {"metric": metric, name: row.value / 100, f"{name}_ci": ends}
    result["bad_images"] = len(loader.bad_images)
    if opened is not None:
        opened.finish(result)
    return SourceEvaluation(found, result, rows)


def open_for(
    source: Source, data: str, resolution: int, options: Mapping[str, Any]
) -> DatasetSplits:
    """Open the data set that a network is judged on, as `test` of what is returned.

    That is all of data without a training split. A network that was trained on the same
    data is judged on the part that its training held out.

    Args:
        source: The network.
        data: Name, path or address of the data set.
        resolution: Side in pixels at which procedural sets are drawn.
        options: Options of the data set.

    Raises:
        DataError, ConfigError: The data set cannot be opened.
    """
    trained = source.metadata().get("config", {}) if source.trained_here else {}
    open_it = open_judged_splits
    if trained.get("data") and _same_place(str(trained["data"]), data):
        open_it = open_dataset
    return open_it(data, resolution=resolution, **options)


def _same_place(one: str, other: str) -> bool:
    """Return whether two texts name one data set: the same text, or the same path."""
    if one == other:
        return True
    paths = [Path(text).expanduser() for text in (one, other)]
    return all(path.exists() for path in paths) and paths[0].samefile(paths[1])


def check_same_classes(source: Source, images: ImageSet) -> None:
    """Raise ConfigError unless a network tells apart the classes of the images."""
    source.require_classifier()
    theirs = images.classes
    num_classes = source.num_classes
    if num_classes != len(theirs):
        raise ConfigError(
            f"{source.file} has {num_classes} classes, {images.name} has "
            f"{len(theirs)}; evaluate on the data it was trained for, or use "
            "fastadv-transfer"
        )
    for ours, other in zip(source.classes, theirs, strict=False):
        if ours != other:
            raise ConfigError(
                f"{source.file} was trained on other classes than {images.name} has: "
                f"class {ours!r} stands where the data has {other!r}; evaluate on the "
                "data it was trained for, or use fastadv-transfer"
            )


def _threats(
    config: EvaluationConfig, source: Source, resolution: int
) -> list[ThreatModel]:
    """Return the threat models that were chosen, or that of the network's training."""
    chosen = config.radii or (() if config.eps is None else (config.eps,))
    if config.norm not in (None, source.norm) and not chosen:
        raise ConfigError(f"`norm={config.norm}` needs `eps`, e.g. 0.5 or 4/255")
    norm: Any = config.norm or source.norm or "l2"
    threats = [ThreatModel(norm, eps or 0.0) for eps in chosen or (source.eps,)]
    for threat in threats:
        threat.check_side(resolution)
    if doubt := max(threats, key=lambda each: each.eps).doubt(resolution):
        log.warning(doubt)
    return threats


def _attack(config: EvaluationConfig, threats: Sequence[ThreatModel]) -> Attack | None:
    """Return the attack that was chosen; None within a radius of zero."""
    if config.radii:
        radii = [threat.eps for threat in threats]
        return RadiusGrid(threats[0].norm, radii, partial(_made, config))
    return _made(config, threats[0]) if threats[0].eps else None


def _made(config: EvaluationConfig, threat: ThreatModel) -> Attack:
    """Return the attack within one radius, with the opinions that follow it."""
    attack = _first_opinion(config, threat)
    steps, seed = config.steps, config.seed
    if config.second_opinion:
        # BPDA climbs the margin: what the margin breaks by the model's own gradients is
        # no sign that they are masked.
        margin = PGD.judge(threat, steps, objective="margin", seed=seed)
        margin.name = "pgd-margin"
        attack = Cascade.of(attack).then(margin, "yes")
        attack = attack.then(BPDA(threat, steps, seed=seed), "yes")
    if config.twin is not None:
        twin = open_source(config.twin, download=config.download)
        model = twin.load().eval().to(resolve_device(config.device))
        transfer = Transfer(threat, model, steps, seed=seed)
        attack = Cascade.of(attack).then(transfer, str(twin.digest))
    return attack


def _first_opinion(config: EvaluationConfig, threat: ThreatModel) -> Attack:
    """Return the attack that runs first, and most often alone."""
    if config.attack == "pgd":
        own = {} if config.step_size is None else {"step_size": config.step_size}
        return PGD.judge(
            threat,
            config.steps,
            num_restarts=config.num_restarts,
            objective=config.objective,
            seed=config.seed,
            compile=config.compile,
            **own,
        )
    if config.attack == "ddn" and threat.norm != "l2":
        raise ConfigError(
            f"`attack=ddn` minimises l2, the threat is {threat}; use `norm=l2` with a "
            "radius `eps`, or `attack=fmn`"
        )
    budget = Budget(
        config.steps, config.num_restarts, config.num_targets, config.num_queries
    )
    return make_attack(
        config.attack, threat, budget, judge=config.judge, seed=config.seed
    )


def _with_progress(loader: Loader) -> Iterator[Batch]:
    """Yield the batches, and show how many are done."""
    progress = Progress(len(loader))
    for number, batch in enumerate(loader):
        yield batch
        progress.update(number + 1, "batches")


def _plain(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain values."""

    def shares(of: str, accuracy: Accuracy) -> dict[str, Any]:
        return {f"{of}_acc": accuracy.top1, f"{of}_ci": accuracy.interval("top1")}

    values = {"n": found.clean.n} | shares("clean", found.clean)
    values["nonfinite_logits"] = found.nonfinite_logits
    values["warnings"] = found.warnings()
    checks = checks_record(found)
    if found.robust is None or checks is None:
        return values
    stages = [
        {"name": stage.name, "attacked": stage.attacked}
        | shares("robust", stage.robust)
        | {"seconds": round(stage.seconds, 3)}
        for stage in found.stages
    ]
    more: dict[str, Any] = {
        "stages": stages,
        "checks": asdict(checks),
        "flags": found.flags(),
    }
    if found.passes:
        more["passes"] = found.passes
    return values | shares("robust", found.robust) | more
