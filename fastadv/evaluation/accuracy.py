"""What an evaluation found: verdicts on images, accuracies and their intervals."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import stdev

import torch
from torch import Tensor

from fastadv.attacks.autoattack import BLACK_BOX
from fastadv.attacks.checks import Checks, masking_warning
from fastadv.data import ImageSet
from fastadv.data.metric import METRICS, is_own, metric_value
from fastadv.statistics import wilson

log = logging.getLogger(__name__)

_RESAMPLES = 200  # of the images, for the interval of a metric of one's own


@dataclass(frozen=True)
class Accuracy:
    """Number of images of each class that were classified correctly.

    Attributes:
        correct: Correctly classified images of each class, int64 [K].
        total: Images of each class, int64 [K].
    """

    correct: Tensor
    total: Tensor

    @property
    def n(self) -> int:
        """Number of images of all classes."""
        return int(self.total.sum())

    @property
    def top1(self) -> float:
        """Share of all images that were classified correctly, in [0, 1]."""
        return float(self.correct.sum()) / max(self.n, 1)

    @property
    def mean_per_class(self) -> float:
        """Mean of the accuracies of the classes that have images, in [0, 1]."""
        present = self.total > 0
        return float((self.correct[present] / self.total[present]).mean())

    def value(self, metric: str) -> float:
        """Return the metric `top1` or `mean_per_class`, in [0, 1]."""
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r} needs logits; see Evaluation.value")
        return self.mean_per_class if metric == "mean_per_class" else self.top1

    def interval(self, metric: str) -> tuple[float, float]:
        """Return the 95 % confidence interval of a metric over the draw of test images.

        For `top1` it is Wilson's interval; for `mean_per_class`, the normal interval from
        the binomial variances of the classes.
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
class BatchVerdict:
    """What happened to the n images of one batch.

    Attributes:
        labels: Class of each image.
        fell_to: Index of the attack that fooled each image; -1 if it was misclassified
            without an attack, and the number of attacks if it withstood all of them.
        seconds: Wall time of each attack.
        nonfinite: Number of gradient elements that were not finite.
        checks: What the checks of the model found, if they were made.
        num_classes: Number of classes; 0 in journals that did not store it.
        clean_logits: Logits of the clean images, float32 [n, K], if they were kept.
        attacked_logits: Logits of the attacked images, float32 [n, K], if they were kept.
        passes: Number of images that the attack passed through the network; 0 if it does
            not count them.
        nonfinite_clean: Number of images whose clean logits are not finite.
        nonfinite_logits: Number of images whose logits, clean or attacked, are not finite.
        live_reason: Why the attack called the model itself, or None.
    """

    labels: list[int]
    fell_to: list[int]
    seconds: list[float]
    nonfinite: int = 0
    checks: Checks | None = None
    num_classes: int = 0
    clean_logits: Tensor | None = field(default=None, compare=False)
    attacked_logits: Tensor | None = field(default=None, compare=False)
    passes: int = 0
    nonfinite_clean: int = 0
    nonfinite_logits: int = 0
    live_reason: str | None = None


@dataclass(frozen=True, eq=False)
class ImageVerdicts:
    """What happened to each of N images, in the order in which they were evaluated.

    Attributes:
        labels: Class of each image, int64 [N].
        fell_to: Index of the attack that fooled each image, as in `BatchVerdict`, int64 [N].
        clean_logits: Logits of the clean images, float32 [N, K]; None if none were kept,
            NaN for images whose logits an older journal does not hold.
        attacked_logits: Logits of the adversarial images, with the same exceptions.
    """

    labels: Tensor
    fell_to: Tensor
    clean_logits: Tensor | None = None
    attacked_logits: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[ImageVerdicts]) -> ImageVerdicts:
        """Return the verdicts on several parts of a set one after the other.

        Logits are not kept.
        """
        labels, fell_to = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("labels", "fell_to")
        )
        return cls(labels, fell_to)

    def worst_logits(self, *, attacked: bool) -> Tensor:
        """Return the logits of clean images, or those of images after the attacks, [N, K].

        An image that was misclassified without an attack keeps its clean logits.

        Raises:
            ValueError: The logits were not kept.
        """
        clean, after = self.clean_logits, self.attacked_logits
        if clean is None or (attacked and after is None):
            raise ValueError("a metric of your own needs the logits: keep_logits=True")
        if after is None or not attacked:
            return clean
        return torch.where((self.fell_to == -1)[:, None], clean, after)

    def arrays(self) -> dict[str, Tensor]:
        """Return the arrays that are present, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class StageResult:
    """What one attack of an evaluation found.

    Attributes:
        name: Name of the attack.
        attacked: Number of images that reached it.
        robust: Images classified correctly after it and all attacks before it.
        seconds: Wall time.
    """

    name: str
    attacked: int
    robust: Accuracy
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on clean images and, if there was an attack, on attacked ones.

    An image counts as robust if it is classified correctly and no attack changes that.

    Attributes:
        clean: Accuracy on clean images.
        robust: Accuracy after all attacks.
        stages: Result of each attack in turn.
        checks: What the checks of the model found, if they were made.
        images: What happened to each image, if it is known.
        part: Where only some of the images were attacked, those images and what happened
            to them; `images` is then without the attack.
        passes: Number of images that the attacks passed through the network, with or
            without a gradient; 0 where they do not count them.
        nonfinite_clean: Number of images whose clean logits were NaN or infinite.
        nonfinite_logits: Number of images whose logits, clean or attacked, were NaN or
            infinite. They count as misclassified.
        nonfinite_gradients: Number of gradient elements that were not finite and moved
            nothing.
        live_reason: Why the attack called the model itself in place of its folded copy, or
            None where it did not.
    """

    clean: Accuracy
    robust: Accuracy | None = None
    stages: tuple[StageResult, ...] = ()
    checks: Checks | None = None
    images: ImageVerdicts | None = None
    part: tuple[ImageSet, ImageVerdicts] | None = None
    passes: int = 0
    nonfinite_clean: int = 0
    nonfinite_logits: int = 0
    nonfinite_gradients: int = 0
    live_reason: str | None = None

    @property
    def black_box_gain(self) -> float | None:
        """Share of all images that fell to black-box attacks after white-box ones.

        BPDA and transfer, which follow other gradients than the model's, count as black-box
        attacks. None where no such attack followed another.
        """
        for before, after in pairwise(self.stages):
            if after.name in BLACK_BOX:
                return before.robust.top1 - self.stages[-1].robust.top1
        return None

    def value(self, metric: str, *, attacked: bool = False) -> float:
        """Return a metric of the network on clean images, or under attack, in [0, 1].

        Args:
            metric: `top1`, `mean_per_class`, or the name of one of your own.
            attacked: Take the images after all attacks.

        Raises:
            ConfigError: The function of the metric fails.
            ValueError: It needs logits that were not kept, or there was no attack.
        """
        if not is_own(metric):
            return self._accuracy(attacked).value(metric)
        images = self._judged(attacked)
        logits = images.worst_logits(attacked=attacked)
        return metric_value(metric, logits, images.labels)

    def interval(self, metric: str, *, attacked: bool = False) -> tuple[float, float]:
        """Return the 95 % confidence interval of a metric over the draw of test images.

        That of a metric of your own is the normal interval with the standard deviation over
        200 resamples of the images, or where these agree, that of a share of as many images
        after one added success and failure; see `Accuracy.interval` for the others.
        """
        if not is_own(metric):
            return self._accuracy(attacked).interval(metric)
        images = self._judged(attacked)
        logits, labels = images.worst_logits(attacked=attacked), images.labels
        generator = torch.Generator().manual_seed(0)
        values = []
        for _ in range(_RESAMPLES):
            drawn = torch.randint(len(labels), (len(labels),), generator=generator)
            values.append(metric_value(metric, logits[drawn], labels[drawn]))
        middle, spread = self.value(metric, attacked=attacked), stdev(values)
        if spread == 0:
            share = (middle * len(labels) + 1) / (len(labels) + 2)
            spread = math.sqrt(share * (1 - share) / len(labels))
        return max(0.0, middle - 1.96 * spread), min(1.0, middle + 1.96 * spread)

    def _accuracy(self, attacked: bool) -> Accuracy:
        accuracy = self.robust if attacked else self.clean
        if accuracy is None:
            raise ValueError("there was no attack, so there is no robust accuracy")
        return accuracy

    def _judged(self, attacked: bool) -> ImageVerdicts:
        images = self.part[1] if attacked and self.part is not None else self.images
        if images is None:
            raise ValueError("a metric of your own needs the verdicts on the images")
        return images

    def warnings(self) -> list[str]:
        """Return one sentence for each reason to doubt the accuracies."""
        found = self.checks.warnings() if self.checks else []
        if masked := masking_warning(self.black_box_gain or 0.0):
            found.append(masked)
        if self.nonfinite_logits:
            found.append(
                f"the logits of {self.nonfinite_logits} of {self.clean.n} images were NaN or "
                "infinite, clean or attacked; these images count as misclassified. Look for "
                "weights or statistics that are not finite or overflow"
            )
        if self.nonfinite_gradients:
            found.append(
                f"{self.nonfinite_gradients} gradient elements were not finite and moved "
                "nothing: the attack is weaker than it looks"
            )
        if self.live_reason:
            found.append(f"{self.live_reason}; the attack called the model itself")
        return found

    def flags(self) -> tuple[str, ...]:
        """Return the name of each reason to doubt the robust accuracy."""
        found = list(self.checks.flags()) if self.checks else []
        doubts = {
            "black_box": masking_warning(self.black_box_gain or 0.0) is not None,
            "nonfinite_logits": self.nonfinite_logits > 0,
            "nonfinite_gradients": self.nonfinite_gradients > 0,
        }
        return (*found, *(name for name, doubt in doubts.items() if doubt))


def summarize(
    verdicts: Sequence[BatchVerdict], names: Sequence[str], num_classes: int
) -> Evaluation:
    """Add up the verdicts on all batches, by the attacks `names` in turn."""
    labels = torch.tensor([y for v in verdicts for y in v.labels], dtype=torch.int64)
    fell = torch.tensor([f for v in verdicts for f in v.fell_to], dtype=torch.int64)
    total = labels.bincount(minlength=num_classes)

    def after(stage: int) -> Accuracy:
        correct = labels[fell > stage].bincount(minlength=num_classes)
        return Accuracy(correct, total)

    def logits(name: str) -> Tensor | None:
        parts = [getattr(v, name) for v in verdicts]
        if all(part is None for part in parts):
            return None
        return torch.cat(
            [
                torch.full((len(v.labels), num_classes), math.nan)
                if part is None
                else part
                for v, part in zip(verdicts, parts, strict=True)
            ]
        )

    stages = tuple(
        StageResult(
            name,
            attacked=int((fell >= number).sum()),
            robust=after(number),
            seconds=sum(v.seconds[number] for v in verdicts),
        )
        for number, name in enumerate(names)
    )
    checks = [v.checks for v in verdicts if v.checks is not None]
    found = Evaluation(
        clean=after(-1),
        robust=stages[-1].robust if stages else None,
        stages=stages,
        checks=sum(checks, Checks()) if checks else None,
        images=ImageVerdicts(
            labels, fell, logits("clean_logits"), logits("attacked_logits")
        ),
        passes=sum(verdict.passes for verdict in verdicts),
        nonfinite_clean=sum(v.nonfinite_clean for v in verdicts),
        nonfinite_logits=sum(v.nonfinite_logits for v in verdicts),
        nonfinite_gradients=sum(v.nonfinite for v in verdicts),
        live_reason=next((v.live_reason for v in verdicts if v.live_reason), None),
    )
    for text in replace(found, checks=None, stages=(), live_reason=None).warnings():
        log.warning("%s", text)  # what is not finite
    return found


def check_on_few(metric: str, num_classes: int) -> None:
    """Try a metric of your own on two images of each class, before work begins.

    Raises:
        ConfigError: Its function fails, or returns something else than a number in [0, 1].
    """
    labels = torch.arange(num_classes).repeat(2)
    metric_value(metric, 4.0 * torch.eye(num_classes)[labels], labels)
