"""Clean and robust accuracy of a network over batches of images."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastadv.attacks.autoattack import Cascade
from fastadv.attacks.checks import check_model
from fastadv.attacks.contract import Attack, AttackResult
from fastadv.attacks.engine import check_labels, check_pixels
from fastadv.attacks.objectives import Objective
from fastadv.attacks.outputs import decided, logits_of_model
from fastadv.attacks.pgd import PGD
from fastadv.data.any_batch import AnyBatch, images_and_labels
from fastadv.device import differentiable, exact_float32
from fastadv.evaluation.accuracy import BatchVerdict, Evaluation, summarize
from fastadv.evaluation.journal import Journal
from fastadv.models.live_view import LiveView
from fastadv.models.view import AttackView

log = logging.getLogger(__name__)


@differentiable
@exact_float32()
def evaluate(
    model: nn.Module,
    batches: Iterable[AnyBatch],
    attack: Attack | None = None,
    *,
    checks: bool = False,
    journal: Journal | None = None,
    offset: int = 0,
    keep_logits: bool = False,
) -> Evaluation:
    """Classify every batch in evaluation mode, and attack it if there is an attack.

    The model comes back as it was, in the mode that it had. What computes in float32 does
    so on GPUs, too, where torch would take TF32 for convolutions.

    Args:
        model: A `NormalizedModel`, or any module that takes images in [0, 1] and returns
            logits [N, K], alone or called `logits`. A `LiveView` of it is called itself,
            so that its counters and its other state see every pass.
        batches: Batches of a loader in evaluation mode, (images, labels), or mappings as
            the package datasets yields them; see `images_and_labels`.
        attack: Attack that judges each image. `PGD.judge` makes one that is suited to
            it; of a PGD that is meant for training a warning is logged.
        checks: Also check the model for what makes robust accuracies misleading.
        journal: Verdicts on finished batches are taken from it, and new ones added.
        offset: Number of the first image in the sequence of random starts, for a part of
            a set.
        keep_logits: Keep the logits of clean and of attacked images, which takes one
            more forward pass per attacked batch.

    Raises:
        ValueError: Float images are outside [0, 1], labels are no classes of the model,
            or the attack is targeted, which needs other classes than the true ones.
        TypeError: The model does not return logits [N, K], or a batch is neither of these.

    Example:
        >>> attack = PGD.judge(ThreatModel("l2", 0.5), num_steps=20)
        >>> found = evaluate(model, loader, attack)
        >>> found.clean.top1, found.robust.interval("top1")
    """
    objective = getattr(attack, "objective", None)
    if isinstance(objective, Objective) and objective.flips_success:
        raise ValueError(
            f"objective={objective.name!r} is targeted, and evaluate gives attacks the true "
            "classes, which it would call targets; call the attack with the targets as y"
        )
    if isinstance(attack, PGD) and (reason := attack.weakness):
        log.warning(
            "the robust accuracy may be too high: of the attack, %s; "
            "PGD.judge(threat, num_steps=20) is meant for judging",
            reason,
        )
    judge = _Judge(model, attack, checks, keep_logits)
    done = {} if journal is None else dict(journal.verdicts)
    seen = offset
    for number, batch in enumerate(batches):
        images, labels = images_and_labels(batch)
        if number not in done:
            done[number] = judge(images, labels, seen)
            if journal is not None:
                journal.add(number, done[number])
        seen += len(labels)
    verdicts = [done[number] for number in sorted(done)]
    num_classes = judge.view.num_classes
    if num_classes is None:
        num_classes = max((verdict.num_classes for verdict in verdicts), default=0)
    attack = _for_classes(attack, num_classes)
    return summarize(verdicts, () if attack is None else attack.names, num_classes)


def _for_classes(attack: Attack | None, num_classes: int) -> Attack | None:
    """Return an attack as it exists for a number of classes; see `Cascade.for_classes`."""
    return attack.for_classes(num_classes) if isinstance(attack, Cascade) else attack


class _Judge:
    """The judge of single batches, which has the arguments of `evaluate`."""

    def __init__(
        self, model: nn.Module, attack: Attack | None, checks: bool, keep_logits: bool
    ) -> None:
        self.model, self.attack = model, attack
        self.checks, self.keep_logits = checks, keep_logits
        self.view = model if isinstance(model, AttackView) else LiveView(model)
        self.target = self.view if attack is None else attack.prepare(model)

    @differentiable
    def __call__(self, images: Tensor, labels: Tensor, offset: int) -> BatchVerdict:
        device = next(self.view.parameters(), images).device
        images, labels = images.to(device), labels.to(device)
        check_pixels(images)
        clean = logits_of_model(self.model, images)
        check_labels(labels, clean.shape[1])
        self.attack = _for_classes(self.attack, clean.shape[1])
        right, lost = decided(clean) == labels, ~clean.isfinite().all(1)
        live = checks = None
        network = self.view
        if isinstance(self.target, AttackView) and self.target.mode == "eval":
            network = self.target
            if network.live_reason is None:
                network.compare(images)
            live = None if network.agreement is None else network.agreement.reason
        if self.checks:
            checks = check_model(self.model, network, images, labels, clean)
        fell_to, attacked, nonfinite = torch.zeros_like(labels), None, 0
        passes = 0
        seconds: list[float] = []
        if self.attack is not None:
            began = time.perf_counter()
            # An image that is wrong without an attack is not attacked.
            found = self.attack(
                self.target, images, labels, offset=offset, active=right
            )
            nonfinite = int(found.nonfinite)
            passes = found.passes
            # Reading that number waited for the device, so the last attack is over.
            before = list(found.seconds[:-1])
            seconds = [*before, time.perf_counter() - began - sum(before)]
            attacked = logits_of_model(self.model, found.x_adv)
            lost |= right & ~attacked.isfinite().all(1)
            fell_to = self._fell_to(found, decided(attacked) != labels)
        return BatchVerdict(
            labels.tolist(),
            torch.where(right, fell_to, -torch.ones_like(fell_to)).tolist(),
            seconds,
            nonfinite,
            checks,
            clean.shape[1],
            clean.float().cpu() if self.keep_logits else None,
            attacked.float().cpu()
            if self.keep_logits and attacked is not None
            else None,
            passes,
            int((~clean.isfinite().all(1)).sum()),
            int(lost.sum()),
            live,
        )

    def _fell_to(self, found: AttackResult, wrong: Tensor) -> Tensor:
        """Return the attack that fooled each image [N], which the model itself decides.

        Args:
            found: What the attack found.
            wrong: Whether the model misclassifies each adversarial image, bool [N].
        """
        most = len(self.attack.names) if self.attack is not None else 0
        fell_to = found.fell_to
        if not (isinstance(self.target, AttackView) and self.target.live_reason):
            fell_to = fell_to.where(wrong, most)
        return fell_to.where(~wrong, fell_to.clamp_max(most - 1))
