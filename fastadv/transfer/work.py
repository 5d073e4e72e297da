"""The work of an experiment, counted before it is done: images passed, heads fitted."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from fastadv.data import DatasetSplits
from fastadv.data.sets.catalog import CATALOG
from fastadv.models.published import ROBUSTBENCH, facts_from_name
from fastadv.models.source import Source
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.features import FEW
from fastadv.transfer.heads import STRENGTHS
from fastadv.transfer.procedure import make_procedure
from fastadv.transfer.protocols import Procedure
from fastadv.transfer.tuned import SELECTION_STEPS


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an experiment works on, as far as its cost depends on it.

    Attributes:
        arch: Architecture of the source.
        side: Side of the images in pixels.
        train, test: Numbers of images of the data set.
        classes: Number of its classes.
        source: What tells sources apart.
        dataset: What tells data sets apart.
    """

    arch: str
    side: int
    train: int
    test: int
    classes: int
    source: Hashable
    dataset: Hashable


def subject_of(
    config: TransferConfig,
    source: Source | None,
    splits: DatasetSplits | None,
    side: int,
) -> Subject | None:
    """Return what an experiment works on; None where that is not known.

    Args:
        config: The choices of the experiment.
        source: The network that `config.source` names; None if it is not here. The
            architectures of published networks are known all the same.
        splits: The data set that `config.dataset` names; None if it is not here. Sets
            that are known by name have published sizes.
        side: Side of the images in pixels.
    """
    arch = source.arch if source else _arch_of_name(config)
    if splits is not None:
        counts = (len(splits.train.classes), len(splits.train), len(splits.test))
    elif config.dataset in CATALOG:
        counts = CATALOG[config.dataset].counts
    else:
        return None
    if arch is None:
        return None
    classes, train, test = counts
    return Subject(
        arch=arch,
        side=side,
        train=train,
        test=test,
        classes=classes,
        source=source.digest if source else config.source,
        dataset=(config.dataset, config.dataset_option),
    )


def _arch_of_name(config: TransferConfig) -> str | None:
    """Return the architecture of a source that is not here, if its name states it."""
    scheme, _, name = config.source.partition(",")[0].rpartition(":")
    if scheme == "salman2020" and (known := facts_from_name(name)):
        return known[0]
    if scheme == "robustbench" and name in ROBUSTBENCH:
        return ROBUSTBENCH[name].arch
    if scheme == "torchvision":
        return name.partition("/")[0]
    return config.arch


@dataclass(frozen=True, kw_only=True)
class Work:
    """Numbers of images that pass a network, and heads that are fitted.

    Attributes:
        embedded: Images that pass a frozen network once, for cached features.
        trained: Images that pass a network that trains, forward and backward; each of
            them also passes the attack of the training method, if there is one.
        judged: Images that are classified to choose or to test.
        attacked: Images times attack steps, to choose or to test; images that fall early
            take fewer.
        fits: Images and regularisation strengths of each exact fit of a head.
        grids: Images, epochs and heads of each fit of heads by SGD.
    """

    embedded: int = 0
    trained: int = 0
    judged: int = 0
    attacked: int = 0
    fits: tuple[tuple[int, int], ...] = ()
    grids: tuple[tuple[int, int, int], ...] = ()


def count_work(
    config: TransferConfig, subject: Subject, embedded: set[Hashable]
) -> Work:
    """Count the work of an experiment with all its seeds.

    Args:
        config: The choices of the experiment.
        subject: What it works on.
        embedded: The image sets whose features other experiments compute; those of this
            one are added, so that each counts once.
    """
    n = min(config.num_train or subject.train, subject.train)
    procedure = make_procedure(config, config.dataset, n, subject.side)
    held = _held_out(config, n, subject.classes) if config.holds_out else 0
    if config.on_cached_features:
        return _fixed(config, subject, procedure, n, held, embedded)
    judge = subject.test if procedure.select_on == "test" else held
    runs, epochs = len(procedure.candidates()), procedure.epochs
    every = procedure.select_every
    chosen_from = sum(
        epoch == epochs or bool(every and (epoch - 1) % every == 0)
        for epoch in range(1, epochs + 1)
    )
    tried = runs * chosen_from * judge
    robust = procedure.select_by == "robust" and config.method_config is not None
    again = procedure.refit
    curves = (runs + again) * len(config.test_epochs) * subject.test
    seeds = len(config.seeds)
    return Work(
        trained=seeds * epochs * (runs * (n - held) + again * n),
        judged=seeds * (tried + curves + subject.test),
        attacked=seeds
        * (tried * SELECTION_STEPS * robust + subject.test * _attack_steps(config)),
    )


def _attack_steps(config: TransferConfig) -> int:
    return 0 if config.robust_eps is None else config.judge_steps


def _held_out(config: TransferConfig, n: int, classes: int) -> int:
    """Return about how many of `n` images are held out: one of each class at least."""
    return min(max(round(config.val_fraction * n), min(classes, n // 2)), n - 1)


def _fixed(
    config: TransferConfig,
    subject: Subject,
    procedure: Procedure,
    n: int,
    held: int,
    embedded: set[Hashable],
) -> Work:
    """Count the work of heads on cached features."""
    place = (subject.source, subject.dataset, subject.side, config.downscale)
    sizes: dict[Hashable, int] = {(*place, "test"): subject.test}
    if config.num_train is not None and n <= FEW * subject.train:
        sizes |= {(*place, n, seed): n for seed in config.seeds}
    else:
        sizes[*place, "train"] = subject.train
    new = {part: size for part, size in sizes.items() if part not in embedded}
    embedded.update(new)
    seeds, attacked = len(config.seeds), subject.test * _attack_steps(config)
    fits: list[tuple[int, int]] = []
    grids: list[tuple[int, int, int]] = []
    if config.exact:
        usual = 1 if config.selects_on == "none" else len(STRENGTHS)
        strengths = len(config.strengths or ()) or usual
        fits = [(n - held, strengths)] * seeds + [(n, 1)] * (seeds * config.refits)
    else:
        heads, epochs = seeds * len(procedure.lrs), procedure.epochs
        grids = [(n - held, epochs, heads)]
        grids += [(n, epochs, seeds)] * config.refits
    return Work(
        embedded=sum(new.values()),
        judged=seeds * subject.test if attacked else 0,
        attacked=seeds * attacked,
        fits=tuple(fits),
        grids=tuple(grids),
    )
