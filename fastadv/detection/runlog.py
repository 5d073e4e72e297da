"""The report of a detector's training: events of its log, and lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastadv.detection.config import DetectTrainConfig
from fastadv.training.looplog import LoopLog


@dataclass(frozen=True)
class DetectionSummary:
    """What a finished run reached on the test images, with its last weights.

    Attributes:
        run: The run directory.
        metrics: Average precisions in [0, 1] by name: `box_ap`, `box_ap50`, `mask_ap` and
            so on; see `fastadv.detection.metrics`.
        images_per_s: Training images per second over the whole run.
    """

    run: Path
    metrics: dict[str, float]
    images_per_s: float


class DetectionLog(LoopLog[DetectTrainConfig]):
    """The log and the progress of one run; only the first of several ranks shows them.

    Args:
        config: The choices of the run.
        run: The run directory, which holds the log.
        world: The ranks.
        total_steps: Number of training steps of the whole run.
    """

    also = ", limit the gradient by `clip_grad`"

    def show(self, epoch: int, step: int) -> None:
        """Update the progress with the last measurements."""
        text, last = f"epoch {epoch + 1}/{self._config.epochs}", self._last
        if last:
            text += (
                f"  loss {last['loss']:.3f}"
                f"  {last['images_per_s']:.2f} images/s"
                f"  data wait {100 * last['data_wait']:.0f} %"
                f"  {last['memory_gib']:.1f} GiB"
            )
        self._progress.update(step, text)

    def judged(
        self, event: str, metrics: Mapping[str, float], epoch: int, step: int
    ) -> None:
        """Log average precisions on the test images as an event, `val` or `test`."""
        self._run.log(event, epoch=epoch, step=step, **metrics)
        self.note(
            f"epoch {epoch} {'test' if event == 'test' else 'so far'}: {ap_text(metrics)}"
        )


def ap_text(metrics: Mapping[str, float]) -> str:
    """Return the main average precisions in percent."""
    names = {
        "box_ap": "box AP",
        "box_ap50": "AP50",
        "mask_ap": "mask AP",
        "mask_ap50": "AP50",
    }
    return ", ".join(
        f"{text} {100 * metrics[name]:.1f} %"
        for name, text in names.items()
        if name in metrics
    )
