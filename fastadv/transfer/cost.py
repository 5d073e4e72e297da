"""What a sweep will cost: images passed, disk, and time on this machine."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastadv.device import resolve_device
from fastadv.errors import FastadvError
from fastadv.machine import usable_cores
from fastadv.progress import Progress, clock
from fastadv.statistics.power import Design
from fastadv.text_tables import text_table
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.experiment import Experiment
from fastadv.transfer.features import feature_key
from fastadv.transfer.probe import Probe
from fastadv.transfer.procedure import make_procedure
from fastadv.transfer.sweep import SweepPlan
from fastadv.transfer.work import Subject, Work, count_work

_FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class SweepCost:
    """The cost of what is left of a sweep.

    Attributes:
        tasks: Number of tasks that are left.
        rows: Number of rows that are left.
        passes: Images by what they pass: (architecture, side, kind of pass).
        seconds: Seconds of one worker by kind of work.
        longest: Seconds of the longest task, which no number of workers shortens.
        workers: Number of tasks at once.
        device: Device of the measurement.
        result_bytes: Bytes that the results take.
        feature_bytes: Bytes of the cached features.
        absent: Number of tasks that lack a source or a data set and are counted all the
            same, without the reading of images.
        uncounted: Number of tasks of which nothing is known.
        missing: What is missing.
        findable: Sentences on what differences the design can find.
    """

    tasks: int
    rows: int
    passes: dict[tuple[str, int, str], int]
    seconds: dict[str, float]
    longest: float
    workers: int
    device: str
    result_bytes: int
    feature_bytes: int
    absent: int
    uncounted: int
    missing: tuple[str, ...]
    findable: tuple[str, ...]

    @property
    def total(self) -> float:
        """Seconds until the sweep is done, with all workers."""
        return max(sum(self.seconds.values()) / self.workers, self.longest)

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as plain values that JSON can hold."""
        passes = [
            {"arch": arch, "side": side, "pass": kind, "images": images}
            for (arch, side, kind), images in self.passes.items()
        ]
        return vars(self) | {"passes": passes, "total_seconds": self.total}

    def text(self) -> str:
        """Return the cost as text for a terminal."""
        images = [
            [arch, f"{side} px", kind, f"{count:,}"]
            for (arch, side, kind), count in self.passes.items()
        ]
        lines = [
            f"{self.rows:,} row(s) in {self.tasks:,} task(s) are left.",
            "",
            text_table(["architecture", "images", "pass", "number"], images),
            "",
            text_table(
                ["work", "time of one worker"],
                [[kind, clock(value)] for kind, value in self.seconds.items()],
            ),
            "",
            f"Time: about {clock(self.total)} with {self.workers} worker(s) at once, "
            f"measured on this machine ({self.device}). Attacks are counted with all of "
            "their steps; features that are cached already take none.",
            f"Disk: about {self.result_bytes / 1e6:,.0f} MB of results and "
            f"{self.feature_bytes / 1e6:,.0f} MB of cached features.",
        ]
        if self.absent or self.uncounted:
            lines.append(
                f"Missing: {self.absent} task(s) lack a source or a data set. They are "
                "counted with published sizes and without the reading of images; "
                f"{self.uncounted} more are not counted, since nothing is known of them."
            )
        lines += [f"  {_first_clause(problem)}" for problem in self.missing]
        return "\n".join([*lines, *self.findable])


def _first_clause(problem: str) -> str:
    """Return what is missing, without what to do about it."""
    return re.split(r" \(looked|: expected|; |\. ", problem, maxsplit=1)[0]


def sweep_cost(plan: SweepPlan, workers: int = 1) -> SweepCost:
    """Measure a few passes of each kind, and multiply.

    Args:
        plan: The plan of the sweep, made with `survey=True`.
        workers: Number of tasks at once. On a CPU each has its share of the cores, and so
            it has while this measures.
    """
    here = [task.setting for task in plan.tasks]
    configs = [*here, *plan.absent]
    device = resolve_device(configs[0].device if configs else "auto")
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(max(1, min(before, usable_cores() // workers)))
    try:
        return _cost(plan, configs, len(here), Probe(device), workers)
    finally:
        torch.set_num_threads(before)


def _cost(
    plan: SweepPlan,
    configs: Sequence[TransferConfig],
    here: int,
    probe: Probe,
    workers: int,
) -> SweepCost:
    seconds, passes = Counter[str](), Counter[tuple[str, int, str]]()
    longest = 0.0
    embedded: set[Hashable] = set()
    features = uncounted = 0
    opened: dict[Hashable, tuple[Experiment, float]] = {}
    progress = Progress(len(configs))
    for number, config in enumerate(configs):
        progress.update(number, "measuring")
        subject = plan.subjects.get(config)
        if subject is None:
            uncounted += 1
            continue
        if config.mode == "scratch":  # sources of one architecture share the network
            shared = dataclasses.replace(
                config, source="", name=None, arch=subject.arch
            )
            if shared in embedded:
                continue
            embedded.add(shared)
        work = count_work(config, subject, embedded)
        experiment = _open(config, subject, opened) if number < here else None
        parts = _seconds(config, subject, work, probe, experiment)
        seconds.update(parts)
        longest = max(longest, sum(parts.values()))
        features += work.embedded * probe.dimension(subject.arch) * _FLOAT
        kinds = {
            "forward": work.embedded + work.judged,
            "forward and backward": work.trained,
            "attack step": work.attacked,
        }
        for kind, images in kinds.items():
            if images:
                passes[subject.arch, subject.side, kind] += images
    return SweepCost(
        tasks=len(configs),
        rows=sum(len(config.seeds) for config in configs),
        passes=dict(passes),
        seconds={kind: value for kind, value in seconds.items() if value},
        longest=longest,
        workers=workers,
        device=str(probe.device),
        result_bytes=plan.bytes_left,
        feature_bytes=features,
        absent=len(configs) - here - uncounted,
        uncounted=uncounted,
        missing=tuple(plan.missing),
        findable=tuple(_findable(plan, configs)),
    )


def _open(
    config: TransferConfig,
    subject: Subject,
    opened: dict[Hashable, tuple[Experiment, float]],
) -> tuple[Experiment, float] | None:
    """Return an experiment like `config`, and the seconds that opening it takes."""
    place = (subject.arch, subject.dataset, subject.side, config.downscale)
    key = (*place, config.protocol, config.augment, config.on_cached_features)
    if key not in opened:
        began = time.monotonic()
        try:
            experiment = Experiment(config)
            if config.on_cached_features:
                options = experiment.options(train=False)
                for images in (experiment.splits.train, experiment.splits.test):
                    feature_key(experiment.frozen, images, options)
            else:
                experiment.load_model()
        except FastadvError:  # the sweep itself will say it
            return None
        opened[key] = experiment, time.monotonic() - began
    return opened[key]


def _seconds(
    config: TransferConfig,
    subject: Subject,
    work: Work,
    probe: Probe,
    known: tuple[Experiment, float] | None,
) -> dict[str, float]:
    """Return the seconds of one task by kind of work."""
    arch, side = subject.arch, subject.side
    found = {"opening": 0.0, "features": 0.0, "training": 0.0, "judging": 0.0}
    if work.embedded:
        found["features"] = work.embedded * probe.forward(arch, side)
    if work.judged:
        found["judging"] = work.judged * probe.forward(arch, side)
    if work.attacked:
        found["judging"] += work.attacked * probe.gradient(arch, side)
    if work.trained:
        n = min(config.num_train or subject.train, subject.train)
        procedure = make_procedure(config, config.dataset, n, side)
        found["training"] = work.trained * probe.train(config, procedure, arch, side)
    dimension = probe.dimension(arch) if work.fits or work.grids else 0
    found["heads"] = sum(
        strengths * probe.exact_fit(n, dimension, subject.classes)
        for n, strengths in work.fits
    ) + sum(
        epochs * probe.sgd_grid(n, dimension, subject.classes, heads)
        for n, epochs, heads in work.grids
    )
    if known is not None:
        experiment, found["opening"] = known
        _add_reading(found, experiment, work, probe, subject)
    return found


def _add_reading(
    found: dict[str, float],
    experiment: Experiment,
    work: Work,
    probe: Probe,
    subject: Subject,
) -> None:
    """Add the time that reading images takes, where it is not hidden behind a GPU."""
    images, place = experiment.splits.test, (subject.dataset, subject.side)
    key = (*place, experiment.config.downscale)
    first, later = probe.reading(
        (*key, "test"), images, experiment.options(train=False)
    )
    times = {"features": work.embedded * first, "judging": work.judged * later}
    if work.trained:
        options = experiment.options(train=True)
        which = (*key, options.augment, options.batch_size, "train")
        images = experiment.splits.train
        first, later = probe.reading(which, images, options)
        once = len(images) * (first - later)  # where the first pass keeps them
        times["training"] = work.trained * later + max(0.0, once)
    for kind, seconds in times.items():
        if probe.device.type == "cpu":
            found[kind] += seconds
        else:
            found[kind] = max(found[kind], seconds)


def _findable(plan: SweepPlan, configs: Sequence[TransferConfig]) -> list[str]:
    """Say what leads of robust sources the design can find."""
    trained = {
        (c.source, plan.trained[c.source]) for c in configs if c.source in plan.trained
    }
    robust = Counter(threat for _, threat in trained if threat[1])
    if not robust or not any(not threat[1] for _, threat in trained):
        return ["There is no robust and standard source to compare."]
    archs = {s.arch for c in configs if (s := plan.subjects.get(c))}
    seeds: dict[TransferConfig, set[int]] = {}
    for config in configs:
        alike = dataclasses.replace(config, seeds=(0,))
        seeds.setdefault(alike, set()).update(config.seeds)
    sizes = [s.test for c in configs if (s := plan.subjects.get(c))]
    design = Design(
        seeds=min(map(len, seeds.values())),
        runs=max(1, min(robust.values()) // max(1, len(archs))),
        sets=len({config.dataset for config in configs}),
        radii=len(robust),
        images=min(sizes) if all(c.keeps("verdicts") for c in configs) else None,
    )
    return design.sentences()
