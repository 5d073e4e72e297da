"""Every figure of a report in one place: pictures of images, and charts of numbers.

Each function returns a `matplotlib.figure.Figure` with a transparent background, whose
colours `fastadv.reporting.html` follows into the dark theme. Pyplot is never used.
"""

from fastadv.reporting.charts import accuracy_under_attack, transfer_bars
from fastadv.reporting.curves import training_curves
from fastadv.reporting.palette import source_colors
from fastadv.reporting.pictures import adversarial_examples, loss_gradients

__all__ = [
    "accuracy_under_attack",
    "adversarial_examples",
    "loss_gradients",
    "source_colors",
    "training_curves",
    "transfer_bars",
]
