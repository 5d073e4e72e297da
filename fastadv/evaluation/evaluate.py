"""Clean and robust accuracy of a model over batches, with confidence intervals."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastadv.attacks.autoattack import BLACK_BOX
from fastadv.attacks.checks import Checks, check_model, masking_warning
from fastadv.attacks.contract import Attack
from fastadv.data import Batch
from fastadv.evaluation.journal import BatchVerdict, Journal
from fastadv.kernels import normalize
from fastadv.models import NormalizedModel
from fastadv.models.view import AttackView
from fastadv.statistics import wilson

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """How many images of each class were classified correctly.

    Attributes:
        correct: int64 [K].
        total: int64 [K].
    """

    correct: Tensor
    total: Tensor

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.total.sum())

    @property
    def top1(self) -> float:
        """Share of all images, in [0, 1]."""
        return float(self.correct.sum()) / max(self.n, 1)

    @property
    def mean_per_class(self) -> float:
        """Mean over the classes that have images, in [0, 1]."""
        present = self.total > 0
        return float((self.correct[present] / self.total[present]).mean())

    def value(self, metric: str) -> float:
        """`top1` or `mean_per_class`, in [0, 1]."""
        return self.mean_per_class if metric == "mean_per_class" else self.top1

    def interval(self, metric: str) -> tuple[float, float]:
        """95 % confidence interval of `metric` over the draw of test images.

        Wilson's interval for top-1; for the mean per class, the normal interval from
        the per-class binomial variances.
        """
        if metric == "top1":
            return wilson(int(self.correct.sum()), self.n)
        present = self.total > 0
        total = self.total[present].double()
        # One added success and failure keep classes that are all right from
        # claiming zero variance (Agresti and Coull 1998).
        share = (self.correct[present].double() + 1) / (total + 2)
        spread = math.sqrt(float((share * (1 - share) / total).sum())) / len(total)
        middle = self.mean_per_class
        return max(0.0, middle - 1.96 * spread), min(1.0, middle + 1.96 * spread)


@dataclass(frozen=True)
class StageResult:
    """One attack of an evaluation.

    Attributes:
        name: of the attack.
        attacked: images that reached it.
        robust: what is classified correctly after it and all attacks before it.
        seconds: wall time.
    """

    name: str
    attacked: int
    robust: Accuracy
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on clean images and, if there was an attack, on attacked ones.

    An image counts as robust when it is classified correctly and stays so.

    Attributes:
        clean: without attack.
        robust: after all attacks.
        stages: each attack in turn.
        checks: of the model, if they were asked for.
    """

    clean: Accuracy
    robust: Accuracy | None = None
    stages: tuple[StageResult, ...] = ()
    checks: Checks | None = None

    @property
    def black_box_gain(self) -> float | None:
        """Share of all images that fell to a black-box attack after white-box ones.

        None where no black-box attack followed another.
        """
        for before, after in pairwise(self.stages):
            if after.name in BLACK_BOX:
                return before.robust.top1 - after.robust.top1
        return None

    def warnings(self) -> list[str]:
        """Why the robust accuracy may not be what it seems, a sentence each."""
        found = self.checks.warnings() if self.checks else []
        masked = masking_warning(self.black_box_gain or 0.0)
        return [*found, masked] if masked else found


def evaluate(
    model: NormalizedModel,
    batches: Iterable[Batch],
    attack: Attack | None = None,
    *,
    checks: bool = False,
    journal: Journal | None = None,
    offset: int = 0,
) -> Evaluation:
    """Classify every batch in eval mode, and attack it when `attack` is given.

    The model's mode comes back as it was; nothing else of it changes.

    Args:
        model: classifier of [0, 1] images.
        batches: of a loader in evaluation mode.
        attack: judged per image; random starts are numbered through the whole set.
        checks: also look for what makes robust accuracies misleading.
        journal: verdicts of finished batches are taken from it, new ones added to it.
        offset: number of the first image in that numbering, for a part of a set.
    """
    view = AttackView(model)
    target = view if attack is None else attack.prepare(model)
    done = {} if journal is None else dict(journal.verdicts)
    seen = offset
    for number, batch in enumerate(batches):
        if number not in done:
            verdict = _judge(model, view, batch, attack, target, checks, seen)
            done[number] = verdict
            if journal is not None:
                journal.add(number, verdict)
        seen += len(batch.labels)
    names = () if attack is None else attack.names
    return summarize(list(done.values()), names, model.num_classes)


def _judge(
    model: NormalizedModel,
    view: AttackView,
    batch: Batch,
    attack: Attack | None,
    target: nn.Module,
    checks: bool,
    offset: int,
) -> BatchVerdict:
    labels = batch.labels
    with torch.no_grad():
        z = normalize(batch.images, mean=model.mean, std=model.std)
        right = view(z).argmax(1) == labels
    looked = check_model(model, view, batch.images, labels) if checks else None
    fell_to = torch.zeros_like(labels)
    seconds: tuple[float, ...] = ()
    nonfinite = 0
    if attack is not None:
        began = time.perf_counter()
        found = attack(target, batch.images, labels, offset=offset)
        fell_to, nonfinite = found.fell_to, int(found.nonfinite)  # waits for the device
        # The last attack has ended when the device has.
        before = found.seconds[:-1]
        seconds = (*before, time.perf_counter() - began - sum(before))
    fell_to = torch.where(right, fell_to, -torch.ones_like(fell_to))
    return BatchVerdict(
        labels.tolist(), fell_to.tolist(), list(seconds), nonfinite, looked
    )


def summarize(
    verdicts: Sequence[BatchVerdict], names: Sequence[str], num_classes: int
) -> Evaluation:
    """Add up the verdicts on all batches.

    Args:
        verdicts: of the batches.
        names: of the attacks, in order.
        num_classes: of the model.
    """
    labels = torch.tensor([y for v in verdicts for y in v.labels], dtype=torch.int64)
    fell = torch.tensor([f for v in verdicts for f in v.fell_to], dtype=torch.int64)
    total = labels.bincount(minlength=num_classes)

    def after(stage: int) -> Accuracy:
        held = labels[fell > stage]
        return Accuracy(held.bincount(minlength=num_classes), total)

    stages = tuple(
        StageResult(
            name,
            attacked=int((fell >= number).sum()),
            robust=after(number),
            seconds=sum(v.seconds[number] for v in verdicts),
        )
        for number, name in enumerate(names)
    )
    looked = [v.checks for v in verdicts if v.checks is not None]
    nonfinite = sum(v.nonfinite for v in verdicts)
    if nonfinite:
        log.warning(
            "%d gradient elements were not finite and moved nothing: the attack is "
            "weaker than it looks",
            nonfinite,
        )
    return Evaluation(
        clean=after(-1),
        robust=stages[-1].robust if stages else None,
        stages=stages,
        checks=sum(looked, Checks()) if looked else None,
    )
