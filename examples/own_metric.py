r"""A metric of your own in the place of accuracy: the macro F1, and a share of top-5 hits.

Run: fastadv-transfer --source RUN --dataset DATA \
         --dataset-option metric=examples/own_metric.py:macro_f1
     fastadv-eval --checkpoint RUN --data DATA \
         --dataset-option metric=examples/own_metric.py:macro_f1
A package adds a name for it in its pyproject.toml:
    [project.entry-points."fastadv.metrics"]
    macro_f1 = "mypackage.metrics:macro_f1"
"""

from __future__ import annotations

from sklearn.metrics import f1_score
from torch import Tensor


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of the F1 scores of the classes, in [0, 1].

    Args:
        logits: Logits of N images, float32 [N, K], clean or attacked.
        labels: Their classes, int64 [N].
    """
    return float(f1_score(labels, logits.argmax(1), average="macro", zero_division=0))


def top5(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class is among the five of the largest logits."""
    likeliest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return float((likeliest == labels[:, None]).any(1).float().mean())
